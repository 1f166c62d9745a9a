//! The design documents of each database, read and parsed once, and read anew after each commit that changes one.
//!
//! A design document that was written counts for every request that begins after the write was acknowledged: the hub
//! tells of a commit before the store tells the writer. An app's design documents are those of its aggregate, whatever
//! view of the app asks: administrators alone write them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
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
/// What the design documents of one database may have together when one is written, in bytes: two of the largest that a
/// client may write, and hundreds of usual ones.
pub const MAX_WRITTEN_BYTES: usize = 16 << 20;
/// What of them is read. More than is let in at one pod: pods may have let in some at the same moment.
const MAX_READ_BYTES: usize = 32 << 20;
/// What a design document takes beside its text, in bytes, about.
const OVERHEAD_BYTES: usize = 1 << 10;
/// Databases whose design documents are read at the same time. Those of one are read once, however many ask.
const READERS: usize = 8;
/// Calls of one database's functions that hold a thread at the same time. The script threads are fewer; more would only
/// take threads from other databases.
const CALLS_AT_ONCE: usize = 8;

/// The design documents of all databases.
pub struct DesignCache {
    shared: Arc<Shared>,
    /// Each database has one of these, held while its design documents are read.
    reading: [Mutex<()>; READERS],
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
    /// Those that can't be read and have, or may have, a validator: nothing may be written past it.
    unreadable_validator: Option<String>,
    /// What all of them take, also those that can't be read.
    bytes: usize,
    calls: Arc<Semaphore>,
}

/// Room for design documents that are written to a database.
pub struct Room<'a> {
    designs: &'a Designs,
    left_bytes: usize,
}

/// What is remembered of a database: all that it takes, or what is still good of it.
enum Found {
    Current(Arc<Designs>),
    Outdated(Outdated),
}

struct Outdated {
    /// The generation that is to be read, and the purges before it.
    generation: u64,
    purges: u64,
    before: Option<Arc<Designs>>,
    /// Whether a document of `before` that still has its revision is the same: after a purge, the same revision may have
    /// come with another text.
    same_by_rev: bool,
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
    /// Whether anything in it names the member `_revisions`.
    pub names_revisions: bool,
}

impl DesignCache {
    /// Follows the commits through the hub.
    pub fn new(hub: &Hub) -> Self {
        let shared = Arc::new(Shared::default());
        hub.add_hook(Arc::clone(&shared) as Arc<dyn CommitHook>);
        Self { shared, reading: std::array::from_fn(|_| Mutex::new(())) }
    }

    /// The design documents of a database as they are now.
    ///
    /// # Errors
    /// The store failed, or the database is gone.
    pub fn of(&self, db: &Db) -> Result<Arc<Designs>, StoreError> {
        if db.is_gone() {
            return Err(StoreError::Gone);
        }
        match self.find(db) {
            Found::Current(designs) => Ok(designs),
            Found::Outdated(_) => aside(|| self.read(db)),
        }
    }

    fn find(&self, db: &Db) -> Found {
        // A purge makes no change that the hub tells of. Asked before the documents are read.
        let purges = db.purge_seq();
        let mut cache = self.shared.cache.lock();
        let known = cache.known_of(db);
        let generation = known.generation;
        match &known.read {
            Some((of, then, designs)) if *of == generation && *then == purges => Found::Current(Arc::clone(designs)),
            read => Found::Outdated(Outdated {
                generation,
                purges,
                same_by_rev: read.as_ref().is_some_and(|(_, then, _)| *then == purges),
                before: read.as_ref().map(|(.., designs)| Arc::clone(designs)),
            }),
        }
    }

    fn read(&self, db: &Db) -> Result<Arc<Designs>, StoreError> {
        let mut hasher = DefaultHasher::new();
        db.name().hash(&mut hasher);
        let turn = usize::try_from(hasher.finish() % READERS as u64).unwrap_or_default();
        let _turn = self.reading[turn].lock();
        let outdated = match self.find(db) {
            // Somebody read them while this waited.
            Found::Current(designs) => return Ok(designs),
            Found::Outdated(outdated) => outdated,
        };
        let designs = Arc::new(Designs::read(db, &outdated)?);
        self.shared.cache.lock().keep(db, outdated.generation, outdated.purges, &designs);
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
    fn read(db: &Db, outdated: &Outdated) -> Result<Self, StoreError> {
        let before = outdated.before.as_deref();
        let calls = before.map_or_else(|| Arc::new(Semaphore::new(CALLS_AT_ONCE)), |before| Arc::clone(&before.calls));
        let before = before.filter(|_| outdated.same_by_rev);
        let mut designs = Self { all: Vec::new(), validators: Vec::new(), unreadable_validator: None, bytes: 0, calls };
        let start = Some(PREFIX.to_owned());
        let mut range = IdRange { start, end: Some(BEHIND.to_owned()), exclusive_end: true, ..IdRange::default() };
        loop {
            let rows = db.all_docs(&Scope::All, &range, PAGE_ROWS)?;
            let Some(last) = rows.last() else { break };
            range = range.after(&last.id);
            for row in rows {
                if designs.bytes > MAX_READ_BYTES {
                    tracing::error!(database = db.name(), from = row.id, "too much of design documents");
                    // Any of those that are left out may have one.
                    designs.unreadable_validator.get_or_insert(row.id);
                    return Ok(designs);
                }
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
        drop(body);
        // What is nested too deeply can't be parsed.
        match (serde_json::from_str(&text), Design::new(&text)) {
            (Ok(value), Ok(script)) => {
                let script = script.for_owner(db.instance());
                let names_revisions = text.contains("_revisions");
                let json = text.into();
                self.add(Arc::new(DesignDoc { id: row.id, rev: row.rev, json, value, script, names_revisions }));
            }
            _ => {
                self.bytes += text.len() + OVERHEAD_BYTES;
                let members: HashMap<String, IgnoredAny> = serde_json::from_str(&text).unwrap_or_default();
                if members.contains_key(VALIDATOR) {
                    self.unreadable_validator.get_or_insert(row.id);
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, design: Arc<DesignDoc>) {
        self.bytes += design.bytes();
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

    /// What may still be written.
    pub fn room(&self) -> Room<'_> {
        Room { designs: self, left_bytes: MAX_WRITTEN_BYTES.saturating_sub(self.bytes) }
    }

    /// Bounds the calls of the database's functions that hold a thread.
    pub fn calls(&self) -> &Arc<Semaphore> {
        &self.calls
    }
}

impl Room<'_> {
    /// Takes room for the new text of a design document; `false`: there is none. What grows nothing has room always.
    pub fn take(&mut self, id: &str, text_bytes: usize) -> bool {
        let before = self.designs.get(id).map_or(0, |design| design.bytes());
        let growth = (text_bytes + OVERHEAD_BYTES).saturating_sub(before);
        let left = self.left_bytes.checked_sub(growth);
        self.left_bytes = left.unwrap_or(self.left_bytes);
        growth == 0 || left.is_some()
    }
}

impl DesignDoc {
    fn bytes(&self) -> usize {
        self.json.len() + OVERHEAD_BYTES
    }

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

    use super::{DesignCache, MAX_BYTES, MAX_READ_BYTES, MAX_WRITTEN_BYTES};
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
        submit(db, edit(id, parent, body, deleted), Mode::Interactive)
    }

    fn edit(id: &str, parent: Option<&Rev>, body: &str, deleted: bool) -> Edit {
        Edit {
            id: id.to_owned(),
            parent: parent.cloned(),
            history: Vec::new(),
            deleted,
            body: body.to_owned().into(),
            access: None,
            attachments: Vec::new(),
        }
    }

    fn submit(db: &Db, edit: Edit, mode: Mode) -> Written {
        let (sender, done) = mpsc::channel();
        let write = Write { edits: vec![edit], author: Author::admin(Who::default()), mode };
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
    fn a_purged_revision_that_comes_back_is_read_again() {
        let World { store, designs, _folder } = world();
        let db = store.create_db("db", DbKind::Plain).expect("a database");
        let rev = "1-0123456789abcdef0123456789abcdef".parse::<Rev>().expect("a revision");
        for text in [r#"{"n":1}"#, r#"{"n":2}"#] {
            let edit = Edit { history: vec![rev.clone()], ..edit("_design/a", None, text, false) };
            submit(&db, edit, Mode::Replicated);
            let json = designs.of(&db).expect("read").get("a").expect("it").json.to_string();
            assert!(json.contains(&text[1..]), "{json}");
            let (sender, done) = mpsc::channel();
            let told = Box::new(move |result: Result<_, _>| sender.send(result.is_ok()).expect("told"));
            db.purge("_design/a", std::slice::from_ref(&rev), told);
            assert!(done.recv().expect("an answer"));
        }
    }

    #[test]
    fn one_database_has_a_bounded_part() {
        let World { store, designs, _folder } = world();
        let db = store.create_db("db", DbKind::Plain).expect("a database");
        let text = format!(r#"{{"text":"{}"}}"#, "x".repeat(MAX_WRITTEN_BYTES / 2 - 4_096));
        let first = put(&db, "_design/0", None, &text, false);
        let few = designs.of(&db).expect("read");
        let mut room = few.room();
        assert!(room.take("_design/0", text.len()) && room.take("_design/1", text.len()));
        assert!(!room.take("_design/2", text.len()) && room.take("_design/2", 100));
        // What came in all the same is read to a bound, and nothing passes a validator that may be in the rest.
        for n in 1..6 {
            put(&db, &format!("_design/{n}"), None, &text, false);
        }
        let many = designs.of(&db).expect("read");
        assert!(many.bytes <= MAX_READ_BYTES + 2 * text.len() && many.all().len() == 5, "{}", many.all().len());
        assert_eq!(many.unreadable_validator(), Some("_design/5"));
        assert!(many.room().take("_design/0", text.len()) && !many.room().take("_design/6", 100));
        put(&db, "_design/0", Some(&first.rev), "{}", true);
        assert_eq!(designs.of(&db).expect("read").unreadable_validator(), None);
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
