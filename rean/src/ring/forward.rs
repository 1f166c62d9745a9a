//! Writes that arrive at a follower: sent on to the write master, under the identity of whoever sent them.
//!
//! A write is sent again only where the master can't have seen it. Small bodies are read first, so that they can be sent
//! to whoever becomes master; large ones are streamed, and are lost with the first master that has seen a piece of them.

use std::sync::Arc;
use std::time::Duration;

use adea_ring::report::{Origin, Role};
use adea_ring::{Identity, PodId};
use axum::body::Body;
use bytes::Bytes;
use http::header::{CONNECTION, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;

use crate::body_in::BodyShare;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::ring::places::{Places, Taken};
use crate::ring::removal;
use crate::ring::wire::WireError;
use crate::ring::writes::{APPLIED_HEADER, NOT_MASTER_HEADER, unknown_outcome};
use crate::route::{Request, Response};
use crate::shares::{Share, Shares, Whose};

/// Bodies up to this size, in bytes, are read before they are sent: nearly all but attachments.
const SMALL_BODY_BYTES: u64 = 256 << 10;
/// Bodies that are streamed at once: half of the streams that one connection may have. The others are for small ones,
/// which nobody can hold up by sending slowly.
const MAX_UPLOADS: usize = 2_048;
/// Of these, those of one user: more than a browser sends.
const MAX_UPLOADS_EACH: usize = 64;
/// How long a write that the master has done is waited for here, so that its author reads it. An answer is not held up
/// longer: the write is done.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(1);
/// How long an answer that is on its way is waited for when its master is master no more. In a planned change all writes
/// have been answered before that; after a crash there is nothing to wait for.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// Headers that are about one connection and not about the request (RFC 9110, section 7.6.1). `Keep-Alive` and
/// `Proxy-Connection` are older than their standard.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    EXPECT,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Said when nobody is master.
const NO_MASTER: &str = "No pod takes writes at the moment; try again";
/// Said when the master is known, and no write gets there.
const OUT_OF_REACH: &str = "The write master can't be reached at the moment; try again";

/// A write on its way to the master.
pub struct Parcel {
    /// All but its body.
    request: Request,
    contents: Contents,
    /// Until it is answered.
    _upload: Option<Upload>,
}

/// Uploads that are streamed to the write master, each as slowly as its client wants.
pub struct Uploads {
    all: Shares,
    each: Places<Option<String>>,
}

/// One of them.
struct Upload {
    _place: Share,
    _share: Taken<Option<String>>,
}

impl Default for Uploads {
    fn default() -> Self {
        Self { all: Shares::new(MAX_UPLOADS), each: Places::default() }
    }
}

impl Uploads {
    fn begin(&self, who: &Identity, whose: &Whose) -> Result<Upload, ApiError> {
        let most = if who.is_admin() { MAX_UPLOADS } else { MAX_UPLOADS_EACH };
        let share = self.each.take(who.name.clone(), most);
        let place = self.all.try_take(whose, 1);
        match (share, place) {
            (Some(_share), Some(_place)) => Ok(Upload { _place, _share }),
            _ => Err(too_many_uploads()),
        }
    }
}

enum Contents {
    /// In memory, with its share of what bodies may take there.
    Small { bytes: Bytes, _share: BodyShare },
    /// On its way from the client.
    Stream(Body),
    /// Sent, at least in part.
    Spent,
}

impl Parcel {
    /// Takes a request over, with its body if that is small.
    ///
    /// # Errors
    /// 400 when the body breaks off, 503 when there is no memory for it, or there are too many large ones.
    pub async fn new(pod: &Pod, who: &Identity, mut request: Request) -> Result<Self, ApiError> {
        let body = std::mem::replace(&mut request.body, Body::empty());
        let whose = Whose::of(who, &request.headers);
        let contents = match body.size_hint().upper().filter(|most| *most <= SMALL_BODY_BYTES) {
            // A body never has more than it has said: hyper cuts it off.
            Some(most) => {
                let share = pod.bodies.share(&whose, most as usize).await?;
                let bytes = share.hears(body.collect()).await?.map_err(|_| broken_off())?.to_bytes();
                Contents::Small { bytes, _share: share }
            }
            None => Contents::Stream(body),
        };
        let is_upload = matches!(contents, Contents::Stream(_));
        let _upload = if is_upload { Some(pod.ring.uploads.begin(who, &whose)?) } else { None };
        Ok(Self { request, contents, _upload })
    }

    /// The request as it came, to be done here.
    pub fn into_request(self) -> Request {
        let body = match self.contents {
            Contents::Small { bytes, .. } => Body::from(bytes),
            Contents::Stream(body) => body,
            // Nobody goes on with a parcel that was sent.
            Contents::Spent => Body::empty(),
        };
        Request { body, ..self.request }
    }

    fn outgoing(&mut self) -> http::Request<Body> {
        let body = match &self.contents {
            Contents::Small { bytes, .. } => Body::from(bytes.clone()),
            _ => match std::mem::replace(&mut self.contents, Contents::Spent) {
                Contents::Stream(body) => body,
                _ => Body::empty(),
            },
        };
        let mut outgoing = http::Request::new(body);
        *outgoing.method_mut() = self.request.method.clone();
        *outgoing.uri_mut() = self.request.uri.clone();
        *outgoing.headers_mut() = self.request.headers.clone();
        let headers = outgoing.headers_mut();
        strip(headers);
        headers.remove(HOST);
        outgoing
    }
}

/// Sends a write to the master that this pod knows of. An error says why it can and should be tried again.
pub async fn attempt(pod: &Arc<Pod>, parcel: &mut Parcel) -> Result<Result<Response, ApiError>, &'static str> {
    let Some(wire) = pod.ring.wire() else { return Err(NO_MASTER) };
    let Some((master, address)) = master(pod) else { return Err(NO_MASTER) };
    let sent = tokio::select! {
        sent = wire.send_write(&master, &address, parcel.outgoing()) => sent,
        () = is_lost(pod, &master) => {
            return Ok(Err(unknown_outcome("The write master was lost while the write was under way")));
        }
    };
    match sent {
        Ok(response) if is_refusal(pod, &master, &response) => match parcel.contents {
            Contents::Small { .. } => Err(NO_MASTER),
            // The refusal came before the master looked at the body, but a part of it is gone.
            _ => Ok(Err(unavailable())),
        },
        Ok(response) => Ok(Ok(finish(pod, response).await)),
        Err(WireError::NotSent { why, request, .. }) => {
            tracing::debug!(%master, why, "a write could not be forwarded yet");
            if matches!(parcel.contents, Contents::Spent) {
                parcel.contents = Contents::Stream(request.into_body());
            }
            Err(OUT_OF_REACH)
        }
        Err(error @ WireError::MaybeSent { .. }) => {
            Ok(Err(unknown_outcome("The connection to the write master broke").with_cause(error)))
        }
    }
}

/// Resolves when a pod is no longer the live master, and its last answers have had their time.
async fn is_lost(pod: &Pod, master: &PodId) {
    let (mut roles, mut states) = (pod.ring.gate.roles(), pod.ring.states());
    loop {
        let follows = matches!(&*roles.borrow_and_update(), Role::Follower(epoch) if epoch.pod() == master);
        let state = states.borrow_and_update().clone();
        let lives = state.and_then(|state| state.get(master).map(|known| known.member.alive)).unwrap_or(false);
        if !follows || !lives {
            return tokio::time::sleep(LAST_ANSWERS).await;
        }
        // The pod holds both senders.
        tokio::select! {
            _ = roles.changed() => {}
            _ = states.changed() => {}
        }
    }
}

/// How long a write waits for a master, and for other pods.
pub fn patience(pod: &Pod) -> Duration {
    Duration::from_millis(pod.ring.config().write.wait_ms)
}

/// Who takes the writes, and where it is reached.
fn master(pod: &Pod) -> Option<(PodId, String)> {
    let Role::Follower(epoch) = pod.ring.role() else { return None };
    let state = pod.ring.state()?;
    let known = state.get(epoch.pod())?;
    Some((known.member.id.clone(), known.member.address.clone()))
}

fn is_refusal(pod: &Pod, master: &PodId, response: &Response) -> bool {
    let is_removed = removal::note(pod, master, response.headers());
    is_removed
        || response.status() == StatusCode::SERVICE_UNAVAILABLE && response.headers().contains_key(NOT_MASTER_HEADER)
}

/// The master's answer as the client gets it, once the write can be read here.
async fn finish(pod: &Pod, mut response: Response) -> Response {
    let headers = response.headers_mut();
    strip(headers);
    let applied = headers.remove(APPLIED_HEADER);
    if let Some((origin, seq)) = applied.as_ref().and_then(|value| value.to_str().ok()).and_then(parse_applied)
        && !pod.ring.knowledge.wait_here(&origin, seq, ARRIVAL_PATIENCE).await
    {
        tracing::debug!(%origin, seq, "a forwarded write is done and not here yet");
    }
    response
}

fn parse_applied(text: &str) -> Option<(Origin, u64)> {
    let (origin, seq) = text.split_once(' ')?;
    Some((origin.parse().ok()?, seq.parse().ok()?))
}

/// Removes what is about one connection, and what `Connection` says to be that.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

fn too_many_uploads() -> ApiError {
    let reason = "too many large requests at once; try again";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", reason)
        .with_header(http::header::RETRY_AFTER, http::HeaderValue::from(1))
}

fn broken_off() -> ApiError {
    ApiError::bad_request("The request's body broke off.")
}

/// 503 for a streamed write that met a pod which had just stopped being master: nothing of it was done.
fn unavailable() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "no_master", NO_MASTER)
        .with_header(http::header::RETRY_AFTER, http::HeaderValue::from(1))
}

#[cfg(test)]
mod tests {
    use super::{MAX_UPLOADS, MAX_UPLOADS_EACH, Uploads, Whose, parse_applied, strip};
    use adea_ring::Identity;
    use http::{HeaderMap, HeaderValue};

    #[test]
    fn what_is_about_the_connection_goes_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Secret"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("x-secret", "1"),
            ("if-match", "1-a"),
            ("x-auth-couchdb-token", "00"),
            ("content-length", "5"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        strip(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(http::HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "if-match", "x-auth-couchdb-token"]);
    }

    #[test]
    fn how_far_the_master_was() {
        let (origin, seq) = parse_applied("pod-a@0a1b2c3d 17").expect("a place");
        assert_eq!((origin.to_string().as_str(), seq), ("pod-a@0a1b2c3d", 17));
        for bad in ["", "pod-a@0a1b2c3d", "pod-a 17", "pod-a@0a1b2c3d x"] {
            assert!(parse_applied(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn one_user_takes_no_more_than_their_share_of_the_uploads() {
        let uploads = Uploads::default();
        let who = |name: &str| Identity { name: Some(name.to_owned()), roles: Vec::new() };
        let begin = |who: Identity| uploads.begin(&who, &Whose::account(&who));
        let ann: Vec<_> = (0..MAX_UPLOADS_EACH).map(|_| begin(who("ann")).ok()).collect();
        assert!(ann.iter().all(Option::is_some));
        assert_eq!(begin(who("ann")).err().map(|error| error.status.as_u16()), Some(503));
        assert!(begin(who("bob")).is_ok());
        drop(ann);
        assert!(begin(who("ann")).is_ok());
        let root = Identity { name: Some("root".to_owned()), roles: vec!["_admin".to_owned()] };
        let all: Vec<_> = (0..MAX_UPLOADS).map(|_| begin(root.clone()).ok()).collect();
        assert!(all.iter().all(Option::is_some));
        assert!(begin(who("ann")).is_err());
    }
}
