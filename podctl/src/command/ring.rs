//! `podctl ring`: the ring as its pods know it, and its keys.

use std::path::PathBuf;

use crate::ring;
use crate::ring::target::TargetArgs;

/// Look at a running ring, and change its keys
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(clap::Subcommand)]
pub enum Command {
    /// List the pods: who takes the writes, who is away, who lags behind. Exits with 0 when all pods are there and agree
    /// on a write master, else with 1
    Status(StatusArgs),
    /// The keys that gossip is sealed with. To rotate: add, use, remove, each when all pods have the last step
    #[command(subcommand)]
    Key(KeyCommand),
}

#[derive(clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Subcommand)]
pub enum KeyCommand {
    /// List the keys by their ids
    List(KeyArgs),
    /// Make a new key, which all pods will accept. Exits with 1 when there is no room for it
    Add(KeyArgs),
    /// Seal with a key from now on. Exits with 1 when there is no such key, or a pod is away
    Use(ChosenKey),
    /// Accept a key no longer. Exits with 1 when it is in use or there is none such, or a pod is away
    Remove(ChosenKey),
}

#[derive(clap::Args)]
pub struct KeyArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// The ring's secret and administrator [default: that of the pod on this machine, or of --data]
    #[arg(long)]
    pub ring_file: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct ChosenKey {
    /// The key's id, as `list` has it
    pub id: String,
    /// Also when a pod is away: it may not find back to the ring by itself then
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub common: KeyArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(async {
        match args.command {
            Command::Status(args) => ring::status::run(&args).await,
            Command::Key(command) => ring::keys::run(&command).await,
        }
    })
}
