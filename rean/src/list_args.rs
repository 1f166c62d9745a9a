//! What `_all_docs` and its relatives are asked: parameters, or a JSON object with the same names
//! (<https://docs.couchdb.org/en/stable/api/database/bulk-api.html#db-all-docs>).

use rean_store::{IdRange, validate_partition};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::capped::{self, CappedList, CappedMap};
use crate::error::ApiError;
use crate::partitions::PARAMETER;
use crate::query::Query;
use crate::render::{AttachmentForm, Options};

/// One list that is wanted.
#[derive(Debug, Clone)]
pub struct ListArgs {
    /// The ids, and in which order.
    pub range: IdRange,
    /// No id can lie in the range.
    pub empty: bool,
    /// The rows that lie before the range.
    pub before: Before,
    /// Only documents of this partition.
    pub partition: Option<String>,
    /// These keys and no others, in this order; `None` is one that no id can be.
    pub keys: Option<Vec<Option<String>>>,
    /// At most so many rows.
    pub limit: u64,
    /// So many are left out first.
    pub skip: u64,
    /// Rows have the document.
    pub include_docs: bool,
    /// What the document has beyond its members.
    pub options: Options,
    /// Whether the answer tells the update sequence.
    pub update_seq: bool,
}

/// Which rows lie before a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// None: it begins where the list does.
    None,
    /// Those before its start.
    Start,
    /// All: it begins where no id can be any more.
    All,
}

/// One end of a range. CouchDB's order of values is null, numbers, strings, arrays, objects; ids are strings.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Bound {
    Below,
    At(String),
    Above,
}

impl ListArgs {
    /// Reads parameters.
    ///
    /// # Errors
    /// 400 `query_parse_error` for values that they can't have and for `keys` together with a range, `bad_request` for
    /// keys that are no JSON.
    pub fn from_query(query: &Query) -> Result<Self, ApiError> {
        let bound = |names: &[&str]| -> Result<Option<Bound>, ApiError> {
            query.any(names).map(|text| parse_key(text).map(Bound::of)).transpose()
        };
        let key = bound(&["key"])?;
        let (start, end, inclusive_end) = match key {
            Some(key) => (Some(key.clone()), Some(key), true),
            None => (
                bound(&["startkey", "start_key"])?,
                bound(&["endkey", "end_key"])?,
                query.bool("inclusive_end")?.unwrap_or(true),
            ),
        };
        let keys = match query.get("keys") {
            None => None,
            Some(text) => Some(keys_of(text)?),
        };
        let mut options = Options::from_query(query)?;
        options.local_seq = false;
        let descending = query.flag("descending")?;
        if keys.as_ref().is_some_and(|keys| !keys.is_empty()) && (start.is_some() || end.is_some()) {
            return Err(ApiError::query("`keys` is incompatible with `key`, `start_key` and `end_key`"));
        }
        let last = if descending { Bound::Below } else { Bound::Above };
        let before = match &start {
            Some(start) if *start == last => Before::All,
            Some(Bound::At(_)) => Before::Start,
            _ => Before::None,
        };
        let (range, empty) = range_of(start, end, inclusive_end, descending);
        let partition = query.get(PARAMETER).map(str::to_owned);
        partition.as_deref().map_or(Ok(()), validate_partition)?;
        Ok(Self {
            range,
            empty,
            before,
            partition,
            keys,
            limit: query.u64("limit")?.unwrap_or(u64::MAX),
            skip: query.u64("skip")?.unwrap_or(0),
            include_docs: query.flag("include_docs")?,
            options,
            update_seq: query.flag("update_seq")?,
        })
    }

    /// Reads parameters, and a JSON object of the same names; the parameters of the address go before it.
    ///
    /// # Errors
    /// 400 `bad_request` for a body that isn't one, 400 `query_parse_error` as above.
    pub fn from_body(query: &Query, text: &[u8]) -> Result<Self, ApiError> {
        if text.iter().all(u8::is_ascii_whitespace) {
            return Self::from_query(query);
        }
        let members: CappedMap<Box<RawValue>> = capped::parse(text, "Request body must be a JSON object")?;
        let mut pairs = pairs_of(members)?;
        // Of a name that comes twice the last one counts.
        pairs.extend_from_slice(query.pairs());
        Self::from_query(&Query::from_pairs(pairs))
    }

    /// Reads one of several lists: what it says itself goes before the parameters of the address.
    fn from_members(query: &Query, members: CappedMap<Box<RawValue>>) -> Result<Self, ApiError> {
        let mut pairs: Vec<(String, String)> = query.pairs().to_vec();
        pairs.extend(pairs_of(members)?);
        // The partition of the address is that of all of them.
        pairs.extend(query.get(PARAMETER).map(|partition| (PARAMETER.to_owned(), partition.to_owned())));
        Self::from_query(&Query::from_pairs(pairs))
    }

    /// Reads `{"queries": [...]}`.
    ///
    /// # Errors
    /// As [`ListArgs::from_body`], and when there are more than [`MAX_QUERIES`].
    pub fn queries(query: &Query, text: &[u8]) -> Result<Vec<Self>, ApiError> {
        #[derive(Deserialize)]
        struct Body {
            queries: CappedList<CappedMap<Box<RawValue>>>,
        }
        let body: Body = capped::parse(text, "`queries` must be an array of objects.")?;
        if body.queries.0.len() > MAX_QUERIES {
            return Err(ApiError::bad_request("too many queries"));
        }
        body.queries.0.into_iter().map(|members| Self::from_members(query, members)).collect()
    }

    /// Only ids between these: `_design_docs` is a part of `_all_docs`. Other keys are left out.
    pub fn clamp(&mut self, low: &str, high: &str) {
        self.clamp_range(low, high);
        if let Some(keys) = &mut self.keys {
            keys.retain(|key| key.as_deref().is_some_and(|key| key >= low && key < high));
        }
    }

    /// Only ids between these, as far as a range is asked for.
    pub fn clamp_range(&mut self, low: &str, high: &str) {
        let range = &mut self.range;
        let (from, to) = if range.descending { (high, low) } else { (low, high) };
        let is_before = |a: &str, b: &str| if range.descending { a > b } else { a < b };
        if range.start.as_deref().is_none_or(|start| is_before(start, from)) {
            range.start = Some(from.to_owned());
        }
        if range.end.as_deref().is_none_or(|end| is_before(to, end)) {
            range.end = Some(to.to_owned());
        }
        self.empty |= is_empty(range);
    }

    /// Whether documents have to be looked up one by one, for more than members and stubs.
    pub fn needs_view(&self) -> bool {
        !self.options.is_plain() || self.options.attachments != AttachmentForm::Stub
    }
}

/// Most queries of one request; each has an answer of its own.
const MAX_QUERIES: usize = 1_000;

impl Bound {
    fn of(value: serde_json::Value) -> Self {
        match value {
            serde_json::Value::String(text) => Self::At(text),
            serde_json::Value::Array(_) | serde_json::Value::Object(_) => Self::Above,
            _ => Self::Below,
        }
    }
}

/// The members of a body as parameters. Those that only single documents have are left out.
fn pairs_of(members: CappedMap<Box<RawValue>>) -> Result<Vec<(String, String)>, ApiError> {
    let mut pairs = Vec::with_capacity(members.0.len());
    for (name, value) in members.0 {
        if matches!(name.as_str(), "atts_since" | "queries") {
            continue;
        }
        if name == "keys" && !value.get().starts_with('[') {
            return Err(ApiError::bad_request("`keys` body member must be an array."));
        }
        pairs.push((name, value.get().to_owned()));
    }
    Ok(pairs)
}

/// A key is JSON; CouchDB calls what is not by the name of a bad body.
fn parse_key<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, ApiError> {
    serde_json::from_str(text).map_err(|_| ApiError::invalid_json())
}

fn keys_of(text: &str) -> Result<Vec<Option<String>>, ApiError> {
    let values: CappedList<serde_json::Value> = parse_key(text)?;
    Ok(values
        .0
        .into_iter()
        .map(|value| match value {
            serde_json::Value::String(text) => Some(text),
            _ => None,
        })
        .collect())
}

/// The range, and whether it is empty from the start.
fn range_of(start: Option<Bound>, end: Option<Bound>, inclusive_end: bool, descending: bool) -> (IdRange, bool) {
    // The end of the list that comes first, and the one that comes last.
    let (first, last) = if descending { (Bound::Above, Bound::Below) } else { (Bound::Below, Bound::Above) };
    let start = start.filter(|bound| *bound != first);
    let end = end.filter(|bound| *bound != last);
    let outside = start.as_ref() == Some(&last) || end.as_ref() == Some(&first);
    let text = |bound: Option<Bound>| match bound {
        Some(Bound::At(text)) => Some(text),
        _ => None,
    };
    let range = IdRange {
        start: text(start),
        end: text(end),
        exclusive_start: false,
        exclusive_end: !inclusive_end,
        descending,
    };
    let empty = outside || is_empty(&range);
    (range, empty)
}

/// Whether the ends are the wrong way round.
fn is_empty(range: &IdRange) -> bool {
    let (Some(start), Some(end)) = (&range.start, &range.end) else {
        return false;
    };
    let (low, high) = if range.descending { (end, start) } else { (start, end) };
    low > high || (low == high && (range.exclusive_end || range.exclusive_start))
}

#[cfg(test)]
mod tests {
    use super::{Before, ListArgs, Query};

    fn args(raw: &str) -> ListArgs {
        ListArgs::from_query(&Query::parse(Some(raw)).expect("a query")).expect("good values")
    }

    #[test]
    fn bounds_follow_couchdbs_order_of_values() {
        assert!(!args("startkey=null&endkey={}").empty);
        assert!(args("startkey={}").empty);
        assert!(args("endkey=1").empty);
        assert!(!args("startkey={}&descending=true").empty);
        assert!(args("startkey=\"b\"&endkey=\"a\"").empty);
        assert!(!args("startkey=\"b\"&endkey=\"a\"&descending=true").empty);
        assert!(args("startkey=\"a\"&endkey=\"a\"&inclusive_end=false").empty);
        assert_eq!(args("key=\"x\"").range.end.as_deref(), Some("x"));
    }

    #[test]
    fn parameters_go_before_a_body_and_after_a_query() {
        let query = Query::parse(Some("limit=1&skip=2")).expect("a query");
        let args = ListArgs::from_body(&query, br#"{"limit":5,"descending":true,"keys":["a",1]}"#).expect("good");
        assert_eq!((args.limit, args.skip, args.range.descending), (1, 2, true));
        let several = ListArgs::queries(&query, br#"{"queries":[{"limit":5},{}]}"#).expect("good");
        assert_eq!(several.iter().map(|args| args.limit).collect::<Vec<_>>(), [5, 1]);
        assert_eq!(args.keys, Some(vec![Some("a".to_owned()), None]));
        let error = ListArgs::from_body(&query, br#"{"keys":"a"}"#).expect_err("no list");
        assert_eq!(error.error, "bad_request");
        assert!(ListArgs::from_body(&query, b"[]").is_err());
        assert_eq!(ListArgs::from_body(&query, b" ").expect("none").limit, 1);
    }

    #[test]
    fn keys_go_with_no_range_and_must_be_json() {
        for bad in [r#"keys=["a"]&key="a""#, r#"keys=["a"]&startkey="a""#, r#"keys=["a"]&end_key="a""#] {
            let error = ListArgs::from_query(&Query::parse(Some(bad)).expect("a query")).expect_err(bad);
            assert_eq!(error.error, "query_parse_error", "{bad}");
        }
        assert_eq!(args(r#"keys=[]&key="a""#).keys, Some(Vec::new()));
        for bad in ["key=a", "startkey=foo", "keys={", "endkey="] {
            let error = ListArgs::from_query(&Query::parse(Some(bad)).expect("a query")).expect_err(bad);
            assert_eq!((&*error.error, &*error.reason), ("bad_request", "invalid UTF-8 JSON"), "{bad}");
        }
    }

    #[test]
    fn what_lies_before_a_range_is_known() {
        assert_eq!(args("endkey=\"a\"").before, Before::None);
        assert_eq!(args("startkey=null").before, Before::None);
        assert_eq!(args("key=\"a\"").before, Before::Start);
        assert_eq!(args("startkey={}").before, Before::All);
        assert_eq!(args("startkey={}&descending=true").before, Before::None);
    }

    #[test]
    fn the_partition_of_the_address_is_that_of_all_queries() {
        let query = Query::parse(Some("partition=p")).expect("a query");
        let several = ListArgs::queries(&query, br#"{"queries":[{"partition":"q"},{}]}"#).expect("good");
        assert!(several.iter().all(|args| args.partition.as_deref() == Some("p")));
        let args = ListArgs::from_body(&query, br#"{"partition":"q"}"#).expect("good");
        assert_eq!(args.partition.as_deref(), Some("p"));
        let error = ListArgs::from_query(&Query::parse(Some("partition=_p")).expect("a query")).expect_err("none");
        assert_eq!(error.error, "illegal_partition");
    }

    #[test]
    fn clamping_keeps_what_is_narrower() {
        let mut list = args("startkey=\"_design/b\"");
        list.clamp("_design/", "_design0");
        assert_eq!(list.range.start.as_deref(), Some("_design/b"));
        assert_eq!(list.range.end.as_deref(), Some("_design0"));
        let mut list = args("startkey=\"a\"");
        list.clamp("_design/", "_design0");
        assert!(list.empty);
        let mut list = args("descending=true&keys=[\"a\",\"_design/x\"]");
        list.clamp("_design/", "_design0");
        assert_eq!(list.range.start.as_deref(), Some("_design0"));
        assert_eq!(list.keys, Some(vec![Some("_design/x".to_owned())]));
    }
}
