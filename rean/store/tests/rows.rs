//! What other pods are given of a store: its history, the merged feed of all its databases; and the notes that the
//! server keeps in it.

use proptest::prelude::*;
use rean_store::engine::memory::MemoryEngine;
use rean_store::engine::{Batch, Engine, EngineError, EngineStats, Snapshot, Space, Value};
use rean_store::{
    Author, Db, DbKind, Edit, MAX_NOTE_BYTES, MAX_NOTE_NAME_BYTES, Mode, NoObserver, Rev, Scope, Since, Store,
    StoreError, StoreKeys, Who, Write, Written,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn open_on(engine: Box<dyn Engine>, folder: &TempDir) -> Store {
    let keys = StoreKeys { chain: [1; 32], bookmark: [2; 32] };
    Store::open_on(engine, folder.path(), keys, Arc::new(NoObserver)).unwrap()
}

fn open(engine: &MemoryEngine, folder: &TempDir) -> Store {
    open_on(Box::new(engine.clone()), folder)
}

fn write(db: &Db, edit: Edit) -> Written {
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move |result: Result<Vec<_>, _>| sender.send(result).unwrap());
    db.submit(Write { edits: vec![edit], author: Author::admin(Who::default()), mode: Mode::Interactive }, done);
    receiver.recv().unwrap().unwrap().remove(0).unwrap()
}

fn edit(db: &Db, id: &str, deleted: bool) -> Edit {
    let winner = db.doc(&Scope::All, id).unwrap().map(|view| view.winner().clone());
    Edit {
        id: id.to_owned(),
        parent: winner.filter(|winner| !winner.deleted).map(|winner| winner.rev),
        history: Vec::new(),
        deleted,
        body: "{}".into(),
        access: None,
        attachments: Vec::new(),
    }
}

fn put(db: &Db, id: &str) -> Rev {
    write(db, edit(db, id, false)).rev
}

const NONE: &dyn Fn(&str) -> bool = &|_| false;

/// All rows after a place, page by page, as database, document, winner and deletion; and where it ended.
fn all_rows(store: &Store, mut since: u64, limit: usize) -> (Vec<(String, String, Rev, bool)>, u64) {
    let mut out = Vec::new();
    loop {
        let page = store.rows(since, limit, NONE).unwrap();
        assert!(page.rows.len() <= limit);
        for row in page.rows {
            assert!(since < row.seq && row.seq <= page.until, "a row out of order");
            since = row.seq;
            out.push((row.db.name().to_owned(), row.id, row.leaves[0].clone(), row.deleted));
        }
        since = page.until;
        if page.is_last {
            return (out, since);
        }
    }
}

#[test]
fn a_history_is_the_stores_and_ends_where_commits_are_lost() {
    let (mut engine, folder) = (MemoryEngine::new(), TempDir::new().unwrap());
    let store = open(&engine, &folder);
    let history = store.history().to_owned();
    assert!(history.len() == 8 && history.bytes().all(|b| b.is_ascii_hexdigit()), "{history}");
    let db = store.create_db("notes", DbKind::Plain).unwrap();
    let earlier = engine.kill_image();
    put(&db, "a");
    store.close();
    engine = engine.crash_image();
    let store = open(&engine, &folder);
    assert_eq!(store.history(), history, "nothing was lost");
    assert_eq!(store.seq(), 1);
    store.close();
    // Without the last acknowledged commit, as after damage in the journal: sequence 1 is given once more.
    let store = open(&earlier, &folder);
    let new = store.history().to_owned();
    assert_ne!(new, history);
    put(&store.db("notes").unwrap(), "b");
    store.close();
    let store = open(&earlier.crash_image(), &folder);
    assert_eq!(store.history(), new);
    store.close();
}

#[test]
fn a_store_of_before_gets_a_history() {
    let (engine, folder) = (MemoryEngine::new(), TempDir::new().unwrap());
    open(&engine, &folder).close();
    let engine = engine.crash_image();
    let mut batch = Batch::new();
    batch.delete(Space::Meta, b"history".to_vec());
    engine.commit(batch, true).unwrap();
    let store = open(&engine, &folder);
    let history = store.history().to_owned();
    store.close();
    assert_eq!(open(&engine.crash_image(), &folder).history(), history);
}

#[test]
fn rows_leave_out_what_is_skipped_and_what_is_deleted() {
    let (engine, folder) = (MemoryEngine::new(), TempDir::new().unwrap());
    let store = open(&engine, &folder);
    let page = store.rows(0, 10, NONE).unwrap();
    assert!(page.rows.is_empty() && page.until == 0 && page.is_last, "of an empty store");
    let dbs = ["_pods", "gone", "notes"].map(|name| store.create_db(name, DbKind::Plain).unwrap());
    for db in &dbs {
        put(db, "x");
    }
    store.delete_db("gone").unwrap();
    let page = store.rows(0, 10, &|name| name == "_pods").unwrap();
    let names: Vec<&str> = page.rows.iter().map(|row| row.db.name()).collect();
    assert_eq!(names, ["notes"]);
    assert_eq!((page.until, page.is_last), (3, true));
    let page = store.rows(3, 10, NONE).unwrap();
    assert!(page.rows.is_empty() && page.until == 3 && page.is_last);
    // A place of another history.
    let page = store.rows(99, 10, NONE).unwrap();
    assert!(page.rows.is_empty() && page.until == 3);
    store.close();
    assert!(store.rows(0, 10, NONE).is_err());
}

#[test]
fn a_page_that_is_full_and_the_last_says_so() {
    let (engine, folder) = (MemoryEngine::new(), TempDir::new().unwrap());
    let store = open(&engine, &folder);
    let db = store.create_db("notes", DbKind::Plain).unwrap();
    let skipped = store.create_db("_pods", DbKind::Plain).unwrap();
    put(&db, "a");
    put(&db, "b");
    put(&skipped, "c");
    let page = store.rows(0, 1, &|name| name == "_pods").unwrap();
    assert_eq!((page.rows.len(), page.until, page.is_last), (1, 1, false));
    let page = store.rows(1, 1, &|name| name == "_pods").unwrap();
    assert_eq!((page.rows.len(), page.until, page.is_last), (1, 3, true));
    store.close();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn pages_give_each_document_as_it_is(
        steps in proptest::collection::vec((0..5usize, 0..6usize, any::<bool>()), 1..60),
        limit in 1..7usize,
        pause in 0..60usize,
    ) {
        let (engine, folder) = (MemoryEngine::new(), TempDir::new().unwrap());
        let store = open(&engine, &folder);
        let dbs: Vec<Db> = (0..5).map(|n| store.create_db(&format!("db{n}"), DbKind::Plain).unwrap()).collect();
        let (mut place, mut seen) = (0, BTreeMap::new());
        let mut now = BTreeMap::new();
        for (at, (db, doc, deletes)) in steps.iter().enumerate() {
            let id = format!("d{doc}");
            let deleted = *deletes && edit(&dbs[*db], &id, false).parent.is_some();
            let rev = write(&dbs[*db], edit(&dbs[*db], &id, deleted)).rev;
            now.insert((dbs[*db].name().to_owned(), id), (rev, deleted));
            prop_assert_eq!(store.seq(), at as u64 + 1);
            if at == pause {
                let (rows, until) = all_rows(&store, 0, limit);
                prop_assert_eq!(until, store.seq());
                seen.extend(rows.into_iter().map(|(db, id, rev, deleted)| ((db, id), (rev, deleted))));
                prop_assert_eq!(&seen, &now);
                place = until;
            }
        }
        let (rows, until) = all_rows(&store, place, limit);
        prop_assert_eq!(until, store.seq());
        seen.extend(rows.into_iter().map(|(db, id, rev, deleted)| ((db, id), (rev, deleted))));
        prop_assert_eq!(&seen, &now);
        store.close();
    }
}

/// An engine that shows a batch and then waits before the flush ends, as engines may.
struct Slow {
    inner: MemoryEngine,
    /// Met when a large batch is visible, and again before it counts as durable.
    meet: Arc<Barrier>,
    /// Whether that flush fails.
    fails: bool,
}

impl Engine for Slow {
    fn commit(&self, batch: Batch, durable: bool) -> Result<(), EngineError> {
        let is_slow = batch.bytes() > 10_000;
        self.inner.commit(batch, durable)?;
        if is_slow {
            self.meet.wait();
            self.meet.wait();
            if self.fails {
                return Err(EngineError::Closed);
            }
        }
        Ok(())
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Value>, EngineError> {
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

/// What rows say that were asked for while a flush was under way, once it has ended well or not.
fn rows_during_a_flush(fails: bool) -> Result<(usize, u64), StoreError> {
    let folder = TempDir::new().unwrap();
    let meet = Arc::new(Barrier::new(2));
    let store = open_on(Box::new(Slow { inner: MemoryEngine::new(), meet: Arc::clone(&meet), fails }), &folder);
    let db = store.create_db("notes", DbKind::Plain).unwrap();
    put(&db, "a");
    let large = Edit { body: format!("{{\"x\":\"{}\"}}", "x".repeat(20_000)).into(), ..edit(&db, "b", false) };
    let write = Write { edits: vec![large], author: Author::admin(Who::default()), mode: Mode::Interactive };
    db.submit(write, Box::new(|_| {}));
    meet.wait();
    assert_eq!(store.seq(), 1);
    let (sender, receiver) = mpsc::channel();
    let reader = {
        let store = store.clone();
        std::thread::spawn(move || sender.send(store.rows(0, 10, NONE)).unwrap())
    };
    // Not a wait for something to happen: nothing may. A reader that doesn't wait is there at once.
    assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err(), "rows came before their flush ended");
    meet.wait();
    reader.join().unwrap();
    let page = receiver.recv().unwrap();
    store.close();
    page.map(|page| (page.rows.len(), page.until))
}

#[test]
fn rows_of_a_commit_that_is_being_flushed_are_given_when_it_is_durable() {
    assert_eq!(rows_during_a_flush(false).unwrap(), (2, 2));
}

#[test]
fn rows_of_a_commit_whose_flush_fails_are_never_given() {
    assert!(rows_during_a_flush(true).is_err());
}

#[test]
fn notes_are_kept_and_bounded() {
    let (engine, folder) = (MemoryEngine::new(), TempDir::new().unwrap());
    let store = open(&engine, &folder);
    assert_eq!(store.note("link/a").unwrap(), None);
    store.set_note("link/a", Some(b"7".to_vec())).unwrap();
    store.set_note("link/b", Some(vec![0; MAX_NOTE_BYTES])).unwrap();
    assert_eq!(store.note("link/a").unwrap(), Some(b"7".to_vec()));
    let too_long = "n".repeat(MAX_NOTE_NAME_BYTES + 1);
    for (name, note) in [("a", vec![0; MAX_NOTE_BYTES + 1]), ("", Vec::new()), (too_long.as_str(), Vec::new())] {
        assert!(matches!(store.set_note(name, Some(note.clone())), Err(StoreError::NoteSize)));
        assert!(matches!(store.set_note_lazily(name, Some(note)), Err(StoreError::NoteSize)));
    }
    store.close();
    let store = open(&engine.crash_image(), &folder);
    assert_eq!(store.note("link/a").unwrap(), Some(b"7".to_vec()));
    assert_eq!(store.note("link/b").unwrap().map(|note| note.len()), Some(MAX_NOTE_BYTES));
    store.set_note("link/a", None).unwrap();
    assert_eq!(store.note("link/a").unwrap(), None);
    store.close();
}

#[test]
fn a_lazy_note_is_read_at_once_and_goes_with_the_next_commit() {
    let (engine, folder) = (MemoryEngine::new(), TempDir::new().unwrap());
    let store = open(&engine, &folder);
    let db = store.create_db("notes", DbKind::Plain).unwrap();
    let kept = || engine.crash_image().get(Space::Meta, b"note/n").unwrap().map(|note| note.to_vec());
    for value in [b"1".to_vec(), b"2".to_vec()] {
        store.set_note_lazily("n", Some(value.clone())).unwrap();
        assert_eq!(store.note("n").unwrap(), Some(value.clone()));
        put(&db, "x");
        assert_eq!(kept(), Some(value));
    }
    store.set_note_lazily("n", Some(b"3".to_vec())).unwrap();
    store.set_note("n", Some(b"4".to_vec())).unwrap();
    put(&db, "x");
    assert_eq!((kept(), store.note("n").unwrap()), (Some(b"4".to_vec()), Some(b"4".to_vec())), "the older one won");
    // Without another commit it has its own.
    store.set_note_lazily("n", None).unwrap();
    assert_eq!(store.note("n").unwrap(), None);
    let deadline = Instant::now() + Duration::from_secs(20);
    while kept().is_some() {
        assert!(Instant::now() < deadline, "a note waits for ever");
        std::thread::yield_now();
    }
    store.set_note_lazily("n", Some(b"5".to_vec())).unwrap();
    store.close();
    assert_eq!(kept(), Some(b"5".to_vec()), "closing lost it");
}

#[test]
fn a_database_shows_sequences_from_its_making_on() {
    let (engine, folder) = (MemoryEngine::default(), TempDir::new().unwrap());
    let store = open(&engine, &folder);
    let before = store.create_db("before", DbKind::Plain).unwrap();
    for id in ["a", "b", "c"] {
        put(&before, id);
    }
    let db = store.create_db("db", DbKind::Plain).unwrap();
    assert!(db.seq_token(&Scope::All, db.scoped_info(&Scope::All).update_seq).starts_with("0-"));
    put(&db, "one");
    put(&before, "d");
    put(&db, "two");
    let own = store.create_db("_own", DbKind::Plain).unwrap();
    put(&own, "x");
    let check = |store: &Store| {
        let shown = |name: &str, since: Since| -> Vec<(String, u64)> {
            let db = store.db(name).unwrap();
            let rows = db.feed(&Scope::All, since).unwrap().next_page(10).unwrap();
            let number = |token: &str| token.split('-').next().unwrap().parse().unwrap();
            rows.into_iter().map(|row| (row.id.to_string(), number(&row.seq_token))).collect()
        };
        // What others write in between still counts: the numbers are the store's, less those of before.
        assert_eq!(shown("db", Since::Start), [("one".to_owned(), 1), ("two".to_owned(), 3)]);
        for since in ["1", "2"] {
            assert_eq!(shown("db", Since::Token(since.to_owned())), [("two".to_owned(), 3)], "{since}");
        }
        let db = store.db("db").unwrap();
        assert_eq!(db.doc(&Scope::All, "one").unwrap().unwrap().seq, 1);
        let token = db.seq_token(&Scope::All, db.scoped_info(&Scope::All).update_seq);
        assert!(token.starts_with("3-"), "{token}");
        assert!(db.feed(&Scope::All, Since::Token(token)).unwrap().next_page(10).unwrap().is_empty());
        // The pod's own databases show the store's numbers.
        assert_eq!(shown("_own", Since::Start), [("x".to_owned(), store.seq())]);
    };
    check(&store);
    drop(store);
    check(&open(&engine, &folder));
}
