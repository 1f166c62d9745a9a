//! The stretch of an index that can hold what a selector matches.

use std::cmp::Ordering;

use rean_store::selector::{Order, order_of};
use serde_json::Value;

use super::conditions::Condition;

/// Follows all that begins like it: U+FFFF has the highest weight of the root collation (UTS #35, part 5). Only a text
/// with this non-character itself would lie behind.
const AFTER_ALL: char = '\u{ffff}';

/// What stands for "all that follow" in `_explain`.
const MAX: &str = "<MAX>";

/// One field's values between two ends.
#[derive(Debug, Clone)]
pub(super) struct FieldRange {
    low: Option<End>,
    high: Option<End>,
    compare: Order,
}

/// One end, and whether it belongs to the range.
#[derive(Debug, Clone, PartialEq)]
struct End {
    value: Value,
    inclusive: bool,
}

/// From one key to another, both in the order of the index. A key is a list of values; all keys that begin with the
/// upper one are in the range.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KeyRange {
    /// The values with which the lowest key begins; empty: no lower end.
    pub start: Vec<Value>,
    /// The values with which the highest keys begin; empty: no upper end.
    pub end: Vec<Value>,
}

impl KeyRange {
    /// `start_key` as `_explain` shows it.
    pub fn start_key(&self) -> Value {
        self.start.iter().cloned().collect()
    }

    /// `end_key` as `_explain` shows it.
    pub fn end_key(&self) -> Value {
        self.end.iter().cloned().chain([Value::from(MAX)]).collect()
    }

    /// The range of an index from those of its first fields.
    pub(super) fn of(fields: &[&FieldRange]) -> KeyRange {
        let ends = |end: fn(&FieldRange) -> &Option<End>| -> Vec<Value> {
            fields.iter().map_while(|range| end(range).as_ref().map(|end| end.value.clone())).collect()
        };
        KeyRange { start: ends(|range| &range.low), end: ends(|range| &range.high) }
    }
}

impl FieldRange {
    /// What the conditions on a field leave of it, in the order in which selectors compare it; `None`: nothing.
    pub fn of(conditions: &[Condition<'_>], field: &str) -> Option<FieldRange> {
        let mut range = FieldRange { low: None, high: None, compare: order_of(field) };
        for (_, operator, argument) in conditions.iter().filter(|(name, ..)| *name == field) {
            let value = || (*argument).clone();
            match *operator {
                "$gt" => range.raise(End { value: value(), inclusive: false }),
                "$gte" => range.raise(End { value: value(), inclusive: true }),
                "$lt" => range.lower(End { value: value(), inclusive: false }),
                "$lte" => range.lower(End { value: value(), inclusive: true }),
                "$eq" => {
                    range.raise(End { value: value(), inclusive: true });
                    range.lower(End { value: value(), inclusive: true });
                }
                "$beginsWith" if is_plain_prefix(argument) => {
                    let start = argument.as_str().unwrap_or_default();
                    range.raise(End { value: value(), inclusive: true });
                    // In the order of bytes there is no such letter.
                    if field != "_id" {
                        range.lower(End { value: Value::from(format!("{start}{AFTER_ALL}")), inclusive: true });
                    }
                }
                _ => {}
            }
        }
        (!range.is_empty()).then_some(range)
    }

    /// The one value that is left.
    pub fn is_one_value(&self) -> bool {
        matches!((&self.low, &self.high), (Some(low), Some(high)) if (self.compare)(&low.value, &high.value).is_eq())
    }

    fn raise(&mut self, end: End) {
        let replaces = self.low.as_ref().is_none_or(|low| match (self.compare)(&end.value, &low.value) {
            Ordering::Greater => true,
            Ordering::Equal => !end.inclusive,
            Ordering::Less => false,
        });
        if replaces {
            self.low = Some(end);
        }
    }

    fn lower(&mut self, end: End) {
        let replaces = self.high.as_ref().is_none_or(|high| match (self.compare)(&end.value, &high.value) {
            Ordering::Less => true,
            Ordering::Equal => !end.inclusive,
            Ordering::Greater => false,
        });
        if replaces {
            self.high = Some(end);
        }
    }

    fn is_empty(&self) -> bool {
        let (Some(low), Some(high)) = (&self.low, &self.high) else { return false };
        match (self.compare)(&low.value, &high.value) {
            Ordering::Greater => true,
            Ordering::Equal => !(low.inclusive && high.inclusive),
            Ordering::Less => false,
        }
    }
}

/// Whether what begins with this text lies side by side in the order of the root collation. Where letters of other scripts
/// follow each other, their weights may change places.
pub(super) fn is_plain_prefix(argument: &Value) -> bool {
    argument.as_str().is_some_and(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() || b == b' '))
}

#[cfg(test)]
mod tests {
    use super::{FieldRange, KeyRange};
    use crate::mango::conditions::conjuncts;
    use rean_store::selector::Selector;
    use serde_json::{Value, json};

    fn range(selector: Value) -> Option<KeyRange> {
        let normal = Selector::parse(&selector).unwrap().to_json();
        FieldRange::of(&conjuncts(&normal), "a").map(|range| KeyRange::of(&[&range]))
    }

    #[test]
    fn conditions_narrow_the_range() {
        for (condition, start, end) in [
            (json!({"$gt": 1}), json!([1]), json!(["<MAX>"])),
            (json!({"$gt": 1, "$gte": 2}), json!([2]), json!(["<MAX>"])),
            (json!({"$lt": 5, "$lte": 7}), json!([]), json!([5, "<MAX>"])),
            (json!({"$eq": "x"}), json!(["x"]), json!(["x", "<MAX>"])),
            (json!({"$gte": 1, "$lte": 1}), json!([1]), json!([1, "<MAX>"])),
            (json!({"$gt": null, "$lt": []}), json!([null]), json!([[], "<MAX>"])),
            (json!({"$not": {"$lt": 3}}), json!([3]), json!(["<MAX>"])),
            (json!({"$regex": "x"}), json!([]), json!(["<MAX>"])),
            (json!({"$beginsWith": "Ca"}), json!(["Ca"]), json!(["Ca\u{ffff}", "<MAX>"])),
            (json!({"$beginsWith": "Grü"}), json!([]), json!(["<MAX>"])),
        ] {
            let range = range(json!({"a": condition})).unwrap();
            assert_eq!((range.start_key(), range.end_key()), (start, end), "{condition}");
        }
    }

    #[test]
    fn contradictions_leave_nothing() {
        for condition in [
            json!({"$gt": 2, "$lt": 1}),
            json!({"$gt": 1, "$lte": 1}),
            json!({"$eq": 1, "$gt": 1}),
            json!({"$and": [{"$eq": 1}, {"$eq": 2}]}),
            json!({"$lt": "a", "$gte": "b"}),
        ] {
            assert_eq!(range(json!({"a": condition})), None, "{condition}");
        }
    }
}
