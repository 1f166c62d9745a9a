//! The agent of a machine: it starts a pod's programs, watches them, starts them again when they
//! die, and stops them in order.
//!
//! What flows through: a [`Config`] becomes what is [desired](plan::Desired); the
//! [runtime](runtime::Runtime) says what is there; a [pure plan](plan::plan) of both gives steps;
//! the [agent](agent::Agent) carries them out and looks again. There is one such pass, at the start,
//! after every failure and at the end, so no path is only taken when things go wrong.
//!
//! What always holds:
//! - a program is started only when all those below it answer, and told to stop only when all those
//!   above it are gone;
//! - a dead program comes back after a growing pause, never at once and never "no more";
//! - no program outlives the agent: each holds the other end of a pipe from it ([`stop`]);
//! - one agent works in a data folder at a time ([`folder`]).
//!
//! What it is not: it knows no documents and no ring. It talks HTTP to the programs only to ask
//! whether they are up.

pub mod agent;
pub mod backoff;
pub mod config;
pub mod folder;
pub mod limits;
pub mod logging;
pub mod logs;
pub mod plan;
pub mod process;
pub mod ring_file;
pub mod runtime;
pub mod state;
pub mod stop;

#[cfg(test)]
mod fake;

use std::future::Future;

pub use config::Config;

use crate::agent::{Agent, AgentError};
use crate::folder::Folder;
use crate::process::ProcessRuntime;

/// Why the agent gave up. A program that dies is no reason: it is started again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data folder can't be used.
    #[error(transparent)]
    Folder(#[from] folder::FolderError),
    /// The configuration can't be carried out on this machine.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// The agent's own loop failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Runs the pod's programs as child processes until `stop` resolves, then stops them all.
///
/// # Errors
/// When the folder is in use by another agent, or the configuration can't be carried out.
pub async fn run(config: Config, stop: impl Future<Output = ()> + Send) -> Result<(), Error> {
    let mut stop = Box::pin(stop);
    let folder = Folder::new(&config.data_dir)?;
    let lock = tokio::select! {
        lock = folder.lock("adea") => lock?,
        () = &mut stop => return Ok(()),
    };
    let desired = config.desired(&folder)?;
    let runtime = ProcessRuntime::new(folder.clone(), config.log_to, config.log.clone());
    let agent = Agent::new(runtime, desired, &config.pod_id, folder.state_file());
    agent.run(stop).await?;
    drop(lock);
    Ok(())
}
