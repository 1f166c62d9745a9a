//! Documents as multipart answers: `multipart/related` is a document and its attachments, `multipart/mixed` is several
//! of those (<https://docs.couchdb.org/en/stable/api/document/common.html#efficient-multiple-attachments-retrieving>).

use http::HeaderValue;
use rean_store::{Attachment, Db, DocView, RevView};

use crate::error::ApiError;
use crate::multipart::{self, PartWriter};
use crate::page_body::Out;
use crate::render::{AttachmentForm, Options, push_document};

/// What a type is when nothing better is known.
const UNKNOWN_TYPE: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// A `Content-Type` as a header; one that can't be a header is given as bytes of no known type.
pub fn content_type(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(UNKNOWN_TYPE)
}

/// Adds a whole `multipart/related` body: the document, then the attachments that are newer than `atts_since`.
///
/// # Errors
/// As [`push_document`].
pub fn push_related(
    out: &mut Out,
    mut parts: PartWriter,
    db: &Db,
    doc: &DocView,
    rev: &RevView,
    options: &Options,
) -> Result<(), ApiError> {
    let options = Options { attachments: AttachmentForm::Follows, ..options.clone() };
    out.text.extend_from_slice(&parts.part(&[("Content-Type", "application/json")]));
    let follow = push_document(out, db, doc, rev, &options)?;
    for attachment in &follow {
        out.text.extend_from_slice(&parts.attachment(multipart::Attachment {
            name: &attachment.name,
            content_type: &attachment.content_type,
            length: attachment.length,
            encoding: None,
        }));
        out.push_blob(attachment.blob, 0, attachment.length);
    }
    out.text.extend_from_slice(&parts.end());
    Ok(())
}

/// Adds one part of a `multipart/mixed` answer: a document, as `multipart/related` of its own if it has attachments.
///
/// # Errors
/// As [`push_document`].
pub fn push_mixed_part(
    out: &mut Out,
    outer: &mut PartWriter,
    db: &Db,
    doc: &DocView,
    rev: &RevView,
    options: &Options,
) -> Result<(), ApiError> {
    if attachments(db, rev)?.is_empty() {
        out.text.extend_from_slice(&outer.part(&[("Content-Type", "application/json")]));
        push_document(out, db, doc, rev, options)?;
        return Ok(());
    }
    let inner = PartWriter::new();
    let related = inner.content_type("related");
    out.text.extend_from_slice(&outer.part(&[("Content-Type", &related)]));
    push_related(out, inner, db, doc, rev, options)
}

/// Adds one part that is an error, such as `{"missing":"1-abc"}`.
pub fn push_error_part(out: &mut Out, outer: &mut PartWriter, json: &[u8]) {
    out.text.extend_from_slice(&outer.part(&[("Content-Type", "application/json; error=\"true\"")]));
    out.text.extend_from_slice(json);
}

/// The attachments of a revision.
///
/// # Errors
/// 404 when its body has been compacted away in the meantime.
pub fn attachments(db: &Db, rev: &RevView) -> Result<Vec<Attachment>, ApiError> {
    match rev.body {
        None => Ok(Vec::new()),
        Some(at) => Ok(db.body(at)?.ok_or_else(ApiError::missing)?.attachments),
    }
}
