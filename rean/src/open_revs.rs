//! `open_revs`: several revisions of one document, as the replicator reads them
//! (<https://docs.couchdb.org/en/stable/replication/protocol.html#fetch-changed-documents>).

use http::StatusCode;
use http::header::CONTENT_TYPE;
use rean_store::rev::Rev;
use rean_store::{Db, DocView, RevView};

use crate::docs::accepts;
use crate::error::ApiError;
use crate::multipart::PartWriter;
use crate::multipart_out::{content_type, push_error_part, push_mixed_part};
use crate::page_body::{Out, Pages, paged};
use crate::query;
use crate::render::{self, Options, parse_revs, push_document, push_rev};
use crate::route::{Request, Response};
use crate::target::Target;

/// Most revisions that one request names: as many as a document keeps by default.
const MAX_OPEN_REVS: usize = 1_000;

/// A revision that was asked for.
enum Found {
    Here(Box<(DocView, RevView)>),
    Missing(Rev),
}

/// Answers `GET /db/doc?open_revs=`, with JSON or `multipart/mixed`.
///
/// # Errors
/// 400 for a list that is none; 404 for `all` of a document that isn't there for this reader.
pub fn answer(
    target: &Target,
    id: &str,
    wanted: &str,
    request: &Request,
    options: Options,
) -> Result<Response, ApiError> {
    let found = if wanted == "all" {
        let doc = target.db.doc(&target.scope, id)?.ok_or_else(ApiError::missing)?;
        all_leaves(doc)
    } else {
        let texts: Vec<String> = query::parse_json("open_revs", wanted)?;
        if texts.len() > MAX_OPEN_REVS {
            return Err(ApiError::bad_request("too many revisions in open_revs"));
        }
        let newest = request.query.flag("latest")?;
        listed(target, id, parse_revs(&texts)?, newest)?
    };
    let as_parts = accepts(&request.headers, "multipart/mixed").then(PartWriter::new);
    let kind = as_parts.as_ref().map(|parts| parts.content_type("mixed"));
    let pages = Revisions { db: target.db.clone(), found: found.into_iter(), options, parts: as_parts, started: false };
    let mut response = render::json(StatusCode::OK, paged(&target.db, pages)?);
    if let Some(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, content_type(&kind));
    }
    Ok(response)
}

fn all_leaves(doc: DocView) -> Vec<Found> {
    let leaves = doc.leaves.clone();
    leaves.into_iter().map(|leaf| Found::Here(Box::new((doc.clone(), leaf)))).collect()
}

fn listed(target: &Target, id: &str, revs: Vec<Rev>, newest: bool) -> Result<Vec<Found>, ApiError> {
    let mut found: Vec<Found> = Vec::with_capacity(revs.len());
    for rev in revs {
        let here = if newest {
            latest(target, id, &rev)?
        } else {
            Vec::from_iter(target.db.revision(&target.scope, id, &rev)?)
        };
        if here.is_empty() {
            found.push(Found::Missing(rev));
        }
        found.extend(here.into_iter().map(|one| Found::Here(Box::new(one))));
    }
    Ok(found)
}

/// The leaves that this reader sees and that descend from a revision, or are it; for `latest=true`. If there are
/// none, the revision itself, where it can still be read.
///
/// # Errors
/// The store failed.
pub fn latest(target: &Target, id: &str, rev: &Rev) -> Result<Vec<(DocView, RevView)>, ApiError> {
    if let Some(doc) = target.db.doc(&target.scope, id)? {
        // By history, since a compacted revision can't be fetched but its descendants can.
        let leaves: Vec<RevView> =
            doc.leaves.iter().filter(|leaf| leaf.rev == *rev || doc.history(leaf).contains(rev)).cloned().collect();
        if !leaves.is_empty() {
            return Ok(leaves.into_iter().map(|leaf| (doc.clone(), leaf)).collect());
        }
    }
    Ok(Vec::from_iter(target.db.revision(&target.scope, id, rev)?))
}

struct Revisions {
    db: Db,
    found: std::vec::IntoIter<Found>,
    options: Options,
    parts: Option<PartWriter>,
    started: bool,
}

impl Pages for Revisions {
    fn fill(&mut self, out: &mut Out) -> Result<bool, ApiError> {
        while !out.is_full() {
            let Some(found) = self.found.next() else {
                self.end(out);
                return Ok(false);
            };
            if let Some(parts) = &mut self.parts {
                part(out, parts, &self.db, &found, &self.options)?;
            } else {
                out.text.extend_from_slice(if self.started { b"," } else { b"[" });
                member(out, &self.db, &found, &self.options)?;
            }
            self.started = true;
        }
        Ok(true)
    }
}

impl Revisions {
    fn end(&mut self, out: &mut Out) {
        match self.parts.take() {
            Some(parts) => out.text.extend_from_slice(&parts.end()),
            None if self.started => out.text.extend_from_slice(b"]\n"),
            None => out.text.extend_from_slice(b"[]\n"),
        }
    }
}

fn part(out: &mut Out, parts: &mut PartWriter, db: &Db, found: &Found, options: &Options) -> Result<(), ApiError> {
    match found {
        Found::Here(here) => push_mixed_part(out, parts, db, &here.0, &here.1, options),
        Found::Missing(rev) => {
            let mut json = Vec::new();
            push_missing(&mut json, rev);
            push_error_part(out, parts, &json);
            Ok(())
        }
    }
}

fn member(out: &mut Out, db: &Db, found: &Found, options: &Options) -> Result<(), ApiError> {
    match found {
        Found::Here(here) => {
            let mark = out.text.len();
            out.text.extend_from_slice(b"{\"ok\":");
            if push_document(out, db, &here.0, &here.1, options).is_ok() {
                out.text.push(b'}');
            } else {
                // Compacted away since it was found. Nothing of the document has been written.
                out.text.truncate(mark);
                push_missing(&mut out.text, &here.1.rev);
            }
        }
        Found::Missing(rev) => push_missing(&mut out.text, rev),
    }
    Ok(())
}

fn push_missing(out: &mut Vec<u8>, rev: &Rev) {
    push_rev(out, b"{\"missing\":", rev);
    out.push(b'}');
}
