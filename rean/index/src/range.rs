//! Which rows of a view are asked for.

/// Rows between two bounds. Without bounds: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    /// Where to begin: the lowest row, or when `descending` the highest. Always inclusive.
    pub start: Option<Bound>,
    /// Where to end.
    pub end: Option<Bound>,
    /// Leave out the rows at `end`: all with that key, or with a document those of this document.
    pub exclusive_end: bool,
    /// From high to low.
    pub descending: bool,
}

/// A place among the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// [`rean_store::collate::sort_key`] of the JSON key.
    pub key: Vec<u8>,
    /// Among the rows with this key, the place of this document; `None`: the whole key is in the range.
    pub doc_id: Option<String>,
}

/// How the rows of a reduce query are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// All as one.
    None,
    /// Those with equal keys (`group=true`).
    Exact,
    /// Those whose array keys begin with the same elements, so many of them (`group_level`); at 0 all are one.
    Level(u32),
}

impl Range {
    /// The rows with exactly this key (a sort key).
    pub fn of_key(key: Vec<u8>) -> Range {
        let bound = Bound { key, doc_id: None };
        Range { start: Some(bound.clone()), end: Some(bound), ..Range::default() }
    }
}
