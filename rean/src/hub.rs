//! Who waits for changes: from the store's commits to the live feeds of a database.
//!
//! The store calls the hub on its writer thread after each durable commit. The hub keeps the last changes of every
//! database that somebody listens to and wakes the listeners; a listener that was too slow to find its next change
//! here reads it from the store. So a listener costs the same however far behind it is.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use http::StatusCode;
use parking_lot::Mutex;
use rean_store::{Change, Db, Observer};
use tokio::sync::watch;

use crate::error::ApiError;

/// Changes of one database that are kept for listeners: one full batch of a bulk load (1,000) and then some.
const RECENT_CHANGES: usize = 1_024;
/// Live feeds of one pod. At about 2 KiB each they stay below 100 MiB.
const MAX_LISTENERS: usize = 50_000;
/// Live feeds of one account that isn't an administrator's: some devices with some tabs with some databases each.
const MAX_LISTENERS_OF_ONE: usize = 1_000;
/// Live feeds of all who have not logged in, together: they must not take the places of those who have.
const MAX_LISTENERS_ANONYMOUS: usize = MAX_LISTENERS / 4;
/// Told of each commit that touches a database, beside the feeds: the cache of accounts.
pub trait CommitHook: Send + Sync {
    /// Called on the writer thread: must be quick and must not block.
    fn committed(&self, db: &Db, changes: &[Arc<Change>]);
}

/// All listeners of a pod.
#[derive(Default)]
pub struct Hub {
    channels: Mutex<HashMap<Arc<str>, Arc<Channel>>>,
    listeners: Mutex<Listeners>,
    hook: OnceLock<Arc<dyn CommitHook>>,
    closed: AtomicBool,
}

/// How many feeds there are, and whose.
#[derive(Default)]
struct Listeners {
    total: usize,
    by_name: HashMap<Option<Box<str>>, usize>,
}

struct Channel {
    name: Arc<str>,
    instance: Box<str>,
    /// Wakes the listeners; `true` when they must end.
    signal: watch::Sender<bool>,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    /// How many changes there have been since the channel was made.
    total: u64,
    /// The last of them.
    changes: VecDeque<Arc<Change>>,
}

impl Hub {
    /// A hub without listeners.
    pub fn new() -> Self {
        Self::default()
    }

    /// Has this told of each commit. The first one given counts.
    pub fn set_hook(&self, hook: Arc<dyn CommitHook>) {
        let _ = self.hook.set(hook);
    }

    /// Listens to a database from now on.
    pub fn subscribe(self: &Arc<Self>, db: &Db) -> Subscription {
        let mut channels = self.channels.lock();
        let channel = match channels.get(db.name()) {
            Some(channel) if &*channel.instance == db.instance() => Arc::clone(channel),
            _ => {
                let name: Arc<str> = db.name().into();
                let channel = Arc::new(Channel {
                    name: Arc::clone(&name),
                    instance: db.instance().into(),
                    signal: watch::Sender::new(false),
                    recent: Mutex::default(),
                });
                if let Some(old) = channels.insert(name, Arc::clone(&channel)) {
                    old.end();
                }
                channel
            }
        };
        let signal = channel.signal.subscribe();
        drop(channels);
        // A database that was deleted, or a hub that was closed, a moment ago will not be heard of any more.
        if db.is_gone() || self.closed.load(Ordering::Acquire) {
            channel.end();
        }
        let seen = channel.recent.lock().total;
        Subscription {
            hub: Arc::clone(self),
            channel,
            signal,
            seen,
        }
    }

    /// Ends the live feeds of a database: it was deleted, or who may read it has changed.
    pub fn end(&self, db: &Db) {
        let channel = self.channels.lock().remove(db.name());
        if let Some(channel) = channel {
            channel.end();
        }
    }

    /// Ends all live feeds, and those that would begin later: the server stops.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let channels = std::mem::take(&mut *self.channels.lock());
        for channel in channels.values() {
            channel.end();
        }
    }

    /// A place for one live feed of this account.
    ///
    /// # Errors
    /// 429 when the account has too many feeds, 503 when the pod has.
    pub fn admit(self: &Arc<Self>, name: Option<&str>, admin: bool) -> Result<Place, ApiError> {
        let mut listeners = self.listeners.lock();
        if listeners.total >= MAX_LISTENERS {
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable",
                "This pod has too many live feeds.",
            ));
        }
        let name: Option<Box<str>> = name.map(Into::into);
        let most = match name {
            _ if admin => MAX_LISTENERS,
            Some(_) => MAX_LISTENERS_OF_ONE,
            None => MAX_LISTENERS_ANONYMOUS,
        };
        let own = listeners.by_name.entry(name.clone()).or_default();
        if *own >= most {
            return Err(ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_requests",
                "You have too many live feeds.",
            ));
        }
        *own += 1;
        listeners.total += 1;
        Ok(Place {
            hub: Arc::clone(self),
            name,
        })
    }

    /// How many live feeds there are.
    pub fn listeners(&self) -> usize {
        self.listeners.lock().total
    }
}

impl Observer for Hub {
    fn committed(&self, db: &Db, changes: &[Arc<Change>]) {
        if let Some(hook) = self.hook.get() {
            hook.committed(db, changes);
        }
        let channel = self.channels.lock().get(db.name()).map(Arc::clone);
        let Some(channel) = channel.filter(|channel| &*channel.instance == db.instance()) else {
            return;
        };
        {
            let mut recent = channel.recent.lock();
            recent.total += changes.len() as u64;
            recent.changes.extend(changes.iter().map(Arc::clone));
            let surplus = recent.changes.len().saturating_sub(RECENT_CHANGES);
            recent.changes.drain(..surplus);
        }
        channel.signal.send_modify(|_| {});
    }

    fn deleted(&self, db: &Db) {
        let mut channels = self.channels.lock();
        if channels
            .get(db.name())
            .is_some_and(|channel| &*channel.instance == db.instance())
            && let Some(channel) = channels.remove(db.name())
        {
            drop(channels);
            channel.end();
        }
    }
}

impl Channel {
    fn end(&self) {
        self.signal.send_replace(true);
        self.recent.lock().changes.clear();
    }
}

/// One listener's place at a database's channel.
pub struct Subscription {
    hub: Arc<Hub>,
    channel: Arc<Channel>,
    signal: watch::Receiver<bool>,
    /// How many of the channel's changes this listener has taken.
    seen: u64,
}

/// What a listener finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// All changes since the last look, in order (perhaps none).
    Changes,
    /// There were more than are kept: read them from the store.
    Missed,
    /// There will be no more.
    Ended,
}

impl Subscription {
    /// Waits until there is something to take.
    pub async fn changed(&mut self) {
        // The sender lives in the channel that this listener holds, so this can't fail.
        let _ = self.signal.changed().await;
    }

    /// Takes what has come since the last look.
    pub fn take(&mut self, into: &mut Vec<Arc<Change>>) -> News {
        // In this order: what is committed after the signal was marked as seen will be signalled again.
        if *self.signal.borrow_and_update() {
            return News::Ended;
        }
        let recent = self.channel.recent.lock();
        let new = usize::try_from(recent.total - self.seen).unwrap_or(usize::MAX);
        self.seen = recent.total;
        let Some(from) = recent.changes.len().checked_sub(new) else {
            return News::Missed;
        };
        into.extend(recent.changes.range(from..).map(Arc::clone));
        News::Changes
    }

    /// Whether there will be no more.
    pub fn ended(&self) -> bool {
        *self.signal.borrow()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut channels = self.hub.channels.lock();
        // The last listener takes the kept changes along. Others can't subscribe meanwhile: that takes the same lock.
        if self.channel.signal.receiver_count() <= 1
            && channels
                .get(&self.channel.name)
                .is_some_and(|channel| Arc::ptr_eq(channel, &self.channel))
        {
            channels.remove(&self.channel.name);
        }
    }
}

/// A place among the pod's live feeds; given back when dropped.
pub struct Place {
    hub: Arc<Hub>,
    name: Option<Box<str>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut listeners = self.hub.listeners.lock();
        listeners.total = listeners.total.saturating_sub(1);
        if let Some(own) = listeners.by_name.get_mut(&self.name) {
            *own -= 1;
            if *own == 0 {
                listeners.by_name.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Hub, MAX_LISTENERS_OF_ONE};
    use std::sync::Arc;

    #[test]
    fn places_are_bounded_for_each_account_and_come_back() {
        let hub = Arc::new(Hub::new());
        let places: Vec<_> = (0..MAX_LISTENERS_OF_ONE)
            .map(|_| hub.admit(Some("ann"), false).expect("a place"))
            .collect();
        assert!(hub.admit(Some("ann"), false).is_err());
        assert!(hub.admit(Some("bob"), false).is_ok());
        assert!(hub.admit(None, false).is_ok());
        assert_eq!(hub.listeners(), MAX_LISTENERS_OF_ONE);
        drop(places);
        assert_eq!(hub.listeners(), 0);
        assert!(hub.admit(Some("ann"), false).is_ok());
    }
}
