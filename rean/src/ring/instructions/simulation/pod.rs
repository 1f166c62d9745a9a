//! A pod of the simulation: a real store on an engine of which what a crash would leave can be had at any commit, with
//! the real chain, progress and looks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};

use adea_ring::{PodId, Stamp};
use parking_lot::Mutex;
use rean_store::access::AppRules;
use rean_store::engine::memory::MemoryEngine;
use rean_store::engine::{Batch, Engine, EngineError, EngineStats, Snapshot, Space, Value};
use rean_store::{
    Author, Db, DbKind, Edit, Instructor, Mode, Move, NoObserver, PartInfo, Reader, Rev, Scope, Since, Store,
    StoreKeys, Who, Write, WriteError, Written, document,
};
use serde_json::{Map, Value as Json, json};
use tempfile::TempDir;

use super::super::carry_out::{Look, pass};
use super::super::progress::Progress;
use super::super::{Chain, Number, PREFIX};
use crate::ring::ring_doc;
use crate::ring::stamps::Stamps;
use crate::ring::status;

pub const USERS: [&str; 3] = ["ann", "bob", "cy"];
pub const READERS: [&[&str]; 5] = [&["user:ann"], &["user:bob", "user:ann"], &["role:staff"], &["users"], &[]];
pub const DOCS: usize = 3;
/// The document of the app's rules.
pub const RULES: &str = "app:notes";

/// An engine of which, when asked, what a crash would leave is kept before and after each commit.
#[derive(Clone, Default)]
pub struct Filmed {
    inner: MemoryEngine,
    filming: Arc<AtomicBool>,
    images: Arc<Mutex<Vec<MemoryEngine>>>,
}

impl Filmed {
    fn film(&self) {
        if self.filming.load(Ordering::Relaxed) {
            self.images.lock().push(self.inner.crash_image());
        }
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

/// Gives the instructions of a pod while it is master, as the recorder of a real one does, and remembers them.
struct Clerk {
    store: OnceLock<Store>,
    stamps: Stamps,
    state: Mutex<ClerkState>,
}

#[derive(Default)]
struct ClerkState {
    epoch: Option<Stamp>,
    chain: Chain,
    given: Vec<Given>,
}

/// An instruction that was given.
#[derive(Clone, Debug)]
pub struct Given {
    pub number: Number,
    pub moves: Vec<Move>,
    /// The revision of the app's rules that its pod had then.
    pub rules: Option<Rev>,
}

impl Instructor for Clerk {
    fn instruct(&self, moves: &[Move]) -> Vec<(String, Vec<u8>)> {
        let mut state = self.state.lock();
        let (Some(epoch), Some(store)) = (state.epoch.clone(), self.store.get()) else { return Vec::new() };
        let (id, body) = state.chain.give(store, &self.stamps, epoch, moves, &|_| Ok(None)).expect("the store works");
        let number = Number::of_doc(&id).expect("an instruction's id");
        let rules = store.db(ring_doc::RING).and_then(|ring| ring.doc(&Scope::All, RULES).expect("the store works"));
        let rules = rules.map(|view| view.winner().rev.clone());
        state.given.push(Given { number, moves: moves.to_vec(), rules });
        vec![(id, body)]
    }
}

/// What a device of a user has been shown, and where it was in its feed.
#[derive(Default)]
pub struct Device {
    since: Option<String>,
    shows: BTreeMap<String, bool>,
}

pub struct Pod {
    pub id: PodId,
    pub store: Store,
    pub db: Db,
    pub ring: Db,
    pub progress: Progress,
    /// Gaps that were waited for long enough.
    pub passed: BTreeSet<Number>,
    /// How far it has come in the rows of each other pod.
    pub taken: BTreeMap<usize, u64>,
    pub devices: [Device; USERS.len()],
    pub is_away: bool,
    /// What it has said to have carried out.
    pub said: BTreeMap<Stamp, u64>,
    engine: Filmed,
    _folder: TempDir,
    clerk: Arc<Clerk>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The clerk holds the store that holds it.
        self.store.set_instructor(None);
        self.store.close();
    }
}

fn open(engine: &Filmed, id: &PodId) -> (Store, Arc<Clerk>, TempDir) {
    // A folder of its own each time: it holds what tells that commits were lost.
    let folder = TempDir::new().expect("a folder");
    let keys = StoreKeys { chain: [1; 32], bookmark: [2; 32] };
    let store =
        Store::open_on(Box::new(engine.clone()), folder.path(), keys, Arc::new(NoObserver)).expect("the store opens");
    let clerk = Clerk { store: OnceLock::new(), stamps: Stamps::new(id.clone()), state: Mutex::default() };
    assert!(clerk.store.set(store.clone()).is_ok());
    let clerk = Arc::new(clerk);
    store.set_instructor(Some(Arc::clone(&clerk) as Arc<dyn Instructor>));
    (store, clerk, folder)
}

pub fn admin() -> Author {
    Author::admin(Who::default())
}

pub fn who(user: usize) -> Who {
    let roles = if USERS[user] == "cy" { vec!["staff".to_owned()] } else { Vec::new() };
    Who { name: Some(USERS[user].to_owned()), roles }
}

fn rules(version: u64) -> AppRules {
    let read = match version {
        0 => json!(["user:${owner}"]),
        1 => json!(["role:staff", "user:${owner}"]),
        _ => json!(["users"]),
    };
    AppRules::parse(&json!({"rules": [{"selector": {"owner": {"$exists": true}}, "read": read}]})).expect("rules")
}

pub fn submit(db: &Db, edits: Vec<Edit>, mode: Mode) -> Vec<Result<Written, WriteError>> {
    let (sender, receiver) = mpsc::channel();
    // Nobody is there who could not listen.
    let done = Box::new(move |result: Result<Vec<_>, _>| sender.send(result).expect("somebody waits"));
    db.submit(Write { edits, author: admin(), mode }, done);
    receiver.recv().expect("an answer").expect("the store works")
}

impl Pod {
    pub fn new(id: &str) -> Self {
        let (engine, id): (_, PodId) = (Filmed::default(), id.parse().expect("a pod's id"));
        let (store, clerk, folder) = open(&engine, &id);
        let ring = store.create_db(ring_doc::RING, DbKind::Plain).expect("a database");
        let db = store.create_db("notes", DbKind::App).expect("a database");
        let pod = Self {
            id,
            store,
            db,
            ring,
            progress: Progress::default(),
            passed: BTreeSet::new(),
            taken: BTreeMap::new(),
            devices: Default::default(),
            is_away: false,
            said: BTreeMap::new(),
            engine,
            _folder: folder,
            clerk,
        };
        pod.rule();
        pod.place();
        pod
    }

    pub fn film(&self) {
        self.engine.images.lock().clear();
        self.engine.filming.store(true, Ordering::Relaxed);
    }

    /// Starts again on one of the images that were made since [`Pod::film`], or on what is there now.
    pub fn crash(&mut self, which: usize, keeps_role: bool) {
        self.engine.filming.store(false, Ordering::Relaxed);
        let mut images = std::mem::take(&mut *self.engine.images.lock());
        images.push(self.engine.inner.crash_image());
        self.store.set_instructor(None);
        self.store.close();
        let image = images.swap_remove(which % images.len());
        self.engine = Filmed { inner: image, ..Filmed::default() };
        let epoch = self.clerk.state.lock().epoch.clone().filter(|_| keeps_role);
        let (store, clerk, folder) = open(&self.engine, &self.id);
        clerk.state.lock().epoch = epoch;
        let open = |name: &str| store.db(name).expect("its databases are there");
        (self.ring, self.db) = (open(ring_doc::RING), open("notes"));
        (self.store, self.clerk, self._folder) = (store, clerk, folder);
        self.progress = Progress::default();
        self.progress.load(&self.store).expect("the store works");
        self.passed.clear();
        self.rule();
    }

    pub fn lead(&self, epoch: Option<Stamp>) {
        self.clerk.state.lock().epoch = epoch;
    }

    pub fn epoch(&self) -> Option<Stamp> {
        self.clerk.state.lock().epoch.clone()
    }

    /// What it has given since it was asked last.
    pub fn given(&self) -> Vec<Given> {
        std::mem::take(&mut self.clerk.state.lock().given)
    }

    pub fn winner(&self, db: &Db, id: &str) -> Option<(Rev, bool)> {
        let view = db.doc(&Scope::All, id).expect("the store works")?;
        Some((view.winner().rev.clone(), view.winner().deleted))
    }

    pub fn knows(&self, db: &Db, id: &str, rev: &Rev) -> bool {
        let diff = db.revs_diff(&Scope::All, id, std::slice::from_ref(rev)).expect("the store works");
        diff.missing.is_empty()
    }

    /// An administrator's edit of what is there; `None`: a deletion of nothing.
    pub fn edit(&self, db: &Db, id: &str, body: Option<&Json>) -> Option<Edit> {
        let winner = self.winner(db, id).filter(|(_, deleted)| !deleted).map(|(rev, _)| rev);
        let deleted = body.is_none();
        if deleted && winner.is_none() {
            return None;
        }
        let body = body.cloned().unwrap_or_else(|| json!({}));
        let access = body.get("access").map(ToString::to_string);
        let mut edit = ring_doc::edit(id, winner, body.as_object().unwrap_or(&Map::new()));
        (edit.deleted, edit.access) = (deleted, access);
        Some(edit)
    }

    pub fn write_rules(&self, version: u64) {
        let edit = self.edit(&self.ring, RULES, Some(&json!({"version": version})));
        submit(&self.ring, edit.into_iter().collect(), Mode::Interactive).remove(0).expect("written");
    }

    /// Puts the rules in force that have come, as a link does with what it brings.
    pub fn rule(&self) {
        let said = ring_doc::live(&self.ring, RULES).expect("the store works");
        let version = said.and_then(|said| said.body.get("version").and_then(Json::as_u64)).unwrap_or(0);
        self.db.set_rules(rules(version)).expect("the store works");
    }

    pub fn place(&self) {
        self.db.repartition(&mut |_, _| {}).expect("the store works");
    }

    /// The partial database that a document is in.
    pub fn part_of(&self, id: &str) -> Option<PartInfo> {
        // A move that nobody has made is carried out everywhere but where the document is.
        let unknown: Rev = "999-0000000000000000000000000000000a".parse().expect("a revision");
        let is_in = |part: &PartInfo| !self.db.move_state(id, &part.signature, &unknown).expect("the store works");
        self.db.parts().into_iter().find(is_in)
    }

    /// The signatures of where all documents are.
    pub fn places(&self) -> Vec<Option<String>> {
        (0..DOCS).map(|doc| self.part_of(&format!("d{doc}")).map(|part| part.signature)).collect()
    }

    /// Looks at all instructions, as the worker does.
    pub fn look(&self) -> Look {
        loop {
            let place = |db: &Db| {
                self.rule();
                Ok(!db.needs_repartition())
            };
            let mut look = pass(&self.store, &self.progress, &self.passed, &place).expect("the store works");
            let firsts = look.open.values().map(|(number, _)| number.clone()).collect();
            self.progress.found(std::mem::take(&mut look.live), firsts);
            if look.carried > 0 {
                self.progress.save(&self.store).expect("the store works");
            }
            if !look.more {
                return look;
            }
        }
    }

    /// Writes its status.
    pub fn report(&mut self) {
        let body = json!({"carried_out_in": self.progress.by_epoch()});
        let edit = self.edit(&self.ring, &status::doc_id(&self.id), Some(&body));
        submit(&self.ring, edit.into_iter().collect(), Mode::Interactive).remove(0).expect("written");
    }

    /// Takes up what its status says, as far as that is on disk.
    pub fn note_said(&mut self) {
        let said = ring_doc::live(&self.ring, &status::doc_id(&self.id)).expect("the store works");
        let said = said.and_then(|said| said.body.get("carried_out_in").and_then(Json::as_object).cloned());
        for (epoch, number) in super::super::progress::read_reached(said.unwrap_or_default().iter()) {
            let known = self.said.entry(epoch).or_default();
            *known = number.max(*known);
        }
    }

    /// Forgets the tombstones of instructions.
    pub fn purge(&self) {
        let mut feed = self.ring.feed(&Scope::All, Since::Start).expect("a feed");
        while !feed.caught_up() {
            for row in feed.next_page(100).expect("the store works") {
                if row.deleted && row.id.starts_with(PREFIX) {
                    let (sender, receiver) = mpsc::channel();
                    let done = Box::new(move |result: Result<_, _>| {
                        sender.send(result.map(|_| ())).expect("somebody waits");
                    });
                    self.ring.purge(&row.id, &row.revs, done);
                    receiver.recv().expect("an answer").expect("purged");
                }
            }
        }
    }

    /// A revision as it goes over a link.
    pub fn give(&self, db: &Db, id: &str, rev: &Rev) -> Option<Edit> {
        let (view, found) = db.revision(&Scope::All, id, rev).expect("the store works")?;
        let body = found.body.and_then(|at| db.body(at).expect("the store works"));
        let body = body.map_or_else(|| "{}".into(), |body| body.json);
        Some(Edit {
            id: id.to_owned(),
            parent: None,
            history: view.history(&found),
            deleted: found.deleted,
            access: document::access_member(&body),
            body,
            attachments: Vec::new(),
        })
    }

    /// Has a user's device read on, and one from the start; tells what they and the user's reads show.
    pub fn read(&mut self, user: usize) -> BTreeSet<String> {
        let reader = self.db.reader(who(user));
        let scope = Scope::Personal(reader);
        let mut shown = BTreeSet::new();
        let mut fresh = Device::default();
        for device in [&mut self.devices[user], &mut fresh] {
            device.catch_up(&self.db, &scope);
            shown.extend(device.shows.iter().filter(|(_, live)| **live).map(|(id, _)| id.clone()));
        }
        for id in (0..DOCS).map(|doc| format!("d{doc}")) {
            if let Some(view) = self.db.doc(&scope, &id).expect("the store works")
                && !view.winner().deleted
            {
                shown.insert(id);
            }
        }
        shown
    }

    /// Whether a user is named by the readers of where a document is.
    pub fn is_named(&self, user: usize, id: &str) -> bool {
        let part = self.part_of(id);
        part.is_some_and(|part| Reader::new(who(user)).is_among(&part.readers))
    }
}

impl Device {
    fn catch_up(&mut self, db: &Db, scope: &Scope) {
        let since = self.since.take().map_or(Since::Start, Since::Token);
        let mut feed = db.feed(scope, since).expect("a feed");
        while !feed.caught_up() {
            for row in feed.next_page(2).expect("the store works") {
                self.shows.insert(row.id.to_string(), !row.deleted);
            }
        }
        self.since = Some(feed.token());
    }
}
