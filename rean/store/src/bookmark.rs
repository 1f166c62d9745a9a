//! What a client holds of its place in a feed.
//!
//! The feed of a whole database names its sequence openly: `17-0a1b2c3d` (sequence, instance of the
//! database). The feeds of readers seal it: the sequence is the store's, and a reader who saw it rise could
//! count the writes that are not for them. A sealed bookmark is `1-` and base64url of a tag and a
//! ciphertext (an HMAC-SHA256 construction like SIV, RFC 5297: the tag of the plain text is the nonce), bound
//! to database and user. It can neither be read nor made by a client, and equal places give equal text.

use crate::record::{PartNo, Seq};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;

const TAG_BYTES: usize = 12;
/// Longest text that is looked at: a bookmark names the roles of its user, up to four times, and those are bounded.
pub const MAX_TEXT_BYTES: usize = 24 * 1024;

/// A reader's place in a partial or personal database's feed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Place {
    /// All rows up to here have been given.
    // Fixed width, here and below: a length that grows with the number would tell its size.
    #[serde(with = "postcard::fixint::le")]
    pub after: Seq,
    /// Up to here the client had everything when its present catch-up began,
    #[serde(with = "postcard::fixint::le")]
    pub origin: Seq,
    /// and that was the newest row then. A document that came and went between the two was never given.
    #[serde(with = "postcard::fixint::le")]
    pub head: Seq,
    /// Roles whose documents the client has, all of them up to `after`.
    pub sure: Vec<String>,
    /// Roles, beyond `sure`, of which the client may have documents.
    pub maybe: Vec<String>,
    /// A change of roles is being told: new documents and lost ones, before the feed goes on.
    pub turn: Option<Turn>,
    /// Roles that the reader was given since `origin`: of what left before, the client has nothing by them.
    pub gained: Vec<Gain>,
}

/// Since when a reader has had a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gain {
    pub role: String,
    #[serde(with = "postcard::fixint::le")]
    pub at: Seq,
}

/// A place as it was before there was `gained`, which clients may still hold.
#[derive(Deserialize)]
struct PlaceBeforeGains {
    #[serde(with = "postcard::fixint::le")]
    after: Seq,
    #[serde(with = "postcard::fixint::le")]
    origin: Seq,
    #[serde(with = "postcard::fixint::le")]
    head: Seq,
    sure: Vec<String>,
    maybe: Vec<String>,
    turn: Option<Turn>,
}

impl From<PlaceBeforeGains> for Place {
    fn from(old: PlaceBeforeGains) -> Self {
        let PlaceBeforeGains { after, origin, head, sure, maybe, turn } = old;
        Place { after, origin, head, sure, maybe, turn, gained: Vec::new() }
    }
}

/// How far a change of roles has been told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Turn {
    /// The client has nothing yet: all that it may read is new.
    pub fresh: bool,
    /// The roles that it leads to.
    pub roles: Vec<String>,
    /// Up to this row of this partial database it has been told.
    #[serde(with = "postcard::fixint::le")]
    pub part: PartNo,
    #[serde(with = "postcard::fixint::le")]
    pub seq: Seq,
}

/// Seals and opens the bookmarks of one reader in one database.
#[derive(Clone)]
pub(crate) struct Seal {
    tag_key: Hmac<Sha256>,
    stream_key: Hmac<Sha256>,
    context: Vec<u8>,
}

impl Seal {
    /// `context` is what the bookmark is bound to: database, instance, user.
    pub fn new(key: &[u8; 32], context: &[&[u8]]) -> Seal {
        let mac = |purpose: &[u8]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
            mac.update(purpose);
            mac
        };
        let mut bound = Vec::new();
        for part in context {
            bound.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bound.extend_from_slice(part);
        }
        Seal { tag_key: mac(b"tag"), stream_key: mac(b"stream"), context: bound }
    }

    pub fn seal(&self, place: &Place) -> String {
        let mut text = postcard::to_stdvec(place).expect("a place has no type that postcard refuses");
        let tag = self.tag(&text);
        self.stream(&tag, &mut text);
        let mut bytes = tag.to_vec();
        bytes.append(&mut text);
        format!("1-{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// `None`: not made here, or not for this reader.
    pub fn open(&self, text: &str) -> Option<Place> {
        if text.len() > MAX_TEXT_BYTES {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix("1-")?).ok()?;
        let (tag, sealed) = bytes.split_at_checked(TAG_BYTES)?;
        let tag: [u8; TAG_BYTES] = tag.try_into().ok()?;
        let mut plain = sealed.to_vec();
        self.stream(&tag, &mut plain);
        if !bool::from(self.tag(&plain).ct_eq(&tag)) {
            return None;
        }
        // What comes after an old place is missing, so that it can't be taken for a new one.
        postcard::from_bytes(&plain).or_else(|_| postcard::from_bytes::<PlaceBeforeGains>(&plain).map(Place::from)).ok()
    }

    fn tag(&self, plain: &[u8]) -> [u8; TAG_BYTES] {
        let mut mac = self.tag_key.clone();
        mac.update(&self.context);
        mac.update(plain);
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&mac.finalize().into_bytes()[..TAG_BYTES]);
        tag
    }

    fn stream(&self, tag: &[u8; TAG_BYTES], text: &mut [u8]) {
        for (block, chunk) in text.chunks_mut(32).enumerate() {
            let mut mac = self.stream_key.clone();
            mac.update(tag);
            mac.update(&(block as u64).to_be_bytes());
            for (byte, mask) in chunk.iter_mut().zip(mac.finalize().into_bytes()) {
                *byte ^= mask;
            }
        }
    }
}

/// The open form: sequence and instance.
pub(crate) fn open_form(seq: Seq, instance: &str) -> String {
    format!("{seq}-{instance}")
}

/// Reads the open form; also a bare number, as old clients send. `None`: neither.
/// The instance is given back for the caller to compare.
pub(crate) fn read_open_form(text: &str) -> Option<(Seq, Option<&str>)> {
    match text.split_once('-') {
        None => Some((text.parse().ok()?, None)),
        Some((seq, instance)) => {
            let well_formed = instance.len() == 8 && instance.bytes().all(|b| b.is_ascii_hexdigit());
            well_formed.then_some(())?;
            Some((seq.parse().ok()?, Some(instance)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seal(user: &[u8]) -> Seal {
        Seal::new(&[7; 32], &[b"notes", user])
    }

    #[test]
    fn a_sealed_place_opens_for_its_reader_alone() {
        let place = Place { after: 17, sure: vec!["staff".into()], ..Place::default() };
        let text = seal(b"ann").seal(&place);
        assert_eq!(seal(b"ann").open(&text), Some(place.clone()));
        assert_eq!(seal(b"bob").open(&text), None);
        assert_eq!(Seal::new(&[8; 32], &[b"notes", b"ann"]).open(&text), None);
        assert_eq!(seal(b"ann").seal(&place), text);
    }

    #[test]
    fn a_place_of_an_earlier_version_opens() {
        let turn = Turn { fresh: false, roles: vec!["staff".into()], part: 3, seq: 9 };
        for turn in [None, Some(turn)] {
            let place = Place { after: 17, origin: 4, sure: vec!["staff".into()], turn, ..Place::default() };
            let mut old = postcard::to_stdvec(&place).unwrap();
            assert_eq!(old.pop(), Some(0), "an empty list");
            let tag = seal(b"ann").tag(&old);
            seal(b"ann").stream(&tag, &mut old);
            let text = format!("1-{}", URL_SAFE_NO_PAD.encode([&tag[..], &old].concat()));
            assert_eq!(seal(b"ann").open(&text), Some(place));
        }
    }

    #[test]
    fn the_open_form_is_read_and_others_refused() {
        assert_eq!(read_open_form("17-0a1b2c3d"), Some((17, Some("0a1b2c3d"))));
        assert_eq!(read_open_form("17"), Some((17, None)));
        for bad in ["zork", "", "-1", "1-", "1-zz", "99999999999999999999", "1-0a1b2c3d-"] {
            assert_eq!(read_open_form(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_taken_that_was_not_sealed(text in "(1-)?[A-Za-z0-9_-]{0,120}") {
            prop_assert_eq!(seal(b"ann").open(&text), None);
        }

        #[test]
        fn a_changed_bookmark_is_refused(after: u64, at in 0usize..40, bit in 0u8..8) {
            let text = seal(b"ann").seal(&Place { after, ..Place::default() });
            let mut bytes = URL_SAFE_NO_PAD.decode(&text[2..]).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let changed = format!("1-{}", URL_SAFE_NO_PAD.encode(bytes));
            prop_assert_eq!(seal(b"ann").open(&changed), None);
        }
    }
}
