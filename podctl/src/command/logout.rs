//! `podctl logout`: the end of a log-in.

use crate::login;

/// End the log-in of `podctl login`, here and at the ring
#[derive(clap::Args)]
pub struct Args {
    /// Those to all rings
    #[arg(long)]
    pub all: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(login::log_out(&args))
}
