//! The rows of a range, page by page.
//!
//! Where there are few trees, a page goes on where the one before it stopped. Where there are many, nothing is kept but
//! the place of the last row, and a page opens what it needs anew: rows may wait for a slow client.

use crate::cursor::{Bounds, Found, Merge, merge};
use crate::error::IndexError;
use crate::keys::{TreeId, top_of};
use crate::page::PageRow;
use crate::range::Range;
use crate::view::{View, count_rows};
use crate::walk::{PageAt, Span, Walk};
use bytes::Bytes;

/// Bytes of rows after which a page ends, though it could have more rows.
const PAGE_BYTES: usize = 1 << 20;

/// Trees that are kept open between two pages: each has a page of rows, and some heads, in memory.
const KEPT_TREES: usize = 128;

/// A row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The document that it is of.
    pub id: String,
    /// JSON.
    pub key: Bytes,
    /// JSON.
    pub value: Bytes,
}

/// The rows of a range that are still to be taken. It may be kept and moved between threads.
pub struct Rows {
    view: View,
    /// What is left, but for `entry`. Backwards it parts no entry.
    span: Span,
    descending: bool,
    /// Backwards: where a page stopped within an entry, what is left of that, to be read forwards before all else.
    entry: Option<(TreeId, Span)>,
    /// Stands at the beginning of what is left.
    open: Option<Merge>,
}

impl Rows {
    pub(crate) fn new(view: View, range: &Range) -> Rows {
        let span = view.span(range);
        Rows { view, span, descending: range.descending, entry: None, open: None }
    }

    /// Leaves out the next `n` rows; gives how many there were, if fewer.
    ///
    /// # Errors
    /// The engine failed.
    pub fn skip(&mut self, n: u64) -> Result<u64, IndexError> {
        let mut left = n;
        if let [_] = self.view.trees() {
            let entry = self.skip_entry(left);
            left -= self.view.noting(entry)?;
            if self.entry.is_none() {
                self.open = None;
                let pages = self.skip_pages(left);
                left -= self.view.noting(pages)?;
            }
        }
        while left > 0 {
            let limit = usize::try_from(left).unwrap_or(usize::MAX).min(SKIPPED_AT_ONCE);
            let skipped = self.next_page(limit)?.len() as u64;
            if skipped == 0 {
                break;
            }
            left -= skipped;
        }
        Ok(n - left)
    }

    /// The next rows, at most `limit` (at least 1), fewer if they are large; empty: there are no more.
    ///
    /// # Errors
    /// The engine failed.
    pub fn next_page(&mut self, limit: usize) -> Result<Vec<Row>, IndexError> {
        let bounds = Bounds { rows: limit.max(1), bytes: PAGE_BYTES };
        let found = self.take(bounds);
        let found = self.view.noting(found)?;
        if let Some(last) = found.last() {
            self.go_behind(last);
        }
        let row = |Found { row, .. }: Found| Ok(Row { id: row.id()?, key: row.cell.key, value: row.cell.value });
        let rows = found.into_iter().map(row).collect();
        self.view.noting(rows)
    }

    fn take(&mut self, bounds: Bounds) -> Result<Vec<Found>, IndexError> {
        let (snapshot, trees) = (self.view.snapshot(), self.view.trees());
        if let Some(mut open) = self.open.take() {
            let found = open.take(snapshot, bounds)?;
            self.open = Some(open);
            return Ok(found);
        }
        let mut found = match &self.entry {
            Some((tree, span)) => Merge::new(&[*tree], span, false).take(snapshot, bounds)?,
            None => Vec::new(),
        };
        let Some(left) = bounds.behind(&found) else { return Ok(found) };
        if trees.len() > KEPT_TREES {
            found.extend(merge(snapshot, trees, &self.span, self.descending, left)?);
        } else {
            let mut open = Merge::new(trees, &self.span, self.descending);
            found.extend(open.take(snapshot, left)?);
            self.open = Some(open);
        }
        Ok(found)
    }

    fn go_behind(&mut self, last: &Found) {
        let mut behind = last.row.place.clone();
        behind.push(0);
        if self.descending {
            let entry = last.row.entry().to_vec();
            self.entry = Some((last.tree, Span { lo: behind, hi: Some(top_of(&entry)) }));
            self.span.hi = Some(entry);
        } else {
            self.span.lo = behind;
        }
    }

    /// Leaves out what is left of an entry, if it has no more rows than that.
    fn skip_entry(&mut self, n: u64) -> Result<u64, IndexError> {
        let Some((tree, span)) = &self.entry else { return Ok(0) };
        let rows = count_rows(self.view.snapshot(), *tree, span)?;
        if rows > n {
            return Ok(0);
        }
        (self.entry, self.open) = (None, None);
        Ok(rows)
    }

    /// Leaves out whole pages without reading them.
    fn skip_pages(&mut self, n: u64) -> Result<u64, IndexError> {
        let Some(tree) = self.view.trees().first().copied() else { return Ok(0) };
        let whole = self.span.clone();
        let mut walk = Walk::new(tree, whole.clone(), self.descending);
        let mut skipped = 0;
        let mut last: Option<PageAt> = None;
        while let Some(page) = walk.next(self.view.snapshot())? {
            let rows = match self.span.covers(&page) {
                true => page.head.rows,
                false => walk.rows(self.view.snapshot(), &page)?.len() as u64,
            };
            if skipped + rows > n {
                break;
            }
            skipped += rows;
            match (self.descending, &page.next) {
                (true, _) => self.span.hi = Some(page.separator.clone().max(self.span.lo.clone())),
                (false, Some(next)) => self.span.lo = next.clone().max(std::mem::take(&mut self.span.lo)),
                // Behind the last page there is nothing.
                (false, None) => self.span.hi = Some(self.span.lo.clone()),
            }
            last = Some(page);
        }
        match last.filter(|_| self.descending) {
            Some(last) => Ok(skipped - self.back_before_entry(tree, &whole, &last, &walk)?),
            None => Ok(skipped),
        }
    }

    /// Backwards, the pages that were left out may end within an entry, whose first rows are in the pages before: goes back
    /// to before it. Gives how many rows that is.
    fn back_before_entry(&mut self, tree: TreeId, whole: &Span, last: &PageAt, walk: &Walk) -> Result<u64, IndexError> {
        let rows = walk.rows(self.view.snapshot(), last)?;
        let entry = rows.back().map(PageRow::entry).filter(|entry| last.separator[..] > **entry);
        let Some(top) = entry.map(top_of) else { return Ok(0) };
        let top = whole.hi.clone().map_or(top.clone(), |hi| hi.min(top));
        let span = Span { lo: last.separator.clone(), hi: Some(top.clone()) };
        let rows = count_rows(self.view.snapshot(), tree, &span)?;
        self.span.hi = Some(top);
        Ok(rows)
    }
}

/// Rows that are read at once to be left out.
const SKIPPED_AT_ONCE: usize = 1_000;
