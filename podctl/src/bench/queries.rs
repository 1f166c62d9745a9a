//! Views, Mango queries, validators and filters.
//!
//! CouchDB answers the same requests, so each of these can be taken from it in the same run.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bench::Bench;
use crate::bench::documents::{doc_id, document, insert};
use crate::bench::report::{Report, percentile_ms};
use crate::http::{Conn, Peer, excerpt};

/// The longest that an index of the documents may take to build: CouchDB's takes minutes.
const BUILD_DEADLINE: Duration = Duration::from_secs(900);
/// Rows of a range query.
const ROWS: u32 = 10;
/// Open feeds beside a writer, as in the comparison with CouchDB.
const FEEDS: u32 = 50;

/// The figures `view_build`, `view_update`, `view_query` and `view_reduce`.
pub async fn view(bench: &Bench) -> anyhow::Result<()> {
    let db = bench.db("docs");
    let mut conn = bench.peer.connect().await?;
    let design = json!({"views": {"n": {"map": "function (doc) { emit(doc.n, doc.text.length); }", "reduce": "_sum"}}});
    conn.expect(Method::PUT, &format!("/{db}/_design/bench"), design.to_string()).await?;
    let view = format!("/{db}/_design/bench/_view/n");
    let timer = bench.timer();
    build(&mut conn, &format!("{view}?reduce=false&limit=1")).await?;
    Report::rate("view_build", bench.docs.into(), timer.stop()).print();

    let n: u32 = if bench.quick { 100 } else { 1_000 };
    let docs = bench.docs;
    times(bench, "view_query", n, &mut conn, |number| {
        let first = spread(number, docs - ROWS);
        let path = format!("{view}?reduce=false&startkey={first}&endkey={}", first + ROWS - 1);
        (Method::GET, path, String::new())
    })
    .await?;
    times(bench, "view_reduce", n, &mut conn, |number| {
        let first = spread(number, docs / 2);
        (Method::GET, format!("{view}?startkey={first}&endkey={}", first + docs / 2), String::new())
    })
    .await?;
    // A write, and a query that has to show it.
    let times = {
        let mut times = Vec::new();
        for number in 0..n.min(200) {
            let path = format!("/{db}/extra-{number}");
            conn.expect(Method::PUT, &path, document(None, docs + number, "")).await?;
            let began = Instant::now();
            let path = format!("{view}?reduce=false&key={}", docs + number);
            let answer = conn.expect(Method::GET, &path, "").await?;
            times.push(began.elapsed());
            if answer["rows"].as_array().map(Vec::len) != Some(1) {
                bail!("{path}: the document that was just written is not in its view");
            }
        }
        times
    };
    print_times("view_update", times);
    Ok(())
}

/// The figures `mango_build`, `find_index`, `find_scan`.
pub async fn find(bench: &Bench) -> anyhow::Result<()> {
    let db = bench.db("docs");
    let mut conn = bench.peer.connect().await?;
    let path = format!("/{db}/_find");
    let timer = bench.timer();
    let none = json!({"selector": {"text": "none has this"}, "limit": 1}).to_string();
    let answer = conn.expect(Method::POST, &path, none).await?;
    if answer["docs"].as_array().is_none_or(|docs| !docs.is_empty()) {
        bail!("{path}: a document that none asked for");
    }
    Report::rate("find_scan", bench.docs.into(), timer.stop()).print();

    let index = json!({"index": {"fields": ["n"]}, "name": "n", "ddoc": "mango"});
    let timer = bench.timer();
    conn.expect(Method::POST, &format!("/{db}/_index"), index.to_string()).await?;
    let query =
        |first: u32| json!({"selector": {"n": {"$gte": first, "$lt": first + ROWS}}, "limit": ROWS}).to_string();
    let answer = timeout(BUILD_DEADLINE, conn.expect(Method::POST, &path, query(0))).await??;
    if answer["docs"].as_array().map(Vec::len) != Some(ROWS as usize) {
        bail!("{path}: {answer}");
    }
    Report::rate("mango_build", bench.docs.into(), timer.stop()).print();

    let n: u32 = if bench.quick { 100 } else { 1_000 };
    times(bench, "find_index", n, &mut conn, |number| {
        (Method::POST, path.clone(), query(spread(number, bench.docs - ROWS)))
    })
    .await
}

/// The figures `validate_bulk` and `validate_put`: what a validator costs each write. `without` is the same without
/// one.
pub async fn validate(bench: &Bench) -> anyhow::Result<()> {
    let docs = bench.docs / 5;
    let puts: u32 = if bench.quick { 200 } else { 2_000 };
    let (mut bulk, mut put) = (Vec::new(), Vec::new());
    for (name, validated) in [("free", false), ("validated", true)] {
        let db = bench.db(name);
        let mut conn = bench.make_db(&db, "").await?;
        if validated {
            let function = "function (doc, old, user, security) { if (typeof doc.n !== 'number') \
                            { throw({forbidden: 'n must be a number'}); } }";
            let design = json!({"validate_doc_update": function}).to_string();
            conn.expect(Method::PUT, &format!("/{db}/_design/check"), design).await?;
            let (status, answer) = conn.send(Method::PUT, &format!("/{db}/wrong"), r#"{"n":"x"}"#).await?;
            if status != http::StatusCode::FORBIDDEN {
                bail!("the validator does not run: {status}: {}", excerpt(&answer));
            }
        }
        let timer = bench.timer();
        insert(&bench.peer, &db, docs, |_| String::new()).await?;
        bulk.push(timer.stop());
        let timer = bench.timer();
        for number in 0..puts {
            conn.expect(Method::PUT, &format!("/{db}/put-{number}"), document(None, number, "")).await?;
        }
        put.push(timer.stop());
    }
    let cpu = |taken: &crate::bench::report::Taken, n: u32| taken.cpu_us.map(|us| us as f64 / f64::from(n));
    Report::rate("validate_bulk", docs.into(), bulk[1])
        .with("without_per_s", f64::from(docs) / bulk[0].wall.as_secs_f64())
        .with("without_cpu_us_per_op", cpu(&bulk[0], docs))
        .print();
    Report::rate("validate_put", puts.into(), put[1])
        .with("without_per_s", f64::from(puts) / put[0].wall.as_secs_f64())
        .with("without_cpu_us_per_op", cpu(&put[0], puts))
        .print();
    Ok(())
}

/// The figures `filter_js` and `filter_selector`: a feed over all documents of which none passes, but for a hundredth.
pub async fn filter(bench: &Bench) -> anyhow::Result<()> {
    let db = bench.db("docs");
    let mut conn = bench.peer.connect().await?;
    let design = json!({"filters": {"few": "function (doc, req) { return doc.n % 100 === 0; }"}});
    conn.expect(Method::PUT, &format!("/{db}/_design/filter"), design.to_string()).await?;
    let js = (Method::GET, format!("/{db}/_changes?filter=filter/few"), String::new());
    let selector = json!({"selector": {"n": {"$mod": [100, 0]}}}).to_string();
    let selector = (Method::POST, format!("/{db}/_changes?filter=_selector"), selector);
    for (figure, (method, path, body)) in [("filter_js", js), ("filter_selector", selector)] {
        let timer = bench.timer();
        let answer = timeout(BUILD_DEADLINE, conn.expect(method, &path, body)).await??;
        let taken = timer.stop();
        let rows = answer["results"].as_array().map_or(0, Vec::len);
        if rows < (bench.docs / 100) as usize {
            bail!("{path}: {rows} rows");
        }
        Report::rate(figure, bench.docs.into(), taken).with("rows", rows).print();
    }
    Ok(())
}

/// The figures `feeds_none`, `feeds_selector` and `feeds_js`: how fast one writes in batches of ten while
/// 50 continuous feeds with such a filter are open, none of which lets anything pass.
pub async fn feeds(bench: &Bench) -> anyhow::Result<()> {
    let batches: u32 = if bench.quick { 40 } else { 400 };
    for kind in ["none", "selector", "js"] {
        let db = bench.db(&format!("feeds-{kind}"));
        let mut conn = bench.make_db(&db, "").await?;
        let design = json!({"filters": {"none": "function (doc, req) { return doc.n < 0; }"}});
        conn.expect(Method::PUT, &format!("/{db}/_design/filter"), design.to_string()).await?;
        let open = if kind == "none" { 0 } else { FEEDS };
        let mut feeds = JoinSet::new();
        for _ in 0..open {
            feeds.spawn(follow(bench.peer.clone(), db.clone(), kind == "js"));
        }
        // They are all there once each has read the design document's row, or skipped it: a moment is enough, and one
        // that comes late only makes the figure better by a fiftieth.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let timer = bench.timer();
        for batch in 0..batches {
            let docs: Vec<String> =
                (0..10).map(|of| document(Some(&doc_id(batch * 10 + of)), batch * 10 + of, "")).collect();
            let body = format!(r#"{{"docs":[{}]}}"#, docs.join(","));
            conn.expect(Method::POST, &format!("/{db}/_bulk_docs"), body).await?;
        }
        let taken = timer.stop();
        if let Some(ended) = feeds.try_join_next() {
            ended.context("a feed failed")??;
            bail!("a feed ended");
        }
        Report::rate(&format!("feeds_{kind}"), u64::from(batches) * 10, taken).with("feeds", open).print();
        feeds.shutdown().await;
    }
    Ok(())
}

/// Reads a filtered feed until it ends.
async fn follow(peer: Peer, db: String, js: bool) -> anyhow::Result<()> {
    let mut conn = peer.connect().await?;
    let path = format!("/{db}/_changes?feed=continuous&heartbeat=30000&filter=");
    let response = if js {
        conn.open(Method::GET, &format!("{path}filter/none"), "").await?
    } else {
        conn.open(Method::POST, &format!("{path}_selector"), r#"{"selector":{"n":{"$lt":0}}}"#).await?
    };
    if !response.status().is_success() {
        bail!("{path}: {}", response.status());
    }
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(())
}

/// Asks until the index is there: CouchDB's own time-outs may end a request before.
async fn build(conn: &mut Conn, path: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + BUILD_DEADLINE;
    loop {
        let (status, answer) = conn.send(Method::GET, path, "").await?;
        if status.is_success() {
            let answer: Value = serde_json::from_slice(&answer)?;
            return match answer["rows"].as_array() {
                Some(rows) if !rows.is_empty() => Ok(()),
                _ => bail!("{path}: no rows: {answer}"),
            };
        }
        if Instant::now() > deadline || status.is_client_error() {
            bail!("{path}: {status}: {}", excerpt(&answer));
        }
    }
}

/// `n` requests in a row over one connection.
async fn times(
    bench: &Bench,
    figure: &str,
    n: u32,
    conn: &mut Conn,
    request: impl Fn(u32) -> (Method, String, String),
) -> anyhow::Result<()> {
    let mut times = Vec::new();
    let timer = bench.timer();
    for number in 0..n {
        let (method, path, body) = request(number);
        let began = Instant::now();
        conn.expect(method, &path, body).await?;
        times.push(began.elapsed());
    }
    let taken = timer.stop();
    let p50_ms = percentile_ms(&mut times, 0.5);
    Report::new(figure, p50_ms, "ms").taken(n.into(), taken).times(&mut times).print();
    Ok(())
}

fn print_times(figure: &str, mut times: Vec<Duration>) {
    let p50_ms = percentile_ms(&mut times, 0.5);
    Report::new(figure, p50_ms, "ms").with("n", times.len()).times(&mut times).print();
}

/// Numbers below `end` in no order.
fn spread(number: u32, end: u32) -> u32 {
    (u64::from(number) * 7_919_317 % u64::from(end.max(1))) as u32
}
