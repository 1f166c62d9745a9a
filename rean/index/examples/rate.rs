//! How fast an index is made, kept, and asked, without functions in JavaScript.
//!
//! `cargo run --release -p rean-index --example rate [documents]`

use rean_index::{
    Bound, Emit, Emitted, GroupSpec, Grouping, IndexDoc, Indexes, MapError, Mapper, Range, Reduce, ViewSpec,
};
use rean_store::collate::sort_key;
use rean_store::engine::EngineKind;
use rean_store::{Author, Db, DbKind, Edit, Mode, NoObserver, Scope, Store, StoreKeys, StoreOptions, Who, Write};
use serde_json::{Value, json};
use std::sync::{Arc, mpsc};
use std::time::Instant;

/// Documents in one write.
const AT_ONCE: usize = 1_000;
/// Different readers: so many partial databases.
const READERS: usize = 100;

struct ByNumber;

impl Mapper for ByNumber {
    fn map(&self, docs: Vec<IndexDoc>) -> Result<Vec<Vec<Emitted>>, MapError> {
        let rows = |doc: &IndexDoc| {
            let body: Value =
                serde_json::from_str(&doc.json).map_err(|error| MapError::Documents(error.to_string()))?;
            let key = json!([body["day"], body["title"]]).to_string();
            Ok(vec![Ok(vec![Emit { key, value: body["n"].to_string() }])])
        };
        docs.iter().map(rows).collect()
    }
}

fn main() {
    let documents = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100_000usize);
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(StoreOptions {
        path: folder.path().join("store"),
        engine: EngineKind::Fjall,
        keys: StoreKeys { chain: [1; 32], bookmark: [2; 32] },
        observer: Arc::new(NoObserver),
    })
    .expect("a store");
    let indexes = Indexes::open_in(EngineKind::Fjall, &folder.path().join("indexes")).expect("indexes");
    for kind in [DbKind::Plain, DbKind::App] {
        let db = store.create_db(if kind == DbKind::App { "app" } else { "plain" }, kind).expect("a database");
        println!("{documents} documents in a database of kind {kind:?}");
        timed("  written", documents, || write(&db, 0..documents));
        measure(&db, &indexes, documents);
    }
    indexes.close();
    store.close();
}

fn measure(db: &Db, indexes: &Indexes, documents: usize) {
    let spec = GroupSpec {
        signature: "0".repeat(32),
        views: vec![ViewSpec { names: vec!["by_day".to_owned()], reduce: Reduce::Sum }],
        include_design: false,
        local_seq: false,
        partitioned: false,
        mapper: Arc::new(ByNumber),
    };
    let group = indexes.group(db, Arc::new(spec)).expect("an index");
    let update = || assert!(group.update(&mut |_, _| {}).expect("an update") > 0);
    timed("  indexed", documents, update);
    let update_after = |what: &str, count: usize| {
        write(db, 0..count);
        timed(what, count, update);
    };
    update_after("  1 change brought in", 1);
    update_after("  1,000 changes brought in", 1_000);
    timed("  nothing to do", 1, update);
    let info = group.info().expect("an index");
    println!("  {} KiB of rows, {} KiB on disk", info.row_bytes >> 10, info.disk_bytes >> 10);
    let reader = |roles| Scope::Personal(db.reader(Who { name: Some("u7".to_owned()), roles }));
    let scopes = match db.kind() {
        DbKind::Plain => vec![("all", Scope::All)],
        DbKind::App => vec![
            ("all", Scope::All),
            ("personal, of one partial database", reader(Vec::new())),
            ("personal, of a hundred", reader(vec!["staff".to_owned()])),
        ],
    };
    for (name, scope) in scopes {
        let view = group.view(&scope, 0).expect("a view");
        println!("  {name}: {} rows", view.total_rows().expect("counts"));
        let bound = |key: Value| Some(Bound { key: sort_key(&key), doc_id: None });
        let day = Range { start: bound(json!([17])), end: bound(json!([17, {}])), ..Range::default() };
        each("20 rows from the middle", || drop(view.rows(day.clone()).next_page(20)));
        each("offset of the middle", || drop(view.offset(&day)));
        each("sum of a day", || drop(view.reduce(day.clone(), Grouping::None).next_page(1)));
        each("sum of all", || drop(view.reduce(Range::default(), Grouping::None).next_page(1)));
        each("sums by day", || drop(view.reduce(Range::default(), Grouping::Level(1)).next_page(1_000)));
        let mut rows = view.rows(Range::default());
        let mut count = 0;
        let start = Instant::now();
        while let Ok(page) = rows.next_page(500)
            && !page.is_empty()
        {
            count += page.len();
        }
        println!("    all rows: {:.2} us a row", start.elapsed().as_secs_f64() * 1e6 / count as f64);
    }
}

fn timed(what: &str, count: usize, work: impl FnOnce()) {
    let start = Instant::now();
    work();
    let spent = start.elapsed();
    println!("{what}: {:.1} ms, {:.1} us each", spent.as_secs_f64() * 1e3, spent.as_secs_f64() * 1e6 / count as f64);
}

fn each(what: &str, mut work: impl FnMut()) {
    const TIMES: u32 = 50;
    let start = Instant::now();
    (0..TIMES).for_each(|_| work());
    println!("    {what}: {:.0} us", start.elapsed().as_secs_f64() * 1e6 / f64::from(TIMES));
}

/// Writes documents, over those that are there.
fn write(db: &Db, numbers: std::ops::Range<usize>) {
    let numbers: Vec<usize> = numbers.collect();
    for some in numbers.chunks(AT_ONCE) {
        let edits = some.iter().map(|n| edit(db, *n)).collect();
        let (sender, receiver) = mpsc::channel();
        let write = Write { edits, author: Author::admin(Who::default()), mode: Mode::Interactive };
        db.submit(write, Box::new(move |done| drop(sender.send(done))));
        let written = receiver.recv().expect("an answer").expect("a commit");
        assert!(written.iter().all(Result::is_ok));
    }
}

fn edit(db: &Db, n: usize) -> Edit {
    let id = format!("{:08x}", (n as u32).wrapping_mul(2_654_435_761));
    let old = db.doc(&Scope::All, &id).expect("a read");
    let access = json!({"read": [format!("user:u{}", n % READERS), "role:staff"]});
    let generation = old.as_ref().map_or(0, |old| old.winner().rev.generation);
    let body = json!({
        "access": access, "day": n % 365, "n": n as u64 + generation, "title": format!("Title number {n}"),
        "text": "x".repeat(300),
    });
    Edit {
        id,
        parent: old.map(|old| old.winner().rev.clone()),
        history: Vec::new(),
        deleted: false,
        access: Some(access.to_string()),
        body: body.to_string().into(),
        attachments: Vec::new(),
    }
}
