//! Reductions: of rows, of reductions, and what a client gets of one.

mod custom;
mod distinct;
mod number;
mod stats;
mod sum;

use crate::error::IndexError;
use crate::page::PageRow;
use crate::spec::{Reduce, Reducer};
use rean_store::collate;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use distinct::Sketch;
use number::Number;
use stats::Stats;
use sum::Sum;

/// Output from which on it must be less than half its input: CouchDB's `reduce_limit_threshold`. A reduction is kept
/// for each page of rows, and read for each page by a query.
const LARGE_BYTES: usize = 4_906;

/// The reduction of some rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Partial {
    Count(u64),
    Sum(Sum),
    Stats(Stats),
    Distinct(Sketch),
    /// Of `_first` and `_last`: the row's place, and its value.
    Edge(Vec<u8>, String),
    /// Of `_top_N` and `_bottom_N`: values, the foremost first.
    Ranked(Vec<String>),
    /// What a function of the design document gave.
    Json(String),
    /// It can't be made: CouchDB's `error` and `reason`.
    Failed(String, String),
}

impl Partial {
    fn failed(error: &str, reason: impl Into<String>) -> Partial {
        Partial::Failed(error.to_owned(), reason.into())
    }

    /// About how much memory it takes up.
    pub fn bytes(&self) -> usize {
        match self {
            Partial::Count(_) | Partial::Sum(Sum::Number(_)) => 32,
            Partial::Edge(place, value) => place.len() + value.len(),
            Partial::Json(json) => json.len(),
            // Numbers take up more than they have digits.
            other => 4 * crate::page::encode(other).len(),
        }
    }

    /// What a client gets.
    pub fn finish(self) -> Result<String, IndexError> {
        Ok(match self {
            Partial::Count(count) => count.to_string(),
            Partial::Sum(sum) => sum.to_json(),
            Partial::Stats(stats) => stats.to_json(),
            Partial::Distinct(sketch) => sketch.estimate().to_string(),
            Partial::Edge(_, value) | Partial::Json(value) => value,
            Partial::Ranked(values) => format!("[{}]", values.join(",")),
            Partial::Failed(error, reason) => return Err(IndexError::Reduce { error, reason }),
        })
    }
}

/// Reduces rows; of none it is what a page without rows has.
///
/// # Errors
/// Only when it may be tried again: all else is noted in the reduction.
pub(crate) fn reduce_rows(reduce: &Reduce, rows: &[PageRow]) -> Result<Partial, IndexError> {
    Ok(match reduce {
        Reduce::None | Reduce::Count => Partial::Count(rows.len() as u64),
        Reduce::Sum => Partial::Sum(sum::of_rows(rows)),
        Reduce::Stats => stats::of_rows(rows),
        Reduce::ApproxCountDistinct => Partial::Distinct(Sketch::of(rows.iter().map(PageRow::sort_key))),
        Reduce::First => edge(rows.first()),
        Reduce::Last => edge(rows.last()),
        Reduce::Top(n) => ranked(rows.iter().map(value_text).collect(), *n, true),
        Reduce::Bottom(n) => ranked(rows.iter().map(value_text).collect(), *n, false),
        Reduce::Custom(function) => custom::of_rows(function.as_ref(), rows)?,
    })
}

/// Puts reductions together.
///
/// # Errors
/// Only when it may be tried again.
pub(crate) fn rereduce(reduce: &Reduce, mut partials: Vec<Partial>) -> Result<Partial, IndexError> {
    if let Some(failed) = partials.iter().position(|partial| matches!(partial, Partial::Failed(..))) {
        return Ok(partials.swap_remove(failed));
    }
    if partials.len() == 1 {
        return Ok(partials.remove(0));
    }
    Ok(match reduce {
        Reduce::None | Reduce::Count => Partial::Count(partials.iter().map(count).sum()),
        Reduce::Sum => Partial::Sum(sum::of_sums(partials.into_iter().filter_map(as_sum).collect())),
        Reduce::Stats => stats::of_stats(partials.into_iter().filter_map(as_stats)),
        Reduce::ApproxCountDistinct => Partial::Distinct(Sketch::union(partials.into_iter().filter_map(as_sketch))),
        Reduce::First | Reduce::Last => furthest(partials, matches!(reduce, Reduce::Last)),
        Reduce::Top(n) | Reduce::Bottom(n) => {
            let values = partials.into_iter().filter_map(as_values).flatten().collect();
            ranked(values, *n, matches!(reduce, Reduce::Top(_)))
        }
        Reduce::Custom(function) => rereduce_custom(function.as_ref(), partials)?,
    })
}

/// As [`rereduce`], for a function of the design document.
fn rereduce_custom(function: &dyn Reducer, mut partials: Vec<Partial>) -> Result<Partial, IndexError> {
    if let Some(failed) = partials.iter().position(|partial| matches!(partial, Partial::Failed(..))) {
        return Ok(partials.swap_remove(failed));
    }
    if partials.len() == 1 {
        return Ok(partials.remove(0));
    }
    custom::of_reductions(function, partials.into_iter().filter_map(as_json).collect())
}

/// Whether a reduction of so many bytes has become too large for what it is of.
fn overflows(input_bytes: usize, output_bytes: usize) -> bool {
    output_bytes > LARGE_BYTES && output_bytes.saturating_mul(2) > input_bytes
}

fn overflow_reason(input_bytes: usize, output_bytes: usize) -> String {
    format!("Reduce output must shrink more rapidly: input size: {input_bytes} output size: {output_bytes}")
}

fn value_text(row: &PageRow) -> String {
    String::from_utf8_lossy(&row.cell.value).into_owned()
}

fn edge(row: Option<&PageRow>) -> Partial {
    row.map_or_else(
        || Partial::Edge(Vec::new(), "null".to_owned()),
        |row| Partial::Edge(row.place.clone(), value_text(row)),
    )
}

fn furthest(partials: Vec<Partial>, last: bool) -> Partial {
    let edges = partials.into_iter().filter_map(|partial| match partial {
        Partial::Edge(place, value) => Some((place, value)),
        _ => None,
    });
    let found = if last { edges.max() } else { edges.min() };
    found.map_or_else(|| edge(None), |(place, value)| Partial::Edge(place, value))
}

/// The foremost of values, without those that are equal to one before.
fn ranked(values: Vec<String>, n: u16, highest: bool) -> Partial {
    let key = |text: &String| collate::sort_key(&serde_json::from_str::<Value>(text).unwrap_or_default());
    let mut keyed: Vec<(Vec<u8>, String)> = values.into_iter().map(|text| (key(&text), text)).collect();
    // Of equal ones the same text is kept, in whatever order they come.
    keyed.sort_by(|a, b| if highest { b.0.cmp(&a.0) } else { a.0.cmp(&b.0) }.then_with(|| a.1.cmp(&b.1)));
    keyed.dedup_by(|a, b| a.0 == b.0);
    let bytes: usize = keyed.iter().take(usize::from(n)).map(|(_, text)| text.len()).sum();
    if bytes > usize::from(n) * LARGE_BYTES {
        return Partial::failed("builtin_reduce_error", "The ranked values are too large.");
    }
    Partial::Ranked(keyed.into_iter().take(usize::from(n)).map(|(_, text)| text).collect())
}

fn count(partial: &Partial) -> u64 {
    if let Partial::Count(count) = partial { *count } else { 0 }
}

fn as_sum(partial: Partial) -> Option<Sum> {
    if let Partial::Sum(sum) = partial { Some(sum) } else { None }
}

fn as_stats(partial: Partial) -> Option<Stats> {
    if let Partial::Stats(stats) = partial { Some(stats) } else { None }
}

fn as_sketch(partial: Partial) -> Option<Sketch> {
    if let Partial::Distinct(sketch) = partial { Some(sketch) } else { None }
}

fn as_values(partial: Partial) -> Option<Vec<String>> {
    if let Partial::Ranked(values) = partial { Some(values) } else { None }
}

fn as_json(partial: Partial) -> Option<String> {
    if let Partial::Json(json) = partial { Some(json) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::place;
    use crate::page::Cell;
    use serde_json::json;

    /// Rows with these values, in the order of their keys.
    fn rows(values: &[Value]) -> Vec<PageRow> {
        let row = |(n, value): (usize, &Value)| {
            let sort_key = collate::sort_key(&json!(n));
            let place = place(&sort_key, "d", 0);
            let cell = Cell { sort_len: sort_key.len(), key: n.to_string().into(), value: value.to_string().into() };
            PageRow { place, cell }
        };
        values.iter().enumerate().map(row).collect()
    }

    /// The reduction as one, and of its rows by two.
    fn both(reduce: &Reduce, values: &[Value]) -> String {
        let rows = rows(values);
        let whole = reduce_rows(reduce, &rows).unwrap().finish().unwrap();
        let parts = rows.chunks(2).rev().map(|some| reduce_rows(reduce, some).unwrap()).collect();
        assert_eq!(rereduce(reduce, parts).unwrap().finish().unwrap(), whole, "{reduce:?}");
        whole
    }

    #[test]
    fn the_foremost_values_and_those_at_the_ends() {
        let values = [json!(3), json!("b"), json!(1), json!(3), json!([0]), json!("a"), json!(1.0)];
        for (name, wanted) in [
            ("_top_2", r#"[[0],"b"]"#),
            ("_top_100", r#"[[0],"b","a",3,1]"#),
            ("_bottom_2", "[1,3]"),
            ("_first", "3"),
            ("_last", "1.0"),
            ("_count", "7"),
        ] {
            assert_eq!(both(&Reduce::built_in(name).unwrap(), &values), wanted, "{name}");
        }
        for name in ["_top_0", "_top_101", "_top_x", "_mean", "sum", ""] {
            assert!(Reduce::built_in(name).is_none(), "{name}");
        }
    }

    #[test]
    fn what_has_failed_stays_failed() {
        let failed = Partial::failed("an_error", "so");
        let partials = vec![Partial::Sum(Sum::Number(Number::ONE)), failed, Partial::Sum(Sum::Number(Number::ONE))];
        let whole = rereduce(&Reduce::Sum, partials).unwrap().finish();
        assert!(matches!(whole, Err(IndexError::Reduce { error, reason }) if error == "an_error" && reason == "so"));
    }
}
