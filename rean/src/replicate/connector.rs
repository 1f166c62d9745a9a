//! Connections to other servers: plain ones, and TLS where the address says https.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use adea_ring::trust::{self, Trust};
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

/// Connecting takes this long at most, and the handshake as long again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Opens connections.
#[derive(Clone)]
pub struct Connector {
    http: HttpConnector,
    /// Whom other servers have to be, or why that is not known.
    tls: Result<Arc<ClientConfig>, Arc<str>>,
}

/// An open connection.
pub enum Line {
    /// Without TLS.
    Plain(TokioIo<TcpStream>),
    /// With it.
    Secured(Box<TokioIo<TlsStream<TcpStream>>>),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server is not there.
    #[error("{0}")]
    Reach(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The address has no host that a certificate can be for.
    #[error("the address names no host")]
    Host,
    /// The authorities that are configured here can't be used.
    #[error("{0}")]
    Trust(Arc<str>),
    /// There was no handshake in time.
    #[error("the server does not answer with TLS in time")]
    Late,
    /// The handshake failed.
    #[error("{0}")]
    Handshake(String),
}

impl Connector {
    /// One that trusts the web's authorities, and those that the environment names.
    pub fn new() -> Self {
        Self::trusting(Trust::system().map_err(|error| error.to_string()))
    }

    fn trusting(trust: Result<Trust, String>) -> Self {
        let mut http = HttpConnector::new();
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        http.set_nodelay(true);
        http.enforce_http(false);
        let tls = trust.map(|trust| trust.client_config(&[b"http/1.1"])).map_err(Arc::from);
        Self { http, tls }
    }
}

impl Default for Connector {
    fn default() -> Self {
        Self::new()
    }
}

impl Service<Uri> for Connector {
    type Response = Line;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Line, ConnectError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.http.poll_ready(context).map_err(|error| ConnectError::Reach(error.into()))
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let tls = (address.scheme_str() == Some("https")).then(|| self.tls.clone());
        let host = address.host().map(|host| host.trim_matches(['[', ']']).to_owned());
        let connecting = self.http.call(address);
        Box::pin(async move {
            let Some(tls) = tls else {
                return connecting.await.map(Line::Plain).map_err(|error| ConnectError::Reach(error.into()));
            };
            // Before anything is connected: a wrong configuration is told the same every time.
            let tls = tls.map_err(ConnectError::Trust)?;
            let name = host.and_then(|host| ServerName::try_from(host).ok()).ok_or(ConnectError::Host)?;
            let stream = connecting.await.map_err(|error| ConnectError::Reach(error.into()))?.into_inner();
            let securing = TlsConnector::from(tls).connect(name, stream);
            let secured = tokio::time::timeout(CONNECT_TIMEOUT, securing).await.map_err(|_| ConnectError::Late)?;
            secured.map(|stream| Line::Secured(Box::new(TokioIo::new(stream)))).map_err(|error| handshake(&error))
        })
    }
}

fn handshake(error: &io::Error) -> ConnectError {
    ConnectError::Handshake(trust::explain(error).unwrap_or_else(|| error.to_string()))
}

impl Connection for Line {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Line {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(line) => Pin::new(line).poll_read(context, buffer),
            Self::Secured(line) => Pin::new(line).poll_read(context, buffer),
        }
    }
}

impl Write for Line {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(line) => Pin::new(line).poll_write(context, bytes),
            Self::Secured(line) => Pin::new(line).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(line) => Pin::new(line).poll_flush(context),
            Self::Secured(line) => Pin::new(line).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(line) => Pin::new(line).poll_shutdown(context),
            Self::Secured(line) => Pin::new(line).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use adea_ring::RingSecret;
    use adea_ring::web_tls::WebAuthority;
    use axum::body::Body;
    use http::StatusCode;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A server at `localhost` that says `ok` to everything, and its authority.
    async fn server() -> (SocketAddr, WebAuthority) {
        let authority = WebAuthority::new(&RingSecret::random()).expect("an authority");
        let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let issued = authority.issue(&["localhost".to_owned()], now_s).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(issued.chain, issued.key))
            .expect("a configuration");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                let _ = stream.flush().await;
            }
        });
        (address, authority)
    }

    async fn ask(trust: Result<Trust, String>, url: String) -> Result<StatusCode, String> {
        let client: Client<Connector, Body> = Client::builder(TokioExecutor::new()).build(Connector::trusting(trust));
        let request = http::Request::get(url).body(Body::empty()).expect("a request");
        client.request(request).await.map(|response| response.status()).map_err(|error| {
            let source = std::error::Error::source(&error);
            source.map_or_else(String::new, ToString::to_string)
        })
    }

    #[tokio::test]
    async fn other_servers_have_to_be_who_the_address_says() {
        let (address, authority) = server().await;
        let trusting = || Trust::nobody().with_pem(authority.pem().as_bytes()).map_err(|error| error.to_string());
        let (port, url) = (address.port(), format!("https://localhost:{}/db", address.port()));
        assert_eq!(ask(trusting(), url.clone()).await, Ok(StatusCode::OK));
        let told = ask(trusting(), format!("https://127.0.0.1:{port}/db")).await.expect_err("another name");
        assert_eq!(told, "its certificate is not for 127.0.0.1 but for localhost");
        let told = ask(Ok(Trust::web()), url.clone()).await.expect_err("a stranger");
        assert!(told.contains("not trusted here") && told.contains("SSL_CERT_FILE"), "{told}");
        assert_eq!(ask(Err("no such file".to_owned()), url).await, Err("no such file".to_owned()));
    }
}
