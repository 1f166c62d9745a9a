//! The container runtime, as a seam: who really starts and stops programs.
//!
//! The sides so far: child processes ([`crate::process`]), and a fake for tests. Decisions are not
//! made here but in [`crate::plan`].

use std::future::Future;
use std::io;

use crate::plan::{Launch, Program};

/// What a runtime says of a program that it was told to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The program.
    pub program: Program,
    /// Its process id (another runtime may count its instances in its own way).
    pub pid: u32,
    /// How it ended, in words, if it has.
    pub ended: Option<String>,
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
#[error("can't {step} {program}: {source}")]
pub struct RuntimeError {
    /// What was tried.
    pub step: &'static str,
    /// With which program.
    pub program: Program,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Starts, stops and looks after programs.
pub trait Runtime: Send {
    /// Starts a program that isn't running; gives its process id.
    fn start(&mut self, program: Program, launch: &Launch) -> impl Future<Output = Result<u32, RuntimeError>> + Send;

    /// Signals a program; one that is gone already is no error.
    fn signal(&mut self, program: Program, signal: Signal) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Every program that was started, running or ended.
    fn look(&mut self) -> impl Future<Output = Vec<Sighting>> + Send;

    /// Whether the program answers.
    fn healthy(&mut self, program: Program, launch: &Launch) -> impl Future<Output = bool> + Send;

    /// Resolves when a look is worth while, as a program has ended. A hint: it may be missed.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}
