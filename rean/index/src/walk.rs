//! The pages of a tree in a range, in either direction.

use crate::error::IndexError;
use crate::keys::{TREE_BYTES, TreeId};
use crate::page::{Head, PageRow, decode, decode_page};
use rean_store::engine::{Direction, Snapshot, Space, Value};
use std::collections::VecDeque;

/// Heads that are read at once: a query for a few rows needs no more, and opening a range costs as much as these.
const HEADS_AT_ONCE: usize = 32;

/// Places from `lo` to below `hi`; without `hi` to the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub lo: Vec<u8>,
    pub hi: Option<Vec<u8>>,
}

/// A page by its head.
#[derive(Debug, Clone)]
pub(crate) struct PageAt {
    /// No row before it is in the page.
    pub separator: Vec<u8>,
    /// The next page's; `None`: it is the last.
    pub next: Option<Vec<u8>>,
    pub head: Head,
}

/// The pages that have something in a span, one after the other.
pub(crate) struct Walk {
    tree: TreeId,
    pub span: Span,
    descending: bool,
    ready: VecDeque<PageAt>,
    rest: Rest,
}

/// What is still to be read.
enum Rest {
    /// Nothing was read yet.
    All,
    /// Up from this page.
    From(Vec<u8>),
    /// Down from below this page.
    Below(Vec<u8>),
    Nothing,
}

impl Span {
    pub fn is_empty(&self) -> bool {
        self.hi.as_ref().is_some_and(|hi| *hi <= self.lo)
    }

    pub fn contains(&self, place: &[u8]) -> bool {
        place >= &self.lo[..] && self.hi.as_ref().is_none_or(|hi| place < &hi[..])
    }

    /// Whether all that can be in a page is in the span.
    pub fn covers(&self, page: &PageAt) -> bool {
        let ends = match (&self.hi, &page.next) {
            (None, _) => true,
            (Some(hi), Some(next)) => next <= hi,
            (Some(_), None) => false,
        };
        page.separator >= self.lo && ends
    }
}

impl Walk {
    pub fn new(tree: TreeId, span: Span, descending: bool) -> Walk {
        let rest = if span.is_empty() { Rest::Nothing } else { Rest::All };
        Walk { tree, span, descending, ready: VecDeque::new(), rest }
    }

    pub fn peek(&mut self, snapshot: &dyn Snapshot) -> Result<Option<&PageAt>, IndexError> {
        if self.ready.is_empty() {
            self.read_on(snapshot)?;
        }
        Ok(self.ready.front())
    }

    pub fn next(&mut self, snapshot: &dyn Snapshot) -> Result<Option<PageAt>, IndexError> {
        self.peek(snapshot)?;
        Ok(self.ready.pop_front())
    }

    /// The rows of a page that are in the span, in the walk's direction.
    pub fn rows(&self, snapshot: &dyn Snapshot, page: &PageAt) -> Result<VecDeque<PageRow>, IndexError> {
        let mut rows = VecDeque::from(load(snapshot, self.tree, &page.separator)?.0);
        if !self.span.covers(page) {
            rows.retain(|row| self.span.contains(&row.place));
        }
        if self.descending {
            rows.make_contiguous().reverse();
        }
        Ok(rows)
    }

    fn read_on(&mut self, snapshot: &dyn Snapshot) -> Result<(), IndexError> {
        match (std::mem::replace(&mut self.rest, Rest::Nothing), self.descending) {
            (Rest::Nothing, _) => Ok(()),
            (Rest::All, false) => {
                let first = self.lowest(snapshot)?;
                self.read_up(snapshot, &first)
            }
            (Rest::From(first), _) => self.read_up(snapshot, &first),
            (Rest::All, true) => {
                let (next, top) = match &self.span.hi {
                    Some(hi) => (at_or_after(snapshot, self.tree, hi)?, self.tree.page(hi)),
                    None => (None, self.tree.end()),
                };
                self.read_down(snapshot, &top, next)
            }
            (Rest::Below(page), _) => self.read_down(snapshot, &self.tree.page(&page), Some(page)),
        }
    }

    fn read_up(&mut self, snapshot: &dyn Snapshot, first: &[u8]) -> Result<(), IndexError> {
        let range = snapshot.range(Space::Seqs, &self.tree.page(first), &self.tree.end(), Direction::Forward);
        let mut before: Option<(Vec<u8>, Head)> = None;
        for (read, item) in range.enumerate() {
            let (separator, head) = read_head(item?)?;
            if let Some((before, head)) = before.take() {
                self.ready.push_back(PageAt { separator: before, next: Some(separator.clone()), head });
            }
            if self.span.hi.as_ref().is_some_and(|hi| separator >= *hi) {
                return Ok(());
            }
            if read == HEADS_AT_ONCE {
                self.rest = Rest::From(separator);
                return Ok(());
            }
            before = Some((separator, head));
        }
        self.ready.extend(before.map(|(separator, head)| PageAt { separator, next: None, head }));
        Ok(())
    }

    fn read_down(&mut self, snapshot: &dyn Snapshot, top: &[u8], mut next: Option<Vec<u8>>) -> Result<(), IndexError> {
        let lowest = self.tree.page(&self.lowest(snapshot)?);
        let range = snapshot.range(Space::Seqs, &lowest, top, Direction::Backward);
        for item in range.take(HEADS_AT_ONCE) {
            let (separator, head) = read_head(item?)?;
            let next = next.replace(separator.clone());
            self.ready.push_back(PageAt { separator, next, head });
        }
        if self.ready.len() == HEADS_AT_ONCE
            && let Some(last) = self.ready.back()
        {
            self.rest = Rest::Below(last.separator.clone());
        }
        Ok(())
    }

    /// The page that the span begins in, or where it would be.
    fn lowest(&self, snapshot: &dyn Snapshot) -> Result<Vec<u8>, IndexError> {
        if self.span.lo.is_empty() {
            return Ok(Vec::new());
        }
        Ok(at_or_before(snapshot, self.tree, &self.span.lo)?.unwrap_or_else(|| self.span.lo.clone()))
    }
}

/// The separator of the page that this place belongs to.
pub(crate) fn at_or_before(snapshot: &dyn Snapshot, tree: TreeId, place: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
    let mut end = tree.page(place);
    end.push(0);
    first_of(snapshot, &tree.prefix(), &end, Direction::Backward)
}

/// The separator of the first page that is not below this place.
pub(crate) fn at_or_after(snapshot: &dyn Snapshot, tree: TreeId, place: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
    first_of(snapshot, &tree.page(place), &tree.end(), Direction::Forward)
}

/// The rows of a page, and its bytes.
pub(crate) fn load(
    snapshot: &dyn Snapshot,
    tree: TreeId,
    separator: &[u8],
) -> Result<(Vec<PageRow>, usize), IndexError> {
    let page = snapshot.get(Space::Bodies, &tree.page(separator))?;
    let page = page.ok_or(IndexError::Damaged("a page that is not there"))?;
    Ok((decode_page(&page)?, page.len()))
}

fn first_of(
    snapshot: &dyn Snapshot,
    lo: &[u8],
    hi: &[u8],
    direction: Direction,
) -> Result<Option<Vec<u8>>, IndexError> {
    let found = snapshot.range(Space::Seqs, lo, hi, direction).next().transpose()?;
    Ok(found.map(|(key, _)| key[TREE_BYTES..].to_vec()))
}

fn read_head((key, value): (Value, Value)) -> Result<(Vec<u8>, Head), IndexError> {
    Ok((key[TREE_BYTES..].to_vec(), decode(&value, "a page's head")?))
}
