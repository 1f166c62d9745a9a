//! What CouchDB has and Adea hasn't yet: queries and views. Rights, methods and content types are checked as they will
//! be, and then the answer says that it isn't there.

use std::sync::Arc;

use adea_ring::Identity;
use http::{Method, StatusCode};
use serde_json::json;

use crate::body_in;
use crate::databases::json_line;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::replicate::api;
use crate::route::{Request, Response, no_resource};
use crate::target::{require_server_admin, resolve};

/// `POST /db/_find` and `/db/_explain`.
///
/// # Errors
/// 501, or what would come before it.
pub async fn find(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    resolve(pod, who, request.db_name())?.require_read()?;
    body_in::read_json(pod, &request.headers, request.body).await?;
    Err(ApiError::not_implemented("Queries (_find, _explain) are not there yet."))
}

/// `GET` and `POST /db/_index`, `DELETE /db/_index/..`. There is the one index that every database has.
///
/// # Errors
/// 501 for making or deleting one, or what would come before it.
pub async fn index(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = resolve(pod, who, request.db_name())?;
    target.require_read()?;
    if request.method == Method::GET && request.segments.len() == 2 {
        let answer = json!({
            "total_rows": 1,
            "indexes": [{
                "ddoc": null,
                "name": "_all_docs",
                "type": "special",
                "def": {"fields": [{"_id": "asc"}]},
            }],
        });
        return Ok(json_line(StatusCode::OK, &answer));
    }
    target.require_db_admin()?;
    Err(ApiError::not_implemented("Indexes are not there yet."))
}

/// `GET` and `POST /db/_design/x/_view/y`.
///
/// # Errors
/// 404 when there is no such design document, else 501.
pub async fn view(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    design(pod, who, &request)?;
    Err(ApiError::not_implemented("Views are not there yet."))
}

/// Everything else below a design document: `_info`, `_show`, `_list`, `_update`, `_rewrite`.
///
/// # Errors
/// 404 when there is no such design document, else 501.
pub async fn design_other(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    design(pod, who, &request)?;
    Err(ApiError::not_implemented("Functions of design documents are not there yet."))
}

/// The server's other resources: replication, what is not there yet (`_db_updates`) and what never will be (`_node`,
/// `_reshard`: a pod is configured elsewhere). CouchDB's are for administrators.
///
/// # Errors
/// 401 for all but administrators; then 501 or 404.
pub async fn other(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    match request.db_name() {
        "_replicate" => api::replicate(pod, who, request).await,
        "_scheduler" => api::scheduler(pod, who, request).await,
        "_db_updates" => Err(ApiError::not_implemented("This is not there yet.")),
        name => Err(no_resource(name)),
    }
}

fn design(pod: &Pod, who: &Identity, request: &Request) -> Result<(), ApiError> {
    let target = resolve(pod, who, request.db_name())?;
    target.require_read()?;
    let id = request.segments.get(1).map_or("", String::as_str);
    match target.db.doc(&target.scope, id)? {
        Some(doc) if !doc.winner().deleted => Ok(()),
        _ => Err(ApiError::missing()),
    }
}
