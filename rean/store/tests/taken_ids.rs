//! What somebody learns of an id that is taken by a document which they can't read: whoever would not have
//! created a document under it is told the same as if it were free.

use rean_store::engine::memory::MemoryEngine;
use rean_store::{
    AttachmentEdit, AttachmentEditSource, Author, Db, DbKind, Edit, Mode, NoObserver, Rev, Store, StoreKeys, Who,
    Write, WriteError, Written,
};
use serde_json::{Value, json};
use std::sync::{Arc, mpsc};
use tempfile::TempDir;

fn submit(db: &Db, edit: Edit, author: &Author, mode: Mode) -> Result<Written, WriteError> {
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move |result: Result<Vec<_>, _>| sender.send(result).unwrap());
    db.submit(Write { edits: vec![edit], author: author.clone(), mode }, done);
    receiver.recv().unwrap().unwrap().remove(0)
}

fn edit(id: &str, access: Value) -> Edit {
    Edit {
        id: id.to_owned(),
        parent: None,
        history: Vec::new(),
        deleted: false,
        body: json!({"access": access}).to_string().into(),
        access: Some(access.to_string()),
        attachments: Vec::new(),
    }
}

/// Edits that create nothing, each for a reason of its own.
fn probes(id: &str) -> Vec<(&'static str, Edit, Mode)> {
    let own = json!({"read": ["user:eve"]});
    let rev: Rev = "1-0123456789abcdef0123456789abcdef".parse().unwrap();
    let many: Vec<String> = (0..101).map(|n| format!("user:u{n}")).chain(["user:eve".to_owned()]).collect();
    let stub = AttachmentEditSource::Stub { digest: None };
    let stub = AttachmentEdit { name: "f".to_owned(), content_type: None, revpos: None, source: stub };
    let mut out = vec![
        ("malformed access", edit(id, json!({"read": ["nobody"]})), Mode::Interactive),
        ("not among the writers", edit(id, json!({"read": ["user:ann"]})), Mode::Interactive),
        ("too many readers", edit(id, json!({"read": many})), Mode::Interactive),
        ("a stub", Edit { attachments: vec![stub], ..edit(id, own.clone()) }, Mode::Interactive),
        ("a parent", Edit { parent: Some(rev.clone()), ..edit(id, own.clone()) }, Mode::Interactive),
        ("a deletion", Edit { deleted: true, access: None, ..edit(id, own.clone()) }, Mode::Interactive),
        ("a deletion with access", Edit { deleted: true, ..edit(id, own.clone()) }, Mode::Interactive),
    ];
    let pushed = Edit { history: vec![rev], ..edit(id, json!({"read": ["user:ann"]})) };
    out.push(("a pushed deletion", Edit { deleted: true, access: None, ..pushed }, Mode::Replicated));
    out
}

#[test]
fn an_id_that_is_taken_and_one_that_is_free_look_alike_to_who_creates_nothing() {
    let folder = TempDir::new().unwrap();
    let keys = StoreKeys { chain: [1; 32], bookmark: [2; 32] };
    let store = Store::open_on(Box::new(MemoryEngine::new()), folder.path(), keys, Arc::new(NoObserver)).unwrap();
    let db = store.create_db("notes", DbKind::App).unwrap();
    let user = |name: &str| Author::user(Who { name: Some(name.to_owned()), roles: Vec::new() });
    submit(&db, edit("taken", json!({"read": ["user:ann"]})), &user("ann"), Mode::Interactive).unwrap();
    for author in [user("eve"), Author::user(Who::default())] {
        for ((what, taken, mode), (_, free, _)) in probes("taken").into_iter().zip(probes("free!")) {
            let told = |result: Result<Written, WriteError>| match result {
                Ok(written) => format!("taken in, changed: {}", written.changed),
                Err(error) => format!("{} {} {}", error.status(), error.error(), error.reason()),
            };
            let on_taken = told(submit(&db, taken, &author, mode)).replace("taken ", "ID ");
            let on_free = told(submit(&db, free, &author, mode)).replace("free! ", "ID ");
            assert_eq!(on_taken.replace("taken in", "ID in"), on_free.replace("taken in", "ID in"), "{what}");
        }
    }
    assert_eq!(db.info().doc_count + db.info().del_count, 1, "a probe created something");
    store.close();
}
