//! Databases whose documents' ids say a partition, `partition:id`, and what is counted of each partition
//! (<https://docs.couchdb.org/en/stable/partitioned-dbs/index.html>).
//!
//! A partition is a stretch of ids, so nothing is stored twice for it. Its counts are records of their own, written in
//! the commit of the document that they count: to ask for them costs the same however large it is.

use crate::db::Db;
use crate::document::{DocumentError, validate_id};
use crate::engine::Space;
use crate::error::StoreError;
use crate::record::{decode, encode, key};
use crate::writer::Tx;
use serde::{Deserialize, Serialize};

/// What ends a partition in an id.
const SEPARATOR: char = ':';
/// The character after it: behind all ids of a partition.
const BEHIND: char = ';';
/// What the ids of documents without a partition begin with.
const FREE: [&str; 2] = ["_design/", "_local/"];

/// What is counted of a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionInfo {
    /// Live documents.
    pub docs: u64,
    /// Deleted documents.
    pub deleted: u64,
    /// Bytes of stored bodies.
    pub bytes: u64,
}

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

impl Db {
    /// What is counted of a partition; nothing where there is none, as in a database that has no partitions.
    ///
    /// # Errors
    /// The engine failed.
    pub fn partition_info(&self, partition: &str) -> Result<PartitionInfo, StoreError> {
        self.present()?;
        let value = self.inner().store.engine.get(Space::Meta, &key::partition(self.inner().id, partition))?;
        value.map_or_else(|| Ok(PartitionInfo::default()), |value| decode(&value, "counts of a partition"))
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
        let mut info: PartitionInfo =
            before.map(|value| decode(&value, "counts of a partition")).transpose()?.unwrap_or_default();
        change(&mut info);
        if info == PartitionInfo::default() {
            self.delete(Space::Meta, record_key);
        } else {
            self.put(Space::Meta, record_key, encode(&info));
        }
        Ok(())
    }
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
