//! Many feeds on one connection: `GET /_feeds`, upgraded to a WebSocket (RFC 6455), or as an event stream.
//!
//! A browser with fifty live databases would need fifty connections, of which it has six. Here a client subscribes to as
//! many databases as it likes, each with its own place and its own filter, at any time; `proxy/web/FEEDS.md` documents the
//! messages. Each subscription is the same [`Run`](crate::feed_body::Run) that answers `_changes`, so rows, order and rights
//! are the same by construction: a [`Session`](session::Session) only carries the pieces of many to one client. How is the
//! business of a [`Wire`](wire::Wire), of which there are two: a [`Socket`], and a stream of [`events`] for where no
//! WebSocket gets through, beside which the client's own messages come by `POST /_feeds`.
//!
//! What always holds: a feed whose client gives it no credit, or whose connection is full, is not read on, so a slow client
//! costs places in the store's sequences and not memory; feeds take turns, so a long one does not hold up the others; a
//! connection has a bounded number of subscriptions, of bytes in a message and of messages a second.
//!
//! What it is not: a second way to ask for documents, or to write.

mod events;
mod handshake;
mod mail;
mod message;
mod rate;
mod session;
mod socket;
mod sockets;
mod subscriptions;
mod wire;

use std::sync::Arc;

use adea_ring::Identity;
use axum::body::Body;
use http::StatusCode;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::body_in::read_json;
use crate::databases::json_line;
use crate::error::ApiError;
use crate::feeds::socket::Socket;
use crate::pod::Pod;
use crate::route::{Request, Response};
use crate::shares::Whose;

pub use self::handshake::PROTOCOL;
pub use self::sockets::{Seat, Sockets};
pub use self::subscriptions::MAX_SUBSCRIPTIONS;

/// Databases that the proxy's maintenance rules close to readers: names of apps or databases, parted by commas. The proxy
/// sets it on each connection and lets no client set it.
pub const CLOSED_HEADER: &str = "x-adea-closed";

/// `GET /_feeds`: makes the connection one with many feeds.
///
/// # Errors
/// 426 for what asks for neither a WebSocket nor an event stream, 400 for a bad handshake or bad messages, 429 and 503 when
/// there are too many such connections, 401 for an account that has been removed.
pub fn connect(pod: &Arc<Pod>, who: &Identity, mut request: Request) -> Result<Response, ApiError> {
    let accept = match handshake::accept(&request.headers) {
        // The proxy says what is closed with each stream that it follows to the end of the log-in. It follows none whose
        // request it has read as another, so there is none without it.
        Err(_) if events::is_asked_for(&request.headers) && request.headers.contains_key(CLOSED_HEADER) => {
            pod.accounts.who(who)?;
            let first = events::first_messages(&request)?;
            let seat = pod.sockets.admit(who.name.as_deref(), who.is_admin())?;
            return Ok(events::open(pod, who, closed(&request), first, seat));
        }
        accept => accept?,
    };
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

/// `POST /_feeds`: what the client of an event stream has to say. The answers come on the stream.
///
/// # Errors
/// 400 and 413 for what are no messages or too many, 404 when the connection is not there or another user's, 429 and 503
/// when it has much to read already, or all together have.
pub async fn tell(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let body = read_json(pod, &request.headers, request.body).await?;
    if body.len() > message::longest(who.name.as_deref()) {
        return Err(ApiError::body_too_large());
    }
    let post: mail::Post = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request(format!("these are no messages: {error}")))?;
    drop(body);
    events::check(&post.messages)?;
    let whose = Whose::of(who, &request.headers);
    pod.sockets.mail.deliver(who, &whose, post).await?;
    Ok(json_line(StatusCode::ACCEPTED, &json!({"ok": true})))
}

/// Serves the feeds of one client over a socket that has become a WebSocket, to its end.
pub async fn serve<S>(pod: &Arc<Pod>, who: &Identity, closed: Vec<String>, socket: S, seat: Seat)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let socket = Socket::new(socket, message::longest(who.name.as_deref())).await;
    session::Session::new(pod, who, closed, socket, seat).run().await;
}

fn closed(request: &Request) -> Vec<String> {
    let names = request.headers.get_all(CLOSED_HEADER).iter().filter_map(|value| value.to_str().ok());
    names.flat_map(|names| names.split(',')).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}
