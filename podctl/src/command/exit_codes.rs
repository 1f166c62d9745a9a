//! `podctl exit-codes`: what they mean.

use crate::exit;
use crate::look::ask::say;

/// Say what the exit codes mean
#[derive(clap::Args)]
#[command(after_help = exit::MEANINGS)]
pub struct Args {}

pub fn run(_: Args) -> anyhow::Result<()> {
    say(&format!("{}\n", exit::MEANINGS))
}
