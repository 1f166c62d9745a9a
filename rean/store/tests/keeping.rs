//! What is kept and for how long: opening again, lost commits, a newer format, uploads, compaction, purges,
//! and that partial databases don't multiply bodies.

use rean_store::engine::memory::MemoryEngine;
use rean_store::engine::{Batch, Direction, Engine, Space};
use rean_store::{
    AttachmentEdit, AttachmentEditSource, Author, BlobRef, Db, DbKind, Edit, EngineKind, Mode, NoObserver, OpenError,
    PIECE_BYTES, Rev, Scope, Since, Store, StoreError, StoreKeys, StoreOptions, Who, Write, WriteError, Written,
};
use std::sync::{Arc, mpsc};
use tempfile::TempDir;

struct Pod {
    engine: MemoryEngine,
    folder: TempDir,
    store: Store,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.store.close();
    }
}

fn try_open(engine: &MemoryEngine, folder: &TempDir) -> Result<Store, OpenError> {
    let keys = StoreKeys { chain: [1; 32], bookmark: [2; 32] };
    Store::open_on(Box::new(engine.clone()), folder.path(), keys, Arc::new(NoObserver))
}

impl Pod {
    fn new() -> Pod {
        let (engine, folder) = (MemoryEngine::new(), TempDir::new().unwrap());
        let store = try_open(&engine, &folder).unwrap();
        Pod { engine, folder, store }
    }

    /// Loses what was not flushed, and opens what is left.
    fn crash(&mut self) {
        self.store.close();
        self.engine = self.engine.crash_image();
        self.store = try_open(&self.engine, &self.folder).unwrap();
    }

    fn count(&self, space: Space) -> usize {
        self.engine.snapshot().range(space, &[0], &[0xff; 32], Direction::Forward).count()
    }
}

fn submit_all(db: &Db, edits: Vec<Edit>, mode: Mode) -> Result<Vec<Result<Written, WriteError>>, StoreError> {
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move |result| sender.send(result).unwrap());
    db.submit(Write { edits, author: Author::admin(Who::default()), mode }, done);
    receiver.recv().unwrap()
}

fn submit(db: &Db, edit: Edit) -> Result<Written, WriteError> {
    submit_all(db, vec![edit], Mode::Interactive).unwrap().remove(0)
}

fn edit(id: &str, parent: Option<&Rev>, body: &str) -> Edit {
    let access = serde_json::from_str::<serde_json::Value>(body).unwrap().get("access").map(ToString::to_string);
    Edit {
        id: id.to_owned(),
        parent: parent.cloned(),
        history: Vec::new(),
        deleted: false,
        body: body.to_owned().into(),
        access,
        attachments: Vec::new(),
    }
}

fn upload(db: &Db, bytes: &[u8]) -> BlobRef {
    let mut writer = db.blob_writer();
    bytes.chunks(10_000).for_each(|some| writer.write(some).unwrap());
    writer.finish().unwrap()
}

fn with_attachment(edit: Edit, name: &str, blob: BlobRef) -> Edit {
    let source = AttachmentEditSource::Blob(blob);
    let attachment = AttachmentEdit { name: name.to_owned(), content_type: None, revpos: None, source };
    Edit { attachments: vec![attachment], ..edit }
}

fn read(db: &Db, id: &str) -> Vec<u8> {
    let view = db.doc(&Scope::All, id).unwrap().unwrap();
    let body = db.body(view.winner().body.unwrap()).unwrap().unwrap();
    let attachment = &body.attachments[0];
    let mut out = Vec::new();
    while (out.len() as u64) < attachment.length {
        out.extend_from_slice(&db.blob_read(attachment.blob, out.len() as u64, 30_000).unwrap());
    }
    out
}

#[test]
fn a_store_comes_back_as_it_was() {
    let mut pod = Pod::new();
    let db = pod.store.create_db("notes", DbKind::App).unwrap();
    assert!(matches!(pod.store.create_db("notes", DbKind::Plain), Err(StoreError::Exists)));
    db.set_security(r#"{"members":{}}"#.into()).unwrap();
    db.set_revs_limit(7).unwrap();
    let rev = submit(&db, edit("a", None, r#"{"access":{"read":["users"]}}"#)).unwrap().rev;
    let (info, parts, token) = (db.info(), db.parts(), db.feed(&Scope::All, Since::Now).unwrap().token());
    pod.crash();
    let db = pod.store.db("notes").unwrap();
    assert_eq!(db.info().update_seq, info.update_seq);
    assert_eq!(db.info().doc_count, 1);
    assert_eq!(db.revs_limit(), 7);
    assert_eq!(&db.security()[..], br#"{"members":{}}"#);
    assert_eq!(db.parts().len(), parts.len());
    assert_eq!(db.parts()[0].readers, ["users"]);
    assert_eq!(db.doc(&Scope::All, "a").unwrap().unwrap().winner().rev, rev);
    assert_eq!(db.feed(&Scope::All, Since::Token(token.clone())).unwrap().token(), token);
    assert_eq!(db.verify().unwrap(), Vec::<String>::new());
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let (engine, folder) = (MemoryEngine::new(), TempDir::new().unwrap());
    let mut batch = Batch::default();
    batch.put(Space::Meta, b"format".to_vec(), vec![99]);
    engine.commit(batch, true).unwrap();
    let Err(error) = try_open(&engine, &folder) else { panic!("a store of the future was opened") };
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("newer"), "{error}");
    assert_eq!(engine.get(Space::Meta, b"format").unwrap().unwrap()[..], [99]);
}

#[test]
fn a_store_of_a_later_version_is_not_even_opened() {
    let dir = TempDir::new().unwrap();
    let open = || {
        let keys = StoreKeys { chain: [1; 32], bookmark: [2; 32] };
        Store::open(StoreOptions {
            path: dir.path().to_owned(),
            engine: EngineKind::Fjall,
            keys,
            observer: Arc::new(NoObserver),
        })
    };
    open().unwrap().close();
    assert_eq!(std::fs::read_to_string(dir.path().join("format")).unwrap(), "1\n");
    std::fs::write(dir.path().join("format"), "2\n").unwrap();
    let newest = || {
        let files = std::fs::read_dir(dir.path().join("fjall")).unwrap().map(|entry| entry.unwrap());
        files
            .map(|entry| (entry.path(), entry.metadata().unwrap().modified().unwrap()))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let before = newest();
    let error = open().err().unwrap();
    assert!(matches!(error, OpenError::Newer { found: 2, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("start the version that wrote it"));
    assert_eq!(newest(), before);
    // One of before there was the file has its number in the engine, and gets the file.
    std::fs::remove_file(dir.path().join("format")).unwrap();
    open().unwrap().close();
    assert!(dir.path().join("format").exists());
}

#[test]
fn lost_commits_are_noticed_and_old_places_start_again() {
    let mut pod = Pod::new();
    let db = pod.store.create_db("notes", DbKind::Plain).unwrap();
    let old = pod.engine.kill_image();
    submit(&db, edit("a", None, "{}")).unwrap();
    let token = db.feed(&Scope::All, Since::Now).unwrap().token();
    let instance = db.instance().to_owned();
    // The engine comes back without the last acknowledged commit, as after damage in its journal.
    pod.store.close();
    pod.engine = old;
    pod.store = try_open(&pod.engine, &pod.folder).unwrap();
    let db = pod.store.db("notes").unwrap();
    assert_ne!(db.instance(), instance, "a client would take new sequences for old ones");
    submit(&db, edit("b", None, "{}")).unwrap();
    let rows = db.feed(&Scope::All, Since::Token(token)).unwrap().next_page(10).unwrap();
    assert_eq!(rows.iter().map(|row| &*row.id).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn after_a_failed_commit_nothing_is_acknowledged() {
    let pod = Pod::new();
    let db = pod.store.create_db("notes", DbKind::Plain).unwrap();
    let first = submit(&db, edit("a", None, "{}")).unwrap();
    pod.engine.fail_after(0);
    let failed = submit_all(&db, vec![edit("b", None, "{}")], Mode::Interactive);
    assert!(failed.is_err(), "a write that failed was acknowledged");
    assert!(submit_all(&db, vec![edit("c", None, "{}")], Mode::Interactive).is_err());
    assert_eq!(db.doc(&Scope::All, "a").unwrap().unwrap().winner().rev, first.rev);
    assert_eq!(db.info().doc_count, 1);
}

#[test]
fn equal_attachments_are_kept_once_and_only_while_somebody_has_them() {
    let mut pod = Pod::new();
    let db = pod.store.create_db("files", DbKind::Plain).unwrap();
    let bytes: Vec<u8> = (0..PIECE_BYTES * 2 + 77).map(|n| (n % 251) as u8).collect();
    let a = submit(&db, with_attachment(edit("a", None, "{}"), "f", upload(&db, &bytes))).unwrap();
    let b = submit(&db, with_attachment(edit("b", None, "{}"), "g", upload(&db, &bytes))).unwrap();
    assert_eq!(pod.count(Space::Blobs), 3, "pieces");
    assert_eq!(read(&db, "a"), bytes);
    assert_eq!(read(&db, "b"), bytes);
    submit(&db, Edit { deleted: true, ..edit("a", Some(&a.rev), "{}") }).unwrap();
    db.compact().unwrap();
    assert_eq!(read(&db, "b"), bytes);
    submit(&db, edit("b", Some(&b.rev), "{}")).unwrap();
    db.compact().unwrap();
    assert_eq!(pod.count(Space::Blobs), 0);
    // Uploads that no document takes go at once, or after a crash at the next opening.
    drop(upload(&db, &bytes));
    assert_eq!(pod.count(Space::Blobs), 0);
    let pending = upload(&db, &bytes);
    submit(&db, edit("c", None, "{}")).unwrap();
    pod.store.close();
    pod.engine = pod.engine.crash_image();
    std::mem::forget(pending);
    assert_eq!(pod.count(Space::Blobs), 3);
    pod.store = try_open(&pod.engine, &pod.folder).unwrap();
    assert_eq!(pod.count(Space::Blobs), 0);
}

#[test]
fn a_body_is_stored_once_whatever_the_number_of_partial_databases() {
    let pod = Pod::new();
    let db = pod.store.create_db("notes", DbKind::App).unwrap();
    let mut rev = None;
    for n in 0..20 {
        let body = format!(r#"{{"access":{{"read":["user:u{n}"]}},"text":"{}"}}"#, "x".repeat(1_000));
        rev = Some(submit(&db, edit("a", rev.as_ref(), &body)).unwrap().rev);
    }
    assert_eq!(db.parts().len(), 20);
    assert_eq!(db.parts().iter().map(|part| part.doc_count).sum::<u64>(), 1, "in one at a time");
    db.compact().unwrap();
    assert_eq!(pod.count(Space::Bodies), 1);
    assert_eq!(db.verify().unwrap(), Vec::<String>::new());
}

#[test]
fn compaction_keeps_leaves_and_histories() {
    let pod = Pod::new();
    let db = pod.store.create_db("notes", DbKind::Plain).unwrap();
    let one = submit(&db, edit("a", None, r#"{"n":1}"#)).unwrap().rev;
    let two = submit(&db, edit("a", Some(&one), r#"{"n":2}"#)).unwrap().rev;
    db.compact().unwrap();
    assert!(db.revision(&Scope::All, "a", &one).unwrap().is_none());
    let (view, found) = db.revision(&Scope::All, "a", &two).unwrap().unwrap();
    assert_eq!(view.history(&found), [two, one]);
    assert!(!db.info().compact_running);
}

#[test]
fn a_purged_document_never_was() {
    let pod = Pod::new();
    let db = pod.store.create_db("notes", DbKind::App).unwrap();
    let rev = submit(&db, edit("a", None, r#"{"access":{"read":["users"]}}"#)).unwrap().rev;
    let (sender, receiver) = mpsc::channel();
    db.purge("a", std::slice::from_ref(&rev), Box::new(move |result| sender.send(result).unwrap()));
    assert_eq!(receiver.recv().unwrap().unwrap(), [rev]);
    assert!(db.doc(&Scope::All, "a").unwrap().is_none());
    assert_eq!((db.info().doc_count, db.info().del_count, db.parts()[0].doc_count), (0, 0, 0));
    assert_eq!(db.verify().unwrap(), Vec::<String>::new());
    for space in [Space::Docs, Space::Seqs, Space::Bodies, Space::PartDocs, Space::PartSeqs] {
        assert_eq!(pod.count(space), 0, "{space:?}");
    }
}

#[test]
fn a_deleted_database_leaves_nothing_and_a_namesake_is_another() {
    let mut pod = Pod::new();
    let db = pod.store.create_db("notes", DbKind::App).unwrap();
    for n in 0..50 {
        submit(&db, edit(&format!("d{n}"), None, r#"{"access":{"read":["users"]}}"#)).unwrap();
    }
    assert!(pod.store.delete_db("notes").unwrap());
    assert!(!pod.store.delete_db("notes").unwrap());
    assert!(matches!(db.doc(&Scope::All, "d1"), Err(StoreError::Gone)));
    let again = pod.store.create_db("notes", DbKind::App).unwrap();
    assert_ne!(again.instance(), db.instance());
    assert_eq!((again.info().doc_count, again.parts().len()), (0, 0));
    // Closing waits for the janitor's present step; it goes on at the next opening, until nothing is left. On a busy machine
    // it may come to none between an opening and a closing, so it is given more time from one to the next.
    for pause_ms in 0..100 {
        pod.crash();
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        if pod.count(Space::Docs) == 0 && pod.count(Space::PartSeqs) == 0 {
            return;
        }
    }
    panic!("{} documents are left", pod.count(Space::Docs));
}

#[test]
fn writers_at_the_same_time_share_commits_and_lose_nothing() {
    let pod = Pod::new();
    let db = pod.store.create_db("notes", DbKind::Plain).unwrap();
    let before = pod.store.stats().commits;
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let db = db.clone();
            scope.spawn(move || {
                for n in 0..50 {
                    submit(&db, edit(&format!("{writer}/{n}"), None, "{}")).unwrap();
                    // All write this one too: one of them wins each round, the others are told of a conflict.
                    let current = db.doc(&Scope::All, "shared").unwrap().map(|view| view.winner().rev.clone());
                    match submit(&db, edit("shared", current.as_ref(), &format!(r#"{{"by":{writer},"n":{n}}}"#))) {
                        Ok(_) | Err(WriteError::Conflict) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
    });
    assert_eq!(db.info().doc_count, 401);
    assert_eq!(db.doc(&Scope::All, "shared").unwrap().unwrap().leaves.len(), 1, "in conflict");
    assert_eq!(db.verify().unwrap(), Vec::<String>::new());
    assert!(pod.store.stats().commits - before <= 800, "commits are not more than requests");
}
