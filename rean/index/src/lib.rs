//! Indexes over the documents of a database: views and Mango.

mod cursor;
mod doc;
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
mod shared;
mod spec;
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
    Emit, Emitted, GroupSpec, IndexDoc, MAX_RANKED, MapError, Mapper, Reduce, ReduceError, Reducer, ViewSpec,
};
pub use view::View;
