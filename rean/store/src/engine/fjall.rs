//! The default engine: fjall, a log-structured merge tree with one journal for all key spaces.
//!
//! A commit is one journal entry with a checksum, so a batch is whole or absent after a crash. The
//! flush happens before the batch becomes visible: nobody reads what a power cut could take back.
//!
//! What fjall can't tell: a zeroed page in the middle of its journal ends recovery there without
//! an error (its issue 311). The layer above counts commits and notices.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fjall::config::CompressionPolicy;
use fjall::{
    AbstractTree, CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, OwnedWriteBatch,
    PersistMode, Readable,
};
use parking_lot::RwLock;

use super::{
    Batch, ClosedSnapshot, Direction, Engine, EngineError, EngineStats, Poison, Range, Snapshot, Source, Space, Value,
    guarded,
};

/// The least that fjall allows. With its default of 512 MiB, opening after a kill took seconds.
const MAX_JOURNALING_BYTES: u64 = 64 << 20;

/// Small, so that little has to be replayed from the journal; larger gained nothing measurable.
const MAX_MEMTABLE_BYTES: u64 = 8 << 20;

/// Pieces of attachments fill a memtable fast; twice the size halves the number of blob files.
const MAX_BLOB_MEMTABLE_BYTES: u64 = 16 << 20;

/// Shared by all key spaces. A pod is to run on small machines; the system's page cache does the rest.
const BLOCK_CACHE_BYTES: u64 = 64 << 20;

/// Bodies from here on live outside the tree, so that compaction need not copy them again and
/// again. Smaller ones stay in it, where a scan finds them side by side.
const LARGE_BODY_BYTES: u32 = 16 << 10;

/// How long opening waits for the lock: a predecessor that is just ending gives it up within this.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// How long a commit waits for background work before it gives up, unwritten.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// How long compaction waits for one memtable (of 16 MiB at most) to be written.
const FLUSH_LIMIT: Duration = Duration::from_secs(120);

/// fjall makes a writer wait, deaf to the death of its workers, from 4 sealed memtables and 30
/// runs on. We wait below that, and listen: one commit adds at most one of each.
const MAX_SEALED_MEMTABLES: usize = 2;
const MAX_RUNS: usize = 27;

/// How often we look, while waiting for fjall's threads.
const POLL: Duration = Duration::from_millis(5);

/// What fjall writes last when it makes a store.
const VERSION_FILE: &str = "version";

const ADVICE: &str = "Nothing was deleted. Move the folder aside and start again: the store is \
                      filled from the other pods, or from a backup; keep the folder until then";

/// The fjall engine.
pub struct FjallEngine {
    open: RwLock<Option<Arc<Open>>>,
    poison: Poison,
}

/// Everything that has to go for the folder's lock to be released.
struct Open {
    // Before `db`: fields are dropped in order, and the database waits for its threads.
    spaces: Vec<Keyspace>,
    db: Database,
    path: PathBuf,
}

struct FjallSnapshot {
    view: fjall::Snapshot,
    open: Arc<Open>,
}

impl FjallEngine {
    /// Opens or makes the store in the folder `path`.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        prepare_folder(path)?;
        let deadline = Instant::now() + LOCK_WAIT;
        let open = loop {
            match guarded(|| open_database(path)) {
                Err(source) if is_locked(&source) => {
                    if Instant::now() >= deadline {
                        return Err(EngineError::InUse { path: path.to_owned() });
                    }
                    std::thread::sleep(POLL);
                }
                Err(source) => return Err(open_error(path, source)),
                Ok(open) => break open,
            }
        };
        Ok(Self { open: RwLock::new(Some(Arc::new(open))), poison: Poison::default() })
    }

    fn opened(&self) -> Result<Arc<Open>, EngineError> {
        self.open.read().clone().ok_or(EngineError::Closed)
    }
}

impl Engine for FjallEngine {
    fn commit(&self, batch: Batch, durable: bool) -> Result<(), EngineError> {
        let open = self.opened()?;
        self.poison.check()?;
        batch.check()?;
        open.wait_for_workers(&self.poison)?;
        let mode = if durable { PersistMode::SyncData } else { PersistMode::Buffer };
        if batch.is_empty() {
            return guarded(|| Ok(open.db.persist(mode)?)).map_err(|e| self.poison.set("flush", e));
        }
        let mut write = OwnedWriteBatch::with_capacity(open.db.clone(), batch.len());
        for op in batch.into_ops() {
            let space = open.space(op.space);
            match op.value {
                Some(value) => write.insert(space, op.key, value),
                None => write.remove(space, op.key),
            }
        }
        let write = write.durability(Some(mode));
        guarded(|| Ok(write.commit()?)).map_err(|e| self.poison.set("commit", e))
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Value>, EngineError> {
        let open = self.opened()?;
        let found = open.space(space).get(key);
        found.map(|value| value.map(Value::from)).map_err(|e| read_error(space, e))
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        match self.opened() {
            Ok(open) => Box::new(FjallSnapshot { view: open.db.snapshot(), open }),
            Err(_) => Box::new(ClosedSnapshot),
        }
    }

    fn stats(&self) -> EngineStats {
        let Ok(open) = self.opened() else {
            return EngineStats::default();
        };
        let journal_bytes = journal_bytes(&open.path);
        let tables = open.spaces.iter().map(|space| space.disk_space()).sum::<u64>();
        EngineStats {
            disk_bytes: tables + journal_bytes,
            journal_bytes,
            write_buffer_bytes: open.db.write_buffer_size(),
            cache_bytes: open.db.cache_size(),
        }
    }

    fn compact(&self) -> Result<(), EngineError> {
        let open = self.opened()?;
        self.poison.check()?;
        for space in &open.spaces {
            guarded(|| Ok(space.rotate_memtable()?)).map_err(EngineError::Compact)?;
            open.wait_for_flush(space)?;
            guarded(|| Ok(space.major_compact()?)).map_err(EngineError::Compact)?;
        }
        Ok(())
    }

    fn close(&self) -> Result<(), EngineError> {
        let Some(open) = self.open.write().take() else {
            return Ok(());
        };
        if self.poison.check().is_err() {
            return Ok(());
        }
        guarded(|| Ok(open.db.persist(PersistMode::SyncAll)?)).map_err(|e| self.poison.set("flush", e))
    }

    fn name(&self) -> &'static str {
        "fjall"
    }

    fn power_safe(&self) -> bool {
        true
    }
}

impl Snapshot for FjallSnapshot {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Value>, EngineError> {
        let found = self.view.get(self.open.space(space), key);
        found.map(|value| value.map(Value::from)).map_err(|e| read_error(space, e))
    }

    fn range<'a>(&'a self, space: Space, lo: &[u8], hi: &[u8], direction: Direction) -> Range<'a> {
        if lo >= hi {
            return Box::new(std::iter::empty());
        }
        let entries = self.view.range(self.open.space(space), lo..hi);
        let read = move |entry: fjall::Guard| match entry.into_inner() {
            Ok((key, value)) => Ok((Value::from(key), Value::from(value))),
            Err(error) => Err(read_error(space, error)),
        };
        match direction {
            Direction::Forward => Box::new(entries.map(read)),
            Direction::Backward => Box::new(entries.rev().map(read)),
        }
    }
}

impl Open {
    fn space(&self, space: Space) -> &Keyspace {
        &self.spaces[space.index()]
    }

    /// Waits until fjall would not make the writer wait. If its threads have died from an error it
    /// refuses the flush to the system that is asked for here, which costs nothing otherwise.
    fn wait_for_workers(&self, poison: &Poison) -> Result<(), EngineError> {
        let start = Instant::now();
        while self.spaces.iter().any(is_behind) {
            self.db.persist(PersistMode::Buffer).map_err(|e| poison.set("background work", e))?;
            if start.elapsed() >= STALL_LIMIT {
                return Err(EngineError::Stalled { waited_ms: STALL_LIMIT.as_millis() as u64 });
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn wait_for_flush(&self, space: &Keyspace) -> Result<(), EngineError> {
        let start = Instant::now();
        while space.sealed_memtable_count() > 0 {
            self.db.persist(PersistMode::Buffer).map_err(|e| EngineError::Compact(e.into()))?;
            if start.elapsed() >= FLUSH_LIMIT {
                return Err(EngineError::Compact("a memtable was not written in time".into()));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

fn is_behind(space: &Keyspace) -> bool {
    space.sealed_memtable_count() > MAX_SEALED_MEMTABLES || space.tree.l0_run_count() > MAX_RUNS
}

/// Makes the folder, or checks that it holds a fjall store: fjall would make a new one over
/// whatever is there.
fn prepare_folder(path: &Path) -> Result<(), EngineError> {
    let unreachable =
        |source: std::io::Error| EngineError::Unreachable { path: path.to_owned(), source: source.into() };
    if !path.try_exists().map_err(unreachable)? {
        std::fs::create_dir_all(path).map_err(unreachable)?;
        // The folder's own entry must survive a power cut too.
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::File::open(parent).and_then(|dir| dir.sync_all()).map_err(unreachable)?;
        }
        return Ok(());
    }
    let is_empty = std::fs::read_dir(path).map_err(unreachable)?.next().is_none();
    if is_empty || path.join(VERSION_FILE).try_exists().map_err(unreachable)? {
        return Ok(());
    }
    Err(EngineError::Unreadable {
        path: path.to_owned(),
        source: "it is not empty and holds no whole fjall store (no `version` file)".into(),
        advice: ADVICE,
    })
}

fn open_database(path: &Path) -> Result<Open, Source> {
    let db = Database::builder(path)
        .cache_size(BLOCK_CACHE_BYTES)
        .max_journaling_size(MAX_JOURNALING_BYTES)
        // Large values are mostly attachments, which are mostly compressed already.
        .journal_compression(CompressionType::None)
        .manual_journal_persist(true)
        .open()?;
    let spaces = Space::ALL
        .into_iter()
        .map(|space| db.keyspace(space.name(), || options(space)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Open { spaces, db, path: path.to_owned() })
}

/// The settings of a key space. fjall keeps them with the data: a change affects new stores only.
fn options(space: Space) -> KeyspaceCreateOptions {
    let options = KeyspaceCreateOptions::default().max_memtable_size(MAX_MEMTABLE_BYTES).manual_journal_persist(true);
    match space {
        // Read by keys that are known to exist, so the lowest level needs no filter.
        Space::Bodies => options
            .expect_point_read_hits(true)
            .with_kv_separation(Some(KvSeparationOptions::default().separation_threshold(LARGE_BODY_BYTES))),
        Space::Blobs => options
            .max_memtable_size(MAX_BLOB_MEMTABLE_BYTES)
            .expect_point_read_hits(true)
            .data_block_compression_policy(CompressionPolicy::disabled())
            .with_kv_separation(Some(KvSeparationOptions::default().compression(CompressionType::None))),
        _ => options,
    }
}

/// Journals are made at full length with a hole: what counts is what they occupy.
fn journal_bytes(path: &Path) -> u64 {
    const BLOCK_BYTES: u64 = 512; // of `st_blocks`, whatever the file system
    let Ok(entries) = std::fs::read_dir(path) else {
        return 0;
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "jnl"))
        .filter_map(|entry| entry.metadata().ok())
        .map(|meta| meta.blocks() * BLOCK_BYTES)
        .sum()
}

fn read_error(space: Space, error: fjall::Error) -> EngineError {
    EngineError::Read { space: space.name(), source: error.into() }
}

fn is_locked(source: &Source) -> bool {
    matches!(source.downcast_ref(), Some(fjall::Error::Locked))
}

/// Tells damage (the folder may be moved aside) from a machine in trouble (it must not be).
fn open_error(path: &Path, source: Source) -> EngineError {
    use fjall::{Error, LsmError};
    let io = match source.downcast_ref::<Error>() {
        Some(Error::Io(io) | Error::Storage(LsmError::Io(io))) => Some(io.kind()),
        _ => None,
    };
    let path = path.to_owned();
    match io {
        None | Some(ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::InvalidData) => {
            EngineError::Unreadable { path, source, advice: ADVICE }
        }
        Some(_) => EngineError::Unreachable { path, source },
    }
}
