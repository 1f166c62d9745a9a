//! Changes feeds: of a whole database, of one partial database, of all that a reader may read.
//!
//! A feed holds a place and no snapshot, so a client may take as long as it likes. The personal feed merges
//! the reader's partial databases by sequence. Its place also says with which roles it was reached: when they
//! have changed since, the feed first tells of the documents that became readable and of those that are
//! readable no longer, and then goes on (see `turn`).
//!
//! When is a reader told of a document's leaving? Only if they may have it: it was in the partial database
//! when the client was last in step, or it left while this catch-up went on, or this is a first read and its user
//! was given it before (see `served`): a device that lost its place begins again with what it has.

mod change;
mod held;
mod merge;
mod row;
mod turn;

use self::merge::Merge;
use self::row::{live_row, may_be_dead, somebody_wrote, tomb_row, wrote};
use self::turn::turn_to;
use crate::app::Reader;
use crate::bookmark::{Place, Seal, Turn, open_form, read_open_form};
use crate::db::Db;
use crate::engine::{Direction, Snapshot, Space};
use crate::error::StoreError;
use crate::record::{PartNo, PartRow, Seq, SeqRow, decode, key};
use crate::rev::Rev;
use crate::served::{Given, Serving};
use crate::view::{BodyRef, Scope};
use std::sync::Arc;

pub use self::change::Change;
pub use self::row::FeedRow;

/// Up to this many partial databases a first read merges them by sequence; with more it takes them one after
/// the other, because each one that is merged costs an open range.
const MERGED_PARTS: usize = 64;
/// Rows that one call looks at. Most calls give a row for each, but those that a reader isn't told of give none.
const SCANNED_ROWS: usize = 2_000;
/// Rows that are counted for `pending`; beyond it the rest is estimated.
const PENDING_ROWS: usize = 10_000;

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

/// What became of a change that was offered to a feed.
pub enum Offer {
    /// A row for this reader.
    Row(FeedRow),
    /// Nothing for this reader, or seen already.
    Skipped,
    /// The feed is not right behind this change: read on with [`Feed::next_page`].
    Gap,
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
    /// That its user is being served; nobody in particular is not noted.
    serving: Option<Serving>,
}

impl Db {
    /// Begins a feed.
    ///
    /// # Errors
    /// [`FeedError::BadSeq`] if the text was not made by this database for this reader.
    pub fn feed(&self, scope: &Scope, since: Since) -> Result<Feed, FeedError> {
        self.present()?;
        let seal = self.scope_seal(scope);
        let serving = scope.reader().map(|reader| self.serve(reader)).transpose()?.flatten();
        let (db, scope) = (self.clone(), scope.clone());
        let mut feed = Feed { db, scope, place: Place::default(), seen: 0, seal, caught_up: false, serving };
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
            serving: None,
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
                    && let Some((seq, row, _)) = merge.next()?
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
            None => open_form(self.shown_seq(seq), self.instance()),
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

/// Whether the winner of a row was told as ended on the same page.
fn ended_here(ending: &[(String, Vec<Rev>)], row: &PartRow) -> bool {
    let winner = row.leaves.first().map(|leaf| &leaf.rev);
    let told = |(id, told): &(String, Vec<Rev>)| *id == row.id && winner.is_some_and(|winner| told.contains(winner));
    ending.iter().any(told)
}

impl Feed {
    /// Rows after the place, at most `max`; the place moves on. An empty page is the end only if
    /// [`Feed::caught_up`] says so.
    ///
    /// # Errors
    /// The engine failed, or the database is gone.
    pub fn next_page(&mut self, max: usize) -> Result<Vec<FeedRow>, StoreError> {
        let rows = self.page(max)?;
        if !rows.is_empty() {
            self.gave();
        }
        Ok(rows)
    }

    /// Notes that the user was given what there was up to the place.
    fn gave(&mut self) {
        if let Some(serving) = &mut self.serving {
            serving.gave(self.place.after);
        }
    }

    fn page(&mut self, max: usize) -> Result<Vec<FeedRow>, StoreError> {
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
            return self.page(max);
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
        let awkward = change
            .part_rows
            .iter()
            .any(|(_, row)| may_be_dead(row, change.seq, false) || (row.tomb && (branched || !row.gone.is_empty())));
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
        if row.is_some() {
            self.gave();
        }
        row.map_or(Offer::Skipped, Offer::Row)
    }

    /// The place now, as text for the client.
    pub fn token(&self) -> String {
        match &self.seal {
            None => open_form(self.db.shown_seq(self.place.after), self.db.instance()),
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
        let one_by_one = match &self.scope {
            Scope::Personal(reader) => self.parts().len() > MERGED_PARTS || self.has_lost_parts(reader),
            Scope::All | Scope::Part(..) => false,
        };
        self.place = Place { sure: self.roles(), head: now, ..Place::default() };
        if one_by_one {
            self.place.after = now;
            self.place.turn = Some(Turn { fresh: true, roles: self.roles(), part: 0, seq: 0 });
        }
    }

    fn resume(&mut self, text: &str, now: Seq) -> Result<(), FeedError> {
        let Some(seal) = &self.seal else {
            let (seq, instance) = read_open_form(text).ok_or(FeedError::BadSeq)?;
            // A place in a namesake that was deleted since: all is new.
            let known = instance.is_none_or(|instance| instance == self.db.instance());
            self.place.after = if known { self.db.stored_seq(seq).min(now) } else { 0 };
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
            turn_to(&mut self.place, reader.roles(), self.db.inner().seq());
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
        let newest = parts.iter().filter_map(|part| app.part(*part)).map(|part| part.count.seq).max();
        newest.unwrap_or(0).min(now)
    }

    fn token_at(&self, seq: Seq) -> String {
        match &self.seal {
            None => open_form(self.db.shown_seq(seq), self.db.instance()),
            Some(seal) => seal.seal(&Place { after: seq, ..self.place.clone() }),
        }
    }

    fn row_of_all(&self, seq: Seq, row: SeqRow) -> FeedRow {
        let winner = row.leaves.first();
        FeedRow {
            seq_token: open_form(self.db.shown_seq(seq), self.db.instance()),
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
            self.place.gained.retain(|gain| gain.at > self.place.origin);
        }
        let db = self.db.clone();
        let parts = self.parts();
        let mut merge = Merge::new(&db, snapshot, &parts, self.place.after, Seq::MAX, Direction::Forward)?;
        let mut rows = Vec::new();
        let (mut ended, mut ending) = (Vec::new(), Vec::new());
        let first_read = self.place.origin == 0;
        let given = if first_read { self.given(reader) } else { None };
        let mut tied = self.place.after;
        for _ in 0..SCANNED_ROWS {
            // A move's tombstone and its new row have one sequence: a place must not come between them.
            if rows.len() >= max && merge.peek() != Some(tied) {
                break;
            }
            let Some((seq, row, part)) = merge.next()? else {
                self.seen = self.seen.max(now);
                self.caught_up = true;
                break;
            };
            let was_given = |given: &Given| self.spans(given, part).given(row.stays(seq)).is_some();
            let may_have = row.tomb
                && (self.may_hold(reader, reader.roles(), part, &row, seq)
                    || given.as_ref().is_some_and(was_given)
                    || self.may_have_written(reader, part, seq, &row));
            tied = seq;
            if merge.peek() != Some(seq) {
                self.place.after = seq;
                self.seen = self.seen.max(seq);
            }
            let live = !row.tomb && row.leaves.first().is_some_and(|winner| !winner.deleted);
            if self.needs_successor(snapshot, &row, seq, first_read)? || (live && ended_here(&ending, &row)) {
                ended.push(row.id);
            } else if !row.tomb {
                let app = db.inner().app.read();
                rows.push(live_row(&db, &app, reader, &row, self.token()));
            } else if may_have && let Some(end) = self.end_of(snapshot, reader, seq.max(self.place.after), &row)? {
                rows.push(FeedRow { seq_token: self.token(), ..end.row });
                ending.push((row.id, end.told));
            }
        }
        drop(merge);
        if let Some(last) = rows.last_mut() {
            // Rows that were not for this reader may have come after it, also with its own sequence: who went on from before
            // those would be given it again for ever.
            last.seq_token = self.token();
        }
        self.mark_ended(ending)?;
        self.succeed(ended)?;
        Ok(rows)
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
        let had = |row: &PartRow| row.stays(change.seq).any(|(entered, left)| entered <= before && before < left);
        let elsewhere = only.is_none() && app.may_read(reader, change.place);
        ((had(row) || wrote(reader, row) || somebody_wrote(reader, row)) && !elsewhere)
            .then(|| tomb_row(&db, row, self.token()))
    }
}

fn looks_sealed(text: &str) -> bool {
    let digits = text.strip_prefix("1-").unwrap_or_default();
    digits.len() >= 20 && digits.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
