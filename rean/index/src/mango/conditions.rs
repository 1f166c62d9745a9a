//! What a selector in its normal form says of its fields, as far as an index can use it.

use serde_json::Value;

/// One condition on a field: its name, the operator and the argument.
pub(super) type Condition<'a> = (&'a str, &'a str, &'a Value);

/// The operators whose answers lie side by side in an index.
const COMPARISONS: [&str; 5] = ["$lt", "$lte", "$eq", "$gte", "$gt"];

/// The conditions that all hold for whatever matches: those at the top and below `$and`.
pub(super) fn conjuncts(normal: &Value) -> Vec<Condition<'_>> {
    let mut found = Vec::new();
    gather(normal, &mut found);
    found
}

fn gather<'a>(normal: &'a Value, found: &mut Vec<Condition<'a>>) {
    let Some((name, argument)) = single(normal) else { return };
    if name == "$and" {
        argument.as_array().into_iter().flatten().for_each(|each| gather(each, found));
    } else if !name.starts_with('$')
        && let Some((operator, argument)) = single(argument)
    {
        found.push((name, operator, argument));
    }
}

/// Whether a condition bounds the values of its field from a side.
pub(super) fn is_indexable((_, operator, argument): &Condition<'_>) -> bool {
    COMPARISONS.contains(operator) || (*operator == "$beginsWith" && super::range::is_plain_prefix(argument))
}

/// The fields with such a condition, in order and each once.
pub(super) fn indexable_fields<'a>(conditions: &[Condition<'a>]) -> Vec<&'a str> {
    let mut fields: Vec<&str> = conditions.iter().filter(|one| is_indexable(one)).map(|(field, ..)| *field).collect();
    fields.sort_unstable();
    fields.dedup();
    fields
}

/// Whether all that matches has one and the same value there.
pub(super) fn is_constant(conditions: &[Condition<'_>], field: &str) -> bool {
    conditions.iter().any(|(name, operator, _)| *name == field && *operator == "$eq")
}

/// Whether this field is there in whatever matches: every condition but `{"$exists": false}` needs its field, also a
/// negated one. Of an `$or` each branch must need it.
pub(super) fn requires(normal: &Value, field: &str) -> bool {
    match single(normal) {
        Some(("$and", list)) => list.as_array().is_some_and(|list| list.iter().any(|each| requires(each, field))),
        // An empty `$or` lets everything through.
        Some(("$or", list)) => {
            list.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(|each| requires(each, field)))
        }
        Some((name, condition)) => name == field && !is_exists_false(condition),
        None => false,
    }
}

/// The fields that a selector names outside the selectors of elements, in order and each once.
pub(super) fn fields(normal: &Value) -> Vec<&str> {
    fn gather<'a>(normal: &'a Value, found: &mut Vec<&'a str>) {
        match single(normal) {
            Some((name, argument)) if name.starts_with('$') => {
                argument.as_array().into_iter().flatten().for_each(|each| gather(each, found));
            }
            Some((name, _)) => found.push(name),
            None => {}
        }
    }
    let mut found = Vec::new();
    gather(normal, &mut found);
    found.sort_unstable();
    found.dedup();
    found
}

/// Whether nothing is to match, though the matcher alone would say otherwise: CouchDB gives nothing for an empty list
/// that is the whole selector.
pub(super) fn matches_nothing(normal: &Value) -> bool {
    matches!(single(normal), Some(("$and" | "$or", Value::Array(list))) if list.is_empty())
}

fn is_exists_false(condition: &Value) -> bool {
    matches!(single(condition), Some(("$exists", Value::Bool(false))))
}

fn single(normal: &Value) -> Option<(&str, &Value)> {
    let members = normal.as_object()?;
    members.iter().next().map(|(name, value)| (name.as_str(), value))
}

#[cfg(test)]
mod tests {
    use super::{conjuncts, fields, indexable_fields, is_constant, requires};
    use rean_store::selector::Selector;
    use serde_json::{Value, json};

    fn normal(selector: Value) -> Value {
        Selector::parse(&selector).unwrap().to_json()
    }

    #[test]
    fn fields_that_must_be_there() {
        for (selector, field, needed) in [
            (json!({"a": 1}), "a", true),
            (json!({"a": 1}), "b", false),
            (json!({}), "a", false),
            (json!({"a": {"$exists": false}}), "a", false),
            (json!({"a": {"$exists": true}}), "a", true),
            (json!({"a": {"$not": {"$regex": "x"}}}), "a", true),
            (json!({"$and": [{"a": 1}, {"b": 2}]}), "b", true),
            (json!({"$or": [{"a": 1}, {"a": 2}]}), "a", true),
            (json!({"$or": [{"a": 1}, {"b": 2}]}), "a", false),
            (json!({"$or": [{"a": 1}, {"b": 2}], "a": {"$gt": 0}}), "a", true),
            (json!({"$or": []}), "a", false),
            (json!({"$nor": [{"a": 1}]}), "a", true),
            (json!({"a.b": 1}), "a.b", true),
            (json!({"a": {"b": 1}}), "a.b", true),
            (json!({"l": {"$elemMatch": {"a": 1}}}), "a", false),
        ] {
            assert_eq!(requires(&normal(selector.clone()), field), needed, "{selector} {field}");
        }
    }

    #[test]
    fn conditions_below_and_are_seen() {
        let normal = normal(json!({"$and": [{"a": 1}, {"$and": [{"b": {"$gt": 2}}]}], "c": {"$regex": "x"}}));
        let found = conjuncts(&normal);
        assert_eq!(indexable_fields(&found), ["a", "b"]);
        assert!(is_constant(&found, "a") && !is_constant(&found, "b"));
        assert_eq!(fields(&normal), ["a", "b", "c"]);
    }
}
