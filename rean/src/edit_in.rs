//! From what a client sends to what the store takes: a document's text or multipart body becomes an edit, with its
//! attachments stored and waiting for the commit.

use std::collections::HashMap;
use std::sync::Arc;

use adea_ring::Identity;
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use rean_store::document::{
    AttachmentSource, DocumentError, IncomingAttachment, IncomingDoc, MAX_ATTACHMENTS, parse_document,
};
use rean_store::{AttachmentEdit, AttachmentEditSource, BlobRef, Db, Edit, Mode, Scope, Write, Written};

use crate::accounts;
use crate::body_in::{self, Limited};
use crate::designs::MAX_WRITTEN_BYTES;
use crate::error::ApiError;
use crate::files::writer;
use crate::functions::{check, validate};
use crate::hosting::rules;
use crate::multipart::{Multipart, MultipartError, boundary_of};
use crate::pod::Pod;
use crate::ring::{brought, config_doc, join, upgrade};
use crate::room;
use crate::target::{self, System, Target};
use crate::upload::Upload;

/// The names of a document's attachments together, in bytes: enough for all that there may be, and little even where each
/// byte is written as six.
const MAX_NAMES_BYTES: usize = 1 << 20;
/// The longest content type of an attachment, in bytes: RFC 6838 (section 4.2) has names of two times 127, and there may
/// be parameters. With all attachments that a document may have they stay far below what one request may carry.
const MAX_KIND_BYTES: usize = 1_024;
/// Documents' texts above this size, in bytes, are parsed off the threads that serve requests.
const PARSE_ASIDE_BYTES: usize = 256 << 10;

/// A document as it came, with the attachments that followed it.
pub struct Incoming {
    /// The document.
    pub doc: IncomingDoc,
    /// Stored attachments by name; empty but for a multipart body.
    pub follows: HashMap<String, BlobRef>,
}

/// Reads the document that a PUT or POST carries: JSON, or `multipart/related` with its attachments.
///
/// # Errors
/// 400 for malformed input, 413 for what is too large.
pub async fn read_document(pod: &Pod, target: &Target, headers: &HeaderMap, body: Body) -> Result<Incoming, ApiError> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let is_related = content_type.get(..17).is_some_and(|start| start.eq_ignore_ascii_case("multipart/related"));
    if is_related {
        return read_related(pod, target, content_type, body).await;
    }
    let text = body_in::read_any(pod, headers, body).await?;
    Ok(Incoming { doc: aside(text.len(), move || parse_document(&text)).await??, follows: HashMap::new() })
}

/// Runs a parser, on another thread if its input is large.
///
/// # Errors
/// When the server is stopping.
pub async fn aside<T: Send + 'static>(
    input_bytes: usize,
    parse: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if input_bytes <= PARSE_ASIDE_BYTES {
        return Ok(parse());
    }
    let parsed = tokio::task::spawn_blocking(parse).await;
    parsed.map_err(|error| ApiError::internal("the body could not be parsed").with_cause(error))
}

async fn read_related(pod: &Pod, target: &Target, content_type: &str, body: Body) -> Result<Incoming, ApiError> {
    let boundary = boundary_of(content_type).map_err(multipart_error)?;
    let (limits, settings) = (&pod.limits, pod.settings.get());
    // One bound for the document and all of its attachments together. What another pod has taken, it may have taken one
    // attachment after the other.
    let (max_document_bytes, attached) = match is_taken(target) {
        true => (limits.max_body_bytes, limits.max_attachment_bytes.saturating_mul(MAX_ATTACHMENTS as u64)),
        false => (settings.max_document_bytes, settings.max_attachment_bytes),
    };
    let max = attached.saturating_add(limits.max_body_bytes as u64);
    let mut parts = Multipart::new(Limited::new(body, max), &boundary);
    if parts.next_part().await.map_err(multipart_error)?.is_none() {
        return Err(ApiError::bad_request("The multipart body has no document"));
    }
    let mut text = Vec::new();
    while let Some(chunk) = parts.chunk().await.map_err(multipart_error)? {
        // Attachments come in parts of their own here, so this is the document alone.
        if text.len() + chunk.len() > max_document_bytes {
            return Err(ApiError::body_too_large());
        }
        text.extend_from_slice(&chunk);
    }
    let doc = parse_document(&text)?;
    let mut expected: Vec<&IncomingAttachment> = doc
        .attachments
        .iter()
        .flatten()
        .filter(|attachment| matches!(attachment.source, AttachmentSource::Follows { .. }))
        .collect();
    let mut follows = HashMap::new();
    while let Some(headers) = parts.next_part().await.map_err(multipart_error)? {
        if expected.is_empty() {
            return Err(ApiError::bad_request("The multipart body has more parts than attachments that follow"));
        }
        // By name where the part says one, else in the order of `_attachments`. That order goes first where a name has
        // characters that a part can't say: what is left of it may be the name of another attachment.
        let named = headers.filename().filter(|name| !is_said(&expected[0].name, name));
        let named = named.and_then(|name| expected.iter().position(|attachment| attachment.name == name));
        let attachment = expected.remove(named.unwrap_or(0));
        let blob = store_part(pod, target, &mut parts, attachment).await?;
        follows.insert(attachment.name.clone(), blob);
    }
    if let Some(attachment) = expected.first() {
        return Err(ApiError::bad_request(format!("The attachment {:?} does not follow", attachment.name)));
    }
    Ok(Incoming { doc, follows })
}

/// Whether this is how our own writer says the name of an attachment.
fn is_said(name: &str, said: &str) -> bool {
    name.chars().map(|character| if character.is_control() { ' ' } else { character }).eq(said.chars())
}

async fn store_part(
    pod: &Pod,
    target: &Target,
    parts: &mut Multipart<Limited>,
    attachment: &IncomingAttachment,
) -> Result<BlobRef, ApiError> {
    let mut upload = Upload::begin(pod, target, attachment.encoding.as_deref(), attachment.length)?;
    while let Some(chunk) = upload.hears(parts.chunk()).await?.map_err(multipart_error)? {
        upload.write(&chunk).await?;
    }
    upload.finish().await
}

/// What is wrong with a multipart body, for the client.
pub fn multipart_error(error: MultipartError) -> ApiError {
    use std::error::Error as _;
    if let Some(source) = error.source()
        && let Some(body_in::LimitedError::TooLarge) = source.downcast_ref()
    {
        return ApiError::body_too_large();
    }
    match error {
        MultipartError::TooLarge => ApiError::body_too_large(),
        MultipartError::Malformed(_) | MultipartError::Body(_) => ApiError::bad_request(error.to_string()),
    }
}

/// Makes the edit of a document: stores its inline attachments. Only another pod is believed when it says that an
/// attachment is a file.
///
/// # Errors
/// 400 for attachments that can't be decoded or don't follow.
pub fn edit(target: &Target, id: String, incoming: Incoming, mode: Mode) -> Result<Edit, ApiError> {
    let db = &target.db;
    let Incoming { doc, mut follows } = incoming;
    let mut attachments = Vec::new();
    for attachment in doc.attachments.unwrap_or_default() {
        let source = match attachment.source {
            AttachmentSource::Stub
                if is_taken(target)
                    && let Some(file) = attachment.file =>
            {
                AttachmentEditSource::Blob(db.file_ref(file, None))
            }
            AttachmentSource::Stub => AttachmentEditSource::Stub { digest: attachment.digest },
            AttachmentSource::Inline(text) => AttachmentEditSource::Blob(store_inline(db, &attachment.name, &text)?),
            AttachmentSource::Follows { .. } => {
                let blob = follows.remove(&attachment.name).ok_or_else(|| {
                    ApiError::bad_request(format!("The attachment {:?} does not follow", attachment.name))
                })?;
                AttachmentEditSource::Blob(blob)
            }
        };
        attachments.push(AttachmentEdit {
            name: attachment.name,
            content_type: attachment.content_type,
            revpos: attachment.revpos,
            source,
        });
    }
    let history = match (mode, doc.revisions, &doc.rev) {
        (Mode::Interactive, ..) => Vec::new(),
        (Mode::Replicated, Some(revisions), _) => revisions,
        (Mode::Replicated, None, Some(rev)) => vec![rev.clone()],
        (Mode::Replicated, None, None) => Vec::new(),
    };
    Ok(Edit {
        id,
        parent: doc.rev.filter(|_| mode == Mode::Interactive),
        history,
        deleted: doc.deleted,
        body: Bytes::from(doc.body),
        access: doc.access,
        attachments,
    })
}

fn store_inline(db: &Db, name: &str, text: &str) -> Result<BlobRef, ApiError> {
    let bytes =
        STANDARD.decode(text).map_err(|_| ApiError::bad_request(format!("Invalid attachment data for {name:?}")))?;
    let mut blob = db.blob_writer();
    blob.write(&bytes)?;
    Ok(blob.finish()?)
}

/// Refuses who will not be let create the document anyway, before a gigabyte of attachments is taken from them. In the
/// store's words, and for a document that they can't see as for one that isn't there.
///
/// # Errors
/// 401 or 403.
pub fn require_creator(target: &Target, id: &str) -> Result<(), ApiError> {
    let Scope::Personal(reader) = &target.scope else {
        return Ok(());
    };
    if target.who.is_admin()
        || reader.is_among(target.db.rules().create())
        || target.db.doc(&target.scope, id)?.is_some()
    {
        return Ok(());
    }
    Err(match target.who.name {
        Some(_) => ApiError::forbidden("You may not create documents here."),
        None => ApiError::unauthorized("You may not create documents here. Log in first."),
    })
}

/// Whether what is written was taken by a pod of the ring: its limits were asked there, and what one pod has taken the
/// others must take, or they would show for good what it replaces.
pub fn is_taken(target: &Target) -> bool {
    target.who == Identity::system()
}

/// Refuses what other pods could not be told of in one piece: a document's text, and what is said of its attachments.
fn check_size(pod: &Pod, edit: &Edit) -> Result<(), ApiError> {
    if edit.body.len() > pod.settings.get().max_document_bytes {
        return Err(ApiError::document_too_large(&edit.id));
    }
    if edit.attachments.len() > MAX_ATTACHMENTS {
        return Err(DocumentError::TooLarge(format!("A document has at most {MAX_ATTACHMENTS} attachments")).into());
    }
    if edit.attachments.iter().map(|one| one.name.len()).sum::<usize>() > MAX_NAMES_BYTES {
        return Err(DocumentError::TooLarge("The names of the attachments are too long".to_owned()).into());
    }
    let is_long = |one: &AttachmentEdit| one.content_type.as_ref().is_some_and(|kind| kind.len() > MAX_KIND_BYTES);
    match edit.attachments.iter().find(|one| is_long(one)) {
        Some(one) => {
            Err(ApiError::bad_request(format!("The content type of the attachment {:?} is too long", one.name)))
        }
        None => Ok(()),
    }
}

/// Writes edits, through the hooks of the pod's own databases. One result an edit, in order.
///
/// # Errors
/// When nothing could be tried.
pub async fn write_all(
    pod: &Arc<Pod>,
    target: &Target,
    edits: Vec<Edit>,
    mode: Mode,
) -> Result<Vec<Result<Written, ApiError>>, ApiError> {
    // The body may have taken hours to come: what counts is what its author may do now.
    let target = &target::resolve(pod, &target.who, &target.name)?;
    for edit in &edits {
        target.require_write_doc(&edit.id)?;
    }
    room::check_edits(pod, target, &edits)?;
    if (mode == Mode::Interactive || !is_taken(target)) && edits.iter().any(check::is_needed) {
        return write_designs(pod, target, edits, mode).await;
    }
    write_checked(pod, target, edits, mode).await
}

/// Writes edits of which some are of design documents: what is no design document, or one too many, is refused first.
async fn write_designs(
    pod: &Arc<Pod>,
    target: &Target,
    edits: Vec<Edit>,
    mode: Mode,
) -> Result<Vec<Result<Written, ApiError>>, ApiError> {
    let designs = pod.designs.of(&target.db)?;
    let mut room = designs.room();
    let mut all_checked = Vec::with_capacity(edits.len());
    for edit in edits {
        let checked = match check::is_needed(&edit) {
            false => Ok(()),
            true if !is_taken(target) && !room.take(&edit.id, edit.body.len()) => Err(no_room(&edit.id)),
            true if mode == Mode::Interactive => check::check(pod, &designs, &target.db, &edit).await,
            true => Ok(()),
        };
        all_checked.push(checked.map(|()| edit));
    }
    let (refused, allowed) = part(all_checked);
    Ok(join(refused, write_checked(pod, target, allowed, mode).await?))
}

/// Parts what was refused, with `None` in the places of the others, from what may be written.
fn part(checked: impl IntoIterator<Item = Result<Edit, ApiError>>) -> (Vec<Option<ApiError>>, Vec<Edit>) {
    let mut allowed = Vec::new();
    let mut sort = |edit: Result<Edit, ApiError>| edit.map(|edit| allowed.push(edit)).err();
    let refused = checked.into_iter().map(&mut sort).collect();
    (refused, allowed)
}

/// Puts the results of what was written where nothing was refused.
fn join(refused: Vec<Option<ApiError>>, written: Vec<Result<Written, ApiError>>) -> Vec<Result<Written, ApiError>> {
    let mut written = written.into_iter();
    let result = |error: Option<ApiError>| error.map_or_else(|| written.next().unwrap_or_else(no_result), Err);
    refused.into_iter().map(result).collect()
}

fn no_room(id: &str) -> ApiError {
    let most = MAX_WRITTEN_BYTES >> 20;
    let reason = format!("{id}: the design documents of a database may have {most} MiB together.");
    ApiError::new(http::StatusCode::PAYLOAD_TOO_LARGE, "document_too_large", reason)
}

async fn write_checked(
    pod: &Arc<Pod>,
    target: &Target,
    edits: Vec<Edit>,
    mode: Mode,
) -> Result<Vec<Result<Written, ApiError>>, ApiError> {
    let fits = |edit: &Edit| match target.system {
        _ if is_taken(target) => Ok(()),
        System::Ring => check_size(pod, edit)
            .and_then(|()| config_doc::check_electable(pod, edit))
            .and_then(|()| upgrade::check(pod, edit))
            .and_then(|()| join::check(pod, edit)),
        _ => check_size(pod, edit).and_then(|()| rules::check(target, edit)),
    };
    if !accounts::has_hook(target) && edits.iter().all(|edit| fits(edit).is_ok()) {
        return submit(pod, target, edits, mode).await;
    }
    let (sizes, edits): (Vec<_>, Vec<_>) = edits.into_iter().map(|edit| (fits(&edit), edit)).unzip();
    let checked = match accounts::has_hook(target) {
        true => accounts::before_write(pod, target, edits, mode).await,
        false => edits.into_iter().map(Ok).collect(),
    };
    let checked = sizes.into_iter().zip(checked).map(|(size, edit)| size.and(edit));
    let (refused, allowed) = part(checked);
    Ok(join(refused, submit(pod, target, allowed, mode).await?))
}

async fn submit(
    pod: &Arc<Pod>,
    target: &Target,
    edits: Vec<Edit>,
    mode: Mode,
) -> Result<Vec<Result<Written, ApiError>>, ApiError> {
    if edits.is_empty() {
        return Ok(Vec::new());
    }
    let edits = writer::move_out(pod, target, edits).await?;
    let brings_files = edits.iter().any(has_file);
    if !is_taken(target) {
        let designs = pod.designs.of(&target.db)?;
        if validate::is_needed(&designs) {
            return validate::write(pod, target, &designs, edits, mode).await;
        }
    }
    let write = Write { edits, author: target.author.clone(), mode };
    let results = pod.write(&target.db, write).await?;
    if brings_files {
        pod.files.look();
    }
    if mode == Mode::Replicated {
        brought::take_up(pod, target, &results).await;
    }
    Ok(results.into_iter().map(|result| result.map_err(ApiError::from)).collect())
}

/// Whether an edit brings a file.
fn has_file(edit: &Edit) -> bool {
    edit.attachments.iter().any(|one| matches!(&one.source, AttachmentEditSource::Blob(blob) if blob.is_file()))
}

/// Writes one edit.
///
/// # Errors
/// Why it was refused.
pub async fn write_one(pod: &Arc<Pod>, target: &Target, edit: Edit, mode: Mode) -> Result<Written, ApiError> {
    let results = write_all(pod, target, vec![edit], mode).await?;
    results.into_iter().next().unwrap_or_else(no_result)
}

fn no_result<T>() -> Result<T, ApiError> {
    Err(ApiError::internal("the store gave no result"))
}
