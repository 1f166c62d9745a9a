//! Indexes as design documents hold them.

use rean_store::selector::Selector;
use serde_json::{Map, Value, json};

use super::sort::Sort;
use crate::spec::is_partitioned;

/// The language of design documents that hold indexes.
pub const LANGUAGE: &str = "query";
/// What the ids of design documents start with.
const DESIGN: &str = "_design/";
/// Most fields of one index: sort keys hold them all, and a query that needs more is none of people's.
pub const MAX_FIELDS: usize = 64;
/// Most indexes of one design document, as of views: an index numbers them in 16 bits, and all are kept up to date together.
const MAX_INDEXES: usize = 1_000;

/// One index.
#[derive(Debug, Clone)]
pub struct IndexDef {
    /// The id of its design document.
    pub ddoc: String,
    /// Its name there.
    pub name: String,
    /// Its fields. The direction only says how it was written: an index is read both ways.
    pub fields: Sort,
    /// Documents that don't match this are left out.
    pub partial: Option<Selector>,
    /// Whether it is asked one partition at a time.
    pub partitioned: bool,
    /// The texts of the fields' paths.
    columns: Vec<String>,
    /// The rest of the definition, as it is shown.
    shown: Map<String, Value>,
}

/// `_design/x`, also for `x`.
pub fn design_id(name: &str) -> String {
    if name.starts_with(DESIGN) { name.to_owned() } else { format!("{DESIGN}{name}") }
}

impl IndexDef {
    /// The indexes of a design document, in order; none if it holds no indexes, or more than a design document may. What
    /// is malformed is passed over: anyone may have written it, and it may have come by replication.
    ///
    /// `in_partitioned`: whether it is a design document of a partitioned database.
    pub fn of_design(id: &str, design: &Value, in_partitioned: bool) -> Vec<IndexDef> {
        if design.get("language").and_then(Value::as_str) != Some(LANGUAGE) {
            return Vec::new();
        }
        let views = design.get("views").and_then(Value::as_object).filter(|views| views.len() <= MAX_INDEXES);
        let partitioned = is_partitioned(design, in_partitioned);
        let of_view = |(name, view): (&String, &Value)| IndexDef::of_view(id, name, view, partitioned);
        views.into_iter().flatten().filter_map(of_view).collect()
    }

    fn of_view(ddoc: &str, name: &str, view: &Value, partitioned: bool) -> Option<IndexDef> {
        let map = view.get("map")?.as_object()?;
        let fields = Sort::from_stored(map.get("fields")?).filter(|fields| is_fair(fields.fields.len()))?;
        // Older CouchDB called it `selector`.
        let partial = map.get("partial_filter_selector").or_else(|| map.get("selector"));
        let partial = partial.filter(|partial| partial.as_object().is_none_or(|members| !members.is_empty()));
        let mut shown = map.clone();
        shown.insert("fields".to_owned(), fields.to_list());
        shown.retain(|_, value| value.as_object().is_none_or(|members| !members.is_empty()));
        Some(IndexDef {
            ddoc: ddoc.to_owned(),
            name: name.to_owned(),
            columns: fields.fields.iter().map(|field| field.path.text()).collect(),
            partial: partial.map(Selector::parse).transpose().ok()?,
            partitioned,
            fields,
            shown,
        })
    }

    /// The texts of the fields' paths.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The index as `GET _index` and `_explain` show it.
    pub fn to_json(&self) -> Value {
        json!({
            "ddoc": self.ddoc,
            "name": self.name,
            "type": "json",
            "partitioned": self.partitioned,
            "def": self.shown,
        })
    }
}

/// The index that every database has: its documents by their ids.
pub fn all_docs_json() -> Value {
    json!({"ddoc": null, "name": "_all_docs", "type": "special", "def": {"fields": [{"_id": "asc"}]}})
}

/// Whether an index may have so many fields.
pub(super) fn is_fair(fields: usize) -> bool {
    (1..=MAX_FIELDS).contains(&fields)
}

#[cfg(test)]
mod tests {
    use super::{IndexDef, MAX_INDEXES};
    use serde_json::json;

    #[test]
    fn indexes_are_read_as_couchdb_and_pouchdb_store_them() {
        let design = json!({
            "_id": "_design/x", "language": "query",
            "views": {
                "one": {"map": {"fields": {"n": "asc", "a.b": "asc"}, "partial_filter_selector": {}}, "reduce": "_count",
                        "options": {"def": {"fields": ["n", "a.b"]}}},
                "two": {"map": {"fields": {"n": "desc"}, "partial_filter_selector": {"ok": {"$eq": true}}},
                        "reduce": "_count", "options": {}},
                "none": {"map": {"fields": {}}},
                "js": {"map": "function (doc) {}"},
                "bad": {"map": {"fields": {"n": "up"}}},
                "text": {"index": {"fields": []}}
            }
        });
        let indexes = IndexDef::of_design("_design/x", &design, false);
        let names: Vec<&str> = indexes.iter().map(|index| index.name.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(
            indexes[0].to_json(),
            json!({"ddoc": "_design/x", "name": "one", "type": "json", "partitioned": false,
                   "def": {"fields": [{"n": "asc"}, {"a.b": "asc"}]}})
        );
        assert!(indexes[0].partial.is_none());
        assert!(indexes[1].partial.is_some());
        assert_eq!(indexes[1].to_json()["def"]["partial_filter_selector"], json!({"ok": {"$eq": true}}));
        assert!(!indexes[0].partitioned && IndexDef::of_design("_design/x", &design, true)[0].partitioned);
        let mut global = design.clone();
        global["options"] = json!({"partitioned": false});
        assert!(!IndexDef::of_design("_design/x", &global, true)[0].partitioned);
        let many = |count: usize| {
            let view = |n: usize| (format!("v{n}"), json!({"map": {"fields": {"n": "asc"}}}));
            json!({"language": "query", "views": (0..count).map(view).collect::<serde_json::Map<_, _>>()})
        };
        assert_eq!(IndexDef::of_design("_design/x", &many(MAX_INDEXES), false).len(), MAX_INDEXES);
        assert!(IndexDef::of_design("_design/x", &many(MAX_INDEXES + 1), false).is_empty());
        let javascript = json!({"views": {"one": {"map": {"fields": {"n": "asc"}}}}});
        assert!(IndexDef::of_design("_design/x", &javascript, false).is_empty());
    }
}
