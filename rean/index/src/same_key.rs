//! The order of a document's rows that have one key: that of their values. CouchDB sorts what a document emitted as Erlang
//! sorts terms, key and value alike, before it stores the rows
//! (<https://docs.couchdb.org/en/stable/ddocs/views/collation.html> is about the keys; the values' order is nowhere written,
//! but PouchDB has the same, and counts on it).

use crate::pending::NewRow;
use serde_json::{Number, Value};
use std::cmp::Ordering;

/// Sorts a document's rows by key, and rows with one key by value. Values that are no JSON keep their places among
/// themselves, before the others.
pub(crate) fn sort(rows: &mut Vec<NewRow>) {
    rows.sort_by(|a, b| a.sort_key.cmp(&b.sort_key));
    if rows.windows(2).all(|pair| pair[0].sort_key != pair[1].sort_key) {
        return;
    }
    // Values are parsed once each, and only where two rows have one key.
    let mut valued: Vec<(Option<Value>, NewRow)> =
        rows.drain(..).map(|row| (serde_json::from_slice(&row.value).ok(), row)).collect();
    valued.sort_by(|(a, left), (b, right)| {
        left.sort_key.cmp(&right.sort_key).then_with(|| match (a, b) {
            (Some(a), Some(b)) => compare(a, b),
            _ => a.is_some().cmp(&b.is_some()),
        })
    });
    rows.extend(valued.into_iter().map(|(_, row)| row));
}

/// Erlang's order: numbers, `false`, `null`, `true`, objects, arrays, strings.
fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare_numbers(a, b),
        (Value::String(a), Value::String(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Value::Array(a), Value::Array(b)) => {
            a.iter().zip(b).map(|(a, b)| compare(a, b)).find(|order| order.is_ne()).unwrap_or(a.len().cmp(&b.len()))
        }
        // A list of pairs in the order of the text.
        (Value::Object(a), Value::Object(b)) => a
            .iter()
            .zip(b)
            .map(|((key_a, a), (key_b, b))| key_a.as_bytes().cmp(key_b.as_bytes()).then_with(|| compare(a, b)))
            .find(|order| order.is_ne())
            .unwrap_or(a.len().cmp(&b.len())),
        _ => rank(a).cmp(&rank(b)),
    }
}

/// As floats first, since that is what all numbers can be, then exactly: integers beyond 2^53 share floats. To compare only
/// integers exactly would be no order: a float equals two integers that differ, and `sort_by` may panic then.
fn compare_numbers(a: &Number, b: &Number) -> Ordering {
    let as_floats = a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal);
    as_floats.then_with(|| exact(a).cmp(&exact(b)))
}

/// What a number is exactly, where it has the float of an integer that JSON's parser gave as one: below 2^64.
fn exact(number: &Number) -> i128 {
    let integer = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    integer.unwrap_or_else(|| number.as_f64().unwrap_or_default() as i128)
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Number(_) => 0,
        Value::Bool(false) => 1,
        Value::Null => 2,
        Value::Bool(true) => 3,
        Value::Object(_) => 4,
        Value::Array(_) => 5,
        Value::String(_) => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::{compare, sort};
    use crate::pending::NewRow;
    use bytes::Bytes;

    fn row(key: &str, value: &str) -> NewRow {
        NewRow {
            sort_key: key.as_bytes().to_vec(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        }
    }

    #[test]
    fn rows_with_one_key_have_the_order_of_their_values() {
        let wanted = [
            "-1",
            "0.5",
            "1",
            "9007199254740993",
            "false",
            "null",
            "true",
            r#"{"a":1}"#,
            r#"{"a":1,"b":0}"#,
            r#"{"a":2}"#,
            r#"{"b":0}"#,
            "[]",
            "[1]",
            "[1,2]",
            r#"["a"]"#,
            r#""""#,
            r#""B""#,
            r#""a""#,
            r#""ä""#,
        ];
        let mut rows: Vec<NewRow> = wanted.iter().rev().map(|value| row("k", value)).collect();
        rows.insert(3, row("j", "9"));
        rows.push(row("l", "0"));
        sort(&mut rows);
        let found: Vec<&str> = rows.iter().map(|row| std::str::from_utf8(&row.value).expect("UTF-8")).collect();
        assert_eq!(found[0], "9");
        assert_eq!(&found[1..=wanted.len()], wanted);
        assert_eq!(found[wanted.len() + 1], "0");
    }

    #[test]
    fn numbers_beyond_the_floats_have_one_order() {
        let numbers = [
            "-9007199254740993",
            "-9007199254740992.0",
            "-0.5",
            "9007199254740991",
            "9007199254740992.0",
            "9007199254740993",
            "9007199254740994.0",
            "9223372036854775807",
            "9223372036854775808.0",
            "18446744073709551615",
            "1.8446744073709552e19",
            "1e300",
        ];
        let value = |text: &str| serde_json::from_str(text).expect("a number");
        for (at, left) in numbers.iter().enumerate() {
            for (other, right) in numbers.iter().enumerate() {
                assert_eq!(compare(&value(left), &value(right)), at.cmp(&other), "{left} and {right}");
            }
        }
    }

    #[test]
    fn rows_of_different_keys_have_the_order_of_the_keys() {
        let mut rows = vec![row("b", "1"), row("a", "2"), row("c", "not JSON")];
        sort(&mut rows);
        assert!(rows.windows(2).all(|pair| pair[0].sort_key < pair[1].sort_key));
    }
}
