//! What a view is asked: parameters, or a JSON object with the same names
//! (<https://docs.couchdb.org/en/stable/api/ddoc/views.html>).
//!
//! Words and order of the refusals are CouchDB's: clients' tests lean on them.

use rean_store::{collate, validate_partition};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::capped::{self, CappedList, CappedMap};
use crate::error::ApiError;
use crate::query::Query;
use crate::render::{AttachmentForm, Options};

/// Most queries of one request; each has an answer of its own.
pub const MAX_QUERIES: usize = 1_000;
/// What is shown of a value that is refused: more of it helps nobody.
const SHOWN_CHARS: usize = 80;

/// A key that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its place in the order of the view's keys.
    pub sort: Vec<u8>,
    value: Value,
}

/// Whether an index is brought up to date before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Update {
    /// Before.
    #[default]
    First,
    /// Not at all.
    Never,
    /// After.
    Later,
}

/// One query, as it was asked.
#[derive(Debug, Clone)]
pub struct ViewArgs {
    /// From this key on, in the order of the answer.
    pub start: Option<Key>,
    /// Up to this key.
    pub end: Option<Key>,
    /// Of the rows with the start key, those from this document on. Without a start key it means nothing.
    pub start_doc_id: Option<String>,
    /// Of the rows with the end key, those up to this document.
    pub end_doc_id: Option<String>,
    /// Whether rows with the end key belong to the range.
    pub inclusive_end: bool,
    /// From the end to the beginning.
    pub descending: bool,
    /// The partition whose rows are asked for.
    pub partition: Option<String>,
    /// The rows of these keys, in this order.
    pub keys: Option<Vec<Key>>,
    /// At most so many rows.
    pub limit: u64,
    /// So many are left out first.
    pub skip: u64,
    /// Whether the reduce function is used; by default if there is one.
    pub reduce: Option<bool>,
    /// One row a key.
    group: Option<bool>,
    /// One row for what agrees in so many elements of an array.
    group_level: Option<u32>,
    /// Rows have the document.
    pub include_docs: bool,
    /// Documents have their conflicts.
    conflicts: Option<bool>,
    /// Documents have their attachments.
    attachments: bool,
    /// Whether the answer tells the update sequence.
    pub update_seq: bool,
    /// Without it the answer has no counts.
    pub sorted: bool,
    /// How fresh the answer must be.
    pub update: Update,
}

/// How rows are put together by a reduce function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// All rows are one.
    All,
    /// Rows with equal keys.
    Exact,
    /// Rows that agree in the first so many elements of an array.
    Level(u32),
}

/// One parameter's value.
enum Given<'a> {
    /// From the address.
    Text(&'a str),
    /// From a body.
    Json(&'a str),
}

/// What a POST asks for.
#[derive(Debug)]
pub enum Asked {
    /// One answer.
    One(Box<ViewArgs>),
    /// `{"results": [...]}`.
    Several(Vec<ViewArgs>),
}

impl Default for ViewArgs {
    fn default() -> Self {
        Self {
            start: None,
            end: None,
            start_doc_id: None,
            end_doc_id: None,
            inclusive_end: true,
            descending: false,
            partition: None,
            keys: None,
            limit: u64::MAX,
            skip: 0,
            reduce: None,
            group: None,
            group_level: None,
            include_docs: false,
            conflicts: None,
            attachments: false,
            update_seq: false,
            sorted: true,
            update: Update::First,
        }
    }
}

impl ViewArgs {
    /// Reads parameters.
    ///
    /// # Errors
    /// 400 `query_parse_error` for values that they can't have, 400 `bad_request` for a key that is no JSON.
    pub fn from_query(query: &Query) -> Result<Self, ApiError> {
        let mut args = Self::default();
        args.take_query(query)?;
        Ok(args)
    }

    fn take_query(&mut self, query: &Query) -> Result<(), ApiError> {
        query.pairs().iter().try_for_each(|(name, value)| self.take(name, &Given::Text(value)))
    }

    fn take_members(&mut self, members: &[(String, Box<RawValue>)]) -> Result<(), ApiError> {
        members.iter().try_for_each(|(name, value)| self.take(name, &Given::Json(value.get())))
    }

    fn take(&mut self, name: &str, value: &Given<'_>) -> Result<(), ApiError> {
        match name {
            "reduce" => self.reduce = Some(value.bool()?),
            "key" => {
                let key = value.key()?;
                self.start = Some(key.clone());
                self.end = Some(key);
            }
            "keys" => self.keys = Some(value.keys()?),
            "startkey" | "start_key" => self.start = Some(value.key()?),
            "endkey" | "end_key" => self.end = Some(value.key()?),
            "startkey_docid" | "start_key_doc_id" => self.start_doc_id = Some(value.text("start_key_docid")?),
            "endkey_docid" | "end_key_doc_id" => self.end_doc_id = Some(value.text("end_key_docid")?),
            "limit" => self.limit = value.positive()?,
            "skip" => self.skip = value.positive()?,
            "descending" => self.descending = value.bool()?,
            "inclusive_end" => self.inclusive_end = value.bool()?,
            "group" => self.group = Some(value.bool()?),
            "group_level" => self.group_level = Some(u32::try_from(value.positive()?).unwrap_or(u32::MAX)),
            "include_docs" => self.include_docs = value.bool()?,
            "conflicts" => self.conflicts = Some(value.bool()?),
            "attachments" => self.attachments = value.bool()?,
            // Attachments are kept as they came: there is no encoding to tell of.
            "att_encoding_info" => drop(value.bool()?),
            "update_seq" => self.update_seq = value.bool()?,
            "sorted" => self.sorted = value.bool()?,
            "partition" => {
                let partition = value.text("partition")?;
                validate_partition(&partition)?;
                self.partition = Some(partition);
            }
            // There is one copy of an index on a pod: it is always the same that answers.
            "stable" => match value.bare() {
                "true" | "false" => {}
                _ => return Err(ApiError::query("Invalid value for `stable`.")),
            },
            "stale" => match value.bare() {
                "ok" => self.update = Update::Never,
                "update_after" => self.update = Update::Later,
                _ => return Err(ApiError::query("Invalid value for `stale`.")),
            },
            "update" => match value.bare() {
                "true" => self.update = Update::First,
                "false" => self.update = Update::Never,
                "lazy" => self.update = Update::Later,
                _ => return Err(ApiError::query("Invalid value for `update`.")),
            },
            _ => {}
        }
        Ok(())
    }

    /// Reads the body of a POST, and the parameters, which go before it.
    ///
    /// # Errors
    /// 400 for a body that isn't one, and as [`ViewArgs::from_query`].
    pub fn from_body(query: &Query, text: &[u8]) -> Result<Asked, ApiError> {
        let members: CappedMap<Box<RawValue>> = capped::parse(text, "Request body must be a JSON object")?;
        let members = members.0;
        let of = |name: &str| members.iter().rev().find(|(member, _)| member == name).map(|(_, value)| value.get());
        if let Some(queries) = of("queries") {
            if of("keys").is_some() {
                return Err(ApiError::bad_request("`keys` and `queries` are mutually exclusive"));
            }
            return Self::several(query, parse_queries(queries.as_bytes())?).map(Asked::Several);
        }
        if of("keys").is_some_and(|keys| !keys.starts_with('[')) {
            return Err(ApiError::bad_request("`keys` member must be an array."));
        }
        let mut args = Self::default();
        args.take_members(&members)?;
        args.take_query(query)?;
        Ok(Asked::One(Box::new(args)))
    }

    /// Reads `{"queries": [...]}`; the parameters count where a query says nothing.
    ///
    /// # Errors
    /// As [`ViewArgs::from_body`], and when there are more than [`MAX_QUERIES`].
    pub fn queries(query: &Query, text: &[u8]) -> Result<Vec<Self>, ApiError> {
        let members: CappedMap<Box<RawValue>> = capped::parse(text, "Request body must be a JSON object")?;
        let queries = members.0.into_iter().rev().find(|(name, _)| name == "queries");
        let (_, queries) =
            queries.ok_or_else(|| ApiError::bad_request("POST body must include `queries` parameter."))?;
        Self::several(query, parse_queries(queries.get().as_bytes())?)
    }

    fn several(query: &Query, queries: Vec<CappedMap<Box<RawValue>>>) -> Result<Vec<Self>, ApiError> {
        if queries.len() > MAX_QUERIES {
            return Err(ApiError::bad_request("too many queries"));
        }
        let shared = Self::from_query(query)?;
        let one = |members: CappedMap<Box<RawValue>>| {
            let mut args = shared.clone();
            args.take_members(&members.0)?;
            // The partition of the address is that of all of them.
            args.partition = shared.partition.clone().or(args.partition);
            Ok(args)
        };
        queries.into_iter().map(one).collect()
    }

    /// Takes keys for those of a view in raw collation. To be done before they are checked.
    pub fn collate_raw(&mut self) {
        let keys = self.start.iter_mut().chain(&mut self.end).chain(self.keys.iter_mut().flatten());
        keys.for_each(|key| key.sort = collate::raw_sort_key(&key.value));
    }

    /// Checks what doesn't go together, for a view that has a reduce function or has none. `Some`: the rows are
    /// reduced in this way.
    ///
    /// # Errors
    /// 400 `query_parse_error`.
    pub fn check(&self, has_reduce: bool) -> Result<Option<Group>, ApiError> {
        let reducing = has_reduce && self.reduce != Some(false);
        let group = self.group_wanted()?;
        if !has_reduce && self.reduce == Some(true) {
            return Err(ApiError::query("Reduce is invalid for map-only views."));
        }
        if reducing && self.keys.is_some() && group != Group::Exact {
            return Err(ApiError::query("Multi-key fetches for reduce views must use `group=true`"));
        }
        let has_keys = self.keys.as_ref().is_some_and(|keys| !keys.is_empty());
        if has_keys && (self.start.is_some() || self.end.is_some()) {
            return Err(ApiError::query("`keys` is incompatible with `key`, `start_key` and `end_key`"));
        }
        if !reducing && group != Group::All {
            return Err(ApiError::query("Invalid use of grouping on a map view."));
        }
        if reducing && self.include_docs {
            return Err(ApiError::query("`include_docs` is invalid for reduce"));
        }
        if reducing && self.conflicts.is_some() {
            return Err(ApiError::query("`conflicts` is invalid for reduce views."));
        }
        self.check_range()?;
        Ok(reducing.then_some(group))
    }

    /// Checks the partition, for views whose rows lie by partitions or don't.
    ///
    /// # Errors
    /// 400 `query_parse_error`.
    pub fn check_partition(&self, is_partitioned: bool) -> Result<(), ApiError> {
        match (is_partitioned, &self.partition) {
            (true, None) => Err(ApiError::query("`partition` parameter is mandatory for queries to this view.")),
            (false, Some(_)) => Err(ApiError::query("`partition` parameter is not supported in this design doc")),
            _ => Ok(()),
        }
    }

    fn group_wanted(&self) -> Result<Group, ApiError> {
        Ok(match (self.group, self.group_level) {
            (Some(false), Some(1..)) => {
                return Err(ApiError::query("Can't specify group=false and group_level>0 at the same time"));
            }
            (Some(true), None) => Group::Exact,
            (_, None | Some(0)) => Group::All,
            (_, Some(level)) => Group::Level(level),
        })
    }

    fn check_range(&self) -> Result<(), ApiError> {
        let (Some(start), Some(end)) = (&self.start, &self.end) else { return Ok(()) };
        let instead = match self.descending {
            false if start.sort > end.sort => "true",
            true if start.sort < end.sort => "false",
            _ => return Ok(()),
        };
        Err(ApiError::query(format!(
            "No rows can match your key range, reverse your start_key and end_key or set descending={instead}"
        )))
    }

    /// What the documents of rows have beyond their members.
    pub fn doc_options(&self) -> Options {
        Options {
            conflicts: self.conflicts == Some(true),
            attachments: if self.attachments { AttachmentForm::Inline } else { AttachmentForm::Stub },
            ..Options::default()
        }
    }
}

impl Given<'_> {
    /// A JSON text without its quotes, as far as words go that need no escapes; other texts as they came.
    fn bare(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Json(text) => text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text),
        }
    }

    fn bool(&self) -> Result<bool, ApiError> {
        let bare = self.bare();
        if bare.eq_ignore_ascii_case("true") {
            Ok(true)
        } else if bare.eq_ignore_ascii_case("false") {
            Ok(false)
        } else {
            Err(ApiError::query(format!("Invalid boolean parameter: {:?}", clip(bare))))
        }
    }

    fn positive(&self) -> Result<u64, ApiError> {
        let bare = self.bare();
        let digits = bare.strip_prefix(['-', '+']).unwrap_or(bare);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ApiError::query(format!("Invalid value for integer: {:?}", clip(bare))));
        }
        // Numbers have no end in CouchDB; beyond this there are no rows.
        let value = digits.parse::<u64>().unwrap_or(u64::MAX);
        if bare.starts_with('-') && value > 0 {
            return Err(ApiError::query(format!("Invalid value for positive integer: {:?}", clip(bare))));
        }
        Ok(value)
    }

    fn json(&self) -> &str {
        match self {
            Self::Text(text) | Self::Json(text) => text,
        }
    }

    fn key(&self) -> Result<Key, ApiError> {
        serde_json::from_str::<Value>(self.json()).map(Key::of).map_err(|_| ApiError::invalid_json())
    }

    fn keys(&self) -> Result<Vec<Key>, ApiError> {
        if !self.json().trim_start().starts_with('[') {
            // CouchDB tells what is no JSON from what is no array.
            self.key()?;
            return Err(ApiError::query("`keys` must be an array of strings."));
        }
        let keys: CappedList<Value> = capped::parse(self.json().as_bytes(), "`keys` must be an array of strings.")?;
        Ok(keys.0.into_iter().map(Key::of).collect())
    }

    fn text(&self, name: &str) -> Result<String, ApiError> {
        match self {
            Self::Text(text) => Ok((*text).to_owned()),
            // CouchDB takes a number for its digits.
            Self::Json(text) if text.starts_with(|first: char| first == '-' || first.is_ascii_digit()) => {
                Ok((*text).to_owned())
            }
            Self::Json(text) => {
                serde_json::from_str(text).map_err(|_| ApiError::query(format!("`{name}` must be a string.")))
            }
        }
    }
}

impl Key {
    /// The key of a JSON value.
    pub fn of(value: Value) -> Self {
        Self { sort: collate::sort_key(&value), value }
    }
}

fn parse_queries(text: &[u8]) -> Result<Vec<CappedMap<Box<RawValue>>>, ApiError> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Queries(CappedList<CappedMap<Box<RawValue>>>);
    let queries: Queries = capped::parse(text, "`queries` member must be an array of objects.")?;
    Ok(queries.0.0)
}

fn clip(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Asked, Group, Key, Update, ViewArgs};
    use crate::query::Query;

    fn args(raw: &str) -> ViewArgs {
        ViewArgs::from_query(&Query::parse(Some(raw)).expect("a query")).expect("good values")
    }

    #[track_caller]
    fn refused(raw: &str, has_reduce: bool, words: &str) {
        let query = Query::parse(Some(raw)).expect("a query");
        let error = ViewArgs::from_query(&query).and_then(|args| args.check(has_reduce)).expect_err("refused");
        assert_eq!((error.status.as_u16(), &*error.error), (400, "query_parse_error"), "{raw}");
        assert!(error.reason.contains(words), "{raw}: {}", error.reason);
    }

    #[test]
    fn all_names_are_taken() {
        let args = args(
            "start_key=1&end_key=2&start_key_doc_id=a&endkey_docid=b&inclusive_end=false&descending=false&limit=5&skip=2\
             &reduce=false&include_docs=TRUE&conflicts=true&attachments=true&att_encoding_info=true&update_seq=true\
             &sorted=false&stable=true&update=lazy&zork=1",
        );
        assert_eq!(args.start, Some(Key::of(json!(1))));
        assert_eq!(args.end, Some(Key::of(json!(2))));
        assert_eq!((args.start_doc_id.as_deref(), args.end_doc_id.as_deref()), (Some("a"), Some("b")));
        assert!(!args.inclusive_end && !args.descending && args.include_docs && args.update_seq && !args.sorted);
        assert_eq!((args.limit, args.skip, args.update), (5, 2, Update::Later));
        assert!(args.doc_options().conflicts);
        assert_eq!(args.check(true).expect("it goes together"), None);
    }

    #[test]
    fn groups() {
        assert_eq!(args("").check(true).expect("good"), Some(Group::All));
        assert_eq!(args("group=true").check(true).expect("good"), Some(Group::Exact));
        assert_eq!(args("group_level=2").check(true).expect("good"), Some(Group::Level(2)));
        assert_eq!(args("group=true&group_level=2").check(true).expect("good"), Some(Group::Level(2)));
        assert_eq!(args("group=false&group_level=0").check(true).expect("good"), Some(Group::All));
        assert_eq!(args("group=true&keys=[1]").check(true).expect("good"), Some(Group::Exact));
        assert_eq!(args("group=false").check(false).expect("good"), None);
    }

    #[test]
    fn what_does_not_go_together_is_refused_in_couchdbs_words() {
        refused("reduce=true", false, "Reduce is invalid for map-only views.");
        refused("keys=[1]", true, "Multi-key fetches");
        refused("keys=[1]&group_level=1", true, "Multi-key fetches");
        refused("keys=[1]&key=1", false, "`keys` is incompatible with `key`, `start_key` and `end_key`");
        refused("keys={}", false, "`keys` must be an array of strings.");
        refused("group=true", false, "Invalid use of grouping on a map view.");
        refused("group=true&reduce=false", true, "Invalid use of grouping on a map view.");
        refused("group=false&group_level=1", true, "Can't specify group=false");
        refused("include_docs=true", true, "`include_docs` is invalid for reduce");
        refused("conflicts=true", true, "`conflicts` is invalid for reduce views.");
        refused("limit=-1", false, "Invalid value for positive integer: \"-1\"");
        refused("skip=x", false, "Invalid value for integer: \"x\"");
        refused("descending=1", false, "Invalid boolean parameter: \"1\"");
        refused("stale=no", false, "Invalid value for `stale`.");
        refused("update=no", false, "Invalid value for `update`.");
        refused("stable=no", false, "Invalid value for `stable`.");
        refused("startkey=2&endkey=1", false, "set descending=true");
        refused("startkey=1&endkey=2&descending=true", false, "set descending=false");
        assert!(args("startkey=1&endkey=1.0").check(false).is_ok());
        let raw = "startkey=%22Z%22&endkey=%22a%22";
        refused(raw, false, "set descending=true");
        let mut raw = args(raw);
        raw.collate_raw();
        assert!(raw.check(false).is_ok());
        assert!(args("keys=[]&key=1").check(false).is_ok());
    }

    #[test]
    fn parameters_go_before_a_body_and_a_query_before_parameters() {
        let query = Query::parse(Some("limit=1")).expect("a query");
        let body = br#"{"limit":5,"skip":2,"startkey_docid":"x\u0041","keys":["a",1],"update":false}"#;
        let Ok(Asked::One(args)) = ViewArgs::from_body(&query, body) else { panic!("one") };
        assert_eq!((args.limit, args.skip, args.update), (1, 2, Update::Never));
        assert_eq!(args.start_doc_id.as_deref(), Some("xA"));
        let Ok(Asked::One(args)) = ViewArgs::from_body(&query, br#"{"endkey_docid":21}"#) else { panic!("one") };
        assert_eq!(args.end_doc_id.as_deref(), Some("21"));
        assert!(ViewArgs::from_body(&query, br#"{"endkey_docid":[]}"#).is_err());
        let Ok(Asked::One(args)) = ViewArgs::from_body(&query, body) else { panic!("one") };
        assert_eq!(args.keys, Some(vec![Key::of(json!("a")), Key::of(json!(1))]));
        let several = br#"{"queries":[{"limit":7},{"key":[1]}]}"#;
        let Ok(Asked::Several(list)) = ViewArgs::from_body(&query, several) else { panic!("several") };
        assert_eq!(list.iter().map(|args| args.limit).collect::<Vec<_>>(), [7, 1]);
        assert_eq!(ViewArgs::queries(&query, several).expect("good").len(), 2);
        for bad in [r#"{"keys":1}"#, "[]", "", r#"{"keys":[],"queries":[]}"#, r#"{"queries":[1]}"#, r#"{"key":}"#] {
            let error = ViewArgs::from_body(&query, bad.as_bytes()).expect_err("refused");
            assert_eq!((error.status.as_u16(), &*error.error), (400, "bad_request"), "{bad}");
        }
        assert!(ViewArgs::queries(&query, b"{}").is_err());
    }

    #[test]
    fn a_partition_is_asked_where_rows_lie_by_partitions_and_nowhere_else() {
        let (with, without) = (args("partition=p"), args(""));
        assert!(with.check_partition(true).is_ok() && without.check_partition(false).is_ok());
        for (refused, words) in
            [(with.check_partition(false), "not supported"), (without.check_partition(true), "mandatory")]
        {
            let error = refused.expect_err(words);
            assert!(error.error == "query_parse_error" && error.reason.contains(words), "{}", error.reason);
        }
        let query = Query::parse(Some("partition=p")).expect("a query");
        let several = ViewArgs::queries(&query, br#"{"queries":[{"partition":"q"},{}]}"#).expect("good");
        assert!(several.iter().all(|args| args.partition.as_deref() == Some("p")));
        assert!(ViewArgs::from_query(&Query::parse(Some("partition=")).expect("a query")).is_err());
    }

    #[test]
    fn keys_that_are_no_json_are_refused() {
        for bad in ["key=bad{", "startkey=", "keys=[1", "keys=zork"] {
            let query = Query::parse(Some(bad)).expect("a query");
            let error = ViewArgs::from_query(&query).expect_err("refused");
            assert_eq!(error.status.as_u16(), 400, "{bad}");
        }
    }
}
