//! The agent as a program of its own. `podctl adea` is the same.

use std::path::PathBuf;

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
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    adea::logging::init("info");
    let mut config = adea::Config::load(&args.config)?;
    if config.program.is_none() {
        // This program can't be rean or proxy; podctl, its neighbour, can.
        let exe = adea::process::this_program().context("can't find the running program")?;
        config.program = Some(exe.with_file_name("podctl"));
    }
    let runtime = tokio::runtime::Runtime::new().context("can't start the runtime")?;
    runtime.block_on(async {
        let stop = adea::stop::requested(args.exit_with_parent)?;
        adea::run(config, async {
            tracing::info!("stopping: {}", stop.await);
        })
        .await?;
        anyhow::Ok(())
    })
}
