//! `podctl apps`: the apps of the ring.

use super::ask::AskArgs;
use crate::look;

/// List the apps, or show one with its partial databases
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(clap::Subcommand)]
pub enum Command {
    /// List the apps
    List(AskArgs),
    /// Show an app: what is in it, who reads what doesn't say so itself, its largest partial databases
    Show(ShowArgs),
}

#[derive(clap::Args)]
pub struct ShowArgs {
    /// The app's name
    pub app: String,
    #[command(flatten)]
    pub ask: AskArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(look::apps::run(&args))
}
