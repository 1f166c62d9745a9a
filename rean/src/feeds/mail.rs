//! What the clients of event streams say: they can only listen on those, so each message comes in a request of its own,
//! which names the connection.
//!
//! A connection's id is 256 random bits that only its client is told, on the connection itself. It stands in a body and
//! never in a URL, so that no log has it, and it helps nobody who isn't the user that opened the connection.
//!
//! What has come and was not read takes memory for as long as its client reads nothing, so all of it together has a bound,
//! of which nobody takes up the rest.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use adea_ring::Identity;
use http::StatusCode;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::error::ApiError;
use crate::shares::{Share, Shares, Whose};

/// Messages of one request: as many as a client may send at once (see `rate`).
pub const MAX_MESSAGES: usize = 512;
/// Requests of one connection that wait for their turn: a client sends one after the other.
const MAX_WAITING: usize = 1;
/// What has come on all connections and was not read, in bytes: a hundred of the longest requests. Most are a hundred
/// bytes, and are read at once.
const MAX_UNREAD_BYTES: usize = 32 << 20;
/// What a message takes beside its text, in bytes: its box, and its place in a row that may be half empty.
const MESSAGE_BYTES: usize = 64;
/// How long one waits: a client that takes nothing off its stream for so long should do that first.
const TURN_TIMEOUT: Duration = Duration::from_secs(20);

/// Messages as they came, one after the other. Not taken apart, so that they take no more memory than their text.
pub type Messages = VecDeque<Box<RawValue>>;

/// Messages on their way, with their share of the memory.
#[derive(Default)]
pub struct Letter {
    messages: Messages,
    /// `None` for what came with the request that opened the connection: a URL is short.
    _room: Option<Share>,
}

/// A request of a client's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Post {
    /// The id of its connection.
    pub connection: String,
    /// What it says.
    pub messages: Messages,
}

/// The open event streams. There are no more than seats for them.
pub struct Mail {
    boxes: Mutex<HashMap<Box<str>, Address>>,
    unread_bytes: Shares,
}

/// Where a connection's messages go.
#[derive(Debug, Clone)]
struct Address {
    name: Option<Box<str>>,
    is_admin: bool,
    /// One letter at a time: this and the one that is being read is all that a connection holds.
    letters: mpsc::Sender<Letter>,
    waiting: Arc<Semaphore>,
}

/// The messages of one connection.
#[derive(Debug)]
pub struct Letterbox {
    mail: Arc<Mail>,
    id: Box<str>,
    letters: mpsc::Receiver<Letter>,
}

impl Letter {
    /// What came with the request that opened the connection.
    pub fn first(messages: Messages) -> Self {
        Self { messages, _room: None }
    }

    /// The next message. Who asks again is done with the last one: only when there is none the memory is given back, since
    /// one message may be long, and its answer may wait.
    pub fn next(&mut self) -> Option<Box<RawValue>> {
        let message = self.messages.pop_front();
        if message.is_none() {
            *self = Self::default();
        }
        message
    }
}

impl Default for Mail {
    fn default() -> Self {
        Self { boxes: Mutex::default(), unread_bytes: Shares::new(MAX_UNREAD_BYTES) }
    }
}

impl std::fmt::Debug for Mail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mail(..)")
    }
}

impl Mail {
    /// A place for the messages of a connection of this user's.
    pub fn open(self: &Arc<Self>, who: &Identity) -> Letterbox {
        let id: Box<str> = hex::encode(rand::random::<[u8; 32]>()).into();
        let (sender, letters) = mpsc::channel(1);
        let waiting = Arc::new(Semaphore::new(MAX_WAITING));
        let name = who.name.as_deref().map(Into::into);
        let address = Address { name, is_admin: who.is_admin(), letters: sender, waiting };
        self.boxes.lock().insert(id.clone(), address);
        Letterbox { mail: Arc::clone(self), id, letters }
    }

    /// Hands messages to a connection of this user's.
    ///
    /// # Errors
    /// 404 where there is none, or it is another user's; 429 when another one waits; 503 when its client doesn't listen, or
    /// too much of theirs or of all is unread.
    pub async fn deliver(&self, who: &Identity, whose: &Whose, post: Post) -> Result<(), ApiError> {
        let gone = || ApiError::not_found("There is no such connection of yours on this pod: open another one.");
        let address = self.boxes.lock().get(post.connection.as_str()).cloned();
        let is_theirs =
            |address: &Address| address.name.as_deref() == who.name.as_deref() && address.is_admin == who.is_admin();
        let address = address.filter(is_theirs).ok_or_else(gone)?;
        let reason = "Too many requests of this connection wait: send one after the other.";
        let busy = |_| ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", reason);
        let _turn = address.waiting.try_acquire().map_err(busy)?;
        let bytes: usize = post.messages.iter().map(|message| message.get().len() + MESSAGE_BYTES).sum();
        let Some(room) = self.unread_bytes.try_take(whose, bytes + MESSAGE_BYTES) else {
            let reason =
                "Too much of what clients say is unread: read what comes on your connections, or try again later.";
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", reason));
        };
        let letter = Letter { messages: post.messages, _room: Some(room) };
        match timeout(TURN_TIMEOUT, address.letters.send(letter)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(gone()),
            Err(_) => {
                let reason = "The connection takes no messages: read what comes on it first.";
                Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", reason))
            }
        }
    }
}

impl Letterbox {
    /// The connection's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The next letter. May be dropped while it waits.
    pub async fn next(&mut self) -> Letter {
        match self.letters.recv().await {
            Some(letter) => letter,
            // The sender is in what this holds.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Letterbox {
    fn drop(&mut self) {
        self.mail.boxes.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_UNREAD_BYTES, Mail, Messages, Post};
    use crate::shares::Whose;
    use adea_ring::Identity;
    use std::sync::Arc;

    fn post(connection: &str) -> Post {
        serde_json::from_value(serde_json::json!({"connection": connection, "messages": [{"op": "ping"}]}))
            .expect("a post")
    }

    fn user(name: &str, roles: &[&str]) -> Identity {
        Identity { name: Some(name.to_owned()), roles: roles.iter().map(|role| (*role).to_owned()).collect() }
    }

    fn whose(who: &Identity) -> Whose {
        Whose::account(who)
    }

    #[tokio::test]
    async fn messages_reach_the_connection_that_is_named_and_only_its_users() {
        let mail = Arc::new(Mail::default());
        let ann = user("ann", &[]);
        let (mut first, mut second) = (mail.open(&ann), mail.open(&ann));
        assert!(first.id() != second.id() && first.id().len() == 64);
        mail.deliver(&ann, &whose(&ann), post(first.id())).await.expect("taken");
        assert_eq!(first.next().await.next().expect("one").get(), r#"{"op":"ping"}"#);
        assert!(second.letters.try_recv().is_err());
        for other in [user("bob", &[]), user("ann", &["_admin"]), Identity::anonymous()] {
            assert_eq!(mail.deliver(&other, &whose(&other), post(second.id())).await.expect_err("refused").status, 404);
        }
        mail.deliver(&ann, &whose(&ann), post(second.id())).await.expect("taken");
        let mut letter = second.next().await;
        assert!(letter.next().is_some() && letter.next().is_none());
        let id = first.id().to_owned();
        drop((first, second));
        assert_eq!(mail.deliver(&ann, &whose(&ann), post(&id)).await.expect_err("gone").status, 404);
        assert!(mail.boxes.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_and_waits_not_for_ever() {
        let mail = Arc::new(Mail::default());
        let ann = user("ann", &[]);
        let full = mail.open(&ann);
        mail.deliver(&ann, &whose(&ann), post(full.id())).await.expect("taken");
        let hers = whose(&ann);
        let all = (0..6).map(|_| mail.deliver(&ann, &hers, post(full.id())));
        let mut statuses: Vec<u16> = futures_util::future::join_all(all)
            .await
            .into_iter()
            .map(|delivered| delivered.expect_err("nobody reads").status.as_u16())
            .collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [429, 429, 429, 429, 429, 503]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_all_connections_have_not_read_is_bounded_and_each_finds_something() {
        let mail = Arc::new(Mail::default());
        let text = serde_json::value::to_raw_value(&"x".repeat(1 << 20)).expect("JSON");
        let long = |id: &str| Post { connection: id.to_owned(), messages: Messages::from([text.clone()]) };
        let (ann, bob) = (user("ann", &[]), user("bob", &[]));
        // One letter each: they need not be read for that.
        let mut of_ann: Vec<_> = (0..20).map(|_| mail.open(&ann)).collect();
        let mut taken = 0;
        for one in &of_ann {
            match mail.deliver(&ann, &whose(&ann), long(one.id())).await {
                Ok(()) => taken += 1,
                Err(error) => assert_eq!(error.status, 503),
            }
        }
        assert!(taken > 10 && taken <= MAX_UNREAD_BYTES >> 21, "{taken} MiB");
        let of_bob = mail.open(&bob);
        mail.deliver(&bob, &whose(&bob), long(of_bob.id())).await.expect("there is something left");
        let mut read = of_ann[0].next().await;
        mail.deliver(&ann, &whose(&ann), long(of_ann[0].id())).await.expect_err("in memory until it is done with");
        assert!(read.next().is_some() && read.next().is_none());
        mail.deliver(&ann, &whose(&ann), long(of_ann[0].id())).await.expect("there is room again");
        drop(of_ann);
        drop(of_bob);
        assert!(mail.unread_bytes.try_take(&whose(&bob), MAX_UNREAD_BYTES).is_some(), "something is not given back");
    }
}
