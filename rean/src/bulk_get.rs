//! `_bulk_get`: many documents in one answer, as replicators read them
//! (<https://docs.couchdb.org/en/stable/api/database/bulk-api.html#db-bulk-get>).

use std::sync::Arc;

use adea_ring::Identity;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, Method, StatusCode};
use rean_store::json::push_string;
use rean_store::{DocView, RevView};
use serde::Deserialize;

use crate::body_in::read_json;
use crate::capped::{self, CappedList};
use crate::docs::{accepts, options_for};
use crate::edit_in::aside;
use crate::error::ApiError;
use crate::multipart::PartWriter;
use crate::multipart_out::{content_type, push_error_part, push_mixed_part};
use crate::open_revs;
use crate::page_body::{Out, Pages, paged};
use crate::pod::Pod;
use crate::render::{self, AttachmentForm, Options, parse_rev, parse_revs, push_document};
use crate::route::{Request, Response, request_id};
use crate::standing::Standing;
use crate::target::{self, Target};

/// Most entries of `atts_since`: more than a replicator sends, which names the leaves that it has.
const MAX_ATTS_SINCE: usize = 1_000;

#[derive(Deserialize)]
struct Body {
    docs: CappedList<Wanted>,
}

/// One document that is wanted.
#[derive(Deserialize)]
struct Wanted {
    id: String,
    #[serde(default)]
    rev: Option<String>,
    #[serde(default)]
    atts_since: Option<CappedList<String>>,
}

/// `POST /db/_bulk_get`.
///
/// # Errors
/// 400 when the body names no documents. What can't be read is a row.
pub async fn bulk_get(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let standing = Standing::new(pod, who)?;
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_read()?;
    let options = options_for(&target, &request.query)?;
    let newest = request.query.is_true("latest");
    let text = read_json(pod, &request.headers, request.body).await?;
    let body: Body = aside(text.len(), move || capped::parse(&text, "Missing JSON list of 'docs'.")).await??;
    let parts = wants_parts(&request.headers).then(PartWriter::new);
    let request_id = request_id(&request.headers).to_owned();
    let kind = parts.as_ref().map(|parts| parts.content_type("mixed"));
    let db = target.db.clone();
    let pages = Documents {
        standing,
        target,
        wanted: body.docs.0.into_iter(),
        options,
        newest,
        parts,
        before: b"{\"results\":[",
        request_id,
    };
    let mut response = render::json(StatusCode::OK, paged(&db, pages)?);
    if let Some(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, content_type(&kind));
    }
    Ok(response)
}

/// Multipart is for those who ask for it and not for JSON.
fn wants_parts(headers: &HeaderMap) -> bool {
    headers.contains_key(ACCEPT)
        && !accepts(headers, "application/json")
        && (accepts(headers, "multipart/mixed") || accepts(headers, "multipart/related"))
}

struct Documents {
    standing: Standing,
    target: Target,
    wanted: std::vec::IntoIter<Wanted>,
    options: Options,
    newest: bool,
    parts: Option<PartWriter>,
    before: &'static [u8],
    /// For the log.
    request_id: String,
}

impl Pages for Documents {
    fn fill(&mut self, out: &mut Out) -> Result<bool, ApiError> {
        self.standing.check(&self.target, Target::require_read)?;
        while !out.is_full() {
            let Some(wanted) = self.wanted.next() else {
                self.end(out);
                return Ok(false);
            };
            let found = self.find(&wanted);
            let options = self.options_of(&wanted);
            let (found, options) = match (found, options) {
                (Ok(found), Ok(options)) => (Ok(found), options),
                (Err(error), _) | (_, Err(error)) => {
                    error.log(&self.request_id, &Method::POST, &self.target.name);
                    (Err(error), self.options.clone())
                }
            };
            if let Some(parts) = &mut self.parts {
                push_parts(out, parts, &self.target, &wanted, found, &options)?;
            } else {
                out.text.extend_from_slice(self.before);
                self.before = b",";
                push_result(out, &self.target, &wanted, found, &options)?;
            }
        }
        Ok(true)
    }
}

/// Leaves of one document share its view: it holds the whole revision tree.
type FoundRevs = Result<Vec<(Arc<DocView>, RevView)>, ApiError>;

impl Documents {
    /// The revision that is asked for; without one all leaves.
    fn find(&self, wanted: &Wanted) -> FoundRevs {
        let target = &self.target;
        target.require_fit_id(&wanted.id)?;
        let found = match &wanted.rev {
            None => match target.db.doc(&target.scope, &wanted.id)? {
                None => Vec::new(),
                Some(doc) => open_revs::with_leaves(doc.leaves.clone(), doc),
            },
            Some(text) => {
                let rev = parse_rev(text)?;
                if self.newest {
                    open_revs::latest(&target.db, &target.scope, &wanted.id, &rev)?
                } else {
                    open_revs::one(&target.db, &target.scope, &wanted.id, &rev)?
                }
            }
        };
        if found.is_empty() {
            return Err(ApiError::missing());
        }
        Ok(found)
    }

    fn options_of(&self, wanted: &Wanted) -> Result<Options, ApiError> {
        let Some(since) = &wanted.atts_since else {
            return Ok(self.options.clone());
        };
        if since.0.len() > MAX_ATTS_SINCE {
            return Err(ApiError::bad_request("too many revisions in atts_since"));
        }
        Ok(Options {
            atts_since: Some(parse_revs(&since.0)?),
            attachments: AttachmentForm::Inline,
            ..self.options.clone()
        })
    }

    fn end(&mut self, out: &mut Out) {
        match self.parts.take() {
            Some(parts) => out.text.extend_from_slice(&parts.end()),
            None => {
                if self.before != b"," {
                    out.text.extend_from_slice(self.before);
                }
                out.text.extend_from_slice(b"]}\n");
            }
        }
    }
}

fn push_result(
    out: &mut Out,
    target: &Target,
    wanted: &Wanted,
    found: FoundRevs,
    options: &Options,
) -> Result<(), ApiError> {
    out.text.extend_from_slice(b"{\"id\":");
    push_string(&mut out.text, &wanted.id);
    out.text.extend_from_slice(b",\"docs\":[");
    match found {
        Ok(found) => {
            for (n, (doc, rev)) in found.iter().enumerate() {
                let mark = out.text.len();
                out.text.extend_from_slice(if n == 0 { b"{\"ok\":" } else { b",{\"ok\":" });
                if let Err(error) = push_document(out, &target.db, doc, rev, options) {
                    // Compacted away since it was found. Nothing of the document has been written.
                    out.text.truncate(mark);
                    out.text.extend_from_slice(if n == 0 { b"{\"error\":" } else { b",{\"error\":" });
                    push_error(&mut out.text, wanted, &error);
                }
                out.text.push(b'}');
            }
        }
        Err(error) => {
            out.text.extend_from_slice(b"{\"error\":");
            push_error(&mut out.text, wanted, &error);
            out.text.push(b'}');
        }
    }
    out.text.extend_from_slice(b"]}");
    Ok(())
}

fn push_parts(
    out: &mut Out,
    parts: &mut PartWriter,
    target: &Target,
    wanted: &Wanted,
    found: FoundRevs,
    options: &Options,
) -> Result<(), ApiError> {
    match found {
        Ok(found) => {
            for (doc, rev) in &found {
                push_mixed_part(out, parts, &target.db, doc, rev, options)?;
            }
        }
        Err(error) => {
            let mut json = Vec::new();
            push_error(&mut json, wanted, &error);
            push_error_part(out, parts, &json);
        }
    }
    Ok(())
}

/// `{"id":..,"rev":..,"error":..,"reason":..}`.
fn push_error(out: &mut Vec<u8>, wanted: &Wanted, error: &ApiError) {
    out.extend_from_slice(b"{\"id\":");
    push_string(out, &wanted.id);
    out.extend_from_slice(b",\"rev\":");
    push_string(out, wanted.rev.as_deref().unwrap_or("undefined"));
    out.push(b',');
    error.push_members(out);
    out.push(b'}');
}
