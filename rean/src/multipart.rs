//! Multipart bodies (RFC 2046) as CouchDB uses them: `multipart/related` for a document and the files that
//! follow it, `multipart/mixed` for several documents.
//!
//! Both ways work piece by piece; a file is never in memory as a whole.

mod reader;
mod writer;

pub use reader::{MAX_HEADER_BYTES, MAX_PARTS, Multipart, MultipartError, PartHeaders};
pub use writer::{Attachment, PartWriter, random_boundary};

/// Longest boundary, in bytes. RFC 2046 says 70; some clients' are longer, none's are huge.
pub const MAX_BOUNDARY_BYTES: usize = 200;

/// The boundary that a `Content-Type` of the kind `multipart/...` names, with or without quotes.
///
/// # Errors
/// [`MultipartError::Malformed`] if the type is not multipart, or its boundary is missing, longer than
/// [`MAX_BOUNDARY_BYTES`] or not of printable ASCII.
pub fn boundary_of(content_type: &str) -> Result<String, MultipartError> {
    let is_multipart = content_type.get(..10).is_some_and(|start| start.eq_ignore_ascii_case("multipart/"));
    if !is_multipart {
        return Err(MultipartError::Malformed("the content type is not multipart"));
    }
    let boundary = parameter(content_type, "boundary").unwrap_or_default();
    if boundary.is_empty() || boundary.len() > MAX_BOUNDARY_BYTES {
        return Err(MultipartError::Malformed("the boundary is missing or too long"));
    }
    // A space at the end could not be told from padding.
    if !boundary.bytes().all(|byte| matches!(byte, b' '..=b'~')) || boundary.ends_with(' ') {
        return Err(MultipartError::Malformed("the boundary has characters that none may have"));
    }
    Ok(boundary)
}

/// A parameter of a header value such as `attachment; filename="a.txt"`, without quotes and their escapes.
fn parameter(value: &str, name: &str) -> Option<String> {
    let mut rest = value.split_once(';')?.1;
    loop {
        let (found, after) = rest.split_once('=')?;
        // An item without a value: skip it.
        let found = found.rsplit(';').next().unwrap_or(found).trim();
        let (text, next) = parameter_value(after.trim_start());
        if found.eq_ignore_ascii_case(name) {
            return Some(text);
        }
        rest = next;
    }
}

/// The parameter value at the start of a text, and what comes after the next semicolon.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_once(';').unwrap_or((text, ""));
        return (value.trim().to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => {
                let rest = &quoted[at + 1..];
                return (value, rest.split_once(';').map_or("", |(_, rest)| rest));
            }
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests;
