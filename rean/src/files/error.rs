//! What goes wrong with files, and how clients are told.

use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};

use crate::error::ApiError;

/// Why a file can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Its bytes are not where they should be.
    #[error("the file is not there")]
    Missing,
    /// The bytes are others than those that were written.
    #[error("the file has another length or hash than its record")]
    Damaged,
    /// It is in a bucket, and `_ring/config` names none.
    #[error("the file is in a bucket, and `files.store` of _ring/config names none")]
    NoBucket,
    /// What opens the bucket is not on this machine.
    #[error("the credentials of the bucket: {0}")]
    Credentials(String),
    /// There are too many uploads.
    #[error("too many uploads of large files")]
    Busy,
    /// The storage doesn't answer, or not as it should.
    #[error("{step}: {why}")]
    Storage {
        /// What was tried.
        step: &'static str,
        /// What it said.
        why: String,
    },
    /// No other pod gives it.
    #[error("no pod gave the file: {0}")]
    Pods(String),
}

impl FileError {
    /// A failed step of the storage. What the storage says of a secret goes no further than its own message.
    pub fn storage(step: &'static str, error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => Self::Missing,
            error => Self::Storage { step, why: error.to_string() },
        }
    }

    /// A failed step of the machine.
    pub fn io(step: &'static str, error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::NotFound => Self::Missing,
            _ => Self::Storage { step, why: error.to_string() },
        }
    }
}

impl From<FileError> for ApiError {
    /// 503: none of it is the client's fault, all of it may be over soon. The document is there, and the rest of it.
    fn from(error: FileError) -> Self {
        let (reason, after_s) = match &error {
            FileError::Busy => ("Too many large files are being uploaded; try again", 2),
            FileError::Missing | FileError::Pods(_) => ("The file is not on this pod yet; try again", 5),
            _ => ("The storage of large files can't be used at the moment; try again", 5),
        };
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "file_unavailable", reason)
            .with_header(RETRY_AFTER, HeaderValue::from(after_s))
            .with_cause(error)
    }
}
