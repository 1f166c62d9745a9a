//! Rows of several trees as one list.

use crate::entries::Entries;
use crate::error::IndexError;
use crate::keys::TreeId;
use crate::page::PageRow;
use crate::walk::{Span, Walk};
use rean_store::engine::Snapshot;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

/// Trees that are merged at a time: each has a page in memory. More are taken in rounds.
pub(crate) const MERGED_TREES: usize = 256;

/// How much is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub rows: usize,
    pub bytes: usize,
}

/// The rows of one tree, in the order of their places or against it.
pub(crate) struct Cursor {
    pub walk: Walk,
    pub rows: VecDeque<PageRow>,
}

/// A row, and where it was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub row: PageRow,
    pub tree: TreeId,
}

/// A merge that goes on from page to page.
pub(crate) struct Merge {
    trees: Vec<Entries>,
    heap: BinaryHeap<Front>,
    /// Trees that are not in the heap, though they may have rows.
    unfilled: Vec<usize>,
    descending: bool,
}

impl Bounds {
    /// What may still come behind some rows; `None`: nothing.
    pub fn behind(self, found: &[Found]) -> Option<Bounds> {
        let bytes: usize = found.iter().map(|found| size(&found.row)).sum();
        let left = Bounds { rows: self.rows.saturating_sub(found.len()), bytes: self.bytes.saturating_sub(bytes) };
        (left.rows > 0 && left.bytes > 0).then_some(left)
    }
}

impl Cursor {
    pub fn new(tree: TreeId, span: &Span, descending: bool) -> Cursor {
        Cursor { walk: Walk::new(tree, span.clone(), descending), rows: VecDeque::new() }
    }

    /// Has the next row in front, if there is one.
    pub fn fill(&mut self, snapshot: &dyn Snapshot) -> Result<Option<&PageRow>, IndexError> {
        while self.rows.is_empty() {
            let Some(page) = self.walk.next(snapshot)? else { return Ok(None) };
            self.rows = self.walk.rows(snapshot, &page)?;
        }
        Ok(self.rows.front())
    }
}

/// The first rows of all trees in a span, which backwards must part no entry. Fewer than there are only if one of the
/// bounds was met.
pub(crate) fn merge(
    snapshot: &dyn Snapshot,
    trees: &[TreeId],
    span: &Span,
    descending: bool,
    bounds: Bounds,
) -> Result<Vec<Found>, IndexError> {
    let mut out: Vec<Found> = Vec::new();
    for some in trees.chunks(MERGED_TREES) {
        let mut span = span.clone();
        // What comes after the rows that are there already is not wanted. An entry is in one tree only.
        if let Some(last) = out.last().filter(|_| bounds.behind(&out).is_none()) {
            let entry = last.row.entry();
            if descending { span.lo = entry.to_vec() } else { span.hi = Some(entry.to_vec()) }
        }
        let found = Merge::new(some, &span, descending).take(snapshot, bounds)?;
        let full_at =
            found.last().filter(|_| bounds.behind(&found).is_none()).map(|last| Front::of(&last.row, 0, descending));
        let mut both = out;
        both.extend(found);
        both.sort_by_cached_key(|found| std::cmp::Reverse(Front::of(&found.row, 0, descending)));
        // Of these trees there may be more behind their last row: what others have behind it comes later.
        if let Some(full_at) = full_at {
            both.retain(|found| Front::of(&found.row, 0, descending) >= full_at);
        }
        cut(&mut both, bounds);
        out = both;
    }
    Ok(out)
}

impl Merge {
    pub fn new(trees: &[TreeId], span: &Span, descending: bool) -> Merge {
        let trees: Vec<Entries> = trees.iter().map(|tree| Entries::new(*tree, span, descending)).collect();
        let unfilled = (0..trees.len()).collect();
        Merge { trees, heap: BinaryHeap::new(), unfilled, descending }
    }

    /// The next rows, up to the bounds. After an error it is worth nothing.
    pub fn take(&mut self, snapshot: &dyn Snapshot, bounds: Bounds) -> Result<Vec<Found>, IndexError> {
        let (mut out, mut bytes) = (Vec::new(), 0);
        while out.len() < bounds.rows && bytes < bounds.bytes {
            while let Some(at) = self.unfilled.pop() {
                if let Some(row) = self.trees[at].fill(snapshot)? {
                    self.heap.push(Front::of(row, at, self.descending));
                }
            }
            let Some(Front { at, .. }) = self.heap.pop() else { break };
            // Filled only when one more row is wanted: it may be in another page.
            self.unfilled.push(at);
            let tree = self.trees[at].tree;
            if let Some(row) = self.trees[at].pop() {
                bytes += size(&row);
                out.push(Found { row, tree });
            }
        }
        Ok(out)
    }
}

fn size(row: &PageRow) -> usize {
    row.place.len() + row.cell.key.len() + row.cell.value.len()
}

fn cut(found: &mut Vec<Found>, bounds: Bounds) {
    let mut bytes = 0;
    let fits = |found: &&Found| {
        let before = bytes;
        bytes += size(&found.row);
        before < bounds.bytes
    };
    let count = found.iter().take(bounds.rows).take_while(fits).count();
    found.truncate(count);
}

pub(crate) fn in_direction(a: &[u8], b: &[u8], descending: bool) -> Ordering {
    if descending { b.cmp(a) } else { a.cmp(b) }
}

/// A tree's next row in the heap of a merge, whose greatest is the next of all.
struct Front {
    place: Vec<u8>,
    /// Bytes of [`PageRow::entry`] in it.
    entry_len: usize,
    at: usize,
    descending: bool,
}

impl Front {
    fn of(row: &PageRow, at: usize, descending: bool) -> Front {
        Front { place: row.place.clone(), entry_len: row.entry().len(), at, descending }
    }
}

impl Ord for Front {
    fn cmp(&self, other: &Front) -> Ordering {
        // Within an entry rows come forwards, in either direction.
        let entries = (&other.place[..other.entry_len], &self.place[..self.entry_len]);
        in_direction(entries.0, entries.1, self.descending).then_with(|| other.place.cmp(&self.place))
    }
}

impl PartialOrd for Front {
    fn partial_cmp(&self, other: &Front) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Front {
    fn eq(&self, other: &Front) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Front {}
