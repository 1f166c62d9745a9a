//! What a query asks for.

use rean_index::mango::{MangoError, Sort, UseIndex, clip, shown};
use rean_store::selector::{FieldPath, Selector};
use rean_store::validate_partition;
use serde_json::{Map, Value};

use super::bookmark::Bookmark;
use crate::error::ApiError;

/// As CouchDB has it by default.
const DEFAULT_LIMIT: u64 = 25;
/// The members of a query, in the order in which CouchDB shows them.
const KEYS: [&str; 15] = [
    "selector",
    "use_index",
    "bookmark",
    "limit",
    "skip",
    "sort",
    "fields",
    "partition",
    "r",
    "conflicts",
    "stale",
    "update",
    "stable",
    "execution_stats",
    "allow_fallback",
];

/// A query.
pub struct FindArgs {
    /// What is looked for.
    pub selector: Selector,
    /// The index that is asked for.
    pub use_index: Option<UseIndex>,
    /// As it was written, for `_explain`.
    pub use_index_shown: Vec<String>,
    /// Where an earlier answer ended.
    pub bookmark: Option<Bookmark>,
    /// Its text; `nil` if there is none.
    pub bookmark_text: String,
    /// At most so many documents.
    pub limit: u64,
    /// So many are left out first.
    pub skip: u64,
    /// The wanted order.
    pub sort: Sort,
    /// The wanted fields; none: all.
    pub fields: Vec<Field>,
    /// Only documents of this partition.
    pub partition: Option<String>,
    /// On how many pods to read: all have the same here, so it only shows in the statistics.
    pub r: u64,
    /// Documents tell their conflicts.
    pub conflicts: bool,
    /// The older word for `update: false` and `stable: true`.
    pub stale: bool,
    /// Whether the index is brought up to date first.
    pub update: bool,
    /// Means nothing here.
    pub stable: bool,
    /// Whether the answer tells what it cost.
    pub stats: bool,
    /// Whether another index may serve than the one that was asked for.
    pub allow_fallback: bool,
}

/// A field that is wanted.
#[derive(Debug, Clone)]
pub struct Field {
    /// As it was written.
    pub name: String,
    /// Where it stands.
    pub path: FieldPath,
}

impl FindArgs {
    /// Reads the body of a request, whose address may name a partition.
    ///
    /// # Errors
    /// 400, in CouchDB's words.
    pub fn parse(text: &[u8], partition: Option<&str>) -> Result<Self, ApiError> {
        let body: Value = serde_json::from_slice(text).map_err(|_| ApiError::invalid_json())?;
        let Value::Object(members) = body else {
            return Err(ApiError::bad_request("Request body must be a JSON object"));
        };
        Ok(Self::of(&members, partition)?)
    }

    fn of(members: &Map<String, Value>, in_address: Option<&str>) -> Result<Self, MangoError> {
        let selector = members.get("selector").ok_or(MangoError::MissingKey("selector"))?;
        let selector = Selector::parse(selector)?;
        let use_index_value = members.get("use_index").unwrap_or(&Value::Null);
        let use_index = UseIndex::parse(use_index_value)?;
        let bookmark_text = bookmark_text(members.get("bookmark"))?;
        let args = Self {
            selector,
            use_index_shown: use_index_shown(use_index.as_ref()),
            use_index,
            bookmark: bookmark_text.as_deref().map(Bookmark::read).transpose()?,
            bookmark_text: bookmark_text.unwrap_or_else(|| "nil".to_owned()),
            limit: natural(members, "limit")?.unwrap_or(DEFAULT_LIMIT),
            skip: natural(members, "skip")?.unwrap_or(0),
            sort: members.get("sort").map(Sort::parse).transpose()?.unwrap_or_default(),
            fields: fields(members.get("fields"))?,
            partition: partition(members.get("partition"), in_address)?,
            r: positive(members.get("r"))?.unwrap_or(1),
            conflicts: flag(members, "conflicts", false)?,
            stale: stale(members.get("stale"))?,
            update: flag(members, "update", true)?,
            stable: flag(members, "stable", false)?,
            stats: flag(members, "execution_stats", false)?,
            allow_fallback: flag(members, "allow_fallback", true)?,
        };
        match members.keys().find(|key| !KEYS.contains(&key.as_str())) {
            Some(key) => Err(MangoError::InvalidKey(clip(key))),
            None => Ok(args),
        }
    }

    /// Whether a reader who may see everything takes what the index has at the moment.
    pub fn takes_stale(&self) -> bool {
        self.stale || !self.update
    }
}

fn use_index_shown(use_index: Option<&UseIndex>) -> Vec<String> {
    use_index.into_iter().flat_map(|index| [Some(index.ddoc.clone()), index.name.clone()]).flatten().collect()
}

fn bookmark_text(value: Option<&Value>) -> Result<Option<String>, MangoError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() || text == "nil" => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(MangoError::Bookmark(shown(other))),
    }
}

fn partition(value: Option<&Value>, in_address: Option<&str>) -> Result<Option<String>, MangoError> {
    let in_body = match value {
        None => None,
        Some(Value::String(name)) => Some(name.as_str()).filter(|name| !name.is_empty()),
        Some(other) => return Err(MangoError::Value { name: "partition", value: shown(other) }),
    };
    if let (Some(body), Some(address)) = (in_body, in_address)
        && body != address
    {
        return Err(MangoError::Partition("`partition` in the body is another one than in the address".to_owned()));
    }
    let Some(name) = in_body.or(in_address) else { return Ok(None) };
    validate_partition(name).map_err(|error| MangoError::Partition(error.to_string()))?;
    Ok(Some(name.to_owned()))
}

fn natural(members: &Map<String, Value>, name: &str) -> Result<Option<u64>, MangoError> {
    let Some(value) = members.get(name) else { return Ok(None) };
    value.as_u64().map(Some).ok_or_else(|| MangoError::NotNatural(shown(value)))
}

fn positive(value: Option<&Value>) -> Result<Option<u64>, MangoError> {
    let Some(value) = value else { return Ok(None) };
    value.as_u64().filter(|n| *n > 0).map(Some).ok_or_else(|| MangoError::NotPositive(shown(value)))
}

fn flag(members: &Map<String, Value>, name: &str, default: bool) -> Result<bool, MangoError> {
    let Some(value) = members.get(name) else { return Ok(default) };
    value.as_bool().ok_or_else(|| MangoError::NotBoolean(shown(value)))
}

fn stale(value: Option<&Value>) -> Result<bool, MangoError> {
    match value {
        None | Some(Value::Bool(false)) => Ok(false),
        Some(Value::String(text)) if text == "false" => Ok(false),
        Some(Value::String(text)) if text == "ok" => Ok(true),
        Some(other) => Err(MangoError::Value { name: "stale", value: shown(other) }),
    }
}

fn fields(value: Option<&Value>) -> Result<Vec<Field>, MangoError> {
    let items = match value {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(MangoError::Fields(shown(other))),
    };
    items
        .iter()
        .map(|item| {
            let name = item.as_str().ok_or_else(|| MangoError::Field(shown(item)))?;
            Ok(Field { name: name.to_owned(), path: FieldPath::parse(name)? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::FindArgs;
    use serde_json::{Value, json};

    fn parse(body: &Value) -> Result<FindArgs, (u16, String)> {
        FindArgs::parse(body.to_string().as_bytes(), Some("p"))
            .map_err(|error| (error.status.as_u16(), error.error.into_owned()))
    }

    #[test]
    fn what_is_not_said_is_as_in_couchdb() {
        let args = parse(&json!({"selector": {}})).expect("a query");
        assert_eq!((args.limit, args.skip, args.r), (25, 0, 1));
        assert_eq!(args.partition.as_deref(), Some("p"));
        let named = FindArgs::parse(br#"{"selector":{},"partition":"q"}"#, None).expect("a query");
        assert_eq!(named.partition.as_deref(), Some("q"));
        assert!(FindArgs::parse(br#"{"selector":{},"partition":"_q"}"#, None).is_err());
        assert!(args.update && args.allow_fallback && !args.takes_stale() && args.bookmark.is_none());
        let args =
            parse(&json!({"selector": {}, "stale": "ok", "bookmark": "nil", "use_index": null})).expect("a query");
        assert!(args.takes_stale() && args.bookmark.is_none() && args.use_index.is_none());
    }

    #[test]
    fn mistakes_are_named() {
        for (body, error) in [
            (json!({}), "missing_required_key"),
            (json!([]), "bad_request"),
            (json!({"selector": "x"}), "invalid_selector_json"),
            (json!({"selector": {"n": {"$zork": 1}}}), "invalid_operator"),
            (json!({"selector": {"n": {"$in": 3}}}), "bad_arg"),
            (json!({"selector": {}, "limit": -1}), "invalid_non_neg_integer"),
            (json!({"selector": {}, "limit": "x"}), "invalid_non_neg_integer"),
            (json!({"selector": {}, "skip": 1.5}), "invalid_non_neg_integer"),
            (json!({"selector": {}, "sort": {}}), "invalid_sort_json"),
            (json!({"selector": {}, "fields": "a"}), "invalid_fields"),
            (json!({"selector": {}, "fields": [1]}), "invalid_field"),
            (json!({"selector": {}, "r": 0}), "invalid_pos_integer"),
            (json!({"selector": {}, "conflicts": 1}), "invalid_boolean"),
            (json!({"selector": {}, "stale": 1}), "invalid_value"),
            (json!({"selector": {}, "use_index": 1}), "invalid_index_name"),
            (json!({"selector": {}, "bookmark": 1}), "invalid_bookmark"),
            (json!({"selector": {}, "bookmark": "zork"}), "invalid_bookmark"),
            (json!({"selector": {}, "partition": 1}), "invalid_value"),
            (json!({"selector": {}, "partition": "q"}), "invalid_partition"),
            (json!({"selector": {}, "zork": 1}), "invalid_key"),
        ] {
            assert_eq!(parse(&body).err(), Some((400, error.to_owned())), "{body}");
        }
        assert!(FindArgs::parse(b"{", None).is_err());
    }
}
