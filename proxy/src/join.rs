//! `POST /_join`: the door for new pods. Anonymous, as the token in the body is all that counts, and counted
//! ([`crate::auth::knocks`]); rean answers.

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};

use crate::auth::knocks::Knocks;
use crate::body::{BodyError, ClientBody};
use crate::error::Refusal;
use crate::rules::{is_plain, segments};

/// A request to join is some hundred bytes.
const MAX_BODY_BYTES: u64 = 4 * 1024;

/// Whether rean would read a path as that of the door, however it is spelled.
pub fn is_door(path: &str) -> bool {
    !is_plain(path) && segments(path).next().is_some_and(|first| first == "_join")
}

/// Counts a knock, reads its body, and takes out the headers that are of no use here.
///
/// # Errors
/// `Throttled`, the wrong method, or a body that is too large, late or broken.
pub async fn knock(
    knocks: &Knocks,
    method: &Method,
    headers: &mut HeaderMap,
    body: Option<ClientBody>,
    peer: IpAddr,
) -> Result<Bytes, Refusal> {
    if *method != Method::POST {
        return Err(Refusal::Method("POST"));
    }
    knocks.begin(peer).map_err(|wait| Refusal::TooManyKnocks { retry_after_s: wait.seconds })?;
    let mut body = body.ok_or(Refusal::BadRequest("request body must be a JSON object"))?;
    body.limit(MAX_BODY_BYTES);
    if body.exact_bytes().is_some_and(|bytes| bytes > MAX_BODY_BYTES) {
        return Err(Refusal::BodyTooLarge);
    }
    let bytes = body.collect().await.map_err(|error| match error {
        BodyError::TooLarge => Refusal::BodyTooLarge,
        BodyError::Timeout => Refusal::BodyTimeout,
        _ => Refusal::BodyBroken,
    })?;
    headers.remove(header::CONTENT_ENCODING);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::is_door;

    #[test]
    fn the_door_is_known_however_it_is_spelled() {
        for path in ["/_join", "/_join/", "//_join", "/%5fjoin", "/_join/x", "/_%6Aoin"] {
            assert!(is_door(path), "{path}");
        }
        for path in ["/", "/join", "/_joins", "/a/_join", "/_session"] {
            assert!(!is_door(path), "{path}");
        }
    }
}
