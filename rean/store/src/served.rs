//! Who was served: from when on, until when and by which roles each user was given rows of an app's feeds.
//!
//! A device that has lost its place, because it was cut off before it noted one, begins at the start again and may hold
//! documents that have left its user's sight since. A first read tells such a device of their end, and must not tell
//! anybody of a document that they could never read. (It may tell of one that they could read and were not given: what a
//! feed has passed counts as given, whichever of the user's rights and filters it was for.) So each user's record has *spells*: one for what names the user or
//! everybody, one for each time that they held a role. A document that came to a partial database at `entered` and left it
//! at `left` may be held by a user who was served from there in a spell with `from < left` and `entered <= until`.
//!
//! A record is a lazy note (see `notes`), so serving costs no flush: one when the first row is given, one when the last
//! feed has ended. It says whether there is a feed; after a crash, what was given by then counts as given. A crash within
//! the second before a note is committed can set it back, and with it what first reads tell.

use crate::app::Reader;
use crate::db::Db;
use crate::error::StoreError;
use crate::notes::MAX_NOTE_BYTES;
use crate::record::{DbId, PartNo, Seq, decode, encode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Spells of one user, of which the oldest are forgotten: who is given and taken roles all day long has no right to the
/// room of all.
const MAX_SPELLS: usize = 200;

/// A time in which a user was served by one right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Spell {
    /// `None`: what names the user, or everybody.
    role: Option<String>,
    /// The newest sequence at its beginning.
    from: Seq,
    /// What was in sight up to here was given.
    until: Seq,
    /// The newest sequence when the role was found to be lost; `None`: it wasn't.
    lost: Option<Seq>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Whether a feed was open.
    live: bool,
    /// In the order of their beginnings.
    spells: Vec<Spell>,
}

/// How far an open feed has come.
struct Open {
    roles: Vec<String>,
    given: AtomicU64,
}

/// A user with open feeds.
#[derive(Default)]
struct User {
    record: Record,
    open: Vec<Arc<Open>>,
    /// What the newest note says.
    noted: Record,
}

/// The users of one database who have open feeds.
#[derive(Default)]
pub(crate) struct Served {
    users: Mutex<HashMap<String, User>>,
}

/// That a feed is open. Dropped with it.
pub(crate) struct Serving {
    db: Db,
    name: String,
    open: Arc<Open>,
    is_noted: bool,
}

/// What a user was given, at one moment.
pub(crate) struct Given {
    /// Who they are without any role.
    plain: Reader,
    spells: Vec<Spell>,
}

/// What a user was given of one partial database.
#[derive(Debug, Default)]
pub(crate) struct Spans(Vec<Span>);

/// Of a spell.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: Seq,
    until: Seq,
    lost: Option<Seq>,
}

impl Spans {
    /// Until when a document was given that was there at these times (see [`crate::record::PartRow::stays`]); `None`: it
    /// never was.
    pub fn given(&self, stays: impl Iterator<Item = (Seq, Seq)> + Clone) -> Option<Seq> {
        let had = |span: &&Span| stays.clone().any(|(entered, left)| entered <= span.until && span.from < left);
        self.0.iter().filter(had).map(|span| span.until).max()
    }

    /// When the last right to it was lost: what the user wrote, they wrote before that.
    pub fn lost(&self) -> Option<Seq> {
        self.0.iter().filter_map(|span| span.lost).max()
    }

    /// Whether the user was served before this sequence.
    pub fn began_before(&self, seq: Seq) -> bool {
        self.0.iter().any(|span| span.from < seq)
    }
}

impl Given {
    /// What was given of a partial database with these readers.
    pub fn of(&self, readers: &[String]) -> Spans {
        let by_name = self.plain.is_among(readers);
        let counts = |spell: &&Spell| match &spell.role {
            None => by_name,
            Some(role) => readers.iter().any(|entry| entry.strip_prefix("role:") == Some(role.as_str())),
        };
        let span = |spell: &Spell| Span { from: spell.from, until: spell.until, lost: spell.lost };
        Spans(self.spells.iter().filter(counts).map(span).collect())
    }

    /// Roles by which the user was served and which they have no more, for [`Reader::with_roles`].
    pub fn lost_roles(&self) -> Vec<String> {
        let held = |role: &str| self.spells.iter().any(|spell| spell.is_held() && spell.role.as_deref() == Some(role));
        let lost = self.spells.iter().filter_map(|spell| spell.role.as_deref()).filter(|role| !held(role));
        lost.map(str::to_owned).collect()
    }

    /// The partial databases from which the user was served and which they may not read now, in order.
    pub fn lost_parts(&self, db: &Db, reader: &Reader) -> Vec<PartNo> {
        let lost_roles = self.lost_roles();
        if lost_roles.is_empty() {
            return Vec::new();
        }
        let app = db.inner().app.read();
        let mut parts = app.parts_of(&reader.with_roles(lost_roles));
        parts.retain(|part| !app.may_read(reader, Some(*part)));
        parts
    }
}

impl Spell {
    fn is_held(&self) -> bool {
        self.lost.is_none()
    }

    /// Whether it is over for a user who has these roles now.
    fn ends_with(&self, roles: &[String]) -> bool {
        self.is_held() && self.role.as_ref().is_some_and(|role| !roles.contains(role))
    }
}

impl Record {
    /// The last spell by this right.
    fn last(&mut self, role: Option<&str>) -> Option<&mut Spell> {
        self.spells.iter_mut().rev().find(|spell| spell.role.as_deref() == role)
    }

    /// Makes sense of what a crash left: who had a feed was given what there was, of which the store still had all up to
    /// `opened_at`.
    fn settle(&mut self, opened_at: Seq, now: Seq) {
        for spell in &mut self.spells {
            if self.live && spell.is_held() {
                spell.until = opened_at;
            }
            // Sequences are given again after commits were lost.
            (spell.from, spell.until) = (spell.from.min(now), spell.until.min(now));
            spell.lost = spell.lost.map(|lost| lost.min(now));
        }
        self.live = false;
    }

    /// Takes up what a feed has given.
    fn take_up(&mut self, open: &Open) {
        let given = open.given.load(Ordering::Acquire);
        for role in std::iter::once(None).chain(open.roles.iter().map(|role| Some(role.as_str()))) {
            if let Some(spell) = self.last(role) {
                spell.until = spell.until.max(given);
            }
        }
    }

    fn turn_to(&mut self, roles: &[String], now: Seq) {
        for spell in &mut self.spells {
            if spell.ends_with(roles) {
                spell.lost = Some(now);
            }
        }
        for role in std::iter::once(None).chain(roles.iter().map(Some)) {
            if !self.last(role.map(String::as_str)).is_some_and(|spell| spell.is_held()) {
                self.spells.push(Spell { role: role.cloned(), from: now, until: 0, lost: None });
            }
        }
        while self.spells.len() > MAX_SPELLS && self.forget_one() {}
    }

    fn forget_one(&mut self) -> bool {
        let oldest = self.spells.iter().position(|spell| !spell.is_held());
        oldest.map(|at| self.spells.remove(at)).is_some()
    }

    fn encoded(&mut self) -> Option<Vec<u8>> {
        loop {
            let note = encode(self);
            if note.len() <= MAX_NOTE_BYTES {
                return Some(note);
            }
            if !self.forget_one() {
                return None;
            }
        }
    }
}

impl User {
    /// The record with what open feeds have given.
    fn now(&self) -> Record {
        let mut record = self.record.clone();
        self.open.iter().for_each(|open| record.take_up(open));
        record
    }

    /// Ends the spells of roles that are lost, begins those of roles that are new. Tells whether any was lost.
    fn turn_to(&mut self, roles: &[String], now: Seq) -> bool {
        let lost = self.record.spells.iter().any(|spell| spell.ends_with(roles));
        if lost {
            self.record = self.now();
        }
        self.record.turn_to(roles, now);
        lost
    }

    /// Keeps the record, if it is news.
    fn note(&mut self, db: &Db, name: &str) {
        let mut record = Record { live: !self.open.is_empty(), ..self.record.clone() };
        if record == self.noted || db.is_gone() {
            return;
        }
        let note = record.encoded();
        if note.is_none() {
            tracing::warn!(db = db.name(), "a user's roles are too many for a note of what they were served");
        }
        match db.inner().store.set_note_lazily(&note_name(db.inner().id, name), note) {
            Ok(()) => self.noted = record,
            // The store is being closed: as after a crash.
            Err(error) => tracing::debug!(%error, "what a user was served is not noted"),
        }
    }
}

impl Db {
    /// Notes that a user's feed is open; nothing for who has no name, or stands in.
    ///
    /// # Errors
    /// The engine failed.
    pub(crate) fn serve(&self, reader: &Reader) -> Result<Option<Serving>, StoreError> {
        let Some(name) = reader.user() else { return Ok(None) };
        let open = Arc::new(Open { roles: reader.roles().to_vec(), given: AtomicU64::new(0) });
        let now = self.inner().seq();
        let mut users = self.inner().served.users.lock();
        if !users.contains_key(name) {
            users.insert(name.to_owned(), self.load_user(name)?);
        }
        let user = users.entry(name.to_owned()).or_default();
        let lost = user.turn_to(reader.roles(), now);
        user.open.push(Arc::clone(&open));
        if lost {
            // What comes to those partial databases from now on is not the user's, also after a crash.
            user.note(self, name);
        }
        Ok(Some(Serving { db: self.clone(), name: name.to_owned(), open, is_noted: false }))
    }

    fn load_user(&self, name: &str) -> Result<User, StoreError> {
        let note = self.inner().store.note(&note_name(self.inner().id, name))?;
        let Some(note) = note else { return Ok(User::default()) };
        let noted: Record = match decode(&note, "what a user was served") {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(%error, db = self.name(), "what a user was served can't be read, and is noted anew");
                return Ok(User::default());
            }
        };
        let mut record = noted.clone();
        record.settle(self.inner().store.opened_at, self.inner().store.progress.seq());
        Ok(User { record, open: Vec::new(), noted })
    }

    /// Notes that a user's roles have changed, whether or not they have a feed. Who is told only by feeds can't see that
    /// a role was lost and given back between two of them, and takes what came and went meanwhile for given.
    ///
    /// # Errors
    /// The engine failed, or the store is being closed.
    pub fn note_roles(&self, name: &str, roles: &[String]) -> Result<(), StoreError> {
        let mut users = self.inner().served.users.lock();
        let mut loaded = None;
        let user = match users.get_mut(name) {
            Some(user) => user,
            None => loaded.insert(self.load_user(name)?),
        };
        if !user.record.spells.is_empty() && user.turn_to(roles, self.inner().seq()) {
            user.note(self, name);
        }
        Ok(())
    }

    /// Forgets what a user was served: a namesake who comes later was not.
    ///
    /// # Errors
    /// The store is being closed.
    pub fn forget_served(&self, name: &str) -> Result<(), StoreError> {
        let mut users = self.inner().served.users.lock();
        if let Some(user) = users.get_mut(name) {
            (user.record, user.noted) = (Record::default(), Record::default());
            user.open.clear();
        }
        let note_name = note_name(self.inner().id, name);
        if self.inner().store.note(&note_name)?.is_some() {
            self.inner().store.set_note_lazily(&note_name, None)?;
        }
        Ok(())
    }
}

impl Serving {
    /// Notes that all up to a sequence was given.
    pub fn gave(&mut self, up_to: Seq) {
        self.open.given.fetch_max(up_to, Ordering::AcqRel);
        if !std::mem::replace(&mut self.is_noted, true)
            && let Some(user) = self.db.inner().served.users.lock().get_mut(&self.name)
        {
            user.note(&self.db, &self.name);
        }
    }

    /// What the user was given so far, by this feed and others.
    pub fn given(&self, reader: &Reader) -> Given {
        let users = self.db.inner().served.users.lock();
        let spells = users.get(&self.name).map(|user| user.now().spells).unwrap_or_default();
        Given { plain: reader.with_roles(Vec::new()), spells }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut users = self.db.inner().served.users.lock();
        let Some(user) = users.get_mut(&self.name) else { return };
        let before = user.open.len();
        user.open.retain(|open| !Arc::ptr_eq(open, &self.open));
        if user.open.len() < before {
            user.record.take_up(&self.open);
        }
        if user.open.is_empty() {
            // Who was given nothing leaves no record.
            if user.noted != Record::default() || user.record.spells.iter().any(|spell| spell.until > 0) {
                user.note(&self.db, &self.name);
            }
            users.remove(&self.name);
        }
    }
}

/// What the notes of a database's users begin with.
pub(crate) fn note_prefix(db: DbId) -> String {
    format!("served/{db}/")
}

fn note_name(db: DbId, user: &str) -> String {
    // Names can be longer than those of notes.
    note_prefix(db) + &hex::encode(Sha256::digest(user.as_bytes()))
}
