//! Numbers that are added up: whole ones stay whole and exact, as in CouchDB.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;

/// A JSON number, or a sum of some.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    pub const ZERO: Number = Number::Whole(0);
    pub const ONE: Number = Number::Whole(1);

    pub fn of(number: &serde_json::Number) -> Number {
        number.as_i128().map_or_else(|| Number::Float(number.as_f64().unwrap_or(0.0)), Number::Whole)
    }

    pub fn plus(self, other: Number) -> Number {
        match (self, other) {
            (Number::Whole(a), Number::Whole(b)) => {
                a.checked_add(b).map_or_else(|| Number::Float(a as f64 + b as f64), Number::Whole)
            }
            _ => Number::Float(self.float() + other.float()),
        }
    }

    pub fn square(self) -> Number {
        match self {
            Number::Whole(a) => a.checked_mul(a).map_or_else(|| Number::Float(a as f64 * a as f64), Number::Whole),
            Number::Float(a) => Number::Float(a * a),
        }
    }

    pub fn min(self, other: Number) -> Number {
        if self.compare(other) == Ordering::Greater { other } else { self }
    }

    pub fn max(self, other: Number) -> Number {
        if self.compare(other) == Ordering::Less { other } else { self }
    }

    fn compare(self, other: Number) -> Ordering {
        match (self, other) {
            (Number::Whole(a), Number::Whole(b)) => a.cmp(&b),
            _ => self.float().total_cmp(&other.float()),
        }
    }

    fn float(self) -> f64 {
        match self {
            Number::Whole(a) => a as f64,
            Number::Float(a) => a,
        }
    }
}

impl fmt::Display for Number {
    /// As JSON; a sum that no float can hold is `null`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Whole(whole) => whole.fmt(f),
            Number::Float(float) => serde_json::Value::from(*float).fmt(f),
        }
    }
}
