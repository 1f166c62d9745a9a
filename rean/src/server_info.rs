//! What the server says of itself: `/`, `_uuids`, `_membership`, `_session`, `_active_tasks`, the workers, the store.
//!
//! Source: <https://docs.couchdb.org/en/stable/api/server/common.html>.

use std::sync::Arc;

use adea_ring::Identity;
use adea_ring::report::Role;
use http::header::{CACHE_CONTROL, ETAG, PRAGMA};
use http::{HeaderValue, StatusCode};
use rean_store::{Db, DbKind};
use serde_json::{Value, json};

use crate::databases::{NODE, blocking, json_line};
use crate::error::ApiError;
use crate::pod::Pod;
use crate::ring::Ring;
use crate::route::{Request, Response};
use crate::target::require_server_admin;

/// The CouchDB whose protocol is spoken: clients that look at the version mean that.
const COUCHDB_VERSION: &str = "3.5.0";

/// `GET /`. For everyone: so a client with one URL finds the write master, and all pods in `_pods`.
///
/// # Errors
/// None.
pub async fn root(pod: &Arc<Pod>, _: &Identity, _: Request) -> Result<Response, ApiError> {
    let answer = json!({
        "couchdb": "Welcome",
        "version": COUCHDB_VERSION,
        "uuid": pod.uuid,
        "features": ["access-ready"],
        "vendor": {"name": "Adea", "version": adea_ring::software::version()},
        "adea": describe_pod(&pod.ring),
    });
    Ok(json_line(StatusCode::OK, &answer))
}

/// Which pod this is, and which one takes the writes.
fn describe_pod(ring: &Ring) -> Value {
    let role = ring.role();
    let name = match &role {
        _ if ring.is_alone() => "alone",
        Role::Waiting => "waiting",
        Role::Follower(_) => "follower",
        Role::Master(_) => "master",
    };
    let master = role.epoch().map(|epoch| {
        let state = ring.state();
        let url = state.as_ref().and_then(|state| state.get(epoch.pod())?.said.url.as_deref());
        json!({"pod": epoch.pod(), "url": url})
    });
    json!({"pod": ring.me(), "role": name, "master": master, "pods": "/_pods"})
}

/// `GET /_uuids`.
///
/// # Errors
/// 400 for more than may be had at once.
pub async fn uuids(pod: &Arc<Pod>, _: &Identity, request: Request) -> Result<Response, ApiError> {
    let count = request.query.u64("count")?.unwrap_or(1);
    if count > pod.settings.get().max_uuids {
        return Err(ApiError::bad_request("count parameter too large"));
    }
    let uuids: Vec<String> = (0..count).map(|_| hex::encode(rand::random::<[u8; 16]>())).collect();
    let mut response = json_line(StatusCode::OK, &json!({ "uuids": uuids }));
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("must-revalidate, no-cache"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    let tag = format!("\"{}\"", hex::encode(rand::random::<[u8; 16]>()));
    if let Ok(tag) = HeaderValue::try_from(tag) {
        headers.insert(ETAG, tag);
    }
    Ok(response)
}

/// `GET /_membership`, for administrators.
///
/// # Errors
/// 401 for others.
pub async fn membership(_: &Arc<Pod>, who: &Identity, _: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    let answer = json!({"all_nodes": [NODE], "cluster_nodes": [NODE]});
    Ok(json_line(StatusCode::OK, &answer))
}

/// `GET /_active_tasks`, for administrators: it names databases.
///
/// # Errors
/// 401 for others.
pub async fn active_tasks(pod: &Arc<Pod>, who: &Identity, _: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    let mut tasks = pod.tasks.list();
    tasks.extend(pod.replications.tasks());
    Ok(json_line(StatusCode::OK, &json!(tasks)))
}

/// `GET /_pod/workers`, for administrators.
///
/// # Errors
/// 401 for others.
pub async fn workers(pod: &Arc<Pod>, who: &Identity, _: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    let answer = json!({
        "workers": pod.tasks.workers.list(),
        "listeners": pod.hub.listeners(),
        "uptime_s": pod.started.elapsed().as_secs(),
    });
    Ok(json_line(StatusCode::OK, &answer))
}

/// `GET /_pod/store`, for administrators: what the store takes, and how each app is parted.
///
/// # Errors
/// 401 for others.
pub async fn store(pod: &Arc<Pod>, who: &Identity, _: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    let store = pod.store.clone();
    // An app may have tens of thousands of partial databases.
    let answer = blocking(move || {
        let stats = store.stats();
        let names = store.db_names();
        let dbs: Vec<Db> = names.iter().filter_map(|name| store.db(name)).collect();
        let apps: Vec<Value> = dbs.iter().filter(|db| db.kind() == DbKind::App).map(describe_app).collect();
        json!({
            "engine": stats.engine,
            "disk_bytes": stats.disk_bytes,
            "commits": stats.commits,
            "seq": stats.seq,
            "databases": names.len(),
            "apps": apps,
        })
    });
    Ok(json_line(StatusCode::OK, &answer.await?))
}

fn describe_app(app: &Db) -> Value {
    let info = app.info();
    let parts = app.parts();
    json!({
        "name": app.name(),
        "doc_count": info.doc_count,
        "doc_del_count": info.del_count,
        "partials": parts.len(),
        "partials_without_docs": parts.iter().filter(|part| part.doc_count == 0).count(),
        "repartition": app.needs_repartition(),
    })
}

/// `GET /_session`: who the request is from, with the roles that count at this moment.
///
/// # Errors
/// 401 when the account was removed.
pub async fn session(pod: &Arc<Pod>, who: &Identity, _: Request) -> Result<Response, ApiError> {
    let now = pod.accounts.who(who)?;
    let mut info = json!({"authentication_handlers": ["default"]});
    if now.name.is_some() {
        info["authenticated"] = "default".into();
    }
    if who.is_admin() {
        info["authentication_db"] = "_users".into();
    }
    let answer = json!({
        "ok": true,
        "userCtx": {"name": now.name, "roles": now.roles},
        "info": info,
    });
    Ok(json_line(StatusCode::OK, &answer))
}
