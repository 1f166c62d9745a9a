//! A request for an index, and the design documents that follow from it.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::definition::{LANGUAGE, MAX_FIELDS, design_id, is_fair};
use super::error::{MangoError, clip, shown};
use super::sort::Sort;
use rean_store::selector::Selector;

/// The hexadecimal digits of a name that is made up: as many as CouchDB's have.
const NAME_DIGITS: usize = 40;
/// What a request for an index may have.
const KEYS: [&str; 6] = ["index", "type", "name", "ddoc", "w", "partitioned"];

/// An index that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct NewIndex {
    /// The id of the design document that will hold it.
    pub ddoc: String,
    /// Its name there.
    pub name: String,
    /// Whether it is to be asked one partition at a time; `None`: as its design document is, or its database.
    pub partitioned: Option<bool>,
    view: Value,
}

impl NewIndex {
    /// Reads the body of `POST _index`.
    ///
    /// # Errors
    /// What it says is no index, or not one that there is here.
    pub fn parse(body: &Value) -> Result<NewIndex, MangoError> {
        let Value::Object(members) = body else {
            return Err(MangoError::Value { name: "body", value: shown(body) });
        };
        if let Some(key) = members.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(MangoError::InvalidKey(clip(key)));
        }
        let definition = members.get("index").ok_or(MangoError::MissingKey("index"))?;
        check_kind(members)?;
        let partitioned = match members.get("partitioned") {
            None => None,
            Some(Value::Bool(partitioned)) => Some(*partitioned),
            Some(other) => return Err(MangoError::NotBoolean(shown(other))),
        };
        let name = text(members, "name")?;
        if name == Some("") {
            return Err(MangoError::IndexName("\"\"".to_owned()));
        }
        let ddoc = text(members, "ddoc")?;
        let map = map_of(definition)?;
        // The same request must lead to the same name, on every pod and at any time.
        let made_up = || {
            let asked = json!([definition, name, ddoc]).to_string();
            let mut digits = hex::encode(Sha256::digest(asked.as_bytes()));
            digits.truncate(NAME_DIGITS);
            digits
        };
        Ok(NewIndex {
            ddoc: design_id(&ddoc.map_or_else(made_up, str::to_owned)),
            name: name.map_or_else(made_up, str::to_owned),
            partitioned,
            view: json!({"map": map, "reduce": "_count", "options": {"def": definition}}),
        })
    }

    /// The design document with the index; `None`: it has it already. `design` has no `_id` and no `_rev`.
    ///
    /// # Errors
    /// The design document holds functions in another language, or its indexes are partitioned and this one is not, or the
    /// reverse.
    pub fn put_into(&self, design: Option<&Map<String, Value>>) -> Result<Option<Map<String, Value>>, MangoError> {
        let is_new = design.is_none();
        let mut design = design.cloned().unwrap_or_default();
        match design.get("language") {
            Some(language) if language.as_str() != Some(LANGUAGE) => {
                return Err(MangoError::Language(shown(language)));
            }
            None if design.contains_key("views") => return Err(MangoError::Language("\"javascript\"".to_owned())),
            _ => {}
        }
        let option = design.get("options").and_then(|options| options.get("partitioned"));
        if option.and_then(Value::as_bool) != self.partitioned {
            if !is_new {
                return Err(MangoError::PartitionedMismatch);
            }
            design.insert("options".to_owned(), json!({"partitioned": self.partitioned}));
        }
        design.entry("language").or_insert_with(|| LANGUAGE.into());
        let views = design.entry("views").or_insert_with(|| json!({}));
        if !views.is_object() {
            *views = json!({});
        }
        if views.get(&self.name) == Some(&self.view) {
            return Ok(None);
        }
        views[&self.name] = self.view.clone();
        Ok(Some(design))
    }
}

/// A design document without one of its indexes; `None`: then nothing is left of it.
pub fn without(design: &Map<String, Value>, name: &str) -> Option<Map<String, Value>> {
    let mut design = design.clone();
    let views = design.get_mut("views").and_then(Value::as_object_mut);
    let left = views.map_or(0, |views| {
        views.shift_remove(name);
        views.len()
    });
    if left == 0 {
        design.shift_remove("views");
    }
    let is_bare = design.len() == 1 && design.contains_key("language");
    (!is_bare).then_some(design)
}

fn check_kind(members: &Map<String, Value>) -> Result<(), MangoError> {
    match members.get("type") {
        None => {}
        Some(Value::String(kind)) => match kind.as_str() {
            "json" => {}
            "text" => return Err(MangoError::NoService("text")),
            "nouveau" => return Err(MangoError::NoService("nouveau")),
            other => return Err(MangoError::IndexType(clip(other))),
        },
        Some(other) => return Err(MangoError::NotString(shown(other))),
    }
    match members.get("w") {
        Some(w) if w.as_u64().is_none_or(|w| w == 0) => Err(MangoError::NotPositive(shown(w))),
        _ => Ok(()),
    }
}

fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, MangoError> {
    match members.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(MangoError::NotString(shown(other))),
    }
}

/// The member `map` of the view that an index is stored as.
fn map_of(definition: &Value) -> Result<Value, MangoError> {
    let Value::Object(members) = definition else {
        return Err(MangoError::IndexJson(shown(definition)));
    };
    if let Some(key) = members.keys().find(|key| !["fields", "partial_filter_selector"].contains(&key.as_str())) {
        return Err(MangoError::InvalidKey(clip(key)));
    }
    let fields = Sort::parse(members.get("fields").ok_or(MangoError::MissingKey("fields"))?)?;
    if !is_fair(fields.fields.len()) {
        return Err(MangoError::IndexFields { most: MAX_FIELDS });
    }
    let partial = match members.get("partial_filter_selector") {
        None => json!({}),
        Some(partial) => Selector::parse(partial)?.to_json(),
    };
    Ok(json!({"fields": fields.to_object(), "partial_filter_selector": partial}))
}

#[cfg(test)]
mod tests {
    use super::{NewIndex, without};
    use crate::mango::{IndexDef, MangoError};
    use proptest::prelude::{Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
    use serde_json::{Value, json};

    fn parse(body: Value) -> NewIndex {
        NewIndex::parse(&body).unwrap()
    }

    #[test]
    fn an_index_is_stored_as_couchdb_stores_it() {
        let index = parse(json!({"index": {"fields": ["foo"]}, "name": "foo-index", "ddoc": "d", "type": "json"}));
        assert_eq!((index.ddoc.as_str(), index.name.as_str()), ("_design/d", "foo-index"));
        let design = index.put_into(None).unwrap().unwrap();
        let expected = json!({
            "language": "query",
            "views": {"foo-index": {
                "map": {"fields": {"foo": "asc"}, "partial_filter_selector": {}},
                "reduce": "_count",
                "options": {"def": {"fields": ["foo"]}}
            }}
        });
        assert_eq!(Value::Object(design.clone()), expected);
        assert_eq!(index.put_into(Some(&design)).unwrap(), None);
        let second = parse(json!({"index": {"fields": ["bar"]}, "name": "bar", "ddoc": "_design/d"}));
        let both = second.put_into(Some(&design)).unwrap().unwrap();
        assert_eq!(without(&both, "bar"), Some(design.clone()));
        assert_eq!(without(&design, "foo-index"), None);
        let javascript = json!({"views": {"v": {"map": "function (doc) {}"}}});
        assert_eq!(index.put_into(javascript.as_object()).unwrap_err().error(), "invalid_ddoc_lang");
    }

    #[test]
    fn a_design_document_is_partitioned_or_not() {
        let wish =
            |partitioned: Value| parse(json!({"index": {"fields": ["a"]}, "ddoc": "d", "partitioned": partitioned}));
        let global = wish(json!(false)).put_into(None).unwrap().unwrap();
        assert_eq!(global["options"], json!({"partitioned": false}));
        assert_eq!(wish(json!(true)).put_into(Some(&global)).unwrap_err().error(), "partitioned_option_mismatch");
        let plain = parse(json!({"index": {"fields": ["b"]}, "ddoc": "d"}));
        assert_eq!(plain.put_into(Some(&global)).unwrap_err(), MangoError::PartitionedMismatch);
        let unsaid = plain.put_into(None).unwrap().unwrap();
        assert!(!unsaid.contains_key("options"));
        assert_eq!(wish(json!(false)).put_into(Some(&unsaid)).unwrap_err(), MangoError::PartitionedMismatch);
        let other = parse(json!({"index": {"fields": ["b"]}, "ddoc": "d", "name": "b", "partitioned": false}));
        assert!(other.put_into(Some(&global)).unwrap().is_some());
    }

    #[test]
    fn a_made_up_name_depends_on_the_definition() {
        let one = parse(json!({"index": {"fields": ["a"]}}));
        assert_eq!(one.ddoc, format!("_design/{}", one.name));
        assert_eq!(one, parse(json!({"index": {"fields": ["a"]}, "type": "json"})));
        assert_ne!(one.name, parse(json!({"index": {"fields": ["b"]}})).name);
    }

    #[test]
    fn mistakes_are_named() {
        let fields = json!({"fields": ["a"]});
        for (body, error) in [
            (json!({}), "missing_required_key"),
            (json!({"index": {}}), "missing_required_key"),
            (json!({"index": "x"}), "invalid_index"),
            (json!({"index": {"fields": []}}), "invalid_index"),
            (json!({"index": {"fields": "a"}}), "invalid_sort_json"),
            (json!({"index": {"fields": [{"a": "asc"}, {"b": "desc"}]}}), "unsupported_mixed_sort"),
            (json!({"index": {"fields": ["a"], "x": 1}}), "invalid_key"),
            (json!({"index": {"fields": ["a"], "partial_filter_selector": {"a": {"$x": 1}}}}), "invalid_operator"),
            (json!({"index": fields, "zork": 1}), "invalid_key"),
            (json!({"index": fields, "name": 1}), "invalid_string"),
            (json!({"index": fields, "ddoc": true}), "invalid_string"),
            (json!({"index": fields, "type": "foo"}), "invalid_index"),
            (json!({"index": fields, "type": 1}), "invalid_string"),
            (json!({"index": fields, "type": "text"}), "required index service unavailable"),
            (json!({"index": fields, "w": 0}), "invalid_pos_integer"),
            (json!({"index": fields, "partitioned": "yes"}), "invalid_boolean"),
            (json!([]), "invalid_value"),
        ] {
            assert_eq!(NewIndex::parse(&body).unwrap_err().error(), error, "{body}");
        }
    }

    /// JSON in which names are often those of requests and design documents.
    fn values() -> impl Strategy<Value = Value> {
        let known = vec![
            "index",
            "fields",
            "name",
            "ddoc",
            "type",
            "views",
            "map",
            "language",
            "options",
            "a",
            "a.b",
            "a..b",
            "$gt",
            "partial_filter_selector",
            "_id",
        ];
        let text = prop_oneof![Just("query"), Just("json"), Just("asc"), Just("a"), Just("")].prop_map(Value::from);
        let simple = prop_oneof![3 => text, 1 => any::<i64>().prop_map(Value::from), 1 => Just(Value::Null)];
        simple.prop_recursive(6, 40, 5, move |inner| {
            let member = (prop::sample::select(known.clone()).prop_map(str::to_owned), inner.clone());
            prop_oneof![
                1 => prop::collection::vec(inner, 0..4).prop_map(Value::from),
                3 => prop::collection::vec(member, 0..5).prop_map(|all| Value::Object(all.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_request_and_no_design_document_panics(body in values(), fields in values(), design in values()) {
            let _ = IndexDef::of_design("_design/x", &design, true);
            let bodies = [body, json!({"index": {"fields": fields}}), json!({"index": {"fields": [fields]}, "ddoc": "x"})];
            for body in bodies {
                let Ok(index) = NewIndex::parse(&body) else { continue };
                let Ok(Some(stored)) = index.put_into(design.as_object()) else { continue };
                let there = IndexDef::of_design(&index.ddoc, &Value::Object(stored.clone()), false);
                prop_assert!(there.iter().any(|one| one.name == index.name), "{body} {stored:?}");
                prop_assert_eq!(index.put_into(Some(&stored)), Ok(None));
                let left = without(&stored, &index.name).unwrap_or_default();
                let there = IndexDef::of_design(&index.ddoc, &Value::Object(left), false);
                prop_assert!(there.iter().all(|one| one.name != index.name));
            }
        }
    }
}
