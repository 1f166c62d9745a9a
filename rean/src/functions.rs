//! The functions of design documents at work: validators ([`validate`]), filters of feeds ([`filters`]), update handlers
//! ([`update`]), and the check of a design document that is written ([`check`]).
//!
//! What always holds: a function sees nothing of a document that the asker may not read, and no credentials; a function
//! that fails lets nothing through; one database's functions hold a bounded number of threads.
//!
//! What it is not: it runs no JavaScript itself (`rean-script`), and it builds no views ([`crate::views`]).

pub mod check;
pub mod filters;
pub mod req;
pub mod respond;
pub mod update;
pub mod validate;

use std::sync::Arc;
use std::time::Duration;

use adea_ring::Identity;
use http::StatusCode;
use rean_script::Scripts;
use serde_json::{Value, json};

use crate::designs::{DesignDoc, Designs};
use crate::error::ApiError;
use crate::pod::{Pod, stopped};
use crate::route::{Request, Response};
use crate::security;
use crate::target::{self, Target};

/// How long a call waits for its turn among those of its database: as long as one call with many documents may take.
const TURN_PATIENCE: Duration = Duration::from_secs(60);
/// The language whose functions are run.
const LANGUAGE: &str = "javascript";

/// Runs calls of a database's functions on a thread where they may block.
///
/// # Errors
/// 503 when too many of the database's calls wait, or the server is stopping.
pub async fn call<T: Send + 'static>(
    pod: &Pod,
    designs: &Designs,
    work: impl FnOnce(&Scripts) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let turn = tokio::time::timeout(TURN_PATIENCE, Arc::clone(designs.calls()).acquire_owned()).await;
    let turn = turn.map_err(|_| busy())?.map_err(|_| stopped())?;
    let scripts = pod.scripts.clone();
    let done = tokio::task::spawn_blocking(move || {
        let done = work(&scripts);
        drop(turn);
        done
    });
    done.await.map_err(|error| ApiError::internal("a function could not be run").with_cause(error))
}

fn busy() -> ApiError {
    let reason = "Too many functions of this database's design documents wait to be run.";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", reason)
}

/// The design document `name` of a target's database, for one of its functions.
///
/// # Errors
/// 404 when there is none; 400 when its functions are in another language.
pub fn design(designs: &Designs, name: &str) -> Result<Arc<DesignDoc>, ApiError> {
    let design = designs.get(name).ok_or_else(ApiError::missing)?;
    require_language(&design)?;
    Ok(design)
}

/// # Errors
/// 400 for functions that aren't JavaScript.
fn require_language(design: &DesignDoc) -> Result<(), ApiError> {
    if design.language() == LANGUAGE {
        return Ok(());
    }
    let reason = format!("The functions of {} are not in {LANGUAGE}.", design.id);
    Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown_query_language", reason))
}

/// Who asks, as functions see it: with the roles of this moment.
///
/// # Errors
/// 401 for an account that has been removed.
pub fn user_ctx(pod: &Pod, target: &Target) -> Result<Value, ApiError> {
    let who = pod.accounts.who(&target.who)?;
    Ok(json!({"db": target.name, "name": who.name, "roles": who.roles}))
}

/// The database's `_security` object, as functions see it.
pub fn security_object(target: &Target) -> Value {
    serde_json::from_slice(security::shown(&target.db.security())).unwrap_or_else(|_| json!({}))
}

/// `_show`, `_list` and `_rewrite` of a design document: CouchDB has given them up, and 410 says what to do instead.
///
/// # Errors
/// Always; 401 and 403 before that as the database says.
pub async fn given_up(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_read()?;
    let reason = match request.segments.get(2).map(String::as_str) {
        Some("_show") => "Show functions are not run here: read the document and render it in the client.",
        Some("_list") => "List functions are not run here: query the view and render its rows in the client.",
        _ => "Rewrite rules are not applied here: ask for the resources themselves, or put a web server in front.",
    };
    Err(ApiError::new(StatusCode::GONE, "gone", reason))
}
