//! What a replication has done, for those who ask.

use serde_json::{Value, json};

/// Counts of one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Revisions that the target was asked about.
    pub checked: u64,
    /// Of these, those that it did not have.
    pub found: u64,
    /// Documents that were read from the source.
    pub read: u64,
    /// Bytes of these, with attachments.
    pub bytes: u64,
    /// Documents that the target took.
    pub written: u64,
    /// Documents that the target refused.
    pub refused: u64,
    /// Revisions that the source was asked for by `_bulk_get`.
    pub bulk_asked: u64,
    /// Of these, those that it gave.
    pub bulk_given: u64,
}

/// How far a replication is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Counts since the job began.
    pub stats: Stats,
    /// The source's sequence up to which all is done.
    pub through_seq: Value,
    /// The one of the last checkpoint.
    pub checkpointed_seq: Value,
    /// Changes that are still to come, if the source tells.
    pub pending: Option<u64>,
}

impl Stats {
    /// The counts of a run, as in a checkpoint's history.
    pub fn members(&self) -> Value {
        json!({
            "missing_checked": self.checked,
            "missing_found": self.found,
            "docs_read": self.read,
            "docs_written": self.written,
            "doc_write_failures": self.refused,
            "bulk_get_attempts": self.bulk_asked,
            "bulk_get_docs": self.bulk_given,
        })
    }
}

impl Progress {
    /// As `_scheduler` and the documents of `_replicator` tell it.
    pub fn info(&self) -> Value {
        json!({
            "revisions_checked": self.stats.checked,
            "missing_revisions_found": self.stats.found,
            "docs_read": self.stats.read,
            "docs_written": self.stats.written,
            "doc_write_failures": self.stats.refused,
            "changes_pending": self.pending,
            "checkpointed_source_seq": self.checkpointed_seq,
            "source_seq": self.through_seq,
            "through_seq": self.through_seq,
        })
    }
}
