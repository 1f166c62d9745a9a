//! The container runtime, as a seam: who really starts and stops programs.
//!
//! The sides: child processes ([`crate::process`]), containers ([`crate::docker`]), and a fake for tests. Decisions are
//! not made here but in [`crate::plan`].

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;

use crate::plan::{Desired, Launch, Program};

/// What a runtime says of a program that it was told to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The program.
    pub program: Program,
    /// The process id of the instance that was started or found.
    pub pid: u32,
    /// How it ended, in words, if it has.
    pub ended: Option<String>,
}

/// A running instance, as the runtime knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its process id on this machine.
    pub pid: u32,
    /// Where the agent reaches it.
    pub addr: SocketAddr,
    /// The container's name, if it is one.
    pub container: Option<String>,
    /// The version of its build, where that is known.
    pub version: Option<String>,
}

/// An instance that ran before the agent did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which program it is.
    pub program: Program,
    /// The instance.
    pub instance: Instance,
    /// The launch that it was made by, if that is the one that is desired; it is replaced otherwise.
    pub launch: Option<Launch>,
}

/// How to stop a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Finish what you do, then end.
    Terminate,
    /// End now.
    Kill,
}

/// A step that a runtime could not carry out.
#[derive(Debug, thiserror::Error)]
#[error("can't {step}: {source}")]
pub struct RuntimeError {
    /// What was tried, and with which program.
    pub step: String,
    /// Why it failed.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

impl RuntimeError {
    /// A step that failed.
    pub fn new(step: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { step: step.into(), source: source.into() }
    }
}

/// Starts, stops and looks after programs.
pub trait Runtime: Send {
    /// Whether programs go on when the agent ends without stopping them.
    const OUTLIVES_AGENT: bool;

    /// What runs already, as the agent begins. It is asked again until it can tell.
    fn find(&mut self, desired: &Desired) -> impl Future<Output = Result<Vec<Found>, RuntimeError>> + Send;

    /// Starts a program that isn't running.
    fn start(
        &mut self,
        program: Program,
        launch: &Launch,
    ) -> impl Future<Output = Result<Instance, RuntimeError>> + Send;

    /// Signals a program; one that is gone already is no error.
    fn signal(&mut self, program: Program, signal: Signal) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Every program that was started or found, running or ended.
    fn look(&mut self) -> impl Future<Output = Result<Vec<Sighting>, RuntimeError>> + Send;

    /// Whether the program answers.
    fn healthy(&mut self, program: Program, addr: SocketAddr) -> impl Future<Output = bool> + Send;

    /// Resolves when a look is worth while, as a program has ended. A hint: it may be missed.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}
