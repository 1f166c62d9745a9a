//! A database's settings and upkeep: `_security`, `_revs_limit`, `_compact`, `_ensure_full_commit`, `_purge`.

use std::collections::BTreeMap;
use std::sync::Arc;

use adea_ring::Identity;
use http::{Method, StatusCode};
use rean_store::rev::Rev;
use rean_store::{Db, DbKind};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::body_in;
use crate::databases::{json_line, ok};
use crate::error::ApiError;
use crate::pod::Pod;
use crate::render;
use crate::ring::databases as documents;
use crate::ring::join::must_stay;
use crate::route::{Request, Response};
use crate::security;
use crate::target::{System, Target, require_server_admin, resolve};

/// The most revisions of a branch that may be kept: each document may carry that many.
const MAX_REVS_LIMIT: u64 = 10_000;
/// Documents of one `_purge`, and
const MAX_PURGED_DOCS: usize = 1_000;
/// revisions of all of them: CouchDB's bounds
/// (<https://docs.couchdb.org/en/stable/config/misc.html#configuration-of-purge>), ten times as many documents.
const MAX_PURGED_REVS: usize = 1_000;

/// Purges that a database remembers; CouchDB's default.
const PURGED_INFOS_LIMIT: u64 = 1_000;

/// `GET` and `PUT /db/_security`.
///
/// # Errors
/// 401 and 403 without the right; 400 for a malformed object.
pub async fn security(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = resolve(pod, who, request.db_name())?;
    if request.method == Method::GET {
        target.require_read()?;
        let stored = target.db.security();
        let mut text = security::shown(&stored).to_vec();
        text.push(b'\n');
        return Ok(render::json(StatusCode::OK, text));
    }
    target.require_db_admin()?;
    // As with all PUTs, CouchDB doesn't look at the type: curl sends this one as a form.
    let text = body_in::read_any(pod, &request.headers, request.body).await?;
    let stored = security::check(&text)?;
    if target.db.kind() == DbKind::App {
        return Err(ApiError::forbidden(
            "Who may read and write an app is said by its documents and by app:NAME in _ring.",
        ));
    }
    if matches!(target.system, System::Ring | System::Pods | System::Replicator) {
        return Err(ApiError::forbidden("The rights to this database are fixed."));
    }
    documents::set_security(pod, &target.db, stored).await?;
    Ok(ok(StatusCode::OK))
}

/// `GET` and `PUT /db/_revs_limit`.
///
/// # Errors
/// 401 and 403 without the right; 400 for what is no number in range.
pub async fn revs_limit(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = resolve(pod, who, request.db_name())?;
    if request.method == Method::GET {
        target.require_read()?;
        let text = format!("{}\n", target.db.revs_limit());
        return Ok(render::json(StatusCode::OK, text));
    }
    target.require_db_admin()?;
    let text = body_in::read_any(pod, &request.headers, request.body).await?;
    let limit = serde_json::from_slice::<u64>(&text)
        .ok()
        .filter(|limit| (1..=MAX_REVS_LIMIT).contains(limit))
        .ok_or_else(|| ApiError::bad_request(format!("`_revs_limit` must be from 1 to {MAX_REVS_LIMIT}")))?;
    documents::set_revs_limit(pod, &target.db, limit).await?;
    Ok(ok(StatusCode::OK))
}

/// `GET` and `PUT /db/_purged_infos_limit`: of so many purges an index that is behind can learn. Another number is noted
/// for those who ask; how many the store remembers stays its own matter.
///
/// # Errors
/// 401 and 403 without the right; 400 for what is no number from 1.
pub async fn purged_infos_limit(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = resolve(pod, who, request.db_name())?;
    if request.method == Method::GET {
        target.require_read()?;
        let limit = documents::purged_infos_limit(pod, &target.db)?.unwrap_or(PURGED_INFOS_LIMIT);
        return Ok(render::json(StatusCode::OK, format!("{limit}\n")));
    }
    target.require_db_admin()?;
    let text = body_in::read_any(pod, &request.headers, request.body).await?;
    let limit = serde_json::from_slice::<u64>(&text)
        .ok()
        .filter(|limit| *limit > 0)
        .ok_or_else(|| ApiError::bad_request("`purge_infos_limit` must be positive integer"))?;
    documents::set_purged_infos_limit(pod, &target.db, limit).await?;
    Ok(ok(StatusCode::OK))
}

/// `POST /_reload_query_servers`. Functions of design documents always run as they are stored, so there is nothing to do.
///
/// # Errors
/// 401 for all but administrators.
pub async fn reload_query_servers(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    body_in::read_json(pod, &request.headers, request.body).await?;
    Ok(ok(StatusCode::OK))
}

/// `POST /db/_compact`, `/db/_compact/DDOC` and `/db/_view_cleanup`. The work is done in the background.
///
/// # Errors
/// 401 without the right.
pub async fn compact(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = resolve(pod, who, request.db_name())?;
    target.require_db_admin()?;
    body_in::read_json(pod, &request.headers, request.body).await?;
    let whole = request.segments.len() == 2 && request.segments[1] == "_compact";
    // There are no view files yet that could be compacted or left over.
    if whole && !target.db.info().compact_running {
        let pod = Arc::clone(pod);
        let db = target.db.clone();
        tokio::task::spawn_blocking(move || compact_now(&pod, &db));
    }
    Ok(ok(StatusCode::ACCEPTED))
}

fn compact_now(pod: &Pod, db: &Db) {
    let _task = pod.tasks.begin("database_compaction", db.name());
    if let Err(error) = db.compact() {
        tracing::warn!(database = db.name(), %error, "a compaction failed");
    }
}

/// `POST /db/_ensure_full_commit`. Every commit is durable, so there is nothing to do.
///
/// # Errors
/// 401 and 403 without the right to write.
pub async fn ensure_full_commit(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = resolve(pod, who, request.db_name())?;
    target.require_read()?;
    body_in::read_json(pod, &request.headers, request.body).await?;
    let text = format!("{{\"ok\":true,\"instance_start_time\":\"{}\"}}\n", crate::databases::INSTANCE_START_TIME);
    Ok(render::json(StatusCode::CREATED, text))
}

/// `POST /db/_purge`.
///
/// # Errors
/// 401 for all but server administrators; 400 for a malformed body or one beyond the bounds.
pub async fn purge(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = resolve(pod, who, request.db_name())?;
    target.require_server_admin()?;
    target.require_db_admin()?;
    target.require_write()?;
    let text = body_in::read_json(pod, &request.headers, request.body).await?;
    let mut purged = serde_json::Map::new();
    let list = purge_list(&text)?;
    for (id, _) in &list {
        target.require_fit_id(id)?;
        if target.system == System::Ring && must_stay(id) {
            return Err(ApiError::forbidden(format!(
                "{id} can't be purged: a token counts its uses, and an order says which came last"
            )));
        }
    }
    for (id, revs) in list {
        let gone = purge_one(&target, &id, revs).await?;
        let gone: Vec<Value> = gone.iter().map(|rev| rev.to_string().into()).collect();
        purged.insert(id, gone.into());
    }
    let answer = json!({"purge_seq": null, "purged": purged});
    Ok(json_line(StatusCode::CREATED, &answer))
}

fn purge_list(text: &[u8]) -> Result<Vec<(String, Vec<Rev>)>, ApiError> {
    let asked: BTreeMap<String, Vec<String>> = serde_json::from_slice(text)
        .map_err(|_| ApiError::bad_request("Request body must be an object of arrays of revisions"))?;
    let revs: usize = asked.values().map(Vec::len).sum();
    if asked.len() > MAX_PURGED_DOCS || revs > MAX_PURGED_REVS {
        return Err(ApiError::bad_request(format!(
            "At most {MAX_PURGED_DOCS} documents and {MAX_PURGED_REVS} revisions at once"
        )));
    }
    asked.into_iter().map(|(id, revs)| Ok((id, render::parse_revs(&revs)?))).collect()
}

async fn purge_one(target: &Target, id: &str, revs: Vec<Rev>) -> Result<Vec<Rev>, ApiError> {
    let (done, answer) = oneshot::channel();
    target.db.purge(
        id,
        &revs,
        Box::new(move |result| {
            // Nobody listens when the client has gone; the purge stands.
            let _ = done.send(result);
        }),
    );
    Ok(answer.await.map_err(|_| crate::pod::stopped())??)
}

#[cfg(test)]
mod tests {
    use super::purge_list;

    #[test]
    fn nonsense_is_refused() {
        for bad in ["[]", "null", r#"{"a":1}"#, r#"{"a":["zork"]}"#, r#"{"docs":[{"id":5}]}"#] {
            assert!(purge_list(bad.as_bytes()).is_err(), "{bad}");
        }
        let good = r#"{"a":["1-0123456789abcdef0123456789abcdef"],"b":[]}"#;
        assert_eq!(purge_list(good.as_bytes()).expect("a list").len(), 2);
    }
}
