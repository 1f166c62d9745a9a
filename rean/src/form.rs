//! `POST /db/doc` with a browser's form: files are added to a document as attachments
//! (<https://docs.couchdb.org/en/stable/api/document/attachments.html>, RFC 7578).
//!
//! The fields are CouchDB's: `_attachments` for each file, and either `_rev`, the revision to add them to, or `_doc`, the
//! new text of the document.

use std::sync::Arc;

use adea_ring::Identity;
use axum::body::Body;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use rean_store::document::{MAX_ATTACHMENTS, parse_document, validate_id, validate_name};
use rean_store::rev::Rev;
use rean_store::{AttachmentEdit, AttachmentEditSource, Edit, Mode};

use crate::attachments::{DEFAULT_TYPE, base_of, stub_edit};
use crate::body_in::Limited;
use crate::docs::written_answer;
use crate::edit_in::{self, Incoming, multipart_error};
use crate::error::ApiError;
use crate::multipart::{Multipart, boundary_of};
use crate::pod::Pod;
use crate::render::parse_rev;
use crate::route::{Request, Response};
use crate::target::{self, Target};
use crate::upload::Upload;

/// What a form must be, in CouchDB's words.
const FORM_TYPE: &str = "multipart/form-data";
/// Bytes of a `_rev` field.
const MAX_REV_BYTES: usize = 256;

/// What a form says.
#[derive(Default)]
struct Form {
    doc: Option<Vec<u8>>,
    rev: Option<Rev>,
    files: Vec<AttachmentEdit>,
}

/// `POST /db/doc`.
///
/// # Errors
/// 415 for a body that is no form; 409 without the current revision; 400 and 413 for what can't be stored.
pub async fn post(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    let id = request.segments[1].clone();
    target.require_write_doc(&id)?;
    validate_id(&id)?;
    let kind = request.header(CONTENT_TYPE).unwrap_or("").to_owned();
    if !kind.get(..FORM_TYPE.len()).is_some_and(|start| start.eq_ignore_ascii_case(FORM_TYPE)) {
        return Err(ApiError::bad_content_type(FORM_TYPE));
    }
    edit_in::require_creator(&target, &id)?;
    let form = read(pod, &target, &kind, request.body).await?;
    let mut edit = match form.doc {
        Some(text) => {
            let mut doc = parse_document(&text)?;
            doc.rev = doc.rev.or(form.rev);
            edit_in::edit(&target, id, Incoming { doc, follows: std::collections::HashMap::new() }, Mode::Interactive)?
        }
        None => with_files_of(&target, id, form.rev)?,
    };
    edit.attachments.retain(|old| form.files.iter().all(|new| new.name != old.name));
    edit.attachments.extend(form.files);
    let written = edit_in::write_one(pod, &target, edit, Mode::Interactive).await?;
    Ok(written_answer(&target, StatusCode::CREATED, &written))
}

/// The document as it is at a revision, which must be said.
fn with_files_of(target: &Target, id: String, rev: Option<Rev>) -> Result<Edit, ApiError> {
    let rev = rev.ok_or_else(|| ApiError::bad_request("The form has neither `_doc` nor `_rev`"))?;
    let base = base_of(target, &id, Some(&rev))?;
    stub_edit(id, Some(rev), base)
}

async fn read(pod: &Pod, target: &Target, kind: &str, body: Body) -> Result<Form, ApiError> {
    let boundary = boundary_of(kind).map_err(multipart_error)?;
    let settings = pod.settings.get();
    let max = settings.max_attachment_bytes.saturating_add(pod.limits.max_body_bytes as u64);
    let mut parts = Multipart::new(Limited::new(body, max), &boundary);
    let mut form = Form::default();
    while let Some(headers) = parts.next_part().await.map_err(multipart_error)? {
        match headers.field().as_deref() {
            Some("_doc") => form.doc = Some(text(&mut parts, settings.max_document_bytes).await?),
            Some("_rev") => {
                let text = text(&mut parts, MAX_REV_BYTES).await?;
                let text = String::from_utf8(text).map_err(|_| ApiError::bad_request("Invalid rev format"))?;
                form.rev = Some(parse_rev(text.trim())?);
            }
            Some("_attachments") => {
                let name = headers.filename().unwrap_or_default();
                let mut upload = Upload::begin(pod, target, None, None)?;
                while let Some(chunk) = upload.hears(parts.chunk()).await?.map_err(multipart_error)? {
                    upload.write(&chunk).await?;
                }
                // A file field that nobody has filled in.
                if name.is_empty() {
                    continue;
                }
                validate_name(&name)?;
                if form.files.len() >= MAX_ATTACHMENTS {
                    return Err(ApiError::body_too_large());
                }
                let content_type = headers.get("content-type").unwrap_or(DEFAULT_TYPE).to_owned();
                form.files.retain(|file| file.name != name);
                form.files.push(AttachmentEdit {
                    name,
                    content_type: Some(content_type),
                    revpos: None,
                    source: AttachmentEditSource::Blob(upload.finish().await?),
                });
            }
            // Other fields are the page's own; what isn't read of a part is passed over.
            _ => {}
        }
    }
    Ok(form)
}

/// The text of a part.
async fn text(parts: &mut Multipart<Limited>, max_bytes: usize) -> Result<Vec<u8>, ApiError> {
    let mut text = Vec::new();
    while let Some(chunk) = parts.chunk().await.map_err(multipart_error)? {
        if text.len() + chunk.len() > max_bytes {
            return Err(ApiError::body_too_large());
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}
