//! The keys that datagrams are sealed with, and the document that carries them from pod to pod.
//!
//! A ring starts with the base key, which follows from its secret. To rotate: add a key, and once every pod has it,
//! use it; once every pod uses it, remove the old one. All keys open datagrams, the primary also seals them.

use std::fmt;
use std::str::FromStr;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::RingSecret;

/// The most keys at a time. A rotation needs two; the rest is for those that an operator began and forgot.
pub const MAX_KEYS: usize = 8;

const KEY_BYTES: usize = 32;
pub(super) const NONCE_BYTES: usize = 24;
/// Poly1305's tag.
pub(super) const TAG_BYTES: usize = 16;

/// Names a key and tells nothing of it: the first bytes of SHA-256("adea gossip" + key). As text 8 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct KeyId(pub(super) [u8; 4]);

/// The keys of a pod. `Debug` shows their ids only.
#[derive(Clone)]
pub struct Keyring {
    /// Tells rings apart, also ones that came to the same key.
    ring: [u8; 8],
    keys: Vec<Key>,
    primary: KeyId,
}

#[derive(Clone)]
struct Key {
    id: KeyId,
    key: [u8; KEY_BYTES],
}

/// The keyring as a document; without the ring's secret its keys are of no use. A ring without one has its base key only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyringDoc {
    /// The keys that open datagrams, the eldest first; at most [`MAX_KEYS`].
    pub keys: Vec<WrappedKey>,
    /// Which of them seals.
    pub primary: KeyId,
}

/// A key that is encrypted under a key which follows from the ring's secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// Which key.
    pub id: KeyId,
    /// Nonce and XChaCha20-Poly1305 ciphertext, as hexadecimal digits. The id is authenticated with it.
    pub wrapped: String,
}

/// What is wrong with a keyring, or with what was asked of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// It is no id.
    #[error("a key's id is 8 hexadecimal digits")]
    Id,
    /// There is no room.
    #[error("there are {MAX_KEYS} keys already: remove one first")]
    Full,
    /// More keys than can be.
    #[error("a keyring has at most {MAX_KEYS} keys")]
    TooMany,
    /// No such key.
    #[error("there is no key {0}")]
    Unknown(KeyId),
    /// It is in use.
    #[error("key {0} seals the datagrams: use another one first")]
    Primary(KeyId),
    /// The same id twice.
    #[error("key {0} is there twice")]
    Twice(KeyId),
    /// It was wrapped in another ring, or changed.
    #[error("key {0} does not belong to this ring")]
    Foreign(KeyId),
}

impl KeyId {
    fn of(key: &[u8; KEY_BYTES]) -> Self {
        let hash = Sha256::new().chain_update(b"adea gossip").chain_update(key).finalize();
        Self([hash[0], hash[1], hash[2], hash[3]])
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for KeyId {
    type Err = KeyringError;

    fn from_str(text: &str) -> Result<Self, KeyringError> {
        let mut bytes = [0; 4];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| KeyringError::Id)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for KeyId {
    type Error = KeyringError;

    fn try_from(text: String) -> Result<Self, KeyringError> {
        text.parse()
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.to_string()
    }
}

impl Keyring {
    /// The keyring of a ring that has no document of keys: the base key.
    pub fn base(secret: &RingSecret) -> Self {
        let base = Key::base(secret);
        Self { ring: ring_mark(secret), primary: base.id, keys: vec![base] }
    }

    /// The keys of `doc`; the base key is among them only if the document has it.
    ///
    /// # Errors
    /// When a key can't be unwrapped, is there twice, when there are too many, or none is the primary.
    pub fn of_doc(secret: &RingSecret, doc: &KeyringDoc) -> Result<Self, KeyringError> {
        if doc.keys.len() > MAX_KEYS {
            return Err(KeyringError::TooMany);
        }
        let mut keys: Vec<Key> = Vec::with_capacity(doc.keys.len());
        for wrapped in &doc.keys {
            if keys.iter().any(|key| key.id == wrapped.id) {
                return Err(KeyringError::Twice(wrapped.id));
            }
            keys.push(Key::unwrap(secret, wrapped)?);
        }
        if !keys.iter().any(|key| key.id == doc.primary) {
            return Err(KeyringError::Unknown(doc.primary));
        }
        Ok(Self { ring: ring_mark(secret), keys, primary: doc.primary })
    }

    /// The ids of all keys.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.iter().map(|key| key.id)
    }

    /// The key that seals.
    pub fn primary(&self) -> KeyId {
        self.primary
    }

    /// What is authenticated with each datagram of this ring.
    pub(super) fn ring(&self) -> &[u8; 8] {
        &self.ring
    }

    #[cfg(test)]
    pub(super) fn set_ring_of(&mut self, other: &Self) {
        self.ring = other.ring;
    }

    /// The cipher of a key; none when the key isn't here.
    pub(super) fn cipher(&self, id: KeyId) -> Option<XChaCha20Poly1305> {
        let key = self.keys.iter().find(|key| key.id == id)?;
        Some(XChaCha20Poly1305::new(&key.key.into()))
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<String> = self.ids().map(|id| id.to_string()).collect();
        f.debug_struct("Keyring").field("keys", &ids).field("primary", &self.primary.to_string()).finish()
    }
}

impl KeyringDoc {
    /// The document of a ring that has none yet: its base key.
    pub fn of_base(secret: &RingSecret) -> Self {
        let base = Key::base(secret);
        Self { primary: base.id, keys: vec![base.wrap(secret)] }
    }

    /// With a new key from the operating system's random source, which opens datagrams and doesn't seal yet.
    ///
    /// # Errors
    /// [`KeyringError::Full`].
    pub fn add(&self, secret: &RingSecret) -> Result<(Self, KeyId), KeyringError> {
        if self.keys.len() >= MAX_KEYS {
            return Err(KeyringError::Full);
        }
        // Ids are short: a second try is needed about once in 600 million times.
        let key = std::iter::repeat_with(Key::random).find(|key| !self.has(key.id)).expect("the iterator has no end");
        let mut doc = self.clone();
        doc.keys.push(key.wrap(secret));
        Ok((doc, key.id))
    }

    /// With this key as the one that seals. All pods must have it, or they will not hear those that use it.
    ///
    /// # Errors
    /// [`KeyringError::Unknown`].
    pub fn use_(&self, id: KeyId) -> Result<Self, KeyringError> {
        if !self.has(id) {
            return Err(KeyringError::Unknown(id));
        }
        Ok(Self { primary: id, ..self.clone() })
    }

    /// Without this key.
    ///
    /// # Errors
    /// [`KeyringError::Unknown`], [`KeyringError::Primary`].
    pub fn remove(&self, id: KeyId) -> Result<Self, KeyringError> {
        if !self.has(id) {
            return Err(KeyringError::Unknown(id));
        }
        if id == self.primary {
            return Err(KeyringError::Primary(id));
        }
        let mut doc = self.clone();
        doc.keys.retain(|key| key.id != id);
        Ok(doc)
    }

    fn has(&self, id: KeyId) -> bool {
        self.keys.iter().any(|key| key.id == id)
    }
}

impl Key {
    fn new(key: [u8; KEY_BYTES]) -> Self {
        Self { id: KeyId::of(&key), key }
    }

    fn base(secret: &RingSecret) -> Self {
        Self::new(secret.key("gossip"))
    }

    fn random() -> Self {
        Self::new(rand::random())
    }

    fn wrap(&self, secret: &RingSecret) -> WrappedKey {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let mut bytes = nonce.to_vec();
        let sealed = wrapping(secret).encrypt(&XNonce::from(nonce), Payload { msg: &self.key, aad: &self.id.0 });
        bytes.extend(sealed.expect("ChaCha20 takes any message below 256 GiB"));
        WrappedKey { id: self.id, wrapped: hex::encode(bytes) }
    }

    fn unwrap(secret: &RingSecret, wrapped: &WrappedKey) -> Result<Self, KeyringError> {
        let foreign = || KeyringError::Foreign(wrapped.id);
        let mut bytes = [0; NONCE_BYTES + KEY_BYTES + TAG_BYTES];
        hex::decode_to_slice(&wrapped.wrapped, &mut bytes).map_err(|_| foreign())?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_BYTES>().ok_or_else(foreign)?;
        let opened = wrapping(secret).decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &wrapped.id.0 });
        let key = Self::new(opened.ok().and_then(|key| key.try_into().ok()).ok_or_else(foreign)?);
        if key.id == wrapped.id { Ok(key) } else { Err(foreign()) }
    }
}

fn wrapping(secret: &RingSecret) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&secret.key("gossip wrap").into())
}

fn ring_mark(secret: &RingSecret) -> [u8; 8] {
    let hash = Sha256::digest(secret.key("ring id"));
    let mut mark = [0; 8];
    mark.copy_from_slice(&hash[..8]);
    mark
}

#[cfg(test)]
mod tests {
    use super::{KeyId, Keyring, KeyringDoc, KeyringError, MAX_KEYS};
    use crate::RingSecret;

    #[test]
    fn a_document_holds_what_was_put_into_it() {
        let secret = RingSecret::random();
        let base = KeyringDoc::of_base(&secret);
        assert_eq!(Keyring::of_doc(&secret, &base).expect("own").primary(), Keyring::base(&secret).primary());
        let (doc, id) = base.add(&secret).expect("room");
        let text = serde_json::to_string(&doc).expect("JSON");
        let read: KeyringDoc = serde_json::from_str(&text).expect("a keyring");
        assert_eq!(read, doc);
        let keyring = Keyring::of_doc(&secret, &read).expect("own");
        assert_eq!((keyring.ids().count(), keyring.primary()), (2, base.primary));
        let keyring = Keyring::of_doc(&secret, &read.use_(id).expect("known")).expect("own");
        assert_eq!(keyring.primary(), id);
        let alone = read.use_(id).and_then(|doc| doc.remove(base.primary)).expect("not in use");
        assert_eq!(Keyring::of_doc(&secret, &alone).expect("own").ids().collect::<Vec<_>>(), [id]);
    }

    #[test]
    fn what_can_not_be() {
        let secret = RingSecret::random();
        let base = KeyringDoc::of_base(&secret);
        let unknown: KeyId = "00000000".parse().expect("an id");
        assert_eq!(base.use_(unknown), Err(KeyringError::Unknown(unknown)));
        assert_eq!(base.remove(unknown), Err(KeyringError::Unknown(unknown)));
        assert_eq!(base.remove(base.primary), Err(KeyringError::Primary(base.primary)));
        let mut full = base.clone();
        for _ in 1..MAX_KEYS {
            full = full.add(&secret).expect("room").0;
        }
        assert_eq!(full.add(&secret), Err(KeyringError::Full));
        let error = |doc: &KeyringDoc| Keyring::of_doc(&secret, doc).expect_err("a wrong document");
        let mut more = full.clone();
        more.keys.push(full.keys[0].clone());
        assert_eq!(error(&more), KeyringError::TooMany);
        let twice = KeyringDoc { keys: vec![base.keys[0].clone(), base.keys[0].clone()], ..base.clone() };
        assert_eq!(error(&twice), KeyringError::Twice(base.primary));
        assert_eq!(error(&KeyringDoc { primary: unknown, ..base.clone() }), KeyringError::Unknown(unknown));
        let mut renamed = base.clone();
        renamed.keys[0].id = unknown;
        assert_eq!(error(&renamed), KeyringError::Foreign(unknown));
        for wrapped in ["", "zz", &"0".repeat(144), &full.keys[1].wrapped] {
            let mut changed = base.clone();
            changed.keys[0].wrapped = wrapped.to_owned();
            assert_eq!(error(&changed), KeyringError::Foreign(base.primary), "{wrapped}");
        }
        let elsewhere = Keyring::of_doc(&RingSecret::random(), &base);
        assert_eq!(elsewhere.expect_err("another ring's"), KeyringError::Foreign(base.primary));
        for id in ["", "1234567", "123456789", "1234567g"] {
            assert_eq!(id.parse::<KeyId>(), Err(KeyringError::Id));
        }
        // A newer pod may have more to say.
        assert!(serde_json::from_str::<KeyringDoc>(r#"{"keys":[],"primary":"00000000","more":1}"#).is_ok());
        assert!(serde_json::from_str::<KeyringDoc>(r#"{"keys":[]}"#).is_err());
    }

    #[test]
    fn debug_shows_no_key() {
        let secret = RingSecret::random();
        let shown = format!("{:?} {:?}", Keyring::base(&secret), KeyringDoc::of_base(&secret));
        assert!(shown.contains(&Keyring::base(&secret).primary().to_string()));
        assert!(!shown.contains(&hex::encode(secret.key("gossip"))[..16]));
    }
}
