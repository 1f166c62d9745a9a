//! What devices are told that begin anew with what they have: how long it is remembered, and what it costs others.

mod device;

use device::{Device, Heard, admin, edit, open, submit};
use rean_store::engine::memory::MemoryEngine;
use rean_store::engine::{Direction, Engine, Space};
use rean_store::{Author, Db, DbKind, Edit, Mode, Rev, Scope, Since, Store, Who};
use serde_json::json;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;
use tempfile::TempDir;

struct World {
    engine: MemoryEngine,
    folder: TempDir,
    heard: Arc<Heard>,
    store: Store,
    db: Db,
}

impl World {
    fn new() -> World {
        let (engine, folder, heard) = (MemoryEngine::new(), TempDir::new().unwrap(), Arc::new(Heard::default()));
        let store = open(&engine, &folder, &heard);
        let db = store.create_db("notes", DbKind::App).unwrap();
        World { engine, folder, heard, store, db }
    }

    fn put(&self, id: &str, parent: Option<Rev>, readers: &[&str]) -> Rev {
        let body = json!({"access": {"read": readers}});
        submit(&self.db, edit(id, parent, body), admin(), Mode::Interactive).unwrap().rev
    }

    fn delete(&self, id: &str, rev: Rev) {
        let delete = Edit { deleted: true, ..edit(id, Some(rev), json!({})) };
        submit(&self.db, delete, admin(), Mode::Interactive).unwrap();
    }

    fn scope(&self, name: &str, roles: &[&str]) -> Scope {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        Scope::Personal(self.db.reader(Who { name: Some(name.to_owned()), roles }))
    }

    /// Opens the store again as a power cut leaves it, with whatever was open then.
    fn cut_power(&mut self) {
        self.engine = self.engine.crash_image();
        self.store = open(&self.engine, &self.folder, &self.heard);
        self.db = self.store.db("notes").unwrap();
    }

    fn ids(&self, scope: &Scope) -> Vec<String> {
        let mut feed = self.db.feed(scope, Since::Start).unwrap();
        let mut ids = Vec::new();
        while !feed.caught_up() {
            ids.extend(feed.next_page(10).unwrap().into_iter().map(|row| row.id.to_string()));
        }
        ids
    }
}

/// Reads all that there is, from wherever the device is.
fn read(device: &mut Device, db: &Db, scope: &Scope) {
    assert!((0..200).any(|_| device.pull(db, scope, 3)), "a feed without end");
}

#[test]
fn what_a_feed_gave_is_remembered_when_the_power_goes_while_it_is_open() {
    let mut world = World::new();
    let rev = world.put("x", None, &["user:bob"]);
    let mut bob = Device::default();
    let scope = world.scope("bob", &[]);
    bob.listen(&world.db, &scope);
    // The next commit, whosever it is, takes the note along.
    world.put("y", None, &["user:ann"]);
    world.cut_power();
    bob.lose_place();
    let scope = world.scope("bob", &[]);
    assert_eq!(bob.live().len(), 1);
    world.put("x", Some(rev), &["user:ann"]);
    read(&mut bob, &world.db, &scope);
    assert!(bob.live().is_empty());
    assert!(world.ids(&world.scope("cy", &[])).is_empty());
    world.store.close();
}

#[test]
fn of_many_partial_databases_too() {
    let world = World::new();
    let scope = world.scope("bob", &[]);
    let put = |at: usize| world.put(&format!("d{at}"), None, &["user:bob", &format!("user:u{at}")]);
    let revs: Vec<Rev> = (0..80).map(put).collect();
    let mut bob = Device::default();
    read(&mut bob, &world.db, &scope);
    assert_eq!(bob.live().len(), 80);
    bob.lose_place();
    world.put("d3", Some(revs[3].clone()), &["user:u3"]);
    world.delete("d70", revs[70].clone());
    read(&mut bob, &world.db, &scope);
    assert_eq!(bob.live().len(), 78);
    world.store.close();
}

#[test]
fn who_lost_a_role_and_begins_anew_again_and_again_makes_nobody_any_work() {
    begin_again_and_again(false);
}

#[test]
fn nor_who_has_written_the_document() {
    begin_again_and_again(true);
}

fn begin_again_and_again(has_written: bool) {
    let world = World::new();
    let mut rev = world.put("x", None, &["role:staff"]);
    if has_written {
        let author = Author::user(Who { name: Some("eve".to_owned()), roles: vec!["staff".to_owned()] });
        let body = json!({"access": {"read": ["role:staff"]}, "by": "eve"});
        let history = vec![Rev::next(Some(&rev), false, b"eve", std::iter::empty()), rev];
        let by_eve = Edit { history, ..edit("x", None, body) };
        rev = submit(&world.db, by_eve, author, Mode::Replicated).unwrap().rev;
    }
    let mut eve = Device::default();
    read(&mut eve, &world.db, &world.scope("eve", &["staff"]));
    let ex = world.scope("eve", &[]);
    let staff = world.scope("fay", &["staff"]);
    let mut seqs = Vec::new();
    for round in 0..12 {
        eve.lose_place();
        read(&mut eve, &world.db, &ex);
        assert!(eve.live().is_empty());
        // What she is told says nothing of how often it was edited since: the end of what she has, and of what stood in its
        // place for others, which she might have been given.
        assert!(eve.told.len() <= 2, "{:?}", eve.told);
        let mut fay = Device::default();
        read(&mut fay, &world.db, &staff);
        assert_eq!(fay.live().len(), 1);
        if round >= 6 {
            rev = world.db.doc(&Scope::All, "x").unwrap().map_or(rev, |doc| doc.winner().rev.clone());
            rev = world.put("x", Some(rev), &["role:staff"]);
        }
        seqs.push(world.store.seq());
    }
    // One successor, when the end was told for the first time; the edits that she never had need none.
    assert_eq!(seqs[0], seqs[5], "{seqs:?}");
    assert_eq!(seqs[5] + 6, seqs[11], "{seqs:?}");
    world.store.close();
}

#[test]
fn what_was_served_goes_with_the_account_and_with_the_database() {
    let world = World::new();
    let scope = world.scope("bob", &[]);
    let rev = world.put("x", None, &["user:bob"]);
    assert_eq!(world.ids(&scope), ["x"]);
    world.put("x", Some(rev), &["user:ann"]);
    assert_eq!(world.ids(&scope), ["x"]);
    world.db.forget_served("bob").unwrap();
    assert!(world.ids(&scope).is_empty(), "a namesake");
    // The space is given back in the background.
    let notes = || {
        let (first, end) = (&b"note/served/"[..], &b"note/served0"[..]);
        world.engine.snapshot().range(Space::Meta, first, end, Direction::Forward).count()
    };
    let until = |wanted: usize| {
        (0..500).any(|_| {
            sleep(Duration::from_millis(10));
            notes() == wanted
        })
    };
    assert!(until(1), "lazily noted");
    world.store.delete_db("notes").unwrap();
    assert!(until(0), "gone with the database");
    world.store.close();
}
