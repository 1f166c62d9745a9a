//! The name of a field: members from the document down, joined by dots.

use serde_json::Value;

use super::parse::{MAX_SHOWN_CHARS, split_path};
use super::{MAX_DEPTH, SelectorError};

/// Where a value stands in a document. `a.b` is the member `b` of the member `a`; `a\.b` is one name with a dot.
/// A number is an index where it meets an array.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FieldPath {
    names: Vec<String>,
}

/// What a path leads to.
pub(super) enum Found<'a> {
    Value(&'a Value),
    Missing,
    /// It leads through something that is neither object nor array.
    BadPath,
}

impl FieldPath {
    /// Reads the text of a path.
    ///
    /// # Errors
    /// An empty name in it, or more names than [`MAX_DEPTH`].
    pub fn parse(text: &str) -> Result<FieldPath, SelectorError> {
        let names = split_path(text)?;
        if names.len() > MAX_DEPTH {
            return Err(SelectorError::TooLarge { what: "a path has too many names" });
        }
        Ok(FieldPath { names })
    }

    /// The names from the document down; never empty.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The one text that all spellings of this path have in common.
    pub fn text(&self) -> String {
        joined(&self.names)
    }

    /// The value there.
    pub fn find<'a>(&self, document: &'a Value) -> Option<&'a Value> {
        match find(document, &self.names) {
            Found::Value(value) => Some(value),
            Found::Missing | Found::BadPath => None,
        }
    }
}

impl SelectorError {
    /// What is said of a path that can't be one.
    pub(super) fn invalid_field_name(field: &str) -> SelectorError {
        SelectorError::InvalidFieldName { field: field.chars().take(MAX_SHOWN_CHARS).collect() }
    }
}

pub(super) fn find<'a>(mut value: &'a Value, names: &[String]) -> Found<'a> {
    for name in names {
        value = match value {
            Value::Object(members) => match members.get(name) {
                Some(member) => member,
                None => return Found::Missing,
            },
            Value::Array(items) => {
                let item = name.parse().ok().and_then(|at: usize| items.get(at));
                match item {
                    Some(item) => item,
                    None => return Found::BadPath,
                }
            }
            _ => return Found::BadPath,
        };
    }
    Found::Value(value)
}

/// Names as one text that parses to them again.
pub(super) fn joined(names: &[String]) -> String {
    let mut text = String::new();
    for (at, name) in names.iter().enumerate() {
        if at > 0 {
            text.push('.');
        } else if name.starts_with('$') {
            text.push('\\');
        }
        for letter in name.chars() {
            if letter == '.' {
                text.push('\\');
            }
            text.push(letter);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::FieldPath;
    use serde_json::json;

    #[test]
    fn spellings_of_one_path_have_one_text() {
        for (spelling, text) in [("a.b", "a.b"), ("a\\.b", "a\\.b"), ("\\a", "a"), ("\\$x.y", "\\$x.y")] {
            let path = FieldPath::parse(spelling).unwrap();
            assert_eq!(path.text(), text);
            assert_eq!(FieldPath::parse(&path.text()).unwrap(), path);
        }
        for bad in ["", ".", "a.", "a..b"] {
            assert!(FieldPath::parse(bad).is_err(), "{bad}");
        }
        assert!(FieldPath::parse(&"a.".repeat(100)).is_err());
    }

    #[test]
    fn a_path_leads_through_objects_and_arrays() {
        let doc = json!({"a": {"b": [1, {"c": null}]}, "a.b": 2, "s": "x"});
        let at = |path: &str| FieldPath::parse(path).unwrap().find(&doc).cloned();
        assert_eq!(at("a.b.0"), Some(json!(1)));
        assert_eq!(at("a.b.1.c"), Some(json!(null)));
        assert_eq!(at("a\\.b"), Some(json!(2)));
        for none in ["a.c", "a.b.2", "s.x", "a.b.x"] {
            assert_eq!(at(none), None, "{none}");
        }
    }
}
