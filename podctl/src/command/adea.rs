//! `podctl adea`: the agent of a machine.

use std::path::PathBuf;

/// Run the agent: it starts and watches a pod's programs
#[derive(clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long)]
    config: PathBuf,
    /// Stop when standard input ends
    #[arg(long)]
    exit_with_parent: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("info");
    let config = ::adea::Config::load(&args.config)?;
    super::block_on(async {
        let stop = ::adea::stop::requested(args.exit_with_parent)?;
        ::adea::run(config, async {
            tracing::info!("stopping: {}", stop.await);
        })
        .await?;
        Ok(())
    })
}
