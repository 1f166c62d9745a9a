//! `podctl health`: what a container's health check runs.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::lookup_host;
use tokio::time::timeout;

/// Beyond this a program hangs. The engine waits a little longer.
const DEADLINE: Duration = Duration::from_secs(3);

/// Ask a program whether it is well: exits with 0 if it is, with 1 if not
#[derive(clap::Args)]
pub struct Args {
    /// Where to ask, over plain HTTP
    #[arg(long, default_value = "http://127.0.0.1:5984/_up")]
    url: String,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let rest = args.url.strip_prefix("http://").context("--url must start with http://")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    // One thread is enough, and the check costs memory of the container.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ask = async {
        let found = lookup_host(host).await.with_context(|| format!("--url: can't find {host}"))?.next();
        let addr = found.with_context(|| format!("--url: {host} has no address"))?;
        let status = ::adea::health::ask(addr, host, &format!("/{path}")).await;
        status.map_err(|err| anyhow::anyhow!("{host} does not answer: {err}"))
    };
    let asked = runtime.block_on(async { timeout(DEADLINE, ask).await });
    // A name that is being looked up is not waited for.
    runtime.shutdown_background();
    let status = asked.with_context(|| format!("{host} did not answer in {} s", DEADLINE.as_secs()))??;
    if !::adea::health::is_well_by(status) {
        bail!("{host} answers {status}");
    }
    Ok(())
}
