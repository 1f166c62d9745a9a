//! `_stats` (<https://docs.couchdb.org/en/stable/ddocs/ddocs.html#stats>).

use super::{LARGE_BYTES, Number, Partial};
use crate::page::PageRow;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What is known of some numbers, or of those at each place of some arrays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Stats {
    One { sum: Number, count: Number, min: Number, max: Number, sumsqr: Number },
    Many(Vec<Stats>),
}

impl Stats {
    const NOTHING: Stats = Stats::One {
        sum: Number::ZERO,
        count: Number::ZERO,
        min: Number::ZERO,
        max: Number::ZERO,
        sumsqr: Number::ZERO,
    };

    pub fn to_json(&self) -> String {
        match self {
            Stats::One { sum, count, min, max, sumsqr } => {
                format!(r#"{{"sum":{sum},"count":{count},"min":{min},"max":{max},"sumsqr":{sumsqr}}}"#)
            }
            Stats::Many(stats) => {
                let texts: Vec<String> = stats.iter().map(Stats::to_json).collect();
                format!("[{}]", texts.join(","))
            }
        }
    }

    fn of(value: &Value) -> Result<Stats, String> {
        match value {
            Value::Number(number) => {
                let number = Number::of(number);
                Ok(Stats::One { sum: number, count: Number::ONE, min: number, max: number, sumsqr: number.square() })
            }
            Value::Array(values) => values.iter().map(Stats::of).collect::<Result<_, _>>().map(Stats::Many),
            Value::Object(members) => {
                let [sum, count, min, max, sumsqr] =
                    ["sum", "count", "min", "max", "sumsqr"].map(|n| member(members, n));
                Ok(Stats::One { sum: sum?, count: count?, min: min?, max: max?, sumsqr: sumsqr? })
            }
            other => Err(bad(other)),
        }
    }

    fn plus(self, other: Stats) -> Result<Stats, String> {
        match (self, other) {
            (
                Stats::One { sum, count, min, max, sumsqr },
                Stats::One { sum: sum2, count: count2, min: min2, max: max2, sumsqr: sumsqr2 },
            ) => Ok(Stats::One {
                sum: sum.plus(sum2),
                count: count.plus(count2),
                min: min.min(min2),
                max: max.max(max2),
                sumsqr: sumsqr.plus(sumsqr2),
            }),
            (Stats::Many(a), Stats::Many(b)) if a.len() == b.len() => {
                a.into_iter().zip(b).map(|(a, b)| a.plus(b)).collect::<Result<_, _>>().map(Stats::Many)
            }
            (Stats::Many(_), Stats::Many(_)) => {
                Err("The _stats function requires that arrays of numbers have the same length".to_owned())
            }
            (_, other) => Err(bad(&serde_json::from_str(&other.to_json()).unwrap_or_default())),
        }
    }

    fn numbers(&self) -> usize {
        match self {
            Stats::One { .. } => 1,
            Stats::Many(stats) => stats.iter().map(Stats::numbers).sum(),
        }
    }
}

pub(super) fn of_rows(rows: &[PageRow]) -> Partial {
    let values = rows.iter().map(|row| Stats::of(&serde_json::from_slice(&row.cell.value).unwrap_or_default()));
    put_together(values)
}

pub(super) fn of_stats(stats: impl Iterator<Item = Stats>) -> Partial {
    put_together(stats.map(Ok))
}

fn put_together(mut stats: impl Iterator<Item = Result<Stats, String>>) -> Partial {
    let Some(first) = stats.next() else { return Partial::Stats(Stats::NOTHING) };
    let whole = first.and_then(|first| stats.try_fold(first, |whole, stats| whole.plus(stats?)));
    match whole {
        Ok(whole) if whole.numbers() > LARGE_BYTES => {
            Partial::failed("builtin_reduce_error", format!("Arrays for _stats may have {LARGE_BYTES} numbers."))
        }
        Ok(whole) => Partial::Stats(whole),
        Err(reason) => Partial::failed("invalid_value", reason),
    }
}

fn member(members: &Map<String, Value>, name: &str) -> Result<Number, String> {
    match members.get(name) {
        Some(Value::Number(number)) => Ok(Number::of(number)),
        Some(_) => Err(format!("non-numeric _stats input received for {name}")),
        None => Err(format!("user _stats input missing required field {name}")),
    }
}

fn bad(value: &Value) -> String {
    let text: String = value.to_string().chars().take(200).collect();
    format!("The _stats function requires that map values be numbers or arrays of numbers, not '{text}'")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stats(values: &[Value]) -> Result<String, crate::IndexError> {
        put_together(values.iter().map(Stats::of)).finish()
    }

    #[test]
    fn numbers_arrays_and_finished_stats_are_put_together() {
        let one = r#"{"sum":6,"count":3,"min":1,"max":3,"sumsqr":14}"#;
        assert_eq!(stats(&[json!(1), json!(2), json!(3)]).unwrap(), one);
        let finished: Value = serde_json::from_str(one).unwrap();
        assert_eq!(
            stats(&[finished, json!(-1.5)]).unwrap(),
            r#"{"sum":4.5,"count":4,"min":-1.5,"max":3,"sumsqr":16.25}"#
        );
        let pair = stats(&[json!([1, 10]), json!([2, 20])]).unwrap();
        assert_eq!(
            pair,
            r#"[{"sum":3,"count":2,"min":1,"max":2,"sumsqr":5},{"sum":30,"count":2,"min":10,"max":20,"sumsqr":500}]"#
        );
    }

    #[test]
    fn what_has_no_stats_is_told() {
        for values in
            [vec![json!("a")], vec![json!(1), json!([1])], vec![json!([1]), json!([1, 2])], vec![json!({"sum": 1})]]
        {
            assert!(matches!(stats(&values), Err(crate::IndexError::Reduce { .. })), "{values:?}");
        }
    }
}
