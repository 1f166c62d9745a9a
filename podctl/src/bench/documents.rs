//! Documents in and out: bulk, single, and as whole feeds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http::Method;
use http_body_util::BodyExt;
use memchr::memmem::Finder;
use tokio::task::JoinSet;

use crate::bench::Bench;
use crate::bench::report::Report;
use crate::http::{Peer, excerpt};

/// Documents in a bulk request.
const BATCH: u32 = 1_000;
/// Connections for bulk inserts: with two cores, more only queue.
const BULK_CONNECTIONS: u32 = 4;
/// Connections for single requests.
const CONNECTIONS: u32 = 32;
/// Bytes of a document.
const DOC_BYTES: usize = 500;

/// A document of 500 bytes, with its id or without, and with a member of one's own, such as `"access":{...}`.
pub fn document(id: Option<&str>, number: u32, member: &str) -> String {
    let id = id.map_or(String::new(), |id| format!(r#""_id":"{id}","#));
    let comma = if member.is_empty() { "" } else { "," };
    let mut text = format!(r#"{{{id}"n":{number}{comma}{member},"text":""#);
    let fill = DOC_BYTES.saturating_sub(text.len() + 2);
    // Words of varying letters: neither all alike, which compresses to nothing, nor random, which doesn't at all.
    let mut letter = number;
    for place in 0..fill {
        letter = letter.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let char = if place % 7 == 6 { b' ' } else { b'a' + (letter >> 28) as u8 };
        text.push(char::from(char));
    }
    text.push_str("\"}");
    text
}

/// The id of a document of a bulk insert.
pub fn doc_id(number: u32) -> String {
    format!("doc-{number:08}")
}

/// Inserts `docs` documents in batches, several connections at once.
pub async fn insert(
    peer: &Peer,
    db: &str,
    docs: u32,
    member: impl Fn(u32) -> String + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU32::new(0));
    let path = format!("/{db}/_bulk_docs");
    let mut workers = JoinSet::new();
    for _ in 0..BULK_CONNECTIONS {
        let (mut conn, next) = (peer.connect().await?, Arc::clone(&next));
        let (path, member) = (path.clone(), member.clone());
        workers.spawn(async move {
            loop {
                let first = next.fetch_add(BATCH, Ordering::Relaxed);
                if first >= docs {
                    return anyhow::Ok(());
                }
                let batch: Vec<String> = (first..docs.min(first + BATCH))
                    .map(|number| document(Some(&doc_id(number)), number, &member(number)))
                    .collect();
                let body = format!(r#"{{"docs":[{}]}}"#, batch.join(","));
                let (status, answer) = conn.send(Method::POST, &path, body).await?;
                // Each row of a document that was refused has an `error`.
                if !status.is_success() || memchr::memmem::find(&answer, b"\"error\"").is_some() {
                    bail!("{path}: {status}: {}", excerpt(&answer));
                }
            }
        });
    }
    all(&mut workers).await
}

/// The figure `bulk`.
pub async fn bulk(bench: &Bench) -> anyhow::Result<()> {
    let db = bench.db("docs");
    bench.make_db(&db, "").await?;
    let timer = bench.timer();
    insert(&bench.peer, &db, bench.docs, |_| String::new()).await?;
    let taken = timer.stop();
    if bench.wants("bulk") {
        Report::rate("bulk", bench.docs.into(), taken)
            .with("batch", BATCH)
            .with("connections", BULK_CONNECTIONS)
            .print();
    }
    Ok(())
}

/// The figure `disk`.
pub async fn disk(bench: &Bench) -> anyhow::Result<()> {
    let mut conn = bench.peer.connect().await?;
    let info = conn.expect(Method::GET, &format!("/{}", bench.db("docs")), "").await?;
    let Some(bytes) = info["sizes"]["file"].as_u64() else {
        Report::skipped("disk", "the server doesn't tell sizes.file");
        return Ok(());
    };
    Report::new("disk", bytes as f64 / f64::from(bench.docs), "B/doc")
        .with("n", bench.docs)
        .with("file_bytes", bytes)
        .print();
    Ok(())
}

/// The figure `changes`.
pub async fn changes(bench: &Bench) -> anyhow::Result<()> {
    feed(bench, "changes", "_changes", "\"seq\":").await
}

/// The figure `all_docs`.
pub async fn all_docs(bench: &Bench) -> anyhow::Result<()> {
    feed(bench, "all_docs", "_all_docs", "\"key\":").await
}

/// Reads a whole feed with its documents; each row has `mark` once, and no document has it.
async fn feed(bench: &Bench, figure: &str, endpoint: &str, mark: &str) -> anyhow::Result<()> {
    let path = format!("/{}/{endpoint}?include_docs=true", bench.db("docs"));
    let mut conn = bench.peer.connect().await?;
    let timer = bench.timer();
    let response = conn.open(Method::GET, &path, "").await?;
    if !response.status().is_success() {
        bail!("{path}: {}", response.status());
    }
    let mut body = response.into_body();
    let mut counter = Counter::new(mark);
    let mut bytes = 0u64;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            bytes += data.len() as u64;
            counter.add(&data);
        }
    }
    let taken = timer.stop();
    if counter.found < u64::from(bench.docs) {
        bail!("{path}: {} rows of {}", counter.found, bench.docs);
    }
    Report::rate(figure, counter.found, taken).with("bytes", bytes).print();
    Ok(())
}

/// Counts a mark in a stream of chunks, also where it lies across two of them.
struct Counter {
    mark: String,
    finder: Finder<'static>,
    rest: Vec<u8>,
    found: u64,
}

impl Counter {
    fn new(mark: &str) -> Self {
        Self { mark: mark.to_owned(), finder: Finder::new(mark).into_owned(), rest: Vec::new(), found: 0 }
    }

    fn add(&mut self, data: &[u8]) {
        let keep = self.mark.len() - 1;
        // The end of the last chunk with the beginning of this one: as either part is shorter than the mark, each find
        // lies across.
        let seam = self.rest.len();
        self.rest.extend_from_slice(&data[..data.len().min(keep)]);
        self.found +=
            self.finder.find_iter(&self.rest).filter(|at| *at < seam && at + self.mark.len() > seam).count() as u64;
        self.found += self.finder.find_iter(data).count() as u64;
        if data.len() >= keep {
            self.rest.clear();
            self.rest.extend_from_slice(&data[data.len() - keep..]);
        } else {
            let surplus = self.rest.len().saturating_sub(keep);
            self.rest.drain(..surplus);
        }
    }
}

/// The figure `get_32`.
pub async fn get(bench: &Bench) -> anyhow::Result<()> {
    let n = if bench.quick { 3_200 } else { 32_000 };
    let db = bench.db("docs");
    let docs = bench.docs;
    single(bench, "get_32", n, move |number| {
        // A step that is prime to any number of documents in use goes through all of them in no order.
        let id = doc_id((u64::from(number) * 7_919_317 % u64::from(docs)) as u32);
        (Method::GET, format!("/{db}/{id}"), String::new())
    })
    .await
}

/// The figure `put_32`.
pub async fn put(bench: &Bench) -> anyhow::Result<()> {
    let n = if bench.quick { 640 } else { 6_400 };
    let db = bench.db("put");
    bench.make_db(&db, "").await?;
    single(bench, "put_32", n, move |number| {
        let path = format!("/{db}/{}", doc_id(number));
        (Method::PUT, path, document(None, number, ""))
    })
    .await
}

/// `n` requests over 32 connections, each waiting for its answer before the next.
async fn single(
    bench: &Bench,
    figure: &str,
    n: u32,
    request: impl Fn(u32) -> (Method, String, String) + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU32::new(0));
    let mut conns = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut conn = bench.peer.connect().await?;
        // The first request checks the password.
        conn.expect(Method::GET, "/", "").await?;
        conns.push(conn);
    }
    let timer = bench.timer();
    let mut workers = JoinSet::new();
    for mut conn in conns {
        let (next, request) = (Arc::clone(&next), request.clone());
        workers.spawn(async move {
            let mut times: Vec<Duration> = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= n {
                    return anyhow::Ok(times);
                }
                let (method, path, body) = request(number);
                let began = Instant::now();
                let (status, answer) = conn.send(method, &path, body).await?;
                times.push(began.elapsed());
                if !status.is_success() {
                    bail!("{path}: {status}: {}", excerpt(&answer));
                }
            }
        });
    }
    let mut times = Vec::new();
    while let Some(worker) = workers.join_next().await {
        times.extend(worker.context("a worker failed")??);
    }
    let taken = timer.stop();
    Report::rate(figure, n.into(), taken).times(&mut times).print();
    Ok(())
}

async fn all(workers: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    while let Some(worker) = workers.join_next().await {
        worker.context("a worker failed")??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Counter, DOC_BYTES, document};

    #[test]
    fn documents_are_json_of_500_bytes() {
        for text in [document(Some("doc-1"), 1, ""), document(None, u32::MAX, r#""access":{"read":["user:u1"]}"#)] {
            assert_eq!(text.len(), DOC_BYTES);
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
        }
    }

    #[test]
    fn counts_marks_however_the_stream_is_cut() {
        let text = b"{\"seq\":1,\"seq\"\n\"seq\":2}\n{\"last_seq\":3,\"seq\":\"seq\":";
        for size in 1..text.len() {
            let mut counter = Counter::new("\"seq\":");
            text.chunks(size).for_each(|chunk| counter.add(chunk));
            assert_eq!(counter.found, 4, "in chunks of {size}");
        }
    }
}
