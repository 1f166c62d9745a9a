//! The functions of design documents, run in a box: validators, filters, update handlers, maps and reductions.
//!
//! Text in, text out. A call ([`Scripts`]) goes with all its documents to a thread of its lane, where the design
//! document has a runtime of its own; JSON text is parsed there, the function called once a document, and what it
//! gives is JSON text again. No JavaScript object outlives a call, and this crate knows no store and no HTTP.
//!
//! What always holds:
//! - A function reaches nothing but its arguments and CouchDB's helpers (`setup.js`): no files, no network, no timers,
//!   no code out of text, no `Proxy`.
//! - Time (the thread's CPU time, and the wall's in proportion), memory, stack, results, log lines and queues are
//!   bounded. Who hits a limit has an error of their own; the runtime is thrown away. A thread that is stuck where the
//!   engine doesn't look at the clock is replaced (`pool.rs`), and its function rests (`breaker.rs`).
//! - One owner ([`Design::for_owner`]) never holds all threads of a lane that has more than one.
//! - A call sees nothing that another left behind, except the state of modules and closures of its own design
//!   document: what is left on globals and prototypes is taken away, or the runtime is.
//! - A validator that does not work refuses.
//!
//! What it is not: a safe place for code of strangers in the long run. The engine (QuickJS) is C in this process; only
//! administrators write design documents.
//!
//! Facts of CouchDB: <https://docs.couchdb.org/en/stable/ddocs/ddocs.html>,
//! <https://docs.couchdb.org/en/stable/query-server/protocol.html>.

mod breaker;
mod clock;
mod design;
mod error;
mod json_text;
mod limits;
mod machine;
mod pool;
mod scripts;
mod thrown;
mod ticket;
mod worker;

pub use design::{Design, FunctionName};
pub use error::{Refusal, ScriptError};
pub use limits::ScriptLimits;
pub use scripts::{Lane, MappedDoc, MappedRow, Scripts, Updated, ValidateCase};
