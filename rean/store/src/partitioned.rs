//! Databases whose documents' ids say a partition, `partition:id`, and what is counted of each partition
//! (<https://docs.couchdb.org/en/stable/partitioned-dbs/index.html>).
//!
//! A partition is a stretch of ids, so nothing is stored twice for it. Its counts are records of their own, written in
//! the commit of the document that they count: to ask for them costs the same however large it is. One that is too large
//! takes nothing from clients that would make it larger
//! (<https://docs.couchdb.org/en/stable/config/couchdb.html#couchdb/max_partition_size>); what comes by replication it takes,
//! as in CouchDB: it was taken elsewhere, and is not to be lost here.

use crate::db::Db;
use crate::document::{DocumentError, validate_id};
use crate::edit::Edit;
use crate::engine::{Snapshot, Space, Value};
use crate::error::{StoreError, WriteError};
use crate::record::{Attachment, DbId, DocRecord, Seq, decode, decode_body, encode, key};
use crate::rev::Rev;
use crate::store::Store;
use crate::tree::RevTree;
use crate::writer::Tx;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// What ends a partition in an id.
const SEPARATOR: char = ':';
/// The character after it: behind all ids of a partition.
const BEHIND: char = ';';
/// What the ids of documents without a partition begin with.
const FREE: [&str; 2] = ["_design/", "_local/"];

/// Bytes of a partition from which on nothing that makes it larger is taken, unless [`Store::set_max_partition_bytes`]
/// says something else: CouchDB's 10 GiB.
pub const MAX_PARTITION_BYTES: u64 = 10 << 30;

/// What is counted of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionInfo {
    /// Live documents.
    pub docs: u64,
    /// Deleted documents.
    pub deleted: u64,
    /// Bytes of stored bodies, also of revisions that only a compaction removes.
    pub bytes: u64,
    /// Bytes of what can be read: the leaves' bodies and attachments. `None`: the partition is from a version that did not
    /// count them. Stored behind the rest, so that such a version reads the rest.
    #[serde(skip)]
    pub external: Option<u64>,
}

/// The partitions of some edits that are too large.
pub(crate) type Full = BTreeSet<String>;

/// A partition's name that there can't be. The message is CouchDB's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    /// Nothing before the colon.
    #[error("Partition must not be empty")]
    Empty,
    /// Reserved.
    #[error("Partition must not start with an underscore")]
    Underscore,
    /// The first colon ends it.
    #[error("Partition must not contain a colon")]
    Colon,
    /// Longer than any id.
    #[error("Partition is too long")]
    TooLong,
}

/// Why a document can't be in a partitioned database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartitionedIdError {
    /// It has no partition, or nothing after it.
    #[error(transparent)]
    Id(#[from] DocumentError),
    /// Its partition.
    #[error(transparent)]
    Partition(#[from] PartitionError),
}

/// The partition of a document; `None`: it has none, as design documents.
pub fn partition_of(id: &str) -> Option<&str> {
    if FREE.iter().any(|free| id.starts_with(free)) {
        return None;
    }
    id.split_once(SEPARATOR).map(|(partition, _)| partition)
}

/// The lowest id that a document of a partition could have, and one that is behind all of them.
pub fn partition_bounds(partition: &str) -> (String, String) {
    (format!("{partition}{SEPARATOR}"), format!("{partition}{BEHIND}"))
}

/// Checks the name of a partition.
///
/// # Errors
/// See [`PartitionError`].
pub fn validate_partition(partition: &str) -> Result<(), PartitionError> {
    match partition {
        "" => Err(PartitionError::Empty),
        _ if partition.starts_with('_') => Err(PartitionError::Underscore),
        _ if partition.contains(SEPARATOR) => Err(PartitionError::Colon),
        _ if partition.len() > crate::document::MAX_ID_BYTES => Err(PartitionError::TooLong),
        _ => Ok(()),
    }
}

/// Checks the id of a document of a partitioned database: `partition:id`, and both may be what they are. Design
/// documents and `_local` ones have no partition.
///
/// # Errors
/// See [`PartitionedIdError`].
pub fn validate_partitioned_id(id: &str) -> Result<(), PartitionedIdError> {
    if FREE.iter().any(|free| id.starts_with(free)) {
        return Ok(());
    }
    let Some((partition, rest)) = id.split_once(SEPARATOR) else {
        return Err(DocumentError::IllegalDocId("Doc id must be of form partition:id".to_owned()).into());
    };
    validate_partition(partition)?;
    Ok(validate_id(rest)?)
}

impl Default for PartitionInfo {
    fn default() -> Self {
        PartitionInfo { docs: 0, deleted: 0, bytes: 0, external: Some(0) }
    }
}

impl PartitionInfo {
    /// What it has in bytes, as CouchDB bounds it: its leaves' bodies and attachments, if they are counted.
    pub fn size(&self) -> u64 {
        self.external.unwrap_or(self.bytes)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = encode(self);
        out.extend(self.external.map(|external| encode(&external)).unwrap_or_default());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<PartitionInfo, StoreError> {
        const WHAT: &str = "counts of a partition";
        let (info, rest): (PartitionInfo, _) =
            postcard::take_from_bytes(bytes).map_err(|_| StoreError::Damaged(WHAT))?;
        let external = if rest.is_empty() { None } else { Some(decode(rest, WHAT)?) };
        Ok(PartitionInfo { external, ..info })
    }
}

impl Store {
    /// How large partitions may get: one of so many bytes takes nothing from clients that would make it larger. 0: there
    /// is no bound.
    pub fn set_max_partition_bytes(&self, bytes: u64) {
        self.inner().max_partition_bytes.store(bytes, Ordering::Relaxed);
    }
}

impl Db {
    /// What is counted of a partition; nothing where there is none, as in a database that has no partitions.
    ///
    /// # Errors
    /// The engine failed.
    pub fn partition_info(&self, partition: &str) -> Result<PartitionInfo, StoreError> {
        self.present()?;
        let value = self.inner().store.engine.get(Space::Meta, &key::partition(self.inner().id, partition))?;
        value.map_or_else(|| Ok(PartitionInfo::default()), |value| PartitionInfo::decode(&value))
    }
}

impl Tx<'_> {
    /// Changes what is counted of a document's partition, if it has one.
    pub(crate) fn count_partition(
        &mut self,
        db: &Db,
        id: &str,
        change: impl FnOnce(&mut PartitionInfo),
    ) -> Result<(), StoreError> {
        let Some(partition) = partition_of(id).filter(|_| db.is_partitioned()) else { return Ok(()) };
        let record_key = key::partition(db.inner().id, partition);
        let before = self.get(Space::Meta, &record_key)?;
        let mut info = before.map(|value| PartitionInfo::decode(&value)).transpose()?.unwrap_or_default();
        change(&mut info);
        if (info.docs, info.deleted, info.bytes) == (0, 0, 0) {
            self.delete(Space::Meta, record_key);
        } else {
            self.put(Space::Meta, record_key, info.encode());
        }
        Ok(())
    }

    /// Counts what a document's leaves have come to: `gone` bytes are of leaves that it had, `came` of those that it has now.
    pub(crate) fn count_external(&mut self, db: &Db, id: &str, gone: u64, came: u64) -> Result<(), StoreError> {
        if gone == came {
            return Ok(());
        }
        self.count_partition(db, id, |partition| {
            partition.external = partition.external.map(|bytes| bytes.saturating_sub(gone) + came);
        })
    }

    /// Bytes of the leaves that a document's record has and the other has not; 0 where partitions are not counted.
    pub(crate) fn leaf_bytes(
        &self,
        db: &Db,
        id: &str,
        of: Option<&DocRecord>,
        without: Option<&DocRecord>,
    ) -> Result<u64, StoreError> {
        if !db.is_partitioned() || partition_of(id).is_none() {
            return Ok(0);
        }
        let bodies = |record: Option<&DocRecord>| record.map(|record| leaf_bodies(&record.tree)).unwrap_or_default();
        let without = bodies(without);
        bodies(of).difference(&without).map(|body| self.body_bytes(db, *body)).sum()
    }

    /// Which of the edits' partitions are too large before any of the edits is applied: as in CouchDB all of a batch count
    /// as one.
    pub(crate) fn full_partitions(&self, db: &Db, edits: &[Edit]) -> Result<Full, StoreError> {
        let max = self.store.max_partition_bytes.load(Ordering::Relaxed);
        if max == 0 || !db.is_partitioned() {
            return Ok(Full::new());
        }
        let names: BTreeSet<&str> = edits.iter().filter_map(|edit| partition_of(&edit.id)).collect();
        let mut full = Full::new();
        for name in names {
            let record = self.get(Space::Meta, &key::partition(db.inner().id, name))?;
            let size = record.map(|value| PartitionInfo::decode(&value)).transpose()?.unwrap_or_default().size();
            if size >= max {
                full.insert(name.to_owned());
            }
        }
        Ok(full)
    }

    /// Refuses an edit that would add to a partition that is too large. One that takes away from it is let through.
    pub(crate) fn check_partition(
        &self,
        db: &Db,
        full: &Full,
        tree: &RevTree,
        edit: &Edit,
        parent: Option<&Rev>,
        attachments: &[Attachment],
    ) -> Result<(), WriteError> {
        if full.is_empty() || partition_of(&edit.id).is_none_or(|partition| !full.contains(partition)) {
            return Ok(());
        }
        let leaf = parent.and_then(|rev| tree.find(rev)).filter(|index| tree.is_leaf(*index));
        let before = match leaf.and_then(|index| tree.nodes()[index].body) {
            Some(body) => self.body_bytes(db, body)?,
            None => 0,
        };
        if bytes_of(attachments, &edit.body) > before {
            return Err(WriteError::PartitionOverflow(edit.id.clone()));
        }
        Ok(())
    }

    fn body_bytes(&self, db: &Db, body: Seq) -> Result<u64, StoreError> {
        self.get(Space::Bodies, &key::seq(db.inner().id, body))?.map_or(Ok(0), |value| bytes_of_body(&value))
    }
}

/// Bytes of a document's leaves, for checking what is counted.
pub(crate) fn leaf_bytes_in(snapshot: &dyn Snapshot, db: DbId, tree: &RevTree) -> Result<u64, StoreError> {
    let mut sum = 0;
    for body in leaf_bodies(tree) {
        if let Some(value) = snapshot.get(Space::Bodies, &key::seq(db, body))? {
            sum += bytes_of_body(&value)?;
        }
    }
    Ok(sum)
}

fn leaf_bodies(tree: &RevTree) -> BTreeSet<Seq> {
    tree.leaves().into_iter().filter_map(|leaf| tree.nodes()[leaf].body).collect()
}

fn bytes_of_body(value: &Value) -> Result<u64, StoreError> {
    let (attachments, json) = decode_body(value)?;
    Ok(bytes_of(&attachments, &json))
}

fn bytes_of(attachments: &[Attachment], json: &[u8]) -> u64 {
    let attached: u64 = attachments.iter().map(|attachment| attachment.length).sum();
    json.len() as u64 + attached
}

#[cfg(test)]
mod tests {
    use super::{partition_bounds, partition_of, validate_partition, validate_partitioned_id};

    #[test]
    fn ids_are_of_the_form_partition_and_id() {
        for good in ["p:1", "p:1:2", "a b:é", "_design/x", "_local/x", "p:_design/x", "P;:1"] {
            assert_eq!(validate_partitioned_id(good), Ok(()), "{good}");
        }
        for (bad, reason) in [
            ("p", "Doc id must be of form partition:id"),
            ("", "Doc id must be of form partition:id"),
            (":1", "Partition must not be empty"),
            ("p:", "Document id must not be empty"),
            ("p:_1", "Only reserved document ids may start with underscore."),
            ("_p:1", "Partition must not start with an underscore"),
        ] {
            assert_eq!(
                validate_partitioned_id(bad).map_err(|error| error.to_string()),
                Err(reason.to_owned()),
                "{bad}"
            );
        }
        assert!(validate_partition("a:b").is_err() && validate_partition("a;b").is_ok());
    }

    #[test]
    fn a_partition_is_a_stretch_of_ids() {
        let (low, behind) = partition_bounds("p");
        let within = |id: &str| id >= low.as_str() && id < behind.as_str();
        for id in ["p:0", "p::", "p:\u{10ffff}", "o:z", "p0:1", "p;:1", "p!:1", "pp:1", "_design/p:1"] {
            assert_eq!(within(id), partition_of(id) == Some("p"), "{id}");
        }
    }
}
