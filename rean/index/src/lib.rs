//! Indexes over the documents of a database: views and Mango.
//!
//! # What flows through it
//! [`Group::update`] reads the durable changes of a database ([`rean_store::Db::indexable`]), has a [`Mapper`] make rows
//! of the documents, and merges them into pages (`update`, `pending`, `tree`). A [`View`] of one moment gives rows,
//! counts and reductions of a range, for a [`rean_store::Scope`] (`walk`, `cursor`, `entries`, `rows`, `reduced`). What the functions
//! of a design document do is the server's affair; what Mango's indexes and plans are is in [`mango`].
//!
//! # What always holds
//! - An index is right up to its sequence, in every state that a crash can leave: rows, counts, reductions and the
//!   sequence are one batch. It is never flushed: what is lost is made again.
//! - A reader's view is made of the rows of the partial databases that they may read, and of nothing else: no row is
//!   filtered out afterwards, so counts, offsets and reductions tell nothing of what is hidden.
//! - The rows of a partition of a partitioned database lie together, where its design document wants that: what is asked of
//!   one partition reads no other.
//! - Rows have the order of [`rean_store::collate`], rows with equal keys that of their documents' ids, and those of one
//!   document that of their values, as CouchDB has it (`same_key`); backwards all of that is turned round but the last
//!   (`entries`).
//! - An index that can't be of the database as it is (another instance, a lost or future sequence, forgotten purges,
//!   another order of strings, damage) is made anew under another number.
//!
//! # What is stored
//! In an engine of its own, in four of its spaces. Numbers in keys are big-endian: `group` and `part` four bytes, `view`
//! two. A tree is `group view part`; part 0 has the rows of all documents, part n + 1 those of partial database n.
//!
//! | space | key | value |
//! | --- | --- | --- |
//! | Meta | `format` | layout of all this, and the order of strings |
//! | Meta | `next` | the number of the next index |
//! | Meta | `group/` instance `/` signature | an index, and how far it has come |
//! | Meta | `rows/` tree | the number of its rows |
//! | Meta | `dead/` group | a dropped index that is still to be cleared |
//! | Docs | group id | the rows of a document: sort keys (with its partition, where that counts) and hashes |
//! | Seqs | tree separator | the head of a page: rows, bytes, reduction |
//! | Bodies | tree separator | a page: rows in their order, 4 KiB of them or so |
//!
//! # What it is not
//! It knows no HTTP, no JavaScript and no async; all calls block. It checks no rights but by the scope: who may ask for
//! what, and that a reader's index is up to date, is the server's affair.

mod cursor;
mod doc;
mod entries;
mod error;
mod group;
mod indexes;
mod keys;
pub mod mango;
mod page;
mod pending;
mod range;
mod records;
mod reduce;
mod reduced;
mod rows;
mod same_key;
mod shared;
mod spec;
mod toll;
mod tree;
mod update;
mod view;
mod walk;

pub use error::IndexError;
pub use group::{Group, GroupInfo};
pub use indexes::Indexes;
pub use range::{Bound, Grouping, Range};
pub use reduced::{Reduced, ReducedRow};
pub use rows::{Row, Rows};
pub use spec::{
    Emit, Emitted, GroupSpec, IndexDoc, MAX_RANKED, MapError, Mapper, Reduce, ReduceError, Reducer, Unmapped, ViewSpec,
    is_partitioned,
};
pub use view::View;
