//! What a pod does next about an order: a function of the order, of what the others say and of how it is itself.

use super::{Order, OrderState, Progress, Step};
use crate::member::PodId;

/// For so long a pod says that it is about to begin before it does, in milliseconds: what others say is as old as a few
/// rounds of gossip, and a pod that goes back at the same moment has to be heard of.
pub const ANNOUNCE_MS: u64 = 2_000;
/// A write master that nobody takes over from in this time goes on all the same, in milliseconds: the ring's settings may
/// allow no other. Its programs then end as at any stop, after the last write.
pub const HAND_OVER_MS: u64 = 30_000;
/// Software whose programs have ended by themselves so often is given up before its time is over.
pub const MAX_CRASHES: u32 = 3;

/// Another pod, as this one knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Which.
    pub id: PodId,
    /// Whether it is there and its programs answer.
    pub is_live: bool,
    /// Whether it is no longer of the ring: nobody waits for it.
    pub is_removed: bool,
    /// What it says of upgrades.
    pub progress: Option<Progress>,
}

/// Which software.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What the order replaces.
    Old,
    /// What it brings.
    New,
}

/// How this pod is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// Where it stands in this order; none: nowhere yet.
    pub step: Option<Step>,
    /// For how long it has, in milliseconds.
    pub step_ms: u64,
    /// For how long it has tried the new software, in milliseconds.
    pub trial_ms: u64,
    /// Why it goes back, if it does.
    pub why: Option<String>,
    /// Whether it has the new software, and that can be started on this machine.
    pub has_software: bool,
    /// Whether it takes the writes.
    pub is_master: bool,
    /// The software that all its programs run from and answer; none when they don't.
    pub up: Option<Side>,
    /// The software that its agent is.
    pub agent: Option<Side>,
    /// How often its programs have ended by themselves since they were last replaced.
    pub crashes: u32,
    /// Whether it has what the others had when its programs were up.
    pub is_caught_up: bool,
    /// What doesn't work at the moment, for people.
    pub trouble: Option<String>,
    /// What can't ever work.
    pub fault: Option<String>,
}

/// What to do. All of it may be done twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// The order is not for this pod.
    Rest,
    /// Nothing; this is what for.
    Wait(Option<String>),
    /// Get the new software.
    Fetch,
    /// Go to this step, for this reason.
    Enter(Step, Option<String>),
    /// See that the programs run from this software.
    Programs(Side),
    /// See that the agent is this software.
    Agent(Side),
}

/// What this pod does next.
pub fn next(order: &Order, me: &PodId, peers: &[Peer], own: &Own) -> Act {
    let Some(place) = order.pods.iter().position(|pod| pod == me) else { return Act::Rest };
    let scene = Scene { order, me, place, peers };
    let off = scene.called_off();
    let Some(step) = own.step else {
        return if off.is_some() { Act::Rest } else { Act::Enter(Step::Fetching, None) };
    };
    match step {
        Step::Fetching | Step::Ready | Step::Unknown if off.is_some() => Act::Wait(off),
        Step::Fetching if own.has_software => Act::Enter(Step::Ready, None),
        Step::Fetching => match unfetched(order, own) {
            // Its programs are as they were: nothing is to be done to be back.
            Some(why) => Act::Enter(Step::RolledBack, Some(why)),
            None => Act::Fetch,
        },
        Step::Unknown => Act::Enter(Step::Fetching, None),
        // It was given back, as the order had failed or was called off, and now that goes on: who had failed was removed from
        // the ring. `Ready` is to mean to the others that it is here, before any of them begins.
        Step::Ready if !own.has_software => Act::Enter(Step::Fetching, None),
        Step::Ready => match scene.hindrance() {
            Some(why) => Act::Wait(Some(why)),
            None => Act::Enter(Step::HandingOver, None),
        },
        Step::HandingOver => match off.or_else(|| scene.hindrance()) {
            Some(why) => Act::Enter(Step::Ready, Some(why)),
            None if is_leaving(own) => Act::Wait(hand_over_reason(own)),
            None => Act::Enter(Step::Replacing, None),
        },
        Step::Replacing | Step::CatchingUp => match off.or_else(|| failure(order, own)) {
            Some(why) => Act::Enter(Step::RollingBack, Some(why)),
            None => forward(step, own),
        },
        Step::Done => match off {
            Some(why) if scene.is_turn_to_go_back() => Act::Enter(Step::RollingBack, Some(why)),
            Some(why) => Act::Wait(Some(format!("{why}; this pod goes back after others"))),
            None => Act::Wait(None),
        },
        Step::RollingBack => back(&scene, own),
        Step::RolledBack => Act::Wait(own.why.clone()),
    }
}

/// Whether the pod still announces that its programs are about to go, or hands over.
fn is_leaving(own: &Own) -> bool {
    own.step_ms < ANNOUNCE_MS || (own.is_master && own.step_ms < HAND_OVER_MS)
}

fn hand_over_reason(own: &Own) -> Option<String> {
    own.is_master.then(|| "hands over the writes to another pod".to_owned())
}

/// Why the new software is given up before it was ever begun.
fn unfetched(order: &Order, own: &Own) -> Option<String> {
    let is_late = own.step_ms >= order.patience_s.saturating_mul(1_000);
    let late = || format!("it did not have the new software within {} s{}", order.patience_s, trouble(own));
    own.fault.clone().or_else(|| is_late.then(late))
}

/// Why the new software is given up.
fn failure(order: &Order, own: &Own) -> Option<String> {
    if let Some(fault) = &own.fault {
        return Some(fault.clone());
    }
    if own.crashes >= MAX_CRASHES {
        return Some(format!(
            "programs of the new software ended by themselves {} times; their logs on this pod say why",
            own.crashes
        ));
    }
    if own.trial_ms < order.patience_s.saturating_mul(1_000) {
        return None;
    }
    let what = match own.up {
        Some(Side::New) if !own.is_caught_up => "it had not caught up with the other pods",
        Some(Side::New) => "its agent could not be replaced",
        _ => "its programs did not answer",
    };
    Some(format!("{what} within {} s{}", order.patience_s, trouble(own)))
}

/// The end of a reason.
fn trouble(own: &Own) -> String {
    own.trouble.as_ref().map(|trouble| format!(": {trouble}")).unwrap_or_default()
}

fn forward(step: Step, own: &Own) -> Act {
    match own.up {
        Some(Side::New) if step == Step::Replacing => Act::Enter(Step::CatchingUp, None),
        Some(Side::New) if !own.is_caught_up => Act::Wait(Some("catches up with the other pods".to_owned())),
        Some(Side::New) if own.agent != Some(Side::New) => Act::Agent(Side::New),
        Some(Side::New) => Act::Enter(Step::Done, None),
        _ => Act::Programs(Side::New),
    }
}

fn back(scene: &Scene<'_>, own: &Own) -> Act {
    match own.up {
        // As long as it is well under the new software there is no hurry, and others come first.
        Some(Side::New) if is_leaving(own) => Act::Wait(own.why.clone()),
        Some(Side::New) if scene.busy_behind() => Act::Wait(own.why.clone()),
        Some(Side::Old) if !own.is_caught_up => Act::Wait(own.why.clone()),
        Some(Side::Old) if own.agent != Some(Side::Old) => Act::Agent(Side::Old),
        Some(Side::Old) => Act::Enter(Step::RolledBack, own.why.clone()),
        _ => Act::Programs(Side::Old),
    }
}

/// What a pod sees.
struct Scene<'a> {
    order: &'a Order,
    me: &'a PodId,
    /// Its own place among the order's pods.
    place: usize,
    peers: &'a [Peer],
}

impl<'a> Scene<'a> {
    /// Why the order is not to be carried out any further, if that is so.
    fn called_off(&self) -> Option<String> {
        if self.order.state == OrderState::Stopped {
            return Some("it was called off".to_owned());
        }
        self.others().find_map(|peer| {
            let progress = self.progress(peer)?;
            let is_back = matches!(progress.step, Step::RollingBack | Step::RolledBack);
            // The reason of the one that began it, not of all those that followed.
            let reason = progress.reason.as_deref().unwrap_or("it goes back");
            let reason = if reason.contains(" went back: ") {
                reason.to_owned()
            } else {
                format!("{} went back: {reason}", peer.id)
            };
            is_back.then_some(reason)
        })
    }

    /// Why this pod can't begin now, if so.
    fn hindrance(&self) -> Option<String> {
        if let Some(peer) = self.others().find(|peer| peer.progress.as_ref().is_some_and(|said| said.step.is_busy())) {
            return Some(format!("waits for {}, which is being upgraded", peer.id));
        }
        for (place, id) in self.order.pods.iter().enumerate().filter(|(_, id)| *id != self.me) {
            let Some(peer) = self.peers.iter().find(|peer| peer.id == *id) else {
                return Some(format!("waits for {id}, of which this pod has not heard"));
            };
            if peer.is_removed {
                continue;
            }
            if !peer.is_live {
                return Some(format!("waits for {id}, which is away: start it, or remove it from the ring"));
            }
            match self.progress(peer).map(|progress| progress.step) {
                Some(Step::Done) => {}
                Some(Step::Ready) if place > self.place => {}
                _ if place > self.place => return Some(format!("waits until {id} has the software, too")),
                _ => return Some(format!("waits for its turn, after {id}")),
            }
        }
        None
    }

    /// Whether all that were to come after this pod run the old software, and no other is at it.
    fn is_turn_to_go_back(&self) -> bool {
        let is_settled = |step: Step| !step.is_busy() && step != Step::Done;
        let behind = self.behind().filter_map(|peer| self.progress(peer));
        let any = self.others().filter_map(|peer| peer.progress.as_ref());
        behind.into_iter().all(|progress| is_settled(progress.step)) && any.into_iter().all(|said| !said.step.is_busy())
    }

    /// Whether one that was to come after this pod is at it. Two that go back don't both wait for one another so.
    fn busy_behind(&self) -> bool {
        self.behind().any(|peer| peer.progress.as_ref().is_some_and(|said| said.step.is_busy()))
    }

    fn behind(&self) -> impl Iterator<Item = &'a Peer> {
        let later = &self.order.pods[self.place + 1..];
        self.others().filter(|peer| later.contains(&peer.id))
    }

    fn others(&self) -> impl Iterator<Item = &'a Peer> {
        let me = self.me;
        self.peers.iter().filter(move |peer| peer.id != *me && !peer.is_removed)
    }

    /// What a pod says of this order.
    fn progress(&self, peer: &'a Peer) -> Option<&'a Progress> {
        peer.progress.as_ref().filter(|progress| progress.order == self.order.id)
    }
}

#[cfg(test)]
mod tests {
    use super::{ANNOUNCE_MS, Act, HAND_OVER_MS, MAX_CRASHES, Own, Peer, Side, next};
    use crate::member::PodId;
    use crate::upgrade::{Order, OrderState, Progress, Source, Step};

    fn id(text: &str) -> PodId {
        text.parse().expect("a pod's id")
    }

    /// For the pods a, b and c.
    fn order() -> Order {
        let order = Order::new(Source::Ring, None, ["a", "b", "c"].map(id).to_vec(), 1);
        Order { archive_sha256: Some("0".repeat(64)), ..order }
    }

    fn stopped() -> Order {
        Order { state: OrderState::Stopped, id: "x".to_owned(), ..order() }
    }

    fn peer(name: &str, order: &Order, step: Option<Step>) -> Peer {
        let progress = step.map(|step| Progress { order: order.id.clone(), step, reason: None });
        Peer { id: id(name), is_live: true, is_removed: false, progress }
    }

    fn at(step: Step) -> Own {
        Own { step: Some(step), has_software: true, up: Some(Side::Old), agent: Some(Side::Old), ..Own::default() }
    }

    /// What b does, when a and c are at these steps.
    fn b(order: &Order, a: Option<Step>, c: Option<Step>, own: &Own) -> Act {
        next(order, &id("b"), &[peer("a", order, a), peer("c", order, c)], own)
    }

    fn is_wait(act: &Act, text: &str) -> bool {
        matches!(act, Act::Wait(Some(why)) if why.contains(text))
    }

    #[test]
    fn an_order_for_others_is_none() {
        let order = order();
        assert_eq!(next(&order, &id("z"), &[], &Own::default()), Act::Rest);
        assert_eq!(b(&stopped(), None, None, &Own::default()), Act::Rest);
        assert_eq!(b(&order, Some(Step::RolledBack), None, &Own::default()), Act::Rest);
    }

    #[test]
    fn all_fetch_at_once_and_begin_one_by_one() {
        let order = order();
        assert_eq!(b(&order, None, None, &Own::default()), Act::Enter(Step::Fetching, None));
        assert_eq!(b(&order, None, None, &Own { has_software: false, ..at(Step::Fetching) }), Act::Fetch);
        assert_eq!(b(&order, None, None, &at(Step::Fetching)), Act::Enter(Step::Ready, None));
        let ready = at(Step::Ready);
        let begins = Act::Enter(Step::HandingOver, None);
        assert_eq!(b(&order, Some(Step::Done), Some(Step::Ready), &ready), begins);
        assert_eq!(b(&order, Some(Step::Done), Some(Step::Done), &ready), begins, "it was added again");
        for a in [None, Some(Step::Fetching), Some(Step::Ready)] {
            assert!(is_wait(&b(&order, a, Some(Step::Ready), &ready), "after a"), "{a:?}");
        }
        for c in [None, Some(Step::Fetching)] {
            assert!(is_wait(&b(&order, Some(Step::Done), c, &ready), "until c"), "{c:?}");
        }
        for busy in [Step::HandingOver, Step::Replacing, Step::CatchingUp, Step::Unknown] {
            assert!(is_wait(&b(&order, Some(busy), Some(Step::Ready), &ready), "a, which is being"), "{busy}");
            assert!(is_wait(&b(&order, Some(Step::Done), Some(busy), &ready), "c, which is being"), "{busy}");
        }
    }

    #[test]
    fn software_that_can_t_be_had_is_given_up_by_all_with_nothing_touched() {
        let order = order();
        let act = |own: &Own| b(&order, None, Some(Step::Ready), own);
        let own = Own { has_software: false, step_ms: 299_999, trouble: Some("no room".into()), ..at(Step::Fetching) };
        assert_eq!(act(&own), Act::Fetch);
        let faulty = Own { fault: Some("it is no program".into()), step_ms: 1, ..own.clone() };
        assert_eq!(act(&faulty), Act::Enter(Step::RolledBack, Some("it is no program".into())));
        let late = "it did not have the new software within 300 s: no room".to_owned();
        assert_eq!(act(&Own { step_ms: 300_000, ..own.clone() }), Act::Enter(Step::RolledBack, Some(late)));
        // In time, however long it took.
        let here = Own { has_software: true, step_ms: 300_000, ..own.clone() };
        assert_eq!(act(&here), Act::Enter(Step::Ready, None));
        // Another one's fault ends it here, too.
        assert!(is_wait(&b(&order, Some(Step::RolledBack), None, &faulty), "a went back"));
    }

    #[test]
    fn nobody_begins_while_one_is_away_unless_it_is_removed() {
        let order = order();
        let act = |a: Peer| next(&order, &id("b"), &[a, peer("c", &order, Some(Step::Ready))], &at(Step::Ready));
        let done = peer("a", &order, Some(Step::Done));
        assert!(is_wait(&act(Peer { is_live: false, ..done.clone() }), "away"));
        let gone = Peer { is_live: false, is_removed: true, progress: None, ..done.clone() };
        assert_eq!(act(gone), Act::Enter(Step::HandingOver, None));
        let only_c = [peer("c", &order, Some(Step::Ready))];
        assert!(is_wait(&next(&order, &id("b"), &only_c, &at(Step::Ready)), "has not heard"));
        // One that joined meanwhile has no part in it, and one that is busy with another order is waited for.
        let other = Order { id: "other".to_owned(), ..order.clone() };
        let peers = |step| [done.clone(), peer("c", &order, Some(Step::Ready)), peer("z", &other, step)];
        assert_eq!(next(&order, &id("b"), &peers(None), &at(Step::Ready)), Act::Enter(Step::HandingOver, None));
        assert!(is_wait(&next(&order, &id("b"), &peers(Some(Step::Replacing)), &at(Step::Ready)), "z"));
        // What was done in another order is not done in this one.
        let elsewhere = [peer("a", &other, Some(Step::Done)), peer("c", &order, Some(Step::Ready))];
        assert!(is_wait(&next(&order, &id("b"), &elsewhere, &at(Step::Ready)), "after a"));
    }

    #[test]
    fn what_was_given_back_is_fetched_again_before_anybody_begins() {
        let order = order();
        let given_back = Own { has_software: false, ..at(Step::Ready) };
        let c = |is_removed| Peer { is_removed, ..peer("c", &order, Some(Step::RolledBack)) };
        for name in ["a", "b"] {
            let other = if name == "a" { "b" } else { "a" };
            let act = |step, is_removed, own: &Own| {
                next(&order, &id(name), &[peer(other, &order, Some(step)), c(is_removed)], own)
            };
            assert!(is_wait(&act(Step::Ready, false, &given_back), "c went back"), "{name}");
            // Not only the one whose turn it is.
            assert_eq!(act(Step::Ready, true, &given_back), Act::Enter(Step::Fetching, None), "{name}");
        }
        let a = |b| next(&order, &id("a"), &[peer("b", &order, Some(b)), c(true)], &at(Step::Ready));
        assert!(is_wait(&a(Step::Fetching), "until b has the software"));
        assert_eq!(a(Step::Ready), Act::Enter(Step::HandingOver, None));
    }

    #[test]
    fn it_announces_itself_and_hands_over_before_it_begins() {
        let order = order();
        let act = |own: &Own| b(&order, Some(Step::Done), Some(Step::Ready), own);
        let own = |step_ms, is_master| Own { step_ms, is_master, ..at(Step::HandingOver) };
        assert_eq!(act(&own(ANNOUNCE_MS - 1, false)), Act::Wait(None));
        assert_eq!(act(&own(ANNOUNCE_MS, false)), Act::Enter(Step::Replacing, None));
        assert!(is_wait(&act(&own(HAND_OVER_MS - 1, true)), "hands over"));
        assert_eq!(act(&own(HAND_OVER_MS, true)), Act::Enter(Step::Replacing, None));
        // What it hears meanwhile counts.
        let late = own(ANNOUNCE_MS, false);
        assert!(matches!(b(&order, Some(Step::RollingBack), None, &late), Act::Enter(Step::Ready, Some(_))));
        assert!(matches!(b(&order, Some(Step::Done), Some(Step::Fetching), &late), Act::Enter(Step::Ready, Some(_))));
    }

    #[test]
    fn the_programs_come_first_and_the_agent_last() {
        let order = order();
        let act = |own: &Own| b(&order, Some(Step::Done), Some(Step::Ready), own);
        assert_eq!(act(&at(Step::Replacing)), Act::Programs(Side::New));
        assert_eq!(act(&Own { up: None, ..at(Step::Replacing) }), Act::Programs(Side::New));
        let up = Own { up: Some(Side::New), ..at(Step::Replacing) };
        assert_eq!(act(&up), Act::Enter(Step::CatchingUp, None));
        let behind = Own { step: Some(Step::CatchingUp), ..up };
        assert!(is_wait(&act(&behind), "catches up"));
        let caught_up = Own { is_caught_up: true, ..behind };
        assert_eq!(act(&caught_up), Act::Agent(Side::New));
        // The agent of the process runtime takes its programs with it.
        assert_eq!(act(&Own { up: None, ..caught_up.clone() }), Act::Programs(Side::New));
        assert_eq!(act(&Own { agent: Some(Side::New), ..caught_up }), Act::Enter(Step::Done, None));
        assert_eq!(act(&at(Step::Done)), Act::Wait(None));
        // A pod that dies now is no reason to go back.
        let c = Peer { is_live: false, ..peer("c", &order, Some(Step::Ready)) };
        let peers = [peer("a", &order, Some(Step::Done)), c];
        assert_eq!(next(&order, &id("b"), &peers, &at(Step::Replacing)), Act::Programs(Side::New));
    }

    #[test]
    fn software_that_is_not_well_is_given_up() {
        let order = order();
        let why = |own: Own| match b(&order, Some(Step::Done), Some(Step::Ready), &own) {
            Act::Enter(Step::RollingBack, Some(why)) => why,
            other => panic!("{other:?}"),
        };
        let late = Own { up: None, trial_ms: 300_000, trouble: Some("rean: no".into()), ..at(Step::Replacing) };
        assert!(why(late.clone()).contains("did not answer within 300 s: rean: no"));
        let up = Own { up: Some(Side::New), step: Some(Step::CatchingUp), ..late.clone() };
        assert!(why(up.clone()).contains("caught up"));
        assert!(why(Own { is_caught_up: true, ..up }).contains("agent"));
        let young = Own { trial_ms: 1, ..late };
        assert!(why(Own { crashes: MAX_CRASHES, ..young.clone() }).contains("3 times"));
        assert_eq!(why(Own { fault: Some("it is no program".into()), ..young.clone() }), "it is no program");
        assert_eq!(b(&order, Some(Step::Done), Some(Step::Ready), &young), Act::Programs(Side::New));
    }

    #[test]
    fn a_pod_goes_back_and_stays_there() {
        let order = order();
        let act = |own: &Own| b(&order, Some(Step::Done), Some(Step::Ready), own);
        let own = Own { why: Some("bad".into()), up: None, agent: Some(Side::New), ..at(Step::RollingBack) };
        assert_eq!(act(&own), Act::Programs(Side::Old), "at once, as nothing works");
        let well = Own { up: Some(Side::New), is_master: true, ..own.clone() };
        assert!(is_wait(&act(&well), "bad"));
        assert!(is_wait(&act(&Own { step_ms: ANNOUNCE_MS, ..well.clone() }), "bad"), "hands over");
        let waited = Own { step_ms: ANNOUNCE_MS, is_master: false, ..well };
        assert_eq!(act(&waited), Act::Programs(Side::Old));
        assert!(is_wait(&b(&order, None, Some(Step::RollingBack), &waited), "bad"), "the later ones first");
        assert_eq!(b(&order, Some(Step::RollingBack), None, &waited), Act::Programs(Side::Old));
        let up = Own { up: Some(Side::Old), ..own };
        assert!(is_wait(&act(&up), "bad"));
        let caught_up = Own { is_caught_up: true, ..up };
        assert_eq!(act(&caught_up), Act::Agent(Side::Old));
        let whole = Own { agent: Some(Side::Old), ..caught_up };
        assert_eq!(act(&whole), Act::Enter(Step::RolledBack, Some("bad".into())));
        assert!(is_wait(&act(&Own { why: Some("bad".into()), ..at(Step::RolledBack) }), "bad"));
    }

    #[test]
    fn when_one_goes_back_all_do_the_last_first() {
        let order = order();
        let done = at(Step::Done);
        assert!(matches!(b(&order, Some(Step::Done), Some(Step::RolledBack), &done), Act::Enter(Step::RollingBack, _)));
        assert!(is_wait(&b(&order, Some(Step::Done), Some(Step::RollingBack), &done), "after others"));
        assert!(is_wait(&b(&order, Some(Step::RollingBack), Some(Step::Ready), &done), "after others"));
        assert!(is_wait(&b(&order, Some(Step::RolledBack), Some(Step::Done), &done), "after others"));
        for step in [Step::Fetching, Step::Ready] {
            assert!(is_wait(&b(&order, Some(Step::RolledBack), None, &at(step)), "a went back"));
        }
        for step in [Step::Replacing, Step::CatchingUp] {
            assert!(matches!(b(&order, Some(Step::RolledBack), None, &at(step)), Act::Enter(Step::RollingBack, _)));
        }
        // The first one's reason is handed on, once.
        let mut a = peer("a", &order, Some(Step::RolledBack));
        a.progress.as_mut().expect("some").reason = Some("c went back: bad".into());
        let act = next(&order, &id("b"), &[a, peer("c", &order, Some(Step::Ready))], &at(Step::Ready));
        assert_eq!(act, Act::Wait(Some("c went back: bad".into())));
        // A removed pod's failure is nobody's any more.
        let c = Peer { is_removed: true, ..peer("c", &order, Some(Step::RolledBack)) };
        assert_eq!(next(&order, &id("b"), &[peer("a", &order, Some(Step::Done)), c], &done), Act::Wait(None));
    }

    #[test]
    fn an_order_that_is_called_off() {
        let off = stopped();
        assert!(is_wait(&b(&off, None, None, &at(Step::Ready)), "called off"));
        assert!(matches!(b(&off, None, None, &at(Step::HandingOver)), Act::Enter(Step::Ready, Some(_))));
        assert!(matches!(b(&off, None, None, &at(Step::CatchingUp)), Act::Enter(Step::RollingBack, Some(_))));
        assert!(matches!(
            b(&off, Some(Step::Done), Some(Step::Ready), &at(Step::Done)),
            Act::Enter(Step::RollingBack, _)
        ));
        assert!(is_wait(&b(&off, Some(Step::Done), Some(Step::CatchingUp), &at(Step::Done)), "after others"));
    }
}
