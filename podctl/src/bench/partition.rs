//! Documents into partial databases: as they are written, and again when the app's rules change.

use std::time::Duration;

use anyhow::{Context, bail};
use http::{Method, StatusCode};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::bench::Bench;
use crate::bench::documents;
use crate::bench::report::Report;
use crate::http::{Conn, excerpt};

/// Documents to partition.
const DOCS: u32 = 20_000;
/// In how many partial databases.
const SIGNATURES: [u32; 3] = [10, 100, 10_000];
/// A partition that takes longer is no partition.
const DEADLINE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(5);

/// The figures `partition_N`: inserting documents whose `access` names N different readers, until each is in its
/// partial database; next to them `plain_ms`, the same into a plain database.
pub async fn insert(bench: &Bench) -> anyhow::Result<()> {
    let docs = docs(bench);
    let plain_db = bench.db("plain");
    bench.make_db(&plain_db, "").await?;
    let timer = bench.timer();
    documents::insert(&bench.peer, &plain_db, docs, |number| access(number, 1)).await?;
    let plain = timer.stop();
    for signatures in SIGNATURES {
        let figure = format!("partition_{signatures}");
        let db = bench.db(&format!("app{signatures}"));
        let Some(mut conn) = make_app(bench, &db, &figure).await? else {
            return Ok(());
        };
        let timer = bench.timer();
        let member = move |number| access(number, signatures);
        documents::insert(&bench.peer, &db, docs, member).await?;
        until_partitioned(&mut conn, &db, signatures, docs).await?;
        let taken = timer.stop();
        Report::new(&figure, taken.wall.as_secs_f64(), "s")
            .taken(docs.into(), taken)
            .with("plain_ms", plain.wall.as_millis() as u64)
            .print();
    }
    Ok(())
}

/// The figures `repartition_N`: new rules for an app that is full of documents, until each is where they say.
pub async fn change_rules(bench: &Bench) -> anyhow::Result<()> {
    let docs = docs(bench);
    let db = bench.db("rules");
    let Some(mut conn) = make_app(bench, &db, "repartition").await? else {
        return Ok(());
    };
    documents::insert(&bench.peer, &db, docs, readers).await?;
    for signatures in SIGNATURES {
        let path = format!("/_ring/app:{db}");
        let (status, answer) = conn.send(Method::GET, &path, "").await?;
        let mut app = match status {
            StatusCode::OK => serde_json::from_slice(&answer)?,
            // An app without rules has no such document.
            StatusCode::NOT_FOUND => json!({}),
            status => bail!("{path}: {status}: {}", excerpt(&answer)),
        };
        app["rules"] = json!([{"selector": {}, "read": [format!("user:${{u{signatures}}}")]}]);
        let timer = bench.timer();
        conn.expect(Method::PUT, &path, app.to_string()).await?;
        until_partitioned(&mut conn, &db, signatures, docs).await?;
        let taken = timer.stop();
        Report::new(&format!("repartition_{signatures}"), taken.wall.as_secs_f64(), "s")
            .taken(docs.into(), taken)
            .print();
    }
    Ok(())
}

fn docs(bench: &Bench) -> u32 {
    if bench.quick { DOCS / 10 } else { DOCS }
}

fn access(number: u32, signatures: u32) -> String {
    format!(r#""access":{{"read":["user:u{}"]}}"#, number % signatures)
}

/// A member for each of [`SIGNATURES`], for rules to take their readers from.
fn readers(number: u32) -> String {
    SIGNATURES.map(|signatures| format!(r#""u{signatures}":"u{}""#, number % signatures)).join(",")
}

/// Makes an app; nothing where there are no apps.
async fn make_app(bench: &Bench, db: &str, figure: &str) -> anyhow::Result<Option<Conn>> {
    let mut conn = bench.peer.connect().await?;
    // CouchDB ignores the parameter, or refuses it if its own unfinished switch is off.
    let (made, answer) = conn.send(Method::PUT, &format!("/{db}?access=true"), "").await?;
    let (status, _) = conn.send(Method::GET, &format!("/{db}/_access"), "").await?;
    if status == StatusCode::OK {
        return Ok(Some(conn));
    }
    let reason = format!("the server has no apps (PUT ?access=true: {made} {})", excerpt(&answer));
    Report::skipped(figure, &reason);
    Ok(None)
}

/// Waits until each document is in one of `signatures` partial databases.
async fn until_partitioned(conn: &mut Conn, db: &str, signatures: u32, docs: u32) -> anyhow::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    let expected = (u64::from(signatures.min(docs)), u64::from(docs));
    loop {
        // Asking for the tasks is cheap; asking for thousands of partial databases is not.
        let tasks = conn.expect(Method::GET, "/_active_tasks", "").await?;
        let busy = tasks.as_array().is_some_and(|tasks| tasks.iter().any(|task| task["database"].as_str() == Some(db)));
        let found = if busy { None } else { Some(partials(conn, db).await?) };
        if found == Some(expected) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("(databases, documents) are {found:?} and not {expected:?}");
        }
        sleep(if busy { POLL } else { POLL * 10 }).await;
    }
}

/// How many partial databases have documents, and how many they have together.
async fn partials(conn: &mut Conn, db: &str) -> anyhow::Result<(u64, u64)> {
    let access = conn.expect(Method::GET, &format!("/{db}/_access"), "").await?;
    let counts = access["partials"]
        .as_array()
        .context("_access lists no partials")?
        .iter()
        .filter_map(|partial| partial["doc_count"].as_u64())
        .filter(|count| *count > 0);
    Ok(counts.fold((0, 0), |(databases, docs), count| (databases + 1, docs + count)))
}
