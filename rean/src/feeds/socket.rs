//! A WebSocket as the wire of a connection (RFC 6455).

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes, error::CapacityError};

use crate::feeds::wire::{End, Wire};

/// A client that has said nothing for this long, not even in answer, is gone.
const SILENCE: Duration = Duration::from_secs(95);
/// What is read from the socket at once, in bytes: messages of clients are short.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// A client over a socket whose handshake is done.
pub struct Socket<S> {
    stream: WebSocketStream<S>,
    heard: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// A client that may send messages of so many bytes.
    pub async fn new(socket: S, longest: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(longest))
            .max_frame_size(Some(longest));
        let stream = WebSocketStream::from_raw_socket(socket, Role::Server, Some(config)).await;
        Self { stream, heard: Instant::now() }
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        self.stream.send(message).await.map_err(|_| End::Gone)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire for Socket<S> {
    fn id(&self) -> Option<&str> {
        None
    }

    async fn hear(&mut self) -> Result<Option<Utf8Bytes>, End> {
        let message = self.stream.next().await.ok_or(End::Gone)?.map_err(|error| broken(&error))?;
        self.heard = Instant::now();
        match message {
            Message::Text(text) => Ok(Some(text)),
            Message::Binary(_) => Err(End::Close(CloseCode::Unsupported, "messages are text")),
            // tungstenite answers pings and good-byes by itself.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => Ok(None),
        }
    }

    async fn say(&mut self, text: Utf8Bytes) -> Result<(), End> {
        self.send(Message::Text(text)).await
    }

    async fn beat(&mut self) -> Result<(), End> {
        if self.heard.elapsed() > SILENCE {
            return Err(End::Gone);
        }
        self.send(Message::Ping(Bytes::new())).await
    }

    async fn close(mut self, code: CloseCode, reason: &'static str) {
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
        if self.stream.close(Some(frame)).await.is_ok() {
            // Until the client says good-bye as well, or hangs up.
            while let Some(Ok(_)) = self.stream.next().await {}
        }
    }
}

fn broken(error: &Error) -> End {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => End::Close(CloseCode::Size, "the message is too long"),
        Error::Utf8(_) => End::Close(CloseCode::Invalid, "the message is not UTF-8"),
        Error::Protocol(_) => End::Close(CloseCode::Protocol, "this is no WebSocket message"),
        _ => End::Gone,
    }
}
