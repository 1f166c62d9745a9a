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
//! - one agent works in a data folder at a time ([`folder`]);
//! - a pod of a ring has left it before its programs are stopped ([`ring`]).
//!
//! What it is not: it knows no documents. It talks HTTP to the programs to ask whether they are up, and to rean to tell
//! it of the ring.

pub mod agent;
pub mod backoff;
pub mod config;
pub mod folder;
pub mod limits;
pub mod logging;
pub mod logs;
pub mod plan;
pub mod process;
pub mod ring;
pub mod ring_file;
pub mod runtime;
pub mod state;
pub mod stop;

#[cfg(test)]
mod fake;

use std::future::Future;
use std::path::PathBuf;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use config::Config;

use crate::agent::{Agent, AgentError};
use crate::folder::Folder;
use crate::plan::{Desired, Program};
use crate::process::ProcessRuntime;
use crate::ring::kept::{Kept, KeptError};
use crate::ring::turn::{Aside, News};
use crate::ring::{LEAVE_DEADLINE, Setup};
use crate::ring_file::{RingFile, RingFileError};

/// Why the agent gave up. A program that dies is no reason: it is started again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data folder can't be used.
    #[error(transparent)]
    Folder(#[from] folder::FolderError),
    /// The configuration can't be carried out on this machine.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// The ring's file can't be used.
    #[error(transparent)]
    RingFile(#[from] RingFileError),
    /// There is no ring file.
    #[error("configuration key `ring_file`: there is no {0}")]
    NoRingFile(PathBuf),
    /// A name or secret that is none.
    #[error("configuration key `{key}`: {reason}")]
    Identity {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// What the pod remembers of its ring can't be used.
    #[error(transparent)]
    Kept(#[from] KeptError),
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
    // The other ends are for what looks after the machine and the software.
    let (_aside, heard_aside) = watch::channel(Aside::default());
    let (news, _heard_news) = watch::channel(News::default());
    let setup = ring_setup(&config, &folder, &desired, heard_aside, news)?;
    let runtime = ProcessRuntime::new(folder.clone(), config.log_to, config.log.clone());
    let agent = Agent::new(runtime, desired, &config.pod_id, folder.state_file());
    match setup {
        None => agent.run(stop).await?,
        Some(setup) => {
            let (leave, told) = oneshot::channel();
            // Ends with this function, however that ends.
            let mut tasks = JoinSet::new();
            tasks.spawn(ring::run(setup, told));
            let left = async {
                stop.await;
                let _ = leave.send(());
                if timeout(LEAVE_DEADLINE, tasks.join_next()).await.is_err() {
                    tracing::warn!("could not leave the ring in {} s", LEAVE_DEADLINE.as_secs());
                }
            };
            agent.run(left).await?;
        }
    }
    drop(lock);
    Ok(())
}

/// What the ring's loop needs, if there is a ring. Checked before anything starts.
fn ring_setup(
    config: &Config,
    folder: &Folder,
    desired: &Desired,
    aside: watch::Receiver<Aside>,
    news: watch::Sender<News>,
) -> Result<Option<Setup>, Error> {
    let (Some(section), Some(rean)) = (&config.ring, desired.get(&Program::Rean)) else {
        return Ok(None);
    };
    let file = RingFile::load(&config.ring_file)?.ok_or_else(|| Error::NoRingFile(config.ring_file.clone()))?;
    let wrong = |key, reason: &dyn std::fmt::Display| Error::Identity { key, reason: reason.to_string() };
    // The loop reads it again each time that it begins; what is damaged now is so for good.
    Kept::load(&folder.ring_state_file())?;
    Ok(Some(Setup {
        pod_id: config.pod_id.parse().map_err(|err| wrong("pod_id", &err))?,
        secret: file.secret().map_err(|err| wrong("ring_file", &err))?,
        section: section.clone(),
        rean: rean.addr,
        file: folder.ring_state_file(),
        aside,
        news,
    }))
}
