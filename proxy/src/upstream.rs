//! The way to rean: pooled HTTP/1.1 connections for requests that end soon, and a few shared HTTP/2 connections for
//! feeds that stay open, so that a feed costs a stream and not a socket.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use adea_ring::{Identity, Signer};
use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::body::{BodyError, RequestBody, UpstreamBody};
use crate::error::Refusal;
use crate::host_port::HostPort;
use crate::patient::Patient;

/// Connections kept for the next request. More than this many requests at once are rare on one machine.
const MAX_IDLE: usize = 256;
/// How long an idle connection is kept: less than the time after which rean may close it.
const MAX_IDLE_TIME: Duration = Duration::from_secs(10);
/// Feeds on one HTTP/2 connection, if rean allows as many.
const MAX_STREAMS: usize = 1000;
/// HTTP/2 connections at the most.
const MAX_SHARED: usize = 128;
/// What rean may send ahead on one feed, in bytes. The window of the whole connection is the sum of them, so that a
/// client that does not read its feed never holds up the others.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * MAX_STREAMS as u32;
/// The largest answer to one of the proxy's own questions: documents of users and sessions.
const OWN_ANSWER_BYTES: usize = 1024 * 1024;
/// How long rean may take to answer one of the proxy's own questions.
const OWN_ANSWER_TIME: Duration = Duration::from_secs(10);

type Sender1 = http1::SendRequest<RequestBody>;
type Sender2 = http2::SendRequest<RequestBody>;
type Connection2 = http2::Connection<TokioIo<TcpStream>, RequestBody, TokioExecutor>;

/// The connections to rean.
#[derive(Debug)]
pub struct Upstream {
    address: HostPort,
    connect_timeout: Duration,
    system: Vec<(HeaderName, HeaderValue)>,
    idle: Arc<Mutex<Vec<(Sender1, Instant)>>>,
    shared: Mutex<Vec<Shared>>,
    /// Held while a shared connection is opened, so that 500 feeds at once open one and not 500.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Shared {
    sender: Sender2,
    streams: Arc<AtomicUsize>,
    /// How many streams rean allows, as it last said.
    most: watch::Receiver<usize>,
}

/// Why rean gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection.
    #[error("can't connect to rean: {0}")]
    Connect(#[source] std::io::Error),
    /// The connection did not come about in time, or its limit is reached.
    #[error("rean takes no further connection")]
    Full,
    /// The exchange broke off.
    #[error("the exchange with rean failed: {0}")]
    Exchange(#[source] hyper::Error),
    /// The client's body failed.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// rean answered one of the proxy's own questions with something else.
    #[error("rean answered {0} to the proxy")]
    Unexpected(StatusCode),
    /// rean took too long for one of the proxy's own questions.
    #[error("rean did not answer the proxy in time")]
    Late,
    /// rean's answer is not what was asked for.
    #[error("rean's answer is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl From<&UpstreamError> for Refusal {
    fn from(error: &UpstreamError) -> Self {
        match error {
            UpstreamError::Body(BodyError::TooLarge) => Self::BodyTooLarge,
            UpstreamError::Body(BodyError::Timeout) => Self::BodyTimeout,
            UpstreamError::Body(_) => Self::BodyBroken,
            UpstreamError::Connect(_) | UpstreamError::Full => Self::UpstreamDown,
            UpstreamError::Exchange(error) => match body_error(error) {
                Some(BodyError::TooLarge) => Self::BodyTooLarge,
                Some(BodyError::Timeout) => Self::BodyTimeout,
                Some(_) => Self::BodyBroken,
                None => Self::UpstreamBroke,
            },
            _ => Self::UpstreamDown,
        }
    }
}

/// The error of our own request body that made hyper give up, if that was the reason.
fn body_error(error: &hyper::Error) -> Option<&BodyError> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

/// A pooled connection that is in use.
#[derive(Debug)]
pub struct PoolLease {
    sender: Sender1,
    /// Whether the request's body is sent, where there was one: rean may answer before it has read all of it.
    sent: Option<Arc<AtomicBool>>,
    idle: Arc<Mutex<Vec<(Sender1, Instant)>>>,
}

impl PoolLease {
    /// Keeps the connection for the next request. To be called when the answer was read to its end.
    pub fn give_back(self) {
        if self.sent.is_some_and(|sent| !sent.load(Ordering::Acquire)) {
            // The next request would have to wait for the rest of this one's body.
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE && !self.sender.is_closed() {
            idle.push((self.sender, Instant::now()));
        }
    }
}

/// One stream of a shared connection; the place is free again when this is dropped.
#[derive(Debug)]
pub struct StreamLease(Arc<AtomicUsize>);

impl Drop for StreamLease {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// rean's answer to a request for another protocol.
pub enum Upgrade {
    /// It takes it.
    Open {
        /// The answer.
        response: Response<()>,
        /// The connection.
        stream: TcpStream,
        /// What rean has said on it already.
        first: Bytes,
    },
    /// It doesn't: the whole answer.
    Refused(Response<Vec<u8>>),
}

impl Upstream {
    /// The way to rean at `address`. Nothing is opened yet.
    pub fn new(address: HostPort, connect_timeout: Duration, signer: &Signer) -> Self {
        Self {
            address,
            connect_timeout,
            system: identity_headers(signer, &Identity::system()),
            idle: Arc::default(),
            shared: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        }
    }

    /// Sends a request over a pooled connection. The request's URI has no scheme and its headers no hop-by-hop ones.
    ///
    /// # Errors
    /// When rean can't be reached, or the exchange breaks off before rean has answered.
    pub async fn send(&self, mut request: Request<RequestBody>) -> Result<Response<UpstreamBody>, UpstreamError> {
        let again = repeatable(&request);
        while let Some(sender) = self.take_idle() {
            let sent = request.body().sent_flag();
            let mut lease = PoolLease { sender, sent, idle: Arc::clone(&self.idle) };
            if lease.sender.ready().await.is_err() {
                continue;
            }
            match lease.sender.try_send_request(request).await {
                Ok(response) => return Ok(response.map(|body| UpstreamBody::new(body, lease))),
                // rean closed the idle connection before it saw anything of the request.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => match again {
                        // A read may be repeated, once, on a fresh connection.
                        Some(read) if !error.error().is_user() => return self.send_fresh(read).await,
                        _ => return Err(UpstreamError::Exchange(error.into_error())),
                    },
                },
            }
        }
        self.send_fresh(request).await
    }

    async fn send_fresh(&self, request: Request<RequestBody>) -> Result<Response<UpstreamBody>, UpstreamError> {
        let stream = self.connect().await?;
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(Patient::new(stream)))
            .await
            .map_err(UpstreamError::Exchange)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to rean ended");
            }
        });
        let sent = request.body().sent_flag();
        let mut lease = PoolLease { sender, sent, idle: Arc::clone(&self.idle) };
        let response = lease.sender.send_request(request).await.map_err(UpstreamError::Exchange)?;
        Ok(response.map(|body| UpstreamBody::new(body, lease)))
    }

    /// Asks rean for another protocol, over a connection of its own.
    ///
    /// # Errors
    /// When rean can't be reached or is late, or the exchange breaks off.
    pub async fn upgrade(&self, request: Request<RequestBody>) -> Result<Upgrade, UpstreamError> {
        let asking = async {
            let stream = self.connect().await?;
            let handshake = http1::Builder::new().handshake(TokioIo::new(stream)).await;
            let (mut sender, connection) = handshake.map_err(UpstreamError::Exchange)?;
            tokio::spawn(connection.with_upgrades());
            let mut response = sender.send_request(request).await.map_err(UpstreamError::Exchange)?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let (parts, body) = response.into_parts();
                let lease = PoolLease { sender, sent: None, idle: Arc::default() };
                let bytes = UpstreamBody::new(body, lease).collect(OWN_ANSWER_BYTES).await?;
                return Ok(Upgrade::Refused(Response::from_parts(parts, bytes)));
            }
            let upgraded = hyper::upgrade::on(&mut response).await.map_err(UpstreamError::Exchange)?;
            let parts = upgraded.downcast::<TokioIo<TcpStream>>();
            let parts = parts.map_err(|_| UpstreamError::Unexpected(StatusCode::SWITCHING_PROTOCOLS))?;
            let (response, stream) = (response.map(|_| ()), parts.io.into_inner());
            Ok(Upgrade::Open { response, stream, first: parts.read_buf })
        };
        tokio::time::timeout(OWN_ANSWER_TIME, asking).await.unwrap_or(Err(UpstreamError::Late))
    }

    /// Sends a request for a feed over a shared connection.
    ///
    /// # Errors
    /// When rean can't be reached, takes no further feed, or the exchange breaks off before rean has answered.
    pub async fn send_shared(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, StreamLease), UpstreamError> {
        let path = request.uri().path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let uri = Uri::builder().scheme(Scheme::HTTP).authority(self.address.authority().clone());
        // All three parts are valid already.
        *request.uri_mut() = uri.path_and_query(path).build().unwrap_or_default();
        *request.version_mut() = http::Version::HTTP_2;
        let (mut sender, lease) = self.stream().await?;
        let response = sender.send_request(request).await.map_err(UpstreamError::Exchange)?;
        Ok((response, lease))
    }

    async fn stream(&self) -> Result<(Sender2, StreamLease), UpstreamError> {
        if let Some(found) = self.free_stream() {
            return Ok(found);
        }
        let _opening = self.opening.lock().await;
        if let Some(found) = self.free_stream() {
            return Ok(found);
        }
        if self.shared.lock().len() >= MAX_SHARED {
            return Err(UpstreamError::Full);
        }
        let stream = self.connect().await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_max_send_streams(1)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(UpstreamError::Exchange)?;
        let (allowed, mut most) = watch::channel(1);
        tokio::spawn(drive_shared(connection, allowed));
        // rean says with its first frame how many streams it allows; a server that allows one is served, if slowly.
        let _ = tokio::time::timeout(self.connect_timeout, most.wait_for(|most| *most > 1)).await;
        let streams = Arc::new(AtomicUsize::new(1));
        let lease = StreamLease(Arc::clone(&streams));
        self.shared.lock().push(Shared { sender: sender.clone(), streams, most });
        Ok((sender, lease))
    }

    fn free_stream(&self) -> Option<(Sender2, StreamLease)> {
        let mut shared = self.shared.lock();
        shared.retain(|connection| !connection.sender.is_closed());
        shared.iter().find_map(|connection| {
            let most = MAX_STREAMS.min(*connection.most.borrow());
            // Only this function adds, under the lock.
            if connection.streams.load(Ordering::Acquire) >= most {
                return None;
            }
            connection.streams.fetch_add(1, Ordering::AcqRel);
            Some((connection.sender.clone(), StreamLease(Arc::clone(&connection.streams))))
        })
    }

    fn take_idle(&self) -> Option<Sender1> {
        let mut idle = self.idle.lock();
        // The youngest first: the oldest then grow too old together.
        let (sender, since) = idle.pop()?;
        if since.elapsed() > MAX_IDLE_TIME {
            idle.clear();
            return None;
        }
        Some(sender)
    }

    async fn connect(&self) -> Result<TcpStream, UpstreamError> {
        let stream = tokio::time::timeout(self.connect_timeout, self.address.connect())
            .await
            .map_err(|_| UpstreamError::Full)?
            .map_err(UpstreamError::Connect)?;
        stream.set_nodelay(true).map_err(UpstreamError::Connect)?;
        Ok(stream)
    }

    /// A question of the proxy's own, in the name of the pod.
    fn own(&self, method: Method, path: &str, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        // Paths of the proxy's own making are percent-encoded.
        *request.uri_mut() = path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        self.identify(headers);
        headers.insert(header::HOST, self.host());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request
    }

    fn identify(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.system {
            headers.insert(name.clone(), value.clone());
        }
    }

    /// rean's own address as a `Host` header.
    pub fn host(&self) -> HeaderValue {
        HeaderValue::from_str(self.address.authority().as_str()).unwrap_or(HeaderValue::from_static("rean"))
    }

    /// Asks rean something in the name of the pod: status and body.
    ///
    /// # Errors
    /// When rean can't be reached, is late or sends more than 1 MiB.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<(StatusCode, Vec<u8>), UpstreamError> {
        let body = body.map_or(RequestBody::Empty, |bytes| RequestBody::Full(Some(bytes)));
        let request = self.own(method, path, body);
        let asking = async {
            let (parts, body) = self.send(request).await?.into_parts();
            Ok((parts.status, body.collect(OWN_ANSWER_BYTES).await?))
        };
        tokio::time::timeout(OWN_ANSWER_TIME, asking).await.unwrap_or(Err(UpstreamError::Late))
    }

    /// Follows a feed in the name of the pod.
    ///
    /// # Errors
    /// When rean can't be reached or answers with an error.
    pub async fn follow(&self, path: &str) -> Result<(Incoming, StreamLease), UpstreamError> {
        let request = self.own(Method::GET, path, RequestBody::Empty);
        let asking = self.send_shared(request);
        let (response, lease) =
            tokio::time::timeout(OWN_ANSWER_TIME, asking).await.unwrap_or(Err(UpstreamError::Late))?;
        match response.status() {
            StatusCode::OK => Ok((response.into_body(), lease)),
            other => Err(UpstreamError::Unexpected(other)),
        }
    }
}

/// Carries a shared connection, and tells how many streams rean allows on it.
async fn drive_shared(connection: Connection2, allowed: watch::Sender<usize>) {
    // hyper reads the frames in a task of its own and does not call when the number comes, so it is looked for:
    // at once after the start, and later with each new feed, which wakes this task.
    let mut look = tokio::time::interval(Duration::from_millis(1));
    let mut connection = Box::pin(connection);
    let result = std::future::poll_fn(|context| {
        let polled = connection.as_mut().poll(context);
        while *allowed.borrow() <= 1 {
            let most = connection.current_max_send_streams();
            allowed.send_if_modified(|now| std::mem::replace(now, most) != most);
            if polled.is_ready() || look.poll_tick(context).is_pending() {
                return polled;
            }
        }
        let most = connection.current_max_send_streams();
        allowed.send_if_modified(|now| std::mem::replace(now, most) != most);
        polled
    });
    if let Err(error) = result.await {
        tracing::debug!(%error, "a shared connection to rean ended");
    }
}

/// The headers that tell rean who asks.
pub fn identity_headers(signer: &Signer, identity: &Identity) -> Vec<(HeaderName, HeaderValue)> {
    let headers = signer.headers(identity).into_iter();
    // Percent-encoded text is always a valid header value.
    headers
        .filter_map(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::from_maybe_shared(value).ok()?)))
        .collect()
}

/// A copy of a request that may safely be sent twice.
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let read = matches!(*request.method(), Method::GET | Method::HEAD);
    if !read || !matches!(request.body(), RequestBody::Empty) {
        return None;
    }
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}
