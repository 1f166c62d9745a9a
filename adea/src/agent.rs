//! The agent's loop: look, plan, act, wait for something to change.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::backoff::Backoff;
use crate::plan::{ALL, Desired, Observed, Program, Running, Seen, Step, note_health, plan};
use crate::runtime::{Runtime, Signal};
use crate::state::{ProgramState, State, StateFile};

/// How often to look while something is starting or stopping: this is what it adds to the time till ready.
const BUSY_LOOK: Duration = Duration::from_millis(25);
/// How often to look when all is well.
const CALM_LOOK: Duration = Duration::from_secs(2);

/// The agent's loop can't go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The account of what runs can't be written; then neither can anything else in the data folder.
    #[error("can't write the agent's state: {0}")]
    State(#[source] io::Error),
}

/// Keeps what runs as it should be.
pub struct Agent<R> {
    runtime: R,
    desired: Desired,
    observed: Observed,
    history: BTreeMap<Program, History>,
    pod_id: String,
    state: StateFile,
    began: Instant,
}

/// What the agent remembers of a program.
#[derive(Debug, Default)]
struct History {
    pid: Option<u32>,
    starts: u32,
    backoff: Backoff,
    well_since: Option<Instant>,
    last_end: Option<String>,
}

impl<R: Runtime> Agent<R> {
    /// An agent that will run what is desired and write its account to `state_file`.
    pub fn new(runtime: R, desired: Desired, pod_id: &str, state_file: PathBuf) -> Self {
        Self {
            runtime,
            desired,
            observed: Observed::new(),
            history: BTreeMap::new(),
            pod_id: pod_id.to_owned(),
            state: StateFile::new(state_file),
            began: Instant::now(),
        }
    }

    /// Runs until `stop` resolves and all programs are gone.
    ///
    /// # Errors
    /// When the account of what runs can't be written; the programs then end with this process.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) -> Result<(), AgentError> {
        let mut stop = Box::pin(stop);
        let mut stopping = false;
        loop {
            self.look().await;
            for step in plan(&self.desired, &self.observed, self.now_ms()) {
                self.act(step).await;
            }
            self.write_state(std::process::id())?;
            if stopping && !self.anything_runs() {
                return self.write_state(0);
            }
            let pause = self.pause();
            tokio::select! {
                () = &mut stop, if !stopping => {
                    stopping = true;
                    self.desired.clear();
                }
                () = self.runtime.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Brings what is known up to date.
    async fn look(&mut self) {
        let sightings = self.runtime.look().await;
        let now_ms = self.now_ms();
        for sighting in sightings {
            let history = self.history.entry(sighting.program).or_default();
            // An end that has been dealt with has no process id any more.
            if history.pid != Some(sighting.pid) {
                continue;
            }
            if let Some(end) = sighting.ended {
                let seen = self.observed.entry(sighting.program).or_default();
                end_of(sighting.program, history, seen, end, now_ms);
            }
        }
        if self.desired.is_empty() {
            // Nothing depends on health any more, and asking would hold up the stop.
            return;
        }
        let began = self.began;
        let mut leans_well = true;
        for program in ALL {
            let Some(running) = self.observed.get_mut(&program).and_then(|seen| seen.running.as_mut()) else {
                leans_well = false;
                continue;
            };
            let healthy = self.runtime.healthy(program, &running.launch).await;
            let changed = healthy != running.healthy;
            note_health(running, healthy, leans_well, since_ms(began));
            leans_well &= healthy;
            if !changed {
                continue;
            }
            let history = self.history.entry(program).or_default();
            history.well_since = healthy.then(Instant::now);
            if healthy {
                tracing::info!("{program} is up on {}", running.launch.addr);
            } else {
                tracing::warn!("{program} does not answer on {}", running.launch.addr);
            }
        }
    }

    async fn act(&mut self, step: Step) {
        let now_ms = self.now_ms();
        match step {
            Step::Start(program, launch) => {
                let started = self.runtime.start(program, &launch).await;
                let history = self.history.entry(program).or_default();
                let seen = self.observed.entry(program).or_default();
                history.starts = history.starts.saturating_add(1);
                match started {
                    Ok(pid) => {
                        tracing::info!("started {program}, process {pid}, on {}", launch.addr);
                        history.pid = Some(pid);
                        history.well_since = None;
                        seen.running = Some(Running::new(launch));
                    }
                    Err(err) => end_of(program, history, seen, err.to_string(), now_ms),
                }
            }
            Step::Terminate(program) => {
                tracing::info!("stopping {program}");
                self.signal(program, Signal::Terminate).await;
                self.running_mut(program, |running| running.told_ms = Some(now_ms));
            }
            Step::GiveUp(program) => {
                let silent_ms = self.silent_ms(program, now_ms);
                tracing::warn!("{program} lives but has not answered for {} s: starting it again", silent_ms / 1_000);
                self.signal(program, Signal::Terminate).await;
                self.running_mut(program, |running| (running.told_ms, running.gave_up) = (Some(now_ms), true));
            }
            Step::Kill(program) => {
                tracing::warn!("{program} did not stop in time: killing it");
                self.signal(program, Signal::Kill).await;
                self.running_mut(program, |running| running.killed = true);
            }
        }
    }

    async fn signal(&mut self, program: Program, signal: Signal) {
        if let Err(err) = self.runtime.signal(program, signal).await {
            tracing::warn!("{err}");
        }
    }

    fn running_mut(&mut self, program: Program, change: impl FnOnce(&mut Running)) {
        if let Some(running) = self.observed.get_mut(&program).and_then(|seen| seen.running.as_mut()) {
            change(running);
        }
    }

    fn silent_ms(&self, program: Program, now_ms: u64) -> u64 {
        let running = self.observed.get(&program).and_then(|seen| seen.running.as_ref());
        running.and_then(|running| running.silent_since_ms).map_or(0, |since_ms| now_ms.saturating_sub(since_ms))
    }

    fn anything_runs(&self) -> bool {
        self.observed.values().any(|seen| seen.running.is_some())
    }

    fn pause(&self) -> Duration {
        let calm = self.desired.iter().all(|(program, launch)| {
            self.observed
                .get(program)
                .and_then(|seen| seen.running.as_ref())
                .is_some_and(|running| running.healthy && running.told_ms.is_none() && running.launch == *launch)
        });
        if calm && !self.desired.is_empty() { CALM_LOOK } else { BUSY_LOOK }
    }

    fn now_ms(&self) -> u64 {
        since_ms(self.began)
    }

    fn write_state(&mut self, adea_pid: u32) -> Result<(), AgentError> {
        let programs = self.history.iter().map(|(program, history)| {
            let running = self.observed.get(program).and_then(|seen| seen.running.as_ref());
            let state = ProgramState {
                pid: running.and(history.pid),
                addr: running.map(|running| running.launch.addr),
                healthy: running.is_some_and(|running| running.healthy),
                restarts: history.starts.saturating_sub(1),
                last_end: history.last_end.clone(),
            };
            (*program, state)
        });
        let state = State { pod_id: self.pod_id.clone(), adea_pid, programs: programs.collect() };
        self.state.write(state).map_err(AgentError::State)
    }
}

fn since_ms(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Notes that a program has ended, and when it may be started again.
fn end_of(program: Program, history: &mut History, seen: &mut Seen, mut end: String, now_ms: u64) {
    let ended = seen.running.take();
    let gave_up = ended.as_ref().is_some_and(|running| running.gave_up);
    let asked = ended.is_some_and(|running| running.told_ms.is_some()) && !gave_up;
    let well_ms = history.well_since.take().map_or(0, |since| since.elapsed().as_millis());
    let pause_ms = history.backoff.after_end(u64::try_from(well_ms).unwrap_or(u64::MAX));
    seen.not_before_ms = if asked { now_ms } else { now_ms + pause_ms };
    if asked {
        tracing::info!("{program} has stopped ({end})");
    } else if gave_up {
        end.push_str(", as it did not answer");
        tracing::warn!("{program} has ended ({end}): starting it again in {pause_ms} ms");
    } else {
        tracing::warn!("{program} ended by itself ({end}): starting it again in {pause_ms} ms; its log says why");
    }
    history.pid = None;
    history.last_end = Some(end);
}

#[cfg(test)]
mod tests {
    use super::Agent;
    use crate::fake::{Event, FakeRuntime};
    use crate::plan::{Desired, Launch, Program, SILENT_MS, STOP_DEADLINE_MS};
    use crate::state::State;
    use std::future::Future;
    use std::time::Duration;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;
    use tokio::time::{Instant, sleep};

    struct Running {
        world: FakeRuntime,
        stop: oneshot::Sender<()>,
        agent: JoinHandle<()>,
        dir: tempfile::TempDir,
    }

    fn launch(port: u16) -> Launch {
        Launch { exe: "/bin/true".into(), args: vec![], addr: ([127, 0, 0, 1], port).into() }
    }

    fn start() -> Running {
        let dir = tempfile::tempdir().unwrap();
        let world = FakeRuntime::default();
        let desired = Desired::from([(Program::Rean, launch(1)), (Program::Proxy, launch(2))]);
        let agent = Agent::new(world.clone(), desired, "pod-1", dir.path().join("state.json"));
        let (stop, stopped) = oneshot::channel();
        let agent = tokio::spawn(async move {
            agent.run(async { drop(stopped.await) }).await.unwrap();
        });
        Running { world, stop, agent, dir }
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
        tokio::time::timeout(limit, wait)
            .await
            .unwrap_or_else(|_| panic!("never happened; instead {:?}", world.events()));
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
        pod.stop.send(()).unwrap();
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
        pod.stop.send(()).unwrap();
        pod.agent.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_ignores_its_signal_is_killed() {
        let pod = start();
        pod.world.set_healthy(Program::Rean, true);
        pod.world.set_stubborn(Program::Rean);
        until(&pod.world, |events| events.len() == 2).await;
        let told = Instant::now();
        pod.stop.send(()).unwrap();
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
        pod.stop.send(()).unwrap();
        pod.agent.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_cannot_be_started_is_tried_again() {
        let pod = start();
        pod.world.set_broken(true);
        until(&pod.world, |events| count(events, &Event::Failed(Program::Rean)) == 3).await;
        pod.world.set_broken(false);
        until(&pod.world, |events| events.contains(&Event::Started(Program::Rean))).await;
        pod.stop.send(()).unwrap();
        pod.agent.await.unwrap();
    }

    fn count(events: &[Event], event: &Event) -> usize {
        events.iter().filter(|e| *e == event).count()
    }
}
