//! Who brings an index up to date, who waits, and what ends it.

mod device;

use device::{Device, edit, submit, update, wait_until};
use rean_index::{Emitted, GroupSpec, IndexDoc, IndexError, MapError, Mapper, Reduce, Unmapped, ViewSpec};
use rean_store::{DbKind, Mode};
use serde_json::json;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

/// Waits within `map` until it is let go.
struct Gate {
    entered: Mutex<mpsc::Sender<()>>,
    leave: Mutex<mpsc::Receiver<()>>,
    calls: AtomicU64,
}

impl Mapper for Gate {
    fn map(&self, docs: Vec<IndexDoc>) -> Result<Vec<Vec<Emitted>>, MapError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.entered.lock().unwrap().send(()).unwrap();
        self.leave.lock().unwrap().recv().unwrap();
        Ok(docs.iter().map(|_| vec![Ok(Vec::new())]).collect())
    }
}

fn gated(device: &Device) -> (Arc<Gate>, Arc<GroupSpec>, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (entered, enters) = mpsc::channel();
    let (go, leave) = mpsc::channel();
    let gate = Arc::new(Gate { entered: Mutex::new(entered), leave: Mutex::new(leave), calls: AtomicU64::new(0) });
    let views = vec![ViewSpec { names: vec!["v".to_owned()], reduce: Reduce::None }];
    let mapper: Arc<dyn Mapper> = Arc::clone(&gate) as Arc<dyn Mapper>;
    let spec = GroupSpec { signature: "2".repeat(32), views, mapper, ..(*device.spec).clone() };
    (gate, Arc::new(spec), enters, go)
}

#[test]
fn one_brings_it_up_to_date_and_the_others_wait() {
    let device = Device::new(DbKind::Plain);
    device.put_rows("a", &[], &json!([]));
    let (gate, spec, enters, go) = gated(&device);
    let group = device.indexes.group(&device.db, spec).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| update(&group))).collect();
        enters.recv().unwrap();
        wait_until("three wait", || group.waiting() == 3);
        assert!(group.info().unwrap().updating && !group.is_current());
        go.send(()).unwrap();
        for thread in threads {
            assert_eq!(thread.join().unwrap().unwrap(), device.db.newest().seq);
        }
    });
    assert_eq!(gate.calls.load(Ordering::Relaxed), 1);
    assert!(group.is_current());
}

#[test]
fn an_update_ends_when_its_database_or_the_program_does() {
    for ends in ["database", "index", "program"] {
        let device = Device::new(DbKind::Plain);
        for n in 0..3_000 {
            submit(&device.db, vec![edit(&format!("d{n}"), None, json!({}))], Mode::Interactive);
        }
        let (gate, spec, enters, go) = gated(&device);
        let group = device.indexes.group(&device.db, spec).unwrap();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| update(&group));
            enters.recv().unwrap();
            match ends {
                "database" => assert!(device.store.delete_db("notes").unwrap()),
                "index" => assert_eq!(device.indexes.keep_only(&device.db, &[]).unwrap(), 1),
                _ => device.indexes.close(),
            }
            // It may be let into further pages before it commits.
            (0..5).for_each(|_| go.send(()).unwrap());
            let ended = running.join().unwrap();
            match ends {
                "program" => assert!(matches!(ended, Err(IndexError::Closing)), "{ended:?}"),
                _ => assert!(matches!(ended, Err(IndexError::Gone)), "{ended:?}"),
            }
        });
        assert!(gate.calls.load(Ordering::Relaxed) <= 3);
    }
}

/// Hits a limit with documents that say so, and gives up after three of them.
struct Costly {
    looked_at: AtomicU64,
}

impl Mapper for Costly {
    fn map(&self, docs: Vec<IndexDoc>) -> Result<Vec<Vec<Emitted>>, MapError> {
        let (mut mapped, mut hits) = (Vec::new(), 0);
        for doc in docs {
            self.looked_at.fetch_add(1, Ordering::Relaxed);
            let costly = doc.json.contains("loop");
            hits += u32::from(costly);
            let unmapped = Unmapped { words: "took too long".to_owned(), costly };
            mapped.push(vec![if costly { Err(unmapped) } else { Ok(Vec::new()) }]);
            if hits == 3 {
                break;
            }
        }
        Ok(mapped)
    }
}

#[test]
fn an_index_whose_functions_hit_limits_rests() {
    let device = Device::new(DbKind::Plain);
    let mapper = Arc::new(Costly { looked_at: AtomicU64::new(0) });
    let views = vec![ViewSpec { names: vec!["v".to_owned()], reduce: Reduce::None }];
    let spec = GroupSpec { signature: "3".repeat(32), views, mapper: mapper.clone(), ..(*device.spec).clone() };
    let spec = Arc::new(spec);
    let put = |name: &str, count: usize, body: serde_json::Value| {
        for n in 0..count {
            submit(&device.db, vec![edit(&format!("{name}{n}"), None, body.clone())], Mode::Interactive);
        }
    };
    // Two among others are no reason.
    put("a", 2, json!({"loop": 1}));
    put("b", 10, json!({}));
    let group = device.indexes.group(&device.db, Arc::clone(&spec)).unwrap();
    update(&group).unwrap();
    // One more is: what was looked at by then is kept, the rest waits, for whoever asks.
    put("c", 50, json!({"loop": 1}));
    let is_resting = |result: Result<u64, IndexError>| matches!(result, Err(IndexError::Map(MapError::Resting(words))) if !words.is_empty());
    assert!(is_resting(update(&group)));
    let (looked_at, seq) = (mapper.looked_at.load(Ordering::Relaxed), group.seq());
    assert_eq!(looked_at, 2 + 10 + 3);
    assert!(seq < device.db.newest().seq);
    for _ in 0..3 {
        assert!(is_resting(update(&group)));
    }
    assert_eq!((mapper.looked_at.load(Ordering::Relaxed), group.seq()), (looked_at, seq));
    // Other functions are another index.
    let other = GroupSpec { signature: "4".repeat(32), ..(*spec).clone() };
    let other = device.indexes.group(&device.db, Arc::new(other)).unwrap();
    assert!(is_resting(update(&other)));
    assert_eq!(mapper.looked_at.load(Ordering::Relaxed), looked_at + 2 + 10 + 1);
}

#[test]
fn an_index_has_no_more_views_than_its_trees_can_number() {
    let device = Device::new(DbKind::Plain);
    let with = |count: usize| {
        let views = (0..count).map(|n| ViewSpec { names: vec![n.to_string()], reduce: Reduce::None }).collect();
        let signature = format!("{count:032x}");
        device.indexes.group(&device.db, Arc::new(GroupSpec { signature, views, ..(*device.spec).clone() }))
    };
    assert!(with(65_535).is_ok());
    assert!(matches!(with(65_536), Err(IndexError::Map(MapError::Function(_)))));
}
