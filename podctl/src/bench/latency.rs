//! From a write to a listener on a continuous feed.

use std::time::{Duration, Instant};

use http::Method;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::bench::Bench;
use crate::bench::documents::{doc_id, document};
use crate::bench::listeners::{ROW_DEADLINE, Rows, listen};
use crate::bench::report::Report;

/// The figure `latency`: from the moment before a write is sent to the moment its row is read.
pub async fn measure(bench: &Bench) -> anyhow::Result<()> {
    let n: u32 = if bench.quick { 50 } else { 500 };
    let db = bench.db("latency");
    let mut conn = bench.make_db(&db, "").await?;
    conn.expect(Method::PUT, &format!("/{db}/first"), document(None, 0, "")).await?;
    let mut rows: Rows = listen(&bench.peer, &db).await?;
    timeout(ROW_DEADLINE, rows.next()).await??;
    // At most one row is on its way.
    let (arrived, mut arrivals) = mpsc::channel::<Instant>(1);
    let reader = tokio::spawn(async move {
        loop {
            rows.next().await?;
            if arrived.send(Instant::now()).await.is_err() {
                return anyhow::Ok(());
            }
        }
    });
    let mut times: Vec<Duration> = Vec::new();
    let timer = bench.timer();
    for number in 0..n {
        let path = format!("/{db}/{}", doc_id(number));
        let began = Instant::now();
        conn.expect(Method::PUT, &path, document(None, number, "")).await?;
        let Some(at) = timeout(ROW_DEADLINE, arrivals.recv()).await? else {
            break;
        };
        times.push(at.duration_since(began));
    }
    let taken = timer.stop();
    if times.len() < n as usize {
        reader.await??;
        anyhow::bail!("the feed ended");
    }
    reader.abort();
    let p50_ms = crate::bench::report::percentile_ms(&mut times, 0.5);
    Report::new("latency", p50_ms, "ms").taken(n.into(), taken).times(&mut times).print();
    Ok(())
}
