//! `POST /_replicate` and `GET /_scheduler/..`
//! (<https://docs.couchdb.org/en/stable/api/server/common.html#replicate>). All of it is for administrators: a
//! replication makes this server talk to any address that it is given, also to those that only the pod can reach, and
//! sends it what log-ins the request holds.

use std::sync::Arc;

use adea_ring::Identity;
use http::{Method, StatusCode};
use rean_store::{IdRange, Scope};
use serde_json::{Map, Value, json};

use super::documents::{DATABASE, Stored};
use super::job::{Job, Outcome};
use super::registry::{Replications, Started};
use super::spec::Spec;
use crate::body_in;
use crate::databases::{blocking, json_line};
use crate::error::ApiError;
use crate::pod::Pod;
use crate::query::Query;
use crate::route::{Request, Response, no_resource};
use crate::target::require_server_admin;

/// Rows of one list, unless more are asked for; as many as CouchDB's `_scheduler` gives.
const LISTED: u64 = 25;
/// The most rows of one list.
const MAX_LISTED: u64 = 1_000;
/// Documents that are read at once while a list is made.
const PAGE_ROWS: usize = 200;

/// `POST /_replicate`: runs a replication and tells its result, or starts or ends one that goes on.
///
/// # Errors
/// 401 for all but administrators; 400 for what is no replication; 404 for ending one that doesn't run, and for a source
/// or target that isn't there; otherwise what stopped it.
pub async fn replicate(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    if request.method != Method::POST {
        return Err(ApiError::method_not_allowed("POST"));
    }
    let text = body_in::read_json(pod, &request.headers, request.body).await?;
    let object: Value = serde_json::from_slice(&text).map_err(|_| ApiError::invalid_json())?;
    let Value::Object(object) = object else {
        return Err(ApiError::bad_request("Request body must be a JSON object"));
    };
    if object.get("cancel") == Some(&Value::Bool(true)) {
        return cancel(pod, who, &object).await;
    }
    let spec = Spec::parse_with(&pod.settings.get(), &object).map_err(ApiError::bad_request)?;
    let continuous = spec.continuous;
    let job = match Replications::start(pod, spec, who, None) {
        Started::New(job) | Started::Known(job) => job,
        Started::TooMany => {
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable",
                "This pod has too many replications.",
            ));
        }
    };
    if continuous {
        return Ok(json_line(StatusCode::ACCEPTED, &json!({"ok": true, "_local_id": job.id})));
    }
    match job.ended().await {
        Outcome::Completed(answer) => Ok(json_line(StatusCode::OK, &answer)),
        Outcome::Failed(fault) => Err(fault.into()),
        Outcome::Cancelled => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "cancelled",
            "The replication was ended before it was done.",
        )),
    }
}

async fn cancel(pod: &Arc<Pod>, who: &Identity, object: &Map<String, Value>) -> Result<Response, ApiError> {
    let named = ["replication_id", "_local_id", "id"].iter().find_map(|name| object.get(*name).and_then(Value::as_str));
    let id = match named {
        Some(id) => id.to_owned(),
        None => {
            let spec = Spec::parse(object).map_err(ApiError::bad_request)?;
            spec.job_id(&spec.checkpoint_id(&pod.uuid, who))
        }
    };
    let Some(job) = pod.replications.get(&id) else {
        return Err(ApiError::not_found("There is no such replication."));
    };
    if let Some(origin) = &job.origin {
        // It would come back with the next start of the pod.
        let reason = format!("This replication is of the document {:?} of {DATABASE}: delete that.", origin.doc_id);
        return Err(ApiError::forbidden(reason));
    }
    pod.replications.cancel(&job).await;
    Ok(json_line(StatusCode::OK, &json!({"ok": true, "_local_id": id})))
}

/// `GET /_scheduler/jobs[/id]` and `/_scheduler/docs[/_replicator[/id]]`.
///
/// # Errors
/// 401 for all but administrators; 404 for what isn't there.
pub async fn scheduler(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    if request.method != Method::GET {
        return Err(ApiError::method_not_allowed("GET,HEAD"));
    }
    let below: Vec<&str> = request.segments[1..].iter().map(String::as_str).collect();
    match below.as_slice() {
        ["jobs"] => jobs(pod, &request.query),
        ["jobs", id] => {
            // A plus in a path is a space, and ids have pluses and no spaces.
            let job = pod.replications.get(&id.replace(' ', "+")).ok_or_else(ApiError::missing)?;
            Ok(json_line(StatusCode::OK, &job.describe()))
        }
        ["docs"] | ["docs", DATABASE] => docs(pod, &request.query).await,
        ["docs", DATABASE, id @ ..] => {
            let id = id.join("/");
            let db = pod.store.db(DATABASE).ok_or_else(ApiError::missing)?;
            let stored = Stored::read(&db, &id)?.ok_or_else(ApiError::missing)?;
            Ok(json_line(StatusCode::OK, &stored.describe(pod, &id)))
        }
        ["docs", ..] => Err(ApiError::missing()),
        _ => Err(no_resource("_scheduler")),
    }
}

fn bounds(query: &Query) -> Result<(u64, u64), ApiError> {
    let limit = query.u64("limit")?.unwrap_or(LISTED).min(MAX_LISTED);
    Ok((query.u64("skip")?.unwrap_or(0), limit))
}

fn jobs(pod: &Pod, query: &Query) -> Result<Response, ApiError> {
    let (skip, limit) = bounds(query)?;
    let all = pod.replications.list();
    let skipped = usize::try_from(skip).unwrap_or(usize::MAX);
    let listed: Vec<Value> =
        all.iter().skip(skipped).take(limit as usize).map(|job: &Arc<Job>| job.describe()).collect();
    Ok(json_line(StatusCode::OK, &json!({"total_rows": all.len(), "offset": skip, "jobs": listed})))
}

async fn docs(pod: &Arc<Pod>, query: &Query) -> Result<Response, ApiError> {
    let (skip, limit) = bounds(query)?;
    let states: Option<Vec<String>> = query.get("states").map(|states| states.split(',').map(str::to_owned).collect());
    let pod = Arc::clone(pod);
    let answer = blocking(move || list_docs(&pod, skip, limit, states.as_deref())).await??;
    Ok(json_line(StatusCode::OK, &answer))
}

fn list_docs(pod: &Pod, skip: u64, limit: u64, states: Option<&[String]>) -> Result<Value, ApiError> {
    let db = pod.store.db(DATABASE).ok_or_else(ApiError::missing)?;
    let mut range = IdRange::default();
    let (mut total, mut listed) = (0_u64, Vec::new());
    loop {
        let rows = db.all_docs(&Scope::All, &range, PAGE_ROWS)?;
        let Some(last) = rows.last() else {
            return Ok(json!({"total_rows": total, "offset": skip, "docs": listed}));
        };
        range = range.after(&last.id);
        for row in rows.iter().filter(|row| !row.id.starts_with("_design/")) {
            let Some(stored) = Stored::read(&db, &row.id)? else { continue };
            let told = stored.describe(pod, &row.id);
            let state = told.get("state").and_then(Value::as_str).unwrap_or_default();
            if states.is_some_and(|states| !states.iter().any(|wanted| wanted == state)) {
                continue;
            }
            if total >= skip && (listed.len() as u64) < limit {
                listed.push(told);
            }
            total += 1;
        }
    }
}
