//! `/_session`: who am I, log in, stay, log out (<https://docs.couchdb.org/en/stable/api/server/authn.html>).
//!
//! A log-in gives no cookie but a temporary name and password, which work wherever Basic credentials do and on every
//! pod. A page keeps them in memory; a browser never adds them by itself, so no foreign page can use them. Where CouchDB's
//! cookie is switched on (`auth::cookie`), a log-in gives that, unless the body asks with `"session": true` for the other:
//! never both, as what is in a body is not hidden from a page's programs.
//!
//! `PUT /_session`, which CouchDB doesn't have, prolongs a temporary name and password (`auth::prolong`). Its answer is that
//! of `GET`, which says until when the session lasts: as what is left too, for clients whose clocks are wrong.

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::auth::cache::Change;
use crate::auth::cookie::{self, CookieRules};
use crate::auth::operator::is_pass;
use crate::auth::{Authenticator, Credentials, Login, SESSION_PREFIX, accounts, make_session};
use crate::body::{Body, BodyError, ClientBody};
use crate::clock;
use crate::error::{Refusal, json};
use crate::settings::InForce;
use crate::upstream::{Upstream, UpstreamError};

/// A name and a password, with room for escapes.
const MAX_BODY_BYTES: u64 = 16 * 1024;

/// How long a session lasts.
pub struct Lifetimes<'a> {
    /// One that is a cookie; `None`: there are no cookies for this request.
    pub cookie: Option<&'a CookieRules>,
    /// Any other, in milliseconds.
    pub plain_ms: u64,
    /// How long after its log-in any ends, however it is prolonged, in milliseconds.
    pub max_age_ms: u64,
}

/// Answers `GET /_session`, and `PUT` when the session was prolonged as far as it could be.
///
/// # Errors
/// `LogInFirst` to nobody in particular, where `?basic=true` asks for somebody.
pub fn who_am_i(login: &Login, settings: &InForce, query: Option<&str>) -> Result<Response<Body>, Refusal> {
    if login.identity.name.is_none() && parameter(query, "basic").as_deref() == Some("true") {
        return Err(Refusal::LogInFirst);
    }
    let handlers: &[&str] =
        if settings.cookie.is_some() { &["cookie", "default", "session"] } else { &["default", "session"] };
    let mut info = json!({"authentication_handlers": handlers});
    if login.identity.name.is_some() {
        info["authenticated"] = if login.by_cookie { "cookie" } else { "default" }.into();
    }
    if login.identity.is_admin() {
        info["authentication_db"] = "_users".into();
    }
    let user = json!({"name": login.identity.name, "roles": login.identity.roles});
    let mut answer = json!({"ok": true, "userCtx": user, "info": info});
    if let Some(session) = &login.session {
        answer["session"] = times(session.expires_at_ms, session.longest_ms(settings.session_max_age_ms));
    }
    Ok(json(StatusCode::OK, &answer))
}

/// Answers `POST /_session`.
///
/// # Errors
/// `BadCredentials`, `Throttled`, a body that is not understood, or why rean could not be asked.
pub async fn log_in(
    authenticator: &Authenticator,
    upstream: &Upstream,
    headers: &HeaderMap,
    body: Option<ClientBody>,
    peer: IpAddr,
    lifetimes: &Lifetimes<'_>,
) -> Result<Response<Body>, Refusal> {
    let (credentials, wants_session) = read_credentials(headers, body).await?;
    if credentials.name.starts_with(SESSION_PREFIX) || is_pass(&credentials.name) {
        // Or a stolen one could be prolonged for ever.
        return Err(Refusal::BadCredentials);
    }
    let login = authenticator.log_in(credentials, peer).await?;
    authenticator.new_session(&login.account)?;
    let now_ms = clock::now_ms();
    let cookie = lifetimes.cookie.filter(|_| !wants_session);
    let lifetime_ms = match cookie {
        Some(rules) => rules.timeout_s.saturating_mul(1000),
        None => lifetimes.plain_ms,
    };
    // The longest life bounds the first one too, not only what it is prolonged by.
    let lifetime_ms = lifetime_ms.min(lifetimes.max_age_ms);
    let expires_at_ms = now_ms.saturating_add(lifetime_ms);
    let (id, secret, mut doc) = make_session(&login.account, &login.password_sha256, now_ms, expires_at_ms);
    doc.cookie = cookie.is_some();
    accounts::create_session(upstream, &id, &doc).await.map_err(|error| failed(&error))?;
    let mut answer = json!({"ok": true, "name": login.identity.name, "roles": login.identity.roles});
    let Some(rules) = cookie else {
        let mut session = times(expires_at_ms, now_ms.saturating_add(lifetimes.max_age_ms));
        session["name"] = format!("{SESSION_PREFIX}{id}").into();
        session["password"] = secret.into();
        answer["session"] = session;
        return Ok(json(StatusCode::OK, &answer));
    };
    let mut response = json(StatusCode::OK, &answer);
    if let Some(cookie) = cookie::set(rules, &id, &secret, expires_at_ms, headers) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// Answers `DELETE /_session`: ends the session whose credentials the request has. Without one there is nothing to
/// end, and as in CouchDB that is no error.
///
/// # Errors
/// Why rean could not be asked.
pub async fn log_out(
    authenticator: &Authenticator,
    upstream: &Upstream,
    login: &Login,
) -> Result<Response<Body>, Refusal> {
    if let Some(session) = &login.session {
        let deleting = accounts::delete_session(upstream, &session.id, &session.rev);
        deleting.await.map_err(|error| failed(&error))?;
        // The answer must not come before the session has ended here; other pods hear of it by the feed.
        authenticator.changed(Change::Session { id: session.id.to_string(), rev: None });
    }
    Ok(json(StatusCode::OK, &json!({"ok": true})))
}

/// What a client has to know to stay logged in: when the session ends, and until when it can be prolonged.
fn times(expires_at_ms: u64, longest_ms: u64) -> Value {
    json!({
        "expires": clock::iso8601(expires_at_ms),
        "left_ms": expires_at_ms.saturating_sub(clock::now_ms()),
        "longest": clock::iso8601(longest_ms),
    })
}

/// Sends a browser's form on to the page that `?next=` names, as CouchDB does after a log-in and a log-out that are the
/// cookie's. Only to a path of this server: another one could look like its log-in.
pub fn send_on(response: &mut Response<Body>, query: Option<&str>) {
    send_to(response, parameter(query, "next"));
}

/// As [`send_on`], to the page that `?fail=` names, after a log-in that was refused.
pub fn send_back(response: &mut Response<Body>, query: Option<&str>) {
    send_to(response, parameter(query, "fail"));
}

fn send_to(response: &mut Response<Body>, path: Option<String>) {
    let Some(next) = path else { return };
    let is_path = next.starts_with('/') && !next.starts_with("//") && !next.contains(['\\', '\r', '\n', '\t']);
    if let Some(location) = is_path.then(|| HeaderValue::try_from(next).ok()).flatten() {
        *response.status_mut() = StatusCode::FOUND;
        response.headers_mut().insert(header::LOCATION, location);
    }
}

/// A parameter's text.
fn parameter(query: Option<&str>, wanted: &str) -> Option<String> {
    let pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.into_iter().find(|(key, _)| percent_decode_str(key).eq(wanted.bytes()))?.1;
    percent_decode_str(value).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

/// What may be done with `/_session`.
///
/// # Errors
/// When it is something else.
pub fn check_method(method: &Method) -> Result<(), Refusal> {
    match *method {
        Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::DELETE => Ok(()),
        _ => Err(Refusal::Method("DELETE,GET,HEAD,POST,PUT")),
    }
}

#[derive(Deserialize)]
struct Form {
    name: Option<String>,
    /// CouchDB takes this name for it as well.
    username: Option<String>,
    password: Option<String>,
    /// Whether a temporary name and password are wanted where a cookie could be had.
    #[serde(default)]
    session: bool,
}

async fn read_credentials(headers: &HeaderMap, body: Option<ClientBody>) -> Result<(Credentials, bool), Refusal> {
    let Some(mut body) = body else {
        return Err(Refusal::BadRequest("request body must contain name and password"));
    };
    body.limit(MAX_BODY_BYTES);
    let bytes = body.collect().await.map_err(|error| match error {
        BodyError::TooLarge => Refusal::BodyTooLarge,
        BodyError::Timeout => Refusal::BodyTimeout,
        _ => Refusal::BodyBroken,
    })?;
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
    let form = if kind.starts_with(b"application/json") {
        serde_json::from_slice(&bytes).map_err(|_| Refusal::BadRequest("invalid UTF-8 JSON"))?
    } else if kind.is_empty() || kind.starts_with(b"application/x-www-form-urlencoded") {
        parse_form(&bytes)
    } else {
        return Err(Refusal::ContentType);
    };
    let Form { name, username, password, session } = form;
    let name = match (name, username) {
        (Some(name), Some(other)) if name != other => {
            return Err(Refusal::BadRequest("request body contains different usernames"));
        }
        (name, username) => name.or(username).ok_or(Refusal::BadRequest("request body must contain a username"))?,
    };
    let password = password.unwrap_or_default();
    Ok((Credentials { name, password }, session))
}

/// `application/x-www-form-urlencoded` (<https://url.spec.whatwg.org/#urlencoded-parsing>).
fn parse_form(bytes: &[u8]) -> Form {
    let text = String::from_utf8_lossy(bytes).replace('+', " ");
    let find = |wanted: &str| {
        let pairs = text.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let mut found = pairs.filter(|(key, _)| percent_decode_str(key).eq(wanted.bytes()));
        let value = found.next()?.1;
        Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
    };
    let session = find("session").is_some_and(|value| value == "true");
    Form { name: find("name"), username: find("username"), password: find("password"), session }
}

fn failed(error: &UpstreamError) -> Refusal {
    tracing::warn!(%error, "a session can't be written");
    Refusal::UpstreamDown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_sent_on_to_this_server_only() {
        let sent = |query: &str| {
            let mut response = json(StatusCode::OK, &json!({}));
            send_on(&mut response, Some(query));
            let location = response.headers().get(header::LOCATION).cloned();
            location.map(|location| location.to_str().expect("ASCII").to_owned())
        };
        assert_eq!(sent("x=1&next=/app/page%3Fq%3D1").as_deref(), Some("/app/page?q=1"));
        for bad in
            ["", "next=", "next=//evil", "next=http://evil", "next=/%5Cevil", "next=/a%0d%0ab", "next=%2F%2Fevil"]
        {
            assert_eq!(sent(bad), None, "{bad}");
        }
    }

    #[test]
    fn forms_are_decoded() {
        let form = parse_form("x=1&name=%C3%BC+x&p%61ssword=a%2Bb%26c%3D&name=other".as_bytes());
        assert_eq!(form.name.as_deref(), Some("ü x"));
        assert_eq!(form.password.as_deref(), Some("a+b&c="));
        assert_eq!(parse_form(b"").name, None);
    }
}
