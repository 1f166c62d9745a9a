//! What browsers from other origins may do (<https://fetch.spec.whatwg.org/#http-cors-protocol>).
//!
//! By default any origin may, with credentials: PouchDB asks with `credentials: include`, and to that a browser takes
//! no `*`, so the origin is echoed. This gives a foreign page nothing: there are no cookies here, and no
//! `WWW-Authenticate` that would make a browser remember a password, so the browser has no credentials of the user
//! that it would add by itself. A page has those that its own program was given, and no others.

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request::Parts};

use crate::body::Body;
use crate::config::Cors as Config;

const METHODS: HeaderValue = HeaderValue::from_static("GET, PUT, POST, HEAD, DELETE, COPY, OPTIONS");
const HEADERS: HeaderValue =
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
}

impl Cors {
    /// From the configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            any: config.origins.iter().any(|origin| origin == "*"),
            origins: config.origins.clone(),
            max_age: config.max_age_s.into(),
        }
    }

    /// The origin of a request, if it has one that may use this pod.
    pub fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let known = || self.origins.iter().any(|known| known.as_bytes() == origin.as_bytes());
        (self.any || known()).then(|| origin.clone())
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
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            let asked = request.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
            let asked = asked.filter(|asked| asked.len() <= MAX_ASKED_BYTES).cloned();
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(HEADERS));
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        }
        Some(response)
    }

    /// Marks an answer as readable by the origin that asked.
    pub fn allow(origin: HeaderValue, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
}
