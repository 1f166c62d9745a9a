//! The rows of a tree in the order that clients see.
//!
//! Backwards that is not quite the order of places: the rows that a document has with one key are one entry in CouchDB's
//! trees. It reads entries backwards, but the rows of each of them forwards
//! (<https://github.com/apache/couchdb/blob/main/src/couch_mrview/src/couch_mrview_util.erl>, `fold` and `expand_dups`).

use crate::error::IndexError;
use crate::keys::{TreeId, top_of};
use crate::page::PageRow;
use crate::walk::{PageAt, Span, Walk};
use rean_store::engine::Snapshot;
use std::collections::VecDeque;

/// The rows of one tree in a span, which backwards must part no entry. One page of them is in memory, however large an entry is.
pub(crate) struct Entries {
    pub tree: TreeId,
    descending: bool,
    walk: Walk,
    rows: VecDeque<PageRow>,
    /// Backwards: an entry that began in an earlier page than the one where it was met. It comes behind `rows`.
    entry: Option<Walk>,
}

impl Entries {
    pub fn new(tree: TreeId, span: &Span, descending: bool) -> Entries {
        let walk = Walk::new(tree, span.clone(), descending);
        Entries { tree, descending, walk, rows: VecDeque::new(), entry: None }
    }

    /// Has the next row in front, if there is one.
    pub fn fill(&mut self, snapshot: &dyn Snapshot) -> Result<Option<&PageRow>, IndexError> {
        while self.rows.is_empty() {
            if let Some(entry) = &mut self.entry {
                match entry.next(snapshot)? {
                    Some(page) => self.rows = entry.rows(snapshot, &page)?,
                    None => self.entry = None,
                }
                continue;
            }
            let Some(page) = self.walk.next(snapshot)? else { return Ok(None) };
            if self.walk.span.hi.as_ref().is_some_and(|hi| page.separator >= *hi) {
                // It has nothing but rows of an entry that was read as a whole.
                continue;
            }
            self.rows = self.walk.rows(snapshot, &page)?;
            if self.descending {
                self.turn_entries(&page);
            }
        }
        Ok(self.rows.front())
    }

    /// Takes the row that [`Entries::fill`] has in front.
    pub fn pop(&mut self) -> Option<PageRow> {
        self.rows.pop_front()
    }

    /// Turns the rows of each entry round, in a page whose rows come backwards.
    fn turn_entries(&mut self, page: &PageAt) {
        // The page before has rows of an entry only if what parts the two pages lies within it.
        if let Some(entry) = self.rows.back().map(PageRow::entry).filter(|entry| page.separator[..] > **entry) {
            let entry = entry.to_vec();
            self.rows.retain(|row| row.entry() != entry);
            let span = Span { lo: entry.clone(), hi: Some(top_of(&entry)) };
            self.entry = Some(Walk::new(self.tree, span, false));
            self.walk.span.hi = Some(entry);
        }
        self.rows.make_contiguous().chunk_by_mut(|a, b| a.entry() == b.entry()).for_each(<[PageRow]>::reverse);
    }
}
