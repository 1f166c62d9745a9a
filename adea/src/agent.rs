//! The agent's loop: look, plan, act, wait for something to change.

#[cfg(test)]
mod tests;

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
