//! The indexer: brings the indexes of design documents up to date ahead of requests, and drops those that nobody needs.
//!
//! It hears of each commit through the hub, waits a little, so that a run takes up many changes, and runs few indexes at
//! once, with pauses that leave the processor to requests and writes. A design document with `"autoupdate": false` is
//! left alone (<https://docs.couchdb.org/en/stable/ddocs/views/intro.html>).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rean_index::{Group, GroupSpec};
use rean_store::{Change, Db, StoreError};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::databases::blocking;
use crate::designs::DesignDoc;
use crate::error::ApiError;
use crate::hub::CommitHook;
use crate::pod::Pod;
use crate::views::{Wanted, fresh, index_error};
use crate::workers::Stop;

/// Between hearing of a commit and looking at it: a run takes up what came meanwhile.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause: an index is not further behind than about this while its database is written to.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Indexes that are brought up to date at once.
const RUNNING: usize = 2;
/// Before an index that failed is tried again, unless its database changes its design documents.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// How often deleted databases are looked for, of which no commit tells.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// The databases that were written to since the indexer looked.
#[derive(Default)]
pub struct Dirty {
    /// By instance.
    databases: Mutex<HashMap<Box<str>, Db>>,
    bell: Notify,
}

impl Dirty {
    fn mark(&self, db: &Db) {
        let mut databases = self.databases.lock();
        if !databases.contains_key(db.instance()) {
            databases.insert(db.instance().into(), db.clone());
            drop(databases);
            self.bell.notify_one();
        }
    }

    fn take(&self) -> Vec<Db> {
        std::mem::take(&mut *self.databases.lock()).into_values().collect()
    }
}

impl CommitHook for Dirty {
    fn committed(&self, db: &Db, _: &[Arc<Change>]) {
        self.mark(db);
    }
}

/// Indexes until it is told to stop.
///
/// # Errors
/// Never: what goes wrong with one index is logged and tried again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    for db in pod.store.db_names().iter().filter_map(|name| pod.store.db(name)) {
        pod.views.dirty.mark(&db);
    }
    let mut indexer =
        Indexer { pod: Arc::clone(&pod), known: HashMap::new(), queue: Vec::new(), failed: HashMap::new() };
    let mut running: JoinSet<Ran> = JoinSet::new();
    let mut busy: HashSet<Key> = HashSet::new();
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let mut pause = PAUSE;
    loop {
        tokio::select! {
            () = pod.views.dirty.bell.notified() => {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.stopped() => return Ok(()),
                }
                pause = PAUSE;
                for db in pod.views.dirty.take() {
                    indexer.look(&db);
                    // At the start there may be thousands.
                    tokio::task::yield_now().await;
                }
            }
            Some(ran) = running.join_next(), if !running.is_empty() => {
                let Ok(ran) = ran else { continue };
                busy.remove(&ran.key);
                pause = pause.max(ran.took).min(LONGEST_PAUSE);
                indexer.ended(ran).await;
            }
            _ = sweep.tick() => indexer.sweep().await,
            () = stop.stopped() => return Ok(()),
        }
        while running.len() < RUNNING
            && let Some(next) = indexer.next(&busy)
        {
            busy.insert(next.key.clone());
            running.spawn(next.run(Arc::clone(&pod)));
        }
    }
}

/// Drops the indexes of a database that no design document needs.
///
/// # Errors
/// The store or the indexes failed.
pub async fn cleanup(pod: &Arc<Pod>, db: &Db) -> Result<usize, ApiError> {
    let (pod, db) = (Arc::clone(pod), db.clone());
    blocking(move || {
        let needed: Vec<String> = needed(&pod, &db)?.into_iter().map(|(_, spec)| spec.signature.clone()).collect();
        pod.indexes.keep_only(&db, &needed).map_err(|error| index_error(error, &db))
    })
    .await?
}

/// A design document and what its index is made of.
type Described = (Arc<DesignDoc>, Arc<GroupSpec>);

/// The indexes that a database's design documents describe.
fn needed(pod: &Pod, db: &Db) -> Result<Vec<Described>, StoreError> {
    let designs = pod.designs.of(db)?;
    let of =
        |design: &Arc<DesignDoc>| pod.views.group_spec(db, design, &pod.scripts).map(|spec| (Arc::clone(design), spec));
    Ok(designs.all().iter().filter_map(of).collect())
}

/// Whether a design document wants to be indexed ahead of requests.
fn is_automatic(design: &DesignDoc) -> bool {
    design.value.get("autoupdate").and_then(Value::as_bool).unwrap_or(true)
}

/// An index: the instance of its database, and its signature.
type Key = (Box<str>, Box<str>);

/// An index that is to be brought up to date.
struct Due {
    key: Key,
    group: Group,
    design: String,
}

/// How that went.
struct Ran {
    key: Key,
    db: Db,
    took: Duration,
    failed: bool,
}

impl Due {
    async fn run(self, pod: Arc<Pod>) -> Ran {
        let began = Instant::now();
        let failed = fresh(&pod, &self.group, &self.design, Wanted::Ahead).await.is_err();
        Ran { key: self.key, db: self.group.db().clone(), took: began.elapsed(), failed }
    }
}

struct Indexer {
    pod: Arc<Pod>,
    /// The databases that have indexes, and the signatures for which the others were dropped.
    known: HashMap<Box<str>, Known>,
    queue: Vec<Due>,
    failed: HashMap<Key, Instant>,
}

struct Known {
    db: Db,
    needed: Vec<String>,
    /// Whether those that aren't needed have been dropped.
    is_clean: bool,
}

impl Indexer {
    /// Queues what of a database is behind.
    fn look(&mut self, db: &Db) {
        let needed = match needed(&self.pod, db) {
            Ok(needed) => needed,
            Err(StoreError::Gone | StoreError::Closing) => return,
            Err(error) => {
                tracing::error!(database = db.name(), %error, "design documents could not be read");
                return;
            }
        };
        let mut signatures: Vec<String> = needed.iter().map(|(_, spec)| spec.signature.clone()).collect();
        signatures.sort();
        signatures.dedup();
        match self.known.get_mut(db.instance()) {
            Some(known) if known.needed == signatures => {}
            None if signatures.is_empty() => {
                // Indexes may be left from before the start.
                let has_some = self.pod.indexes.groups(db).is_ok_and(|groups| !groups.is_empty());
                if has_some {
                    self.know(db, signatures);
                }
            }
            _ => self.know(db, signatures),
        }
        for (design, spec) in needed {
            if is_automatic(&design) {
                self.look_at(db, &design, spec);
            }
        }
    }

    fn know(&mut self, db: &Db, needed: Vec<String>) {
        self.known.insert(db.instance().into(), Known { db: db.clone(), needed, is_clean: false });
    }

    fn look_at(&mut self, db: &Db, design: &DesignDoc, spec: Arc<GroupSpec>) {
        let key: Key = (db.instance().into(), spec.signature.as_str().into());
        if self.queue.iter().any(|due| due.key == key) {
            return;
        }
        if let Some(failed) = self.failed.get(&key) {
            if failed.elapsed() < RETRY_AFTER {
                return;
            }
            self.failed.remove(&key);
        }
        match self.pod.indexes.group(db, spec) {
            Ok(group) if group.is_current() => {}
            Ok(group) => self.queue.push(Due { key, group, design: design.id.clone() }),
            Err(error) => tracing::error!(database = db.name(), %error, "an index could not be opened"),
        }
    }

    /// The next index that is not being brought up to date already.
    fn next(&mut self, busy: &HashSet<Key>) -> Option<Due> {
        let place = self.queue.iter().position(|due| !busy.contains(&due.key))?;
        Some(self.queue.remove(place))
    }

    async fn ended(&mut self, ran: Ran) {
        if ran.failed {
            self.failed.insert(ran.key, Instant::now());
        } else {
            // There may be more by now.
            self.look(&ran.db);
        }
        self.drop_unneeded(&ran.db).await;
    }

    /// Drops what isn't needed, once all that is needed is there: until then the old one is of use to those who have
    /// an older design document.
    async fn drop_unneeded(&mut self, db: &Db) {
        let Some(known) = self.known.get_mut(db.instance()).filter(|known| !known.is_clean) else { return };
        if self.queue.iter().any(|due| *due.key.0 == *db.instance()) {
            return;
        }
        known.is_clean = true;
        match cleanup(&self.pod, db).await {
            Ok(0) => {}
            Ok(dropped) => tracing::info!(database = db.name(), dropped, "dropped indexes that nobody needs"),
            Err(error) => tracing::warn!(database = db.name(), error = error.cause(), "indexes could not be dropped"),
        }
    }

    /// Forgets databases that are gone, tries again what failed, and drops what was left.
    async fn sweep(&mut self) {
        let gone: Vec<Box<str>> =
            self.known.iter().filter(|(_, known)| known.db.is_gone()).map(|(instance, _)| instance.clone()).collect();
        for instance in gone {
            self.known.remove(&instance);
            self.queue.retain(|due| due.key.0 != instance);
            self.failed.retain(|key, _| key.0 != instance);
            let pod = Arc::clone(&self.pod);
            let name = instance.clone();
            match blocking(move || pod.indexes.forget_database(&name)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the indexes of a deleted database could not be dropped"),
                Err(error) => tracing::warn!(error = error.cause(), "dropping indexes broke off"),
            }
        }
        let again: Vec<Box<str>> = self
            .failed
            .iter()
            .filter(|(_, when)| when.elapsed() >= RETRY_AFTER)
            .map(|((instance, _), _)| instance.clone())
            .collect();
        let databases: Vec<Db> =
            again.iter().filter_map(|instance| self.known.get(instance)).map(|known| known.db.clone()).collect();
        for db in databases {
            self.look(&db);
        }
        let unclean: Vec<Db> =
            self.known.values().filter(|known| !known.is_clean).map(|known| known.db.clone()).collect();
        for db in unclean {
            self.drop_unneeded(&db).await;
        }
    }
}
