//! Carries packets from place to place under rules that may change at any moment.
//!
//! Each direction of each pair is a link of its own. A link without delay passes a packet on at once; one with delay has a
//! queue with a bound, in which packets keep their order.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tun_rs::AsyncDevice;

use crate::rule::{Fate, Rule};
use crate::space::{MTU, Place};

/// How many packets wait in one direction of a link; what comes on top is lost, as in a router. 1,000 is a common length
/// of a network card's queue.
const QUEUE_PACKETS: usize = 1000;
/// A device that can't be read is tried again: it comes back when its namespace is busy being made or removed.
const DEVICE_PAUSE: Duration = Duration::from_millis(50);

/// The network.
pub struct Hub {
    addresses: Vec<Ipv4Addr>,
    /// `links[from][to]`.
    links: Vec<Vec<Arc<Link>>>,
}

/// One direction between two places.
struct Link {
    state: Mutex<State>,
    queue: mpsc::Sender<(Instant, Box<[u8]>)>,
    packets: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
}

struct State {
    rule: Rule,
    random: StdRng,
    /// When the packet before arrives: none overtakes it.
    last_due: Instant,
}

/// What a link has carried.
#[derive(Debug, Serialize)]
pub struct LinkStats {
    from: usize,
    to: usize,
    packets: u64,
    bytes: u64,
    lost: u64,
}

impl Hub {
    /// Starts to carry packets between these places. Choices are made from the seed.
    pub fn start(places: &[Place], seed: u64) -> Arc<Self> {
        let count = places.len();
        let link = |from: usize, to: usize| {
            Link::start(places[to].device.clone(), seed.wrapping_add((from * count + to) as u64))
        };
        let links = (0..count).map(|from| (0..count).map(|to| link(from, to)).collect()).collect();
        let hub = Arc::new(Self { addresses: places.iter().map(|place| place.address).collect(), links });
        for (from, place) in places.iter().enumerate() {
            tokio::spawn(hub.clone().carry_from(from, place.device.clone()));
        }
        hub
    }

    /// Sets the rule from one place to another; places are numbered from 1.
    pub fn set(&self, from: usize, to: usize, rule: Rule) {
        lock(&self.links[from - 1][to - 1].state).rule = rule;
    }

    /// Makes all links perfect.
    pub fn heal(&self) {
        for link in self.links.iter().flatten() {
            lock(&link.state).rule = Rule::default();
        }
    }

    /// What each link has carried; those that have carried nothing are left out.
    pub fn stats(&self) -> Vec<LinkStats> {
        let mut all = Vec::new();
        for (from, links) in self.links.iter().enumerate() {
            for (to, link) in links.iter().enumerate() {
                let [packets, bytes, lost] =
                    [&link.packets, &link.bytes, &link.lost].map(|n| n.load(Ordering::Relaxed));
                if packets + lost > 0 {
                    all.push(LinkStats { from: from + 1, to: to + 1, packets, bytes, lost });
                }
            }
        }
        all
    }

    async fn carry_from(self: Arc<Self>, from: usize, device: Arc<AsyncDevice>) {
        let mut buffer = vec![0; usize::from(MTU) + 64];
        loop {
            let Ok(length) = device.recv(&mut buffer).await else {
                tokio::time::sleep(DEVICE_PAUSE).await;
                continue;
            };
            let packet = &buffer[..length];
            let Some(to) = destination(packet).and_then(|to| self.addresses.iter().position(|known| *known == to))
            else {
                continue;
            };
            if to != from {
                self.links[from][to].carry(packet);
            }
        }
    }
}

impl Link {
    fn start(device: Arc<AsyncDevice>, seed: u64) -> Arc<Self> {
        let (queue, mut waiting) = mpsc::channel::<(Instant, Box<[u8]>)>(QUEUE_PACKETS);
        let state = State { rule: Rule::default(), random: StdRng::seed_from_u64(seed), last_due: Instant::now() };
        let zero = AtomicU64::default;
        let link = Self { state: Mutex::new(state), queue, packets: zero(), bytes: zero(), lost: zero() };
        tokio::spawn(async move {
            while let Some((due, packet)) = waiting.recv().await {
                if due > Instant::now() {
                    sleep_until(due).await;
                }
                // What a device doesn't take is lost, as everywhere in a network.
                let _ = device.send(&packet).await;
            }
        });
        Arc::new(link)
    }

    fn carry(&self, packet: &[u8]) {
        let due = {
            let mut state = lock(&self.state);
            let State { rule, random, last_due } = &mut *state;
            match rule.fate(random) {
                Fate::Lost => None,
                Fate::Arrives(after) => {
                    *last_due = (*last_due).max(Instant::now() + after);
                    Some(*last_due)
                }
            }
        };
        let carried = due.is_some_and(|due| self.queue.try_send((due, packet.into())).is_ok());
        if carried {
            self.packets.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Where an IPv4 packet wants to go. Other packets (IPv6 looks for routers on every device) go nowhere.
fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    if packet.first()? >> 4 != 4 {
        return None;
    }
    let bytes: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    Some(Ipv4Addr::from(bytes))
}

/// Nothing panics while it holds one of these locks.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::destination;

    #[test]
    fn only_whole_ipv4_headers_have_a_destination() {
        let mut packet = [0u8; 20];
        packet[0] = 0x45;
        packet[16..].copy_from_slice(&[10, 77, 3, 2]);
        assert_eq!(destination(&packet), Some(Ipv4Addr::new(10, 77, 3, 2)));
        assert_eq!(destination(&packet[..19]), None);
        assert_eq!(destination(&[]), None);
        packet[0] = 0x60;
        assert_eq!(destination(&packet), None);
    }
}
