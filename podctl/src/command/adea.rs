//! `podctl adea`: the agent of a machine.

use std::path::PathBuf;

use ::adea::folder::Folder;
use ::adea::stop::End;
use anyhow::Context;

/// Run the agent: it starts and watches a pod's programs
#[derive(clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long)]
    config: PathBuf,
    /// Stop when standard input ends
    #[arg(long)]
    exit_with_parent: bool,
    /// Only see whether the configuration can be used
    #[arg(long)]
    check: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("info");
    if !args.check {
        ::adea::upgrade::successor::hand_over(&args.config);
    }
    let config = ::adea::Config::load(&args.config)?;
    if args.check {
        return Ok(());
    }
    let folder = Folder::new(&config.data_dir)?;
    let end = super::block_on(async {
        let stop = ::adea::stop::of_agent(args.exit_with_parent)?;
        Ok(::adea::run(config, stop).await?)
    })?;
    match end {
        End::Stop | End::Removed => Ok(()),
        End::LetGo => Err(::adea::upgrade::successor::begin_anew(&folder)).context("can't begin anew"),
    }
}
