//! Why a replication can't go on, and whether trying again may help.

use std::borrow::Cow;

use http::StatusCode;

use crate::error::ApiError;

/// Text of a far server that is passed on; more of it helps nobody.
const SHOWN_CHARS: usize = 300;

/// What stopped a replication. No text in it holds a password.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// Trying again changes nothing: something is not there, not allowed or not possible.
    #[error("{error}: {reason}")]
    Fatal {
        /// The status for who waits for the replication.
        status: StatusCode,
        /// CouchDB's word for it.
        error: Cow<'static, str>,
        /// For people.
        reason: String,
    },
    /// It may pass: the network, a server that restarts.
    #[error("{0}")]
    Passing(String),
}

impl Fault {
    /// A fault that stays.
    pub fn fatal(status: StatusCode, error: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self::Fatal { status, error: error.into(), reason: reason.into() }
    }

    /// What an answer means that is no success. `what` was asked, of whom `shown` names.
    pub fn of_answer(shown: &str, what: &str, status: StatusCode, body: &[u8]) -> Self {
        let (error, reason) = words(body);
        let told = format!("{shown}: {what}: {} {error}: {reason}", status.as_u16());
        match status {
            StatusCode::UNAUTHORIZED => Self::fatal(status, "unauthorized", told),
            StatusCode::FORBIDDEN => Self::fatal(status, "forbidden", told),
            StatusCode::NOT_FOUND => Self::fatal(status, "not_found", told),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Self::Passing(told),
            // What a server has not got, it won't have in a minute either.
            StatusCode::NOT_IMPLEMENTED => Self::fatal(status, "not_implemented", told),
            _ if status.is_server_error() => Self::Passing(told),
            _ => Self::fatal(StatusCode::BAD_REQUEST, "replication_error", told),
        }
    }

    /// The reason alone.
    pub fn reason(&self) -> &str {
        match self {
            Self::Fatal { reason, .. } => reason,
            Self::Passing(reason) => reason,
        }
    }
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Fatal { status, error, reason } => Self::new(status, error, reason),
            Fault::Passing(reason) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "replication_error", reason),
        }
    }
}

/// `error` and `reason` of an answer in CouchDB's form.
pub fn words(body: &[u8]) -> (String, String) {
    let parsed: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let word = |name: &str| parsed.get(name).and_then(|text| text.as_str()).map(clip).unwrap_or_default();
    (word("error"), word("reason"))
}

/// The beginning of a text of a far server's.
pub fn clip(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}
