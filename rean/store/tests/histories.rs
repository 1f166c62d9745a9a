//! Random histories of one app: writes, moves, deletions, conflicts, changes of roles and rules, and crashes,
//! with devices that follow as PouchDB does. Whatever the order:
//! - the store agrees with itself after every step and in every state that a crash can leave;
//! - a device that has caught up shows exactly what its user may read, with the present content;
//! - nothing that a device sends back undoes or deletes anything.

use proptest::prelude::*;
use rean_store::engine::memory::MemoryEngine;
use rean_store::tree::RevTree;
use rean_store::{
    AppRules, Author, Change, Db, DbKind, Edit, Feed, FeedRow, Mode, Observer, Offer, Rev, Scope, Since, Store,
    StoreKeys, Who, Write, WriteError, Written,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, mpsc};
use tempfile::TempDir;

const USERS: [&str; 3] = ["ann", "bob", "cy"];
const READERS: [&[&str]; 7] = [
    &["user:ann"],
    &["user:bob", "user:ann"],
    &["role:staff"],
    &["role:staff", "user:cy"],
    &["users"],
    &["anyone"],
    &[],
];
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
        2 => (0..USERS.len()).prop_map(|user| Step::Push { user }),
        3 => (0..USERS.len(), doc, any::<u8>()).prop_map(|(user, doc, value)| Step::Edit { user, doc, value }),
        1 => Just(Step::Compact),
        1 => Just(Step::Crash),
    ]
}

/// A user with what is known of their roles.
#[derive(Default, Clone)]
struct Account {
    staff: bool,
}

impl Account {
    fn who(&self, name: &str) -> Who {
        let roles = if self.staff { vec!["staff".to_owned()] } else { Vec::new() };
        Who { name: Some(name.to_owned()), roles }
    }
}

/// What PouchDB keeps: trees and contents, and where it was in the feed.
#[derive(Default)]
struct Device {
    trees: BTreeMap<String, RevTree>,
    bodies: BTreeMap<(String, Rev), String>,
    since: Option<String>,
    feed: Option<(Feed, Scope)>,
    edits: u32,
}

impl Device {
    fn live(&self) -> BTreeMap<String, String> {
        let content = |(id, tree): (&String, &RevTree)| {
            let winner = &tree.nodes()[tree.winner()?];
            (!winner.deleted)
                .then(|| (id.clone(), self.bodies.get(&(id.clone(), winner.rev.clone())).cloned().unwrap_or_default()))
        };
        self.trees.iter().filter_map(content).collect()
    }

    /// Reads a page and keeps the place of its last row, as a client that is cut off after it.
    fn pull(&mut self, db: &Db, scope: &Scope, rows: usize) -> bool {
        self.hang_up();
        let since = self.since.clone().map_or(Since::Start, Since::Token);
        let mut feed = db.feed(scope, since).unwrap();
        let page = feed.next_page(rows).unwrap();
        page.iter().for_each(|row| self.apply(db, scope, row));
        self.since = Some(page.last().map_or_else(|| feed.token(), |row| row.seq_token.clone()));
        page.is_empty() && feed.caught_up()
    }

    /// Follows live from where it is.
    fn listen(&mut self, db: &Db, scope: &Scope) {
        self.hang_up();
        let since = self.since.clone().map_or(Since::Start, Since::Token);
        self.feed = Some((db.feed(scope, since).unwrap(), scope.clone()));
        self.catch_up(db);
    }

    fn catch_up(&mut self, db: &Db) {
        let Some((mut feed, scope)) = self.feed.take() else { return };
        while !feed.caught_up() {
            let page = feed.next_page(2).unwrap();
            page.iter().for_each(|row| self.apply(db, &scope, row));
        }
        self.feed = Some((feed, scope));
    }

    fn hear(&mut self, db: &Db, change: &Arc<Change>) {
        let Some((mut feed, scope)) = self.feed.take() else { return };
        let offer = feed.offer(change);
        if let Offer::Row(row) = &offer {
            self.apply(db, &scope, row);
        }
        if matches!(offer, Offer::Gap) {
            let page = feed.next_page(2).unwrap();
            page.iter().for_each(|row| self.apply(db, &scope, row));
        }
        self.feed = Some((feed, scope));
        if matches!(offer, Offer::Gap) {
            self.catch_up(db);
        }
    }

    fn hang_up(&mut self) {
        if let Some((feed, _)) = self.feed.take() {
            self.since = Some(feed.token());
        }
    }

    fn apply(&mut self, db: &Db, scope: &Scope, row: &FeedRow) {
        for rev in &row.revs {
            let tree = self.trees.entry(row.id.to_string()).or_default();
            if tree.find(rev).is_some() {
                continue;
            }
            // A live feed can be a step behind: what has left the reader's sight since is not theirs to fetch,
            // and the row that tells so is on its way.
            let Some((view, found)) = db.revision(scope, &row.id, rev).unwrap() else { continue };
            let _ = tree.merge(&view.history(&found), found.deleted, Some(1), 1);
            if let Some(body) = found.body.and_then(|at| db.body(at).unwrap()) {
                let text = String::from_utf8(body.json.to_vec()).unwrap();
                self.bodies.insert((row.id.to_string(), rev.clone()), text);
            }
        }
    }
}

/// Keeps what was committed, for the live feeds.
#[derive(Default)]
struct Heard {
    changes: Mutex<Vec<Arc<Change>>>,
}

impl Observer for Heard {
    fn committed(&self, _: &Db, changes: &[Arc<Change>]) {
        self.changes.lock().unwrap().extend_from_slice(changes);
    }

    fn deleted(&self, _: &Db) {}
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
}

fn open(engine: &MemoryEngine, folder: &TempDir, heard: &Arc<Heard>) -> Store {
    let keys = StoreKeys { chain: [1; 32], bookmark: [2; 32] };
    Store::open_on(Box::new(engine.clone()), folder.path(), keys, Arc::clone(heard) as Arc<dyn Observer>).unwrap()
}

fn rules(version: u8) -> AppRules {
    let read = match version {
        0 => json!(["user:${owner}"]),
        1 => json!(["role:staff", "user:${owner}"]),
        _ => json!(["users"]),
    };
    AppRules::parse(&json!({"rules": [{"selector": {"owner": {"$exists": true}}, "read": read}]})).unwrap()
}

fn submit(db: &Db, edit: Edit, author: Author, mode: Mode) -> Result<Written, WriteError> {
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move |result: Result<Vec<_>, _>| sender.send(result).unwrap());
    db.submit(Write { edits: vec![edit], author, mode }, done);
    receiver.recv().unwrap().unwrap().remove(0)
}

fn edit(id: &str, parent: Option<Rev>, body: serde_json::Value) -> Edit {
    Edit {
        id: id.to_owned(),
        parent,
        history: Vec::new(),
        deleted: false,
        access: body.get("access").map(ToString::to_string),
        body: body.to_string().into(),
        attachments: Vec::new(),
    }
}

fn admin() -> Author {
    Author::admin(Who::default())
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
        World { engine, folder, store, db, accounts: vec![Account::default(); USERS.len()], devices, heard, rules: 0 }
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
        let device = &mut self.devices[user];
        let Some(tree) = device.trees.get_mut(id) else { return };
        let winner = tree.winner().unwrap();
        let node = tree.nodes()[winner].clone();
        if node.deleted {
            return;
        }
        device.edits += 1;
        let old = device.bodies.get(&(id.to_owned(), node.rev.clone())).cloned().unwrap_or("{}".to_owned());
        let mut body: serde_json::Value = serde_json::from_str(&old).unwrap();
        body["value"] = json!(value);
        body["edited"] = json!(format!("{user}/{}", device.edits));
        let rev = Rev::next(Some(&node.rev), false, body.to_string().as_bytes(), std::iter::empty());
        let mut history = vec![rev.clone()];
        history.extend(tree.path(winner));
        let mut new = edit(id, None, body.clone());
        new.history.clone_from(&history);
        let may_write = {
            let view = self.db.doc(&Scope::All, id).unwrap().unwrap();
            let current = view.winner().clone();
            let stored = self.db.body(current.body.unwrap()).unwrap();
            (current, stored.map(|body| body.json))
        };
        let author = Author::user(self.accounts[user].who(USERS[user]));
        let result = submit(&self.db, new, author, Mode::Replicated);
        match result {
            Ok(written) => {
                assert!(written.changed);
                assert_eq!(written.rev, self.winner(id).unwrap().0, "an edit that was taken is not the winner");
                let device = &mut self.devices[user];
                let tree = device.trees.get_mut(id).unwrap();
                let _ = tree.merge(&history, false, Some(1), 1);
                device.bodies.insert((id.to_owned(), rev), body.to_string());
            }
            Err(WriteError::Forbidden(_)) => {
                let (current, _) = may_write;
                let now = self.winner(id).unwrap().0;
                assert_eq!(current.rev, now, "a refused edit changed the document");
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

    fn check(&mut self) {
        assert_eq!(self.db.verify().unwrap(), Vec::<String>::new());
        for (user, name) in USERS.iter().enumerate() {
            let scope = self.scope(user);
            for _ in 0..200 {
                if self.devices[user].pull(&self.db, &scope, 3) {
                    break;
                }
            }
            // A conflict is resolved by hand; here only what the winner says is compared.
            let mut readable = BTreeMap::new();
            for doc in 0..DOCS {
                let id = format!("d{doc}");
                if let Some(view) = self.db.doc(&scope, &id).unwrap()
                    && !view.winner().deleted
                {
                    let body = self.db.body(view.winner().body.unwrap()).unwrap().unwrap();
                    readable.insert(id, String::from_utf8(body.json.to_vec()).unwrap());
                }
            }
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
            let Some(view) = self.db.doc(&Scope::All, &id).unwrap() else { continue };
            if view.winner().deleted {
                continue;
            }
            let body = self.db.body(view.winner().body.unwrap()).unwrap().unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body.json).unwrap();
            let readers: Vec<String> = match (body.get("access"), body.get("owner").and_then(|o| o.as_str())) {
                (Some(access), _) => serde_json::from_value(access["read"].clone()).unwrap(),
                (None, Some(owner)) => match self.rules {
                    0 => vec![format!("user:{owner}")],
                    1 => vec!["role:staff".to_owned(), format!("user:{owner}")],
                    _ => vec!["users".to_owned()],
                },
                (None, None) => Vec::new(),
            };
            let named = readers.iter().any(|entry| match entry.as_str() {
                "users" | "anyone" => true,
                "role:staff" => self.accounts[user].staff,
                other => other == format!("user:{}", USERS[user]),
            });
            assert_eq!(readable.contains_key(&id), named, "{id} for {}, readers {readers:?}", USERS[user]);
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
            world.hear();
            if at % 7 == 6 {
                prop_assert_eq!(world.db.verify().unwrap(), Vec::<String>::new());
            }
        }
        world.check();
    }
}
