//! Telling a reader what a change of their roles means: of partial databases that they gained the documents up
//! to their place, of those that they lost the end of what they may hold.

use super::row::{live_row, may_be_dead, tomb_row};
use super::{Feed, FeedRow, SCANNED_ROWS};
use crate::app::Reader;
use crate::apply::leaves_of;
use crate::bookmark::{Gain, Place, Turn};
use crate::engine::{Direction, Snapshot, Space};
use crate::error::StoreError;
use crate::partition::{gone_of, has_all_successors, visible};
use crate::record::{DocRecord, PartNo, PartRow, Seq, decode, decode_row, key};
use crate::rev::Rev;
use crate::served::{Given, Spans};
use crate::tree::RevTree;
use crate::view::Scope;

/// What is told of a document that left a partial database.
pub(super) struct End {
    pub row: FeedRow,
    /// Revisions whose end is told although the document's leaves they may still be.
    pub told: Vec<Rev>,
}

/// What a row means for the reader of a turn.
enum Told {
    Nothing,
    /// The document as it is.
    Live,
    /// That it left.
    End,
    /// That what they were given of it, or wrote themselves, is over.
    EndOfGiven {
        given_until: Seq,
        until: Seq,
    },
}

/// The partial databases that a turn concerns, in order.
struct Turning {
    parts: Vec<PartNo>,
    gained: Vec<PartNo>,
    lost: Vec<PartNo>,
    /// Roles by which the client may have documents.
    had: Vec<String>,
    /// What the user was given before, if this is a first read.
    given: Option<Given>,
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
        let turning = self.turning(reader, &turn);
        let mut rows = Vec::new();
        let mut scanned = 0;
        let (mut ended, mut ending) = (Vec::new(), Vec::new());
        let id = db.inner().id;
        let told_before = turn.part;
        for part in turning.parts.iter().copied().filter(|part| *part >= told_before) {
            let spans = turning.given.as_ref().map(|given| self.spans(given, part));
            let from = if part == turn.part { turn.seq.saturating_add(1) } else { 0 };
            let (lo, hi) = (key::part_seq(id, part, from), key::part_seq(id, part, Seq::MAX));
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
                let row = decode_row(&value)?;
                (turn.part, turn.seq) = (part, seq);
                let told = self.told(reader, &turning, &turn, spans.as_ref(), &row);
                if matches!(told, Told::Live) && self.needs_successor(snapshot, &row, seq, true)? {
                    ended.push(row.id);
                    continue;
                }
                self.place.turn = Some(turn.clone());
                let seq_token = self.token();
                let end = match told {
                    Told::Nothing => None,
                    Told::Live => {
                        rows.push(live_row(&db, &db.inner().app.read(), reader, &row, seq_token.clone()));
                        None
                    }
                    Told::End => self.end_of(snapshot, reader, self.place.after, &row)?,
                    Told::EndOfGiven { given_until, until } => {
                        self.end_of_given(snapshot, seq, given_until, until, &row)?
                    }
                };
                if let Some(end) = end {
                    rows.push(FeedRow { seq_token, ..end.row });
                    ending.push((row.id, end.told));
                }
            }
        }
        self.place.sure = turn.roles;
        self.place.maybe.clear();
        let Self { place, .. } = self;
        place.gained.retain(|gain| place.sure.contains(&gain.role));
        self.place.turn = None;
        self.mark_ended(ending)?;
        self.succeed(ended)?;
        Ok(rows)
    }

    fn turning(&self, reader: &Reader, turn: &Turn) -> Turning {
        let (gained, mut lost) = self.turned(reader, turn);
        let had = self.place.sure.iter().chain(&self.place.maybe).cloned().collect();
        let is_first_read = turn.fresh || self.place.origin == 0;
        let given = if is_first_read { self.given(reader) } else { None };
        let before = given.as_ref().map(|given| given.lost_parts(&self.db, reader)).unwrap_or_default();
        let mut parts: Vec<PartNo> = gained.iter().chain(&lost).chain(&before).copied().collect();
        for list in [&mut parts, &mut lost] {
            list.sort_unstable();
            list.dedup();
        }
        Turning { parts, gained, lost, had, given }
    }

    /// What is told of the row at the turn's place. `spans`: what was given of its partial database before, in a first read.
    fn told(&self, reader: &Reader, turning: &Turning, turn: &Turn, spans: Option<&Spans>, row: &PartRow) -> Told {
        let (part, seq) = (turn.part, turn.seq);
        let is_gone = row.leaves.first().is_none_or(|leaf| leaf.deleted);
        let is_over = row.tomb || is_gone;
        let is_news = seq > self.place.after;
        let given_until = spans.and_then(|spans| spans.given(row.stays(seq)));
        if turning.gained.binary_search(&part).is_ok() && !row.tomb {
            // Deletions, too, in a first read, as where it takes one list: a device may begin it with what it has.
            let shown = !is_news && (!is_gone || turn.fresh || given_until.is_some());
            return if shown { Told::Live } else { Told::Nothing };
        }
        if turning.lost.binary_search(&part).is_ok() {
            let may_have =
                || self.may_hold(reader, &turning.had, part, row, seq) || self.may_have_written(reader, part, seq, row);
            if (is_news || !is_over) && may_have() {
                return Told::End;
            }
        }
        let own = spans.is_some() && self.may_have_written(reader, part, seq, row);
        match given_until {
            None if !own => Told::Nothing,
            _ if row.tomb => Told::End,
            until => {
                let wrote_until = spans.filter(|_| own).and_then(Spans::lost).unwrap_or_default();
                let given_until = until.unwrap_or_default();
                Told::EndOfGiven { given_until, until: given_until.max(wrote_until) }
            }
        }
    }

    /// Partial databases gained and lost, each in order.
    fn turned(&self, reader: &Reader, turn: &Turn) -> (Vec<PartNo>, Vec<PartNo>) {
        let app = self.db.inner().app.read();
        let now = app.parts_of(reader);
        let sure = match turn.fresh {
            true => Vec::new(),
            false => app.parts_of(&reader.with_roles(self.place.sure.clone())),
        };
        let had: Vec<String> = self.place.sure.iter().chain(&self.place.maybe).cloned().collect();
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
        let row = PartRow { tomb: false, leaves, gone, authors: Vec::new(), ..row.clone() };
        let row = live_row(&self.db, &app, reader, &row, String::new());
        Ok(Some(End { row, told: Vec::new() }))
    }

    /// What a reader is told of a document that is still in a partial database from which they were served until
    /// `given_until`, and where they may have written until `until`: the end of what they may have. Not of what came later, or each first read of theirs would end what
    /// others have since been shown in its place.
    fn end_of_given(
        &self,
        snapshot: &dyn Snapshot,
        seq: Seq,
        given_until: Seq,
        until: Seq,
        row: &PartRow,
    ) -> Result<Option<End>, StoreError> {
        let mut held: Vec<Rev> = row.leaves.iter().map(|leaf| &leaf.rev).chain(&row.gone).cloned().collect();
        if seq > given_until {
            let Some(value) = snapshot.get(Space::Docs, &key::doc(self.db.inner().id, &row.id))? else {
                return Ok(None);
            };
            let record: DocRecord = decode(&value, "a document")?;
            held = held.iter().filter_map(|rev| self.given_of(&record.tree, &row.id, rev, until)).collect();
        }
        held.sort_unstable();
        held.dedup();
        if held.is_empty() {
            return Ok(None);
        }
        let row = PartRow { leaves: Vec::new(), gone: held.clone(), ..row.clone() };
        Ok(Some(End { row: tomb_row(&self.db, &row, String::new()), told: held }))
    }

    /// The newest revision of a leaf's history that can have been there at `until`, when the leaf's row is newer.
    fn given_of(&self, tree: &RevTree, id: &str, leaf: &Rev, until: Seq) -> Option<Rev> {
        let nodes = tree.nodes();
        let mut at = tree.find(leaf)?;
        let parent = nodes[at].parent;
        // A successor has the body of what it succeeds: when it was made is not kept, but its row was then.
        let is_successor = |parent: u32| self.db.inner().chain.successor(id, &nodes[parent as usize].rev) == *leaf;
        if let Some(parent) = parent.filter(|parent| is_successor(*parent)) {
            at = parent as usize;
        }
        while nodes[at].body.is_some_and(|body| body > until) {
            at = nodes[at].parent? as usize;
        }
        Some(nodes[at].rev.clone())
    }

    /// Whether a row must not be shown before its document has a successor: a device may hold it as dead. When there
    /// can be no more successors it is shown all the same: most devices don't.
    pub(super) fn needs_successor(
        &self,
        snapshot: &dyn Snapshot,
        row: &PartRow,
        seq: Seq,
        first_read: bool,
    ) -> Result<bool, StoreError> {
        if !may_be_dead(row, seq, first_read) {
            return Ok(false);
        }
        let Some(value) = snapshot.get(Space::Docs, &key::doc(self.db.inner().id, &row.id))? else { return Ok(true) };
        let tree = decode::<DocRecord>(&value, "a document")?.tree;
        let path = row.leaves.first().and_then(|winner| tree.find(&winner.rev)).map(|at| tree.path(at));
        Ok(path.is_none_or(|path| !has_all_successors(&self.db, &row.id, &path)))
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

/// Notes in a place that its reader's roles are others, found when the store's newest sequence is `now`.
pub(super) fn turn_to(place: &mut Place, roles: &[String], now: Seq) {
    let is_same = match &place.turn {
        Some(turn) => turn.roles == roles,
        None => place.sure == roles,
    };
    if is_same {
        return;
    }
    note_gains(place, roles, now);
    let had: Vec<String> = match place.turn.take() {
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
        None => Vec::new(),
    };
    place.maybe.extend(had);
    place.maybe.sort_unstable();
    place.maybe.dedup();
    place.turn = Some(Turn { fresh: false, roles: roles.to_vec(), part: 0, seq: 0 });
}

/// Notes roles by which the client can't have anything yet.
fn note_gains(place: &mut Place, roles: &[String], now: Seq) {
    for role in roles {
        let turning = place.turn.as_ref().is_some_and(|turn| turn.roles.contains(role));
        if !turning && !place.sure.contains(role) && !place.maybe.contains(role) {
            place.gained.retain(|gain| gain.role != *role);
            place.gained.push(Gain { role: role.clone(), at: now });
        }
    }
}
