//! The indexes of a pod: which there are, and the making and clearing of them.

use crate::error::IndexError;
use crate::group::{Group, GroupInfo};
use crate::keys::{DEAD, FORMAT, GROUP, NEXT, after, group_record, groups_of};
use crate::page::{decode, encode};
use crate::records::{Format, GroupRecord};
use crate::shared::{Common, Shared};
use crate::spec::{GroupSpec, MapError};
use parking_lot::Mutex;
use rean_store::engine::{Batch, Direction, Engine, EngineError, EngineKind, Space, Value};
use rean_store::{Db, Store};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

/// The indexes of a pod. Clones are the same.
#[derive(Clone)]
pub struct Indexes {
    inner: Arc<Inner>,
}

struct Inner {
    common: Arc<Common>,
    /// By database instance and signature.
    groups: Mutex<HashMap<(String, String), Arc<Shared>>>,
}

impl Indexes {
    /// Takes the indexes that an engine holds. Those of another layout, or of another order of strings, are dropped:
    /// an index can always be made again.
    ///
    /// # Errors
    /// The engine failed.
    pub fn open(engine: Box<dyn Engine>) -> Result<Self, IndexError> {
        let next = match engine.get(Space::Meta, NEXT)? {
            Some(next) => next[..].try_into().map(u32::from_be_bytes).map_err(|_| IndexError::Damaged("a number"))?,
            None => 0,
        };
        let common = Common {
            engine,
            closing: AtomicBool::new(false),
            next: AtomicU32::new(next),
            open_views: AtomicUsize::new(0),
            janitor: Mutex::default(),
        };
        let inner = Inner { common: Arc::new(common), groups: Mutex::default() };
        let indexes = Indexes { inner: Arc::new(inner) };
        indexes.check_format()?;
        indexes.inner.common.start_janitor();
        Ok(indexes)
    }

    /// Opens the indexes in a folder, or makes it. A folder that is damaged is moved aside, as `.damaged`, and another
    /// one is begun.
    ///
    /// # Errors
    /// The folder can't be used.
    pub fn open_in(kind: EngineKind, path: &Path) -> Result<Self, IndexError> {
        let opened = rean_store::engine::open(kind, path).map_err(|error| (is_damage(&error), IndexError::from(error)));
        let (damage, error) = match opened.and_then(|engine| Indexes::open(engine).map_err(|e| (is_damaged(&e), e))) {
            Ok(indexes) => return Ok(indexes),
            Err(failed) => failed,
        };
        if !damage {
            return Err(error);
        }
        let mut aside = path.as_os_str().to_owned();
        aside.push(".damaged");
        tracing::error!(%error, path = %path.display(), "the indexes are damaged: they are moved aside and made anew");
        let moved = remove_folder(Path::new(&aside)).and_then(|()| std::fs::rename(path, &aside));
        moved.map_err(|source| IndexError::Engine(format!("{error}; moving it aside failed: {source}")))?;
        Indexes::open(rean_store::engine::open(kind, path)?)
    }

    /// Drops what can't be of this store as it is, as after an old copy of the store was put back: to be called at
    /// start, before anything is written to the store.
    ///
    /// # Errors
    /// The engine failed.
    pub fn settle(&self, store: &Store) -> Result<(), IndexError> {
        let names = store.db_names();
        let dbs: HashMap<String, Db> =
            names.iter().filter_map(|name| store.db(name)).map(|db| (db.instance().to_owned(), db)).collect();
        for (instance, signature, record) in self.records(GROUP)? {
            let db = dbs.get(&instance);
            if !db.is_some_and(|db| record.as_ref().is_some_and(|record| fits(record, db))) {
                self.discard(&instance, &signature)?;
            }
        }
        Ok(())
    }

    /// The index of this specification over this database, made (empty) if it is not there. Cheap.
    ///
    /// # Errors
    /// The engine failed, or the database is gone.
    pub fn group(&self, db: &Db, spec: Arc<GroupSpec>) -> Result<Group, IndexError> {
        if db.is_gone() {
            return Err(IndexError::Gone);
        }
        if u16::try_from(spec.views.len()).is_err() {
            // Trees have the view's number in two bytes: rows of one view would be taken for those of another.
            return Err(IndexError::Map(MapError::Function("too many views for one index".to_owned())));
        }
        let shared = self.shared(db, &spec)?;
        Ok(Group { db: db.clone(), spec, shared })
    }

    fn shared(&self, db: &Db, spec: &GroupSpec) -> Result<Arc<Shared>, IndexError> {
        let known = (db.instance().to_owned(), spec.signature.clone());
        let mut groups = self.inner.groups.lock();
        if let Some(shared) = groups.get(&known) {
            return Ok(Arc::clone(shared));
        }
        let common = &self.inner.common;
        let stored = common.engine.get(Space::Meta, &group_record(&known.0, &known.1))?;
        let stored = stored.and_then(|record| decode::<GroupRecord>(&record, "an index").ok());
        let new = GroupRecord {
            number: 0,
            db_name: db.name().to_owned(),
            history: db.history().to_owned(),
            seq: 0,
            purges: db.newest().purges,
            page_bytes: 0,
            views: spec.views.len() as u32,
        };
        let shared = match stored {
            Some(record) => {
                let unfit = !fits(&record, db) || record.views != new.views;
                let shared = Shared::new(Arc::clone(common), &known.0, &known.1, record);
                if unfit {
                    shared.reset(db.history(), new.purges, new.views)?;
                }
                shared
            }
            None => {
                let mut batch = Batch::new();
                let number = common.number(&mut batch);
                let record = GroupRecord { number, ..new };
                let shared = Shared::new(Arc::clone(common), &known.0, &known.1, record.clone());
                shared.commit(batch, record)?;
                shared
            }
        };
        let shared = Arc::new(shared);
        groups.insert(known, Arc::clone(&shared));
        Ok(shared)
    }

    /// Drops the indexes of a database that was deleted, by [`Db::instance`].
    ///
    /// # Errors
    /// The engine failed.
    pub fn forget_database(&self, instance: &str) -> Result<(), IndexError> {
        for (instance, signature, _) in self.records(&groups_of(instance))? {
            self.discard(&instance, &signature)?;
        }
        Ok(())
    }

    /// Drops all indexes of a database but these; gives the number of those that were dropped.
    ///
    /// # Errors
    /// The engine failed.
    pub fn keep_only(&self, db: &Db, signatures: &[String]) -> Result<usize, IndexError> {
        let mut dropped = 0;
        for (instance, signature, _) in self.records(&groups_of(db.instance()))? {
            if !signatures.contains(&signature) {
                self.discard(&instance, &signature)?;
                dropped += 1;
            }
        }
        Ok(dropped)
    }

    /// The indexes of a database that are kept.
    ///
    /// # Errors
    /// The engine failed.
    pub fn groups(&self, db: &Db) -> Result<Vec<GroupInfo>, IndexError> {
        let records = self.records(&groups_of(db.instance()))?;
        let groups = self.inner.groups.lock();
        let info = |(instance, signature, record): (String, String, Option<GroupRecord>)| {
            let record = record?;
            let shared = groups.get(&(instance, signature.clone()));
            Some(shared.map_or_else(|| GroupInfo::of(&signature, &record), |shared| GroupInfo::of_shared(shared)))
        };
        Ok(records.into_iter().filter_map(info).collect())
    }

    /// Gives back the space of what was dropped or replaced. Slow.
    ///
    /// # Errors
    /// The engine failed.
    pub fn compact(&self) -> Result<(), IndexError> {
        Ok(self.inner.common.engine.compact()?)
    }

    /// Stops what brings indexes up to date at its next step, and closes. Calls after it fail with
    /// [`IndexError::Closing`].
    pub fn close(&self) {
        self.inner.common.closing.store(true, Ordering::Release);
        let janitor = self.inner.common.janitor.lock().take();
        if janitor.is_some_and(|janitor| janitor.join().is_err()) {
            tracing::error!("the thread that clears indexes panicked");
        }
        if let Err(error) = self.inner.common.engine.close() {
            tracing::error!(%error, "closing the indexes failed");
        }
    }

    /// Drops all indexes that this version can't read.
    fn check_format(&self) -> Result<(), IndexError> {
        let engine = &self.inner.common.engine;
        let current = encode(&Format::current());
        if engine.get(Space::Meta, FORMAT)?.is_some_and(|format| format[..] == current[..]) {
            return Ok(());
        }
        let mut batch = Batch::new();
        let snapshot = engine.snapshot();
        for item in snapshot.range(Space::Meta, GROUP, &after(GROUP), Direction::Forward) {
            batch.delete(Space::Meta, item?.0);
        }
        // Records of another layout may not tell their numbers: all that were given are cleared.
        for number in 0..self.inner.common.next.load(Ordering::Relaxed) {
            batch.put(Space::Meta, [DEAD, &number.to_be_bytes()].concat(), Vec::new());
        }
        batch.put(Space::Meta, FORMAT.to_vec(), current);
        drop(snapshot);
        Ok(engine.commit(batch, false)?)
    }

    /// Instance, signature and record of the indexes whose keys have this prefix; a record that can't be read is
    /// `None`.
    fn records(&self, prefix: &[u8]) -> Result<Vec<(String, String, Option<GroupRecord>)>, IndexError> {
        let snapshot = self.inner.common.engine.snapshot();
        let read = |item: Result<(Value, Value), EngineError>| {
            let (key, value) = item?;
            let name = String::from_utf8_lossy(&key[GROUP.len()..]).into_owned();
            let (instance, signature) = name.split_once('/').ok_or(IndexError::Damaged("the key of an index"))?;
            Ok((instance.to_owned(), signature.to_owned(), decode(&value, "an index").ok()))
        };
        snapshot.range(Space::Meta, prefix, &after(prefix), Direction::Forward).map(read).collect()
    }

    fn discard(&self, instance: &str, signature: &str) -> Result<(), IndexError> {
        let known = (instance.to_owned(), signature.to_owned());
        let common = &self.inner.common;
        // Held to the end: nobody takes it up again from its record in the meantime.
        let mut groups = self.inner.groups.lock();
        let shared = match groups.remove(&known) {
            Some(shared) => shared,
            None => {
                let key = group_record(instance, signature);
                let Some(stored) = common.engine.get(Space::Meta, &key)? else { return Ok(()) };
                let Ok(record) = decode(&stored, "an index") else {
                    let mut batch = Batch::new();
                    batch.delete(Space::Meta, key);
                    return Ok(common.engine.commit(batch, false)?);
                };
                Arc::new(Shared::new(Arc::clone(common), instance, signature, record))
            }
        };
        shared.discard()?;
        common.start_janitor();
        Ok(())
    }
}

/// Whether an index can be of this database as it is: its sequences are of the same run, and not of its future.
fn fits(record: &GroupRecord, db: &Db) -> bool {
    let newest = db.newest();
    record.history == db.history() && record.seq <= newest.seq && record.purges <= newest.purges
}

fn is_damage(error: &EngineError) -> bool {
    matches!(error, EngineError::Unreadable { .. })
}

fn is_damaged(error: &IndexError) -> bool {
    matches!(error, IndexError::Damaged(_))
}

fn remove_folder(path: &Path) -> std::io::Result<()> {
    if path.exists() { std::fs::remove_dir_all(path) } else { Ok(()) }
}
