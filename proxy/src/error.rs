//! What the proxy itself refuses, and how that looks in HTTP: CouchDB's `{"error", "reason"}` and status.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::body::Body;

/// Seconds after which a client may ask again when the pod can't answer now. Short: a restart of rean takes about one.
const RETRY_AFTER_S: u64 = 2;

/// A request that the proxy answers with an error of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Wrong name or password: it never says which.
    #[error("Name or password is incorrect.")]
    BadCredentials,
    /// Too many failed log-ins, or too many new sessions.
    #[error("Too many log-ins. Try again later.")]
    Throttled {
        /// When to try again, in seconds.
        retry_after_s: u64,
    },
    /// Too many requests to join.
    #[error("Too many requests to join. Try again later.")]
    TooManyKnocks {
        /// When to try again, in seconds.
        retry_after_s: u64,
    },
    /// More passwords wait to be checked than the proxy takes on.
    #[error("Too many log-ins are being checked. Try again later.")]
    Busy,
    /// rean does not answer.
    #[error("The database server is not available.")]
    UpstreamDown,
    /// rean went away while it worked on this request: whether it was carried out is not known.
    #[error("The database server closed the connection before it answered.")]
    UpstreamBroke,
    /// An administrator has closed the database.
    #[error("The database is closed for maintenance.")]
    Closed,
    /// An administrator has made the database write-only.
    #[error("The database can't be read during maintenance.")]
    WriteOnly,
    /// The body is larger than the limit.
    #[error("the request entity is too large")]
    BodyTooLarge,
    /// The client stopped sending the body, or sends it too slowly.
    #[error("The request body did not arrive in time: it stopped, or came too slowly. Try again.")]
    BodyTimeout,
    /// The client broke off the body.
    #[error("The request body ended early.")]
    BodyBroken,
    /// The URI is longer than the limit.
    #[error("The URI is too long.")]
    UriTooLong,
    /// Something about the request is malformed.
    #[error("{0}")]
    BadRequest(&'static str),
    /// A page of an origin that may not connect.
    #[error("Pages of this origin may not connect.")]
    Origin,
    /// The configuration lets nobody in without a log-in.
    #[error("Authentication required.")]
    LogInFirst,
    /// Only for server administrators.
    #[error("You are not a server admin.")]
    AdminOnly,
    /// There is no such thing here.
    #[error("missing")]
    NotFound,
    /// The method is not one of these.
    #[error("Only {0} allowed")]
    Method(&'static str),
    /// The body is of a type that is not understood here.
    #[error("Content-Type must be application/json")]
    ContentType,
}

impl Refusal {
    fn parts(&self) -> (StatusCode, &'static str) {
        match self {
            Self::BadCredentials | Self::LogInFirst | Self::AdminOnly => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::Throttled { .. } | Self::TooManyKnocks { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_requests"),
            Self::Busy | Self::UpstreamDown | Self::UpstreamBroke | Self::Closed => {
                (StatusCode::SERVICE_UNAVAILABLE, "service_unavailable")
            }
            Self::WriteOnly | Self::Origin => (StatusCode::FORBIDDEN, "forbidden"),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, "timeout"),
            Self::UriTooLong => (StatusCode::URI_TOO_LONG, "uri_too_long"),
            Self::BodyBroken | Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::ContentType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_content_type"),
        }
    }

    /// The answer that the client gets.
    pub fn response(&self) -> Response<Body> {
        let (status, error) = self.parts();
        let mut response = json(status, &serde_json::json!({"error": error, "reason": self.to_string()}));
        let headers = response.headers_mut();
        match self {
            Self::Throttled { retry_after_s } | Self::TooManyKnocks { retry_after_s } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(*retry_after_s));
            }
            Self::Busy | Self::UpstreamDown | Self::UpstreamBroke | Self::Closed => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
            }
            Self::Method(allowed) => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
            }
            _ => {}
        }
        response
    }
}

/// An answer with a JSON body that ends in a newline, as CouchDB's do, and that no cache keeps.
pub fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    let mut text = value.to_string();
    text.push('\n');
    let mut response = Response::new(Body::full(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("must-revalidate"));
    response
}
