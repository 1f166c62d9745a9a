//! CouchDB's Mango selectors as a pure matcher (docs, "Mango Queries", section "Selectors").
//!
//! A selector is parsed once, with bounds on its size, and then asked of many documents: for
//! `_selector` filters of the changes feed and for access rules. It reads no index.
//!
//! The rules that surprise, all CouchDB's:
//! - a condition on a missing field is false, whatever it says, and so is its negation; only
//!   `{"$exists": false}` is true. A path through something that is neither object nor array is no
//!   missing field: there `{"$exists": false}` is false too;
//! - `null` is a value: `{"a": null}` needs the field to be there;
//! - a number in a path is an index where it meets an array;
//! - `{"a": {}}` means equal to `{}`, and the empty selector matches everything;
//! - an empty `$and`, `$or` or `$nor` is true, an empty `$all` false;
//! - `$in` and `$nin` look at the elements of an array, not at the array;
//! - inside `$elemMatch`, `$allMatch` and `$keyMapMatch`, `$not` is plain: true if what it negates
//!   is false, also for a missing field;
//! - `_id` compares byte by byte, as documents are listed; all other strings by collation.
//!
//! Two differences: `$regex` is of the crate `regex`, which takes linear time and knows no
//! look-around and no back references (CouchDB: PCRE); strings compare as [`crate::collate`] says.
//! `$text` needs a search index and is refused.

mod normal;
mod parse;
mod path;

#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use regex::Regex;
use serde_json::Value;

use crate::collate;
use path::{Found, find};

pub use parse::{MAX_DEPTH, MAX_NODES, MAX_PATTERN_BYTES, MAX_REGEXES};
pub use path::FieldPath;

/// A selector, ready to be asked.
#[derive(Debug, Clone)]
pub struct Selector {
    /// None matches everything.
    root: Option<Node>,
}

/// Why a selector was refused: the client's mistake, status 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The selector is no object.
    #[error("Selector must be a JSON object, not: {found}")]
    NotAnObject {
        /// The start of what came instead.
        found: String,
    },
    /// An operator that does not exist.
    #[error("Invalid operator: {operator}")]
    InvalidOperator {
        /// Its name.
        operator: String,
    },
    /// An operator that exists, but not here.
    #[error("Unsupported operator: {operator}")]
    NotSupported {
        /// Its name.
        operator: String,
    },
    /// An operator can't take this argument.
    #[error("Bad argument for operator {operator}: {argument}")]
    BadArg {
        /// The operator.
        operator: &'static str,
        /// The start of its argument.
        argument: String,
    },
    /// An empty name in a path.
    #[error("Invalid field name: {field}")]
    InvalidFieldName {
        /// The path.
        field: String,
    },
    /// A condition that is about no field.
    #[error("One or more conditions is missing a field name.")]
    MissingFieldName,
    /// Deeper or longer than a bound of ours.
    #[error("The selector is too large: {what}")]
    TooLarge {
        /// The bound.
        what: &'static str,
    },
}

/// A condition on a document, or on an element of one of its arrays.
#[derive(Debug, Clone)]
enum Node {
    And(Vec<Node>),
    /// True if empty.
    Or(Vec<Node>),
    /// Only in the selectors of elements; elsewhere negation ends at the fields.
    Not(Box<Node>),
    Field {
        path: Vec<String>,
        condition: Condition,
        negated: bool,
    },
}

/// A condition on a value that is there.
#[derive(Debug, Clone)]
enum Condition {
    Lt(Value),
    Lte(Value),
    Eq(Value),
    Ne(Value),
    Gte(Value),
    Gt(Value),
    Exists(bool),
    Type(String),
    In(Vec<Value>),
    Nin(Vec<Value>),
    All(Vec<Value>),
    Size(u64),
    Mod { divisor: i64, remainder: i64 },
    Regex(Regex),
    BeginsWith(String),
    ElemMatch(Box<Node>),
    AllMatch(Box<Node>),
    KeyMapMatch(Box<Node>),
}

impl Selector {
    /// Parses and checks a selector.
    pub fn parse(selector: &Value) -> Result<Selector, SelectorError> {
        parse::parse(selector).map(|root| Selector { root })
    }

    /// True if the document matches. `_id` and the like are ordinary members of `doc`.
    pub fn matches(&self, doc: &Value) -> bool {
        self.root.as_ref().is_none_or(|root| root.matches(doc))
    }

    /// Its normal form: each object has one member, fields are named by their whole path ([`FieldPath::text`]) and
    /// negation stands at the fields.
    pub fn to_json(&self) -> Value {
        normal::to_json(self.root.as_ref())
    }
}

impl SelectorError {
    /// The `error` member of CouchDB's answer; the message is its `reason`.
    pub fn name(&self) -> &'static str {
        match self {
            SelectorError::NotAnObject { .. } => "invalid_selector_json",
            SelectorError::InvalidOperator { .. } => "invalid_operator",
            SelectorError::NotSupported { .. } => "not_supported",
            SelectorError::BadArg { .. } => "bad_arg",
            SelectorError::InvalidFieldName { .. } => "invalid_field_name",
            SelectorError::MissingFieldName | SelectorError::TooLarge { .. } => "invalid_selector",
        }
    }
}

impl Node {
    fn matches(&self, value: &Value) -> bool {
        match self {
            Node::And(nodes) => nodes.iter().all(|node| node.matches(value)),
            Node::Or(nodes) => nodes.is_empty() || nodes.iter().any(|node| node.matches(value)),
            Node::Not(node) => !node.matches(value),
            Node::Field { path, condition, negated } => match find(value, path) {
                Found::Value(value) => condition.matches(value, order_of(path_of_one(path))) != *negated,
                Found::Missing => matches!(condition, Condition::Exists(false)),
                Found::BadPath => false,
            },
        }
    }
}

/// How the values of a field compare.
pub type Order = fn(&Value, &Value) -> Ordering;

/// How selectors compare the values of the field with this path ([`FieldPath::text`]).
pub fn order_of(path: &str) -> Order {
    if path == "_id" { compare_ids } else { collate::compare }
}

/// The name in a path of one name.
fn path_of_one(path: &[String]) -> &str {
    if let [name] = path { name } else { "" }
}

/// The order in which documents are listed: ids by their bytes.
fn compare_ids(left: &Value, right: &Value) -> Ordering {
    match (left, right) {
        (Value::String(left), Value::String(right)) => left.as_bytes().cmp(right.as_bytes()),
        _ => collate::compare(left, right),
    }
}

impl Condition {
    fn matches(&self, value: &Value, compare: Order) -> bool {
        match self {
            Condition::Lt(bound) => compare(value, bound).is_lt(),
            Condition::Lte(bound) => compare(value, bound).is_le(),
            Condition::Eq(wanted) => compare(value, wanted).is_eq(),
            Condition::Ne(unwanted) => compare(value, unwanted).is_ne(),
            Condition::Gte(bound) => compare(value, bound).is_ge(),
            Condition::Gt(bound) => compare(value, bound).is_gt(),
            Condition::Exists(wanted) => *wanted,
            Condition::Type(name) => type_of(value) == name,
            Condition::In(list) => is_in(value, list, compare),
            Condition::Nin(list) => !is_in(value, list, compare),
            Condition::All(wanted) => has_all(value, wanted),
            Condition::Size(len) => value.as_array().is_some_and(|list| list.len() as u64 == *len),
            Condition::Mod { divisor, remainder } => is_congruent(value, i128::from(*divisor), i128::from(*remainder)),
            Condition::Regex(regex) => value.as_str().is_some_and(|text| regex.is_match(text)),
            Condition::BeginsWith(start) => value.as_str().is_some_and(|text| text.starts_with(start.as_str())),
            Condition::ElemMatch(node) => {
                value.as_array().is_some_and(|list| list.iter().any(|item| node.matches(item)))
            }
            Condition::AllMatch(node) => {
                value.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(|item| node.matches(item)))
            }
            Condition::KeyMapMatch(node) => value
                .as_object()
                .is_some_and(|members| members.keys().any(|key| node.matches(&Value::String(key.clone())))),
        }
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_in(value: &Value, list: &[Value], compare: Order) -> bool {
    let is_one = |value: &Value| list.iter().any(|wanted| compare(value, wanted).is_eq());
    match value {
        Value::Array(items) => items.iter().any(is_one),
        _ => is_one(value),
    }
}

/// All wanted values are elements; or the one wanted value is the whole array.
fn has_all(value: &Value, wanted: &[Value]) -> bool {
    let Value::Array(items) = value else {
        return false;
    };
    match wanted {
        [] => false,
        [whole @ Value::Array(_)] if whole == value => true,
        _ => wanted.iter().all(|wanted| items.contains(wanted)),
    }
}

/// Only integers have a remainder, which has the sign of the dividend.
fn is_congruent(value: &Value, divisor: i128, remainder: i128) -> bool {
    let integer = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
    integer.and_then(|integer| integer.checked_rem(divisor)) == Some(remainder)
}
