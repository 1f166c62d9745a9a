//! A selector's normal form: one condition an object, fields by their whole path, negation at the fields. It is what
//! CouchDB shows in `_explain` and keeps of a partial index, and what a planner reads.

use serde_json::{Map, Value};

use super::path::joined;
use super::{Condition, Node};

/// The normal form of a selector.
pub(super) fn to_json(root: Option<&Node>) -> Value {
    root.map_or_else(|| Value::Object(Map::new()), node)
}

fn node(of: &Node) -> Value {
    match of {
        Node::And(nodes) => member("$and", nodes.iter().map(node).collect()),
        Node::Or(nodes) => member("$or", nodes.iter().map(node).collect()),
        Node::Not(inner) => member("$not", node(inner)),
        Node::Field { path, condition, negated } => {
            let condition = match negated {
                true => member("$not", self::condition(condition)),
                false => self::condition(condition),
            };
            // In the selector of an element the condition may be on the element itself.
            if path.is_empty() { condition } else { member(&joined(path), condition) }
        }
    }
}

fn condition(of: &Condition) -> Value {
    let list = |values: &[Value]| Value::Array(values.to_vec());
    let (name, argument) = match of {
        Condition::Lt(value) => ("$lt", value.clone()),
        Condition::Lte(value) => ("$lte", value.clone()),
        Condition::Eq(value) => ("$eq", value.clone()),
        Condition::Ne(value) => ("$ne", value.clone()),
        Condition::Gte(value) => ("$gte", value.clone()),
        Condition::Gt(value) => ("$gt", value.clone()),
        Condition::Exists(wanted) => ("$exists", (*wanted).into()),
        Condition::Type(name) => ("$type", name.as_str().into()),
        Condition::In(values) => ("$in", list(values)),
        Condition::Nin(values) => ("$nin", list(values)),
        Condition::All(values) => ("$all", list(values)),
        Condition::Size(len) => ("$size", (*len).into()),
        Condition::Mod { divisor, remainder } => ("$mod", vec![Value::from(*divisor), Value::from(*remainder)].into()),
        Condition::Regex(regex) => ("$regex", regex.as_str().into()),
        Condition::BeginsWith(start) => ("$beginsWith", start.as_str().into()),
        Condition::ElemMatch(inner) => ("$elemMatch", node(inner)),
        Condition::AllMatch(inner) => ("$allMatch", node(inner)),
        Condition::KeyMapMatch(inner) => ("$keyMapMatch", node(inner)),
    };
    member(name, argument)
}

fn member(name: &str, value: Value) -> Value {
    let mut members = Map::new();
    members.insert(name.to_owned(), value);
    Value::Object(members)
}
