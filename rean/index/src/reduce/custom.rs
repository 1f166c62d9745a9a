//! Functions of design documents.

use super::{Partial, overflow_reason, overflows};
use crate::error::IndexError;
use crate::page::PageRow;
use crate::spec::{ReduceError, Reducer};
use serde_json::Value;

/// Reductions that are handed over at once, and their bytes: what a function can take in within its limits.
const MAX_VALUES: usize = 500;
const MAX_BYTES: usize = 1 << 20;

pub(super) fn of_rows(function: &dyn Reducer, rows: &[PageRow]) -> Result<Partial, IndexError> {
    let mut partials = Vec::new();
    let mut rest = rows;
    loop {
        let mut bytes = 0;
        let fits = rest.iter().take(MAX_VALUES).take_while(|row| {
            let first = bytes == 0;
            bytes += row.cell.key.len() + row.cell.value.len() + 1;
            first || bytes <= MAX_BYTES
        });
        let (some, others) = rest.split_at(fits.count());
        partials.push(of_some_rows(function, some)?);
        rest = others;
        if rest.is_empty() {
            break;
        }
    }
    super::rereduce_custom(function, partials)
}

fn of_some_rows(function: &dyn Reducer, rows: &[PageRow]) -> Result<Partial, IndexError> {
    let mut keys = String::from("[");
    let mut values = String::from("[");
    for (at, row) in rows.iter().enumerate() {
        if at > 0 {
            keys.push(',');
            values.push(',');
        }
        keys.push('[');
        keys.push_str(&String::from_utf8_lossy(&row.cell.key));
        keys.push(',');
        keys.push_str(&Value::from(row.id()?).to_string());
        keys.push(']');
        values.push_str(&String::from_utf8_lossy(&row.cell.value));
    }
    keys.push(']');
    values.push(']');
    call(function, Some(&keys), &values)
}

/// Puts reductions together, some at a time until one is left.
pub(super) fn of_reductions(function: &dyn Reducer, mut values: Vec<String>) -> Result<Partial, IndexError> {
    loop {
        let mut next = Vec::new();
        let mut rest = &values[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take(MAX_VALUES).enumerate().take_while(|(at, value)| {
                bytes += value.len() + 1;
                // Always two at least, so that it comes to an end.
                *at < 2 || bytes <= MAX_BYTES
            });
            let (some, others) = rest.split_at(fits.count());
            rest = others;
            match call(function, None, &format!("[{}]", some.join(",")))? {
                Partial::Json(json) => next.push(json),
                failed => return Ok(failed),
            }
        }
        if next.len() <= 1 {
            return Ok(Partial::Json(next.pop().unwrap_or_else(|| "null".to_owned())));
        }
        values = next;
    }
}

fn call(function: &dyn Reducer, keys: Option<&str>, values: &str) -> Result<Partial, IndexError> {
    let input_bytes = keys.map_or(0, str::len) + values.len();
    match function.reduce(keys, values) {
        Ok(json) if overflows(input_bytes, json.len()) => {
            Ok(Partial::failed("reduce_overflow_error", overflow_reason(input_bytes, json.len())))
        }
        Ok(json) => Ok(Partial::Json(json)),
        Err(ReduceError::Threw(message)) => {
            tracing::debug!(message, "a reduce function threw");
            Ok(Partial::Json("null".to_owned()))
        }
        Err(ReduceError::Failed { error, reason }) => Ok(Partial::Failed(error, reason)),
        Err(ReduceError::Unavailable(message)) => Err(IndexError::Busy(message)),
    }
}
