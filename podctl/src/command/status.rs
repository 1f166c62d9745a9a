//! `podctl status`: the ring on one screen.

use super::ask::AskArgs;
use crate::look;

/// Show the ring on one screen: who takes the writes, how each pod is, what is wrong and what to do. Exits with 5 when
/// something is wrong
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub ask: AskArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(look::status::run(&args.ask))
}
