//! Bringing changes into the pages of a tree.
//!
//! Changes come sorted, so that each page that they touch is read and written once. A page that grows too large is
//! split, one that gets small takes in the one after it, an empty one goes. A page's separator is the shortest string
//! that parts it from the one before: heads stay small, however long keys are.

use crate::error::IndexError;
use crate::keys::{TreeId, separator};
use crate::page::{Cell, Head, PageRow, encode, encode_page};
use crate::reduce::reduce_rows;
use crate::spec::Reduce;
use crate::walk::{at_or_after, at_or_before, load};
use rean_store::engine::{Batch, Snapshot, Space};
use std::iter::Peekable;

/// Bytes of a page. Reading a row costs reading its page, a change costs writing it; heads are a hundredth of it.
const PAGE_BYTES: usize = 4 << 10;
/// From here on a page is split: above what it is split into, so that the parts are not split again at once.
const SPLIT_BYTES: usize = 6 << 10;
/// A page below this takes in its neighbour.
const SMALL_BYTES: usize = 1 << 10;

/// A head with more bytes goes without its reduction, which is made of the page whenever it is asked for: heads are
/// read many at a time, and are for knowing of pages without reading them.
const HEAD_BYTES: usize = 8 << 10;

/// A change of a row: what it is now; `None`: it is gone.
pub(crate) type Change = (Vec<u8>, Option<Cell>);

/// What changes did to a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    pub rows: i64,
    pub page_bytes: i64,
}

/// Stages changes, which are sorted by place and name each place once.
///
/// # Errors
/// The engine failed, or a reduction was not possible at the moment: nothing must be committed then.
pub(crate) fn apply(
    snapshot: &dyn Snapshot,
    tree: TreeId,
    changes: impl Iterator<Item = Change>,
    reduce: &Reduce,
    batch: &mut Batch,
) -> Result<Delta, IndexError> {
    let mut writer = Writer { snapshot, tree, reduce, batch, delta: Delta::default() };
    let mut changes = changes.peekable();
    while let Some((place, _)) = changes.peek() {
        let (page, rows) = match at_or_before(snapshot, tree, place)? {
            Some(page) => {
                let rows = writer.take(&page)?;
                (page, rows)
            }
            // Below all pages, or the first of all.
            None => (Vec::new(), Vec::new()),
        };
        writer.page(page, rows, &mut changes)?;
    }
    Ok(writer.delta)
}

struct Writer<'a> {
    snapshot: &'a dyn Snapshot,
    tree: TreeId,
    reduce: &'a Reduce,
    batch: &'a mut Batch,
    delta: Delta,
}

impl Writer<'_> {
    /// Brings all changes of a page into it, and of those after it that it takes in.
    fn page(
        &mut self,
        page: Vec<u8>,
        mut rows: Vec<PageRow>,
        changes: &mut Peekable<impl Iterator<Item = Change>>,
    ) -> Result<(), IndexError> {
        let mut next = self.after(&page)?;
        let last_before = rows.last().map(|row| row.place.clone());
        loop {
            let mine = |change: &Change| next.as_ref().is_none_or(|next| change.0 < *next);
            let some: Vec<Change> = std::iter::from_fn(|| changes.next_if(mine)).collect();
            rows = merge(rows, some);
            let Some(neighbour) = next.as_ref().filter(|_| !rows.is_empty() && bytes_of(&rows) < SMALL_BYTES) else {
                break;
            };
            rows.extend(self.take(neighbour)?);
            next = self.after(neighbour)?;
        }
        // Rows that come in the order of their keys, as those of dates do, leave full pages behind.
        let grows_at_end = next.is_none() && rows.last().map(|row| &row.place) > last_before.as_ref();
        let mut before: Option<&PageRow> = None;
        for part in split(&rows, grows_at_end) {
            let at = match (before, part.first()) {
                (Some(before), Some(first)) => separator(&before.place, &first.place),
                _ => page.clone(),
            };
            self.put(&at, part)?;
            before = part.last();
        }
        Ok(())
    }

    /// Reads a page, which is to be written anew or to go.
    fn take(&mut self, page: &[u8]) -> Result<Vec<PageRow>, IndexError> {
        let (rows, bytes) = load(self.snapshot, self.tree, page)?;
        self.batch.delete(Space::Bodies, self.tree.page(page));
        self.batch.delete(Space::Seqs, self.tree.page(page));
        self.delta.rows -= rows.len() as i64;
        self.delta.page_bytes -= bytes as i64;
        Ok(rows)
    }

    fn put(&mut self, page: &[u8], rows: &[PageRow]) -> Result<(), IndexError> {
        let encoded = encode_page(rows);
        let reduction = match self.reduce {
            Reduce::None => None,
            reduce => Some(reduce_rows(reduce, rows)?),
        };
        let mut head = Head { rows: rows.len() as u64, bytes: encoded.len() as u64, reduction };
        if encode(&head).len() > HEAD_BYTES {
            head.reduction = None;
        }
        self.delta.rows += rows.len() as i64;
        self.delta.page_bytes += encoded.len() as i64;
        self.batch.put(Space::Bodies, self.tree.page(page), encoded);
        self.batch.put(Space::Seqs, self.tree.page(page), encode(&head));
        Ok(())
    }

    fn after(&self, page: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        let mut behind = page.to_vec();
        behind.push(0);
        at_or_after(self.snapshot, self.tree, &behind)
    }
}

fn merge(rows: Vec<PageRow>, changes: Vec<Change>) -> Vec<PageRow> {
    let mut out = Vec::with_capacity(rows.len() + changes.len());
    let mut rows = rows.into_iter().peekable();
    for (place, cell) in changes {
        out.extend(std::iter::from_fn(|| rows.next_if(|row| row.place < place)));
        rows.next_if(|row| row.place == place);
        out.extend(cell.map(|cell| PageRow { place, cell }));
    }
    out.extend(rows);
    out
}

fn bytes_of(rows: &[PageRow]) -> usize {
    costs(rows).sum()
}

fn costs(rows: &[PageRow]) -> impl Iterator<Item = usize> + '_ {
    rows.iter().enumerate().map(|(at, row)| row.cost(at.checked_sub(1).map(|before| &rows[before])))
}

/// Parts rows into pages: none if there are none.
fn split(rows: &[PageRow], fill: bool) -> Vec<&[PageRow]> {
    if rows.is_empty() {
        return Vec::new();
    }
    let total = bytes_of(rows);
    if total <= SPLIT_BYTES {
        return vec![rows];
    }
    // Evenly: rows that come anywhere find room in all of them.
    let goal = if fill { PAGE_BYTES } else { total.div_ceil(total.div_ceil(PAGE_BYTES)) };
    let mut parts = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (at, cost) in costs(rows).enumerate() {
        if bytes > 0 && bytes + cost > goal + PAGE_BYTES / 8 {
            parts.push(&rows[begin..at]);
            (begin, bytes) = (at, 0);
        }
        bytes += cost;
    }
    parts.push(&rows[begin..]);
    parts
}
