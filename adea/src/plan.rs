//! What to do next, from what should be and what is: a pure function, so that every order of events
//! can be tried in a test.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::runtime::Instance;

/// A program of a pod, in the order in which they are started: each needs those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Program {
    /// The database server.
    Rean,
    /// The public port.
    Proxy,
}

/// All programs, in the order in which they are started.
pub const ALL: [Program; 2] = [Program::Rean, Program::Proxy];

impl Program {
    /// The name by which people and files know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rean => "rean",
            Self::Proxy => "proxy",
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// All that is needed to start a program, whatever the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Launch {
    /// What it is started from: the path of a program file, or the name of an image.
    pub software: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where it answers `GET /_up`, as it sees itself. A container's own address is known only once it runs.
    pub up: SocketAddr,
    /// What a container shares with its machine; nothing for a child process, which shares all.
    pub shares: Shares,
}

/// What a container shares with its machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Shares {
    /// Files and folders.
    pub mounts: Vec<Mount>,
    /// Ports.
    pub ports: Vec<Port>,
}

/// A file or folder of the machine in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Where it is on the machine.
    pub from: PathBuf,
    /// Where it is in the container.
    pub to: &'static str,
    /// Whether the program may write there.
    pub writable: bool,
    /// A hash of what is in the file, where the program reads it only once: another content is another launch.
    pub content: Option<String>,
}

/// A port of a container that others reach through the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Port {
    /// The address on the machine.
    pub outside: SocketAddr,
    /// The TCP port in the container.
    pub inside: u16,
}

impl Launch {
    /// What an instance runs by that was not made by any launch that is wanted.
    pub fn unfit() -> Self {
        Self {
            software: String::new(),
            args: Vec::new(),
            up: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            shares: Shares::default(),
        }
    }
}

/// What should run. To stop everything, want nothing.
pub type Desired = BTreeMap<Program, Launch>;

/// What is known of each program.
pub type Observed = BTreeMap<Program, Seen>;

/// What is known of a program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The running instance, if any.
    pub running: Option<Running>,
    /// Not to be started before this moment (milliseconds since the agent began).
    pub not_before_ms: u64,
}

/// A running instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// From what it was started.
    pub launch: Launch,
    /// The instance, as the runtime knows it.
    pub instance: Instance,
    /// Whether it answered when last asked.
    pub healthy: bool,
    /// Whether it has ever answered.
    pub was_healthy: bool,
    /// Since when it doesn't answer although all below it do (milliseconds since the agent began).
    pub silent_since_ms: Option<u64>,
    /// Whether it was told to stop because it did not answer.
    pub gave_up: bool,
    /// When it was told to stop (milliseconds since the agent began).
    pub told_ms: Option<u64>,
    /// Whether it has been killed; it may take a moment to be gone.
    pub killed: bool,
}

impl Running {
    /// One that was just started.
    pub fn new(launch: Launch, instance: Instance) -> Self {
        Self {
            launch,
            instance,
            healthy: false,
            was_healthy: false,
            silent_since_ms: None,
            gave_up: false,
            told_ms: None,
            killed: false,
        }
    }
}

/// A step towards what should be. Carrying one out twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Start the program.
    Start(Program, Launch),
    /// Ask the program to finish its work and end.
    Terminate(Program),
    /// The same, as it lives but does not answer: it is to be started again, after a pause.
    GiveUp(Program),
    /// End the program now.
    Kill(Program),
}

/// A program that was told to stop has this long to finish what it does. Proxy and rean give requests in flight
/// 10 s each; the rest is for rean to close its store.
pub const STOP_DEADLINE_MS: u64 = 15_000;

/// A program that has been well and then does not answer for so long hangs. A busy one answers late, which is within
/// this: its health costs it nothing.
pub const SILENT_MS: u64 = 30_000;
/// The same for one that has only been started: a store that was not closed reads its whole journal first, and would
/// begin anew each time that it is cut off.
pub const SILENT_AT_START_MS: u64 = 600_000;

/// The steps to take now. `now_ms` is in milliseconds since the agent began.
pub fn plan(desired: &Desired, observed: &Observed, now_ms: u64) -> Vec<Step> {
    let mut steps = stops(desired, observed, now_ms);
    steps.extend(next_start(desired, observed, now_ms));
    steps
}

/// Stops, from the top down: one has to be gone before the one that it leans on is told.
fn stops(desired: &Desired, observed: &Observed, now_ms: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut above_is_going = false;
    for program in ALL.into_iter().rev() {
        let Some(running) = running(observed, program) else {
            continue;
        };
        let wanted = desired.get(&program) == Some(&running.launch);
        match running.told_ms {
            None if wanted && !hangs(running, now_ms) => continue,
            // What leans on it stays: it goes on when this one is back.
            None if wanted => {
                steps.push(Step::GiveUp(program));
                continue;
            }
            None if above_is_going => {}
            None => steps.push(Step::Terminate(program)),
            Some(told_ms) => {
                if !running.killed && now_ms.saturating_sub(told_ms) >= STOP_DEADLINE_MS {
                    steps.push(Step::Kill(program));
                }
            }
        }
        above_is_going = true;
    }
    steps
}

fn hangs(running: &Running, now_ms: u64) -> bool {
    let patience_ms = if running.was_healthy { SILENT_MS } else { SILENT_AT_START_MS };
    running.silent_since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= patience_ms)
}

/// Notes whether a running program has answered just now. `leans_well`: whether all below it do; if not, its silence
/// may be theirs and does not count.
pub fn note_health(running: &mut Running, healthy: bool, leans_well: bool, now_ms: u64) {
    running.healthy = healthy;
    running.was_healthy |= healthy;
    running.silent_since_ms =
        if healthy || !leans_well { None } else { Some(running.silent_since_ms.unwrap_or(now_ms)) };
}

/// The lowest program that is missing, if all those below it are healthy and are to stay.
fn next_start(desired: &Desired, observed: &Observed, now_ms: u64) -> Option<Step> {
    for (program, launch) in desired {
        match running(observed, *program) {
            Some(running) if running.healthy && running.told_ms.is_none() && running.launch == *launch => {}
            Some(_) => return None,
            None => {
                let not_before_ms = observed.get(program).map_or(0, |seen| seen.not_before_ms);
                return (now_ms >= not_before_ms).then(|| Step::Start(*program, launch.clone()));
            }
        }
    }
    None
}

fn running(observed: &Observed, program: Program) -> Option<&Running> {
    observed.get(&program)?.running.as_ref()
}

#[cfg(test)]
mod tests {
    use super::{
        Desired, Instance, Launch, Observed, Program, Running, SILENT_AT_START_MS, SILENT_MS, STOP_DEADLINE_MS, Seen,
        Shares, Step, note_health, plan,
    };
    use std::net::SocketAddr;

    fn launch(port: u16) -> Launch {
        Launch {
            software: "/bin/podctl".into(),
            args: vec![port.to_string()],
            up: SocketAddr::from(([127, 0, 0, 1], port)),
            shares: Shares::default(),
        }
    }

    fn instance(port: u16) -> Instance {
        Instance { pid: u32::from(port), addr: launch(port).up, container: None, version: None }
    }

    fn both() -> Desired {
        Desired::from([(Program::Rean, launch(1)), (Program::Proxy, launch(2))])
    }

    fn up(port: u16, healthy: bool) -> Seen {
        let mut running = Running::new(launch(port), instance(port));
        note_health(&mut running, healthy, true, 0);
        Seen { running: Some(running), not_before_ms: 0 }
    }

    fn told(port: u16, told_ms: u64) -> Seen {
        let mut seen = up(port, true);
        if let Some(running) = &mut seen.running {
            running.told_ms = Some(told_ms);
        }
        seen
    }

    #[test]
    fn starts_from_the_bottom_and_waits_for_health() {
        let start = |program, port| vec![Step::Start(program, launch(port))];
        assert_eq!(plan(&both(), &Observed::new(), 0), start(Program::Rean, 1));
        let rising = Observed::from([(Program::Rean, up(1, false))]);
        assert_eq!(plan(&both(), &rising, 0), []);
        let risen = Observed::from([(Program::Rean, up(1, true))]);
        assert_eq!(plan(&both(), &risen, 0), start(Program::Proxy, 2));
        let all = Observed::from([(Program::Rean, up(1, true)), (Program::Proxy, up(2, true))]);
        assert_eq!(plan(&both(), &all, 0), []);
    }

    #[test]
    fn a_dead_program_waits_its_pause_and_leaves_the_others_alone() {
        let observed = Observed::from([
            (Program::Rean, Seen { running: None, not_before_ms: 500 }),
            (Program::Proxy, up(2, false)),
        ]);
        assert_eq!(plan(&both(), &observed, 499), []);
        assert_eq!(plan(&both(), &observed, 500), [Step::Start(Program::Rean, launch(1))]);
    }

    #[test]
    fn stops_from_the_top_and_kills_after_the_deadline() {
        let nothing = Desired::new();
        let all = Observed::from([(Program::Rean, up(1, true)), (Program::Proxy, up(2, true))]);
        assert_eq!(plan(&nothing, &all, 7), [Step::Terminate(Program::Proxy)]);
        let draining = Observed::from([(Program::Rean, up(1, true)), (Program::Proxy, told(2, 7))]);
        assert_eq!(plan(&nothing, &draining, 8), []);
        assert_eq!(plan(&nothing, &draining, 7 + STOP_DEADLINE_MS), [Step::Kill(Program::Proxy)]);
        let drained = Observed::from([(Program::Rean, up(1, true)), (Program::Proxy, Seen::default())]);
        assert_eq!(plan(&nothing, &drained, 9), [Step::Terminate(Program::Rean)]);
        assert_eq!(plan(&nothing, &Observed::new(), 9), []);
    }

    #[test]
    fn another_configuration_replaces_the_running_one() {
        let mut desired = both();
        desired.insert(Program::Rean, launch(3));
        let all = Observed::from([(Program::Rean, up(1, true)), (Program::Proxy, up(2, true))]);
        assert_eq!(plan(&desired, &all, 0), [Step::Terminate(Program::Rean)]);
        let going = Observed::from([(Program::Rean, told(1, 0)), (Program::Proxy, up(2, true))]);
        assert_eq!(plan(&desired, &going, 1), []);
        let gone = Observed::from([(Program::Proxy, up(2, false))]);
        assert_eq!(plan(&desired, &gone, 1), [Step::Start(Program::Rean, launch(3))]);
    }

    #[test]
    fn other_software_replaces_both_from_the_top() {
        let desired = Desired::from([(Program::Rean, launch(3)), (Program::Proxy, launch(4))]);
        let all = Observed::from([(Program::Rean, up(1, true)), (Program::Proxy, up(2, true))]);
        assert_eq!(plan(&desired, &all, 0), [Step::Terminate(Program::Proxy)]);
        let drained = Observed::from([(Program::Rean, up(1, true))]);
        // The new proxy waits for the new rean.
        assert_eq!(plan(&desired, &drained, 1), [Step::Terminate(Program::Rean)]);
        assert_eq!(plan(&desired, &Observed::new(), 2), [Step::Start(Program::Rean, launch(3))]);
        let half = Observed::from([(Program::Rean, up(3, true))]);
        assert_eq!(plan(&desired, &half, 3), [Step::Start(Program::Proxy, launch(4))]);
    }

    #[test]
    fn a_program_that_hangs_is_given_up_and_what_leans_on_it_is_not() {
        let mut all = Observed::from([(Program::Rean, up(1, true)), (Program::Proxy, up(2, true))]);
        let note = |all: &mut Observed, program: Program, healthy, leans_well, now_ms| {
            note_health(all.get_mut(&program).unwrap().running.as_mut().unwrap(), healthy, leans_well, now_ms);
        };
        for now_ms in [1_000, 1_000 + SILENT_MS - 1] {
            note(&mut all, Program::Rean, false, true, now_ms);
            note(&mut all, Program::Proxy, false, false, now_ms);
            assert_eq!(plan(&both(), &all, now_ms), []);
        }
        assert_eq!(plan(&both(), &all, 1_000 + SILENT_MS), [Step::GiveUp(Program::Rean)]);
        // One answer, and all is forgotten.
        note(&mut all, Program::Rean, true, true, 1_000 + SILENT_MS);
        note(&mut all, Program::Proxy, false, true, 1_000 + SILENT_MS);
        assert_eq!(plan(&both(), &all, 1_000 + SILENT_MS), []);
        assert_eq!(plan(&both(), &all, 1_000 + 2 * SILENT_MS), [Step::GiveUp(Program::Proxy)]);
    }

    #[test]
    fn a_start_may_take_long() {
        let rising = Observed::from([(Program::Rean, up(1, false))]);
        assert_eq!(plan(&both(), &rising, SILENT_AT_START_MS - 1), []);
        assert_eq!(plan(&both(), &rising, SILENT_AT_START_MS), [Step::GiveUp(Program::Rean)]);
    }

    #[test]
    fn a_program_told_to_stop_by_mistake_is_let_go_and_started_again() {
        let all = Observed::from([(Program::Rean, told(1, 0)), (Program::Proxy, up(2, true))]);
        assert_eq!(plan(&both(), &all, 1), []);
        assert_eq!(plan(&both(), &all, STOP_DEADLINE_MS), [Step::Kill(Program::Rean)]);
    }
}
