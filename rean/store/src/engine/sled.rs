//! sled behind the seam, for who wants it. **Not power-safe**: after power cuts, stores with large
//! values could not be opened any more, with all the care taken here (see [`Engine::power_safe`]).
//!
//! What the seam asks for and sled lacks is made up here:
//! - batches over several trees are slow, so all key spaces share one tree, told apart by the
//!   first byte of the key;
//! - its flush promises nothing after a power cut, so its file is synced once more;
//! - its files for large values are never synced, so large values are cut into pieces that stay in
//!   the log;
//! - it has no snapshots: a "snapshot" is a live view, in which later commits appear. Readers must
//!   bound their scans themselves (bodies by revision, changes by the sequence at the start);
//! - opening damaged files may panic: that is caught and reported.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use sled::{Db, IVec};

use super::batch::Op;
use super::{
    Batch, ClosedSnapshot, Direction, Engine, EngineError, EngineStats, Poison, Range, Snapshot, Source, Space, Value,
    guarded,
};

/// sled moves values above about 40 kB (and whole nodes) to files that it never syncs; 16 kB were
/// safe in the power-cut tests.
const PIECE_BYTES: usize = 12 << 10;

/// sled's own default is 1 GB, too much for a small machine.
const CACHE_BYTES: u64 = 64 << 20;

/// How long opening waits for the lock: a predecessor that is just ending gives it up within this.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// First byte of the keys of pieces; key spaces use their index.
const PIECES: u8 = 0xff;

/// First byte of a value that is all there.
const WHOLE: u8 = 0;
/// First byte of a value in pieces; the length in bytes follows as 8 bytes, low first.
const CUT: u8 = 1;

const ADVICE: &str = "Nothing was deleted. sled is not power-safe: move the folder aside and start \
                      again, the store is filled from the other pods, or from a backup";

/// The sled engine.
pub struct SledEngine {
    open: RwLock<Option<Arc<Open>>>,
    poison: Poison,
}

struct Open {
    db: Db,
    /// sled's log, opened once more to sync it.
    file: File,
    /// Held for writing while a batch is applied, so that pieces of one value are read together.
    gate: RwLock<()>,
}

struct LiveView {
    open: Arc<Open>,
}

impl SledEngine {
    /// Opens or makes the store in the folder `path`.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match guarded(|| Open::in_folder(path)) {
                Ok(open) => {
                    let open = RwLock::new(Some(Arc::new(open)));
                    return Ok(Self { open, poison: Poison::default() });
                }
                Err(source) if is_locked(&source) => {
                    if Instant::now() >= deadline {
                        return Err(EngineError::InUse { path: path.to_owned() });
                    }
                    std::thread::sleep(LOCK_POLL);
                }
                Err(source) => return Err(open_error(path.to_owned(), source)),
            }
        }
    }

    fn opened(&self) -> Result<Arc<Open>, EngineError> {
        self.open.read().clone().ok_or(EngineError::Closed)
    }
}

impl Engine for SledEngine {
    fn commit(&self, batch: Batch, durable: bool) -> Result<(), EngineError> {
        let open = self.opened()?;
        self.poison.check()?;
        batch.check()?;
        guarded(|| open.apply(batch)).map_err(|e| self.poison.set("commit", e))?;
        if durable {
            guarded(|| open.flush()).map_err(|e| self.poison.set("flush", e))?;
        }
        Ok(())
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Value>, EngineError> {
        self.opened()?.get(space, key)
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        match self.opened() {
            Ok(open) => Box::new(LiveView { open }),
            Err(_) => Box::new(ClosedSnapshot),
        }
    }

    fn stats(&self) -> EngineStats {
        let size = self.opened().map(|open| open.db.size_on_disk().unwrap_or(0));
        EngineStats { disk_bytes: size.unwrap_or(0), ..EngineStats::default() }
    }

    /// sled can't compact; it reuses its own segments.
    fn compact(&self) -> Result<(), EngineError> {
        self.opened().map(|_| ())
    }

    fn close(&self) -> Result<(), EngineError> {
        let Some(open) = self.open.write().take() else {
            return Ok(());
        };
        if self.poison.check().is_err() {
            return Ok(());
        }
        guarded(|| open.flush()).map_err(|e| self.poison.set("flush", e))
    }

    fn name(&self) -> &'static str {
        "sled"
    }

    fn power_safe(&self) -> bool {
        false
    }
}

impl Snapshot for LiveView {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Value>, EngineError> {
        self.open.get(space, key)
    }

    fn range<'a>(&'a self, space: Space, lo: &[u8], hi: &[u8], direction: Direction) -> Range<'a> {
        if lo >= hi {
            return Box::new(std::iter::empty());
        }
        let entries = self.open.db.range(tree_key(space, lo)..tree_key(space, hi));
        let read = move |entry| self.open.entry(space, entry).transpose();
        match direction {
            Direction::Forward => Box::new(entries.filter_map(read)),
            Direction::Backward => Box::new(entries.rev().filter_map(read)),
        }
    }
}

impl Open {
    fn in_folder(path: &Path) -> Result<Open, Source> {
        let db = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).open()?;
        let file = File::open(path.join("db"))?;
        Ok(Open { db, file, gate: RwLock::new(()) })
    }

    fn apply(&self, batch: Batch) -> Result<(), Source> {
        let _gate = self.gate.write();
        // Each key once, so that the number of its old pieces is what the tree says.
        let mut last = BTreeMap::new();
        for Op { space, key, value } in batch.into_ops() {
            last.insert((space, key), value);
        }
        let mut write = sled::Batch::default();
        for ((space, key), value) in last {
            let tree_key = tree_key(space, &key);
            let old_pieces = match self.db.get(&tree_key)? {
                Some(old) => cut_len(&old).map_or(0, pieces),
                None => 0,
            };
            let new_pieces = match value {
                Some(value) => put(&mut write, tree_key, space, &key, &value),
                None => {
                    write.remove(tree_key);
                    0
                }
            };
            for piece in new_pieces..old_pieces {
                write.remove(piece_key(space, &key, piece));
            }
        }
        Ok(self.db.apply_batch(write)?)
    }

    fn flush(&self) -> Result<(), Source> {
        self.db.flush()?;
        Ok(self.file.sync_data()?)
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Value>, EngineError> {
        let tree_key = tree_key(space, key);
        match self.db.get(&tree_key).map_err(|e| read_error(space, e.into()))? {
            None => Ok(None),
            Some(stored) if cut_len(&stored).is_none() => Ok(Some(whole(stored))),
            Some(_) => self.join(space, key, &tree_key).map_err(|e| read_error(space, e)),
        }
    }

    /// Reads a value in pieces. It is looked up once more behind the gate, as it may have changed.
    fn join(&self, space: Space, key: &[u8], tree_key: &[u8]) -> Result<Option<Value>, Source> {
        let _gate = self.gate.read();
        let Some(stored) = self.db.get(tree_key)? else {
            return Ok(None);
        };
        let Some(len) = cut_len(&stored) else {
            return Ok(Some(whole(stored)));
        };
        let mut value = Vec::with_capacity(len);
        for piece in 0..pieces(len) {
            let bytes = self.db.get(piece_key(space, key, piece))?;
            value.extend_from_slice(&bytes.ok_or("a piece of a large value is missing")?);
        }
        if value.len() != len {
            return Err("a large value has the wrong length".into());
        }
        Ok(Some(value.into()))
    }

    /// An entry of a range; none if it was deleted while its pieces were looked for.
    fn entry(
        &self,
        space: Space,
        entry: Result<(IVec, IVec), sled::Error>,
    ) -> Result<Option<(Value, Value)>, EngineError> {
        let (tree_key, stored) = entry.map_err(|e| read_error(space, e.into()))?;
        let key = Value::copy_from_slice(&tree_key[1..]);
        let value = match cut_len(&stored) {
            None => Some(whole(stored)),
            Some(_) => self.join(space, &key, &tree_key).map_err(|e| read_error(space, e))?,
        };
        Ok(value.map(|value| (key, value)))
    }
}

/// Adds a value to a batch and returns the number of its pieces.
fn put(write: &mut sled::Batch, tree_key: Vec<u8>, space: Space, key: &[u8], value: &[u8]) -> usize {
    if value.len() <= PIECE_BYTES {
        write.insert(tree_key, [&[WHOLE], value].concat());
        return 0;
    }
    write.insert(tree_key, [&[CUT][..], &(value.len() as u64).to_le_bytes()].concat());
    for (at, piece) in value.chunks(PIECE_BYTES).enumerate() {
        write.insert(piece_key(space, key, at), piece);
    }
    pieces(value.len())
}

fn tree_key(space: Space, key: &[u8]) -> Vec<u8> {
    [&[space.index() as u8], key].concat()
}

/// Unique without a length: two keys of the same total length have keys of the same length.
fn piece_key(space: Space, key: &[u8], piece: usize) -> Vec<u8> {
    [&[PIECES, space.index() as u8], key, &(piece as u32).to_be_bytes()].concat()
}

fn pieces(len: usize) -> usize {
    len.div_ceil(PIECE_BYTES)
}

/// The length of a value in pieces; none if the value is whole.
fn cut_len(stored: &[u8]) -> Option<usize> {
    let (&CUT, len) = stored.split_first()? else {
        return None;
    };
    let len = u64::from_le_bytes(len.try_into().ok()?);
    usize::try_from(len).ok().filter(|len| *len <= super::MAX_VALUE_BYTES)
}

fn whole(stored: IVec) -> Value {
    Value::copy_from_slice(stored.get(1..).unwrap_or_default())
}

fn read_error(space: Space, source: Source) -> EngineError {
    EngineError::Read { space: space.name(), source }
}

/// sled reports its lock as an I/O error without a kind of its own.
fn is_locked(source: &Source) -> bool {
    matches!(source.downcast_ref(), Some(sled::Error::Io(io)) if io.to_string().contains("acquire lock"))
}

/// Tells damage (the folder may be moved aside) from a machine in trouble (it must not be).
fn open_error(path: PathBuf, source: Source) -> EngineError {
    let io = match source.downcast_ref::<sled::Error>() {
        Some(sled::Error::Io(io)) => Some(io.kind()),
        _ => source.downcast_ref::<std::io::Error>().map(std::io::Error::kind),
    };
    match io {
        None | Some(ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::Other) => {
            EngineError::Unreadable { path, source, advice: ADVICE }
        }
        Some(_) => EngineError::Unreachable { path, source },
    }
}
