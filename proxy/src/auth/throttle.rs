//! Slows down guessing: for each account, and for each client address.
//!
//! - An account has a few free failures; after them each failure doubles the wait, up to a quarter of an hour. A
//!   success forgets them.
//! - An address has a bucket of failures that refills slowly, whatever the accounts.
//!
//! A lock must not become a weapon: anyone can fail in somebody else's name. So the account's lock stands only before
//! credentials that have never been right. Whoever is in the cache does not come here; sessions are checked without
//! it (their secrets can't be guessed); and credentials that were right within the last day pass it, as a guesser does
//! not have them. What a lock can do is to keep its owner from logging in with a new device for some minutes.
//!
//! Failures count when the check begins and are taken back when it ends well, so that many guesses at once are
//! no more than many guesses.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::time::Duration;

use adea_ring::identity::network_of;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::cache::Digest;

/// Failures of an account before it has to wait: a person's typing errors.
const FREE_FAILURES: u32 = 5;
/// The longest wait of an account.
const MAX_WAIT: Duration = Duration::from_secs(900);
/// After this time without an attempt an account's failures are forgotten.
const FORGET: Duration = Duration::from_secs(3600);
/// Failures of an address at once: an office behind one address, on a Monday.
const ADDRESS_BURST: f64 = 200.0;
/// Failures of an address that are forgiven in a second.
const ADDRESS_REFILL: f64 = 2.0;
/// New sessions of an account at once, and in a second: sessions are documents, and stay until they expire.
const SESSION_BURST: f64 = 100.0;
const SESSION_REFILL: f64 = 1.0;
/// How long credentials that were right pass the account's lock.
const GOOD_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Entries of each table; about 1 MB each. When one is full, what is over goes first, then the oldest.
const MAX_ENTRIES: usize = 20_000;

/// The wait that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// In whole seconds, at least 1.
    pub seconds: u64,
}

/// The failures of all accounts and addresses. Kept in memory: a restart forgives.
#[derive(Default)]
pub struct Throttle {
    hasher: RandomState,
    inner: Mutex<Inner>,
}

/// Accounts are known by a hash of their names, as a name may be as long as a header.
#[derive(Default)]
struct Inner {
    accounts: HashMap<u64, Failures>,
    addresses: HashMap<IpAddr, Bucket>,
    sessions: HashMap<u64, Bucket>,
    good: HashMap<Digest, Instant>,
}

#[derive(Clone, Copy)]
struct Failures {
    count: u32,
    until: Instant,
    last: Instant,
}

#[derive(Clone, Copy)]
pub(super) struct Bucket {
    pub(super) left: f64,
    pub(super) at: Instant,
}

impl Bucket {
    pub(super) fn refilled(self, now: Instant, burst: f64, refill: f64) -> Self {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        Self { left: (self.left + seconds * refill).min(burst), at: now }
    }
}

impl Throttle {
    /// Begins a check of a password.
    ///
    /// # Errors
    /// How long to wait, when the account or the address has failed too often.
    pub fn begin(&self, account: &str, address: IpAddr, digest: &Digest) -> Result<(), Wait> {
        let (now, account) = (Instant::now(), self.hash(account));
        let mut inner = self.inner.lock();
        inner.check_address(network_of(address), now)?;
        let known = inner.good.get(digest).is_some_and(|at| now - *at < GOOD_LIFE);
        if known {
            return Ok(());
        }
        let mut failures = inner.accounts.get(&account).copied();
        failures = failures.filter(|failures| now.saturating_duration_since(failures.last) < FORGET.max(MAX_WAIT));
        if let Some(failures) = failures.filter(|failures| failures.until > now) {
            return Err(wait((failures.until - now).as_secs_f64()));
        }
        let count = failures.map_or(0, |failures| failures.count).saturating_add(1);
        let delay = match count.checked_sub(FREE_FAILURES) {
            None => Duration::ZERO,
            Some(over) => MAX_WAIT.min(Duration::from_secs(1 << over.min(20))),
        };
        make_room(&mut inner.accounts, |failures| failures.until.max(failures.last), now, FORGET);
        inner.accounts.insert(account, Failures { count, until: now + delay, last: now });
        Ok(())
    }

    /// Begins a check of a session's secret, which only the address limits.
    ///
    /// # Errors
    /// How long to wait.
    pub fn begin_session(&self, address: IpAddr) -> Result<(), Wait> {
        self.inner.lock().check_address(network_of(address), Instant::now())
    }

    /// The password was right.
    pub fn right(&self, account: &str, digest: Digest) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        inner.accounts.remove(&self.hash(account));
        make_room(&mut inner.good, |at| *at, now, GOOD_LIFE);
        inner.good.insert(digest, now);
    }

    /// The password or the session's secret was wrong.
    pub fn wrong(&self, address: IpAddr, digest: &Digest) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        inner.good.remove(digest);
        make_room(&mut inner.addresses, |bucket| bucket.at, now, Duration::from_secs(100));
        let bucket = inner.addresses.entry(network_of(address));
        let bucket = bucket.or_insert(Bucket { left: ADDRESS_BURST, at: now });
        *bucket = bucket.refilled(now, ADDRESS_BURST, ADDRESS_REFILL);
        bucket.left -= 1.0;
    }

    /// Nothing was found out: the failure that `begin` counted is taken back.
    pub fn unknown(&self, account: &str) {
        let now = Instant::now();
        if let Some(failures) = self.inner.lock().accounts.get_mut(&self.hash(account)) {
            failures.count = failures.count.saturating_sub(1);
            failures.until = now;
        }
    }

    /// Counts a new session of an account.
    ///
    /// # Errors
    /// How long to wait, when it has made too many.
    pub fn new_session(&self, account: &str) -> Result<(), Wait> {
        let (now, account) = (Instant::now(), self.hash(account));
        let mut inner = self.inner.lock();
        make_room(&mut inner.sessions, |bucket| bucket.at, now, Duration::from_secs(100));
        let bucket = inner.sessions.entry(account).or_insert(Bucket { left: SESSION_BURST, at: now });
        *bucket = bucket.refilled(now, SESSION_BURST, SESSION_REFILL);
        if bucket.left < 1.0 {
            return Err(wait((1.0 - bucket.left) / SESSION_REFILL));
        }
        bucket.left -= 1.0;
        Ok(())
    }

    fn hash(&self, text: &str) -> u64 {
        self.hasher.hash_one(text)
    }
}

impl Inner {
    fn check_address(&self, address: IpAddr, now: Instant) -> Result<(), Wait> {
        let Some(bucket) = self.addresses.get(&address) else { return Ok(()) };
        let left = bucket.refilled(now, ADDRESS_BURST, ADDRESS_REFILL).left;
        if left < 1.0 { Err(wait((1.0 - left) / ADDRESS_REFILL)) } else { Ok(()) }
    }
}

pub(super) fn wait(seconds: f64) -> Wait {
    // Bounded by MAX_WAIT, so the cast loses nothing.
    Wait { seconds: seconds.ceil().clamp(1.0, 86_400.0) as u64 }
}

/// Makes room for one more entry: drops those that are over, and if there are none, the oldest.
pub(super) fn make_room<K: Copy + Eq + Hash, V>(
    table: &mut HashMap<K, V>,
    last: impl Fn(&V) -> Instant,
    now: Instant,
    life: Duration,
) {
    if table.len() < MAX_ENTRIES {
        return;
    }
    table.retain(|_, value| now.saturating_duration_since(last(value)) < life);
    if table.len() >= MAX_ENTRIES {
        let oldest = table.iter().min_by_key(|(_, value)| last(value)).map(|(key, _)| *key);
        oldest.and_then(|key| table.remove(&key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const BAD: Digest = [1; 32];
    const GOOD: Digest = [2; 32];

    fn fail(throttle: &Throttle, account: &str, address: IpAddr) -> Result<(), Wait> {
        throttle.begin(account, address, &BAD)?;
        throttle.wrong(address, &BAD);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn the_waits_of_an_account_double() {
        let throttle = Throttle::default();
        for _ in 0..FREE_FAILURES {
            fail(&throttle, "ann", HERE).expect("free");
        }
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900] {
            assert_eq!(throttle.begin("ann", HERE, &BAD), Err(Wait { seconds }));
            assert_eq!(throttle.begin("bob", HERE, &GOOD), Ok(()));
            throttle.right("bob", GOOD);
            tokio::time::advance(Duration::from_secs(seconds)).await;
            fail(&throttle, "ann", HERE).expect("the wait is over");
        }
        tokio::time::advance(FORGET).await;
        fail(&throttle, "ann", HERE).expect("forgotten");
        fail(&throttle, "ann", HERE).expect("forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_at_once_are_counted_when_they_begin() {
        let throttle = Throttle::default();
        let begun = (0..100).filter(|_| throttle.begin("ann", HERE, &BAD).is_ok()).count();
        assert_eq!(begun, FREE_FAILURES as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_does_not_lock_out_its_owner() {
        let throttle = Throttle::default();
        throttle.begin("ann", HERE, &GOOD).expect("first");
        throttle.right("ann", GOOD);
        while fail(&throttle, "ann", HERE).is_ok() {}
        assert_eq!(throttle.begin("ann", HERE, &GOOD), Ok(()));
        // The password was changed meanwhile: these credentials pass no more.
        throttle.wrong(HERE, &GOOD);
        assert!(throttle.begin("ann", HERE, &GOOD).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_forgets_and_an_error_does_not_count() {
        let throttle = Throttle::default();
        for _ in 0..20 {
            fail(&throttle, "ann", HERE).expect("free");
            throttle.begin("ann", HERE, &GOOD).expect("free");
            throttle.right("ann", GOOD);
            throttle.begin("carl", HERE, &BAD).expect("free");
            throttle.unknown("carl");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_runs_out_whatever_the_account() {
        let throttle = Throttle::default();
        let address: IpAddr = "2001:db8::1".parse().expect("an address");
        let neighbour: IpAddr = "2001:db8::2".parse().expect("an address");
        for n in 0..200 {
            fail(&throttle, &format!("u{n}"), address).expect("within the burst");
        }
        assert_eq!(throttle.begin("fresh", neighbour, &GOOD), Err(Wait { seconds: 1 }));
        assert!(throttle.begin_session(neighbour).is_err());
        assert_eq!(throttle.begin("fresh", HERE, &GOOD), Ok(()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(throttle.begin_session(neighbour), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_are_not_made_without_end() {
        let throttle = Throttle::default();
        assert_eq!((0..150).filter(|_| throttle.new_session("ann").is_ok()).count(), 100);
        assert_eq!(throttle.new_session("ann"), Err(Wait { seconds: 1 }));
        assert_eq!(throttle.new_session("bob"), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_tables_are_bounded() {
        let throttle = Throttle::default();
        for n in 0..MAX_ENTRIES + 5 {
            let _ = throttle.begin(&n.to_string(), HERE, &BAD);
        }
        assert_eq!(throttle.inner.lock().accounts.len(), MAX_ENTRIES);
    }
}
