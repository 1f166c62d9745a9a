//! The breaker: what takes too long again and again is not tried for a while.
//!
//! It knows who asked: a client whose documents drive a function to its limits rests alone, and others go on. Memory is
//! no matter of its own here: the engine stops who wants too much in a moment, and what a client sends may be the cause.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::design::DesignHash;

/// So many hits are free: a machine that is busy for a moment is no reason to refuse a design's calls.
const FREE_STRIKES: u32 = 3;
/// Hits are forgotten after this time without another.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// The longest pause: long beside a call's five seconds, short for those who mend the function's data.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Functions that are remembered at once; more designs than this that fail at the same time push out the oldest.
const MOST_KEPT: usize = 1_024;

/// Which functions hit limits, and until when they rest.
#[derive(Default)]
pub(crate) struct Breaker {
    kept: Mutex<HashMap<Key, Record>>,
}

/// A function of a design document, and who asked for it.
type Key = (DesignHash, String, Option<String>);

struct Record {
    strikes: u32,
    last: Instant,
    rests_until: Instant,
}

impl Breaker {
    /// Whether anything may rest.
    pub(crate) fn knows_any(&self) -> bool {
        !self.kept.lock().is_empty()
    }

    /// How long the function must still rest for this one, if it must.
    pub(crate) fn rests(
        &self,
        design: DesignHash,
        function: &str,
        asker: Option<&str>,
        now: Instant,
    ) -> Option<Duration> {
        let kept = self.kept.lock();
        let record = kept.get(&key(design, function, asker))?;
        record.rests_until.checked_duration_since(now).filter(|rest| !rest.is_zero())
    }

    /// The function took too long for this one.
    pub(crate) fn strike(&self, design: DesignHash, function: &str, asker: Option<&str>, now: Instant) {
        let mut kept = self.kept.lock();
        kept.retain(|_, record| now < record.rests_until.max(record.last) + FORGET_AFTER);
        if kept.len() >= MOST_KEPT {
            let oldest = kept.iter().min_by_key(|(_, record)| record.last).map(|(key, _)| key.clone());
            oldest.and_then(|key| kept.remove(&key));
        }
        let record =
            kept.entry(key(design, function, asker)).or_insert(Record { strikes: 0, last: now, rests_until: now });
        record.strikes = record.strikes.saturating_add(1);
        record.last = now;
        if record.strikes >= FREE_STRIKES {
            let pause = Duration::from_secs(1 << (record.strikes - FREE_STRIKES).min(6));
            record.rests_until = now + pause.min(LONGEST_PAUSE);
        }
    }
}

fn key(design: DesignHash, function: &str, asker: Option<&str>) -> Key {
    (design, function.to_owned(), asker.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::{Breaker, Duration, FORGET_AFTER, Instant, LONGEST_PAUSE, MOST_KEPT};
    use crate::Design;

    #[test]
    fn rests_grow_and_are_forgotten() {
        let (breaker, hash, mut now) = (Breaker::default(), Design::new("{}").unwrap().hash(), Instant::now());
        for _ in 0..2 {
            breaker.strike(hash, "f", None, now);
            assert_eq!(breaker.rests(hash, "f", None, now), None);
        }
        let mut before = Duration::ZERO;
        for _ in 0..6 {
            breaker.strike(hash, "f", None, now);
            let rest = breaker.rests(hash, "f", None, now).unwrap();
            assert!(rest > before && rest <= LONGEST_PAUSE);
            assert_eq!(breaker.rests(hash, "g", None, now), None);
            assert_eq!(breaker.rests(hash, "f", Some("ann"), now), None);
            now += rest;
            assert_eq!(breaker.rests(hash, "f", None, now), None);
            before = rest;
        }
        now += FORGET_AFTER + Duration::from_secs(1);
        breaker.strike(hash, "f", None, now);
        assert_eq!(breaker.rests(hash, "f", None, now), None);
    }

    #[test]
    fn what_it_keeps_is_bounded() {
        let (breaker, hash, now) = (Breaker::default(), Design::new("{}").unwrap().hash(), Instant::now());
        for n in 0..MOST_KEPT * 2 {
            breaker.strike(hash, &n.to_string(), None, now);
        }
        assert_eq!(breaker.kept.lock().len(), MOST_KEPT);
    }
}
