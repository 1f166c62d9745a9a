//! The one thread that writes: it takes the jobs that wait, applies them one after the other to a staged
//! batch, commits the batch with one flush, and only then answers any of them.
//!
//! While a flush is under way the next jobs queue up, so the more writers there are, the more share a flush.
//! After a failed commit nobody knows what is on disk: the writer refuses everything from then on.

use crate::db::Db;
use crate::engine::{Batch, Space, Value};
use crate::error::StoreError;
use crate::feed::Change;
use crate::moves::{Instructor, Move};
use crate::record::{Clock, DbId, DbState, PartNo, Seq, encode, key};
use crate::store::StoreInner;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Jobs in one commit. A bound, so that the first in a group does not wait for all the others.
const GROUP_JOBS: usize = 512;
/// Staged bytes at which a group is closed: memory that a commit may take, beyond one job's own.
const GROUP_BYTES: usize = 16 << 20;

/// How long a lazy note waits for a commit that takes it along: what a crash may set back.
const NOTE_WAIT: Duration = Duration::from_secs(1);

/// What a job does once its changes are durable, or once it is known that they are not.
pub(crate) type After = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// A piece of work for the writer.
pub(crate) type Job = Box<dyn FnOnce(&mut Tx<'_>) -> After + Send>;

/// The changes of a group of jobs, not yet committed. Reads through it see them.
pub(crate) struct Tx<'a> {
    pub store: &'a StoreInner,
    pub clock: Clock,
    staged: [BTreeMap<Vec<u8>, Option<Value>>; Space::ALL.len()],
    staged_bytes: usize,
    states: BTreeMap<DbId, (Db, DbState)>,
    parts: BTreeSet<(DbId, PartNo)>,
    changes: Vec<(Db, Vec<Arc<Change>>)>,
    /// Who records moves, throughout this group.
    pub instructor: Option<Arc<dyn Instructor>>,
    pub moves: Vec<Move>,
    notes: Vec<(String, Arc<Option<Vec<u8>>>)>,
    /// An engine failure in the middle of a job: the group can't be committed.
    failed: Option<StoreError>,
}

impl<'a> Tx<'a> {
    fn new(store: &'a StoreInner, clock: Clock) -> Tx<'a> {
        Tx {
            store,
            clock,
            staged: std::array::from_fn(|_| BTreeMap::new()),
            staged_bytes: 0,
            states: BTreeMap::new(),
            parts: BTreeSet::new(),
            changes: Vec::new(),
            instructor: store.instructor.read().clone(),
            moves: Vec::new(),
            notes: Vec::new(),
            failed: None,
        }
    }

    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Value>, StoreError> {
        match self.staged[space as usize].get(key) {
            Some(staged) => Ok(staged.clone()),
            None => Ok(self.store.engine.get(space, key)?),
        }
    }

    pub fn put(&mut self, space: Space, key: Vec<u8>, value: Vec<u8>) {
        self.staged_bytes += key.len() + value.len();
        self.staged[space as usize].insert(key, Some(Value::from(value)));
    }

    pub fn delete(&mut self, space: Space, key: Vec<u8>) {
        self.staged_bytes += key.len();
        self.staged[space as usize].insert(key, None);
    }

    /// The next sequence.
    pub fn next_seq(&mut self) -> Seq {
        self.clock.seq += 1;
        self.clock.seq
    }

    /// The counts of a database, as they will be after this group.
    pub fn state(&mut self, db: &Db) -> &mut DbState {
        let inner = db.inner();
        &mut self.states.entry(inner.id).or_insert_with(|| (db.clone(), inner.state())).1
    }

    /// Marks a partial database's record as changed.
    pub fn touch_part(&mut self, db: DbId, part: PartNo) {
        self.parts.insert((db, part));
    }

    pub fn changed(&mut self, db: &Db, change: Change) {
        let change = Arc::new(change);
        match self.changes.iter_mut().find(|(other, _)| other.inner().id == db.inner().id) {
            Some((_, changes)) => changes.push(change),
            None => self.changes.push((db.clone(), vec![change])),
        }
    }

    /// Notes a failure that leaves staged changes half done.
    pub fn fail(&mut self, error: StoreError) -> StoreError {
        self.failed = Some(error.clone());
        error
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.instruct();
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.notes = self.stage_notes();
        self.stage_counts();
        if self.staged.iter().all(BTreeMap::is_empty) {
            return Ok(());
        }
        self.clock.commit += 1;
        let clock = encode(&self.clock);
        self.put(Space::Meta, key::CLOCK.to_vec(), clock);
        let mut batch = Batch::default();
        for space in Space::ALL {
            for (key, value) in std::mem::take(&mut self.staged[space as usize]) {
                match value {
                    Some(value) => batch.put(space, key, value),
                    None => batch.delete(space, key),
                }
            }
        }
        self.store.engine.commit(batch, true)?;
        if let Err(error) = self.store.witness.acknowledge(self.clock.commit) {
            tracing::warn!(%error, "the witness of commits can't be written; damage of the journal may go unseen");
        }
        Ok(())
    }

    fn stage_counts(&mut self) {
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (id, (db, state)) in &self.states {
            if !db.is_gone() {
                records.push((key::state(*id), encode(state)));
            }
        }
        for (id, part) in std::mem::take(&mut self.parts) {
            let Some((db, _)) = self.states.get(&id) else { continue };
            let app = db.inner().app.read();
            if let Some(part_now) = app.part(part)
                && !db.is_gone()
            {
                records.push((key::part_count(id, part), encode(&part_now.count)));
            }
        }
        for (key, value) in records {
            self.put(Space::Meta, key, value);
        }
    }

    /// Makes the committed state what readers see, and tells who listens.
    fn publish(&mut self) {
        for (db, state) in std::mem::take(&mut self.states).into_values() {
            db.inner().set_state(state);
        }
        self.store.progress.reach(self.clock.commit, self.clock.seq);
        self.store.notes.committed(&self.notes);
        for (db, changes) in std::mem::take(&mut self.changes) {
            self.store.observer.committed(&db, &changes);
        }
    }
}

/// A program whose writer has panicked would answer reads and never a write: better that it ends, and is
/// started again by whoever watches it.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the writer thread panicked: the program ends");
            std::process::abort();
        }
    }
}

/// Works until every sender is gone.
pub(crate) fn run(store: &StoreInner, mut clock: Clock, jobs: &mpsc::Receiver<Job>) {
    let _guard = AbortOnPanic;
    let mut broken: Option<StoreError> = None;
    loop {
        let first = jobs.recv_timeout(NOTE_WAIT);
        let is_end = matches!(first, Err(mpsc::RecvTimeoutError::Disconnected));
        if first.is_err() && (store.notes.is_empty() || broken.is_some()) {
            // No work, and no notes that wait for some.
            match is_end {
                true => return,
                false => continue,
            }
        }
        let mut tx = Tx::new(store, clock.clone());
        tx.failed.clone_from(&broken);
        let mut afters: Vec<After> = first.into_iter().map(|job| job(&mut tx)).collect();
        while !afters.is_empty() && afters.len() < GROUP_JOBS && tx.staged_bytes < GROUP_BYTES {
            let Ok(job) = jobs.try_recv() else { break };
            afters.push(job(&mut tx));
        }
        let result = tx.commit();
        match &result {
            Ok(()) => {
                clock = tx.clock.clone();
                tx.publish();
            }
            Err(error) if broken.is_none() => {
                tracing::error!(%error, "a commit failed: the store takes no more writes until it is opened again");
                broken = Some(error.clone());
                store.progress.end(error.clone());
            }
            Err(_) => {}
        }
        for after in afters {
            after(result.clone());
        }
    }
}
