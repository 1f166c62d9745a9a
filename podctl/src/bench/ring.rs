//! What a ring adds: how soon all pods show a write, how soon another pod takes the writes after a crash, how fast a pod
//! that was away catches up, and what crosses the links.
//!
//! These figures need `--run-dir` of a `podctl dev` with several pods: pods are killed for them, and start again.

mod links;
pub mod machine;

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::bench::Bench;
use crate::bench::documents::{self, doc_id, document};
use crate::bench::listeners::{ROW_DEADLINE, listen};
use crate::bench::report::{Report, percentile_ms};
use crate::bench::ring::machine::Machine;
use crate::http::{Conn, Peer};

/// A ring has found itself again after this long, or never does.
const RING_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at something that is about to happen.
const POLL: Duration = Duration::from_millis(10);
/// Time for rows that only tell of what has crossed already.
const SETTLE: Duration = Duration::from_secs(2);

/// The figure `ring_latency`: from the moment before a write is sent to the first pod, to the moment when the last of
/// all pods has given its row to a listener.
pub async fn latency(bench: &Bench) -> anyhow::Result<()> {
    let Some(pods) = ring_of(bench, "ring_latency") else { return Ok(()) };
    let n: u32 = if bench.quick { 50 } else { 500 };
    let db = bench.db("ring-latency");
    let mut conn = bench.make_db(&db, "").await?;
    conn.expect(Method::PUT, &format!("/{db}/first"), document(None, 0, "")).await?;
    let (arrived, mut arrivals) = mpsc::channel::<Instant>(pods.len());
    let mut readers = tokio::task::JoinSet::new();
    for pod in pods {
        until(&format!("{db} on {}", pod.url), || has(&pod.peer, &db)).await?;
        let mut rows = listen(&pod.peer, &db).await?;
        timeout(ROW_DEADLINE, rows.next()).await??;
        let arrived = arrived.clone();
        readers.spawn(async move {
            loop {
                rows.next().await?;
                if arrived.send(Instant::now()).await.is_err() {
                    return anyhow::Ok(());
                }
            }
        });
    }
    drop(arrived);
    let mut times: Vec<Duration> = Vec::new();
    let timer = bench.timer();
    for number in 0..n {
        let began = Instant::now();
        conn.expect(Method::PUT, &format!("/{db}/{}", doc_id(number)), document(None, number, "")).await?;
        let mut last = began;
        for _ in pods {
            let at = timeout(ROW_DEADLINE, arrivals.recv()).await.context("a pod did not show a write in time")?;
            last = last.max(at.context("the feeds ended")?);
        }
        times.push(last.duration_since(began));
    }
    let taken = timer.stop();
    readers.shutdown().await;
    let p50_ms = percentile_ms(&mut times, 0.5);
    let by_master = is_master(&bench.peer).await?;
    let line = Report::new("ring_latency", p50_ms, "ms").taken(n.into(), taken).times(&mut times);
    line.with("pods", pods.len()).with("written_at_master", by_master).print();
    Ok(())
}

/// The figure `ring_bytes`: what all links together carry for a change of a document of 500 bytes, and how often its
/// revision is fetched.
pub async fn bytes(bench: &Bench) -> anyhow::Result<()> {
    let Some(pods) = ring_of(bench, "ring_bytes") else { return Ok(()) };
    let n: u32 = if bench.quick { 50 } else { 500 };
    let db = bench.db("ring-bytes");
    let mut conn = bench.make_db(&db, "").await?;
    for pod in pods {
        until(&format!("{db} on {}", pod.url), || has(&pod.peer, &db)).await?;
    }
    sleep(SETTLE).await;
    let before = links::sum(pods).await?;
    for number in 0..n {
        conn.expect(Method::PUT, &format!("/{db}/{}", doc_id(number)), document(None, number, "")).await?;
    }
    for pod in pods {
        until(&format!("all of {db} on {}", pod.url), || counts(&pod.peer, &db, n)).await?;
    }
    sleep(SETTLE).await;
    let after = links::sum(pods).await?;
    let each = |after: u64, before: u64| (after.saturating_sub(before)) as f64 / f64::from(n);
    Report::new("ring_bytes", each(after.bytes, before.bytes), "bytes")
        .with("pods", pods.len())
        .with("links", after.links)
        .with("fetched", each(after.fetched, before.fetched))
        .with("rows", each(after.rows, before.rows))
        .with("changes", n)
        .print();
    Ok(())
}

/// The figure `ring_catch_up`: documents a second that a pod takes up after it was away.
pub async fn catch_up(bench: &Bench) -> anyhow::Result<()> {
    let Some(pods) = ring_of(bench, "ring_catch_up") else { return Ok(()) };
    let docs = bench.docs / 2;
    let db = bench.db("ring-catch-up");
    bench.make_db(&db, "").await?;
    let mut away = None;
    for pod in pods.iter().rev() {
        if !is_master(&pod.peer).await? {
            away = Some(pod);
            break;
        }
    }
    let away = away.context("all pods are masters")?;
    let here = pods.iter().find(|pod| pod.url != away.url).context("no other pod")?;
    until(&format!("{db} on {}", away.url), || has(&away.peer, &db)).await?;
    let down = away.take_down()?;
    documents::insert(&here.peer, &db, docs, |_| String::new()).await?;
    down.let_up();
    // It may have taken up some before it answers: only what comes after that is timed.
    let mut first = 0;
    until(&format!("{} to be up", away.url), async || {
        let info = asked(&away.peer, &format!("/{db}")).await;
        first = info.as_ref().and_then(|info| info["doc_count"].as_u64()).unwrap_or(0);
        info.is_some()
    })
    .await?;
    let timer = bench.timer_of_living();
    until(&format!("all of {db} on {}", away.url), || counts(&away.peer, &db, docs)).await?;
    let rest = u64::from(docs).saturating_sub(first);
    Report::rate("ring_catch_up", rest, timer.stop()).with("pods", pods.len()).with("docs", docs).print();
    Ok(())
}

/// The figure `ring_fail_over`: from the end of the write master's processes to the first write that is done by another.
pub async fn fail_over(bench: &Bench) -> anyhow::Result<()> {
    let Some(pods) = ring_of(bench, "ring_fail_over") else { return Ok(()) };
    let rounds: u32 = if bench.quick { 1 } else { 5 };
    let db = bench.db("ring-fail-over");
    bench.make_db(&db, "").await?;
    let mut times: Vec<Duration> = Vec::new();
    for round in 0..rounds {
        let (master, other) = master_and_other(pods).await?;
        until(&format!("{db} on {}", other.url), || has(&other.peer, &db)).await?;
        let mut conn = other.peer.connect().await?;
        conn.expect(Method::GET, "/", "").await?;
        let down = master.take_down()?;
        let began = Instant::now();
        let path = format!("/{db}/{}", doc_id(round));
        until("a new write master", async || written(&mut conn, &path, round).await).await?;
        times.push(began.elapsed());
        down.let_up();
        until(&format!("{} to be back", master.url), || is_back(&master.peer)).await?;
        sleep(SETTLE).await;
    }
    let slowest = times.iter().max().copied().unwrap_or_default();
    let p50_ms = percentile_ms(&mut times, 0.5);
    let line = Report::new("ring_fail_over", p50_ms, "ms").with("slowest_ms", slowest.as_secs_f64() * 1e3);
    line.with("pods", pods.len()).with("rounds", rounds).print();
    Ok(())
}

/// The pods, where there are several.
fn ring_of<'a>(bench: &'a Bench, figure: &str) -> Option<&'a [Machine]> {
    if bench.machines.len() < 2 {
        Report::skipped(figure, "this needs --run-dir of `podctl dev --pods N`, with N of 2 or more");
        return None;
    }
    Some(&bench.machines)
}

/// Waits until something is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
    let began = Instant::now();
    while !is_so().await {
        if began.elapsed() > RING_DEADLINE {
            bail!("waited {} s in vain for {what}", RING_DEADLINE.as_secs());
        }
        sleep(POLL).await;
    }
    Ok(())
}

async fn asked(peer: &Peer, path: &str) -> Option<Value> {
    let mut conn = peer.connect().await.ok()?;
    conn.expect(Method::GET, path, "").await.ok()
}

async fn has(peer: &Peer, db: &str) -> bool {
    asked(peer, &format!("/{db}")).await.is_some()
}

async fn counts(peer: &Peer, db: &str, docs: u32) -> bool {
    asked(peer, &format!("/{db}")).await.is_some_and(|info| info["doc_count"].as_u64() >= Some(docs.into()))
}

/// Whether the pod is one of the ring again.
async fn is_back(peer: &Peer) -> bool {
    asked(peer, "/").await.is_some_and(|root| root["adea"]["master"].is_object())
}

async fn is_master(peer: &Peer) -> anyhow::Result<bool> {
    let root = peer.connect().await?.expect(Method::GET, "/", "").await?;
    Ok(root["adea"]["role"] == "master")
}

async fn master_and_other(pods: &[Machine]) -> anyhow::Result<(&Machine, &Machine)> {
    let began = Instant::now();
    loop {
        for pod in pods {
            if is_master(&pod.peer).await? {
                let other = pods.iter().find(|other| other.url != pod.url).context("no other pod")?;
                return Ok((pod, other));
            }
        }
        if began.elapsed() > RING_DEADLINE {
            bail!("no pod takes the writes");
        }
        sleep(POLL).await;
    }
}

async fn written(conn: &mut Conn, path: &str, number: u32) -> bool {
    let put = conn.send(Method::PUT, path, document(None, number, "")).await;
    // A conflict: an earlier attempt was done, though nobody could say so.
    put.is_ok_and(|(status, _)| status.is_success() || status == StatusCode::CONFLICT)
}
