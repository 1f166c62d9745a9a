//! `podctl join`: a further pod of a ring.

use std::path::PathBuf;

use crate::join;
use crate::machine::MachineArgs;

/// Join this machine to a ring, as a further pod. Nothing that is there is overwritten
#[derive(clap::Args)]
pub struct Args {
    /// TOKEN@HOST:PORT or TOKEN@URL of any pod, as `podctl token create` prints it. Without the token in it, that comes
    /// from the variable ADEA_JOIN_TOKEN or from --token-file
    #[arg(value_name = "TOKEN@PLACE", hide_env_values = true)]
    pub place: String,
    /// A file with the token; - is standard input
    #[arg(long)]
    pub token_file: Option<PathBuf>,
    /// Wait until the pod is up and has all that the others have, also where it is started by somebody else
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub machine: MachineArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(join::run(&args))
}
