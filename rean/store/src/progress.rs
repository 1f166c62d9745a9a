//! How far the store is committed, for those who must not look further.
//!
//! An engine may show a batch before it is flushed. Who hands rows on to other machines waits until what they
//! have read is durable: after a power cut its sequences would be given again, to other documents.

use crate::error::StoreError;
use crate::record::Seq;
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicU64, Ordering};

/// The last commit that is durable and published.
pub(crate) struct Progress {
    commits: AtomicU64,
    seq: AtomicU64,
    /// Why there will be no further commit.
    broken: Mutex<Option<StoreError>>,
    more: Condvar,
}

impl Progress {
    pub fn new(commits: u64, seq: Seq) -> Progress {
        let (commits, seq) = (AtomicU64::new(commits), AtomicU64::new(seq));
        Progress { commits, seq, broken: Mutex::new(None), more: Condvar::new() }
    }

    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Acquire)
    }

    pub fn seq(&self) -> Seq {
        self.seq.load(Ordering::Acquire)
    }

    /// Notes a commit, by the writer alone, after the states of its databases are published.
    pub fn reach(&self, commits: u64, seq: Seq) {
        self.seq.store(seq, Ordering::Release);
        self.commits.store(commits, Ordering::Release);
        // Whoever has just looked and is about to wait holds the lock until it waits.
        drop(self.broken.lock());
        self.more.notify_all();
    }

    /// Notes that there will be no further commit.
    pub fn end(&self, error: StoreError) {
        self.broken.lock().get_or_insert(error);
        self.more.notify_all();
    }

    /// Waits for a commit that is under way: at most one flush.
    pub fn wait_for(&self, commits: u64) -> Result<(), StoreError> {
        let mut broken = self.broken.lock();
        while self.commits() < commits {
            if let Some(error) = &*broken {
                return Err(error.clone());
            }
            self.more.wait(&mut broken);
        }
        Ok(())
    }
}
