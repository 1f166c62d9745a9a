//! The open feeds and whose they are, so that they end when the right to them does.
//!
//! rean knows users and ends their feeds itself when their rights change; of sessions only the proxy knows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use crate::auth::Login;

/// The open feeds of all accounts.
#[derive(Debug, Default)]
pub struct Feeds {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next_id: u64,
    /// By account; anonymous feeds are under the empty name. Bounded by the number of connections.
    accounts: HashMap<Arc<str>, HashMap<u64, Arc<Feed>>>,
    /// The feeds of sessions by their end (milliseconds since 1970).
    ends: BTreeMap<(u64, u64), Arc<Feed>>,
}

#[derive(Debug)]
struct Feed {
    login: Arc<Login>,
    ended: AtomicBool,
    waker: AtomicWaker,
}

impl Feed {
    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// The place of one open feed; dropping it takes the feed out.
#[derive(Debug)]
pub struct FeedTicket {
    feeds: Arc<Feeds>,
    feed: Arc<Feed>,
    id: u64,
}

impl Feeds {
    /// Enters a feed. It is ended at once when the login was revoked in the meantime.
    pub fn enter(self: &Arc<Self>, login: Arc<Login>) -> FeedTicket {
        let feed = Arc::new(Feed { login, ended: AtomicBool::new(false), waker: AtomicWaker::new() });
        let mut inner = self.inner.lock();
        inner.next_id += 1;
        let id = inner.next_id;
        let account = Arc::clone(&feed.login.account);
        inner.accounts.entry(account).or_default().insert(id, Arc::clone(&feed));
        if let Some(session) = &feed.login.session {
            inner.ends.insert((session.expires_at_ms, id), Arc::clone(&feed));
        }
        drop(inner);
        // After entering: whoever revokes a login marks it first and looks at the entered feeds then.
        if feed.login.is_revoked() {
            feed.end();
        }
        FeedTicket { feeds: Arc::clone(self), feed, id }
    }

    /// Ends the account's feeds for which `which` holds.
    pub fn end(&self, account: &str, which: impl Fn(&Login) -> bool) {
        if let Some(feeds) = self.inner.lock().accounts.get(account) {
            feeds.values().filter(|feed| which(&feed.login)).for_each(|feed| feed.end());
        }
    }

    /// Ends the feeds that were opened with this session.
    pub fn end_session(&self, id: &str) {
        let inner = self.inner.lock();
        let of_session = |feed: &&Arc<Feed>| feed.login.session.as_ref().is_some_and(|session| &*session.id == id);
        inner.ends.values().filter(of_session).for_each(|feed| feed.end());
    }

    /// Ends the feeds whose sessions are over.
    pub fn end_expired(&self, now_ms: u64) {
        let inner = self.inner.lock();
        inner.ends.range(..=(now_ms, u64::MAX)).for_each(|(_, feed)| feed.end());
    }

    /// Ends all feeds: the proxy stops, or has lost track of who may read.
    pub fn end_all(&self) {
        let inner = self.inner.lock();
        inner.accounts.values().flat_map(HashMap::values).for_each(|feed| feed.end());
    }
}

impl FeedTicket {
    /// Whether the feed is to end; if not, `waker` is called when it is.
    pub fn poll_ended(&self, waker: &Waker) -> bool {
        if self.feed.ended.load(Ordering::Acquire) {
            return true;
        }
        self.feed.waker.register(waker);
        self.feed.ended.load(Ordering::Acquire)
    }
}

impl Drop for FeedTicket {
    fn drop(&mut self) {
        let login = &self.feed.login;
        let mut inner = self.feeds.inner.lock();
        if let Some(feeds) = inner.accounts.get_mut(&login.account) {
            feeds.remove(&self.id);
            if feeds.is_empty() {
                inner.accounts.remove(&login.account);
            }
        }
        if let Some(session) = &login.session {
            inner.ends.remove(&(session.expires_at_ms, self.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Session;

    fn login(account: &str, session: Option<(&str, u64)>) -> Arc<Login> {
        let mut login = Login::anonymous_for_tests();
        login.account = account.into();
        login.session = session.map(|(id, expires_at_ms)| Session { id: id.into(), rev: "1-a".into(), expires_at_ms });
        Arc::new(login)
    }

    fn ended(ticket: &FeedTicket) -> bool {
        ticket.poll_ended(Waker::noop())
    }

    #[test]
    fn feeds_end_by_account_session_and_time() {
        let feeds = Arc::new(Feeds::default());
        let ann = feeds.enter(login("ann", None));
        let bob = feeds.enter(login("bob", Some(("s1", 1000))));
        let bob2 = feeds.enter(login("bob", Some(("s2", 2000))));
        feeds.end("bob", |login| login.session.is_none());
        feeds.end_session("s3");
        feeds.end_expired(999);
        assert!(!ended(&ann) && !ended(&bob) && !ended(&bob2));
        feeds.end_expired(1000);
        assert!(ended(&bob) && !ended(&bob2));
        feeds.end_session("s2");
        assert!(ended(&bob2) && !ended(&ann));
        feeds.end_all();
        assert!(ended(&ann));
        drop((ann, bob, bob2));
        let inner = feeds.inner.lock();
        assert!(inner.accounts.is_empty() && inner.ends.is_empty());
    }

    #[test]
    fn a_feed_of_a_revoked_login_ends_at_once() {
        let feeds = Arc::new(Feeds::default());
        let login = login("ann", None);
        login.revoke();
        assert!(ended(&feeds.enter(login)));
    }
}
