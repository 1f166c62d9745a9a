//! What is kept of an index besides its pages.

use crate::keys::GroupNo;
use serde::{Deserialize, Serialize};

/// The layout of keys and records. Indexes of another one are made anew: there is nothing to migrate.
const LAYOUT: u32 = 2;

/// How the indexes in an engine were made.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Format {
    layout: u32,
    /// The order of strings, see [`rean_store::collate::fingerprint`].
    order: [u8; 16],
}

impl Format {
    pub fn current() -> Format {
        Format { layout: LAYOUT, order: rean_store::collate::fingerprint() }
    }
}

/// An index, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupRecord {
    pub number: GroupNo,
    /// Of the database, for messages.
    pub db_name: String,
    /// The run of sequences in which `seq` is one ([`rean_store::Store::history`]).
    pub history: String,
    /// All changes up to this one are in it.
    pub seq: u64,
    /// So many of the database's purges are in it.
    pub purges: u64,
    /// Bytes of its pages.
    pub page_bytes: u64,
    pub views: u32,
}

/// The rows of a document, so that they are found when it changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Back {
    /// The part that it is in, as in [`crate::keys::TreeId`]; 0: none.
    pub part: u32,
    /// For each view, in the order of their numbers.
    pub views: Vec<Vec<BackRow>>,
}

/// A row of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BackRow {
    pub sort_key: Vec<u8>,
    /// Of key and value, so that a row that stays the same needs no writing. 96 bits: nobody finds another row with
    /// the same, who would gain no more than a stale row of their own document.
    pub hash: [u8; 12],
}

impl Back {
    pub fn has_rows(&self) -> bool {
        self.views.iter().any(|rows| !rows.is_empty())
    }
}
