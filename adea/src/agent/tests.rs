//! The agent over a runtime in which programs do as they are told.

use super::Agent;
use crate::doing::{Doing, Wanted};
use crate::fake::{Event, FakeRuntime};
use crate::plan::{Desired, Launch, Program, SILENT_MS, STOP_DEADLINE_MS, Shares};
use crate::software::Software;
use crate::state::State;
use crate::stop::End;
use std::future::Future;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

struct Running {
    world: FakeRuntime,
    stop: oneshot::Sender<End>,
    agent: JoinHandle<End>,
    want: watch::Sender<Wanted>,
    doing: watch::Receiver<Doing>,
    dir: tempfile::TempDir,
}

fn launch(port: u16) -> Launch {
    Launch { software: "/bin/true".into(), args: vec![], up: ([127, 0, 0, 1], port).into(), shares: Shares::default() }
}

fn wanted(software: &str, rean: u16, proxy: u16) -> Wanted {
    Wanted {
        software: Software { image: Some(software.to_owned()), program: None },
        desired: Desired::from([(Program::Rean, launch(rean)), (Program::Proxy, launch(proxy))]),
    }
}

fn start() -> Running {
    start_in(FakeRuntime::default())
}

fn start_in(world: FakeRuntime) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let (want, wanted) = watch::channel(wanted("old", 1, 2));
    let agent = Agent::new(world.clone(), wanted, "pod-1", dir.path().join("state.json"));
    let doing = agent.doing();
    let (stop, stopped) = oneshot::channel();
    let agent = tokio::spawn(async move { agent.run(async { stopped.await.unwrap() }).await.unwrap() });
    Running { world, stop, agent, want, doing, dir }
}

async fn until(world: &FakeRuntime, what: impl Fn(&[Event]) -> bool) {
    let wait = async {
        while !what(&world.events()) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    within(Duration::from_secs(60), wait, world).await;
}

async fn within(limit: Duration, wait: impl Future<Output = ()>, world: &FakeRuntime) {
    tokio::time::timeout(limit, wait).await.unwrap_or_else(|_| panic!("never happened; instead {:?}", world.events()));
}

#[tokio::test(start_paused = true)]
async fn starts_in_order_and_stops_in_the_other() {
    let pod = start();
    until(&pod.world, |events| events.len() == 1).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(pod.world.events(), [Event::Started(Program::Rean)]);
    pod.world.set_healthy(Program::Rean, true);
    until(&pod.world, |events| events.contains(&Event::Started(Program::Proxy))).await;
    pod.world.set_healthy(Program::Proxy, true);
    sleep(Duration::from_secs(5)).await;
    let state = State::load(&pod.dir.path().join("state.json")).unwrap();
    assert!(state.programs.values().all(|program| program.healthy));
    pod.stop.send(End::Stop).unwrap();
    pod.agent.await.unwrap();
    assert_eq!(
        pod.world.events()[2..],
        [
            Event::Terminated(Program::Proxy),
            Event::Ended(Program::Proxy),
            Event::Terminated(Program::Rean),
            Event::Ended(Program::Rean),
        ]
    );
    let state = State::load(&pod.dir.path().join("state.json")).unwrap();
    assert_eq!(state.adea_pid, 0);
    assert!(state.programs.values().all(|program| program.pid.is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_dead_program_is_started_again_with_growing_pauses() {
    let pod = start();
    pod.world.set_healthy(Program::Rean, true);
    pod.world.set_healthy(Program::Proxy, true);
    until(&pod.world, |events| events.len() == 2).await;
    let mut pauses_ms = Vec::new();
    for round in 2..6 {
        pod.world.end(Program::Rean);
        let ended = Instant::now();
        until(&pod.world, |events| count(events, &Event::Started(Program::Rean)) == round).await;
        pauses_ms.push(ended.elapsed().as_millis());
    }
    for (pause_ms, expected_ms) in pauses_ms.iter().zip([100, 200, 400, 800]) {
        assert!((expected_ms..expected_ms + 60).contains(pause_ms), "{pauses_ms:?}");
    }
    assert_eq!(count(&pod.world.events(), &Event::Started(Program::Proxy)), 1);
    let state = State::load(&pod.dir.path().join("state.json")).unwrap();
    assert_eq!(state.programs[&Program::Rean].restarts, 4);
    pod.stop.send(End::Stop).unwrap();
    pod.agent.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_program_that_ignores_its_signal_is_killed() {
    let pod = start();
    pod.world.set_healthy(Program::Rean, true);
    pod.world.set_stubborn(Program::Rean);
    until(&pod.world, |events| events.len() == 2).await;
    let told = Instant::now();
    pod.stop.send(End::Stop).unwrap();
    pod.agent.await.unwrap();
    let took_ms = u64::try_from(told.elapsed().as_millis()).unwrap();
    assert!((STOP_DEADLINE_MS..STOP_DEADLINE_MS + 1_000).contains(&took_ms), "{took_ms}");
    assert!(pod.world.events().contains(&Event::Killed(Program::Rean)));
}

#[tokio::test(start_paused = true)]
async fn a_program_that_does_not_answer_is_started_again() {
    let pod = start();
    pod.world.set_healthy(Program::Rean, true);
    pod.world.set_healthy(Program::Proxy, true);
    until(&pod.world, |events| events.len() == 2).await;
    pod.world.set_stubborn(Program::Rean);
    let mut rounds_ms = Vec::new();
    for round in 1..=2 {
        // Both fall silent, but only one of them is the reason.
        pod.world.set_healthy(Program::Rean, false);
        pod.world.set_healthy(Program::Proxy, false);
        let silent = Instant::now();
        until(&pod.world, |events| count(events, &Event::Terminated(Program::Rean)) == round).await;
        let told_ms = u64::try_from(silent.elapsed().as_millis()).unwrap();
        assert!((SILENT_MS..SILENT_MS + 3_000).contains(&told_ms), "{told_ms}");
        until(&pod.world, |events| count(events, &Event::Ended(Program::Rean)) == round).await;
        let ended = Instant::now();
        until(&pod.world, |events| count(events, &Event::Started(Program::Rean)) == round + 1).await;
        rounds_ms.push(ended.elapsed().as_millis());
        pod.world.set_healthy(Program::Rean, true);
        pod.world.set_healthy(Program::Proxy, true);
        sleep(Duration::from_secs(5)).await;
    }
    assert!((100..200).contains(&rounds_ms[0]) && (200..300).contains(&rounds_ms[1]), "{rounds_ms:?}");
    assert_eq!(count(&pod.world.events(), &Event::Killed(Program::Rean)), 2);
    assert_eq!(count(&pod.world.events(), &Event::Terminated(Program::Proxy)), 0);
    let state = State::load(&pod.dir.path().join("state.json")).unwrap();
    assert!(state.programs[&Program::Rean].last_end.as_ref().is_some_and(|end| end.contains("did not answer")));
    pod.stop.send(End::Stop).unwrap();
    pod.agent.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_program_that_cannot_be_started_is_tried_again() {
    let pod = start();
    pod.world.set_broken(true);
    until(&pod.world, |events| count(events, &Event::Failed(Program::Rean)) == 3).await;
    pod.world.set_broken(false);
    until(&pod.world, |events| events.contains(&Event::Started(Program::Rean))).await;
    pod.stop.send(End::Stop).unwrap();
    pod.agent.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn other_software_replaces_what_runs_and_is_told_of() {
    let mut pod = start();
    pod.world.set_healthy(Program::Rean, true);
    pod.world.set_healthy(Program::Proxy, true);
    pod.doing.wait_for(|doing| doing.up).await.unwrap();
    pod.world.end(Program::Rean);
    pod.doing.wait_for(|doing| doing.ends == 1).await.unwrap();
    pod.doing.wait_for(|doing| doing.up).await.unwrap();
    let before = pod.world.events().len();
    pod.want.send_replace(wanted("new", 3, 4));
    let is_new = |doing: &Doing| doing.software.image.as_deref() == Some("new");
    pod.doing.wait_for(|doing| is_new(doing) && !doing.up).await.unwrap();
    let done = pod.doing.wait_for(|doing| is_new(doing) && doing.up).await.unwrap().clone();
    assert_eq!(done.ends, 0);
    assert_eq!(done.addr(Program::Rean).unwrap().port(), 3);
    let replaced = [
        Event::Terminated(Program::Proxy),
        Event::Ended(Program::Proxy),
        Event::Terminated(Program::Rean),
        Event::Ended(Program::Rean),
        Event::Started(Program::Rean),
        Event::Started(Program::Proxy),
    ];
    assert_eq!(pod.world.events()[before..], replaced);
    pod.stop.send(End::Stop).unwrap();
    pod.agent.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_let_go_is_found_again() {
    let mut pod = start();
    pod.world.set_healthy(Program::Rean, true);
    pod.world.set_healthy(Program::Proxy, true);
    pod.doing.wait_for(|doing| doing.up).await.unwrap();
    pod.stop.send(End::LetGo).unwrap();
    assert_eq!(pod.agent.await.unwrap(), End::LetGo);
    assert_eq!(pod.world.events().len(), 2, "nothing was stopped");
    let world = FakeRuntime::default();
    world.set_left(Program::Rean, launch(1));
    world.set_left(Program::Proxy, launch(9));
    world.set_healthy(Program::Rean, true);
    world.set_healthy(Program::Proxy, true);
    let mut pod = start_in(world);
    pod.doing.wait_for(|doing| doing.up).await.unwrap();
    // Only the one that was not as wanted is replaced.
    let events = [Event::Terminated(Program::Proxy), Event::Ended(Program::Proxy), Event::Started(Program::Proxy)];
    assert_eq!(pod.world.events(), events);
    pod.stop.send(End::Stop).unwrap();
    pod.agent.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_away_is_waited_for() {
    let world = FakeRuntime::default();
    world.set_down(true);
    world.set_healthy(Program::Rean, true);
    world.set_healthy(Program::Proxy, true);
    let mut pod = start_in(world);
    pod.doing.wait_for(|doing| doing.state.trouble.is_some()).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(pod.world.events(), []);
    pod.world.set_down(false);
    let doing = pod.doing.wait_for(|doing| doing.up).await.unwrap().clone();
    assert_eq!(doing.state.trouble, None);
    // It goes away under what runs, which is neither stopped nor started meanwhile.
    pod.world.set_down(true);
    pod.doing.wait_for(|doing| doing.state.trouble.is_some()).await.unwrap();
    sleep(Duration::from_secs(120)).await;
    assert_eq!(pod.world.events().len(), 2);
    // Even then the agent can be stopped.
    let told = Instant::now();
    pod.stop.send(End::Stop).unwrap();
    pod.agent.await.unwrap();
    assert!(told.elapsed() < Duration::from_millis(STOP_DEADLINE_MS + 3_000));
}

fn count(events: &[Event], event: &Event) -> usize {
    events.iter().filter(|e| *e == event).count()
}
