//! `_sum`: of numbers, arrays of numbers, and objects of these
//! (<https://docs.couchdb.org/en/stable/ddocs/ddocs.html#sum>).

use super::{Number, overflow_reason, overflows};
use crate::page::PageRow;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const BAD_VALUE: &str = "The _sum function requires that map values be numbers, arrays of numbers, or objects. Objects \
     cannot be mixed with other data structures. Objects can be arbitrarily nested, provided that the values for all \
     fields are themselves numbers, arrays of numbers, or objects.";

/// What a bad value is cut to when it is told: it is kept for each page.
const MAX_CAUSE_BYTES: usize = 1_000;

/// A sum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Sum {
    Number(Number),
    List(Vec<Number>),
    Object(BTreeMap<String, Sum>),
    /// The object that CouchDB gives instead: JSON.
    Bad(String),
}

impl Sum {
    pub fn to_json(&self) -> String {
        match self {
            Sum::Number(number) => number.to_string(),
            Sum::List(numbers) => {
                let texts: Vec<String> = numbers.iter().map(Number::to_string).collect();
                format!("[{}]", texts.join(","))
            }
            Sum::Object(members) => {
                let member = |(name, sum): (&String, &Sum)| format!("{}:{}", Value::from(name.as_str()), sum.to_json());
                let texts: Vec<String> = members.iter().map(member).collect();
                format!("{{{}}}", texts.join(","))
            }
            Sum::Bad(json) => json.clone(),
        }
    }

    fn of(value: &Value) -> Sum {
        let number = |value: &Value| if let Value::Number(number) = value { Some(Number::of(number)) } else { None };
        match value {
            Value::Number(value) => Sum::Number(Number::of(value)),
            Value::Array(values) => match values.iter().map(number).collect() {
                Some(numbers) => Sum::List(numbers),
                None => bad(value),
            },
            Value::Object(members) => {
                if members.get("error").is_some_and(|error| error == "builtin_reduce_error") {
                    return Sum::Bad(value.to_string());
                }
                let mut sums = BTreeMap::new();
                for (name, value) in members {
                    match Sum::of(value) {
                        Sum::Bad(json) => return Sum::Bad(json),
                        sum => sums.insert(name.clone(), sum),
                    };
                }
                Sum::Object(sums)
            }
            other => bad(other),
        }
    }

    fn plus(self, other: Sum) -> Sum {
        match (self, other) {
            (Sum::Bad(json), _) | (_, Sum::Bad(json)) => Sum::Bad(json),
            (Sum::Number(a), Sum::Number(b)) => Sum::Number(a.plus(b)),
            (Sum::List(a), Sum::List(b)) => Sum::List(add_lists(a, b)),
            (Sum::Number(a), Sum::List(b)) | (Sum::List(b), Sum::Number(a)) => Sum::List(add_lists(b, vec![a])),
            (Sum::Object(a), Sum::Object(b)) => add_objects(a, b),
            // What sums begin with.
            (Sum::Number(Number::Whole(0)), object @ Sum::Object(_)) => object,
            (_, other) => bad(&serde_json::from_str(&other.to_json()).unwrap_or_default()),
        }
    }
}

pub(super) fn of_rows(rows: &[PageRow]) -> Sum {
    let bytes = rows.iter().map(|row| row.place.len() - row.cell.sort_len + row.cell.key.len() + row.cell.value.len());
    let values = rows.iter().map(|row| Sum::of(&serde_json::from_slice(&row.cell.value).unwrap_or_default()));
    checked(values, bytes.sum())
}

pub(super) fn of_sums(sums: Vec<Sum>) -> Sum {
    // Small ones can't overflow: their texts need not be made.
    let is_large = |sum: &Sum| !matches!(sum, Sum::Number(_));
    let bytes = if sums.iter().any(is_large) { sums.iter().map(|sum| sum.to_json().len()).sum() } else { 0 };
    checked(sums.into_iter(), bytes)
}

fn checked(sums: impl Iterator<Item = Sum>, input_bytes: usize) -> Sum {
    let sum = sums.fold(Sum::Number(Number::ZERO), Sum::plus);
    if matches!(sum, Sum::Number(_) | Sum::Bad(_)) {
        return sum;
    }
    let output_bytes = sum.to_json().len();
    if overflows(input_bytes, output_bytes) {
        let reason = overflow_reason(input_bytes, output_bytes);
        return Sum::Bad(json!({"error": "builtin_reduce_error", "reason": reason}).to_string());
    }
    sum
}

fn add_lists(mut longer: Vec<Number>, mut shorter: Vec<Number>) -> Vec<Number> {
    if longer.len() < shorter.len() {
        std::mem::swap(&mut longer, &mut shorter);
    }
    for (a, b) in longer.iter_mut().zip(shorter) {
        *a = a.plus(b);
    }
    longer
}

fn add_objects(mut a: BTreeMap<String, Sum>, b: BTreeMap<String, Sum>) -> Sum {
    for (name, sum) in b {
        let sum = match a.remove(&name) {
            Some(other) => other.plus(sum),
            None => sum,
        };
        if let Sum::Bad(json) = sum {
            return Sum::Bad(json);
        }
        a.insert(name, sum);
    }
    Sum::Object(a)
}

fn bad(value: &Value) -> Sum {
    let text = value.to_string();
    let cause = if text.len() > MAX_CAUSE_BYTES { Value::Null } else { value.clone() };
    Sum::Bad(json!({"error": "builtin_reduce_error", "reason": BAD_VALUE, "caused_by": cause}).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(values: &[Value]) -> String {
        checked(values.iter().map(Sum::of), 0).to_json()
    }

    #[test]
    fn numbers_lists_and_objects_add_up() {
        assert_eq!(sum(&[json!(1), json!(2), json!(-4)]), "-1");
        assert_eq!(sum(&[json!(1), json!(0.5)]), "1.5");
        assert_eq!(sum(&[json!(u64::MAX), json!(u64::MAX)]), "36893488147419103230");
        assert_eq!(sum(&[json!([1, 2]), json!([3]), json!(10)]), "[14,2]");
        assert_eq!(
            sum(&[json!({"a": 1, "b": {"c": 2}}), json!({"b": {"c": 3, "d": [1]}})]),
            r#"{"a":1,"b":{"c":5,"d":[1]}}"#
        );
        assert_eq!(sum(&[]), "0");
    }

    #[test]
    fn what_can_not_be_added_is_told() {
        for values in [
            vec![json!("a")],
            vec![json!(1), json!(null)],
            vec![json!([1, "a"])],
            vec![json!(1), json!({"a": 1})],
            vec![json!({"a": 1}), json!(1)],
            vec![json!({"a": 1}), json!({"a": "x"})],
            vec![json!({"a": 1}), json!({"a": {"b": 1}})],
        ] {
            let told: Value = serde_json::from_str(&sum(&values)).unwrap();
            assert_eq!(told["error"], "builtin_reduce_error", "{values:?}");
            assert_eq!(told["reason"], BAD_VALUE);
            // It stays an error, whatever is added to it.
            let again = checked([Sum::Bad(told.to_string()), Sum::of(&json!(1))].into_iter(), 0);
            assert_eq!(again.to_json(), told.to_string());
        }
    }

    #[test]
    fn a_sum_that_grows_with_its_rows_is_refused() {
        let wide: Value =
            (0..1_000).map(|n| (format!("member {n}"), json!(n))).collect::<serde_json::Map<_, _>>().into();
        let told: Value = serde_json::from_str(&sum(&[wide])).unwrap();
        assert!(told["reason"].as_str().unwrap().starts_with("Reduce output must shrink more rapidly"));
    }
}
