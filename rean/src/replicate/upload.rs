//! Carries a document with large attachments over: they are read from the source one after the other and streamed to the
//! target as one `multipart/related` body, so that none of them is ever in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use rean_store::json::{push_string, scan_object};
use serde::Deserialize;

use super::carry::{Carrier, Wanted};
use super::fault::{Fault, words};
use super::peer::{Answer, Peer, Pieces, Sent, doc_path, escaped};
use crate::multipart::{Attachment, PartWriter};

/// Where the target takes no multipart bodies, documents whose attachments have up to this many bytes are sent in
/// base64. Above it they would take too much memory, and count as refused.
const MAX_INLINE_BYTES: u64 = 16 << 20;

/// What is known of an attachment.
#[derive(Deserialize)]
struct Stub {
    #[serde(default)]
    content_type: Option<String>,
    #[serde(default)]
    length: u64,
    #[serde(default)]
    revpos: Option<u64>,
    #[serde(default)]
    file: Option<serde::de::IgnoredAny>,
}

enum Piece {
    Text(Bytes),
    /// The path of an attachment.
    Attachment(String),
}

/// Carries one revision over.
///
/// # Errors
/// When an end can't be asked. A document that the target refuses is counted.
pub async fn carry(carrier: &Carrier, wanted: &Wanted) -> Result<(), Fault> {
    let path = doc_path(&wanted.id);
    let below = format!("{path}?rev={}&{}", escaped(&wanted.rev), carrier.revs());
    let answer = carrier.source.ask(Method::GET, &below, None).await?;
    match answer.status {
        StatusCode::OK => {}
        // Replaced since: the change that did it is still to come.
        StatusCode::NOT_FOUND => return Ok(()),
        _ => return Err(carrier.source.fault("reading a document", &answer)),
    }
    {
        let mut progress = carrier.job.progress().lock();
        progress.stats.read += 1;
        let bytes = wanted.attached_bytes.saturating_add(answer.body.len() as u64);
        progress.stats.bytes = progress.stats.bytes.saturating_add(bytes);
    }
    let malformed = || Fault::Passing(format!("{}: a document has another form", carrier.source.shown()));
    let upload = Upload::of(&answer, &path, &wanted.rev, carrier.source.is_pod()).ok_or_else(malformed)?;
    let fault = Arc::new(Mutex::new(None));
    let sent = upload.send_from(Arc::clone(&carrier.source), Arc::clone(&fault));
    let answer = match carrier.target.ask(Method::PUT, &format!("{path}?new_edits=false"), Some(sent)).await {
        Ok(answer) => answer,
        // If the source broke off, that is the reason why the target did.
        Err(broken) => return Err(fault.lock().take().unwrap_or(broken)),
    };
    if let Some(fault) = fault.lock().take() {
        return Err(fault);
    }
    if answer.status.is_success() {
        carrier.job.progress().lock().stats.written += 1;
        return Ok(());
    }
    match answer.status.as_u16() {
        401 | 403 | 409 | 412 | 413 => refuse(carrier, wanted, &answer),
        429 | 502..=504 => return Err(carrier.target.fault("writing a document", &answer)),
        _ if wanted.attached_bytes <= MAX_INLINE_BYTES => return inline(carrier, wanted).await,
        status if status >= 500 => return Err(carrier.target.fault("writing a document", &answer)),
        _ => refuse(carrier, wanted, &answer),
    }
    Ok(())
}

fn refuse(carrier: &Carrier, wanted: &Wanted, answer: &Answer) {
    let (error, reason) = words(&answer.body);
    carrier.refused(&wanted.id, &format!("{}: {error}: {reason}", answer.status));
    carrier.job.progress().lock().stats.refused += 1;
}

/// For targets that take no multipart bodies.
async fn inline(carrier: &Carrier, wanted: &Wanted) -> Result<(), Fault> {
    let below = format!("{}?rev={}&{}&attachments=true", doc_path(&wanted.id), escaped(&wanted.rev), carrier.revs());
    let answer = carrier.source.ask(Method::GET, &below, None).await?;
    if answer.status != StatusCode::OK {
        return Err(carrier.source.fault("reading a document", &answer));
    }
    carrier.write_docs(&[answer.body]).await
}

struct Upload {
    content_type: String,
    length: u64,
    pieces: VecDeque<Piece>,
}

impl Upload {
    /// The pieces of the body: the document, whose attachments follow, and they.
    fn of(doc: &Answer, path: &str, rev: &str, is_pod: bool) -> Option<Self> {
        let text = std::str::from_utf8(&doc.body).ok()?;
        let mut parts = PartWriter::new();
        let content_type = parts.content_type("related");
        let mut json = Vec::with_capacity(text.len() + 256);
        let mut attachments = Vec::new();
        for member in scan_object(text).ok()? {
            json.push(if json.is_empty() { b'{' } else { b',' });
            push_string(&mut json, &member.key);
            json.push(b':');
            if member.key == "_attachments" {
                attachments = push_followed(&mut json, member.value, is_pod)?;
            } else {
                json.extend_from_slice(member.value.as_bytes());
            }
        }
        json.push(b'}');
        let mut pieces = VecDeque::new();
        pieces.push_back(Piece::Text(parts.part(&[("Content-Type", "application/json")])));
        pieces.push_back(Piece::Text(json.into()));
        // What a source says of itself may be anything.
        let mut length = 0_u64;
        for (name, stub) in &attachments {
            pieces.push_back(Piece::Text(parts.attachment(Attachment {
                name,
                content_type: stub.content_type.as_deref().unwrap_or("application/octet-stream"),
                length: stub.length,
                encoding: None,
            })));
            pieces.push_back(Piece::Attachment(format!("{path}/{}?rev={}", escaped(name), escaped(rev))));
            length = length.checked_add(stub.length)?;
        }
        pieces.push_back(Piece::Text(parts.end()));
        for piece in &pieces {
            if let Piece::Text(text) = piece {
                length = length.checked_add(text.len() as u64)?;
            }
        }
        Some(Self { content_type, length, pieces })
    }

    /// The body, made while it is sent. What goes wrong at the source is left in `fault`.
    fn send_from(self, source: Arc<Peer>, fault: Arc<Mutex<Option<Fault>>>) -> Sent {
        let state = Sending { source, pieces: self.pieces, open: None };
        let stream = futures_util::stream::try_unfold((state, fault), |(mut state, fault)| async move {
            match state.next().await {
                Ok(None) => Ok(None),
                Ok(Some(bytes)) => Ok(Some((bytes, (state, fault)))),
                Err(broken) => {
                    *fault.lock() = Some(broken.clone());
                    Err(broken)
                }
            }
        });
        Sent {
            content_type: HeaderValue::try_from(self.content_type)
                .unwrap_or(HeaderValue::from_static("multipart/related")),
            length: self.length,
            body: Body::from_stream(stream),
        }
    }
}

struct Sending {
    source: Arc<Peer>,
    pieces: VecDeque<Piece>,
    /// The attachment that is being read.
    open: Option<Pieces>,
}

impl Sending {
    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            if let Some(open) = &mut self.open {
                match open.next().await {
                    Some(bytes) => return bytes.map(Some),
                    None => self.open = None,
                }
            }
            match self.pieces.pop_front() {
                None => return Ok(None),
                Some(Piece::Text(text)) => return Ok(Some(text)),
                Some(Piece::Attachment(path)) => {
                    let response = self.source.send(Method::GET, &path, None).await?;
                    let status = response.status();
                    if status != StatusCode::OK {
                        let why = format!("{}: an attachment could not be read: {status}", self.source.shown());
                        return Err(Fault::Passing(why));
                    }
                    self.open = Some(self.source.pieces(response));
                }
            }
        }
    }
}

/// Writes `_attachments` with each of them as one that follows, but for what another pod says to be a file; without digests, which are of what the source stored and
/// may be of compressed bytes.
fn push_followed(json: &mut Vec<u8>, text: &str, is_pod: bool) -> Option<Vec<(String, Stub)>> {
    let mut attachments = Vec::new();
    json.push(b'{');
    for (n, member) in scan_object(text).ok()?.into_iter().enumerate() {
        let stub: Stub = serde_json::from_str(member.value).ok()?;
        if n > 0 {
            json.push(b',');
        }
        push_string(json, &member.key);
        if is_pod && stub.file.is_some() {
            json.push(b':');
            json.extend_from_slice(member.value.as_bytes());
            continue;
        }
        json.extend_from_slice(b":{\"follows\":true,\"content_type\":");
        push_string(json, stub.content_type.as_deref().unwrap_or("application/octet-stream"));
        json.extend_from_slice(format!(",\"length\":{}", stub.length).as_bytes());
        if let Some(revpos) = stub.revpos {
            json.extend_from_slice(format!(",\"revpos\":{revpos}").as_bytes());
        }
        json.push(b'}');
        attachments.push((member.key.into_owned(), stub));
    }
    json.push(b'}');
    Some(attachments)
}
