//! A document as a client sends it: special members taken out and checked, the rest kept as text.
//!
//! Rules are those of <https://docs.couchdb.org/en/stable/api/document/common.html>. A document that fails
//! here is refused whole; nothing is repaired.

mod attachments;
mod bulk;
mod error;

use crate::json;
use crate::rev::Rev;

pub use attachments::{AttachmentSource, IncomingAttachment, MAX_ATTACHMENTS, validate_name};
pub use bulk::{BulkDocs, MAX_BULK_DOCUMENTS, parse_documents};
pub use error::DocumentError;

/// Longest document id, in bytes. CouchDB has no limit unless configured; ids are keys in several
/// indexes and stand in URLs, which servers on the way cut off somewhere above 4 KiB.
pub const MAX_ID_BYTES: usize = 4096;

/// Most revisions of a history that are taken in; older ones are left off, as `_revs_limit` would soon do
/// (it is 1,000 unless changed).
pub const MAX_HISTORY: usize = 10_000;

/// A document that was parsed and may be stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IncomingDoc {
    /// `_id`, checked by [`validate_id`].
    pub id: Option<String>,
    /// The newest of `_revisions` if that is given, else `_rev`. `None` if neither is, and for the revision
    /// of a `_local` document.
    pub rev: Option<Rev>,
    /// N of a `_rev` of the form `0-N`, which only `_local` documents have.
    pub local_rev: Option<u64>,
    /// `_deleted`.
    pub deleted: bool,
    /// `_revisions`, newest first, at most [`MAX_HISTORY`]; never empty.
    pub revisions: Option<Vec<Rev>>,
    /// `_attachments`, in the order given, which is that of the parts in a multipart body.
    pub attachments: Option<Vec<IncomingAttachment>>,
    /// An object's text with all other members, without white space between tokens.
    pub body: Vec<u8>,
    /// The text of member `access`, which is part of `body` too.
    pub access: Option<String>,
}

/// Reads one document.
///
/// # Errors
/// [`DocumentError`] says what CouchDB would, for text that is not a JSON object in UTF-8 and for special
/// members that are unknown or not what they should be.
pub fn parse_document(text: &[u8]) -> Result<IncomingDoc, DocumentError> {
    let text = std::str::from_utf8(text).map_err(|_| error::invalid_json())?;
    let mut doc = IncomingDoc::default();
    doc.body.reserve_exact(text.len());
    doc.body.push(b'{');
    for entry in object(text)? {
        if entry.key.starts_with('_') && !REPLICATION_STATE.contains(&&*entry.key) {
            doc.set_special(&entry.key, entry.value)?;
            continue;
        }
        if entry.key == "access" {
            doc.access = Some(entry.value.to_owned());
        }
        if doc.body.len() > 1 {
            doc.body.push(b',');
        }
        json::push_string(&mut doc.body, &entry.key);
        doc.body.push(b':');
        json::minify(entry.value, &mut doc.body);
    }
    doc.body.push(b'}');
    doc.body.shrink_to_fit();
    if let Some(newest) = doc.revisions.as_ref().and_then(|revisions| revisions.first()) {
        doc.rev = Some(newest.clone());
    }
    Ok(doc)
}

/// The text of the member `access` of a stored body.
pub fn access_member(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let entries = json::scan_object(text).ok()?;
    entries.into_iter().find(|entry| entry.key == "access").map(|entry| entry.value.to_owned())
}

/// The body of a document that has no member `access`, with this one. Both are minified JSON.
pub(crate) fn with_access(body: &[u8], access: &str) -> Vec<u8> {
    let members = body.strip_suffix(b"}").unwrap_or(body);
    let comma: &[u8] = if members.len() > 1 { b"," } else { b"" };
    [members, comma, b"\"access\":", access.as_bytes(), b"}"].concat()
}

/// Whether a document may have this id: not empty, no NUL, not too long, and an underscore at its start only
/// for `_design/...` and `_local/...`.
///
/// # Errors
/// [`DocumentError::IllegalDocId`] with CouchDB's reason.
pub fn validate_id(id: &str) -> Result<(), DocumentError> {
    let illegal = |reason: &str| Err(DocumentError::IllegalDocId(reason.to_owned()));
    match id {
        "" => illegal("Document id must not be empty"),
        "_design/" | "_local/" => illegal(&format!("Illegal document id `{id}`")),
        _ if id.len() > MAX_ID_BYTES => illegal("Document id is too long"),
        // Ids are parts of keys, where NUL ends them.
        _ if id.contains('\0') => illegal("Document id must not contain NUL"),
        _ if id.starts_with("_design/") || id.starts_with("_local/") => Ok(()),
        _ if id.starts_with('_') => illegal("Only reserved document ids may start with underscore."),
        _ => Ok(()),
    }
}

/// Members with an underscore that the replicator writes into documents of `_replicator`; they are content.
const REPLICATION_STATE: [&str; 5] = [
    "_replication_id",
    "_replication_state",
    "_replication_state_time",
    "_replication_state_reason",
    "_replication_stats",
];

impl IncomingDoc {
    fn set_special(&mut self, key: &str, value: &str) -> Result<(), DocumentError> {
        match key {
            "_id" => {
                let id: String = serde_json::from_str(value)
                    .map_err(|_| DocumentError::IllegalDocId("Document id must be a string".to_owned()))?;
                validate_id(&id)?;
                self.id = Some(id);
            }
            "_rev" => self.set_rev(value)?,
            "_deleted" => match value {
                "true" => self.deleted = true,
                "false" => self.deleted = false,
                _ => return Err(error::bad_special(key)),
            },
            "_revisions" => self.revisions = parse_revisions(value)?,
            "_attachments" => self.attachments = Some(attachments::parse_attachments(value)?),
            // What a read with options added; it comes back when a client writes what it read.
            "_revs_info" | "_conflicts" | "_deleted_conflicts" | "_local_seq" => {}
            _ => return Err(error::bad_special(key)),
        }
        Ok(())
    }

    fn set_rev(&mut self, value: &str) -> Result<(), DocumentError> {
        let text: String = serde_json::from_str(value).map_err(|_| error::invalid_rev())?;
        match text.strip_prefix("0-") {
            Some(number) => self.local_rev = Some(number.parse().map_err(|_| error::invalid_rev())?),
            None => self.rev = Some(text.parse().map_err(|_| error::invalid_rev())?),
        }
        Ok(())
    }
}

/// The members of a document.
fn object(text: &str) -> Result<Vec<json::Entry<'_>>, DocumentError> {
    let entries = json::scan_object(text).map_err(|_| {
        if !text.trim_ascii_start().starts_with('{') && json::is_valid(text) {
            error::no_object()
        } else {
            error::invalid_json()
        }
    })?;
    if json::has_lone_surrogate(text) || json::has_huge_number(text) {
        return Err(error::invalid_json());
    }
    Ok(entries)
}

/// `{"start": 3, "ids": ["c", "b", "a"]}`, newest first.
fn parse_revisions(value: &str) -> Result<Option<Vec<Rev>>, DocumentError> {
    let entries = json::scan_object(value).map_err(|_| error::bad_special("_revisions"))?;
    let member = |name: &str| entries.iter().find(|entry| entry.key == name).map(|entry| entry.value);
    let start: Option<u64> = member("start").and_then(|text| serde_json::from_str(text).ok());
    let start = start.ok_or_else(|| error::doc_validation("_revisions.start isn't an integer."))?;
    let ids: Option<Vec<String>> = member("ids").and_then(|text| serde_json::from_str(text).ok());
    let ids = ids.ok_or_else(|| error::doc_validation("_revisions.ids isn't an array of strings."))?;
    if start == 0 && ids.is_empty() {
        return Ok(None); // A document that was never saved.
    }
    // The oldest id has a generation too, 1 or more.
    if ids.is_empty() || start < ids.len() as u64 {
        return Err(error::doc_validation("_revisions.start doesn't fit _revisions.ids."));
    }
    let revisions = (1..=start).rev().zip(ids.iter().take(MAX_HISTORY));
    let revisions = revisions.map(|(generation, hash)| Rev::new(generation, hash));
    let revisions: Result<Vec<Rev>, _> = revisions.collect();
    Ok(Some(revisions.map_err(|_| error::invalid_rev())?))
}

#[cfg(test)]
mod tests;
