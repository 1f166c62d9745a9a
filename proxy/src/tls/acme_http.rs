//! The requests to an ACME authority: few and far between, so each has a connection of its own.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::trust::{self, Trust};
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::Limited;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long one request may take, and a body as long again.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an answer: the largest is a chain of certificates.
const MAX_ANSWER_BYTES: usize = 1 << 20;
const AGENT: HeaderValue = HeaderValue::from_static(concat!("Adea/", env!("CARGO_PKG_VERSION")));

type AnyError = Box<dyn StdError + Send + Sync>;

/// Speaks to the authority.
pub struct AcmeHttp {
    tls: Arc<ClientConfig>,
}

impl AcmeHttp {
    /// With an authority whose own certificate is signed by one of these.
    pub fn new(trust: &Trust) -> Self {
        Self { tls: trust.client_config(&[b"http/1.1"]) }
    }
}

impl HttpClient for AcmeHttp {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let tls = Arc::clone(&self.tls);
        Box::pin(async move {
            let host = request.uri().host().unwrap_or_default().to_owned();
            let asked = tokio::time::timeout(TIMEOUT, ask(tls, request)).await;
            let asked = asked.unwrap_or_else(|_| Err("no answer in time".into()));
            asked.map_err(|error| Error::Other(format!("{host}: {error}").into()))
        })
    }
}

async fn ask(tls: Arc<ClientConfig>, mut request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, AnyError> {
    let authority = request.uri().authority().cloned().ok_or("the address names no host")?;
    if request.uri().scheme_str() != Some("https") {
        return Err("the address is not https".into());
    }
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let stream = TcpStream::connect((host.as_str(), authority.port_u16().unwrap_or(443))).await?;
    let connecting = TlsConnector::from(tls).connect(ServerName::try_from(host)?, stream);
    let stream = connecting.await.map_err(|error| trust::explain(&error).unwrap_or_else(|| error.to_string()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    request.headers_mut().insert(header::HOST, HeaderValue::from_str(authority.as_str())?);
    request.headers_mut().insert(header::USER_AGENT, AGENT);
    // It ends with the answer. One that never does is cut off.
    tokio::spawn(async move {
        let _ = tokio::time::timeout(TIMEOUT * 2, connection).await;
    });
    let response = sender.send_request(request).await?;
    Ok(response.map(|body| Limited::new(body, MAX_ANSWER_BYTES)).into())
}
