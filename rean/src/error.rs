//! What goes wrong with a request, and the only place that turns it into HTTP.
//!
//! The shape is CouchDB's: a status and a JSON object `{"error", "reason"}`
//! (<https://docs.couchdb.org/en/stable/json-structure.html#couchdb-error-status>).

use std::borrow::Cow;

use axum::body::Body;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use rean_script::ScriptError;
use rean_store::document::DocumentError;
use rean_store::json::push_string;
use rean_store::{FeedError, PartitionError, PartitionedIdError, StoreError, WriteError};

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
    /// What went wrong inside, for the log and never for the client.
    cause: Option<Box<str>>,
}

impl ApiError {
    /// An error with these words.
    pub fn new(status: StatusCode, error: impl Into<Cow<'static, str>>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { status, error: error.into(), reason: reason.into(), header: None, cause: None }
    }

    /// The same error with one header more.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some(Box::new((name, value)));
        self
    }

    /// The same error with what went wrong inside: it is logged, and no client sees it.
    #[must_use]
    pub fn with_cause(mut self, cause: impl std::fmt::Display) -> Self {
        self.cause = Some(cause.to_string().into());
        self
    }

    /// What went wrong inside, or else what the client is told.
    pub fn cause(&self) -> &str {
        self.cause.as_deref().unwrap_or(&self.reason)
    }

    /// Logs a fault of the server, with the id by which the proxy and the client know the request. To be called once,
    /// where the answer is made; does nothing for what is no fault: 501 tells of a gap that everybody knows.
    pub fn log(&self, request_id: &str, method: &Method, path: &str) {
        let (status, cause) = (self.status.as_u16(), self.cause());
        match self.status {
            // A full disk is told of once, where it is found.
            StatusCode::NOT_IMPLEMENTED | StatusCode::INSUFFICIENT_STORAGE => {}
            // Also what a stop does to requests that came just before it.
            StatusCode::SERVICE_UNAVAILABLE => {
                tracing::warn!(request = request_id, %method, path, status, cause, "a request could not be answered");
            }
            fault if fault.is_server_error() => {
                tracing::error!(request = request_id, %method, path, status, cause, "a request failed");
            }
            _ => {}
        }
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
            other => Self::internal("the store failed; the server's log says more").with_cause(other),
        }
    }
}

impl From<PartitionError> for ApiError {
    fn from(error: PartitionError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "illegal_partition", error.to_string())
    }
}

impl From<PartitionedIdError> for ApiError {
    fn from(error: PartitionedIdError) -> Self {
        match error {
            PartitionedIdError::Id(error) => error.into(),
            PartitionedIdError::Partition(error) => error.into(),
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

/// What a function of a design document did wrong, as CouchDB tells it. What a function throws as `["error", name,
/// reason]` has the status of that name.
impl From<ScriptError> for ApiError {
    fn from(error: ScriptError) -> Self {
        let reason = error.to_string();
        match error {
            ScriptError::Compile { .. } => Self::new(StatusCode::BAD_REQUEST, "compilation_error", reason),
            ScriptError::Threw { error, message, .. } => {
                let status = match error.as_str() {
                    "bad_request" => StatusCode::BAD_REQUEST,
                    "unauthorized" => StatusCode::UNAUTHORIZED,
                    "forbidden" => StatusCode::FORBIDDEN,
                    "not_found" => StatusCode::NOT_FOUND,
                    "method_not_allowed" => StatusCode::METHOD_NOT_ALLOWED,
                    "conflict" => StatusCode::CONFLICT,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                Self::new(status, error, message)
            }
            ScriptError::Missing { .. } => Self::not_found(reason),
            ScriptError::BadResult { .. } => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "render_error", reason),
            ScriptError::Resting { .. } | ScriptError::Busy | ScriptError::Closed => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", reason)
            }
            // CouchDB's word for a function that its process did not survive.
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "os_process_error", reason),
        }
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

#[cfg(test)]
mod tests {
    use super::ApiError;
    use crate::pod::stopped;
    use http::Method;
    use parking_lot::Mutex;
    use rean_store::{StoreError, WriteError};
    use std::sync::Arc;

    #[tokio::test]
    async fn clients_get_no_internals() {
        let store = || StoreError::Engine("/var/lib/x: disk full".to_owned());
        for error in [ApiError::from(store()), ApiError::from(WriteError::Store(store()))] {
            assert!(error.cause().contains("disk full"), "{error:?}");
            let mut row = Vec::new();
            error.push_members(&mut row);
            let response = error.into_response();
            assert_eq!(response.status(), 500);
            let body = axum::body::to_bytes(response.into_body(), 1_000).await.expect("a body");
            for text in [&row[..], &body[..]] {
                let text = String::from_utf8_lossy(text);
                assert!(text.contains("the store failed") && !text.contains("disk"), "{text}");
            }
        }
        assert_eq!(ApiError::internal("plain").cause(), "plain");
    }

    #[test]
    fn a_fault_is_logged_once_with_its_cause_and_the_requests_id() {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, || {
            let fault = ApiError::from(StoreError::Damaged("a body"));
            for error in [fault, ApiError::conflict(), ApiError::not_implemented("later"), stopped()] {
                error.log("00ab", &Method::GET, "/db/a");
            }
        });
        let text = String::from_utf8(log.0.lock().clone()).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("ERROR") && lines[0].contains("a body") && lines[0].contains("\"00ab\""), "{text}");
        assert!(lines[1].contains("WARN") && lines[1].contains("503") && lines[1].contains("/db/a"), "{text}");
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }
}
