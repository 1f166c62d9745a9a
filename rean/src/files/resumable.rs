//! Uploads in several requests: `/db/_uploads`, in the protocol tus 1.0.0 with `creation`, `expiration` and `termination`
//! (<https://tus.io/protocols/resumable-upload>).
//!
//! `POST` says what comes: `Upload-Length`, and in `Upload-Metadata` the document (`doc`), the attachment's `name`, its
//! `type`, and the document's `rev` if there is one. With the last byte the document is written, as `PUT /db/doc/name`
//! does; its revision is in `X-Couch-Update-NewRev`. If that is refused the upload stays, and an empty `PATCH?rev=` at its
//! end tries again. It is all on the write master: after a change of master the client begins anew.

use std::sync::Arc;

use adea_ring::Identity;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use percent_encoding::utf8_percent_encode;
use rean_store::document::{validate_id, validate_name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::attachments::{DEFAULT_TYPE, Place, base_of, write_attachment};
use crate::docs::LOCATION_ESCAPES;
use crate::edit_in;
use crate::error::ApiError;
use crate::files::resumable::spool::{About, EXPIRES_S, Entry, disk};
use crate::pod::Pod;
use crate::render::parse_rev;
use crate::replicate::moment::Moment;
use crate::room;
use crate::route::{Request, Response};
use crate::target::{self, Target};
use crate::upload::Upload;
use crate::workers::{Stop, now_s};

pub mod spool;

const TUS_RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
const UPLOAD_METADATA: HeaderName = HeaderName::from_static("upload-metadata");
const NEW_REV: HeaderName = HeaderName::from_static("x-couch-update-newrev");
const VERSION: HeaderValue = HeaderValue::from_static("1.0.0");
/// The type of a piece.
const PIECE_TYPE: &str = "application/offset+octet-stream";
/// Bytes that are read at once of what has come.
const READ_BYTES: usize = 256 << 10;
/// Room that is made at once for bytes that come: to look at all uploads for each piece would take longer than the disk.
const HOLD_BYTES: u64 = 1 << 20;
/// Between two looks for uploads that have expired.
const EXPIRY_PAUSE: std::time::Duration = std::time::Duration::from_secs(600);

/// Drops uploads that have expired, until it is told to stop.
///
/// # Errors
/// Never.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    loop {
        pod.files.spool.expire(now_s());
        tokio::select! {
            () = tokio::time::sleep(EXPIRY_PAUSE) => {}
            () = stop.stopped() => return Ok(()),
        }
    }
}

/// All methods of `/db/_uploads` and `/db/_uploads/ID`.
///
/// # Errors
/// 404 for an upload of somebody else as for one that isn't there; 409 at another offset than the upload's; 412 for
/// another version of the protocol; 413 for more than may be sent; 507 on a full disk; what the write of the document says.
pub async fn uploads(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    if request.method == Method::OPTIONS {
        return Ok(options(pod));
    }
    if request.header(TUS_RESUMABLE) != VERSION.to_str().ok() {
        let reason = "This is for clients of tus 1.0.0: the header Tus-Resumable must say so";
        let error = ApiError::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", reason);
        return Err(error.with_header(HeaderName::from_static("tus-version"), VERSION));
    }
    let done = match (request.method.as_str(), request.segments.len()) {
        ("POST", 2) => begin(pod, &target, request).await,
        // A HEAD that another pod has sent on comes as GET.
        ("GET", 3) => entry(pod, &target, &request).and_then(|entry| tell(&entry)),
        ("PATCH", 3) => add(pod, &target, request).await,
        ("DELETE", 3) => {
            let entry = entry(pod, &target, &request)?;
            let _turn = turn(pod, &entry)?;
            pod.files.spool.drop_entry(&entry.id);
            Ok(answer(StatusCode::NO_CONTENT))
        }
        (_, 2) => Err(ApiError::method_not_allowed("OPTIONS,POST")),
        (_, 3) => Err(ApiError::method_not_allowed("DELETE,HEAD,OPTIONS,PATCH")),
        _ => Err(ApiError::missing()),
    };
    done.map_err(|error| match error.header {
        None => error.with_header(TUS_RESUMABLE, VERSION),
        Some(_) => error,
    })
}

fn options(pod: &Pod) -> Response {
    let mut response = answer(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    headers.insert("tus-version", VERSION);
    headers.insert("tus-extension", HeaderValue::from_static("creation,expiration,termination"));
    headers.insert("tus-max-size", HeaderValue::from(pod.settings.get().max_attachment_bytes));
    response
}

fn answer(status: StatusCode) -> Response {
    let mut response = Response::default();
    *response.status_mut() = status;
    response.headers_mut().insert(TUS_RESUMABLE, VERSION);
    response
}

/// Makes an upload.
async fn begin(pod: &Arc<Pod>, target: &Target, request: Request) -> Result<Response, ApiError> {
    let length: Option<u64> = request.header(UPLOAD_LENGTH).and_then(|text| text.parse().ok());
    let length = length.ok_or_else(|| ApiError::bad_request("Upload-Length must say how many bytes will come"))?;
    let max = pod.settings.get().max_attachment_bytes;
    if length > max {
        return Err(ApiError::body_too_large());
    }
    room::check(pod)?;
    let about = metadata(target, length, request.header(UPLOAD_METADATA).unwrap_or(""))?;
    let place = place(&about)?;
    target.require_write_doc(&place.id)?;
    edit_in::require_creator(target, &place.id)?;
    // A refusal should not cost a gigabyte.
    base_of(target, &place.id, place.given.as_ref())?;
    let entry = pod.files.spool.begin(about, max)?;
    let mut response = answer(StatusCode::CREATED);
    if length == 0 {
        let _turn = turn(pod, &entry)?;
        let rev = finish(pod, target, &entry, place).await?;
        response.headers_mut().insert(NEW_REV, rev);
    }
    let database = utf8_percent_encode(&target.name, LOCATION_ESCAPES);
    if let Ok(location) = HeaderValue::try_from(format!("/{database}/_uploads/{}", entry.id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    expires(&mut response, &entry);
    Ok(response)
}

/// `Upload-Metadata`: names, each with a value in Base64, parted by commas.
fn metadata(target: &Target, length: u64, text: &str) -> Result<About, ApiError> {
    let malformed = || ApiError::bad_request("Upload-Metadata must be names with values in Base64, parted by commas");
    let mut about = About {
        owner: target.who.name.clone(),
        db: target.name.clone(),
        doc: String::new(),
        name: String::new(),
        content_type: DEFAULT_TYPE.to_owned(),
        rev: None,
        length,
        heard_s: now_s(),
        done: None,
    };
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once(' ').unwrap_or((pair, ""));
        let value = STANDARD.decode(value.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let value = value.ok_or_else(malformed)?;
        match key {
            "doc" => about.doc = value,
            "name" => about.name = value,
            "type" if !value.is_empty() => about.content_type = value,
            "rev" if !value.is_empty() => about.rev = Some(value),
            // Clients send more, for people.
            _ => {}
        }
    }
    if about.doc.is_empty() || about.name.is_empty() {
        return Err(ApiError::bad_request(
            "Upload-Metadata must have the document as `doc` and the attachment's `name`",
        ));
    }
    Ok(about)
}

/// Where the attachment goes.
fn place(about: &About) -> Result<Place, ApiError> {
    validate_id(&about.doc)?;
    validate_name(&about.name)?;
    Ok(Place {
        id: about.doc.clone(),
        name: about.name.clone(),
        given: about.rev.as_deref().map(parse_rev).transpose()?,
        kind: about.content_type.clone(),
    })
}

/// An upload of whoever asks, in the database that they name.
fn entry(pod: &Pod, target: &Target, request: &Request) -> Result<Arc<Entry>, ApiError> {
    let entry = pod.files.spool.get(&request.segments[2], target.who.name.as_deref());
    entry.filter(|entry| entry.about.lock().db == target.name).ok_or_else(ApiError::missing)
}

fn turn(pod: &Pod, entry: &Entry) -> Result<tokio::sync::OwnedMutexGuard<()>, ApiError> {
    let taken = Arc::clone(&entry.turn).try_lock_owned();
    let taken = taken
        .map_err(|_| ApiError::new(StatusCode::LOCKED, "locked", "Another request adds to this upload; try again"))?;
    // It may have gone between the look for it and this.
    if pod.files.spool.has(&entry.id) { Ok(taken) } else { Err(ApiError::missing()) }
}

/// How far an upload is.
fn tell(entry: &Entry) -> Result<Response, ApiError> {
    let mut response = answer(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(UPLOAD_OFFSET, HeaderValue::from(entry.offset()?));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let about = entry.about.lock().clone();
    headers.insert(UPLOAD_LENGTH, HeaderValue::from(about.length));
    if let Some(rev) = about.done.and_then(|rev| HeaderValue::try_from(rev).ok()) {
        headers.insert(NEW_REV, rev);
    }
    expires(&mut response, entry);
    Ok(response)
}

fn expires(response: &mut Response, entry: &Entry) {
    let at_s = entry.about.lock().heard_s.saturating_add(EXPIRES_S);
    if let Ok(value) = HeaderValue::try_from(Moment::of_unix_s(at_s).rfc1123()) {
        response.headers_mut().insert("upload-expires", value);
    }
}

/// Adds a piece. What came of one that broke off stays.
async fn add(pod: &Arc<Pod>, target: &Target, request: Request) -> Result<Response, ApiError> {
    let entry = entry(pod, target, &request)?;
    if request.header(CONTENT_TYPE) != Some(PIECE_TYPE) {
        return Err(ApiError::bad_content_type(PIECE_TYPE));
    }
    let mut about = entry.about.lock().clone();
    if let Some(rev) = request.query.get("rev") {
        about.rev = Some(rev.to_owned()).filter(|rev| !rev.is_empty());
    }
    let place = place(&about)?;
    target.require_write_doc(&place.id)?;
    let _turn = turn(pod, &entry)?;
    let at = entry.offset()?;
    if request.header(UPLOAD_OFFSET).and_then(|text| text.parse().ok()) != Some(at) {
        let error = ApiError::new(StatusCode::CONFLICT, "conflict", "The upload is at another offset");
        return Err(error.with_header(UPLOAD_OFFSET, HeaderValue::from(at)));
    }
    let settling = entry.settling();
    let came = receive(pod, &entry, at, about.length, request).await;
    drop(settling);
    entry.heard(now_s())?;
    let at = came?;
    let mut response = answer(StatusCode::NO_CONTENT);
    if at == about.length {
        let rev = match entry.about.lock().done.clone() {
            Some(rev) => HeaderValue::try_from(rev).ok(),
            None => None,
        };
        let rev = match rev {
            Some(rev) => rev,
            None => finish(pod, target, &entry, place).await?,
        };
        response.headers_mut().insert(NEW_REV, rev);
    }
    response.headers_mut().insert(UPLOAD_OFFSET, HeaderValue::from(at));
    expires(&mut response, &entry);
    Ok(response)
}

/// Keeps what a request brings; gives the new offset. What is acknowledged is on the disk.
async fn receive(pod: &Pod, entry: &Entry, at: u64, length: u64, request: Request) -> Result<u64, ApiError> {
    let mut body = request.body.into_data_stream();
    let mut at = at;
    let mut data = None;
    let mut ended = Ok(());
    // What is held of the upload has come.
    let mut held = at;
    while let Some(piece) = body.next().await {
        let piece = match piece {
            Ok(piece) => piece,
            Err(_) => {
                ended = Err(ApiError::bad_request("The body ended too early; what came of it is kept"));
                break;
            }
        };
        if piece.len() as u64 > length - at {
            ended = Err(ApiError::body_too_large());
            break;
        }
        let size = piece.len() as u64;
        if at + size > held {
            let more = size.max(HOLD_BYTES).min(length - held);
            if let Err(full) = pod.files.spool.hold(entry, more, pod.settings.get().max_attachment_bytes) {
                ended = Err(full);
                break;
            }
            held += more;
        }
        // Each time: the disk may get full while a gigabyte comes.
        if let Err(full) = room::check(pod) {
            ended = Err(full);
            break;
        }
        let data = match &mut data {
            Some(data) => data,
            None => {
                let open = tokio::fs::OpenOptions::new().append(true).open(entry.data()).await;
                data.insert(open.map_err(|error| disk(&error))?)
            }
        };
        data.write_all(&piece).await.map_err(|error| disk(&error))?;
        at += piece.len() as u64;
    }
    if let Some(mut data) = data {
        data.flush().await.map_err(|error| disk(&error))?;
        data.sync_data().await.map_err(|error| disk(&error))?;
    }
    ended.map(|()| at)
}

/// Writes the document with what has come.
async fn finish(pod: &Arc<Pod>, target: &Target, entry: &Entry, place: Place) -> Result<HeaderValue, ApiError> {
    // Its rights and its document of this moment.
    let base = base_of(target, &place.id, place.given.as_ref())?;
    let length = entry.about.lock().length;
    let mut upload = Upload::begin(pod, target, None, Some(length))?;
    let mut data = tokio::fs::File::open(entry.data()).await.map_err(|error| disk(&error))?;
    let mut bytes = vec![0; READ_BYTES];
    loop {
        match data.read(&mut bytes).await.map_err(|error| disk(&error))? {
            0 => break,
            count => upload.write(&bytes[..count]).await?,
        }
    }
    let blob = upload.finish().await?;
    if blob.length() != length {
        return Err(ApiError::internal("the upload has another length than it should"));
    }
    let written = write_attachment(pod, target, place, base, blob).await?;
    let rev = written.rev.to_string();
    entry.finish(rev.clone());
    HeaderValue::try_from(rev).map_err(|error| ApiError::internal("a revision is no header").with_cause(error))
}
