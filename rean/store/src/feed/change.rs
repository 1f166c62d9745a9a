//! One committed change, as live listeners get it.

use crate::record::{PartNo, PartRow, Seq, SeqRow};
use bytes::Bytes;
use std::any::Any;
use std::sync::{Arc, OnceLock};

/// One committed change.
pub struct Change {
    /// Its sequence.
    pub seq: Seq,
    /// The sequence of the database's change before it.
    pub prev: Seq,
    /// What follows a row's sequence in a feed, serialized by the first listener that needs it.
    pub line: OnceLock<Bytes>,
    /// The same with the document.
    pub line_with_doc: OnceLock<Bytes>,
    /// What listeners have found out about the document and keep for one another.
    pub kept: OnceLock<Arc<dyn Any + Send + Sync>>,
    pub(super) row: SeqRow,
    pub(super) place: Option<PartNo>,
    pub(super) part_rows: Vec<(PartNo, PartRow)>,
}

impl Change {
    pub(crate) fn new(
        seq: Seq,
        prev: Seq,
        row: SeqRow,
        place: Option<PartNo>,
        part_rows: Vec<(PartNo, PartRow)>,
    ) -> Change {
        let (line, line_with_doc, kept) = Default::default();
        Change { seq, prev, line, line_with_doc, kept, row, place, part_rows }
    }

    /// The document.
    pub fn id(&self) -> &str {
        &self.row.id
    }

    /// Whether its winner is a deletion.
    pub fn is_deletion(&self) -> bool {
        self.row.leaves.first().is_none_or(|winner| winner.deleted)
    }

    /// Its winner's generation: 1 for one that is new.
    pub fn generation(&self) -> u64 {
        self.row.leaves.first().map_or(0, |winner| winner.rev.generation)
    }
}
