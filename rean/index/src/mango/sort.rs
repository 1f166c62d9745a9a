//! A list of fields in one direction: the order of an answer, or the fields of an index.

use rean_store::selector::FieldPath;
use serde_json::{Map, Value};

use super::error::{MangoError, shown};

/// Fields, the most significant one first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sort {
    /// The fields.
    pub fields: Vec<SortField>,
    /// From high to low, all of them: CouchDB knows no mixed order.
    pub descending: bool,
}

/// One field of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SortField {
    /// Its name as it was written.
    pub name: String,
    /// Where it stands.
    pub path: FieldPath,
}

impl Sort {
    /// Reads `["a", {"b": "asc"}]`.
    ///
    /// # Errors
    /// Anything else, and fields in different directions.
    pub fn parse(value: &Value) -> Result<Sort, MangoError> {
        let Value::Array(items) = value else {
            return Err(MangoError::SortJson(shown(value)));
        };
        let mut fields = Vec::with_capacity(items.len());
        let mut directions = Vec::with_capacity(items.len());
        for item in items {
            let (name, descending) = match item {
                Value::String(name) => (name, false),
                Value::Object(members) => one_member(members).ok_or_else(|| MangoError::SortField(shown(item)))??,
                _ => return Err(MangoError::SortField(shown(item))),
            };
            fields.push(SortField::parse(name)?);
            directions.push(descending);
        }
        let descending = directions.first().copied().unwrap_or(false);
        if directions.iter().any(|one| *one != descending) {
            return Err(MangoError::MixedSort);
        }
        Ok(Sort { fields, descending })
    }

    /// Reads `{"a": "asc", "b": "asc"}`, as design documents keep the fields of an index.
    pub(super) fn from_stored(value: &Value) -> Option<Sort> {
        let Value::Object(members) = value else { return None };
        let list: Vec<Value> = members
            .iter()
            .map(|(name, direction)| Value::Object(Map::from_iter([(name.clone(), direction.clone())])))
            .collect();
        Sort::parse(&Value::Array(list)).ok()
    }

    /// `[{"a": "asc"}]`: a list keeps the order.
    pub fn to_list(&self) -> Value {
        self.fields.iter().map(|field| Value::Object(self.member(field))).collect()
    }

    /// `{"a": "asc"}`.
    pub fn to_object(&self) -> Value {
        Value::Object(self.fields.iter().flat_map(|field| self.member(field)).collect())
    }

    /// Where the fields stand.
    pub fn paths(&self) -> Vec<&FieldPath> {
        self.fields.iter().map(|field| &field.path).collect()
    }

    fn member(&self, field: &SortField) -> Map<String, Value> {
        let direction = if self.descending { "desc" } else { "asc" };
        Map::from_iter([(field.name.clone(), Value::from(direction))])
    }
}

impl SortField {
    fn parse(name: &str) -> Result<SortField, MangoError> {
        if name.is_empty() {
            return Err(MangoError::SortField("\"\"".to_owned()));
        }
        Ok(SortField { name: name.to_owned(), path: FieldPath::parse(name)? })
    }
}

fn one_member(members: &Map<String, Value>) -> Option<Result<(&String, bool), MangoError>> {
    let mut iter = members.iter();
    let (name, direction) = iter.next()?;
    if iter.next().is_some() {
        return None;
    }
    Some(match direction.as_str() {
        Some("asc") => Ok((name, false)),
        Some("desc") => Ok((name, true)),
        _ => Err(MangoError::SortDirection(shown(direction))),
    })
}

#[cfg(test)]
mod tests {
    use super::Sort;
    use serde_json::json;

    #[test]
    fn both_spellings_are_read_and_mistakes_named() {
        let sort = Sort::parse(&json!([{"a": "desc"}, {"b.c": "desc"}])).unwrap();
        assert!(sort.descending);
        assert_eq!(sort.to_list(), json!([{"a": "desc"}, {"b.c": "desc"}]));
        assert_eq!(sort.to_object(), json!({"a": "desc", "b.c": "desc"}));
        assert_eq!(Sort::from_stored(&sort.to_object()), Some(sort));
        assert_eq!(Sort::parse(&json!(["a"])).unwrap().to_list(), json!([{"a": "asc"}]));
        assert_eq!(Sort::parse(&json!([])).unwrap(), Sort::default());
        for (bad, error) in [
            (json!(null), "invalid_sort_json"),
            (json!("a"), "invalid_sort_json"),
            (json!({"a": "asc"}), "invalid_sort_json"),
            (json!([1]), "invalid_sort_field"),
            (json!([""]), "invalid_sort_field"),
            (json!([{"a": "asc", "b": "asc"}]), "invalid_sort_field"),
            (json!([{"a": 2}]), "invalid_sort_dir"),
            (json!([{"a": "asc"}, {"b": "desc"}]), "unsupported_mixed_sort"),
            (json!(["a..b"]), "invalid_field_name"),
        ] {
            assert_eq!(Sort::parse(&bad).unwrap_err().error(), error, "{bad}");
        }
    }
}
