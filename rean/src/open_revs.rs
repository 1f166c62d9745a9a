//! `open_revs`: several revisions of one document, as the replicator reads them
//! (<https://docs.couchdb.org/en/stable/replication/protocol.html#fetch-changed-documents>).

use std::collections::VecDeque;
use std::sync::Arc;

use http::StatusCode;
use http::header::CONTENT_TYPE;
use rean_store::rev::Rev;
use rean_store::{Db, DocView, RevView, Scope};

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
    /// Leaves of one document share its view: it holds the whole revision tree.
    Here(Arc<DocView>, Box<RevView>),
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
    let newest = request.query.is_true("latest");
    let (found, listed) = if wanted == "all" {
        let doc = target.db.doc(&target.scope, id)?.ok_or_else(ApiError::missing)?;
        (all_leaves(doc), Vec::new())
    } else {
        let texts: Vec<String> = query::parse_json("open_revs", wanted)?;
        if texts.len() > MAX_OPEN_REVS {
            return Err(ApiError::bad_request("too many revisions in open_revs"));
        }
        (VecDeque::new(), parse_revs(&texts)?)
    };
    let as_parts = accepts(&request.headers, "multipart/mixed").then(PartWriter::new);
    let kind = as_parts.as_ref().map(|parts| parts.content_type("mixed"));
    let pages = Revisions {
        db: target.db.clone(),
        scope: target.scope.clone(),
        id: id.to_owned(),
        listed: listed.into_iter(),
        newest,
        found,
        options,
        parts: as_parts,
        started: false,
    };
    let mut response = render::json(StatusCode::OK, paged(&target.db, pages)?);
    if let Some(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, content_type(&kind));
    }
    Ok(response)
}

fn all_leaves(doc: DocView) -> VecDeque<Found> {
    with_leaves(doc.leaves.clone(), doc).into_iter().map(Found::here).collect()
}

/// Each of these leaves with the one view of their document.
pub fn with_leaves(leaves: Vec<RevView>, doc: DocView) -> Vec<(Arc<DocView>, RevView)> {
    let doc = Arc::new(doc);
    leaves.into_iter().map(|leaf| (Arc::clone(&doc), leaf)).collect()
}

/// One revision, if this reader may have it.
///
/// # Errors
/// The store failed.
pub fn one(db: &Db, scope: &Scope, id: &str, rev: &Rev) -> Result<Vec<(Arc<DocView>, RevView)>, ApiError> {
    Ok(db.revision(scope, id, rev)?.map(|(doc, rev)| (Arc::new(doc), rev)).into_iter().collect())
}

/// The leaves that this reader sees and that descend from a revision, or are it; for `latest=true`. If there are
/// none, the revision itself, where it can still be read.
///
/// # Errors
/// The store failed.
pub fn latest(db: &Db, scope: &Scope, id: &str, rev: &Rev) -> Result<Vec<(Arc<DocView>, RevView)>, ApiError> {
    if let Some(doc) = db.doc(scope, id)? {
        // By history, since a compacted revision can't be fetched but its descendants can.
        let leaves: Vec<RevView> =
            doc.leaves.iter().filter(|leaf| leaf.rev == *rev || doc.history(leaf).contains(rev)).cloned().collect();
        if !leaves.is_empty() {
            return Ok(with_leaves(leaves, doc));
        }
    }
    one(db, scope, id, rev)
}

struct Revisions {
    db: Db,
    scope: Scope,
    id: String,
    /// Those that are still to be looked for, one by one: a thousand views of a long history at once are 200 MB.
    listed: std::vec::IntoIter<Rev>,
    newest: bool,
    found: VecDeque<Found>,
    options: Options,
    parts: Option<PartWriter>,
    started: bool,
}

impl Pages for Revisions {
    fn fill(&mut self, out: &mut Out) -> Result<bool, ApiError> {
        while !out.is_full() {
            let Some(found) = self.next()? else {
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

impl Found {
    fn here((doc, rev): (Arc<DocView>, RevView)) -> Self {
        Self::Here(doc, Box::new(rev))
    }
}

impl Revisions {
    fn next(&mut self) -> Result<Option<Found>, ApiError> {
        if let Some(found) = self.found.pop_front() {
            return Ok(Some(found));
        }
        let Some(rev) = self.listed.next() else {
            return Ok(None);
        };
        let find = if self.newest { latest } else { one };
        let here = find(&self.db, &self.scope, &self.id, &rev)?;
        if here.is_empty() {
            return Ok(Some(Found::Missing(rev)));
        }
        self.found.extend(here.into_iter().map(Found::here));
        Ok(self.found.pop_front())
    }

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
        Found::Here(doc, rev) => push_mixed_part(out, parts, db, doc, rev, options),
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
        Found::Here(doc, rev) => {
            let mark = out.text.len();
            out.text.extend_from_slice(b"{\"ok\":");
            if push_document(out, db, doc, rev, options).is_ok() {
                out.text.push(b'}');
            } else {
                // Compacted away since it was found. Nothing of the document has been written.
                out.text.truncate(mark);
                push_missing(&mut out.text, &rev.rev);
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
