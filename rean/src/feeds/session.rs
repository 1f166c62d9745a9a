//! One connection: messages in, pieces of feeds out.

use std::sync::Arc;
use std::time::Duration;

use adea_ring::Identity;
use http::StatusCode;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::changes;
use crate::error::ApiError;
use crate::feeds::message::{self, FromClient, Subscribe};
use crate::feeds::rate::Rate;
use crate::feeds::sockets::Seat;
use crate::feeds::subscriptions::{MAX_SUBSCRIPTIONS, Spoken, Subscriptions};
use crate::feeds::wire::{End, Wire};
use crate::pod::Pod;
use crate::ring::clients::Welcome;
use crate::target::{SEPARATOR, resolve};

/// How often a client is asked whether it is there: middle boxes forget a silent connection after a minute.
const BEAT: Duration = Duration::from_secs(30);
/// How long a client may take for one message: 8 MB, the largest document, over a line of 256 kbit/s. That it takes
/// anything at all is seen to by the proxy.
const SEND_TIMEOUT: Duration = Duration::from_secs(300);
/// How long saying good-bye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages that a client has sent and that can't be understood; then it speaks another language.
const MAX_MISTAKES: u32 = 100;

/// A client and its feeds.
pub struct Session<'a, W> {
    pod: &'a Arc<Pod>,
    who: &'a Identity,
    closed: Vec<String>,
    wire: W,
    seat: Seat,
    welcome: Welcome,
    subscriptions: Subscriptions,
    rate: Rate,
    mistakes: u32,
}

/// What is to be done next.
enum Event {
    Heard(Option<Utf8Bytes>),
    Lost(End),
    Spoken(Spoken),
    Tick,
    /// The client may send again.
    Rested,
    Ending,
    /// The pod takes no clients any more.
    TurnedAway,
}

impl<'a, W: Wire> Session<'a, W> {
    /// A client, its rights those of `who`, without the databases that are closed for maintenance.
    pub fn new(pod: &'a Arc<Pod>, who: &'a Identity, closed: Vec<String>, wire: W, seat: Seat) -> Self {
        Self {
            pod,
            who,
            closed,
            wire,
            seat,
            welcome: pod.ring.clients.welcome(who, ""),
            subscriptions: Subscriptions::default(),
            rate: Rate::new(Instant::now()),
            mistakes: 0,
        }
    }

    /// Serves it to its end.
    pub async fn run(mut self) {
        let Err(end) = self.serve().await;
        if let End::Close(code, reason) = end
            && timeout(CLOSE_TIMEOUT, self.wire.close(code, reason)).await.is_err()
        {
            tracing::debug!("a client with feeds did not say good-bye");
        }
    }

    async fn serve(&mut self) -> Result<std::convert::Infallible, End> {
        self.say(message::hello(self.who.name.as_deref(), MAX_SUBSCRIPTIONS, self.wire.id())).await?;
        let mut ticks = interval_at(Instant::now() + BEAT, BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wait = self.rate.wait(Instant::now());
            let event = tokio::select! {
                () = self.seat.ending() => Event::Ending,
                () = self.welcome.over() => Event::TurnedAway,
                heard = self.wire.hear(), if wait.is_none() => heard.map_or_else(Event::Lost, Event::Heard),
                () = sleep_until(wait.unwrap_or_else(Instant::now)), if wait.is_some() => Event::Rested,
                spoken = self.subscriptions.next() => Event::Spoken(spoken),
                _ = ticks.tick() => Event::Tick,
            };
            match event {
                Event::Heard(text) => {
                    self.rate.take(Instant::now());
                    if let Some(text) = text {
                        self.text(&text).await?;
                    }
                }
                Event::Lost(end) => return Err(end),
                Event::Spoken(spoken) => self.speak(spoken).await?,
                Event::Tick => sent(&mut self.seat, self.wire.beat()).await?,
                Event::Rested => {}
                Event::TurnedAway => {
                    return Err(End::Close(CloseCode::Restart, "this pod takes no clients for now"));
                }
                Event::Ending => return Err(End::Close(CloseCode::Restart, "the server is stopping")),
            }
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
                Ok(text) => self.send(text).await?,
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
        self.send(text.into()).await
    }

    async fn send(&mut self, text: Utf8Bytes) -> Result<(), End> {
        sent(&mut self.seat, self.wire.say(text)).await
    }
}

/// Waits until the connection has what is sent: this is what keeps feeds from being read on for a slow client.
async fn sent(seat: &mut Seat, sending: impl Future<Output = Result<(), End>>) -> Result<(), End> {
    tokio::select! {
        sent = timeout(SEND_TIMEOUT, sending) => sent.unwrap_or(Err(End::Gone)),
        // In the middle of a message nothing else can be said.
        () = seat.ending() => Err(End::Gone),
    }
}
