//! A document of `_ring` or `_pods`, as the pod's own code reads and writes it.

use adea_ring::Identity;
use rean_store::{Author, Db, DocView, Edit, IdRange, Mode, Rev, RevView, Scope, StoreError, Who, Write, Written};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::pod::Pod;

/// The ring's database.
pub const RING: &str = "_ring";
/// Documents that are read at once: others get the processor in between.
const PAGE: usize = 200;

/// One leaf of a document.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Its revision.
    pub rev: Rev,
    /// Whether it is a deletion.
    pub deleted: bool,
    /// Its members, without those that begin with `_`.
    pub body: Map<String, Value>,
}

impl Leaf {
    /// A member's text.
    pub fn text(&self, member: &str) -> Option<&str> {
        self.body.get(member).and_then(Value::as_str)
    }
}

/// The pod's `_ring`.
///
/// # Errors
/// When the store has none any more: it is being closed.
pub fn ring_db(pod: &Pod) -> Result<Db, StoreError> {
    pod.store.db(RING).ok_or(StoreError::Closing)
}

/// All leaves of a document, the winner first; none when there is no such document.
///
/// # Errors
/// When the store fails.
pub fn leaves(db: &Db, id: &str) -> Result<Vec<Leaf>, StoreError> {
    let Some(doc) = db.doc(&Scope::All, id)? else {
        return Ok(Vec::new());
    };
    doc.leaves.iter().map(|leaf| read_leaf(db, leaf)).collect()
}

/// The winner of a document, if that is live.
///
/// # Errors
/// When the store fails.
pub fn live(db: &Db, id: &str) -> Result<Option<Leaf>, StoreError> {
    let doc = db.doc(&Scope::All, id)?;
    let winner = doc.as_ref().map(DocView::winner).filter(|winner| !winner.deleted);
    winner.map(|winner| read_leaf(db, winner)).transpose()
}

fn read_leaf(db: &Db, leaf: &RevView) -> Result<Leaf, StoreError> {
    let body = match leaf.body {
        Some(at) => db.body(at)?,
        None => None,
    };
    let body = body.and_then(|body| serde_json::from_slice(&body.json).ok()).unwrap_or_default();
    Ok(Leaf { rev: leaf.rev.clone(), deleted: leaf.deleted, body })
}

/// Shows all live documents whose ids begin with `prefix` to `look`, in the order of their ids, until it says `false`.
///
/// # Errors
/// When the store fails.
pub fn each(db: &Db, prefix: &str, mut look: impl FnMut(&str, Leaf) -> bool) -> Result<(), StoreError> {
    let mut range = prefixed(prefix);
    loop {
        let rows = db.all_docs(&Scope::All, &range, PAGE)?;
        let Some(last) = rows.last().map(|row| row.id.clone()) else {
            return Ok(());
        };
        for row in rows {
            let body = match row.body {
                Some(at) => db.body(at)?,
                None => None,
            };
            let body = body.and_then(|body| serde_json::from_slice(&body.json).ok()).unwrap_or_default();
            if !look(&row.id, Leaf { rev: row.rev, deleted: false, body }) {
                return Ok(());
            }
        }
        range = range.after(&last);
    }
}

/// The ids that begin with `prefix`, whose last byte is ASCII.
pub fn prefixed(prefix: &str) -> IdRange {
    let mut end = prefix.to_owned();
    // The first text after all of them: the next one in the place of the last character.
    if let Some(last) = end.pop() {
        end.push(char::from_u32(u32::from(last) + 1).unwrap_or(char::MAX));
    }
    IdRange { start: Some(prefix.to_owned()), end: Some(end), exclusive_end: true, ..IdRange::default() }
}

/// An edit that extends `parent`, or makes the document.
pub fn edit(id: &str, parent: Option<Rev>, body: &Map<String, Value>) -> Edit {
    let body = serde_json::to_vec(body).unwrap_or_default();
    Edit {
        id: id.to_owned(),
        parent,
        history: Vec::new(),
        deleted: false,
        body: body.into(),
        access: None,
        attachments: Vec::new(),
    }
}

/// An edit that deletes the leaf `parent`; the tombstone keeps these members.
pub fn deletion(id: &str, parent: Rev, body: &Map<String, Value>) -> Edit {
    Edit { deleted: true, ..edit(id, Some(parent), body) }
}

/// Writes edits in one commit, as the pod itself. One result an edit, in order.
///
/// # Errors
/// When nothing could be tried.
pub async fn write_all(pod: &Pod, db: &Db, edits: Vec<Edit>) -> Result<Vec<Result<Written, ApiError>>, ApiError> {
    if edits.is_empty() {
        return Ok(Vec::new());
    }
    let results = pod.write(db, Write { edits, author: author(), mode: Mode::Interactive }).await?;
    Ok(results.into_iter().map(|result| result.map_err(ApiError::from)).collect())
}

/// Writes one edit, as the pod itself.
///
/// # Errors
/// Why it was refused.
pub async fn write(pod: &Pod, db: &Db, edit: Edit) -> Result<Written, ApiError> {
    pod.write_one(db, Write { edits: vec![edit], author: author(), mode: Mode::Interactive }).await
}

fn author() -> Author {
    Author::admin(Who { name: Identity::system().name, roles: Vec::new() })
}

/// Milliseconds since 1970 by this machine's clock.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
