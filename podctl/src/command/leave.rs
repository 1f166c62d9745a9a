//! `podctl leave`: take this machine's pod out of its ring.

use std::path::PathBuf;

use crate::leave;

/// Take this machine's pod out of its ring for good: it hands over, leaves and stops
#[derive(clap::Args)]
pub struct Args {
    /// The agent's configuration
    #[arg(long, default_value = crate::ring::target::CONFIG, env = "ADEA_CONFIG")]
    pub config: PathBuf,
    /// Delete the pod's data and configuration afterwards
    #[arg(long)]
    pub purge: bool,
    /// Don't ask
    #[arg(long)]
    pub yes: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(leave::run(&args))
}
