//! The HTTP client that `object_store` speaks S3 with: the one that replications use, with the same trust.

use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};

use crate::replicate::peer::{Far, far};

/// Until an answer begins: the storage may be busy, and a part of an upload is on its way before it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// Makes clients for buckets, all of which share their connections.
#[derive(Clone)]
pub struct Connections {
    client: Far,
}

/// The answer did not begin in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer in {} s", ANSWER_TIMEOUT.as_secs())]
struct Late;

impl Default for Connections {
    fn default() -> Self {
        Self { client: far() }
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connections")
    }
}

impl HttpConnector for Connections {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl HttpService for Connections {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let asked = self.client.request(request.map(Body::new));
        match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Ok(answer)) => Ok(answer
                .map(|body| HttpResponseBody::new(body.map_err(|e| HttpError::new(HttpErrorKind::Interrupted, e))))),
            Ok(Err(error)) => {
                let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Request };
                Err(HttpError::new(kind, error))
            }
            Err(_) => Err(HttpError::new(HttpErrorKind::Timeout, Late)),
        }
    }
}
