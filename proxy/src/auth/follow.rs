//! Hears of changed accounts and ended sessions, by following `_users` and `_ring`.

use std::sync::Arc;
use std::time::Duration;

use adea_ring::node_config::NODE_CONFIG_ID;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;

use super::cache::Change;
use super::{Authenticator, accounts};
use crate::upstream::{Upstream, UpstreamError};

/// The databases, in the order of [`Authenticator::set_blind`].
pub const DATABASES: [&str; 2] = ["_users", "_ring"];

const FIRST_WAIT: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(5);
const HEARTBEAT_MS: u64 = 5000;
/// Three heartbeats: after that rean is taken to be gone.
const SILENCE: Duration = Duration::from_secs(15);
/// A row of a feed without documents is far shorter.
const MAX_ROW_BYTES: usize = 1024 * 1024;

#[derive(Debug, Deserialize)]
struct Row {
    #[serde(default)]
    seq: Value,
    id: Option<String>,
    #[serde(default)]
    deleted: bool,
    #[serde(default)]
    changes: Vec<Leaf>,
    last_seq: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Leaf {
    rev: String,
}

/// Where a follower is.
struct Place {
    database: usize,
    /// The last sequence that was seen. It is kept over broken connections, so that no change is missed.
    since: Option<String>,
}

/// What a line asks for that takes questions to rean.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// Nothing more.
    Taken,
    /// The settings have changed.
    Settings,
    /// A session's document has several branches, of which a row doesn't say whether one is deleted.
    Branches(String),
}

/// Follows a database for ever, through any failure.
pub async fn follow(database: usize, authenticator: Arc<Authenticator>, upstream: Arc<Upstream>) {
    let mut place = Place { database, since: None };
    let mut wait = FIRST_WAIT;
    loop {
        let began = tokio::time::Instant::now();
        let error = place.follow_once(&authenticator, &upstream).await;
        authenticator.set_blind(database, true);
        if let Err(UpstreamError::Unexpected(StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND)) = error {
            // rean does not know the place any more: it has other data than before.
            place.since = None;
        }
        if let Err(error) = error {
            tracing::debug!(database = DATABASES[database], %error, "following was broken off");
        }
        wait = if began.elapsed() > SILENCE { FIRST_WAIT } else { (wait * 2).min(MAX_WAIT) };
        tokio::time::sleep(wait).await;
    }
}

impl Place {
    async fn follow_once(&mut self, authenticator: &Authenticator, upstream: &Upstream) -> Result<(), UpstreamError> {
        let name = DATABASES[self.database];
        let since = match &self.since {
            Some(since) => since.clone(),
            None => {
                let now = now(upstream, name).await?;
                // Nothing is known of the time before.
                authenticator.forget();
                self.since.insert(now).clone()
            }
        };
        let since = utf8_percent_encode(&since, NON_ALPHANUMERIC);
        // A session that was ended somewhere and prolonged elsewhere at the same time has a branch that lives, and that is all
        // that a row tells without its other branches.
        let style = if name == "_ring" { "all_docs" } else { "main_only" };
        let path = format!("/{name}/_changes?feed=continuous&style={style}&heartbeat={HEARTBEAT_MS}&since={since}");
        let (mut feed, _stream) = upstream.follow(&path).await?;
        authenticator.set_blind(self.database, false);
        if name == "_ring" {
            // Changes may have been missed.
            authenticator.reload_settings().await;
        }
        let mut line = Vec::new();
        while let Some(data) = next(&mut feed).await? {
            for part in data.split_inclusive(|byte| *byte == b'\n') {
                if line.len() + part.len() > MAX_ROW_BYTES {
                    return Err(UpstreamError::Late);
                }
                line.extend_from_slice(part);
                if line.ends_with(b"\n") {
                    match self.take(authenticator, &line)? {
                        News::Taken => {}
                        News::Settings => authenticator.reload_settings().await,
                        News::Branches(id) => authenticator.changed(look_up(upstream, id).await),
                    }
                    line.clear();
                }
            }
        }
        Ok(())
    }

    /// Takes a line in, but for what it gives back.
    fn take(&mut self, authenticator: &Authenticator, line: &[u8]) -> Result<News, UpstreamError> {
        if line.trim_ascii().is_empty() {
            return Ok(News::Taken);
        }
        let row: Row = serde_json::from_slice(line)?;
        if let Some(seq) = text(row.last_seq.as_ref().unwrap_or(&row.seq)) {
            self.since = Some(seq);
        }
        if row.id.as_deref() == Some(NODE_CONFIG_ID) {
            return Ok(News::Settings);
        }
        match change(&row) {
            Some(Change::Session { id, rev: Some(_) }) if row.changes.len() > 1 => return Ok(News::Branches(id)),
            Some(change) => authenticator.changed(change),
            None => {}
        }
        Ok(News::Taken)
    }
}

/// What has become of a session whose document has several branches. If that can't be found out it is taken to be over:
/// that ends its feeds, and the next request with it looks again.
async fn look_up(upstream: &Upstream, id: String) -> Change {
    let found = accounts::session(upstream, &id).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "a session with several branches can't be looked up");
        None
    });
    Change::Session { id, rev: found.and_then(|doc| doc.rev) }
}

/// The next bytes of the feed; `None` at its end.
async fn next(feed: &mut Incoming) -> Result<Option<bytes::Bytes>, UpstreamError> {
    loop {
        let frame = tokio::time::timeout(SILENCE, feed.frame());
        match frame.await.map_err(|_| UpstreamError::Late)? {
            None => return Ok(None),
            Some(frame) => match frame.map_err(UpstreamError::Exchange)?.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(_) => continue,
            },
        }
    }
}

/// The database's present sequence.
async fn now(upstream: &Upstream, name: &str) -> Result<String, UpstreamError> {
    let path = format!("/{name}/_changes?since=now&limit=1");
    let (status, body) = upstream.ask(Method::GET, &path, None).await?;
    if status != StatusCode::OK {
        return Err(UpstreamError::Unexpected(status));
    }
    let answer: Value = serde_json::from_slice(&body)?;
    text(&answer["last_seq"]).ok_or(UpstreamError::Unexpected(status))
}

/// A sequence is a string, or a number as in CouchDB 1.
fn text(seq: &Value) -> Option<String> {
    match seq {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn change(row: &Row) -> Option<Change> {
    let id = row.id.as_deref()?;
    let rev = row.changes.first().filter(|_| !row.deleted).map(|leaf| leaf.rev.clone());
    if let Some(name) = id.strip_prefix("org.couchdb.user:") {
        return Some(Change::User { name: name.to_owned(), rev });
    }
    id.strip_prefix("session:").map(|id| Change::Session { id: id.to_owned(), rev })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_changes() {
        let parse = |text: &str| change(&serde_json::from_str(text).expect("a row"));
        let user = |rev: Option<&str>| Some(Change::User { name: "ann".into(), rev: rev.map(str::to_owned) });
        assert_eq!(parse(r#"{"seq":"3-x","id":"org.couchdb.user:ann","changes":[{"rev":"2-a"}]}"#), user(Some("2-a")));
        assert_eq!(
            parse(r#"{"seq":4,"id":"org.couchdb.user:ann","changes":[{"rev":"3-a"}],"deleted":true}"#),
            user(None)
        );
        assert_eq!(
            parse(r#"{"seq":4,"id":"session:ab","changes":[{"rev":"2-a"}],"deleted":true}"#),
            Some(Change::Session { id: "ab".into(), rev: None })
        );
        assert_eq!(parse(r#"{"seq":4,"id":"config","changes":[{"rev":"2-a"}]}"#), None);
        assert_eq!(parse(r#"{"last_seq":"5-x","pending":0}"#), None);
    }
}
