//! The reductions of a range, page by page.
//!
//! A page of rows that lies in one group as a whole counts by the reduction in its head: only the pages at both ends of
//! a group are read. The groups of several trees are put together by reducing their reductions.

use crate::cursor::{Cursor, MERGED_TREES, in_direction};
use crate::error::IndexError;
use crate::keys::{TreeId, top_of};
use crate::page::PageRow;
use crate::range::{Grouping, Range};
use crate::reduce::{Partial, reduce_rows, rereduce};
use crate::spec::Reduce;
use crate::view::View;
use crate::walk::{PageAt, Span};
use bytes::Bytes;
use rean_store::collate;
use rean_store::engine::Snapshot;
use serde_json::value::RawValue;

/// Rows that are reduced at once, and their bytes.
const ROWS_AT_ONCE: usize = 500;
const BYTES_AT_ONCE: usize = 1 << 20;
/// Reductions that are collected before they are put together, and their bytes.
const PARTIALS_AT_ONCE: usize = 1_000;
const PARTIAL_BYTES_AT_ONCE: usize = 4 << 20;

/// Rows put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReducedRow {
    /// JSON: the key, or its first elements; `null` without grouping.
    pub key: Bytes,
    /// JSON.
    pub value: Bytes,
}

/// The reductions of a range that are still to be taken. It may be kept and moved between threads.
pub struct Reduced {
    view: View,
    /// What is left; `None`: nothing.
    span: Option<Span>,
    descending: bool,
    grouping: Grouping,
}

/// A group.
struct Found {
    /// What the places of its rows begin with, and those of no others.
    prefix: Vec<u8>,
    /// JSON.
    key: Bytes,
    value: Partial,
}

impl Reduced {
    pub(crate) fn new(view: View, range: &Range, grouping: Grouping) -> Reduced {
        let grouping = if grouping == Grouping::Level(0) { Grouping::None } else { grouping };
        let span = Some(view.span(range));
        Reduced { view, span, descending: range.descending, grouping }
    }

    /// The next reductions, at most `limit` (at least 1); empty: there are no more. A range without rows has none,
    /// also without grouping.
    ///
    /// # Errors
    /// The engine failed, or values can't be reduced.
    pub fn next_page(&mut self, limit: usize) -> Result<Vec<ReducedRow>, IndexError> {
        let Some(span) = self.span.clone() else { return Ok(Vec::new()) };
        if self.grouping == Grouping::None {
            self.span = None;
            let whole = self.view.noting(self.whole(&span))?;
            let row = |value| Ok(ReducedRow { key: Bytes::from_static(b"null"), value });
            return whole.map(|whole| row(Bytes::from(whole.finish()?))).into_iter().collect();
        }
        let groups = self.view.noting(self.groups(&span, limit.max(1)))?;
        match groups.last() {
            Some(last) => self.span = Some(behind(span, &last.prefix, self.descending)),
            None => self.span = None,
        }
        let row = |group: Found| Ok(ReducedRow { key: group.key, value: Bytes::from(group.value.finish()?) });
        groups.into_iter().map(row).collect()
    }

    /// All as one.
    fn whole(&self, span: &Span) -> Result<Option<Partial>, IndexError> {
        let mut sum = Sum::new(self.view.reduce_fn());
        for tree in self.view.trees() {
            let mut cursor = Cursor::new(*tree, span, self.descending);
            take_group(self.view.snapshot(), &mut cursor, &[], &mut sum)?;
        }
        sum.finish()
    }

    fn groups(&self, span: &Span, limit: usize) -> Result<Vec<Found>, IndexError> {
        let mut out: Vec<Found> = Vec::new();
        for some in self.view.trees().chunks(MERGED_TREES) {
            let found = self.groups_of(some, span, limit)?;
            let full_at = found.last().filter(|_| found.len() >= limit).map(|last| last.prefix.clone());
            out = self.join(out, found)?;
            if let Some(full_at) = full_at {
                // Of these trees there may be more groups behind: what others have there comes later.
                out.retain(|group| in_direction(&group.prefix, &full_at, self.descending).is_le());
            }
            out.truncate(limit);
        }
        Ok(out)
    }

    /// The first groups of some trees.
    fn groups_of(&self, trees: &[TreeId], span: &Span, limit: usize) -> Result<Vec<Found>, IndexError> {
        let snapshot = self.view.snapshot();
        let mut cursors: Vec<Cursor> = trees.iter().map(|tree| Cursor::new(*tree, span, self.descending)).collect();
        let mut groups = Vec::new();
        while groups.len() < limit {
            let mut first: Option<&PageRow> = None;
            for cursor in &mut cursors {
                if let Some(row) = cursor.fill(snapshot)?
                    && first.is_none_or(|first| in_direction(&row.place, &first.place, self.descending).is_lt())
                {
                    first = Some(row);
                }
            }
            let Some(first) = first else { break };
            let (prefix, key) = self.group_of(first)?;
            let mut sum = Sum::new(self.view.reduce_fn());
            for cursor in &mut cursors {
                take_group(snapshot, cursor, &prefix, &mut sum)?;
            }
            let value = sum.finish()?.ok_or(IndexError::Damaged("a group without rows"))?;
            groups.push(Found { prefix, key, value });
        }
        Ok(groups)
    }

    /// The group that a row is in.
    fn group_of(&self, row: &PageRow) -> Result<(Vec<u8>, Bytes), IndexError> {
        if let Grouping::Level(level) = self.grouping
            && let (partition, key) = row.sort_key().split_at(self.view.partition_len(row.sort_key()))
            && let Some(prefix) = collate::array_prefix(key, level as usize)
        {
            let damaged = |_| IndexError::Damaged("a row's key");
            let elements: Vec<&RawValue> = serde_json::from_slice(&row.cell.key).map_err(damaged)?;
            let first: Vec<&str> = elements.iter().take(level as usize).map(|element| element.get()).collect();
            return Ok(([partition, prefix].concat(), Bytes::from(format!("[{}]", first.join(",")))));
        }
        Ok((row.sort_key().to_vec(), row.cell.key.clone()))
    }

    /// Two lists of groups as one.
    fn join(&self, left: Vec<Found>, right: Vec<Found>) -> Result<Vec<Found>, IndexError> {
        let mut all = left;
        all.extend(right);
        all.sort_by(|a, b| in_direction(&a.prefix, &b.prefix, self.descending));
        let mut out: Vec<Found> = Vec::with_capacity(all.len());
        for group in all {
            match out.pop() {
                Some(last) if last.prefix == group.prefix => {
                    let value = rereduce(self.view.reduce_fn(), vec![last.value, group.value])?;
                    out.push(Found { value, ..last });
                }
                last => {
                    out.extend(last);
                    out.push(group);
                }
            }
        }
        Ok(out)
    }
}

/// What is left of a span behind a group.
fn behind(mut span: Span, prefix: &[u8], descending: bool) -> Span {
    if descending {
        span.hi = Some(prefix.to_vec());
    } else {
        span.lo = top_of(prefix);
    }
    span
}

/// Takes all rows of a group from a cursor, which stands at the first of them or before a page that may have it.
fn take_group(
    snapshot: &dyn Snapshot,
    cursor: &mut Cursor,
    prefix: &[u8],
    sum: &mut Sum<'_>,
) -> Result<(), IndexError> {
    loop {
        while cursor.rows.front().is_some_and(|row| row.place.starts_with(prefix)) {
            sum.rows(cursor.rows.pop_front())?;
        }
        if !cursor.rows.is_empty() {
            return Ok(());
        }
        let Some(page) = cursor.walk.peek(snapshot)?.cloned() else { return Ok(()) };
        if !may_have(&page, prefix) {
            return Ok(());
        }
        cursor.walk.next(snapshot)?;
        match page.head.reduction.as_ref().filter(|_| cursor.walk.span.covers(&page) && is_within(&page, prefix)) {
            Some(reduction) => sum.partial(reduction.clone())?,
            None => cursor.rows = cursor.walk.rows(snapshot, &page)?,
        }
    }
}

/// Whether a page can have rows of a group.
fn may_have(page: &PageAt, prefix: &[u8]) -> bool {
    page.separator < top_of(prefix) && page.next.as_ref().is_none_or(|next| &next[..] > prefix)
}

/// Whether a page can have no rows but those of a group.
fn is_within(page: &PageAt, prefix: &[u8]) -> bool {
    let ends = page.next.as_ref().is_some_and(|next| *next <= top_of(prefix));
    prefix.is_empty() || (&page.separator[..] >= prefix && ends)
}

/// Rows and reductions that are put together, some at a time.
struct Sum<'a> {
    reduce: &'a Reduce,
    rows: Vec<PageRow>,
    bytes: usize,
    partials: Vec<Partial>,
    partial_bytes: usize,
}

impl<'a> Sum<'a> {
    fn new(reduce: &'a Reduce) -> Sum<'a> {
        Sum { reduce, rows: Vec::new(), bytes: 0, partials: Vec::new(), partial_bytes: 0 }
    }

    fn rows(&mut self, row: Option<PageRow>) -> Result<(), IndexError> {
        let Some(row) = row else { return Ok(()) };
        self.bytes += row.place.len() + row.cell.key.len() + row.cell.value.len();
        self.rows.push(row);
        if self.rows.len() >= ROWS_AT_ONCE || self.bytes >= BYTES_AT_ONCE { self.reduce_rows() } else { Ok(()) }
    }

    fn reduce_rows(&mut self) -> Result<(), IndexError> {
        let mut rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        if rows.is_empty() {
            return Ok(());
        }
        // They may be of several trees, and in either direction.
        rows.sort_unstable_by(|a, b| a.place.cmp(&b.place));
        let partial = reduce_rows(self.reduce, &rows)?;
        self.partial(partial)
    }

    fn partial(&mut self, partial: Partial) -> Result<(), IndexError> {
        self.partial_bytes += partial.bytes();
        self.partials.push(partial);
        let is_much = self.partials.len() >= PARTIALS_AT_ONCE || self.partial_bytes >= PARTIAL_BYTES_AT_ONCE;
        if is_much && self.partials.len() > 1 {
            let whole = rereduce(self.reduce, std::mem::take(&mut self.partials))?;
            // What is left is not counted: it can be large, and need not be put together with each that follows.
            self.partial_bytes = 0;
            self.partials.push(whole);
        }
        Ok(())
    }

    /// `None`: there were no rows.
    fn finish(mut self) -> Result<Option<Partial>, IndexError> {
        self.reduce_rows()?;
        if self.partials.is_empty() { Ok(None) } else { rereduce(self.reduce, self.partials).map(Some) }
    }
}
