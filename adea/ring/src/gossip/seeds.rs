//! Addresses at which a pod of the ring may be, and how they are tried.
//!
//! chitchat would look its seeds up once a minute and take no new ones, so it is given none: this tries them instead,
//! each round while this pod is alone, now and then later, so that parts of a ring that lost one another find together.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::seq::IteratorRandom;
use tokio::net::lookup_host;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout};

use super::GossipError;

/// Seeds of a pod: the remembered addresses of a large ring. One is enough.
const MAX_SEEDS: usize = 1024;

/// How many names are looked up at a time.
const MAX_LOOKUPS: usize = 16;

/// The system's resolver may take half a minute for a name server that is gone.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How often names are looked up while this pod is alone, and while it isn't.
const LOOKUP_ALONE: Duration = Duration::from_secs(2);
const LOOKUP_IN_COMPANY: Duration = Duration::from_secs(60);

/// A pod that is alone tries so many addresses a round.
const TRIED_ALONE: usize = 3;

/// A pod in company tries one address that nobody alive has, once in so many rounds (about a second by default).
const STRANGER_EVERY_ROUNDS: u64 = 7;

/// A name, and the addresses that were found for it.
type Found = (String, Option<Vec<SocketAddr>>);

#[derive(Debug, Default)]
pub(super) struct Seeds {
    /// Where each seed was when it was last looked up.
    seeds: Mutex<BTreeMap<String, Vec<SocketAddr>>>,
    changed: Notify,
}

impl Seeds {
    /// Takes in more seeds. Those beyond the bound are left out; there are enough then.
    pub(super) fn add(&self, seeds: &[String]) -> Result<(), GossipError> {
        let mut known = self.seeds.lock().unwrap_or_else(PoisonError::into_inner);
        for seed in seeds {
            if !is_host_and_port(seed) {
                return Err(GossipError::Seed(seed.clone()));
            }
            if known.len() < MAX_SEEDS && !known.contains_key(seed) {
                let address = seed.parse::<SocketAddr>().ok();
                known.insert(seed.clone(), address.into_iter().collect());
            }
        }
        self.changed.notify_one();
        Ok(())
    }

    /// The addresses to try in this round. `strangers` are those of pods that are not alive.
    pub(super) fn pick(
        &self,
        round: u64,
        me: SocketAddr,
        alive: &HashSet<SocketAddr>,
        strangers: &HashSet<SocketAddr>,
    ) -> Vec<SocketAddr> {
        let count = match alive.is_empty() {
            true => TRIED_ALONE,
            false if round.is_multiple_of(STRANGER_EVERY_ROUNDS) => 1,
            false => return Vec::new(),
        };
        let known = self.seeds.lock().unwrap_or_else(PoisonError::into_inner);
        let all: HashSet<SocketAddr> = known.values().flatten().chain(strangers).copied().collect();
        all.into_iter().filter(|address| *address != me && !alive.contains(address)).sample(&mut rand::rng(), count)
    }

    /// Looks names up, again and again. `is_alone` says how eagerly.
    pub(super) async fn resolve(&self, is_alone: impl Fn() -> bool) {
        loop {
            let names: Vec<String> = {
                let known = self.seeds.lock().unwrap_or_else(PoisonError::into_inner);
                known.keys().filter(|seed| seed.parse::<SocketAddr>().is_err()).cloned().collect()
            };
            let mut lookups = JoinSet::new();
            for name in names {
                if lookups.len() >= MAX_LOOKUPS
                    && let Some(found) = lookups.join_next().await
                {
                    self.take(found);
                }
                lookups.spawn(async move {
                    let found = timeout(LOOKUP_TIMEOUT, lookup_host(name.clone())).await;
                    (name, found.ok().and_then(Result::ok).map(Iterator::collect))
                });
            }
            while let Some(found) = lookups.join_next().await {
                self.take(found);
            }
            self.rest(&is_alone).await;
        }
    }

    /// Keeps what was found; where nothing was, what was known before still may be right.
    fn take(&self, found: Result<Found, JoinError>) {
        if let Ok((name, Some(addresses))) = found {
            self.seeds.lock().unwrap_or_else(PoisonError::into_inner).insert(name, addresses);
        }
    }

    async fn rest(&self, is_alone: &impl Fn() -> bool) {
        let since = Instant::now();
        loop {
            if timeout(LOOKUP_ALONE, self.changed.notified()).await.is_ok() {
                return;
            }
            if is_alone() || since.elapsed() >= LOOKUP_IN_COMPANY {
                return;
            }
        }
    }
}

fn is_host_and_port(seed: &str) -> bool {
    seed.parse::<SocketAddr>().is_ok()
        || seed.rsplit_once(':').is_some_and(|(host, port)| {
            let host_fits = !host.is_empty() && host.len() <= 255 && !host.contains([':', '/', ' ']);
            host_fits && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::SocketAddr;

    use super::{MAX_SEEDS, Seeds};
    use crate::gossip::GossipError;

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn what_a_seed_is() {
        let seeds = Seeds::default();
        for good in ["127.0.0.1:80", "[::1]:80", "pod-1.example:7001", "localhost:1"] {
            seeds.add(&[good.to_owned()]).expect(good);
        }
        for bad in ["", "pod", ":80", "pod:", "pod:0", "pod:70000", "::1:80", "http://pod:80", "a b:80"] {
            assert!(matches!(seeds.add(&[bad.to_owned()]), Err(GossipError::Seed(seed)) if seed == bad), "{bad:?}");
        }
        let many: Vec<String> = (0..2 * MAX_SEEDS).map(|host| format!("host-{host}:1")).collect();
        seeds.add(&many).expect("all well formed");
        assert_eq!(seeds.seeds.lock().expect("no panic").len(), MAX_SEEDS);
    }

    #[test]
    fn who_is_tried() {
        let seeds = Seeds::default();
        let all: Vec<String> = (1..=9).map(|port| address(port).to_string()).collect();
        seeds.add(&all).expect("addresses");
        let (me, nobody) = (address(1), HashSet::new());
        let tried: HashSet<_> = (0..200).flat_map(|round| seeds.pick(round, me, &nobody, &nobody)).collect();
        assert_eq!(tried, (2..=9).map(address).collect(), "all, but not itself");
        let alive: HashSet<_> = (3..=9).map(address).collect();
        let gone: HashSet<_> = [address(10)].into();
        assert!(seeds.pick(1, me, &alive, &gone).is_empty());
        let tried: HashSet<_> = (0..500).flat_map(|round| seeds.pick(round, me, &alive, &gone)).collect();
        assert_eq!(tried, [2, 10].map(address).into());
    }
}
