//! What the clients of event streams say: they can only listen on those, so each message comes in a request of its own,
//! which names the connection.
//!
//! A connection's id is 256 random bits that only its client is told, on the connection itself. It stands in a body and
//! never in a URL, so that no log has it, and it helps nobody who isn't the user that opened the connection.

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

/// Messages of one request: as many as a client may send at once (see `rate`).
pub const MAX_MESSAGES: usize = 512;
/// Requests of one connection that wait for their turn: what comes one after the other over a slow line, and then some.
const MAX_WAITING: usize = 4;
/// How long one waits: a client that takes nothing off its stream for so long should do that first.
const TURN_TIMEOUT: Duration = Duration::from_secs(20);

/// Messages as they came, one after the other. Not taken apart, so that they take no more memory than their text.
pub type Letter = VecDeque<Box<RawValue>>;

/// A request of a client's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Post {
    /// The id of its connection.
    pub connection: String,
    /// What it says.
    pub messages: Letter,
}

/// The open event streams. There are no more than seats for them.
#[derive(Debug, Default)]
pub struct Mail {
    boxes: Mutex<HashMap<Box<str>, Address>>,
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
    /// 404 where there is none, or it is another user's; 429 when too many wait, and 503 when its client doesn't listen.
    pub async fn deliver(&self, who: &Identity, post: Post) -> Result<(), ApiError> {
        let gone = || ApiError::not_found("There is no such connection of yours on this pod: open another one.");
        let address = self.boxes.lock().get(post.connection.as_str()).cloned();
        let is_theirs =
            |address: &Address| address.name.as_deref() == who.name.as_deref() && address.is_admin == who.is_admin();
        let address = address.filter(is_theirs).ok_or_else(gone)?;
        let reason = "Too many requests of this connection wait: send one after the other.";
        let busy = |_| ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", reason);
        let _turn = address.waiting.try_acquire().map_err(busy)?;
        match timeout(TURN_TIMEOUT, address.letters.send(post.messages)).await {
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
    use super::{Mail, Post};
    use adea_ring::Identity;
    use std::sync::Arc;

    fn post(connection: &str) -> Post {
        serde_json::from_value(serde_json::json!({"connection": connection, "messages": [{"op": "ping"}]}))
            .expect("a post")
    }

    fn user(name: &str, roles: &[&str]) -> Identity {
        Identity { name: Some(name.to_owned()), roles: roles.iter().map(|role| (*role).to_owned()).collect() }
    }

    #[tokio::test]
    async fn messages_reach_the_connection_that_is_named_and_only_its_users() {
        let mail = Arc::new(Mail::default());
        let ann = user("ann", &[]);
        let (mut first, mut second) = (mail.open(&ann), mail.open(&ann));
        assert!(first.id() != second.id() && first.id().len() == 64);
        mail.deliver(&ann, post(first.id())).await.expect("taken");
        assert_eq!(first.next().await[0].get(), r#"{"op":"ping"}"#);
        assert!(second.letters.try_recv().is_err());
        for other in [user("bob", &[]), user("ann", &["_admin"]), Identity::anonymous()] {
            assert_eq!(mail.deliver(&other, post(second.id())).await.expect_err("refused").status, 404);
        }
        mail.deliver(&ann, post(second.id())).await.expect("taken");
        assert_eq!(second.next().await.len(), 1);
        let id = first.id().to_owned();
        drop((first, second));
        assert_eq!(mail.deliver(&ann, post(&id)).await.expect_err("gone").status, 404);
        assert!(mail.boxes.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_and_waits_not_for_ever() {
        let mail = Arc::new(Mail::default());
        let ann = user("ann", &[]);
        let full = mail.open(&ann);
        mail.deliver(&ann, post(full.id())).await.expect("taken");
        let all = (0..6).map(|_| mail.deliver(&ann, post(full.id())));
        let mut statuses: Vec<u16> = futures_util::future::join_all(all)
            .await
            .into_iter()
            .map(|delivered| delivered.expect_err("nobody reads").status.as_u16())
            .collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [429, 429, 503, 503, 503, 503]);
    }
}
