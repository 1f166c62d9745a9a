//! JSON as text: checked and passed on, never built up as values.
//!
//! A document's numbers and member order survive because nothing here interprets them. Nothing here
//! recurses either, so depth costs a byte a level and not stack.

use std::borrow::Cow;
use std::fmt;

use memchr::{memchr, memchr2};
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

/// One member of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name, without escapes.
    pub key: Cow<'a, str>,
    /// Its value's text as it stands, without white space around it.
    pub value: &'a str,
}

/// Why a text is not the JSON that it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct JsonError {
    /// What is wrong, and where. Holds nothing of the text.
    pub message: String,
}

impl From<serde_json::Error> for JsonError {
    fn from(error: serde_json::Error) -> JsonError {
        JsonError { message: error.to_string() }
    }
}

/// The members of a JSON object, in the order of their first appearance. Of a member given twice, the last
/// value counts, as in JavaScript. The whole text is checked, nested values too.
///
/// # Errors
/// [`JsonError`] if the text is not one JSON object.
pub fn scan_object(text: &str) -> Result<Vec<Entry<'_>>, JsonError> {
    let Members(mut entries) = serde_json::from_str(text)?;
    drop_duplicates(&mut entries);
    Ok(entries)
}

/// Whether the text is one JSON value, of whatever kind.
pub fn is_valid(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

/// Appends a JSON text without the white space between its tokens. For valid JSON; of other text, some.
pub fn minify(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    let mut copied = 0;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = string_end(bytes, at),
            b' ' | b'\t' | b'\n' | b'\r' => {
                out.extend_from_slice(&bytes[copied..at]);
                at += 1;
                copied = at;
            }
            _ => at += 1,
        }
    }
    out.extend_from_slice(&bytes[copied..]);
}

/// Whether a JSON text has a `\uD800`..`\uDFFF` escape that is not half of a pair. There is no UTF-8 for
/// such a string, and most readers refuse it; better the writer learns of it.
pub fn has_lone_surrogate(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(found) = memchr(b'\\', &bytes[at.min(bytes.len())..]) {
        at += found;
        at += match escaped_unit(bytes, at) {
            Some(0xDC00..=0xDFFF) => return true,
            Some(0xD800..=0xDBFF) => match escaped_unit(bytes, at + 6) {
                Some(0xDC00..=0xDFFF) => 12,
                _ => return true,
            },
            Some(_) => 6,
            None => 2,
        };
    }
    false
}

/// Whether a JSON text has a number that no double is near, such as `1e999`: most readers refuse the whole text then.
pub fn has_huge_number(text: &str) -> bool {
    /// The largest double has 309 digits.
    const SAFE_DIGITS: usize = 300;
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = string_end(bytes, at),
            b'0'..=b'9' => {
                let start = at;
                while matches!(bytes.get(at), Some(b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-')) {
                    at += 1;
                }
                let number = &text[start..at];
                let may_be_huge = number.len() > SAFE_DIGITS || number.bytes().any(|byte| matches!(byte, b'e' | b'E'));
                if may_be_huge && number.parse().is_ok_and(f64::is_infinite) {
                    return true;
                }
            }
            _ => at += 1,
        }
    }
    false
}

/// Appends a string as JSON, in quotes.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut copied = 0;
    for (at, byte) in text.bytes().enumerate() {
        if !matches!(byte, b'"' | b'\\' | 0..0x20) {
            continue;
        }
        out.extend_from_slice(&text.as_bytes()[copied..at]);
        copied = at + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            // The short escapes that JavaScript writes too.
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
            }
        }
    }
    out.extend_from_slice(&text.as_bytes()[copied..]);
    out.push(b'"');
}

/// Where the string that starts at `start` is over.
pub(crate) fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if bytes[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}

/// The UTF-16 unit that a `\uXXXX` at `at` stands for.
fn escaped_unit(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Keeps of equal keys the first place and the last value.
fn drop_duplicates(entries: &mut Vec<Entry<'_>>) {
    // Sorting, as comparing all with all would be a way to keep us busy.
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by(|&a, &b| entries[a].key.cmp(&entries[b].key).then(a.cmp(&b)));
    let mut extra = vec![false; entries.len()];
    let mut first = None;
    for pair in order.windows(2) {
        if entries[pair[0]].key != entries[pair[1]].key {
            first = None;
            continue;
        }
        let first = *first.get_or_insert(pair[0]);
        entries[first].value = entries[pair[1]].value;
        extra[pair[1]] = true;
    }
    let mut extra = extra.into_iter();
    entries.retain(|_| !extra.next().unwrap_or(false));
}

/// An object's members as they come.
struct Members<'a>(Vec<Entry<'a>>);

/// A name that is copied only if it has escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
                    let value = value.get();
                    entries.push(Entry { key, value });
                }
                Ok(Members(entries))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::{has_lone_surrogate, is_valid, minify, push_string, scan_object};
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use serde_json::Value;

    fn scanned(text: &str) -> Vec<(String, String)> {
        let entries = scan_object(text).unwrap();
        let pairs = entries.into_iter();
        pairs.map(|entry| (entry.key.into_owned(), entry.value.to_owned())).collect()
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn members_come_in_order_and_as_text() {
        assert_eq!(scanned(" { } "), []);
        assert_eq!(
            scanned(r#"{"z": 9007199254740993 , "\u0061" : [1, {"x" :2}],"n":-1.0e-7}"#),
            [pair("z", "9007199254740993"), pair("a", r#"[1, {"x" :2}]"#), pair("n", "-1.0e-7")]
        );
    }

    #[test]
    fn the_last_of_equal_members_counts() {
        assert_eq!(
            scanned(r#"{"a":1,"b":2,"a":3,"c":4,"\u0061":5,"c":6}"#),
            [pair("a", "5"), pair("b", "2"), pair("c", "6")]
        );
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in [
            "",
            "[]",
            "\"x\"",
            "1",
            "null",
            "{",
            "{\"a\":",
            "{a:1}",
            "{'a':1}",
            "{\"a\":1}}",
            "{\"a\":1,}",
            "{\"a\":01}",
            "{\"a\":.5}",
            "{\"a\":NaN}",
            "{\"a\":tru}",
            "{\"a\":\"\n\"}",
            "{\"a\":1} x",
            "\"",
            "\0",
            "{\"a\":\"\\x\"}",
            "{\"a\":[1}",
            "{\"a\":\"\\u12g4\"}",
            "\u{feff}{}",
        ] {
            assert!(scan_object(text).is_err(), "{text:?}");
        }
        assert!(is_valid("[1]") && !is_valid("[1"));
    }

    #[test]
    fn depth_is_no_danger() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let inner = if open == "[" { "" } else { "1" };
            let deep = format!("{}{inner}{}", open.repeat(100_000), close.repeat(100_000));
            let text = format!("{{\"v\":{deep}}}");
            assert_eq!(scanned(&text), [pair("v", &deep)]);
            let mut out = Vec::new();
            minify(&text, &mut out);
            assert_eq!(out, text.as_bytes());
            assert!(scan_object(&format!("{{\"v\":{}}}", open.repeat(100_000))).is_err());
        }
    }

    #[test]
    fn many_equal_members_are_cheap() {
        let text = format!("{{{}\"a\":2}}", "\"a\":1,".repeat(300_000));
        assert_eq!(scanned(&text), [pair("a", "2")]);
    }

    #[test]
    fn white_space_goes_but_not_from_strings() {
        let mut out = b"x".to_vec();
        minify(" {\"a b\" :\t[1 , \"c \\\" d\\\\\" ]\r\n}", &mut out);
        assert_eq!(out, b"x{\"a b\":[1,\"c \\\" d\\\\\"]}");
    }

    #[test]
    fn numbers_beyond_all_doubles_are_found() {
        let digits = "9".repeat(400);
        for text in ["1e999", "[1,-1E+309]", "{\"a\":{\"b\":1.5e400}}", &digits, &format!("[\"\",{digits}.5]")] {
            assert!(super::has_huge_number(text), "{text}");
            assert!(serde_json::from_str::<Value>(text).is_err(), "{text}");
        }
        let zeros = format!("0.{}1", "0".repeat(400));
        for text in ["1e308", "0e999", "1e-999", "\"1e999\"", "{\"1e999\":1}", &zeros, "[1,2.5,-3e5]"] {
            assert!(!super::has_huge_number(text), "{text}");
            assert!(serde_json::from_str::<Value>(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn lone_surrogates_are_found() {
        for text in [r#""\ud800""#, r#""\udc00""#, r#""\ud83dx\ude00""#, r#""\ud83d\ud83d\ude00""#, r#""\\\uD800"#] {
            assert!(has_lone_surrogate(text), "{text}");
        }
        for text in [r#""\ud83d\ude00\u00e9\u0000""#, r#""\\ud800""#, r#""d800\n""#, "\\", "\\u12"] {
            assert!(!has_lone_surrogate(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn strings_come_back(text in any::<String>()) {
            let mut out = Vec::new();
            push_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }

        #[test]
        fn nothing_panics(text in any::<String>(), json in "[\\[\\]{}\",:\\\\u d8cf1-]{0,40}") {
            for text in [&text, &json] {
                minify(text, &mut Vec::new());
                has_lone_surrogate(text);
                let valid = serde_json::from_str::<Value>(text);
                prop_assert_eq!(scan_object(text).is_ok(), valid.is_ok_and(|value| value.is_object()));
            }
        }

        #[test]
        fn minifying_changes_no_meaning(text in "([ \\t\\n]|\"[ a\\\\]?\"){0,8}", spaces in "[ \\n\\t\\r]{0,3}") {
            let value = serde_json::json!({ "a b": [&text, { "k\\": null, " ": 1.5 }], "\"": &spaces });
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let mut out = Vec::new();
            minify(&format!("{spaces}{pretty}{spaces}"), &mut out);
            prop_assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }
}
