//! What to do next, from what should be and what is: a pure function, so that every order of events
//! can be tried in a test.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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

/// All that is needed to start a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The program file.
    pub exe: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where it will answer `GET /_up`.
    pub addr: SocketAddr,
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
    /// Whether it answered when last asked.
    pub healthy: bool,
    /// When it was told to stop (milliseconds since the agent began).
    pub told_ms: Option<u64>,
    /// Whether it has been killed; it may take a moment to be gone.
    pub killed: bool,
}

/// A step towards what should be. Carrying one out twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Start the program.
    Start(Program, Launch),
    /// Ask the program to finish its work and end.
    Terminate(Program),
    /// End the program now.
    Kill(Program),
}

/// A program that was told to stop has this long to finish what it does. Proxy and rean give requests in flight
/// 10 s each; the rest is for rean to close its store.
pub const STOP_DEADLINE_MS: u64 = 15_000;

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
            None if wanted => continue,
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

/// The lowest program that is missing, if all those below it are healthy.
fn next_start(desired: &Desired, observed: &Observed, now_ms: u64) -> Option<Step> {
    for (program, launch) in desired {
        match running(observed, *program) {
            Some(running) if running.healthy && running.told_ms.is_none() => {}
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
    use super::{Desired, Launch, Observed, Program, Running, STOP_DEADLINE_MS, Seen, Step, plan};
    use std::net::SocketAddr;

    fn launch(port: u16) -> Launch {
        Launch {
            exe: "/bin/podctl".into(),
            args: vec![port.to_string()],
            addr: SocketAddr::from(([127, 0, 0, 1], port)),
        }
    }

    fn both() -> Desired {
        Desired::from([(Program::Rean, launch(1)), (Program::Proxy, launch(2))])
    }

    fn up(port: u16, healthy: bool) -> Seen {
        Seen {
            running: Some(Running { launch: launch(port), healthy, told_ms: None, killed: false }),
            not_before_ms: 0,
        }
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
    fn a_program_told_to_stop_by_mistake_is_let_go_and_started_again() {
        let all = Observed::from([(Program::Rean, told(1, 0)), (Program::Proxy, up(2, true))]);
        assert_eq!(plan(&both(), &all, 1), []);
        assert_eq!(plan(&both(), &all, STOP_DEADLINE_MS), [Step::Kill(Program::Rean)]);
    }
}
