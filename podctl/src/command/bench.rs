//! `podctl bench`: how fast a running server is, over HTTP.

use std::path::PathBuf;

use crate::bench;

/// Measure a running CouchDB-compatible server; one line of JSON for each figure
///
/// Databases are made for the purpose, named `podctl-bench-*`, and deleted at the end.
#[derive(clap::Args)]
pub struct Args {
    /// The server: http://NAME:PASSWORD@HOST:PORT [default: the one of --run-dir]
    #[arg(env = "PODCTL_BENCH_URL", hide_env_values = true)]
    pub url: Option<String>,
    /// Only these figures
    #[arg(long, value_delimiter = ',', value_name = "NAME,...", value_parser = bench::FIGURES)]
    pub only: Vec<String>,
    /// How many documents of 500 bytes to insert, read and list
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    pub docs: u32,
    /// How many continuous listeners, one figure each
    #[arg(long, value_delimiter = ',', default_value = "500,5000", value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub listeners: Vec<u32>,
    /// The server's processes, for processor time and memory
    #[arg(long, value_delimiter = ',', value_name = "PID,...")]
    pub pid: Vec<u32>,
    /// The data folder of `podctl dev`, to find the processes and the administrator in
    #[arg(long, value_name = "DATA")]
    pub run_dir: Option<PathBuf>,
    /// A tenth of the work, to see that it works
    #[arg(long)]
    pub quick: bool,
    /// Measure a server on another machine; the load may well be too much for it
    #[arg(long)]
    pub allow_remote: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(bench::run(&args))
}
