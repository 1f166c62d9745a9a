//! The door for new pods: `POST /_join`, answered on the write master ([`adea_ring::join`] has the exchange).
//!
//! It counts as a write, so whichever pod is asked, the master decides, and its store counts the uses by compare-and-set:
//! of two pods with the last use of a token one is let in. Unknown, expired, used-up, revoked and wrong tokens are
//! answered alike, in the same time. A request that is repeated gets an answer that only its first sender can open, and
//! counts once, so a lost answer costs no use.
//!
//! What is not kept: two masters of a split ring each count for themselves.

use std::sync::Arc;
use std::time::Duration;

use adea_ring::config::PodState;
use adea_ring::join::{FORMAT, Grant, Intent, JoinRequest, TOKEN_PREFIX, TokenDoc, TokenId, Use, Welcome};
use adea_ring::upgrade::UPGRADE_ID;
use adea_ring::{PodId, RingSecret};
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use http_body_util::{BodyExt, Limited};
use rean_store::{Edit, Scope, StoreError};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use crate::databases::json_line;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::ring::ring_doc::{self, Leaf, now_ms, ring_db};
use crate::ring::status;
use crate::route::{Request, Response};

/// A request is some hundred bytes.
const MAX_BODY_BYTES: usize = 4 << 10;
/// Requests at once: each holds a place for [`REFUSAL`] at most.
const MAX_AT_ONCE: usize = 64;
/// When a refusal is answered, counted from the request: later than any look at a token takes.
const REFUSAL: Duration = Duration::from_millis(150);
/// How long a name is kept for the pod that was let in under it and has not come up yet, in milliseconds.
const RESERVED_MS: u64 = 600_000;
/// Tries to count a use when somebody else changes the document at the same time.
const TRIES: usize = 4;
/// Pods that a new one is told of: one that answers is enough.
const MAX_SEEDS: usize = 16;

/// What the door needs.
pub struct Door {
    secret: RingSecret,
    places: Semaphore,
    /// Held while a use is looked at and counted, as two tokens may be for the same name.
    counting: tokio::sync::Mutex<()>,
}

/// Why a new pod is not let in.
#[derive(Debug)]
enum Refused {
    /// It has shown no token that counts.
    Token,
    /// It has, and there is another reason, which it is told.
    Why(ApiError),
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self::Why(error)
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Why(error.into())
    }
}

impl Door {
    /// The door of a ring.
    pub fn new(secret: &RingSecret) -> Self {
        Self { secret: secret.clone(), places: Semaphore::new(MAX_AT_ONCE), counting: tokio::sync::Mutex::default() }
    }
}

/// `POST /_join`, for anybody.
///
/// # Errors
/// 403 without a token that counts, 409 when the name is taken, 400 when this is no request to join.
pub async fn join(pod: &Arc<Pod>, request: Request) -> Result<Response, ApiError> {
    let until = Instant::now() + REFUSAL;
    let Ok(_place) = pod.door.places.try_acquire() else { return Err(busy()) };
    let body = read(request.body).await?;
    let wanted: JoinRequest = serde_json::from_slice(&body)
        .map_err(|_| ApiError::bad_request("That is no request to join: `podctl join` sends them"))?;
    if wanted.format != FORMAT {
        let reason =
            format!("This ring takes requests to join of the form {FORMAT}: use the podctl of one of its pods");
        return Err(ApiError::bad_request(reason));
    }
    match let_in(pod, &wanted).await {
        Ok(answer) => Ok(answer),
        Err(Refused::Token) => {
            tracing::warn!(token = %wanted.token, pod = %wanted.pod, "a request to join showed no token that counts");
            sleep_until(until).await;
            Err(no_token())
        }
        Err(Refused::Why(error)) => Err(error),
    }
}

/// Checks an edit of a token's document by a client: it is made once, and can be deleted. What counts its uses this pod
/// writes itself, and not by this way; so a used-up token stays that, whatever an administrator has kept of it.
///
/// # Errors
/// 403 for a change, also for one that would bring a deleted token back.
pub fn check(pod: &Pod, edit: &Edit) -> Result<(), ApiError> {
    if edit.deleted || !edit.id.starts_with(TOKEN_PREFIX) || ring_db(pod)?.doc(&Scope::All, &edit.id)?.is_none() {
        return Ok(());
    }
    Err(ApiError::forbidden(
        "A token is not changed, as it counts whom it has let in: revoke it (`podctl token revoke`), and make another one.",
    ))
}

/// Whether a document of `_ring` may not be purged: its past counts.
pub fn must_stay(id: &str) -> bool {
    id == UPGRADE_ID || id.starts_with(TOKEN_PREFIX)
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
    Ok(body.map_err(|_| ApiError::bad_request("The request to join is too large or broke off"))?.to_bytes())
}

async fn let_in(pod: &Arc<Pod>, wanted: &JoinRequest) -> Result<Response, Refused> {
    let _counting = pod.door.counting.lock().await;
    for _ in 0..TRIES {
        let (leaf, doc, grant) = look_up(pod, wanted)?;
        if pod.ring.is_alone() {
            return Err(ApiError::new(StatusCode::CONFLICT, "alone", ALONE).into());
        }
        let mut welcome = welcome(pod);
        if wanted.intent == Intent::Look {
            check_name(pod, wanted)?;
            return Ok(answer(&grant, wanted, &welcome)?);
        }
        welcome.ring_secret = Some(pod.door.secret.to_hex());
        welcome.admin = Some(grant.admin.clone());
        if doc.used.iter().any(|used| used.pod == wanted.pod && used.key == wanted.key) {
            // The answer was lost on the way; or it was recorded, and helps nobody.
            return Ok(answer(&grant, wanted, &welcome)?);
        }
        check_name(pod, wanted)?;
        // Before it is counted: a request with a key that is none costs no use.
        let answer = answer(&grant, wanted, &welcome)?;
        if count(pod, &wanted.token, leaf, doc, wanted).await? {
            tracing::info!(token = %wanted.token, pod = %wanted.pod, "a token has let a new pod into the ring");
            return Ok(answer);
        }
    }
    Err(busy().into())
}

/// The token's document and what it grants, if the request proves that it knows the token and that still counts.
fn look_up(pod: &Pod, wanted: &JoinRequest) -> Result<(Leaf, TokenDoc, Grant), Refused> {
    let leaf = ring_doc::live(&ring_db(pod)?, &wanted.token.doc_id())?;
    let found = leaf.and_then(|leaf| {
        let doc: TokenDoc = serde_json::from_value(Value::Object(leaf.body.clone())).ok()?;
        let grant = doc.open(&pod.door.secret, &wanted.token).ok()?;
        Some((leaf, doc, grant))
    });
    let Some((leaf, doc, grant)) = found else {
        // As much work as with a token.
        let _ = Grant::dummy().proves(wanted);
        return Err(Refused::Token);
    };
    let is_again = doc.used.iter().any(|used| used.pod == wanted.pod && used.key == wanted.key);
    let now_ms = now_ms();
    let counts = doc.left(now_ms) > 0 || (is_again && now_ms < doc.expires_at_ms);
    if grant.proves(wanted) && counts { Ok((leaf, doc, grant)) } else { Err(Refused::Token) }
}

/// Notes a use; false when somebody else has changed the document meanwhile.
async fn count(pod: &Pod, id: &TokenId, leaf: Leaf, mut doc: TokenDoc, wanted: &JoinRequest) -> Result<bool, ApiError> {
    doc.used.push(Use { pod: wanted.pod.clone(), key: wanted.key.clone(), at_ms: now_ms() });
    let mut body: Map<String, Value> = leaf.body;
    body.insert("used".to_owned(), json!(doc.used));
    let edit = ring_doc::edit(&id.doc_id(), Some(leaf.rev), &body);
    match ring_doc::write(pod, &ring_db(pod)?, edit).await {
        Ok(_) => Ok(true),
        Err(error) if error.status == StatusCode::CONFLICT => Ok(false),
        Err(error) => Err(error),
    }
}

/// Refuses a name that another pod has, has had, or is about to have.
fn check_name(pod: &Pod, wanted: &JoinRequest) -> Result<(), ApiError> {
    let name = &wanted.pod;
    if pod.ring.config().pods.get(name) == Some(&PodState::Removed) {
        return Err(taken(name, "was removed from this ring, whose pods would refuse it"));
    }
    let known = pod.ring.state().is_some_and(|state| state.get(name).is_some());
    let ring = ring_db(pod)?;
    if known || name == pod.ring.me() || ring_doc::live(&ring, &status::doc_id(name))?.is_some() {
        return Err(taken(name, "is the name of a pod of this ring"));
    }
    let since_ms = now_ms().saturating_sub(RESERVED_MS);
    let mut reserved = false;
    ring_doc::each(&ring, TOKEN_PREFIX, |_, leaf| {
        let doc: Option<TokenDoc> = serde_json::from_value(Value::Object(leaf.body)).ok();
        let used = doc.map(|doc| doc.used).unwrap_or_default();
        reserved |= used.iter().any(|used| used.pod == *name && used.key != wanted.key && used.at_ms > since_ms);
        !reserved
    })?;
    if reserved { Err(taken(name, "was given to another new pod a moment ago")) } else { Ok(()) }
}

/// What everyone with a token may know.
fn welcome(pod: &Pod) -> Welcome {
    let state = pod.ring.state();
    let members = state.iter().flat_map(|state| &state.members);
    let mut live: Vec<_> = members.filter(|known| known.member.is_live()).collect();
    // This pod first: it is the one that surely lives.
    live.sort_by_key(|known| known.member.id != *pod.ring.me());
    live.truncate(MAX_SEEDS);
    Welcome {
        uuid: pod.uuid.clone(),
        seeds: live.iter().map(|known| known.member.address.clone()).collect(),
        urls: live.iter().filter_map(|known| known.said.url.clone()).collect(),
        software: adea_ring::software::version().to_owned(),
        order_trust: state.as_ref().and_then(|state| state.order_trust.clone()),
        ..Welcome::default()
    }
}

fn answer(grant: &Grant, wanted: &JoinRequest, welcome: &Welcome) -> Result<Response, ApiError> {
    let answer = grant.answer(wanted, welcome).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let mut response = json_line(StatusCode::OK, &json!(answer));
    response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

const ALONE: &str =
    "This pod was started without a ring: give it the section `ring` in its configuration, and start it again";

fn no_token() -> ApiError {
    ApiError::forbidden("This token lets nobody in: it is unknown, used up, expired or revoked. Ask for a new one")
}

fn taken(name: &PodId, why: &str) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, "name_taken", format!("{name} {why}: choose another name"))
}

fn busy() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Too many pods want to join at once; try again")
        .with_header(http::header::RETRY_AFTER, HeaderValue::from(1))
}
