//! `podctl init`: the first pod of a ring.

use std::path::PathBuf;

use crate::init;
use crate::machine::MachineArgs;

/// Make a new ring, whose first pod is on this machine. Nothing that is there is overwritten
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The administrator's name
    #[arg(long, default_value = "admin")]
    pub admin: String,
    /// A file with the administrator's password [default: the variable ADEA_PASSWORD, or one that is made up and shown once]
    #[arg(long)]
    pub admin_password_file: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(init::run(&args))
}
