//! A store with an app, indexes over it, and a mapper whose rows are in the documents themselves.
#![allow(dead_code)]

use rean_index::{
    Emit, Emitted, Group, GroupSpec, IndexDoc, IndexError, Indexes, MapError, Mapper, Reduce, ReduceError, Reducer,
    ViewSpec,
};
use rean_store::engine::memory::MemoryEngine;
use rean_store::{
    Author, Db, DbKind, Edit, Mode, NoObserver, Rev, Scope, Store, StoreKeys, Who, Write, WriteError, Written,
};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Views by their numbers.
pub const PLAIN: usize = 0;
pub const SUM: usize = 1;
pub const CUSTOM: usize = 2;
pub const COUNT: usize = 3;
pub const DISTINCT: usize = 4;
pub const STATS: usize = 5;
pub const FIRST: usize = 6;
pub const VIEWS: usize = 7;

pub struct Device {
    pub folder: TempDir,
    pub store_engine: MemoryEngine,
    pub index_engine: MemoryEngine,
    pub store: Store,
    pub db: Db,
    pub indexes: Indexes,
    pub spec: Arc<GroupSpec>,
    pub mapped: Arc<AtomicU64>,
}

/// Emits `[key, value]` of each member of `rows`; to the views that reduce, the value's number, or 1.
pub struct RowMapper {
    pub mapped: Arc<AtomicU64>,
}

impl Mapper for RowMapper {
    fn map(&self, docs: Vec<IndexDoc>) -> Result<Vec<Vec<Emitted>>, MapError> {
        self.mapped.fetch_add(docs.len() as u64, Ordering::Relaxed);
        docs.iter().map(rows_of).collect()
    }
}

fn rows_of(doc: &IndexDoc) -> Result<Vec<Emitted>, MapError> {
    let body: Value = serde_json::from_str(&doc.json).unwrap();
    assert_eq!((&body["_id"], &body["_rev"]), (&json!(doc.id), &json!(doc.rev)));
    if body["poison"] == true {
        return Err(MapError::Documents("poisoned".to_owned()));
    }
    let rows = body["rows"].as_array().cloned().unwrap_or_default();
    let plain = rows.iter().map(|row| emit(&row[0], &row[1])).collect();
    let numbers: Vec<Emit> = rows.iter().map(|row| emit(&row[0], &number_of(&row[1]))).collect();
    let mut views: Vec<Emitted> = vec![Ok(plain)];
    views.extend((1..VIEWS).map(|_| Ok(numbers.clone())));
    Ok(views)
}

pub fn number_of(value: &Value) -> Value {
    if value.is_number() { value.clone() } else { json!(1) }
}

fn emit(key: &Value, value: &Value) -> Emit {
    Emit { key: key.to_string(), value: value.to_string() }
}

/// Adds up, in words of its own: `{"n": rows, "sum": sum}`.
pub struct Adder;

impl Reducer for Adder {
    fn reduce(&self, keys: Option<&str>, values: &str) -> Result<String, ReduceError> {
        let values: Vec<Value> = serde_json::from_str(values).unwrap();
        let (n, sum) = match keys {
            Some(keys) => {
                let keys: Vec<(Value, String)> = serde_json::from_str(keys).unwrap();
                assert_eq!(keys.len(), values.len());
                (values.len() as i64, values.iter().map(|value| value.as_i64().unwrap()).sum::<i64>())
            }
            None => {
                let of = |name: &str| values.iter().map(|value| value[name].as_i64().unwrap()).sum::<i64>();
                (of("n"), of("sum"))
            }
        };
        Ok(json!({"n": n, "sum": sum}).to_string())
    }
}

pub fn spec(signature: &str, mapper: Arc<dyn Mapper>) -> Arc<GroupSpec> {
    let reduces = [
        Reduce::None,
        Reduce::Sum,
        Reduce::Custom(Arc::new(Adder)),
        Reduce::Count,
        Reduce::ApproxCountDistinct,
        Reduce::Stats,
        Reduce::First,
    ];
    let view = |(n, reduce): (usize, Reduce)| ViewSpec { names: vec![format!("v{n}")], reduce };
    Arc::new(GroupSpec {
        signature: signature.to_owned(),
        views: reduces.into_iter().enumerate().map(view).collect(),
        include_design: false,
        local_seq: false,
        partitioned: false,
        mapper,
    })
}

pub fn open_store(engine: &MemoryEngine, folder: &TempDir) -> Store {
    let keys = StoreKeys { chain: [1; 32], bookmark: [2; 32] };
    Store::open_on(Box::new(engine.clone()), folder.path(), keys, Arc::new(NoObserver)).unwrap()
}

impl Device {
    pub fn new(kind: DbKind) -> Device {
        Device::with(|store| store.create_db("notes", kind).unwrap())
    }

    /// With a partitioned database, and an index whose rows lie by partitions.
    pub fn partitioned() -> Device {
        let mut device = Device::with(|store| store.create_partitioned_db("notes").unwrap());
        device.spec = Arc::new(GroupSpec { partitioned: true, ..(*device.spec).clone() });
        device
    }

    fn with(make: impl FnOnce(&Store) -> Db) -> Device {
        let (store_engine, index_engine) = (MemoryEngine::new(), MemoryEngine::new());
        let folder = TempDir::new().unwrap();
        let store = open_store(&store_engine, &folder);
        let db = make(&store);
        let indexes = Indexes::open(Box::new(index_engine.clone())).unwrap();
        indexes.settle(&store).unwrap();
        let mapped = Arc::new(AtomicU64::new(0));
        let spec = spec("0123456789abcdef0123456789abcdef", Arc::new(RowMapper { mapped: Arc::clone(&mapped) }));
        Device { folder, store_engine, index_engine, store, db, indexes, spec, mapped }
    }

    pub fn group(&self) -> Group {
        self.indexes.group(&self.db, Arc::clone(&self.spec)).unwrap()
    }

    pub fn update(&self) -> Group {
        let group = self.group();
        assert_eq!(group.update(&mut |_, _| {}).unwrap(), self.db.newest().seq);
        group
    }

    /// Takes up the indexes as they are in another engine.
    pub fn reopen_indexes(&mut self, engine: MemoryEngine) {
        self.indexes.close();
        self.index_engine = engine;
        self.indexes = Indexes::open(Box::new(self.index_engine.clone())).unwrap();
        self.indexes.settle(&self.store).unwrap();
    }

    pub fn put(&self, id: &str, body: Value) -> Rev {
        let parent = self.live_rev(id);
        let edit = edit(id, parent, body);
        submit(&self.db, vec![edit], Mode::Interactive).remove(0).unwrap().rev
    }

    pub fn put_rows(&self, id: &str, read: &[&str], rows: &Value) -> Rev {
        self.put(id, json!({"access": {"read": read}, "rows": rows}))
    }

    pub fn delete(&self, id: &str) {
        if let Some(rev) = self.live_rev(id) {
            let edit = Edit { deleted: true, access: None, ..edit(id, Some(rev), json!({})) };
            submit(&self.db, vec![edit], Mode::Interactive).remove(0).unwrap();
        }
    }

    pub fn purge(&self, id: &str) {
        let Some(doc) = self.db.doc(&Scope::All, id).unwrap() else { return };
        let revs: Vec<Rev> = doc.leaves.iter().map(|leaf| leaf.rev.clone()).collect();
        let (sender, receiver) = mpsc::channel();
        self.db.purge(id, &revs, Box::new(move |done| sender.send(done).unwrap()));
        receiver.recv().unwrap().unwrap();
    }

    pub fn personal(&self, name: &str, roles: &[&str]) -> Scope {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        Scope::Personal(self.db.reader(Who { name: Some(name.to_owned()), roles }))
    }

    /// The partial database with these readers, as `name` sees it; `None`: there is none yet.
    pub fn part(&self, name: &str, read: &[&str]) -> Option<Scope> {
        let signature = self.db.parts().into_iter().find(|part| part.readers == read)?.signature;
        let reader = self.db.reader(Who { name: Some(name.to_owned()), roles: Vec::new() });
        Some(Scope::Part(reader, self.db.part(&signature).unwrap()))
    }

    fn live_rev(&self, id: &str) -> Option<Rev> {
        let doc = self.db.doc(&Scope::All, id).unwrap()?;
        Some(doc.winner().clone()).filter(|winner| !winner.deleted).map(|winner| winner.rev)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.indexes.close();
        self.store.close();
    }
}

pub fn edit(id: &str, parent: Option<Rev>, body: Value) -> Edit {
    Edit {
        id: id.to_owned(),
        parent,
        history: Vec::new(),
        deleted: false,
        access: body.get("access").map(ToString::to_string),
        body: body.to_string().into(),
        attachments: Vec::new(),
    }
}

pub fn submit(db: &Db, edits: Vec<Edit>, mode: Mode) -> Vec<Result<Written, WriteError>> {
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move |result: Result<Vec<_>, _>| sender.send(result).unwrap());
    db.submit(Write { edits, author: Author::admin(Who::default()), mode }, done);
    receiver.recv().unwrap().unwrap()
}

pub fn update(group: &Group) -> Result<u64, IndexError> {
    group.update(&mut |_, _| {})
}

pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not come to be: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
