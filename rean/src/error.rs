//! What goes wrong with a request, and the only place that turns it into HTTP.
//!
//! The shape is CouchDB's: a status and a JSON object `{"error", "reason"}`
//! (<https://docs.couchdb.org/en/stable/json-structure.html#couchdb-error-status>).

use std::borrow::Cow;

use axum::body::Body;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, StatusCode};
use rean_store::document::DocumentError;
use rean_store::json::push_string;
use rean_store::{FeedError, StoreError, WriteError};

use crate::pod::stopped;
use crate::route::Response;

/// An answer that is an error.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// CouchDB's word for the kind of error.
    pub error: Cow<'static, str>,
    /// One sentence for people.
    pub reason: Cow<'static, str>,
    /// One more header, such as `Allow`.
    pub header: Option<Box<(HeaderName, HeaderValue)>>,
}

impl ApiError {
    /// An error with these words.
    pub fn new(status: StatusCode, error: impl Into<Cow<'static, str>>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { status, error: error.into(), reason: reason.into(), header: None }
    }

    /// The same error with one header more.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some(Box::new((name, value)));
        self
    }

    /// 400 `bad_request`.
    pub fn bad_request(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", reason)
    }

    /// 400 `bad_request` for a body that is no JSON.
    pub fn invalid_json() -> Self {
        Self::bad_request("invalid UTF-8 JSON")
    }

    /// 400 `query_parse_error`: a parameter has a value that it can't have.
    pub fn query(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "query_parse_error", reason)
    }

    /// 401 `unauthorized`.
    pub fn unauthorized(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", reason)
    }

    /// 403 `forbidden`.
    pub fn forbidden(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", reason)
    }

    /// 404 `not_found` with a reason such as `missing` or `deleted`.
    pub fn not_found(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", reason)
    }

    /// 404: there is no such document, or none that this reader may know of.
    pub fn missing() -> Self {
        Self::not_found("missing")
    }

    /// 404: there is no such database.
    pub fn no_database() -> Self {
        Self::not_found("Database does not exist.")
    }

    /// 409: the given revision isn't the current one.
    pub fn conflict() -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "Document update conflict.")
    }

    /// 405 with the methods that there are, such as `GET,HEAD`.
    pub fn method_not_allowed(allowed: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", format!("Only {allowed} allowed"))
            .with_header(ALLOW, HeaderValue::from_static(allowed))
    }

    /// 413: one document is larger than the limit.
    pub fn document_too_large(id: &str) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "document_too_large", id.to_owned())
    }

    /// 413: the whole body is larger than the limit.
    pub fn body_too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the request entity is too large")
    }

    /// 415: the body isn't of the type that this resource takes.
    pub fn bad_content_type(wanted: &'static str) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_content_type", format!("Content-Type must be {wanted}"))
    }

    /// 500. The reason must not carry anything of a document.
    pub fn internal(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_server_error", reason)
    }

    /// 501: CouchDB has it and Adea hasn't yet.
    pub fn not_implemented(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", reason)
    }

    /// The JSON members `"error":..,"reason":..` without braces, for rows of bulk answers.
    pub fn push_members(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\"error\":");
        push_string(out, &self.error);
        out.extend_from_slice(b",\"reason\":");
        push_string(out, &self.reason);
    }

    /// The answer.
    pub fn into_response(self) -> Response {
        let mut body = Vec::with_capacity(64);
        body.push(b'{');
        self.push_members(&mut body);
        body.extend_from_slice(b"}\n");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("must-revalidate"));
        if let Some(header) = self.header {
            headers.insert(header.0, header.1);
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Gone => Self::no_database(),
            StoreError::Exists => Self::new(
                StatusCode::PRECONDITION_FAILED,
                "file_exists",
                "The database could not be created, the file already exists.",
            ),
            StoreError::Closing => stopped(),
            other => {
                tracing::error!(error = %other, "the store failed");
                Self::internal("the store failed; the server's log says more")
            }
        }
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        if let WriteError::Store(error) = error {
            return error.into();
        }
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, error.error(), error.reason())
    }
}

impl From<FeedError> for ApiError {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::BadSeq => Self::bad_request("Malformed sequence supplied in 'since' parameter."),
            FeedError::Store(error) => error.into(),
        }
    }
}

impl From<DocumentError> for ApiError {
    fn from(error: DocumentError) -> Self {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST);
        Self::new(status, error.error(), error.reason())
    }
}
