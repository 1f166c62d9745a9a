//! What a datagram looks like on the wire.
//!
//! ```text
//! 1 version | 4 key id | 24 nonce | XChaCha20-Poly1305( 1 length of id | pod id | 8 generation | 8 number | 1 part | message )
//! ```
//! All numbers are big-endian. What is before the ciphertext, and 8 bytes that name the ring, are authenticated with it.
//! Nonces are random: with 24 bytes no two meet in the life of a key.

use chacha20poly1305::XNonce;
use chacha20poly1305::aead::{Aead, Payload};

use super::counters::Dropped;
use super::keyring::{KeyId, Keyring, NONCE_BYTES, TAG_BYTES};
use super::parts::Part;
use super::replay::Replays;
use crate::PodId;

const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 4;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_BYTES;

/// The most bytes that sealing adds: a pod's id has at most 64.
pub(super) const MAX_OVERHEAD_BYTES: usize = HEADER_BYTES + 1 + 64 + 8 + 8 + 1 + TAG_BYTES;

/// Seals what this pod sends.
#[derive(Debug)]
pub(super) struct Sealer {
    me: PodId,
    generation: u64,
    number: u64,
}

/// Opens what comes.
#[derive(Debug)]
pub(super) struct Opener {
    me: PodId,
    generation: u64,
    replays: Replays,
}

/// A datagram that a pod of the ring has sent, and that has not been seen before.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) sender: PodId,
    pub(super) generation: u64,
    pub(super) number: u64,
    pub(super) part: Part,
    pub(super) message: Vec<u8>,
}

impl Sealer {
    pub(super) fn new(me: PodId, generation: u64) -> Self {
        Self { me, generation, number: 0 }
    }

    /// The datagram that carries `message`, [`MAX_OVERHEAD_BYTES`] larger at most.
    pub(super) fn seal(&mut self, keyring: &Keyring, part: Part, message: &[u8]) -> Vec<u8> {
        self.number += 1;
        let id = self.me.as_str().as_bytes();
        let mut plain = Vec::with_capacity(message.len() + MAX_OVERHEAD_BYTES);
        plain.push(id.len() as u8);
        plain.extend(id);
        plain.extend(self.generation.to_be_bytes());
        plain.extend(self.number.to_be_bytes());
        plain.push(part.to_byte());
        plain.extend(message);

        let nonce: [u8; NONCE_BYTES] = rand::random();
        let mut datagram = Vec::with_capacity(HEADER_BYTES + plain.len() + TAG_BYTES);
        datagram.push(VERSION);
        datagram.extend(keyring.primary().0);
        datagram.extend(nonce);
        let aad = [&datagram, keyring.ring().as_slice()].concat();
        let cipher = keyring.cipher(keyring.primary()).expect("a keyring has its primary");
        let sealed = cipher.encrypt(&XNonce::from(nonce), Payload { msg: &plain, aad: &aad });
        datagram.extend(sealed.expect("ChaCha20 takes any message below 256 GiB"));
        datagram
    }
}

impl Opener {
    pub(super) fn new(me: PodId, generation: u64) -> Self {
        Self { me, generation, replays: Replays::default() }
    }

    /// What a datagram carries.
    ///
    /// # Errors
    /// Why it is to be dropped.
    pub(super) fn open(&mut self, keyring: &Keyring, datagram: &[u8]) -> Result<Opened, Dropped> {
        let (header, sealed) = datagram.split_first_chunk::<HEADER_BYTES>().ok_or(Dropped::Garbage)?;
        if header[0] != VERSION || sealed.len() < TAG_BYTES {
            return Err(Dropped::Garbage);
        }
        let (key_id, nonce) = header[1..].split_first_chunk::<KEY_ID_BYTES>().ok_or(Dropped::Garbage)?;
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| Dropped::Garbage)?;
        let cipher = keyring.cipher(KeyId(*key_id)).ok_or(Dropped::Foreign)?;
        let aad = [header.as_slice(), keyring.ring()].concat();
        let plain =
            cipher.decrypt(&XNonce::from(nonce), Payload { msg: sealed, aad: &aad }).map_err(|_| Dropped::Foreign)?;
        let opened = parse(plain).ok_or(Dropped::Malformed)?;
        if opened.sender == self.me && opened.generation == self.generation {
            return Err(Dropped::Own);
        }
        if !self.replays.admit(&opened.sender, opened.generation, opened.number) {
            return Err(Dropped::Replayed);
        }
        Ok(opened)
    }
}

fn parse(plain: Vec<u8>) -> Option<Opened> {
    let (&length, rest) = plain.split_first()?;
    let (id, rest) = rest.split_at_checked(usize::from(length))?;
    let sender: PodId = std::str::from_utf8(id).ok()?.parse().ok()?;
    let (generation, rest) = rest.split_first_chunk()?;
    let (number, rest) = rest.split_first_chunk()?;
    let (&part, message) = rest.split_first()?;
    Some(Opened {
        sender,
        generation: u64::from_be_bytes(*generation),
        number: u64::from_be_bytes(*number),
        part: Part::from_byte(part)?,
        message: message.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use chacha20poly1305::XNonce;
    use chacha20poly1305::aead::{Aead, Payload};
    use chitchat::{ChitchatMessage, Deserializable};
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use proptest::sample::Index;

    use super::{Dropped, HEADER_BYTES, MAX_OVERHEAD_BYTES, NONCE_BYTES, Opener, Sealer, TAG_BYTES, VERSION, parse};
    use crate::gossip::keyring::{Keyring, KeyringDoc};
    use crate::gossip::parts::Part;
    use crate::{PodId, RingSecret};

    fn pod(name: &str) -> PodId {
        name.parse().expect("a pod's id")
    }

    fn opener() -> Opener {
        Opener::new(pod("me"), 1)
    }

    #[test]
    fn there_and_back_once() {
        let keyring = Keyring::base(&RingSecret::random());
        let mut sealer = Sealer::new(pod(&"a".repeat(64)), 7);
        let datagram = sealer.seal(&keyring, Part::WHOLE, b"hello");
        assert_eq!(datagram.len(), MAX_OVERHEAD_BYTES + 5);
        let mut opener = opener();
        let opened = opener.open(&keyring, &datagram).expect("of this ring");
        assert_eq!((opened.sender.as_str().len(), opened.generation, opened.number), (64, 7, 1));
        assert_eq!((opened.part, opened.message.as_slice()), (Part::WHOLE, b"hello".as_slice()));
        assert_eq!(opener.open(&keyring, &datagram), Err(Dropped::Replayed));
        let before = Sealer::new(pod(&"a".repeat(64)), 6).seal(&keyring, Part::WHOLE, b"");
        assert_eq!(opener.open(&keyring, &before), Err(Dropped::Replayed), "of an earlier start");
        let own = Sealer::new(pod("me"), 1).seal(&keyring, Part::WHOLE, b"");
        assert_eq!(opener.open(&keyring, &own), Err(Dropped::Own));
    }

    #[test]
    fn keys_are_told_apart() {
        let secret = RingSecret::random();
        let base = KeyringDoc::of_base(&secret);
        let (both, id) = base.add(&secret).expect("room");
        let used = both.use_(id).expect("known");
        let alone = used.remove(base.primary).expect("not in use");
        let [base, both, used, alone] =
            [&base, &both, &used, &alone].map(|doc| Keyring::of_doc(&secret, doc).expect("own"));
        let mut sealer = Sealer::new(pod("a"), 1);
        let mut opener = opener();
        let mut opens = |from: &Keyring, to: &Keyring| {
            let datagram = sealer.seal(from, Part::WHOLE, b"x");
            opener.open(to, &datagram).map(|opened| opened.message)
        };
        assert!(opens(&base, &both).is_ok() && opens(&both, &base).is_ok(), "while it is added");
        assert!(opens(&both, &used).is_ok() && opens(&used, &both).is_ok(), "while it comes into use");
        assert!(opens(&used, &alone).is_ok() && opens(&alone, &used).is_ok(), "while the old one goes");
        assert_eq!(opens(&base, &alone), Err(Dropped::Foreign));
        assert_eq!(opens(&alone, &base), Err(Dropped::Foreign));
    }

    #[test]
    fn another_ring_with_the_same_key() {
        let (secret, other) = (RingSecret::random(), RingSecret::random());
        let (keyring, mut same_key) = (Keyring::base(&secret), Keyring::base(&secret));
        same_key.set_ring_of(&Keyring::base(&other));
        let datagram = Sealer::new(pod("a"), 1).seal(&same_key, Part::WHOLE, b"x");
        assert_eq!(opener().open(&keyring, &datagram), Err(Dropped::Foreign));
    }

    proptest! {
        #[test]
        fn noise_does_not_open(noise in vec(any::<u8>(), 0..200), known in any::<bool>()) {
            let keyring = Keyring::base(&RingSecret::random());
            let mut noise = noise;
            if known && noise.len() >= HEADER_BYTES {
                noise[0] = VERSION;
                noise[1..5].copy_from_slice(&keyring.primary().0);
            }
            let dropped = opener().open(&keyring, &noise).expect_err("noise");
            let formed = noise.len() >= HEADER_BYTES + TAG_BYTES && noise[0] == VERSION;
            prop_assert_eq!(dropped, if formed { Dropped::Foreign } else { Dropped::Garbage });
        }

        #[test]
        fn a_changed_datagram_does_not_open(message in vec(any::<u8>(), 0..100), at in any::<Index>(), bit in 0..8u8) {
            let keyring = Keyring::base(&RingSecret::random());
            let datagram = Sealer::new(pod("a"), 1).seal(&keyring, Part::WHOLE, &message);
            let mut opener = opener();
            let mut changed = datagram.clone();
            changed[at.index(datagram.len())] ^= 1 << bit;
            let dropped = opener.open(&keyring, &changed).expect_err("changed");
            prop_assert_eq!(dropped, if changed[0] == VERSION { Dropped::Foreign } else { Dropped::Garbage });
            let short = &datagram[..at.index(datagram.len())];
            let dropped = opener.open(&keyring, short).expect_err("truncated");
            let formed = short.len() >= HEADER_BYTES + TAG_BYTES;
            prop_assert_eq!(dropped, if formed { Dropped::Foreign } else { Dropped::Garbage });
            let long = [datagram.as_slice(), &[0]].concat();
            prop_assert_eq!(opener.open(&keyring, &long), Err(Dropped::Foreign));
            let elsewhere = Keyring::base(&RingSecret::random());
            prop_assert_eq!(opener.open(&elsewhere, &datagram), Err(Dropped::Foreign));
            prop_assert!(opener.open(&keyring, &datagram).is_ok(), "what was dropped doesn't count as seen");
            prop_assert_eq!(opener.open(&keyring, &datagram), Err(Dropped::Replayed));
        }

        #[test]
        fn sealed_noise_is_malformed(plain in vec(any::<u8>(), 0..120)) {
            let keyring = Keyring::base(&RingSecret::random());
            let mut datagram = vec![VERSION];
            datagram.extend(keyring.primary().0);
            datagram.extend([3; NONCE_BYTES]);
            let aad = [&datagram, keyring.ring().as_slice()].concat();
            let cipher = keyring.cipher(keyring.primary()).expect("the primary");
            let sealed = cipher.encrypt(&XNonce::from([3; NONCE_BYTES]), Payload { msg: &plain, aad: &aad });
            datagram.extend(sealed.expect("sealed"));
            match parse(plain.clone()) {
                Some(_) => prop_assert!(opener().open(&keyring, &datagram).is_ok()),
                None => prop_assert_eq!(opener().open(&keyring, &datagram), Err(Dropped::Malformed)),
            }
            // What follows in the transport: no message makes it panic.
            let mut with_magic = vec![0x53, 0xb0, 0, plain.first().copied().unwrap_or(0) % 5];
            with_magic.extend(&plain);
            prop_assert!(ChitchatMessage::deserialize(&mut plain.as_slice()).is_err());
            let _ = ChitchatMessage::deserialize(&mut with_magic.as_slice());
        }
    }
}
