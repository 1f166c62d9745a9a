//! What CouchDB hashes to name a revision: the edit as a term in Erlang's external format
//! (<https://www.erlang.org/doc/apps/erts/erl_ext_dist>, as `term_to_binary` writes it with `minor_version` 1).
//!
//! So an edit of a plain database gets the very name that CouchDB gives it: the same edit made on both is one revision
//! when they replicate, and no conflict.

use std::borrow::Cow;

use crate::json::string_end;

/// Tags of the format.
mod tag {
    pub const VERSION: u8 = 131;
    pub const FLOAT: u8 = 70;
    pub const BYTE: u8 = 97;
    pub const INTEGER: u8 = 98;
    pub const ATOM: u8 = 100;
    pub const TUPLE: u8 = 104;
    pub const NIL: u8 = 106;
    /// A list of whole numbers below 256: such a list is always written so.
    pub const BYTES: u8 = 107;
    pub const LIST: u8 = 108;
    pub const BINARY: u8 = 109;
    pub const SMALL_BIG: u8 = 110;
}

/// The longest list that can be written as bytes.
const MAX_BYTES_LIST: usize = u16::MAX as usize;

/// Appends `[Deleted, OldStart, OldRev, Body, Attachments]`. `old`: generation and hash of the edited revision.
/// `body`: a JSON object as minified text; what of it is no JSON ends the term early.
pub(super) fn edit<'a>(
    out: &mut Vec<u8>,
    deleted: bool,
    old: Option<(u64, &[u8])>,
    body: &[u8],
    attachments: &[(&'a str, &'a str, &'a [u8])],
) {
    out.push(tag::VERSION);
    list_head(out, 5);
    atom(out, if deleted { "true" } else { "false" });
    integer(out, i128::from(old.map_or(0, |(start, _)| start)));
    match old {
        Some((_, hash)) => binary(out, hash),
        None => integer(out, 0),
    }
    json(out, body);
    // CouchDB gathers them from the front, so they come out last first.
    if attachments.is_empty() {
        out.push(tag::NIL);
    } else {
        list_head(out, attachments.len());
        for (name, content_type, digest) in attachments.iter().rev() {
            out.extend_from_slice(&[tag::TUPLE, 3]);
            binary(out, name.as_bytes());
            binary(out, content_type.as_bytes());
            binary(out, digest);
        }
        out.push(tag::NIL);
    }
    out.push(tag::NIL);
}

/// A list or an object that is being written.
struct Open {
    is_object: bool,
    /// Where its head is.
    at: usize,
    items: u32,
    /// Its items so far, as long as all are whole numbers below 256.
    bytes: Option<Vec<u8>>,
}

/// Appends JSON text as the term that CouchDB reads from it. Depth costs no stack.
fn json(out: &mut Vec<u8>, text: &[u8]) {
    let mut open: Vec<Open> = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'{' | b'[' => {
                value(&mut open, None);
                let is_object = byte == b'{';
                if is_object {
                    out.extend_from_slice(&[tag::TUPLE, 1]);
                }
                let bytes = (!is_object).then(Vec::new);
                open.push(Open { is_object, at: out.len(), items: 0, bytes });
                list_head(out, 0);
                at += 1;
            }
            b'}' | b']' => {
                let Some(closed) = open.pop() else { return };
                close(out, closed);
                at += 1;
            }
            b'"' => {
                let end = string_end(text, at);
                // A name is followed by a colon.
                if text.get(end) == Some(&b':') {
                    if let Some(object) = open.last_mut() {
                        object.items += 1;
                    }
                    out.extend_from_slice(&[tag::TUPLE, 2]);
                } else {
                    value(&mut open, None);
                }
                string(out, &text[at..end]);
                at = end;
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => at += 1,
            _ => {
                let rest = &text[at..];
                let length = rest.iter().position(|byte| b",:]} \t\r\n".contains(byte)).unwrap_or(rest.len());
                let small = scalar(out, &rest[..length.max(1)]);
                value(&mut open, small);
                at += length.max(1);
            }
        }
    }
}

/// Counts a value, if it is an item of an array; `byte`: it is such a number. A member of an object was counted with
/// its name.
fn value(open: &mut [Open], byte: Option<u8>) {
    let Some(array) = open.last_mut().filter(|open| !open.is_object) else { return };
    array.items += 1;
    match (byte, &mut array.bytes) {
        (Some(byte), Some(bytes)) if bytes.len() < MAX_BYTES_LIST => bytes.push(byte),
        (_, bytes) => *bytes = None,
    }
}

/// Ends a list: now it is known how long it is.
fn close(out: &mut Vec<u8>, closed: Open) {
    match closed.bytes {
        _ if closed.items == 0 => {
            out.truncate(closed.at);
            out.push(tag::NIL);
        }
        Some(bytes) => {
            out.truncate(closed.at);
            out.push(tag::BYTES);
            out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
            out.extend_from_slice(&bytes);
        }
        None => {
            out[closed.at + 1..closed.at + 5].copy_from_slice(&closed.items.to_be_bytes());
            out.push(tag::NIL);
        }
    }
}

/// `true`, `false`, `null` or a number; gives a whole number below 256.
fn scalar(out: &mut Vec<u8>, text: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(text).unwrap_or_default();
    if matches!(text, "true" | "false" | "null") {
        atom(out, text);
        return None;
    }
    if text.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
        out.push(tag::FLOAT);
        out.extend_from_slice(&text.parse::<f64>().unwrap_or_default().to_be_bytes());
        return None;
    }
    match text.parse::<i128>() {
        Ok(number) => {
            integer(out, number);
            u8::try_from(number).ok()
        }
        Err(_) => {
            big(out, text.starts_with('-'), &little_endian(text.trim_start_matches('-')));
            None
        }
    }
}

fn integer(out: &mut Vec<u8>, number: i128) {
    if let Ok(byte) = u8::try_from(number) {
        out.extend_from_slice(&[tag::BYTE, byte]);
    } else if let Ok(number) = i32::try_from(number) {
        out.push(tag::INTEGER);
        out.extend_from_slice(&number.to_be_bytes());
    } else {
        let bytes = number.unsigned_abs().to_le_bytes();
        let length = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
        big(out, number < 0, &bytes[..length]);
    }
}

/// At most 255 bytes, 614 digits: JSON numbers beyond 309 digits are not taken.
fn big(out: &mut Vec<u8>, negative: bool, bytes: &[u8]) {
    out.extend_from_slice(&[tag::SMALL_BIG, bytes.len() as u8, u8::from(negative)]);
    out.extend_from_slice(bytes);
}

/// Decimal digits as bytes, lowest first.
fn little_endian(digits: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    for digit in digits.bytes() {
        let mut carry = u32::from(digit.wrapping_sub(b'0'));
        for byte in &mut bytes {
            let sum = u32::from(*byte) * 10 + carry;
            *byte = sum as u8;
            carry = sum >> 8;
        }
        if carry > 0 {
            bytes.push(carry as u8);
        }
    }
    bytes
}

/// A JSON string, with its quotes, as a binary.
fn string(out: &mut Vec<u8>, quoted: &[u8]) {
    let inner = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
    if inner.contains(&b'\\') {
        let text: Cow<'_, str> = serde_json::from_slice::<String>(quoted).map(Cow::Owned).unwrap_or_default();
        return binary(out, text.as_bytes());
    }
    binary(out, inner);
}

fn binary(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(tag::BINARY);
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn atom(out: &mut Vec<u8>, name: &str) {
    out.push(tag::ATOM);
    out.extend_from_slice(&(name.len() as u16).to_be_bytes());
    out.extend_from_slice(name.as_bytes());
}

fn list_head(out: &mut Vec<u8>, items: usize) {
    out.push(tag::LIST);
    out.extend_from_slice(&(items as u32).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::json;

    fn term(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        json(&mut out, text.as_bytes());
        out
    }

    #[test]
    fn values_are_written_as_erlang_writes_them() {
        let cases: [(&str, &[u8]); 14] = [
            ("null", b"d\0\x04null"),
            ("255", &[97, 255]),
            ("256", &[98, 0, 0, 1, 0]),
            ("-1", &[98, 255, 255, 255, 255]),
            ("2147483648", &[110, 4, 0, 0, 0, 0, 128]),
            ("-9223372036854775809", &[110, 8, 1, 1, 0, 0, 0, 0, 0, 0, 128]),
            ("1.0", &[70, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0]),
            ("\"a\\u00e9\"", b"m\0\0\0\x03a\xc3\xa9"),
            ("[]", &[106]),
            ("{}", &[104, 1, 106]),
            ("[1,2]", &[107, 0, 2, 1, 2]),
            ("[1,300]", &[108, 0, 0, 0, 2, 97, 1, 98, 0, 0, 1, 44, 106]),
            ("[[1],{}]", &[108, 0, 0, 0, 2, 107, 0, 1, 1, 104, 1, 106, 106]),
            ("{\"a\":[],\"b\":\"\"}", b"h\x01l\0\0\0\x02h\x02m\0\0\0\x01ajh\x02m\0\0\0\x01bm\0\0\0\0j"),
        ];
        for (text, expected) in cases {
            assert_eq!(term(text), expected, "{text}");
        }
        // Beyond what a register holds: 2^200.
        let mut expected = vec![110, 26, 0];
        expected.extend([0; 25]);
        expected.push(1);
        assert_eq!(term("1606938044258990275541962092341162602522202993782792835301376"), expected);
    }

    #[test]
    fn depth_and_broken_text_are_no_danger() {
        term(&format!("{}{}", "[".repeat(200_000), "]".repeat(200_000)));
        for text in ["", "{", "]", "\"", "{\"a\"", "[1,", "-", "{\"a\":}", "\u{fffd}", "\"\\"] {
            term(text);
        }
    }
}
