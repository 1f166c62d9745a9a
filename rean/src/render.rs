//! Documents as text: `{"_id":..,"_rev":..,` and the stored body after that, spliced, never parsed.

use std::io::Write;

use axum::body::Body as HttpBody;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use rean_store::json::push_string;
use rean_store::rev::Rev;
use rean_store::{Attachment, Body, Db, DocView, RevView};

use crate::error::ApiError;
use crate::page_body::Out;
use crate::query::Query;
use crate::route::Response;

/// In which form a document's attachments are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttachmentForm {
    /// Name, type, length and digest only.
    #[default]
    Stub,
    /// The data as Base64.
    Inline,
    /// `"follows":true`; the data comes after the document in a multipart answer.
    Follows,
}

/// What is given of a document beyond its members
/// (<https://docs.couchdb.org/en/stable/api/document/common.html#get--db-docid>).
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `_revisions`.
    pub revs: bool,
    /// All of it that is known (`revs=all`): other pods need more of it than `_revs_limit` shows to clients.
    pub whole_history: bool,
    /// `_revs_info`.
    pub revs_info: bool,
    /// `_conflicts`.
    pub conflicts: bool,
    /// `_deleted_conflicts`.
    pub deleted_conflicts: bool,
    /// `_local_seq`.
    pub local_seq: bool,
    /// The attachments' form.
    pub attachments: AttachmentForm,
    /// Attachments that came with these revisions or before are given as stubs.
    pub atts_since: Option<Vec<Rev>>,
    /// Attachments that are files are given by what another pod has to know of them, and not with their bytes. Only for
    /// other pods.
    pub files: bool,
}

impl Options {
    /// Reads the parameters of a document.
    ///
    /// # Errors
    /// 400 for values that they can't have.
    pub fn from_query(query: &Query) -> Result<Self, ApiError> {
        let meta = query.is_true("meta");
        let atts_since = match query.get("atts_since") {
            None => None,
            Some(_) => Some(parse_revs(&query.json::<Vec<String>>("atts_since")?.unwrap_or_default())?),
        };
        let inline = query.is_true("attachments") || atts_since.is_some();
        let whole_history = query.get("revs") == Some("all");
        Ok(Self {
            revs: whole_history || query.is_true("revs"),
            whole_history,
            revs_info: query.is_true("revs_info") || meta,
            conflicts: query.is_true("conflicts") || meta,
            deleted_conflicts: query.is_true("deleted_conflicts") || meta,
            local_seq: query.is_true("local_seq"),
            attachments: if inline { AttachmentForm::Inline } else { AttachmentForm::Stub },
            atts_since,
            files: false,
        })
    }

    /// Whether the answer can change while the revision stays: then it has no ETag.
    pub fn changes_without_rev(&self) -> bool {
        self.revs_info || self.conflicts || self.deleted_conflicts || self.local_seq
    }

    /// Whether the members and attachment stubs alone are wanted.
    pub fn is_plain(&self) -> bool {
        !self.revs && !self.files && !self.changes_without_rev() && self.attachments == AttachmentForm::Stub
    }
}

/// Parses revisions that a client named.
///
/// # Errors
/// 400 `bad_request` for what is no revision.
pub fn parse_revs(texts: &[String]) -> Result<Vec<Rev>, ApiError> {
    texts.iter().map(|text| parse_rev(text)).collect()
}

/// Parses one revision.
///
/// # Errors
/// 400 `bad_request` for what is no revision.
pub fn parse_rev(text: &str) -> Result<Rev, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request("Invalid rev format"))
}

/// A JSON answer with CouchDB's headers. The text should end in a newline.
pub fn json(status: StatusCode, body: impl Into<HttpBody>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("must-revalidate"));
    response
}

/// `{"ok":true,"id":..,"rev":..}` without the braces.
pub fn push_written(out: &mut Vec<u8>, id: &str, rev: &dyn std::fmt::Display) {
    out.extend_from_slice(b"\"ok\":true,\"id\":");
    push_string(out, id);
    push_rev(out, b",\"rev\":", rev);
}

/// A name and a quoted revision.
pub fn push_rev(out: &mut Vec<u8>, before: &[u8], rev: &dyn std::fmt::Display) {
    out.extend_from_slice(before);
    // Writing to a vector can't fail, and a revision needs no escapes.
    let _ = write!(out, "\"{rev}\"");
}

/// A document with its members and attachment stubs.
pub fn push_plain(out: &mut Vec<u8>, id: &str, rev: &Rev, deleted: bool, body: Option<&Body>) {
    push_members(out, id, rev, deleted, body);
    if let Some(body) = body
        && !body.attachments.is_empty()
    {
        out.extend_from_slice(b",\"_attachments\":{");
        for (n, attachment) in body.attachments.iter().enumerate() {
            push_attachment_start(out, n, attachment);
            push_length(out, attachment, b",\"stub\":true}");
        }
        out.push(b'}');
    }
    out.push(b'}');
}

/// `{"_id":..,"_rev":..` and the members, without the closing brace.
fn push_members(out: &mut Vec<u8>, id: &str, rev: &Rev, deleted: bool, body: Option<&Body>) {
    let json: &[u8] = body.map_or(b"{}", |body| &body.json);
    out.reserve(json.len() + id.len() + 96);
    out.extend_from_slice(b"{\"_id\":");
    push_string(out, id);
    push_rev(out, b",\"_rev\":", rev);
    if json.len() > 2 {
        out.push(b',');
        out.extend_from_slice(&json[1..json.len() - 1]);
    }
    if deleted {
        out.extend_from_slice(b",\"_deleted\":true");
    }
}

/// One revision of a document with everything that `options` asks for. Gives back the attachments that must follow
/// in a multipart answer, in order.
///
/// # Errors
/// 404 when the body has been compacted away in the meantime.
pub fn push_document(
    out: &mut Out,
    db: &Db,
    doc: &DocView,
    rev: &RevView,
    options: &Options,
) -> Result<Vec<Attachment>, ApiError> {
    let body = match &rev.body {
        None => None,
        Some(at) => Some(db.body(*at)?.ok_or_else(ApiError::missing)?),
    };
    if options.is_plain() {
        push_plain(&mut out.text, &doc.id, &rev.rev, rev.deleted, body.as_ref());
        return Ok(Vec::new());
    }
    push_members(&mut out.text, &doc.id, &rev.rev, rev.deleted, body.as_ref());
    push_meta(&mut out.text, doc, rev, options);
    let follow = match body {
        Some(body) if !body.attachments.is_empty() => {
            let since = newest_known(doc, rev, options);
            push_attachments(out, db, body.attachments, since, options)?
        }
        _ => Vec::new(),
    };
    out.text.push(b'}');
    Ok(follow)
}

fn push_meta(out: &mut Vec<u8>, doc: &DocView, rev: &RevView, options: &Options) {
    if options.revs {
        let _ = write!(out, ",\"_revisions\":{{\"start\":{},\"ids\":[", rev.rev.generation);
        let shown = if options.whole_history { usize::MAX } else { doc.shown_revs() };
        for (n, ancestor) in doc.history(rev).iter().take(shown).enumerate() {
            push_rev(out, if n == 0 { b"" } else { b"," }, &ancestor.hash);
        }
        out.extend_from_slice(b"]}");
    }
    if options.revs_info {
        out.extend_from_slice(b",\"_revs_info\":[");
        for (n, (ancestor, status)) in doc.revs_info(rev).iter().take(doc.shown_revs()).enumerate() {
            let before: &[u8] = if n == 0 { b"{\"rev\":" } else { b",{\"rev\":" };
            push_rev(out, before, ancestor);
            let _ = write!(out, ",\"status\":\"{status}\"}}");
        }
        out.push(b']');
    }
    if options.local_seq {
        let _ = write!(out, ",\"_local_seq\":{}", doc.seq);
    }
    // Conflicts are those of the winner.
    if rev.rev == doc.winner().rev {
        if options.conflicts {
            push_conflicts(out, b",\"_conflicts\":[", doc, false);
        }
        if options.deleted_conflicts {
            push_conflicts(out, b",\"_deleted_conflicts\":[", doc, true);
        }
    }
}

fn push_conflicts(out: &mut Vec<u8>, before: &[u8], doc: &DocView, deleted: bool) {
    let mut any = false;
    for leaf in doc.leaves.iter().skip(1).filter(|leaf| leaf.deleted == deleted) {
        push_rev(out, if any { b"," } else { before }, &leaf.rev);
        any = true;
    }
    if any {
        out.push(b']');
    }
}

/// The generation of the newest revision that the client has of this one's history; 0 if it has none.
fn newest_known(doc: &DocView, rev: &RevView, options: &Options) -> u64 {
    let Some(known) = &options.atts_since else {
        return 0;
    };
    doc.history(rev).iter().find(|ancestor| known.contains(ancestor)).map_or(0, |ancestor| ancestor.generation)
}

fn push_attachments(
    out: &mut Out,
    db: &Db,
    attachments: Vec<Attachment>,
    since: u64,
    options: &Options,
) -> Result<Vec<Attachment>, ApiError> {
    let form = options.attachments;
    let mut follow = Vec::new();
    // Before anything is written: an error takes back what this function began.
    let mut files = Vec::new();
    for attachment in attachments.iter().filter(|one| options.files && one.is_file()) {
        files.push((attachment.blob, db.file(attachment.blob)?));
    }
    out.text.extend_from_slice(b",\"_attachments\":{");
    for (n, attachment) in attachments.into_iter().enumerate() {
        push_attachment_start(&mut out.text, n, &attachment);
        let file = files.iter().find(|(blob, _)| *blob == attachment.blob).and_then(|(_, file)| file.as_ref());
        if let Some(file) = file {
            push_length(&mut out.text, &attachment, format!(",\"stub\":true,\"file\":{}}}", file.member()).as_bytes());
        } else if attachment.revpos <= since || form == AttachmentForm::Stub {
            push_length(&mut out.text, &attachment, b",\"stub\":true}");
        } else if form == AttachmentForm::Inline {
            out.text.extend_from_slice(b",\"data\":\"");
            out.push_base64(attachment.blob, attachment.length);
            out.text.extend_from_slice(b"\"}");
        } else {
            push_length(&mut out.text, &attachment, b",\"follows\":true}");
            follow.push(attachment);
        }
    }
    out.text.push(b'}');
    Ok(follow)
}

fn push_attachment_start(out: &mut Vec<u8>, n: usize, attachment: &Attachment) {
    if n > 0 {
        out.push(b',');
    }
    push_string(out, &attachment.name);
    out.extend_from_slice(b":{\"content_type\":");
    push_string(out, &attachment.content_type);
    let _ =
        write!(out, ",\"revpos\":{},\"digest\":\"md5-{}\"", attachment.revpos, STANDARD.encode(attachment.digest_md5));
}

fn push_length(out: &mut Vec<u8>, attachment: &Attachment, after: &[u8]) {
    let _ = write!(out, ",\"length\":{}", attachment.length);
    out.extend_from_slice(after);
}
