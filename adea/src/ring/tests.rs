//! The core with a rean, a disk and neighbours that do as they are told.

use adea_ring::config::{PodState, RingConfig};
use adea_ring::election::{Cause, Decision};
use adea_ring::host::{DiskLevel, HostReport};
use adea_ring::report::{Applied, Dropped, EpochStart, Facts, Known, Origin, Role, Said};
use adea_ring::{Member, PodId, Stamp};

use super::core::{CHANGE_SILENT_MS, Core, SILENT_MS};
use super::kept::{Kept, Remembered};
use super::turn::{Answer, Aside, Inputs, Me, Outputs, Row};

const T0: u64 = 1_000_000;

fn pod(id: &str) -> PodId {
    id.parse().expect("a pod's id")
}

fn origin(id: &str) -> Origin {
    Origin::new(pod(id), "0a1b2c3d").expect("an origin")
}

/// A stamp of a second after the start.
fn at(second: u64, by: &str) -> Stamp {
    format!("{:012x}-0000-{by}", T0 + second * 1_000).parse().expect("a stamp")
}

/// What rean does.
#[derive(Clone, Copy, PartialEq)]
enum Rean {
    /// Takes each role at once.
    Obedient,
    /// Answers, and stays what it is.
    Stubborn,
    /// Takes a connection and says nothing.
    Silent,
    /// Is not there.
    Down,
}

/// One pod, `b`, its rean and its disk.
struct World {
    core: Core,
    now_ms: u64,
    /// By the machine's clock, in milliseconds since 1970, when it started.
    started_ms: u64,
    rean: Rean,
    facts: Facts,
    /// What the pod knows of its rean's role.
    answered: Role,
    disk: Kept,
    others: Vec<Row>,
    leaving: bool,
    disk_works: bool,
    aside: Aside,
    answer: Option<Answer>,
    last: Option<Outputs>,
}

impl World {
    fn new(kept: Kept, has_seeds: bool) -> Self {
        let me = Me {
            id: pod("b"),
            address: "b:1".into(),
            url: None,
            generation: kept.generation + 1,
            since_ms: T0,
            has_seeds,
        };
        let facts = Facts {
            role: Role::Waiting,
            origin: origin("b"),
            applied: Applied::from([(origin("b"), 7)]),
            start: None,
            caught_up_to: None,
            config: RingConfig::default(),
            keyring: None,
            upgrade: None,
            disk: DiskLevel::Roomy,
        };
        Self {
            core: Core::new(me, kept.clone()),
            now_ms: 0,
            started_ms: T0,
            rean: Rean::Obedient,
            answered: Role::Waiting,
            answer: Some(Answer::Facts(Box::new(facts.clone()))),
            facts,
            disk: kept,
            others: Vec::new(),
            leaving: false,
            disk_works: true,
            aside: Aside::default(),
            last: None,
        }
    }

    /// In a ring with `a` and `c`, both there, `c` master.
    fn following() -> Self {
        let mut world = Self::new(remembering(&["a", "c"]), true);
        world.others = vec![row("a"), master("c", &at(0, "c"))];
        world.run(100);
        assert_eq!(world.facts.role, Role::Follower(at(0, "c")));
        world
    }

    /// Alone, and master.
    fn ruling() -> Self {
        let mut world = Self::new(Kept::default(), false);
        world.run(100);
        assert!(world.claim().is_some());
        world
    }

    /// A turn of 50 ms, with a rean that hears of it and answers before the next.
    fn turn(&mut self) -> Outputs {
        self.turn_of(50)
    }

    fn turn_of(&mut self, ms: u64) -> Outputs {
        self.now_ms += ms;
        if let Some(Answer::Facts(facts)) = &self.answer {
            self.answered = facts.role.clone();
        }
        let outputs = self.core.step(Inputs {
            aside: self.aside.clone(),
            elapsed_ms: self.now_ms,
            physical_ms: self.started_ms + self.now_ms,
            heard: self.others.clone(),
            answer: self.answer.take(),
            load: 0.5,
            leaving: self.leaving,
            disk_works: self.disk_works,
            dropped: Dropped::default(),
        });
        if let Some(kept) = outputs.keep.clone().filter(|_| self.disk_works) {
            self.disk = kept;
        }
        self.check(&outputs);
        self.answer = match self.rean {
            Rean::Silent => None,
            Rean::Down => Some(Answer::Down),
            Rean::Stubborn => Some(Answer::Facts(Box::new(self.facts.clone()))),
            Rean::Obedient => {
                let role = outputs.tell.role.clone();
                if let Role::Master(epoch) = &role
                    && self.facts.role != role
                {
                    self.facts.start = Some(EpochStart { epoch: epoch.clone(), origin: origin("b"), seq: 7 });
                }
                self.facts.role = role;
                Some(Answer::Facts(Box::new(self.facts.clone())))
            }
        };
        self.last = Some(outputs.clone());
        outputs
    }

    /// What holds at each turn.
    fn check(&self, outputs: &Outputs) {
        let (member, kept) = (&outputs.say.member, &self.disk);
        if self.disk_works {
            assert!(outputs.tell.role.epoch() <= kept.seen.as_ref(), "an epoch is kept before it is told");
            assert!(member.epoch <= kept.seen, "and before it is said");
            assert!(member.stamp < kept.clock, "no stamp is given away that could be given again");
        }
        if let Some(claim) = &member.claim {
            assert_eq!(self.answered, Role::Master(claim.clone()), "who claims, takes writes");
        }
        assert!(member.claim.is_none() || outputs.say.said.start.is_some());
    }

    fn run(&mut self, turns: usize) {
        (0..turns).for_each(|_| drop(self.turn()));
    }

    /// How long it takes until something is so, in milliseconds.
    fn until(&mut self, limit_ms: u64, so: impl Fn(&Outputs) -> bool) -> u64 {
        let began_ms = self.now_ms;
        while !so(&self.turn()) {
            assert!(self.now_ms - began_ms <= limit_ms, "not in {limit_ms} ms: {:?}", self.last);
        }
        self.now_ms - began_ms
    }

    fn claim(&self) -> Option<Stamp> {
        self.last.as_ref().and_then(|last| last.say.member.claim.clone())
    }
}

fn remembering(ids: &[&str]) -> Kept {
    let mut kept = Kept { joined: true, generation: 3, origin: Some(origin("b")), ..Kept::default() };
    for id in ids {
        kept.remember(Remembered { id: pod(id), address: format!("{id}:1"), left: false });
    }
    kept
}

fn row(id: &str) -> Row {
    let said = Said { healthy: true, ..Said::default() };
    let known = Known { member: Member::new(pod(id), &format!("{id}:1"), 1), said };
    Row { id: pod(id), address: format!("{id}:9"), generation: 1, alive: true, version: 1, known: Some(known) }
}

fn with(mut row: Row, change: impl FnOnce(&mut Known)) -> Row {
    change(row.known.as_mut().expect("it says something"));
    row.version += 1;
    row
}

fn master(id: &str, epoch: &Stamp) -> Row {
    with(row(id), |known| {
        let member = &mut known.member;
        (member.epoch, member.claim) = (Some(epoch.clone()), Some(epoch.clone()));
        member.caught_up_to = Some(epoch.clone());
    })
}

fn dead(row: &Row) -> Row {
    Row { alive: false, ..row.clone() }
}

#[test]
fn a_pod_with_no_others_is_up_at_once_and_in_order() {
    let mut world = World::new(Kept::default(), false);
    let outputs = world.turn();
    let Decision::Become(epoch) = outputs.decision else { panic!("{outputs:?}") };
    let kept = outputs.keep.expect("what was begun is kept first");
    assert_eq!((kept.seen, kept.joined), (Some(epoch.clone()), true));
    assert_eq!((outputs.tell.role, outputs.tell_now), (Role::Master(epoch.clone()), true));
    // rean has not answered yet.
    assert_eq!((outputs.say.member.claim, outputs.say.said.start), (None, None));
    let outputs = world.turn();
    assert_eq!(outputs.say.member.claim, Some(epoch.clone()));
    assert_eq!(outputs.say.said.start.map(|start| start.seq), Some(7));
    assert_eq!(outputs.say.member.caught_up_to, Some(epoch));
}

#[test]
fn no_claim_without_rean_and_the_others_get_their_turn() {
    let mut world = World::new(Kept::default(), false);
    world.rean = Rean::Stubborn;
    let mut was_healthy = false;
    world.until(30_000, |outputs| {
        assert_eq!(outputs.say.member.claim, None);
        !outputs.say.said.healthy
    });
    for _ in 0..600 {
        was_healthy |= world.turn().say.said.healthy;
        assert_eq!(world.claim(), None);
    }
    assert!(was_healthy, "it tries again");
}

#[test]
fn a_dead_rean_ends_the_claim_within_a_second_and_a_quick_return_keeps_it() {
    for way in [Rean::Silent, Rean::Down] {
        let mut world = World::ruling();
        let epoch = world.claim();
        world.rean = way;
        world.run(10);
        assert_eq!(world.claim(), epoch, "half a second is nothing");
        // It has been started again and knows nothing.
        (world.rean, world.facts.role, world.facts.start) = (Rean::Obedient, Role::Waiting, None);
        world.answer = None;
        world.until(200, |outputs| outputs.say.member.claim == epoch);

        world.rean = way;
        let took_ms = world.until(SILENT_MS + 200, |outputs| outputs.say.member.claim.is_none());
        assert!(took_ms >= SILENT_MS - 100, "{took_ms}");
        let last = world.last.clone().expect("a turn");
        assert!(!last.say.said.healthy && last.tell.role == Role::Waiting && last.tell.neighbours.is_empty());
        // A change of role that nobody hears of is no reason to be patient.
        for _ in 0..200 {
            let outputs = world.turn();
            assert!(!outputs.say.said.healthy && outputs.say.member.claim.is_none());
        }
        world.rean = Rean::Obedient;
        (world.facts.role, world.facts.start) = (Role::Waiting, None);
        world.until(1_000, |outputs| outputs.say.member.claim > epoch);
    }
}

#[test]
fn a_master_says_so_until_its_last_write_is_done() {
    let mut world = World::ruling();
    let epoch = world.claim();
    // c comes, catches up, and has the higher id.
    world.others = vec![row("c")];
    world.run(5);
    assert_eq!(world.claim(), epoch);
    world.others = vec![with(row("c"), |c| c.member.caught_up_to = epoch.clone())];
    let took_ms = world.until(500, |outputs| matches!(outputs.decision, Decision::StepDown(_)));
    assert!(took_ms >= 300, "{took_ms}: c is to be the one for a while first");
    world.rean = Rean::Silent;
    world.answer = None;
    assert_eq!(world.last.as_ref().map(|last| &last.tell.role), Some(&Role::Waiting));
    // Its rean finishes writes: for longer than one may be silent otherwise.
    for _ in 0..(2 * SILENT_MS / 50) {
        assert_eq!(world.turn().say.member.claim, epoch);
    }
    world.rean = Rean::Obedient;
    world.until(200, |outputs| outputs.say.member.claim.is_none());
    assert!(world.last.as_ref().is_some_and(|last| last.say.said.healthy));
    world.others = vec![master("c", &at(60, "c"))];
    world.until(200, |outputs| outputs.tell.role == Role::Follower(at(60, "c")));

    // One that never finishes is not waited for without end.
    let mut world = World::ruling();
    let epoch = world.claim();
    world.others = vec![with(row("c"), |c| c.member.caught_up_to = epoch.clone())];
    world.until(500, |outputs| matches!(outputs.decision, Decision::StepDown(_)));
    (world.rean, world.answer) = (Rean::Silent, None);
    world.until(CHANGE_SILENT_MS + 200, |outputs| outputs.say.member.claim.is_none());
}

#[test]
fn a_new_pod_begins_nothing_before_it_has_met_another() {
    let mut world = World::new(Kept::default(), true);
    for _ in 0..400 {
        let outputs = world.turn();
        assert!(outputs.lonely && outputs.tell.role == Role::Waiting, "{outputs:?}");
    }
    assert!(!world.disk.joined);
    // One that is there, and has not said what it is.
    world.others = vec![Row { known: None, ..row("c") }];
    for _ in 0..20 {
        assert!(world.turn().lonely);
    }
    assert_eq!(world.disk.members[0].address, "c:9");
    // The ring's master is there, and then gone for good.
    world.others = vec![row("a"), master("c", &at(1, "c"))];
    let outputs = world.turn();
    assert!(!outputs.lonely && outputs.tell.role == Role::Follower(at(1, "c")) && world.disk.joined);
    let known: Vec<_> = world.disk.members.iter().map(|known| known.address.as_str()).collect();
    assert_eq!(known, ["a:1", "c:1"]);
    assert!(world.others.iter().all(|row| outputs.tell.neighbours.contains(&row.id)));
    world.others[1] = dead(&world.others[1]);
    world.until(2_000, |outputs| matches!(outputs.decision, Decision::Become(_)));

    // The next start goes by what the disk remembers.
    let restarted_ms = T0 + world.now_ms;
    let mut world = World { started_ms: restarted_ms, ..World::new(world.disk, true) };
    assert!(!world.turn().lonely);
    let took_ms = world.until(5_000, |outputs| matches!(outputs.decision, Decision::Become(_)));
    assert!(took_ms >= 2_500, "it waits for those that it remembers: {took_ms}");
}

#[test]
fn one_that_left_is_waited_for_at_a_start_and_named_as_left() {
    let mut kept = remembering(&["c"]);
    kept.remember(Remembered { id: pod("a"), address: "a:1".into(), left: true });
    let mut world = World::new(kept, true);
    world.others = vec![row("c")];
    let outputs = world.turn();
    let left: Vec<_> = outputs.tell.members.iter().map(|known| (known.member.id.as_str(), known.member.left)).collect();
    assert_eq!(left, [("a", true), ("b", false), ("c", false)]);
    world.others = vec![dead(&row("c"))];
    let took_ms = world.until(5_000, |outputs| matches!(outputs.decision, Decision::Become(_)));
    assert!(took_ms >= 2_500, "{took_ms}");
}

#[test]
fn a_pod_whose_rean_is_dead_is_no_candidate() {
    let mut world = World::new(remembering(&["c"]), true);
    world.others = vec![with(row("c"), |c| c.said.healthy = false)];
    world.until(5_000, |outputs| matches!(outputs.decision, Decision::Become(_)));
    let members = world.last.as_ref().map(|last| last.tell.members.clone()).expect("a turn");
    assert!(members.iter().any(|known| known.member.id == pod("c") && !known.member.alive));
}

#[test]
fn after_a_pause_it_is_not_caught_up_until_that_is_reported_again() {
    let mut world = World::following();
    world.facts.caught_up_to = Some(at(0, "c"));
    world.run(40);
    let caught_up = |world: &World| world.last.as_ref().and_then(|last| last.say.member.caught_up_to.clone());
    assert_eq!(caught_up(&world), Some(at(0, "c")));
    assert_eq!(world.disk.caught_up_to, Some(at(0, "c")));
    world.turn_of(5_000);
    assert_eq!((caught_up(&world), &world.disk.caught_up_to), (None, &None));
    let began_ms = world.now_ms;
    world.until(3_000, |outputs| outputs.say.member.caught_up_to.is_some());
    assert!((900..1_500).contains(&(world.now_ms - began_ms)), "{}", world.now_ms - began_ms);

    // Another store has nothing, whatever the last one had.
    world.facts.origin = Origin::new(pod("b"), "ffffffff").expect("an origin");
    world.facts.caught_up_to = None;
    world.run(3);
    assert_eq!((caught_up(&world), &world.disk.caught_up_to), (None, &None));
}

/// What a master of before a pause decides in the time after it, until it is the same for a second: others speak or not.
fn after_a_pause(others: impl Fn(u64) -> Vec<Row>) -> Vec<(u64, Role)> {
    let mut world = World::ruling();
    let epoch = world.claim();
    world.others = others(0);
    world.run(20);
    assert_eq!(world.claim(), epoch, "others are no reason");
    let (mut roles, mut last) = (Vec::new(), None);
    world.turn_of(6_000);
    let woke_ms = world.now_ms;
    while world.now_ms < woke_ms + 5_000 {
        let role = world.last.as_ref().map(|last| last.tell.role.clone()).expect("a turn");
        assert_ne!(Role::Master(epoch.clone().expect("it was master")), role, "what was before the pause is over");
        if last.as_ref() != Some(&role) {
            roles.push((world.now_ms - woke_ms, role.clone()));
            last = Some(role);
        }
        world.others = others(world.now_ms + 50 - woke_ms);
        world.turn();
    }
    roles
}

#[test]
fn after_a_pause_a_master_waits_until_it_hears_the_others() {
    let says = |row: Row, ms: u64| Row { version: row.version + ms / 500, ..row };
    // Another has begun; what was said before the pause is read first.
    let later = at(600, "a");
    let replaced = after_a_pause(|ms| if ms < 150 { vec![row("a")] } else { vec![says(master("a", &later), 500)] });
    assert_eq!(replaced, [(0, Role::Waiting), (150, Role::Follower(later))]);
    // None has: all slept.
    let woken = after_a_pause(|ms| vec![says(row("a"), ms)]);
    let [(0, Role::Waiting), (500..=600, Role::Master(_))] = woken.as_slice() else { panic!("{woken:?}") };
    // All others are gone, as gossip finds after some time of its own.
    let left = after_a_pause(|ms| vec![if ms < 600 { row("a") } else { dead(&row("a")) }]);
    let [(0, Role::Waiting), (600..=1_000, Role::Master(_))] = left.as_slice() else { panic!("{left:?}") };
    // One that lives and has nothing to say does not stop it for ever.
    let mute = after_a_pause(|_| vec![row("a")]);
    let [(0, Role::Waiting), (3_000..=3_400, Role::Master(_))] = mute.as_slice() else { panic!("{mute:?}") };

    // One that has never met another has nobody to wait for.
    let mut world = World::ruling();
    let epoch = world.claim();
    for ms in [6_000, 50, 50, 50] {
        world.turn_of(ms);
        assert_eq!(world.claim(), epoch);
    }
}

#[test]
fn a_clock_that_was_set_back_does_not_make_a_start_longer() {
    let mut kept = remembering(&["c"]);
    // A minute ahead of the machine's time.
    kept.clock = Some(at(60, "b"));
    let mut world = World::new(kept, true);
    let took_ms = world.until(4_000, |outputs| matches!(outputs.decision, Decision::Become(_)));
    assert!(took_ms >= 3_000 - 100, "{took_ms}");
}

#[test]
fn a_master_hands_over_before_it_leaves() {
    let mut world = World::ruling();
    let epoch = world.claim();
    world.others = vec![with(row("a"), |a| a.said.applied = Applied::from([(origin("b"), 5)]))];
    world.run(3);
    assert_eq!(world.claim(), epoch);
    world.leaving = true;
    let outputs = world.turn();
    assert!(outputs.say.member.left && outputs.tell.role == Role::Waiting && !outputs.may_go);
    assert_eq!(outputs.say.member.claim, epoch, "its last writes are not done yet");
    world.run(3);
    let last = world.last.clone().expect("a turn");
    assert_eq!((last.say.member.claim, last.may_go), (None, false), "a does not have all yet");
    assert_eq!(last.tell.neighbours, [pod("a")], "and takes it over this link");
    world.others = vec![with(row("a"), |a| a.said.applied = Applied::from([(origin("b"), 7)]))];
    assert!(world.turn().may_go);

    // It does not wait for ever, nor for nobody.
    world.others = vec![with(row("a"), |a| a.said.applied = Applied::from([(origin("b"), 5)]))];
    world.until(4_000, |outputs| outputs.may_go);
    let mut world = World::ruling();
    world.leaving = true;
    world.until(200, |outputs| outputs.may_go);
    let mut world = World::following();
    world.leaving = true;
    assert!(world.turn().may_go, "a follower has nothing to hand over");
}

impl World {
    fn reluctant(&self) -> (bool, DiskLevel) {
        self.last.as_ref().map(|last| (last.say.member.reluctant, last.say.member.disk)).expect("a turn")
    }

    fn states(&mut self, states: &[(&str, PodState)]) {
        self.facts.config.pods = states.iter().map(|(id, state)| (pod(id), *state)).collect();
    }

    /// Of the members that rean is told of: whether each has left.
    fn told(&self) -> Vec<(String, bool)> {
        let last = self.last.as_ref().expect("a turn");
        last.tell.members.iter().map(|known| (known.member.id.to_string(), known.member.left)).collect()
    }
}

#[test]
fn what_makes_a_pod_reluctant() {
    let mut world = World::following();
    assert_eq!(world.reluctant(), (false, DiskLevel::Roomy));
    world.aside.reluctant = true;
    world.turn();
    assert_eq!(world.reluctant(), (true, DiskLevel::Roomy));
    world.aside = Aside::default();
    world.states(&[("b", PodState::Inactive)]);
    world.run(2);
    assert_eq!(world.reluctant(), (true, DiskLevel::Roomy));
    assert_eq!(world.last.as_ref().map(|last| last.say.said.state), Some(PodState::Inactive));
    world.states(&[]);
    world.run(2);
    assert_eq!(world.reluctant(), (false, DiskLevel::Roomy));
    // The worse of what the machine's agent and rean have found.
    for (of_host, of_store) in [(DiskLevel::Low, DiskLevel::Roomy), (DiskLevel::Roomy, DiskLevel::Full)] {
        world.aside.host = Some(HostReport { disk: of_host, ..HostReport::default() });
        world.facts.disk = of_store;
        world.run(2);
        let worse = of_host.max(of_store);
        assert_eq!(world.reluctant(), (false, worse));
        let last = world.last.as_ref().expect("a turn");
        assert_eq!((last.say.said.disk, &last.tell.host), (worse, &world.aside.host));
    }
}

#[test]
fn a_reluctant_master_hands_over_and_not_to_a_reluctant_one() {
    let mut world = World::ruling();
    let epoch = world.claim();
    let informed =
        |reluctant: bool| with(row("a"), |a| (a.member.caught_up_to, a.member.reluctant) = (epoch.clone(), reluctant));
    world.others = vec![informed(false)];
    world.run(20);
    assert_eq!(world.claim(), epoch, "it comes before a");
    world.aside.reluctant = true;
    let to_a = Decision::StepDown(Cause::HandOver(pod("a")));
    let took_ms = world.until(600, |outputs| outputs.decision == to_a);
    assert!(took_ms >= 300, "{took_ms}: the others are to see it too");
    let mut world = World::ruling();
    let epoch = world.claim();
    world.others = vec![with(row("a"), |a| (a.member.caught_up_to, a.member.reluctant) = (epoch.clone(), true))];
    world.aside.reluctant = true;
    world.run(100);
    assert_eq!(world.claim(), epoch, "a ring of only reluctant pods takes writes");
}

#[test]
fn a_removed_master_hands_over_first_and_goes_when_another_has_all() {
    let mut world = World::ruling();
    let epoch = world.claim();
    let a = |applied: u64| {
        with(row("a"), |a| {
            a.member.caught_up_to = epoch.clone();
            a.said.applied = Applied::from([(origin("b"), applied)]);
        })
    };
    world.others = vec![a(5)];
    world.run(3);
    world.states(&[("b", PodState::Removed)]);
    world.until(600, |outputs| outputs.tell.role == Role::Waiting);
    let last = world.last.clone().expect("a turn");
    assert!(last.removed && !last.may_go && !last.say.member.left, "it takes its last writes still");
    world.until(300, |outputs| outputs.say.member.left);
    // Longer than a pod that comes back is waited for.
    for _ in 0..(20_000 / 50) {
        assert!(!world.turn().may_go);
    }
    assert_eq!(world.last.as_ref().map(|last| last.tell.neighbours.clone()), Some(vec![pod("a")]));
    // What it has learned stays so.
    world.states(&[]);
    world.others = vec![a(7)];
    assert!(world.turn().may_go);

    // Nobody is fit to take over, or to have it all: it goes all the same.
    let mut world = World::ruling();
    world.others = vec![with(row("a"), |a| a.said.applied = Applied::from([(origin("b"), 5)]))];
    world.states(&[("b", PodState::Removed)]);
    let took_ms = world.until(60_000, |outputs| outputs.may_go);
    assert!((40_000..46_000).contains(&took_ms), "{took_ms}");
    // It was removed while it was away, and has not found the others yet.
    let mut world = World::new(remembering(&["a"]), true);
    world.states(&[("b", PodState::Removed)]);
    world.answer = Some(Answer::Facts(Box::new(world.facts.clone())));
    let took_ms = world.until(5_000, |outputs| outputs.may_go);
    assert!(took_ms >= 3_000, "{took_ms}");
}

#[test]
fn nobody_waits_for_a_removed_pod() {
    // It is gone: a start does not wait for it, and rean hears nothing of it.
    let mut world = World::new(remembering(&["c"]), true);
    world.states(&[("c", PodState::Removed)]);
    world.answer = Some(Answer::Facts(Box::new(world.facts.clone())));
    let took_ms = world.until(1_000, |outputs| matches!(outputs.decision, Decision::Become(_)));
    assert!(took_ms < 600, "{took_ms}");
    assert_eq!(world.told(), [("b".to_owned(), false)]);

    // It is master and lives: nobody begins before it has stepped down.
    let mut world = World::following();
    let epoch = at(0, "c");
    world.facts.caught_up_to = Some(epoch.clone());
    world.states(&[("c", PodState::Removed)]);
    for _ in 0..100 {
        let outputs = world.turn();
        assert_eq!(outputs.tell.role, Role::Follower(epoch.clone()));
    }
    let is_left = |world: &World| world.told().into_iter().find(|(id, _)| id == "c").map(|(_, left)| left);
    assert_eq!(is_left(&world), Some(false));
    // It has: to the others it has left, and what only it has is still pulled.
    world.others[1] = with(row("c"), |c| c.member.caught_up_to = Some(epoch.clone()));
    world.others[1].version += 1;
    world.until(1_000, |outputs| matches!(outputs.decision, Decision::Become(_)));
    assert_eq!(is_left(&world), Some(true));
    let neighbours = |world: &World| world.last.as_ref().map(|last| last.tell.neighbours.clone());
    assert_eq!(neighbours(&world), Some(vec![pod("a"), pod("c")]));
    world.others[1] = dead(&world.others[1]);
    world.run(2);
    assert_eq!((is_left(&world), neighbours(&world)), (None, Some(vec![pod("a")])));
}

#[test]
fn without_a_disk_it_takes_no_writes() {
    let mut world = World::ruling();
    world.disk_works = false;
    world.until(500, |outputs| outputs.tell.role == Role::Waiting && outputs.say.member.claim.is_none());
    world.disk_works = true;
    world.until(500, |outputs| outputs.say.member.claim.is_some());
}

#[test]
fn another_process_with_its_name_makes_it_step_back() {
    let mut world = World::ruling();
    world.others = vec![Row { generation: 99, ..row("b") }];
    let outputs = world.turn();
    assert!(outputs.doubled && outputs.tell.role == Role::Waiting);
    // Its own row, and one of an earlier start, are no other process.
    world.others = vec![Row { generation: 0, ..row("b") }];
    assert!(!world.turn().doubled);
}

#[test]
fn a_restarted_pod_claims_nothing_by_what_it_said_before() {
    let mut world = World::following();
    world.others[1] = Row { generation: 2, known: None, ..world.others[1].clone() };
    world.run(1);
    let c = world.last.as_ref().and_then(|last| last.tell.get(&pod("c")).cloned()).expect("c is known");
    assert_eq!((c.member.claim, c.member.alive, c.member.address.as_str()), (None, false, "c:1"));
}

#[test]
fn the_configuration_counts_at_once() {
    let mut world = World::following();
    world.facts.config.election.prefer = vec![pod("b")];
    world.facts.caught_up_to = Some(at(0, "c"));
    world.run(3);
    // The master sees the same, and steps down first.
    world.others[1] = with(row("c"), |c| c.member.caught_up_to = Some(at(0, "c")));
    world.until(1_000, |outputs| matches!(outputs.decision, Decision::Become(_)));
    // A clock that is half a minute ahead is one too many now.
    world.facts.config.clock.max_drift_ms = 1_000;
    world.run(3);
    world.others[0] = with(row("a"), |a| a.member.stamp = Some(at(60, "a")));
    let outputs = world.turn();
    assert_eq!(outputs.tell.get(&pod("b")).map(|known| known.member.refuses.clone()), Some(vec![pod("a")]));
}

#[test]
fn what_is_said_stays_small() {
    let mut world = World::following();
    world.facts.applied =
        (0..5_000).map(|i| (Origin::new(pod(&format!("p{i}")), "00000000").expect("an origin"), i)).collect();
    world.facts.applied.insert(origin("b"), 1);
    world.run(30);
    let say = world.last.as_ref().map(|last| last.say.clone()).expect("a turn");
    let size = serde_json::to_vec(&say).expect("JSON").len();
    assert!((3_000..8_000).contains(&size), "{size}");
    assert!(say.said.applied.contains_key(&origin("b")));
    let again: Known = serde_json::from_slice(&serde_json::to_vec(&say).expect("JSON")).expect("it can be read");
    assert_eq!(again, say);
}
