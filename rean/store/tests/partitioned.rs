//! Counts of partitions are those of what is there, whatever is written, forgotten and lost.

use proptest::prelude::*;
use rean_store::engine::memory::MemoryEngine;
use rean_store::engine::{Direction, Engine, Space};
use rean_store::{
    Author, Db, Edit, Mode, NoObserver, PartitionInfo, Rev, Scope, Store, StoreKeys, Who, Write, WriteError, Written,
};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const IDS: [&str; 8] = ["p:1", "p:2", "p:3", "pp:1", "pp:2", "q:1", "_design/p:1", "none"];

#[derive(Debug, Clone)]
enum Op {
    /// By a client: a new revision of the winner, with a text of this length.
    Edit(usize, usize, bool),
    /// From elsewhere: a branch of this length, with a text of this length.
    Bring(usize, u64, usize, bool),
    Purge(usize),
    Limit(u64),
    Compact,
    Crash,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0..IDS.len(), 0usize..40, prop::bool::weighted(0.2)).prop_map(|(id, text, end)| Op::Edit(id, text, end)),
        4 => (0..IDS.len(), 1u64..4, 0usize..40, any::<bool>())
            .prop_map(|(id, length, text, end)| Op::Bring(id, length, text, end)),
        1 => (0..IDS.len()).prop_map(Op::Purge),
        1 => (1u64..4).prop_map(Op::Limit),
        1 => Just(Op::Compact),
        1 => Just(Op::Crash),
    ];
    prop::collection::vec(op, 1..60)
}

fn open(engine: &MemoryEngine, folder: &TempDir) -> Store {
    let keys = StoreKeys { chain: [1; 32], bookmark: [2; 32] };
    Store::open_on(Box::new(engine.clone()), folder.path(), keys, Arc::new(NoObserver)).unwrap()
}

fn submit(db: &Db, edit: Edit, mode: Mode) -> Result<Written, WriteError> {
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move |result: Result<Vec<_>, _>| sender.send(result).unwrap());
    db.submit(Write { edits: vec![edit], author: Author::admin(Who::default()), mode }, done);
    receiver.recv().unwrap().unwrap().remove(0)
}

fn edit(id: usize, text: usize, deleted: bool) -> Edit {
    Edit {
        id: IDS[id].to_owned(),
        parent: None,
        history: Vec::new(),
        deleted,
        body: format!(r#"{{"text":"{}"}}"#, "x".repeat(text)).into(),
        access: None,
        attachments: Vec::new(),
    }
}

fn carry_out(db: &Db, op: Op, brought: usize) {
    let leaves = |id: usize| db.doc(&Scope::All, IDS[id]).unwrap().map_or(Vec::new(), |doc| doc.leaves);
    match op {
        Op::Edit(id, text, deleted) => {
            let parent = leaves(id).first().map(|winner| winner.rev.clone());
            match submit(db, Edit { parent, ..edit(id, text, deleted) }, Mode::Interactive) {
                // What is deleted is not deleted again.
                Ok(_) | Err(WriteError::Conflict) => {}
                Err(other) => panic!("{other}"),
            }
        }
        Op::Bring(id, length, text, deleted) => {
            let rev = |generation: u64| -> Rev { format!("{generation}-{:032x}", brought % 9).parse().unwrap() };
            let history = (1..=length).rev().map(rev).collect();
            submit(db, Edit { history, ..edit(id, text, deleted) }, Mode::Replicated).unwrap();
        }
        Op::Purge(id) => {
            let revs: Vec<Rev> = leaves(id).iter().take(2).map(|leaf| leaf.rev.clone()).collect();
            let (sender, receiver) = mpsc::channel();
            db.purge(IDS[id], &revs, Box::new(move |done| sender.send(done).unwrap()));
            receiver.recv().unwrap().unwrap();
        }
        Op::Limit(limit) => db.set_revs_limit(limit).unwrap(),
        Op::Compact => db.compact().unwrap(),
        Op::Crash => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn counts_of_partitions_are_right_after_everything(ops in ops()) {
        let (mut engine, folder) = (MemoryEngine::new(), TempDir::new().unwrap());
        let mut store = open(&engine, &folder);
        store.create_partitioned_db("parts").unwrap();
        for (number, op) in ops.into_iter().enumerate() {
            if matches!(op, Op::Crash) {
                store.close();
                engine = engine.crash_image();
                store = open(&engine, &folder);
            }
            let db = store.db("parts").unwrap();
            prop_assert!(db.is_partitioned());
            carry_out(&db, op, number);
            prop_assert_eq!(db.verify().unwrap(), Vec::<String>::new());
        }
        let db = store.db("parts").unwrap();
        // What has no partition counts in the whole alone.
        let of = |partition: &str| db.partition_info(partition).unwrap();
        let all = ["p", "pp", "q"].map(of);
        let others = ["_design/p:1", "none"].map(|id| db.doc(&Scope::All, id).unwrap());
        let live = others.iter().flatten().filter(|doc| !doc.winner().deleted).count() as u64;
        prop_assert_eq!(all.iter().map(|one| one.docs).sum::<u64>() + live, db.info().doc_count);
        prop_assert_eq!(of("_design/p"), PartitionInfo::default());
        store.close();
    }
}

#[test]
fn a_deleted_database_leaves_no_counts() {
    let (engine, folder) = (MemoryEngine::new(), TempDir::new().unwrap());
    let store = open(&engine, &folder);
    let db = store.create_partitioned_db("parts").unwrap();
    submit(&db, edit(0, 1, false), Mode::Interactive).unwrap();
    let counts = || engine.snapshot().range(Space::Meta, b"partition/", b"partition0", Direction::Forward).count();
    assert_eq!(counts(), 1);
    assert!(store.delete_db("parts").unwrap());
    let again = store.create_partitioned_db("parts").unwrap();
    assert_eq!(again.partition_info("p").unwrap(), PartitionInfo::default());
    let deadline = Instant::now() + Duration::from_secs(20);
    while counts() > 0 {
        assert!(Instant::now() < deadline, "{} counts are left", counts());
        std::thread::sleep(Duration::from_millis(2));
    }
    store.close();
}
