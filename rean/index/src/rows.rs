//! The rows of a range, page by page.
//!
//! Where there are few trees, a page goes on where the one before it stopped. Where there are many, nothing is kept but
//! the place of the last row, and a page opens what it needs anew: rows may wait for a slow client.

use crate::cursor::{Bounds, Merge, merge};
use crate::error::IndexError;
use crate::page::PageRow;
use crate::range::Range;
use crate::view::View;
use crate::walk::{Span, Walk};
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
    /// What is left.
    span: Span,
    descending: bool,
    /// What stands at the beginning of `span`.
    open: Option<Merge>,
}

impl Rows {
    pub(crate) fn new(view: View, range: &Range) -> Rows {
        let span = view.span(range);
        Rows { view, span, descending: range.descending, open: None }
    }

    /// Leaves out the next `n` rows; gives how many there were, if fewer.
    ///
    /// # Errors
    /// The engine failed.
    pub fn skip(&mut self, n: u64) -> Result<u64, IndexError> {
        let mut left = n;
        if let [_] = self.view.trees() {
            self.open = None;
            let pages = self.skip_pages(left);
            left -= self.view.noting(pages)?;
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
        let rows = self.view.noting(found)?;
        if let Some(last) = rows.last() {
            self.go_behind(&last.place);
        }
        let row = |row: PageRow| Ok(Row { id: row.id()?, key: row.cell.key, value: row.cell.value });
        let rows = rows.into_iter().map(row).collect();
        self.view.noting(rows)
    }

    fn take(&mut self, bounds: Bounds) -> Result<Vec<PageRow>, IndexError> {
        let (snapshot, trees) = (self.view.snapshot(), self.view.trees());
        if trees.len() > KEPT_TREES {
            return merge(snapshot, trees, &self.span, self.descending, bounds);
        }
        let mut open = self.open.take().unwrap_or_else(|| Merge::new(trees, &self.span, self.descending));
        let rows = open.take(snapshot, bounds)?;
        self.open = Some(open);
        Ok(rows)
    }

    fn go_behind(&mut self, place: &[u8]) {
        if self.descending {
            self.span.hi = Some(place.to_vec());
        } else {
            self.span.lo = place.to_vec();
            self.span.lo.push(0);
        }
    }

    /// Leaves out whole pages without reading them.
    fn skip_pages(&mut self, n: u64) -> Result<u64, IndexError> {
        let Some(tree) = self.view.trees().first().copied() else { return Ok(0) };
        let mut walk = Walk::new(tree, self.span.clone(), self.descending);
        let mut skipped = 0;
        while let Some(page) = walk.next(self.view.snapshot())? {
            let rows = match self.span.covers(&page) {
                true => page.head.rows,
                false => walk.rows(self.view.snapshot(), &page)?.len() as u64,
            };
            if skipped + rows > n {
                break;
            }
            skipped += rows;
            match (self.descending, page.next) {
                (true, _) => self.span.hi = Some(page.separator.max(self.span.lo.clone())),
                (false, Some(next)) => self.span.lo = next.max(std::mem::take(&mut self.span.lo)),
                // Behind the last page there is nothing.
                (false, None) => self.span.hi = Some(self.span.lo.clone()),
            }
        }
        Ok(skipped)
    }
}

/// Rows that are read at once to be left out.
const SKIPPED_AT_ONCE: usize = 1_000;
