//! `podctl token`: what lets further pods into the ring.

use std::path::PathBuf;

use crate::ring::target::TargetArgs;
use crate::token;

/// Make, list and take back the tokens that let further machines into the ring
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(clap::Subcommand)]
pub enum Command {
    /// Make a token, and print the command for the new machine. Needs the ring's secret, so it is done on a pod's machine
    Create(CreateArgs),
    /// List the tokens by their ids: how many pods each still lets in, until when, and whom it has let in
    List(ListArgs),
    /// Take a token back; pods that it has let in stay
    Revoke(RevokeArgs),
}

#[derive(clap::Args)]
pub struct CreateArgs {
    /// How many machines it lets in
    #[arg(long, default_value_t = 1)]
    pub uses: u32,
    /// How long it holds, such as 30m, 1h or 2d
    #[arg(long, default_value = "1h")]
    pub ttl: String,
    /// The ring's secret and administrator [default: that of the pod on this machine, or of --data]
    #[arg(long)]
    pub ring_file: Option<PathBuf>,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Print one JSON array
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct RevokeArgs {
    /// The token's id, as `list` has it
    pub id: String,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(async {
        match args.command {
            Command::Create(args) => token::create(&args).await,
            Command::List(args) => token::list(&args).await,
            Command::Revoke(args) => token::revoke(&args).await,
        }
    })
}
