//! The rows of several partial databases as one list.

use crate::db::Db;
use crate::engine::{Direction, Range, Snapshot, Space};
use crate::error::StoreError;
use crate::record::{PartNo, PartRow, Seq, decode_row, key};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The rows of several partial databases in the order of their sequences.
pub(super) struct Merge<'a> {
    direction: Direction,
    parts: Vec<PartNo>,
    ranges: Vec<Range<'a>>,
    /// The next row of each range, best on top; backwards the sequence is turned around. Of a move's two rows,
    /// which have one sequence, the tombstone comes first: the place after the last one covers both.
    heap: BinaryHeap<Reverse<(Seq, bool, usize)>>,
    rows: Vec<Option<PartRow>>,
}

impl<'a> Merge<'a> {
    /// Rows after `after` and before `before`.
    pub fn new(
        db: &Db,
        snapshot: &'a dyn Snapshot,
        parts: &[PartNo],
        after: Seq,
        before: Seq,
        direction: Direction,
    ) -> Result<Merge<'a>, StoreError> {
        let id = db.inner().id;
        let app = db.inner().app.read();
        // Most have nothing new: they are not even opened.
        let has_news = |part: &PartNo| app.part(*part).is_some_and(|part| part.count.seq > after);
        let parts: Vec<PartNo> = parts.iter().copied().filter(has_news).collect();
        let ranges: Vec<Range<'a>> = parts
            .iter()
            .map(|part| {
                let (lo, hi) = (key::part_seq(id, *part, after.saturating_add(1)), key::part_seq(id, *part, before));
                snapshot.range(Space::PartSeqs, &lo, &hi, direction)
            })
            .collect();
        drop(app);
        let rows = ranges.iter().map(|_| None).collect();
        let mut merge = Merge { direction, parts, ranges, heap: BinaryHeap::new(), rows };
        for at in 0..merge.ranges.len() {
            merge.advance(at)?;
        }
        Ok(merge)
    }

    fn advance(&mut self, at: usize) -> Result<(), StoreError> {
        let Some(item) = self.ranges[at].next() else { return Ok(()) };
        let (row_key, value) = item?;
        let seq = key::last_seq(&row_key).ok_or(StoreError::Damaged("a row's key"))?;
        let rank = match self.direction {
            Direction::Forward => seq,
            Direction::Backward => Seq::MAX - seq,
        };
        let row = decode_row(&value)?;
        self.heap.push(Reverse((rank, !row.tomb, at)));
        self.rows[at] = Some(row);
        Ok(())
    }

    /// The next row's sequence, forwards.
    pub fn peek(&self) -> Option<Seq> {
        self.heap.peek().map(|Reverse((seq, ..))| *seq)
    }

    /// The next row, with its sequence and its partial database.
    pub fn next(&mut self) -> Result<Option<(Seq, PartRow, PartNo)>, StoreError> {
        let Some(Reverse((rank, _, at))) = self.heap.pop() else { return Ok(None) };
        let row = self.rows[at].take();
        self.advance(at)?;
        let seq = match self.direction {
            Direction::Forward => rank,
            Direction::Backward => Seq::MAX - rank,
        };
        Ok(row.map(|row| (seq, row, self.parts[at])))
    }
}
