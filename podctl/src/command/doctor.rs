//! `podctl doctor`: common faults, found and explained.

use super::ask::AskArgs;
use crate::doctor;

/// Look for common faults of the ring and of this machine: clocks, ports, certificates, disk, Docker, rights, versions.
/// Exits with 5 when something is wrong
#[derive(clap::Args)]
pub struct Args {
    /// Also say what is well
    #[arg(long, short)]
    pub verbose: bool,
    /// Don't look at this machine, only at the ring
    #[arg(long)]
    pub ring_only: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("off");
    super::block_on(doctor::run(&args))
}
