//! The `Range` header of a read, for one range of bytes (RFC 9110, section 14).

/// Which part of a content of known length to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// All of it, with 200: no range, one of everything, one of another kind, more than one, or one that is malformed.
    /// RFC 9110 lets a server ignore those.
    Whole,
    /// The bytes from `start` up to but not including `end`, with 206; never empty.
    Part {
        /// First byte.
        start: u64,
        /// The byte after the last.
        end: u64,
    },
    /// Nothing: the range lies behind the end, or ends before it begins (CouchDB refuses that too). The answer is 416.
    Unsatisfiable,
}

impl ByteRange {
    /// Reads the header's value, if there is one, for a content of `length` bytes.
    pub fn parse(header: Option<&str>, length: u64) -> ByteRange {
        header.and_then(|value| parse_single(value, length)).unwrap_or(ByteRange::Whole)
    }

    /// The value of `Content-Range`, for the answers that have it.
    pub fn content_range(&self, length: u64) -> Option<String> {
        match self {
            ByteRange::Whole => None,
            ByteRange::Part { start, end } => Some(format!("bytes {start}-{}/{length}", end.saturating_sub(1))),
            ByteRange::Unsatisfiable => Some(format!("bytes */{length}")),
        }
    }
}

/// `None` if the header is to be ignored.
fn parse_single(value: &str, length: u64) -> Option<ByteRange> {
    let (unit, range) = value.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    let (start, end) = match (first.trim(), last.trim()) {
        ("", last) => (length.saturating_sub(number(last)?), length),
        (first, "") => match number(first)? {
            // CouchDB sends all as all.
            0 if length > 0 => return None,
            first => (first, length),
        },
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Some(ByteRange::Unsatisfiable);
            }
            (first, last.saturating_add(1).min(length))
        }
    };
    Some(if start < end { ByteRange::Part { start, end } } else { ByteRange::Unsatisfiable })
}

/// A decimal number; one too high for 64 bits is behind every end, and so is the highest.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::ByteRange;

    #[test]
    fn single_ranges_are_cut_to_the_length() {
        for (header, start, end, text) in [
            ("bytes=2-5", 2, 6, "bytes 2-5/256"),
            ("bytes=250-", 250, 256, "bytes 250-255/256"),
            ("bytes=-3", 253, 256, "bytes 253-255/256"),
            ("bytes=-999", 0, 256, "bytes 0-255/256"),
            ("bytes=250-999", 250, 256, "bytes 250-255/256"),
            ("Bytes = 0 - 0", 0, 1, "bytes 0-0/256"),
            ("bytes=1-99999999999999999999999", 1, 256, "bytes 1-255/256"),
        ] {
            let range = ByteRange::parse(Some(header), 256);
            assert_eq!(range, ByteRange::Part { start, end }, "{header}");
            assert_eq!(range.content_range(256).as_deref(), Some(text));
        }
    }

    #[test]
    fn ranges_behind_the_end_are_unsatisfiable() {
        for header in ["bytes=256-", "bytes=5-2", "bytes=900-999", "bytes=-0", "bytes=99999999999999999999-"] {
            let range = ByteRange::parse(Some(header), 256);
            assert_eq!(range, ByteRange::Unsatisfiable, "{header}");
            assert_eq!(range.content_range(256).as_deref(), Some("bytes */256"));
        }
        assert_eq!(ByteRange::parse(Some("bytes=0-"), 0), ByteRange::Unsatisfiable);
        assert_eq!(ByteRange::parse(Some("bytes=-1"), 0), ByteRange::Unsatisfiable);
    }

    #[test]
    fn other_headers_are_ignored() {
        for header in
            ["", "bytes", "bytes=", "bytes=-", "bytes=0-", "bytes=a-b", "bytes=+1-2", "lines=1-2", "bytes=1-2,4-5"]
        {
            assert_eq!(ByteRange::parse(Some(header), 256), ByteRange::Whole, "{header}");
        }
        assert_eq!(ByteRange::parse(None, 256), ByteRange::Whole);
        assert_eq!(ByteRange::Whole.content_range(256), None);
    }
}
