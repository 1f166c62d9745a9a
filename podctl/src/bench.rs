//! Measures a server over HTTP, as its clients see it, and what its processes spend on it.
//!
//! Each figure is a line of JSON: `figure`, `value`, `unit`, `n` (operations), `wall_ms`, and where it makes sense
//! `cpu_us_per_op` (processor time of the given processes, user and system), `p50_ms`, `p99_ms`. A figure that can't
//! be had is a line with `skipped` or `error`. The client runs on the same machine, so figures by the clock are
//! lower than what the server alone could do; those by processor time are not.
//!
//! All figures work on databases of their own, which are deleted at the end, also after a failure.

mod documents;
mod latency;
mod listeners;
mod partition;
mod process;
mod queries;
mod report;
mod ring;

use anyhow::{Context, bail};
use http::Method;
use serde_json::Value;

use crate::bench::process::Processes;
use crate::bench::report::{Report, Timer};
use crate::bench::ring::machine::Machine;
use crate::command::bench::Args;
use crate::http::{Conn, Peer};
use crate::running::Running;

/// The figures, in the order in which they are taken.
pub const FIGURES: [&str; 19] = [
    "bulk",
    "disk",
    "changes",
    "all_docs",
    "get_32",
    "put_32",
    "filter",
    "find",
    "view",
    "validate",
    "feeds",
    "latency",
    "listeners",
    "partition",
    "repartition",
    "ring_latency",
    "ring_bytes",
    "ring_catch_up",
    "ring_fail_over",
];

/// What every figure needs.
pub struct Bench {
    peer: Peer,
    processes: Processes,
    /// The pods on this machine, where they are known.
    machines: Vec<Machine>,
    /// Documents to insert.
    docs: u32,
    listeners: Vec<u32>,
    only: Vec<String>,
    quick: bool,
    /// Part of the databases' names, so that two runs don't meet.
    run: String,
}

/// Measures what was asked for.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let bench = Bench::new(args).await?;
    let mut conn = bench.peer.connect().await?;
    let root = conn.expect(Method::GET, "/", "").await?;
    Report::about(&root, &bench.processes);
    let stop = adea::stop::requested(false)?;
    let measured = tokio::select! {
        measured = bench.measure() => measured,
        why = stop => Err(anyhow::anyhow!("stopped: {why}")),
    };
    let cleaned = bench.clean_up().await;
    measured.and(cleaned)
}

impl Bench {
    async fn new(args: &Args) -> anyhow::Result<Self> {
        let running = args.run_dir.as_deref().map(Running::load).transpose()?;
        let mut peer = match (&args.url, &running) {
            (Some(url), _) => Peer::parse(url)?,
            // Loading finds at least one.
            (None, Some(Running { pods, .. })) => Peer::parse(&pods.first().context("nothing runs there")?.url)?,
            (None, None) => bail!("give a URL, or --run-dir DATA of a running `podctl dev`"),
        };
        if let (false, Some(running)) = (peer.has_login(), &running) {
            peer = peer.with_login(&running.name, &running.password)?;
        }
        if !args.allow_remote && !peer.is_loopback().await? {
            bail!(
                "that server is not on this machine: the load may be too much for it (--allow-remote if you mean it)"
            );
        }
        let mut pids = args.pid.clone();
        pids.extend(running.iter().flat_map(|running| &running.pods).flat_map(|pod| &pod.pids));
        Ok(Self {
            peer,
            processes: Processes::new(pids)?,
            machines: machines(args, running.as_ref())?,
            docs: if args.quick { args.docs / 10 } else { args.docs },
            listeners: args.listeners.clone(),
            only: args.only.clone(),
            quick: args.quick,
            run: format!("{:06x}", rand::random::<u32>() & 0xff_ffff),
        })
    }

    async fn measure(&self) -> anyhow::Result<()> {
        let bulk_needed = ["bulk", "disk", "changes", "all_docs", "get_32", "filter", "find", "view"];
        if bulk_needed.iter().any(|figure| self.wants(figure)) {
            documents::bulk(self).await.context("bulk")?;
        }
        for figure in FIGURES.into_iter().filter(|figure| self.wants(figure)) {
            let measured = match figure {
                "bulk" => Ok(()),
                "disk" => documents::disk(self).await,
                "changes" => documents::changes(self).await,
                "all_docs" => documents::all_docs(self).await,
                "get_32" => documents::get(self).await,
                "put_32" => documents::put(self).await,
                "filter" => queries::filter(self).await,
                "find" => queries::find(self).await,
                "view" => queries::view(self).await,
                "validate" => queries::validate(self).await,
                "feeds" => queries::feeds(self).await,
                "latency" => latency::measure(self).await,
                "listeners" => listeners::measure(self).await,
                "partition" => partition::insert(self).await,
                "repartition" => partition::change_rules(self).await,
                "ring_latency" => ring::latency(self).await,
                "ring_bytes" => ring::bytes(self).await,
                "ring_catch_up" => ring::catch_up(self).await,
                "ring_fail_over" => ring::fail_over(self).await,
                other => bail!("no figure {other}"),
            };
            if let Err(err) = measured {
                Report::error(figure, &err);
            }
        }
        Ok(())
    }

    fn wants(&self, figure: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == figure)
    }

    fn timer(&self) -> Timer<'_> {
        Timer::start(&self.processes)
    }

    /// A timer by the clock alone, for when processes come and go.
    fn timer_of_living(&self) -> Timer<'static> {
        static NONE: Processes = Processes::none();
        Timer::start(&NONE)
    }

    /// The name of a database of this run.
    fn db(&self, name: &str) -> String {
        format!("podctl-bench-{}-{name}", self.run)
    }

    /// Makes a database and gives a connection to its server.
    async fn make_db(&self, db: &str, query: &str) -> anyhow::Result<Conn> {
        let mut conn = self.peer.connect().await?;
        conn.expect(Method::PUT, &format!("/{db}{query}"), "").await?;
        Ok(conn)
    }

    /// Deletes this run's databases.
    async fn clean_up(&self) -> anyhow::Result<()> {
        let mut conn = self.peer.connect().await?;
        let all = conn.expect(Method::GET, "/_all_dbs", "").await?;
        let prefix = self.db("");
        let ours = all.as_array().into_iter().flatten().filter_map(Value::as_str);
        // Partial databases go with their aggregate.
        for db in ours.filter(|db| db.starts_with(&prefix) && !db[prefix.len()..].contains("--")) {
            let (status, _) = conn.send(Method::DELETE, &format!("/{db}"), "").await?;
            if !status.is_success() {
                bail!("can't delete {db}: {status}");
            }
        }
        Ok(())
    }
}

/// The pods of `--run-dir`.
fn machines(args: &Args, running: Option<&Running>) -> anyhow::Result<Vec<Machine>> {
    let (Some(root), Some(running)) = (&args.run_dir, running) else { return Ok(Vec::new()) };
    let places = crate::dev::pods::places(root);
    let loaded = places.iter().filter_map(|place| Machine::load(place, &running.name, &running.password).transpose());
    loaded.collect()
}
