//! What carries the messages of one connection: a WebSocket, or an event stream and the requests beside it.

use std::future::Future;

use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// Why a connection ends.
#[derive(Debug)]
pub enum End {
    /// The client has gone, or can't be written to.
    Gone,
    /// It is told why, by a code of RFC 6455, 7.4.
    Close(CloseCode, &'static str),
}

/// A client, as far as messages go to it and come from it.
pub trait Wire: Send {
    /// The connection's own id, where what the client says comes by requests that must name it.
    fn id(&self) -> Option<&str>;

    /// The next message of the client's; `None` for what is no message, but counts all the same for how much it sends. May
    /// be dropped while it waits: nothing is lost.
    ///
    /// # Errors
    /// When the client has gone or speaks another language.
    fn hear(&mut self) -> impl Future<Output = Result<Option<Utf8Bytes>, End>> + Send;

    /// Sends a message of one line, and waits until the connection has it.
    ///
    /// # Errors
    /// When the client has gone.
    fn say(&mut self, text: Utf8Bytes) -> impl Future<Output = Result<(), End>> + Send;

    /// Gives a sign of life. It is called now and then, whatever else is sent.
    ///
    /// # Errors
    /// When the client has gone.
    fn beat(&mut self) -> impl Future<Output = Result<(), End>> + Send;

    /// Tells the client why the connection ends, and waits until it knows.
    fn close(self, code: CloseCode, reason: &'static str) -> impl Future<Output = ()> + Send;
}
