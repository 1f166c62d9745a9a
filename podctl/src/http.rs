//! A small HTTP client: one connection, one request at a time, nothing between the caller and the wire.

use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use serde_json::Value;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// A server that accepts no connection for this long is not there.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A server, and as whom to talk to it.
#[derive(Debug, Clone)]
pub struct Peer {
    host: String,
    port: u16,
    authorization: Option<HeaderValue>,
}

impl Peer {
    /// A server by its URL: `http://[NAME:PASSWORD@]HOST[:PORT][/]`.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        // The URL may hold a password, so messages don't repeat it.
        let uri: Uri = url.parse().context("that is no URL")?;
        if uri.scheme_str() != Some("http") {
            bail!("the URL must start with http://");
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            bail!("the URL must have no path: databases are made for the purpose");
        }
        let authority = uri.authority().context("the URL names no host")?;
        let mut peer = Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authorization: None,
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
        Ok(Conn {
            sender: self.dial().await?,
            peer: self.clone(),
            host: HeaderValue::try_from(format!("{}:{}", self.host, self.port)).context("the host can't be sent")?,
        })
    }

    async fn dial(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let connect = TcpStream::connect((self.host.as_str(), self.port));
        let stream = timeout(CONNECT_DEADLINE, connect)
            .await
            .with_context(|| format!("{}:{} does not answer", self.host, self.port))?
            .with_context(|| format!("can't connect to {}:{}", self.host, self.port))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with its sender; what goes wrong on it shows in the request.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// A connection to a server.
#[derive(Debug)]
pub struct Conn {
    peer: Peer,
    sender: SendRequest<Full<Bytes>>,
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
        if self.sender.ready().await.is_err() {
            // A server may close a connection that has been idle.
            self.sender = self.peer.dial().await?;
        }
        let body = body.into();
        let mut request = Request::builder().method(method).uri(path).header(HOST, self.host.clone());
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(value) = &self.peer.authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        let request = request.body(Full::new(body))?;
        Ok(self.sender.send_request(request).await?)
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
            bail!("{method} {path}: {status}: {}", excerpt(&body));
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
        for wrong in ["", "x", "https://a", "http://a/db", "http://a/?x=1"] {
            assert!(Peer::parse(wrong).is_err(), "{wrong}");
        }
    }
}
