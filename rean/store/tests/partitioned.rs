//! Counts of partitions are those of what is there, whatever is written, forgotten and lost.

use proptest::prelude::*;
use rean_store::engine::memory::MemoryEngine;
use rean_store::engine::{Batch, Direction, Engine, Space};
use rean_store::{
    AttachmentEdit, AttachmentEditSource, Author, Db, Edit, Mode, NoObserver, PartitionInfo, Rev, Scope, Store,
    StoreKeys, Who, Write, WriteError, Written,
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

fn attachment(db: &Db, length: usize) -> AttachmentEdit {
    let mut writer = db.blob_writer();
    writer.write(&vec![b'x'; length]).unwrap();
    let source = AttachmentEditSource::Blob(writer.finish().unwrap());
    AttachmentEdit { name: "file".to_owned(), content_type: None, revpos: None, source }
}

fn carry_out(db: &Db, op: Op, brought: usize) {
    let leaves = |id: usize| db.doc(&Scope::All, IDS[id]).unwrap().map_or(Vec::new(), |doc| doc.leaves);
    match op {
        Op::Edit(id, text, deleted) => {
            let parent = leaves(id).first().map(|winner| winner.rev.clone());
            let attachments = if text.is_multiple_of(3) { vec![attachment(db, text)] } else { Vec::new() };
            match submit(db, Edit { parent, attachments, ..edit(id, text, deleted) }, Mode::Interactive) {
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
fn a_partition_that_is_too_large_takes_what_makes_it_smaller() {
    let (engine, folder) = (MemoryEngine::new(), TempDir::new().unwrap());
    let store = open(&engine, &folder);
    let db = store.create_partitioned_db("parts").unwrap();
    let size = || db.partition_info("p").unwrap().size();
    let with_file =
        |id: usize, length: usize| Edit { attachments: vec![attachment(&db, length)], ..edit(id, 10, false) };
    let first = submit(&db, with_file(0, 500), Mode::Interactive).unwrap().rev;
    let of_text = |length: usize| r#"{"text":""}"#.len() as u64 + length as u64;
    assert_eq!(size(), of_text(10) + 500);
    store.set_max_partition_bytes(size());
    let refused = |edit: Edit| match submit(&db, edit, Mode::Interactive) {
        Err(error @ WriteError::PartitionOverflow(_)) => assert_eq!(error.status(), 403),
        other => panic!("{other:?}"),
    };
    refused(edit(1, 0, false));
    refused(Edit { parent: Some(first.clone()), ..with_file(0, 501) });
    // As large as it was is no more than it was.
    let second = submit(&db, Edit { parent: Some(first), ..with_file(0, 500) }, Mode::Interactive).unwrap().rev;
    // A conflict is told as one.
    assert!(matches!(submit(&db, edit(0, 900, false), Mode::Interactive), Err(WriteError::Conflict)));
    submit(&db, edit(6, 900, false), Mode::Interactive).unwrap();
    let rev: Rev = "1-0123456789abcdef0123456789abcdef".parse().unwrap();
    submit(&db, Edit { history: vec![rev.clone()], ..edit(2, 900, false) }, Mode::Replicated).unwrap();
    // Its end can be said to be so long that it is larger than what it ends.
    refused(Edit { parent: Some(rev.clone()), ..edit(2, 901, true) });
    submit(&db, Edit { parent: Some(rev), ..edit(2, 0, true) }, Mode::Interactive).unwrap();
    submit(&db, Edit { parent: Some(second), ..edit(0, 0, true) }, Mode::Interactive).unwrap();
    assert_eq!(size(), 2 * of_text(0), "what a compaction has yet to remove is not counted");
    submit(&db, edit(1, 900, false), Mode::Interactive).unwrap();
    assert_eq!(db.verify().unwrap(), Vec::<String>::new());
    store.close();
}

#[test]
fn counts_of_an_earlier_version_are_read_and_kept() {
    let (engine, folder) = (MemoryEngine::new(), TempDir::new().unwrap());
    let store = open(&engine, &folder);
    let db = store.create_partitioned_db("parts").unwrap();
    let rev = submit(&db, edit(0, 100, false), Mode::Interactive).unwrap().rev;
    let record = || engine.snapshot().range(Space::Meta, b"partition/", b"partition0", Direction::Forward).next();
    let (key, value) = record().unwrap().unwrap();
    // It ended before the bytes of leaves: three numbers, of which two are one byte.
    let counted = db.partition_info("p").unwrap();
    assert_eq!((counted.docs, counted.deleted, counted.bytes, counted.external), (1, 0, 111, Some(111)));
    let mut batch = Batch::new();
    batch.put(Space::Meta, key.to_vec(), value[..3].to_vec());
    engine.commit(batch, true).unwrap();
    let info = || db.partition_info("p").unwrap();
    assert_eq!((info().external, info().size()), (None, 111));
    assert_eq!(db.verify().unwrap(), Vec::<String>::new());
    submit(&db, Edit { parent: Some(rev), ..edit(0, 50, false) }, Mode::Interactive).unwrap();
    assert_eq!((info().bytes, info().external, info().size()), (111 + 61, None, 111 + 61));
    assert_eq!(db.verify().unwrap(), Vec::<String>::new());
    store.close();
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
