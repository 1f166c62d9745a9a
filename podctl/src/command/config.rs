//! `podctl config`: the ring's configuration.

use super::ask::AskArgs;
use crate::config_edit;
use crate::ring::target::TargetArgs;

/// Show or change the ring's configuration, one for all pods. What can't be used is refused before it is sent
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(clap::Subcommand)]
pub enum Command {
    /// Show what is set
    Show(ShowArgs),
    /// Set members, such as write.w=2 or election.prefer='["pod-1"]'; an empty value takes the member away
    Set(SetArgs),
    /// Edit it as JSON with $VISUAL or $EDITOR; what is wrong is said, and can be put right
    Edit(EditArgs),
}

#[derive(clap::Args)]
pub struct ShowArgs {
    /// Also what nobody has set
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(clap::Args)]
pub struct SetArgs {
    /// A member with its sections, and JSON or a text
    #[arg(value_name = "KEY=VALUE", required = true)]
    pub changes: Vec<String>,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(clap::Args)]
pub struct EditArgs {
    /// The editor, in place of $VISUAL or $EDITOR
    #[arg(long)]
    pub editor: Option<String>,
    #[command(flatten)]
    pub target: TargetArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(config_edit::run(&args))
}
