//! Many listeners on one write, and what they cost while nothing happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::bench::Bench;
use crate::bench::documents::{doc_id, document};
use crate::bench::report::{Report, percentile_ms};
use crate::http::{Conn, Peer};

/// A row that takes longer than this will not come.
pub const ROW_DEADLINE: Duration = Duration::from_secs(60);
/// Connections that are being opened at once; more would overflow a server's queue of new ones.
const OPENING: usize = 64;
/// Time for memory that only the opening needed to be given back.
const SETTLE: Duration = Duration::from_secs(3);
/// Files that a client needs besides its listeners' connections.
const OTHER_FILES: u64 = 200;

/// The rows of a continuous feed.
pub struct Rows {
    body: Incoming,
    /// Whether the line so far has anything but white space: heartbeats are empty lines.
    in_row: bool,
    /// Rows that have been read but not yet asked for.
    ready: u32,
    /// The connection lives as long as its rows are wanted.
    _conn: Conn,
}

/// Follows a database from its beginning.
pub async fn listen(peer: &Peer, db: &str) -> anyhow::Result<Rows> {
    let mut conn = peer.connect().await?;
    let path = format!("/{db}/_changes?feed=continuous&since=0&heartbeat=30000");
    let response = conn.open(Method::GET, &path, "").await?;
    if !response.status().is_success() {
        bail!("{path}: {}", response.status());
    }
    Ok(Rows { body: response.into_body(), in_row: false, ready: 0, _conn: conn })
}

impl Rows {
    /// Waits for a row.
    pub async fn next(&mut self) -> anyhow::Result<()> {
        while self.ready == 0 {
            let frame = self.body.frame().await.context("the feed ended")??;
            for byte in frame.data_ref().into_iter().flatten() {
                match byte {
                    b'\n' if self.in_row => {
                        self.in_row = false;
                        self.ready += 1;
                    }
                    byte if byte.is_ascii_whitespace() => {}
                    _ => self.in_row = true,
                }
            }
        }
        self.ready -= 1;
        Ok(())
    }
}

/// Rows that all listeners together have read.
#[derive(Default)]
struct Tally {
    rows: AtomicU64,
    changed: Notify,
}

/// The figures `listeners_N` and `listener_memory_N`.
pub async fn measure(bench: &Bench) -> anyhow::Result<()> {
    let files = adea::limits::raise_open_files();
    for count in &bench.listeners {
        let figure = format!("listeners_{count}");
        if u64::from(*count) + OTHER_FILES > files {
            Report::skipped(&figure, &format!("only {files} open files are allowed (ulimit -n)"));
            continue;
        }
        if let Err(err) = crowd(bench, *count, &figure).await {
            Report::error(&figure, &err);
        }
    }
    Ok(())
}

async fn crowd(bench: &Bench, count: u32, figure: &str) -> anyhow::Result<()> {
    let rounds: u32 = if bench.quick { 3 } else { 10 };
    let db = bench.db(figure);
    let mut writer = bench.make_db(&db, "").await?;
    writer.expect(Method::PUT, &format!("/{db}/first"), document(None, 0, "")).await?;
    let before_bytes = bench.processes.rss_bytes();
    let tally = Arc::new(Tally::default());
    let mut listeners = gather(&bench.peer, &db, count, &tally).await?;
    let mut expected = u64::from(count);
    // Each reads the first document: then it listens for certain.
    wait_for(&tally, expected, &mut listeners).await?;
    sleep(SETTLE).await;
    if let Some((after, before)) = bench.processes.rss_bytes().zip(before_bytes) {
        let each = after.saturating_sub(before) as f64 / f64::from(count);
        Report::new(&format!("listener_memory_{count}"), each / 1024.0, "KiB").with("n", count).print();
    }
    let mut times = Vec::new();
    let timer = bench.timer();
    for round in 0..rounds {
        let path = format!("/{db}/{}", doc_id(round));
        expected += u64::from(count);
        let began = Instant::now();
        let write = writer.expect(Method::PUT, &path, document(None, round, ""));
        let (written, seen) = tokio::join!(write, wait_for(&tally, expected, &mut listeners));
        written?;
        times.push(seen?.duration_since(began));
    }
    let taken = timer.stop();
    let p50_ms = percentile_ms(&mut times, 0.5);
    let rows = u64::from(count) * u64::from(rounds);
    Report::new(figure, p50_ms, "ms")
        .taken(rows, taken)
        .times(&mut times)
        .with("listeners", count)
        .with("writes", rounds)
        .print();
    listeners.shutdown().await;
    Ok(())
}

/// Opens `count` listeners that count their rows.
async fn gather(peer: &Peer, db: &str, count: u32, tally: &Arc<Tally>) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let opening = Arc::new(Semaphore::new(OPENING));
    let mut listeners = JoinSet::new();
    for _ in 0..count {
        let (peer, db) = (peer.clone(), db.to_owned());
        let (tally, opening) = (Arc::clone(tally), Arc::clone(&opening));
        listeners.spawn(async move {
            let turn = opening.acquire().await?;
            let mut rows = listen(&peer, &db).await?;
            drop(turn);
            loop {
                rows.next().await?;
                tally.rows.fetch_add(1, Ordering::AcqRel);
                tally.changed.notify_one();
            }
        });
    }
    Ok(listeners)
}

/// Waits until all listeners together have read so many rows; gives the moment of the last.
async fn wait_for(
    tally: &Tally,
    expected: u64,
    listeners: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<Instant> {
    let all_read = async {
        while tally.rows.load(Ordering::Acquire) < expected {
            tokio::select! {
                () = tally.changed.notified() => {}
                // A listener only ends by failing.
                Some(ended) = listeners.join_next() => {
                    ended.context("a listener failed")??;
                }
            }
        }
        anyhow::Ok(Instant::now())
    };
    timeout(ROW_DEADLINE, all_read).await.with_context(|| {
        let rows = tally.rows.load(Ordering::Acquire);
        format!("{rows} rows of {expected} after {} s", ROW_DEADLINE.as_secs())
    })?
}
