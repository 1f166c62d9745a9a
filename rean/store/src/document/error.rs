//! Why a document was refused, in CouchDB's words.

/// Longest part of a client's own text that a reason repeats, in characters.
const MAX_QUOTED_CHARS: usize = 100;

/// Why a document, or a batch of them, was refused. [`error`](DocumentError::error) and
/// [`reason`](DocumentError::reason) are the members of CouchDB's answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// A special member that is unknown or malformed.
    #[error("{0}")]
    DocValidation(String),
    /// No JSON, no document, or a member of the wrong type.
    #[error("{0}")]
    BadRequest(String),
    /// An id that no document can have.
    #[error("{0}")]
    IllegalDocId(String),
    /// More attachments or documents than are taken at once.
    #[error("{0}")]
    TooLarge(String),
}

impl DocumentError {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            DocumentError::TooLarge(_) => 413,
            _ => 400,
        }
    }

    /// The name of the error.
    pub fn error(&self) -> &'static str {
        match self {
            DocumentError::DocValidation(_) => "doc_validation",
            DocumentError::BadRequest(_) => "bad_request",
            DocumentError::IllegalDocId(_) => "illegal_docid",
            DocumentError::TooLarge(_) => "too_large",
        }
    }

    /// What was wrong, for people.
    pub fn reason(&self) -> String {
        self.to_string()
    }
}

pub(super) fn doc_validation(reason: &str) -> DocumentError {
    DocumentError::DocValidation(reason.to_owned())
}

pub(super) fn bad_request(reason: &str) -> DocumentError {
    DocumentError::BadRequest(reason.to_owned())
}

pub(super) fn bad_special(key: &str) -> DocumentError {
    DocumentError::DocValidation(format!("Bad special document member: {}", quoted(key)))
}

pub(super) fn invalid_json() -> DocumentError {
    bad_request("invalid UTF-8 JSON")
}

pub(super) fn no_object() -> DocumentError {
    bad_request("Document must be a JSON object")
}

pub(super) fn invalid_rev() -> DocumentError {
    bad_request("Invalid rev format")
}

/// The beginning of a client's text.
pub(super) fn quoted(text: &str) -> &str {
    text.char_indices().nth(MAX_QUOTED_CHARS).map_or(text, |(end, _)| &text[..end])
}
