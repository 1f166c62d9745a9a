//! One pod through an upgrade, with an agent that dies at any point and goes on from its journal.

use std::path::PathBuf;

use adea_ring::upgrade::{Order, OrderKey, OrderPublicKey, OrderState, Peer, Progress, Source, Step};

use super::{Core, Inputs, MAX_AGENT_TRIES};
use crate::docker::Brought;
use crate::folder::Folder;
use crate::software::Software;
use crate::upgrade::depot::FetchError;
use crate::upgrade::journal::{Journal, Outfit};

const TURN_MS: u64 = 500;
/// More turns than any way through takes.
const TURNS: u64 = 400;

/// How the new software does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Luck {
    Good,
    /// Its programs end by themselves.
    Crashes,
    /// Its agent ends at once.
    BadAgent,
    /// It never has what the others have.
    Behind,
    /// Its program can't be started.
    Hopeless,
    /// It never arrives.
    Absent,
}

/// A machine: what survives the agent, and what doesn't.
struct Machine {
    folder: Folder,
    _dir: tempfile::TempDir,
    luck: Luck,
    /// By which key orders count here, and which has signed the one in the ring.
    key: Option<OrderPublicKey>,
    order_key: Option<OrderPublicKey>,
    /// The program that runs as the agent.
    agent: PathBuf,
    core: Core,
    runs: Software,
    up_at: u64,
    ends: u32,
    fetched: bool,
    turn: u64,
    began: u64,
    /// Turns after which the agent is killed.
    deaths: Vec<u64>,
    /// The agent is killed also just after the journal is written.
    dies_when_saved: bool,
    steps: Vec<Step>,
    /// Where the other pod is with the order, and whether it was removed from the ring.
    other: (Step, bool),
    /// The program files that were kept, each time that others were to go.
    tidied: Vec<Vec<PathBuf>>,
}

fn installed() -> PathBuf {
    "/usr/local/bin/podctl".into()
}

fn software(name: &str) -> Software {
    Software { image: Some(name.to_owned()), program: None }
}

fn new_outfit() -> Outfit {
    let brought = Some(Brought { id: "sha256:new".into(), name: "new".into() });
    Outfit { software: software("new"), agent: "/data/bin/podctl-new".into(), brought }
}

fn order() -> Order {
    let pods = vec!["me".parse().unwrap(), "other".parse().unwrap()];
    let order = Order::new(Source::Ring, Some("new".into()), pods, 1);
    Order { archive_sha256: Some("0".repeat(64)), patience_s: 60, ..order }
}

impl Machine {
    fn new(luck: Luck) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        Self {
            core: Core::new("me".parse().unwrap(), Journal::default()),
            folder,
            _dir: dir,
            luck,
            key: None,
            order_key: None,
            agent: installed(),
            runs: Software::default(),
            up_at: 0,
            ends: 0,
            fetched: false,
            turn: 0,
            began: 0,
            deaths: Vec::new(),
            dies_when_saved: false,
            steps: Vec::new(),
            other: (Step::Ready, false),
            tidied: Vec::new(),
        }
    }

    /// The agent begins: the installed program first, which hands over.
    fn begin(&mut self) {
        let mut journal = Journal::load(&self.folder).unwrap();
        self.agent = installed();
        while let Some(agent) = journal.agent.clone().filter(|agent| *agent != self.agent) {
            if journal.agent_tries > MAX_AGENT_TRIES {
                break;
            }
            journal.agent_tries += 1;
            journal.save(&self.folder).unwrap();
            self.agent = if self.luck == Luck::BadAgent && agent == new_outfit().agent { installed() } else { agent };
        }
        // What runs goes on; what the journal says is set before anything else.
        if self.runs != journal.software {
            self.replace(journal.software.clone());
        }
        self.core = Core::new("me".parse().unwrap(), journal);
        (self.fetched, self.began, self.ends) = (false, self.turn, 0);
    }

    fn replace(&mut self, software: Software) {
        (self.runs, self.up_at, self.ends) = (software, self.turn + 3, 0);
    }

    fn is_up(&self) -> bool {
        self.turn >= self.up_at && !(self.luck == Luck::Crashes && self.runs == software("new"))
    }

    fn turn(&mut self, order: &Order) {
        self.turn += 1;
        self.ends += u32::from(!self.is_up() && self.luck == Luck::Crashes && self.turn.is_multiple_of(4));
        let (step, is_removed) = self.other;
        let other = Progress { order: order.id.clone(), step, reason: None };
        let explicit = if self.runs == Software::default() { software("old") } else { self.runs.clone() };
        let outputs = self.core.turn(Inputs {
            now_ms: 1_000_000 + self.turn * TURN_MS,
            elapsed_ms: (self.turn - self.began) * TURN_MS,
            order: (self.key == self.order_key).then(|| order.clone()),
            key: self.key,
            peers: vec![Peer { id: "other".parse().unwrap(), is_live: true, is_removed, progress: Some(other) }],
            is_master: false,
            up: self.is_up().then(|| self.runs.clone()),
            ends: self.ends,
            runs: explicit,
            agent: self.agent.clone(),
            installed: None,
            is_caught_up: self.is_up() && !(self.luck == Luck::Behind && self.runs == software("new")),
            fetched: self.fetched.then(|| match self.luck {
                Luck::Hopeless => Err(FetchError::Fault("it is no program".into())),
                Luck::Absent => Err(FetchError::Absent),
                _ => Ok(new_outfit()),
            }),
            trouble: None,
        });
        self.fetched = outputs.fetch.is_some();
        self.tidied.extend(outputs.tidy.clone());
        let step = outputs.progress.as_ref().map(|progress| progress.step);
        if step != self.steps.last().copied() {
            self.steps.extend(step);
        }
        if outputs.save {
            self.core.journal().save(&self.folder).unwrap();
            if self.dies_when_saved {
                self.begin();
                return;
            }
        }
        assert_eq!(outputs.reluctant, step.is_some_and(Step::is_busy));
        if outputs.software != self.runs {
            self.replace(outputs.software);
        }
        if outputs.begin_anew || self.deaths.contains(&self.turn) {
            self.begin();
        }
    }

    /// Runs until nothing more changes; the last step.
    fn run(&mut self, order: &Order) -> Step {
        for _ in 0..TURNS {
            self.turn(order);
        }
        *self.steps.last().unwrap()
    }

    fn journal(&self) -> Journal {
        Journal::load(&self.folder).unwrap()
    }
}

#[test]
fn a_good_one_is_gone_through_step_by_step() {
    let mut machine = Machine::new(Luck::Good);
    assert_eq!(machine.run(&order()), Step::Done);
    let all = [Step::Fetching, Step::Ready, Step::HandingOver, Step::Replacing, Step::CatchingUp, Step::Done];
    assert_eq!(machine.steps, all);
    let journal = machine.journal();
    assert_eq!(
        (machine.runs.clone(), journal.software, journal.agent),
        (software("new"), software("new"), Some(new_outfit().agent))
    );
    assert_eq!(journal.old.unwrap().software, software("old"));
    assert_eq!(journal.agent_tries, 0);
    assert_eq!(journal.images, [new_outfit().brought.unwrap()]);
    machine.core.forget_images(&journal.images);
    machine.turn(&order());
    assert_eq!(machine.journal().images, []);
}

#[test]
fn an_agent_that_dies_at_any_point_goes_on_where_it_was() {
    for luck in [Luck::Good, Luck::Crashes, Luck::BadAgent, Luck::Behind] {
        let is_good = luck == Luck::Good;
        let end = if is_good { Step::Done } else { Step::RolledBack };
        // All points of the way through; where nothing happens for a long time, some.
        let deaths = if is_good { (1..50).step_by(1) } else { (1..50).step_by(5) };
        for death in deaths {
            let mut machine = Machine::new(luck);
            machine.deaths = vec![death, death + 7];
            assert_eq!(machine.run(&order()), end, "{luck:?}, killed after turn {death}: {:?}", machine.steps);
            let wanted = if is_good { "new" } else { "old" };
            let runs = if machine.runs == Software::default() { software("old") } else { machine.runs.clone() };
            assert_eq!(runs, software(wanted), "{luck:?}, killed after turn {death}");
            let agent = if is_good { new_outfit().agent } else { installed() };
            assert_eq!(machine.agent, agent, "{luck:?}, killed after turn {death}");
        }
        let mut machine = Machine::new(luck);
        machine.dies_when_saved = true;
        assert_eq!(machine.run(&order()), end, "{luck:?}, killed after each change: {:?}", machine.steps);
    }
}

#[test]
fn what_failed_is_given_back_once_all_are_back() {
    for luck in [Luck::Crashes, Luck::BadAgent, Luck::Behind] {
        let (first, mut machine) = (order(), Machine::new(luck));
        machine.other.0 = Step::Done;
        assert_eq!(machine.run(&first), Step::RolledBack, "{luck:?}");
        assert!(machine.tidied.is_empty() && machine.journal().new.is_some(), "{luck:?}: the other has yet to go back");
        machine.other.0 = Step::RolledBack;
        machine.begin();
        machine.run(&first);
        // Once, and with what it runs.
        let [kept] = &machine.tidied[..] else { panic!("{luck:?}: {:?}", machine.tidied) };
        assert!(kept.contains(&installed()) && !kept.contains(&new_outfit().agent), "{luck:?}: {kept:?}");
        let journal = machine.journal();
        assert_eq!((journal.new, journal.old.unwrap().software), (None, software("old")), "{luck:?}");
        assert_eq!(journal.images, [new_outfit().brought.unwrap()], "they are forgotten when they are gone");
        // The next one finds all that it needs.
        (machine.luck, machine.other.0) = (Luck::Good, Step::Ready);
        let second = Order { made_at_ms: 2, id: "1".repeat(16), ..order() };
        assert_eq!(machine.run(&second), Step::Done, "{luck:?}");
    }
    // What is done keeps what it runs, and what it goes back to.
    let mut machine = Machine::new(Luck::Good);
    assert_eq!(machine.run(&order()), Step::Done);
    assert_eq!(machine.tidied, [[installed(), new_outfit().agent]]);
}

#[test]
fn a_pod_that_had_not_begun_gives_back_too_and_can_go_on() {
    let (order, mut machine) = (order(), Machine::new(Luck::Good));
    while machine.steps.last() != Some(&Step::Ready) {
        machine.turn(&order);
    }
    machine.other.0 = Step::RollingBack;
    machine.run(&order);
    assert!(machine.tidied.is_empty());
    machine.other.0 = Step::RolledBack;
    assert_eq!(machine.run(&order), Step::Ready);
    assert_eq!(machine.tidied, [[installed(), installed()]]);
    assert_eq!(machine.journal().new, None);
    machine.begin();
    assert_eq!(machine.run(&order), Step::Ready);
    // Who had failed is removed from the ring: the order goes on, and what was given back is fetched again.
    machine.other.1 = true;
    assert_eq!(machine.run(&order), Step::Done);
    assert_eq!(machine.steps[2..4], [Step::Fetching, Step::Ready], "{:?}", machine.steps);
    assert_eq!(machine.runs, software("new"));
}

#[test]
fn what_was_given_back_is_here_again_before_another_pod_s_turn_is_over() {
    // The other one comes first; a third, which has failed, is none of the order's any more.
    let pods = vec!["other".parse().unwrap(), "me".parse().unwrap()];
    let (order, mut machine) = (Order { pods, ..order() }, Machine::new(Luck::Good));
    assert_eq!(machine.run(&order), Step::Ready);
    machine.other.0 = Step::RolledBack;
    assert_eq!(machine.run(&order), Step::Ready);
    assert_eq!(machine.journal().new, None);
    machine.other.0 = Step::Ready;
    assert_eq!(machine.run(&order), Step::Ready, "it is not its turn");
    assert_eq!(machine.steps, [Step::Fetching, Step::Ready, Step::Fetching, Step::Ready]);
    assert_eq!(machine.journal().new, Some(new_outfit()));
    machine.other.0 = Step::Done;
    assert_eq!(machine.run(&order), Step::Done);
}

#[test]
fn what_arrives_just_as_another_pod_fails_is_given_back() {
    let (order, mut machine) = (order(), Machine::new(Luck::Good));
    while !machine.fetched {
        machine.turn(&order);
    }
    machine.other.0 = Step::RolledBack;
    assert_eq!(machine.run(&order), Step::Fetching);
    assert_eq!((machine.journal().new, machine.tidied.len()), (None, 1));
    assert_eq!(machine.journal().images, [new_outfit().brought.unwrap()], "they are forgotten when they are gone");
    // For an order that has just taken its place it is not, but it is no less here.
    let (first, mut machine) = (order, Machine::new(Luck::Good));
    while !machine.fetched {
        machine.turn(&first);
    }
    machine.turn(&Order { made_at_ms: 2, id: "1".repeat(16), ..first });
    assert_eq!(machine.journal().new, None);
    assert_eq!(machine.journal().images, [new_outfit().brought.unwrap()]);
}

#[test]
fn software_is_not_late_for_the_time_that_its_order_was_called_off() {
    let (order, mut machine) = (order(), Machine::new(Luck::Absent));
    while machine.steps.last() != Some(&Step::Fetching) {
        machine.turn(&order);
    }
    machine.other.0 = Step::RolledBack;
    assert_eq!(machine.run(&order), Step::Fetching);
    (machine.luck, machine.other.1) = (Luck::Good, true);
    assert_eq!(machine.run(&order), Step::Done);
}

#[test]
fn why_it_went_back_is_said() {
    for (luck, why) in [(Luck::Crashes, "3 times"), (Luck::BadAgent, "agent"), (Luck::Behind, "caught up")] {
        let mut machine = Machine::new(luck);
        machine.run(&order());
        let why_it_says = machine.journal().why.unwrap();
        assert!(why_it_says.contains(why), "{luck:?}: {why_it_says}");
        assert!(machine.steps.contains(&Step::RollingBack), "{luck:?}: {:?}", machine.steps);
    }
}

#[test]
fn software_that_can_t_be_had_ends_the_order_with_nothing_touched() {
    for (luck, why) in [(Luck::Hopeless, "no program"), (Luck::Absent, "within 60 s")] {
        let mut machine = Machine::new(luck);
        machine.deaths = vec![2];
        assert_eq!(machine.run(&order()), Step::RolledBack, "{luck:?}");
        assert_eq!(machine.steps, [Step::Fetching, Step::RolledBack], "{luck:?}");
        let journal = machine.journal();
        assert!(journal.why.as_ref().unwrap().contains(why), "{luck:?}: {:?}", journal.why);
        assert_eq!((journal.software, journal.agent), (Software::default(), None), "{luck:?}");
        assert_eq!((machine.runs.clone(), machine.agent.clone()), (Software::default(), installed()), "{luck:?}");
        // A better one is taken.
        machine.luck = Luck::Good;
        let second = Order { made_at_ms: 2, id: "1".repeat(16), ..order() };
        assert_eq!(machine.run(&second), Step::Done, "{luck:?}");
        assert_eq!(machine.journal().old.unwrap().agent, installed());
    }
}

#[test]
fn an_agent_of_the_ring_gives_way_to_the_one_before_it() {
    let mut machine = Machine::new(Luck::Good);
    assert_eq!(machine.run(&order()), Step::Done);
    // The next order's agent is bad: back to the ring's earlier one, not to the installed.
    let second = Order { made_at_ms: 2, id: "1".repeat(16), ..order() };
    let stopped = Order { state: OrderState::Stopped, ..second.clone() };
    for _ in 0..12 {
        machine.turn(&second);
    }
    assert!(machine.steps.contains(&Step::Replacing) || machine.core.journal().is_busy());
    assert!(matches!(machine.run(&stopped), Step::RolledBack | Step::Ready));
    assert_eq!((machine.agent.clone(), machine.runs.clone()), (new_outfit().agent, software("new")));
}

#[test]
fn an_old_order_is_never_followed_again() {
    let first = order();
    let stopped = Order { state: OrderState::Stopped, ..first.clone() };
    let mut machine = Machine::new(Luck::Good);
    assert_eq!(machine.run(&first), Step::Done);
    assert_eq!(machine.run(&stopped), Step::RolledBack);
    assert_eq!(machine.run(&first), Step::RolledBack, "as it was before it was called off");
    let second = Order { made_at_ms: 2, id: "1".repeat(16), ..order() };
    assert_eq!(machine.run(&second), Step::Done);
    assert_eq!(machine.run(&stopped), Step::Done);
    assert_eq!(machine.runs, software("new"));
}

#[test]
fn an_order_that_somebody_puts_back_is_too_old() {
    let mut machine = Machine::new(Luck::Good);
    let named = |made_at_ms: u64, id: &str| Order { made_at_ms, id: id.repeat(16), ..order() };
    let (first, second, elsewhere) = (named(5, "1"), named(9, "2"), named(12, "3"));
    assert!(
        !machine.core.is_too_old(&first, None, 0) && machine.core.is_too_old(&first, None, 6),
        "the machine is newer"
    );
    assert_eq!(machine.run(&second), Step::Done);
    assert!(machine.core.is_too_old(&first, None, 0), "its order is gone from the ring, and an older one is there");
    assert!(!machine.core.is_too_old(&second, None, 10), "what it goes by it goes by");
    // One that is not for this pod counts, too, and so it does after the agent has begun anew.
    machine.turn(&Order { pods: vec!["other".parse().unwrap()], ..elsewhere });
    assert_eq!(machine.journal().seen_ms, 12);
    machine.begin();
    assert!(machine.core.is_too_old(&named(11, "4"), None, 0) && !machine.core.is_too_old(&named(12, "4"), None, 0));
    assert_eq!(machine.core.journal().order.as_ref().unwrap().id, second.id);
}

#[test]
fn a_key_that_was_stolen_keeps_no_order_of_the_next_one_away() {
    let named = |made_at_ms: u64, id: &str| Order { made_at_ms, id: id.repeat(16), ..order() };
    let (stolen, replaced) = (OrderKey::random().public(), OrderKey::random().public());
    let elsewhere = vec!["other".parse().unwrap()];
    for pods in [order().pods, elsewhere] {
        let mut machine = Machine::new(Luck::Good);
        (machine.key, machine.order_key) = (Some(stolen), Some(stolen));
        assert_eq!(machine.run(&named(5, "1")), Step::Done);
        // As late as pods bear it, and harmless by itself.
        let late = Order { state: OrderState::Stopped, pods, ..named(90_000_000, "2") };
        machine.turn(&late);
        assert_eq!(machine.journal().seen_ms, 90_000_000);
        let next = named(2_000_000, "3");
        assert!(machine.core.is_too_old(&next, Some(&stolen), 0));
        (machine.key, machine.order_key) = (Some(replaced), Some(replaced));
        // Whether or not there is a turn before it.
        assert!(!machine.core.is_too_old(&next, Some(&replaced), 1_000_000));
        assert!(machine.core.is_too_old(&named(999_999, "4"), Some(&replaced), 1_000_000), "from before the key");
        machine.begin();
        assert_eq!(machine.run(&next), Step::Done);
        let journal = machine.journal();
        assert_eq!((&journal.order.unwrap().id, journal.key, journal.seen_ms), (&next.id, Some(replaced), 2_000_000));
        assert!(machine.core.is_too_old(&named(1_999_999, "5"), Some(&replaced), 1_000_000));
    }
}

#[test]
fn an_order_of_a_clock_that_is_far_ahead_is_not_for_now() {
    let mut machine = Machine::new(Luck::Good);
    assert_eq!(machine.run(&order()), Step::Done);
    let late = Order { made_at_ms: 90_000_000, ..order() };
    assert!(machine.core.is_far_ahead(&late, 1_000) && !machine.core.is_far_ahead(&late, 10_000_000));
    // The id of what the pod goes by doesn't help; that order itself goes on, however the clock is set.
    let known = machine.journal().order.unwrap();
    assert!(machine.core.is_far_ahead(&Order { made_at_ms: u64::MAX, ..known.clone() }, 1_000));
    let mut machine = Machine::new(Luck::Good);
    assert_eq!(machine.run(&late), Step::Done);
    assert!(!machine.core.is_far_ahead(&late, 1_000));
}

#[test]
fn an_order_under_a_key_that_was_replaced_is_called_off() {
    let order = order();
    let key = || Some(OrderKey::random().public());
    for step in [Step::Fetching, Step::Ready, Step::Replacing, Step::CatchingUp] {
        let mut machine = Machine::new(Luck::Good);
        machine.key = key();
        machine.order_key = machine.key;
        while machine.steps.last() != Some(&step) {
            assert!(machine.turn < TURNS, "{step:?}: {:?}", machine.steps);
            machine.turn(&order);
        }
        machine.key = key();
        // Also where the agent begins anew meanwhile.
        machine.begin();
        assert_ne!(machine.run(&order), Step::Done, "{step:?}: {:?}", machine.steps);
        assert_ne!(machine.runs, software("new"), "{step:?}");
        assert_eq!(machine.agent, installed(), "{step:?}");
    }
    // What is done is done; and one that an earlier version has taken up goes on.
    for is_known in [true, false] {
        let mut machine = Machine::new(Luck::Good);
        (machine.key, machine.order_key) = if is_known {
            let key = key();
            (key, key)
        } else {
            (None, None)
        };
        let turns = if is_known { TURNS } else { 6 };
        (0..turns).for_each(|_| machine.turn(&order));
        assert_eq!(machine.steps.contains(&Step::Done), is_known);
        machine.key = key();
        assert_eq!(machine.run(&order), Step::Done, "{:?}", machine.steps);
    }
}

#[test]
fn an_order_by_force_does_not_wait_for_the_one_before() {
    let (mut machine, first) = (Machine::new(Luck::Behind), order());
    while machine.steps.last() != Some(&Step::CatchingUp) {
        assert!(machine.turn < TURNS);
        machine.turn(&first);
    }
    assert!(machine.core.journal().is_busy());
    let second = Order { made_at_ms: 2, id: "1".repeat(16), ..first };
    machine.turn(&second);
    assert_eq!(machine.core.journal().order.as_ref().unwrap().made_at_ms, 1);
    machine.luck = Luck::Good;
    let forced = Order { force: true, ..second };
    assert_eq!(machine.run(&forced), Step::Done);
    assert_eq!(machine.journal().old.unwrap().software, software("old"), "what is not well is nothing to go back to");
}
