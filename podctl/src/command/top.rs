//! `podctl top`: how busy the pods are.

use super::ask::AskArgs;
use crate::look;

/// Watch how busy the pods are; q ends it. With --json, or where there is no terminal, a line of JSON each time
#[derive(clap::Args)]
pub struct Args {
    /// End after so many looks
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub times: Option<u64>,
    /// Seconds between two looks
    #[arg(long = "every", value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub every_s: u64,
    #[command(flatten)]
    pub ask: AskArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("off");
    super::block_on(look::top::run(&args))
}
