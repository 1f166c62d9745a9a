//! What the functions of an index have cost lately, and how long it is left alone for that.

use std::time::{Duration, Instant};

/// Documents with which functions may hit limits before the index rests: some odd ones are no reason.
const FREE: u32 = 3;
/// The first rest, some times what the free ones may cost; each further hit doubles it.
const FIRST_REST: Duration = Duration::from_secs(30);
/// The longest: a function that hits its limit with every document then costs about a hundredth of a core.
const LONGEST_REST: Duration = Duration::from_secs(600);
/// So long without a hit, beyond the rest, and all are forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// What the functions of an index have cost lately.
#[derive(Default)]
pub(crate) struct Toll {
    hits: u32,
    last: Option<Instant>,
    rests_until: Option<Instant>,
}

impl Toll {
    /// How long the index must still rest, if it must.
    pub fn rests(&self, now: Instant) -> Option<Duration> {
        self.rests_until?.checked_duration_since(now).filter(|rest| !rest.is_zero())
    }

    /// A function hit a limit with one more document. Gives how long the index must rest for it, if it must.
    pub fn add(&mut self, now: Instant) -> Option<Duration> {
        let quiet_since = self.rests_until.max(self.last);
        if quiet_since.is_some_and(|since| now >= since + FORGET_AFTER) {
            self.hits = 0;
        }
        self.hits = self.hits.saturating_add(1);
        self.last = Some(now);
        if self.hits >= FREE {
            let rest = FIRST_REST.saturating_mul(1 << (self.hits - FREE).min(8)).min(LONGEST_REST);
            self.rests_until = Some(now + rest);
        }
        self.rests(now)
    }
}

#[cfg(test)]
mod tests {
    use super::{FIRST_REST, FORGET_AFTER, Instant, LONGEST_REST, Toll};

    #[test]
    fn rests_grow_and_are_forgotten() {
        let (mut toll, mut now) = (Toll::default(), Instant::now());
        assert_eq!((toll.add(now), toll.add(now)), (None, None));
        let mut before = FIRST_REST / 2;
        for _ in 0..8 {
            let rest = toll.add(now).expect("a rest");
            assert_eq!(rest, (before * 2).min(LONGEST_REST));
            assert_eq!(toll.rests(now), Some(rest));
            now += rest;
            assert_eq!(toll.rests(now), None);
            before = rest;
        }
        now += FORGET_AFTER;
        assert_eq!(toll.add(now), None);
    }
}
