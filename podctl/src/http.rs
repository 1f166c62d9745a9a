//! A small HTTP client: one connection, one request at a time, nothing between the caller and the wire but TLS where the URL
//! says https.

use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::trust::{self, Trust};
use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::exit::Refused;

/// A server that accepts no connection for this long is not there.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// What is spoken over TLS.
const PROTOCOLS: &[&[u8]] = &[b"http/1.1"];

/// What a request carries: a text, or what comes bit by bit.
type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, io::Error>>;

/// A server, and as whom to talk to it.
#[derive(Debug, Clone)]
pub struct Peer {
    host: String,
    port: u16,
    authorization: Option<HeaderValue>,
    /// Whom it has to be, where TLS is spoken.
    tls: Option<Arc<ClientConfig>>,
}

impl Peer {
    /// A server by its URL: `http[s]://[NAME:PASSWORD@]HOST[:PORT][/]`. With https it is trusted by the word of the web's
    /// authorities and of those in `SSL_CERT_FILE`.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        // The URL may hold a password, so messages don't repeat it.
        let uri: Uri = url.parse().context("that is no URL")?;
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => Some(Trust::system()?.client_config(PROTOCOLS)),
            _ => bail!("the URL must start with http:// or https://"),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            bail!("the URL must have no path: databases are made for the purpose");
        }
        let authority = uri.authority().context("the URL names no host")?;
        let mut peer = Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 }),
            authorization: None,
            tls,
        };
        if let Some((login, _)) = authority.as_str().rsplit_once('@') {
            let (name, password) = login.split_once(':').unwrap_or((login, ""));
            let decode = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
            peer = peer.with_login(&decode(name), &decode(password))?;
        }
        Ok(peer)
    }

    /// The same server, as someone.
    pub fn with_login(mut self, name: &str, password: &str) -> anyhow::Result<Self> {
        let login = format!("Basic {}", STANDARD.encode(format!("{name}:{password}")));
        let mut value = HeaderValue::try_from(login).context("the log-in can't be sent")?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// The same server, which has to be who these authorities say. Changes nothing where no TLS is spoken.
    #[must_use]
    pub fn with_trust(mut self, trust: &Trust) -> Self {
        self.tls = self.tls.map(|_| trust.client_config(PROTOCOLS));
        self
    }

    /// The same server, whoever it is. Only for what needs no secrets: an exchange that proves by itself who is there.
    #[must_use]
    pub fn unverified(mut self) -> Self {
        self.tls = self.tls.map(|_| trust::unverified_client_config(PROTOCOLS));
        self
    }

    /// Whether TLS is spoken.
    pub fn is_https(&self) -> bool {
        self.tls.is_some()
    }

    /// The certificates that the server shows, its own first; `None` where no TLS is spoken. They are not checked, so that
    /// a person or a caller can.
    ///
    /// # Errors
    /// When there is no server, or it speaks no TLS.
    pub async fn certificates(&self) -> anyhow::Result<Option<Vec<CertificateDer<'static>>>> {
        if !self.is_https() {
            return Ok(None);
        }
        let config = trust::unverified_client_config(PROTOCOLS);
        let stream = self.secured(self.reach().await?, config).await?;
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        Ok(Some(shown.iter().map(|certificate| certificate.clone().into_owned()).collect()))
    }

    /// Whether requests carry a log-in.
    pub fn has_login(&self) -> bool {
        self.authorization.is_some()
    }

    /// Whether the name leads to this machine and nowhere else.
    pub async fn is_loopback(&self) -> anyhow::Result<bool> {
        let mut found = false;
        for addr in
            lookup_host((self.host.as_str(), self.port)).await.with_context(|| format!("can't find {}", self.host))?
        {
            found = true;
            if !addr.ip().is_loopback() {
                return Ok(false);
            }
        }
        Ok(found)
    }

    /// Opens a connection.
    pub async fn connect(&self) -> anyhow::Result<Conn> {
        let host = if self.host.parse::<Ipv6Addr>().is_ok() { format!("[{}]", self.host) } else { self.host.clone() };
        Ok(Conn {
            sender: self.dial().await?,
            peer: self.clone(),
            host: HeaderValue::try_from(format!("{host}:{}", self.port)).context("the host can't be sent")?,
        })
    }

    async fn dial(&self) -> anyhow::Result<SendRequest<Body>> {
        let stream = self.reach().await?;
        // A connection ends with its sender; what goes wrong on it shows in the request.
        match &self.tls {
            None => {
                let (sender, connection) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Ok(sender)
            }
            Some(config) => {
                let stream = self.secured(stream, Arc::clone(config)).await?;
                let (sender, connection) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Ok(sender)
            }
        }
    }

    async fn reach(&self) -> anyhow::Result<TcpStream> {
        let connect = TcpStream::connect((self.host.as_str(), self.port));
        let stream = timeout(CONNECT_DEADLINE, connect)
            .await
            .with_context(|| format!("{}:{} does not answer", self.host, self.port))?
            .with_context(|| format!("can't connect to {}:{}", self.host, self.port))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn secured(&self, stream: TcpStream, config: Arc<ClientConfig>) -> anyhow::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(self.host.clone()).context("the host's name can't be in a certificate")?;
        let securing = TlsConnector::from(config).connect(name, stream);
        timeout(CONNECT_DEADLINE, securing)
            .await
            .with_context(|| format!("{}:{} does not answer with TLS", self.host, self.port))?
            .map_err(|error| {
                let why = trust::explain(&error);
                let why = why.map_or_else(String::new, |why| format!(": {why}"));
                anyhow::Error::new(error).context(format!("no TLS with {}:{}{why}", self.host, self.port))
            })
    }
}

/// A connection to a server.
#[derive(Debug)]
pub struct Conn {
    peer: Peer,
    sender: SendRequest<Body>,
    host: HeaderValue,
}

impl Conn {
    /// Sends a request and gives the response as soon as its head is there.
    pub async fn open(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Response<Incoming>> {
        let body = body.into();
        let mut request = Request::builder().method(method).uri(path);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        self.ask(request.body(Either::Left(Full::new(body)))?).await
    }

    async fn ask(&mut self, mut request: Request<Body>) -> anyhow::Result<Response<Incoming>> {
        if self.sender.ready().await.is_err() {
            // A server may close a connection that has been idle.
            self.sender = self.peer.dial().await?;
        }
        request.headers_mut().insert(HOST, self.host.clone());
        if let Some(value) = &self.peer.authorization {
            request.headers_mut().insert(AUTHORIZATION, value.clone());
        }
        Ok(self.sender.send_request(request).await?)
    }

    /// Sends what comes bit by bit, of this many bytes in all, and reads the whole response.
    pub async fn upload(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        length: u64,
        body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let body = UnsyncBoxBody::new(StreamBody::new(body.map_ok(Frame::data)));
        let request = Request::builder().method(method).uri(path);
        let request = request.header(CONTENT_TYPE, content_type).header(CONTENT_LENGTH, length);
        let response = self.ask(request.body(Either::Right(body))?).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    /// Copies a document to another one of the same database that isn't there.
    pub async fn copy(&mut self, path: &str, to: &str) -> anyhow::Result<()> {
        let method = Method::from_bytes(b"COPY")?;
        let request = Request::builder().method(&method).uri(path).header("destination", to);
        let response = self.ask(request.body(Either::Left(Full::default()))?).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!(Refused { method, path: path.to_owned(), status, excerpt: excerpt(&body) });
        }
        Ok(())
    }

    /// Sends a request and reads the whole response.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let response = self.open(method, path, body).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    /// Sends a request that has to succeed, and gives the response as JSON.
    pub async fn expect(&mut self, method: Method, path: &str, body: impl Into<Bytes>) -> anyhow::Result<Value> {
        let (status, body) = self.send(method.clone(), path, body).await?;
        if !status.is_success() {
            bail!(Refused { method, path: path.to_owned(), status, excerpt: excerpt(&body) });
        }
        serde_json::from_slice(&body).with_context(|| format!("{method} {path}: no JSON"))
    }
}

/// The beginning of a response, for a message.
pub fn excerpt(body: &[u8]) -> String {
    const BYTES: usize = 300;
    let text = String::from_utf8_lossy(&body[..body.len().min(BYTES)]);
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::Peer;

    #[test]
    fn reads_urls() {
        let peer = Peer::parse("http://a%40b:p%3Aw@127.0.0.1:5984/").unwrap();
        assert_eq!((peer.host.as_str(), peer.port), ("127.0.0.1", 5984));
        // base64 of "a@b:p:w"
        assert_eq!(peer.authorization.unwrap(), "Basic YUBiOnA6dw==");
        let peer = Peer::parse("http://[::1]:1").unwrap();
        assert_eq!((peer.host.as_str(), peer.has_login()), ("::1", false));
        let peer = Peer::parse("https://a").unwrap();
        assert_eq!((peer.port, peer.is_https()), (443, true));
        for wrong in ["", "x", "ftp://a", "http://a/db", "http://a/?x=1"] {
            assert!(Peer::parse(wrong).is_err(), "{wrong}");
        }
    }
}
