//! Many partial databases, and many at the same time.

mod device;

use device::{COUNT, DISTINCT, Device, FIRST, PLAIN, RowMapper, SUM, edit, spec, submit};
use rean_index::{Bound, Group, Grouping, Indexes, Range, ReducedRow, Row};
use rean_store::collate::sort_key;
use rean_store::engine::{Batch, EngineKind, Space};
use rean_store::{Db, DbKind, Edit, Mode, NoObserver, Scope, Store, StoreKeys, StoreOptions};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn rows(group: &Group, scope: &Scope, range: &Range, page: usize) -> Vec<Row> {
    let mut rows = group.view(scope, PLAIN).unwrap().rows(range.clone());
    let mut out = Vec::new();
    loop {
        let page = rows.next_page(page).unwrap();
        if page.is_empty() {
            return out;
        }
        out.extend(page);
    }
}

fn groups(
    group: &Group,
    scope: &Scope,
    view: usize,
    range: &Range,
    grouping: Grouping,
    page: usize,
) -> Vec<ReducedRow> {
    let mut groups = group.view(scope, view).unwrap().reduce(range.clone(), grouping);
    let mut out = Vec::new();
    loop {
        let page = groups.next_page(page).unwrap();
        if page.is_empty() {
            return out;
        }
        out.extend(page);
    }
}

#[test]
fn a_reader_of_hundreds_of_partial_databases_gets_one_list() {
    const DOCS: usize = 2_400;
    // More than are merged at a time, twice.
    const PARTS: usize = 600;
    let device = Device::new(DbKind::App);
    let doc = |n: usize| {
        let padding = if n.is_multiple_of(50) { "x".repeat(5_000) } else { String::new() };
        let body = json!({
            "access": {"read": ["user:ann", format!("user:u{}", n % PARTS)]},
            // Two rows of most documents have one key.
            "rows": [[[n % 7, (n * 31) % 100], n], [padding, 1], [[n % 7, (n * 31) % 100], n + 1]],
        });
        edit(&format!("d{n:05}"), None, body)
    };
    let edits: Vec<Edit> = (0..DOCS).map(doc).collect();
    assert!(submit(&device.db, edits, Mode::Interactive).iter().all(Result::is_ok));
    let hidden = edit("hidden", None, json!({"access": {"read": ["user:bob"]}, "rows": [[[1, 1], 1]]}));
    submit(&device.db, vec![hidden], Mode::Interactive).remove(0).unwrap();
    let group = device.update();
    let ann = device.personal("ann", &[]);
    let one = device.personal("u5", &[]);
    let all_but_hidden = |rows: Vec<Row>| rows.into_iter().filter(|row| row.id != "hidden").collect::<Vec<_>>();
    let bound = |key: Value, id: &str| Some(Bound { key: sort_key(&key), doc_id: Some(id.to_owned()) });
    let ranges = [
        Range::default(),
        Range { descending: true, ..Range::default() },
        Range { start: bound(json!([2, 50]), "d00100"), end: bound(json!([4]), ""), ..Range::default() },
        Range {
            start: bound(json!([4, 50]), "d00100"),
            end: bound(json!([2]), ""),
            descending: true,
            ..Range::default()
        },
    ];
    for range in &ranges {
        let wanted = all_but_hidden(rows(&group, &Scope::All, range, 1_000));
        for page in [1_000, 97] {
            assert!(rows(&group, &ann, range, page) == wanted, "{range:?}");
        }
        let view = group.view(&ann, PLAIN).unwrap();
        assert_eq!(view.count(range).unwrap(), wanted.len() as u64);
        let mut skipping = view.rows(range.clone());
        assert_eq!(skipping.skip(444).unwrap(), 444);
        assert_eq!(skipping.next_page(1).unwrap()[0], wanted[444]);
        let mine: Vec<Row> =
            wanted.into_iter().filter(|row| row.id[1..].parse::<usize>().unwrap() % PARTS == 5).collect();
        assert_eq!(rows(&group, &one, range, 7), mine);
    }
    device.delete("hidden");
    let group = device.update();
    for range in &ranges {
        for grouping in [Grouping::None, Grouping::Exact, Grouping::Level(1)] {
            for view in [SUM, COUNT, DISTINCT, FIRST] {
                let wanted = groups(&group, &Scope::All, view, range, grouping, 1_000);
                for page in [1_000, 13] {
                    let found = groups(&group, &ann, view, range, grouping, page);
                    assert_eq!(found, wanted, "{view} {grouping:?} {range:?}");
                }
            }
        }
    }
}

fn write(db: &Db, round: usize, n: usize) {
    let id = format!("d{n}");
    let parent = db.doc(&Scope::All, &id).unwrap().map(|doc| doc.winner().rev.clone());
    let body = json!({"rows": [[n, round], [round % 10, "x".repeat(100)]]});
    submit(db, vec![edit(&id, parent, body)], Mode::Interactive).remove(0).unwrap();
}

#[test]
fn each_view_agrees_with_itself_while_the_index_changes() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(StoreOptions {
        path: folder.path().join("store"),
        engine: EngineKind::Fjall,
        keys: StoreKeys { chain: [1; 32], bookmark: [2; 32] },
        observer: Arc::new(NoObserver),
    })
    .unwrap();
    let db = store.create_db("notes", DbKind::Plain).unwrap();
    let indexes = Indexes::open_in(EngineKind::Fjall, &folder.path().join("indexes")).unwrap();
    let mapper = Arc::new(RowMapper { mapped: Arc::new(AtomicU64::new(0)) });
    let group = indexes.group(&db, spec(&"3".repeat(32), mapper)).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..15 {
                (0..40).for_each(|n| write(&db, round, n));
            }
            ended.store(true, Ordering::Release);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while !ended.load(Ordering::Acquire) {
                    let newest = db.newest().seq;
                    let seq = group.update(&mut |_, _| {}).unwrap();
                    assert!(seq >= newest && seq >= last, "an update gives what was there before it");
                    last = seq;
                    let view = group.view(&Scope::All, COUNT).unwrap();
                    let mut listed = view.rows(Range::default());
                    let mut count = 0;
                    loop {
                        let page = listed.next_page(50).unwrap();
                        if page.is_empty() {
                            break;
                        }
                        count += page.len() as u64;
                    }
                    let reduced = view.reduce(Range::default(), Grouping::None).next_page(1).unwrap();
                    let reduced =
                        reduced.first().map_or("0".to_owned(), |row| String::from_utf8(row.value.to_vec()).unwrap());
                    let total = view.total_rows().unwrap();
                    assert_eq!((count, reduced), (total, total.to_string()));
                }
            });
        }
    });
    group.update(&mut |_, _| {}).unwrap();
    assert_eq!(group.view(&Scope::All, PLAIN).unwrap().total_rows().unwrap(), 80);
    indexes.close();
    // What was closed is there again.
    let indexes = Indexes::open_in(EngineKind::Fjall, &folder.path().join("indexes")).unwrap();
    indexes.settle(&store).unwrap();
    let mapped = Arc::new(AtomicU64::new(0));
    let mapper = Arc::new(RowMapper { mapped: Arc::clone(&mapped) });
    let group = indexes.group(&db, spec(&"3".repeat(32), mapper)).unwrap();
    assert!(group.is_current());
    assert_eq!(rows(&group, &Scope::All, &Range::default(), 100).len(), 80);
    assert_eq!(mapped.load(Ordering::Relaxed), 0);
    indexes.close();
    store.close();
}

#[test]
fn a_damaged_folder_is_moved_aside_and_another_begun() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("indexes");
    for _ in 0..2 {
        let indexes = Indexes::open_in(EngineKind::Fjall, &path).unwrap();
        indexes.close();
        drop(indexes);
        std::fs::write(path.join("version"), b"damaged").unwrap();
    }
    let indexes = Indexes::open_in(EngineKind::Fjall, &path).unwrap();
    assert_eq!(std::fs::read(folder.path().join("indexes.damaged/version")).unwrap(), b"damaged");
    // A folder that is in use is not damaged.
    assert!(Indexes::open_in(EngineKind::Fjall, &path).is_err());
    indexes.close();
}

#[test]
fn indexes_of_another_layout_or_order_are_made_anew() {
    let mut device = Device::new(DbKind::Plain);
    device.put_rows("a", &[], &json!([[1, 1]]));
    device.update();
    let mut batch = Batch::new();
    batch.put(Space::Meta, "format", vec![9, 9, 9]);
    rean_store::engine::Engine::commit(&device.index_engine, batch, false).unwrap();
    let image = device.index_engine.kill_image();
    device.reopen_indexes(image);
    assert!(device.indexes.groups(&device.db).unwrap().is_empty());
    device.put_rows("b", &[], &json!([[1, 1]]));
    let group = device.update();
    assert_eq!(rows(&group, &Scope::All, &Range::default(), 10).len(), 2);
    assert_eq!(device.mapped.load(Ordering::Relaxed), 3, "all documents were mapped again");
    // And not another time.
    let image = device.index_engine.kill_image();
    device.reopen_indexes(image);
    assert!(device.group().is_current());
}
