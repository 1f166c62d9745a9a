//! `podctl pods`: the pods of the ring, and what each is to do.

use super::ask::AskArgs;
use crate::look;

/// List the pods, take one out of service or back, or remove it from the ring
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
    /// List the pods
    List(AskArgs),
    /// Let a pod take clients again
    Activate(ChangeArgs),
    /// Let a pod take no clients; it goes on replicating, and takes the writes only while no other pod can
    Deactivate(ChangeArgs),
    /// Take a pod out of the ring for good: it hands over, leaves and stops, and nobody waits for it any more
    Remove(RemoveArgs),
}

#[derive(clap::Args)]
pub struct ChangeArgs {
    /// The pod's id, as `podctl pods` has it
    pub pod: String,
    /// Wait until the pod has done so, for two minutes at the most
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(clap::Args)]
pub struct RemoveArgs {
    /// Don't ask
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub change: ChangeArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(look::pods::run(&args))
}
