//! One client connection: whether it speaks TLS, which HTTP it speaks, its time limits, and its way to the end.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::Sleep;

use crate::body::Body;
use crate::config::Limits;
use crate::open_feed::{self, OpenFeed};
use crate::outflow::{Giver, Streams};
use crate::plain::Redirect;
use crate::raw_target::RawTargets;
use crate::socket::Socket;
use crate::stack::Stack;
use crate::tls::{self, Tls};
use crate::tunnel;

/// Requests that one HTTP/2 connection may have open at once: a browser's tabs share one.
const MAX_STREAMS: u32 = 256;
/// What a client may send ahead, in bytes: for one request and for all of a connection.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// An answer's bytes that wait for the client's window, for each request.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Streams that a client may open and take back before its requests are answered, and our own resets of faulty ones:
/// beyond that the connection ends (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;
const MAX_LOCAL_RESETS: usize = 256;
/// How a request has come, for whoever writes absolute addresses and cookies.
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// How often a silent HTTP/2 client is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);

/// How far the end of the server has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It serves.
    Serving,
    /// It takes no new requests.
    Draining,
    /// It is over.
    Closed,
}

/// How connections are served.
pub struct Connections {
    http1: http1::Builder,
    max_header_bytes: usize,
    header_timeout: Duration,
    idle_timeout: Duration,
    tls: Option<(Arc<Tls>, Arc<Redirect>)>,
}

impl Connections {
    /// By these limits; with TLS, where plain HTTP is answered by that address.
    pub fn new(limits: &Limits, tls: Option<(Arc<Tls>, Arc<Redirect>)>) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            // hyper answers 431 when the header does not fit into the buffer.
            .max_buf_size(limits.max_header_bytes);
        let Limits { max_header_bytes, header_timeout, idle_timeout, .. } = *limits;
        Self { http1, max_header_bytes, header_timeout, idle_timeout, tls }
    }

    fn http2(&self, streams: Streams) -> http2::Builder<Streams> {
        let mut http2 = http2::Builder::new(streams);
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_header_list_size(u32::try_from(self.max_header_bytes).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LOCAL_RESETS)
            .keep_alive_interval(PING)
            .keep_alive_timeout(self.header_timeout);
        http2
    }

    /// Serves a connection to its end.
    pub async fn serve(&self, stack: Arc<Stack>, stream: TcpStream, peer: IpAddr, mut phase: watch::Receiver<Phase>) {
        let begun = while_serving(&mut phase, self.begin(&stack, stream, peer)).await;
        let Some((stream, speaks_http2)) = begun.flatten() else { return };
        let is_secure = stream.is_secure();
        let targets = if speaks_http2 { RawTargets::off() } else { RawTargets::new() };
        let socket = Timed { stream, idle: self.idle_timeout, stalled: None, targets };
        if speaks_http2 {
            let requests = Requests { stack, peer, is_secure, feed: None };
            let streams = Streams::new(self.idle_timeout);
            let cut = Arc::clone(&streams.cut);
            let connection = self.http2(streams).serve_connection(TokioIo::new(socket), requests);
            drive(Box::pin(connection), phase, &cut).await;
        } else {
            self.serve_http1(stack, socket, peer, phase).await;
        }
    }

    /// The connection once it is known what is spoken on it; `None` if it is over before that.
    async fn begin(&self, stack: &Arc<Stack>, stream: TcpStream, peer: IpAddr) -> Option<(Socket, bool)> {
        let Some((tls, redirect)) = &self.tls else {
            // hyper-util's automatic choice has no time limit before the first byte, and its state is twice as large.
            let version = tokio::time::timeout(self.header_timeout, speaks_http2(&stream));
            let speaks_http2 = version.await.ok()?.ok()?;
            return Some((Socket::Plain(stream), speaks_http2));
        };
        let mut first = [0];
        let heard = tokio::time::timeout(self.header_timeout, stream.peek(&mut first)).await.ok()?.ok()?;
        if heard == 0 {
            return None;
        }
        if first[0] != tls::HANDSHAKE {
            Arc::clone(redirect).serve(stream, peer, Some(Arc::clone(stack))).await;
            return None;
        }
        let secured = tls.accept(stream, peer).await?;
        Some((Socket::Tls(secured.stream), secured.speaks_http2))
    }

    /// Serves requests with hyper, and each feed without it (see [`open_feed`]).
    async fn serve_http1(&self, stack: Arc<Stack>, mut socket: Timed, peer: IpAddr, mut phase: watch::Receiver<Phase>) {
        loop {
            let slot = FeedSlot::default();
            let is_secure = socket.stream.is_secure();
            let requests = Requests { stack: Arc::clone(&stack), peer, is_secure, feed: Some(Arc::clone(&slot)) };
            let mut connection = Box::pin(self.http1.serve_connection(TokioIo::new(socket), requests));
            let Some(mut feed) = drive_to_feed(&mut connection, &slot, &mut phase).await else {
                return;
            };
            let parts = Pin::into_inner(connection).into_parts();
            socket = parts.io.into_inner();
            if let Some(tunnel) = feed.response.body_mut().take_tunnel() {
                // Who speaks before the answer is no WebSocket client (RFC 6455, 4.1).
                if parts.read_buf.is_empty() && !socket.targets.has_over() {
                    socket.targets = RawTargets::off();
                    drop((parts.read_buf, parts.service));
                    Box::pin(tunnel::carry(socket, feed.response, tunnel, phase)).await;
                }
                return;
            }
            // Bytes of a further request would be lost; its client asks again on another connection.
            feed.close |= !parts.read_buf.is_empty() || socket.targets.has_over() || *phase.borrow() != Phase::Serving;
            drop((parts.read_buf, parts.service));
            if !open_feed::send(&mut socket, feed, &mut phase).await {
                return;
            }
        }
    }
}

/// What comes of this if the server goes on serving: a client that has not said anything yet must not hold up its end.
async fn while_serving<T>(phase: &mut watch::Receiver<Phase>, doing: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = doing => Some(done),
        _ = phase.wait_for(|phase| *phase != Phase::Serving) => None,
    }
}

/// Drives a connection until it is over, or until it has a feed to send.
async fn drive_to_feed(
    connection: &mut Pin<Box<http1::Connection<TokioIo<Timed>, Requests>>>,
    slot: &FeedSlot,
    phase: &mut watch::Receiver<Phase>,
) -> Option<OpenFeed> {
    loop {
        // The service runs within the connection's own task: after polling it, the slot has what it left.
        let polled = std::future::poll_fn(|context| match connection.as_mut().poll(context) {
            Poll::Ready(result) => Poll::Ready(Err(result)),
            Poll::Pending => slot.lock().take().map_or(Poll::Pending, |feed| Poll::Ready(Ok(feed))),
        });
        tokio::select! {
            polled = polled => match polled {
                Ok(feed) => return Some(feed),
                Err(result) => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "a client connection broke");
                    }
                    return None;
                }
            },
            changed = phase.changed() => {
                if changed.is_err() || *phase.borrow_and_update() == Phase::Closed {
                    return None;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Drives a connection until it is over or `cut`.
async fn drive<C: GracefulConnection>(mut connection: Pin<Box<C>>, mut phase: watch::Receiver<Phase>, cut: &Notify)
where
    C::Error: std::fmt::Display,
{
    loop {
        tokio::select! {
            result = &mut connection => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a client connection broke");
                }
                return;
            }
            () = cut.notified() => {
                tracing::debug!("a connection is cut whose client does not take what it has asked for");
                return;
            }
            changed = phase.changed() => {
                if changed.is_err() || *phase.borrow_and_update() == Phase::Closed {
                    return;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Whether the client begins with HTTP/2's preface (RFC 9113, 3.4). Looks without taking anything.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    const START: &[u8; 4] = b"PRI ";
    /// How long to wait for the rest of a start that came in pieces, which hardly ever happens.
    const PAUSE: Duration = Duration::from_millis(5);
    let mut start = [0; START.len()];
    loop {
        match stream.peek(&mut start).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read if start[..read] != START[..read] => return Ok(false),
            read if read == START.len() => return Ok(true),
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// The requests of one connection.
struct Requests {
    stack: Arc<Stack>,
    peer: IpAddr,
    is_secure: bool,
    /// Where a feed is left for [`open_feed`]; HTTP/2 has no need of it.
    feed: Option<FeedSlot>,
}

/// Where the service leaves a feed.
type FeedSlot = Arc<Mutex<Option<OpenFeed>>>;

impl hyper::service::Service<Request<Incoming>> for Requests {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    // Boxed, so that a connection that waits for its next request, or only sends an answer, does not hold it.
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        if self.is_secure {
            // Whatever the client says: here TLS is seen, not heard of.
            request.headers_mut().insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
        }
        let (stack, peer) = (Arc::clone(&self.stack), self.peer);
        let slot = self.feed.as_ref().filter(|_| OpenFeed::may_be(&request)).map(Arc::clone);
        let close = OpenFeed::closes(&request);
        Box::pin(async move {
            let mut response = stack.handle(peer, request).await;
            match slot {
                Some(slot) if response.body().is_feed() || response.body().is_tunnel() => {
                    *slot.lock() = Some(OpenFeed { response, close });
                    // The connection is taken apart now, and this with it.
                    std::future::pending().await
                }
                _ => {
                    response.body_mut().watched(Giver::of_this_request());
                    Ok(response)
                }
            }
        })
    }
}

/// A socket whose client must go on reading: one that leaves an answer unread for too long is given up. What is read
/// from it has valid request targets (see [`raw_target`](crate::raw_target)).
pub struct Timed {
    stream: Socket,
    idle: Duration,
    /// Runs while the socket takes nothing more.
    stalled: Option<Pin<Box<Sleep>>>,
    targets: RawTargets,
}

impl Timed {
    fn watched<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let idle = self.idle;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.targets.has_over() {
            self.targets.give(buffer);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.targets.pass(buffer, before);
        read
    }
}

impl AsyncWrite for Timed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, buffer);
        self.watched(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.watched(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // With TLS this is where the last of an answer waits.
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watched(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watched(context, shut)
    }
}
