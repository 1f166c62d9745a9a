//! The seam between the document store and the library that keeps its bytes.
//!
//! An engine holds a fixed set of ordered key spaces, takes atomic batches over all of them, and
//! gives snapshots. It knows nothing of documents. Three stand behind the seam: fjall (the
//! default), sled (cargo feature `sled`, not power-safe) and memory (for tests, with faults). The
//! seam is small on purpose, so that a distributed engine can be one more.
//!
//! What always holds:
//! - a batch is visible and survives a crash as a whole or not at all;
//! - batches survive in the order of their commits: if one is there, all before it are;
//! - after `commit(.., durable: true)` returned, the batch survives a power cut (where
//!   [`Engine::power_safe`] is true); after `durable: false` it survives the death of the process
//!   (with sled: not for the last half second);
//! - after a failed write no further one is taken until the folder is opened again: what is on the
//!   disk is unknown until then;
//! - what can't be opened is never deleted.
//!
//! One writer is assumed: group commit is the work of the layer above. Calls block; async code
//! calls them from a blocking thread.

mod batch;
mod error;
pub mod fjall;
pub mod memory;
#[cfg(feature = "sled")]
pub mod sled;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

pub use batch::{Batch, MAX_KEY_BYTES, MAX_VALUE_BYTES};
pub use error::{EngineError, Source};

/// Bytes that an engine gives out, shared with its cache where it can.
pub type Value = bytes::Bytes;

/// One entry of a range: key and value.
pub type Entry = Result<(Value, Value), EngineError>;

/// The entries of a range, read as they are asked for.
pub type Range<'a> = Box<dyn Iterator<Item = Entry> + Send + 'a>;

/// A key space: an ordered map of its own, shared by all databases (which prefix their keys).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// About the store and its databases.
    Meta,
    /// A document's revision tree and winner.
    Docs,
    /// Changes in the order of their sequences.
    Seqs,
    /// Bodies of revisions.
    Bodies,
    /// `_local` documents.
    Local,
    /// Documents of partial databases.
    PartDocs,
    /// Changes of partial databases.
    PartSeqs,
    /// Pieces of attachments.
    Blobs,
    /// Which attachment is used by whom.
    BlobIndex,
}

/// Which way a range is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the lowest key up.
    Forward,
    /// From the highest key down.
    Backward,
}

/// What an engine uses, for people and for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Bytes on disk (or in memory, for the memory engine), journal included.
    pub disk_bytes: u64,
    /// Of these, bytes of the journal.
    pub journal_bytes: u64,
    /// Bytes written that are still in memory (and in the journal).
    pub write_buffer_bytes: u64,
    /// Bytes of the block cache in use.
    pub cache_bytes: u64,
}

/// A view of all key spaces at one moment. Short-lived: it holds back the removal of old data.
pub trait Snapshot: Send + Sync {
    /// The value of a key.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Value>, EngineError>;

    /// The entries with `lo <= key < hi`; none if `lo >= hi`.
    fn range<'a>(&'a self, space: Space, lo: &[u8], hi: &[u8], direction: Direction) -> Range<'a>;
}

/// A storage engine. See the module for what always holds.
pub trait Engine: Send + Sync {
    /// Applies a batch. With `durable` it is flushed first, together with all batches before it.
    /// A durable empty batch flushes what came before.
    fn commit(&self, batch: Batch, durable: bool) -> Result<(), EngineError>;

    /// The value of a key, as of the last commit.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Value>, EngineError>;

    /// A view of this moment. Of a closed engine every read gives [`EngineError::Closed`].
    fn snapshot(&self) -> Box<dyn Snapshot>;

    /// What it uses. Figures that can't be had are 0.
    fn stats(&self) -> EngineStats;

    /// Gives back the space of what was deleted or overwritten. Slow; reads and writes go on.
    fn compact(&self) -> Result<(), EngineError>;

    /// Flushes and closes. Snapshots stay readable, and hold the folder's lock until dropped.
    fn close(&self) -> Result<(), EngineError>;

    /// The engine's name, as [`EngineKind`] prints it.
    fn name(&self) -> &'static str;

    /// True if a durable commit survives a power cut.
    fn power_safe(&self) -> bool;
}

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EngineKind {
    /// The default.
    #[default]
    Fjall,
    /// Not power-safe, no snapshots; needs the cargo feature `sled`.
    Sled,
    /// Nothing outlives the process.
    Memory,
}

/// The name of an engine that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown storage engine `{0}`: it must be fjall, sled or memory")]
pub struct UnknownEngine(String);

/// Opens the store in the folder `path`, which is made if it is missing. The memory engine ignores
/// `path` and starts empty.
pub fn open(kind: EngineKind, path: &Path) -> Result<Box<dyn Engine>, EngineError> {
    match kind {
        EngineKind::Fjall => Ok(Box::new(fjall::FjallEngine::open(path)?)),
        EngineKind::Memory => Ok(Box::new(memory::MemoryEngine::new())),
        #[cfg(feature = "sled")]
        EngineKind::Sled => Ok(Box::new(sled::SledEngine::open(path)?)),
        #[cfg(not(feature = "sled"))]
        EngineKind::Sled => Err(EngineError::NotBuilt(kind)),
    }
}

impl Space {
    /// All key spaces, in the order of their tags.
    pub const ALL: [Space; 9] = [
        Space::Meta,
        Space::Docs,
        Space::Seqs,
        Space::Bodies,
        Space::Local,
        Space::PartDocs,
        Space::PartSeqs,
        Space::Blobs,
        Space::BlobIndex,
    ];

    /// Its name on disk. Never change one.
    pub fn name(self) -> &'static str {
        match self {
            Space::Meta => "meta",
            Space::Docs => "docs",
            Space::Seqs => "seqs",
            Space::Bodies => "bodies",
            Space::Local => "local",
            Space::PartDocs => "part_docs",
            Space::PartSeqs => "part_seqs",
            Space::Blobs => "blobs",
            Space::BlobIndex => "blob_index",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl FromStr for EngineKind {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "fjall" => Ok(EngineKind::Fjall),
            "sled" => Ok(EngineKind::Sled),
            "memory" => Ok(EngineKind::Memory),
            other => Err(UnknownEngine(other.to_owned())),
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineKind::Fjall => "fjall",
            EngineKind::Sled => "sled",
            EngineKind::Memory => "memory",
        })
    }
}

/// Remembers the first failed write; from then on writes are refused. A disk that failed once may
/// report success for the next flush although the pages of the first are gone (Rebello et al.,
/// "Can Applications Recover from fsync Failures?", ATC 2020).
#[derive(Debug, Default)]
struct Poison(OnceLock<String>);

impl Poison {
    fn check(&self) -> Result<(), EngineError> {
        match self.0.get() {
            None => Ok(()),
            Some(reason) => Err(EngineError::Poisoned { reason: reason.clone() }),
        }
    }

    fn set(&self, step: &'static str, source: impl Into<Source>) -> EngineError {
        let source = source.into();
        self.0.get_or_init(|| format!("{step}: {source}"));
        EngineError::Write { step, source }
    }
}

/// Runs a library's code that may panic on damaged data or broken invariants: a request must not
/// take the server down.
fn guarded<T>(work: impl FnOnce() -> Result<T, Source>) -> Result<T, Source> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(format!("the library panicked: {said}").into())
    })
}

/// The snapshot of a closed engine.
struct ClosedSnapshot;

impl Snapshot for ClosedSnapshot {
    fn get(&self, _: Space, _: &[u8]) -> Result<Option<Value>, EngineError> {
        Err(EngineError::Closed)
    }

    fn range<'a>(&'a self, _: Space, _: &[u8], _: &[u8], _: Direction) -> Range<'a> {
        Box::new(std::iter::once(Err(EngineError::Closed)))
    }
}
