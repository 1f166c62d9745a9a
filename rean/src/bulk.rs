//! Many documents in one request: `_bulk_docs`, and what a replicator asks before it sends: `_revs_diff`
//! (<https://docs.couchdb.org/en/stable/api/database/bulk-api.html>,
//! <https://docs.couchdb.org/en/stable/api/database/misc.html>).

use std::collections::HashMap;
use std::sync::Arc;

use adea_ring::Identity;
use bytes::Bytes;
use http::StatusCode;
use rean_store::document::{DocumentError, IncomingDoc, parse_document, parse_documents};
use rean_store::json::push_string;
use rean_store::rev::Rev;
use rean_store::{Db, Mode, Scope};

use crate::body_in::read_json;
use crate::capped::{self, CappedList, CappedMap, RevText};
use crate::docs::new_id;
use crate::edit_in::{self, Incoming, aside};
use crate::error::ApiError;
use crate::local_docs::{self, LocalRev};
use crate::page_body::{Out, Pages, paged};
use crate::pod::Pod;
use crate::render::{self, push_rev, push_written};
use crate::route::{Request, Response, request_id};
use crate::target::{self, Target};

/// Most `_local` documents of one request. Each is a commit of its own; a replicator writes one checkpoint at a time.
const MAX_LOCALS: usize = 100;

/// What became of one document of the request.
struct Row {
    id: String,
    /// The revision that a replicated document came with: errors name it.
    came_with: Option<Rev>,
    outcome: Result<RowRev, ApiError>,
}

/// The revision that a document has now.
enum RowRev {
    Doc(Rev),
    Local(u64),
}

/// `POST /db/_bulk_docs`.
///
/// # Errors
/// 400 or 413 when one of the documents can't be one: then nothing is stored. Refusals of single documents are rows.
pub async fn bulk_docs(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_write()?;
    let text = read_json(pod, &request.headers, request.body).await?;
    let Bulk { docs, mode, all_or_nothing } = aside(text.len(), move || parse(&text)).await??;
    if all_or_nothing {
        return Ok(refuse_all_or_nothing(docs));
    }
    let largest = pod.settings.get().max_document_bytes;
    let is_too_large = |doc: &IncomingDoc| doc.body.len() > largest && !edit_in::is_taken(&target);
    if let Some((id, _)) = docs.iter().find(|(_, doc)| is_too_large(doc)) {
        return Err(ApiError::document_too_large(id));
    }
    let id = request_id(&request.headers).to_owned();
    let rows = write(pod, &target, docs, mode).await?;
    // What fails in the server fails for all that are in the commit: one line says it.
    if let Some(error) = rows.iter().filter_map(|row| row.outcome.as_ref().err()).find(|e| e.status.is_server_error()) {
        error.log(&id, &request.method, &target.name);
    }
    let mut body = Vec::with_capacity(rows.len() * 96 + 4);
    push_rows(&mut body, &rows, mode);
    Ok(render::json(StatusCode::CREATED, body))
}

/// What `_bulk_docs` is asked.
struct Bulk {
    /// The documents with their ids, made up where there is none.
    docs: Vec<(String, IncomingDoc)>,
    mode: Mode,
    all_or_nothing: bool,
}

fn parse(text: &Bytes) -> Result<Bulk, DocumentError> {
    let text = std::str::from_utf8(text).map_err(|_| DocumentError::BadRequest("invalid UTF-8 JSON".to_owned()))?;
    let bulk = parse_documents(text)?;
    let mode = if bulk.new_edits { Mode::Interactive } else { Mode::Replicated };
    let mut docs = Vec::with_capacity(bulk.docs.len());
    for doc in bulk.docs {
        let mut doc = parse_document(doc.as_bytes())?;
        let is_local = doc.id.as_deref().is_some_and(|id| id.starts_with(local_docs::PREFIX));
        if mode == Mode::Replicated && doc.rev.is_none() && !is_local {
            let reason = "When `new_edits: false`, the document needs `_rev` or `_revisions` specified";
            return Err(DocumentError::BadRequest(reason.to_owned()));
        }
        docs.push((doc.id.take().unwrap_or_else(new_id), doc));
    }
    Ok(Bulk { docs, mode, all_or_nothing: bulk.all_or_nothing })
}

/// 417 for each document, as CouchDB has it: nothing is written.
fn refuse_all_or_nothing(docs: Vec<(String, IncomingDoc)>) -> Response {
    let refusal = ApiError::new(StatusCode::EXPECTATION_FAILED, "not_implemented", "all_or_nothing is not supported");
    let rows: Vec<Row> =
        docs.into_iter().map(|(id, _)| Row { id, came_with: None, outcome: Err(refusal.clone()) }).collect();
    let mut body = Vec::with_capacity(rows.len() * 96 + 4);
    push_rows(&mut body, &rows, Mode::Interactive);
    render::json(StatusCode::EXPECTATION_FAILED, body)
}

async fn write(
    pod: &Arc<Pod>,
    target: &Target,
    docs: Vec<(String, IncomingDoc)>,
    mode: Mode,
) -> Result<Vec<Row>, ApiError> {
    let mut rows: Vec<Row> = Vec::with_capacity(docs.len());
    let mut edits = Vec::with_capacity(docs.len());
    // The rows whose outcome the store will tell.
    let mut waiting = Vec::with_capacity(docs.len());
    let mut locals = 0;
    for (id, doc) in docs {
        let came_with = doc.rev.clone().filter(|_| mode == Mode::Replicated);
        if id.starts_with(local_docs::PREFIX) {
            locals += 1;
            let outcome = if locals > MAX_LOCALS {
                Err(ApiError::forbidden("too many _local documents in one request"))
            } else {
                local_docs::put(pod, target, &id, doc).await.map(RowRev::Local)
            };
            rows.push(Row { id, came_with: None, outcome });
            continue;
        }
        let edit = target.require_write_doc(&id).and_then(|()| {
            let incoming = Incoming { doc, follows: HashMap::new() };
            edit_in::edit(target, id.clone(), incoming, mode)
        });
        let outcome = match edit {
            Ok(edit) => {
                waiting.push(rows.len());
                edits.push(edit);
                Err(ApiError::internal("the store gave no result"))
            }
            // Data that can't be decoded fails the request; what this author may not do fails the document.
            Err(error) if error.status == StatusCode::BAD_REQUEST => return Err(error),
            Err(error) => Err(error),
        };
        rows.push(Row { id, came_with, outcome });
    }
    let written = edit_in::write_all(pod, target, edits, mode).await?;
    for (row, result) in waiting.into_iter().zip(written) {
        rows[row].outcome = result.map(|written| RowRev::Doc(written.rev));
    }
    Ok(rows)
}

/// One row a document, in order; with `new_edits=false` only those that failed.
fn push_rows(out: &mut Vec<u8>, rows: &[Row], mode: Mode) {
    let mut before = b'[';
    for row in rows {
        if mode == Mode::Replicated && row.outcome.is_ok() {
            continue;
        }
        out.push(before);
        before = b',';
        out.push(b'{');
        match &row.outcome {
            Ok(RowRev::Doc(rev)) => push_written(out, &row.id, rev),
            Ok(RowRev::Local(rev)) => push_written(out, &row.id, &LocalRev(*rev)),
            Err(error) => {
                out.extend_from_slice(b"\"id\":");
                push_string(out, &row.id);
                if let Some(rev) = &row.came_with {
                    push_rev(out, b",\"rev\":", rev);
                }
                out.push(b',');
                error.push_members(out);
            }
        }
        out.push(b'}');
    }
    if before == b'[' {
        out.push(b'[');
    }
    out.extend_from_slice(b"]\n");
}

/// What `_revs_diff` and `_missing_revs` are asked.
type Asked = CappedMap<CappedList<RevText>>;

/// `POST /db/_revs_diff`.
///
/// # Errors
/// 400 when the body isn't an object of lists of revisions.
pub async fn revs_diff(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    diff(pod, who, request, DiffForm::Diff).await
}

/// `POST /db/_missing_revs`.
///
/// # Errors
/// As [`revs_diff`].
pub async fn missing_revs(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    diff(pod, who, request, DiffForm::Missing).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum DiffForm {
    Diff,
    Missing,
}

async fn diff(pod: &Arc<Pod>, who: &Identity, request: Request, form: DiffForm) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_read()?;
    let text = read_json(pod, &request.headers, request.body).await?;
    let asked: Asked =
        aside(text.len(), move || capped::parse(&text, "Request body must be a JSON object of lists of revisions"))
            .await??;
    let pages = Diff {
        db: target.db.clone(),
        scope: target.scope.clone(),
        asked: asked.0.into_iter(),
        form,
        before: match form {
            DiffForm::Diff => b"{",
            DiffForm::Missing => b"{\"missing_revs\":{",
        },
    };
    Ok(render::json(StatusCode::OK, paged(&target.db, pages)?))
}

struct Diff {
    db: Db,
    scope: Scope,
    asked: std::vec::IntoIter<(String, CappedList<RevText>)>,
    form: DiffForm,
    before: &'static [u8],
}

/// Look-ups between two frames of the answer, so that a long one lets others have the thread.
const DIFFS_A_PAGE: usize = 256;

impl Pages for Diff {
    fn fill(&mut self, out: &mut Out) -> Result<bool, ApiError> {
        for _ in 0..DIFFS_A_PAGE {
            let Some((id, revs)) = self.asked.next() else {
                self.end(out);
                return Ok(false);
            };
            let revs: Vec<Rev> = revs.0.into_iter().map(|rev| rev.0).collect();
            let diff = self.db.revs_diff(&self.scope, &id, &revs)?;
            if diff.missing.is_empty() {
                continue;
            }
            let text = &mut out.text;
            text.extend_from_slice(self.before);
            self.before = b",";
            push_string(text, &id);
            if self.form == DiffForm::Missing {
                push_revs(text, b":[", &diff.missing);
                continue;
            }
            push_revs(text, b":{\"missing\":[", &diff.missing);
            if !diff.possible_ancestors.is_empty() {
                push_revs(text, b",\"possible_ancestors\":[", &diff.possible_ancestors);
            }
            text.push(b'}');
        }
        Ok(true)
    }
}

impl Diff {
    fn end(&self, out: &mut Out) {
        if self.before != b"," {
            out.text.extend_from_slice(self.before);
        }
        out.text.extend_from_slice(match self.form {
            DiffForm::Diff => b"}\n",
            DiffForm::Missing => b"}}\n",
        });
    }
}

fn push_revs(out: &mut Vec<u8>, before: &[u8], revs: &[Rev]) {
    out.extend_from_slice(before);
    for (n, rev) in revs.iter().enumerate() {
        push_rev(out, if n == 0 { b"" } else { b"," }, rev);
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rean_store::Mode;
    use rean_store::rev::Rev;

    use super::{Bulk, Row, RowRev, parse, push_rows};
    use crate::error::ApiError;

    fn rows() -> Vec<Row> {
        let rev: Rev = "1-aa".parse().expect("a revision");
        vec![
            Row { id: "a".to_owned(), came_with: Some(rev.clone()), outcome: Ok(RowRev::Doc(rev.clone())) },
            Row { id: "\"".to_owned(), came_with: Some(rev), outcome: Err(ApiError::conflict()) },
        ]
    }

    #[test]
    fn replicated_rows_are_the_refused_ones() {
        let mut out = Vec::new();
        push_rows(&mut out, &rows(), Mode::Replicated);
        assert_eq!(
            String::from_utf8_lossy(&out),
            "[{\"id\":\"\\\"\",\"rev\":\"1-aa\",\"error\":\"conflict\",\"reason\":\"Document update conflict.\"}]\n"
        );
        let mut out = Vec::new();
        push_rows(&mut out, &rows()[..1], Mode::Replicated);
        assert_eq!(out, b"[]\n");
    }

    #[test]
    fn every_document_gets_an_id() {
        let Bulk { docs, mode, .. } =
            parse(&Bytes::from_static(br#"{"docs":[{"_id":"x","_rev":"1-a"},{"_rev":"1-b"}],"new_edits":false}"#))
                .expect("parses");
        assert_eq!(mode, Mode::Replicated);
        assert_eq!(docs[0].0, "x");
        assert_eq!(docs[1].0.len(), 32);
        for unrevised in [r#"[{"_id":"x","_rev":"1-a"},{"_id":"y"}]"#, r#"[{"a":1}]"#] {
            assert!(
                parse(&Bytes::from(format!(r#"{{"docs":{unrevised},"new_edits":false}}"#))).is_err(),
                "{unrevised}"
            );
        }
        assert!(parse(&Bytes::from_static(br#"{"docs":[{"_id":"_local/x"}],"new_edits":false}"#)).is_ok());
        assert!(parse(&Bytes::from_static(b"{}")).is_err());
        assert!(parse(&Bytes::from_static(b"\xff")).is_err());
    }
}
