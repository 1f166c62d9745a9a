//! How slowly bytes may come from somebody who holds something that others need: on average so many in a second, looked at
//! over a time, after a first time in which nothing is asked.
//!
//! It is a stock of patience. Waiting takes of it, bytes give to it, and it never holds more than the time that is looked
//! at: who was quick for an hour can't then be silent for an hour. What passes while nobody waits for the sender takes
//! nothing, as a slow disk is not the client's fault.

use std::time::Duration;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    bytes_per_s: u64,
    most: Duration,
    left: Duration,
}

impl Pace {
    /// At least `bytes_per_s`, which is more than 0, on average over `window`, after a first `grace`.
    pub fn new(bytes_per_s: u64, grace: Duration, window: Duration) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), most: window.max(grace), left: grace }
    }

    /// How much longer may be waited if nothing comes.
    pub fn left(&self) -> Duration {
        self.left
    }

    /// So long was waited.
    pub fn waited(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }

    /// So many bytes have come.
    pub fn came(&mut self, bytes: u64) {
        let whole = Duration::from_secs(bytes / self.bytes_per_s);
        // Below a second, so it fits after the division.
        let nanos = u128::from(bytes % self.bytes_per_s) * 1_000_000_000 / u128::from(self.bytes_per_s);
        let part = Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
        self.left = self.left.saturating_add(whole).saturating_add(part).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::Pace;
    use std::time::Duration;

    fn pace() -> Pace {
        Pace::new(1_000, Duration::from_secs(20), Duration::from_secs(30))
    }

    #[test]
    fn who_is_slower_is_given_up_and_who_is_not_never() {
        // A byte each second, and as many as are asked for, over eight hours.
        for (bytes, holds) in [(1, false), (999, false), (1_000, true), (u64::MAX, true)] {
            let mut pace = pace();
            let mut waited_s = 0;
            while waited_s < 7_200 * 4 && pace.left() >= Duration::from_secs(1) {
                pace.waited(Duration::from_secs(1));
                pace.came(bytes);
                waited_s += 1;
            }
            assert_eq!(waited_s == 7_200 * 4, holds, "{bytes} bytes a second were let go on for {waited_s} s");
        }
    }

    #[test]
    fn what_was_quick_before_buys_no_more_than_the_window() {
        let mut pace = pace();
        assert_eq!(pace.left(), Duration::from_secs(20));
        pace.came(1 << 40);
        assert_eq!(pace.left(), Duration::from_secs(30));
        pace.waited(Duration::from_secs(29));
        pace.came(500);
        assert_eq!(pace.left(), Duration::from_millis(1_500));
        pace.waited(Duration::from_secs(60));
        assert_eq!(pace.left(), Duration::ZERO);
    }
}
