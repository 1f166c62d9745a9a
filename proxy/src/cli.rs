//! The command line, for `proxy` and for `podctl proxy`.

use std::path::PathBuf;

use crate::config::{AccessLogTarget, Config, ConfigError};
use crate::server::RunError;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file (JSON)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Write an access log to this file, or to the program's log with `log`; stands before the configuration
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<String>,
}

/// Why the program ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is bad.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The runtime or the signal handlers can't be started.
    #[error("can't start: {0}")]
    Start(#[from] std::io::Error),
    /// It does not run.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Runs the proxy in a runtime of its own until SIGTERM or Ctrl-C. The caller has set up logging.
///
/// # Errors
/// When the configuration is bad or the port can't be had.
pub fn main(args: Args) -> Result<(), Error> {
    let mut config = Config::from_file(&args.config)?;
    if let Some(target) = args.access_log {
        config.access_log = match target.as_str() {
            "off" => AccessLogTarget::Off,
            "log" => AccessLogTarget::Log,
            file => AccessLogTarget::File(file.into()),
        };
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        };
        Ok(crate::run(config, shutdown).await?)
    })
}
