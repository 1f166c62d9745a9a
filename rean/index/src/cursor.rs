//! Rows of several trees as one list.

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

/// The rows of one tree.
pub(crate) struct Cursor {
    pub walk: Walk,
    pub rows: VecDeque<PageRow>,
}

/// A merge that goes on from page to page.
pub(crate) struct Merge {
    cursors: Vec<Cursor>,
    heap: BinaryHeap<Front>,
    /// Cursors that are not in the heap, though they may have rows.
    unfilled: Vec<usize>,
    descending: bool,
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

/// The first rows of all trees in a span. Fewer than there are only if one of the bounds was met.
pub(crate) fn merge(
    snapshot: &dyn Snapshot,
    trees: &[TreeId],
    span: &Span,
    descending: bool,
    bounds: Bounds,
) -> Result<Vec<PageRow>, IndexError> {
    let mut out: Vec<PageRow> = Vec::new();
    for some in trees.chunks(MERGED_TREES) {
        let mut span = span.clone();
        // What comes after the rows that are there already is not wanted.
        if let Some(last) = out.last().filter(|_| is_enough(&out, bounds)) {
            if descending { span.lo = last.place.clone() } else { span.hi = Some(last.place.clone()) }
        }
        let rows = Merge::new(some, &span, descending).take(snapshot, bounds)?;
        let full_at = rows.last().filter(|_| is_enough(&rows, bounds)).map(|last| last.place.clone());
        let mut both = out;
        both.extend(rows);
        both.sort_unstable_by(|a, b| in_direction(&a.place, &b.place, descending));
        // Of these trees there may be more behind their last row: what others have behind it comes later.
        if let Some(full_at) = full_at {
            both.retain(|row| in_direction(&row.place, &full_at, descending) != Ordering::Greater);
        }
        cut(&mut both, bounds);
        out = both;
    }
    Ok(out)
}

impl Merge {
    pub fn new(trees: &[TreeId], span: &Span, descending: bool) -> Merge {
        let cursors: Vec<Cursor> = trees.iter().map(|tree| Cursor::new(*tree, span, descending)).collect();
        let unfilled = (0..cursors.len()).collect();
        Merge { cursors, heap: BinaryHeap::new(), unfilled, descending }
    }

    /// The next rows, up to the bounds. After an error it is worth nothing.
    pub fn take(&mut self, snapshot: &dyn Snapshot, bounds: Bounds) -> Result<Vec<PageRow>, IndexError> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while rows.len() < bounds.rows && bytes < bounds.bytes {
            while let Some(at) = self.unfilled.pop() {
                if let Some(row) = self.cursors[at].fill(snapshot)? {
                    self.heap.push(Front { place: row.place.clone(), at, descending: self.descending });
                }
            }
            let Some(Front { at, .. }) = self.heap.pop() else { break };
            // Filled only when one more row is wanted: it may be in another page.
            self.unfilled.push(at);
            if let Some(row) = self.cursors[at].rows.pop_front() {
                bytes += size(&row);
                rows.push(row);
            }
        }
        Ok(rows)
    }
}

fn size(row: &PageRow) -> usize {
    row.place.len() + row.cell.key.len() + row.cell.value.len()
}

fn is_enough(rows: &[PageRow], bounds: Bounds) -> bool {
    rows.len() >= bounds.rows || rows.iter().map(size).sum::<usize>() >= bounds.bytes
}

fn cut(rows: &mut Vec<PageRow>, bounds: Bounds) {
    let mut bytes = 0;
    let fits = |row: &&PageRow| {
        let before = bytes;
        bytes += size(row);
        before < bounds.bytes
    };
    let count = rows.iter().take(bounds.rows).take_while(fits).count();
    rows.truncate(count);
}

pub(crate) fn in_direction(a: &[u8], b: &[u8], descending: bool) -> Ordering {
    if descending { b.cmp(a) } else { a.cmp(b) }
}

/// A cursor's next row in the heap of a merge, whose greatest is the next of all.
struct Front {
    place: Vec<u8>,
    at: usize,
    descending: bool,
}

impl Ord for Front {
    fn cmp(&self, other: &Front) -> Ordering {
        in_direction(&other.place, &self.place, self.descending)
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
