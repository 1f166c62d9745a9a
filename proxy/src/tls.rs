//! TLS on the public port: handshakes within bounds, and a certificate that is renewed while connections go on.
//!
//! A connection's handshake is done in the connection's own task, so a slow one holds nobody up. Until the client has said
//! something it costs a socket and nothing else; from then on it is one of a bounded number. The certificate comes from one
//! of three sources ([`files`], [`ring`], [`acme`]), each with a background task that keeps it fresh.

mod acme;
mod acme_http;
mod acme_store;
mod certificates;
mod files;
mod ring;
mod turns;

use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use adea_ring::RingSecret;
use adea_ring::public_tls::{PublicTls, PublicTlsError};
use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use crate::metrics::Metrics;

pub use certificates::Certificates;
use turns::Turns;

/// The first byte of a handshake (RFC 8446, 5.1). No request in plain HTTP begins with it.
pub const HANDSHAKE: u8 = 0x16;
/// How long a handshake may take from the client's first byte: three round trips on a very bad line.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What is spoken, the best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The configuration says something that can't be.
    #[error("tls: {0}")]
    Config(#[from] PublicTlsError),
    /// A file of the configuration can't be used.
    #[error("tls: `{key}`: {path}: {problem}")]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A certificate could not be made.
    #[error("tls: {0}")]
    Issue(#[from] adea_ring::tls::TlsError),
    /// The certificate or the key can't be used.
    #[error("tls: {0}")]
    Rustls(#[from] rustls::Error),
}

/// What keeps a certificate fresh. It never ends.
type Keeper = Pin<Box<dyn Future<Output = ()> + Send>>;

/// TLS of the public port.
pub struct Tls {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    source: Source,
    turns: Arc<Turns>,
    metrics: Arc<Metrics>,
}

/// Where the certificate comes from.
enum Source {
    Files(Arc<files::Files>),
    Ring(Arc<ring::Ring>),
    Acme(Arc<acme::Order>),
}

/// A connection after its handshake.
pub struct Secured {
    /// The connection.
    pub stream: Box<TlsStream<TcpStream>>,
    /// Whether HTTP/2 is spoken on it.
    pub speaks_http2: bool,
}

impl Tls {
    /// Reads or makes the first certificate. Only an ACME authority's may come later.
    ///
    /// # Errors
    /// What can't be used, by its key.
    pub fn new(config: &PublicTls, secret: &RingSecret, metrics: Arc<Metrics>) -> Result<Self, TlsError> {
        config.check()?;
        let certificates = Arc::new(Certificates::new(Arc::clone(&metrics)));
        let source = match config {
            PublicTls::Files { certificate, key } => {
                Source::Files(Arc::new(files::Files::load(certificate, key, Arc::clone(&certificates))?))
            }
            PublicTls::Ring { names } => {
                Source::Ring(Arc::new(ring::Ring::issue(secret, names, Arc::clone(&certificates))?))
            }
            PublicTls::Acme(acme) => Source::Acme(Arc::new(acme::Order::new(acme, Arc::clone(&certificates))?)),
        };
        let server = server_config(&certificates)?;
        Ok(Self { config: server, certificates, source, turns: Arc::default(), metrics })
    }

    /// The certificate in use.
    pub fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    /// What has to run for as long as the server does.
    pub fn keeper(&self) -> Keeper {
        match &self.source {
            Source::Files(files) => Box::pin(Arc::clone(files).keep()),
            Source::Ring(ring) => Box::pin(Arc::clone(ring).keep()),
            Source::Acme(order) => Box::pin(Arc::clone(order).keep()),
        }
    }

    /// Does the handshake of a connection whose first byte is there. `None`: it failed, or it was an authority that only
    /// wanted to look (RFC 8737).
    pub async fn accept(&self, stream: TcpStream, peer: IpAddr) -> Option<Secured> {
        // Boxed: the state is large, and a connection should not carry it for ever.
        let handshake = Box::pin(tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(stream, peer))).await;
        let counter = match &handshake {
            Ok(Ok(_)) => &self.metrics.tls_handshakes,
            Ok(Err(_)) | Err(_) => &self.metrics.tls_failures,
        };
        counter.fetch_add(1, Relaxed);
        match handshake {
            Ok(Ok(secured)) => secured,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "a TLS handshake failed");
                None
            }
            Err(_) => {
                tracing::debug!(%peer, "a TLS handshake took too long");
                None
            }
        }
    }

    async fn handshake(&self, stream: TcpStream, peer: IpAddr) -> std::io::Result<Option<Secured>> {
        let _turn = self.turns.wait(peer).await;
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        if let Source::Acme(order) = &self.source
            && is_challenge(&start.client_hello())
        {
            let mut stream = start.into_stream(order.challenge_config()).await?;
            stream.shutdown().await?;
            return Ok(None);
        }
        let stream = Box::new(start.into_stream(Arc::clone(&self.config)).await?);
        let speaks_http2 = stream.get_ref().1.alpn_protocol() == Some(PROTOCOLS[0]);
        Ok(Some(Secured { stream, speaks_http2 }))
    }
}

/// Whether an authority wants to see a challenge answered: it speaks nothing else then.
fn is_challenge(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut protocols| protocols.next() == Some(acme::PROTOCOL) && protocols.next().is_none())
}

/// TLS 1.2 and 1.3. Sessions are kept by the clients, in tickets under keys of this process, and not here.
fn server_config(certificates: &Arc<Certificates>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let resolver = Arc::clone(certificates);
    let mut config = ServerConfig::builder_with_provider(certificates::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}
