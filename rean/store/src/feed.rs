//! Changes feeds: of a whole database, of one partial database, of all that a reader may read.
//!
//! A feed holds a place and no snapshot, so a client may take as long as it likes. The personal feed merges
//! the reader's partial databases by sequence. Its place also says with which roles it was reached: when they
//! have changed since, the feed first tells of the documents that became readable and of those that are
//! readable no longer, and then goes on (see `turn`).
//!
//! When is a reader told of a document's leaving? Only if they may have it: it was in the partial database
//! when the client was last in step, or it left while this catch-up went on.

use crate::app::{AppState, Reader};
use crate::apply::leaves_of;
use crate::bookmark::{Place, Seal, Turn, open_form, read_open_form};
use crate::db::Db;
use crate::engine::{Direction, Range, Snapshot, Space};
use crate::error::StoreError;
use crate::partition::{gone_of, visible};
use crate::record::{DocRecord, PartNo, PartRow, Seq, SeqRow, decode, key};
use crate::rev::Rev;
use crate::view::{BodyRef, Scope};
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, OnceLock};

/// Up to this many partial databases a first read merges them by sequence; with more it takes them one after
/// the other, because each one that is merged costs an open range.
const MERGED_PARTS: usize = 64;
/// Rows that one call looks at. Most calls give a row for each, but those that a reader isn't told of give none.
const SCANNED_ROWS: usize = 2_000;
/// Rows that are counted for `pending`; beyond it the rest is estimated.
const PENDING_ROWS: usize = 10_000;

/// One committed change.
pub struct Change {
    /// Its sequence.
    pub seq: Seq,
    /// The sequence of the database's change before it.
    pub prev: Seq,
    /// What follows a row's sequence in a feed, serialized by the first listener that needs it.
    pub line: OnceLock<Bytes>,
    /// The same with the document.
    pub line_with_doc: OnceLock<Bytes>,
    row: SeqRow,
    place: Option<PartNo>,
    part_rows: Vec<(PartNo, PartRow)>,
}

impl Change {
    pub(crate) fn new(
        seq: Seq,
        prev: Seq,
        row: SeqRow,
        place: Option<PartNo>,
        part_rows: Vec<(PartNo, PartRow)>,
    ) -> Change {
        let (line, line_with_doc) = Default::default();
        Change { seq, prev, line, line_with_doc, row, place, part_rows }
    }

    /// The document.
    pub fn id(&self) -> &str {
        &self.row.id
    }
}

/// Where a feed is to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Since {
    /// At the beginning.
    Start,
    /// After all that there is.
    Now,
    /// Where a client was, by the text that it was given.
    Token(String),
}

/// A feed can't be begun.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The text is no place in this feed.
    #[error("Malformed sequence supplied in 'since' parameter.")]
    BadSeq,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A row of a feed, as its reader gets it.
#[derive(Clone)]
pub struct FeedRow {
    /// The document.
    pub id: Arc<str>,
    /// The place after this row.
    pub seq_token: String,
    /// Its leaves, winner first.
    pub revs: Vec<Rev>,
    /// Whether the winner is a tombstone.
    pub deleted: bool,
    /// Whether it only left this reader's sight.
    pub tomb: bool,
    /// The winner's content, if there is any to show.
    pub body: Option<BodyRef>,
    /// Whether the row is the same for all its readers, so that [`Change::line`] may serve.
    pub shared: bool,
    /// The change that it is from, if it came live.
    pub change: Option<Arc<Change>>,
}

/// What became of a change that was offered to a feed.
pub enum Offer {
    /// A row for this reader.
    Row(FeedRow),
    /// Nothing for this reader, or seen already.
    Skipped,
    /// The feed is not right behind this change: read on with [`Feed::next_page`].
    Gap,
}

/// What is told of a document that left a partial database.
struct End {
    row: FeedRow,
    /// The reader is told of its end although it comes again further on.
    comes_again: bool,
}

/// A feed, and how far it has been read.
pub struct Feed {
    db: Db,
    scope: Scope,
    /// What the client is told of the place: it moves with rows that are the reader's alone.
    place: Place,
    /// The database's changes up to here have been looked at.
    seen: Seq,
    seal: Option<Seal>,
    caught_up: bool,
}

impl Db {
    /// Begins a feed.
    ///
    /// # Errors
    /// [`FeedError::BadSeq`] if the text was not made by this database for this reader.
    pub fn feed(&self, scope: &Scope, since: Since) -> Result<Feed, FeedError> {
        self.present()?;
        let seal = self.scope_seal(scope);
        let mut feed =
            Feed { db: self.clone(), scope: scope.clone(), place: Place::default(), seen: 0, seal, caught_up: false };
        let now = self.inner().state().seq;
        let newest = feed.newest(now);
        feed.place.sure = feed.roles();
        match since {
            Since::Now => {
                (feed.place.after, feed.place.origin, feed.place.head) = (newest, newest, newest);
                feed.seen = now;
            }
            Since::Start => feed.start_over(newest),
            Since::Token(text) => feed.resume(&text, newest)?,
        }
        feed.seen = feed.seen.max(feed.place.after);
        Ok(feed)
    }

    /// The newest rows first, before a sequence; without tombstones of what left the reader's sight.
    ///
    /// # Errors
    /// The engine failed.
    pub fn changes_back(
        &self,
        scope: &Scope,
        before: Option<Seq>,
        limit: usize,
    ) -> Result<Vec<(Seq, FeedRow)>, StoreError> {
        self.present()?;
        let snapshot = self.inner().store.engine.snapshot();
        let hi = before.unwrap_or(Seq::MAX);
        let feed = Feed {
            db: self.clone(),
            scope: scope.clone(),
            place: Place { sure: scope.reader().map(|r| r.roles().to_vec()).unwrap_or_default(), ..Place::default() },
            seen: 0,
            seal: self.scope_seal(scope),
            caught_up: false,
        };
        let mut out = Vec::new();
        match scope.reader() {
            None => {
                let (lo, hi) = (key::seq(self.inner().id, 0), key::seq(self.inner().id, hi));
                for item in snapshot.range(Space::Seqs, &lo, &hi, Direction::Backward).take(limit) {
                    let (seq_key, value) = item?;
                    let seq = key::last_seq(&seq_key).ok_or(StoreError::Damaged("a row's key"))?;
                    out.push((seq, feed.row_of_all(seq, decode(&value, "a row")?)));
                }
            }
            Some(reader) => {
                let parts = feed.parts();
                let mut merge = Merge::new(self, snapshot.as_ref(), &parts, 0, hi, Direction::Backward)?;
                while out.len() < limit
                    && let Some((seq, row)) = merge.next()?
                {
                    if !row.tomb {
                        let app = self.inner().app.read();
                        let token = feed.token_at(seq);
                        out.push((seq, live_row(self, &app, reader, &row, token)));
                    }
                }
            }
        }
        Ok(out)
    }

    /// What a client sees of a sequence.
    pub fn seq_token(&self, scope: &Scope, seq: Seq) -> String {
        match self.scope_seal(scope) {
            None => open_form(seq, self.instance()),
            Some(seal) => {
                let sure = scope.reader().map(|r| r.roles().to_vec()).unwrap_or_default();
                seal.seal(&Place { after: seq, origin: seq, head: seq, sure, ..Place::default() })
            }
        }
    }

    fn scope_seal(&self, scope: &Scope) -> Option<Seal> {
        match scope {
            Scope::All => None,
            Scope::Part(reader, part) => Some(self.seal(reader, Some(*part))),
            Scope::Personal(reader) => Some(self.seal(reader, None)),
        }
    }
}

impl Feed {
    /// Rows after the place, at most `max`; the place moves on. An empty page is the end only if
    /// [`Feed::caught_up`] says so.
    ///
    /// # Errors
    /// The engine failed, or the database is gone.
    pub fn next_page(&mut self, max: usize) -> Result<Vec<FeedRow>, StoreError> {
        self.db.present()?;
        self.caught_up = false;
        // Read before the snapshot is taken: all up to here is in it.
        let now = self.db.inner().state().seq;
        let store = Arc::clone(&self.db.inner().store);
        let snapshot = store.engine.snapshot();
        let Some(reader) = self.scope.reader().cloned() else {
            return self.page_of_all(snapshot.as_ref(), max);
        };
        if let Some(turn) = self.place.turn.take() {
            let rows = self.page_of_turn(snapshot.as_ref(), &reader, turn, max)?;
            if !rows.is_empty() || self.place.turn.is_some() {
                return Ok(rows);
            }
            // It may have made new rows: look afresh.
            return self.next_page(max);
        }
        self.page_of_parts(snapshot.as_ref(), &reader, now, max)
    }

    /// Whether the last page went to the end of what there was.
    pub fn caught_up(&self) -> bool {
        self.caught_up
    }

    /// Takes a committed change without a look into the store, if the feed is right behind it.
    pub fn offer(&mut self, change: &Arc<Change>) -> Offer {
        if change.seq <= self.seen {
            return Offer::Skipped;
        }
        // What takes a look at the document is left to the page: rare enough.
        let branched = change.row.leaves.len() > 1;
        let awkward = change.part_rows.iter().any(|(_, row)| {
            needs_successor(row, change.seq, false) || (row.tomb && (branched || !row.gone.is_empty()))
        });
        if change.prev > self.seen || self.place.turn.is_some() || awkward {
            return Offer::Gap;
        }
        let row = match self.scope.reader().cloned() {
            None => {
                self.place.after = change.seq;
                let row = self.row_of_all(change.seq, change.row.clone());
                Some(FeedRow { change: Some(Arc::clone(change)), ..row })
            }
            Some(_) if self.place.after < self.place.head => return Offer::Gap,
            Some(reader) => self.live(&reader, change),
        };
        self.seen = change.seq;
        row.map_or(Offer::Skipped, Offer::Row)
    }

    /// The place now, as text for the client.
    pub fn token(&self) -> String {
        match &self.seal {
            None => open_form(self.place.after, self.db.instance()),
            Some(seal) => seal.seal(&self.place),
        }
    }

    /// Rows that are still to come: exact for the first ten thousand, then an estimate.
    pub fn pending(&self) -> u64 {
        let info = self.db.scoped_info(&self.scope);
        if self.place.after >= info.update_seq && self.place.turn.is_none() {
            return 0;
        }
        let snapshot = self.db.inner().store.engine.snapshot();
        let id = self.db.inner().id;
        let next = self.place.after.saturating_add(1);
        let ranges: Vec<_> = match self.scope.reader() {
            None => vec![(Space::Seqs, key::seq(id, next), key::seq(id, Seq::MAX))],
            Some(_) => self
                .parts()
                .into_iter()
                .take(MERGED_PARTS)
                .map(|part| (Space::PartSeqs, key::part_seq(id, part, next), key::part_seq(id, part, Seq::MAX)))
                .collect(),
        };
        let mut counted = 0;
        for (space, lo, hi) in ranges {
            counted += snapshot.range(space, &lo, &hi, Direction::Forward).take(PENDING_ROWS - counted).count();
            if counted >= PENDING_ROWS {
                return (info.doc_count + info.del_count).max(counted as u64);
            }
        }
        counted as u64
    }

    fn roles(&self) -> Vec<String> {
        self.scope.reader().map(|reader| reader.roles().to_vec()).unwrap_or_default()
    }

    fn start_over(&mut self, now: Seq) {
        let many = match &self.scope {
            Scope::Personal(_) => self.parts().len() > MERGED_PARTS,
            Scope::All | Scope::Part(..) => false,
        };
        self.place = Place { sure: self.roles(), head: now, ..Place::default() };
        if many {
            self.place.after = now;
            self.place.turn = Some(Turn { fresh: true, roles: self.roles(), part: 0, seq: 0 });
        }
    }

    fn resume(&mut self, text: &str, now: Seq) -> Result<(), FeedError> {
        let Some(seal) = &self.seal else {
            let (seq, instance) = read_open_form(text).ok_or(FeedError::BadSeq)?;
            // A place in a namesake that was deleted since: all is new.
            let known = instance.is_none_or(|instance| instance == self.db.instance());
            self.place.after = if known { seq.min(now) } else { 0 };
            return Ok(());
        };
        if text == "0" {
            self.start_over(now);
            return Ok(());
        }
        let opened = seal.open(text);
        match opened {
            Some(place) => self.place = place,
            None if looks_sealed(text) => {
                // Another user's, or of a namesake that was deleted: all is new.
                self.start_over(now);
                return Ok(());
            }
            None => return Err(FeedError::BadSeq),
        }
        if let Scope::Personal(reader) = &self.scope {
            turn_to(&mut self.place, reader.roles());
        }
        Ok(())
    }

    /// The partial databases of the scope.
    fn parts(&self) -> Vec<PartNo> {
        let app = self.db.inner().app.read();
        match &self.scope {
            Scope::All => Vec::new(),
            Scope::Part(reader, part) => {
                if app.may_read(reader, Some(*part)) {
                    vec![*part]
                } else {
                    Vec::new()
                }
            }
            Scope::Personal(reader) => app.parts_of(reader),
        }
    }

    /// The newest row of the scope, as far as it is committed.
    fn newest(&self, now: Seq) -> Seq {
        if self.scope.reader().is_none() {
            return now;
        }
        let parts = self.parts();
        let app = self.db.inner().app.read();
        let newest = parts.iter().filter_map(|part| app.part(*part)).map(|part| part.seq).max();
        newest.unwrap_or(0).min(now)
    }

    fn token_at(&self, seq: Seq) -> String {
        match &self.seal {
            None => open_form(seq, self.db.instance()),
            Some(seal) => seal.seal(&Place { after: seq, ..self.place.clone() }),
        }
    }

    fn row_of_all(&self, seq: Seq, row: SeqRow) -> FeedRow {
        let winner = row.leaves.first();
        FeedRow {
            seq_token: open_form(seq, self.db.instance()),
            deleted: winner.is_none_or(|leaf| leaf.deleted),
            tomb: false,
            body: winner.and_then(|leaf| leaf.body).map(BodyRef),
            shared: row.leaves.len() == 1,
            revs: row.leaves.into_iter().map(|leaf| leaf.rev).collect(),
            id: Arc::from(row.id),
            change: None,
        }
    }

    fn page_of_all(&mut self, snapshot: &dyn Snapshot, max: usize) -> Result<Vec<FeedRow>, StoreError> {
        let id = self.db.inner().id;
        let (lo, hi) = (key::seq(id, self.place.after.saturating_add(1)), key::seq(id, Seq::MAX));
        let mut rows = Vec::new();
        for item in snapshot.range(Space::Seqs, &lo, &hi, Direction::Forward).take(max) {
            let (seq_key, value) = item?;
            let seq = key::last_seq(&seq_key).ok_or(StoreError::Damaged("a row's key"))?;
            (self.place.after, self.seen) = (seq, seq);
            rows.push(self.row_of_all(seq, decode(&value, "a row")?));
        }
        self.caught_up = rows.len() < max;
        Ok(rows)
    }

    fn page_of_parts(
        &mut self,
        snapshot: &dyn Snapshot,
        reader: &Reader,
        now: Seq,
        max: usize,
    ) -> Result<Vec<FeedRow>, StoreError> {
        if self.place.after >= self.place.head {
            // In step: what the client has is what there was up to here.
            self.place.origin = self.place.after;
            self.place.head = self.newest(now).max(self.place.after);
        }
        let db = self.db.clone();
        let parts = self.parts();
        let mut merge = Merge::new(&db, snapshot, &parts, self.place.after, Seq::MAX, Direction::Forward)?;
        let mut rows = Vec::new();
        let (mut ended, mut ending) = (Vec::new(), Vec::new());
        let first_read = self.place.origin == 0;
        let mut tied = self.place.after;
        for _ in 0..SCANNED_ROWS {
            // A move's tombstone and its new row have one sequence: a place must not come between them.
            if rows.len() >= max && merge.peek() != Some(tied) {
                break;
            }
            let Some((seq, row)) = merge.next()? else {
                self.seen = self.seen.max(now);
                self.caught_up = true;
                break;
            };
            let may_have = row.entered <= self.place.origin
                || (seq > self.place.head && row.entered <= self.place.after)
                || wrote(reader, &row);
            tied = seq;
            if merge.peek() != Some(seq) {
                self.place.after = seq;
                self.seen = self.seen.max(seq);
            }
            let live = !row.tomb && row.leaves.first().is_some_and(|winner| !winner.deleted);
            if needs_successor(&row, seq, first_read) || (live && ending.contains(&row.id)) {
                ended.push(row.id);
            } else if !row.tomb {
                let app = db.inner().app.read();
                rows.push(live_row(&db, &app, reader, &row, self.token()));
            } else if may_have && let Some(end) = self.end_of(snapshot, reader, seq.max(self.place.after), &row)? {
                rows.push(FeedRow { seq_token: self.token(), ..end.row });
                if end.comes_again {
                    ending.push(row.id);
                }
            }
        }
        drop(merge);
        self.mark_ended(ending)?;
        self.succeed(ended)?;
        Ok(rows)
    }

    /// Has documents succeeded by a revision that no device holds as dead: they come again, at the feed's end.
    fn succeed(&mut self, ids: Vec<String>) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        self.caught_up = false;
        let db = self.db.clone();
        self.db.inner().store.call(move |tx| tx.succeed_ended(&db, &ids).map_err(|error| tx.fail(error)))
    }

    /// Notes what is about to be told as ended, before it is told.
    fn mark_ended(&self, ids: Vec<String>) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let db = self.db.clone();
        self.db.inner().store.call(move |tx| tx.mark_ended(&db, &ids).map_err(|error| tx.fail(error)))
    }

    /// Tells a change of roles: of partial databases that were gained the documents up to the place, of those
    /// that were lost the end of what the client may have.
    fn page_of_turn(
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
                    if end.comes_again || !row.tomb {
                        ending.push(row.id);
                    }
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
    fn end_of(
        &self,
        snapshot: &dyn Snapshot,
        reader: &Reader,
        given: Seq,
        row: &PartRow,
    ) -> Result<Option<End>, StoreError> {
        let end = |comes_again| Ok(Some(End { row: tomb_row(&self.db, row, String::new()), comes_again }));
        if matches!(self.scope, Scope::Part(..)) {
            return end(false);
        }
        let Some(value) = snapshot.get(Space::Docs, &key::doc(self.db.inner().id, &row.id))? else { return end(false) };
        let record: DocRecord = decode(&value, "a document")?;
        let app = self.db.inner().app.read();
        let Some(place) = record.place.filter(|_| app.may_read(reader, record.place)) else { return end(false) };
        if record.seq > given {
            // Its row there is still to come, and may not come if roles change before: so the end is told now.
            return end(true);
        }
        let leaves = visible(&app, leaves_of(&record), place);
        let gone = gone_of(&row.leaves, &row.gone, &record.tree, &leaves);
        if gone.is_empty() {
            return Ok(None);
        }
        let row = PartRow { id: row.id.clone(), entered: row.entered, tomb: false, leaves, gone, authors: Vec::new() };
        let row = live_row(&self.db, &app, reader, &row, String::new());
        Ok(Some(End { row, comes_again: false }))
    }

    /// The row of a change for a reader who is in step; the place moves if the change is in their sight.
    fn live(&mut self, reader: &Reader, change: &Arc<Change>) -> Option<FeedRow> {
        let db = self.db.clone();
        let app = db.inner().app.read();
        let only = match self.scope {
            Scope::Part(_, part) => Some(part),
            Scope::All | Scope::Personal(_) => None,
        };
        let mine = |part: PartNo| only.is_none_or(|only| only == part) && app.may_read(reader, Some(part));
        let row = |tomb: bool| change.part_rows.iter().find(|(part, row)| row.tomb == tomb && mine(*part));
        let (_, row) = row(false).or_else(|| row(true))?;
        let before = self.place.after;
        (self.place.after, self.place.origin, self.place.head) = (change.seq, change.seq, change.seq);
        if !row.tomb {
            let live = live_row(&db, &app, reader, row, self.token());
            return Some(FeedRow { change: Some(Arc::clone(change)), ..live });
        }
        let elsewhere = only.is_none() && app.may_read(reader, change.place);
        ((row.entered <= before || wrote(reader, row)) && !elsewhere).then(|| tomb_row(&db, row, self.token()))
    }
}

/// Notes in a place that its reader's roles are others now.
fn turn_to(place: &mut Place, roles: &[String]) {
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

fn looks_sealed(text: &str) -> bool {
    let digits = text.strip_prefix("1-").unwrap_or_default();
    digits.len() >= 20 && digits.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn wrote(reader: &Reader, row: &PartRow) -> bool {
    reader.name().is_some_and(|name| row.authors.iter().any(|author| author == name))
}

/// Whether the client may hold the row's winner as dead. Not if it was in the reader's sight before and after
/// the move that ended it for others, which is the commit that made the row.
fn needs_successor(row: &PartRow, seq: Seq, first_read: bool) -> bool {
    !row.tomb
        && row
            .leaves
            .first()
            .is_some_and(|winner| !winner.deleted && winner.ended != 0 && (first_read || winner.ended != seq))
}

fn live_row(db: &Db, app: &AppState, reader: &Reader, row: &PartRow, seq_token: String) -> FeedRow {
    let gone = row.gone.iter().map(|rev| db.inner().chain.tomb(&row.id, rev));
    let revs = row.leaves.iter().map(|leaf| leaf.rev.clone()).chain(gone).collect();
    let winner = row.leaves.first();
    let content = winner.filter(|leaf| app.may_read_acl(reader, leaf.acl));
    FeedRow {
        id: Arc::from(row.id.as_str()),
        seq_token,
        deleted: winner.is_none_or(|leaf| leaf.deleted),
        tomb: false,
        body: content.and_then(|leaf| leaf.body).map(BodyRef),
        shared: row.leaves.len() == 1 && row.gone.is_empty() && content.is_some(),
        revs,
        change: None,
    }
}

fn tomb_row(db: &Db, row: &PartRow, seq_token: String) -> FeedRow {
    let held = row.leaves.iter().map(|leaf| &leaf.rev).chain(&row.gone);
    FeedRow {
        id: Arc::from(row.id.as_str()),
        seq_token,
        revs: held.map(|rev| db.inner().chain.tomb(&row.id, rev)).collect(),
        deleted: true,
        tomb: true,
        body: None,
        shared: false,
        change: None,
    }
}

/// The rows of several partial databases in the order of their sequences.
struct Merge<'a> {
    direction: Direction,
    ranges: Vec<Range<'a>>,
    /// The next row of each range, best on top; backwards the sequence is turned around. Of a move's two rows,
    /// which have one sequence, the tombstone comes first: the place after the last one covers both.
    heap: BinaryHeap<Reverse<(Seq, bool, usize)>>,
    rows: Vec<Option<PartRow>>,
}

impl<'a> Merge<'a> {
    /// Rows after `after` and before `before`.
    fn new(
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
        let with_news = parts.iter().filter(|part| app.part(**part).is_some_and(|p| p.seq > after));
        let ranges: Vec<Range<'a>> = with_news
            .map(|part| {
                let (lo, hi) = (key::part_seq(id, *part, after.saturating_add(1)), key::part_seq(id, *part, before));
                snapshot.range(Space::PartSeqs, &lo, &hi, direction)
            })
            .collect();
        drop(app);
        let rows = ranges.iter().map(|_| None).collect();
        let mut merge = Merge { direction, ranges, heap: BinaryHeap::new(), rows };
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
        let row: PartRow = decode(&value, "a row of a partial database")?;
        self.heap.push(Reverse((rank, !row.tomb, at)));
        self.rows[at] = Some(row);
        Ok(())
    }

    /// The next row's sequence, forwards.
    fn peek(&self) -> Option<Seq> {
        self.heap.peek().map(|Reverse((seq, ..))| *seq)
    }

    fn next(&mut self) -> Result<Option<(Seq, PartRow)>, StoreError> {
        let Some(Reverse((rank, _, at))) = self.heap.pop() else { return Ok(None) };
        let row = self.rows[at].take();
        self.advance(at)?;
        let seq = match self.direction {
            Direction::Forward => rank,
            Direction::Backward => Seq::MAX - rank,
        };
        Ok(row.map(|row| (seq, row)))
    }
}
