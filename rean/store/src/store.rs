//! The store: opening and closing it, and the databases that are in it.

use crate::app::AppState;
use crate::db::{Db, DbInner, DbKind};
use crate::engine::{self, Batch, Direction, Engine, EngineKind, EngineStats, Snapshot, Space};
use crate::error::{OpenError, StoreError};
use crate::feed::Change;
use crate::moves::Instructor;
use crate::notes::{Notes, note_key};
use crate::opening::{check_format_file, load_databases, note_format_file, read_format, read_history};
use crate::outside::Outside;
use crate::partitioned::MAX_PARTITION_BYTES;
use crate::progress::Progress;
use crate::record::{BlobId, Clock, DbId, DbRecord, DbState, KindRecord, Seq, decode, encode, key};
use crate::served;
use crate::witness::Witness;
use crate::writer::{self, Job, Tx};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

/// CouchDB's default (<https://docs.couchdb.org/en/stable/api/database/misc.html#db-revs-limit>).
const REVS_LIMIT: u64 = 1_000;
/// Keys that the janitor deletes in one commit: small, so that writers never wait long for it.
const DOOMED_KEYS: usize = 2_000;

/// How to open a store.
pub struct StoreOptions {
    /// Its folder; made if it isn't there.
    pub path: PathBuf,
    /// What it is kept in.
    pub engine: EngineKind,
    /// Keys of the ring.
    pub keys: StoreKeys,
    /// Who hears of commits.
    pub observer: Arc<dyn Observer>,
}

/// Keys that the store needs, made from the ring's secret.
#[derive(Clone)]
pub struct StoreKeys {
    /// For made-up revisions (see `chain`).
    pub chain: [u8; 32],
    /// For sealed bookmarks (see `bookmark`).
    pub bookmark: [u8; 32],
}

/// Hears of commits. Called on the writer thread, after the commit is durable and in order: it must not block.
pub trait Observer: Send + Sync {
    /// These changes of this database are committed.
    fn committed(&self, db: &Db, changes: &[Arc<Change>]);
    /// This database is gone.
    fn deleted(&self, db: &Db);
}

/// An observer that does nothing.
pub struct NoObserver;

impl Observer for NoObserver {
    fn committed(&self, _: &Db, _: &[Arc<Change>]) {}
    fn deleted(&self, _: &Db) {}
}

/// What an operator wants to know of the store.
#[derive(Debug, Clone)]
pub struct StoreStats {
    /// The engine's name.
    pub engine: &'static str,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Commits since the store was made.
    pub commits: u64,
    /// The last sequence.
    pub seq: u64,
}

/// A handle on a store; clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<StoreInner>,
}

pub(crate) struct StoreInner {
    pub engine: Box<dyn Engine>,
    pub keys: StoreKeys,
    pub observer: Arc<dyn Observer>,
    pub witness: Witness,
    pub dbs: RwLock<BTreeMap<String, Db>>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    janitor: Mutex<Option<JoinHandle<()>>>,
    next_blob: AtomicU64,
    pub history: String,
    pub progress: Progress,
    /// The newest sequence when the store was opened.
    pub opened_at: Seq,
    pub notes: Notes,
    pub instructor: RwLock<Option<Arc<dyn Instructor>>>,
    pub outside: RwLock<Option<Arc<dyn Outside>>>,
    /// See [`Store::set_max_partition_bytes`].
    pub max_partition_bytes: AtomicU64,
}

impl Store {
    /// Opens the store, or makes it.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing is changed on disk when the store can't be opened.
    pub fn open(options: StoreOptions) -> Result<Store, OpenError> {
        let path = options.path;
        std::fs::create_dir_all(&path).map_err(|source| OpenError::Io { path: path.clone(), source })?;
        check_format_file(&path)?;
        let engine = engine::open(options.engine, &path.join(options.engine.to_string()))?;
        let store = Store::open_on(engine, &path, options.keys, options.observer)?;
        note_format_file(&path)?;
        Ok(store)
    }

    /// Opens the store that an engine holds. `path` is the folder for what is kept beside it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_on(
        engine: Box<dyn Engine>,
        path: &Path,
        keys: StoreKeys,
        observer: Arc<dyn Observer>,
    ) -> Result<Store, OpenError> {
        let path = path.to_owned();
        let mut clock = read_format(engine.as_ref(), &path)?;
        let witness =
            Witness::open(&path.join("acknowledged")).map_err(|source| OpenError::Io { path: path.clone(), source })?;
        let lost = witness.commits().saturating_sub(clock.commit);
        if lost > 0 {
            tracing::error!(
                lost, path = %path.display(),
                "the engine's journal has lost acknowledged commits, as after a damaged disk; what is left is \
                 consistent and is served, clients read it again from the start; fill the pod from the ring"
            );
            clock.commit = witness.commits();
        }
        let damaged = |error: StoreError| OpenError::Damaged { path: path.clone(), what: error.to_string() };
        let history = read_history(engine.as_ref(), lost > 0).map_err(damaged)?;
        let (sender, receiver) = mpsc::channel();
        let inner = Arc::new(StoreInner {
            engine,
            keys,
            observer,
            witness,
            dbs: RwLock::new(BTreeMap::new()),
            jobs: Mutex::new(Some(sender)),
            writer: Mutex::new(None),
            janitor: Mutex::new(None),
            next_blob: AtomicU64::new(random_blob_start()),
            history,
            progress: Progress::new(clock.commit, clock.seq),
            opened_at: clock.seq,
            notes: Notes::default(),
            instructor: RwLock::new(None),
            outside: RwLock::new(None),
            max_partition_bytes: AtomicU64::new(MAX_PARTITION_BYTES),
        });
        load_databases(&inner, lost > 0).map_err(damaged)?;
        let for_writer = Arc::clone(&inner);
        let handle = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer::run(&for_writer, clock, &receiver))
            .map_err(|source| OpenError::Io { path, source })?;
        *inner.writer.lock() = Some(handle);
        let store = Store { inner };
        store.start_janitor();
        Ok(store)
    }

    /// Eight hexadecimal digits that name this store's run of sequences: made with the store, and made anew when
    /// acknowledged commits were lost, because their sequences are given again. Who remembers a place in
    /// [`Store::rows`] remembers it with these.
    pub fn history(&self) -> &str {
        &self.inner.history
    }

    /// The newest sequence that is committed and durable.
    pub fn seq(&self) -> Seq {
        self.inner.progress.seq()
    }

    /// Gives no sequence up to this one any more: others know them as those of writes that are lost here, as after an
    /// old copy of the store was put back. Blocks until that is durable.
    ///
    /// # Errors
    /// The engine failed, or the store is being closed.
    pub fn skip_to(&self, seq: Seq) -> Result<(), StoreError> {
        self.inner.call(move |tx| {
            if tx.clock.seq < seq {
                tx.clock.seq = seq;
                // So that there is something to commit: the commit writes the clock itself.
                tx.put(Space::Meta, key::CLOCK.to_vec(), Vec::new());
            }
            Ok(())
        })
    }

    pub(crate) fn inner(&self) -> &Arc<StoreInner> {
        &self.inner
    }

    /// The database of this name.
    pub fn db(&self, name: &str) -> Option<Db> {
        self.inner.dbs.read().get(name).cloned()
    }

    /// All names, sorted.
    pub fn db_names(&self) -> Vec<String> {
        self.inner.dbs.read().keys().cloned().collect()
    }

    /// Makes a database. Blocks until that is durable.
    ///
    /// # Errors
    /// [`StoreError::Exists`], or the engine failed.
    pub fn create_db(&self, name: &str, kind: DbKind) -> Result<Db, StoreError> {
        self.make_db(name, if kind == DbKind::App { KindRecord::App } else { KindRecord::Plain })
    }

    /// Makes a plain database whose documents' ids name partitions (see [`crate::validate_partitioned_id`]): whoever
    /// writes sees to that. Blocks until that is durable.
    ///
    /// # Errors
    /// As [`Store::create_db`].
    pub fn create_partitioned_db(&self, name: &str) -> Result<Db, StoreError> {
        self.make_db(name, KindRecord::Partitioned)
    }

    fn make_db(&self, name: &str, kind: KindRecord) -> Result<Db, StoreError> {
        let owned = name.to_owned();
        let weak = Arc::downgrade(&self.inner);
        self.inner.call(move |tx| {
            let inner = weak.upgrade().ok_or(StoreError::Closing)?;
            if inner.dbs.read().contains_key(&owned) {
                return Err(StoreError::Exists);
            }
            let id = tx.clock.next_db;
            tx.clock.next_db += 1;
            let record = DbRecord {
                id,
                kind,
                instance: rand::random(),
                security: String::new(),
                revs_limit: REVS_LIMIT,
                rules: String::new(),
                repartition: None,
            };
            tx.put(Space::Meta, key::meta(key::DB, &[owned.as_bytes()]), encode(&record));
            tx.put(Space::Meta, key::state(id), encode(&DbState::default()));
            // The pod's own databases show the store's sequences: `_db_updates` orders by those of one of them.
            let first = if owned.starts_with('_') { 0 } else { tx.clock.seq };
            tx.put(Space::Meta, key::first(id), encode(&first));
            let state = DbState::default();
            let db = Db::new(DbInner::new(&inner, owned.clone(), record, first, state, AppState::default()));
            // Known before it is durable: a request that finds it waits behind this commit anyway.
            inner.dbs.write().insert(owned, db.clone());
            Ok(db)
        })
    }

    /// Deletes a database; `false`: there was none. Blocks until that is durable; the space is given back
    /// in the background.
    ///
    /// # Errors
    /// The engine failed.
    pub fn delete_db(&self, name: &str) -> Result<bool, StoreError> {
        let owned = name.to_owned();
        let weak = Arc::downgrade(&self.inner);
        let gone = self.inner.call(move |tx| {
            let inner = weak.upgrade().ok_or(StoreError::Closing)?;
            let Some(db) = inner.dbs.write().remove(&owned) else { return Ok(None) };
            db.inner().mark_gone();
            tx.store.notes.drop_all(&served::note_prefix(db.inner().id));
            tx.delete(Space::Meta, key::meta(key::DB, &[owned.as_bytes()]));
            tx.delete(Space::Meta, key::state(db.inner().id));
            tx.delete(Space::Meta, key::first(db.inner().id));
            tx.put(Space::Meta, key::meta(key::DOOMED, &[&db.inner().id.to_be_bytes()]), Vec::new());
            Ok(Some(db))
        })?;
        let Some(db) = gone else { return Ok(false) };
        self.inner.observer.deleted(&db);
        self.start_janitor();
        Ok(true)
    }

    /// Waits for what was handed in, then closes. Calls after it fail with [`StoreError::Closing`].
    pub fn close(&self) {
        drop(self.inner.jobs.lock().take());
        for thread in [&self.inner.writer, &self.inner.janitor] {
            let handle = thread.lock().take();
            if let Some(handle) = handle
                && handle.join().is_err()
            {
                tracing::error!("a store thread panicked");
            }
        }
        self.inner.dbs.write().clear();
        if let Err(error) = self.inner.engine.close() {
            tracing::error!(%error, "closing the storage engine failed");
        }
    }

    /// Figures for an operator.
    pub fn stats(&self) -> StoreStats {
        let EngineStats { disk_bytes, .. } = self.inner.engine.stats();
        StoreStats {
            engine: self.inner.engine.name(),
            disk_bytes,
            commits: self.inner.progress.commits(),
            seq: self.inner.progress.seq(),
        }
    }

    /// Deletes what deleted databases have left, on a thread of its own.
    fn start_janitor(&self) {
        let mut janitor = self.inner.janitor.lock();
        if janitor.as_ref().is_some_and(|handle| !handle.is_finished()) {
            // It looks for work again before it ends.
            return;
        }
        let weak = Arc::downgrade(&self.inner);
        let spawned = std::thread::Builder::new().name("store-janitor".to_owned()).spawn(move || {
            if let Err(error) = clear_doomed(&weak) {
                tracing::warn!(%error, "clearing deleted databases stopped; it goes on at the next start");
            }
        });
        match spawned {
            Ok(handle) => *janitor = Some(handle),
            Err(error) => tracing::warn!(%error, "no thread for clearing deleted databases"),
        }
    }
}

impl StoreInner {
    /// A view of this moment, and the clock in it, once all that it shows is durable: waits for at most the flush that
    /// is under way. From then on what is counted in memory covers all that the snapshot holds.
    pub fn durable_snapshot(&self) -> Result<(Box<dyn Snapshot>, Clock), StoreError> {
        let snapshot = self.engine.snapshot();
        let clock: Clock = match snapshot.get(Space::Meta, key::CLOCK)? {
            Some(clock) => decode(&clock, "the clock")?,
            None => Clock::default(),
        };
        self.progress.wait_for(clock.commit)?;
        Ok((snapshot, clock))
    }

    /// Hands a job to the writer.
    pub fn submit(&self, job: Job) -> Result<(), StoreError> {
        let sender = self.jobs.lock().clone().ok_or(StoreError::Closing)?;
        sender.send(job).map_err(|_| StoreError::Closing)
    }

    /// Runs work on the writer thread and waits until it is durable.
    pub fn call<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.submit(Box::new(move |tx| {
            let result = work(tx);
            Box::new(move |committed| {
                // The caller waits for it, unless its thread is gone.
                let _ = sender.send(committed.and(result));
            })
        }))?;
        receiver.recv().map_err(|_| StoreError::Closing)?
    }

    /// Bytes of all bodies, for sharing out the engine's disk space.
    pub fn content_bytes(&self) -> u64 {
        self.dbs.read().values().map(|db| db.inner().state().bytes).sum()
    }

    pub fn next_blob(&self) -> BlobId {
        self.next_blob.fetch_add(1, Ordering::Relaxed)
    }
}

/// Numbers of attachments need no counter on disk: starting at a random place of 2^63 they don't meet.
fn random_blob_start() -> BlobId {
    rand::random::<u64>() >> 1
}

/// Works in small commits and lets go of the store between them, so that closing never waits long.
fn clear_doomed(store: &Weak<StoreInner>) -> Result<(), StoreError> {
    loop {
        let Some(inner) = store.upgrade() else { return Ok(()) };
        if inner.jobs.lock().is_none() {
            return Ok(());
        }
        let engine = inner.engine.as_ref();
        let snapshot = engine.snapshot();
        let doomed = snapshot
            .range(Space::Meta, key::DOOMED, &key::after(key::DOOMED), Direction::Forward)
            .next()
            .transpose()?;
        let Some((doomed, _)) = doomed else { return Ok(()) };
        let prefix = doomed.get(key::DOOMED.len()..).unwrap_or_default().to_vec();
        let end = key::after(&prefix);
        let mut batch = Batch::default();
        for space in key::OF_DATABASES {
            for item in snapshot.range(space, &prefix, &end, Direction::Forward) {
                batch.delete(space, item?.0.to_vec());
                if batch.len() >= DOOMED_KEYS {
                    break;
                }
            }
            if batch.len() >= DOOMED_KEYS {
                break;
            }
        }
        if batch.is_empty() {
            let mut records = [key::PART, key::PART_COUNT, key::ACL, key::PURGED, key::PARTITION]
                .map(|meta| key::meta(meta, &[&prefix]))
                .to_vec();
            if let Ok(id) = prefix.as_slice().try_into() {
                records.push(note_key(&served::note_prefix(DbId::from_be_bytes(id))));
            }
            for lo in records {
                for item in snapshot.range(Space::Meta, &lo, &key::after(&lo), Direction::Forward) {
                    batch.delete(Space::Meta, item?.0.to_vec());
                }
            }
            batch.delete(Space::Meta, doomed.to_vec());
        }
        engine.commit(batch, false)?;
    }
}
