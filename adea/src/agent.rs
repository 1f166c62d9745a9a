//! The agent's loop: look, plan, act, wait for something to change.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::backoff::Backoff;
use crate::doing::{Doing, Wanted};
use crate::plan::{ALL, Launch, Observed, Program, Running, STOP_DEADLINE_MS, Seen, Step, note_health, plan};
use crate::runtime::{Found, Runtime, RuntimeError, Signal};
use crate::state::{ProgramState, State, StateFile};
use crate::stop::End;

/// How often to look while something is starting or stopping: this is what it adds to the time till ready.
const BUSY_LOOK: Duration = Duration::from_millis(25);
/// How often to look when all is well.
const CALM_LOOK: Duration = Duration::from_secs(2);
/// How often to try again when the runtime does not answer: an engine takes seconds to restart.
const BLIND_LOOK: Duration = Duration::from_secs(1);

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
    wanted: watch::Receiver<Wanted>,
    /// As it was at this turn's beginning; nothing once the programs are to stop.
    now_wanted: Wanted,
    observed: Observed,
    history: BTreeMap<Program, History>,
    /// Whether the runtime has told what ran before this agent did.
    adopted: bool,
    /// Why the runtime can't do its work, and since when.
    trouble: Option<(String, Instant)>,
    ends: u32,
    pod_id: String,
    state: StateFile,
    doing: watch::Sender<Doing>,
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
    /// An agent that will run what is wanted, also when that changes, and write its account to `state_file`.
    pub fn new(runtime: R, wanted: watch::Receiver<Wanted>, pod_id: &str, state_file: PathBuf) -> Self {
        let now_wanted = wanted.borrow().clone();
        Self {
            runtime,
            wanted,
            now_wanted,
            observed: Observed::new(),
            history: BTreeMap::new(),
            adopted: false,
            trouble: None,
            ends: 0,
            pod_id: pod_id.to_owned(),
            state: StateFile::new(state_file),
            doing: watch::Sender::new(Doing::default()),
            began: Instant::now(),
        }
    }

    /// How the programs are, after each look.
    pub fn doing(&self) -> watch::Receiver<Doing> {
        self.doing.subscribe()
    }

    /// Runs until `stop` resolves, and then until all programs are gone, unless they are to be let go.
    ///
    /// # Errors
    /// When the account of what runs can't be written.
    pub async fn run(mut self, stop: impl Future<Output = End> + Send) -> Result<End, AgentError> {
        let mut stop = Box::pin(stop);
        let mut stopping = None::<(End, Instant)>;
        loop {
            if stopping.is_none() {
                self.follow_wanted();
            }
            let looked = self.look().await;
            let sees = self.note_trouble(looked);
            if sees {
                for step in plan(&self.now_wanted.desired, &self.observed, self.now_ms()) {
                    self.act(step).await;
                }
            }
            self.tell(std::process::id())?;
            if let Some((end, since)) = stopping {
                // Of an engine that is gone nothing can be asked; without it, nothing may run either.
                let hopeless = !sees && since.elapsed() >= Duration::from_millis(STOP_DEADLINE_MS);
                if hopeless || sees && !self.anything_runs() {
                    self.tell(0)?;
                    return Ok(end);
                }
            }
            let pause = if sees { self.pause() } else { BLIND_LOOK };
            tokio::select! {
                end = &mut stop, if stopping.is_none() => {
                    if end == End::LetGo && R::OUTLIVES_AGENT {
                        self.tell(0)?;
                        return Ok(end);
                    }
                    stopping = Some((end, Instant::now()));
                    self.now_wanted.desired.clear();
                }
                Ok(()) = self.wanted.changed(), if stopping.is_none() => {}
                () = self.runtime.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    fn follow_wanted(&mut self) {
        if *self.wanted.borrow() == self.now_wanted {
            return;
        }
        let wanted = self.wanted.borrow_and_update().clone();
        if wanted.software != self.now_wanted.software {
            self.ends = 0;
            for history in self.history.values_mut() {
                // The failures were the other software's.
                history.backoff = Backoff::default();
            }
        }
        self.now_wanted = wanted;
    }

    /// Logs that the runtime can't do its work, once, and that it can again; tells whether it can.
    fn note_trouble(&mut self, looked: Result<(), RuntimeError>) -> bool {
        match looked {
            Ok(()) => {
                if let Some((_, since)) = self.trouble.take() {
                    tracing::info!("what runs can be seen again, after {} s", since.elapsed().as_secs());
                }
                true
            }
            Err(err) => {
                let text = err.to_string();
                let since = match self.trouble.take() {
                    Some((before, since)) if before == text => since,
                    before => {
                        tracing::error!("{text}; trying again");
                        before.map_or_else(Instant::now, |(_, since)| since)
                    }
                };
                self.trouble = Some((text, since));
                false
            }
        }
    }

    /// Brings what is known up to date.
    async fn look(&mut self) -> Result<(), RuntimeError> {
        if !self.adopted {
            for found in self.runtime.find(&self.now_wanted.desired).await? {
                self.adopt(found);
            }
            self.adopted = true;
        }
        let looked = self.runtime.look().await;
        let now_ms = self.now_ms();
        for sighting in looked.iter().flatten() {
            let history = self.history.entry(sighting.program).or_default();
            // An end that has been dealt with has no process id any more.
            if history.pid != Some(sighting.pid) {
                continue;
            }
            if let Some(end) = sighting.ended.clone() {
                let seen = self.observed.entry(sighting.program).or_default();
                self.ends += u32::from(end_of(sighting.program, history, seen, end, now_ms));
            }
        }
        if !self.now_wanted.desired.is_empty() {
            // Otherwise nothing depends on health any more, and asking would hold up the stop. Programs may well answer
            // while nobody can say whether they run.
            self.ask_health().await;
        }
        looked.map(drop)
    }

    /// Takes over a program that an earlier agent has started.
    fn adopt(&mut self, found: Found) {
        let Found { program, instance, launch } = found;
        match &launch {
            Some(_) => tracing::info!("{program} runs already, process {}, at {}", instance.pid, instance.addr),
            None => tracing::info!("{program} runs, process {}, but not as it should: replacing it", instance.pid),
        }
        let history = self.history.entry(program).or_default();
        (history.pid, history.starts) = (Some(instance.pid), 1);
        let running = Running::new(launch.unwrap_or_else(Launch::unfit), instance);
        self.observed.entry(program).or_default().running = Some(running);
    }

    async fn ask_health(&mut self) {
        let began = self.began;
        let mut leans_well = true;
        for program in ALL {
            let Some(running) = self.observed.get_mut(&program).and_then(|seen| seen.running.as_mut()) else {
                leans_well = false;
                continue;
            };
            let healthy = self.runtime.healthy(program, running.instance.addr).await;
            let changed = healthy != running.healthy;
            note_health(running, healthy, leans_well, since_ms(began));
            leans_well &= healthy;
            if !changed {
                continue;
            }
            let history = self.history.entry(program).or_default();
            history.well_since = healthy.then(Instant::now);
            if healthy {
                tracing::info!("{program} is up on {}", running.instance.addr);
            } else {
                tracing::warn!("{program} does not answer on {}", running.instance.addr);
            }
        }
    }

    async fn act(&mut self, step: Step) {
        let now_ms = self.now_ms();
        match step {
            Step::Start(program, launch) => self.start(program, launch).await,
            Step::Terminate(program) => {
                tracing::info!("stopping {program}");
                self.signal(program, Signal::Terminate, |running| running.told_ms = Some(now_ms)).await;
            }
            Step::GiveUp(program) => {
                let silent_ms = self.silent_ms(program, now_ms);
                tracing::warn!("{program} lives but has not answered for {} s: starting it again", silent_ms / 1_000);
                let told = |running: &mut Running| (running.told_ms, running.gave_up) = (Some(now_ms), true);
                self.signal(program, Signal::Terminate, told).await;
            }
            Step::Kill(program) => {
                tracing::warn!("{program} did not stop in time: killing it");
                self.signal(program, Signal::Kill, |running| running.killed = true).await;
            }
        }
    }

    async fn start(&mut self, program: Program, launch: Launch) {
        let started = self.runtime.start(program, &launch).await;
        let now_ms = self.now_ms();
        let history = self.history.entry(program).or_default();
        let seen = self.observed.entry(program).or_default();
        history.starts = history.starts.saturating_add(1);
        match started {
            Ok(instance) => {
                tracing::info!("started {program}, process {}, on {}", instance.pid, instance.addr);
                history.pid = Some(instance.pid);
                history.well_since = None;
                seen.running = Some(Running::new(launch, instance));
            }
            Err(err) => self.ends += u32::from(end_of(program, history, seen, err.to_string(), now_ms)),
        }
    }

    /// Signals a program, and notes it if that could be done; otherwise it is done at the next turn.
    async fn signal(&mut self, program: Program, signal: Signal, note: impl FnOnce(&mut Running)) {
        if let Err(err) = self.runtime.signal(program, signal).await {
            self.note_trouble(Err(err));
        } else if let Some(running) = self.observed.get_mut(&program).and_then(|seen| seen.running.as_mut()) {
            note(running);
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
        if self.trouble.is_some() {
            return BLIND_LOOK;
        }
        if self.is_up() { CALM_LOOK } else { BUSY_LOOK }
    }

    /// Whether all programs run as they are wanted, and answer.
    fn is_up(&self) -> bool {
        let desired = &self.now_wanted.desired;
        let up = desired.iter().all(|(program, launch)| {
            self.observed
                .get(program)
                .and_then(|seen| seen.running.as_ref())
                .is_some_and(|running| running.healthy && running.told_ms.is_none() && running.launch == *launch)
        });
        up && !desired.is_empty()
    }

    fn now_ms(&self) -> u64 {
        since_ms(self.began)
    }

    /// Writes the account, and tells the agent's other parts.
    fn tell(&mut self, adea_pid: u32) -> Result<(), AgentError> {
        let programs = self.history.iter().map(|(program, history)| {
            let running = self.observed.get(program).and_then(|seen| seen.running.as_ref());
            let instance = running.map(|running| &running.instance);
            let state = ProgramState {
                pid: running.and(history.pid),
                addr: instance.map(|instance| instance.addr),
                software: running.map(|running| running.launch.software.clone()),
                version: instance.and_then(|instance| instance.version.clone()),
                container: instance.and_then(|instance| instance.container.clone()),
                healthy: running.is_some_and(|running| running.healthy),
                restarts: history.starts.saturating_sub(1),
                last_end: history.last_end.clone(),
            };
            (*program, state)
        });
        let state = State {
            pod_id: self.pod_id.clone(),
            adea_pid,
            programs: programs.collect(),
            trouble: self.trouble.as_ref().map(|(text, _)| text.clone()),
        };
        let software = self.now_wanted.software.clone();
        let doing = Doing { software, up: self.is_up(), ends: self.ends, state: state.clone() };
        self.doing.send_if_modified(|before| {
            let changed = *before != doing;
            *before = doing;
            changed
        });
        self.state.write(state).map_err(AgentError::State)
    }
}

fn since_ms(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Notes that a program has ended, and when it may be started again; tells whether nobody had asked it to.
fn end_of(program: Program, history: &mut History, seen: &mut Seen, mut end: String, now_ms: u64) -> bool {
    let ended = seen.running.take();
    let never_ran = ended.is_none();
    let gave_up = ended.as_ref().is_some_and(|running| running.gave_up);
    let asked = ended.is_some_and(|running| running.told_ms.is_some()) && !gave_up;
    let well_ms = history.well_since.take().map_or(0, |since| since.elapsed().as_millis());
    let pause_ms = history.backoff.after_end(u64::try_from(well_ms).unwrap_or(u64::MAX));
    seen.not_before_ms = if asked { now_ms } else { now_ms + pause_ms };
    if never_ran {
        tracing::error!("{end}: trying again in {pause_ms} ms");
    } else if asked {
        tracing::info!("{program} has stopped ({end})");
    } else if gave_up {
        end.push_str(", as it did not answer");
        tracing::warn!("{program} has ended ({end}): starting it again in {pause_ms} ms");
    } else {
        tracing::warn!("{program} ended by itself ({end}): starting it again in {pause_ms} ms; its log says why");
    }
    history.pid = None;
    history.last_end = Some(end);
    !asked
}

#[cfg(test)]
mod tests {
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
        Launch {
            software: "/bin/true".into(),
            args: vec![],
            up: ([127, 0, 0, 1], port).into(),
            shares: Shares::default(),
        }
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
}
