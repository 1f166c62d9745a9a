//! One suite for every engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use proptest::prelude::{Strategy, any, prop, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

use super::memory::MemoryEngine;
use super::{Batch, Direction, Engine, EngineError, EngineKind, MAX_KEY_BYTES, Snapshot, Space};

/// A place where an engine's data stays while engines are opened and dropped.
enum Rig {
    Disk(EngineKind, TempDir),
    Memory(Mutex<MemoryEngine>),
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

impl Rig {
    fn all() -> Vec<Rig> {
        let mut rigs = vec![Rig::Memory(Mutex::default()), Rig::disk(EngineKind::Fjall)];
        if cfg!(feature = "sled") {
            rigs.push(Rig::disk(EngineKind::Sled));
        }
        rigs
    }

    fn disk(kind: EngineKind) -> Rig {
        Rig::Disk(kind, tempfile::tempdir().unwrap())
    }

    /// Opens what an engine that was closed, or just dropped, has left.
    fn open(&self) -> Box<dyn Engine> {
        match self {
            Rig::Disk(kind, dir) => super::open(*kind, &dir.path().join("store")).unwrap(),
            Rig::Memory(last) => {
                let mut last = last.lock().unwrap();
                *last = last.kill_image();
                Box::new(last.clone())
            }
        }
    }

    fn has_snapshots(&self) -> bool {
        !matches!(self, Rig::Disk(EngineKind::Sled, _))
    }
}

fn batch_of(space: Space, pairs: &[(&str, &str)]) -> Batch {
    let mut batch = Batch::new();
    for (key, value) in pairs {
        batch.put(space, key.as_bytes().to_vec(), value.as_bytes().to_vec());
    }
    batch
}

fn read(view: &dyn Snapshot, space: Space, lo: &[u8], hi: &[u8], direction: Direction) -> Pairs {
    view.range(space, lo, hi, direction)
        .map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap())
        .collect()
}

fn keys(engine: &dyn Engine, space: Space, lo: &str, hi: &str, direction: Direction) -> String {
    let view = engine.snapshot();
    let pairs = read(&*view, space, lo.as_bytes(), hi.as_bytes(), direction);
    pairs.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect::<Vec<_>>().join(" ")
}

#[test]
fn ranges_are_ordered_both_ways_and_leave_out_their_end() {
    for rig in Rig::all() {
        let engine = rig.open();
        let name = engine.name();
        let pairs = [("c", "3"), ("a", "1"), ("ab", "2"), ("d", "4")];
        engine.commit(batch_of(Space::Docs, &pairs), true).unwrap();
        engine.commit(batch_of(Space::Seqs, &[("b", "other space")]), true).unwrap();
        let forward = |lo, hi| keys(&*engine, Space::Docs, lo, hi, Direction::Forward);
        let backward = |lo, hi| keys(&*engine, Space::Docs, lo, hi, Direction::Backward);
        assert_eq!(forward("a", "d"), "a ab c", "{name}");
        assert_eq!(backward("a", "d"), "c ab a", "{name}");
        assert_eq!(forward("aa", "z"), "ab c d", "{name}");
        assert_eq!(backward("", "ab"), "a", "{name}");
        assert_eq!(forward("c", "c"), "", "{name}");
        assert_eq!(backward("d", "a"), "", "{name}");
        assert_eq!(keys(&*engine, Space::Seqs, "", "z", Direction::Forward), "b", "{name}");
    }
}

#[test]
fn the_last_change_of_a_key_wins_also_inside_a_batch_and_after_reopening() {
    for rig in Rig::all() {
        let mut batch = batch_of(Space::Meta, &[("a", "1"), ("b", "1"), ("a", "2"), ("c", "1")]);
        batch.delete(Space::Meta, "b");
        batch.delete(Space::Meta, "c");
        batch.put(Space::Meta, "c", "3");
        batch.delete(Space::Meta, "never was");
        assert_eq!((batch.len(), batch.bytes()), (8, 21));
        rig.open().commit(batch, true).unwrap();
        let engine = rig.open();
        let value = |key: &str| engine.get(Space::Meta, key.as_bytes()).unwrap();
        assert_eq!(value("a").as_deref(), Some(&b"2"[..]), "{}", engine.name());
        assert_eq!(value("b"), None, "{}", engine.name());
        assert_eq!(value("c").as_deref(), Some(&b"3"[..]), "{}", engine.name());
    }
}

#[test]
fn a_snapshot_stays_as_it_was() {
    for rig in Rig::all().into_iter().filter(Rig::has_snapshots) {
        let engine = rig.open();
        engine.commit(batch_of(Space::Docs, &[("a", "1"), ("b", "1")]), false).unwrap();
        let before = engine.snapshot();
        let mut batch = batch_of(Space::Docs, &[("a", "2"), ("c", "2")]);
        batch.delete(Space::Docs, "b");
        batch.put(Space::Seqs, "new", "2");
        engine.commit(batch, true).unwrap();
        engine.compact().unwrap();
        let then = read(&*before, Space::Docs, b"", b"z", Direction::Forward);
        let one = b"1".to_vec();
        assert_eq!(then, [(b"a".to_vec(), one.clone()), (b"b".to_vec(), one)], "{}", engine.name());
        assert_eq!(before.get(Space::Docs, b"a").unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(before.get(Space::Seqs, b"new").unwrap(), None);
        assert_eq!(keys(&*engine, Space::Docs, "", "z", Direction::Forward), "a c");
        assert_eq!(engine.snapshot().get(Space::Docs, b"a").unwrap().as_deref(), Some(&b"2"[..]));
    }
}

#[test]
fn data_outlives_a_close_and_a_drop_without_one() {
    for rig in Rig::all() {
        for (round, close) in [true, false, true].into_iter().enumerate() {
            let engine = rig.open();
            for space in Space::ALL {
                for before in 0..round {
                    let found = engine.get(space, format!("round {before}").as_bytes()).unwrap();
                    assert_eq!(found.as_deref(), Some(space.name().as_bytes()), "{before}");
                }
                let key = format!("round {round}");
                engine.commit(batch_of(space, &[(&key, space.name())]), true).unwrap();
            }
            if close {
                engine.close().unwrap();
                engine.close().unwrap();
                let refused = engine.commit(Batch::new(), true);
                assert!(matches!(refused, Err(EngineError::Closed)), "{refused:?}");
                assert!(matches!(engine.get(Space::Docs, b"x"), Err(EngineError::Closed)));
                let entry = engine.snapshot().range(Space::Docs, b"", b"z", Direction::Forward).next();
                assert!(matches!(entry, Some(Err(EngineError::Closed))));
            }
        }
    }
}

#[test]
fn large_values_come_back_whole_and_go_when_overwritten_or_deleted() {
    let large = |seed: usize| -> Vec<u8> {
        (0..1 << 20).map(|at: usize| (at.wrapping_mul(2_654_435_761) >> (7 + seed)) as u8).collect()
    };
    for rig in Rig::all() {
        let engine = rig.open();
        let name = engine.name();
        let lens = [0, 1, 1023, 1024, 12 << 10, (12 << 10) + 1, (16 << 10) + 1, 100_000, 1 << 20];
        for space in [Space::Blobs, Space::Bodies, Space::Docs] {
            let mut batch = Batch::new();
            for len in lens {
                batch.put(space, format!("{len:08}"), large(0)[..len].to_vec());
            }
            engine.commit(batch, true).unwrap();
        }
        engine.compact().unwrap();
        drop(engine);
        let engine = rig.open();
        for space in [Space::Blobs, Space::Bodies, Space::Docs] {
            let view = engine.snapshot();
            let all = read(&*view, space, b"0", b"9", Direction::Backward);
            let found = all.iter().rev().map(|(_, value)| value.len()).collect::<Vec<_>>();
            assert_eq!(found, lens, "{name}");
            assert!(all.iter().all(|(_, value)| value[..] == large(0)[..value.len()]), "{name}");
        }
        let key = format!("{:08}", 1 << 20);
        let mut batch = Batch::new();
        batch.put(Space::Blobs, key.clone(), large(1)[..50_000].to_vec());
        batch.delete(Space::Bodies, key.clone());
        engine.commit(batch, true).unwrap();
        let now = engine.get(Space::Blobs, key.as_bytes()).unwrap().unwrap();
        assert!(now[..] == large(1)[..50_000], "{name}");
        assert_eq!(engine.get(Space::Bodies, key.as_bytes()).unwrap(), None, "{name}");
    }
}

#[test]
fn a_batch_with_an_impossible_key_changes_nothing_and_poisons_nothing() {
    for rig in Rig::all() {
        let engine = rig.open();
        for key in [Vec::new(), vec![1; MAX_KEY_BYTES + 1]] {
            let mut batch = batch_of(Space::Docs, &[("good", "1")]);
            batch.put(Space::Docs, key, "1");
            let refused = engine.commit(batch, true);
            assert!(matches!(refused, Err(EngineError::KeyLength { .. })), "{refused:?}");
        }
        assert_eq!(engine.get(Space::Docs, b"good").unwrap(), None);
        let mut batch = Batch::new();
        batch.put(Space::Docs, vec![1; MAX_KEY_BYTES], "longest");
        engine.commit(batch, true).unwrap();
        let found = engine.get(Space::Docs, &vec![1; MAX_KEY_BYTES]).unwrap();
        assert_eq!(found.as_deref(), Some(&b"longest"[..]), "{}", engine.name());
    }
}

#[test]
fn stats_grow_with_the_data() {
    for rig in Rig::all() {
        let engine = rig.open();
        let mut batch = Batch::new();
        let noise = (0..300_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8);
        batch.put(Space::Blobs, "k", noise.collect::<Vec<_>>());
        engine.commit(batch, true).unwrap();
        let stats = engine.stats();
        assert!(stats.disk_bytes >= 300_000, "{} {stats:?}", engine.name());
        assert!(stats.disk_bytes < 20_000_000, "{} {stats:?}", engine.name());
    }
}

#[test]
fn a_folder_that_cannot_be_opened_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("note.txt"), "someone's own file").unwrap();
    let refused = super::open(EngineKind::Fjall, dir.path()).err();
    assert!(matches!(refused, Some(EngineError::Unreadable { .. })), "{refused:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

    let rig = Rig::disk(EngineKind::Fjall);
    let engine = rig.open();
    engine.commit(batch_of(Space::Docs, &[("a", "1")]), true).unwrap();
    let Rig::Disk(_, dir) = &rig else { unreachable!() };
    let path = dir.path().join("store");
    let second = super::open(EngineKind::Fjall, &path).err();
    assert!(matches!(second, Some(EngineError::InUse { .. })), "{second:?}");
    drop(engine);
    let before = files_in(&path);
    std::fs::write(path.join("version"), b"damaged").unwrap();
    let damaged = super::open(EngineKind::Fjall, &path).err();
    assert!(matches!(damaged, Some(EngineError::Unreadable { .. })), "{damaged:?}");
    assert_eq!(files_in(&path), before);
}

#[test]
fn a_journal_with_a_damaged_last_batch_is_reported() {
    let rig = Rig::disk(EngineKind::Fjall);
    let engine = rig.open();
    engine.commit(batch_of(Space::Docs, &[("a", "the value to damage")]), true).unwrap();
    drop(engine);
    let Rig::Disk(_, dir) = &rig else { unreachable!() };
    let path = dir.path().join("store");
    let journal = files_in(&path).into_iter().find(|name| name.ends_with(".jnl")).unwrap();
    let mut bytes = std::fs::read(path.join(&journal)).unwrap();
    let at = bytes.windows(19).position(|part| part == b"the value to damage").unwrap();
    bytes[at] ^= 0x55;
    std::fs::write(path.join(&journal), &bytes).unwrap();
    let damaged = super::open(EngineKind::Fjall, &path).err();
    assert!(matches!(damaged, Some(EngineError::Unreadable { .. })), "{damaged:?}");
    assert!(damaged.unwrap().to_string().contains("Move the folder aside"));
    assert!(path.join(&journal).exists());
}

#[cfg(not(feature = "sled"))]
#[test]
fn an_engine_that_was_not_built_says_so() {
    let refused = super::open(EngineKind::Sled, Path::new("unused")).err();
    assert!(matches!(refused, Some(EngineError::NotBuilt(EngineKind::Sled))), "{refused:?}");
}

#[test]
fn kinds_are_read_as_they_are_printed() {
    for kind in [EngineKind::Fjall, EngineKind::Sled, EngineKind::Memory] {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    assert!("rocksdb".parse::<EngineKind>().unwrap_err().to_string().contains("rocksdb"));
}

fn files_in(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).unwrap();
    let mut names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();
    names.sort();
    names
}

/// A step of the model test.
#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<(u8, Vec<u8>, Option<Vec<u8>>)>, bool),
    Range(u8, Vec<u8>, Vec<u8>),
    Compact,
    Reopen,
}

/// Few spaces and short keys of few letters, so that steps meet each other's keys.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || prop::collection::vec(0..3_u8, 1..4);
    let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..40));
    let ops = prop::collection::vec((0..3_u8, key(), value), 0..12);
    let step = prop_oneof![
        8 => (ops, any::<bool>()).prop_map(|(ops, durable)| Step::Commit(ops, durable)),
        4 => (0..3_u8, key(), key()).prop_map(|(space, lo, hi)| Step::Range(space, lo, hi)),
        1 => prop::strategy::Just(Step::Compact),
        1 => prop::strategy::Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..30)
}

#[test]
fn every_engine_behaves_as_a_sorted_map() {
    // Each case opens stores on a real disk; proptest prints and keeps what fails.
    let mut runner = TestRunner::new(Config { cases: 16, ..Config::default() });
    runner
        .run(&steps(), |steps| {
            for rig in Rig::all() {
                check_against_model(&rig, &steps);
            }
            Ok(())
        })
        .unwrap();
}

fn check_against_model(rig: &Rig, steps: &[Step]) {
    let mut model = BTreeMap::<(u8, Vec<u8>), Vec<u8>>::new();
    let mut engine = rig.open();
    for step in steps {
        match step {
            Step::Commit(ops, durable) => {
                let mut batch = Batch::new();
                for (space, key, value) in ops {
                    let place = (*space, key.clone());
                    match value {
                        Some(value) => {
                            batch.put(Space::ALL[*space as usize], key.clone(), value.clone());
                            model.insert(place, value.clone());
                        }
                        None => {
                            batch.delete(Space::ALL[*space as usize], key.clone());
                            model.remove(&place);
                        }
                    }
                }
                engine.commit(batch, *durable).unwrap();
            }
            Step::Range(space, lo, hi) => check_range(&*engine, &model, *space, lo, hi),
            Step::Compact => engine.compact().unwrap(),
            Step::Reopen => {
                drop(engine);
                engine = rig.open();
            }
        }
    }
    for space in 0..3 {
        check_range(&*engine, &model, space, &[], &[9]);
    }
}

fn check_range(engine: &dyn Engine, model: &BTreeMap<(u8, Vec<u8>), Vec<u8>>, space: u8, lo: &[u8], hi: &[u8]) {
    let inside = |key: &[u8]| lo <= key && key < hi;
    let mut expected = model
        .iter()
        .filter(|((place, key), _)| *place == space && inside(key))
        .map(|((_, key), value)| (key.clone(), value.clone()))
        .collect::<Pairs>();
    let space = Space::ALL[space as usize];
    let view = engine.snapshot();
    let name = engine.name();
    assert_eq!(read(&*view, space, lo, hi, Direction::Forward), expected, "{name}");
    for (key, value) in &expected {
        assert_eq!(engine.get(space, key).unwrap().as_deref(), Some(&value[..]), "{name}");
        assert_eq!(view.get(space, key).unwrap().as_deref(), Some(&value[..]), "{name}");
    }
    expected.reverse();
    assert_eq!(read(&*view, space, lo, hi, Direction::Backward), expected, "{name}");
}
