//! What can go wrong in the store, as its callers see it.

use crate::engine::EngineError;
use std::path::PathBuf;

/// The store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The engine could not open its files. Nothing was deleted.
    #[error("the store can't be opened: {0}")]
    Engine(#[from] EngineError),
    /// Written by a newer version.
    #[error(
        "the store in {path} has format {found}, this version reads up to format {known}: \
         start the version that wrote it, or a newer one (nothing was changed)"
    )]
    Newer {
        /// Where the store is.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that this version reads.
        known: u32,
    },
    /// A record could not be read.
    #[error("the store in {path} is damaged: {what}")]
    Damaged {
        /// Where the store is.
        path: PathBuf,
        /// What could not be read.
        what: String,
    },
    /// The folder could not be used.
    #[error("{path}: {source}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// An operation of the store failed. Clonable, because one failed commit fails every request in its group.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A database of that name exists.
    #[error("a database of that name exists")]
    Exists,
    /// The database has been deleted.
    #[error("the database has been deleted")]
    Gone,
    /// The engine failed. After a failed commit the store takes no more writes until it is opened again.
    #[error("the storage engine failed: {0}")]
    Engine(String),
    /// A record can't be decoded.
    #[error("a record is damaged: {0}")]
    Damaged(&'static str),
    /// A note, or its name, is longer than notes can be.
    #[error("a note may have 64 KiB and a name of 1 to 200 bytes")]
    NoteSize,
    /// The store is closing.
    #[error("the store is closing")]
    Closing,
}

impl From<EngineError> for StoreError {
    fn from(error: EngineError) -> Self {
        StoreError::Engine(error.to_string())
    }
}

/// One edit was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// CouchDB's `conflict`.
    #[error("Document update conflict.")]
    Conflict,
    /// Not allowed, whoever asks.
    #[error("{0}")]
    Forbidden(String),
    /// Not allowed without a log-in.
    #[error("{0}")]
    Unauthorized(String),
    /// The edit itself is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// A stub names an attachment that the parent revision does not have.
    #[error("Invalid attachment stub in {id} for {name}")]
    MissingStub {
        /// The document.
        id: String,
        /// The attachment.
        name: String,
    },
    /// The document's partition is too large to take more. The words are CouchDB's.
    #[error("Partition limit exceeded due to update on '{0}'")]
    PartitionOverflow(String),
    /// The document has changed since the edit was validated: validate it again.
    #[error("The document changed while its new revision was validated. Try again.")]
    Overtaken,
    /// The document isn't there (for `_local` documents).
    #[error("missing")]
    NotFound,
    /// The store failed; nothing of the edit was kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WriteError {
    /// The HTTP status that CouchDB gives.
    pub fn status(&self) -> u16 {
        match self {
            WriteError::Conflict => 409,
            WriteError::Forbidden(_) | WriteError::PartitionOverflow(_) => 403,
            WriteError::Unauthorized(_) => 401,
            WriteError::BadRequest(_) => 400,
            WriteError::MissingStub { .. } => 412,
            WriteError::Overtaken => 503,
            WriteError::NotFound => 404,
            WriteError::Store(_) => 500,
        }
    }

    /// CouchDB's name of the error.
    pub fn error(&self) -> &'static str {
        match self {
            WriteError::Conflict => "conflict",
            WriteError::Forbidden(_) => "forbidden",
            WriteError::PartitionOverflow(_) => "partition_overflow",
            WriteError::Unauthorized(_) => "unauthorized",
            WriteError::BadRequest(_) => "bad_request",
            WriteError::MissingStub { .. } => "missing_stub",
            WriteError::Overtaken => "service_unavailable",
            WriteError::NotFound => "not_found",
            WriteError::Store(_) => "internal_server_error",
        }
    }

    /// What to tell the client.
    pub fn reason(&self) -> String {
        self.to_string()
    }
}
