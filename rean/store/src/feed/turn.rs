//! Telling a reader what a change of their roles means: of partial databases that they gained the documents up
//! to their place, of those that they lost the end of what they may hold.

use super::row::{live_row, needs_successor, tomb_row, wrote};
use super::{Feed, FeedRow, SCANNED_ROWS};
use crate::app::Reader;
use crate::apply::leaves_of;
use crate::bookmark::{Place, Turn};
use crate::engine::{Direction, Snapshot, Space};
use crate::error::StoreError;
use crate::partition::{gone_of, visible};
use crate::record::{DocRecord, PartNo, PartRow, Seq, decode, key};
use crate::rev::Rev;
use crate::view::Scope;

/// What is told of a document that left a partial database.
pub(super) struct End {
    pub row: FeedRow,
    /// Revisions whose end is told although the document's leaves they may still be.
    pub told: Vec<Rev>,
}

impl Feed {
    /// Tells a change of roles: of partial databases that were gained the documents up to the place, of those
    /// that were lost the end of what the client may have.
    pub(super) fn page_of_turn(
        &mut self,
        snapshot: &dyn Snapshot,
        reader: &Reader,
        mut turn: Turn,
        max: usize,
    ) -> Result<Vec<FeedRow>, StoreError> {
        let db = self.db.clone();
        let (gained, lost) = self.turned(reader, &turn);
        let mut parts: Vec<PartNo> = gained.iter().chain(&lost).copied().filter(|part| *part >= turn.part).collect();
        parts.sort_unstable();
        let mut rows = Vec::new();
        let mut scanned = 0;
        let (mut ended, mut ending) = (Vec::new(), Vec::new());
        let id = db.inner().id;
        for part in parts {
            let from = if part == turn.part { turn.seq.saturating_add(1) } else { 0 };
            let (lo, hi) = (key::part_seq(id, part, from), key::part_seq(id, part, Seq::MAX));
            let is_gain = gained.binary_search(&part).is_ok();
            for item in snapshot.range(Space::PartSeqs, &lo, &hi, Direction::Forward) {
                scanned += 1;
                if rows.len() >= max || scanned > SCANNED_ROWS {
                    self.place.turn = Some(turn);
                    self.mark_ended(ending)?;
                    self.succeed(ended)?;
                    return Ok(rows);
                }
                let (row_key, value) = item?;
                let seq = key::last_seq(&row_key).ok_or(StoreError::Damaged("a row's key"))?;
                let row: PartRow = decode(&value, "a row of a partial database")?;
                (turn.part, turn.seq) = (part, seq);
                let gone = row.leaves.first().is_none_or(|leaf| leaf.deleted);
                let news = seq > self.place.after;
                let told = if is_gain {
                    !row.tomb && !gone && !news
                } else {
                    (row.entered <= self.place.after || wrote(reader, &row)) && (news || !(row.tomb || gone))
                };
                if !told {
                    continue;
                }
                if is_gain && needs_successor(&row, seq, true) {
                    ended.push(row.id);
                    continue;
                }
                self.place.turn = Some(turn.clone());
                let seq_token = self.token();
                if is_gain {
                    rows.push(live_row(&db, &db.inner().app.read(), reader, &row, seq_token));
                } else if let Some(end) = self.end_of(snapshot, reader, self.place.after, &row)? {
                    rows.push(FeedRow { seq_token, ..end.row });
                    ending.push((row.id, end.told));
                }
            }
        }
        self.place.sure = turn.roles;
        self.place.maybe.clear();
        self.place.turn = None;
        self.mark_ended(ending)?;
        self.succeed(ended)?;
        Ok(rows)
    }

    /// Partial databases gained and lost, each in order.
    fn turned(&self, reader: &Reader, turn: &Turn) -> (Vec<PartNo>, Vec<PartNo>) {
        let app = self.db.inner().app.read();
        let now = app.parts_of(reader);
        let sure = match turn.fresh {
            true => Vec::new(),
            false => app.parts_of(&reader.with_roles(self.place.sure.clone())),
        };
        let had = self.place.sure.iter().chain(&self.place.maybe).cloned().collect();
        let maybe = app.parts_of(&reader.with_roles(had));
        let without = |of: &[PartNo], these: &[PartNo]| -> Vec<PartNo> {
            of.iter().filter(|part| these.binary_search(part).is_err()).copied().collect()
        };
        (without(&now, &sure), without(&maybe, &now))
    }

    /// What a reader is told of a document that left a partial database, when they have been given all rows up
    /// to `given`: its end, or, if the scope still shows it elsewhere, the end of what they may hold of it that nothing which they see there descends from.
    pub(super) fn end_of(
        &self,
        snapshot: &dyn Snapshot,
        reader: &Reader,
        given: Seq,
        row: &PartRow,
    ) -> Result<Option<End>, StoreError> {
        let held = || row.leaves.iter().map(|leaf| &leaf.rev).chain(&row.gone).cloned().collect();
        let end = || Ok(Some(End { row: tomb_row(&self.db, row, String::new()), told: held() }));
        if matches!(self.scope, Scope::Part(..)) {
            return end();
        }
        let Some(value) = snapshot.get(Space::Docs, &key::doc(self.db.inner().id, &row.id))? else { return end() };
        let record: DocRecord = decode(&value, "a document")?;
        let app = self.db.inner().app.read();
        let Some(place) = record.place.filter(|_| app.may_read(reader, record.place)) else { return end() };
        if record.seq > given {
            // Its row there is still to come, and may not come if roles change before: so the end is told now.
            return end();
        }
        let leaves = visible(&app, leaves_of(&record), place);
        let gone = gone_of(&row.leaves, &row.gone, &record.tree, &leaves);
        if gone.is_empty() {
            return Ok(None);
        }
        let row = PartRow { id: row.id.clone(), entered: row.entered, tomb: false, leaves, gone, authors: Vec::new() };
        let row = live_row(&self.db, &app, reader, &row, String::new());
        Ok(Some(End { row, told: Vec::new() }))
    }

    /// Has documents succeeded by a revision that no device holds as dead: they come again, at the feed's end.
    pub(super) fn succeed(&mut self, ids: Vec<String>) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        self.caught_up = false;
        let db = self.db.clone();
        self.db.inner().store.call(move |tx| tx.succeed_ended(&db, &ids).map_err(|error| tx.fail(error)))
    }

    /// Notes what is about to be told as ended, before it is told.
    pub(super) fn mark_ended(&self, mut ends: Vec<(String, Vec<Rev>)>) -> Result<(), StoreError> {
        ends.retain(|(_, told)| !told.is_empty());
        if ends.is_empty() {
            return Ok(());
        }
        let db = self.db.clone();
        self.db.inner().store.call(move |tx| tx.mark_ended(&db, &ends).map_err(|error| tx.fail(error)))
    }
}

/// Notes in a place that its reader's roles are others now.
pub(super) fn turn_to(place: &mut Place, roles: &[String]) {
    let had: Vec<String> = match place.turn.take() {
        Some(turn) if turn.roles == roles => {
            place.turn = Some(turn);
            return;
        }
        Some(turn) if turn.fresh => {
            // The first read was not finished: all is new still, and what it told may be lost already.
            place.maybe.extend(turn.roles);
            place.turn = Some(Turn { fresh: true, roles: roles.to_vec(), part: 0, seq: 0 });
            return;
        }
        Some(turn) => {
            let sure = std::mem::take(&mut place.sure);
            let (kept, lost): (Vec<_>, Vec<_>) = sure.into_iter().partition(|role| turn.roles.contains(role));
            place.sure = kept;
            turn.roles.into_iter().chain(lost).collect()
        }
        None if place.sure == roles => return,
        None => Vec::new(),
    };
    place.maybe.extend(had);
    place.maybe.sort_unstable();
    place.maybe.dedup();
    place.turn = Some(Turn { fresh: false, roles: roles.to_vec(), part: 0, seq: 0 });
}
