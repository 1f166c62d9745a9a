//! Small records that the server keeps in the store: how far a link has come, the bounds of a clock.
//!
//! A lazy note costs no flush of its own: it waits in memory for the next commit, and a short while at most.

use crate::engine::{Space, Value};
use crate::error::StoreError;
use crate::record::key;
use crate::store::{Store, StoreInner};
use crate::writer::Tx;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of a note: it is read and written whole, and a commit can carry many.
pub const MAX_NOTE_BYTES: usize = 64 << 10;
/// Bytes of a note's name: a peer's name and a history fit with room to spare.
pub const MAX_NOTE_NAME_BYTES: usize = 200;
/// Lazy notes that wait: with more a commit is made for them. A pod has a handful of links.
const MAX_WAITING: usize = 100;

/// A note as it is to be; `None`: gone. Shared, so that it can be told whether a newer one came meanwhile.
type Waiting = Arc<Option<Vec<u8>>>;

/// Lazy notes that are not committed yet.
#[derive(Default)]
pub(crate) struct Notes {
    waiting: Mutex<BTreeMap<String, Waiting>>,
    count: AtomicUsize,
}

impl Notes {
    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Lets one wait, in place of an older one of its name. Gives how many wait.
    fn add(&self, name: &str, note: Option<Vec<u8>>) -> usize {
        let mut waiting = self.waiting.lock();
        waiting.insert(name.to_owned(), Arc::new(note));
        self.count.store(waiting.len(), Ordering::Release);
        waiting.len()
    }

    /// Lets none whose name begins like this wait any longer.
    pub fn drop_all(&self, prefix: &str) {
        let mut waiting = self.waiting.lock();
        waiting.retain(|name, _| !name.starts_with(prefix));
        self.count.store(waiting.len(), Ordering::Release);
    }

    fn all(&self) -> Vec<(String, Waiting)> {
        self.waiting.lock().iter().map(|(name, note)| (name.clone(), Arc::clone(note))).collect()
    }

    /// Forgets those that are committed and for which no newer one came.
    pub fn committed(&self, notes: &[(String, Waiting)]) {
        if notes.is_empty() {
            return;
        }
        let mut waiting = self.waiting.lock();
        for (name, note) in notes {
            if waiting.get(name).is_some_and(|newest| Arc::ptr_eq(newest, note)) {
                waiting.remove(name);
            }
        }
        self.count.store(waiting.len(), Ordering::Release);
    }
}

impl Tx<'_> {
    /// Stages all lazy notes that wait, and gives them for [`Notes::committed`].
    pub(crate) fn stage_notes(&mut self) -> Vec<(String, Waiting)> {
        if self.store.notes.is_empty() {
            return Vec::new();
        }
        let notes = self.store.notes.all();
        for (name, note) in &notes {
            self.put_note(name, note.as_ref().clone());
        }
        notes
    }

    fn put_note(&mut self, name: &str, note: Option<Vec<u8>>) {
        let note_key = note_key(name);
        match note {
            Some(note) => self.put(Space::Meta, note_key, note),
            None => self.delete(Space::Meta, note_key),
        }
    }
}

impl Store {
    /// The note of this name.
    ///
    /// # Errors
    /// The engine failed.
    pub fn note(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner().note(name)
    }

    /// Keeps a note in place of an older one, or removes it. Blocks until that is durable.
    ///
    /// # Errors
    /// [`StoreError::NoteSize`], or the engine failed.
    pub fn set_note(&self, name: &str, note: Option<Vec<u8>>) -> Result<(), StoreError> {
        check(name, note.as_deref())?;
        let name = name.to_owned();
        self.inner().call(move |tx| {
            // What waits is older, and would be staged after this.
            let older = tx.store.notes.all().into_iter().filter(|(other, _)| *other == name).collect::<Vec<_>>();
            tx.store.notes.committed(&older);
            tx.put_note(&name, note);
            Ok(())
        })
    }

    /// Keeps a note with the next commit, or in one of its own if none comes soon (about a second, and when the
    /// store is closed). After a crash it can be the older one.
    ///
    /// # Errors
    /// [`StoreError::NoteSize`].
    pub fn set_note_lazily(&self, name: &str, note: Option<Vec<u8>>) -> Result<(), StoreError> {
        self.inner().set_note_lazily(name, note)
    }
}

impl StoreInner {
    pub fn note(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        if !self.notes.is_empty()
            && let Some(note) = self.notes.waiting.lock().get(name)
        {
            return Ok(note.as_ref().clone());
        }
        Ok(self.engine.get(Space::Meta, &note_key(name))?.map(Value::into))
    }

    pub fn set_note_lazily(&self, name: &str, note: Option<Vec<u8>>) -> Result<(), StoreError> {
        check(name, note.as_deref())?;
        if self.notes.add(name, note) >= MAX_WAITING {
            self.submit(Box::new(|_| Box::new(|_| {})))?;
        }
        Ok(())
    }
}

pub(crate) fn note_key(name: &str) -> Vec<u8> {
    key::meta(key::NOTE, &[name.as_bytes()])
}

fn check(name: &str, note: Option<&[u8]>) -> Result<(), StoreError> {
    let fits = (1..=MAX_NOTE_NAME_BYTES).contains(&name.len()) && note.is_none_or(|note| note.len() <= MAX_NOTE_BYTES);
    if fits { Ok(()) } else { Err(StoreError::NoteSize) }
}
