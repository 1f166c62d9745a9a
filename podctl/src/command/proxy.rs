//! `podctl proxy`: the public port of a pod.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::programs;

/// Run the public port of a pod
#[derive(clap::Args)]
pub struct Args {
    /// The ring's secret and administrator
    #[arg(long)]
    pub ring_file: PathBuf,
    /// The public address
    #[arg(long)]
    pub listen: SocketAddr,
    /// Where the database server listens
    #[arg(long)]
    pub upstream: SocketAddr,
    /// Log a line for each request
    #[arg(long)]
    pub access_log: bool,
    /// Give CouchDB's cookie at log-in
    #[arg(long)]
    pub couch_cookie: bool,
    /// Stop when standard input ends
    #[arg(long)]
    pub exit_with_parent: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("info");
    ::adea::limits::raise_open_files();
    super::block_on(async {
        let stop = ::adea::stop::requested(args.exit_with_parent)?;
        programs::proxy(&args, async {
            tracing::info!("stopping: {}", stop.await);
        })
        .await
    })
}
