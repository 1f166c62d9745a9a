//! `podctl divergences`: what two pods accepted without knowing of one another.

use crate::ring;
use crate::ring::target::TargetArgs;

/// List the documents that were changed on both sides of a split; exits with 0 when there are none, else with 1
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(ring::divergences::run(&args))
}
