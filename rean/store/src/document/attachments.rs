//! The `_attachments` member of an incoming document.

use super::error::{self, DocumentError};
use crate::json::{self, Entry};
use crate::outside::{FilePlace, StoredFile};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Most attachments of one document. Each is looked up when the document is written and listed when it is
/// read; CouchDB has no limit, but advises few.
pub const MAX_ATTACHMENTS: usize = 1_000;

/// More of a bad name than this many characters helps nobody.
const MAX_SHOWN_CHARS: usize = 80;

/// One attachment as a client describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncomingAttachment {
    /// Its name; never begins with an underscore.
    pub name: String,
    /// Its media type.
    pub content_type: Option<String>,
    /// The generation in which it was put on.
    pub revpos: Option<u64>,
    /// Its digest in the form `md5-<base64>`; not checked here.
    pub digest: Option<String>,
    /// How it is compressed, if it is.
    pub encoding: Option<String>,
    /// Its length in bytes, as the client says.
    pub length: Option<u64>,
    /// Where its content is.
    pub source: AttachmentSource,
    /// The file that it is, as another pod says. Whoever takes this from a client lets it read any file whose name it
    /// knows.
    pub file: Option<StoredFile>,
}

/// Where an attachment's content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachmentSource {
    /// In the document, as base64 that has not been decoded yet.
    Inline(String),
    /// In the revision before: it is kept as it is.
    Stub,
    /// In a part of a multipart body.
    Follows {
        /// The part's length in bytes: `encoded_length` if it is compressed and that is given, else `length`.
        length: Option<u64>,
    },
}

/// A member `file`: what pods tell one another of a file beyond what the attachment says.
#[derive(Deserialize)]
struct FileMember {
    key: String,
    place: FilePlace,
    sha256: String,
}

/// Reads the value of `_attachments`.
///
/// # Errors
/// [`DocumentError`] for anything but an object of objects with one of `data`, `stub` and `follows` each.
pub(super) fn parse_attachments(value: &str) -> Result<Vec<IncomingAttachment>, DocumentError> {
    let entries = json::scan_object(value).map_err(|_| error::bad_special("_attachments"))?;
    if entries.len() > MAX_ATTACHMENTS {
        let reason = format!("A document has at most {MAX_ATTACHMENTS} attachments");
        return Err(DocumentError::TooLarge(reason));
    }
    entries.into_iter().map(parse_attachment).collect()
}

/// Whether an attachment may have this name.
///
/// # Errors
/// [`DocumentError::BadRequest`] for a name that is empty, begins with an underscore or has a NUL.
pub fn validate_name(name: &str) -> Result<(), DocumentError> {
    if name.starts_with('_') {
        let shown: String = name.chars().take(MAX_SHOWN_CHARS).collect();
        return Err(error::bad_request(&format!("Attachment name '{shown}' starts with prohibited character '_'")));
    }
    if name.is_empty() || name.contains('\0') {
        return Err(error::bad_request("Attachment name must not be empty or contain NUL"));
    }
    if name.len() > super::MAX_ID_BYTES {
        return Err(error::bad_request("Attachment name is too long"));
    }
    Ok(())
}

fn parse_attachment(entry: Entry<'_>) -> Result<IncomingAttachment, DocumentError> {
    let name = entry.key.into_owned();
    validate_name(&name)?;
    let invalid = |what: &str| {
        let name = error::quoted(&name);
        DocumentError::BadRequest(format!("Invalid attachment `{name}`: {what}"))
    };
    let members = json::scan_object(entry.value).map_err(|_| invalid("must be an object"))?;
    let member = |key: &str| members.iter().find(|entry| entry.key == key).map(|entry| entry.value);
    let text = |key: &str| -> Result<Option<String>, DocumentError> {
        let value = member(key).map(serde_json::from_str).transpose();
        value.map_err(|_| invalid(&format!("{key} must be a string")))
    };
    let number = |key: &str| -> Result<Option<u64>, DocumentError> {
        let value = member(key).map(serde_json::from_str).transpose();
        value.map_err(|_| invalid(&format!("{key} must be a number")))
    };
    let flag = |key: &str| match member(key) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(invalid(&format!("{key} must be true or false"))),
    };

    let length = number("length")?;
    let encoded_length = number("encoded_length")?;
    let source = if flag("stub")? {
        AttachmentSource::Stub
    } else if flag("follows")? {
        let length = encoded_length.or(length);
        AttachmentSource::Follows { length }
    } else {
        let data = text("data")?;
        AttachmentSource::Inline(data.ok_or_else(|| invalid("needs data, stub or follows"))?)
    };
    let (content_type, digest, encoding) = (text("content_type")?, text("digest")?, text("encoding")?);
    let revpos = number("revpos")?;
    let file = member("file").and_then(|text| parse_file(text, length?, digest.as_deref()?));
    Ok(IncomingAttachment { name, content_type, revpos, digest, encoding, length, source, file })
}

/// A member `file`. What is none counts as absent: to clients the member means nothing.
fn parse_file(text: &str, length: u64, digest: &str) -> Option<StoredFile> {
    let said: FileMember = serde_json::from_str(text).ok()?;
    let mut sha256 = [0; 32];
    hex::decode_to_slice(&said.sha256, &mut sha256).ok()?;
    let digest_md5 = STANDARD.decode(digest.strip_prefix("md5-")?).ok()?.try_into().ok()?;
    Some(StoredFile { key: said.key.parse().ok()?, place: said.place, length, digest_md5, sha256 })
}
