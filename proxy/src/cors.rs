//! What browsers from other origins may do (<https://fetch.spec.whatwg.org/#http-cors-protocol>).
//!
//! By default any origin may, with credentials: PouchDB asks with `credentials: include`, and to that a browser takes
//! no `*`, so the origin is echoed. This gives a foreign page nothing: there is no `WWW-Authenticate` that would make a
//! browser remember a password, and a cookie, where they are switched on, counts for no page but those of this origin and
//! of origins that are named (`auth::cookie`). So the browser has no credentials of the user that it would add by itself.
//! A page has those that its own program was given, and no others.

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request::Parts};

use crate::body::Body;
use crate::config::Cors as Config;

/// What a page may do, unless the configuration says otherwise.
pub const METHODS: HeaderValue = HeaderValue::from_static("GET, PUT, POST, HEAD, DELETE, COPY, OPTIONS");
/// What a page may send, unless the configuration says otherwise or the browser names something.
pub const HEADERS: HeaderValue =
    HeaderValue::from_static("accept, authorization, content-type, origin, referer, if-match, destination");
const EXPOSED: HeaderValue =
    HeaderValue::from_static("content-type, cache-control, accept-ranges, etag, server, x-couch-request-id");
/// Longer than any list of header names that a program of good sense asks for, in bytes.
const MAX_ASKED_BYTES: usize = 1024;

/// The rules for other origins.
#[derive(Debug)]
pub struct Cors {
    any: bool,
    origins: Vec<String>,
    max_age: HeaderValue,
    credentials: bool,
    methods: HeaderValue,
    /// The headers that may be sent; without them, those that are asked for.
    headers: Option<HeaderValue>,
}

impl Cors {
    /// From the configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            any: config.origins.iter().any(|origin| origin == "*"),
            origins: config.origins.iter().filter(|origin| *origin != "*").cloned().collect(),
            max_age: config.max_age_s.into(),
            credentials: config.credentials,
            methods: config.methods.clone().unwrap_or(METHODS),
            headers: config.headers.clone(),
        }
    }

    /// The origins that are named, which `*` is not.
    pub fn named(&self) -> &[String] {
        &self.origins
    }

    /// The origin of a request, if it has one that may use this pod.
    pub fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let known = || self.origins.iter().any(|known| known.as_bytes() == origin.as_bytes());
        (self.any || known()).then(|| origin.clone())
    }

    /// What the rules say of a request's origin: whether any may come, and whether this one is named.
    pub fn of_origin(&self, headers: &HeaderMap) -> (bool, bool) {
        let origin = headers.get(header::ORIGIN).map(HeaderValue::as_bytes);
        (self.any, self.origins.iter().any(|known| known != "*" && Some(known.as_bytes()) == origin))
    }

    /// The answer to a browser that asks before it sends: no log-in is needed, as none is sent with it.
    pub fn preflight(&self, request: &Parts) -> Option<Response<Body>> {
        if request.method != Method::OPTIONS
            || !request.headers.contains_key(header::ORIGIN)
            || !request.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        {
            return None;
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        if self.origin(&request.headers).is_some() {
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
            let asked = request.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
            let asked = asked.filter(|asked| asked.len() <= MAX_ASKED_BYTES).cloned();
            let allowed = self.headers.clone().or(asked).unwrap_or(HEADERS);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        }
        Some(response)
    }

    /// Marks an answer as readable by the origin that asked.
    pub fn allow(&self, origin: HeaderValue, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
}
