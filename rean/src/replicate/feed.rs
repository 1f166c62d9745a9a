//! The changes of a replication's source, a round at a time.

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::Fault;
use super::peer::{Peer, Sent, escaped};
use super::spec::{Filter, Spec};
use super::split::Split;

/// One change in the feed, in bytes: a document with tens of thousands of conflicts.
const MAX_ROW_BYTES: usize = 4 << 20;
/// The changes of one round, in bytes; a round ends early rather than grow beyond it.
const MAX_PAGE_BYTES: usize = 8 << 20;
/// Time between two signs of life of a feed that waits, in ms.
const HEARTBEAT_MS: u64 = 10_000;

/// The changes of one round.
pub struct Page {
    /// Them.
    pub rows: Vec<Row>,
    /// The place behind them.
    pub last_seq: Value,
    /// How many are still to come, if the source tells.
    pub pending: Option<u64>,
    /// Whether the source has no more at this moment.
    pub is_last: bool,
}

/// One document that has changed.
#[derive(Debug, Deserialize)]
pub struct Row {
    /// The place behind it.
    pub seq: Value,
    /// The document.
    pub id: String,
    /// Its leaves.
    pub changes: Vec<Leaf>,
}

/// One revision.
#[derive(Debug, Deserialize)]
pub struct Leaf {
    /// Its text.
    pub rev: String,
}

#[derive(Deserialize)]
struct Envelope {
    last_seq: Value,
    #[serde(default)]
    pending: Option<u64>,
}

/// Reads the changes after a place; `waits` for the next one if there is none.
///
/// # Errors
/// When the source can't be asked, doesn't let its changes be read, or can't run the filter.
pub async fn read_page(source: &Peer, spec: &Spec, since: &Value, waits: bool) -> Result<Page, Fault> {
    let (below, body) = question(spec, since, waits);
    let response = match body {
        None => source.send(Method::GET, &below, None).await?,
        Some(body) => source.send(Method::POST, &below, Some(Sent::json(body))).await?,
    };
    if !response.status().is_success() {
        let answer = source.read(response).await?;
        return Err(source.fault("reading the changes", &answer));
    }
    let mut split = Split::new(source.pieces(response), source.shown(), MAX_ROW_BYTES);
    let mut rows: Vec<Row> = Vec::new();
    let mut bytes = 0;
    let malformed = || Fault::Passing(format!("{}: its changes have another form", source.shown()));
    while let Some(text) = split.next().await? {
        let row: Row = serde_json::from_slice(&text).map_err(|_| malformed())?;
        bytes += text.len();
        rows.push(row);
        if let Some(row) = rows.last().filter(|_| bytes > MAX_PAGE_BYTES) {
            return Ok(Page { last_seq: row.seq.clone(), pending: None, is_last: false, rows: kept(spec, rows) });
        }
    }
    let envelope: Envelope = serde_json::from_slice(split.envelope()).map_err(|_| malformed())?;
    let is_last = rows.is_empty() || ((rows.len() as u64) < spec.batch_rows && envelope.pending.unwrap_or(0) == 0);
    Ok(Page { last_seq: envelope.last_seq, pending: envelope.pending, is_last, rows: kept(spec, rows) })
}

/// A server that doesn't know the filter gives all its changes.
fn kept(spec: &Spec, mut rows: Vec<Row>) -> Vec<Row> {
    if let Filter::DocIds(ids) = &spec.filter {
        let ids: std::collections::HashSet<&str> = ids.iter().map(String::as_str).collect();
        rows.retain(|row| ids.contains(row.id.as_str()));
    }
    rows
}

fn question(spec: &Spec, since: &Value, waits: bool) -> (String, Option<String>) {
    let style = if spec.winners_only { "main_only" } else { "all_docs" };
    let since = since.as_str().map_or_else(|| since.to_string(), str::to_owned);
    let feed = if waits { "longpoll" } else { "normal" };
    // Also a feed that doesn't wait may be silent for long, while its filter lets nothing through.
    let mut below = format!(
        "/_changes?feed={feed}&style={style}&since={}&limit={}&heartbeat={HEARTBEAT_MS}",
        escaped(&since),
        spec.batch_rows
    );
    let body = match &spec.filter {
        Filter::All => None,
        Filter::DocIds(ids) => {
            below.push_str("&filter=_doc_ids");
            Some(json!({ "doc_ids": ids }))
        }
        Filter::Selector(selector) => {
            below.push_str("&filter=_selector");
            Some(json!({ "selector": selector }))
        }
        Filter::Function(name, parameters) => {
            below.push_str(&format!("&filter={}", escaped(name)));
            for (name, value) in parameters {
                below.push_str(&format!("&{}={}", escaped(name), escaped(value)));
            }
            None
        }
    };
    (below, body.map(|body| body.to_string()))
}

#[cfg(test)]
mod tests {
    use super::question;
    use crate::replicate::spec::Spec;
    use serde_json::{Value, json};

    fn ask(more: Value, since: Value, waits: bool) -> (String, Option<String>) {
        let mut object = json!({"source": "a", "target": "b"});
        let members = object.as_object_mut().expect("an object");
        members.extend(more.as_object().cloned().expect("an object"));
        question(&Spec::parse(members).expect("a spec"), &since, waits)
    }

    #[test]
    fn the_question_says_place_form_and_filter() {
        let all = "/_changes?feed=normal&style=all_docs&since=0&limit=500&heartbeat=10000";
        assert_eq!(ask(json!({}), json!(0), false), (all.to_owned(), None));
        let waiting = "/_changes?feed=longpoll&style=all_docs&since=5-a%2Bb&limit=500&heartbeat=10000";
        assert_eq!(ask(json!({}), json!("5-a+b"), true).0, waiting);
        let (below, body) = ask(json!({"doc_ids": ["x"]}), json!(0), false);
        assert!(below.ends_with("&filter=_doc_ids") && body.as_deref() == Some(r#"{"doc_ids":["x"]}"#));
        let (below, body) = ask(json!({"filter": "d/f", "query_params": {"i": "8&9"}}), json!(0), false);
        assert!(below.ends_with("&filter=d%2Ff&i=8%269") && body.is_none(), "{below}");
    }
}
