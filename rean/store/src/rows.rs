//! The merged feed: the newest changes of all databases in the order of their sequences, for other pods.
//!
//! It keeps nothing between two pages: the place is a sequence. A page costs a look at each database's newest
//! sequence in memory, and an open range for each database that has news.

use crate::db::Db;
use crate::engine::{Direction, Range, Snapshot, Space};
use crate::error::StoreError;
use crate::record::{Seq, SeqRow, decode, key};
use crate::rev::Rev;
use crate::store::Store;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A document's newest change.
#[derive(Clone)]
pub struct StoreRow {
    /// Its sequence, the store's.
    pub seq: Seq,
    /// The database. It may be deleted by the time that it is asked: then it answers [`StoreError::Gone`].
    pub db: Db,
    /// The document.
    pub id: String,
    /// Its leaves, winner first.
    pub leaves: Vec<Rev>,
    /// Whether the winner is a tombstone.
    pub deleted: bool,
}

/// A page of the merged feed.
pub struct StorePage {
    /// In the order of their sequences.
    pub rows: Vec<StoreRow>,
    /// All that is at or below this sequence is in this page or was in one before it. All of it is durable.
    pub until: Seq,
    /// Whether there is nothing newer than `until` at this moment.
    pub is_last: bool,
}

impl Store {
    /// The changes after a sequence, at most `limit` (at least 1), without databases whose names `skip` picks out.
    /// Blocks for at most the flush that is under way.
    ///
    /// A sequence is only good within its [`Store::history`]: one that is higher than all here gives an empty page
    /// whose `until` is lower than it.
    ///
    /// # Errors
    /// The engine failed.
    pub fn rows(&self, since: Seq, limit: usize, skip: &dyn Fn(&str) -> bool) -> Result<StorePage, StoreError> {
        let inner = self.inner();
        // The newest sequences in memory cover all that it holds.
        let (snapshot, clock) = inner.durable_snapshot()?;
        let has_news = |db: &&Db| db.inner().seq() > since && !skip(db.name());
        let with_news: Vec<Db> = inner.dbs.read().values().filter(has_news).cloned().collect();
        let mut merge = Merge::new(snapshot.as_ref(), &with_news, since, clock.seq)?;
        let mut rows = Vec::new();
        while rows.len() < limit.max(1) {
            let Some((seq, at, row)) = merge.next()? else {
                return Ok(StorePage { rows, until: clock.seq, is_last: true });
            };
            let deleted = row.leaves.first().is_none_or(|leaf| leaf.deleted);
            let leaves = row.leaves.into_iter().map(|leaf| leaf.rev).collect();
            rows.push(StoreRow { seq, db: with_news[at].clone(), id: row.id, leaves, deleted });
        }
        let (until, is_last) = match merge.heap.is_empty() {
            true => (clock.seq, true),
            false => (rows.last().map_or(since, |row| row.seq), false),
        };
        Ok(StorePage { rows, until, is_last })
    }
}

/// Rows of several databases as one list.
struct Merge<'a> {
    ranges: Vec<Range<'a>>,
    heads: Vec<Option<SeqRow>>,
    /// The next row of each range, lowest on top.
    heap: BinaryHeap<Reverse<(Seq, usize)>>,
}

impl<'a> Merge<'a> {
    /// Rows after `since`, up to `until`.
    fn new(snapshot: &'a dyn Snapshot, dbs: &[Db], since: Seq, until: Seq) -> Result<Merge<'a>, StoreError> {
        let range = |db: &Db| {
            let id = db.inner().id;
            let (lo, hi) = (key::seq(id, since.saturating_add(1)), key::seq(id, until.saturating_add(1)));
            snapshot.range(Space::Seqs, &lo, &hi, Direction::Forward)
        };
        let ranges: Vec<Range<'a>> = dbs.iter().map(range).collect();
        let heads = ranges.iter().map(|_| None).collect();
        let mut merge = Merge { ranges, heads, heap: BinaryHeap::new() };
        for at in 0..merge.ranges.len() {
            merge.advance(at)?;
        }
        Ok(merge)
    }

    fn advance(&mut self, at: usize) -> Result<(), StoreError> {
        let Some(item) = self.ranges[at].next() else { return Ok(()) };
        let (row_key, value) = item?;
        let seq = key::last_seq(&row_key).ok_or(StoreError::Damaged("a row's key"))?;
        self.heads[at] = Some(decode(&value, "a row")?);
        self.heap.push(Reverse((seq, at)));
        Ok(())
    }

    /// The next row, with its database's index.
    fn next(&mut self) -> Result<Option<(Seq, usize, SeqRow)>, StoreError> {
        let Some(Reverse((seq, at))) = self.heap.pop() else { return Ok(None) };
        let row = self.heads[at].take();
        self.advance(at)?;
        Ok(row.map(|row| (seq, at, row)))
    }
}
