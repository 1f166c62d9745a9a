//! The design documents of each database, read and parsed once, and read anew after each commit that changes one.
//!
//! A design document that was written counts for every request that begins after the write was acknowledged: the hub
//! tells of a commit before the store tells the writer. An app's design documents are those of its aggregate, whatever
//! view of the app asks: administrators alone write them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rean_script::Design;
use rean_store::{Change, Db, DocRow, IdRange, Rev, Scope, StoreError};
use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::aside::aside;
use crate::hub::{CommitHook, Hub};
use crate::render;

/// What the ids of design documents start with.
pub const PREFIX: &str = "_design/";
/// Behind the last id that starts so.
const BEHIND: &str = "_design0";
/// The member with the function that every write is shown to.
const VALIDATOR: &str = "validate_doc_update";
/// The language of a design document that names none, as in CouchDB.
const DEFAULT_LANGUAGE: &str = "javascript";
/// Design documents that are listed at once.
const PAGE_ROWS: usize = 500;
/// Databases that are remembered. One that has no design documents takes some hundred bytes.
const MAX_DATABASES: usize = 20_000;
/// Texts of the design documents of all databases that are remembered, in bytes. Parsed they take about six times that.
const MAX_BYTES: usize = 32 << 20;
/// Calls of one database's functions that hold a thread at the same time. The script threads are fewer; more would only
/// take threads from other databases.
const CALLS_AT_ONCE: usize = 8;

/// The design documents of all databases.
pub struct DesignCache {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    /// Counts up with each generation, so that none is given twice.
    generations: u64,
    known: HashMap<Box<str>, Known>,
    bytes: usize,
}

struct Known {
    instance: Box<str>,
    /// Another one after each commit that changes a design document.
    generation: u64,
    /// What was read last, and in which generation and after how many purges.
    read: Option<(u64, u64, Arc<Designs>)>,
}

/// The live design documents of one database at one moment.
pub struct Designs {
    all: Vec<Arc<DesignDoc>>,
    validators: Vec<Arc<DesignDoc>>,
    /// Those that can't be read and have a validator: nothing may be written past it.
    unreadable_validator: Option<String>,
    bytes: usize,
    calls: Arc<Semaphore>,
}

/// One design document.
pub struct DesignDoc {
    /// Its id, with `_design/`.
    pub id: String,
    /// Its revision.
    pub rev: Rev,
    /// Its text, with `_id`, `_rev` and attachment stubs: what its functions see as `this`.
    pub json: Arc<str>,
    /// The text, parsed.
    pub value: Value,
    /// Its functions.
    pub script: Design,
}

impl DesignCache {
    /// Follows the commits through the hub.
    pub fn new(hub: &Hub) -> Self {
        let shared = Arc::new(Shared::default());
        hub.add_hook(Arc::clone(&shared) as Arc<dyn CommitHook>);
        Self { shared }
    }

    /// The design documents of a database as they are now.
    ///
    /// # Errors
    /// The store failed, or the database is gone.
    pub fn of(&self, db: &Db) -> Result<Arc<Designs>, StoreError> {
        if db.is_gone() {
            return Err(StoreError::Gone);
        }
        // A purge makes no change that the hub tells of. Read before the documents are.
        let purges = db.purge_seq();
        let (generation, before) = {
            let mut cache = self.shared.cache.lock();
            let known = cache.known_of(db);
            match &known.read {
                Some((generation, then, designs)) if *generation == known.generation && *then == purges => {
                    return Ok(Arc::clone(designs));
                }
                read => (known.generation, read.as_ref().map(|(.., designs)| Arc::clone(designs))),
            }
        };
        let designs = Arc::new(aside(|| Designs::read(db, before.as_deref()))?);
        let mut cache = self.shared.cache.lock();
        cache.keep(db, generation, purges, &designs);
        Ok(designs)
    }
}

impl Cache {
    fn known_of(&mut self, db: &Db) -> &mut Known {
        if self.known.len() >= MAX_DATABASES && !self.known.contains_key(db.name()) {
            self.forget_all();
        }
        if self.known.get(db.name()).is_some_and(|known| *known.instance != *db.instance())
            && let Some(old) = self.known.remove(db.name())
        {
            self.bytes -= old.bytes();
        }
        self.generations += 1;
        let generation = self.generations;
        self.known.entry(db.name().into()).or_insert_with(|| Known {
            instance: db.instance().into(),
            generation,
            read: None,
        })
    }

    fn keep(&mut self, db: &Db, generation: u64, purges: u64, designs: &Arc<Designs>) {
        let current = |known: &&mut Known| known.generation == generation && *known.instance == *db.instance();
        let Some(known) = self.known.get_mut(db.name()).filter(current) else { return };
        let before = known.bytes();
        known.read = Some((generation, purges, Arc::clone(designs)));
        self.bytes = self.bytes - before + designs.bytes;
        if self.bytes > MAX_BYTES && self.bytes > designs.bytes {
            // Those that are in use come back at once; a cleverer order isn't worth its cost here.
            let kept = self.known.remove(db.name());
            self.forget_all();
            if let Some(kept) = kept {
                self.bytes = kept.bytes();
                self.known.insert(db.name().into(), kept);
            }
        }
    }

    fn forget_all(&mut self) {
        self.known.clear();
        self.bytes = 0;
    }
}

impl Known {
    fn bytes(&self) -> usize {
        self.read.as_ref().map_or(0, |(.., designs)| designs.bytes)
    }
}

impl CommitHook for Shared {
    fn committed(&self, db: &Db, changes: &[Arc<Change>]) {
        if !changes.iter().any(|change| change.id().starts_with(PREFIX)) {
            return;
        }
        let mut cache = self.cache.lock();
        cache.generations += 1;
        let generation = cache.generations;
        if let Some(known) = cache.known.get_mut(db.name()) {
            known.generation = generation;
        }
    }
}

impl Designs {
    fn read(db: &Db, before: Option<&Self>) -> Result<Self, StoreError> {
        let calls = before.map_or_else(|| Arc::new(Semaphore::new(CALLS_AT_ONCE)), |before| Arc::clone(&before.calls));
        let mut designs = Self { all: Vec::new(), validators: Vec::new(), unreadable_validator: None, bytes: 0, calls };
        let start = Some(PREFIX.to_owned());
        let mut range = IdRange { start, end: Some(BEHIND.to_owned()), exclusive_end: true, ..IdRange::default() };
        loop {
            let rows = db.all_docs(&Scope::All, &range, PAGE_ROWS)?;
            let Some(last) = rows.last() else { break };
            range = range.after(&last.id);
            for row in rows {
                designs.take(db, row, before)?;
            }
        }
        Ok(designs)
    }

    fn take(&mut self, db: &Db, row: DocRow, before: Option<&Self>) -> Result<(), StoreError> {
        if let Some(same) = before.and_then(|before| before.get(&row.id)).filter(|same| same.rev == row.rev) {
            self.add(same);
            return Ok(());
        }
        let Some(body) = row.body.map(|at| db.body(at)).transpose()?.flatten() else { return Ok(()) };
        let mut text = Vec::new();
        render::push_plain(&mut text, &row.id, &row.rev, false, Some(&body));
        let text = String::from_utf8(text).map_err(|_| StoreError::Damaged("a design document"))?;
        // What is nested too deeply can't be parsed.
        match (serde_json::from_str(&text), Design::new(&text)) {
            (Ok(value), Ok(script)) => {
                let script = script.for_owner(db.instance());
                let json = text.into();
                self.add(Arc::new(DesignDoc { id: row.id, rev: row.rev, json, value, script }));
            }
            _ => {
                let members: HashMap<String, IgnoredAny> = serde_json::from_str(&text).unwrap_or_default();
                if members.contains_key(VALIDATOR) {
                    self.unreadable_validator.get_or_insert(row.id);
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, design: Arc<DesignDoc>) {
        self.bytes += design.json.len();
        if design.validates() {
            self.validators.push(Arc::clone(&design));
        }
        self.all.push(design);
    }

    /// All of them, in the order of their ids.
    pub fn all(&self) -> &[Arc<DesignDoc>] {
        &self.all
    }

    /// One of them, by its name or by its id.
    pub fn get(&self, name: &str) -> Option<Arc<DesignDoc>> {
        let name = name.strip_prefix(PREFIX).unwrap_or(name);
        let place = self.all.binary_search_by(|design| design.name().cmp(name)).ok()?;
        Some(Arc::clone(&self.all[place]))
    }

    /// Those that every write is shown to, in the order of their ids.
    pub fn validators(&self) -> &[Arc<DesignDoc>] {
        &self.validators
    }

    /// The id of one that has a validator and can't be read: nothing may be written then.
    pub fn unreadable_validator(&self) -> Option<&str> {
        self.unreadable_validator.as_deref()
    }

    /// Bounds the calls of the database's functions that hold a thread.
    pub fn calls(&self) -> &Arc<Semaphore> {
        &self.calls
    }
}

impl DesignDoc {
    /// Its id without `_design/`.
    pub fn name(&self) -> &str {
        self.id.strip_prefix(PREFIX).unwrap_or(&self.id)
    }

    /// The language of its functions.
    pub fn language(&self) -> &str {
        match self.value.get("language") {
            None | Some(Value::Null) => DEFAULT_LANGUAGE,
            Some(language) => language.as_str().unwrap_or_default(),
        }
    }

    /// Whether it has a `validate_doc_update`.
    pub fn validates(&self) -> bool {
        self.value.get(VALIDATOR).is_some_and(|function| !function.is_null())
    }

    /// Whether it has such a function: `filters` and `important`.
    pub fn has(&self, kind: &str, name: &str) -> bool {
        self.value.get(kind).and_then(|all| all.get(name)).is_some_and(|function| !function.is_null())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use rean_store::{
        Author, Db, DbKind, Edit, EngineKind, Mode, Rev, Store, StoreKeys, StoreOptions, Who, Write, Written,
    };

    use super::{DesignCache, MAX_BYTES};
    use crate::hub::Hub;

    struct World {
        store: Store,
        designs: DesignCache,
        _folder: tempfile::TempDir,
    }

    fn world() -> World {
        let folder = tempfile::tempdir().expect("a folder");
        let hub = Arc::new(Hub::new());
        let store = Store::open(StoreOptions {
            path: folder.path().to_owned(),
            engine: EngineKind::Fjall,
            keys: StoreKeys { chain: [1; 32], bookmark: [2; 32] },
            observer: Arc::clone(&hub) as Arc<dyn rean_store::Observer>,
        })
        .expect("opens");
        World { designs: DesignCache::new(&hub), store, _folder: folder }
    }

    fn put(db: &Db, id: &str, parent: Option<&Rev>, body: &str, deleted: bool) -> Written {
        let edit = Edit {
            id: id.to_owned(),
            parent: parent.cloned(),
            history: Vec::new(),
            deleted,
            body: body.to_owned().into(),
            access: None,
            attachments: Vec::new(),
        };
        let (sender, done) = mpsc::channel();
        let write = Write { edits: vec![edit], author: Author::admin(Who::default()), mode: Mode::Interactive };
        db.submit(write, Box::new(move |result| sender.send(result).expect("somebody waits")));
        done.recv().expect("an answer").expect("stored").remove(0).expect("written")
    }

    #[test]
    fn a_change_counts_at_once_and_what_stays_is_not_parsed_again() {
        let World { store, designs, _folder } = world();
        let db = store.create_db("db", DbKind::Plain).expect("a database");
        assert!(designs.of(&db).expect("read").all().is_empty());
        let first = put(&db, "_design/b", None, r#"{"validate_doc_update":"function () {}"}"#, false);
        put(&db, "_design/a", None, r#"{"filters":{"f":"function () {}"}}"#, false);
        put(&db, "_design0", None, "{}", false);
        let then = designs.of(&db).expect("read");
        let names: Vec<&str> = then.all().iter().map(|design| design.name()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(then.validators()[0].id, "_design/b");
        assert!(then.get("a").is_some_and(|a| a.has("filters", "f") && !a.has("filters", "g") && !a.validates()));
        assert_eq!(then.get("a").expect("it").language(), "javascript");
        put(&db, "other", None, "{}", false);
        assert!(Arc::ptr_eq(&then, &designs.of(&db).expect("read")));
        put(&db, "_design/b", Some(&first.rev), "{}", true);
        let now = designs.of(&db).expect("read");
        assert!(now.validators().is_empty() && now.get("_design/b").is_none());
        assert!(Arc::ptr_eq(&then.get("a").expect("it"), &now.get("a").expect("it")));
    }

    #[test]
    fn a_database_of_the_same_name_is_another_one_and_a_purge_counts() {
        let World { store, designs, _folder } = world();
        let db = store.create_db("db", DbKind::Plain).expect("a database");
        let written = put(&db, "_design/a", None, "{}", false);
        assert_eq!(designs.of(&db).expect("read").all().len(), 1);
        let (sender, done) = mpsc::channel();
        db.purge("_design/a", &[written.rev], Box::new(move |result| sender.send(result.is_ok()).expect("told")));
        assert!(done.recv().expect("an answer"));
        assert!(designs.of(&db).expect("read").all().is_empty());
        put(&db, "_design/a", None, "{}", false);
        assert_eq!(designs.of(&db).expect("read").all().len(), 1);
        store.delete_db("db").expect("deleted");
        assert!(designs.of(&db).is_err());
        let db = store.create_db("db", DbKind::Plain).expect("a database");
        assert!(designs.of(&db).expect("read").all().is_empty());
    }

    #[test]
    fn what_can_not_be_parsed_still_validates() {
        let World { store, designs, _folder } = world();
        let db = store.create_db("db", DbKind::Plain).expect("a database");
        let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
        put(&db, "_design/a", None, &format!(r#"{{"deep":{deep}}}"#), false);
        assert_eq!(designs.of(&db).expect("read").unreadable_validator(), None);
        put(&db, "_design/b", None, &format!(r#"{{"deep":{deep},"validate_doc_update":"x"}}"#), false);
        assert_eq!(designs.of(&db).expect("read").unreadable_validator(), Some("_design/b"));
    }

    #[test]
    fn memory_is_bounded() {
        let World { store, designs, _folder } = world();
        let text = format!(r#"{{"text":"{}"}}"#, "x".repeat(MAX_BYTES / 4));
        for n in 0..6 {
            let db = store.create_db(&format!("db{n}"), DbKind::Plain).expect("a database");
            put(&db, "_design/a", None, &text, false);
            assert_eq!(designs.of(&db).expect("read").all().len(), 1);
        }
        let cache = designs.shared.cache.lock();
        assert!(cache.bytes <= MAX_BYTES && cache.known.len() < 6, "{}", cache.bytes);
        assert_eq!(cache.bytes, cache.known.values().map(super::Known::bytes).sum::<usize>());
    }
}
