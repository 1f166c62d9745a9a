//! A hybrid logical clock: stamps that keep causal order, stay near the time of day, and sort as text.
//!
//! After S. Kulkarni, M. Demirbas, D. Madappa, B. Avva, M. Leone, "Logical Physical Clocks and Consistent Snapshots in
//! Globally Distributed Databases" (2014), figure 5; with their section 5's bound on drift, a counter that carries
//! into the milliseconds, and a bound on disk that makes the clock go on, not back, after a restart.
//!
//! Of two stamps, the one that is made later by the same pod, or made by a pod that has observed the other, is the
//! greater. The pod in a stamp makes it unique in the ring.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::member::{PodId, PodIdError};

/// How far ahead of this machine's time a stamp of another pod may be, unless configured otherwise, in milliseconds.
/// Machines that set their clocks by NTP differ by less than a second; one that is a minute off needs its operator.
pub const DEFAULT_MAX_DRIFT_MS: u64 = 60_000;

/// No drift larger than this can be allowed: a day's difference is a wrong clock whatever the configuration says.
const LARGEST_MAX_DRIFT_MS: u64 = 86_400_000;

/// How far ahead of the time of day the persisted bound is put, in milliseconds: the clock is persisted at most about
/// once in that time, and a restart within it starts that far ahead.
const RESERVE_MS: u64 = 1_000;

/// Digits of the milliseconds in a stamp's text: 48 bits.
const MILLIS_DIGITS: usize = 12;
/// Digits of the counter in a stamp's text: 16 bits.
const COUNTER_DIGITS: usize = 4;

/// The latest time that a stamp may be read with, in milliseconds since 1970 (the year 6429). Half of what the text has
/// room for, so that a clock can go on from any stamp that was read: 2^63 stamps fit in between.
const MAX_MILLIS: u64 = (1 << (4 * MILLIS_DIGITS - 1)) - 1;

/// What a machine's clock is taken for at most; the machine that says more is wrong.
const MAX_PHYSICAL_MS: u64 = MAX_MILLIS - LARGEST_MAX_DRIFT_MS - RESERVE_MS;

/// A moment in the ring: greater than all that its pod had made or observed before.
///
/// As text, `MILLISECONDS-COUNTER-POD` with 12 and 4 lower-case hexadecimal digits; sorted as text (by bytes), stamps
/// are in the order of their values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Stamp {
    millis: u64,
    counter: u16,
    pod: PodId,
}

/// Why a text is no stamp.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StampError {
    /// It has not the form of a stamp.
    #[error("a stamp is 12 hexadecimal digits, 4 hexadecimal digits and a pod's id, with hyphens between")]
    Form,
    /// Its time is one that no right clock shows.
    #[error("a stamp's time must be before the year 6429")]
    Far,
    /// It names no pod.
    #[error("a stamp's pod: {0}")]
    Pod(#[from] PodIdError),
}

/// A stamp was refused since its pod's clock is too far ahead of this one's; this clock is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the clock of {pod} is {by_ms} ms ahead of this one's")]
pub struct DriftError {
    /// Whose stamp it is.
    pub pod: PodId,
    /// How far its time is ahead of this machine's time, in milliseconds.
    pub by_ms: u64,
}

/// One pod's clock.
///
/// Stamps may be given away only after [`Clock::reserve`] has seen to it that what is on disk is ahead of them.
#[derive(Debug, Clone)]
pub struct Clock {
    pod: PodId,
    millis: u64,
    counter: u16,
    max_drift_ms: u64,
    /// What is on disk: no stamp that was given is at or after it.
    persisted: Option<Stamp>,
}

impl Stamp {
    /// The time in it, in milliseconds since 1970: at least the time of day at which it was made.
    pub fn millis(&self) -> u64 {
        self.millis
    }

    /// Tells stamps of the same millisecond apart.
    pub fn counter(&self) -> u16 {
        self.counter
    }

    /// Who made it.
    pub fn pod(&self) -> &PodId {
        &self.pod
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0MILLIS_DIGITS$x}-{:0COUNTER_DIGITS$x}-{}", self.millis, self.counter, self.pod)
    }
}

impl FromStr for Stamp {
    type Err = StampError;

    fn from_str(text: &str) -> Result<Self, StampError> {
        let mut parts = text.splitn(3, '-');
        let mut next = || parts.next().ok_or(StampError::Form);
        let (millis, counter, pod) = (next()?, next()?, next()?);
        let millis = digits(millis, MILLIS_DIGITS)?;
        if millis > MAX_MILLIS {
            return Err(StampError::Far);
        }
        let counter = u16::try_from(digits(counter, COUNTER_DIGITS)?).map_err(|_| StampError::Form)?;
        Ok(Self { millis, counter, pod: pod.parse()? })
    }
}

impl TryFrom<String> for Stamp {
    type Error = StampError;

    fn try_from(text: String) -> Result<Self, StampError> {
        text.parse()
    }
}

impl From<Stamp> for String {
    fn from(stamp: Stamp) -> Self {
        stamp.to_string()
    }
}

impl Clock {
    /// A clock that goes on after `last`, the stamp that [`Clock::reserve`] persisted; none for a pod that never had one.
    /// Stamps of others are refused when they are more than `max_drift_ms` (at most a day) ahead.
    pub fn new(pod: PodId, last: Option<Stamp>, max_drift_ms: u64) -> Self {
        let (millis, counter) = last.as_ref().map_or((0, 0), |last| (last.millis, last.counter));
        Self { pod, millis, counter, max_drift_ms: max_drift_ms.min(LARGEST_MAX_DRIFT_MS), persisted: last }
    }

    /// A new stamp at this machine's time (milliseconds since 1970), greater than all that were made or observed
    /// before, also when the machine's time has gone back.
    pub fn now(&mut self, physical_ms: u64) -> Stamp {
        let physical_ms = physical_ms.min(MAX_PHYSICAL_MS);
        if physical_ms > self.millis {
            (self.millis, self.counter) = (physical_ms, 0);
        } else {
            self.count();
        }
        self.last()
    }

    /// A new stamp that is also greater than `stamp`, which came from another pod.
    ///
    /// # Errors
    /// When the stamp is further ahead than is allowed. The clock does not move: a pod whose clock is wrong is named,
    /// and can't drag the others' clocks along.
    pub fn observe(&mut self, stamp: &Stamp, physical_ms: u64) -> Result<Stamp, DriftError> {
        let physical_ms = physical_ms.min(MAX_PHYSICAL_MS);
        let by_ms = stamp.millis.saturating_sub(physical_ms);
        if by_ms > self.max_drift_ms {
            return Err(DriftError { pod: stamp.pod.clone(), by_ms });
        }
        if (stamp.millis, stamp.counter) > (self.millis, self.counter) {
            (self.millis, self.counter) = (stamp.millis, stamp.counter);
        }
        Ok(self.now(physical_ms))
    }

    /// Sees to it that the bound on disk is ahead of all stamps made so far. To be called between making a stamp and
    /// giving it away; it calls `persist` rarely, with a bound to be on disk when `persist` returns.
    ///
    /// # Errors
    /// What `persist` says. The stamp must not be given away then; the next call tries again.
    pub fn reserve<E>(&mut self, physical_ms: u64, persist: impl FnOnce(&Stamp) -> Result<(), E>) -> Result<(), E> {
        let last = self.last();
        if self.persisted.as_ref().is_some_and(|bound| *bound > last) {
            return Ok(());
        }
        // A clock that is ahead of the time of day reserves only the next millisecond: were it a second each time,
        // a pod that crashes in a loop would run ahead of the ring.
        let millis = (physical_ms.min(MAX_PHYSICAL_MS) + RESERVE_MS).max(self.millis + 1);
        let bound = Stamp { millis, counter: 0, pod: self.pod.clone() };
        persist(&bound)?;
        self.persisted = Some(bound);
        Ok(())
    }

    /// The latest stamp that was made.
    fn last(&self) -> Stamp {
        Stamp { millis: self.millis, counter: self.counter, pod: self.pod.clone() }
    }

    /// A full counter carries into the milliseconds, as in a number of 64 bits.
    fn count(&mut self) {
        match self.counter.checked_add(1) {
            Some(counter) => self.counter = counter,
            None => (self.millis, self.counter) = (self.millis + 1, 0),
        }
    }
}

/// A number of so many lower-case hexadecimal digits; upper-case ones would not sort.
fn digits(text: &str, count: usize) -> Result<u64, StampError> {
    let fits = text.len() == count && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !fits {
        return Err(StampError::Form);
    }
    u64::from_str_radix(text, 16).map_err(|_| StampError::Form)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::{Clock, DEFAULT_MAX_DRIFT_MS, MAX_MILLIS, RESERVE_MS, Stamp, StampError};
    use crate::member::PodId;

    fn pod(name: &str) -> PodId {
        name.parse().expect("a pod's id")
    }

    fn clock(name: &str) -> Clock {
        Clock::new(pod(name), None, DEFAULT_MAX_DRIFT_MS)
    }

    fn stamp(text: &str) -> Stamp {
        text.parse().expect("a stamp")
    }

    fn stamps() -> impl Strategy<Value = Stamp> {
        (0..=MAX_MILLIS, any::<u16>(), "[a-z0-9-]{1,64}").prop_map(|(millis, counter, name)| Stamp {
            millis,
            counter,
            pod: pod(&name),
        })
    }

    #[test]
    fn the_text_is_strict() {
        assert_eq!(stamp("0190a1b2c3d4-00ff-pod-1").to_string(), "0190a1b2c3d4-00ff-pod-1");
        for text in ["", "-", "0190a1b2c3d4-00ff", "0190A1b2c3d4-00ff-p", "190a1b2c3d4-00ff-p", "+190a1b2c3d4-00ff-p"] {
            assert_eq!(text.parse::<Stamp>(), Err(StampError::Form), "{text:?}");
        }
        assert_eq!("ffffffffffff-0000-p".parse::<Stamp>(), Err(StampError::Far));
        assert!(matches!("0190a1b2c3d4-00ff-P".parse::<Stamp>(), Err(StampError::Pod(_))));
        let json = serde_json::to_string(&stamp("0190a1b2c3d4-00ff-pod-1")).expect("JSON");
        assert_eq!(json, r#""0190a1b2c3d4-00ff-pod-1""#);
        assert_eq!(serde_json::from_str::<Stamp>(&json).expect("a stamp"), stamp("0190a1b2c3d4-00ff-pod-1"));
        assert!(serde_json::from_str::<Stamp>("\"x\"").is_err());
    }

    #[test]
    fn a_full_counter_carries() {
        let mut clock = Clock::new(pod("a"), Some(stamp("0000000003e8-ffff-a")), DEFAULT_MAX_DRIFT_MS);
        assert_eq!(clock.now(1_000), stamp("0000000003e9-0000-a"));
        let mut clock = Clock::new(pod("a"), Some(stamp("7fffffffffff-ffff-a")), DEFAULT_MAX_DRIFT_MS);
        assert_eq!(clock.now(u64::MAX).to_string(), "800000000000-0000-a");
    }

    #[test]
    fn a_stamp_from_far_ahead_is_refused_and_named() {
        let mut clock = clock("a");
        let before = clock.now(1_000);
        let far = Stamp { millis: 1_001 + DEFAULT_MAX_DRIFT_MS, counter: 0, pod: pod("b") };
        let err = clock.observe(&far, 1_000).expect_err("too far ahead");
        assert_eq!((err.pod, err.by_ms), (pod("b"), DEFAULT_MAX_DRIFT_MS + 1));
        let after = clock.now(1_000);
        assert_eq!((after.millis(), after.counter()), (before.millis(), before.counter() + 1));
        let near = Stamp { millis: far.millis - 1, ..far };
        assert!(clock.observe(&near, 1_000).expect("at the bound") > near);
    }

    #[test]
    fn a_crash_loop_does_not_run_ahead() {
        let mut persisted = None;
        for _ in 0..10_000 {
            let mut clock = Clock::new(pod("a"), persisted.clone(), DEFAULT_MAX_DRIFT_MS);
            clock.now(5_000);
            let done: Result<(), Infallible> = clock.reserve(5_000, |bound| {
                persisted = Some(bound.clone());
                Ok(())
            });
            done.expect("can't fail");
        }
        let ahead = persisted.expect("a bound").millis() - 5_000;
        assert!(ahead <= RESERVE_MS + 10_000, "a millisecond for each crash, not a second: {ahead}");
    }

    #[test]
    fn a_bound_that_was_not_persisted_does_not_count() {
        let mut clock = clock("a");
        clock.now(1_000);
        assert_eq!(clock.reserve(1_000, |_| Err("disk")), Err("disk"));
        let mut asked = false;
        let done: Result<(), Infallible> = clock.reserve(1_000, |_| {
            asked = true;
            Ok(())
        });
        done.expect("can't fail");
        assert!(asked);
    }

    /// What may happen to a clock.
    #[derive(Debug, Clone)]
    enum Event {
        Now { physical_ms: u64 },
        Observe { stamp: Stamp, physical_ms: u64 },
        Restart,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        // Times close to one another, so that all branches are taken, and now and then any at all.
        let time = || prop_oneof![9 => 0..5_000u64, 1 => any::<u64>()];
        let close = (0..200_000u64, prop_oneof![any::<u16>(), 65_530..=u16::MAX]).prop_map(|(millis, counter)| Stamp {
            millis,
            counter,
            pod: pod("other"),
        });
        let stamp = prop_oneof![9 => close, 1 => stamps()];
        let event = prop_oneof![
            6 => time().prop_map(|physical_ms| Event::Now { physical_ms }),
            3 => (stamp, time()).prop_map(|(stamp, physical_ms)| Event::Observe { stamp, physical_ms }),
            1 => proptest::prelude::Just(Event::Restart),
        ];
        vec(event, 0..200)
    }

    proptest! {
        #[test]
        fn text_sorts_and_parses(a in stamps(), b in stamps()) {
            prop_assert_eq!(a.to_string().cmp(&b.to_string()), a.cmp(&b));
            prop_assert_eq!(a.to_string().parse::<Stamp>(), Ok(a));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            if let Ok(stamp) = text.parse::<Stamp>() {
                prop_assert_eq!(stamp.to_string(), text);
            }
        }

        #[test]
        fn never_backwards_whatever_happens(events in events()) {
            let mut clock = clock("a");
            let mut persisted: Option<Stamp> = None;
            let mut given: Option<Stamp> = None;
            for event in events {
                let (made, physical_ms) = match event {
                    Event::Now { physical_ms } => (clock.now(physical_ms), physical_ms),
                    Event::Observe { stamp, physical_ms } => match clock.observe(&stamp, physical_ms) {
                        Ok(made) => {
                            prop_assert!(made > stamp);
                            (made, physical_ms)
                        }
                        Err(err) => {
                            prop_assert!(err.by_ms > DEFAULT_MAX_DRIFT_MS);
                            prop_assert!(stamp.millis() > physical_ms.saturating_add(DEFAULT_MAX_DRIFT_MS).min(super::MAX_PHYSICAL_MS));
                            continue;
                        }
                    },
                    Event::Restart => {
                        clock = Clock::new(pod("a"), persisted.clone(), DEFAULT_MAX_DRIFT_MS);
                        continue;
                    }
                };
                let done: Result<(), Infallible> = clock.reserve(physical_ms, |bound| {
                    persisted = Some(bound.clone());
                    Ok(())
                });
                prop_assert!(done.is_ok());
                prop_assert!(persisted.as_ref().is_some_and(|bound| *bound > made));
                prop_assert!(given.is_none_or(|given| made > given), "{made}");
                given = Some(made);
            }
        }

        #[test]
        fn others_move_it_no_further_than_the_drift(millis in 0..1_000_000u64, physical_ms in 0..1_000_000u64) {
            let mut clock = clock("a");
            let theirs = Stamp { millis, counter: 7, pod: pod("b") };
            if let Ok(made) = clock.observe(&theirs, physical_ms) {
                prop_assert!(made.millis() <= physical_ms + DEFAULT_MAX_DRIFT_MS);
            }
        }
    }
}
