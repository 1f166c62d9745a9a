//! `podctl login`: for the commands that follow.

use std::path::PathBuf;

use crate::login;

/// Log in to a ring, so that the commands that follow know whom to ask and as whom
#[derive(clap::Args)]
pub struct Args {
    /// Any pod's public URL, such as https://pod-1.example.org
    pub url: String,
    /// The account
    #[arg(long, default_value = "admin")]
    pub user: String,
    /// A file with the password [default: the variable ADEA_PASSWORD, or what is typed at the prompt]
    #[arg(long)]
    pub password_file: Option<PathBuf>,
    /// The certificate of the authority that signs the pods' own (PEM); it is kept, and no other counts for this ring
    #[arg(long)]
    pub ca: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(login::run(&args))
}
