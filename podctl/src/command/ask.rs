//! What all commands take that ask a pod.

use crate::ring::target::TargetArgs;

/// Which pod to ask, and how to answer.
#[derive(clap::Args)]
pub struct AskArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
