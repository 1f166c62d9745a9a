//! How far a replication has come, written as a `_local` document on both sides
//! (<https://docs.couchdb.org/en/stable/replication/protocol.html#retrieve-replication-logs-from-source-and-target>).

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::fault::Fault;
use super::peer::{Peer, Sent, doc_path};

/// The form of the checkpoints and of the ids under which they lie: CouchDB's number for it.
pub const VERSION: u32 = 4;
/// Runs that a checkpoint remembers; as many as CouchDB's.
const MAX_HISTORY: usize = 50;
/// Tries to write one when another replication writes the same.
const TRIES: usize = 3;

/// A checkpoint as it lies on one side.
#[derive(Debug, Clone, Default)]
pub struct Log {
    body: Map<String, Value>,
}

impl Log {
    /// Reads the checkpoint of one side; an empty one if there is none.
    ///
    /// # Errors
    /// When the side can't be asked.
    pub async fn read(peer: &Peer, id: &str) -> Result<Self, Fault> {
        let answer = peer.ask(Method::GET, &doc_path(&format!("_local/{id}")), None).await?;
        match answer.status {
            StatusCode::OK => Ok(Self { body: serde_json::from_slice(&answer.body).unwrap_or_default() }),
            StatusCode::NOT_FOUND => Ok(Self::default()),
            // It can be read and not marked: each run compares everything.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(Self::default()),
            _ => Err(peer.fault("reading the checkpoint", &answer)),
        }
    }

    fn session(&self) -> Option<&str> {
        self.body.get("session_id").and_then(Value::as_str)
    }

    fn seq(&self) -> Option<&Value> {
        self.body.get("source_last_seq")
    }

    /// The runs before, newest first.
    pub fn history(&self) -> Vec<Value> {
        self.body.get("history").and_then(Value::as_array).cloned().unwrap_or_default()
    }

    fn recorded(&self, session: &str) -> Option<Value> {
        let entries = self.body.get("history").and_then(Value::as_array)?;
        let entry = entries.iter().find(|entry| entry.get("session_id").and_then(Value::as_str) == Some(session))?;
        entry.get("recorded_seq").cloned()
    }

    /// The session of the last run.
    pub fn last_session(&self) -> Option<String> {
        self.session().map(str::to_owned)
    }

    /// Writes a new body; the same text if another replication has written meanwhile.
    ///
    /// # Errors
    /// When the side can't be asked or doesn't take it.
    pub async fn write(&mut self, peer: &Peer, id: &str, body: &Map<String, Value>) -> Result<(), Fault> {
        let path = doc_path(&format!("_local/{id}"));
        for _ in 0..TRIES {
            let mut body = body.clone();
            body.insert("_id".to_owned(), format!("_local/{id}").into());
            if let Some(rev) = self.body.get("_rev") {
                body.insert("_rev".to_owned(), rev.clone());
            }
            let text = Value::Object(body.clone()).to_string();
            let answer = peer.ask(Method::PUT, &path, Some(Sent::json(text))).await?;
            if answer.status.is_success() {
                let told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                match told.get("rev") {
                    Some(rev) => body.insert("_rev".to_owned(), rev.clone()),
                    None => body.remove("_rev"),
                };
                self.body = body;
                return Ok(());
            }
            if answer.status != StatusCode::CONFLICT {
                return Err(peer.fault("writing the checkpoint", &answer));
            }
            *self = Self::read(peer, id).await?;
        }
        Err(Fault::Passing(format!("{}: the checkpoint is written by another replication too", peer.shown())))
    }
}

/// Where to go on: both sides must know of the same run.
pub fn common_seq(source: &Log, target: &Log) -> Option<Value> {
    if source.session().is_some() && source.session() == target.session() {
        return source.seq().cloned();
    }
    let sessions = source.history();
    sessions.iter().filter_map(|entry| entry.get("session_id").and_then(Value::as_str)).find_map(|session| {
        target.recorded(session)?;
        source.recorded(session)
    })
}

/// The body of a checkpoint: this run, and those before.
pub fn body(session: &str, seq: &Value, run: Value, before: &[Value]) -> Map<String, Value> {
    let history: Vec<Value> = std::iter::once(run).chain(before.iter().cloned()).take(MAX_HISTORY).collect();
    let body = json!({
        "session_id": session,
        "source_last_seq": seq,
        "replication_id_version": VERSION,
        "history": history,
    });
    match body {
        Value::Object(body) => body,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Log, common_seq};
    use serde_json::{Value, json};

    fn log(value: Value) -> Log {
        Log { body: value.as_object().cloned().expect("an object") }
    }

    #[test]
    fn sides_that_agree_go_on_and_others_go_back_to_the_last_common_run() {
        let entry = |session: &str, seq: u64| json!({"session_id": session, "recorded_seq": seq});
        let one = log(
            json!({"session_id": "c", "source_last_seq": 9, "history": [entry("c", 9), entry("b", 5), entry("a", 2)]}),
        );
        let same = log(json!({"session_id": "c", "source_last_seq": 9, "history": []}));
        assert_eq!(common_seq(&one, &same), Some(json!(9)));
        let older = log(json!({"session_id": "x", "source_last_seq": 7, "history": [entry("x", 7), entry("b", 5)]}));
        assert_eq!(common_seq(&one, &older), Some(json!(5)));
        let foreign = log(json!({"session_id": "y", "source_last_seq": 7, "history": [entry("y", 7)]}));
        assert_eq!(common_seq(&one, &foreign), None);
        assert_eq!(common_seq(&Log::default(), &Log::default()), None);
    }
}
