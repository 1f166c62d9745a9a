//! From the stack to rean and back: requests that end soon, feeds, and connections with many feeds.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use adea_ring::hosting::VERSION_HEADER;
use adea_ring::identity::{HEADER_PREFIX, PEER_HEADER, PRIVATE_PREFIX};
use adea_ring::node_config::FILE_SETTINGS_HEADER;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};

use crate::auth::Login;
use crate::auth::cache::Change;
use crate::body::{Body, FeedForm, RequestBody};
use crate::error::Refusal;
use crate::feeds::FeedTicket;
use crate::head::REQUEST_ID;
use crate::rules::{AccountWrite, account_write, is_feed};
use crate::stack::{Seen, Stack, is_node};
use crate::tunnel::{self, Tunnel};
use crate::upstream::{Upgrade, UpstreamError};
use crate::visitor::{self, Visitor};

const FILE_SETTINGS: HeaderName = HeaderName::from_static(FILE_SETTINGS_HEADER);
const PEER: HeaderName = HeaderName::from_static(PEER_HEADER);

/// Where a request has come from.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddress(pub IpAddr);

impl Stack {
    pub(super) async fn forward(
        &self,
        parts: Parts,
        body: RequestBody,
        login: Arc<Login>,
        seen: &mut Seen,
    ) -> Result<Response<Body>, Refusal> {
        let path = parts.uri.path();
        let is_stream = tunnel::is_stream_asked_for(&parts);
        seen.feed = is_stream || is_feed(path, parts.uri.query());
        let write = account_write(&parts.method, path);
        let form = match parts.uri.query() {
            _ if is_stream => FeedForm::Events(false),
            Some(query) if query.contains("longpoll") => FeedForm::Json,
            _ => FeedForm::Lines,
        };
        if seen.feed {
            let ticket = self.feeds.enter(Arc::clone(&login));
            // Once more: from here on a change of the rules ends the feed.
            let settings = self.settings.get();
            settings.rules.check(&parts.method, path)?;
            let mut request = self.upstream_request(parts, body, &login, seen.id.clone());
            if is_stream {
                tunnel::mark_stream(request.headers_mut(), &settings.rules.unreadable());
            }
            return Box::pin(self.forward_feed(request, ticket, form, &seen.id)).await;
        }
        let app = visitor::app_of(path);
        let visitor = app.as_ref().filter(|_| login.identity.name.is_none()).map(|_| Visitor::of(path, &parts.headers));
        let mut request = self.upstream_request(parts, body, &login, seen.id.clone());
        if let Some(visitor) = &visitor {
            visitor.tell(request.headers_mut());
        }
        let mut response = self.upstream.send(request).await.map_err(|error| self.failed(&error, &seen.id))?;
        if let Some(app) = app {
            self.visited(&app, visitor, response.headers_mut());
        }
        if let Some(write) = write.filter(|_| response.status().is_success()) {
            // The feed of changes would tell as well, but perhaps after this client's next request.
            let rev = new_rev(&response);
            match write {
                AccountWrite::User(name) => self.authenticator.changed(Change::User { name, rev }),
                AccountWrite::Session(id) => self.authenticator.changed(Change::Session { id, rev }),
                AccountWrite::Settings => Box::pin(self.authenticator.reload_settings()).await,
            }
        }
        Ok(response.map(Body::plain))
    }

    /// An app's file is on its way: counted by its version, and by a visitor without a name remembered.
    fn visited(&self, app: &str, visitor: Option<Visitor>, answer: &mut HeaderMap) {
        if let Some(version) = answer.get(VERSION_HEADER).and_then(|version| version.to_str().ok()) {
            self.metrics.app_file(app, version);
        }
        if let Some(visitor) = visitor {
            visitor.keep(answer);
        }
        visitor::strip(answer);
    }

    async fn forward_feed(
        &self,
        request: Request<RequestBody>,
        ticket: FeedTicket,
        form: FeedForm,
        id: &HeaderValue,
    ) -> Result<Response<Body>, Refusal> {
        let mut sending = Box::pin(self.upstream.send_shared(request));
        let sent = std::future::poll_fn(|context| {
            if ticket.poll_ended(context.waker()) {
                return std::task::Poll::Ready(None);
            }
            sending.as_mut().poll(context).map(Some)
        });
        // The right to the feed may end before rean has anything to say.
        let sent = sent.await.ok_or(Refusal::BadCredentials)?;
        let (response, stream) = sent.map_err(|error| self.failed(&error, id))?;
        let metrics = Arc::clone(&self.metrics);
        let mut response = response.map(|incoming| Body::feed(incoming, stream, ticket, form, metrics));
        *response.version_mut() = http::Version::HTTP_11;
        Ok(response)
    }

    /// A connection with many feeds: answered with a `101` in whose place the tunnel then goes.
    pub(super) async fn tunnel(
        &self,
        parts: Parts,
        login: Arc<Login>,
        seen: &mut Seen,
    ) -> Result<Response<Body>, Refusal> {
        seen.feed = true;
        let mut request = self.upstream_request(parts, RequestBody::Empty, &login, seen.id.clone());
        // Before rean is asked, so that no end of the log-in is missed and no change of the rules.
        let ticket = self.feeds.enter(login);
        tunnel::ask(request.headers_mut(), &self.settings.get().rules.unreadable());
        let answer = self.upstream.upgrade(request).await.map_err(|error| self.failed(&error, &seen.id))?;
        Ok(match answer {
            Upgrade::Refused(response) => response.map(|bytes| Body::full(bytes.into())),
            Upgrade::Open { response, stream, first } => {
                response.map(|()| Body::tunnel(Tunnel::new(stream, first, ticket, Arc::clone(&self.metrics))))
            }
        })
    }

    /// The request as rean gets it: the same path and query to the byte, the headers without those that end here.
    pub(super) fn upstream_request(
        &self,
        parts: Parts,
        body: RequestBody,
        login: &Login,
        id: HeaderValue,
    ) -> Request<RequestBody> {
        let mut headers = parts.headers;
        strip(&mut headers);
        if !headers.contains_key(header::HOST) {
            // HTTP/2 says it in the URI.
            let host = parts.uri.authority().map(|host| HeaderValue::from_str(host.as_str()));
            let host = host.and_then(Result::ok).unwrap_or_else(|| self.upstream.host());
            headers.insert(header::HOST, host);
        }
        if http_body::Body::size_hint(&body).exact().is_none() {
            headers.remove(header::CONTENT_LENGTH);
        }
        for (name, value) in &login.headers {
            headers.insert(name.clone(), value.clone());
        }
        headers.insert(REQUEST_ID, id);
        if let Some(PeerAddress(peer)) = parts.extensions.get()
            && let Ok(peer) = HeaderValue::try_from(peer.to_string())
        {
            headers.insert(PEER, peer);
        }
        if is_node(parts.uri.path()) {
            headers.insert(FILE_SETTINGS, self.settings.file_header());
        }
        let mut request = Request::new(body);
        *request.method_mut() = parts.method;
        *request.uri_mut() = origin_form(parts.uri);
        *request.headers_mut() = headers;
        request
    }

    pub(super) fn failed(&self, error: &UpstreamError, id: &HeaderValue) -> Refusal {
        let refusal = Refusal::from(error);
        if matches!(refusal, Refusal::UpstreamDown | Refusal::UpstreamBroke) {
            self.metrics.upstream_errors.fetch_add(1, Relaxed);
            tracing::warn!(request = id.to_str().unwrap_or(""), %error, "rean did not answer");
        }
        refusal
    }
}

/// Takes out what is meant for this connection only (RFC 9110, 7.6.1), the credentials, which rean has no use for,
/// and everything that looks like an identity.
fn strip(headers: &mut HeaderMap) {
    let mut gone: Vec<HeaderName> = Vec::new();
    for list in headers.get_all(header::CONNECTION) {
        let names = list.to_str().unwrap_or("").split(',').map(str::trim);
        gone.extend(names.filter_map(|name| name.parse().ok()));
    }
    gone.extend(headers.keys().filter(|name| ends_here(name.as_str())).cloned());
    for name in gone {
        headers.remove(name);
    }
    headers.remove(header::AUTHORIZATION);
}

fn ends_here(name: &str) -> bool {
    match name.as_bytes().first() {
        Some(b'x') => name.starts_with(HEADER_PREFIX) || name.starts_with(PRIVATE_PREFIX),
        // Cookies may be credentials, ours or those of another program on this host.
        Some(b'c') => matches!(name, "connection" | "cookie"),
        // `Expect` was answered by our own server.
        Some(b'e') => name == "expect",
        Some(b'k') => name == "keep-alive",
        Some(b'p') => name.starts_with("proxy-"),
        Some(b't') => matches!(name, "te" | "trailer" | "transfer-encoding"),
        Some(b'u') => name == "upgrade",
        Some(b'h') => name == "http2-settings",
        _ => false,
    }
}

fn origin_form(uri: Uri) -> Uri {
    if uri.scheme().is_none() && uri.authority().is_none() {
        return uri;
    }
    let path = uri.into_parts().path_and_query;
    Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")))
}

/// The revision that a write has made: CouchDB gives it as `ETag`. A deletion's is not wanted.
fn new_rev<T>(response: &Response<T>) -> Option<String> {
    if response.status() != StatusCode::CREATED {
        return None;
    }
    let tag = response.headers().get(header::ETAG)?.to_str().ok()?;
    Some(tag.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_end_here_are_stripped() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-auth-couchdb-username", "admin"),
            ("x-auth-couchdb-roles", "_admin"),
            ("x-auth-couchdb-token", "x"),
            ("x-auth-couchdb-other", "x"),
            ("x-adea-file-settings", "{}"),
            ("x-adea-peer", "10.0.0.1"),
            ("cookie", "AuthSession=x"),
            ("connection", "keep-alive, X-Named, authorization"),
            ("keep-alive", "5"),
            ("x-named", "x"),
            ("authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("proxy-authorization", "x"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("content-type", "text/plain"),
            ("x-auth", "stays"),
            ("if-match", "1-a"),
            ("destination", "b"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-type", "destination", "if-match", "x-auth"]);
    }

    #[test]
    fn paths_stay_as_they_are() {
        for (uri, path) in [
            ("/a%2Fb/%c3%BC?x=%2f&y", "/a%2Fb/%c3%BC?x=%2f&y"),
            ("http://host:1/a/../b?c", "/a/../b?c"),
            ("http://host", "/"),
        ] {
            assert_eq!(origin_form(uri.parse().expect("a URI")).to_string(), path);
        }
    }
}
