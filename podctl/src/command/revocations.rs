//! `podctl revocations`: whether those who lost a right have lost it on all pods.

use crate::ring;
use crate::ring::target::TargetArgs;

/// List the moves of documents that some pod has not carried out yet; exits with 0 when there are none, else with 1
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Also those that all pods have carried out, as long as they are kept
    #[arg(long)]
    pub done: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(ring::revocations::run(&args))
}
