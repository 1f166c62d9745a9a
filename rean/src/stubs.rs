//! What CouchDB has and Adea hasn't yet: queries and views. Rights, methods and content types are checked as they will
//! be, and then the answer says that it isn't there.

use std::sync::Arc;

use adea_ring::Identity;

use crate::error::ApiError;
use crate::pod::Pod;
use crate::route::{Request, Response};
use crate::target::resolve;

/// Everything else below a design document: `_info`, `_show`, `_list`, `_update`, `_rewrite`.
///
/// # Errors
/// 404 when there is no such design document, else 501.
pub async fn design_other(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    design(pod, who, &request)?;
    Err(ApiError::not_implemented("Functions of design documents are not there yet."))
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
