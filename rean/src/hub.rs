//! Who waits for changes: from the store's commits to the live feeds of a database.
//!
//! The store calls the hub on its writer thread after each durable commit. The hub keeps the last changes of every
//! database that somebody listens to and wakes the listeners; a listener that was too slow to find its next change
//! here reads it from the store. So a listener costs the same however far behind it is.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use http::StatusCode;
use parking_lot::{Mutex, RwLock};
use rean_store::{Change, Db, Observer};
use tokio::sync::watch;

use crate::error::ApiError;

/// Changes of one database that are kept for listeners: one full batch of a bulk load (1,000) and then some.
const RECENT_CHANGES: usize = 1_024;
/// Feeds of one pod. At about 2.5 KiB each they stay near 100 MiB.
const MAX_LISTENERS: usize = 50_000;
/// Feeds of one account that isn't an administrator's: some devices with some tabs with some databases each.
const MAX_LISTENERS_OF_ONE: usize = 1_000;
/// Feeds of all who have not logged in, together: they must not take the places of those who have.
const MAX_LISTENERS_ANONYMOUS: usize = MAX_LISTENERS / 4;
/// What the filters of all feeds may take in memory, in bytes.
const MAX_FILTERS_BYTES: usize = 256 << 20;
/// What the filters of one account's feeds may take; for an administrator and for all who have not logged in it is four
/// times as much.
const MAX_FILTERS_BYTES_OF_ONE: usize = 16 << 20;
/// With more listeners than this they are woken by another thread, so that the writer need not wait for that.
const WOKEN_BY_WRITER: usize = 64;
/// Told of each commit that touches a database, beside the feeds: the caches of accounts and of design documents.
pub trait CommitHook: Send + Sync {
    /// Called on the writer thread: must be quick and must not block.
    fn committed(&self, db: &Db, changes: &[Arc<Change>]);
}

/// How far the store is, of all databases together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// The newest change since the start, by its sequence; 0 before the first.
    pub seq: u64,
    /// Whether there will be no more.
    pub ended: bool,
}

/// All listeners of a pod.
pub struct Hub {
    channels: Mutex<HashMap<Arc<str>, Arc<Channel>>>,
    listeners: Mutex<Listeners>,
    /// Few, and added while the pod comes up.
    hooks: RwLock<Vec<Arc<dyn CommitHook>>>,
    closed: AtomicBool,
    /// For those who follow all databases at once.
    newest: watch::Sender<Newest>,
    /// To the thread that wakes many listeners; `None` if it could not be started.
    waker: Option<mpsc::Sender<Arc<Channel>>>,
}

/// How many feeds there are, and whose.
#[derive(Default)]
struct Listeners {
    all: Load,
    by_name: HashMap<Option<Box<str>>, Load>,
}

/// Feeds and the memory of their filters.
#[derive(Debug, Default, Clone, Copy)]
struct Load {
    feeds: usize,
    filters_bytes: usize,
}

struct Channel {
    name: Arc<str>,
    instance: Box<str>,
    /// Wakes the listeners; `true` when they must end.
    signal: watch::Sender<bool>,
    /// Whether the waking thread has been asked and has not begun yet. So its queue holds a channel once.
    asked: AtomicBool,
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
        let (waker, asked) = mpsc::channel::<Arc<Channel>>();
        // It ends with the hub, which has the only sender.
        let started = std::thread::Builder::new().name("hub-waker".to_owned()).spawn(move || {
            for channel in asked {
                channel.asked.store(false, Ordering::Release);
                channel.signal.send_modify(|_| {});
            }
        });
        Self {
            channels: Mutex::default(),
            listeners: Mutex::default(),
            hooks: RwLock::default(),
            closed: AtomicBool::new(false),
            newest: watch::Sender::default(),
            waker: started.is_ok().then_some(waker),
        }
    }

    /// Has this told of each commit from now on, after those that were added before.
    pub fn add_hook(&self, hook: Arc<dyn CommitHook>) {
        self.hooks.write().push(hook);
    }

    /// Follows the changes of all databases by their sequences.
    pub fn follow(&self) -> watch::Receiver<Newest> {
        self.newest.subscribe()
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
                    asked: AtomicBool::new(false),
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
        Subscription { hub: Arc::clone(self), channel, signal, seen }
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
        self.newest.send_modify(|newest| newest.ended = true);
        let channels = std::mem::take(&mut *self.channels.lock());
        for channel in channels.values() {
            channel.end();
        }
    }

    /// A place for one feed of this account, whose filter takes so many bytes.
    ///
    /// # Errors
    /// 429 when the account has too many feeds, 503 when the pod has.
    pub fn admit(self: &Arc<Self>, name: Option<&str>, admin: bool, filter_bytes: usize) -> Result<Place, ApiError> {
        let mut listeners = self.listeners.lock();
        let all = listeners.all.with(filter_bytes);
        if all.feeds > MAX_LISTENERS || all.filters_bytes > MAX_FILTERS_BYTES {
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable",
                "This pod has too many feeds.",
            ));
        }
        let name: Option<Box<str>> = name.map(Into::into);
        let (most, times) = match name {
            _ if admin => (MAX_LISTENERS, 4),
            Some(_) => (MAX_LISTENERS_OF_ONE, 1),
            None => (MAX_LISTENERS_ANONYMOUS, 4),
        };
        let before = listeners.by_name.get(&name).copied().unwrap_or_default();
        let own = before.with(filter_bytes);
        if own.feeds > most || own.filters_bytes > MAX_FILTERS_BYTES_OF_ONE * times {
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "You have too many feeds."));
        }
        listeners.all = all;
        listeners.by_name.insert(name.clone(), own);
        Ok(Place { hub: Arc::clone(self), name, filter_bytes })
    }

    /// How many feeds there are.
    pub fn listeners(&self) -> usize {
        self.listeners.lock().all.feeds
    }

    fn wake(&self, channel: Arc<Channel>) {
        match &self.waker {
            Some(waker) if channel.signal.receiver_count() > WOKEN_BY_WRITER => {
                if !channel.asked.swap(true, Ordering::AcqRel)
                    && let Err(unsent) = waker.send(channel)
                {
                    unsent.0.signal.send_modify(|_| {});
                }
            }
            _ => channel.signal.send_modify(|_| {}),
        }
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl Load {
    fn with(self, filter_bytes: usize) -> Self {
        Self { feeds: self.feeds + 1, filters_bytes: self.filters_bytes.saturating_add(filter_bytes) }
    }

    fn without(self, filter_bytes: usize) -> Self {
        Self { feeds: self.feeds.saturating_sub(1), filters_bytes: self.filters_bytes.saturating_sub(filter_bytes) }
    }
}

impl Observer for Hub {
    fn committed(&self, db: &Db, changes: &[Arc<Change>]) {
        for hook in self.hooks.read().iter() {
            hook.committed(db, changes);
        }
        if let Some(last) = changes.last() {
            // Databases of one commit come one after the other, and not in the order of their sequences.
            self.newest.send_modify(|newest| newest.seq = newest.seq.max(last.seq));
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
        self.wake(channel);
    }

    fn deleted(&self, db: &Db) {
        let mut channels = self.channels.lock();
        if channels.get(db.name()).is_some_and(|channel| &*channel.instance == db.instance())
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
            && channels.get(&self.channel.name).is_some_and(|channel| Arc::ptr_eq(channel, &self.channel))
        {
            channels.remove(&self.channel.name);
        }
    }
}

/// A place among the pod's feeds; given back when dropped.
pub struct Place {
    hub: Arc<Hub>,
    name: Option<Box<str>>,
    filter_bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut listeners = self.hub.listeners.lock();
        listeners.all = listeners.all.without(self.filter_bytes);
        if let Some(own) = listeners.by_name.get_mut(&self.name) {
            *own = own.without(self.filter_bytes);
            if own.feeds == 0 {
                listeners.by_name.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Hub, MAX_FILTERS_BYTES_OF_ONE, MAX_LISTENERS_OF_ONE};
    use std::sync::Arc;

    #[test]
    fn places_are_bounded_for_each_account_and_come_back() {
        let hub = Arc::new(Hub::new());
        let places: Vec<_> =
            (0..MAX_LISTENERS_OF_ONE).map(|_| hub.admit(Some("ann"), false, 0).expect("a place")).collect();
        assert!(hub.admit(Some("ann"), false, 0).is_err());
        assert!(hub.admit(Some("bob"), false, 0).is_ok());
        assert!(hub.admit(None, false, 0).is_ok());
        assert_eq!(hub.listeners(), MAX_LISTENERS_OF_ONE);
        drop(places);
        assert_eq!(hub.listeners(), 0);
        assert!(hub.admit(Some("ann"), false, 0).is_ok());
    }

    #[test]
    fn filters_are_bounded_for_each_account() {
        let hub = Arc::new(Hub::new());
        let half = MAX_FILTERS_BYTES_OF_ONE / 2;
        let first = hub.admit(Some("ann"), false, half).expect("a place");
        let _second = hub.admit(Some("ann"), false, half).expect("a place");
        assert!(hub.admit(Some("ann"), false, 1).is_err());
        assert!(hub.admit(Some("bob"), false, half).is_ok());
        drop(first);
        assert!(hub.admit(Some("ann"), false, half).is_ok());
    }
}
