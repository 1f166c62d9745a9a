//! How far this pod is, for another one that asks over a link.

use std::sync::Arc;

use adea_ring::report::Standing;
use adea_ring::software;
use adea_ring::{Identity, PodId};
use http::StatusCode;

use crate::databases::json_line;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::route::{Request, Response};

/// `GET /_pod/standing`, for the other pods.
///
/// # Errors
/// 404 for anybody else.
pub async fn standing(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    require_peer(who, &request)?;
    let ring = &pod.ring;
    let standing = Standing {
        origin: ring.origin.clone(),
        applied: ring.applied(pod.store.seq()),
        role: ring.role(),
        stamp: None,
    };
    Ok(json_line(StatusCode::OK, &software::say(&standing, &[]).unwrap_or_default()))
}

/// The pod that asks for itself, over a link. Others learn nothing, not even that there is such a resource.
///
/// # Errors
/// 404 for anybody else.
pub fn require_peer(who: &Identity, request: &Request) -> Result<PodId, ApiError> {
    let peer = request.from_peer.clone().filter(|_| *who == Identity::system());
    peer.ok_or_else(ApiError::missing)
}
