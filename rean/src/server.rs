//! Boot, serving and shutdown.
//!
//! HTTP/1.1 and HTTP/2 without TLS on loopback. The proxy sends all of its requests through a few HTTP/2 connections,
//! so that an idle changes feed costs one stream and not a socket with its buffers. The other pods of a ring have a port of
//! their own ([`port`]).

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use adea_ring::identity::{ROLES_HEADER, TOKEN_HEADER, USER_NAME_HEADER};
use adea_ring::{Identity, PodId, Signer};
use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{CONNECTION, CONTENT_LENGTH, SERVER};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::config::Config;
use crate::error::ApiError;
use crate::pod::{BootError, Pod};
use crate::ring::port::{self, FromPeer};
use crate::ring::{clients, command, removal, writes};
use crate::route::{REQUEST_ID_HEADER, Request, Response};
use crate::tasks;

/// Streams of one HTTP/2 connection: a stream is one listener of the proxy, which has up to tens of thousands.
const MAX_STREAMS: u32 = 20_000;
/// All headers of a request, in bytes: an identity with some hundred roles fits.
pub(crate) const MAX_HEADERS_BYTES: u32 = 64 << 10;
/// Read buffer of an HTTP/1.1 connection, in bytes; its headers must fit.
const MAX_BUFFER_BYTES: usize = 128 << 10;
/// What one stream may send unread, in bytes: an upload runs at full speed on loopback with this.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// What one connection may send unread, in bytes; many uploads share it.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Reading the headers of a request may take this long.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long running requests have at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after the listener failed (out of file descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What `Server` says.
const SERVER_NAME: &str = concat!("Adea/", env!("CARGO_PKG_VERSION"));

/// Why rean ended early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The pod did not come up.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The address can't be listened on.
    #[error("can't listen on {listen}: {source}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A blocking step was cut off.
    #[error("{step} did not finish")]
    Step {
        /// Which step.
        step: &'static str,
    },
}

/// Opens the store, serves until `shutdown` resolves, drains and closes. Prints one line `ready rean http://ADDRESS`.
///
/// # Errors
/// When the store can't be opened or an address can't be listened on.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), RunError> {
    run_here(config, Box::pin(shutdown)).await
}

/// The compiler makes a future's code in each crate that polls it: behind a box it is made once, in this one, and a program
/// that runs the server holds it once.
#[inline(never)]
fn run_here<'a>(
    config: Config,
    shutdown: Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
) -> Pin<Box<dyn Future<Output = Result<(), RunError>> + Send + 'a>> {
    Box::pin(async move {
        let server = Server::start(config).await?;
        let address = server.address;
        println!("ready rean http://{address}");
        tracing::info!(%address, ring = ?server.ring_address, "rean is ready");
        server.serve(shutdown).await
    })
}

/// A pod that has come up and listens. Connections wait until it serves.
pub struct Server {
    /// What its requests share.
    pub pod: Arc<Pod>,
    /// Where the pod's own programs reach it.
    pub address: SocketAddr,
    /// Where the other pods reach it, if there is a ring.
    pub ring_address: Option<SocketAddr>,
    signer: Signer,
    listener: TcpListener,
    peers: Option<TcpListener>,
}

impl Server {
    /// Listens, opens the store and starts the workers.
    ///
    /// # Errors
    /// When the store can't be opened or an address can't be listened on.
    pub async fn start(config: Config) -> Result<Self, RunError> {
        let (listener, address) = bind(config.listen).await?;
        let (peers, ring_address) = match config.ring_listen {
            Some(listen) => bind(listen).await.map(|(listener, address)| (Some(listener), Some(address)))?,
            None => (None, None),
        };
        let signer = Signer::new(&config.ring_secret);
        let pod = blocking("opening the store", move || Pod::boot(&config, &config.ring_secret)).await??;
        tasks::start(&pod);
        if !pod.ring.is_alone() {
            let for_lease = Arc::clone(&pod);
            pod.tasks.workers.start("lease", move |stop| command::keep_lease(Arc::clone(&for_lease), stop));
        }
        Ok(Self { pod, address, ring_address, signer, listener, peers })
    }

    /// Serves until `shutdown` resolves, drains and closes.
    ///
    /// # Errors
    /// When closing the store is cut off.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let Self { pod, signer, listener, peers, .. } = self;
        let (stop, stopped) = watch::channel(false);
        let own = serve(&pod, &signer, listener, stopped.clone());
        let others = async {
            match peers {
                Some(listener) => port::serve(&pod, &signer, listener, stopped).await,
                None => GracefulShutdown::new(),
            }
        };
        let ended = async {
            shutdown.await;
            stop.send_replace(true);
        };
        let (own, others, ()) = tokio::join!(own, others, ended);

        tracing::info!("rean is stopping");
        pod.hub.close();
        let drained = async { tokio::join!(own.closed(), others.shutdown(), pod.sockets.close()) };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::warn!("some requests did not end in time");
        }
        pod.scripts.close();
        pod.tasks.stop().await;
        let indexed = Arc::clone(&pod);
        blocking("closing the indexes", move || indexed.indexes.close()).await?;
        blocking("closing the store", move || pod.store.close()).await
    }
}

async fn bind(listen: SocketAddr) -> Result<(TcpListener, SocketAddr), RunError> {
    let listener = TcpListener::bind(listen).await.map_err(|source| RunError::Listen { listen, source })?;
    let address = listener.local_addr().unwrap_or(listen);
    Ok((listener, address))
}

async fn blocking<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RunError::Step { step })
}

/// Accepts connections until `stop`; what it gives back is closed when the last of them has ended.
async fn serve(
    pod: &Arc<Pod>,
    signer: &Signer,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) -> watch::Sender<()> {
    let open = watch::Sender::new(());
    let connections = Arc::new(Semaphore::new(pod.limits.max_connections));
    let builder = builder();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return open,
            accepted = accept(&listener, &connections) => accepted,
        };
        let Some((stream, permit)) = accepted else {
            continue;
        };
        let service = service(Arc::clone(pod), signer.clone(), None);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let (stop, place) = (stop.clone(), (permit, open.subscribe()));
        tokio::spawn(async move {
            if let Err(error) = drive(Box::pin(connection), stop).await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
}

/// A connection of the pod's own programs, which may become one with many feeds. hyper-util's own watch over connections
/// takes none that may be upgraded.
type Connection<S> = auto::UpgradeableConnection<'static, TokioIo<TcpStream>, S, TokioExecutor>;

/// Carries a connection to its end; from `stop` on it takes no new requests.
async fn drive<S>(
    mut connection: Pin<Box<Connection<S>>>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: Service<http::Request<Incoming>, Response = Response, Error = Infallible, Future: Send + 'static> + 'static,
{
    tokio::select! {
        ended = &mut connection => return ended,
        _ = stop.wait_for(|stop| *stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// What answers the requests of one connection; `peer` is the pod at its other end.
pub(crate) fn service(
    pod: Arc<Pod>,
    signer: Signer,
    peer: Option<PodId>,
) -> impl Service<http::Request<Incoming>, Response = Response, Error = Infallible, Future: Send + 'static> + Clone {
    let peer = peer.map(FromPeer);
    service_fn(move |mut request: http::Request<Incoming>| {
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        // Boxed, so that an answer that streams for hours does not keep the largest handler's state.
        Box::pin(answer(Arc::clone(&pod), signer.clone(), request))
    })
}

/// Waits for a connection and a place for it.
pub(crate) async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Small answers must not wait for an acknowledgement; a socket that refuses this still works.
            let _ = stream.set_nodelay(true);
            Some((stream, permit))
        }
        Err(error) => {
            tracing::warn!(%error, "accepting a connection failed");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder
}

/// Answers one request. Whatever goes wrong becomes an answer: other streams of the connection go on.
async fn answer(pod: Arc<Pod>, signer: Signer, request: http::Request<Incoming>) -> Result<Response, Infallible> {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let id = request.headers().get(REQUEST_ID_HEADER).cloned();
    let id = || id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or("");
    let is_http1 = request.version() <= Version::HTTP_11;
    let ended = Arc::new(AtomicBool::new(request.body().is_end_stream()));
    let request = request.map(|incoming| Body::new(Watched { incoming, ended: Arc::clone(&ended) }));
    let handled = AssertUnwindSafe(handle(&pod, &signer, request)).catch_unwind().await;
    let mut response = match handled {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            error.log(id(), &method, uri.path());
            error.into_response()
        }
        Err(_) => {
            // What it said is in the log already, by the panic's own hook.
            let error = ApiError::internal("the request could not be handled").with_cause("a handler panicked");
            error.log(id(), &method, uri.path());
            error.into_response()
        }
    };
    response.headers_mut().insert(SERVER, HeaderValue::from_static(SERVER_NAME));
    if is_http1 && !ended.load(Ordering::Acquire) {
        // hyper closes a connection with a body that nobody has read. The proxy must know, or it sends the next
        // request, which may be anybody's, into the closing connection.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if method == Method::HEAD {
        strip_body(&mut response);
    }
    Ok(response)
}

/// A request's body, and whether it was read to its end.
struct Watched {
    incoming: Incoming,
    ended: Arc<AtomicBool>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(context));
        if frame.is_none() || self.incoming.is_end_stream() {
            self.ended.store(true, Ordering::Release);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.incoming.size_hint()
    }
}

async fn handle(pod: &Arc<Pod>, signer: &Signer, request: http::Request<Body>) -> Result<Response, ApiError> {
    if request.uri().path() == "/_up" {
        return Ok(clients::down(pod).unwrap_or_else(up));
    }
    let who = identity(signer, request.headers())?;
    let request = Request::from_http(request)?;
    removal::check(pod, &request)?;
    if let Some(refusal) = clients::refusal(pod, &who, &request) {
        return Ok(refusal);
    }
    if request.from_peer.is_none() {
        pod.traffic.count(writes::is_write(&request.method, &request.segments));
    }
    writes::take(pod, &who, request).await
}

/// Who the signed headers name; a request without valid ones did not come through the proxy.
fn identity(signer: &Signer, headers: &HeaderMap) -> Result<Identity, ApiError> {
    let text = |name: &str| -> Result<Option<&str>, ApiError> {
        headers.get(name).map(|value| value.to_str().map_err(|_| no_identity())).transpose()
    };
    signer.verify(text(USER_NAME_HEADER)?, text(ROLES_HEADER)?, text(TOKEN_HEADER)?).map_err(|_| no_identity())
}

fn no_identity() -> ApiError {
    ApiError::unauthorized("This port takes requests of the pod's proxy only.")
}

fn up() -> Response {
    crate::render::json(StatusCode::OK, &b"{\"status\":\"ok\"}\n"[..])
}

/// A HEAD answer has the headers of the GET answer, also its length, and no body.
fn strip_body(response: &mut Response) {
    if let Some(length) = response.body().size_hint().exact()
        && !response.headers().contains_key(CONTENT_LENGTH)
        && response.status() != StatusCode::NOT_MODIFIED
    {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    *response.body_mut() = Body::empty();
}
