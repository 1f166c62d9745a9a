//! The rows of indexes: native, no functions of anybody's are run.

use std::sync::Arc;

use md5::{Digest, Md5};
use serde_json::{Value, json};

use super::definition::IndexDef;
use crate::spec::{Emit, Emitted, GroupSpec, IndexDoc, MapError, Mapper, Reduce, ViewSpec};

/// Part of each signature: to be changed with what the rows are.
const ROWS_VERSION: u32 = 1;

/// The indexes of one design document.
struct FieldMapper {
    indexes: Vec<IndexDef>,
}

/// The index (in the sense of this crate) that holds the indexes of a design document, in the order of
/// [`IndexDef::of_design`]; `None`: it holds none.
pub fn group_spec(id: &str, design: &Value, in_partitioned: bool) -> Option<Arc<GroupSpec>> {
    group_of(IndexDef::of_design(id, design, in_partitioned))
}

/// As [`group_spec`], of all the indexes of one design document.
pub fn group_of(indexes: Vec<IndexDef>) -> Option<Arc<GroupSpec>> {
    let partitioned = indexes.first()?.partitioned;
    let view = |index: &IndexDef| ViewSpec { names: vec![index.name.clone()], reduce: Reduce::None };
    Some(Arc::new(GroupSpec {
        signature: signature(&indexes, partitioned),
        views: indexes.iter().map(view).collect(),
        include_design: false,
        local_seq: false,
        partitioned,
        mapper: Arc::new(FieldMapper { indexes }),
    }))
}

fn signature(indexes: &[IndexDef], partitioned: bool) -> String {
    let parts: Vec<Value> = indexes
        .iter()
        .map(|index| json!([index.columns(), index.partial.as_ref().map(|partial| partial.to_json())]))
        .collect();
    let mut all = vec![json!("mango"), json!(ROWS_VERSION), json!(parts)];
    all.extend(partitioned.then(|| json!("partitioned")));
    hex::encode(Md5::digest(Value::from(all).to_string()))
}

impl Mapper for FieldMapper {
    fn map(&self, docs: Vec<IndexDoc>) -> Result<Vec<Vec<Emitted>>, MapError> {
        Ok(docs.iter().map(|doc| self.rows(doc)).collect())
    }
}

impl FieldMapper {
    fn rows(&self, doc: &IndexDoc) -> Vec<Emitted> {
        // What is nested too deeply for a tree matches no selector, so it needs no rows.
        let document = serde_json::from_str(&doc.json).unwrap_or(Value::Null);
        self.indexes.iter().map(|index| Ok(row(index, &document).into_iter().collect())).collect()
    }
}

/// The values of the fields, if all are there.
fn row(index: &IndexDef, document: &Value) -> Option<Emit> {
    if index.partial.as_ref().is_some_and(|partial| !partial.matches(document)) {
        return None;
    }
    let values: Option<Vec<&Value>> = index.fields.fields.iter().map(|field| field.path.find(document)).collect();
    let key = serde_json::to_string(&values?).ok()?;
    Some(Emit { key, value: "null".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::group_spec;
    use crate::spec::IndexDoc;
    use serde_json::{Value, json};

    fn doc(value: Value) -> IndexDoc {
        IndexDoc { id: "a".to_owned(), rev: "1-a".to_owned(), json: value.to_string() }
    }

    fn design(map: Value) -> Value {
        json!({"language": "query", "views": {"one": {"map": map}, "two": {"map": {"fields": {"_id": "asc"}}}}})
    }

    #[test]
    fn a_row_has_the_values_of_the_fields() {
        let map = json!({"fields": {"n": "asc", "o.x": "asc"}, "partial_filter_selector": {"ok": true}});
        let spec = group_spec("_design/x", &design(map), false).unwrap();
        let keys = |value: Value| -> Vec<Vec<String>> {
            let rows = spec.mapper.map(vec![doc(value)]).unwrap().remove(0);
            rows.into_iter().map(|rows| rows.unwrap().into_iter().map(|row| row.key).collect()).collect()
        };
        let all = json!({"_id": "a", "n": null, "o": {"x": [1]}, "ok": true});
        assert_eq!(keys(all), [vec!["[null,[1]]".to_owned()], vec!["[\"a\"]".to_owned()]]);
        for without in [json!({"_id": "a", "n": 1, "ok": true}), json!({"_id": "a", "n": 1, "o": {"x": 2}})] {
            assert_eq!(keys(without), [vec![], vec!["[\"a\"]".to_owned()]]);
        }
        let deep = format!("{{\"n\":{}{}}}", "[".repeat(500), "]".repeat(500));
        let deep = IndexDoc { id: "d".to_owned(), rev: "1-a".to_owned(), json: deep };
        assert_eq!(spec.mapper.map(vec![deep]).unwrap()[0].len(), 2);
    }

    #[test]
    fn the_signature_names_what_the_rows_are_made_of() {
        let signature = |map: Value| group_spec("_design/x", &design(map), false).unwrap().signature.clone();
        let one = signature(json!({"fields": {"n": "asc"}}));
        assert_eq!(one.len(), 32);
        assert_eq!(one, signature(json!({"fields": {"n": "desc"}, "partial_filter_selector": {}})));
        assert_ne!(one, signature(json!({"fields": {"m": "asc"}})));
        assert_ne!(one, signature(json!({"fields": {"n": "asc"}, "partial_filter_selector": {"a": 1}})));
        let map = json!({"fields": {"n": "asc"}});
        let of_partitions = group_spec("_design/x", &design(map), true).unwrap();
        assert!(of_partitions.partitioned && of_partitions.signature != one);
        assert!(group_spec("_design/x", &json!({"views": {}}), false).is_none());
    }
}
