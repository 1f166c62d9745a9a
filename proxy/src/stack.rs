//! The path of a request, from top to bottom in one place: URI limit, CORS, path rules, own endpoints, log-in, body
//! limits, forwarding; and back: CORS, compression, our headers, the tally.
//!
//! A 401 has no `WWW-Authenticate` unless the configuration asks for it. With it, a browser would ask its user for a
//! password, remember it and add it to every request by itself, also to those that a foreign page makes. Without it,
//! only a program that has credentials sends them, and that is what makes the open CORS rules safe (see `cors`).

use std::net::IpAddr;
use std::sync::Arc;

use adea_ring::pace::Pace;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::access_log::AccessLog;
use crate::auth::knocks::Knocks;
use crate::auth::{Authenticator, Login, cookie};
use crate::body::{Body, ClientBody, Patience, RequestBody};
use crate::config::{Config, Limits};
use crate::error::Refusal;
use crate::feeds::Feeds;
use crate::gzip;
use crate::head::{self, REQUEST_ID};
use crate::health::Health;
use crate::join;
use crate::metrics::{MethodClass, Metrics};
use crate::rules::{is_plain, segments};
use crate::session;
use crate::settings::Settings;
use crate::stack::onward::PeerAddress;
use crate::tally::{Logged, Tally};
use crate::tunnel;
use crate::upstream::Upstream;
use crate::web;

mod onward;

const SERVER: HeaderValue = HeaderValue::from_static(concat!("Adea/", env!("CARGO_PKG_VERSION")));
const PRIVATE: HeaderValue = HeaderValue::from_static("private, must-revalidate");
const METRICS_TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4");

/// Everything that a request passes.
pub struct Stack {
    limits: Limits,
    settings: Arc<Settings>,
    health: Health,
    www_authenticate: bool,
    open_metrics: bool,
    hsts: Option<HeaderValue>,
    access_log: Arc<AccessLog>,
    gzip_permits: Arc<Semaphore>,
    knocks: Knocks,
    /// Who sends a request.
    pub authenticator: Arc<Authenticator>,
    /// The way to rean.
    pub upstream: Arc<Upstream>,
    /// The open feeds.
    pub feeds: Arc<Feeds>,
    /// The counters.
    pub metrics: Arc<Metrics>,
}

/// What was found out about a request while it was answered, for the tally.
struct Seen {
    /// The request's name in the logs, here and at rean, and in the answer.
    id: HeaderValue,
    feed: bool,
    user: Option<Arc<str>>,
    /// A cookie that is to last longer than the client knows.
    cookie: Option<HeaderValue>,
}

impl Stack {
    /// The stack of a configuration.
    pub fn new(config: &Config, access_log: AccessLog) -> Self {
        let signer = adea_ring::Signer::new(&config.ring_secret);
        let metrics = Arc::new(Metrics::default());
        let feeds = Arc::new(Feeds::default());
        let upstream = Upstream::new(config.rean.clone(), config.limits.connect_timeout, &signer);
        let upstream = Arc::new(upstream);
        let settings = Arc::new(Settings::new(config));
        let authenticator = Authenticator::new(
            config,
            signer,
            Arc::clone(&settings),
            Arc::clone(&upstream),
            Arc::clone(&feeds),
            Arc::clone(&metrics),
        );
        Self {
            limits: config.limits.clone(),
            settings,
            health: Health::default(),
            www_authenticate: config.www_authenticate,
            open_metrics: config.open_metrics,
            hsts: hsts(config),
            access_log: Arc::new(access_log),
            gzip_permits: Arc::new(Semaphore::new(gzip::MOST_AT_ONCE)),
            knocks: Knocks::default(),
            authenticator: Arc::new(authenticator),
            upstream,
            feeds,
            metrics,
        }
    }

    /// Answers a request.
    pub async fn handle(&self, peer: IpAddr, request: Request<Incoming>) -> Response<Body> {
        let started = Instant::now();
        let (mut parts, incoming) = request.into_parts();
        // Before anything asks for the method.
        head::override_method(&mut parts);
        parts.extensions.insert(PeerAddress(peer));
        let address = head::own_address(&parts);
        let class = MethodClass::of(&parts.method);
        let head = parts.method == Method::HEAD;
        if !self.settings.is_loaded() && parts.uri.path() != "/_up" {
            // Before that nobody knows what an administrator has forbidden.
            Box::pin(self.authenticator.reload_settings()).await;
        }
        let settings = self.settings.get();
        let origin = settings.cors.origin(&parts.headers);
        let may_gzip = !head && !parts.headers.contains_key(header::RANGE) && gzip::accepts(&parts.headers);
        let mut log = self.access_log.is_on().then(|| Logged {
            log: Arc::clone(&self.access_log),
            method: parts.method.clone(),
            path: parts.uri.path().to_owned(),
            user: None,
            peer,
        });
        let mut seen = Seen { id: head::id(&parts.headers), feed: false, user: None, cookie: None };
        let is_http1 = parts.version < Version::HTTP_2;
        let answered = self.answer(parts, incoming, peer, &mut seen).await;
        let closes = is_http1 && matches!(answered, Err(Refusal::BodyTimeout | Refusal::BodyBroken));
        let mut response = answered.unwrap_or_else(|refusal| refusal.response());
        if head {
            without_content(&mut response);
        } else if may_gzip && gzip::is_worth_it(&response) {
            // No permit left: the answer goes out as it is.
            if let Ok(permit) = Arc::clone(&self.gzip_permits).try_acquire_owned() {
                gzip::compress(&mut response, permit);
            }
        }
        self.our_headers(&mut response, seen.id);
        if closes {
            // The rest of the body is nothing that a next request could be told from.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(address) = address {
            head::complete_location(&address, response.headers_mut());
        }
        if let Some(origin) = origin {
            settings.cors.allow(origin, response.headers_mut());
        }
        if let Some(cookie) = seen.cookie {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        if let Some(log) = &mut log {
            log.user = seen.user;
        }
        let status = response.status();
        let metrics = Arc::clone(&self.metrics);
        let tally = Tally::new(metrics, started, class, status, seen.feed, log);
        response.body_mut().tallied(Box::new(tally));
        response
    }

    async fn answer(
        &self,
        mut parts: Parts,
        incoming: Incoming,
        peer: IpAddr,
        seen: &mut Seen,
    ) -> Result<Response<Body>, Refusal> {
        // First, so that a body is read to its end also where the request is refused below.
        let body = self.body(&parts.headers, incoming);
        self.check_uri(&parts)?;
        if let Some(response) = self.settings.get().cors.preflight(&parts) {
            return Ok(response);
        }
        self.settings.get().rules.check(&parts.method, parts.uri.path())?;
        match parts.uri.path() {
            "/_up" => return self.up(&parts.method).await,
            "/_session" if parts.method == Method::POST => {
                return Box::pin(self.log_in(&parts, body, peer)).await;
            }
            path if join::is_door(path) => return Box::pin(self.join(parts, body, peer, seen)).await,
            "/_metrics" if self.open_metrics => return self.metrics(&parts.method),
            path if web::is_below(path) => return web::answer(&parts.method, path, &parts.headers),
            _ => {}
        }
        let is_tunnel = body.is_none() && tunnel::is_asked_for(&parts);
        if is_tunnel {
            let (any, listed) = self.settings.get().cors.of_origin(&parts.headers);
            tunnel::check_origin(&mut parts.headers, any, listed)?;
            tunnel::take_session(&mut parts.headers)?;
        }
        let login = self.logged_in(&parts, peer, seen).await?;
        match parts.uri.path() {
            "/_session" => self.session(&parts, login, peer, seen).await,
            path if path == "/_metrics" || is_prometheus(path) => {
                if login.identity.is_admin() {
                    self.metrics(&parts.method)
                } else {
                    Err(Refusal::AdminOnly)
                }
            }
            _ if is_tunnel => Box::pin(self.tunnel(parts, login, seen)).await,
            _ => {
                let body = self.limited(&parts.headers, body)?;
                self.forward(parts, body, login, seen).await
            }
        }
    }

    /// A new pod that wants into the ring: as nobody in particular, whatever it shows.
    async fn join(
        &self,
        mut parts: Parts,
        body: Option<ClientBody>,
        peer: IpAddr,
        seen: &Seen,
    ) -> Result<Response<Body>, Refusal> {
        let bytes = join::knock(&self.knocks, &parts.method, &mut parts.headers, body, peer).await?;
        let body = RequestBody::Full(Some(bytes));
        let request = self.upstream_request(parts, body, &self.authenticator.anonymous(), seen.id.clone());
        let response = self.upstream.send(request).await.map_err(|error| self.failed(&error, &seen.id))?;
        match response.status() {
            status if status.is_success() => {
                tracing::info!(%peer, "a new pod was answered");
                self.knocks.let_in(peer);
            }
            StatusCode::FORBIDDEN => tracing::warn!(%peer, "a request to join was refused"),
            // Not the new pod's fault.
            status if status.is_server_error() => self.knocks.let_in(peer),
            _ => {}
        }
        Ok(response.map(Body::plain))
    }

    /// Who sends a request, by whatever it shows.
    async fn logged_in(&self, parts: &Parts, peer: IpAddr, seen: &mut Seen) -> Result<Arc<Login>, Refusal> {
        let mut login = self.authenticator.authenticate_request(parts, peer).await?;
        let is_session = parts.uri.path() == "/_session";
        if login.by_cookie && !(is_session && parts.method == Method::DELETE) {
            seen.cookie = Box::pin(self.authenticator.renew_cookie(parts, &login)).await;
            if seen.cookie.is_some() {
                // The login that was found is of the session as it was.
                login = self.authenticator.authenticate_request(parts, peer).await?;
            }
        }
        seen.user = login.identity.name.is_some().then(|| Arc::clone(&login.account));
        let is_nobody = login.identity.name.is_none();
        if is_nobody && !is_session && self.settings.get().require_valid_user {
            return Err(Refusal::LogInFirst);
        }
        Ok(login)
    }

    /// The body with the widest limit; `None` when there is none.
    fn body(&self, headers: &HeaderMap, incoming: Incoming) -> Option<ClientBody> {
        if http_body::Body::is_end_stream(&incoming) {
            return None;
        }
        let waits = headers.contains_key(header::EXPECT);
        let Limits { max_body_bytes, idle_timeout, body_grace, body_window, .. } = self.limits;
        let least = self.settings.get().body_bytes_per_s;
        let pace = (least > 0).then(|| Pace::new(least, body_grace, body_window));
        let patience = Patience { idle: idle_timeout, pace };
        let metrics = Arc::clone(&self.metrics);
        Some(ClientBody::new(incoming, max_body_bytes, patience, waits, metrics))
    }

    fn check_uri(&self, parts: &Parts) -> Result<(), Refusal> {
        let Some(path) = parts.uri.path_and_query() else {
            // Only CONNECT has a URI without a path.
            return Err(Refusal::Method("DELETE,GET,HEAD,POST,PUT,COPY,OPTIONS"));
        };
        if path.as_str().len() > self.limits.max_uri_bytes {
            return Err(Refusal::UriTooLong);
        }
        Ok(())
    }

    fn limited(&self, headers: &HeaderMap, mut body: Option<ClientBody>) -> Result<RequestBody, Refusal> {
        let Some(client) = &mut body else { return Ok(RequestBody::Empty) };
        let is_json =
            headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
        let most_bytes = self.settings.get().max_body_bytes.min(self.limits.max_body_bytes);
        let limit_bytes = if is_json { self.limits.max_json_body_bytes.min(most_bytes) } else { most_bytes };
        client.limit(limit_bytes);
        // What says that it is too large is refused before the first byte of it is read.
        if client.exact_bytes().is_some_and(|bytes| bytes > limit_bytes) {
            return Err(Refusal::BodyTooLarge);
        }
        Ok(body.map_or(RequestBody::Empty, RequestBody::Stream))
    }

    async fn up(&self, method: &Method) -> Result<Response<Body>, Refusal> {
        read_only(method)?;
        self.health.answer(&self.upstream).await
    }

    fn metrics(&self, method: &Method) -> Result<Response<Body>, Refusal> {
        read_only(method)?;
        let mut response = Response::new(Body::full(self.metrics.text().into()));
        response.headers_mut().insert(header::CONTENT_TYPE, METRICS_TYPE);
        Ok(response)
    }

    async fn log_in(&self, parts: &Parts, body: Option<ClientBody>, peer: IpAddr) -> Result<Response<Body>, Refusal> {
        let settings = self.settings.get();
        // A foreign page is not to log its visitor in under another name.
        let cookie = settings.cookie.as_ref().filter(|_| cookie::counts(parts, settings.cors.named()));
        let lifetimes =
            session::Lifetimes { cookie, plain_ms: settings.session_ms, max_age_ms: settings.session_max_age_ms };
        let (authenticator, upstream) = (&self.authenticator, &self.upstream);
        let logging_in = session::log_in(authenticator, upstream, &parts.headers, body, peer, &lifetimes);
        let mut response = match logging_in.await {
            Err(refusal @ Refusal::BadCredentials) if cookie.is_some() => {
                let mut response = refusal.response();
                session::send_back(&mut response, parts.uri.query());
                return Ok(response);
            }
            other => other?,
        };
        if response.headers().contains_key(header::SET_COOKIE) {
            session::send_on(&mut response, parts.uri.query());
        }
        Ok(response)
    }

    async fn session(
        &self,
        parts: &Parts,
        mut login: Arc<Login>,
        peer: IpAddr,
        seen: &mut Seen,
    ) -> Result<Response<Body>, Refusal> {
        session::check_method(&parts.method)?;
        let settings = self.settings.get();
        if parts.method == Method::DELETE {
            let cookie = settings.cookie.as_ref().filter(|_| cookie::counts(parts, settings.cors.named()));
            seen.cookie = cookie.and_then(|rules| cookie::clear(rules, &parts.headers));
            let mut response = Box::pin(session::log_out(&self.authenticator, &self.upstream, &login)).await?;
            if seen.cookie.is_some() {
                session::send_on(&mut response, parts.uri.query());
            }
            return Ok(response);
        }
        if parts.method == Method::PUT {
            if login.identity.name.is_none() {
                return Err(Refusal::LogInFirst);
            }
            // A cookie was prolonged already, as by any request.
            if !login.by_cookie && Box::pin(self.authenticator.prolong(&login, settings.session_ms)).await.is_some() {
                // The login that was found is of the session as it was.
                login = self.authenticator.authenticate_request(parts, peer).await?;
            }
        }
        session::who_am_i(&login, &settings, parts.uri.query())
    }

    fn our_headers(&self, response: &mut Response<Body>, id: HeaderValue) {
        let status = response.status();
        let headers = response.headers_mut();
        headers.remove(header::CONNECTION);
        headers.remove(header::TRANSFER_ENCODING);
        headers.remove("keep-alive");
        headers.insert(header::SERVER, SERVER);
        if let Some(hsts) = &self.hsts {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
        // CouchDB's `must-revalidate` lets a shared cache keep what it was given with credentials (RFC 9111, 3.5).
        // Here the same URL shows each user something else.
        if headers.get(header::CACHE_CONTROL).is_some_and(|value| value == "must-revalidate") {
            headers.insert(header::CACHE_CONTROL, PRIVATE);
        }
        headers.insert(REQUEST_ID, id);
        headers.remove(header::WWW_AUTHENTICATE);
        if status == StatusCode::UNAUTHORIZED && self.www_authenticate {
            let challenge = HeaderValue::from_static("Basic realm=\"Adea\", charset=\"UTF-8\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
    }
}

/// Said only where TLS is spoken here: without it browsers take no notice (RFC 6797, 8.1).
fn hsts(config: &Config) -> Option<HeaderValue> {
    let seconds = config.hsts_s.filter(|_| config.tls.is_some())?;
    HeaderValue::try_from(format!("max-age={seconds}")).ok()
}

/// Our own answers to HEAD; those of rean have no content already.
fn without_content(response: &mut Response<Body>) {
    if response.body().upstream_size().is_some() {
        return;
    }
    if let Some(bytes) = http_body::Body::size_hint(response.body()).exact().filter(|n| *n > 0) {
        response.headers_mut().insert(header::CONTENT_LENGTH, bytes.into());
    }
    response.body_mut().clear();
}

/// Whether a path is below `/_node`, as rean reads it.
fn is_node(path: &str) -> bool {
    !is_plain(path) && segments(path).next().is_some_and(|first| first == "_node")
}

/// `/_node/NAME/_prometheus`: rean knows nothing of requests.
fn is_prometheus(path: &str) -> bool {
    is_node(path) && segments(path).count() == 3 && segments(path).nth(2).is_some_and(|third| third == "_prometheus")
}

fn read_only(method: &Method) -> Result<(), Refusal> {
    if matches!(*method, Method::GET | Method::HEAD) { Ok(()) } else { Err(Refusal::Method("GET,HEAD")) }
}
