//! The ring's secret: 256 random bits that all pods of a ring share, and the keys derived from it.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The secret of a ring. Neither `Debug` nor any error shows it.
#[derive(Clone)]
pub struct RingSecret([u8; 32]);

/// Why a text is no ring secret. It does not repeat the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a ring secret is 64 hexadecimal digits")]
pub struct SecretError;

impl RingSecret {
    /// A new secret from the operating system's random source.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// Reads the form that [`RingSecret::to_hex`] writes; white space around it is ignored, as files end in a newline.
    ///
    /// # Errors
    /// When the text is not 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self, SecretError> {
        let mut bytes = [0u8; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| SecretError)?;
        Ok(Self(bytes))
    }

    /// The secret as 64 hexadecimal digits, for `ring.json` and for nothing else.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The key for one purpose: HMAC-SHA256(secret, "adea/1/" + purpose).
    pub fn key(&self, purpose: &str) -> [u8; 32] {
        let mut mac = keyed(&self.0);
        mac.update(b"adea/1/");
        mac.update(purpose.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for RingSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RingSecret(..)")
    }
}

/// HMAC-SHA256 under a 256-bit key.
pub(crate) fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    // 32 bytes are below the block size of SHA-256, so this copies the key and never fails.
    <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_there_and_back() {
        let secret = RingSecret::random();
        let again = RingSecret::from_hex(&format!("{}\n", secret.to_hex())).expect("own form");
        assert_eq!(again.to_hex(), secret.to_hex());
        assert_eq!(RingSecret::from_hex("abc").unwrap_err(), SecretError);
        assert_eq!(RingSecret::from_hex(&"g".repeat(64)).unwrap_err(), SecretError);
    }

    #[test]
    fn each_purpose_has_its_own_key() {
        let secret = RingSecret([7; 32]);
        assert_eq!(secret.key("identity"), RingSecret([7; 32]).key("identity"));
        assert_ne!(secret.key("identity"), secret.key("tombstone"));
        assert_ne!(secret.key("identity"), RingSecret([8; 32]).key("identity"));
    }

    #[test]
    fn debug_shows_nothing() {
        let secret = RingSecret::random();
        assert!(!format!("{secret:?}").contains(&secret.to_hex()[..8]));
    }
}
