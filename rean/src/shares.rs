//! Shares of something that all have in common: memory for bodies, places for uploads.
//!
//! A first share may be of any size. Who has some already gets more only while as much as they would have then stays free,
//! unless they are alone: so several together never take up the rest, and who has nothing finds something. That holds for
//! accounts and for clients' addresses, so that it is of little use to have many of either. Administrators may take what
//! there is.
//!
//! And nobody keeps what they don't use. A share's holder says when it waits for its client; one that is slower than
//! [`SLOW_BYTES_PER_S`] loses it as soon as somebody needs it who has nothing, or less than they.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::Identity;
use adea_ring::identity::{ADMIN_ROLE, PEER_HEADER, ROLES_HEADER, USER_NAME_HEADER, network_of};
use adea_ring::pace::Pace;
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Who sends less in a second may lose their share. It is half of what a slow mobile network carries, and at this rate the
/// largest JSON body holds its memory for a quarter of an hour.
const SLOW_BYTES_PER_S: u64 = 64 << 10;
/// Over which time that is looked at: a network that changes over is quiet for some seconds.
const SLOW_WINDOW: Duration = Duration::from_secs(10);
/// How often it is looked whether somebody has become slow, while somebody waits.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What is shared.
#[derive(Clone)]
pub struct Shares {
    pool: Arc<Pool>,
}

/// A share, until it is dropped.
pub struct Share {
    pool: Arc<Pool>,
    id: u64,
    slot: Arc<Slot>,
}

/// Who asks for a share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whose {
    holders: Vec<Holder>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Holder {
    /// An account by its name, or all who have none and come from nowhere in particular.
    Account(Option<String>),
    Address(IpAddr),
}

struct Pool {
    state: Mutex<State>,
    freed: Notify,
}

struct State {
    free: usize,
    /// There are no entries but for those who have some.
    held: HashMap<Holder, usize>,
    slots: HashMap<u64, Arc<Slot>>,
    next_id: u64,
}

struct Slot {
    whose: Whose,
    at: Mutex<At>,
    lost: Notify,
}

/// How it goes with a share.
struct At {
    units: usize,
    pace: Pace,
    /// Since when its client is waited for.
    waits_since: Option<Instant>,
    is_lost: bool,
}

impl Whose {
    /// An account's, and the address's that its request comes from.
    pub fn of(who: &Identity, headers: &HeaderMap) -> Self {
        Self::new(who.name.clone(), who.is_admin(), address(headers))
    }

    /// An account's, wherever it is.
    pub fn account(who: &Identity) -> Self {
        Self::new(who.name.clone(), who.is_admin(), None)
    }

    /// By a request's headers, whose signature has been checked.
    pub fn signed(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let is_admin = text(ROLES_HEADER).is_some_and(|roles| roles.split(',').any(|role| role == ADMIN_ROLE));
        Self::new(text(USER_NAME_HEADER).map(str::to_owned), is_admin, address(headers))
    }

    fn new(name: Option<String>, is_admin: bool, address: Option<IpAddr>) -> Self {
        if is_admin {
            return Self { holders: Vec::new() };
        }
        // Those without a name have nothing to do with one another, but for their address.
        let account = (name.is_some() || address.is_none()).then_some(Holder::Account(name));
        Self { holders: account.into_iter().chain(address.map(Holder::Address)).collect() }
    }
}

/// The client's address as the proxy tells it.
fn address(headers: &HeaderMap) -> Option<IpAddr> {
    headers.get(PEER_HEADER)?.to_str().ok()?.parse().ok().map(network_of)
}

impl State {
    fn held(&self, whose: &Whose) -> usize {
        whose.holders.iter().filter_map(|holder| self.held.get(holder)).max().copied().unwrap_or(0)
    }

    fn may_have(&self, whose: &Whose, units: usize) -> bool {
        let Some(left) = self.free.checked_sub(units) else { return false };
        match self.held(whose) {
            0 => true,
            held => held + units <= left,
        }
    }

    fn take(&mut self, whose: &Whose, units: usize) {
        self.free -= units;
        for holder in &whose.holders {
            *self.held.entry(holder.clone()).or_default() += units;
        }
    }

    fn give_back(&mut self, whose: &Whose, units: usize) {
        self.free += units;
        for holder in &whose.holders {
            if let Some(held) = self.held.get_mut(holder) {
                *held -= units;
                if *held == 0 {
                    self.held.remove(holder);
                }
            }
        }
    }

    /// Takes shares from slow clients for somebody who has none, or less than they: first from whoever has most.
    fn make_room(&self, whose: &Whose, units: usize, now: Instant) {
        let held = self.held(whose);
        // Who has some must leave as much as they would have then (see `may_have`).
        let needed = if held == 0 { units } else { held.saturating_add(units.saturating_mul(2)) };
        let is_larger = |slot: &Slot| held == 0 || self.held(&slot.whose) > held;
        let mut found: Vec<_> =
            self.slots.values().filter(|slot| is_larger(slot.as_ref()) && slot.may_lose(now)).collect();
        found.sort_by_key(|slot| std::cmp::Reverse(self.held(&slot.whose)));
        let lost: usize = self.slots.values().map(|slot| slot.lost_units()).sum();
        let mut missing = needed.saturating_sub(self.free + lost);
        for slot in found {
            if missing == 0 {
                return;
            }
            missing = missing.saturating_sub(slot.lose());
        }
    }
}

impl Slot {
    fn may_lose(&self, now: Instant) -> bool {
        let at = self.at.lock();
        let is_slow = at.waits_since.is_some_and(|since| now.saturating_duration_since(since) >= at.pace.left());
        is_slow && !at.is_lost
    }

    /// What is lost and not back yet.
    fn lost_units(&self) -> usize {
        let at = self.at.lock();
        if at.is_lost { at.units } else { 0 }
    }

    fn lose(&self) -> usize {
        let mut at = self.at.lock();
        at.is_lost = true;
        self.lost.notify_one();
        at.units
    }
}

impl Shares {
    /// So many units for all.
    pub fn new(units: usize) -> Self {
        let state = State { free: units, held: HashMap::new(), slots: HashMap::new(), next_id: 0 };
        Self { pool: Arc::new(Pool { state: Mutex::new(state), freed: Notify::new() }) }
    }

    /// A share, if there is one now.
    pub fn try_take(&self, whose: &Whose, units: usize) -> Option<Share> {
        let mut state = self.pool.state.lock();
        if !state.may_have(whose, units) {
            return None;
        }
        state.take(whose, units);
        let id = state.next_id;
        state.next_id += 1;
        let pace = Pace::new(SLOW_BYTES_PER_S, SLOW_WINDOW, SLOW_WINDOW);
        let at = At { units, pace, waits_since: None, is_lost: false };
        let slot = Arc::new(Slot { whose: whose.clone(), at: Mutex::new(at), lost: Notify::new() });
        state.slots.insert(id, Arc::clone(&slot));
        drop(state);
        Some(Share { pool: Arc::clone(&self.pool), id, slot })
    }

    /// Waits for a share, so long.
    pub async fn take(&self, whose: &Whose, units: usize, patience: Duration) -> Option<Share> {
        self.pool.wait(whose, units, patience, || self.try_take(whose, units)).await
    }
}

impl Pool {
    async fn wait<T>(
        &self,
        whose: &Whose,
        units: usize,
        patience: Duration,
        mut attempt: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let until = Instant::now() + patience;
        loop {
            let freed = self.freed.notified();
            if let Some(got) = attempt() {
                return Some(got);
            }
            let now = Instant::now();
            if now >= until {
                return None;
            }
            self.state.lock().make_room(whose, units, now);
            tokio::select! {
                () = freed => {}
                () = tokio::time::sleep_until(until.min(now + LOOK_AGAIN)) => {}
            }
        }
    }
}

impl Share {
    /// Waits until it is larger by so much; whether it is.
    pub async fn grow(&self, units: usize, patience: Duration) -> bool {
        let whose = &self.slot.whose;
        let grown = self.pool.wait(whose, units, patience, || {
            let mut state = self.pool.state.lock();
            // One that is alone takes nothing from anybody: else a body of more than a half could never be.
            let is_alone = state.slots.len() == 1 && units <= state.free;
            if !is_alone && !state.may_have(whose, units) {
                return None;
            }
            state.take(whose, units);
            self.slot.at.lock().units += units;
            Some(())
        });
        grown.await.is_some()
    }

    /// What the client says next; `None` when it was slow and its share has gone to somebody else.
    pub async fn hears<T>(&self, next: impl Future<Output = T>) -> Option<T> {
        self.slot.at.lock().waits_since = Some(Instant::now());
        let heard = tokio::select! {
            biased;
            heard = next => Some(heard),
            () = self.slot.lost.notified() => None,
        };
        let mut at = self.slot.at.lock();
        if let Some(since) = at.waits_since.take() {
            at.pace.waited(since.elapsed());
        }
        heard
    }

    /// So many bytes have come.
    pub fn came(&self, bytes: usize) {
        self.slot.at.lock().pace.came(bytes as u64);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        state.slots.remove(&self.id);
        let units = self.slot.at.lock().units;
        state.give_back(&self.slot.whose, units);
        drop(state);
        self.pool.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::{SLOW_BYTES_PER_S, SLOW_WINDOW, Shares, Whose};
    use adea_ring::Identity;
    use adea_ring::identity::PEER_HEADER;
    use http::{HeaderMap, HeaderValue};
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn whose(name: &str, address: &str) -> Whose {
        let name = Some(name.to_owned()).filter(|name| !name.is_empty());
        let mut headers = HeaderMap::new();
        if !address.is_empty() {
            headers.insert(PEER_HEADER, HeaderValue::try_from(address).expect("an address"));
        }
        Whose::of(&Identity { name, roles: Vec::new() }, &headers)
    }

    /// As many as there are for somebody.
    fn all(shares: &Shares, whose: &Whose) -> Vec<super::Share> {
        std::iter::from_fn(|| shares.try_take(whose, 1)).collect()
    }

    #[test]
    fn nobody_gets_more_than_a_half_and_the_last_is_for_who_has_none() {
        let shares = Shares::new(16);
        let names: Vec<String> = (0..8).map(|n| format!("user-{n}")).collect();
        // Three accounts, and five more, each as greedy as can be.
        let taken: Vec<_> = names.iter().take(3).map(|name| all(&shares, &whose(name, ""))).collect();
        assert_eq!(taken.iter().map(Vec::len).collect::<Vec<_>>(), [8, 4, 2]);
        assert!(shares.try_take(&whose("ann", ""), 1).is_some());
        let first = all(&shares, &whose("ann", ""));
        assert_eq!(first.len(), 1);
        assert!(shares.try_take(&whose("user-0", ""), 1).is_none(), "the last place went to who has eight");
        drop((taken, first));
        assert!(shares.pool.state.lock().held.is_empty() && shares.pool.state.lock().free == 16);
    }

    #[test]
    fn many_accounts_of_one_address_are_as_one() {
        let shares = Shares::new(16);
        let mut taken = Vec::new();
        for n in 0..100 {
            // All of one network.
            let address = format!("2001:db8::{n:x}:1");
            taken.extend(all(&shares, &whose(&format!("user-{n}"), &address)));
            taken.extend(all(&shares, &whose("", &address)));
        }
        assert_eq!(taken.len(), 8);
        assert!(shares.try_take(&whose("ann", "2001:db8:0:1::1"), 4).is_some());
        assert!(shares.try_take(&whose("", "10.0.0.1"), 4).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_loses_it_to_who_has_none_and_to_nobody_else() {
        let shares = Shares::new(2);
        let (slow, quick) = (whose("slow", ""), whose("quick", ""));
        let first = shares.try_take(&slow, 1).expect("room");
        let second = shares.try_take(&quick, 1).expect("room");
        let quick_one = tokio::spawn(async move {
            loop {
                let next = second.hears(tokio::time::sleep(Duration::from_secs(1))).await;
                next.expect("who is quick enough keeps it");
                second.came(SLOW_BYTES_PER_S as usize);
            }
        });
        let slow_one = tokio::spawn(async move {
            let mut heard = 0;
            while first.hears(tokio::time::sleep(Duration::from_secs(1))).await.is_some() {
                first.came(1);
                heard += 1;
            }
            heard
        });
        tokio::time::sleep(3 * SLOW_WINDOW).await;
        assert!(shares.take(&slow, 1, PATIENCE).await.is_none(), "who has some takes it from nobody");
        assert!(!slow_one.is_finished(), "as long as nobody needs it, it is kept");
        let third = shares.take(&whose("ann", ""), 1, PATIENCE).await.expect("the slow one's");
        assert!(slow_one.await.expect("no panic") > 40);
        assert!(shares.take(&whose("bob", ""), 1, PATIENCE).await.is_none(), "the others are at work");
        assert!(!quick_one.is_finished());
        quick_one.abort();
        drop(third);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_loses_it_to_a_body_that_grows_and_is_the_smaller_one() {
        let shares = Shares::new(8);
        let quick = shares.try_take(&whose("quick", ""), 1).expect("room");
        let slow = shares.try_take(&whose("slow", ""), 6).expect("room");
        let slow_one = tokio::spawn(async move { slow.hears(std::future::pending::<()>()).await.is_none() });
        tokio::time::sleep(2 * SLOW_WINDOW).await;
        assert!(quick.grow(2, PATIENCE).await, "the slow one has more and keeps it");
        assert!(slow_one.await.expect("no panic"));
        let slow = shares.try_take(&whose("slow", ""), 3).expect("room");
        let slow_one = tokio::spawn(async move { slow.hears(std::future::pending::<()>()).await });
        tokio::time::sleep(2 * SLOW_WINDOW).await;
        assert!(!quick.grow(2, PATIENCE).await, "who has as much takes it from nobody");
        assert!(!slow_one.is_finished());
        slow_one.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_alone_may_grow_to_all() {
        let shares = Shares::new(8);
        let ann = shares.try_take(&whose("ann", ""), 4).expect("room");
        assert!(ann.grow(4, PATIENCE).await);
        drop(ann);
        let ann = shares.try_take(&whose("ann", ""), 2).expect("room");
        let _bob = shares.try_take(&whose("bob", ""), 1).expect("room");
        assert!(!ann.grow(2, PATIENCE).await);
        assert!(ann.grow(1, PATIENCE).await);
    }
}
