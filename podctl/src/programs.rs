//! From the command line and the ring file to the servers' own configuration.

use std::future::Future;
use std::path::Path;

use adea::ring_file::RingFile;
use adea_ring::RingSecret;
use anyhow::Context;

use crate::command;

/// Runs the database server until `stop` resolves and it has closed its store.
pub async fn rean(args: &command::rean::Args, stop: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
    let (file, ring_secret) = ring(&args.ring_file)?;
    let config = rean::Config {
        listen: args.listen,
        data_dir: args.data.clone(),
        engine: args.engine.parse().context("--engine")?,
        ring_secret,
        limits: rean::Limits::default(),
        pod_id: file.pod_id.parse().context("the ring file's `pod_id`")?,
        ring_listen: args.ring_listen,
        logs_dir: args.logs.clone(),
    };
    if !config.listen.ip().is_loopback() && !args.private_network {
        anyhow::bail!(
            "--listen: rean listens on loopback only, as the proxy is the public port; in a container whose network only \
             the pod's own proxy and agent can reach, add --private-network"
        );
    }
    rean::run(config, stop).await.context("rean")
}

/// Runs the public port until `stop` resolves and its requests are answered.
pub async fn proxy(args: &command::proxy::Args, stop: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
    let (file, ring_secret) = ring(&args.ring_file)?;
    let mut config = proxy::Config::new(args.listen, args.upstream.clone(), ring_secret);
    config.pod_id = Some(file.pod_id.parse().context("the ring file's `pod_id`")?);
    config.admin = Some(proxy::Admin { name: file.admin.name, hash: file.admin.password_hash });
    config.cookie = args.couch_cookie;
    config.tls = args.public_tls()?;
    (config.redirect, config.public_port, config.hsts_s) = (args.redirect, args.public_port, args.hsts_s);
    if args.access_log {
        config.access_log = proxy::AccessLogTarget::Log;
    }
    proxy::run(config, stop).await.context("proxy")
}

fn ring(path: &Path) -> anyhow::Result<(RingFile, RingSecret)> {
    let file = RingFile::load(path)?.with_context(|| format!("no ring file {}", path.display()))?;
    let secret = file.secret().context("the ring's secret")?;
    Ok((file, secret))
}
