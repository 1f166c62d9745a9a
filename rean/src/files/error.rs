//! What goes wrong with files, and how clients are told.

use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};

use crate::error::ApiError;

/// Characters of what a storage says that are logged: the kind of a fault and a sentence, after the address.
const MAX_TOLD_CHARS: usize = 500;

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
    /// It came slowly, and its place went to another upload.
    #[error("the upload was slow, and there are others")]
    Slow,
    /// Another ring uses the bucket too.
    #[error(
        "another ring with this ring's secret keeps files in the same place of the bucket, so nothing is removed there: give \
         one of them another `files.store.s3.prefix` in _ring/config, and then remove the object {0}"
    )]
    Disputed(String),
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
    /// A failed step of the storage.
    pub fn storage(step: &'static str, error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => Self::Missing,
            error => Self::Storage { step, why: told(&error.to_string()) },
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

/// What a storage says, for the log: its beginning, on one line. Of a signature that doesn't fit S3 says all that was
/// signed, and with it the token of a session; and another server can say anything.
fn told(text: &str) -> String {
    let end = text.find("<CanonicalRequest").unwrap_or(text.len());
    let kept = text[..end].chars().take(MAX_TOLD_CHARS);
    kept.map(|character| if character.is_control() { ' ' } else { character }).collect()
}

impl From<FileError> for ApiError {
    /// 503: none of it is the client's fault, all of it may be over soon. The document is there, and the rest of it.
    fn from(error: FileError) -> Self {
        let (reason, after_s) = match &error {
            FileError::Busy => ("Too many large files are being uploaded; try again", 2),
            FileError::Slow => {
                let reason = "The file came slowly, and its place is needed for others: try again later, or send it in pieces \
                              (see _uploads), of which each stays";
                (reason, 60)
            }
            FileError::Missing | FileError::Pods(_) => ("The file is not on this pod yet; try again", 5),
            _ => ("The storage of large files can't be used at the moment; try again", 5),
        };
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "file_unavailable", reason)
            .with_header(RETRY_AFTER, HeaderValue::from(after_s))
            .with_cause(error)
    }
}

#[cfg(test)]
mod tests {
    use super::{FileError, MAX_TOLD_CHARS};

    #[test]
    fn what_a_storage_says_is_one_short_line_without_what_was_signed() {
        let said = |text: &str| {
            let error = object_store::Error::Generic { store: "S3", source: text.to_owned().into() };
            FileError::storage("opening a file", error).to_string()
        };
        let forged = said("no\n2026-01-01 ERROR rean: \x1b[31mforged");
        assert!(forged.contains("forged") && !forged.contains(char::is_control), "{forged:?}");
        assert!(said(&"x".repeat(100_000)).len() < 2 * MAX_TOLD_CHARS);
        let signed = said("<Code>SignatureDoesNotMatch</Code><CanonicalRequest>x-amz-security-token:hidden");
        assert!(signed.contains("SignatureDoesNotMatch") && !signed.contains("hidden"), "{signed}");
    }
}
