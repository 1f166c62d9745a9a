//! How a call of a function can fail.

use thiserror::Error;

/// How a call of a function can fail. `function` is its place in the design document, as `views.by_name.map`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ScriptError {
    /// The text is no JavaScript, or no function.
    #[error("{function} could not be compiled: {message}")]
    Compile {
        /// Its place in the design document.
        function: String,
        /// The engine's words.
        message: String,
    },
    /// The function threw.
    #[error("{function} threw {error}: {message}")]
    Threw {
        /// Its place in the design document.
        function: String,
        /// What CouchDB gives as `error`: the name of an `Error`, the first word of `["error", name, reason]`, else `unnamed_error`.
        error: String,
        /// What CouchDB gives as `reason`.
        message: String,
    },
    /// It ran longer than it may.
    #[error("{function} took too long")]
    TooLong {
        /// Its place in the design document.
        function: String,
    },
    /// It needed more memory than it may have, or its result was too large.
    #[error("{function} used too much memory")]
    TooMuchMemory {
        /// Its place in the design document.
        function: String,
    },
    /// It called itself too deeply, or a document is nested too deeply.
    #[error("{function} called itself too deeply")]
    TooDeep {
        /// Its place in the design document.
        function: String,
    },
    /// The design document has no such function.
    #[error("{function} is missing")]
    Missing {
        /// Its place in the design document.
        function: String,
    },
    /// The function returned what such a function must not return.
    #[error("{function} returned a wrong result: {message}")]
    BadResult {
        /// Its place in the design document.
        function: String,
        /// What is wrong with it.
        message: String,
    },
    /// It hit a limit again and again, and is not tried for a while.
    #[error("{function} hit a limit again and again, it is tried again in {for_ms} ms")]
    Resting {
        /// Its place in the design document.
        function: String,
        /// Milliseconds until it is tried again.
        for_ms: u64,
    },
    /// The text of the design document is no JSON object, or what was handed over is no JSON.
    #[error("no JSON that functions could work with: {0}")]
    BadInput(String),
    /// Too many calls wait already.
    #[error("too many functions wait to be run")]
    Busy,
    /// The server is stopping.
    #[error("functions are no longer run")]
    Closed,
}

/// Why a validator refused a document.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// `throw({forbidden: reason})`. The reason as it is when it is a string, else as JSON text.
    #[error("forbidden: {0}")]
    Forbidden(String),
    /// `throw({unauthorized: reason})`, the reason likewise.
    #[error("unauthorized: {0}")]
    Unauthorized(String),
    /// The validator did not work; the write must be refused all the same.
    #[error(transparent)]
    Error(#[from] ScriptError),
}
