//! Random histories of one app: writes, moves, deletions, conflicts, changes of roles and rules, and crashes,
//! with devices that follow as PouchDB does. Whatever the order:
//! - the store agrees with itself after every step and in every state that a crash can leave;
//! - a device that has caught up shows exactly what its user may read, with the present content;
//! - nothing that a device sends back undoes or deletes anything;
//! - no device learns the id of a document that its user could never read.

mod device;

use device::{Account, Device, Heard, READERS, USERS, admin, edit, is_named, names, open, readable, rules, submit};
use proptest::prelude::*;
use rean_store::engine::memory::MemoryEngine;
use rean_store::{Author, Db, DbKind, Edit, Mode, Rev, Scope, Store, WriteError};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tempfile::TempDir;

const DOCS: usize = 4;

/// One step of a history.
#[derive(Debug, Clone)]
enum Step {
    /// An administrator writes a document with these readers.
    Put {
        doc: usize,
        readers: usize,
        value: u8,
    },
    /// An administrator writes a document without `access`: the rules place it.
    Ruled {
        doc: usize,
        owner: usize,
        value: u8,
    },
    Delete {
        doc: usize,
    },
    /// A second branch, as after a split.
    Fork {
        doc: usize,
        readers: usize,
        value: u8,
        deleted: bool,
    },
    Role {
        user: usize,
        has: bool,
    },
    Rules {
        version: u8,
    },
    /// A device reads some of its feed.
    Pull {
        user: usize,
        rows: usize,
    },
    /// A device follows live from now on.
    Listen {
        user: usize,
    },
    /// A device loses its place, but not what it has.
    Lose {
        user: usize,
    },
    /// A device sends all its leaves back.
    Push {
        user: usize,
    },
    /// A device edits what it has and sends it.
    Edit {
        user: usize,
        doc: usize,
        value: u8,
    },
    Compact,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let doc = 0..DOCS;
    let readers = 0..READERS.len();
    prop_oneof![
        6 => (doc.clone(), readers.clone(), any::<u8>()).prop_map(|(doc, readers, value)| Step::Put { doc, readers, value }),
        2 => (doc.clone(), 0..3usize, any::<u8>()).prop_map(|(doc, owner, value)| Step::Ruled { doc, owner, value }),
        2 => doc.clone().prop_map(|doc| Step::Delete { doc }),
        1 => (doc.clone(), readers, any::<u8>(), any::<bool>())
            .prop_map(|(doc, readers, value, deleted)| Step::Fork { doc, readers, value, deleted }),
        3 => (0..USERS.len(), any::<bool>()).prop_map(|(user, has)| Step::Role { user, has }),
        1 => (0..3u8).prop_map(|version| Step::Rules { version }),
        8 => (0..USERS.len(), 1..6usize).prop_map(|(user, rows)| Step::Pull { user, rows }),
        3 => (0..USERS.len()).prop_map(|user| Step::Listen { user }),
        2 => (0..USERS.len()).prop_map(|user| Step::Lose { user }),
        2 => (0..USERS.len()).prop_map(|user| Step::Push { user }),
        3 => (0..USERS.len(), doc, any::<u8>()).prop_map(|(user, doc, value)| Step::Edit { user, doc, value }),
        1 => Just(Step::Compact),
        1 => Just(Step::Crash),
    ]
}

struct World {
    engine: MemoryEngine,
    folder: TempDir,
    store: Store,
    db: Db,
    accounts: Vec<Account>,
    devices: Vec<Device>,
    heard: Arc<Heard>,
    rules: u8,
    /// For each user, the documents that they could read at some time.
    ever_readable: Vec<BTreeSet<String>>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.store.close();
    }
}

impl World {
    fn new() -> World {
        let engine = MemoryEngine::new();
        let folder = TempDir::new().unwrap();
        let heard = Arc::new(Heard::default());
        let store = open(&engine, &folder, &heard);
        let db = store.create_db("notes", DbKind::App).unwrap();
        db.set_rules(rules(0)).unwrap();
        db.repartition(&mut |_, _| {}).unwrap();
        let devices = USERS.iter().map(|_| Device::default()).collect();
        let accounts = vec![Account::default(); USERS.len()];
        let ever_readable = vec![BTreeSet::new(); USERS.len()];
        World { engine, folder, store, db, accounts, devices, heard, rules: 0, ever_readable }
    }

    fn scope(&self, user: usize) -> Scope {
        Scope::Personal(self.db.reader(self.accounts[user].who(USERS[user])))
    }

    fn winner(&self, id: &str) -> Option<(Rev, bool)> {
        let view = self.db.doc(&Scope::All, id).unwrap()?;
        Some((view.winner().rev.clone(), view.winner().deleted))
    }

    fn put(&self, doc: usize, body: serde_json::Value) {
        let id = format!("d{doc}");
        let parent = self.winner(&id).map(|(rev, _)| rev);
        submit(&self.db, edit(&id, parent, body), admin(), Mode::Interactive).unwrap();
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Put { doc, readers, value } => {
                self.put(*doc, json!({"value": value, "access": {"read": READERS[*readers]}}))
            }
            Step::Ruled { doc, owner, value } => self.put(*doc, json!({"value": value, "owner": USERS[*owner]})),
            Step::Delete { doc } => {
                let id = format!("d{doc}");
                if let Some((rev, false)) = self.winner(&id) {
                    let delete = Edit { deleted: true, ..edit(&id, Some(rev), json!({})) };
                    submit(&self.db, delete, admin(), Mode::Interactive).unwrap();
                }
            }
            Step::Fork { doc, readers, value, deleted } => {
                let body = json!({"value": value, "access": {"read": READERS[*readers]}});
                let mut fork = edit(&format!("d{doc}"), None, body);
                fork.history = vec![format!("1-{:032x}", u32::from(*value) + 7).parse().unwrap()];
                fork.deleted = *deleted;
                submit(&self.db, fork, admin(), Mode::Replicated).unwrap();
            }
            Step::Role { user, has } => {
                // A server ends the feeds of a user whose rights change.
                self.devices[*user].hang_up();
                self.accounts[*user].staff = *has;
                self.db.note_roles(USERS[*user], &self.accounts[*user].who(USERS[*user]).roles).unwrap();
            }
            Step::Rules { version } => {
                self.rules = *version;
                self.db.set_rules(rules(*version)).unwrap();
                self.db.repartition(&mut |_, _| {}).unwrap();
            }
            Step::Pull { user, rows } => {
                let scope = self.scope(*user);
                self.devices[*user].pull(&self.db, &scope, *rows);
            }
            Step::Listen { user } => {
                let scope = self.scope(*user);
                self.devices[*user].listen(&self.db, &scope);
            }
            Step::Lose { user } => self.devices[*user].lose_place(),
            Step::Push { user } => self.push(*user),
            Step::Edit { user, doc, value } => self.edit_on_device(*user, &format!("d{doc}"), *value),
            Step::Compact => self.db.compact().unwrap(),
            Step::Crash => self.crash(),
        }
    }

    /// What a client's two-way sync does with its leaves: those that it made are let in or refused, those that
    /// it was given change nothing.
    fn push(&mut self, user: usize) {
        let author = Author::user(self.accounts[user].who(USERS[user]));
        let before: Vec<_> = (0..DOCS).map(|doc| self.winner(&format!("d{doc}"))).collect();
        for (id, tree) in &self.devices[user].trees {
            for leaf in tree.leaves() {
                let node = &tree.nodes()[leaf];
                let own = self.devices[user].bodies.get(&(id.clone(), node.rev.clone()));
                if own.is_some_and(|body| body.contains("\"edited\"")) {
                    continue;
                }
                let body: serde_json::Value = own.map_or(json!({}), |body| serde_json::from_str(body).unwrap());
                let mut back = edit(id, None, body);
                back.history = tree.path(leaf);
                back.deleted = node.deleted;
                if let Ok(written) = submit(&self.db, back, author.clone(), Mode::Replicated) {
                    assert!(!written.changed, "{id}: {} came back and was written", written.rev);
                }
            }
        }
        let after: Vec<_> = (0..DOCS).map(|doc| self.winner(&format!("d{doc}"))).collect();
        assert_eq!(before, after, "what a device sent back changed something");
    }

    fn edit_on_device(&mut self, user: usize, id: &str, value: u8) {
        let Some(new) = self.devices[user].edit(user, id, value) else { return };
        let history = new.history.clone();
        let body = new.body.clone();
        let before = self.winner(id);
        let author = Author::user(self.accounts[user].who(USERS[user]));
        match submit(&self.db, new, author, Mode::Replicated) {
            Ok(written) => {
                assert!(written.changed);
                assert_eq!(Some(written.rev), self.winner(id).map(|(rev, _)| rev), "an edit that was taken loses");
                self.devices[user].keep(id, &history, &body, false);
            }
            Err(WriteError::Forbidden(_)) => {
                assert_eq!(before, self.winner(id), "a refused edit changed the document");
            }
            Err(other) => panic!("{id}: {other}"),
        }
    }

    fn hear(&mut self) {
        let changes = std::mem::take(&mut *self.heard.changes.lock().unwrap());
        for change in &changes {
            self.devices.iter_mut().for_each(|device| device.hear(&self.db, change));
        }
    }

    fn crash(&mut self) {
        self.devices.iter_mut().for_each(Device::hang_up);
        self.store.close();
        self.engine = self.engine.crash_image();
        self.store = open(&self.engine, &self.folder, &self.heard);
        self.db = self.store.db("notes").unwrap();
        self.db.repartition(&mut |_, _| {}).unwrap();
    }

    /// Notes what each may read now, and looks at what their devices know.
    fn check_ids(&mut self) {
        for (user, name) in USERS.iter().enumerate() {
            // Also a deletion is for readers alone; and who is among the readers of a branch may have written it.
            let scope = self.scope(user);
            let is_readable = |id: &String| {
                let Some(all) = self.db.doc(&Scope::All, id).unwrap() else { return false };
                let named = |leaf| is_named(&self.db, leaf, &self.accounts[user], name, self.rules);
                self.db.doc(&scope, id).unwrap().is_some() || all.leaves.iter().any(named)
            };
            self.ever_readable[user].extend((0..DOCS).map(|doc| format!("d{doc}")).filter(is_readable));
            let known: BTreeSet<String> = self.devices[user].trees.keys().cloned().collect();
            assert!(known.is_subset(&self.ever_readable[user]), "{name} knows {known:?}");
        }
    }

    fn check(&mut self) {
        assert_eq!(self.db.verify().unwrap(), Vec::<String>::new());
        for (user, name) in USERS.iter().enumerate() {
            let scope = self.scope(user);
            for _ in 0..200 {
                if self.devices[user].pull(&self.db, &scope, 3) {
                    break;
                }
            }
            let readable = readable(&self.db, &scope, DOCS);
            assert_eq!(self.devices[user].live(), readable, "what {name} has");
            let listed = self.db.all_docs(&scope, &rean_store::IdRange::default(), 100).unwrap();
            assert_eq!(listed.len(), readable.len());
            assert_eq!(self.db.scoped_info(&scope).doc_count, readable.len() as u64);
            self.check_by_access(user, &readable);
        }
    }

    /// The same from first principles: the winner's readers name the user, or they don't.
    fn check_by_access(&self, user: usize, readable: &BTreeMap<String, String>) {
        for doc in 0..DOCS {
            let id = format!("d{doc}");
            let named = names(&self.db, &id, &self.accounts[user], USERS[user], self.rules);
            assert_eq!(readable.contains_key(&id), named, "{id} for {}", USERS[user]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn devices_show_what_their_users_may_read(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for (at, step) in steps.iter().enumerate() {
            world.take(step);
            world.check_ids();
            world.hear();
            if at % 7 == 6 {
                prop_assert_eq!(world.db.verify().unwrap(), Vec::<String>::new());
            }
        }
        world.check();
        world.check_ids();
        // Another device of each user begins only now.
        world.devices.iter_mut().for_each(|device| *device = Device::default());
        world.check();
        world.check_ids();
    }
}
