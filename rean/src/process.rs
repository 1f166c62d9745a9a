//! rean as a process of its own: logging, the runtime, and when to stop.

use std::path::Path;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, ConfigError};
use crate::server::{self, RunError};

/// How often the parent is looked for; a child that outlives it for this long does no harm.
const PARENT_CHECK: Duration = Duration::from_millis(500);

/// Why the process ended with a fault.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The configuration isn't one.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// There is no runtime or no signal handler.
    #[error("starting the process: {0}")]
    Start(#[from] std::io::Error),
    /// Serving failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Reads the configuration and serves until SIGINT or SIGTERM, or until the parent process has ended if that is
/// wanted. Logs go to standard error; `RUST_LOG` chooses what (default `info`).
///
/// # Errors
/// When the configuration is bad or the server does not come up.
pub fn main(config: &Path, exit_with_parent: bool) -> Result<(), ProcessError> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // A program that embeds this one may have set up logging before.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    let config = Config::load(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = parent_gone(), if exit_with_parent => {
                    tracing::warn!("the parent process has ended");
                }
            }
        };
        Ok(server::run(config, stop).await?)
    })
}

/// Resolves when this process has been given to another parent: its own has ended.
async fn parent_gone() {
    let parent = std::os::unix::process::parent_id();
    loop {
        tokio::time::sleep(PARENT_CHECK).await;
        if std::os::unix::process::parent_id() != parent {
            return;
        }
    }
}
