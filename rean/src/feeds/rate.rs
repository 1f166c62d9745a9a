//! How fast a client may send messages. One that is faster is read later, and not refused.

use std::time::Duration;

use tokio::time::Instant;

/// Messages at once: twice as many subscriptions as a connection may have, so that a client may come back at full speed.
const BURST: u32 = 512;
/// One more after this long: a hundred a second.
const REFILL: Duration = Duration::from_millis(10);

/// A bucket that fills with time.
#[derive(Debug)]
pub struct Rate {
    left: u32,
    /// Since when the bucket has had `left`.
    since: Instant,
}

impl Rate {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        Self { left: BURST, since: now }
    }

    /// Takes one for a message that has come.
    pub fn take(&mut self, now: Instant) {
        self.fill(now);
        self.left = self.left.saturating_sub(1);
    }

    /// When the next message may be read; `None`: now.
    pub fn wait(&mut self, now: Instant) -> Option<Instant> {
        self.fill(now);
        (self.left == 0).then(|| self.since + REFILL)
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        let new = u32::try_from(passed.as_millis() / REFILL.as_millis()).unwrap_or(BURST);
        if new >= BURST - self.left {
            (self.left, self.since) = (BURST, now);
        } else {
            self.left += new;
            self.since += REFILL * new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BURST, REFILL, Rate};
    use tokio::time::Instant;

    #[test]
    fn a_burst_then_one_each_time() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        for _ in 0..BURST {
            assert_eq!(rate.wait(start), None);
            rate.take(start);
        }
        assert_eq!(rate.wait(start), Some(start + REFILL));
        assert_eq!(rate.wait(start + REFILL), None);
        rate.take(start + REFILL);
        assert_eq!(rate.wait(start + REFILL), Some(start + REFILL * 2));
        // A long rest fills it, and no more than that.
        let later = start + REFILL * (3 * BURST);
        for _ in 0..BURST {
            assert_eq!(rate.wait(later), None);
            rate.take(later);
        }
        assert!(rate.wait(later).is_some());
    }
}
