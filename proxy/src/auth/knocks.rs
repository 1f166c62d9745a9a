//! How often new pods may knock at the ring's door (`POST /_join`): from one address, and in all.
//!
//! A token's secret can't be guessed, so this is about the work: each knock goes to the write master. One that is let in
//! gives back what it took, so that twenty machines behind one address can join at once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use adea_ring::identity::network_of;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::throttle::{Bucket, Wait, make_room, wait};

/// Knocks of an address at once, and in a second: a person who types a token wrong some times.
const ADDRESS_BURST: f64 = 20.0;
const ADDRESS_REFILL: f64 = 0.2;
/// The same for all addresses together: what the write master does not notice.
const ALL_BURST: f64 = 100.0;
const ALL_REFILL: f64 = 10.0;
/// After this time a bucket is full again.
const FORGET: Duration = Duration::from_secs(100);

/// Counts the knocks. Kept in memory: a restart forgives.
pub struct Knocks {
    inner: Mutex<Inner>,
}

struct Inner {
    all: Bucket,
    addresses: HashMap<IpAddr, Bucket>,
}

impl Default for Knocks {
    fn default() -> Self {
        let all = Bucket { left: ALL_BURST, at: Instant::now() };
        Self { inner: Mutex::new(Inner { all, addresses: HashMap::new() }) }
    }
}

impl Knocks {
    /// Counts a knock.
    ///
    /// # Errors
    /// How long to wait, when there were too many.
    pub fn begin(&self, address: IpAddr) -> Result<(), Wait> {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        make_room(&mut inner.addresses, |bucket| bucket.at, now, FORGET);
        let bucket = inner.addresses.entry(network_of(address)).or_insert(Bucket { left: ADDRESS_BURST, at: now });
        *bucket = bucket.refilled(now, ADDRESS_BURST, ADDRESS_REFILL);
        inner.all = inner.all.refilled(now, ALL_BURST, ALL_REFILL);
        if bucket.left < 1.0 {
            return Err(wait((1.0 - bucket.left) / ADDRESS_REFILL));
        }
        // One address can't use up what all have: its own bucket is smaller and refills slower.
        if inner.all.left < 1.0 {
            return Err(wait((1.0 - inner.all.left) / ALL_REFILL));
        }
        bucket.left -= 1.0;
        inner.all.left -= 1.0;
        Ok(())
    }

    /// A knock was let in: it doesn't count.
    pub fn let_in(&self, address: IpAddr) {
        let mut inner = self.inner.lock();
        inner.all.left = (inner.all.left + 1.0).min(ALL_BURST);
        if let Some(bucket) = inner.addresses.get_mut(&network_of(address)) {
            bucket.left = (bucket.left + 1.0).min(ADDRESS_BURST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ADDRESS_BURST, ALL_BURST, Knocks};
    use std::net::IpAddr;
    use std::time::Duration;

    fn address(at: usize) -> IpAddr {
        let [.., a, b] = at.to_be_bytes();
        IpAddr::from([10, 0, a, b])
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_runs_out_and_others_do_not() {
        let knocks = Knocks::default();
        let begun = (0..100).filter(|_| knocks.begin(address(1)).is_ok()).count();
        assert_eq!(begun, ADDRESS_BURST as usize);
        assert_eq!(knocks.begin(address(1)).unwrap_err().seconds, 5);
        knocks.begin(address(2)).expect("another one");
        tokio::time::advance(Duration::from_secs(5)).await;
        knocks.begin(address(1)).expect("a refill");
        assert!(knocks.begin(address(1)).is_err());
        knocks.let_in(address(1));
        knocks.begin(address(1)).expect("it was given back");
    }

    #[tokio::test(start_paused = true)]
    async fn all_together_run_out_too() {
        let knocks = Knocks::default();
        let begun = (0..1_000).filter(|at| knocks.begin(address(*at)).is_ok()).count();
        assert_eq!(begun, ALL_BURST as usize);
        tokio::time::advance(Duration::from_secs(1)).await;
        knocks.begin(address(5_000)).expect("a refill");
    }
}
