use super::{Cause, Config, Decision, Epoch, Hold, Mastership, Moment, Role, Waiting, decide, observe};
use crate::clock::{Clock, DEFAULT_MAX_DRIFT_MS, Stamp};
use crate::host::DiskLevel;
use crate::member::{Member, PodId, View};

fn pod(name: &str) -> PodId {
    name.parse().expect("a pod's id")
}

/// A stamp of a second, made by a pod.
fn at(second: u64, by: &str) -> Stamp {
    format!("{:012x}-0000-{by}", second * 1_000).parse().expect("a stamp")
}

fn member(id: &str) -> Member {
    Member::new(pod(id), "", 1)
}

fn caught_up(id: &str, epoch: &Epoch) -> Member {
    Member { epoch: Some(epoch.clone()), caught_up_to: Some(epoch.clone()), ..member(id) }
}

fn master(id: &str, epoch: &Epoch) -> Member {
    Member { claim: Some(epoch.clone()), ..caught_up(id, epoch) }
}

fn view(members: &[Member]) -> View {
    View::new(members.to_vec())
}

/// A hundred seconds after the start.
fn then(stamp: Stamp) -> Moment {
    Moment { stamp, elapsed_ms: 100_000, is_deaf: false }
}

/// A pod that has known of this epoch, and been the one to be chosen, for as long as anyone could ask.
fn settled_in(seen: Option<&Epoch>) -> Mastership {
    Mastership { candidate_since_ms: Some(0), started_ms: Some(0), ..Mastership::starting(seen.cloned()) }
}

fn settled() -> Mastership {
    settled_in(None)
}

fn in_office(epoch: &Epoch) -> Mastership {
    Mastership { role: Role::Master { epoch: epoch.clone() }, ..settled_in(Some(epoch)) }
}

/// A master that has had one to hand over to for as long as anyone could ask.
fn with_rival(epoch: &Epoch, rival: &str) -> Mastership {
    Mastership { rival: Some((pod(rival), 0)), ..in_office(epoch) }
}

fn decided(me: &str, members: &[Member], previous: &Mastership) -> Decision {
    decide(&pod(me), &view(members), &Config::default(), previous, &then(at(100, me))).0
}

#[test]
fn the_highest_id_begins_and_the_others_follow() {
    let members = [member("a"), member("b")];
    assert_eq!(decided("a", &members, &settled()), Decision::Wait(Waiting::For(pod("b"))));
    let (decision, next) = decide(&pod("b"), &view(&members), &Config::default(), &settled(), &then(at(100, "b")));
    assert_eq!(decision, Decision::Become(at(100, "b")));
    assert_eq!((next.claim(), next.seen()), (Some(&at(100, "b")), Some(&at(100, "b"))));
    let members = [member("a"), master("b", &at(100, "b"))];
    assert_eq!(decided("b", &members, &next), Decision::Stay);
    let (decision, next) = decide(&pod("a"), &view(&members), &Config::default(), &settled(), &then(at(101, "a")));
    assert_eq!(decision, Decision::Follow(at(100, "b")));
    assert_eq!(next.role(), &Role::Follower { epoch: at(100, "b") });
    assert_eq!(decided("a", &members, &next), Decision::Stay);
}

#[test]
fn a_preference_comes_before_the_id() {
    let members = ["a", "b", "c", "d"].map(member);
    let chosen = |prefer: &[&str], never: &[&str]| {
        let ids = |names: &[&str]| names.iter().map(|name| pod(name)).collect();
        let config = Config { prefer: ids(prefer), never: ids(never), ..Config::default() };
        match decide(&pod("x"), &view(&members), &config, &settled(), &then(at(100, "x"))).0 {
            Decision::Wait(Waiting::For(best)) => best.to_string(),
            other => format!("{other:?}"),
        }
    };
    assert_eq!(chosen(&[], &[]), "d");
    assert_eq!(chosen(&["z", "b", "c"], &[]), "b");
    assert_eq!(chosen(&["b", "c"], &["b"]), "c");
    assert_eq!(chosen(&[], &["d", "c"]), "b");
    assert_eq!(chosen(&["a"], &["a", "b", "c", "d"]), "Wait(NoCandidate)");
}

#[test]
fn a_reluctant_pod_is_chosen_only_when_all_are() {
    let reluctant = |id: &str| Member { reluctant: true, ..member(id) };
    let full = |id: &str| Member { disk: DiskLevel::Full, ..member(id) };
    let low = |id: &str| Member { disk: DiskLevel::Low, ..member(id) };
    let chosen = |members: &[Member], prefer: &[&str]| {
        let config = Config { prefer: prefer.iter().map(|name| pod(name)).collect(), ..Config::default() };
        match decide(&pod("x"), &view(members), &config, &settled(), &then(at(100, "x"))).0 {
            Decision::Wait(Waiting::For(best)) => best.to_string(),
            other => format!("{other:?}"),
        }
    };
    assert_eq!(chosen(&[member("a"), reluctant("b"), full("c")], &["c", "b"]), "a", "whatever is preferred");
    assert_eq!(chosen(&[full("a"), reluctant("b"), reluctant("c")], &["b"]), "b", "all are: the order is as ever");
    assert_eq!(chosen(&[reluctant("a"), full("b"), full("c")], &["b"]), "a", "one that has room can take writes");
    assert_eq!(chosen(&[full("a"), full("b")], &[]), "b");
    assert_eq!(chosen(&[member("a"), low("b")], &["b"]), "a");
    let leaving = Member { reluctant: true, ..low("c") };
    assert_eq!(chosen(&[low("a"), low("b"), leaving], &[]), "b", "where all have little room, some are still willing");
    assert_eq!(chosen(&[low("a"), reluctant("b")], &[]), "a");
    // One that does not know what the others know takes none, however willing it is.
    let epoch = at(20, "z");
    let informed = Member { caught_up_to: Some(epoch), ..reluctant("b") };
    assert_eq!(chosen(&[member("a"), informed, member("c")], &[]), "b");
}

#[test]
fn a_reluctant_master_hands_over_to_one_that_is_as_well_informed_and_does_not_wait_for_a_better_one() {
    let epoch = at(20, "c");
    let leaving = Member { reluctant: true, ..master("c", &epoch) };
    // `b` is still catching up, and comes before `a`.
    let members = [caught_up("a", &epoch), member("b"), leaving.clone()];
    let turn = |members: &[Member], previous: &Mastership, ms: u64| {
        let moment = Moment { elapsed_ms: 100_000 + ms, ..then(at(100, "c")) };
        decide(&pod("c"), &view(members), &Config::default(), previous, &moment)
    };
    let (decision, next) = turn(&members, &in_office(&epoch), 0);
    assert_eq!(decision, Decision::Stay);
    assert_eq!(turn(&members, &next, 299).0, Decision::Stay);
    assert_eq!(turn(&members, &next, 300).0, Decision::StepDown(Cause::HandOver(pod("a"))));
    // Nobody is as well informed: it goes on.
    let members = [member("a"), member("b"), leaving.clone()];
    assert_eq!(turn(&members, &with_rival(&epoch, "a"), 60_000).0, Decision::Stay);
    // Nor does it hand over to one that wants it as little, unless that comes first anyway.
    let members = [Member { reluctant: true, ..caught_up("a", &epoch) }, leaving];
    assert_eq!(turn(&members, &with_rival(&epoch, "a"), 60_000).0, Decision::Stay);
}

#[test]
fn a_former_master_catches_up_first() {
    let (old, new) = (at(10, "c"), at(20, "b"));
    let returned = Mastership { seen: Some(old.clone()), ..settled() };
    let members = [caught_up("a", &new), master("b", &new), caught_up("c", &old)];
    assert_eq!(decided("c", &members, &returned), Decision::Follow(new.clone()));
    // Also when the new master has gone before it had caught up.
    let gone = Member { alive: false, ..master("b", &new) };
    let members = [caught_up("a", &new), gone.clone(), caught_up("c", &old)];
    assert_eq!(decided("c", &members, &returned), Decision::Wait(Waiting::For(pod("a"))));
    // But not when none is left that knows better.
    let members = [caught_up("a", &old), gone, caught_up("c", &old)];
    assert_eq!(decided("c", &members, &settled_in(Some(&new))), Decision::Become(at(100, "c")));
}

#[test]
fn a_planned_change_has_no_moment_with_two_masters() {
    let epoch = at(20, "b");
    let members = [master("b", &epoch), caught_up("c", &epoch)];
    let follower = Mastership { role: Role::Follower { epoch: epoch.clone() }, seen: Some(epoch.clone()), ..settled() };
    assert_eq!(decided("c", &members, &follower), Decision::Stay, "it begins when b has stepped down");
    let (decision, next) =
        decide(&pod("b"), &view(&members), &Config::default(), &in_office(&epoch), &then(at(100, "b")));
    assert_eq!(decision, Decision::Stay, "it goes on until c would begin");
    let since = |moment: Moment, ms: u64| Moment { elapsed_ms: moment.elapsed_ms + ms, ..moment };
    let later =
        |ms: u64| decide(&pod("b"), &view(&members), &Config::default(), &next, &since(then(at(100, "b")), ms)).0;
    assert_eq!(later(299), Decision::Stay);
    assert_eq!(later(300), Decision::StepDown(Cause::HandOver(pod("c"))));
    assert_eq!(decided("b", &members, &with_rival(&epoch, "a")), Decision::Stay, "that was another");
    let members = [caught_up("b", &epoch), caught_up("c", &epoch)];
    assert_eq!(decided("c", &members, &follower), Decision::Become(at(100, "c")));
}

#[test]
fn the_newer_epoch_wins_also_when_its_master_is_gone() {
    let (old, new) = (at(10, "c"), at(20, "b"));
    for alive in [true, false] {
        let members = [Member { alive, ..master("b", &new) }, master("c", &old)];
        assert_eq!(decided("c", &members, &in_office(&old)), Decision::StepDown(Cause::Newer(new.clone())));
    }
    let members = [caught_up("a", &old), master("c", &old)];
    let heard = Mastership { seen: Some(new), ..settled() };
    assert_eq!(decided("a", &members, &heard), Decision::Wait(Waiting::For(pod("c"))), "an old claim is not followed");
    let members = [master("a", &old), caught_up("c", &at(20, "b"))];
    assert_eq!(decided("c", &members, &heard), Decision::Become(at(100, "c")), "a claim to another's epoch is none");
}

#[test]
fn one_that_leaves_or_may_not_steps_down() {
    let epoch = at(20, "b");
    let leaving = Member { left: true, ..master("b", &epoch) };
    assert_eq!(decided("b", std::slice::from_ref(&leaving), &in_office(&epoch)), Decision::StepDown(Cause::Barred));
    let members = [leaving, caught_up("a", &epoch)];
    assert_eq!(decided("b", &members, &in_office(&epoch)), Decision::StepDown(Cause::HandOver(pod("a"))));
    let config = Config { never: vec![pod("b")], ..Config::default() };
    let alone = view(&[master("b", &epoch)]);
    let (decision, next) = decide(&pod("b"), &alone, &config, &in_office(&epoch), &then(at(100, "b")));
    assert_eq!((decision, next.claim()), (Decision::StepDown(Cause::Barred), None));
}

#[test]
fn what_holds_a_candidate_back() {
    let held = |members: &[Member], previous: &Mastership| match decided("c", members, previous) {
        Decision::Wait(Waiting::ForOthers(hold)) => Some(hold),
        _ => None,
    };
    let lost = Member { alive: false, ..member("b") };
    let fresh = Mastership::starting(None);
    assert_eq!(held(&[member("c"), lost.clone()], &fresh), Some(Hold::Starting));
    assert_eq!(held(&[member("c")], &fresh), Some(Hold::Settling));
    assert_eq!(held(&[member("c"), lost], &settled()), None);
    let ahead = [Member { epoch: Some(at(200, "b")), ..member("b") }, caught_up("c", &at(10, "c"))];
    assert_eq!(held(&ahead, &settled_in(Some(&at(200, "b")))), Some(Hold::Clock));
    let (old, new) = (at(10, "a"), at(20, "b"));
    let heard = Mastership { seen: Some(new.clone()), ..settled() };
    assert_eq!(held(&[master("a", &old), caught_up("c", &new)], &heard), Some(Hold::Older(pod("a"))));
}

#[test]
fn a_pod_with_a_wrong_clock_is_not_chosen_and_not_followed() {
    let far = at(1_000_000, "c");
    let refusing = |id: &str| Member { refuses: vec![pod("c")], ..member(id) };
    let members = [refusing("a"), refusing("b"), master("c", &far)];
    let mut clock = Clock::new(pod("b"), None, DEFAULT_MAX_DRIFT_MS);
    let (now, off) = observe(&mut clock, &view(&members), 100_000);
    assert_eq!(off.iter().map(|err| &err.pod).collect::<Vec<_>>(), [&pod("c")]);
    assert_eq!(now.millis(), 100_000);
    let (decision, next) = decide(&pod("b"), &view(&members), &Config::default(), &settled(), &then(now.clone()));
    assert_eq!(decision, Decision::Become(now.clone()));
    assert_eq!(next.claim(), Some(&now));
    let step_down = Decision::StepDown(Cause::HandOver(pod("b")));
    assert_eq!(decided("c", &members, &in_office(&far)), step_down);
    let members = [refusing("a"), Member { refuses: vec![pod("c")], ..master("b", &now) }, member("c")];
    let forsworn = Mastership { seen: Some(far), ..settled() };
    assert_eq!(decided("c", &members, &forsworn), Decision::Follow(now));
}

#[test]
fn of_two_pods_whose_clocks_differ_one_is_master() {
    let far = at(1_000_000, "a");
    let behind = Member { refuses: vec![pod("a")], ..caught_up("b", &at(10, "b")) };
    assert_eq!(decided("b", &[master("a", &far), behind.clone()], &settled()), Decision::Follow(far.clone()));
    let gone = Member { alive: false, ..master("a", &far) };
    let followed = Mastership { role: Role::Follower { epoch: far.clone() }, seen: Some(far), ..settled() };
    let (decision, next) =
        decide(&pod("b"), &view(&[gone, behind]), &Config::default(), &followed, &then(at(100, "b")));
    assert_eq!((decision, next.seen()), (Decision::Become(at(100, "b")), Some(&at(100, "b"))), "it goes on without");
}

#[test]
fn an_epoch_that_was_just_heard_of_makes_its_pod_be_waited_for() {
    let (old, new) = (at(10, "c"), at(20, "b"));
    // Heard of, and not found alive yet.
    let members = [Member { alive: false, ..master("b", &new) }, master("c", &old)];
    let turn = |members: &[Member], previous: &Mastership, ms: u64| {
        let moment = Moment { elapsed_ms: 100_000 + ms, ..then(at(100, "c")) };
        decide(&pod("c"), &view(members), &Config::default(), previous, &moment)
    };
    let (decision, stepped) = turn(&members, &in_office(&old), 0);
    assert_eq!(decision, Decision::StepDown(Cause::Newer(new.clone())));
    let members = [members[0].clone(), caught_up("c", &old)];
    let unfound = Decision::Wait(Waiting::ForOthers(Hold::Unfound(pod("b"))));
    let (decision, waited) = turn(&members, &stepped, 2_999);
    assert_eq!(decision, unfound);
    assert!(matches!(turn(&members, &waited, 3_000).0, Decision::Become(_)), "it is not there");
    // It is found, and followed.
    let (decision, followed) = turn(&[master("b", &new), caught_up("c", &old)], &waited, 500);
    assert_eq!(decision, Decision::Follow(new.clone()));
    // It dies: its epoch is no news any more.
    let (decision, left) = turn(&members, &followed, 5_000);
    assert_eq!(decision, Decision::Wait(Waiting::ForOthers(Hold::Settling)));
    assert!(matches!(turn(&members, &left, 5_300).0, Decision::Become(_)));
    // One that has said that it goes is not waited for, but the view settles anew.
    let gone = [Member { left: true, ..members[0].clone() }, caught_up("c", &old)];
    let (decision, settling) = turn(&gone, &settled_in(Some(&old)), 0);
    assert_eq!(decision, Decision::Wait(Waiting::ForOthers(Hold::Settling)));
    assert!(matches!(turn(&gone, &settling, 300).0, Decision::Become(_)));
}

#[test]
fn after_a_pause_nobody_is_master_by_what_was_known_before() {
    let epoch = at(20, "b");
    let deaf = |me: &str, members: &[Member], previous: &Mastership| {
        let moment = Moment { is_deaf: true, ..then(at(100, me)) };
        decide(&pod(me), &view(members), &Config::default(), previous, &moment)
    };
    let members = [caught_up("a", &epoch), master("b", &epoch)];
    let (decision, next) = deaf("b", &members, &in_office(&epoch));
    assert_eq!((decision, next.claim()), (Decision::StepDown(Cause::Deaf), None));
    let members = [caught_up("a", &epoch), caught_up("b", &epoch)];
    assert_eq!(deaf("b", &members, &next).0, Decision::Wait(Waiting::ForOthers(Hold::Deaf)));
    assert!(matches!(decided("b", &members, &next), Decision::Become(_)), "once it hears");
    // A follower sends its writes on: they go wrong, or are taken by the one who may.
    let follower = Mastership { role: Role::Follower { epoch: epoch.clone() }, ..settled_in(Some(&epoch)) };
    assert_eq!(deaf("a", &[member("a"), master("b", &epoch)], &follower).0, Decision::Stay);
}

#[test]
fn a_clock_that_stands_still_keeps_nobody_waiting() {
    let lost = Member { alive: false, ..member("b") };
    let members = [member("c"), lost];
    let turn = |previous: &Mastership, elapsed_ms: u64| {
        let moment = Moment { elapsed_ms, ..then(at(100, "c")) };
        decide(&pod("c"), &view(&members), &Config::default(), previous, &moment)
    };
    let (decision, next) = turn(&Mastership::starting(None), 5);
    assert_eq!(decision, Decision::Wait(Waiting::ForOthers(Hold::Starting)));
    assert!(matches!(turn(&next, 3_004).0, Decision::Wait(_)));
    assert!(matches!(turn(&next, 3_005).0, Decision::Become(_)), "by the same stamp");
}
