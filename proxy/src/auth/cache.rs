//! Which credentials were found right a moment ago.
//!
//! An entry is found by a keyed hash of the whole `Authorization` value, so that a request with known credentials
//! costs one short hash and one look-up. The key is made at start and never leaves the process: the table tells
//! nothing of the passwords. Only right credentials are kept, so that a changed password counts at once.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::Login;

/// How long credentials count as right without another look.
const LIFE: Duration = Duration::from_secs(60);
/// How long they do while the proxy can't see whether accounts change.
const BLIND_LIFE: Duration = Duration::from_secs(5);
/// Logged-in clients that are remembered; beyond that the oldest are checked anew. About 500 bytes each.
const MAX_ENTRIES: usize = 20_000;
/// Changes that are remembered for log-ins that are being checked while they come in.
const MAX_CHANGES: usize = 1024;

/// The keyed hash of an `Authorization` value.
pub type Digest = [u8; 32];

/// A point in the sequence of changes; see [`Cache::now`].
#[derive(Debug, Clone, Copy)]
pub struct Epoch(u64);

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The `_users` document of an account; its new revision, or `None` when it is gone or not known.
    User {
        /// The account.
        name: String,
        /// The document's revision now.
        rev: Option<String>,
    },
    /// An administrator who was made by a setting: made, given another password, or removed.
    Admin {
        /// The name.
        name: String,
    },
    /// A session's document.
    Session {
        /// The session.
        id: String,
        /// The document's revision now.
        rev: Option<String>,
    },
}

impl Change {
    /// Whether a login that was checked against another revision has to be checked again.
    pub fn hits(&self, login: &Login) -> bool {
        match self {
            // An account of the configuration has no document that could change.
            Self::User { name, rev } => *login.account == **name && login.user_rev.is_some() && login.user_rev != *rev,
            // An account of that name isn't what it was either.
            Self::Admin { name } => *login.account == **name,
            Self::Session { id, rev } => {
                login.session.as_ref().is_some_and(|session| *session.id == **id && Some(&session.rev) != rev.as_ref())
            }
        }
    }
}

/// The credentials that were found right.
pub struct Cache {
    key: [u8; 32],
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<Digest, Entry>,
    /// By account, so that a change finds its entries without looking at all of them.
    accounts: HashMap<Arc<str>, HashSet<Digest>>,
    /// In the order they came, to push out the oldest.
    order: VecDeque<(Digest, Instant)>,
    changes: VecDeque<(u64, Change)>,
    epoch: u64,
}

struct Entry {
    login: Arc<Login>,
    since: Instant,
}

impl Default for Cache {
    fn default() -> Self {
        Self { key: rand::random(), inner: Mutex::default() }
    }
}

impl Cache {
    /// The keyed hash of an `Authorization` value.
    pub fn digest(&self, authorization: &[u8]) -> Digest {
        // Key first, text after, and the hash never leaves: a plain hash is enough here.
        Sha256::new().chain_update(self.key).chain_update(authorization).finalize().into()
    }

    /// Who these credentials are, if they were found right lately. `blind`: changes can't be seen at the moment.
    pub fn get(&self, digest: &Digest, blind: bool, now_ms: impl Fn() -> u64) -> Option<Arc<Login>> {
        let inner = self.inner.lock();
        let entry = inner.entries.get(digest)?;
        let life = if blind { BLIND_LIFE } else { LIFE };
        if entry.since.elapsed() > life {
            return None;
        }
        let session = entry.login.session.as_ref();
        if session.is_some_and(|session| session.expires_at_ms <= now_ms()) {
            return None;
        }
        Some(Arc::clone(&entry.login))
    }

    /// The present point in the sequence of changes: to be taken before credentials are checked.
    pub fn now(&self) -> Epoch {
        Epoch(self.inner.lock().epoch)
    }

    /// Keeps a login that was checked since `epoch`. If its account has changed in the meantime it is revoked instead.
    pub fn put(&self, digest: Digest, login: &Arc<Login>, epoch: Epoch) {
        let mut inner = self.inner.lock();
        let seen = inner.epoch - epoch.0;
        let forgotten = seen > inner.changes.len() as u64;
        let since = inner.changes.iter().rev().take_while(|(at, _)| *at > epoch.0);
        if forgotten || since.into_iter().any(|(_, change)| change.hits(login)) {
            login.revoke();
            return;
        }
        inner.insert(digest, login);
    }

    /// Takes out the logins that a change hits.
    pub fn change(&self, change: Change) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        inner.epoch += 1;
        let hit: Vec<Digest> = match &change {
            Change::User { name, .. } | Change::Admin { name } => {
                let of_account = inner.accounts.get(name.as_str()).into_iter().flatten();
                of_account.filter(|digest| inner.hits(digest, &change)).copied().collect()
            }
            // Sessions end or are prolonged now and then: looking at all entries is cheap enough.
            Change::Session { .. } => {
                inner.entries.keys().filter(|digest| inner.hits(digest, &change)).copied().collect()
            }
        };
        for digest in hit {
            if let Some(entry) = inner.remove(&digest) {
                entry.login.revoke();
            }
        }
        inner.changes.push_back((inner.epoch, change));
        if inner.changes.len() > MAX_CHANGES {
            inner.changes.pop_front();
        }
    }

    /// Forgets everything: changes may have been missed.
    pub fn clear(&self) {
        let mut inner = self.inner.lock();
        // Further than `changes` reaches back, so that what is being checked now is not kept either.
        inner.epoch += MAX_CHANGES as u64 + 1;
        inner.changes.clear();
        for entry in std::mem::take(&mut inner.entries).into_values() {
            entry.login.revoke();
        }
        inner.accounts.clear();
        inner.order.clear();
    }
}

impl Inner {
    fn hits(&self, digest: &Digest, change: &Change) -> bool {
        self.entries.get(digest).is_some_and(|entry| change.hits(&entry.login))
    }

    fn insert(&mut self, digest: Digest, login: &Arc<Login>) {
        self.remove(&digest);
        let since = Instant::now();
        self.entries.insert(digest, Entry { login: Arc::clone(login), since });
        self.accounts.entry(Arc::clone(&login.account)).or_default().insert(digest);
        self.order.push_back((digest, since));
        // `order` may also hold places of entries that were taken out or put in again; those have another time.
        while self.entries.len() > MAX_ENTRIES || self.order.len() > 2 * MAX_ENTRIES {
            let Some((oldest, at)) = self.order.pop_front() else { break };
            if self.entries.get(&oldest).is_some_and(|entry| entry.since == at) {
                self.remove(&oldest);
            }
        }
    }

    fn remove(&mut self, digest: &Digest) -> Option<Entry> {
        let entry = self.entries.remove(digest)?;
        if let Some(digests) = self.accounts.get_mut(&entry.login.account) {
            digests.remove(digest);
            if digests.is_empty() {
                self.accounts.remove(&entry.login.account);
            }
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Session;

    fn login(account: &str, rev: &str) -> Login {
        let mut login = Login::anonymous_for_tests();
        login.account = account.into();
        login.user_rev = Some(rev.to_owned());
        login
    }

    fn user(name: &str, rev: Option<&str>) -> Change {
        Change::User { name: name.to_owned(), rev: rev.map(str::to_owned) }
    }

    #[test]
    fn a_digest_is_of_this_cache_only() {
        let (a, b) = (Cache::default(), Cache::default());
        assert_eq!(a.digest(b"x"), a.digest(b"x"));
        assert_ne!(a.digest(b"x"), a.digest(b"y"));
        assert_ne!(a.digest(b"x"), b.digest(b"x"));
    }

    #[tokio::test(start_paused = true)]
    async fn entries_live_for_a_minute_or_blind_for_five_seconds() {
        let cache = Cache::default();
        let digest = cache.digest(b"x");
        cache.put(digest, &Arc::new(login("ann", "1-a")), cache.now());
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(cache.get(&digest, true, || 0).is_none());
        assert!(cache.get(&digest, false, || 0).is_some());
        tokio::time::advance(Duration::from_secs(55)).await;
        assert!(cache.get(&digest, false, || 0).is_none());
    }

    #[tokio::test]
    async fn a_session_ends_in_the_cache_too() {
        let cache = Cache::default();
        let digest = cache.digest(b"x");
        let mut login = login("ann", "1-a");
        login.session = Some(Session { id: "s".into(), rev: "1-s".into(), created_at_ms: 0, expires_at_ms: 100 });
        cache.put(digest, &Arc::new(login), cache.now());
        assert!(cache.get(&digest, false, || 99).is_some());
        assert!(cache.get(&digest, false, || 100).is_none());
        let change = |rev: Option<&str>| Change::Session { id: "s".into(), rev: rev.map(str::to_owned) };
        cache.change(change(Some("1-s")));
        assert!(cache.get(&digest, false, || 0).is_some());
        cache.change(change(None));
        assert!(cache.get(&digest, false, || 0).is_none());
    }

    #[tokio::test]
    async fn a_change_takes_out_what_it_hits_and_no_more() {
        let cache = Cache::default();
        let (ann, bob) = (Arc::new(login("ann", "1-a")), Arc::new(login("bob", "1-b")));
        let (one, two) = (cache.digest(b"1"), cache.digest(b"2"));
        cache.put(one, &ann, cache.now());
        cache.put(two, &bob, cache.now());
        cache.change(user("ann", Some("1-a")));
        assert!(cache.get(&one, false, || 0).is_some());
        cache.change(user("ann", Some("2-a")));
        assert!(cache.get(&one, false, || 0).is_none() && ann.is_revoked());
        assert!(cache.get(&two, false, || 0).is_some() && !bob.is_revoked());
        cache.clear();
        assert!(cache.get(&two, false, || 0).is_none() && bob.is_revoked());
    }

    #[tokio::test]
    async fn a_change_during_the_check_counts() {
        let cache = Cache::default();
        let digest = cache.digest(b"1");
        let epoch = cache.now();
        cache.change(user("ann", None));
        cache.change(user("bob", None));
        let ann = Arc::new(login("ann", "1-a"));
        cache.put(digest, &ann, epoch);
        assert!(cache.get(&digest, false, || 0).is_none() && ann.is_revoked());
        // Checked against the revision that the change brought.
        let (epoch, ann) = (cache.now(), Arc::new(login("ann", "2-a")));
        cache.change(user("ann", Some("2-a")));
        cache.put(digest, &ann, epoch);
        assert!(cache.get(&digest, false, || 0).is_some());
        // More changes than are remembered.
        let (epoch, carl) = (cache.now(), Arc::new(login("carl", "1-a")));
        (0..=MAX_CHANGES).for_each(|n| cache.change(user(&n.to_string(), None)));
        cache.put(digest, &carl, epoch);
        assert!(carl.is_revoked());
    }

    #[tokio::test]
    async fn the_cache_is_bounded() {
        let cache = Cache::default();
        for n in 0..MAX_ENTRIES + 10 {
            let account = n.to_string();
            cache.put(cache.digest(account.as_bytes()), &Arc::new(login(&account, "1-a")), cache.now());
        }
        let inner = cache.inner.lock();
        assert_eq!(inner.entries.len(), MAX_ENTRIES);
        assert_eq!(inner.accounts.len(), MAX_ENTRIES);
    }
}
