//! What happens to indexes besides queries: crashes, restored stores, purges, new rules, deletions, damage, limits.

mod device;

use device::{CUSTOM, Device, PLAIN, RowMapper, SUM, open_store, spec, update, wait_until};
use rean_index::{
    Emit, Emitted, Group, GroupSpec, Grouping, IndexDoc, IndexError, Indexes, MapError, Mapper, Range, Reduce,
    ReduceError, Reducer, ViewSpec,
};
use rean_store::engine::memory::MemoryEngine;
use rean_store::engine::{Batch, Direction, Engine, EngineError, EngineStats, Snapshot, Space, Value as Bytes};
use rean_store::{AppRules, DbKind, Scope};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// Keys and ids of all rows of a view.
fn rows(group: &Group, scope: &Scope, view: usize) -> Vec<(Value, String)> {
    let mut rows = group.view(scope, view).unwrap().rows(Range::default());
    let mut out = Vec::new();
    loop {
        let page = rows.next_page(100).unwrap();
        if page.is_empty() {
            return out;
        }
        out.extend(page.into_iter().map(|row| (serde_json::from_slice(&row.key).unwrap(), row.id)));
    }
}

fn ids(group: &Group, scope: &Scope) -> Vec<String> {
    rows(group, scope, PLAIN).into_iter().map(|(_, id)| id).collect()
}

/// Everything in an engine of indexes but the numbers of indexes that are gone.
fn keys_in(engine: &MemoryEngine) -> Vec<(Space, Vec<u8>)> {
    let snapshot = engine.snapshot();
    let keys = |space| {
        let range = snapshot.range(space, &[0], &[0xff; 40], Direction::Forward);
        range.map(move |item| (space, item.unwrap().0.to_vec())).collect::<Vec<_>>()
    };
    Space::ALL.into_iter().flat_map(keys).collect()
}

/// An engine of which what a crash would leave is kept, before and after each commit.
#[derive(Clone, Default)]
struct Filmed {
    inner: MemoryEngine,
    images: Arc<Mutex<Vec<MemoryEngine>>>,
}

impl Filmed {
    fn film(&self) {
        self.images.lock().unwrap().extend([self.inner.crash_image(), self.inner.kill_image()]);
    }
}

impl Engine for Filmed {
    fn commit(&self, batch: Batch, durable: bool) -> Result<(), EngineError> {
        self.film();
        let result = self.inner.commit(batch, durable);
        self.film();
        result
    }
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.inner.get(space, key)
    }
    fn snapshot(&self) -> Box<dyn Snapshot> {
        self.inner.snapshot()
    }
    fn stats(&self) -> EngineStats {
        self.inner.stats()
    }
    fn compact(&self) -> Result<(), EngineError> {
        self.inner.compact()
    }
    fn close(&self) -> Result<(), EngineError> {
        self.inner.close()
    }
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn power_safe(&self) -> bool {
        self.inner.power_safe()
    }
}

#[test]
fn an_index_goes_on_rightly_from_what_any_crash_leaves() {
    let mut device = Device::new(DbKind::App);
    let film = Filmed::default();
    device.indexes.close();
    device.indexes = Indexes::open(Box::new(film.clone())).unwrap();
    let readers: [&[&str]; 3] = [&["user:ann"], &["user:bob"], &[]];
    for round in 0..12 {
        for n in 0..30 {
            let id = format!("d{}", (n * 7 + round) % 50);
            match (n + round) % 9 {
                0 => device.delete(&id),
                1 => device.purge(&id),
                _ => {
                    let key = json!([(n * round) % 13, "x".repeat((n as usize) * 20)]);
                    drop(device.put_rows(&id, readers[(n + round) as usize % 3], &json!([[key, n]])));
                }
            }
        }
        device.update();
        if round == 6 {
            device.indexes.keep_only(&device.db, &[]).unwrap();
        }
    }
    let right = |group: &Group, scope: &Scope| {
        let view = group.view(scope, SUM).unwrap();
        (
            rows(group, scope, PLAIN),
            view.total_rows().unwrap(),
            view.reduce(Range::default(), Grouping::Level(1)).next_page(100).unwrap(),
        )
    };
    let scopes = [Scope::All, device.personal("ann", &[]), device.personal("bob", &[])];
    let group = device.group();
    let wanted: Vec<_> = scopes.iter().map(|scope| right(&group, scope)).collect();
    assert!(wanted.iter().all(|(rows, ..)| !rows.is_empty()));
    let images = film.images.lock().unwrap().clone();
    assert!(images.len() > 40);
    for image in images {
        let indexes = Indexes::open(Box::new(image)).unwrap();
        indexes.settle(&device.store).unwrap();
        let group = indexes.group(&device.db, Arc::clone(&device.spec)).unwrap();
        update(&group).unwrap();
        let found: Vec<_> = scopes.iter().map(|scope| right(&group, scope)).collect();
        assert!(found == wanted, "another index after a crash");
        indexes.close();
    }
}

#[test]
fn an_old_copy_of_the_store_has_its_index_made_anew() {
    let mut device = Device::new(DbKind::Plain);
    device.put_rows("a", &[], &json!([[1, 1]]));
    let copy = device.store_engine.kill_image();
    for id in ["b", "c"] {
        device.put_rows(id, &[], &json!([[2, 1]]));
    }
    assert_eq!(ids(&device.update(), &Scope::All), ["a", "b", "c"]);
    // The copy is put back: it gives the sequences of `b` and `c` to others.
    device.store.close();
    std::fs::remove_file(device.folder.path().join("acknowledged")).unwrap();
    device.store_engine = copy;
    device.store = open_store(&device.store_engine, &device.folder);
    device.db = device.store.db("notes").unwrap();
    let image = device.index_engine.kill_image();
    device.reopen_indexes(image);
    for id in ["d", "e", "f"] {
        device.put_rows(id, &[], &json!([[3, 1]]));
    }
    assert_eq!(ids(&device.update(), &Scope::All), ["a", "d", "e", "f"]);
}

#[test]
fn lost_commits_have_the_index_made_anew() {
    let mut device = Device::new(DbKind::Plain);
    device.put_rows("a", &[], &json!([[1, 1]]));
    let copy = device.store_engine.kill_image();
    device.put_rows("b", &[], &json!([[2, 1]]));
    assert_eq!(ids(&device.update(), &Scope::All), ["a", "b"]);
    device.store.close();
    // The file of acknowledged commits tells that some are lost: the store begins another history.
    device.store_engine = copy;
    device.store = open_store(&device.store_engine, &device.folder);
    device.db = device.store.db("notes").unwrap();
    for id in ["c", "d"] {
        device.put_rows(id, &[], &json!([[3, 1]]));
    }
    // Nobody settles it at start: it is seen when the index is asked for.
    device.indexes.close();
    device.indexes = Indexes::open(Box::new(device.index_engine.kill_image())).unwrap();
    assert_eq!(ids(&device.update(), &Scope::All), ["a", "c", "d"]);
}

#[test]
fn a_database_of_the_same_name_has_an_index_of_its_own() {
    let mut device = Device::new(DbKind::Plain);
    for n in 0..50 {
        device.put_rows(&format!("d{n}"), &[], &json!([[n, "x".repeat(500)]]));
    }
    let old = device.update();
    let view = old.view(&Scope::All, PLAIN).unwrap();
    let instance = device.db.instance().to_owned();
    device.store.delete_db("notes").unwrap();
    assert!(matches!(update(&old), Err(IndexError::Gone)));
    assert!(matches!(old.view(&Scope::All, PLAIN), Err(IndexError::Gone)));
    device.indexes.forget_database(&instance).unwrap();
    device.db = device.store.create_db("notes", DbKind::Plain).unwrap();
    device.put_rows("new", &[], &json!([[1, 1]]));
    assert_eq!(ids(&device.update(), &Scope::All), ["new"]);
    // What is being read stays, and the rest of the old index is cleared.
    assert_eq!(view.rows(Range::default()).next_page(100).unwrap().len(), 50);
    let few = |space| keys_in(&device.index_engine).iter().filter(|(of, _)| *of == space).count();
    wait_until("the old index is cleared", || few(Space::Docs) == 1 && few(Space::Bodies) == device::VIEWS);
}

#[test]
fn indexes_that_are_not_wanted_go_and_come_again() {
    let device = Device::new(DbKind::Plain);
    device.put_rows("a", &[], &json!([[1, 1]]));
    let group = device.update();
    let other = spec("f".repeat(32).as_str(), Arc::new(RowMapper { mapped: Arc::clone(&device.mapped) }));
    let other = device.indexes.group(&device.db, other).unwrap();
    update(&other).unwrap();
    assert_eq!(device.indexes.groups(&device.db).unwrap().len(), 2);
    assert_eq!(device.indexes.keep_only(&device.db, std::slice::from_ref(&device.spec.signature)).unwrap(), 1);
    assert_eq!(device.indexes.groups(&device.db).unwrap()[0].signature, device.spec.signature);
    assert!(matches!(update(&other), Err(IndexError::Gone)));
    assert!(group.info().unwrap().row_bytes > 0);
    assert_eq!(device.indexes.keep_only(&device.db, &[]).unwrap(), 1);
    let empty = |space| !keys_in(&device.index_engine).iter().any(|(of, _)| *of == space);
    wait_until("all is cleared", || [Space::Docs, Space::Seqs, Space::Bodies].into_iter().all(empty));
    assert_eq!(ids(&device.update(), &Scope::All), ["a"]);
}

#[test]
fn more_purges_than_are_remembered_make_it_anew() {
    let device = Device::new(DbKind::Plain);
    device.put_rows("kept", &[], &json!([[1, 1]]));
    device.put_rows("purged", &[], &json!([[1, 1]]));
    device.update();
    device.purge("purged");
    assert!(!device.group().is_current());
    assert_eq!(ids(&device.update(), &Scope::All), ["kept"]);
    assert_eq!(device.mapped.load(Ordering::Relaxed), 2, "a purge maps nothing");
    device.put_rows("purged", &[], &json!([[1, 1]]));
    device.update();
    device.purge("purged");
    for _ in 0..1_000 {
        device.put_rows("other", &[], &json!([[1, 1]]));
        device.purge("other");
    }
    assert_eq!(ids(&device.update(), &Scope::All), ["kept"]);
}

#[test]
fn new_rules_move_rows_between_partial_databases() {
    let device = Device::new(DbKind::App);
    for n in 0..20 {
        device.put(&format!("d{n}"), json!({"owner": if n % 2 == 0 { "ann" } else { "bob" }, "rows": [[n, 1]]}));
    }
    let (ann, bob) = (device.personal("ann", &[]), device.personal("bob", &[]));
    let group = device.update();
    assert_eq!((ids(&group, &ann).len(), ids(&group, &bob).len(), ids(&group, &Scope::All).len()), (0, 0, 20));
    let rule = |owner: &str, read: &str| json!({"selector": {"owner": owner}, "read": [read]});
    for (rules, of_ann, of_bob) in [
        (json!({"rules": [rule("ann", "user:ann"), rule("bob", "user:bob")]}), 10, 10),
        (json!({"rules": [rule("ann", "user:bob"), rule("bob", "user:bob")]}), 0, 20),
        (json!({"rules": []}), 0, 0),
    ] {
        device.db.set_rules(AppRules::parse(&rules).unwrap()).unwrap();
        device.db.repartition(&mut |_, _| {}).unwrap();
        let group = device.update();
        assert_eq!((ids(&group, &ann).len(), ids(&group, &bob).len()), (of_ann, of_bob), "{rules}");
        assert_eq!(ids(&group, &Scope::All).len(), 20);
        let view = group.view(&bob, CUSTOM).unwrap();
        assert_eq!(view.total_rows().unwrap() as usize, of_bob);
    }
}

#[test]
fn a_document_that_can_not_be_mapped_has_no_rows_and_stops_no_others() {
    let device = Device::new(DbKind::Plain);
    for n in 0..20 {
        device.put(&format!("d{n:02}"), json!({"rows": [[n, 1]], "poison": n % 5 == 0}));
    }
    let group = device.update();
    assert_eq!(ids(&group, &Scope::All).len(), 16);
    device.put("d00", json!({"rows": [[0, 1]]}));
    device.put("d01", json!({"rows": [[0, 1]], "poison": true}));
    let group = device.update();
    assert_eq!(ids(&group, &Scope::All)[0], "d00");
    assert_eq!(ids(&group, &Scope::All).len(), 16);
}

#[test]
fn what_is_too_large_is_left_out() {
    let device = Device::new(DbKind::Plain);
    let long = |n: usize| json!("k".repeat(n));
    // Long keys that differ only at their ends, and one that is too long.
    let rows: Vec<Value> = (0..10).map(|n| json!([[long(20_000), n], long(100)])).collect();
    device.put("long", json!({"rows": rows}));
    device.put("too_long", json!({"rows": [[long(100_000), 1], [1, 1]]}));
    device.put("wide", json!({"rows": [[1, long(3_000_000)]]}));
    let many: Vec<Value> = (0..100_001).map(|n| json!([n, 1])).collect();
    device.put("many", json!({"rows": many}));
    let group = device.update();
    assert_eq!(rows_count(&group, "long"), 10);
    assert_eq!(rows_count(&group, "too_long"), 1);
    assert_eq!(rows_count(&group, "wide"), 1);
    assert_eq!(rows_count(&group, "many"), 0);
    for id in ["long", "too_long", "wide"] {
        device.delete(id);
    }
    let group = device.update();
    assert_eq!(group.view(&Scope::All, PLAIN).unwrap().total_rows().unwrap(), 0);
    assert_eq!(group.info().unwrap().row_bytes, 0);
}

fn rows_count(group: &Group, id: &str) -> usize {
    ids(group, &Scope::All).iter().filter(|of| *of == id).count()
}

#[test]
fn design_documents_have_rows_only_where_they_are_wanted() {
    let device = Device::new(DbKind::Plain);
    device.put("_design/x", json!({"rows": [[1, 1]]}));
    device.put("a", json!({"rows": [[1, 1]]}));
    assert_eq!(ids(&device.update(), &Scope::All), ["a"]);
    let all = GroupSpec { signature: "1".repeat(32), include_design: true, local_seq: true, ..(*device.spec).clone() };
    let group = device.indexes.group(&device.db, Arc::new(all)).unwrap();
    update(&group).unwrap();
    assert_eq!(ids(&group, &Scope::All), ["_design/x", "a"]);
}

#[test]
fn rows_that_stay_the_same_are_not_written_again() {
    let mut device = Device::new(DbKind::Plain);
    let film = Filmed::default();
    device.indexes.close();
    device.indexes = Indexes::open(Box::new(film.clone())).unwrap();
    for n in 0..2_000 {
        device.put_rows(&format!("d{n:04}"), &[], &json!([[n, "x".repeat(50)]]));
    }
    device.update();
    let pages_before = pages(&film.inner);
    assert!(pages_before.len() > 60, "{}", pages_before.len());
    let change = |before: &[(Vec<u8>, Bytes)], after: &[(Vec<u8>, Bytes)]| {
        after.iter().filter(|page| !before.contains(page)).count()
    };
    device.put("d0100", json!({"rows": [[100, "x".repeat(50)]], "other": 1}));
    device.update();
    assert_eq!(change(&pages_before, &pages(&film.inner)), 0, "the rows are the same");
    device.put("d0100", json!({"rows": [[100, "y".repeat(50)]]}));
    device.update();
    assert_eq!(change(&pages_before, &pages(&film.inner)), 1, "one view has another row, the others count");
}

fn pages(engine: &MemoryEngine) -> Vec<(Vec<u8>, Bytes)> {
    let snapshot = engine.snapshot();
    let pages = snapshot.range(Space::Bodies, &[0], &[0xff; 40], Direction::Forward);
    pages.map(|item| item.unwrap()).map(|(key, page)| (key.to_vec(), page)).collect()
}

#[test]
fn a_damaged_index_is_made_anew() {
    let device = Device::new(DbKind::Plain);
    for n in 0..40 {
        device.put_rows(&format!("d{n}"), &[], &json!([[n, "x".repeat(300)]]));
    }
    let group = device.update();
    for space in [Space::Bodies, Space::Seqs, Space::Docs] {
        let mut batch = Batch::new();
        for (of, key) in keys_in(&device.index_engine) {
            if of == space {
                batch.put(space, key, vec![0xff; 7]);
            }
        }
        device.index_engine.commit(batch, false).unwrap();
        match space {
            // A reader meets it.
            Space::Bodies | Space::Seqs => {
                let view = group.view(&Scope::All, PLAIN).unwrap();
                assert!(matches!(view.rows(Range::default()).next_page(10), Err(IndexError::Damaged(_))));
                assert!(!group.is_current());
            }
            // Or an update.
            _ => drop(device.put_rows("d1", &[], &json!([[1, 2]]))),
        }
        update(&group).unwrap();
        assert_eq!(ids(&group, &Scope::All).len(), 40, "{space:?}");
    }
}

struct Broken(&'static str);

impl Reducer for Broken {
    fn reduce(&self, _: Option<&str>, values: &str) -> Result<String, ReduceError> {
        match self.0 {
            "throws" => Err(ReduceError::Threw("no".to_owned())),
            "fails" => Err(ReduceError::Failed { error: "bad".to_owned(), reason: "so".to_owned() }),
            _ => Ok(format!("[{values},{values}]")),
        }
    }
}

#[test]
fn reductions_that_fail_leave_the_rows() {
    let device = Device::new(DbKind::Plain);
    for n in 0..60 {
        device.put_rows(&format!("d{n}"), &[], &json!([[n, 1000]]));
    }
    for (kind, is_null) in [("throws", true), ("fails", false), ("grows", false)] {
        let views =
            (0..device::VIEWS).map(|_| ViewSpec { names: Vec::new(), reduce: Reduce::Custom(Arc::new(Broken(kind))) });
        let signature = format!("{kind:x>32}");
        let spec = GroupSpec { signature, views: views.collect(), ..(*device.spec).clone() };
        let group = device.indexes.group(&device.db, Arc::new(spec)).unwrap();
        update(&group).unwrap();
        let view = group.view(&Scope::All, SUM).unwrap();
        assert_eq!(view.rows(Range::default()).next_page(100).unwrap().len(), 60);
        let whole = view.reduce(Range::default(), Grouping::None).next_page(1);
        match kind {
            "throws" => assert_eq!((whole.unwrap()[0].value == "null"), is_null),
            "fails" => assert!(matches!(whole, Err(IndexError::Reduce { error, .. }) if error == "bad")),
            // Small reductions may grow.
            _ => assert!(whole.is_ok()),
        }
    }
}

/// Emits a thousand numbers of each document.
struct Wide;

impl Mapper for Wide {
    fn map(&self, docs: Vec<IndexDoc>) -> Result<Vec<Vec<Emitted>>, MapError> {
        let numbers = Value::from((0..1_000).collect::<Vec<i64>>());
        let emit = |doc: &IndexDoc| Emit { key: Value::from(doc.id.as_str()).to_string(), value: numbers.to_string() };
        Ok(docs.iter().map(|doc| vec![Ok(vec![emit(doc)])]).collect())
    }
}

#[test]
fn reductions_that_are_large_are_made_when_they_are_asked_for() {
    let device = Device::new(DbKind::Plain);
    for n in 0..300 {
        device.put(&format!("d{n}"), json!({}));
    }
    let views = vec![ViewSpec { names: Vec::new(), reduce: Reduce::Stats }];
    let spec = GroupSpec { signature: "4".repeat(32), views, mapper: Arc::new(Wide), ..(*device.spec).clone() };
    let group = device.indexes.group(&device.db, Arc::new(spec)).unwrap();
    update(&group).unwrap();
    let whole = group.view(&Scope::All, 0).unwrap().reduce(Range::default(), Grouping::None).next_page(1).unwrap();
    let whole: Value = serde_json::from_slice(&whole[0].value).unwrap();
    assert_eq!(whole.as_array().unwrap().len(), 1_000);
    assert_eq!(whole[999], json!({"sum": 299_700, "count": 300, "min": 999, "max": 999, "sumsqr": 299_400_300}));
    let snapshot = device.index_engine.snapshot();
    let heads = snapshot.range(Space::Seqs, &[0], &[0xff; 40], Direction::Forward);
    assert!(heads.map(|head| head.unwrap().1.len()).max().unwrap() < 100, "a head is small");
}

#[test]
fn so_many_views_are_open_at_once_and_no_more() {
    let device = Device::new(DbKind::Plain);
    let group = device.update();
    let open: Vec<_> = (0..1_024).map(|_| group.view(&Scope::All, PLAIN).unwrap()).collect();
    assert!(matches!(group.view(&Scope::All, PLAIN), Err(IndexError::Busy(_))));
    drop(open);
    group.view(&Scope::All, PLAIN).unwrap();
}

#[test]
fn an_engine_that_fails_is_told_and_takes_nothing() {
    let device = Device::new(DbKind::Plain);
    device.put_rows("a", &[], &json!([[1, 1]]));
    device.update();
    device.put_rows("b", &[], &json!([[1, 1]]));
    device.index_engine.fail_after(0);
    let group = device.group();
    assert!(matches!(update(&group), Err(IndexError::Engine(_))));
    assert_eq!(ids(&group, &Scope::All), ["a"]);
    assert!(!group.is_current());
}
