//! `podctl rean`: the database server.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::programs;

/// Run the database server of a pod
#[derive(clap::Args)]
pub struct Args {
    /// The ring's secret and administrator
    #[arg(long)]
    pub ring_file: PathBuf,
    /// Where the store is
    #[arg(long)]
    pub data: PathBuf,
    /// Where to listen
    #[arg(long)]
    pub listen: SocketAddr,
    /// Where the other pods of the ring reach this one; without it the pod is alone
    #[arg(long)]
    pub ring_listen: Option<SocketAddr>,
    /// Where the pod's programs log to; administrators may read it there
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,
    /// Listen beyond loopback: only in a network that nothing but this pod's own proxy and agent can reach
    #[arg(long)]
    pub private_network: bool,
    /// The storage engine
    #[arg(long, default_value = "fjall")]
    pub engine: String,
    /// Stop when standard input ends
    #[arg(long)]
    pub exit_with_parent: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("info");
    ::adea::limits::raise_open_files();
    super::block_on(async {
        let stop = ::adea::stop::requested(args.exit_with_parent)?;
        programs::rean(&args, async {
            tracing::info!("stopping: {}", stop.await);
        })
        .await
    })
}
