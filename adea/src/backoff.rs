//! How long to wait before a dead program is started again.

/// The first pause: short, so that a killed program is back before most clients' time-outs.
pub const FIRST_MS: u64 = 100;
/// The longest pause: a program that can't start must not burn a core, yet should be back soon after
/// the cause is gone.
pub const LONGEST_MS: u64 = 10_000;
/// A program that was well for this long has earned a short pause again.
pub const HEALTHY_AGAIN_MS: u64 = 30_000;

/// Counts a program's failures in a row.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause, in milliseconds, after the program has ended; `well_ms` is for how long it had
    /// been healthy.
    pub fn after_end(&mut self, well_ms: u64) -> u64 {
        if well_ms >= HEALTHY_AGAIN_MS {
            self.failures = 0;
        }
        let doublings = self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        (FIRST_MS << doublings).min(LONGEST_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::{Backoff, FIRST_MS, HEALTHY_AGAIN_MS, LONGEST_MS};

    #[test]
    fn doubles_to_the_longest_and_resets_when_well() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u64> = (0..10).map(|_| backoff.after_end(0)).collect();
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[9], LONGEST_MS);
        assert_eq!(backoff.after_end(HEALTHY_AGAIN_MS - 1), LONGEST_MS);
        assert_eq!(backoff.after_end(HEALTHY_AGAIN_MS), FIRST_MS);
    }

    #[test]
    fn never_overflows() {
        let mut backoff = Backoff { failures: u32::MAX - 1 };
        assert_eq!(backoff.after_end(0), LONGEST_MS);
        assert_eq!(backoff.after_end(0), LONGEST_MS);
        assert_eq!(backoff.after_end(0), LONGEST_MS);
    }
}
