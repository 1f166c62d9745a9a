//! Single documents: read, write, delete, copy
//! (<https://docs.couchdb.org/en/stable/api/document/common.html>).

use std::sync::Arc;

use adea_ring::Identity;
use axum::body::Body;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use rean_store::document::{parse_document, validate_id};
use rean_store::json::push_string;
use rean_store::rev::Rev;
use rean_store::{AttachmentEdit, AttachmentEditSource, DocView, Edit, Mode, RevView, Written};

use crate::body_in;
use crate::edit_in::{self, read_document};
use crate::error::ApiError;
use crate::multipart::PartWriter;
use crate::multipart_out::{attachments, content_type, push_related};
use crate::open_revs;
use crate::page_body::{self, Out};
use crate::pod::Pod;
use crate::query::Query;
use crate::render::{self, AttachmentForm, Options, parse_rev, push_document, push_written};
use crate::route::{Request, Response};
use crate::target::{self, Target};

/// What must be escaped in a `Location`.
pub const LOCATION_ESCAPES: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'+')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// A new document's id: 128 random bits, as `_uuids` gives them.
pub fn new_id() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

/// `GET /db/doc`.
///
/// # Errors
/// 404 when there is none for this reader; why doesn't show.
pub async fn get(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    let id = &request.segments[1];
    target.require_read_doc(id)?;
    let options = options_for(&target, &request.query)?;
    if let Some(wanted) = request.query.get("open_revs") {
        return open_revs::answer(&target, id, wanted, &request, options);
    }
    let (doc, rev) = find(&target, id, &request.query)?;
    let etag = (!options.changes_without_rev()).then(|| etag(&rev.rev));
    if let Some(etag) = &etag
        && matches_etag(&request.headers, etag)
    {
        return Ok(not_modified(etag.clone()));
    }
    let mut response = send(&target, &doc, &rev, &options, &request.headers)?;
    if let Some(etag) = etag {
        response.headers_mut().insert(ETAG, etag);
    }
    Ok(response)
}

/// What is asked for, as far as the target shows it.
pub fn options_for(target: &Target, query: &Query) -> Result<Options, ApiError> {
    let mut options = Options::from_query(query)?;
    // A reader of a part of an app must not learn how much is written to the rest of it.
    options.local_seq &= target.whole();
    // Where a file is, is told to other pods only.
    options.files = edit_in::is_taken(target) && query.is_true("files");
    Ok(options)
}

/// The revision that `rev` and `latest` name, or the winner.
fn find(target: &Target, id: &str, query: &Query) -> Result<(DocView, RevView), ApiError> {
    let Some(text) = query.get("rev") else {
        let doc = target.db.doc(&target.scope, id)?.ok_or_else(ApiError::missing)?;
        let winner = doc.winner().clone();
        if winner.deleted {
            return Err(ApiError::not_found("deleted"));
        }
        return Ok((doc, winner));
    };
    let rev = parse_rev(text)?;
    if query.is_true("latest") {
        let found = open_revs::latest(&target.db, &target.scope, id, &rev)?.into_iter().next();
        return found.map(|(doc, rev)| (Arc::unwrap_or_clone(doc), rev)).ok_or_else(ApiError::missing);
    }
    target.db.revision(&target.scope, id, &rev)?.ok_or_else(ApiError::missing)
}

/// The document as JSON, or as `multipart/related` where attachments are wanted and the client takes that.
fn send(
    target: &Target,
    doc: &DocView,
    rev: &RevView,
    options: &Options,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let mut out = Out::default();
    let wants_data = options.attachments == AttachmentForm::Inline;
    if wants_data && accepts(headers, "multipart/related") && !attachments(&target.db, rev)?.is_empty() {
        let parts = PartWriter::new();
        let kind = parts.content_type("related");
        push_related(&mut out, parts, &target.db, doc, rev, options)?;
        let length = HeaderValue::from(out.len());
        let mut response = render::json(StatusCode::OK, page_body::body(&target.db, out));
        response.headers_mut().insert(CONTENT_TYPE, content_type(&kind));
        response.headers_mut().insert(CONTENT_LENGTH, length);
        return Ok(response);
    }
    push_document(&mut out, &target.db, doc, rev, options)?;
    out.text.push(b'\n');
    Ok(render::json(StatusCode::OK, page_body::body(&target.db, out)))
}

/// Whether the client takes a type; without `Accept` it takes all, as in CouchDB.
pub fn accepts(headers: &HeaderMap, wanted: &str) -> bool {
    let Some(accept) = headers.get(ACCEPT) else {
        return true;
    };
    let Ok(accept) = accept.to_str() else {
        return false;
    };
    let main = wanted.split('/').next().unwrap_or("");
    accept.split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or("");
        let fits = name == "*/*"
            || name.eq_ignore_ascii_case(wanted)
            || name.strip_suffix("/*").is_some_and(|start| start.eq_ignore_ascii_case(main));
        let refused =
            parts.any(|part| part.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q == 0.0)));
        fits && !refused
    })
}

/// An ETag of a revision, which holds nothing that a header can't.
pub fn etag(rev: &Rev) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{rev}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Whether `If-None-Match` names this ETag.
pub fn matches_etag(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().any(|value| {
        let Ok(list) = value.to_str() else {
            return false;
        };
        list.split(',')
            .map(str::trim)
            .any(|item| item == "*" || item.strip_prefix("W/").unwrap_or(item).as_bytes() == etag.as_bytes())
    })
}

/// 304 with the ETag.
pub fn not_modified(etag: HeaderValue) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response.headers_mut().insert(ETAG, etag);
    response
}

/// `PUT /db/doc`.
///
/// # Errors
/// 409 for a revision that isn't the current one; 400, 403, 413 for what can't be stored.
pub async fn put(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    let id = request.segments[1].clone();
    target.require_write_doc(&id)?;
    validate_id(&id)?;
    let (mode, batch) = (mode(&request.query), is_batch(&request.query));
    let given = given_rev(&request)?;
    let by_query = request.query.get("rev").is_some_and(|text| !text.is_empty());
    edit_in::require_creator(&target, &id)?;
    let mut incoming = read_document(pod, &target, &request.headers, request.body).await?;
    incoming.doc.rev = agree(incoming.doc.rev, given, by_query)?;
    let edit = edit_in::edit(&target, id, incoming, mode)?;
    let status = if edit.deleted {
        // CouchDB says so, whatever its documentation.
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    let written = edit_in::write_one(pod, &target, edit, mode).await?;
    Ok(if batch { batched_answer(&written) } else { written_answer(&target, status, &written) })
}

/// Whether the client doesn't want to wait for the disk: `batch=ok`. It waits all the same, as others' writes go to disk
/// together with its own, and is answered as CouchDB does.
fn is_batch(query: &Query) -> bool {
    query.get("batch") == Some("ok")
}

/// The answer to a write with `batch=ok`, which names no revision: in CouchDB there is none yet
/// (<https://docs.couchdb.org/en/stable/api/database/common.html#batch-mode-writes>).
fn batched_answer(written: &Written) -> Response {
    let mut body = Vec::with_capacity(64);
    body.extend_from_slice(b"{\"ok\":true,\"id\":");
    push_string(&mut body, &written.id);
    body.extend_from_slice(b"}\n");
    render::json(StatusCode::ACCEPTED, body)
}

/// `POST /db`: as PUT, with the document's own id or a new one.
///
/// # Errors
/// As [`put`].
pub async fn post(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_write()?;
    body_in::require_json(&request.headers)?;
    let (mode, batch) = (mode(&request.query), is_batch(&request.query));
    let mut incoming = read_document(pod, &target, &request.headers, request.body).await?;
    let id = incoming.doc.id.take().unwrap_or_else(new_id);
    if id.starts_with("_local/") {
        return crate::local_docs::write(pod, &target, &id, incoming.doc).await;
    }
    target.require_write_doc(&id)?;
    let edit = edit_in::edit(&target, id, incoming, mode)?;
    let written = edit_in::write_one(pod, &target, edit, mode).await?;
    Ok(if batch { batched_answer(&written) } else { written_answer(&target, StatusCode::CREATED, &written) })
}

/// `DELETE /db/doc?rev=`.
///
/// # Errors
/// 404 when there is no such document for this author, 409 without its current revision.
pub async fn delete(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    let id = request.segments[1].clone();
    target.require_write_doc(&id)?;
    let given = given_rev(&request)?;
    let doc = target.db.doc(&target.scope, &id)?.ok_or_else(ApiError::missing)?;
    if doc.winner().deleted {
        return Err(ApiError::not_found("deleted"));
    }
    let edit = Edit {
        id,
        parent: Some(given.ok_or_else(ApiError::conflict)?),
        history: Vec::new(),
        deleted: true,
        body: Bytes::from_static(b"{}"),
        access: None,
        attachments: Vec::new(),
    };
    let written = edit_in::write_one(pod, &target, edit, Mode::Interactive).await?;
    Ok(written_answer(&target, StatusCode::OK, &written))
}

/// `COPY /db/doc` to the `Destination`, attachments and all.
///
/// # Errors
/// 400 without a destination, 409 when that exists and its revision isn't given.
pub async fn copy(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    let source = &request.segments[1];
    target.require_read_doc(source)?;
    let (id, parent) = destination(&request)?;
    target.require_write_doc(&id)?;
    validate_id(&id)?;
    if id.starts_with("_local/") {
        return Err(ApiError::bad_request("_local documents can't be copied to"));
    }
    let (_, rev) = match given_rev(&request)? {
        Some(rev) if request.query.get("rev").is_none() => {
            target.db.revision(&target.scope, source, &rev)?.ok_or_else(ApiError::missing)?
        }
        _ => find(&target, source, &request.query)?,
    };
    let (json, stored) = match rev.body {
        None => (Bytes::from_static(b"{}"), Vec::new()),
        Some(at) => {
            let body = target.db.body(at)?.ok_or_else(ApiError::missing)?;
            (body.json, body.attachments)
        }
    };
    let edit = Edit {
        id,
        parent,
        history: Vec::new(),
        deleted: rev.deleted,
        access: parse_document(&json)?.access,
        body: json,
        attachments: stored
            .into_iter()
            .map(|attachment| AttachmentEdit {
                name: attachment.name.clone(),
                content_type: Some(attachment.content_type.clone()),
                revpos: None,
                source: AttachmentEditSource::Existing(attachment),
            })
            .collect(),
    };
    let written = edit_in::write_one(pod, &target, edit, Mode::Interactive).await?;
    Ok(written_answer(&target, StatusCode::CREATED, &written))
}

/// `Destination: id` or `Destination: id?rev=1-abc`, percent-encoded.
fn destination(request: &Request) -> Result<(String, Option<Rev>), ApiError> {
    let text = request.header(http::HeaderName::from_static("destination"));
    let text = text
        .filter(|text| !text.is_empty())
        .ok_or_else(|| ApiError::bad_request("Destination header is mandatory for COPY."))?;
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(ApiError::bad_request("Destination URL must be relative."));
    }
    let (id, rev) = match text.split_once("?rev=") {
        Some((id, rev)) => (id, Some(parse_rev(rev)?)),
        None => (text, None),
    };
    let id = percent_decode_str(id).decode_utf8().map_err(|_| ApiError::bad_request("Destination is not UTF-8"))?;
    Ok((id.into_owned(), rev))
}

/// `PUT /db/_zork`: no document can have that name.
///
/// # Errors
/// Always.
pub async fn refuse_reserved(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_write()?;
    validate_id(&request.segments[1])?;
    Err(ApiError::missing())
}

/// A path below a database that is no resource.
///
/// # Errors
/// Always: 404, or what the database's rights say.
pub async fn no_such_resource(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_read()?;
    Err(ApiError::missing())
}

/// How revisions are made: `new_edits=false` brings them along.
pub fn mode(query: &Query) -> Mode {
    match query.get("new_edits") {
        Some("false") => Mode::Replicated,
        _ => Mode::Interactive,
    }
}

/// The text of `?rev=`, or else of `If-Match`.
pub fn given_rev_text(request: &Request) -> Option<&str> {
    let by_query = request.query.get("rev").filter(|text| !text.is_empty());
    by_query.or_else(|| if_match(request))
}

fn if_match(request: &Request) -> Option<&str> {
    request.header(IF_MATCH).map(|text| text.trim().trim_matches('"')).filter(|text| !text.is_empty())
}

/// The revision that `?rev=` or `If-Match` gives.
///
/// # Errors
/// 400 when it is none, or when both are given and differ.
pub fn given_rev(request: &Request) -> Result<Option<Rev>, ApiError> {
    let by_query = request.query.get("rev").filter(|text| !text.is_empty()).map(parse_rev).transpose()?;
    let by_header = if_match(request).map(parse_rev).transpose()?;
    match (by_query, by_header) {
        (Some(query), Some(header)) if query != header => Err(ApiError::bad_request(OTHER_ETAG)),
        (query, header) => Ok(query.or(header)),
    }
}

/// What CouchDB says where `If-Match` names another revision than the rest of the request.
const OTHER_ETAG: &str = "Document rev and etag have different values";

fn agree(in_body: Option<Rev>, given: Option<Rev>, by_query: bool) -> Result<Option<Rev>, ApiError> {
    match (in_body, given) {
        (Some(body), Some(given)) if body != given => Err(ApiError::bad_request(match by_query {
            true => "Document rev from request body and query string have different values",
            false => OTHER_ETAG,
        })),
        (body, given) => Ok(body.or(given)),
    }
}

/// `{"ok":true,"id":..,"rev":..}` with ETag and Location.
pub fn written_answer(target: &Target, status: StatusCode, written: &Written) -> Response {
    let mut body = Vec::with_capacity(96);
    body.push(b'{');
    push_written(&mut body, &written.id, &written.rev);
    body.extend_from_slice(b"}\n");
    let mut response = render::json(status, body);
    let headers = response.headers_mut();
    headers.insert(ETAG, etag(&written.rev));
    if status == StatusCode::CREATED {
        let location = format!(
            "/{}/{}",
            utf8_percent_encode(&target.name, LOCATION_ESCAPES),
            utf8_percent_encode(&written.id, LOCATION_ESCAPES)
        );
        if let Ok(location) = HeaderValue::from_str(&location) {
            headers.insert(LOCATION, location);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use http::header::{ACCEPT, IF_NONE_MATCH};

    use super::{HeaderValue, accepts, matches_etag};

    #[test]
    fn accept_is_read_as_couchdb_reads_it() {
        let mut headers = HeaderMap::new();
        assert!(accepts(&headers, "multipart/related"));
        for (value, wanted) in [
            ("application/json", false),
            ("multipart/related", true),
            ("multipart/mixed", false),
            ("multipart/*;q=0.5", true),
            ("application/json, */*", true),
            ("multipart/related; q=0, application/json", false),
        ] {
            headers.insert(ACCEPT, HeaderValue::from_static(value));
            assert_eq!(accepts(&headers, "multipart/related"), wanted, "{value}");
        }
    }

    #[test]
    fn if_none_match_may_list_several() {
        let etag = HeaderValue::from_static("\"1-a\"");
        let mut headers = HeaderMap::new();
        assert!(!matches_etag(&headers, &etag));
        headers.insert(IF_NONE_MATCH, HeaderValue::from_static("\"2-b\", W/\"1-a\""));
        assert!(matches_etag(&headers, &etag));
        headers.insert(IF_NONE_MATCH, HeaderValue::from_static("\"1-ab\""));
        assert!(!matches_etag(&headers, &etag));
    }
}
