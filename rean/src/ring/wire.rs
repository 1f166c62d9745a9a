//! The way to the other pods' reans: HTTP/2 over mutually authenticated TLS.
//!
//! Two connections for each pod at the most, one for requests that end and one for feeds that don't, each opened when
//! it is wanted and shared by all. An error says whether the other pod can have seen anything of the request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::tls::{Credentials, server_name};
use adea_ring::{Identity, PodId, Signer};
use axum::body::Body;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

/// A connection with its handshakes must be there after this: pods are rarely more than 300 ms apart, and a handshake
/// takes three round trips.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a pod is asked for a sign of life, and how long it may take to give one.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(4);
/// What the other side may send ahead on one stream, and on a connection, in bytes: 100 Mbit/s at 300 ms take 4 MiB, and
/// a stream that nobody reads at the moment must not hold up the others.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// See [`STREAM_WINDOW_BYTES`].
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Headers of an answer, in bytes.
const MAX_HEADERS_BYTES: u32 = 64 << 10;

/// Why a pod gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other pod has seen nothing of the request, which is given back.
    #[error("{pod} can't be reached: {why}")]
    NotSent {
        /// The pod.
        pod: PodId,
        /// What went wrong.
        why: String,
        /// The request; its body has not been touched.
        request: Box<http::Request<Body>>,
    },
    /// The exchange broke off before the answer: the other pod may have done what it was asked.
    #[error("the exchange with {pod} broke off: {source}")]
    MaybeSent {
        /// The pod.
        pod: PodId,
        /// What went wrong.
        source: hyper::Error,
    },
}

/// The connections to the other pods.
pub struct Wire {
    tls: TlsConnector,
    system: Vec<(HeaderName, HeaderValue)>,
    lines: Mutex<BTreeMap<(PodId, Kind), Arc<Line>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Requests,
    Writes,
    Feeds,
}

type Sender = http2::SendRequest<Body>;

/// One connection, whether it is open or not. Locked while it is opened: 500 requests at once open one.
#[derive(Default)]
struct Line {
    state: tokio::sync::Mutex<LineState>,
}

#[derive(Default)]
struct LineState {
    /// The open connection, and the address that it goes to.
    open: Option<(String, Sender)>,
    /// When opening it failed last, and why: whoever waited for that attempt makes none of its own.
    failed: Option<(Instant, String)>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wire({} lines)", self.lines.lock().len())
    }
}

impl Wire {
    /// The ways of the pod that these are the credentials of. Nothing is opened yet.
    pub fn new(credentials: &Credentials, signer: &Signer) -> Self {
        let system = signer.headers(&Identity::system()).into_iter();
        // Percent-encoded text and hexadecimal digits are always valid header values.
        let system = system
            .filter_map(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::try_from(value).ok()?)))
            .collect();
        Self { tls: TlsConnector::from(credentials.client_config()), system, lines: Mutex::default() }
    }

    /// Marks a request of the pod's own as that.
    pub fn identify(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.system {
            headers.insert(name.clone(), value.clone());
        }
    }

    /// Sends a request to a pod. Of its URI, path and query count; its headers go as they are.
    ///
    /// # Errors
    /// When the pod can't be reached at the address, isn't the one that is meant, or the exchange breaks off.
    pub async fn send(
        &self,
        pod: &PodId,
        address: &str,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, WireError> {
        self.exchange(pod, Kind::Requests, address, request).await
    }

    /// As [`Wire::send`], for what a client writes: however many clients send slowly, what the links ask for has its own
    /// connection.
    ///
    /// # Errors
    /// As [`Wire::send`].
    pub async fn send_write(
        &self,
        pod: &PodId,
        address: &str,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, WireError> {
        self.exchange(pod, Kind::Writes, address, request).await
    }

    /// As [`Wire::send`], for an exchange that stays open.
    ///
    /// # Errors
    /// As [`Wire::send`].
    pub async fn send_feed(
        &self,
        pod: &PodId,
        address: &str,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, WireError> {
        self.exchange(pod, Kind::Feeds, address, request).await
    }

    /// Forgets the connections to the pods that are not among these; exchanges that are under way go on.
    pub fn keep(&self, is_known: impl Fn(&PodId) -> bool) {
        self.lines.lock().retain(|(pod, _), _| is_known(pod));
    }

    async fn exchange(
        &self,
        pod: &PodId,
        kind: Kind,
        address: &str,
        mut request: http::Request<Body>,
    ) -> Result<http::Response<Body>, WireError> {
        let name = server_name(pod);
        address_request(&mut request, &name);
        let line = Arc::clone(self.lines.lock().entry((pod.clone(), kind)).or_default());
        let mut why = String::new();
        // A connection that was open may turn out to be closed; one that was opened just now is no better than any other.
        for _ in 0..2 {
            let mut sender = match self.sender(&line, address, &name).await {
                Ok(sender) => sender,
                Err(error) => {
                    why = error;
                    break;
                }
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response.map(Body::new)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => {
                        request = unsent;
                        why = error.error().to_string();
                    }
                    None => return Err(WireError::MaybeSent { pod: pod.clone(), source: error.into_error() }),
                },
            }
        }
        Err(WireError::NotSent { pod: pod.clone(), why, request: Box::new(request) })
    }

    /// The line's connection, opened if need be.
    async fn sender(&self, line: &Line, address: &str, name: &ServerName<'static>) -> Result<Sender, String> {
        let asked = Instant::now();
        let mut state = line.state.lock().await;
        if let Some((to, sender)) = &state.open
            && to == address
            && !sender.is_closed()
        {
            return Ok(sender.clone());
        }
        if let Some((when, why)) = &state.failed
            && *when > asked
        {
            return Err(why.clone());
        }
        state.open = None;
        let opening = tokio::time::timeout(CONNECT_TIMEOUT, self.open(address, name));
        let opened = opening.await.unwrap_or_else(|_| Err("it did not answer in time".to_owned()));
        match opened {
            Ok(sender) => {
                *state = LineState { open: Some((address.to_owned(), sender.clone())), failed: None };
                Ok(sender)
            }
            Err(why) => {
                state.failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    async fn open(&self, address: &str, name: &ServerName<'static>) -> Result<Sender, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        // Small messages must not wait for an acknowledgement; a socket that refuses this still works.
        let _ = stream.set_nodelay(true);
        let stream = self.tls.connect(name.clone(), stream).await.map_err(|error| error.to_string())?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(MAX_HEADERS_BYTES)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        // It ends with the last of its senders and streams.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to another pod ended");
            }
        });
        Ok(sender)
    }
}

/// HTTP/2 wants a whole URI.
fn address_request(request: &mut http::Request<Body>, name: &ServerName<'static>) {
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    // The name of a pod's certificate is a valid authority.
    if let Ok(authority) = Authority::try_from(name.to_str().as_ref()) {
        let uri = Uri::builder().scheme(Scheme::HTTPS).authority(authority).path_and_query(path);
        *request.uri_mut() = uri.build().unwrap_or_default();
    }
    *request.version_mut() = Version::HTTP_2;
}
