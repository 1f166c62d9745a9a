//! An event stream as the wire of a connection
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>): for where no WebSocket gets through.
//!
//! The messages are those of the WebSocket, one an event. What the client says comes by requests of their own ([`mail`]).
//! No event has an id: the places of so many feeds don't fit into one, and a server that kept them for clients that may
//! come back would have to keep them for all that don't. A client begins anew from the places it has worked through.
//!
//! [`mail`]: crate::feeds::mail

use std::convert::Infallible;
use std::sync::Arc;

use adea_ring::Identity;
use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::error::ApiError;
use crate::feeds::mail::{Letter, Letterbox, MAX_MESSAGES, Messages};
use crate::feeds::message;
use crate::feeds::session::Session;
use crate::feeds::sockets::Seat;
use crate::feeds::wire::{End, Wire};
use crate::pod::Pod;
use crate::route::{Request, Response};

/// The type of such a stream.
const EVENT_STREAM: &str = "text/event-stream";
/// nginx, and what has learned from it, would otherwise gather the answer first.
const NO_BUFFERING: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// A client that listens to a stream.
struct EventStream {
    /// One event at a time: the next is made when this one is on its way.
    out: mpsc::Sender<Bytes>,
    letters: Letterbox,
    /// What has come and was not looked at yet.
    unread: Letter,
}

/// Whether a request asks for an event stream.
pub fn is_asked_for(headers: &HeaderMap) -> bool {
    let kinds = headers.get_all(ACCEPT).iter().filter_map(|kinds| kinds.to_str().ok());
    let mut kinds = kinds.flat_map(|kinds| kinds.split(','));
    kinds.any(|kind| kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case(EVENT_STREAM))
}

/// What a client says with the request that opens the stream.
///
/// # Errors
/// 400 for what are no messages.
pub fn first_messages(request: &Request) -> Result<Messages, ApiError> {
    let messages: Messages = request.query.json("messages")?.unwrap_or_default();
    check(&messages)?;
    Ok(messages)
}

/// Checks how many messages there are.
///
/// # Errors
/// 400 for too many.
pub fn check(messages: &Messages) -> Result<(), ApiError> {
    if messages.len() > MAX_MESSAGES {
        return Err(ApiError::bad_request(format!("there can be at most {MAX_MESSAGES} messages in one request")));
    }
    Ok(())
}

/// Opens a stream.
pub fn open(pod: &Arc<Pod>, who: &Identity, closed: Vec<String>, first: Messages, seat: Seat) -> Response {
    let (out, events) = mpsc::channel(1);
    let wire = EventStream { out, letters: pod.sockets.mail.open(who), unread: Letter::first(first) };
    let (pod, who) = (Arc::clone(pod), who.clone());
    tokio::spawn(async move { Session::new(&pod, &who, closed, wire, seat).run().await });
    let events = stream::unfold(events, |mut events| async move {
        let event = events.recv().await?;
        Some((Ok::<_, Infallible>(event), events))
    });
    let mut response = Response::new(Body::from_stream(events));
    response.headers_mut().extend([
        (CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        NO_BUFFERING,
    ]);
    response
}

impl EventStream {
    async fn send(&mut self, event: Vec<u8>) -> Result<(), End> {
        self.out.send(event.into()).await.map_err(|_| End::Gone)
    }
}

impl Wire for EventStream {
    fn id(&self) -> Option<&str> {
        Some(self.letters.id())
    }

    async fn hear(&mut self) -> Result<Option<Utf8Bytes>, End> {
        loop {
            if let Some(message) = self.unread.next() {
                return Ok(Some(message.get().into()));
            }
            tokio::select! {
                () = self.out.closed() => return Err(End::Gone),
                letter = self.letters.next() => self.unread = letter,
            }
        }
    }

    async fn say(&mut self, text: Utf8Bytes) -> Result<(), End> {
        self.send(event(&text)).await
    }

    async fn beat(&mut self) -> Result<(), End> {
        self.send(b":\n\n".to_vec()).await
    }

    async fn close(mut self, code: CloseCode, reason: &'static str) {
        // One that has gone needs no good-bye.
        let _ = self.say(message::close(code.into(), reason).into()).await;
    }
}

/// A message as an event. Text of JSON has line breaks between its tokens only, where a space is as good.
fn event(text: &str) -> Vec<u8> {
    let mut event = Vec::with_capacity(text.len() + 8);
    event.extend_from_slice(b"data: ");
    event.extend(text.bytes().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }));
    event.extend_from_slice(b"\n\n");
    event
}

#[cfg(test)]
mod tests {
    use super::{event, is_asked_for};
    use http::{HeaderMap, header::ACCEPT};

    #[test]
    fn a_message_is_one_event_whatever_is_in_it() {
        assert_eq!(event("{\"a\":\r\n1}"), b"data: {\"a\":  1}\n\n");
    }

    #[test]
    fn who_wants_a_stream_says_so() {
        for (accept, wanted) in [
            ("text/event-stream", true),
            ("application/json, Text/Event-Stream;q=0.5", true),
            ("text/event-streams", false),
            ("*/*", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().expect("a value"))]);
            assert_eq!(is_asked_for(&headers), wanted, "{accept}");
        }
        assert!(!is_asked_for(&HeaderMap::new()));
    }
}
