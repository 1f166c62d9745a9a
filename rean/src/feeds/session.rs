//! One connection: messages in, pieces of feeds out.

use std::sync::Arc;
use std::time::Duration;

use adea_ring::Identity;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes, error::CapacityError};

use crate::changes;
use crate::error::ApiError;
use crate::feeds::message::{self, FromClient, Subscribe};
use crate::feeds::rate::Rate;
use crate::feeds::sockets::Seat;
use crate::feeds::subscriptions::{MAX_SUBSCRIPTIONS, Spoken, Subscriptions};
use crate::pod::Pod;
use crate::ring::clients::Welcome;
use crate::target::{SEPARATOR, resolve};

/// How often a client is asked whether it is there: middle boxes forget a silent connection after a minute.
const PING: Duration = Duration::from_secs(30);
/// A client that has said nothing for this long, not even in answer, is gone.
const SILENCE: Duration = Duration::from_secs(95);
/// How long a client may take for one message: 8 MB, the largest document, over a line of 256 kbit/s. That it takes
/// anything at all is seen to by the proxy.
const SEND_TIMEOUT: Duration = Duration::from_secs(300);
/// How long saying good-bye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// What is read from the socket at once, in bytes: messages of clients are short.
const READ_BUFFER_BYTES: usize = 4 * 1024;
/// Messages that a client has sent and that can't be understood; then it speaks another language.
const MAX_MISTAKES: u32 = 100;

/// A client and its feeds.
pub struct Session<'a, S> {
    pod: &'a Arc<Pod>,
    who: &'a Identity,
    closed: Vec<String>,
    socket: WebSocketStream<S>,
    seat: Seat,
    welcome: Welcome,
    subscriptions: Subscriptions,
    rate: Rate,
    heard: Instant,
    mistakes: u32,
}

/// Why a connection ends.
enum End {
    /// The client has gone, or can't be written to.
    Gone,
    /// It is told why.
    Close(CloseCode, &'static str),
}

/// What is to be done next.
enum Event {
    Heard(Option<Result<Message, Error>>),
    Spoken(Spoken),
    Tick,
    /// The client may send again.
    Rested,
    Ending,
    /// The pod takes no clients any more.
    TurnedAway,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Session<'a, S> {
    /// A client over a socket whose handshake is done.
    pub async fn new(pod: &'a Arc<Pod>, who: &'a Identity, closed: Vec<String>, socket: S, seat: Seat) -> Self {
        let longest = message::longest(who.name.as_deref());
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(longest))
            .max_frame_size(Some(longest));
        let socket = WebSocketStream::from_raw_socket(socket, Role::Server, Some(config)).await;
        let now = Instant::now();
        Self {
            pod,
            who,
            closed,
            socket,
            seat,
            welcome: pod.ring.clients.welcome(who, ""),
            subscriptions: Subscriptions::default(),
            rate: Rate::new(now),
            heard: now,
            mistakes: 0,
        }
    }

    /// Serves it to its end.
    pub async fn run(mut self) {
        let Err(end) = self.serve().await;
        if let End::Close(code, reason) = end {
            let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
            let closing = async {
                if self.socket.close(Some(frame)).await.is_ok() {
                    // Until the client says good-bye as well, or hangs up.
                    while let Some(Ok(_)) = self.socket.next().await {}
                }
            };
            if timeout(CLOSE_TIMEOUT, closing).await.is_err() {
                tracing::debug!("a client with feeds did not say good-bye");
            }
        }
    }

    async fn serve(&mut self) -> Result<std::convert::Infallible, End> {
        self.say(message::hello(self.who.name.as_deref(), MAX_SUBSCRIPTIONS)).await?;
        let mut ticks = interval_at(Instant::now() + PING, PING);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wait = self.rate.wait(Instant::now());
            let event = tokio::select! {
                () = self.seat.ending() => Event::Ending,
                () = self.welcome.over() => Event::TurnedAway,
                heard = self.socket.next(), if wait.is_none() => Event::Heard(heard),
                () = sleep_until(wait.unwrap_or_else(Instant::now)), if wait.is_some() => Event::Rested,
                spoken = self.subscriptions.next() => Event::Spoken(spoken),
                _ = ticks.tick() => Event::Tick,
            };
            match event {
                Event::Heard(Some(Ok(message))) => self.heard(message).await?,
                Event::Heard(Some(Err(error))) => return Err(broken(&error)),
                Event::Heard(None) => return Err(End::Gone),
                Event::Spoken(spoken) => self.speak(spoken).await?,
                Event::Tick => self.tick().await?,
                Event::Rested => {}
                Event::TurnedAway => {
                    return Err(End::Close(CloseCode::Restart, "this pod takes no clients for now"));
                }
                Event::Ending => return Err(End::Close(CloseCode::Restart, "the server is stopping")),
            }
        }
    }

    async fn tick(&mut self) -> Result<(), End> {
        if self.heard.elapsed() > SILENCE {
            return Err(End::Gone);
        }
        self.send(Message::Ping(Bytes::new())).await
    }

    async fn heard(&mut self, message: Message) -> Result<(), End> {
        self.heard = Instant::now();
        self.rate.take(self.heard);
        match message {
            Message::Text(text) => self.text(&text).await,
            Message::Binary(_) => Err(End::Close(CloseCode::Unsupported, "messages are text")),
            // tungstenite answers pings and good-byes by itself.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => Ok(()),
        }
    }

    async fn text(&mut self, text: &str) -> Result<(), End> {
        match FromClient::parse(text) {
            Ok(FromClient::Subscribe(subscribe)) => self.subscribe(*subscribe).await,
            Ok(FromClient::Unsubscribe { id }) => {
                self.subscriptions.remove(&id);
                Ok(())
            }
            Ok(FromClient::Credit { id, n }) => {
                self.subscriptions.give(&id, n);
                Ok(())
            }
            Ok(FromClient::Ping) => self.say(message::pong()).await,
            Err(error) => {
                self.mistakes += 1;
                if self.mistakes > MAX_MISTAKES {
                    return Err(End::Close(CloseCode::Policy, "too many malformed messages"));
                }
                self.say(message::error(None, &error)).await
            }
        }
    }

    async fn subscribe(&mut self, subscribe: Subscribe) -> Result<(), End> {
        let (id, db, credit) = (subscribe.id.clone(), subscribe.db.clone(), subscribe.credit);
        if let Err(error) = subscribe.check() {
            return self.say(message::error(None, &error)).await;
        }
        match self.open(subscribe).await {
            Ok(run) => {
                self.say(message::subscribed(&id)).await?;
                self.subscriptions.add(&id, &db, credit, run);
                Ok(())
            }
            Err(error) => self.say(message::error(Some(&id), &error)).await,
        }
    }

    async fn open(&mut self, subscribe: Subscribe) -> Result<Box<crate::feed_body::Run>, ApiError> {
        self.subscriptions.may_add(&subscribe.id)?;
        let app = subscribe.db.rsplit_once(SEPARATOR).map_or(subscribe.db.as_str(), |(app, _)| app);
        if self.closed.iter().any(|closed| *closed == subscribe.db || closed == app) {
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable",
                "The database is closed for maintenance.",
            ));
        }
        let (_, run) = changes::open(self.pod, self.who, subscribe.into_request()?).await?;
        Ok(run)
    }

    async fn speak(&mut self, spoken: Spoken) -> Result<(), End> {
        let Spoken { id, db, told, over } = spoken;
        for message in [told.changes, told.caught_up].into_iter().flatten() {
            match Utf8Bytes::try_from(message) {
                Ok(text) => self.send(Message::Text(text)).await?,
                // Rows are JSON, which is UTF-8.
                Err(error) => tracing::error!(%error, "a row is not UTF-8"),
            }
        }
        if over {
            let why = self.why_ended(&db);
            self.say(message::ended(&id, told.last_seq.as_deref(), &why)).await?;
        }
        Ok(())
    }

    /// What a client that asked again would be told.
    fn why_ended(&self, db: &str) -> ApiError {
        match resolve(self.pod, self.who, db).and_then(|target| target.require_read()) {
            Err(error) => error,
            Ok(()) => ApiError::new(
                StatusCode::CONFLICT,
                "changed",
                "Rights or the database have changed: subscribe again from `last_seq`.",
            ),
        }
    }

    async fn say(&mut self, text: String) -> Result<(), End> {
        self.send(Message::text(text)).await
    }

    /// Sends a message and waits until the socket has it: this is what keeps feeds from being read on for a slow client.
    async fn send(&mut self, message: Message) -> Result<(), End> {
        let sending = timeout(SEND_TIMEOUT, self.socket.send(message));
        tokio::select! {
            sent = sending => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) | Err(_) => Err(End::Gone),
            },
            // In the middle of a message nothing else can be said.
            () = self.seat.ending() => Err(End::Gone),
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
