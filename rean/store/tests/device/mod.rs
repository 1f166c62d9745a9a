//! A client as PouchDB is one, and what tests of random histories have in common: users, readers, rules, edits.
#![allow(dead_code, reason = "each test program uses its part of this")]

use rean_store::engine::memory::MemoryEngine;
use rean_store::tree::RevTree;
use rean_store::{
    AppRules, Author, Change, Db, Edit, Feed, FeedRow, Mode, Observer, Offer, Rev, RevView, Scope, Since, Store,
    StoreKeys, Who, Write, WriteError, Written,
};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, mpsc};
use tempfile::TempDir;

pub const USERS: [&str; 3] = ["ann", "bob", "cy"];
pub const READERS: [&[&str]; 7] = [
    &["user:ann"],
    &["user:bob", "user:ann"],
    &["role:staff"],
    &["role:staff", "user:cy"],
    &["users"],
    &["anyone"],
    &[],
];

/// A user with what is known of their roles.
#[derive(Default, Clone)]
pub struct Account {
    pub staff: bool,
}

impl Account {
    pub fn who(&self, name: &str) -> Who {
        let roles = if self.staff { vec!["staff".to_owned()] } else { Vec::new() };
        Who { name: Some(name.to_owned()), roles }
    }
}

/// What PouchDB keeps: trees and contents, and where it was in the feed.
#[derive(Default)]
pub struct Device {
    pub trees: BTreeMap<String, RevTree>,
    pub bodies: BTreeMap<(String, Rev), String>,
    since: Option<String>,
    feed: Option<(Feed, Scope)>,
    pub edits: u32,
    /// Ends that it was told: revisions that no one wrote.
    pub told: BTreeSet<(String, Rev)>,
}

impl Device {
    pub fn live(&self) -> BTreeMap<String, String> {
        let content = |(id, tree): (&String, &RevTree)| {
            let winner = &tree.nodes()[tree.winner()?];
            (!winner.deleted)
                .then(|| (id.clone(), self.bodies.get(&(id.clone(), winner.rev.clone())).cloned().unwrap_or_default()))
        };
        self.trees.iter().filter_map(content).collect()
    }

    /// Reads a page and keeps the place of its last row, as a client that is cut off after it.
    pub fn pull(&mut self, db: &Db, scope: &Scope, rows: usize) -> bool {
        self.hang_up();
        let since = self.since.clone().map_or(Since::Start, Since::Token);
        let mut feed = db.feed(scope, since).unwrap();
        let page = feed.next_page(rows).unwrap();
        page.iter().for_each(|row| self.apply(db, scope, row));
        self.since = Some(page.last().map_or_else(|| feed.token(), |row| row.seq_token.clone()));
        page.is_empty() && feed.caught_up()
    }

    /// Follows live from where it is.
    pub fn listen(&mut self, db: &Db, scope: &Scope) {
        self.hang_up();
        let since = self.since.clone().map_or(Since::Start, Since::Token);
        self.feed = Some((db.feed(scope, since).unwrap(), scope.clone()));
        self.catch_up(db);
    }

    pub fn catch_up(&mut self, db: &Db) {
        let Some((mut feed, scope)) = self.feed.take() else { return };
        while !feed.caught_up() {
            let page = feed.next_page(2).unwrap();
            page.iter().for_each(|row| self.apply(db, &scope, row));
        }
        self.feed = Some((feed, scope));
    }

    pub fn hear(&mut self, db: &Db, change: &Arc<Change>) {
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

    /// Is cut off before it has noted its place: it begins again, with what it has.
    pub fn lose_place(&mut self) {
        self.hang_up();
        self.since = None;
    }

    pub fn hang_up(&mut self) {
        if let Some((feed, _)) = self.feed.take() {
            self.since = Some(feed.token());
        }
    }

    /// Edits what the device shows; `None`: it shows no such document. `number`: the device's, as no two make the same edit.
    /// What is made is kept only with [`Device::keep`].
    pub fn edit(&mut self, number: usize, id: &str, value: u8) -> Option<Edit> {
        let tree = self.trees.get(id)?;
        let winner = tree.winner()?;
        let node = &tree.nodes()[winner];
        if node.deleted {
            return None;
        }
        self.edits += 1;
        let old = self.bodies.get(&(id.to_owned(), node.rev.clone())).cloned().unwrap_or("{}".to_owned());
        let mut body: serde_json::Value = serde_json::from_str(&old).unwrap();
        body["value"] = json!(value);
        body["edited"] = json!(format!("{number}/{}", self.edits));
        let rev = Rev::next(Some(&node.rev), false, body.to_string().as_bytes(), std::iter::empty());
        let mut history = vec![rev];
        history.extend(tree.path(winner));
        Some(Edit { history, ..edit(id, None, body) })
    }

    /// Keeps an edit of its own.
    pub fn keep(&mut self, id: &str, history: &[Rev], body: &[u8], deleted: bool) {
        let _ = self.trees.entry(id.to_owned()).or_default().merge(history, deleted, Some(1), 1);
        self.bodies.insert((id.to_owned(), history[0].clone()), String::from_utf8(body.to_vec()).unwrap());
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
            // Who sees all sees no such revision.
            if found.deleted && db.revision(&Scope::All, &row.id, rev).unwrap().is_none() {
                self.told.insert((row.id.to_string(), rev.clone()));
            }
            if let Some(body) = found.body.and_then(|at| db.body(at).unwrap()) {
                let text = String::from_utf8(body.json.to_vec()).unwrap();
                self.bodies.insert((row.id.to_string(), rev.clone()), text);
            }
        }
    }
}

/// Keeps what was committed, for the live feeds.
#[derive(Default)]
pub struct Heard {
    pub changes: Mutex<Vec<Arc<Change>>>,
}

impl Observer for Heard {
    fn committed(&self, _: &Db, changes: &[Arc<Change>]) {
        self.changes.lock().unwrap().extend_from_slice(changes);
    }

    fn deleted(&self, _: &Db) {}
}

pub fn open(engine: &MemoryEngine, folder: &TempDir, heard: &Arc<Heard>) -> Store {
    let keys = StoreKeys { chain: [1; 32], bookmark: [2; 32] };
    Store::open_on(Box::new(engine.clone()), folder.path(), keys, Arc::clone(heard) as Arc<dyn Observer>).unwrap()
}

pub fn rules(version: u8) -> AppRules {
    let read = match version {
        0 => json!(["user:${owner}"]),
        1 => json!(["role:staff", "user:${owner}"]),
        _ => json!(["users"]),
    };
    AppRules::parse(&json!({"rules": [{"selector": {"owner": {"$exists": true}}, "read": read}]})).unwrap()
}

pub fn submit(db: &Db, edit: Edit, author: Author, mode: Mode) -> Result<Written, WriteError> {
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move |result: Result<Vec<_>, _>| sender.send(result).unwrap());
    db.submit(Write { edits: vec![edit], author, mode }, done);
    receiver.recv().unwrap().unwrap().remove(0)
}

pub fn edit(id: &str, parent: Option<Rev>, body: serde_json::Value) -> Edit {
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

pub fn admin() -> Author {
    Author::admin(Who::default())
}

/// The live documents of a scope with their content. A conflict is resolved by hand: here only what the winner says
/// is compared.
pub fn readable(db: &Db, scope: &Scope, docs: usize) -> BTreeMap<String, String> {
    let mut readable = BTreeMap::new();
    for id in (0..docs).map(|doc| format!("d{doc}")) {
        if let Some(view) = db.doc(scope, &id).unwrap()
            && !view.winner().deleted
        {
            let body = db.body(view.winner().body.unwrap()).unwrap().unwrap();
            readable.insert(id, String::from_utf8(body.json.to_vec()).unwrap());
        }
    }
    readable
}

/// Whether a live document's readers name a user, by what it says and the rules' version.
pub fn names(db: &Db, id: &str, account: &Account, name: &str, rules: u8) -> bool {
    let Some(view) = db.doc(&Scope::All, id).unwrap() else { return false };
    if view.winner().deleted {
        return false;
    }
    is_named(db, view.winner(), account, name, rules)
}

/// Whether a revision's readers name a user.
pub fn is_named(db: &Db, rev: &RevView, account: &Account, name: &str, rules: u8) -> bool {
    let Some(body) = rev.body.and_then(|at| db.body(at).unwrap()) else { return false };
    let body: serde_json::Value = serde_json::from_slice(&body.json).unwrap();
    let readers: Vec<String> = match (body.get("access"), body.get("owner").and_then(|o| o.as_str())) {
        (Some(access), _) => serde_json::from_value(access["read"].clone()).unwrap(),
        (None, Some(owner)) => match rules {
            0 => vec![format!("user:{owner}")],
            1 => vec!["role:staff".to_owned(), format!("user:{owner}")],
            _ => vec!["users".to_owned()],
        },
        (None, None) => Vec::new(),
    };
    readers.iter().any(|entry| match entry.as_str() {
        "users" | "anyone" => true,
        "role:staff" => account.staff,
        other => other == format!("user:{name}"),
    })
}
