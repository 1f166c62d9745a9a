//! What an index is made of: its views, the functions that make its rows, and those that reduce them.

use crate::keys::partition_prefix;
use rean_store::{collate, partition_of};
use serde_json::Value;
use std::fmt;
use std::sync::Arc;

/// The views that are brought up to date together, as those of one design document. What two groups with the same
/// signature would hold is the same: options, functions and their order are all part of it.
#[derive(Clone)]
pub struct GroupSpec {
    /// 32 hexadecimal digits, of everything that decides about the rows.
    pub signature: String,
    /// Each makes rows of its own. The mapper gives them in this order.
    pub views: Vec<ViewSpec>,
    /// Whether design documents have rows (`options.include_design`).
    pub include_design: bool,
    /// Whether documents are handed over with `_local_seq` (`options.local_seq`).
    pub local_seq: bool,
    /// Whether the rows of each partition lie together (see [`is_partitioned`]), for [`crate::View::within`]. Documents
    /// without a partition have no rows then.
    pub partitioned: bool,
    /// Makes the rows.
    pub mapper: Arc<dyn Mapper>,
}

/// Whether the views of a design document are asked one partition at a time: in a partitioned database, unless its options
/// say otherwise (<https://docs.couchdb.org/en/stable/partitioned-dbs/index.html>).
pub fn is_partitioned(design: &Value, in_partitioned: bool) -> bool {
    let option = design.get("options").and_then(|options| options.get("partitioned"));
    in_partitioned && option != Some(&Value::Bool(false))
}

impl GroupSpec {
    /// What decides about the place of a row: its partition, if that counts, then its key. `None`: no rows for it.
    pub(crate) fn sort_key(&self, view: usize, id: &str, key: &Value) -> Option<Vec<u8>> {
        let sort_key = self.mapper.sort_key(view, key);
        if !self.partitioned {
            return Some(sort_key);
        }
        let mut whole = partition_prefix(partition_of(id)?);
        whole.extend_from_slice(&sort_key);
        Some(whole)
    }
}

/// One view of a group.
#[derive(Clone)]
pub struct ViewSpec {
    /// Its names, for messages.
    pub names: Vec<String>,
    /// What is kept of its rows besides them.
    pub reduce: Reduce,
}

/// A reduce function (<https://docs.couchdb.org/en/stable/ddocs/ddocs.html#reduce-and-rereduce-functions>).
#[derive(Clone)]
pub enum Reduce {
    /// Rows only.
    None,
    /// `_sum`.
    Sum,
    /// `_count`.
    Count,
    /// `_stats`.
    Stats,
    /// `_approx_count_distinct`: how many different keys there are, within 2 percent or so.
    ApproxCountDistinct,
    /// `_first`: the value of the row with the lowest key.
    First,
    /// `_last`: the value of the row with the highest key.
    Last,
    /// `_top_N`: the N highest values.
    Top(u16),
    /// `_bottom_N`: the N lowest values.
    Bottom(u16),
    /// A function of the design document.
    Custom(Arc<dyn Reducer>),
}

impl Reduce {
    /// The built-in function of this name, as design documents name them; `None`: there is none.
    pub fn built_in(name: &str) -> Option<Reduce> {
        let rank = |digits: &str| digits.parse().ok().filter(|n| (1..=MAX_RANKED).contains(n));
        match name.trim() {
            "_sum" => Some(Reduce::Sum),
            "_count" => Some(Reduce::Count),
            "_stats" => Some(Reduce::Stats),
            "_approx_count_distinct" => Some(Reduce::ApproxCountDistinct),
            "_first" => Some(Reduce::First),
            "_last" => Some(Reduce::Last),
            other => match (other.strip_prefix("_top_"), other.strip_prefix("_bottom_")) {
                (Some(n), _) => rank(n).map(Reduce::Top),
                (_, Some(n)) => rank(n).map(Reduce::Bottom),
                _ => None,
            },
        }
    }
}

/// Values that `_top_N` and `_bottom_N` give at most: they are kept for each page of rows. CouchDB documents 100.
pub const MAX_RANKED: u16 = 100;

impl fmt::Debug for Reduce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reduce::None => f.write_str("none"),
            Reduce::Sum => f.write_str("_sum"),
            Reduce::Count => f.write_str("_count"),
            Reduce::Stats => f.write_str("_stats"),
            Reduce::ApproxCountDistinct => f.write_str("_approx_count_distinct"),
            Reduce::First => f.write_str("_first"),
            Reduce::Last => f.write_str("_last"),
            Reduce::Top(n) => write!(f, "_top_{n}"),
            Reduce::Bottom(n) => write!(f, "_bottom_{n}"),
            Reduce::Custom(_) => f.write_str("function"),
        }
    }
}

/// A live document, as it is mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexDoc {
    /// Its id.
    pub id: String,
    /// Its winning revision.
    pub rev: String,
    /// All of it as JSON object: `_id`, `_rev`, stubs of attachments, `_local_seq` if it was asked for.
    pub json: String,
}

/// What a map function emitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emit {
    /// JSON.
    pub key: String,
    /// JSON.
    pub value: String,
}

/// What one view has of one document: its rows, or why the function failed. A failed one has no rows.
pub type Emitted = Result<Vec<Emit>, Unmapped>;

/// Why a view has no rows of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmapped {
    /// For the log.
    pub words: String,
    /// Whether the function hit a limit of time or memory: that costs much. After some of them the index rests.
    pub costly: bool,
}

impl From<String> for Unmapped {
    fn from(words: String) -> Self {
        Self { words, costly: false }
    }
}

/// Makes rows from documents.
pub trait Mapper: Send + Sync {
    /// For each document, in order, for each view of the group, in order: its rows. Called by one thread at a time
    /// for each group that is brought up to date; may block. With [`Unmapped::costly`] ones among them the answers may
    /// be fewer than the documents, but not none: the rest was not looked at.
    ///
    /// # Errors
    /// See [`MapError`]: what is to be done about it differs.
    fn map(&self, docs: Vec<IndexDoc>) -> Result<Vec<Vec<Emitted>>, MapError>;

    /// What decides about the place of a view's row among the others.
    fn sort_key(&self, _view: usize, key: &Value) -> Vec<u8> {
        collate::sort_key(key)
    }
}

/// A batch of documents could not be mapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The functions can't be run at all (one can't be compiled). Bringing the index up to date fails with it.
    #[error("{0}")]
    Function(String),
    /// Not now: no room, or the end of the program. Bringing the index up to date fails with it, and may be tried
    /// again.
    #[error("{0}")]
    Unavailable(String),
    /// The functions hit limits with one document after the other: the index is left alone for a while.
    #[error("{0}")]
    Resting(String),
    /// Something about these documents, as a limit that was hit. They are tried again one at a time, and one that
    /// fails alone has no rows.
    #[error("{0}")]
    Documents(String),
}

/// Reduces rows.
pub trait Reducer: Send + Sync {
    /// `keys`: JSON `[[key, id], ..]`; `None`: the values are reductions. `values`: a JSON array. Gives JSON.
    ///
    /// # Errors
    /// See [`ReduceError`].
    fn reduce(&self, keys: Option<&str>, values: &str) -> Result<String, ReduceError>;
}

/// Values could not be reduced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReduceError {
    /// The function threw: the reduction is `null`, as CouchDB's query server has it.
    #[error("{0}")]
    Threw(String),
    /// The function hit a limit or can't be compiled. Queries that need this reduction fail with it.
    #[error("{error}: {reason}")]
    Failed {
        /// Name for clients.
        error: String,
        /// What to tell them.
        reason: String,
    },
    /// Not now. May be tried again.
    #[error("{0}")]
    Unavailable(String),
}
