//! JSON text out of JavaScript values.

use rquickjs::{Ctx, Value};

/// The JSON text of a value; `None` for what has none (`undefined`, functions, symbols).
pub(crate) fn json_text<'js>(ctx: &Ctx<'js>, value: &Value<'js>) -> rquickjs::Result<Option<String>> {
    match ctx.json_stringify(value.clone())? {
        Some(text) => Ok(Some(mend_surrogates(text.to_string()?))),
        None => Ok(None),
    }
}

/// Puts U+FFFD for halves of surrogate pairs: JavaScript writes pairs as they are and escapes only halves, which no
/// JSON reader outside takes.
pub(crate) fn mend_surrogates(text: String) -> String {
    if !text.contains("\\ud") {
        return text;
    }
    let mut mended = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        mended.push_str(before);
        let bytes = escape.as_bytes();
        let half = bytes.len() >= 6 && bytes[1..3] == *b"ud" && matches!(bytes[3], b'8'..=b'9' | b'a'..=b'f');
        let taken = if half { 6 } else { 2 };
        mended.push_str(if half { "\\ufffd" } else { &escape[..taken] });
        rest = &escape[taken..];
    }
    mended.push_str(rest);
    mended
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::any, prop_assert_eq, prop_oneof, proptest};

    use super::mend_surrogates;

    #[test]
    fn halves_of_pairs_are_mended_and_nothing_else() {
        let mend = |text: &str| mend_surrogates(text.to_owned());
        assert_eq!(mend(r#""a\ud83db""#), r#""a\ufffdb""#);
        assert_eq!(mend(r#""\udead\udbff""#), r#""\ufffd\ufffd""#);
        assert_eq!(mend(r#""\\ud83d \ud7ff \n""#), r#""\\ud83d \ud7ff \n""#);
        assert_eq!(mend(r#""é😀 \\""#), r#""é😀 \\""#);
    }

    /// What the engine writes for a text of UTF-16 units: halves escaped, the rest as serde_json does.
    fn as_written(units: &[u16]) -> String {
        let parts = char::decode_utf16(units.iter().copied()).map(|part| match part {
            Ok(char) => serde_json::to_string(&char).unwrap().trim_matches('"').to_owned(),
            Err(half) => format!("\\u{:x}", half.unpaired_surrogate()),
        });
        // A lone quote loses all its marks above.
        let text: Vec<_> = parts.map(|part| if part == "\\" { "\\\"".to_owned() } else { part }).collect();
        format!("\"{}\"", text.concat())
    }

    proptest! {
        #[test]
        fn whatever_the_engine_writes_can_be_read(units in vec(prop_oneof![any::<u16>(), 0xd800_u16..0xe000, 0x20_u16..0x7f, 0x5c_u16..0x5d], 0..40)) {
            let read: String = serde_json::from_str(&mend_surrogates(as_written(&units))).unwrap();
            prop_assert_eq!(read, String::from_utf16_lossy(&units));
        }
    }
}
