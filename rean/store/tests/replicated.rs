//! Single cases of writes that come from other pods: what is a conflict, where a deletion is placed, and what a device
//! sends back that this pod has not seen.

use rean_store::engine::memory::MemoryEngine;
use rean_store::{
    Author, Db, DbKind, Edit, Mode, NoObserver, Rev, Scope, Since, Store, StoreKeys, Who, Write, WriteError, Written,
    document,
};
use std::sync::{Arc, mpsc};
use tempfile::TempDir;

struct Pod {
    store: Store,
    db: Db,
    _folder: TempDir,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.store.close();
    }
}

impl Pod {
    fn new() -> Pod {
        let folder = TempDir::new().unwrap();
        let keys = StoreKeys { chain: [1; 32], bookmark: [2; 32] };
        let store = Store::open_on(Box::new(MemoryEngine::new()), folder.path(), keys, Arc::new(NoObserver)).unwrap();
        let db = store.create_db("notes", DbKind::App).unwrap();
        Pod { store, db, _folder: folder }
    }

    fn write(&self, edit: Edit, author: Author, mode: Mode) -> Result<Written, WriteError> {
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |result: Result<Vec<_>, _>| sender.send(result).unwrap());
        self.db.submit(Write { edits: vec![edit], author, mode }, done);
        receiver.recv().unwrap().unwrap().remove(0)
    }

    fn replicate(&self, history: &[Rev], deleted: bool, body: &str) -> Written {
        let edit = Edit { history: history.to_vec(), deleted, ..edit(body) };
        self.write(edit, Author::admin(Who::default()), Mode::Replicated).unwrap()
    }

    fn leaves(&self) -> Vec<(Rev, bool)> {
        let view = self.db.doc(&Scope::All, "x").unwrap().unwrap();
        view.leaves.iter().map(|leaf| (leaf.rev.clone(), leaf.deleted)).collect()
    }

    fn body(&self, rev: &Rev) -> Option<String> {
        let (_, found) = self.db.revision(&Scope::All, "x", rev).unwrap().unwrap();
        let body = self.db.body(found.body?).unwrap().unwrap();
        Some(String::from_utf8(body.json.to_vec()).unwrap())
    }

    fn scope(&self, user: &str, roles: &[&str]) -> Scope {
        Scope::Personal(self.db.reader(who(user, roles)))
    }

    /// All rows of a reader's feed from a place on, and the place after them.
    fn rows(&self, scope: &Scope, since: Since) -> (Vec<(Vec<Rev>, bool)>, Since) {
        let mut feed = self.db.feed(scope, since).unwrap();
        let mut out = Vec::new();
        while !feed.caught_up() {
            out.extend(feed.next_page(10).unwrap().into_iter().map(|row| (row.revs, row.deleted)));
        }
        (out, Since::Token(feed.token()))
    }
}

fn who(name: &str, roles: &[&str]) -> Who {
    Who { name: Some(name.to_owned()), roles: roles.iter().map(|role| (*role).to_owned()).collect() }
}

fn edit(body: &str) -> Edit {
    Edit {
        id: "x".to_owned(),
        parent: None,
        history: Vec::new(),
        deleted: false,
        body: body.to_owned().into(),
        access: document::access_member(body.as_bytes()),
        attachments: Vec::new(),
    }
}

fn rev(text: &str) -> Rev {
    let (generation, digit) = text.split_once('-').unwrap();
    format!("{generation}-{}", digit.repeat(32)).parse().unwrap()
}

const STAFF: &str = r#"{"access":{"read":["role:staff"],"write":["user:ann"]}}"#;
const ANN: &str = r#"{"access":{"read":["user:ann"]}}"#;

#[test]
fn only_the_write_that_makes_a_document_diverge_says_so() {
    let pod = Pod::new();
    let diverged = |history: &[Rev], deleted| pod.replicate(history, deleted, STAFF).diverged;
    assert!(!diverged(&[rev("1-a")], false));
    assert!(!diverged(&[rev("2-a"), rev("1-a")], false));
    assert!(diverged(&[rev("2-b"), rev("1-a")], false));
    assert!(!diverged(&[rev("2-b"), rev("1-a")], false), "known");
    assert!(!diverged(&[rev("2-c"), rev("1-a")], false), "it had diverged before");
    assert!(!diverged(&[rev("3-c"), rev("2-c")], true));
    assert!(!diverged(&[rev("3-b"), rev("2-b")], true));
    assert_eq!(pod.leaves().iter().filter(|(_, deleted)| !deleted).count(), 1);
    assert!(diverged(&[rev("2-d"), rev("1-a")], false), "once more");
    // A deleted branch beside a live one is none.
    let other = Pod::new();
    other.replicate(&[rev("2-a"), rev("1-a")], true, STAFF);
    assert!(!other.replicate(&[rev("2-b"), rev("1-a")], false, STAFF).diverged);
}

#[test]
fn a_deletion_says_whose_the_document_was_and_is_theirs_where_it_never_lived() {
    let (pod, late) = (Pod::new(), Pod::new());
    pod.replicate(&[rev("1-a")], false, STAFF);
    // As PouchDB sends it, without `access`, but with what else a client may leave.
    let deletion = Edit { history: vec![rev("2-a"), rev("1-a")], deleted: true, ..edit(r#"{"why":"old"}"#) };
    pod.write(deletion, Author::user(who("ann", &["staff"])), Mode::Replicated).unwrap();
    let body = pod.body(&rev("2-a")).unwrap();
    assert_eq!(body, r#"{"why":"old","access":{"read":["role:staff"],"write":["user:ann"]}}"#);
    late.replicate(&[rev("2-a"), rev("1-a")], true, &body);
    for pod in [&pod, &late] {
        let (rows, _) = pod.rows(&pod.scope("bob", &["staff"]), Since::Start);
        assert_eq!(rows, [(vec![rev("2-a")], true)]);
        assert!(pod.rows(&pod.scope("cy", &[]), Since::Start).0.is_empty());
        assert_eq!(pod.db.verify().unwrap(), Vec::<String>::new());
        // The id stays its writers'.
        let again = || Edit { history: vec![rev("3-a"), rev("2-a"), rev("1-a")], ..edit(STAFF) };
        let by_bob = pod.write(again(), Author::user(who("bob", &["staff"])), Mode::Replicated);
        assert!(matches!(by_bob, Err(WriteError::Forbidden(_))), "{by_bob:?}");
    }
    // Made by the store, a deletion is named after all that it says.
    let pod = Pod::new();
    let first = pod.write(edit(ANN), Author::admin(Who::default()), Mode::Interactive).unwrap().rev;
    let deletion = Edit { parent: Some(first), deleted: true, ..edit("{}") };
    let last = pod.write(deletion, Author::admin(Who::default()), Mode::Interactive).unwrap().rev;
    assert_eq!(pod.body(&last).unwrap(), r#"{"access":{"read":["user:ann"]}}"#);
    let plain = pod.store.create_db("plain", DbKind::Plain).unwrap();
    let plain = Pod { store: pod.store.clone(), db: plain, _folder: TempDir::new().unwrap() };
    let first = plain.write(edit("{}"), Author::admin(Who::default()), Mode::Interactive).unwrap().rev;
    let deletion = Edit { parent: Some(first), deleted: true, ..edit("{}") };
    let last = plain.write(deletion, Author::admin(Who::default()), Mode::Interactive).unwrap().rev;
    assert_eq!(plain.body(&last).unwrap(), "{}", "no access lists there");
}

/// Shows a document's end to Bob, who has lost a role, and gives the role back, so that the pod makes a successor.
fn with_successor(pod: &Pod) -> (Rev, Since) {
    let (in_staff, out) = (pod.scope("bob", &["staff"]), pod.scope("bob", &[]));
    let (_, since) = pod.rows(&in_staff, Since::Start);
    let (ends, since) = pod.rows(&out, since);
    assert!(ends.len() == 1 && ends[0].1, "{ends:?}");
    let (rows, since) = pod.rows(&in_staff, since);
    let (successor, since) = (rows.last().unwrap().0[0].clone(), since);
    assert_eq!(pod.leaves(), [(successor.clone(), false)]);
    (successor, since)
}

#[test]
fn an_edit_from_another_pod_is_no_conflict_with_a_successor_made_here() {
    // The edit comes to the pod that made the successor; the successor to the one with the edit; the deletion that
    // closes it before the edit.
    let pods = [Pod::new(), Pod::new(), Pod::new()];
    pods.iter().for_each(|pod| assert!(pod.replicate(&[rev("1-a")], false, STAFF).changed));
    let (successor, _) = with_successor(&pods[0]);
    let edit = [rev("2-e"), rev("1-a")];
    assert!(!pods[0].replicate(&edit, false, ANN).diverged);
    pods[1].replicate(&edit, false, ANN);
    assert!(!pods[1].replicate(&[successor.clone(), rev("1-a")], false, STAFF).diverged);
    let leaves = pods[0].leaves();
    assert_eq!((leaves.len(), &leaves[0]), (2, &(rev("2-e"), false)));
    let closing = leaves[1].clone();
    assert!(closing.1, "{closing:?}");
    pods[2].replicate(&[closing.0.clone(), successor, rev("1-a")], true, "{}");
    assert_eq!(pods[2].leaves(), [closing]);
    pods[2].replicate(&edit, false, ANN);
    for pod in &pods {
        assert_eq!(pod.leaves(), leaves);
        assert_eq!(pod.rows(&pod.scope("ann", &[]), Since::Start).0.len(), 1);
        assert!(pod.db.doc(&pod.scope("bob", &["staff"]), "x").unwrap().is_none());
        assert_eq!(pod.db.verify().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn the_end_of_what_only_another_pod_has_deletes_nothing() {
    let (pod, master) = (Pod::new(), Pod::new());
    let readers_write = r#"{"access":{"read":["role:staff"],"write":["role:staff"]}}"#;
    pod.replicate(&[rev("1-a")], false, readers_write);
    master.replicate(&[rev("1-a")], false, readers_write);
    let (successor, since) = with_successor(&pod);
    let (ends, _) = pod.rows(&pod.scope("bob", &[]), since);
    let end = ends[0].0[0].clone();
    // Bob has the role again, and his device sends what it has to a master that knows of no successor.
    let bob = || Author::user(who("bob", &["staff"]));
    let history = vec![end, successor.clone(), rev("1-a")];
    let back = Edit { history: history.clone(), deleted: true, ..edit("{}") };
    assert!(!master.write(back, bob(), Mode::Replicated).unwrap().changed);
    let back = Edit { history: history[1..].to_vec(), ..edit(readers_write) };
    assert!(!master.write(back, bob(), Mode::Replicated).unwrap().changed);
    assert_eq!(master.leaves(), [(rev("1-a"), false)]);
    // An edit of the successor is an edit.
    let history = vec![rev("3-e"), successor, rev("1-a")];
    let edited = Edit { history: history.clone(), ..edit(readers_write) };
    assert!(master.write(edited, bob(), Mode::Replicated).unwrap().changed);
    pod.replicate(&history, false, readers_write);
    assert_eq!((pod.leaves(), master.leaves()), (vec![(rev("3-e"), false)], vec![(rev("3-e"), false)]));
}
