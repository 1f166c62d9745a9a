//! Files between pods: a pod gives what it has to another one, and says which it needs. Only over the links' port: to
//! clients there is no such resource.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::{Identity, PodId};
use axum::body::Body;
use futures_util::{StreamExt, stream};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::{BodyExt, Limited};
use rean_store::{FileKey, FilePlace, StoredFile};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::body_in;
use crate::databases::{blocking, json_line};
use crate::error::ApiError;
use crate::files::Files;
use crate::files::error::FileError;
use crate::files::reader::FileStream;
use crate::pod::Pod;
use crate::range::ByteRange;
use crate::ring::standing::require_peer;
use crate::route::{Request, Response};

/// Files that are asked about in one request.
pub const MAX_ASKED: usize = 1_000;
/// An answer to that, in bytes: each name has 32 digits.
const MAX_ANSWER_BYTES: usize = 128 << 10;
/// How often a file that breaks off is asked for again, where it broke off.
const RESUMES: usize = 5;

/// Until a pod's answer begins: a reader waits for it, and there are other pods.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Which of these files another pod is to say that it has documents of.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    keys: Vec<String>,
}

/// Those.
#[derive(Debug, Serialize, Deserialize)]
struct Needed {
    needed: Vec<String>,
}

/// `/_pod/files/KEY` and `/_pod/files/needed`, for the other pods.
///
/// # Errors
/// 404 for anybody else, and for a file that is not here.
pub async fn serve(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    require_peer(who, &request)?;
    let name = request.segments.get(2).cloned().unwrap_or_default();
    match (request.method.as_str(), name.as_str()) {
        ("POST", "needed") => needed(pod, request).await,
        ("GET", name) => give(pod, name, request.headers).await,
        _ => Err(ApiError::missing()),
    }
}

/// Gives a file that is in this pod's folder.
async fn give(pod: &Arc<Pod>, name: &str, headers: HeaderMap) -> Result<Response, ApiError> {
    let key: FileKey = name.parse().map_err(|_| ApiError::missing())?;
    let path = pod.files.storage.local_path(key);
    let about = tokio::fs::metadata(&path).await.map_err(|_| ApiError::missing())?;
    let length = about.len();
    let range = ByteRange::parse(headers.get(RANGE).and_then(|range| range.to_str().ok()), length);
    let (status, from, to) = match range {
        ByteRange::Whole => (StatusCode::OK, 0, length),
        ByteRange::Part { start, end } => (StatusCode::PARTIAL_CONTENT, start, end),
        ByteRange::Unsatisfiable => return Err(ApiError::missing()),
    };
    // The hash is the other pod's to check.
    let file = StoredFile { key, place: FilePlace::Local, length, digest_md5: [0; 16], sha256: [0; 32] };
    let bytes = pod.files.open_here(&file, from, to).await?;
    let mut response = Response::new(Body::from_stream(bytes));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(to - from));
    if let Some(text) = range.content_range(length).and_then(|text| HeaderValue::try_from(text).ok()) {
        headers.insert(CONTENT_RANGE, text);
    }
    Ok(response)
}

/// Says of which files this pod has documents.
async fn needed(pod: &Arc<Pod>, request: Request) -> Result<Response, ApiError> {
    let text = body_in::read_json(pod, &request.headers, request.body).await?;
    let asked: Asked = serde_json::from_slice(&text).map_err(|_| ApiError::invalid_json())?;
    if asked.keys.len() > MAX_ASKED {
        return Err(ApiError::bad_request("too many files"));
    }
    let pod = Arc::clone(pod);
    let needed = blocking(move || {
        let mut needed = Vec::new();
        for name in asked.keys {
            // What this version can't read it may well need.
            let known = name.parse().map_or(Ok(true), |key| pod.files.is_needed(&pod, key));
            if known? {
                needed.push(name);
            }
        }
        Ok::<_, ApiError>(needed)
    });
    Ok(json_line(StatusCode::OK, &json!(Needed { needed: needed.await?? })))
}

impl Files {
    /// Whether a document of this pod has a file, or had when its database was last compacted.
    ///
    /// # Errors
    /// The store failed.
    pub fn is_needed(&self, pod: &Pod, key: FileKey) -> Result<bool, rean_store::StoreError> {
        for db in pod.store.db_names().iter().filter_map(|name| pod.store.db(name)) {
            if db.has_file(key)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The other pods, with their addresses: the write master first, where new files are.
pub fn others(pod: &Pod) -> VecDeque<(PodId, String)> {
    let Some(state) = pod.ring.state() else { return VecDeque::new() };
    let master = pod.ring.role().epoch().map(|epoch| epoch.pod().clone());
    let mut others: Vec<_> = state
        .members
        .iter()
        .filter(|known| known.member.alive && known.member.id != *pod.ring.me())
        .map(|known| (known.member.id.clone(), known.member.address.clone()))
        .collect();
    others.sort_by_key(|(id, _)| Some(id) != master.as_ref());
    others.into()
}

/// Opens the bytes `from..to` of a file on whichever pod has it. What breaks off is asked for again from there.
///
/// # Errors
/// When no pod gives it.
pub async fn open(files: &Arc<Files>, file: StoredFile, from: u64, to: u64) -> Result<FileStream, FileError> {
    let first = open_once(files, &file, from, to).await?;
    let state = Resumed { files: Arc::clone(files), file, at: from, to, bytes: first, left: RESUMES };
    Ok(stream::try_unfold(state, |mut state| async move { Ok(state.next().await?.map(|bytes| (bytes, state))) })
        .boxed())
}

struct Resumed {
    files: Arc<Files>,
    file: StoredFile,
    at: u64,
    to: u64,
    bytes: FileStream,
    left: usize,
}

impl Resumed {
    async fn next(&mut self) -> Result<Option<bytes::Bytes>, FileError> {
        loop {
            let error = match self.bytes.next().await {
                Some(Ok(piece)) => {
                    self.at += piece.len() as u64;
                    return Ok(Some(piece));
                }
                None if self.at >= self.to => return Ok(None),
                None => FileError::Pods("it ended too early".to_owned()),
                Some(Err(error)) => error,
            };
            if self.left == 0 || self.at >= self.to {
                return Err(error);
            }
            self.left -= 1;
            self.bytes = open_once(&self.files, &self.file, self.at, self.to).await?;
        }
    }
}

async fn open_once(files: &Files, file: &StoredFile, from: u64, to: u64) -> Result<FileStream, FileError> {
    let Some(pod) = files.pod() else { return Err(FileError::Missing) };
    let mut why = "no other pod is there".to_owned();
    for (id, address) in others(&pod) {
        match ask(&pod, &id, &address, file, from, to).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => why = format!("{id}: {error}"),
        }
    }
    Err(FileError::Pods(why))
}

async fn ask(
    pod: &Pod,
    id: &PodId,
    address: &str,
    file: &StoredFile,
    from: u64,
    to: u64,
) -> Result<FileStream, String> {
    let request = http::Request::get(format!("/_pod/files/{}", file.key))
        .header(RANGE, format!("bytes={from}-{}", to.saturating_sub(1)))
        .body(Body::empty())
        .map_err(|error| error.to_string())?;
    let answer = send(pod, id, address, request).await?;
    if !answer.status().is_success() {
        return Err(answer.status().to_string());
    }
    let length = answer.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length != Some(to - from) {
        return Err("it has another length there".to_owned());
    }
    let bytes = answer.into_body().into_data_stream();
    Ok(bytes.map(|piece| piece.map_err(|error| FileError::Pods(error.to_string()))).boxed())
}

async fn send(pod: &Pod, id: &PodId, address: &str, mut request: http::Request<Body>) -> Result<Response, String> {
    let wire = pod.ring.wire().ok_or("this pod is alone")?;
    wire.identify(request.headers_mut());
    let sent = tokio::time::timeout(ANSWER_TIMEOUT, wire.send(id, address, request)).await;
    sent.map_err(|_| "no answer in time".to_owned())?.map_err(|error| error.to_string())
}

/// Which of these files a pod has documents of.
///
/// # Errors
/// When it doesn't say.
pub async fn ask_needed(pod: &Pod, id: &PodId, address: &str, keys: &[FileKey]) -> Result<Vec<FileKey>, String> {
    let asked = Asked { keys: keys.iter().map(FileKey::to_string).collect() };
    let body = serde_json::to_vec(&asked).map_err(|error| error.to_string())?;
    let request = http::Request::post("/_pod/files/needed")
        .header(CONTENT_TYPE, "application/json")
        .header(CONTENT_LENGTH, body.len())
        .body(Body::from(body))
        .map_err(|error| error.to_string())?;
    let answer = send(pod, id, address, request).await?;
    if answer.status() != StatusCode::OK {
        return Err(answer.status().to_string());
    }
    let text = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(|error| error.to_string())?;
    let needed: Needed = serde_json::from_slice(&text.to_bytes()).map_err(|error| error.to_string())?;
    Ok(needed.needed.iter().filter_map(|name| name.parse().ok()).collect())
}
