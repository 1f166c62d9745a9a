//! The key that orders of upgrades are signed with: an Ed25519 pair of the ring's operator.
//!
//! It is no key of the ring's secret, as containers hold that: who takes over one of them could put programs on all
//! machines. The private half lies on one machine in a file of its own, which no container sees; all pods know the public
//! half by their own ring files.

use std::fmt;
use std::str::FromStr;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::member::PodId;

/// What is signed begins with this, so that a signature means nothing elsewhere.
const LABEL: &[u8] = b"adea order 2\n";
/// What the text of a private key begins with: nobody is to take it for the ring's secret, which is as long.
const TEXT_LABEL: &str = "adea-order-key-1";
const KEY_BYTES: usize = 32;
/// Of a SHA-256: to find another key with the same fingerprint takes 2^128 tries.
const FINGERPRINT_BYTES: usize = 16;

/// The private half. Neither `Debug` nor any error shows it.
pub struct OrderKey {
    seed: [u8; KEY_BYTES],
    pair: Ed25519KeyPair,
}

/// The public half, as text 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct OrderPublicKey([u8; KEY_BYTES]);

/// What a public key is recognised by, as text 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; FINGERPRINT_BYTES]);

/// Whose orders a pod follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderTrust {
    /// By this key.
    pub key: OrderPublicKey,
    /// On whose machine its private half was made: a hint for people, and for nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<PodId>,
}

/// A text is no key. It does not repeat the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OrderKeyError {
    /// No private half.
    #[error("that is no private key for orders: it is `{TEXT_LABEL}` and 64 hexadecimal digits")]
    Private,
    /// No public half.
    #[error("a public key for orders is 64 hexadecimal digits, as `podctl upgrade key` shows it")]
    Public,
    /// No fingerprint.
    #[error("a fingerprint is 32 hexadecimal digits")]
    Fingerprint,
}

impl OrderKey {
    /// A new one, from the operating system's random source.
    pub fn random() -> Self {
        Self::of_seed(rand::random())
    }

    /// Reads the form that [`OrderKey::to_text`] writes.
    ///
    /// # Errors
    /// When it is something else.
    pub fn from_text(text: &str) -> Result<Self, OrderKeyError> {
        let digits = text.trim().strip_prefix(TEXT_LABEL).ok_or(OrderKeyError::Private)?;
        let mut seed = [0; KEY_BYTES];
        hex::decode_to_slice(digits.trim(), &mut seed).map_err(|_| OrderKeyError::Private)?;
        Ok(Self::of_seed(seed))
    }

    /// The private key, for its file and for nothing else.
    pub fn to_text(&self) -> String {
        format!("{TEXT_LABEL} {}\n", hex::encode(self.seed))
    }

    /// The other half.
    pub fn public(&self) -> OrderPublicKey {
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(self.pair.public_key().as_ref());
        OrderPublicKey(key)
    }

    /// A signature under a text, in hexadecimal digits.
    pub(super) fn sign(&self, text: &str) -> String {
        hex::encode(self.pair.sign(&labelled(text)))
    }

    fn of_seed(seed: [u8; KEY_BYTES]) -> Self {
        // The only thing that is checked is the length.
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("any 32 bytes are a seed");
        Self { seed, pair }
    }
}

impl fmt::Debug for OrderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrderKey({}..)", self.public().fingerprint())
    }
}

impl OrderPublicKey {
    /// What it is recognised by.
    pub fn fingerprint(&self) -> Fingerprint {
        let digest = Sha256::new().chain_update(b"adea order key 1").chain_update(self.0).finalize();
        let mut short = [0; FINGERPRINT_BYTES];
        short.copy_from_slice(&digest[..FINGERPRINT_BYTES]);
        Fingerprint(short)
    }

    /// Whether the private half has signed this text.
    pub(super) fn has_signed(&self, text: &str, signature: &str) -> bool {
        let Ok(signature) = hex::decode(signature) else { return false };
        UnparsedPublicKey::new(&ED25519, &self.0).verify(&labelled(text), &signature).is_ok()
    }
}

fn labelled(text: &str) -> Vec<u8> {
    [LABEL, text.as_bytes()].concat()
}

impl fmt::Display for OrderPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for OrderPublicKey {
    type Err = OrderKeyError;

    fn from_str(text: &str) -> Result<Self, OrderKeyError> {
        let mut key = [0; KEY_BYTES];
        hex::decode_to_slice(text.trim(), &mut key).map_err(|_| OrderKeyError::Public)?;
        Ok(Self(key))
    }
}

impl TryFrom<String> for OrderPublicKey {
    type Error = OrderKeyError;

    fn try_from(text: String) -> Result<Self, OrderKeyError> {
        text.parse()
    }
}

impl From<OrderPublicKey> for String {
    fn from(key: OrderPublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Fingerprint {
    type Err = OrderKeyError;

    fn from_str(text: &str) -> Result<Self, OrderKeyError> {
        let mut bytes = [0; FINGERPRINT_BYTES];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| OrderKeyError::Fingerprint)?;
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::{Fingerprint, OrderKey, OrderKeyError, OrderPublicKey};

    #[test]
    fn texts_go_there_and_back() {
        let key = OrderKey::random();
        assert_eq!(OrderKey::from_text(&key.to_text()).expect("own form").public(), key.public());
        assert!(!format!("{key:?}").contains(&key.to_text().trim()[20..40]));
        assert_eq!(key.public().to_string().parse(), Ok(key.public()));
        let fingerprint = key.public().fingerprint();
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        assert_ne!(fingerprint, OrderKey::random().public().fingerprint());
        // The ring's secret has the same length, and is no key.
        for bad in ["", "adea-order-key-1", &"ab".repeat(32), &format!("adea-order-key-2 {}", "ab".repeat(32))] {
            assert_eq!(OrderKey::from_text(bad).err(), Some(OrderKeyError::Private), "{bad}");
        }
        assert_eq!("ab".parse::<OrderPublicKey>(), Err(OrderKeyError::Public));
        assert_eq!("ab".parse::<Fingerprint>(), Err(OrderKeyError::Fingerprint));
    }

    #[test]
    fn only_the_other_half_verifies() {
        let (key, other) = (OrderKey::random(), OrderKey::random());
        let signature = key.sign("text");
        assert!(key.public().has_signed("text", &signature));
        assert!(!key.public().has_signed("texts", &signature) && !other.public().has_signed("text", &signature));
        for bad in ["", "zz", &signature[2..], &"0".repeat(128)] {
            assert!(!key.public().has_signed("text", bad));
        }
        // No point of the curve at all: nothing verifies, and nothing panics.
        let none: OrderPublicKey = "ff".repeat(32).parse().expect("64 digits");
        assert!(!none.has_signed("text", &signature));
    }
}
