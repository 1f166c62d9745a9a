//! The fields that are wanted of a document.

use serde_json::{Map, Value};

use super::args::Field;

/// The document with these fields alone. Fields that it doesn't have are left out.
pub fn project(document: &Value, fields: &[Field]) -> Value {
    let mut out = Value::Object(Map::new());
    for field in fields {
        if let Some(value) = field.path.find(document) {
            set(&mut out, field.path.names(), value.clone());
        }
    }
    out
}

/// Puts a value where a path leads, making objects on the way. Where something else stands in the way, that stays.
pub fn set(document: &mut Value, names: &[String], value: Value) {
    let Some((last, above)) = names.split_last() else { return };
    let mut at = document;
    for name in above {
        at = match at {
            Value::Object(members) => members.entry(name.clone()).or_insert_with(|| Value::Object(Map::new())),
            Value::Array(items) => match name.parse().ok().and_then(|at: usize| items.get_mut(at)) {
                Some(item) => item,
                None => return,
            },
            _ => return,
        };
    }
    if let Value::Object(members) = at {
        members.insert(last.clone(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::{Field, project};
    use rean_store::selector::FieldPath;
    use serde_json::{Value, json};

    fn wanted(document: &Value, fields: &[&str]) -> Value {
        let field = |name: &&str| Field { name: (*name).to_owned(), path: FieldPath::parse(name).expect("a path") };
        project(document, &fields.iter().map(field).collect::<Vec<_>>())
    }

    #[test]
    fn only_the_wanted_fields_are_given() {
        let doc = json!({"_id": "a", "addr": {"city": "Bern", "zip": 1}, "a.b": 2, "l": [{"x": 1}], "n": null});
        assert_eq!(wanted(&doc, &["_id", "addr.city", "none"]), json!({"_id": "a", "addr": {"city": "Bern"}}));
        assert_eq!(wanted(&doc, &["a\\.b", "n"]), json!({"a.b": 2, "n": null}));
        assert_eq!(wanted(&doc, &["addr.city", "addr.zip"]), json!({"addr": {"city": "Bern", "zip": 1}}));
        assert_eq!(wanted(&doc, &["addr", "addr.zip"]), json!({"addr": {"city": "Bern", "zip": 1}}));
        assert_eq!(wanted(&doc, &["l.0.x"]), json!({"l": {"0": {"x": 1}}}));
        assert_eq!(wanted(&doc, &["l", "l.0.x", "n.x"]), json!({"l": [{"x": 1}]}));
    }
}
