//! Many feeds on one connection: `GET /_feeds`, upgraded to a WebSocket (RFC 6455).
//!
//! A browser with fifty live databases would need fifty connections, of which it has six. Here a client subscribes to as
//! many databases as it likes, each with its own place and its own filter, at any time; `proxy/web/FEEDS.md` documents the
//! messages. Each subscription is the same [`Run`](crate::feed_body::Run) that answers `_changes`, so rows, order and rights
//! are the same by construction: a [`Session`](session::Session) only carries the pieces of many to one socket.
//!
//! What always holds: a feed whose client gives it no credit, or whose socket is full, is not read on, so a slow client
//! costs places in the store's sequences and not memory; feeds take turns, so a long one does not hold up the others; a
//! connection has a bounded number of subscriptions, of bytes in a message and of messages a second.
//!
//! What it is not: a second way to ask for documents, or to write.

mod handshake;
mod message;
mod rate;
mod session;
mod sockets;
mod subscriptions;

use std::sync::Arc;

use adea_ring::Identity;
use axum::body::Body;
use http::StatusCode;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::ApiError;
use crate::pod::Pod;
use crate::route::{Request, Response};

pub use self::handshake::PROTOCOL;
pub use self::sockets::{Seat, Sockets};
pub use self::subscriptions::MAX_SUBSCRIPTIONS;

/// Databases that the proxy's maintenance rules close to readers: names of apps or databases, parted by commas. The proxy
/// sets it on each connection and lets no client set it.
pub const CLOSED_HEADER: &str = "x-adea-closed";

/// `GET /_feeds`: makes the connection one with many feeds.
///
/// # Errors
/// 426 for what asks for no WebSocket, 400 for a bad handshake, 429 and 503 when there are too many such connections, 401
/// for an account that has been removed.
pub fn connect(pod: &Arc<Pod>, who: &Identity, mut request: Request) -> Result<Response, ApiError> {
    let accept = handshake::accept(&request.headers)?;
    let upgrade = request.upgrade.take().ok_or_else(handshake::upgrade_required)?;
    pod.accounts.who(who)?;
    let seat = pod.sockets.admit(who.name.as_deref(), who.is_admin())?;
    let closed = closed(&request);
    let (pod, who) = (Arc::clone(pod), who.clone());
    tokio::spawn(async move {
        match upgrade.await {
            Ok(socket) => serve(&pod, &who, closed, TokioIo::new(socket), seat).await,
            Err(error) => tracing::debug!(%error, "a connection for feeds did not come about"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = accept;
    Ok(response)
}

/// Serves the feeds of one client over a socket that has become a WebSocket, to its end.
pub async fn serve<S>(pod: &Arc<Pod>, who: &Identity, closed: Vec<String>, socket: S, seat: Seat)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    session::Session::new(pod, who, closed, socket, seat).await.run().await;
}

fn closed(request: &Request) -> Vec<String> {
    let names = request.headers.get_all(CLOSED_HEADER).iter().filter_map(|value| value.to_str().ok());
    names.flat_map(|names| names.split(',')).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}
