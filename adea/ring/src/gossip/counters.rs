//! What came and went, and what was dropped.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::warn;

/// At most one line of log in that time for each kind of datagram that is dropped: whoever can reach the port can send
/// as many as they like.
const LOG_EVERY: Duration = Duration::from_secs(60);

const KINDS: usize = 6;

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
    /// Too short, or of a version that isn't known.
    Garbage,
    /// Sealed with a key that this pod doesn't have, or changed on its way.
    Foreign,
    /// Seen before, or too old to tell.
    Replayed,
    /// Sealed by a pod of the ring, and not understood.
    Malformed,
    /// This pod's own, as happens when its own address is among the seeds.
    Own,
    /// Could not be sent.
    Unsent,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
    dropped: [AtomicU64; KINDS],
    logged: Mutex<[Option<Instant>; KINDS]>,
}

/// The counts at a moment, since the start of gossip.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersSnapshot {
    /// Datagrams that were sent.
    pub sent: u64,
    /// Their bytes, without those of UDP and IP.
    pub sent_bytes: u64,
    /// Datagrams that came in, of whatever kind.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Dropped: too short, or of a version that isn't known.
    pub garbage: u64,
    /// Dropped: sealed with a key that this pod doesn't have, or changed on their way.
    pub foreign: u64,
    /// Dropped: seen before, of an earlier start of their sender, or too late.
    pub replayed: u64,
    /// Dropped: sealed by a pod of the ring, and not understood.
    pub malformed: u64,
    /// Dropped: this pod's own.
    pub own: u64,
    /// Datagrams that the system refused to send.
    pub unsent: u64,
}

impl Counters {
    pub(super) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received.fetch_add(1, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a datagram that came from, or was to go to, `peer`, and logs it unless one of its kind was logged lately.
    pub(super) fn dropped(&self, why: Dropped, peer: SocketAddr) {
        let count = self.dropped[why as usize].fetch_add(1, Ordering::Relaxed) + 1;
        if why == Dropped::Own {
            return;
        }
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let last = &mut logged[why as usize];
        if last.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            *last = Some(Instant::now());
            warn!(%peer, count, "gossip: dropped datagrams: {}", why.as_str());
        }
    }

    pub(super) fn snapshot(&self) -> CountersSnapshot {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let dropped = |why: Dropped| get(&self.dropped[why as usize]);
        CountersSnapshot {
            sent: get(&self.sent),
            sent_bytes: get(&self.sent_bytes),
            received: get(&self.received),
            received_bytes: get(&self.received_bytes),
            garbage: dropped(Dropped::Garbage),
            foreign: dropped(Dropped::Foreign),
            replayed: dropped(Dropped::Replayed),
            malformed: dropped(Dropped::Malformed),
            own: dropped(Dropped::Own),
            unsent: dropped(Dropped::Unsent),
        }
    }
}

impl Dropped {
    fn as_str(self) -> &'static str {
        match self {
            Self::Garbage => "not of this ring's form",
            Self::Foreign => "not sealed by this ring",
            Self::Replayed => "seen before",
            Self::Malformed => "sealed by this ring, but not understood",
            Self::Own => "this pod's own",
            Self::Unsent => "they could not be sent",
        }
    }
}
