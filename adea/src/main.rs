//! The agent as a program of its own. `podctl adea` is the same.

use std::path::PathBuf;

use adea::folder::Folder;
use adea::stop::End;
use anyhow::Context;
use clap::Parser;

/// Runs and watches a pod's programs.
#[derive(Parser)]
#[command(version, about)]
struct Args {
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

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    adea::logging::init("info");
    if !args.check {
        adea::upgrade::successor::hand_over(&args.config);
    }
    let mut config = adea::Config::load(&args.config)?;
    if config.program.is_none() {
        // This program can't be rean or proxy; podctl, its neighbour, can.
        let exe = adea::process::this_program().context("can't find the running program")?;
        config.program = Some(exe.with_file_name("podctl"));
    }
    if args.check {
        return Ok(());
    }
    let runtime = tokio::runtime::Runtime::new().context("can't start the runtime")?;
    let folder = Folder::new(&config.data_dir)?;
    let end = runtime.block_on(async {
        let stop = adea::stop::of_agent(args.exit_with_parent)?;
        anyhow::Ok(adea::run(config, stop).await?)
    })?;
    drop(runtime);
    match end {
        End::Stop | End::Removed => Ok(()),
        End::LetGo => Err(adea::upgrade::successor::begin_anew(&folder)).context("can't begin anew"),
    }
}
