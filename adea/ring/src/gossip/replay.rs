//! Which datagrams were seen before.
//!
//! Each sender numbers its datagrams, from one on in each generation. A window over the latest numbers, as in IPsec (RFC
//! 4303, section 3.4.3), lets them come out of order and each only once. A pod that has just started knows of no numbers
//! yet: what was recorded before passes once, and changes nothing that gossip has newer.

use std::collections::HashMap;

use crate::PodId;

/// How far a datagram may be overtaken by others of its sender. A pod in a large ring sends a few hundred a second, and
/// no network holds one back for seconds.
pub(super) const WINDOW: u64 = 1024;

/// Senders that are remembered. Only holders of a key can add one, and no ring is that large.
const MAX_SENDERS: usize = 4096;

const WORDS: usize = (WINDOW / 64) as usize;

/// What was seen of each sender.
#[derive(Debug, Default)]
pub(super) struct Replays {
    senders: HashMap<PodId, Seen>,
    /// Counts all datagrams: the sender with the smallest `heard` has been silent longest.
    clock: u64,
}

#[derive(Debug)]
struct Seen {
    generation: u64,
    newest: u64,
    /// Number n is at bit n modulo the window.
    bits: [u64; WORDS],
    heard: u64,
}

impl Replays {
    /// Notes a datagram; false if it was seen before, or is too old to tell.
    pub(super) fn admit(&mut self, sender: &PodId, generation: u64, number: u64) -> bool {
        self.clock += 1;
        let clock = self.clock;
        if let Some(seen) = self.senders.get_mut(sender) {
            if generation < seen.generation {
                return false;
            }
            if generation > seen.generation {
                *seen = Seen::new(generation);
            }
            let new = seen.admit(number);
            if new {
                seen.heard = clock;
            }
            return new;
        }
        if self.senders.len() >= MAX_SENDERS {
            let silent = self.senders.iter().min_by_key(|(_, seen)| seen.heard).map(|(id, _)| id.clone());
            silent.map(|id| self.senders.remove(&id));
        }
        let mut seen = Seen::new(generation);
        seen.heard = clock;
        let new = seen.admit(number);
        self.senders.insert(sender.clone(), seen);
        new
    }
}

impl Seen {
    fn new(generation: u64) -> Self {
        Self { generation, newest: 0, bits: [0; WORDS], heard: 0 }
    }

    fn admit(&mut self, number: u64) -> bool {
        if number > self.newest {
            if number - self.newest >= WINDOW {
                self.bits = [0; WORDS];
            } else {
                (self.newest + 1..=number).for_each(|skipped| self.bits[word(skipped)] &= !bit(skipped));
            }
            self.newest = number;
        } else if number == 0 || self.newest - number >= WINDOW || self.bits[word(number)] & bit(number) != 0 {
            return false;
        }
        self.bits[word(number)] |= bit(number);
        true
    }
}

fn word(number: u64) -> usize {
    (number % WINDOW / 64) as usize
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::collection::vec;
    use proptest::prelude::{Strategy, prop_assert_eq, prop_oneof, proptest};

    use super::{MAX_SENDERS, Replays, WINDOW};
    use crate::PodId;

    fn pod(name: &str) -> PodId {
        name.parse().expect("a pod's id")
    }

    #[test]
    fn each_once_per_sender_and_generation() {
        let mut replays = Replays::default();
        assert!(!replays.admit(&pod("a"), 1, 0), "numbers start at one");
        assert!(replays.admit(&pod("a"), 1, 1) && !replays.admit(&pod("a"), 1, 1));
        assert!(replays.admit(&pod("b"), 1, 1));
        assert!(replays.admit(&pod("a"), 2, 1), "a new generation starts anew");
        assert!(!replays.admit(&pod("a"), 1, 2), "an old generation is over");
        assert!(replays.admit(&pod("a"), 2, u64::MAX) && !replays.admit(&pod("a"), 2, u64::MAX));
        assert!(!replays.admit(&pod("a"), 2, 2));
    }

    #[test]
    fn senders_are_bounded() {
        let mut replays = Replays::default();
        for sender in 0..MAX_SENDERS + 10 {
            assert!(replays.admit(&pod(&format!("pod-{sender}")), 1, 1));
            if sender > 0 {
                assert!(replays.admit(&pod("pod-0"), 1, sender as u64 + 1), "who is heard is kept");
            }
        }
        assert_eq!(replays.senders.len(), MAX_SENDERS);
        assert!(!replays.admit(&pod("pod-0"), 1, 1));
    }

    fn numbers() -> impl Strategy<Value = Vec<u64>> {
        vec(prop_oneof![8 => 1..200u64, 2 => 1..3 * WINDOW, 1 => WINDOW - 2..WINDOW + 2], 1..300)
    }

    proptest! {
        #[test]
        fn as_a_set_with_a_window(numbers in numbers()) {
            let mut replays = Replays::default();
            let (mut seen, mut newest) = (HashSet::new(), 0);
            for number in numbers {
                let old = newest >= WINDOW && number <= newest - WINDOW;
                let new = !old && seen.insert(number);
                newest = newest.max(number);
                prop_assert_eq!(replays.admit(&pod("a"), 1, number), new, "{} after {}", number, newest);
            }
        }
    }
}
