//! From JSON to a checked selector, with negation moved down to the fields as CouchDB does it.

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::{Condition, Node, SelectorError};

/// How deep a selector may nest. Real ones nest a handful of levels; matching recurses this deep.
pub const MAX_DEPTH: usize = 64;

/// How many conditions and listed values a selector may have: each document costs as many steps.
/// Lists of ids of some thousands are in use.
pub const MAX_NODES: usize = 10_000;

/// How many `$regex` a selector may have: each may take up to [`REGEX_BYTES`] twice.
pub const MAX_REGEXES: usize = 32;

/// The longest pattern of a `$regex` in bytes.
pub const MAX_PATTERN_BYTES: usize = 4 << 10;

/// The memory that one compiled `$regex` may take; enough for patterns with Unicode classes.
const REGEX_BYTES: usize = 512 << 10;

/// How much of a bad argument goes into the message.
pub(super) const MAX_SHOWN_CHARS: usize = 100;

/// Operators of CouchDB that need an index, and those that it names only to refuse them.
const NOT_SUPPORTED: [&str; 6] = ["$text", "$where", "$geoWithin", "$geoIntersects", "$near", "$nearSphere"];

/// What is counted while parsing.
#[derive(Default)]
struct Parser {
    nodes: usize,
    regexes: usize,
}

/// Where a condition stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// The names from the document, or from the element, down to here.
    path: &'a [String],
    /// An odd number of negations is above.
    negated: bool,
    /// In the selector of an element, where negation stays where it is written.
    in_element: bool,
    depth: usize,
}

/// Parses a selector; none matches everything.
pub(super) fn parse(selector: &Value) -> Result<Option<Node>, SelectorError> {
    let Value::Object(members) = selector else {
        return Err(SelectorError::NotAnObject { found: shown(selector) });
    };
    if members.is_empty() {
        return Ok(None);
    }
    let place = Place { path: &[], negated: false, in_element: false, depth: 0 };
    match Parser::default().node(selector, place)? {
        Node::Field { path, .. } if path.is_empty() => Err(SelectorError::MissingFieldName),
        node => Ok(Some(node)),
    }
}

impl Parser {
    /// An object of conditions, or a value to be equal to.
    fn node(&mut self, value: &Value, place: Place<'_>) -> Result<Node, SelectorError> {
        self.count(1)?;
        if place.depth > MAX_DEPTH {
            return Err(SelectorError::TooLarge { what: "it is nested too deeply" });
        }
        let place = Place { depth: place.depth + 1, ..place };
        match value {
            Value::Object(members) if members.len() == 1 => {
                let mut nodes = self.members(members, place)?;
                Ok(nodes.pop().unwrap_or(Node::And(Vec::new())))
            }
            Value::Object(members) if !members.is_empty() => Ok(joined(self.members(members, place)?, place.negated)),
            value => Ok(leaf(Condition::Eq(value.clone()), place)),
        }
    }

    fn members(
        &mut self,
        members: &serde_json::Map<String, Value>,
        place: Place<'_>,
    ) -> Result<Vec<Node>, SelectorError> {
        members
            .iter()
            .map(
                |(name, value)| {
                    if name.starts_with('$') {
                        self.operator(name, value, place)
                    } else {
                        self.field(name, value, place)
                    }
                },
            )
            .collect()
    }

    fn field(&mut self, name: &str, value: &Value, place: Place<'_>) -> Result<Node, SelectorError> {
        let mut path = place.path.to_vec();
        if name.is_empty() && path.is_empty() {
            return Err(SelectorError::MissingFieldName);
        }
        path.extend(split_path(name)?);
        if path.len() > MAX_DEPTH {
            return Err(SelectorError::TooLarge { what: "a path has too many names" });
        }
        self.node(value, Place { path: &path, ..place })
    }

    fn operator(&mut self, name: &str, value: &Value, place: Place<'_>) -> Result<Node, SelectorError> {
        match name {
            "$and" => Ok(joined(self.each("$and", value, place)?, place.negated)),
            "$or" => Ok(joined(self.each("$or", value, place)?, !place.negated)),
            "$nor" if place.in_element => {
                let nodes = self.each("$nor", value, place)?;
                Ok(Node::And(nodes.into_iter().map(|node| Node::Not(Box::new(node))).collect()))
            }
            "$nor" => {
                let inner = Place { negated: !place.negated, ..place };
                Ok(joined(self.each("$nor", value, inner)?, place.negated))
            }
            "$not" if !value.is_object() => Err(bad_arg("$not", value)),
            "$not" if place.in_element => Ok(Node::Not(Box::new(self.node(value, place)?))),
            "$not" => self.node(value, Place { negated: !place.negated, ..place }),
            _ => Ok(leaf(self.condition(name, value, place)?, place)),
        }
    }

    /// The conditions in the list of a combining operator.
    fn each(&mut self, operator: &'static str, value: &Value, place: Place<'_>) -> Result<Vec<Node>, SelectorError> {
        let Value::Array(list) = value else {
            return Err(bad_arg(operator, value));
        };
        list.iter().map(|item| self.node(item, place)).collect()
    }

    fn condition(&mut self, name: &str, value: &Value, place: Place<'_>) -> Result<Condition, SelectorError> {
        Ok(match name {
            "$lt" => Condition::Lt(value.clone()),
            "$lte" => Condition::Lte(value.clone()),
            "$eq" => Condition::Eq(value.clone()),
            "$ne" => Condition::Ne(value.clone()),
            "$gte" => Condition::Gte(value.clone()),
            "$gt" => Condition::Gt(value.clone()),
            "$exists" => Condition::Exists(value.as_bool().ok_or_else(|| bad_arg("$exists", value))?),
            "$type" => Condition::Type(text("$type", value)?.to_owned()),
            "$in" => Condition::In(self.list("$in", value)?),
            "$nin" => Condition::Nin(self.list("$nin", value)?),
            "$all" => Condition::All(self.list("$all", value)?),
            "$size" => Condition::Size(value.as_u64().ok_or_else(|| bad_arg("$size", value))?),
            "$mod" => modulus(value).ok_or_else(|| bad_arg("$mod", value))?,
            "$regex" => Condition::Regex(self.regex(value)?),
            // CouchDB knows this operator only with a text.
            "$beginsWith" => match value {
                Value::String(start) => Condition::BeginsWith(start.clone()),
                _ => return Err(SelectorError::InvalidOperator { operator: name.to_owned() }),
            },
            "$elemMatch" => Condition::ElemMatch(self.element("$elemMatch", value, place)?),
            "$allMatch" => Condition::AllMatch(self.element("$allMatch", value, place)?),
            "$keyMapMatch" => Condition::KeyMapMatch(self.element("$keyMapMatch", value, place)?),
            name if NOT_SUPPORTED.contains(&name) => {
                return Err(SelectorError::NotSupported { operator: name.to_owned() });
            }
            name => {
                let operator = name.chars().take(MAX_SHOWN_CHARS).collect();
                return Err(SelectorError::InvalidOperator { operator });
            }
        })
    }

    /// The selector of an element, whose paths start at the element.
    fn element(&mut self, operator: &'static str, value: &Value, place: Place<'_>) -> Result<Box<Node>, SelectorError> {
        if !value.is_object() {
            return Err(bad_arg(operator, value));
        }
        let place = Place { path: &[], negated: false, in_element: true, ..place };
        self.node(value, place).map(Box::new)
    }

    fn list(&mut self, operator: &'static str, value: &Value) -> Result<Vec<Value>, SelectorError> {
        let Value::Array(list) = value else {
            return Err(bad_arg(operator, value));
        };
        self.count(list.len())?;
        Ok(list.clone())
    }

    fn regex(&mut self, value: &Value) -> Result<Regex, SelectorError> {
        let pattern = text("$regex", value)?;
        self.regexes += 1;
        if self.regexes > MAX_REGEXES {
            return Err(SelectorError::TooLarge { what: "it has too many $regex" });
        }
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(SelectorError::TooLarge { what: "a $regex is too long" });
        }
        RegexBuilder::new(pattern)
            .size_limit(REGEX_BYTES)
            .dfa_size_limit(REGEX_BYTES)
            .build()
            .map_err(|_| bad_arg("$regex", value))
    }

    fn count(&mut self, nodes: usize) -> Result<(), SelectorError> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(SelectorError::TooLarge { what: "it has too many conditions" });
        }
        Ok(())
    }
}

fn joined(nodes: Vec<Node>, any: bool) -> Node {
    if any { Node::Or(nodes) } else { Node::And(nodes) }
}

/// The end of a branch. What has an opposite is turned round where it is negated: a planner can use it then. A negated
/// `$exists` is the opposite `$exists`, which alone is true of a missing field.
fn leaf(condition: Condition, place: Place<'_>) -> Node {
    let (condition, negated) = match condition {
        condition if !place.negated => (condition, false),
        Condition::Lt(bound) => (Condition::Gte(bound), false),
        Condition::Lte(bound) => (Condition::Gt(bound), false),
        Condition::Eq(value) => (Condition::Ne(value), false),
        Condition::Ne(value) => (Condition::Eq(value), false),
        Condition::Gte(bound) => (Condition::Lt(bound), false),
        Condition::Gt(bound) => (Condition::Lte(bound), false),
        Condition::In(list) => (Condition::Nin(list), false),
        Condition::Nin(list) => (Condition::In(list), false),
        Condition::Exists(wanted) => (Condition::Exists(!wanted), false),
        other => (other, true),
    };
    Node::Field { path: place.path.to_vec(), condition, negated }
}

/// Splits a path at its dots. A backslash takes the meaning from a dot (or a leading `$`), and is
/// itself dropped.
pub(super) fn split_path(field: &str) -> Result<Vec<String>, SelectorError> {
    let mut names = Vec::new();
    let mut name = String::new();
    let mut escaped = false;
    for letter in field.chars() {
        match letter {
            '.' if !escaped => names.push(std::mem::take(&mut name)),
            '\\' => {}
            other => name.push(other),
        }
        escaped = letter == '\\';
    }
    names.push(name);
    if names.iter().any(String::is_empty) {
        return Err(SelectorError::invalid_field_name(field));
    }
    Ok(names)
}

/// `[divisor, remainder]`; a divisor of 0 has no remainders (CouchDB fails on each document).
fn modulus(value: &Value) -> Option<Condition> {
    let [divisor, remainder] = value.as_array()?.as_slice() else {
        return None;
    };
    let (divisor, remainder) = (divisor.as_i64()?, remainder.as_i64()?);
    (divisor != 0).then_some(Condition::Mod { divisor, remainder })
}

fn text<'a>(operator: &'static str, value: &'a Value) -> Result<&'a str, SelectorError> {
    value.as_str().ok_or_else(|| bad_arg(operator, value))
}

fn bad_arg(operator: &'static str, argument: &Value) -> SelectorError {
    SelectorError::BadArg { operator, argument: shown(argument) }
}

fn shown(value: &Value) -> String {
    value.to_string().chars().take(MAX_SHOWN_CHARS).collect()
}
