//! `podctl maintenance`: databases that nobody gets at for a while, or that nobody reads.

use super::ask::AskArgs;
use crate::look;

/// List the databases in maintenance, close one or open it again
///
/// A rule for an app holds for its partial and personal databases as well. It holds on all pods, for administrators too,
/// and ends open feeds; pods go on replicating.
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
    /// List the databases in maintenance
    List(AskArgs),
    /// Close an app or a database, or let it be written only
    On(OnArgs),
    /// Open an app or a database again
    Off(OffArgs),
}

#[derive(clap::Args)]
pub struct OnArgs {
    /// The app or database
    pub db: String,
    /// Let it be written and not be read, and not closed altogether
    #[arg(long)]
    pub write_only: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(clap::Args)]
pub struct OffArgs {
    /// The app or database
    pub db: String,
    #[command(flatten)]
    pub ask: AskArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(look::maintenance::run(&args))
}
