//! Checking the store of a pod that doesn't run: whether what is stored agrees with itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rean_store::engine::EngineError;
use rean_store::{EngineKind, NoObserver, OpenError, Store, StoreKeys, StoreOptions};

/// What was found in one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The database's name.
    pub name: String,
    /// Its live documents, by its own count.
    pub docs: u64,
    /// Each fault in words; none when all is well.
    pub faults: Vec<String>,
}

/// Why nothing could be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There is no store.
    #[error("there is no store in {path}")]
    None {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The pod runs.
    #[error("the store in {path} is in use: stop the pod first")]
    InUse {
        /// Where the store is.
        path: PathBuf,
    },
    /// It can't be opened; that is a fault of its own.
    #[error(transparent)]
    Open(OpenError),
}

/// Reads all of the store in the folder `path` (that is rean's `data_dir`), and gives what it finds to `tell`, database
/// by database. Blocking, for as long as reading takes. As with each start, a journal that was not closed is taken up
/// first.
///
/// # Errors
/// When there is no store, when it is in use, and when it can't be opened. Nothing is made or changed then.
pub fn check(path: &Path, mut tell: impl FnMut(Found)) -> Result<(), CheckError> {
    let engine = [EngineKind::Fjall, EngineKind::Sled].into_iter().find(|kind| path.join(kind.to_string()).is_dir());
    let engine = engine.ok_or_else(|| CheckError::None { path: path.to_owned() })?;
    // The ring's keys are for what is sent to clients; none of that is stored or checked.
    let keys = StoreKeys { chain: [0; 32], bookmark: [0; 32] };
    let options = StoreOptions { path: path.to_owned(), engine, keys, observer: Arc::new(NoObserver) };
    let store = Store::open(options).map_err(|error| match error {
        OpenError::Engine(EngineError::InUse { .. }) => CheckError::InUse { path: path.to_owned() },
        other => CheckError::Open(other),
    })?;
    for name in store.db_names() {
        let Some(db) = store.db(&name) else { continue };
        let faults = db.verify().unwrap_or_else(|error| vec![format!("can't be read any further: {error}")]);
        tell(Found { name, docs: db.info().doc_count, faults });
    }
    store.close();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{CheckError, check};
    use rean_store::engine::{self, Batch, Direction, Space};
    use rean_store::{Author, DbKind, Edit, EngineKind, Mode, NoObserver, Store, StoreKeys, StoreOptions, Who, Write};
    use std::path::Path;
    use std::sync::{Arc, mpsc};

    fn open(path: &Path) -> Store {
        let keys = StoreKeys { chain: [1; 32], bookmark: [2; 32] };
        let observer = Arc::new(NoObserver);
        Store::open(StoreOptions { path: path.to_owned(), engine: EngineKind::Fjall, keys, observer }).expect("opens")
    }

    fn faults(path: &Path) -> Vec<String> {
        let mut faults = Vec::new();
        check(path, |found| faults.extend(found.faults)).expect("checks");
        faults
    }

    #[test]
    fn a_store_is_checked_only_at_rest_and_faults_are_found() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(matches!(check(dir.path(), |_| {}), Err(CheckError::None { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0);

        let store = open(dir.path());
        let db = store.create_db("db", DbKind::Plain).expect("a database");
        let edit = Edit {
            id: "a".to_owned(),
            parent: None,
            history: Vec::new(),
            deleted: false,
            body: r#"{"x":1}"#.into(),
            access: None,
            attachments: Vec::new(),
        };
        let (sender, done) = mpsc::channel();
        let write = Write { edits: vec![edit], author: Author::admin(Who::default()), mode: Mode::Interactive };
        let tell = move |result: Result<_, _>| sender.send(result.is_ok()).expect("somebody waits");
        db.submit(write, Box::new(tell));
        assert!(done.recv().expect("an answer"));
        assert!(matches!(check(dir.path(), |_| {}), Err(CheckError::InUse { .. })));
        store.close();
        drop((db, store));
        assert_eq!(faults(dir.path()), Vec::<String>::new());

        // A body that is gone, as after a damaged disk.
        let engine = engine::open(EngineKind::Fjall, &dir.path().join("fjall")).expect("opens");
        let mut batch = Batch::default();
        for item in engine.snapshot().range(Space::Bodies, &[], &[0xff; 16], Direction::Forward) {
            batch.delete(Space::Bodies, item.expect("a body").0.to_vec());
        }
        assert_eq!(batch.len(), 1);
        engine.commit(batch, true).expect("commits");
        engine.close().expect("closes");
        drop(engine);
        let faults = faults(dir.path());
        assert!(faults.len() == 1 && faults[0].contains("no body"), "{faults:?}");
    }
}
