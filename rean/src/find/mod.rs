//! Mango over HTTP: `_find`, `_explain` and `_index`
//! (<https://docs.couchdb.org/en/stable/api/database/find.html>).
//!
//! What is asked of a partial or personal database is served by the app's indexes, from rows of permitted documents
//! alone, and each document is read once more through the target's scope.

mod answer;
mod args;
mod bookmark;
mod documents;
mod explain;
mod index;
mod planning;
mod project;
mod source;

use std::sync::Arc;

use adea_ring::Identity;
use http::StatusCode;
use rean_index::mango::MangoError;

use crate::body_in::read_json;
use crate::databases::json_line;
use crate::error::ApiError;
use crate::page_body::paged;
use crate::partitions::{PARAMETER, unsupported};
use crate::pod::Pod;
use crate::render;
use crate::route::{Request, Response};
use crate::standing::Standing;
use crate::target;
use answer::Answer;
use args::FindArgs;
pub use index::index;
use planning::Planned;

/// The word for a query that no index can serve.
const NO_INDEX: &str = "no_usable_index";
/// The longest query, in bytes: selectors with ten thousand ids are shorter, and as a tree it takes many times as much.
const MAX_QUERY_BYTES: usize = 1 << 20;

/// `POST /db/_find` and `/db/_explain`.
///
/// # Errors
/// 400 for a query that is none, or that no index can serve.
pub async fn find(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let standing = Standing::new(pod, who)?;
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_read()?;
    let is_explain = request.segments.get(1).is_some_and(|name| name == "_explain");
    let partition = request.query.get(PARAMETER).map(str::to_owned);
    let text = read_json(pod, &request.headers, request.body).await?;
    if text.len() > MAX_QUERY_BYTES {
        return Err(ApiError::body_too_large());
    }
    let args = FindArgs::parse(&text, partition.as_deref())?;
    if args.partition.is_some() && !target.db.is_partitioned() {
        return Err(unsupported());
    }
    let planned = match Planned::of(pod, &target, &args) {
        // As CouchDB: an explanation also says why there is none.
        Err(error) if is_explain && error.error == NO_INDEX => {
            let (indexes, losers) = Planned::why_none(pod, &target, &args)?;
            let told = explain::without_index(&target, &args, &indexes, &losers);
            return Ok(json_line(StatusCode::OK, &told));
        }
        planned => planned?,
    };
    if is_explain {
        return Ok(json_line(StatusCode::OK, &explain::explanation(&target, &args, &planned)));
    }
    let source = source::open(pod, &target, &args, &planned).await?;
    let db = target.db.clone();
    let answer = Answer::new(pod, standing, target, args, planned, source);
    Ok(render::json(StatusCode::OK, paged(&db, answer)?))
}

impl From<MangoError> for ApiError {
    fn from(error: MangoError) -> Self {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST);
        Self::new(status, error.error(), error.to_string())
    }
}
