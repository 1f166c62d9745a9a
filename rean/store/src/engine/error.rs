//! What can go wrong in a storage engine.

use std::path::PathBuf;

use super::EngineKind;

/// Any error of a library below the seam.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// An error of a storage engine. Each names the step that failed and keeps its source.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The folder holds something that this engine can't read. Nothing in it was deleted.
    #[error("the store in {} can't be opened: {source}. {advice}", path.display())]
    Unreadable {
        /// The folder of the store.
        path: PathBuf,
        /// What the library said.
        source: Source,
        /// What a person (or the layer above) can do about it.
        advice: &'static str,
    },
    /// The folder is locked by another process, or by an engine that is still open in this one.
    #[error("the store in {} is in use by another process", path.display())]
    InUse {
        /// The folder of the store.
        path: PathBuf,
    },
    /// The folder could not be reached (rights, space, file handles): the data may be fine, so it
    /// must not be moved aside.
    #[error("the store in {} could not be reached: {source}", path.display())]
    Unreachable {
        /// The folder of the store.
        path: PathBuf,
        /// What the system said.
        source: Source,
    },
    /// This build has no such engine.
    #[error("this build has no engine `{0}`: build it with the cargo feature of that name")]
    NotBuilt(EngineKind),
    /// A commit or its flush failed. The engine takes no further writes.
    #[error("{step} failed, so this store takes no more writes until it is opened again: {source}")]
    Write {
        /// `commit` or `flush`.
        step: &'static str,
        /// What the library said.
        source: Source,
    },
    /// An earlier write failed, so it is unknown what is on the disk: opening again finds out.
    #[error("writes are refused since an earlier one failed ({reason}): open the store again")]
    Poisoned {
        /// The earlier failure.
        reason: String,
    },
    /// The background work is so far behind that nothing was written. Trying again later is fine.
    #[error("the store's background work has not caught up in {waited_ms} ms; nothing was written")]
    Stalled {
        /// How long the commit waited.
        waited_ms: u64,
    },
    /// A read failed.
    #[error("reading {space} failed: {source}")]
    Read {
        /// The name of the key space.
        space: &'static str,
        /// What the library said.
        source: Source,
    },
    /// Compaction failed; the data is as it was.
    #[error("compacting failed: {0}")]
    Compact(Source),
    /// A key that no engine can hold. Nothing was written.
    #[error("a key has {len} bytes; it must have 1 to {max}")]
    KeyLength {
        /// Its length in bytes.
        len: usize,
        /// The most that is possible.
        max: usize,
    },
    /// A value that no engine should hold. Nothing was written.
    #[error("a value has {len} bytes; the most is {max}")]
    ValueLength {
        /// Its length in bytes.
        len: usize,
        /// The most that is possible.
        max: usize,
    },
    /// The engine has been closed.
    #[error("the store is closed")]
    Closed,
}
