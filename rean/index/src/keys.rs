//! Under which key what is kept, and the order of rows.
//!
//! A row's place is one string of bytes: the sort key of its JSON key, the document's id, and its number among the
//! rows of the document. So rows compare as their places do, byte by byte.

use rean_store::engine::Space;

/// Number of an index: given once, never used again. What has another number is another index.
pub(crate) type GroupNo = u32;

/// Which rows belong together in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TreeId {
    pub group: GroupNo,
    pub view: u16,
    /// [`ALL`], or the number of a partial database and one.
    pub part: u32,
}

/// The rows of all documents.
pub(crate) const ALL: u32 = 0;

/// Longest place in bytes: it must fit into an engine's key with a tree before it.
pub(crate) const MAX_PLACE_BYTES: usize = 60_000;

/// Meta keys.
pub(crate) const FORMAT: &[u8] = b"format";
pub(crate) const NEXT: &[u8] = b"next";
pub(crate) const GROUP: &[u8] = b"group/";
pub(crate) const DEAD: &[u8] = b"dead/";
pub(crate) const ROWS: &[u8] = b"rows/";

/// Spaces whose keys begin with the number of an index.
pub(crate) const OF_GROUPS: [Space; 3] = [Space::Docs, Space::Seqs, Space::Bodies];

/// Above each place with the prefix that it follows: no byte after a sort key or within an id is that high.
pub(crate) const TOP: u8 = 0xff;

impl TreeId {
    /// What its keys begin with.
    pub fn prefix(self) -> Vec<u8> {
        let mut key = Vec::with_capacity(10);
        key.extend_from_slice(&self.group.to_be_bytes());
        key.extend_from_slice(&self.view.to_be_bytes());
        key.extend_from_slice(&self.part.to_be_bytes());
        key
    }

    /// The key of a page and of its head.
    pub fn page(self, separator: &[u8]) -> Vec<u8> {
        let mut key = self.prefix();
        key.extend_from_slice(separator);
        key
    }

    /// The key after all of its pages.
    pub fn end(self) -> Vec<u8> {
        after(&self.prefix())
    }

    /// Of the number of its rows.
    pub fn rows(self) -> Vec<u8> {
        [ROWS, &self.prefix()].concat()
    }
}

/// Length of [`TreeId::prefix`].
pub(crate) const TREE_BYTES: usize = 10;

pub(crate) fn group_record(instance: &str, signature: &str) -> Vec<u8> {
    [GROUP, instance.as_bytes(), b"/", signature.as_bytes()].concat()
}

pub(crate) fn groups_of(instance: &str) -> Vec<u8> {
    [GROUP, instance.as_bytes(), b"/"].concat()
}

/// Of the rows that a document has in an index.
pub(crate) fn back(group: GroupNo, id: &str) -> Vec<u8> {
    [&group.to_be_bytes()[..], id.as_bytes()].concat()
}

/// The first key that does not begin with this prefix, which is not all 0xff.
pub(crate) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut key = prefix.to_vec();
    while let Some(last) = key.pop() {
        if last < 0xff {
            key.push(last + 1);
            break;
        }
    }
    key
}

/// Above all places with a prefix, and not above others that are higher.
pub(crate) fn top_of(prefix: &[u8]) -> Vec<u8> {
    [prefix, &[TOP]].concat()
}

/// The place of a row.
pub(crate) fn place(sort_key: &[u8], id: &str, number: u32) -> Vec<u8> {
    let mut place = Vec::with_capacity(sort_key.len() + id.len() + 3);
    place.extend_from_slice(sort_key);
    push_id(&mut place, id);
    match u8::try_from(number) {
        Ok(small) if small < 0x80 => place.push(small),
        _ => {
            place.push(0x80);
            place.extend_from_slice(&number.to_be_bytes());
        }
    }
    place
}

/// Appends an id so that ids compare as their bytes do, and none is the beginning of another.
pub(crate) fn push_id(place: &mut Vec<u8>, id: &str) {
    for byte in id.bytes() {
        place.push(byte);
        if byte == 0 {
            place.push(0xff);
        }
    }
    place.extend_from_slice(&[0, 0]);
}

/// What the places of a partition's rows begin with, and those of no other partition.
pub(crate) fn partition_prefix(partition: &str) -> Vec<u8> {
    let mut prefix = Vec::with_capacity(partition.len() + 2);
    push_id(&mut prefix, partition);
    prefix
}

/// The length of the partition with which a sort key begins.
pub(crate) fn partition_len(sort_key: &[u8]) -> usize {
    pushed_len(sort_key)
}

/// The length of what [`push_id`] has put at the beginning of some bytes.
pub(crate) fn pushed_len(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, bytes.get(at + 1)) {
            (0, Some(0)) => return at + 2,
            (0, _) => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The id in a place, which begins after the sort key.
pub(crate) fn id_of(tail: &[u8]) -> Option<String> {
    let mut id = Vec::with_capacity(tail.len());
    let mut bytes = tail.iter();
    loop {
        match *bytes.next()? {
            0 if *bytes.next()? == 0 => return String::from_utf8(id).ok(),
            byte => id.push(byte),
        }
    }
}

/// The shortest string that is above `low` and not above `high`.
pub(crate) fn separator(low: &[u8], high: &[u8]) -> Vec<u8> {
    let shared = shared(low, high);
    high[..(shared + 1).min(high.len())].to_vec()
}

/// How many bytes two strings have in common at their beginning.
pub(crate) fn shared(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn places_compare_by_key_id_and_number(
            a in ("[\\x00ab]{0,3}", 0u32..300), b in ("[\\x00ab]{0,3}", 0u32..300),
        ) {
            let key = b"\x05x\x00";
            let (left, right) = (place(key, &a.0, a.1), place(key, &b.0, b.1));
            prop_assert_eq!(left.cmp(&right), (a.0.as_bytes(), a.1).cmp(&(b.0.as_bytes(), b.1)));
            prop_assert_eq!(id_of(&left[key.len()..]), Some(a.0.clone()));
            let whole = [&partition_prefix(&a.0)[..], &b"\x00\x00"[..]].concat();
            prop_assert_eq!(partition_len(&whole), partition_prefix(&a.0).len());
            if left < right {
                let between = separator(&left, &right);
                prop_assert!(left < between && between <= right);
            }
        }
    }
}
