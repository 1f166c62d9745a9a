//! `podctl proxy`: the public port of a pod.

use std::net::SocketAddr;
use std::path::PathBuf;

use adea_ring::public_tls::PublicTls;
use anyhow::Context;

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
    /// Where the database server listens: HOST:PORT, a name is looked up at each connection
    #[arg(long, value_name = "HOST:PORT")]
    pub upstream: ::proxy::HostPort,
    /// Speak TLS: {"files": {"certificate": FILE, "key": FILE}}, {"acme": {"domains": [NAME], "cache": FOLDER}} or
    /// {"ring": {"names": [NAME]}}, as `proxy.tls` in the agent's configuration; or a file with that
    #[arg(long, value_name = "JSON|FILE")]
    pub tls: Option<String>,
    /// Send who comes here with plain HTTP on to https
    #[arg(long, value_name = "ADDRESS", requires = "tls")]
    pub redirect: Option<SocketAddr>,
    /// The public port as clients see it, if it is another one
    #[arg(long, value_name = "PORT")]
    pub public_port: Option<u16>,
    /// Tell browsers to use nothing but https for this host, for so many seconds
    #[arg(long, value_name = "SECONDS", requires = "tls")]
    pub hsts_s: Option<u64>,
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

impl Args {
    /// What `--tls` says.
    pub fn public_tls(&self) -> anyhow::Result<Option<PublicTls>> {
        let Some(text) = &self.tls else { return Ok(None) };
        let is_json = text.trim_start().starts_with(['{', '"']);
        let read = || std::fs::read_to_string(text).with_context(|| format!("--tls: can't read {text}"));
        let json = if is_json { text.clone() } else { read()? };
        Ok(Some(serde_json::from_str(&json).context("--tls")?))
    }
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
