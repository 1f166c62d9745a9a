//! Documents in the order of their ids.

use crate::db::Db;
use crate::engine::{Direction, Range, Space};
use crate::error::StoreError;
use crate::record::{DocRecord, PartDoc, PartNo, decode, key};
use crate::rev::Rev;
use crate::view::{BodyRef, Scope};
use std::cmp::Ordering;

/// Partial databases that are merged at a time: each costs an open range. More are taken in rounds.
const MERGED_PARTS: usize = 256;

/// A range of ids.
#[derive(Debug, Clone, Default)]
pub struct IdRange {
    /// Where to begin; `None`: at the first (descending: the last).
    pub start: Option<String>,
    /// Where to end.
    pub end: Option<String>,
    /// Leave out `start` itself, as when a page goes on after the last id of the one before.
    pub exclusive_start: bool,
    /// Leave out `end` itself.
    pub exclusive_end: bool,
    /// From high to low.
    pub descending: bool,
}

impl IdRange {
    /// The rest of the range after an id.
    pub fn after(&self, last: &str) -> IdRange {
        IdRange { start: Some(last.to_owned()), exclusive_start: true, ..self.clone() }
    }

    /// Lowest key and the one after the highest, below a prefix.
    fn bounds(&self, prefix: &[u8]) -> (Vec<u8>, Vec<u8>) {
        // The key right after an id is the id and a zero byte.
        let at = |id: &str, behind: bool| {
            let mut bound = key::meta(prefix, &[id.as_bytes()]);
            if behind {
                bound.push(0);
            }
            bound
        };
        let (low, low_out, high, high_out) = if self.descending {
            (&self.end, self.exclusive_end, &self.start, self.exclusive_start)
        } else {
            (&self.start, self.exclusive_start, &self.end, self.exclusive_end)
        };
        let lo = low.as_ref().map_or_else(|| prefix.to_vec(), |id| at(id, low_out));
        let hi = high.as_ref().map_or_else(|| key::after(prefix), |id| at(id, !high_out));
        (lo, hi)
    }

    fn direction(&self) -> Direction {
        if self.descending { Direction::Backward } else { Direction::Forward }
    }
}

/// A live document in a list.
#[derive(Debug, Clone)]
pub struct DocRow {
    /// The document.
    pub id: String,
    /// Its winner, as the reader sees it.
    pub rev: Rev,
    /// Its content.
    pub body: Option<BodyRef>,
}

impl Db {
    /// Live documents in a range of ids, at most `limit`.
    ///
    /// # Errors
    /// The engine failed.
    pub fn all_docs(&self, scope: &Scope, range: &IdRange, limit: usize) -> Result<Vec<DocRow>, StoreError> {
        self.present()?;
        let parts = match scope {
            Scope::All => return self.list_all(range, limit),
            Scope::Part(reader, part) => {
                if !self.may_read_part(reader, *part) {
                    return Ok(Vec::new());
                }
                vec![*part]
            }
            Scope::Personal(reader) => self.inner().app.read().parts_of(reader),
        };
        let mut out: Vec<DocRow> = Vec::new();
        for some in parts.chunks(MERGED_PARTS) {
            let rows = self.list_parts(some, range, limit)?;
            out = if out.is_empty() { rows } else { merge(out, rows, range.descending, limit) };
        }
        Ok(out)
    }

    fn list_parts(&self, parts: &[PartNo], range: &IdRange, limit: usize) -> Result<Vec<DocRow>, StoreError> {
        let snapshot = self.inner().store.engine.snapshot();
        let mut heads = Vec::with_capacity(parts.len());
        for part in parts {
            let prefix = key::part_doc(self.inner().id, *part, "");
            let (lo, hi) = range.bounds(&prefix);
            let mut rows = snapshot.range(Space::PartDocs, &lo, &hi, range.direction());
            if let Some(row) = next_row(prefix.len(), &mut rows)? {
                heads.push(Head { row, prefix: prefix.len(), rows });
            }
        }
        let mut out = Vec::new();
        while out.len() < limit && !heads.is_empty() {
            let best = (1..heads.len()).fold(0, |best, at| {
                if order(&heads[at].row, &heads[best].row, range.descending) == Ordering::Less { at } else { best }
            });
            let head = &mut heads[best];
            match next_row(head.prefix, &mut head.rows)? {
                Some(next) => out.push(std::mem::replace(&mut head.row, next)),
                None => out.push(heads.swap_remove(best).row),
            }
        }
        Ok(out)
    }

    /// Ids after one, deleted documents among them.
    pub(crate) fn ids_after(&self, after: &str, limit: usize) -> Result<Vec<String>, StoreError> {
        let prefix = key::doc(self.inner().id, "");
        let start = (!after.is_empty()).then(|| after.to_owned());
        let (lo, hi) = IdRange { start, exclusive_start: true, ..IdRange::default() }.bounds(&prefix);
        let snapshot = self.inner().store.engine.snapshot();
        let ids = snapshot.range(Space::Docs, &lo, &hi, Direction::Forward).take(limit);
        ids.map(|item| id_of(&item?.0, prefix.len())).collect()
    }

    fn list_all(&self, range: &IdRange, limit: usize) -> Result<Vec<DocRow>, StoreError> {
        let prefix = key::doc(self.inner().id, "");
        let (lo, hi) = range.bounds(&prefix);
        let snapshot = self.inner().store.engine.snapshot();
        let mut out = Vec::new();
        for item in snapshot.range(Space::Docs, &lo, &hi, range.direction()) {
            if out.len() >= limit {
                break;
            }
            let (doc_key, value) = item?;
            let record: DocRecord = decode(&value, "a document")?;
            let Some(winner) = record.tree.winner().map(|winner| &record.tree.nodes()[winner]) else { continue };
            if winner.deleted {
                continue;
            }
            out.push(DocRow {
                id: id_of(&doc_key, prefix.len())?,
                rev: winner.rev.clone(),
                body: winner.body.map(BodyRef),
            });
        }
        Ok(out)
    }
}

fn order(a: &DocRow, b: &DocRow, descending: bool) -> Ordering {
    let by_id = a.id.cmp(&b.id);
    if descending { by_id.reverse() } else { by_id }
}

fn merge(a: Vec<DocRow>, b: Vec<DocRow>, descending: bool, limit: usize) -> Vec<DocRow> {
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    let mut out = Vec::new();
    while out.len() < limit {
        let from_b = match (a.peek(), b.peek()) {
            (Some(first), Some(second)) => order(second, first, descending) == Ordering::Less,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (None, None) => break,
        };
        out.extend(if from_b { b.next() } else { a.next() });
    }
    out
}

/// A partial database's next document in a merge.
struct Head<'a> {
    row: DocRow,
    prefix: usize,
    rows: Range<'a>,
}

fn next_row(prefix: usize, rows: &mut Range<'_>) -> Result<Option<DocRow>, StoreError> {
    for item in rows {
        let (doc_key, value) = item?;
        let doc: PartDoc = decode(&value, "a document of a partial database")?;
        let Some(winner) = doc.leaves.into_iter().next().filter(|leaf| !doc.tomb && !leaf.deleted) else { continue };
        let id = id_of(&doc_key, prefix)?;
        return Ok(Some(DocRow { id, rev: winner.rev, body: winner.body.map(BodyRef) }));
    }
    Ok(None)
}

fn id_of(doc_key: &[u8], prefix: usize) -> Result<String, StoreError> {
    String::from_utf8(doc_key[prefix..].to_vec()).map_err(|_| StoreError::Damaged("a document's id"))
}
