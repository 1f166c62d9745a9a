//! Mango without its HTTP: what an index is and how design documents hold it, which index serves a query, and the rows
//! of an index. Pure functions over values
//! (<https://docs.couchdb.org/en/stable/api/database/find.html>).
//!
//! An index is a view of a design document with the language `query`; its row has the values of the fields as key.
//! A document without one of the fields has no row, so an index serves a query only if each of its fields must be there
//! in whatever matches ([`plan`]). Rows are a superset of the answer: the selector is asked of each document again.

mod conditions;
pub mod definition;
mod error;
mod mapper;
pub mod new_index;
pub mod plan;
pub mod range;
pub mod sort;

#[cfg(test)]
mod plan_tests;

pub use definition::IndexDef;
pub use error::{MangoError, clip, shown};
pub use mapper::{group_of, group_spec};
pub use new_index::NewIndex;
pub use plan::{Candidate, Choice, Hints, Plan, Query, UseIndex};
pub use range::KeyRange;
pub use sort::Sort;
