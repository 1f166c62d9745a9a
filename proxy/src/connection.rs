//! One client connection: which HTTP it speaks, its time limits, and its way to the end.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Sleep;

use crate::body::Body;
use crate::config::Limits;
use crate::stack::Stack;

/// Requests that one HTTP/2 connection may have open at once: a browser's tabs share one.
const MAX_STREAMS: u32 = 256;
/// What a client may send ahead, in bytes: for one request and for all of a connection.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// An answer's bytes that wait for the client's window, for each request.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
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
    http2: http2::Builder<TokioExecutor>,
    header_timeout: Duration,
    idle_timeout: Duration,
}

impl Connections {
    /// By these limits.
    pub fn new(limits: &Limits) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            // hyper answers 431 when the header does not fit into the buffer.
            .max_buf_size(limits.max_header_bytes);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(PING)
            .keep_alive_timeout(limits.header_timeout);
        Self { http1, http2, header_timeout: limits.header_timeout, idle_timeout: limits.idle_timeout }
    }

    /// Serves a connection to its end.
    pub async fn serve(&self, stack: Arc<Stack>, stream: TcpStream, peer: IpAddr, phase: watch::Receiver<Phase>) {
        // hyper-util's automatic choice has no time limit before the first byte, and its state is twice as large.
        let version = tokio::time::timeout(self.header_timeout, speaks_http2(&stream));
        let Ok(Ok(speaks_http2)) = version.await else { return };
        let io = TokioIo::new(Timed { stream, idle: self.idle_timeout, stalled: None });
        let requests = Requests { stack, peer };
        if speaks_http2 {
            drive(self.http2.serve_connection(io, requests), phase).await;
        } else {
            drive(self.http1.serve_connection(io, requests), phase).await;
        }
    }
}

async fn drive<C: GracefulConnection>(connection: C, mut phase: watch::Receiver<Phase>)
where
    C::Error: std::fmt::Display,
{
    let mut connection = Box::pin(connection);
    loop {
        tokio::select! {
            result = &mut connection => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a client connection broke");
                }
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
}

impl hyper::service::Service<Request<Incoming>> for Requests {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    // Boxed, so that a connection that waits for its next request, or only sends an answer, does not hold it.
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (stack, peer) = (Arc::clone(&self.stack), self.peer);
        Box::pin(async move { Ok(stack.handle(peer, request).await) })
    }
}

/// A socket whose client must go on reading: one that leaves an answer unread for too long is given up.
struct Timed {
    stream: TcpStream,
    idle: Duration,
    /// Runs while the socket takes nothing more.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    fn watched(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
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
        Pin::new(&mut self.stream).poll_read(context, buffer)
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
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
