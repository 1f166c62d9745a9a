//! A database: its settings, its counts, and the handle through which all is asked of it.

use crate::access::AppRules;
use crate::app::{AppState, PartInfo, Reader, Who};
use crate::bookmark::Seal;
use crate::chain::Chain;
use crate::engine::Space;
use crate::error::StoreError;
use crate::record::{BlobId, DbId, DbRecord, DbState, KindRecord, PartNo, Seq, encode, key};
use crate::served::Served;
use crate::store::StoreInner;
use crate::view::Scope;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DbKind {
    /// A CouchDB database.
    Plain,
    /// An app's aggregate, with partial databases and personal ones.
    App,
}

impl From<KindRecord> for DbKind {
    fn from(kind: KindRecord) -> Self {
        match kind {
            KindRecord::App => DbKind::App,
            KindRecord::Plain | KindRecord::Partitioned => DbKind::Plain,
        }
    }
}

/// Sizes in bytes, as CouchDB's `sizes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// On disk. The engine's files are shared, so this is the database's share by its content.
    pub file: u64,
    /// Of the documents as they would be sent.
    pub external: u64,
    /// Of what is still in use.
    pub active: u64,
}

/// What `GET /db` tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DbInfo {
    /// Live documents.
    pub doc_count: u64,
    /// Deleted documents.
    pub del_count: u64,
    /// The newest change.
    pub update_seq: Seq,
    /// Purges so far.
    pub purge_seq: u64,
    /// Sizes.
    pub sizes: Sizes,
    /// Whether a compaction is under way.
    pub compact_running: bool,
}

/// A handle on a database; clones are the same database. After the database was deleted all calls that
/// can fail give [`StoreError::Gone`].
#[derive(Clone)]
pub struct Db {
    inner: Arc<DbInner>,
}

pub(crate) struct DbInner {
    pub id: DbId,
    pub name: String,
    pub kind: DbKind,
    pub partitioned: bool,
    pub store: Arc<StoreInner>,
    pub chain: Chain,
    pub app: RwLock<AppState>,
    pub served: Served,
    pub compacting: AtomicBool,
    /// Attachments that commits have taken up while a compaction looks for unused ones.
    pub pinned: Mutex<HashSet<BlobId>>,
    instance: String,
    /// The store's sequence when the database was made: what clients see counts from here.
    first: Seq,
    gone: AtomicBool,
    record: RwLock<DbRecord>,
    state: RwLock<DbState>,
}

impl DbInner {
    pub fn new(
        store: &Arc<StoreInner>,
        name: String,
        record: DbRecord,
        first: Seq,
        state: DbState,
        app: AppState,
    ) -> DbInner {
        DbInner {
            id: record.id,
            kind: record.kind.into(),
            partitioned: record.kind == KindRecord::Partitioned,
            chain: Chain::new(store.keys.chain, &name),
            store: Arc::clone(store),
            app: RwLock::new(app),
            served: Served::default(),
            compacting: AtomicBool::new(false),
            pinned: Mutex::new(HashSet::new()),
            instance: hex::encode(record.instance),
            first,
            gone: AtomicBool::new(false),
            record: RwLock::new(record),
            state: RwLock::new(state),
            name,
        }
    }

    pub fn state(&self) -> DbState {
        self.state.read().clone()
    }

    /// The newest change that is published.
    pub fn seq(&self) -> Seq {
        self.state.read().seq
    }

    pub fn set_state(&self, state: DbState) {
        *self.state.write() = state;
    }

    pub fn mark_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }
}

impl Db {
    pub(crate) fn new(inner: DbInner) -> Db {
        Db { inner: Arc::new(inner) }
    }

    pub(crate) fn inner(&self) -> &Arc<DbInner> {
        &self.inner
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// What it is.
    pub fn kind(&self) -> DbKind {
        self.inner.kind
    }

    /// Whether the ids of its documents name partitions. Apps have partial databases instead.
    pub fn is_partitioned(&self) -> bool {
        self.inner.partitioned
    }

    /// Eight hexadecimal digits, new at each creation of a database of this name.
    pub fn instance(&self) -> &str {
        &self.inner.instance
    }

    /// A sequence as clients see it where it stands open: it counts from the making of this database, as CouchDB's does,
    /// so that a new database is at 0, and its numbers tell nothing of what was written to others before.
    pub fn shown_seq(&self, seq: Seq) -> Seq {
        seq.saturating_sub(self.inner.first)
    }

    /// The store's sequence behind one that a client saw.
    pub(crate) fn stored_seq(&self, shown: Seq) -> Seq {
        shown.saturating_add(self.inner.first)
    }

    /// Whether it has been deleted.
    pub fn is_gone(&self) -> bool {
        self.inner.gone.load(Ordering::Acquire)
    }

    pub(crate) fn present(&self) -> Result<(), StoreError> {
        if self.is_gone() { Err(StoreError::Gone) } else { Ok(()) }
    }

    /// Counts and sizes of the whole database.
    pub fn info(&self) -> DbInfo {
        let state = self.inner.state();
        let disk_bytes = self.inner.store.engine.stats().disk_bytes;
        let all_bytes = self.inner.store.content_bytes().max(1);
        let share = (u128::from(disk_bytes) * u128::from(state.bytes) / u128::from(all_bytes)) as u64;
        DbInfo {
            doc_count: state.docs,
            del_count: state.deleted,
            update_seq: state.seq,
            purge_seq: state.purges,
            sizes: Sizes { file: share, external: state.bytes, active: state.bytes.min(share) },
            compact_running: self.inner.compacting.load(Ordering::Relaxed),
        }
    }

    /// The newest change that is durable: what [`Db::info`] says, without the rest.
    pub fn update_seq(&self) -> Seq {
        self.inner.seq()
    }

    /// Purges so far.
    pub fn purge_seq(&self) -> u64 {
        self.inner.state.read().purges
    }

    /// Counts of what this scope shows; sizes of what is not the reader's are not told.
    pub fn scoped_info(&self, scope: &Scope) -> DbInfo {
        let app = self.inner.app.read();
        let parts = match scope {
            Scope::All => {
                drop(app);
                return self.info();
            }
            Scope::Part(_, part) => vec![*part],
            Scope::Personal(reader) => app.parts_of(reader),
        };
        let records = parts.iter().filter_map(|part| app.part(*part));
        records.fold(DbInfo::default(), |mut info, part| {
            info.doc_count += part.count.docs;
            info.del_count += part.count.deleted;
            info.update_seq = info.update_seq.max(part.count.seq);
            info
        })
    }

    /// The `_security` object as text; `{}` if it was never set.
    pub fn security(&self) -> Bytes {
        let record = self.inner.record.read();
        let text = if record.security.is_empty() { "{}" } else { &record.security };
        Bytes::copy_from_slice(text.as_bytes())
    }

    /// Sets the `_security` object. Blocks until durable.
    ///
    /// # Errors
    /// The engine failed.
    pub fn set_security(&self, json: Bytes) -> Result<(), StoreError> {
        let text = String::from_utf8(json.to_vec()).map_err(|_| StoreError::Damaged("security text"))?;
        self.change_record(move |record| record.security = text)
    }

    /// How many revisions of a branch are remembered.
    pub fn revs_limit(&self) -> u64 {
        self.inner.record.read().revs_limit
    }

    /// Sets that; histories are cut at the documents' next change. Blocks until durable.
    ///
    /// # Errors
    /// The engine failed.
    pub fn set_revs_limit(&self, limit: u64) -> Result<(), StoreError> {
        self.change_record(move |record| record.revs_limit = limit.max(1))
    }

    pub(crate) fn repartition_cursor(&self) -> Option<String> {
        self.inner.record.read().repartition.clone()
    }

    /// Whether documents wait for being placed by rules that were changed.
    pub fn needs_repartition(&self) -> bool {
        self.inner.record.read().repartition.is_some()
    }

    /// Moves the cursor of a repartition on, unless rules that came meanwhile have set it back.
    pub(crate) fn move_repartition_cursor(&self, from: String, to: Option<String>) -> Result<(), StoreError> {
        self.change_record(move |record| {
            if record.repartition.as_ref() == Some(&from) {
                record.repartition = to;
            }
        })
    }

    /// The access rules in force.
    pub fn rules(&self) -> Arc<AppRules> {
        Arc::clone(&self.inner.app.read().rules)
    }

    /// Puts rules in force for all writes from now on, and notes that the documents have yet to be placed by
    /// them: call [`Db::repartition`] next. Blocks until durable. Nothing happens if they are the same.
    ///
    /// # Errors
    /// The engine failed.
    pub fn set_rules(&self, rules: AppRules) -> Result<(), StoreError> {
        let db = self.clone();
        let text = rules.text().to_owned();
        if self.rules().text() == text {
            return Ok(());
        }
        let rules = Arc::new(rules);
        self.inner.store.call(move |tx| {
            db.present()?;
            let mut record = db.inner.record.write();
            record.rules = text;
            record.repartition = Some(String::new());
            db.inner.app.write().rules = rules;
            tx.put(Space::Meta, key::meta(key::DB, &[db.name().as_bytes()]), encode(&*record));
            Ok(())
        })
    }

    fn change_record(&self, change: impl FnOnce(&mut DbRecord) + Send + 'static) -> Result<(), StoreError> {
        let db = self.clone();
        self.inner.store.call(move |tx| {
            db.present()?;
            let mut record = db.inner.record.write();
            change(&mut record);
            tx.put(Space::Meta, key::meta(key::DB, &[db.name().as_bytes()]), encode(&*record));
            Ok(())
        })
    }

    /// All partial databases.
    pub fn parts(&self) -> Vec<PartInfo> {
        let app = self.inner.app.read();
        let numbers: Vec<PartNo> = app.parts().map(|(number, _)| number).collect();
        part_infos(&app, &numbers)
    }

    /// The partial databases that this reader may read.
    pub fn parts_of(&self, reader: &Reader) -> Vec<PartInfo> {
        let app = self.inner.app.read();
        part_infos(&app, &app.parts_of(reader))
    }

    /// The partial database of this signature.
    pub fn part(&self, signature: &str) -> Option<PartNo> {
        self.inner.app.read().part_by_signature(signature)
    }

    /// Whether a reader may read a partial database.
    pub fn may_read_part(&self, reader: &Reader, part: PartNo) -> bool {
        self.inner.app.read().may_read(reader, Some(part))
    }

    /// Who asks, ready for comparing.
    pub fn reader(&self, who: Who) -> Arc<Reader> {
        Arc::new(Reader::new(who))
    }

    /// The seal of a reader's bookmarks in this database.
    pub(crate) fn seal(&self, reader: &Reader, part: Option<PartNo>) -> Seal {
        let user = reader.name().map_or_else(|| "-".to_owned(), |name| format!("+{name}"));
        let part = part.map_or_else(|| "me".to_owned(), |part| part.to_string());
        let context = [self.name().as_bytes(), self.instance().as_bytes(), user.as_bytes(), part.as_bytes()];
        Seal::new(&self.inner.store.keys.bookmark, &context)
    }
}

fn part_infos(app: &AppState, numbers: &[PartNo]) -> Vec<PartInfo> {
    let info = |number: &PartNo| {
        let part = app.part(*number)?;
        Some(PartInfo {
            signature: crate::access::Signature::of(&part.readers).to_string(),
            readers: part.readers.clone(),
            doc_count: part.count.docs,
            update_seq: part.count.seq,
        })
    };
    numbers.iter().filter_map(info).collect()
}
