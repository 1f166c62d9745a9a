//! Several pods with one app: writes on one of them at a time, or on two after a split, random replication between
//! any two, rules that change on each pod when it likes, crashes, and devices that read on each pod. Whatever the
//! order:
//! - every pod agrees with itself after every step, so that each document is in at most one partial database there;
//! - a device never sends back what undoes or deletes anything;
//! - when all has been exchanged and the rules are the same, all pods have the same leaves, winner, content and place of
//!   every document, and each device on each pod shows exactly what its user may read.

mod device;

use device::{Account, Device, Heard, READERS, USERS, admin, edit, names, open, readable, rules, submit};
use proptest::prelude::*;
use rean_store::engine::memory::MemoryEngine;
use rean_store::{Author, Db, DbKind, Edit, Mode, Rev, Scope, Store, StoreRow, Write, WriteError, Written, document};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use tempfile::TempDir;

const DOCS: usize = 3;
/// Rounds of exchange and reading after which nothing may change any more. Reading can make a revision, which is
/// exchanged and read.
const ROUNDS: usize = 30;

/// One step. Pods are taken modulo their number.
#[derive(Debug, Clone)]
enum Step {
    /// Users' writes go to these pods from now on: one, or two that don't know of each other.
    Masters {
        first: usize,
        second: Option<usize>,
    },
    /// An administrator writes a document with these readers. `side` chooses among the masters, here and below.
    Put {
        side: usize,
        doc: usize,
        readers: usize,
        value: u8,
    },
    /// An administrator writes a document without `access`: the rules place it.
    Ruled {
        side: usize,
        doc: usize,
        owner: usize,
        value: u8,
    },
    Delete {
        side: usize,
        doc: usize,
    },
    Role {
        user: usize,
        has: bool,
    },
    Rules {
        pod: usize,
        version: u8,
    },
    /// One pod takes a page of what another has.
    Replicate {
        from: usize,
        to: usize,
        rows: usize,
        seed: u64,
    },
    /// A device reads some of its feed.
    Pull {
        pod: usize,
        user: usize,
        rows: usize,
    },
    /// A device follows live from now on.
    Listen {
        pod: usize,
        user: usize,
    },
    /// A device loses its place, but not what it has.
    Lose {
        pod: usize,
        user: usize,
    },
    /// A device sends back what the pod says it lacks.
    Push {
        pod: usize,
        user: usize,
        side: usize,
    },
    /// A device edits or deletes what it has and sends it; its pod hands it to a master, and has it back.
    Edit {
        pod: usize,
        user: usize,
        side: usize,
        doc: usize,
        value: u8,
        deletes: bool,
        /// The pod was answered before it had the edit back.
        late: bool,
    },
    Compact {
        pod: usize,
    },
    Crash {
        pod: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (pod, side, user, doc) = (0..12usize, 0..2usize, 0..USERS.len(), 0..DOCS);
    let at = (pod.clone(), user.clone());
    prop_oneof![
        2 => (pod.clone(), proptest::option::weighted(0.4, pod.clone()))
            .prop_map(|(first, second)| Step::Masters { first, second }),
        6 => (side.clone(), doc.clone(), 0..READERS.len(), any::<u8>())
            .prop_map(|(side, doc, readers, value)| Step::Put { side, doc, readers, value }),
        2 => (side.clone(), doc.clone(), 0..3usize, any::<u8>())
            .prop_map(|(side, doc, owner, value)| Step::Ruled { side, doc, owner, value }),
        2 => (side.clone(), doc.clone()).prop_map(|(side, doc)| Step::Delete { side, doc }),
        3 => (user.clone(), any::<bool>()).prop_map(|(user, has)| Step::Role { user, has }),
        2 => (pod.clone(), 0..3u8).prop_map(|(pod, version)| Step::Rules { pod, version }),
        10 => (pod.clone(), pod.clone(), 1..6usize, any::<u64>())
            .prop_map(|(from, to, rows, seed)| Step::Replicate { from, to, rows, seed }),
        8 => (at.clone(), 1..6usize).prop_map(|((pod, user), rows)| Step::Pull { pod, user, rows }),
        3 => at.clone().prop_map(|(pod, user)| Step::Listen { pod, user }),
        2 => at.clone().prop_map(|(pod, user)| Step::Lose { pod, user }),
        2 => (at.clone(), side.clone()).prop_map(|((pod, user), side)| Step::Push { pod, user, side }),
        4 => (at, side, doc, any::<u8>(), proptest::bool::weighted(0.2), proptest::bool::weighted(0.2)).prop_map(
            |((pod, user), side, doc, value, deletes, late)| Step::Edit { pod, user, side, doc, value, deletes, late }
        ),
        1 => pod.clone().prop_map(|pod| Step::Compact { pod }),
        1 => pod.prop_map(|pod| Step::Crash { pod }),
    ]
}

struct Pod {
    engine: MemoryEngine,
    folder: TempDir,
    store: Store,
    db: Db,
    heard: Arc<Heard>,
    devices: Vec<Device>,
    rules: u8,
    /// How far it has come in each other pod's rows.
    taken: BTreeMap<usize, u64>,
}

impl Pod {
    fn new() -> Pod {
        let (engine, folder) = (MemoryEngine::new(), TempDir::new().unwrap());
        let heard = Arc::new(Heard::default());
        let store = open(&engine, &folder, &heard);
        let db = store.create_db("notes", DbKind::App).unwrap();
        db.set_rules(rules(0)).unwrap();
        db.repartition(&mut |_, _| {}).unwrap();
        let devices = USERS.iter().map(|_| Device::default()).collect();
        Pod { engine, folder, store, db, heard, devices, rules: 0, taken: BTreeMap::new() }
    }

    fn scope(&self, user: usize, accounts: &[Account]) -> Scope {
        Scope::Personal(self.db.reader(accounts[user].who(USERS[user])))
    }

    fn winner(&self, id: &str) -> Option<(Rev, bool)> {
        let view = self.db.doc(&Scope::All, id).unwrap()?;
        Some((view.winner().rev.clone(), view.winner().deleted))
    }

    /// An administrator's write.
    fn put(&self, id: &str, body: Option<serde_json::Value>) {
        let winner = self.winner(id);
        let deleted = body.is_none();
        if deleted && winner.as_ref().is_none_or(|(_, deleted)| *deleted) {
            return;
        }
        let parent = winner.filter(|(_, deleted)| !deleted).map(|(rev, _)| rev);
        let edit = Edit { deleted, ..edit(id, parent, body.unwrap_or(json!({}))) };
        submit(&self.db, edit, admin(), Mode::Interactive).unwrap();
    }

    fn set_rules(&mut self, version: u8) {
        self.rules = version;
        self.db.set_rules(rules(version)).unwrap();
        self.db.repartition(&mut |_, _| {}).unwrap();
    }

    /// A revision as it goes over a link.
    fn give(&self, id: &str, rev: &Rev) -> Option<Edit> {
        let (view, found) = self.db.revision(&Scope::All, id, rev).unwrap()?;
        let body = found.body.and_then(|at| self.db.body(at).unwrap());
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

    fn take(&self, edits: Vec<Edit>) -> Vec<Written> {
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |result: Result<Vec<_>, _>| sender.send(result).unwrap());
        self.db.submit(Write { edits, author: admin(), mode: Mode::Replicated }, done);
        receiver
            .recv()
            .unwrap()
            .unwrap()
            .into_iter()
            .map(|result: Result<Written, WriteError>| result.unwrap())
            .collect()
    }

    fn hear(&mut self) {
        let changes = std::mem::take(&mut *self.heard.changes.lock().unwrap());
        for change in &changes {
            self.devices.iter_mut().for_each(|device| device.hear(&self.db, change));
        }
    }

    fn crash(&mut self) {
        self.devices.iter_mut().for_each(Device::hang_up);
        let history = self.store.history().to_owned();
        self.store.close();
        self.engine = self.engine.crash_image();
        self.store = open(&self.engine, &self.folder, &self.heard);
        assert_eq!(self.store.history(), history);
        self.db = self.store.db("notes").unwrap();
        self.db.repartition(&mut |_, _| {}).unwrap();
    }

    /// All that must be the same on all pods.
    fn documents(&self) -> BTreeMap<String, Document> {
        let unknown: Rev = "999-0000000000000000000000000000000a".parse().unwrap();
        let mut out = BTreeMap::new();
        for id in (0..DOCS).map(|doc| format!("d{doc}")) {
            let Some(view) = self.db.doc(&Scope::All, &id).unwrap() else { continue };
            let leaves = view.leaves.iter().map(|leaf| (leaf.rev.clone(), leaf.deleted)).collect();
            let body = view.winner().body.filter(|_| !view.winner().deleted);
            let body = body.map_or_else(String::new, |at| {
                String::from_utf8(self.db.body(at).unwrap().unwrap().json.to_vec()).unwrap()
            });
            // A move that nobody has made is carried out everywhere but where the document is.
            let is_in = |signature: &String| !self.db.move_state(&id, signature, &unknown).unwrap();
            let place = self.db.parts().into_iter().map(|part| part.signature).find(is_in);
            out.insert(id, Document { leaves, body, place });
        }
        out
    }
}

#[derive(Debug, PartialEq)]
struct Document {
    /// Winner first, with whether it is a deletion.
    leaves: Vec<(Rev, bool)>,
    /// The winner's.
    body: String,
    /// The signature of the partial database that it is in.
    place: Option<String>,
}

struct Ring {
    pods: Vec<Pod>,
    accounts: Vec<Account>,
    masters: Vec<usize>,
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.pods.iter().for_each(|pod| pod.store.close());
    }
}

/// An edit as the deletion that PouchDB would make: without `access`.
fn deletion(mut edit: Edit) -> Edit {
    edit.history[0] = Rev::next(edit.history.get(1), true, b"{}", std::iter::empty());
    Edit { deleted: true, body: "{}".into(), access: None, ..edit }
}

/// A small generator (Knuth's MMIX), for orders that a step's seed decides.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

impl Ring {
    fn new(pods: usize) -> Ring {
        let pods = (0..pods).map(|_| Pod::new()).collect();
        Ring { pods, accounts: vec![Account::default(); USERS.len()], masters: vec![0] }
    }

    fn master(&self, side: usize) -> usize {
        self.masters[side % self.masters.len()]
    }

    fn take(&mut self, step: &Step) {
        let n = self.pods.len();
        match step {
            Step::Masters { first, second } => {
                self.masters = std::iter::once(first).chain(second).map(|pod| pod % n).collect();
            }
            Step::Put { side, doc, readers, value } => {
                let body = json!({"value": value, "access": {"read": READERS[*readers]}});
                self.pods[self.master(*side)].put(&format!("d{doc}"), Some(body));
            }
            Step::Ruled { side, doc, owner, value } => {
                let body = json!({"value": value, "owner": USERS[*owner]});
                self.pods[self.master(*side)].put(&format!("d{doc}"), Some(body));
            }
            Step::Delete { side, doc } => self.pods[self.master(*side)].put(&format!("d{doc}"), None),
            Step::Role { user, has } => {
                // Servers end the feeds of a user whose rights change.
                self.pods.iter_mut().for_each(|pod| pod.devices[*user].hang_up());
                self.accounts[*user].staff = *has;
                let roles = self.accounts[*user].who(USERS[*user]).roles;
                self.pods.iter().for_each(|pod| pod.db.note_roles(USERS[*user], &roles).unwrap());
            }
            Step::Rules { pod, version } => self.pods[pod % n].set_rules(*version),
            Step::Replicate { from, to, rows, seed } if from % n != to % n => {
                self.replicate(from % n, to % n, *rows, *seed);
            }
            Step::Replicate { .. } => {}
            Step::Pull { pod, user, rows } => {
                let pod = &mut self.pods[pod % n];
                let scope = pod.scope(*user, &self.accounts);
                pod.devices[*user].pull(&pod.db, &scope, *rows);
            }
            Step::Listen { pod, user } => {
                let pod = &mut self.pods[pod % n];
                let scope = pod.scope(*user, &self.accounts);
                pod.devices[*user].listen(&pod.db, &scope);
            }
            Step::Lose { pod, user } => self.pods[pod % n].devices[*user].lose_place(),
            Step::Push { pod, user, side } => self.push(pod % n, *user, self.master(*side)),
            Step::Edit { pod, user, side, doc, value, deletes, late } => {
                // Two devices of a user that edit alike make two edits.
                let device = USERS.len() * (pod % n) + user;
                let Some(new) = self.pods[pod % n].devices[*user].edit(device, &format!("d{doc}"), *value) else {
                    return;
                };
                self.edit(pod % n, *user, self.master(*side), if *deletes { deletion(new) } else { new }, *late);
            }
            Step::Compact { pod } => self.pods[pod % n].db.compact().unwrap(),
            Step::Crash { pod } => self.pods[pod % n].crash(),
        }
    }

    /// One page of a link: what is missing of the rows after the checkpoint, in any order, some of it twice. Tells
    /// whether the page held anything.
    fn replicate(&mut self, from: usize, to: usize, limit: usize, seed: u64) -> bool {
        let mut dice = Dice(seed);
        let (source, target) = (&self.pods[from], &self.pods[to]);
        let since = target.taken.get(&from).copied().unwrap_or_default();
        let page = source.store.rows(since, limit, &|_| false).unwrap();
        let mut rows: Vec<StoreRow> = page.rows;
        let is_news = !rows.is_empty();
        dice.shuffle(&mut rows);
        let mut wanted: Vec<(String, Rev)> = Vec::new();
        for row in &rows {
            let diff = target.db.revs_diff(&Scope::All, &row.id, &row.leaves).unwrap();
            // A feed that begins again names what is here.
            let repeats = row.leaves.iter().filter(|_| dice.below(4) == 0).cloned().collect::<Vec<_>>();
            wanted.extend(diff.missing.into_iter().chain(repeats).map(|rev| (row.id.clone(), rev)));
        }
        dice.shuffle(&mut wanted);
        while !wanted.is_empty() {
            let some: Vec<(String, Rev)> = wanted.split_off(wanted.len() - 1 - dice.below(wanted.len().min(3)));
            // What is gone since comes with a later row.
            let edits: Vec<Edit> = some.iter().filter_map(|(id, rev)| source.give(id, rev)).collect();
            target.take(edits);
        }
        self.pods[to].taken.insert(from, page.until);
        is_news
    }

    /// Sends a document's leaves from one pod to another: a forwarded write is answered when its pod has it.
    fn send(&self, from: usize, to: usize, id: &str) {
        let view = self.pods[from].db.doc(&Scope::All, id).unwrap().unwrap();
        let edits = view.leaves.iter().filter_map(|leaf| self.pods[from].give(id, &leaf.rev)).collect();
        self.pods[to].take(edits);
    }

    /// What a client's two-way sync does with the ends that it was told: its pod or the master knows them.
    fn push(&mut self, pod: usize, user: usize, master: usize) {
        let author = Author::user(self.accounts[user].who(USERS[user]));
        let scope = self.pods[pod].scope(user, &self.accounts);
        for (id, tree) in &self.pods[pod].devices[user].trees {
            for leaf in tree.leaves() {
                let node = &tree.nodes()[leaf];
                if !self.pods[pod].devices[user].told.contains(&(id.clone(), node.rev.clone())) {
                    continue;
                }
                let diff = self.pods[pod].db.revs_diff(&scope, id, std::slice::from_ref(&node.rev)).unwrap();
                assert!(diff.missing.is_empty(), "{id}: the pod that told {} asks for it", node.rev);
                let back = Edit { history: tree.path(leaf), deleted: true, ..edit(id, None, json!({})) };
                let before = self.pods[master].winner(id);
                if let Ok(written) = submit(&self.pods[master].db, back, author.clone(), Mode::Replicated) {
                    assert!(!written.changed, "{id}: {} came back and was written", written.rev);
                }
                assert_eq!(before, self.pods[master].winner(id), "{id}: what a device sent back changed something");
            }
        }
    }

    fn edit(&mut self, pod: usize, user: usize, master: usize, new: Edit, late: bool) {
        let (id, history, body, deletes) = (new.id.clone(), new.history.clone(), new.body.clone(), new.deleted);
        let author = Author::user(self.accounts[user].who(USERS[user]));
        let before = self.pods[master].winner(&id);
        match submit(&self.pods[master].db, new, author, Mode::Replicated) {
            // A master that lacks the document, or shows it to others only, takes its deletion for one that is known.
            Ok(written) if !written.changed => assert!(deletes && before == self.pods[master].winner(&id)),
            Ok(_) => {
                if master != pod && !late {
                    self.send(master, pod, &id);
                }
                self.pods[pod].devices[user].keep(&id, &history, &body, deletes);
            }
            Err(WriteError::Forbidden(_)) => assert_eq!(before, self.pods[master].winner(&id)),
            Err(other) => panic!("{id}: {other}"),
        }
    }

    fn hear(&mut self) {
        self.pods.iter_mut().for_each(Pod::hear);
    }

    fn verify(&self) {
        for (at, pod) in self.pods.iter().enumerate() {
            assert_eq!(pod.db.verify().unwrap(), Vec::<String>::new(), "pod {at}");
        }
    }

    /// Exchanges everything, until no pod has anything that is new to another.
    fn exchange(&mut self) {
        for round in 0..ROUNDS {
            let mut news = false;
            for to in 0..self.pods.len() {
                for from in (0..self.pods.len()).filter(|from| *from != to) {
                    while self.replicate(from, to, 4, round as u64) {
                        news = true;
                    }
                }
            }
            self.hear();
            if !news {
                return;
            }
        }
        panic!("pods exchange without end");
    }

    /// Has every device catch up; tells whether that made revisions.
    fn read(&mut self) -> bool {
        let before: Vec<u64> = self.pods.iter().map(|pod| pod.store.seq()).collect();
        for pod in &mut self.pods {
            for user in 0..USERS.len() {
                let scope = pod.scope(user, &self.accounts);
                let caught_up = (0..200).any(|_| pod.devices[user].pull(&pod.db, &scope, 3));
                assert!(caught_up, "a feed without end");
                // One that begins now, too: nothing that it makes may confuse the others.
                let mut fresh = Device::default();
                assert!((0..200).any(|_| fresh.pull(&pod.db, &scope, 3)), "a feed without end");
            }
        }
        let after: Vec<u64> = self.pods.iter().map(|pod| pod.store.seq()).collect();
        before != after
    }

    fn check(&mut self) {
        let last = self.pods[0].rules;
        self.exchange();
        self.pods.iter_mut().for_each(|pod| pod.set_rules(last));
        for round in 0.. {
            assert!(round < ROUNDS, "reading changes documents without end");
            self.exchange();
            if !self.read() {
                break;
            }
        }
        self.verify();
        let documents = self.pods[0].documents();
        for (at, pod) in self.pods.iter_mut().enumerate() {
            assert_eq!(pod.documents(), documents, "pod {at} and pod 0");
            for (user, name) in USERS.iter().enumerate() {
                let scope = pod.scope(user, &self.accounts);
                let readable = readable(&pod.db, &scope, DOCS);
                let mut fresh = Device::default();
                assert!((0..200).any(|_| fresh.pull(&pod.db, &scope, 3)), "a feed without end");
                assert_eq!(fresh.live(), readable, "what {name} gets on pod {at} from the start");
                assert_eq!(pod.devices[user].live(), readable, "what {name} has on pod {at}");
                for id in (0..DOCS).map(|doc| format!("d{doc}")) {
                    let named = names(&pod.db, &id, &self.accounts[user], name, last);
                    assert_eq!(readable.contains_key(&id), named, "{id} for {name} on pod {at}");
                }
            }
        }
    }
}

/// Histories of one run; `PROPTEST_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(192)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn pods_come_to_the_same_and_show_each_what_is_theirs(
        pods in 2..5usize,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut ring = Ring::new(pods);
        for step in &steps {
            ring.take(step);
            ring.hear();
            ring.verify();
        }
        ring.check();
    }
}
