//! Attachments on their own: `/db/doc/name`, streamed both ways
//! (<https://docs.couchdb.org/en/stable/api/document/attachments.html>).

use std::sync::Arc;

use adea_ring::Identity;
use axum::body::Body as AnyBody;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE,
    LOCATION, RANGE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use md5::{Digest, Md5};
use percent_encoding::utf8_percent_encode;
use rean_store::document::{parse_document, validate_id, validate_name};
use rean_store::rev::Rev;
use rean_store::{Attachment, AttachmentEdit, AttachmentEditSource, BlobRef, Body, Db, Edit, Mode, Written};

use crate::docs::{LOCATION_ESCAPES, given_rev, matches_etag, not_modified, written_answer};
use crate::edit_in;
use crate::error::ApiError;
use crate::multipart_out::content_type;
use crate::page_body::{self, Out};
use crate::pod::Pod;
use crate::range::ByteRange;
use crate::render::parse_rev;
use crate::route::{Query, Request, Response};
use crate::target::{self, Target};
use crate::upload::Upload;

/// The MD5 of the whole content, in Base64 (RFC 1864).
const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
/// The type of what came without one (RFC 9110, 8.3).
pub const DEFAULT_TYPE: &str = "application/octet-stream";

/// All methods of `/db/doc/name`.
///
/// # Errors
/// 404 when there is no such document or attachment for this reader; 409 without the current revision.
pub async fn attachment(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    let id = request.segments[1].clone();
    let name = request.segments[2..].join("/");
    match request.method {
        Method::GET => {
            target.require_read_doc(&id)?;
            let Request { query, headers, head, .. } = request;
            get(pod, &target, &id, &name, &query, &Asked { headers, head }).await
        }
        Method::PUT => {
            target.require_write_doc(&id)?;
            put(pod, &target, id, name, request).await
        }
        Method::DELETE => {
            target.require_write_doc(&id)?;
            let given = given_rev(&request)?;
            delete(pod, &target, id, &name, given).await
        }
        _ => Err(ApiError::method_not_allowed("DELETE,GET,HEAD,PUT")),
    }
}

/// How an attachment is asked for.
struct Asked {
    headers: HeaderMap,
    head: bool,
}

async fn get(
    pod: &Pod,
    target: &Target,
    id: &str,
    name: &str,
    query: &Query,
    asked: &Asked,
) -> Result<Response, ApiError> {
    let rev = query.get("rev").map(parse_rev).transpose()?;
    let body = match rev {
        Some(rev) => {
            let found = target.db.revision(&target.scope, id, &rev)?;
            body_at(target, found.and_then(|(_, rev)| rev.body))?
        }
        None => {
            let doc = target.db.doc(&target.scope, id)?.ok_or_else(ApiError::missing)?;
            let winner = doc.winner();
            if winner.deleted {
                return Err(ApiError::not_found("deleted"));
            }
            body_at(target, winner.body)?
        }
    };
    let found = body.and_then(|body| body.attachments.into_iter().find(|one| one.name == name));
    let attachment = found.ok_or_else(no_attachment)?;
    send(pod, target, &attachment, asked).await
}

fn no_attachment() -> ApiError {
    ApiError::not_found("Document is missing attachment")
}

fn body_at(target: &Target, at: Option<rean_store::BodyRef>) -> Result<Option<Body>, ApiError> {
    let at = at.ok_or_else(ApiError::missing)?;
    Ok(target.db.body(at)?)
}

async fn send(pod: &Pod, target: &Target, attachment: &Attachment, asked: &Asked) -> Result<Response, ApiError> {
    let headers = &asked.headers;
    let digest = format!("\"{}\"", STANDARD.encode(attachment.digest_md5));
    let etag = HeaderValue::from_str(&digest).unwrap_or(HeaderValue::from_static("\"\""));
    if matches_etag(headers, &etag) {
        return Ok(not_modified(etag));
    }
    let range = wanted_range(headers, &etag, attachment.length);
    let (status, from, to) = match range {
        ByteRange::Whole => (StatusCode::OK, 0, attachment.length),
        ByteRange::Part { start, end } => (StatusCode::PARTIAL_CONTENT, start, end),
        ByteRange::Unsatisfiable => return Err(unsatisfiable(range, attachment.length)),
    };
    let body = if asked.head { AnyBody::empty() } else { content(pod, &target.db, attachment, from, to).await? };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let answer = response.headers_mut();
    answer.insert(CONTENT_TYPE, content_type(&attachment.content_type));
    answer.insert(CONTENT_LENGTH, HeaderValue::from(to - from));
    answer.insert(ETAG, etag);
    answer.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer.insert(CACHE_CONTROL, HeaderValue::from_static("must-revalidate"));
    // Anyone who may write a document chooses the type: a page in it must not run as one of ours.
    answer.insert(HeaderName::from_static("content-security-policy"), HeaderValue::from_static("sandbox"));
    answer.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    if range == ByteRange::Whole
        && let Ok(md5) = HeaderValue::from_str(&STANDARD.encode(attachment.digest_md5))
    {
        answer.insert(CONTENT_MD5, md5);
    }
    if let Some(text) = range.content_range(attachment.length)
        && let Ok(value) = HeaderValue::from_str(&text)
    {
        answer.insert(CONTENT_RANGE, value);
    }
    Ok(response)
}

/// The bytes of an attachment from `from` up to but not including `to`.
///
/// # Errors
/// When they can't be read. A file's faults are found before the answer begins, so that they are the answer.
pub async fn content(pod: &Pod, db: &Db, attachment: &Attachment, from: u64, to: u64) -> Result<AnyBody, ApiError> {
    Ok(match db.file(attachment.blob)? {
        Some(file) if from < to => AnyBody::from_stream(pod.files.read(file, from, to).await?),
        Some(_) => AnyBody::empty(),
        None => {
            let mut out = Out::default();
            out.push_blob(attachment.blob, from, to);
            page_body::body(db, out)
        }
    })
}

/// Which part of an attachment is wanted. `If-Range` with another ETag: the client's part is of other content, so it gets
/// the whole.
pub fn wanted_range(headers: &HeaderMap, etag: &HeaderValue, length: u64) -> ByteRange {
    if headers.get(IF_RANGE).is_some_and(|value| value != etag) {
        return ByteRange::Whole;
    }
    let range = headers.get(RANGE).and_then(|value| value.to_str().ok());
    ByteRange::parse(range, length)
}

/// 416, which says how long the whole is.
pub fn unsatisfiable(range: ByteRange, length: u64) -> ApiError {
    let error = ApiError::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "requested_range_not_satisfiable",
        "Requested range not satisfiable",
    );
    match range.content_range(length).and_then(|text| HeaderValue::from_str(&text).ok()) {
        Some(value) => error.with_header(CONTENT_RANGE, value),
        None => error,
    }
}

async fn put(
    pod: &Arc<Pod>,
    target: &Target,
    id: String,
    name: String,
    request: Request,
) -> Result<Response, ApiError> {
    validate_id(&id)?;
    validate_name(&name)?;
    let given = given_rev(&request)?;
    let kind = request.header(CONTENT_TYPE).filter(|text| !text.is_empty()).unwrap_or(DEFAULT_TYPE).to_owned();
    // Before the upload: a refusal should not cost a gigabyte.
    edit_in::require_creator(target, &id)?;
    let base = base_of(target, &id, given.as_ref())?;
    let blob = upload(pod, target, request).await?;
    let below = format!("/{}", utf8_percent_encode(&name, LOCATION_ESCAPES));
    let written = write_attachment(pod, target, Place { id, name, given, kind }, base, blob).await?;
    let mut response = written_answer(target, StatusCode::CREATED, &written);
    let document = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    if let Some(location) = document.and_then(|document| HeaderValue::try_from(format!("{document}{below}")).ok()) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

/// Where an attachment goes.
pub struct Place {
    /// The document.
    pub id: String,
    /// The attachment's name.
    pub name: String,
    /// The revision that is followed.
    pub given: Option<Rev>,
    /// The attachment's type.
    pub kind: String,
}

/// Writes the document that follows `base` ([`base_of`]) with one attachment more, or another of that name.
///
/// # Errors
/// Why it was refused.
pub async fn write_attachment(
    pod: &Arc<Pod>,
    target: &Target,
    place: Place,
    base: Option<Body>,
    blob: BlobRef,
) -> Result<Written, ApiError> {
    let mut edit = stub_edit(place.id, place.given, base)?;
    edit.attachments.retain(|one| one.name != place.name);
    edit.attachments.push(AttachmentEdit {
        name: place.name,
        content_type: Some(place.kind),
        revpos: None,
        source: AttachmentEditSource::Blob(blob),
    });
    edit_in::write_one(pod, target, edit, Mode::Interactive).await
}

async fn upload(pod: &Arc<Pod>, target: &Target, request: Request) -> Result<BlobRef, ApiError> {
    use futures_util::StreamExt;
    let declared: Option<u64> = request.header(CONTENT_LENGTH).and_then(|text| text.parse().ok());
    if declared.is_some_and(|length| length > pod.settings.get().max_attachment_bytes) {
        return Err(ApiError::body_too_large());
    }
    let expected = content_md5(&request)?;
    let encoding = request.header(CONTENT_ENCODING);
    let mut upload = Upload::begin(pod, target, encoding, declared)?.by(&target.who, &request.headers);
    let mut digest = Md5::new();
    let mut stream = request.body.into_data_stream();
    while let Some(chunk) = upload.hears(stream.next()).await? {
        let chunk = chunk.map_err(|_| ApiError::bad_request("The body ended too early"))?;
        if expected.is_some() {
            digest.update(&chunk);
        }
        upload.write(&chunk).await?;
    }
    if let Some(expected) = expected
        && digest.finalize()[..] != expected[..]
    {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "content_md5_mismatch", "Possible message corruption."));
    }
    upload.finish().await
}

fn content_md5(request: &Request) -> Result<Option<Vec<u8>>, ApiError> {
    request
        .header(CONTENT_MD5)
        .map(|text| STANDARD.decode(text).map_err(|_| ApiError::bad_request("Content-MD5 is not Base64")))
        .transpose()
}

async fn delete(
    pod: &Arc<Pod>,
    target: &Target,
    id: String,
    name: &str,
    given: Option<Rev>,
) -> Result<Response, ApiError> {
    let Some(base) = base_of(target, &id, given.as_ref())? else {
        return Err(ApiError::missing());
    };
    let mut edit = stub_edit(id, given, Some(base))?;
    let before = edit.attachments.len();
    edit.attachments.retain(|one| one.name != name);
    if edit.attachments.len() == before {
        return Err(no_attachment());
    }
    let written = edit_in::write_one(pod, target, edit, Mode::Interactive).await?;
    Ok(written_answer(target, StatusCode::OK, &written))
}

/// The content that the new revision starts from; `None` for a new document.
///
/// # Errors
/// 409 for a revision that isn't there, or not for this author, and for none where there is a document.
pub fn base_of(target: &Target, id: &str, given: Option<&Rev>) -> Result<Option<Body>, ApiError> {
    match given {
        None => match target.db.doc(&target.scope, id)? {
            Some(doc) if !doc.winner().deleted => Err(ApiError::conflict()),
            _ => Ok(None),
        },
        Some(rev) => {
            let found = target.db.revision(&target.scope, id, rev)?;
            let (_, found) = found.ok_or_else(missing_rev)?;
            match found.body {
                None => Err(ApiError::conflict()),
                Some(at) => target.db.body(at)?.map(Some).ok_or_else(ApiError::conflict),
            }
        }
    }
}

/// 409 `not_found`, as CouchDB has it: there is no such revision, or none that this author may know of.
fn missing_rev() -> ApiError {
    ApiError::new(StatusCode::CONFLICT, "not_found", "missing_rev")
}

/// An edit that changes nothing yet: the same members, the same attachments.
///
/// # Errors
/// When what is stored can't be read.
pub fn stub_edit(id: String, parent: Option<Rev>, base: Option<Body>) -> Result<Edit, ApiError> {
    let (json, stored) = match base {
        None => (Bytes::from_static(b"{}"), Vec::new()),
        Some(body) => (body.json, body.attachments),
    };
    Ok(Edit {
        id,
        parent,
        history: Vec::new(),
        deleted: false,
        access: parse_document(&json)?.access,
        body: json,
        attachments: stored.into_iter().map(stub).collect(),
    })
}

fn stub(stored: Attachment) -> AttachmentEdit {
    AttachmentEdit {
        name: stored.name,
        content_type: Some(stored.content_type),
        revpos: Some(stored.revpos),
        source: AttachmentEditSource::Stub { digest: Some(format!("md5-{}", STANDARD.encode(stored.digest_md5))) },
    }
}
