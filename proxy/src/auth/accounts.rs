//! Users and sessions as documents in rean.

use bytes::Bytes;
use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::password::{Prf, Stored};
use crate::upstream::{Upstream, UpstreamError};

/// Tries to delete a session that is prolonged at the same time: that happens once in half its time on each pod.
const DELETE_TRIES: usize = 5;

/// A user's document, as far as a log-in needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The document's revision.
    pub rev: String,
    /// The user's roles.
    pub roles: Vec<String>,
    /// What the password is checked against.
    pub stored: Stored,
}

#[derive(Debug, Deserialize)]
struct UserDoc {
    #[serde(rename = "_rev")]
    rev: String,
    name: String,
    #[serde(default)]
    roles: Vec<String>,
    password_scheme: Option<String>,
    pbkdf2_prf: Option<String>,
    derived_key: Option<String>,
    password_sha: Option<String>,
    salt: Option<String>,
    iterations: Option<u32>,
}

/// A session's document. The secret itself is known to its client only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionDoc {
    /// The document's revision.
    #[serde(rename = "_rev", skip_serializing_if = "Option::is_none")]
    pub rev: Option<String>,
    /// What kind of document this is: `session`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The account that the session acts as.
    pub user: String,
    /// SHA-256 of the secret, in hexadecimal digits.
    pub secret_sha256: String,
    /// SHA-256 over what the account's password was checked against: with another password, or another account of
    /// the same name, the session is over.
    pub password_sha256: String,
    /// When it began, in milliseconds since 1970.
    pub created_at_ms: u64,
    /// When it ends, in milliseconds since 1970.
    pub expires_at_ms: u64,
    /// Whether it is a cookie: then its end moves on with any request, and not only when that is asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cookie: bool,
}

/// Reads a user's document. `None` when there is none that fits the name.
///
/// # Errors
/// When rean does not answer.
pub async fn user(upstream: &Upstream, name: &str) -> Result<Option<User>, UpstreamError> {
    let path = format!("/_users/{}", encode("org.couchdb.user:", name));
    let Some(doc) = read::<UserDoc>(upstream, &path).await? else { return Ok(None) };
    if doc.name != name {
        return Ok(None);
    }
    // `_admin` and its like are the server's own: only the configuration gives them.
    let roles = doc.roles.iter().filter(|role| !role.starts_with('_')).cloned().collect();
    Ok(Some(User { stored: stored(&doc), rev: doc.rev, roles }))
}

/// What a document says of its password. CouchDB of before 1.3 names no scheme.
fn stored(doc: &UserDoc) -> Stored {
    let text = |member: &Option<String>| member.clone().unwrap_or_default();
    match (doc.password_scheme.as_deref(), &doc.derived_key, &doc.password_sha) {
        (Some("argon2id"), Some(hash), _) => Stored::Argon2(hash.clone()),
        (Some("pbkdf2"), Some(key), _) => match Prf::of_name(doc.pbkdf2_prf.as_deref()) {
            Some(prf) => Stored::Pbkdf2 {
                prf,
                derived_key: key.clone(),
                salt: text(&doc.salt),
                iterations: doc.iterations.unwrap_or(0),
            },
            None => Stored::Nothing,
        },
        (None | Some("simple"), _, Some(hash)) => Stored::Simple { password_sha: hash.clone(), salt: text(&doc.salt) },
        _ => Stored::Nothing,
    }
}

/// Has rean keep a hash of ours in the place of another server's, now that the password is known. `rev` is the document
/// that it was checked against: one that was changed meanwhile is left alone. Gives the new revision.
///
/// # Errors
/// When rean does not answer or does not take it.
pub async fn rehash(
    upstream: &Upstream,
    name: &str,
    rev: &str,
    password: &str,
) -> Result<Option<String>, UpstreamError> {
    let path = format!("/_users/{}", encode("org.couchdb.user:", name));
    let Some(mut doc) = read::<Map<String, Value>>(upstream, &path).await? else { return Ok(None) };
    if doc.get("_rev").and_then(Value::as_str) != Some(rev) {
        return Ok(None);
    }
    doc.insert("password".to_owned(), password.into());
    match upstream.ask(Method::PUT, &path, Some(Value::Object(doc).to_string().into())).await? {
        (StatusCode::CREATED | StatusCode::ACCEPTED, answer) => {
            let answer: Value = serde_json::from_slice(&answer)?;
            Ok(answer.get("rev").and_then(Value::as_str).map(str::to_owned))
        }
        (StatusCode::CONFLICT, _) => Ok(None),
        (other, _) => Err(UpstreamError::Unexpected(other)),
    }
}

/// A session's document, and the branches of it that end in a deletion.
#[derive(Debug, Deserialize)]
struct SessionBranches {
    #[serde(flatten)]
    doc: SessionDoc,
    #[serde(rename = "_deleted_conflicts", default)]
    deleted: Vec<String>,
}

/// Reads a session's document. `None` when there is none, or when any of its branches is deleted: while pods could not reach
/// each other one may have prolonged a session that was ended on another. Of such branches the one that lives wins, but
/// who has logged out must stay so. Nothing but a log-out deletes a session: one whose time is over is purged, which leaves
/// no branch.
///
/// # Errors
/// When rean does not answer.
pub async fn session(upstream: &Upstream, id: &str) -> Result<Option<SessionDoc>, UpstreamError> {
    let path = format!("/_ring/{}?deleted_conflicts=true", encode("session:", id));
    let found = read::<SessionBranches>(upstream, &path).await?;
    Ok(found.filter(|found| found.deleted.is_empty()).map(|found| found.doc))
}

/// Writes a new session's document, and gives its revision.
///
/// # Errors
/// When rean does not answer or does not take it.
pub async fn create_session(upstream: &Upstream, id: &str, doc: &SessionDoc) -> Result<(), UpstreamError> {
    let path = format!("/_ring/{}", encode("session:", id));
    let body = Bytes::from(serde_json::to_vec(doc)?);
    match upstream.ask(Method::PUT, &path, Some(body)).await? {
        (StatusCode::CREATED | StatusCode::ACCEPTED, _) => Ok(()),
        (other, _) => Err(UpstreamError::Unexpected(other)),
    }
}

/// Moves the end of a session on, and gives the document's new revision; `None` if it has changed since `rev`.
///
/// # Errors
/// When rean does not answer or does not take it.
pub async fn renew_session(
    upstream: &Upstream,
    id: &str,
    rev: &str,
    expires_at_ms: u64,
) -> Result<Option<String>, UpstreamError> {
    let path = format!("/_ring/{}", encode("session:", id));
    let Some(mut doc) = session(upstream, id).await? else { return Ok(None) };
    if doc.rev.as_deref() != Some(rev) {
        return Ok(None);
    }
    doc.expires_at_ms = expires_at_ms;
    let body = Bytes::from(serde_json::to_vec(&doc)?);
    match upstream.ask(Method::PUT, &path, Some(body)).await? {
        (StatusCode::CREATED | StatusCode::ACCEPTED, answer) => {
            let answer: Value = serde_json::from_slice(&answer)?;
            Ok(answer.get("rev").and_then(Value::as_str).map(str::to_owned))
        }
        (StatusCode::CONFLICT, _) => Ok(None),
        (other, _) => Err(UpstreamError::Unexpected(other)),
    }
}

/// Deletes a session's document; one that is gone already is no error.
///
/// # Errors
/// When rean does not answer or does not do it.
pub async fn delete_session(upstream: &Upstream, id: &str, rev: &str) -> Result<(), UpstreamError> {
    let path = format!("/_ring/{}", encode("session:", id));
    let mut rev = rev.to_owned();
    for _ in 0..DELETE_TRIES {
        match upstream.ask(Method::DELETE, &format!("{path}?rev={rev}"), None).await? {
            (StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NOT_FOUND, _) => return Ok(()),
            // One that was prolonged meanwhile, perhaps on another pod: it must not outlive its log-out.
            (StatusCode::CONFLICT, _) => match read::<SessionDoc>(upstream, &path).await?.and_then(|doc| doc.rev) {
                Some(now) => rev = now,
                None => return Ok(()),
            },
            (other, _) => return Err(UpstreamError::Unexpected(other)),
        }
    }
    Err(UpstreamError::Unexpected(StatusCode::CONFLICT))
}

/// A document, or `None` when there is none or it is not of the expected form.
async fn read<T: for<'a> Deserialize<'a>>(upstream: &Upstream, path: &str) -> Result<Option<T>, UpstreamError> {
    let (status, body) = upstream.ask(Method::GET, path, None).await?;
    match status {
        // A document of another form is an account that can't log in, not an error of the server.
        StatusCode::OK => Ok(serde_json::from_slice(&body).ok()),
        // 400: the name can't be an id.
        StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Ok(None),
        other => Err(UpstreamError::Unexpected(other)),
    }
}

fn encode(prefix: &str, name: &str) -> String {
    let id = format!("{prefix}{name}");
    utf8_percent_encode(&id, NON_ALPHANUMERIC).to_string()
}
