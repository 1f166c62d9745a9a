//! What a copy has done so far, and what was refused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rean::replicate::carry;
use rean::replicate::progress::{Progress, Stats};

/// Refused documents that are remembered by name, for each database; what is beyond is only counted.
const MAX_REMEMBERED: usize = 10_000;

/// Counts of one database's copy. The replicator's hands count in it.
pub struct Tally {
    progress: Mutex<Progress>,
    refusals: Mutex<Refusals>,
    /// Documents whose changes have been carried over or were there already.
    done: AtomicU64,
    /// Documents that are still to come, as far as the source tells.
    pending: AtomicU64,
    began: Instant,
}

/// Documents that the target has not taken.
#[derive(Debug, Clone, Default)]
pub struct Refusals {
    /// Why, by id.
    pub named: BTreeMap<String, String>,
    /// How many more there are.
    pub others: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            progress: Mutex::default(),
            refusals: Mutex::default(),
            done: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            began: Instant::now(),
        }
    }
}

impl carry::Tally for Tally {
    fn progress(&self) -> &Mutex<Progress> {
        &self.progress
    }

    fn refused(&self, id: &str, why: &str) {
        let mut refusals = self.refusals.lock();
        if refusals.named.len() < MAX_REMEMBERED || refusals.named.contains_key(id) {
            refusals.named.insert(id.to_owned(), why.to_owned());
        } else {
            refusals.others += 1;
        }
    }
}

impl Refusals {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.named.len() as u64 + self.others
    }
}

impl Tally {
    /// Notes documents that are done, and how many are still to come.
    pub fn advance(&self, documents: u64, pending: Option<u64>) {
        self.done.fetch_add(documents, Ordering::Relaxed);
        match pending {
            Some(pending) => self.pending.store(pending, Ordering::Relaxed),
            None => self.expect(self.pending.load(Ordering::Relaxed).saturating_sub(documents)),
        }
    }

    /// Sets how many documents are to come.
    pub fn expect(&self, pending: u64) {
        self.pending.store(pending, Ordering::Relaxed);
    }

    /// Documents that are done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Documents that are still to come.
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// What the replicator's hands have counted.
    pub fn stats(&self) -> Stats {
        self.progress.lock().stats
    }

    /// What was refused so far.
    pub fn refusals(&self) -> Refusals {
        self.refusals.lock().clone()
    }

    /// Seconds since it began.
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}
