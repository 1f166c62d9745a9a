//! Messages that are larger than a datagram can be.
//!
//! chitchat fills its messages up to the 65,507 bytes that UDP carries over IPv4, and a digest of all pods may be larger
//! still. Sealing adds some, so such a message goes in parts, each sealed by itself.

use std::collections::VecDeque;

use super::seal::{MAX_OVERHEAD_BYTES, Opened};
use crate::PodId;

/// What UDP over IPv4 carries: 65,535 less 20 bytes of IP and 8 of UDP.
pub(super) const MAX_DATAGRAM_BYTES: usize = 65_507;

/// The most of a message in one datagram.
const MAX_PART_BYTES: usize = MAX_DATAGRAM_BYTES - MAX_OVERHEAD_BYTES;

/// Of how many parts a message may be: digests of more pods than chitchat can count with.
const MAX_PARTS: u8 = 4;

/// Senders whose parts are waited for at a time. Large messages are rare; each takes at most 256 KiB here.
const MAX_PENDING: usize = 16;

/// Which part of a message it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    index: u8,
    count: u8,
}

/// Parts whose others are still to come.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pending: VecDeque<Pending>,
}

#[derive(Debug)]
struct Pending {
    sender: PodId,
    generation: u64,
    /// The number of the datagram that has the first part; the others follow it.
    first: u64,
    parts: Vec<Option<Vec<u8>>>,
}

impl Part {
    /// A message of one part.
    #[cfg(test)]
    pub(super) const WHOLE: Self = Self { index: 0, count: 1 };

    pub(super) fn to_byte(self) -> u8 {
        self.index << 4 | self.count
    }

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        let (index, count) = (byte >> 4, byte & 15);
        (index < count && count <= MAX_PARTS).then_some(Self { index, count })
    }

    /// Cuts a message; none when it is too large for that.
    pub(super) fn cut(message: &[u8]) -> Option<impl Iterator<Item = (Self, &[u8])>> {
        let count = u8::try_from(message.len().div_ceil(MAX_PART_BYTES).max(1)).ok()?;
        let parts = (0..count).map(move |index| {
            let from = usize::from(index) * MAX_PART_BYTES;
            (Self { index, count }, &message[from..message.len().min(from + MAX_PART_BYTES)])
        });
        (count <= MAX_PARTS).then_some(parts)
    }
}

impl Parts {
    /// The message that this datagram completes.
    pub(super) fn join(&mut self, opened: Opened) -> Option<Vec<u8>> {
        let Part { index, count } = opened.part;
        if count == 1 {
            return Some(opened.message);
        }
        let first = opened.number.checked_sub(u64::from(index))?;
        // One at a time for each sender: parts are sent one after the other, and what is lost doesn't come again.
        let same = |pending: &Pending| pending.sender == opened.sender;
        let place = match self.pending.iter().position(same) {
            Some(place) if self.pending[place].is(opened.generation, first, count) => place,
            other => {
                other.map(|place| self.pending.remove(place));
                if self.pending.len() >= MAX_PENDING {
                    self.pending.pop_front();
                }
                let parts = vec![None; usize::from(count)];
                let (sender, generation) = (opened.sender, opened.generation);
                self.pending.push_back(Pending { sender, generation, first, parts });
                self.pending.len() - 1
            }
        };
        self.pending[place].parts[usize::from(index)] = Some(opened.message);
        if self.pending[place].parts.iter().any(Option::is_none) {
            return None;
        }
        let whole = self.pending.remove(place)?;
        Some(whole.parts.into_iter().flatten().flatten().collect())
    }
}

impl Pending {
    fn is(&self, generation: u64, first: u64, count: u8) -> bool {
        (self.generation, self.first, self.parts.len()) == (generation, first, usize::from(count))
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_PART_BYTES, MAX_PARTS, MAX_PENDING, Opened, Part, Parts};

    fn opened(sender: &str, number: u64, (part, message): (Part, &[u8])) -> Opened {
        let sender = sender.parse().expect("a pod's id");
        Opened { sender, generation: 1, number, part, message: message.to_vec() }
    }

    #[test]
    fn cut_and_joined_in_any_order() {
        for (bytes, count) in [(0, 1), (MAX_PART_BYTES, 1), (MAX_PART_BYTES + 1, 2), (4 * MAX_PART_BYTES, 4)] {
            let message: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
            let mut cut: Vec<_> = Part::cut(&message).expect("not too large").zip(5..).collect();
            assert_eq!(cut.len(), count);
            cut.reverse();
            let mut parts = Parts::default();
            let joined: Vec<_> =
                cut.into_iter().filter_map(|(part, number)| parts.join(opened("a", number, part))).collect();
            assert_eq!(joined, [message]);
            assert!(parts.pending.is_empty());
        }
        assert!(Part::cut(&vec![0; usize::from(MAX_PARTS) * MAX_PART_BYTES + 1]).is_none());
    }

    #[test]
    fn what_misses_parts_is_forgotten() {
        let message = vec![1; MAX_PART_BYTES + 1];
        let two: Vec<_> = Part::cut(&message).expect("not too large").collect();
        let mut parts = Parts::default();
        assert_eq!(parts.join(opened("a", 1, two[0])), None);
        assert_eq!(parts.join(opened("a", 4, two[1])), None, "of another message");
        assert_eq!(parts.join(opened("a", 3, two[0])), Some(message.clone()));
        assert_eq!(parts.join(opened("a", 0, two[1])), None, "a number that can't be");
        for sender in 0..2 * MAX_PENDING {
            assert_eq!(parts.join(opened(&format!("pod-{sender}"), 1, two[0])), None);
        }
        assert_eq!(parts.pending.len(), MAX_PENDING);
    }

    #[test]
    fn bytes() {
        for byte in 0..=u8::MAX {
            match Part::from_byte(byte) {
                Some(part) => assert_eq!(part.to_byte(), byte),
                None => assert!(byte >> 4 >= byte & 15 || byte & 15 > MAX_PARTS, "{byte}"),
            }
        }
    }
}
