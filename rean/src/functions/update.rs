//! Update handlers: `POST` and `PUT /db/_design/x/_update/fn[/doc]`
//! (<https://docs.couchdb.org/en/stable/api/ddoc/render.html#db-design-design-doc-update-update-name>).
//!
//! The handler sees the document as its caller may read it, and what it returns is written as its caller: with their
//! rights, and past all validators.

use std::collections::HashMap;
use std::sync::Arc;

use adea_ring::Identity;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rean_store::Mode;
use rean_store::document::{IncomingDoc, parse_document, validate_id};
use serde_json::{Map, Value};

use crate::body_in;
use crate::edit_in::{self, Incoming};
use crate::error::ApiError;
use crate::functions::req::{Asked, Sent};
use crate::functions::{call, design, respond};
use crate::local_docs::{self, LocalRev};
use crate::page_body::Out;
use crate::pod::Pod;
use crate::render::{self, push_document};
use crate::route::{Request, Response};
use crate::target::{self, Target};

const NEW_REV: HeaderName = HeaderName::from_static("x-couch-update-newrev");
const NEW_ID: HeaderName = HeaderName::from_static("x-couch-id");
/// What stands unescaped in an id that a header gives, as CouchDB has it.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b':');
/// The type of a form (<https://url.spec.whatwg.org/#application/x-www-form-urlencoded>).
const FORM: &str = "application/x-www-form-urlencoded";

/// Runs a handler, and writes what it returns.
///
/// # Errors
/// 404 when there is no such handler; whatever the handler or the write says.
pub async fn update(pod: &Arc<Pod>, who: &Identity, mut request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_write()?;
    let designs = pod.designs.of(&target.db)?;
    let design = design(&designs, &request.segments[1])?;
    let name = request.segments.get(3).cloned().unwrap_or_default();
    if !design.has("updates", &name) {
        let shown: String = name.chars().take(80).collect();
        return Err(ApiError::not_found(format!("missing update function {shown} on design doc {}", design.id)));
    }
    let id = (request.segments.len() > 4).then(|| request.segments[4..].join("/"));
    let doc = id.as_deref().map(|id| stored(&target, id)).transpose()?.flatten();
    let asked = Asked::of(&request);
    let sent = read_body(pod, &mut request).await?;
    let req = asked.object(pod, &target, id.as_deref(), sent)?.to_string();
    let script = design.script.clone();
    let updated = call(pod, &designs, move |scripts| scripts.update(&script, &name, doc.as_deref(), &req)).await??;
    let Some(text) = updated.doc else {
        return respond::answer(&updated.response, StatusCode::OK);
    };
    // Before anything is written: the caller would not learn of it.
    let mut answer = respond::answer(&updated.response, StatusCode::CREATED)?;
    let (id, rev) = write(pod, &target, text).await?;
    let headers = answer.headers_mut();
    for (name, text) in [(NEW_REV, rev), (NEW_ID, utf8_percent_encode(&id, ESCAPED).to_string())] {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }
    Ok(answer)
}

/// The document as the caller may read it; `None`: there is none for them.
fn stored(target: &Target, id: &str) -> Result<Option<String>, ApiError> {
    if target.whole() {
        target.require_read_doc(id)?;
    }
    let Some(doc) = target.db.doc(&target.scope, id)? else { return Ok(None) };
    let winner = doc.winner();
    if winner.deleted {
        return Ok(None);
    }
    let mut out = Out::default();
    let options = render::Options { revs: true, conflicts: true, ..render::Options::default() };
    push_document(&mut out, &target.db, &doc, winner, &options)?;
    let text = out.into_text().and_then(|text| String::from_utf8(text).ok());
    text.map(Some).ok_or_else(|| ApiError::internal("the document could not be read"))
}

async fn read_body(pod: &Pod, request: &mut Request) -> Result<Sent, ApiError> {
    let body = std::mem::take(&mut request.body);
    let bytes = body_in::read_any(pod, &request.headers, body).await?;
    if bytes.len() > pod.limits.max_document_bytes {
        return Err(ApiError::body_too_large());
    }
    let is_form = request.header(CONTENT_TYPE).is_some_and(|kind| kind.starts_with(FORM));
    let form: Map<String, Value> = match is_form {
        true => {
            form_urlencoded::parse(&bytes).map(|(name, value)| (name.into_owned(), value.into_owned().into())).collect()
        }
        false => Map::new(),
    };
    Ok(Sent::Text(String::from_utf8_lossy(&bytes).into_owned(), form))
}

/// Writes a handler's document; gives its id and its new revision.
async fn write(pod: &Arc<Pod>, target: &Target, text: String) -> Result<(String, String), ApiError> {
    let mut doc: IncomingDoc = edit_in::aside(text.len(), move || parse_document(text.as_bytes())).await??;
    let id = doc.id.take().unwrap_or_default();
    validate_id(&id)?;
    if id.starts_with(local_docs::PREFIX) {
        let rev = local_docs::put(pod, target, &id, doc).await?;
        return Ok((id, LocalRev(rev).to_string()));
    }
    target.require_write_doc(&id)?;
    let edit = edit_in::edit(target, id, Incoming { doc, follows: HashMap::new() }, Mode::Interactive)?;
    let written = edit_in::write_one(pod, target, edit, Mode::Interactive).await?;
    Ok((written.id, written.rev.to_string()))
}
