//! The open feeds and whose they are, so that they end when the right to them does.
//!
//! rean knows users and ends their feeds itself when their rights change; of sessions only the proxy knows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use crate::auth::Login;

/// The open feeds of all accounts.
#[derive(Debug, Default)]
pub struct Feeds {
    inner: Mutex<Inner>,
    stopping: AtomicBool,
}

/// Why a feed ends that did not end by itself: the code that the client gets (RFC 6455, 7.4), and a word for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// Come back: to another process, or another pod.
    Restart,
    /// The log-in counts no more. Show anew who you are.
    LogIn,
}

impl Close {
    /// The code.
    pub fn code(self) -> u16 {
        match self {
            Self::Restart => 1012,
            Self::LogIn => 4001,
        }
    }

    /// The word.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Restart => "the server is stopping",
            Self::LogIn => "the log-in has ended or changed",
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    next_id: u64,
    /// By account; anonymous feeds are under the empty name. Bounded by the number of connections.
    accounts: HashMap<Arc<str>, HashMap<u64, Arc<Feed>>>,
    /// The feeds of sessions and passes by their end (milliseconds since 1970).
    ends: BTreeMap<(u64, u64), Arc<Feed>>,
}

#[derive(Debug)]
struct Feed {
    login: Arc<Login>,
    /// When the login ends, as far as is known; `u64::MAX` and not in `Inner::ends` if only by somebody's doing. Changed only
    /// where `Inner::ends` is.
    ends_at_ms: AtomicU64,
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
        let (ends_at_ms, ended) = (AtomicU64::new(login.ends_at_ms.unwrap_or(u64::MAX)), AtomicBool::new(false));
        let feed = Arc::new(Feed { login, ends_at_ms, ended, waker: AtomicWaker::new() });
        let mut inner = self.inner.lock();
        inner.next_id += 1;
        let id = inner.next_id;
        let account = Arc::clone(&feed.login.account);
        inner.accounts.entry(account).or_default().insert(id, Arc::clone(&feed));
        if let Some(ends_at_ms) = feed.login.ends_at_ms {
            inner.ends.insert((ends_at_ms, id), Arc::clone(&feed));
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

    /// The sessions that should be over by now and have feeds that go on.
    pub fn due(&self, now_ms: u64) -> HashSet<Box<str>> {
        let inner = self.inner.lock();
        let due = inner.ends.range(..=(now_ms, u64::MAX)).map(|(_, feed)| feed);
        let due = due.filter(|feed| !feed.ended.load(Ordering::Acquire));
        due.filter_map(|feed| feed.login.session.as_ref().map(|session| session.id.clone())).collect()
    }

    /// Moves the end of the feeds that are due on to that of their sessions; it never comes nearer by that. All sessions at
    /// once, so that the feeds are gone through once however many sessions there are.
    pub fn prolong(&self, now_ms: u64, sessions: &HashMap<Box<str>, u64>) {
        let mut inner = self.inner.lock();
        let due = inner.ends.range(..=(now_ms, u64::MAX)).filter_map(|(key, feed)| {
            let ends_at_ms = *sessions.get(&feed.login.session.as_ref()?.id)?;
            (ends_at_ms > key.0).then_some((*key, ends_at_ms))
        });
        let due: Vec<((u64, u64), u64)> = due.collect();
        for (key, ends_at_ms) in due {
            if let Some(feed) = inner.ends.remove(&key) {
                feed.ends_at_ms.store(ends_at_ms, Ordering::Release);
                inner.ends.insert((ends_at_ms, key.1), feed);
            }
        }
    }

    /// Ends the feeds whose sessions and passes are over.
    pub fn end_expired(&self, now_ms: u64) {
        let inner = self.inner.lock();
        inner.ends.range(..=(now_ms, u64::MAX)).for_each(|(_, feed)| feed.end());
    }

    /// Ends all feeds, for good: the proxy stops.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.end_all();
    }

    /// Ends all feeds: the proxy has lost track of who may read.
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

    /// Why it ends. A server that stops ends the log-ins of its feeds as well.
    pub fn why(&self) -> Close {
        if self.feeds.stopping.load(Ordering::Acquire) { Close::Restart } else { Close::LogIn }
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
        if login.ends_at_ms.is_some() {
            inner.ends.remove(&(self.feed.ends_at_ms.load(Ordering::Acquire), self.id));
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
        login.ends_at_ms = session.map(|(_, expires_at_ms)| expires_at_ms);
        login.session = session.map(|(id, expires_at_ms)| Session {
            id: id.into(),
            rev: "1-a".into(),
            created_at_ms: 0,
            expires_at_ms,
        });
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
    fn feeds_of_a_session_that_was_prolonged_go_on() {
        let feeds = Arc::new(Feeds::default());
        let tabs = [1, 2].map(|_| feeds.enter(login("ann", Some(("s1", 1000)))));
        let other = feeds.enter(login("ann", Some(("s2", 1000))));
        assert!(feeds.due(999).is_empty());
        assert_eq!(feeds.due(1000), HashSet::from(["s1".into(), "s2".into()]));
        feeds.prolong(1000, &HashMap::from([("s1".into(), 2000), ("s3".into(), 3000)]));
        feeds.prolong(2000, &HashMap::from([("s1".into(), 1500)]));
        feeds.end_expired(1000);
        assert!(!ended(&tabs[0]) && !ended(&tabs[1]) && ended(&other));
        assert!(feeds.due(1999).is_empty(), "what has ended is not looked up again");
        feeds.end_session("s1");
        assert!(ended(&tabs[0]) && ended(&tabs[1]));
        assert_eq!(other.why(), Close::LogIn);
        feeds.stop();
        assert_eq!(other.why(), Close::Restart);
        drop((tabs, other));
        let inner = feeds.inner.lock();
        assert!(inner.accounts.is_empty() && inner.ends.is_empty());
    }

    #[test]
    fn only_feeds_that_are_due_are_moved_on() {
        let feeds = Arc::new(Feeds::default());
        let tabs = [1000, 1400].map(|end_ms| feeds.enter(login("ann", Some(("s1", end_ms)))));
        feeds.prolong(1000, &HashMap::from([("s1".into(), 2000)]));
        assert!(feeds.due(1399).is_empty());
        assert_eq!(feeds.due(1400), HashSet::from(["s1".into()]));
        feeds.end_expired(1400);
        assert!(!ended(&tabs[0]) && ended(&tabs[1]));
    }

    #[test]
    fn feeds_of_a_pass_end_with_it() {
        let feeds = Arc::new(Feeds::default());
        let mut pass = Login::anonymous_for_tests();
        pass.ends_at_ms = Some(1000);
        let feed = feeds.enter(Arc::new(pass));
        assert!(feeds.due(1000).is_empty(), "there is no session to ask for");
        feeds.end_expired(999);
        assert!(!ended(&feed));
        feeds.end_expired(1000);
        assert!(ended(&feed));
        drop(feed);
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
