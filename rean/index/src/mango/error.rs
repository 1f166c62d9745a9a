//! What is wrong with a query or an index, in CouchDB's words.

use rean_store::selector::SelectorError;
use serde_json::Value;

/// How much of what a client sent goes into a message, in characters.
const MAX_SHOWN_CHARS: usize = 100;

/// A mistake of the client. The message is the `reason` of the answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MangoError {
    /// The selector.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// A member that is needed is missing.
    #[error("Missing required key: {0}")]
    MissingKey(&'static str),
    /// A member that there is not.
    #[error("Invalid key {0} for this request.")]
    InvalidKey(String),
    /// No text.
    #[error("Invalid string: {0}")]
    NotString(String),
    /// Neither `true` nor `false`.
    #[error("Invalid boolean value: {0}")]
    NotBoolean(String),
    /// Not a whole number from 1 up.
    #[error("{0} is not an integer greater than zero")]
    NotPositive(String),
    /// Not a whole number from 0 up.
    #[error("{0} is not an integer greater than or equal to zero")]
    NotNatural(String),
    /// A member has a value that it can't have.
    #[error("Invalid value for {name}: {value}")]
    Value {
        /// The member.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// `fields` is no list.
    #[error("Fields must be an array of strings, not: {0}")]
    Fields(String),
    /// One of `fields` is no text.
    #[error("Invalid JSON for field spec: {0}")]
    Field(String),
    /// `sort`, or the fields of an index, is no list.
    #[error("Sort must be an array of sort specs, not: {0}")]
    SortJson(String),
    /// One of its items is neither a text nor an object with one member.
    #[error("Invalid sort field: {0}")]
    SortField(String),
    /// Neither `asc` nor `desc`.
    #[error("Invalid sort direction: {0}")]
    SortDirection(String),
    /// Both directions.
    #[error("Sorts currently only support a single direction for all fields.")]
    MixedSort,
    /// The kind of index.
    #[error("Invalid type for index: {0}")]
    IndexType(String),
    /// A kind of index that needs a search server.
    #[error("{0}")]
    NoService(&'static str),
    /// The definition is no object.
    #[error("JSON indexes must be an object, not: {0}")]
    IndexJson(String),
    /// The definition has no fields, or too many.
    #[error("An index must have between 1 and {most} fields.")]
    IndexFields {
        /// The most that it may have.
        most: usize,
    },
    /// The database has no partitions.
    #[error("partitioned option cannot be true in a non-partitioned database.")]
    Partitioned,
    /// Indexes of one design document are all partitioned, or none is.
    #[error("Requested partitioned option does not match existing value on design document.")]
    PartitionedMismatch,
    /// A partition that there can't be, or another one than the request is for.
    #[error("{0}")]
    Partition(String),
    /// `use_index`, or the name of an index to delete.
    #[error("Invalid index name: {0}")]
    IndexName(String),
    /// `docids` of a bulk deletion.
    #[error("Bulk Delete requires an array of non-null docids. Docids: {0}")]
    BulkDocs(String),
    /// A design document of JavaScript functions can't take an index.
    #[error("Existing design doc has an invalid language: {0}")]
    Language(String),
    /// No index has the sort's order.
    #[error("No index exists for this sort, try indexing by the sort fields.")]
    NoSortIndex,
    /// The same in a partitioned database: no index of this kind has it.
    #[error("No {0} index exists for this sort, try indexing by the sort fields.")]
    NoSortIndexOf(&'static str),
    /// Falling back to all documents was forbidden.
    #[error("There is no index available for this selector.")]
    NoIndex,
    /// Falling back from the index that was named was forbidden.
    #[error("{0} specified by `use_index` could not be found or it is not suitable.")]
    Unsuitable(String),
    /// Not a bookmark, or not this query's.
    #[error("Invalid bookmark value: {0}")]
    Bookmark(String),
    /// `limit` and `skip` of a list of indexes.
    #[error("Index parameter ranges: limit > 1, skip > 0")]
    ListRange,
}

impl MangoError {
    /// The status of the answer.
    pub fn status(&self) -> u16 {
        match self {
            MangoError::NoService(_) => 503,
            // CouchDB's own; a client that reads it knows it so.
            MangoError::ListRange => 500,
            _ => 400,
        }
    }

    /// CouchDB's word for it.
    pub fn error(&self) -> &'static str {
        match self {
            MangoError::Selector(error) => error.name(),
            MangoError::MissingKey(_) => "missing_required_key",
            MangoError::InvalidKey(_) => "invalid_key",
            MangoError::NotString(_) => "invalid_string",
            MangoError::NotBoolean(_) => "invalid_boolean",
            MangoError::NotPositive(_) => "invalid_pos_integer",
            MangoError::NotNatural(_) => "invalid_non_neg_integer",
            MangoError::Value { .. } => "invalid_value",
            MangoError::Fields(_) => "invalid_fields",
            MangoError::Field(_) => "invalid_field",
            MangoError::SortJson(_) => "invalid_sort_json",
            MangoError::SortField(_) => "invalid_sort_field",
            MangoError::SortDirection(_) => "invalid_sort_dir",
            MangoError::MixedSort => "unsupported_mixed_sort",
            MangoError::IndexType(_) | MangoError::IndexJson(_) | MangoError::IndexFields { .. } => "invalid_index",
            MangoError::NoService(_) => "required index service unavailable",
            // CouchDB's word for a design document that says this.
            MangoError::Partitioned => "invalid_design_doc",
            MangoError::PartitionedMismatch => "partitioned_option_mismatch",
            MangoError::Partition(_) => "invalid_partition",
            MangoError::IndexName(_) => "invalid_index_name",
            MangoError::BulkDocs(_) => "invalid_bulk_docs",
            MangoError::Language(_) => "invalid_ddoc_lang",
            MangoError::NoSortIndex | MangoError::NoSortIndexOf(_) | MangoError::NoIndex => "no_usable_index",
            MangoError::Unsuitable(_) => "invalid_index",
            MangoError::Bookmark(_) => "invalid_bookmark",
            MangoError::ListRange => "invalid_list_index_params",
        }
    }
}

/// The beginning of a value, for a message.
pub fn shown(value: &Value) -> String {
    clip(&value.to_string())
}

/// The beginning of a text, for a message.
pub fn clip(text: &str) -> String {
    text.chars().take(MAX_SHOWN_CHARS).collect()
}
