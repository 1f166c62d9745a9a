//! The order of JSON values: CouchDB's collation (docs, "Views Collation").
//!
//! `null < false < true < numbers < strings < arrays < objects`. Numbers compare by value, whatever
//! their notation. Strings compare by the Unicode collation algorithm with the root's order, where
//! `a < A < b`; strings that differ only in what that ignores (control characters, the form of an
//! accent) are equal. Arrays compare element by element, objects member by member in the order in
//! which they were written, the name before the value; of two that agree so far, the shorter comes
//! first.
//!
//! [`sort_key`] gives bytes that compare in the same way. They are for indexes on disk, which have to be made
//! anew when the order changes with a new version of Unicode's data: [`fingerprint`] tells.

use std::cmp::Ordering;
use std::sync::OnceLock;

use icu_collator::options::CollatorOptions;
use icu_collator::{Collator, CollatorBorrowed, CollatorPreferences};
use serde_json::{Number, Value};
use sha2::{Digest, Sha256};

/// What a sort key begins with, by type, in the order of the types. None is [`END`].
mod tag {
    pub const NULL: u8 = 1;
    pub const FALSE: u8 = 2;
    pub const TRUE: u8 = 3;
    pub const NUMBER: u8 = 4;
    pub const STRING: u8 = 5;
    pub const ARRAY: u8 = 6;
    pub const OBJECT: u8 = 7;
}

/// The same for raw collation.
mod raw_tag {
    pub const NUMBER: u8 = 17;
    pub const FALSE: u8 = 18;
    pub const NULL: u8 = 19;
    pub const TRUE: u8 = 20;
    pub const OBJECT: u8 = 21;
    pub const ARRAY: u8 = 22;
    pub const STRING: u8 = 23;
}

/// Ends a string, an array or an object within a sort key: below all that could follow otherwise.
const END: u8 = 0;

/// A number in a sort key, without its tag: the highest float that is not above it, and what is missing.
const NUMBER_BYTES: usize = 8 + 2;

/// Compares two values by collation. A total order: every value equals itself, and none is
/// unordered. It goes as deep as both values agree.
pub fn compare(left: &Value, right: &Value) -> Ordering {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => compare_numbers(left, right),
        (Value::String(left), Value::String(right)) => compare_strings(left, right),
        (Value::Array(left), Value::Array(right)) => {
            let differing = left.iter().zip(right).map(|(left, right)| compare(left, right));
            first_difference(differing).then(left.len().cmp(&right.len()))
        }
        (Value::Object(left), Value::Object(right)) => {
            let differing = left
                .iter()
                .zip(right)
                .map(|(left, right)| compare_strings(left.0, right.0).then_with(|| compare(left.1, right.1)));
            first_difference(differing).then(left.len().cmp(&right.len()))
        }
        _ => rank(left).cmp(&rank(right)),
    }
}

/// Compares two strings by collation.
pub fn compare_strings(left: &str, right: &str) -> Ordering {
    // Equal ones are the most frequent in selectors, and need no look at Unicode's tables.
    if left == right {
        return Ordering::Equal;
    }
    if left.is_ascii() && right.is_ascii() {
        return collator().compare(left, right);
    }
    // By way of the keys, as indexes order them: with rows of combining marks that aren't in their normal order the
    // collator's comparison breaks an assertion of its own (icu_collator 2.4), where the keys don't.
    let key = |text| {
        let mut key = Vec::new();
        write_string(text, &mut key);
        key
    };
    key(left).cmp(&key(right))
}

/// Bytes that compare as [`compare`] compares the values; equal for values that are equal by it. None is the
/// beginning of another.
pub fn sort_key(value: &Value) -> Vec<u8> {
    let mut key = Vec::new();
    write_sort_key(value, &mut key);
    key
}

/// Appends a value's sort key.
pub fn write_sort_key(value: &Value, key: &mut Vec<u8>) {
    match value {
        Value::Null => key.push(tag::NULL),
        Value::Bool(false) => key.push(tag::FALSE),
        Value::Bool(true) => key.push(tag::TRUE),
        Value::Number(number) => {
            key.push(tag::NUMBER);
            key.extend_from_slice(&number_key(number));
        }
        Value::String(text) => write_string(text, key),
        Value::Array(elements) => {
            key.push(tag::ARRAY);
            elements.iter().for_each(|element| write_sort_key(element, key));
            key.push(END);
        }
        Value::Object(members) => {
            key.push(tag::OBJECT);
            for (name, value) in members {
                write_string(name, key);
                write_sort_key(value, key);
            }
            key.push(END);
        }
    }
}

/// As [`sort_key`], for views that ask for raw collation: `numbers < false < null < true < objects < arrays < strings`,
/// strings by their bytes (<https://docs.couchdb.org/en/stable/ddocs/views/collation.html#raw-collation>).
pub fn raw_sort_key(value: &Value) -> Vec<u8> {
    let mut key = Vec::new();
    write_raw_sort_key(value, &mut key);
    key
}

fn write_raw_sort_key(value: &Value, key: &mut Vec<u8>) {
    match value {
        Value::Null => key.push(raw_tag::NULL),
        Value::Bool(false) => key.push(raw_tag::FALSE),
        Value::Bool(true) => key.push(raw_tag::TRUE),
        Value::Number(number) => {
            key.push(raw_tag::NUMBER);
            key.extend_from_slice(&number_key(number));
        }
        Value::String(text) => write_raw_string(text, key),
        Value::Array(elements) => {
            key.push(raw_tag::ARRAY);
            elements.iter().for_each(|element| write_raw_sort_key(element, key));
            key.push(END);
        }
        Value::Object(members) => {
            key.push(raw_tag::OBJECT);
            for (name, value) in members {
                write_raw_string(name, key);
                write_raw_sort_key(value, key);
            }
            key.push(END);
        }
    }
}

/// The two lowest bytes become pairs that begin with the second of them, so that what ends a string is below all of it.
fn write_raw_string(text: &str, key: &mut Vec<u8>) {
    key.push(raw_tag::STRING);
    for byte in text.bytes() {
        match byte {
            0 | 1 => key.extend_from_slice(&[1, byte + 1]),
            other => key.push(other),
        }
    }
    key.push(END);
}

/// Of an array's sort key the bytes of its first `elements` elements, with what they begin with: all arrays that
/// begin with equal elements begin with them, and nothing else does. `None`: it is no array, or not that long.
pub fn array_prefix(key: &[u8], elements: usize) -> Option<&[u8]> {
    let mut at = 1;
    if !matches!(*key.first()?, tag::ARRAY | raw_tag::ARRAY) {
        return None;
    }
    for _ in 0..elements {
        if *key.get(at)? == END {
            return None;
        }
        at = end_of(key, at)?;
    }
    key.get(..at)
}

/// Where the value that begins at `at` ends. Counts what is open instead of descending: keys are read from disk.
fn end_of(key: &[u8], mut at: usize) -> Option<usize> {
    let mut open = 0usize;
    loop {
        let tag = *key.get(at)?;
        at += 1;
        match tag {
            tag::NULL | tag::FALSE | tag::TRUE | raw_tag::NULL | raw_tag::FALSE | raw_tag::TRUE => {}
            tag::NUMBER | raw_tag::NUMBER => at += NUMBER_BYTES,
            tag::STRING | raw_tag::STRING => at += memchr::memchr(END, key.get(at..)?)? + 1,
            tag::ARRAY | tag::OBJECT | raw_tag::ARRAY | raw_tag::OBJECT => open += 1,
            END => open = open.checked_sub(1)?,
            _ => return None,
        }
        if open == 0 {
            return Some(at);
        }
    }
}

/// Names the order of strings. Indexes whose sort keys were made under another one are worth nothing.
pub fn fingerprint() -> [u8; 16] {
    static PRINT: OnceLock<[u8; 16]> = OnceLock::new();
    *PRINT.get_or_init(|| {
        // Enough of all scripts that a new table of weights shows: adding one letter shifts those above it.
        const STEP: usize = 23;
        let mut hash = Sha256::new();
        let mut key = Vec::new();
        for letter in ('\u{0}'..='\u{2ffff}').step_by(STEP) {
            key.clear();
            write_string(letter.encode_utf8(&mut [0; 4]), &mut key);
            hash.update(&key);
        }
        let mut print = [0; 16];
        print.copy_from_slice(&hash.finalize()[..16]);
        print
    })
}

fn collator() -> &'static CollatorBorrowed<'static> {
    static ROOT: OnceLock<CollatorBorrowed<'static>> = OnceLock::new();
    ROOT.get_or_init(|| {
        Collator::try_new(CollatorPreferences::default(), CollatorOptions::default())
            .expect("the root's collation is compiled in")
    })
}

fn write_string(text: &str, key: &mut Vec<u8>) {
    key.push(tag::STRING);
    let Ok(()) = collator().write_sort_key_to(text, key);
    key.push(END);
}

fn number_key(number: &Number) -> [u8; NUMBER_BYTES] {
    let (base, rest) = match integer(number) {
        Some(integer) => {
            let nearest = integer as f64;
            let base = if nearest as i128 > integer { nearest.next_down() } else { nearest };
            // Floats next to each other are at most 2^11 apart where 64-bit integers end.
            (base, (integer - base as i128) as u16)
        }
        None => (float(number), 0),
    };
    // Zero has no sign here.
    let bits = if base == 0.0 { 0 } else { base.to_bits() };
    let ordered = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
    let mut key = [0; NUMBER_BYTES];
    key[..8].copy_from_slice(&ordered.to_be_bytes());
    key[8..].copy_from_slice(&rest.to_be_bytes());
    key
}

/// The place of a value's type; `false` and `true` are types of their own here.
fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(false) => 1,
        Value::Bool(true) => 2,
        Value::Number(_) => 3,
        Value::String(_) => 4,
        Value::Array(_) => 5,
        Value::Object(_) => 6,
    }
}

fn first_difference(mut orders: impl Iterator<Item = Ordering>) -> Ordering {
    orders.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

fn compare_numbers(left: &Number, right: &Number) -> Ordering {
    match (integer(left), integer(right)) {
        (Some(left), Some(right)) => left.cmp(&right),
        (Some(left), None) => compare_mixed(left, float(right)),
        (None, Some(right)) => compare_mixed(right, float(left)).reverse(),
        (None, None) => float(left).partial_cmp(&float(right)).unwrap_or(Ordering::Equal),
    }
}

fn integer(number: &Number) -> Option<i128> {
    number.as_i128()
}

/// JSON has no NaN, so this is a number.
fn float(number: &Number) -> f64 {
    number.as_f64().unwrap_or(0.0)
}

/// Exact also where an integer has no float of its own (above 2^53): a float's whole part fits an
/// `i128` or lies far beyond every JSON integer, to which the conversion saturates.
fn compare_mixed(integer: i128, float: f64) -> Ordering {
    let whole = float.trunc() as i128;
    integer.cmp(&whole).then_with(|| 0.0_f64.partial_cmp(&float.fract()).unwrap_or(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use serde_json::{Value, json};

    use super::{array_prefix, compare, fingerprint, raw_sort_key, sort_key};
    use proptest::prelude::*;

    #[test]
    fn raw_keys_follow_the_documented_order() {
        let sorted = [
            json!(-1),
            json!(1),
            json!(1.5),
            json!(10),
            json!(false),
            json!(null),
            json!(true),
            json!({}),
            json!({"a": 1}),
            json!({"a": 2}),
            json!({"b": 1}),
            json!([]),
            json!(["a"]),
            json!(["b"]),
            json!(["b", "c"]),
            json!(["b", "d"]),
            json!(""),
            json!("\u{0}"),
            json!("\u{0}a"),
            json!("\u{1}"),
            json!("A"),
            json!("B"),
            json!("a"),
            json!("aa"),
            json!("b"),
            json!("ä"),
        ];
        let keys: Vec<Vec<u8>> = sorted.iter().map(raw_sort_key).collect();
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
        let pair = raw_sort_key(&json!(["b\u{0}", {"a": [1, null]}, true]));
        for (elements, value) in [(1, json!(["b\u{0}"])), (2, json!(["b\u{0}", {"a": [1, null]}]))] {
            let whole = raw_sort_key(&value);
            assert_eq!(array_prefix(&pair, elements), Some(&whole[..whole.len() - 1]));
        }
        assert_eq!(array_prefix(&pair, 4), None);
    }

    #[test]
    fn types_and_values_follow_the_documented_order() {
        let sorted = [
            json!(null),
            json!(false),
            json!(true),
            json!(-1e300),
            json!(i64::MIN),
            json!(-1.5),
            json!(-1),
            json!(0),
            json!(0.5),
            json!(1),
            json!(1.5),
            json!(9_007_199_254_740_992_u64),
            json!(9_007_199_254_740_993_u64),
            json!(u64::MAX),
            json!(1e300),
            json!(""),
            json!("_"),
            json!("1"),
            json!("a"),
            json!("A"),
            json!("\u{e1}"),
            json!("aa"),
            json!("aA"),
            json!("Aa"),
            json!("b"),
            json!("B"),
            json!("ba"),
            json!("\u{3b1}"),
            json!("\u{4e00}"),
            json!("\u{fff0}"),
            json!([]),
            json!(["a"]),
            json!(["a", null]),
            json!(["b"]),
            json!([[]]),
            json!({}),
            json!({"a": 1}),
            json!({"a": 1, "b": 1}),
            json!({"a": 2}),
            json!({"b": 1}),
            json!({"b": 1, "a": 1}),
        ];
        for (at, left) in sorted.iter().enumerate() {
            for (other, right) in sorted.iter().enumerate() {
                assert_eq!(compare(left, right), at.cmp(&other), "{left} and {right}");
                assert_eq!(sort_key(left).cmp(&sort_key(right)), at.cmp(&other), "keys of {left} and {right}");
            }
        }
    }

    #[test]
    fn numbers_are_equal_whatever_their_notation() {
        let one: Value = serde_json::from_str("1.0").unwrap();
        let zero: Value = serde_json::from_str("-0.0").unwrap();
        assert_eq!(compare(&one, &json!(1)), Ordering::Equal);
        assert_eq!(compare(&json!(1), &one), Ordering::Equal);
        assert_eq!(compare(&zero, &json!(0)), Ordering::Equal);
        assert_eq!(compare(&json!(9_007_199_254_740_993_u64), &json!(9_007_199_254_740_992.0)), Ordering::Greater);
    }

    #[test]
    fn what_collation_ignores_makes_no_difference() {
        for (left, right) in [("a", "a\u{0}"), ("\u{e1}", "a\u{301}"), ("", "\u{1}")] {
            assert_eq!(compare(&json!(left), &json!(right)), Ordering::Equal);
            assert_eq!(sort_key(&json!(left)), sort_key(&json!(right)));
        }
    }

    #[test]
    fn a_prefix_of_an_array_is_that_of_its_elements() {
        let key = sort_key(&json!(["a", [1, {"b": []}], null]));
        assert_eq!(array_prefix(&key, 0), Some(&sort_key(&json!([]))[..1]));
        let two = sort_key(&json!(["a", [1, {"b": []}]]));
        assert_eq!(array_prefix(&key, 2), Some(&two[..two.len() - 1]));
        assert_eq!(array_prefix(&key, 3), Some(&key[..key.len() - 1]));
        assert_eq!(array_prefix(&key, 4), None);
        assert_eq!(array_prefix(&sort_key(&json!("a")), 0), None);
        assert_eq!(array_prefix(&key[..5], 3), None);
    }

    #[test]
    fn the_order_has_a_name() {
        assert_eq!(fingerprint(), fingerprint());
        assert_ne!(fingerprint(), [0; 16]);
    }

    fn values() -> impl Strategy<Value = Value> {
        let texts = prop_oneof![
            "[ -~]{0,4}",
            "\\PC{0,4}",
            proptest::collection::vec(any::<char>(), 0..4).prop_map(|letters| letters.into_iter().collect::<String>())
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-3i64..3).prop_map(Value::from),
            (-3i64..3).prop_map(|n| Value::from(n as f64)),
            (-40i64..40).prop_map(|n| Value::from((1u64 << 53) as i64 + n)),
            (-40i64..40).prop_map(|n| Value::from(((1u64 << 53) as i64 + n) as f64)),
            any::<f64>().prop_map(|n| if n.is_finite() { Value::from(n) } else { Value::Null }),
            texts.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 3, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::vec((texts.clone(), inner), 0..3)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn sort_keys_compare_as_the_values_do(left in values(), right in values()) {
            let (left_key, right_key) = (sort_key(&left), sort_key(&right));
            prop_assert_eq!(left_key.cmp(&right_key), compare(&left, &right));
            prop_assert!(left_key == right_key || !left_key.starts_with(&right_key));
            prop_assert_eq!(super::end_of(&left_key, 0), Some(left_key.len()));
        }
    }
}
