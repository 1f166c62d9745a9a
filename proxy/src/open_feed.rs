//! Feeds over HTTP/1.1, sent without hyper.
//!
//! Most connections of a pod are feeds on which nothing happens. hyper keeps 8 KiB to read into, the header maps of
//! the last request and more for each; here an idle feed is its socket, its place at rean, and no buffer. So once
//! rean's answer has begun, hyper's connection is taken apart and the chunks (RFC 9112, 7.1) are written here. When
//! the feed has ended well, hyper has the socket again for the next request.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use bytes::{Buf, Bytes};
use http::{Method, Request, Response, Version, header};
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;

use crate::body::{Body, BodyError};
use crate::connection::{Phase, Timed};

/// An answer that is a feed, and not yet begun.
pub struct OpenFeed {
    /// The answer.
    pub response: Response<Body>,
    /// Whether the connection ends with it.
    pub close: bool,
}

/// What happens next on a feed's connection.
enum Event {
    Data(Bytes),
    End,
    Broken(BodyError),
    /// The client has gone, or the server is over.
    Gone,
}

impl OpenFeed {
    /// Whether the answer to this request may be sent so, should it be a feed: chunks need HTTP/1.1, and hyper must
    /// have read all of the request.
    pub fn may_be<B: http_body::Body>(request: &Request<B>) -> bool {
        request.version() == Version::HTTP_11 && request.method() == Method::GET && request.body().is_end_stream()
    }

    /// Whether the client wants the connection closed after this request.
    pub fn closes<B>(request: &Request<B>) -> bool {
        let values = request.headers().get_all(header::CONNECTION).iter();
        let mut tokens = values.flat_map(|value| value.to_str().unwrap_or("").split(','));
        tokens.any(|token| token.trim().eq_ignore_ascii_case("close"))
    }
}

/// Sends a feed to its end. Whether the connection may take another request then.
pub async fn send(socket: &mut Timed, feed: OpenFeed, phase: &mut watch::Receiver<Phase>) -> bool {
    let OpenFeed { response, mut close } = feed;
    let (head, mut body) = start(response, close);
    if socket.write_all(&head).await.is_err() || socket.flush().await.is_err() {
        return false;
    }
    drop(head);
    // Whether the client has sent more; from then on a hang-up is seen only by writing.
    let mut heard = false;
    loop {
        match next(socket, &mut body, phase, &mut heard, &mut close).await {
            Event::Data(data) if data.is_empty() => {}
            Event::Data(data) => {
                if write_chunk(socket, data).await.is_err() {
                    return false;
                }
            }
            Event::End => {
                let ended = socket.write_all(b"0\r\n\r\n").await.is_ok() && socket.flush().await.is_ok();
                return ended && !close;
            }
            Event::Broken(error) => {
                // No last chunk: the client sees that this was not all.
                tracing::debug!(%error, "a feed broke off");
                return false;
            }
            Event::Gone => return false,
        }
    }
}

/// Status line and headers.
fn start(response: Response<Body>, close: bool) -> (Vec<u8>, Body) {
    let (parts, body) = response.into_parts();
    let mut head = Vec::with_capacity(1024);
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(parts.status.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(parts.status.canonical_reason().unwrap_or("").as_bytes());
    head.extend_from_slice(b"\r\n");
    for (name, value) in &parts.headers {
        // The chunks say how long it is.
        if name != header::CONTENT_LENGTH {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
    }
    head.extend_from_slice(b"transfer-encoding: chunked\r\n");
    if close {
        head.extend_from_slice(b"connection: close\r\n");
    }
    head.extend_from_slice(b"\r\n");
    (head, body)
}

async fn write_chunk(socket: &mut Timed, data: Bytes) -> std::io::Result<()> {
    let size = format!("{:x}\r\n", data.len());
    let mut chunk = Bytes::from(size).chain(data).chain(&b"\r\n"[..]);
    socket.write_all_buf(&mut chunk).await?;
    socket.flush().await
}

async fn next(
    socket: &mut Timed,
    body: &mut Body,
    phase: &mut watch::Receiver<Phase>,
    heard: &mut bool,
    close: &mut bool,
) -> Event {
    loop {
        let watched = poll_fn(|context| {
            // A client that hangs up is seen by reading. What it sends meanwhile is not kept: then the connection
            // ends with the feed.
            let mut bytes = [0; 16];
            while !*heard {
                let mut buffer = ReadBuf::new(&mut bytes);
                match Pin::new(&mut *socket).poll_read(context, &mut buffer) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                        (*heard, *close) = (true, true);
                    }
                    Poll::Ready(_) => return Poll::Ready(Event::Gone),
                }
            }
            http_body::Body::poll_frame(Pin::new(&mut *body), context).map(event)
        });
        tokio::select! {
            event = watched => return event,
            changed = phase.changed() => {
                if changed.is_err() || *phase.borrow_and_update() == Phase::Closed {
                    return Event::Gone;
                }
                // Draining: the feed is ended by its ticket, and the connection with it.
                *close = true;
            }
        }
    }
}

fn event(frame: Option<Result<Frame<Bytes>, BodyError>>) -> Event {
    match frame {
        None => Event::End,
        Some(Err(error)) => Event::Broken(error),
        // Trailers, which rean does not send, count as nothing.
        Some(Ok(frame)) => Event::Data(frame.into_data().unwrap_or_default()),
    }
}
