//! Questions to one pod about another: sent on over the ring, as whoever asks.
//!
//! So an operator who reaches one pod sees them all, also those whose public port can't be reached from where they sit.

use std::sync::Arc;
use std::time::Duration;

use adea_ring::PodId;
use adea_ring::identity::{ROLES_HEADER, TOKEN_HEADER, USER_NAME_HEADER};
use axum::body::Body;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, StatusCode};
use http_body_util::{BodyExt, Limited};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::ApiError;
use crate::pod::Pod;
use crate::route::{REQUEST_ID_HEADER, Request, Response};

/// How long another pod may take: it reads some files, or none.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer that is passed on: the longest are pages of a log.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// Headers that go along: who asks, signed, and by which name the request is logged.
const PASSED_ON: [&str; 4] = [USER_NAME_HEADER, ROLES_HEADER, TOKEN_HEADER, REQUEST_ID_HEADER];

/// A question to another pod.
pub struct Question {
    to: PodId,
    address: String,
    request: http::Request<Body>,
}

/// A question about what is below `/_node/_local` of another pod; none if no pod of the ring has that name.
pub fn question(pod: &Pod, name: &str, below: &[&str], request: &Request) -> Option<Question> {
    let to: PodId = name.parse().ok()?;
    let state = pod.ring.state()?;
    let known = state.get(&to).filter(|known| !known.member.left)?;
    // What has come from a pod is not sent on: the one that is meant was asked already.
    if request.from_peer.is_some() {
        return None;
    }
    Some(Question { to, address: known.member.address.clone(), request: outgoing(below, request) })
}

/// Asks it.
///
/// # Errors
/// 502 when the pod can't be reached.
pub async fn ask(pod: &Arc<Pod>, question: Question) -> Result<Response, ApiError> {
    let Question { to, address, request } = question;
    let wire = pod.ring.wire().ok_or_else(|| out_of_reach(&to, "there is no ring"))?;
    let answer = async {
        let response = wire.send(&to, &address, request).await.map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|error| error.to_string())?;
        Ok::<_, String>((parts, body.to_bytes()))
    };
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    match answer.unwrap_or_else(|_| Err("it took too long".to_owned())) {
        Ok((parts, bytes)) => {
            let mut response = Response::new(Body::from(bytes));
            *response.status_mut() = parts.status;
            if let Some(kind) = parts.headers.get(CONTENT_TYPE) {
                response.headers_mut().insert(CONTENT_TYPE, kind.clone());
            }
            Ok(response)
        }
        Err(why) => Err(out_of_reach(&to, &why)),
    }
}

fn out_of_reach(id: &PodId, why: &str) -> ApiError {
    let reason = format!("{id} can't be reached from this pod over the ring.");
    ApiError::new(StatusCode::BAD_GATEWAY, "pod_out_of_reach", reason).with_cause(why)
}

fn outgoing(below: &[&str], request: &Request) -> http::Request<Body> {
    let below: Vec<String> =
        below.iter().map(|segment| utf8_percent_encode(segment, NON_ALPHANUMERIC).to_string()).collect();
    let query = request.uri.query().map_or_else(String::new, |query| format!("?{query}"));
    let path = format!("/_node/_local/{}{query}", below.join("/"));
    let mut outgoing = http::Request::new(Body::empty());
    *outgoing.uri_mut() = path.parse().unwrap_or_default();
    for name in PASSED_ON {
        let values: Vec<HeaderValue> = request.headers.get_all(name).iter().cloned().collect();
        for value in values {
            outgoing.headers_mut().append(HeaderName::from_static(name), value);
        }
    }
    outgoing
}
