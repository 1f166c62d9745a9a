//! Instructions: the record of a document's move is written in the commit that makes the move.

use rean_store::engine::memory::MemoryEngine;
use rean_store::engine::{Batch, Engine, EngineError, EngineStats, Snapshot, Space, Value};
use rean_store::{
    AppRules, Author, Db, DbKind, Edit, IdRange, Instructor, Mode, Move, NoObserver, Rev, Scope, Store, StoreKeys, Who,
    Write, WriteError, Written,
};
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use tempfile::TempDir;

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

/// Numbers its instructions, as the ring's does.
#[derive(Default)]
struct Counting {
    last: AtomicU64,
    longest: AtomicU64,
}

impl Instructor for Counting {
    fn instruct(&self, moves: &[Move]) -> Vec<(String, Vec<u8>)> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.longest.fetch_max(moves.len() as u64, Ordering::Relaxed);
        let moves: Vec<Json> = moves.iter().map(as_json).collect();
        vec![(format!("instruction:{number:010}"), json!({"moves": moves}).to_string().into_bytes())]
    }
}

fn as_json(one: &Move) -> Json {
    json!({"db": one.db, "id": one.id, "from": one.from, "to": one.to, "rev": one.rev.to_string()})
}

fn open(engine: Box<dyn Engine>, folder: &TempDir) -> Store {
    let keys = StoreKeys { chain: [1; 32], bookmark: [2; 32] };
    Store::open_on(engine, folder.path(), keys, Arc::new(NoObserver)).unwrap()
}

fn submit(db: &Db, edits: Vec<Edit>, mode: Mode) -> Vec<Result<Written, WriteError>> {
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move |result: Result<Vec<_>, _>| sender.send(result).unwrap());
    db.submit(Write { edits, author: Author::admin(Who::default()), mode }, done);
    receiver.recv().unwrap().unwrap()
}

fn edit(id: &str, parent: Option<&Rev>, body: Json) -> Edit {
    Edit {
        id: id.to_owned(),
        parent: parent.cloned(),
        history: Vec::new(),
        deleted: false,
        access: body.get("access").map(ToString::to_string),
        body: body.to_string().into(),
        attachments: Vec::new(),
    }
}

fn put(db: &Db, id: &str, read: &[&str]) -> Rev {
    let winner = db.doc(&Scope::All, id).unwrap().map(|view| view.winner().clone());
    let parent = winner.filter(|winner| !winner.deleted).map(|winner| winner.rev);
    let edit = edit(id, parent.as_ref(), json!({"access": {"read": read}}));
    submit(db, vec![edit], Mode::Interactive).remove(0).unwrap().rev
}

fn signature(db: &Db, read: &[&str]) -> String {
    db.parts().into_iter().find(|part| part.readers == read).unwrap().signature
}

/// The moves of all instructions, in order.
fn instructed(store: &Store) -> Vec<Json> {
    let ring = store.db("_ring").unwrap();
    let rows = ring.all_docs(&Scope::All, &IdRange::default(), 10_000).unwrap();
    let mut out = Vec::new();
    for row in rows.iter().filter(|row| row.id.starts_with("instruction:")) {
        let body = ring.body(row.body.unwrap()).unwrap().unwrap();
        let body: Json = serde_json::from_slice(&body.json).unwrap();
        out.extend(body["moves"].as_array().unwrap().iter().cloned());
    }
    out
}

struct Pod {
    engine: Filmed,
    folder: TempDir,
    store: Store,
    db: Db,
    instructor: Arc<Counting>,
}

impl Pod {
    fn new() -> Pod {
        let (engine, folder) = (Filmed::default(), TempDir::new().unwrap());
        let store = open(Box::new(engine.clone()), &folder);
        store.create_db("_ring", DbKind::Plain).unwrap();
        let db = store.create_db("notes", DbKind::App).unwrap();
        let instructor = Arc::new(Counting::default());
        store.set_instructor(Some(Arc::clone(&instructor) as Arc<dyn Instructor>));
        Pod { engine, folder, store, db, instructor }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.store.close();
    }
}

#[test]
fn each_move_is_instructed_whoever_makes_it() {
    let pod = Pod::new();
    let (ann, bob) = (["user:ann"], ["user:bob"]);
    put(&pod.db, "a", &ann);
    put(&pod.db, "a", &ann);
    assert_eq!(instructed(&pod.store), Vec::<Json>::new(), "it has not moved");
    let moved = put(&pod.db, "a", &bob);
    let (to_ann, to_bob) = (signature(&pod.db, &ann), signature(&pod.db, &bob));
    let of = |from: &str, to: Option<&str>, rev: &Rev| json!({"db": "notes", "id": "a", "from": from, "to": to, "rev": rev.to_string()});
    let mut expected = vec![of(&to_ann, Some(&to_bob), &moved)];
    assert_eq!(instructed(&pod.store), expected);
    // A deletion stays where its document was.
    let deletion = Edit { deleted: true, ..edit("a", Some(&moved), json!({})) };
    let deleted = submit(&pod.db, vec![deletion], Mode::Interactive).remove(0).unwrap().rev;
    assert_eq!(instructed(&pod.store), expected);
    // By replication, to where nobody reads it.
    let history = vec!["4-0000000000000000000000000000000a".parse().unwrap(), deleted];
    let last = history[0].clone();
    let nowhere = Edit { history, ..edit("a", None, json!({"access": {"read": []}})) };
    submit(&pod.db, vec![nowhere], Mode::Replicated).remove(0).unwrap();
    let moved = pod.db.doc(&Scope::All, "a").unwrap().unwrap().winner().rev.clone();
    assert_eq!(moved.generation, last.generation);
    expected.push(of(&to_bob, None, &moved));
    assert_eq!(instructed(&pod.store), expected);
    // By new rules.
    let ruled = edit("b", None, json!({"owner": "ann"}));
    submit(&pod.db, vec![ruled], Mode::Interactive).remove(0).unwrap();
    for read in ["user:ann", "user:bob"] {
        let rules = json!({"rules": [{"selector": {"owner": "ann"}, "read": [read]}]});
        pod.db.set_rules(AppRules::parse(&rules).unwrap()).unwrap();
        pod.db.repartition(&mut |_, _| {}).unwrap();
    }
    let moves = instructed(&pod.store);
    assert_eq!(moves.len(), 3);
    assert_eq!((&moves[2]["id"], &moves[2]["from"], &moves[2]["to"]), (&json!("b"), &json!(to_ann), &json!(to_bob)));
    // Who is no master records none.
    pod.store.set_instructor(None);
    put(&pod.db, "c", &ann);
    put(&pod.db, "c", &bob);
    assert_eq!(instructed(&pod.store).len(), 3);
    assert_eq!(pod.db.verify().unwrap(), Vec::<String>::new());
    assert_eq!(pod.store.db("_ring").unwrap().verify().unwrap(), Vec::<String>::new());
}

#[test]
fn in_every_state_that_a_crash_leaves_a_move_and_its_instruction_are_there_together() {
    let pod = Pod::new();
    let readers = [["user:ann"], ["user:bob"], ["user:cy"]];
    for round in 0..4 {
        let edits = (0..5).map(|doc| {
            let id = format!("d{doc}");
            let winner = pod.db.doc(&Scope::All, &id).unwrap().map(|view| view.winner().rev.clone());
            edit(&id, winner.as_ref(), json!({"round": round, "access": {"read": readers[(round + doc) % 3]}}))
        });
        submit(&pod.db, edits.collect(), Mode::Interactive).into_iter().for_each(|result| assert!(result.is_ok()));
    }
    let images = std::mem::take(&mut *pod.engine.images.lock().unwrap());
    let mut counts = BTreeSet::new();
    for image in images {
        let folder = TempDir::new().unwrap();
        let store = open(Box::new(image), &folder);
        let (Some(db), Some(_)) = (store.db("notes"), store.db("_ring")) else { continue };
        let moves = instructed(&store);
        let mut told: BTreeSet<(String, String)> = BTreeSet::new();
        for one in &moves {
            told.insert((one["id"].as_str().unwrap().to_owned(), one["from"].as_str().unwrap().to_owned()));
        }
        // Each revision of these documents moved it, except the first.
        let docs = db.all_docs(&Scope::All, &IdRange::default(), 100).unwrap();
        let made: u64 = docs.iter().map(|row| row.rev.generation.saturating_sub(1)).sum();
        assert_eq!(moves.len() as u64, made);
        for one in moves.iter().rev().take(5) {
            let rev: Rev = one["rev"].as_str().unwrap().parse().unwrap();
            let (id, from) = (one["id"].as_str().unwrap(), one["from"].as_str().unwrap());
            assert!(db.move_state(id, from, &rev).unwrap(), "{id} has an instruction and no move");
        }
        assert_eq!(db.verify().unwrap(), Vec::<String>::new());
        counts.insert(moves.len());
        store.close();
    }
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [0, 5, 10, 15]);
}

#[test]
fn many_moves_in_one_commit_are_handed_over_by_the_thousand() {
    let pod = Pod::new();
    let ids: Vec<String> = (0..2_500).map(|n| format!("d{n:04}")).collect();
    let first = ids.iter().map(|id| edit(id, None, json!({"access": {"read": ["user:ann"]}}))).collect();
    let revs: Vec<Rev> = submit(&pod.db, first, Mode::Interactive).into_iter().map(|w| w.unwrap().rev).collect();
    let second = ids.iter().zip(&revs).map(|(id, rev)| edit(id, Some(rev), json!({"access": {"read": ["users"]}})));
    let second = second.collect();
    submit(&pod.db, second, Mode::Interactive);
    assert_eq!(instructed(&pod.store).len(), 2_500);
    assert_eq!(pod.instructor.last.load(Ordering::Relaxed), 3);
    assert_eq!(pod.instructor.longest.load(Ordering::Relaxed), 1_000);
}

#[test]
fn a_move_goes_on_where_it_cant_be_recorded() {
    let pod = Pod::new();
    // The number is taken: by what is there now, or was.
    let ring = pod.store.db("_ring").unwrap();
    let taken = submit(&ring, vec![edit("instruction:0000000001", None, json!({}))], Mode::Interactive).remove(0);
    put(&pod.db, "a", &["user:ann"]);
    put(&pod.db, "a", &["user:bob"]);
    assert_eq!(ring.doc(&Scope::All, "instruction:0000000001").unwrap().unwrap().winner().rev, taken.unwrap().rev);
    pod.store.delete_db("_ring").unwrap();
    let rev = put(&pod.db, "a", &["user:cy"]);
    let view = pod.db.doc(&Scope::All, "a").unwrap().unwrap();
    assert_eq!(view.winner().rev, rev);
    assert_eq!(pod.db.verify().unwrap(), Vec::<String>::new());
}

#[test]
fn whether_a_move_is_carried_out() {
    let mut pod = Pod::new();
    put(&pod.db, "a", &["user:ann"]);
    let second = put(&pod.db, "a", &["user:bob"]);
    let (ann, bob) = (signature(&pod.db, &["user:ann"]), signature(&pod.db, &["user:bob"]));
    let state = |db: &Db, id: &str, from: &str, rev: &Rev| db.move_state(id, from, rev).unwrap();
    assert!(state(&pod.db, "a", &ann, &second), "it is elsewhere");
    assert!(state(&pod.db, "none", &ann, &second), "it is not here");
    let unknown: Rev = "3-0000000000000000000000000000000a".parse().unwrap();
    assert!(!state(&pod.db, "a", &bob, &unknown), "the move has not come yet");
    assert!(!state(&pod.db, "a", &bob, &second), "the winner is what should have moved it");
    // Here again by a later revision, the move's being known.
    put(&pod.db, "a", &["user:ann"]);
    assert!(state(&pod.db, "a", &ann, &second));
    // And when the move's revision has been forgotten.
    pod.db.set_revs_limit(2).unwrap();
    for _ in 0..3 {
        put(&pod.db, "a", &["user:ann"]);
    }
    assert!(state(&pod.db, "a", &ann, &second));
    pod.store.close();
    pod.store = open(Box::new(pod.engine.inner.crash_image()), &pod.folder);
    let db = pod.store.db("notes").unwrap();
    assert!(state(&db, "a", &ann, &second), "after opening again");
    pod.store.delete_db("notes").unwrap();
    assert!(db.move_state("a", &ann, &second).is_err());
}
