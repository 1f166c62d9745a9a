//! On what an edit stands, for whoever validates it: the same as the commit finds, or the edit is refused.

use rean_store::engine::memory::MemoryEngine;
use rean_store::{
    Author, Base, Db, DbKind, Edit, Mode, NoObserver, Rev, Scope, Store, StoreKeys, Who, Write, WriteError, Written,
    document,
};
use std::sync::{Arc, mpsc};
use tempfile::TempDir;

const ANN: &str = r#"{"access":{"read":["user:ann"]}}"#;

struct World {
    store: Store,
    db: Db,
    _folder: TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.store.close();
    }
}

impl World {
    fn new(kind: DbKind) -> World {
        let folder = TempDir::new().unwrap();
        let keys = StoreKeys { chain: [1; 32], bookmark: [2; 32] };
        let store = Store::open_on(Box::new(MemoryEngine::new()), folder.path(), keys, Arc::new(NoObserver)).unwrap();
        let db = store.create_db("notes", kind).unwrap();
        World { store, db, _folder: folder }
    }

    fn write(&self, edit: Edit, author: &Author, mode: Mode, base: Option<Base>) -> Result<Written, WriteError> {
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |result: Result<Vec<_>, _>| sender.send(result).unwrap());
        self.db.submit_validated(Write { edits: vec![edit], author: author.clone(), mode }, vec![base], done);
        receiver.recv().unwrap().unwrap().remove(0)
    }

    fn put(&self, edit: Edit) -> Rev {
        self.write(edit, &admin(), Mode::Interactive, None).unwrap().rev
    }

    /// What an edit stands on: `known`, `refused`, `new`, or a revision with `!` behind a deleted one.
    fn base(&self, edit: &Edit, author: &Author, mode: Mode) -> String {
        match self.db.base(edit, author, mode).unwrap() {
            Base::Known => "known".to_owned(),
            Base::Refused => "refused".to_owned(),
            Base::New => "new".to_owned(),
            Base::Old(old) => format!("{}{}", old.history[0], if old.deleted { "!" } else { "" }),
        }
    }
}

fn admin() -> Author {
    Author::admin(Who::default())
}

fn user(name: &str) -> Author {
    Author::user(Who { name: Some(name.to_owned()), roles: Vec::new() })
}

fn rev(text: &str) -> Rev {
    let (generation, digit) = text.split_once('-').unwrap();
    format!("{generation}-{}", digit.repeat(32)).parse().unwrap()
}

fn edit(id: &str, body: &str) -> Edit {
    Edit {
        id: id.to_owned(),
        parent: None,
        history: Vec::new(),
        deleted: false,
        body: body.to_owned().into(),
        access: document::access_member(body.as_bytes()),
        attachments: Vec::new(),
    }
}

fn on(parent: &Rev, mut edit: Edit) -> Edit {
    edit.parent = Some(parent.clone());
    edit
}

fn pushed(history: &[&str], mut edit: Edit) -> Edit {
    edit.history = history.iter().map(|text| rev(text)).collect();
    edit
}

#[test]
fn an_interactive_edit_stands_on_the_revision_that_it_names() {
    let world = World::new(DbKind::Plain);
    let base = |edit: &Edit| world.base(edit, &admin(), Mode::Interactive);
    let new = edit("a", "{}");
    assert_eq!(base(&new), "new");
    assert_eq!(base(&on(&rev("1-a"), new.clone())), "refused");
    let first = world.put(new.clone());
    assert_eq!(base(&new), "refused");
    let next = on(&first, edit("a", r#"{"n":2}"#));
    assert_eq!(base(&next), first.to_string());
    let second = world.put(next.clone());
    assert_eq!(base(&next), "refused", "it is no leaf any more");
    let gone = world.put(Edit { deleted: true, ..on(&second, edit("a", "{}")) });
    assert_eq!(base(&new), "new", "over a tombstone");
    assert_eq!(base(&on(&gone, new)), format!("{gone}!"));
}

#[test]
fn a_replicated_edit_stands_on_its_newest_ancestor_that_has_a_body() {
    let world = World::new(DbKind::Plain);
    let base = |edit: &Edit| world.base(edit, &admin(), Mode::Replicated);
    let put = |edit: &Edit| world.write(edit.clone(), &admin(), Mode::Replicated, None).unwrap();
    assert_eq!(base(&edit("a", "{}")), "refused", "it names no revision");
    let first = pushed(&["1-a"], edit("a", "{}"));
    assert_eq!(base(&first), "new");
    put(&first);
    assert_eq!(base(&first), "known");
    let fourth = pushed(&["4-a", "3-a", "2-a", "1-a"], edit("a", "{}"));
    assert_eq!(base(&fourth), rev("1-a").to_string());
    put(&fourth);
    assert_eq!(base(&pushed(&["4-b", "3-a", "2-a", "1-a"], edit("a", "{}"))), rev("1-a").to_string());
    assert_eq!(base(&pushed(&["5-a", "4-a"], edit("a", "{}"))), rev("4-a").to_string());
    assert_eq!(base(&pushed(&["2-a", "1-a"], edit("a", "{}"))), "known", "an inner revision");
    assert_eq!(base(&pushed(&["1-b"], edit("a", "{}"))), "new", "another root");
}

#[test]
fn an_edit_that_stands_on_something_else_by_now_is_refused() {
    let world = World::new(DbKind::Plain);
    let write = |edit: &Edit, base: Base| world.write(edit.clone(), &admin(), Mode::Replicated, Some(base));
    let second = pushed(&["2-a", "1-a"], edit("a", "{}"));
    let then = world.db.base(&second, &admin(), Mode::Replicated).unwrap();
    world.write(pushed(&["1-a"], edit("a", "{}")), &admin(), Mode::Replicated, None).unwrap();
    assert!(matches!(write(&second, then), Err(WriteError::Overtaken)));
    for wrong in [Base::Known, Base::Refused, Base::New] {
        assert!(matches!(write(&second, wrong), Err(WriteError::Overtaken)));
    }
    assert_eq!(world.db.doc(&Scope::All, "a").unwrap().unwrap().winner().rev, rev("1-a"));
    let now = world.db.base(&second, &admin(), Mode::Replicated).unwrap();
    assert!(write(&second, now.clone()).unwrap().changed);
    // Known by now: nothing is stored, so nothing needs a validator.
    assert!(matches!(write(&second, now), Err(WriteError::Overtaken)));
    let known = world.db.base(&second, &admin(), Mode::Replicated).unwrap();
    assert!(!write(&second, known).unwrap().changed);
}

#[test]
fn an_unreadable_document_is_none_and_rights_come_before_the_base() {
    let world = World::new(DbKind::App);
    let first = world.put(edit("taken", ANN));
    let own = r#"{"access":{"read":["user:eve"]}}"#;
    assert_eq!(world.base(&edit("taken", own), &user("eve"), Mode::Interactive), "new");
    for author in [user("eve"), Author::user(Who::default())] {
        for mode in [Mode::Interactive, Mode::Replicated] {
            for (what, make) in [
                ("new", &(|id: &str| edit(id, own)) as &dyn Fn(&str) -> Edit),
                ("a parent", &|id| on(&first, edit(id, own))),
                ("a deletion", &|id| Edit { deleted: true, access: None, ..edit(id, own) }),
                ("a revision", &|id| pushed(&["1-a"], edit(id, own))),
                ("a child", &|id| pushed(&["2-b", "1-a"], edit(id, own))),
                ("a pushed deletion", &|id| Edit { deleted: true, ..pushed(&["2-b", "1-a"], edit(id, own)) }),
            ] {
                let (taken, free) = (make("taken"), make("free!"));
                assert_eq!(world.base(&taken, &author, mode), world.base(&free, &author, mode), "{what} {mode:?}");
                // What a validator let through as a new document meets the document that is there.
                if let Base::New = world.db.base(&taken, &author, mode).unwrap() {
                    let refused = world.write(taken, &author, mode, Some(Base::New)).unwrap_err();
                    assert!(!matches!(refused, WriteError::Overtaken), "{what}");
                }
            }
        }
    }
    let ann = user("ann");
    assert_eq!(world.base(&on(&first, edit("taken", ANN)), &ann, Mode::Interactive), first.to_string());
    assert_eq!(world.base(&edit("taken", ANN), &ann, Mode::Interactive), "refused");
}
