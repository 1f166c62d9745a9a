//! The agent of a machine: it starts a pod's programs, watches them, starts them again when they
//! die, and stops them in order.
//!
//! What flows through: a [`Config`] becomes a [blueprint](blueprint::Blueprint), which with the software that is to run
//! says what is [desired](plan::Desired); the [runtime](runtime::Runtime) says what is there; a [pure plan](plan::plan) of both gives steps;
//! the [agent](agent::Agent) carries them out and looks again. There is one such pass, at the start,
//! after every failure and at the end, so no path is only taken when things go wrong.
//!
//! What always holds:
//! - a program is started only when all those below it answer, and told to stop only when all those
//!   above it are gone;
//! - a dead program comes back after a growing pause, never at once and never "no more";
//! - no child process outlives the agent: each holds the other end of a pipe from it ([`stop`]); containers go on when it
//!   dies, and are found again by the next;
//! - one agent works in a data folder at a time ([`folder`]);
//! - a pod of a ring has left it before its programs are stopped ([`ring`]), and one that its ring has removed stops.
//!
//! What it is not: it knows no documents. It talks HTTP to the programs to ask whether they are up, and to rean to tell
//! it of the ring.

pub mod agent;
pub mod aside;
pub mod backoff;
pub mod blueprint;
pub mod config;
pub mod docker;
pub mod doing;
pub mod file_fault;
pub mod folder;
pub mod health;
pub mod host;
pub mod image;
pub mod levers;
pub mod limits;
pub mod logging;
pub mod logs;
pub mod order_key;
pub mod plan;
pub mod process;
pub mod ring;
pub mod ring_file;
pub mod runtime;
pub mod software;
pub mod state;
pub mod stop;
pub mod upgrade;

#[cfg(test)]
mod fake;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use config::Config;

use crate::agent::{Agent, AgentError};
use crate::aside::AsideBoard;
use crate::blueprint::Blueprint;
use crate::config::RuntimeConfig;
use crate::docker::{DockerRuntime, Engine, LeftOver};
use crate::doing::Doing;
use crate::folder::Folder;
use crate::levers::Levers;
use crate::process::ProcessRuntime;
use crate::ring::kept::{Kept, KeptError};
use crate::ring::turn::{Aside, News};
use crate::ring::{Ended, LEAVE_DEADLINE, Setup};
use crate::ring_file::{RingFile, RingFileError};
use crate::runtime::Runtime;
use crate::software::Software;
use crate::stop::End;
use crate::upgrade::journal::{Journal, JournalError};

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
    /// The containers can't be prepared.
    #[error(transparent)]
    Docker(#[from] docker::PrepareError),
    /// What the pod remembers of upgrades can't be used.
    #[error(transparent)]
    Upgrade(#[from] JournalError),
    /// The agent's own loop failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Runs the pod's programs until `stop` resolves, and then stops them, or lets them go if that is wanted and they can.
/// How it has ended is what it gives.
///
/// # Errors
/// When the folder is in use by another agent, or the configuration can't be carried out.
pub async fn run(config: Config, stop: impl Future<Output = End> + Send) -> Result<End, Error> {
    run_here(config, Box::pin(stop)).await
}

/// When the agent is to end.
type Stop<'a> = Pin<Box<dyn Future<Output = End> + Send + 'a>>;

/// The compiler makes a future's code in each crate that polls it: behind a box it is made once, in this one, and a program
/// that runs the agent holds it once.
#[inline(never)]
fn run_here(config: Config, stop: Stop<'_>) -> Pin<Box<dyn Future<Output = Result<End, Error>> + Send + '_>> {
    Box::pin(run_boxed(config, stop))
}

async fn run_boxed(config: Config, mut stop: Stop<'_>) -> Result<End, Error> {
    let folder = Folder::new(&config.data_dir)?;
    let lock = tokio::select! {
        lock = folder.lock("adea") => lock?,
        end = &mut stop => return Ok(end),
    };
    let end = match &config.runtime {
        RuntimeConfig::Process => {
            let blueprint = Blueprint::of_processes(&config, &folder)?;
            let runtime = ProcessRuntime::new(folder.clone(), config.log_to, config.log.clone());
            run_pod(&config, &folder, runtime, None, blueprint, stop).await?
        }
        RuntimeConfig::Docker(docker) => {
            let (runtime, blueprint) = DockerRuntime::prepare(&config, docker, &folder)?;
            let (engine, left_over) = (runtime.engine().clone(), runtime.left_over());
            let end = run_pod(&config, &folder, runtime, Some(engine), blueprint, stop).await?;
            if end == End::Removed {
                clear(&left_over).await;
            }
            end
        }
    };
    drop(lock);
    Ok(end)
}

/// Removes the containers and the network of a pod that doesn't come back; its data is for people to delete.
async fn clear(left_over: &LeftOver) {
    match left_over.remove().await {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => tracing::info!("removed from Docker: {}", removed.join(", ")),
        Err(err) => tracing::warn!(
            "the pod's stopped containers and its network stay in Docker: {err}; start the agent once more to try again, or \
             remove them by hand"
        ),
    }
}

/// The same, with a runtime.
async fn run_pod<R: Runtime>(
    config: &Config,
    folder: &Folder,
    runtime: R,
    engine: Option<Engine>,
    blueprint: Blueprint,
    mut stop: Stop<'_>,
) -> Result<End, Error> {
    let journal = Journal::load(folder)?;
    let (software, followed) = watch::channel(journal.software.clone());
    let (want, wanted) = watch::channel(blueprint.wanted(&software.borrow()));
    let (board, aside) = AsideBoard::new();
    let (news, heard_news) = watch::channel(News::default());
    // One wish to end is enough.
    let (end, mut asked_to_end) = mpsc::channel(1);
    let agent = Agent::new(runtime, wanted, &config.pod_id, folder.state_file());
    let levers = Levers {
        folder: folder.clone(),
        ring_file: config.ring_file.clone(),
        software,
        doing: agent.doing(),
        news: heard_news,
        board,
        end,
        engine,
        image: blueprint.image().map(str::to_owned),
    };
    let setup = ring_setup(config, folder, agent.doing(), aside, news)?;
    // These end with this function, however that ends.
    let mut tasks = JoinSet::new();
    tasks.spawn(follow_software(blueprint, followed, want));
    tasks.spawn(host::watch(levers.clone()));
    let mut ring = JoinSet::new();
    let (leave, told) = oneshot::channel();
    if let Some(setup) = setup {
        // A pod without a ring has nobody to order an upgrade.
        tasks.spawn(upgrade::run(levers, setup.pod_id.clone(), setup.secret.clone(), journal));
        ring.spawn(ring::run(setup, told));
    }
    let ended = async {
        let end = tokio::select! {
            end = &mut stop => end,
            Some(end) = asked_to_end.recv() => end,
            Some(Ok(Ended::Removed)) = ring.join_next() => {
                tracing::warn!("{} was removed from its ring, and stops for good", config.pod_id);
                tracing::warn!(
                    "its data is still in {}; to take part again it needs an empty data folder, and a ring that lists it as active",
                    config.data_dir.display()
                );
                return End::Removed;
            }
        };
        if end == End::LetGo && R::OUTLIVES_AGENT {
            // It stays in the ring, and is not told that it is to leave by the end of who could tell it: the next agent
            // is there before the others have missed this one.
            ring.shutdown().await;
        } else if !ring.is_empty() {
            let _ = leave.send(());
            if timeout(LEAVE_DEADLINE, ring.join_next()).await.is_err() {
                tracing::warn!("could not leave the ring in {} s", LEAVE_DEADLINE.as_secs());
            }
        }
        end
    };
    Ok(agent.run(ended).await?)
}

/// Works out anew what is wanted each time that the software changes.
async fn follow_software(
    blueprint: Blueprint,
    mut software: watch::Receiver<Software>,
    want: watch::Sender<doing::Wanted>,
) {
    while software.changed().await.is_ok() {
        let wanted = blueprint.wanted(&software.borrow_and_update());
        want.send_replace(wanted);
    }
}

/// What the ring's loop needs, if there is a ring. Checked before anything starts.
fn ring_setup(
    config: &Config,
    folder: &Folder,
    doing: watch::Receiver<Doing>,
    aside: watch::Receiver<Aside>,
    news: watch::Sender<News>,
) -> Result<Option<Setup>, Error> {
    let Some(section) = &config.ring else { return Ok(None) };
    let file = RingFile::load(&config.ring_file)?.ok_or_else(|| Error::NoRingFile(config.ring_file.clone()))?;
    let wrong = |key, reason: &dyn std::fmt::Display| Error::Identity { key, reason: reason.to_string() };
    // The loop reads it again each time that it begins; what is damaged now is so for good.
    Kept::load(&folder.ring_state_file())?;
    Ok(Some(Setup {
        pod_id: config.pod_id.parse().map_err(|err| wrong("pod_id", &err))?,
        secret: file.secret().map_err(|err| wrong("ring_file", &err))?,
        section: section.clone(),
        doing,
        file: folder.ring_state_file(),
        aside,
        news,
    }))
}
