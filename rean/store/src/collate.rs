//! The order of JSON values: CouchDB's collation (docs, "Views Collation"), with one difference.
//!
//! `null < false < true < numbers < strings < arrays < objects`. Numbers compare by value, whatever
//! their notation. Arrays compare element by element, objects member by member in the order in
//! which they were written, the name before the value; of two that agree so far, the shorter comes
//! first.
//!
//! **Strings compare by the bytes of their UTF-8** (the order of code points). CouchDB uses the
//! Unicode collation algorithm, where `a < A < b`. It has to come with views, whose rows clients
//! see in this order. Until then, do not write this order to disk.

use std::cmp::Ordering;

use serde_json::{Number, Value};

/// Compares two values by collation. A total order: every value equals itself, and none is
/// unordered. It goes as deep as both values agree.
pub fn compare(left: &Value, right: &Value) -> Ordering {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => compare_numbers(left, right),
        (Value::String(left), Value::String(right)) => left.as_bytes().cmp(right.as_bytes()),
        (Value::Array(left), Value::Array(right)) => {
            let differing = left.iter().zip(right).map(|(left, right)| compare(left, right));
            first_difference(differing).then(left.len().cmp(&right.len()))
        }
        (Value::Object(left), Value::Object(right)) => {
            let differing = left
                .iter()
                .zip(right)
                .map(|(left, right)| left.0.as_bytes().cmp(right.0.as_bytes()).then_with(|| compare(left.1, right.1)));
            first_difference(differing).then(left.len().cmp(&right.len()))
        }
        _ => rank(left).cmp(&rank(right)),
    }
}

/// The place of a value's type; `false` and `true` are types of their own here.
fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(false) => 1,
        Value::Bool(true) => 2,
        Value::Number(_) => 3,
        Value::String(_) => 4,
        Value::Array(_) => 5,
        Value::Object(_) => 6,
    }
}

fn first_difference(mut orders: impl Iterator<Item = Ordering>) -> Ordering {
    orders.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

fn compare_numbers(left: &Number, right: &Number) -> Ordering {
    match (integer(left), integer(right)) {
        (Some(left), Some(right)) => left.cmp(&right),
        (Some(left), None) => compare_mixed(left, float(right)),
        (None, Some(right)) => compare_mixed(right, float(left)).reverse(),
        (None, None) => float(left).partial_cmp(&float(right)).unwrap_or(Ordering::Equal),
    }
}

fn integer(number: &Number) -> Option<i128> {
    number.as_i128()
}

/// JSON has no NaN, so this is a number.
fn float(number: &Number) -> f64 {
    number.as_f64().unwrap_or(0.0)
}

/// Exact also where an integer has no float of its own (above 2^53): a float's whole part fits an
/// `i128` or lies far beyond every JSON integer, to which the conversion saturates.
fn compare_mixed(integer: i128, float: f64) -> Ordering {
    let whole = float.trunc() as i128;
    integer.cmp(&whole).then_with(|| 0.0_f64.partial_cmp(&float.fract()).unwrap_or(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use serde_json::{Value, json};

    use super::compare;

    #[test]
    fn types_and_values_follow_the_documented_order() {
        let sorted = [
            json!(null),
            json!(false),
            json!(true),
            json!(-1e300),
            json!(i64::MIN),
            json!(-1.5),
            json!(-1),
            json!(0),
            json!(0.5),
            json!(1),
            json!(1.5),
            json!(9_007_199_254_740_992_u64),
            json!(9_007_199_254_740_993_u64),
            json!(u64::MAX),
            json!(1e300),
            json!(""),
            json!("a"),
            json!("aa"),
            json!("b"),
            json!([]),
            json!(["a"]),
            json!(["a", null]),
            json!(["b"]),
            json!([[]]),
            json!({}),
            json!({"a": 1}),
            json!({"a": 1, "b": 1}),
            json!({"a": 2}),
            json!({"b": 1}),
            json!({"b": 1, "a": 1}),
        ];
        for (at, left) in sorted.iter().enumerate() {
            for (other, right) in sorted.iter().enumerate() {
                assert_eq!(compare(left, right), at.cmp(&other), "{left} and {right}");
            }
        }
    }

    #[test]
    fn numbers_are_equal_whatever_their_notation() {
        let one: Value = serde_json::from_str("1.0").unwrap();
        let zero: Value = serde_json::from_str("-0.0").unwrap();
        assert_eq!(compare(&one, &json!(1)), Ordering::Equal);
        assert_eq!(compare(&json!(1), &one), Ordering::Equal);
        assert_eq!(compare(&zero, &json!(0)), Ordering::Equal);
        assert_eq!(compare(&json!(9_007_199_254_740_993_u64), &json!(9_007_199_254_740_992.0)), Ordering::Greater);
    }
}
