//! What CouchDB tells and does about shards and nodes, answered for a server whose databases have one shard each:
//! `_membership`'s relatives `_cluster_setup` and `_reshard`, and a database's `_shards` and `_sync_shards`.
//!
//! Source: <https://docs.couchdb.org/en/stable/api/server/common.html#cluster-setup>,
//! <https://docs.couchdb.org/en/stable/api/database/shard.html>. Nothing can be changed here: a ring is made with `podctl`,
//! and databases have no shards that could be split.

use std::sync::Arc;

use adea_ring::Identity;
use http::{Method, StatusCode};
use rean_store::document::validate_id;
use serde_json::{Value, json};

use crate::body_in;
use crate::databases::{NODE, json_line, ok};
use crate::error::ApiError;
use crate::pod::Pod;
use crate::route::{Request, Response, no_resource};
use crate::target::{require_server_admin, resolve};

/// All of a database's documents.
const WHOLE_RANGE: &str = "00000000-ffffffff";

/// `GET /db/_shards` and `GET /db/_shards/docid`.
///
/// # Errors
/// 401, 403 and 404, as the target says.
pub async fn shards(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    resolve(pod, who, request.db_name())?.require_read()?;
    let answer = match request.segments.get(2) {
        None => json!({"shards": {WHOLE_RANGE: [NODE]}}),
        Some(id) => {
            // Whether there is such a document doesn't matter, and doesn't show.
            validate_id(id)?;
            json!({"range": WHOLE_RANGE, "nodes": [NODE]})
        }
    };
    Ok(json_line(StatusCode::OK, &answer))
}

/// `POST /db/_sync_shards`. The pods of a ring are in step, or on the way there, by themselves.
///
/// # Errors
/// 401 for all but server administrators.
pub async fn sync_shards(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    resolve(pod, who, request.db_name())?;
    Ok(ok(StatusCode::ACCEPTED))
}

/// `/_reshard/..`: there are no jobs, and there can be none.
///
/// # Errors
/// 401 for all but administrators; 501 for what would begin something.
pub async fn reshard(who: &Identity, request: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    if request.method != Method::GET {
        return Err(ApiError::not_implemented("Databases have no shards here that could be split."));
    }
    let below: Vec<&str> = request.segments[1..].iter().map(String::as_str).collect();
    let answer = match below.as_slice() {
        [] => json!({
            "state": "stopped", "state_reason": Value::Null,
            "completed": 0, "failed": 0, "running": 0, "stopped": 0, "total": 0,
        }),
        ["state"] => json!({"state": "stopped", "reason": Value::Null}),
        ["jobs"] => json!({"jobs": [], "offset": 0, "total_rows": 0}),
        ["jobs", ..] => return Err(ApiError::missing()),
        _ => return Err(no_resource("_reshard")),
    };
    Ok(json_line(StatusCode::OK, &answer))
}

/// `GET` and `POST /_cluster_setup`. A pod that answers has been set up.
///
/// # Errors
/// 401 for all but administrators; 400 for any wish to set it up.
pub async fn setup(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    if request.method == Method::GET {
        let state = if pod.ring.is_alone() { "single_node_enabled" } else { "cluster_finished" };
        return Ok(json_line(StatusCode::OK, &json!({ "state": state })));
    }
    if request.method != Method::POST {
        return Err(ApiError::method_not_allowed("GET,HEAD,POST"));
    }
    body_in::read_json(pod, &request.headers, request.body).await?;
    Err(ApiError::bad_request("Cluster is already finished"))
}
