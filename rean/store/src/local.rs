//! `_local` documents: without history, not replicated, in no feed.

use crate::db::Db;
use crate::engine::{Direction, Space};
use crate::error::{StoreError, WriteError};
use crate::record::{LocalRecord, decode, encode, key};
use bytes::Bytes;

/// A `_local` document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalDoc {
    /// The `n` of its revision `0-n`.
    pub rev: u64,
    /// The members that don't begin with `_`, as JSON object.
    pub body: Bytes,
}

/// What is called when a `_local` write is durable, with the new `n`.
pub type LocalDone = Box<dyn FnOnce(Result<u64, WriteError>) + Send>;

impl Db {
    /// A `_local` document; `id` without `_local/`. `owner` keeps users apart where a database shows each
    /// user their own; it is empty elsewhere.
    ///
    /// # Errors
    /// The engine failed.
    pub fn local_get(&self, owner: &str, id: &str) -> Result<Option<LocalDoc>, StoreError> {
        self.present()?;
        let value = self.inner().store.engine.get(Space::Local, &key::local(self.inner().id, owner, id))?;
        value.map(|value| read(&value)).transpose()
    }

    /// Writes one. A revision that is given must be the current one.
    pub fn local_put(&self, owner: &str, id: &str, expected: Option<u64>, body: Bytes, done: LocalDone) {
        self.local_write(owner, id, expected, Some(body), done);
    }

    /// Removes one.
    pub fn local_delete(&self, owner: &str, id: &str, expected: Option<u64>, done: LocalDone) {
        self.local_write(owner, id, expected, None, done);
    }

    fn local_write(&self, owner: &str, id: &str, expected: Option<u64>, body: Option<Bytes>, done: LocalDone) {
        let db = self.clone();
        let local_key = key::local(self.inner().id, owner, id);
        let _ = self.inner().store.submit(Box::new(move |tx| {
            let result = (|| {
                db.present()?;
                let old = tx.get(Space::Local, &local_key)?.map(|value| read(&value)).transpose()?;
                let current = old.map(|doc| doc.rev);
                match (current, expected) {
                    (None, _) if body.is_none() => return Err(WriteError::NotFound),
                    (Some(current), Some(expected)) if current != expected => return Err(WriteError::Conflict),
                    _ => {}
                }
                let rev = current.unwrap_or(0) + 1;
                match body {
                    Some(body) => tx.put(Space::Local, local_key, encode(&LocalRecord { rev, body: body.to_vec() })),
                    None => tx.delete(Space::Local, local_key),
                }
                Ok(rev)
            })();
            Box::new(move |committed| done(committed.map_err(WriteError::from).and(result)))
        }));
    }

    /// How many `_local` documents an owner has, counted up to `most`.
    ///
    /// # Errors
    /// The engine failed.
    pub fn local_count(&self, owner: &str, most: usize) -> Result<usize, StoreError> {
        self.present()?;
        let prefix = key::local(self.inner().id, owner, "");
        let snapshot = self.inner().store.engine.snapshot();
        let rows = snapshot.range(Space::Local, &prefix, &key::after(&prefix), Direction::Forward);
        rows.take(most).try_fold(0, |n, row| row.map(|_| n + 1)).map_err(StoreError::from)
    }

    /// All `_local` documents of an owner: ids without `_local/`, and the `n` of their revisions.
    ///
    /// # Errors
    /// The engine failed.
    pub fn local_list(&self, owner: &str) -> Result<Vec<(String, u64)>, StoreError> {
        self.present()?;
        let prefix = key::local(self.inner().id, owner, "");
        let snapshot = self.inner().store.engine.snapshot();
        let mut out = Vec::new();
        for item in snapshot.range(Space::Local, &prefix, &key::after(&prefix), Direction::Forward) {
            let (local_key, value) = item?;
            let id = String::from_utf8(local_key[prefix.len()..].to_vec())
                .map_err(|_| StoreError::Damaged("a local document's id"))?;
            out.push((id, read(&value)?.rev));
        }
        Ok(out)
    }
}

fn read(value: &[u8]) -> Result<LocalDoc, StoreError> {
    let LocalRecord { rev, body } = decode(value, "a local document")?;
    Ok(LocalDoc { rev, body: Bytes::from(body) })
}
