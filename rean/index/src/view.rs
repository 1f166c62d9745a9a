//! A view as somebody in particular sees it, at one moment.

use crate::error::IndexError;
use crate::group::Group;
use crate::keys::{ALL, TOP, TreeId, after, partition_len, partition_prefix, push_id};
use crate::range::{Bound, Grouping, Range};
use crate::records::GroupRecord;
use crate::reduced::Reduced;
use crate::rows::Rows;
use crate::shared::{Common, Shared};
use crate::spec::GroupSpec;
use crate::walk::{Span, Walk};
use rean_store::engine::{Snapshot, Space};
use rean_store::{Scope, Seq};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Views that are looked at at the same time: each holds back the removal of old data, and may have some pages in
/// memory.
const MAX_OPEN: usize = 1_024;

/// A view of one moment, for one scope: all that is asked of it agrees. Clones share it. Let go of it soon: it
/// holds back the removal of old data.
#[derive(Clone)]
pub struct View {
    inner: Arc<Inner>,
    /// What the places of its rows begin with; empty: all.
    prefix: Vec<u8>,
}

struct Inner {
    snapshot: Box<dyn Snapshot>,
    spec: Arc<GroupSpec>,
    shared: Arc<Shared>,
    view: usize,
    seq: Seq,
    /// Those with rows, and how many.
    trees: Vec<TreeId>,
    total_rows: u64,
    _permit: Permit,
}

/// Room among the open views.
struct Permit(Arc<Common>);

impl View {
    pub(crate) fn open(group: &Group, scope: &Scope, view: usize) -> Result<View, IndexError> {
        let common = &group.shared.common;
        if group.db.is_gone() {
            return Err(IndexError::Gone);
        }
        let permit = Permit::take(common)?;
        let look = |record: &GroupRecord| (common.engine.snapshot(), record.number, record.seq);
        let (snapshot, number, seq) = group.shared.with_record(look)?;
        // After the snapshot: a right that was lost since then is lost for this view.
        let parts = group.db.parts_in(scope);
        let parts = parts.map_or_else(|| vec![ALL], |parts| parts.iter().map(|part| part + 1).collect());
        let (mut trees, mut total_rows) = (Vec::new(), 0);
        for part in parts {
            let tree = TreeId { group: number, view: view as u16, part };
            let rows = stored_rows(snapshot.as_ref(), tree)?;
            if rows > 0 {
                trees.push(tree);
                total_rows += rows;
            }
        }
        let (spec, shared) = (Arc::clone(&group.spec), Arc::clone(&group.shared));
        let inner = Inner { snapshot, spec, shared, view, seq, trees, total_rows, _permit: permit };
        Ok(View { inner: Arc::new(inner), prefix: Vec::new() })
    }

    /// The rows of one partition, as if there were no others. Only for a group whose rows lie so
    /// ([`GroupSpec::partitioned`]): of another there are none.
    #[must_use]
    pub fn within(&self, partition: &str) -> View {
        View { inner: Arc::clone(&self.inner), prefix: partition_prefix(partition) }
    }

    /// The sequence of the index at that moment.
    pub fn seq(&self) -> Seq {
        self.inner.seq
    }

    /// All rows. Those of a partition are counted by the heads of its pages.
    ///
    /// # Errors
    /// The engine failed.
    pub fn total_rows(&self) -> Result<u64, IndexError> {
        if self.prefix.is_empty() { Ok(self.inner.total_rows) } else { self.count(&Range::default()) }
    }

    /// Rows before the first row of the range, in the direction of the range.
    ///
    /// # Errors
    /// The engine failed.
    pub fn offset(&self, range: &Range) -> Result<u64, IndexError> {
        let (span, all) = (self.span(range), self.span(&Range::default()));
        match (range.descending, span.hi) {
            (false, _) => self.count_span(&Span { lo: all.lo, hi: Some(span.lo) }),
            (true, Some(hi)) => self.count_span(&Span { lo: hi, hi: all.hi }),
            (true, None) => Ok(0),
        }
    }

    /// Rows in the range.
    ///
    /// # Errors
    /// The engine failed.
    pub fn count(&self, range: &Range) -> Result<u64, IndexError> {
        self.count_span(&self.span(range))
    }

    /// The rows of the range, to be taken page by page.
    pub fn rows(&self, range: Range) -> Rows {
        Rows::new(self.clone(), &range)
    }

    /// The reductions of the range, to be taken page by page. A view without a reduce function is counted.
    pub fn reduce(&self, range: Range, grouping: Grouping) -> Reduced {
        Reduced::new(self.clone(), &range, grouping)
    }

    /// The places of a range's rows.
    pub(crate) fn span(&self, range: &Range) -> Span {
        let span = range.span();
        if self.prefix.is_empty() {
            return span;
        }
        let within = |place: Vec<u8>| [&self.prefix[..], &place].concat();
        Span { lo: within(span.lo), hi: Some(span.hi.map_or_else(|| after(&self.prefix), within)) }
    }

    /// The length of the partition that a row's sort key begins with; 0 where keys have none.
    pub(crate) fn partition_len(&self, sort_key: &[u8]) -> usize {
        if self.inner.spec.partitioned { partition_len(sort_key) } else { 0 }
    }

    pub(crate) fn count_span(&self, span: &Span) -> Result<u64, IndexError> {
        let mut count = 0;
        for tree in &self.inner.trees {
            count += self.noting(count_rows(self.snapshot(), *tree, span))?;
        }
        Ok(count)
    }

    pub(crate) fn snapshot(&self) -> &dyn Snapshot {
        self.inner.snapshot.as_ref()
    }

    pub(crate) fn trees(&self) -> &[TreeId] {
        &self.inner.trees
    }

    pub(crate) fn reduce_fn(&self) -> &crate::spec::Reduce {
        self.inner.spec.views.get(self.inner.view).map_or(&crate::spec::Reduce::None, |view| &view.reduce)
    }

    /// Notes damage, so that the index is made anew.
    pub(crate) fn noting<T>(&self, result: Result<T, IndexError>) -> Result<T, IndexError> {
        if let Err(IndexError::Damaged(what)) = &result {
            tracing::error!(what, signature = self.inner.shared.signature, "an index is damaged");
            self.inner.shared.damaged.store(true, Ordering::Release);
        }
        result
    }
}

impl Permit {
    fn take(common: &Arc<Common>) -> Result<Permit, IndexError> {
        let open = common.open_views.fetch_add(1, Ordering::AcqRel);
        let permit = Permit(Arc::clone(common));
        if open < MAX_OPEN {
            Ok(permit)
        } else {
            Err(IndexError::Busy("Too many queries at once: try again later.".to_owned()))
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.open_views.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Range {
    /// The places of its rows.
    pub(crate) fn span(&self) -> Span {
        let (low, high) = if self.descending { (&self.end, &self.start) } else { (&self.start, &self.end) };
        let leave_out_low = self.exclusive_end && self.descending;
        let leave_out_high = self.exclusive_end && !self.descending;
        let lo = low.as_ref().map_or_else(Vec::new, |low| if leave_out_low { low.after() } else { low.before() });
        let hi = high.as_ref().map(|high| if leave_out_high { high.before() } else { high.after() });
        Span { lo, hi }
    }
}

impl Bound {
    /// Not above any place of a row there.
    fn before(&self) -> Vec<u8> {
        let mut place = self.key.clone();
        if let Some(id) = &self.doc_id {
            push_id(&mut place, id);
        }
        place
    }

    /// Above every place of a row there.
    fn after(&self) -> Vec<u8> {
        let mut place = self.before();
        place.push(TOP);
        place
    }
}

/// The number of a tree's rows.
pub(crate) fn stored_rows(snapshot: &dyn Snapshot, tree: TreeId) -> Result<u64, IndexError> {
    let Some(rows) = snapshot.get(Space::Meta, &tree.rows())? else { return Ok(0) };
    rows[..].try_into().map(u64::from_be_bytes).map_err(|_| IndexError::Damaged("a number of rows"))
}

/// The rows of a tree in a span.
pub(crate) fn count_rows(snapshot: &dyn Snapshot, tree: TreeId, span: &Span) -> Result<u64, IndexError> {
    if span.lo.is_empty() && span.hi.is_none() {
        return stored_rows(snapshot, tree);
    }
    let mut walk = Walk::new(tree, span.clone(), false);
    let mut count = 0;
    while let Some(page) = walk.next(snapshot)? {
        count += if span.covers(&page) { page.head.rows } else { walk.rows(snapshot, &page)?.len() as u64 };
    }
    Ok(count)
}
