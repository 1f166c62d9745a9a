//! Documents that pods have written each on its own: after a split, or by a master that came back with what it had
//! accepted and not passed on.
//!
//! Nothing is lost then: both are branches of the document, with the same winner everywhere. The write master says of
//! each such document, in `_ring/divergence:DB:HASH`, that somebody should look:
//! ```json
//! {"db": "notes", "id": "x", "revs": ["3-a", "3-b"], "found": "...", "by": "pod-a"}
//! ```
//! It takes the document away again once the conflict is resolved.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rean_store::{Edit, Scope, StoreError};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::databases::blocking;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::ring::ring_doc::{self, RING, ring_db};
use crate::ring::{databases, instructions, is_local_db, status};
use crate::workers::Stop;

/// What the id of a report begins with.
pub const PREFIX: &str = "divergence:";
/// Documents that wait for being looked at. With more, as after a long split, they are only counted: an operator who
/// has ten thousand to resolve finds the others by the databases' own `conflicts`.
const MAX_WAITING: usize = 10_000;
/// Documents of one pass: one commit.
const MAX_PASS: usize = 200;
/// Between two looks at whether what was reported is resolved.
const PAUSE: Duration = Duration::from_secs(60);

/// Documents that replication has made diverge, and that are not reported yet.
#[derive(Default)]
pub struct Found {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    waiting: BTreeSet<(String, String)>,
    not_told: u64,
}

impl Found {
    /// Notes one.
    pub fn add(&self, db: &str, id: &str) {
        if is_local_db(db) || (db == RING && is_own(id)) {
            return;
        }
        let mut state = self.state.lock();
        if state.waiting.len() < MAX_WAITING {
            state.waiting.insert((db.to_owned(), id.to_owned()));
        } else if !state.waiting.contains(&(db.to_owned(), id.to_owned())) {
            state.not_told += 1;
        }
        drop(state);
        self.news.notify_one();
    }

    /// How many found no place.
    pub fn not_told(&self) -> u64 {
        self.state.lock().not_told
    }

    fn after(&self, last: Option<&(String, String)>) -> Vec<(String, String)> {
        let state = self.state.lock();
        let after = state.waiting.iter().filter(|one| last.is_none_or(|last| *one > last));
        after.take(MAX_PASS).cloned().collect()
    }

    fn remove(&self, done: &[(String, String)]) {
        let mut state = self.state.lock();
        for one in done {
            state.waiting.remove(one);
        }
    }
}

/// Documents of `_ring` that nobody can resolve, and need not: those that one pod writes for itself, records, and
/// databases, whose branches all count.
fn is_own(id: &str) -> bool {
    [status::PREFIX, PREFIX, instructions::PREFIX, databases::PREFIX, "session:"]
        .iter()
        .any(|prefix| id.starts_with(prefix))
}

/// Reports until it is told to stop.
///
/// # Errors
/// When the store fails; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    let mut looked = tokio::time::Instant::now();
    let mut roles = pod.ring.gate.roles();
    loop {
        tokio::select! {
            () = pod.ring.records.found.news.notified() => {}
            // What this pod found as a follower, it reports when it becomes master.
            Ok(()) = roles.changed() => {}
            () = tokio::time::sleep_until(looked + PAUSE) => {}
            () = stop.stopped() => return Ok(()),
        }
        let mut last = None;
        loop {
            let some = pod.ring.records.found.after(last.as_ref());
            let Some(newest) = some.last().cloned() else { break };
            let done = report(&pod, some).await.map_err(|error| error.cause().to_owned())?;
            pod.ring.records.found.remove(&done);
            last = Some(newest);
            if stop.is_stopped() {
                return Ok(());
            }
        }
        if looked.elapsed() >= PAUSE {
            looked = tokio::time::Instant::now();
            review(&pod).await.map_err(|error| error.cause().to_owned())?;
        }
    }
}

/// Reports some; gives those that need no further look. On a pod that isn't master these are those that the master has
/// reported, or that are resolved: the others wait, for this pod may become master before it has heard of them.
async fn report(pod: &Arc<Pod>, some: Vec<(String, String)>) -> Result<Vec<(String, String)>, ApiError> {
    let pass = pod.ring.gate.enter();
    let for_look = Arc::clone(pod);
    let is_master = pass.is_some();
    let (edits, done) = blocking(move || look(&for_look, some, is_master)).await??;
    // A conflict: a report of this document has arrived in between, which says the same.
    ring_doc::write_all(pod, &ring_db(pod)?, edits).await?;
    Ok(done)
}

type Seen = (Vec<Edit>, Vec<(String, String)>);

fn look(pod: &Pod, some: Vec<(String, String)>, is_master: bool) -> Result<Seen, StoreError> {
    let ring = ring_db(pod)?;
    let (mut edits, mut done) = (Vec::new(), Vec::new());
    for (db, id) in some {
        let revs = live_revs(pod, &db, &id)?;
        let doc_id = doc_id(&db, &id);
        let told = ring_doc::live(&ring, &doc_id)?;
        if revs.len() <= 1 || told.as_ref().is_some_and(|told| told.body.get("revs") == Some(&revs.clone().into())) {
            done.push((db, id));
            continue;
        }
        if !is_master {
            continue;
        }
        let mut body = told.as_ref().map(|told| told.body.clone()).unwrap_or_default();
        if told.is_none() {
            let stamp = pod.ring.records.stamps.now(&pod.store)?;
            tracing::warn!(database = db, doc = id, "a document has diverged: pods have written it each on its own");
            body.insert("db".to_owned(), db.clone().into());
            body.insert("id".to_owned(), id.clone().into());
            body.insert("found".to_owned(), stamp.to_string().into());
            body.insert("by".to_owned(), pod.ring.me().as_str().into());
        }
        body.insert("revs".to_owned(), revs.into());
        edits.push(ring_doc::edit(&doc_id, told.map(|told| told.rev), &body));
        done.push((db, id));
    }
    Ok((edits, done))
}

/// Takes away the reports of what is resolved, and mends those that have changed; on the write master.
///
/// # Errors
/// When the store fails.
pub async fn review(pod: &Arc<Pod>) -> Result<(), ApiError> {
    let mut after: Option<String> = None;
    loop {
        let Some(_pass) = pod.ring.gate.enter() else { return Ok(()) };
        let for_look = Arc::clone(pod);
        let from = after.take();
        let (edits, last) = blocking(move || reviewed(&for_look, from)).await??;
        ring_doc::write_all(pod, &ring_db(pod)?, edits).await?;
        if last.is_none() {
            return Ok(());
        }
        after = last;
    }
}

fn reviewed(pod: &Pod, after: Option<String>) -> Result<(Vec<Edit>, Option<String>), StoreError> {
    let ring = ring_db(pod)?;
    let mut range = ring_doc::prefixed(PREFIX);
    if let Some(after) = after {
        range = range.after(&after);
    }
    let rows = ring.all_docs(&Scope::All, &range, MAX_PASS)?;
    let last = rows.last().map(|row| row.id.clone());
    let mut edits = Vec::new();
    for row in rows {
        let Some(told) = ring_doc::live(&ring, &row.id)? else { continue };
        let (Some(db), Some(id)) = (told.text("db"), told.text("id")) else { continue };
        let revs = live_revs(pod, db, id)?;
        if revs.len() <= 1 {
            edits.push(ring_doc::deletion(&row.id, told.rev, &Map::new()));
        } else if told.body.get("revs") != Some(&revs.clone().into()) {
            let mut body = told.body.clone();
            body.insert("revs".to_owned(), revs.into());
            edits.push(ring_doc::edit(&row.id, Some(told.rev), &body));
        }
    }
    Ok((edits, last))
}

/// The live leaves of a document, the winner first.
fn live_revs(pod: &Pod, db: &str, id: &str) -> Result<Vec<Value>, StoreError> {
    let Some(db) = pod.store.db(db) else { return Ok(Vec::new()) };
    let doc = match db.doc(&Scope::All, id) {
        Err(StoreError::Gone) => None,
        doc => doc?,
    };
    let leaves = doc.map(|doc| doc.leaves).unwrap_or_default();
    Ok(leaves.iter().filter(|leaf| !leaf.deleted).map(|leaf| leaf.rev.to_string().into()).collect())
}

/// The id of the report of a document: ids can be as long as an id can, so it is hashed.
pub fn doc_id(db: &str, id: &str) -> String {
    format!("{PREFIX}{db}:{}", &hex::encode(Sha256::digest(id))[..32])
}

#[cfg(test)]
mod tests {
    use super::{Found, MAX_WAITING};

    #[test]
    fn what_waits_is_bounded_and_counted() {
        let found = Found::default();
        for n in 0..MAX_WAITING + 3 {
            found.add("notes", &format!("{n:06}"));
        }
        found.add("notes", "000000");
        found.add("_pods", "pod:a");
        found.add("_ring", "pod:a");
        assert_eq!(found.not_told(), 3);
        let first = found.after(None);
        assert_eq!(first.len(), super::MAX_PASS);
        assert!(found.after(first.last())[0] > first[first.len() - 1]);
        found.remove(&first);
        found.add("_ring", "config");
        assert_eq!(found.after(None)[0].0, "_ring");
        assert_eq!(found.not_told(), 3);
    }
}
