//! The connections with many feeds: how many there are, whose, and when they must end.

use std::collections::HashMap;
use std::sync::Arc;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::ApiError;
use crate::feeds::mail::Mail;

/// Such connections of one pod. At some 30 KiB each without their feeds they stay under 400 MiB.
const MAX_SOCKETS: usize = 10_000;
/// Those of one account that isn't an administrator's: some devices with some tabs each.
const MAX_SOCKETS_OF_ONE: usize = 64;
/// Those of all who have not logged in, together: they must not take the places of those who have.
const MAX_SOCKETS_ANONYMOUS: usize = MAX_SOCKETS / 4;

/// All of a pod.
#[derive(Debug)]
pub struct Sockets {
    /// What the clients of event streams say.
    pub(super) mail: Arc<Mail>,
    open: Mutex<HashMap<Option<Box<str>>, usize>>,
    /// How many there are.
    count: watch::Sender<usize>,
    /// Whether they must end.
    ending: watch::Sender<bool>,
}

/// The place of one connection; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    sockets: Arc<Sockets>,
    name: Option<Box<str>>,
    ending: watch::Receiver<bool>,
}

impl Default for Sockets {
    fn default() -> Self {
        Self {
            mail: Arc::default(),
            open: Mutex::default(),
            count: watch::Sender::new(0),
            ending: watch::Sender::new(false),
        }
    }
}

impl Sockets {
    /// A place for a connection of this account.
    ///
    /// # Errors
    /// 429 when the account has too many, 503 when the pod has or is stopping.
    pub fn admit(self: &Arc<Self>, name: Option<&str>, admin: bool) -> Result<Seat, ApiError> {
        let mut open = self.open.lock();
        if *self.count.borrow() >= MAX_SOCKETS || *self.ending.borrow() {
            let reason = "This pod takes no further connection with feeds.";
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", reason));
        }
        let most = match name {
            _ if admin => MAX_SOCKETS,
            Some(_) => MAX_SOCKETS_OF_ONE,
            None => MAX_SOCKETS_ANONYMOUS,
        };
        let name: Option<Box<str>> = name.map(Into::into);
        let own = open.get(&name).copied().unwrap_or_default();
        if own >= most {
            let reason = "You have too many connections with feeds.";
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", reason));
        }
        open.insert(name.clone(), own + 1);
        self.count.send_modify(|count| *count += 1);
        Ok(Seat { sockets: Arc::clone(self), name, ending: self.ending.subscribe() })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Ends all connections, and waits until they have.
    pub async fn close(&self) {
        self.ending.send_replace(true);
        // The sender is this one, so waiting can't fail.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Seat {
    /// Waits until the connection must end.
    pub async fn ending(&mut self) {
        // The sender lives in what this holds.
        let _ = self.ending.wait_for(|ending| *ending).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.sockets.open.lock();
        if let Some(own) = open.get_mut(&self.name) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.name);
            }
        }
        self.sockets.count.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_SOCKETS_OF_ONE, Sockets};
    use std::sync::Arc;

    #[tokio::test]
    async fn places_are_bounded_and_come_back_and_none_is_given_at_the_end() {
        let sockets = Arc::new(Sockets::default());
        let seats: Vec<_> =
            (0..MAX_SOCKETS_OF_ONE).map(|_| sockets.admit(Some("ann"), false).expect("a place")).collect();
        assert_eq!(sockets.admit(Some("ann"), false).expect_err("too many").status, 429);
        assert!(sockets.admit(Some("bob"), false).is_ok() && sockets.admit(None, false).is_ok());
        drop(seats);
        assert_eq!(sockets.count(), 0);
        let mut seat = sockets.admit(Some("ann"), false).expect("a place");
        let closing = tokio::spawn({
            let sockets = Arc::clone(&sockets);
            async move { sockets.close().await }
        });
        seat.ending().await;
        assert_eq!(sockets.admit(Some("bob"), false).expect_err("it stops").status, 503);
        drop(seat);
        closing.await.expect("closed");
    }
}
