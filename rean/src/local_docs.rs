//! `_local` documents: a replicator's checkpoints, without history, in no feed
//! (<https://docs.couchdb.org/en/stable/api/local.html>). Where a database shows each user their own view, these are
//! each user's own too.

use std::sync::Arc;

use adea_ring::Identity;
use bytes::Bytes;
use http::{Method, StatusCode};
use rean_store::WriteError;
use rean_store::document::IncomingDoc;
use rean_store::json::push_string;
use tokio::sync::oneshot;

use crate::databases::blocking;
use crate::docs::given_rev_text;
use crate::edit_in::read_document;
use crate::error::ApiError;
use crate::pod::{Pod, stopped};
use crate::render::{self, push_written};
use crate::room;
use crate::route::{Request, Response};
use crate::target::{self, Target};

/// What all their ids start with.
pub const PREFIX: &str = "_local/";
/// Most of them for each user of an app's database: a checkpoint for each client and direction, for years.
const MAX_OF_USER: usize = 1_000;
/// Largest of them for a user of an app's database, in bytes: a checkpoint's history is some 10 KiB.
const MAX_BYTES_OF_USER: usize = 64 << 10;

/// A revision of a `_local` document, shown as `0-n`.
pub struct LocalRev(pub u64);

impl std::fmt::Display for LocalRev {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0-{}", self.0)
    }
}

/// GET, PUT and DELETE of `/db/_local/id`.
///
/// # Errors
/// 404 when there is none, 409 for a revision that isn't the current one.
pub async fn document(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_local()?;
    let id = request.segments[1].clone();
    match request.method {
        Method::GET => get(&target, &id),
        Method::PUT => {
            let given = given_rev_text(&request).map(parse_rev).transpose()?;
            let mut incoming = read_document(pod, &target, &request.headers, request.body).await?;
            incoming.doc.local_rev = incoming.doc.local_rev.or(given);
            write(pod, &target, &id, incoming.doc).await
        }
        Method::DELETE => {
            let expected = given_rev_text(&request).map(parse_rev).transpose()?;
            remove(&target, &id, expected).await?;
            Ok(answer(StatusCode::OK, &id, 0))
        }
        _ => Err(ApiError::method_not_allowed("DELETE,GET,HEAD,PUT")),
    }
}

fn get(target: &Target, id: &str) -> Result<Response, ApiError> {
    let doc = target.db.local_get(&target.owner, name(id))?.ok_or_else(ApiError::missing)?;
    let mut out = Vec::with_capacity(doc.body.len() + 64);
    push_local(&mut out, id, doc.rev, &doc.body);
    out.push(b'\n');
    Ok(render::json(StatusCode::OK, out))
}

/// The document's text.
pub fn push_local(out: &mut Vec<u8>, id: &str, rev: u64, body: &[u8]) {
    out.extend_from_slice(b"{\"_id\":");
    push_string(out, id);
    render::push_rev(out, b",\"_rev\":", &LocalRev(rev));
    if body.len() > 2 {
        out.push(b',');
        out.extend_from_slice(&body[1..]);
    } else {
        out.push(b'}');
    }
}

/// Writes one and answers 201, or 200 when it was a deletion.
///
/// # Errors
/// As [`put`].
pub async fn write(pod: &Pod, target: &Target, id: &str, doc: IncomingDoc) -> Result<Response, ApiError> {
    let status = if doc.deleted { StatusCode::OK } else { StatusCode::CREATED };
    let rev = put(pod, target, id, doc).await?;
    Ok(answer(status, id, rev))
}

/// Writes one; `_deleted` removes it. Gives the `n` of its new revision.
///
/// # Errors
/// 401 or 403 when the author may not, 409 for a revision that isn't the current one, 403 and 413 beyond the bounds, 507
/// when nothing goes on the disk any more.
pub async fn put(pod: &Pod, target: &Target, id: &str, doc: IncomingDoc) -> Result<u64, ApiError> {
    target.require_local()?;
    if name(id).is_empty() {
        return Err(ApiError::bad_request("A _local document needs a name"));
    }
    if doc.attachments.is_some_and(|list| !list.is_empty()) {
        return Err(ApiError::bad_request("_local documents do not accept attachments."));
    }
    if doc.deleted {
        remove(target, id, doc.local_rev).await?;
        return Ok(0);
    }
    room::check_small(pod)?;
    if target.local_bounded {
        check_bounds(target, id, doc.body.len()).await?;
    }
    let (done, result) = oneshot::channel();
    target.db.local_put(
        &target.owner,
        name(id),
        doc.local_rev,
        Bytes::from(doc.body),
        Box::new(move |written| {
            // The client may have gone; the write stands.
            let _ = done.send(written);
        }),
    );
    wait(result).await
}

async fn check_bounds(target: &Target, id: &str, bytes: usize) -> Result<(), ApiError> {
    if bytes > MAX_BYTES_OF_USER {
        return Err(ApiError::document_too_large(id));
    }
    if target.db.local_get(&target.owner, name(id))?.is_some() {
        return Ok(());
    }
    // Up to 64 MiB are passed over for it: not on a thread that serves others.
    let (db, owner) = (target.db.clone(), target.owner.clone());
    if blocking(move || db.local_count(&owner, MAX_OF_USER)).await?? >= MAX_OF_USER {
        return Err(ApiError::forbidden("You have as many _local documents as one may have; delete some."));
    }
    Ok(())
}

async fn remove(target: &Target, id: &str, expected: Option<u64>) -> Result<(), ApiError> {
    let (done, result) = oneshot::channel();
    target.db.local_delete(
        &target.owner,
        name(id),
        expected,
        Box::new(move |written| {
            let _ = done.send(written);
        }),
    );
    wait(result).await.map(|_| ())
}

async fn wait(result: oneshot::Receiver<Result<u64, WriteError>>) -> Result<u64, ApiError> {
    Ok(result.await.map_err(|_| stopped())??)
}

/// The id without `_local/`.
fn name(id: &str) -> &str {
    id.strip_prefix(PREFIX).unwrap_or(id)
}

fn parse_rev(text: &str) -> Result<u64, ApiError> {
    text.strip_prefix("0-")
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| ApiError::bad_request("Invalid rev format"))
}

fn answer(status: StatusCode, id: &str, rev: u64) -> Response {
    let mut body = Vec::with_capacity(64);
    body.push(b'{');
    push_written(&mut body, id, &LocalRev(rev));
    body.extend_from_slice(b"}\n");
    render::json(status, body)
}
