//! How a new pod is let into a ring: a token, and the exchange in which it gets the ring's secret for it.
//!
//! A token is an id and a secret of 128 random bits. The ring keeps the document `_ring/token:ID` ([`TokenDoc`]); the
//! token's secret is in it sealed under a key that follows from the ring's, so that whoever may read `_ring` can't join.
//! The new pod proves that it knows the token's secret and sends a fresh X25519 key; the answer is sealed under a key
//! from the token's secret and from what both keys agree on. So the exchange needs no TLS: nobody on the way can read or
//! change it, an answer is of no use to who repeats a recorded request, and a token that is found later opens no
//! recorded answer.
//!
//! A token also carries the fingerprint of the ring's key for orders ([`crate::upgrade::OrderKey`]), from the machine that
//! made it: pods answer in containers, and one that was taken over is not to say whose programs the new machine runs.
//!
//! ```text
//! transcript = "adea join 1" and the lengths and texts of token id, intent, pod, nonce and the new pod's key
//! proof      = HMAC(HMAC(token secret, "adea join 1 proof"), transcript)
//! answer key = HMAC(HMAC(token secret, "adea join 1 answer"), transcript + the ring's key + agreed secret)
//! sealed     = 24 nonce | XChaCha20-Poly1305(answer key, JSON of Welcome, associated: transcript + the ring's key)
//! ```

use std::fmt;
use std::str::FromStr;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::rand::SystemRandom;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::member::PodId;
use crate::secret::{RingSecret, keyed};
use crate::upgrade::{Fingerprint, OrderTrust};

/// What the ids of the tokens' documents in `_ring` begin with.
pub const TOKEN_PREFIX: &str = "token:";
/// The most pods that one token may let in.
pub const MAX_USES: u32 = 100;
/// The longest life of a token, in milliseconds: thirty days. A forgotten one is a way in.
pub const MAX_LIFE_MS: u64 = 30 * 24 * 3_600_000;

/// The protocol's name in everything that is authenticated.
const LABEL: &[u8] = b"adea join 1";
/// The form of requests and of tokens' documents: another one means something else.
pub const FORMAT: u32 = 1;
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 16;
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
/// The largest sealed text that is opened, in bytes: some hundred addresses.
const MAX_SEALED_BYTES: usize = 64 << 10;

/// Names a token and tells nothing of its secret: 12 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct TokenId([u8; ID_BYTES]);

/// A token, as it goes from an operator's hand to the new machine. `Debug` shows its id only.
///
/// As text: the id, a full stop, and in hexadecimal digits the secret (32) and the fingerprint of the ring's key for
/// orders (32). Tokens of earlier versions, and of rings that have no such key, have no fingerprint.
#[derive(Clone)]
pub struct Token {
    id: TokenId,
    secret: [u8; SECRET_BYTES],
    order_key: Option<Fingerprint>,
}

/// What goes wrong with a token or an exchange. No message repeats a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// No token's id.
    #[error("a token's id is 12 hexadecimal digits")]
    TokenId,
    /// No token.
    #[error(
        "that is no token: it is 12 hexadecimal digits, a full stop and 64 more, as `podctl token create` prints it"
    )]
    Token,
    /// The system gave no randomness, or the other side's key is none.
    #[error("no key could be agreed on")]
    Agreement,
    /// Not sealed by who knows the token's secret, or changed on the way.
    #[error("the answer was not sealed by a pod that knows this token: something else answers there")]
    Answer,
    /// The document was sealed in another ring, or changed.
    #[error("the token's document was not made in this ring, or was changed")]
    Foreign,
}

/// The administrator of a ring, as each pod's ring file has them.
#[derive(Clone, Serialize, Deserialize)]
pub struct AdminEntry {
    /// The name.
    pub name: String,
    /// The password's argon2id hash, in PHC form.
    pub password_hash: String,
}

/// The document of a token. Members that are not known here stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenDoc {
    /// What kind of document this is: `token`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The form, [`FORMAT`].
    pub format: u32,
    /// How many pods it lets in, 1 to [`MAX_USES`].
    pub uses: u32,
    /// When it was made, in milliseconds since 1970.
    pub made_at_ms: u64,
    /// When it ends, in milliseconds since 1970.
    pub expires_at_ms: u64,
    /// The token's secret and the administrator, sealed; the id, `uses` and the end are authenticated with it.
    pub sealed: String,
    /// Whom it has let in.
    #[serde(default)]
    pub used: Vec<Use>,
}

/// One pod that a token has let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// The pod.
    pub pod: PodId,
    /// The key that it showed: a repeated request is known by it.
    pub key: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// What a token's document holds for the pods of its ring.
#[derive(Clone)]
pub struct Grant {
    secret: [u8; SECRET_BYTES],
    /// The administrator that the new pod gets.
    pub admin: AdminEntry,
}

#[derive(Serialize, Deserialize)]
struct GrantText {
    secret: String,
    admin: AdminEntry,
}

/// What the new pod wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Intent {
    /// To know where the ring's pods are, to see whether it reaches them. The answer has no secrets, and nothing is counted.
    Look,
    /// To become one of them.
    Join,
}

/// What the new pod sends: `POST /_join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The form, [`FORMAT`].
    pub format: u32,
    /// Which token.
    pub token: TokenId,
    /// What it wants.
    pub intent: Intent,
    /// The name that it wants in the ring.
    pub pod: PodId,
    /// 32 random bytes in hexadecimal digits.
    pub nonce: String,
    /// Its X25519 key, in hexadecimal digits.
    pub key: String,
    proof: String,
}

/// What the ring answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// The answering pod's X25519 key, in hexadecimal digits.
    pub key: String,
    sealed: String,
}

/// What the new pod learns.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Welcome {
    /// The ring's public id, as `GET /` shows it.
    pub uuid: String,
    /// Where the ring's pods are reached by pods, HOST:PORT; those that live.
    pub seeds: Vec<String>,
    /// Where clients reach them.
    pub urls: Vec<String>,
    /// The version of the answering pod's programs.
    pub software: String,
    /// Whose orders of upgrades the answering pod follows. It counts only with the fingerprint that the token carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_trust: Option<OrderTrust>,
    /// The ring's secret, in hexadecimal digits; only for who joins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring_secret: Option<String>,
    /// The administrator; only for who joins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<AdminEntry>,
}

/// The new pod's side of one exchange.
pub struct Joiner {
    secret: [u8; SECRET_BYTES],
    private: EphemeralPrivateKey,
    request: JoinRequest,
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for TokenId {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        bytes(text).map(Self).ok_or(JoinError::TokenId)
    }
}

impl TryFrom<String> for TokenId {
    type Error = JoinError;

    fn try_from(text: String) -> Result<Self, JoinError> {
        text.parse()
    }
}

impl From<TokenId> for String {
    fn from(id: TokenId) -> Self {
        id.to_string()
    }
}

impl TokenId {
    /// The id of the token's document in `_ring`.
    pub fn doc_id(&self) -> String {
        format!("{TOKEN_PREFIX}{self}")
    }
}

impl Token {
    /// A new one, from the operating system's random source, for a ring whose orders are signed with this key.
    pub fn random(order_key: Option<Fingerprint>) -> Self {
        Self { id: TokenId(rand::random()), secret: rand::random(), order_key }
    }

    /// Which.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// What the ring's key for orders must be recognised by; none when the token doesn't say.
    pub fn order_key(&self) -> Option<Fingerprint> {
        self.order_key
    }

    /// The whole token, for the new machine's operator and nobody else.
    pub fn to_text(&self) -> String {
        let order_key = self.order_key.map(|fingerprint| fingerprint.to_string()).unwrap_or_default();
        format!("{}.{}{order_key}", self.id, hex::encode(self.secret))
    }

    /// Its document.
    ///
    /// # Errors
    /// [`JoinError::Agreement`] when the system gives no randomness.
    pub fn doc(
        &self,
        ring: &RingSecret,
        admin: &AdminEntry,
        uses: u32,
        made_at_ms: u64,
        life_ms: u64,
    ) -> Result<TokenDoc, JoinError> {
        let expires_at_ms = made_at_ms.saturating_add(life_ms);
        let mut doc = TokenDoc {
            kind: "token".to_owned(),
            format: FORMAT,
            uses,
            made_at_ms,
            expires_at_ms,
            sealed: String::new(),
            used: Vec::new(),
        };
        let text = GrantText { secret: hex::encode(self.secret), admin: admin.clone() };
        let text = serde_json::to_vec(&text).map_err(|_| JoinError::Agreement)?;
        doc.sealed = seal(&ring.key("join"), &text, &doc.associated(&self.id)).ok_or(JoinError::Agreement)?;
        Ok(doc)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}..)", self.id)
    }
}

impl FromStr for Token {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        let (id, secret) = text.trim().split_once('.').ok_or(JoinError::Token)?;
        let id = id.parse().map_err(|_| JoinError::Token)?;
        let (secret, order_key) = secret.split_at_checked(2 * SECRET_BYTES).ok_or(JoinError::Token)?;
        let order_key = match order_key {
            "" => None,
            digits => Some(digits.parse().map_err(|_| JoinError::Token)?),
        };
        Ok(Self { id, secret: bytes(secret).ok_or(JoinError::Token)?, order_key })
    }
}

impl TokenDoc {
    /// What is sealed in it.
    ///
    /// # Errors
    /// [`JoinError::Foreign`]
    pub fn open(&self, ring: &RingSecret, id: &TokenId) -> Result<Grant, JoinError> {
        let text = open(&ring.key("join"), &self.sealed, &self.associated(id)).ok_or(JoinError::Foreign)?;
        let text: GrantText = serde_json::from_slice(&text).map_err(|_| JoinError::Foreign)?;
        Ok(Grant { secret: bytes(&text.secret).ok_or(JoinError::Foreign)?, admin: text.admin })
    }

    /// How many pods it can still let in at this time.
    pub fn left(&self, now_ms: u64) -> u32 {
        let used = u32::try_from(self.used.len()).unwrap_or(u32::MAX);
        if self.expires_at_ms <= now_ms { 0 } else { self.uses.min(MAX_USES).saturating_sub(used) }
    }

    fn associated(&self, id: &TokenId) -> Vec<u8> {
        let mut text = b"adea token".to_vec();
        text.extend(self.format.to_be_bytes());
        text.extend(id.0);
        text.extend(self.uses.to_be_bytes());
        text.extend(self.expires_at_ms.to_be_bytes());
        text
    }
}

impl Grant {
    /// One that nothing is proven against: where there is no token, the same work is done with it.
    pub fn dummy() -> Self {
        let admin = AdminEntry { name: String::new(), password_hash: String::new() };
        Self { secret: rand::random(), admin }
    }

    /// Whether the request was made by who knows the token. Takes the same time whatever the proof is.
    pub fn proves(&self, request: &JoinRequest) -> bool {
        let given: [u8; KEY_BYTES] = bytes(&request.proof).unwrap_or_default();
        let fits = proof(&self.secret, &request.transcript()).ct_eq(&given);
        bool::from(fits) && request.format == FORMAT
    }

    /// The answer to a request, sealed for who made it.
    ///
    /// # Errors
    /// [`JoinError::Agreement`] when the request's key is none.
    pub fn answer(&self, request: &JoinRequest, welcome: &Welcome) -> Result<JoinAnswer, JoinError> {
        let theirs: [u8; KEY_BYTES] = bytes(&request.key).ok_or(JoinError::Agreement)?;
        let (private, ours) = key_pair()?;
        let transcript = request.transcript();
        let key = agree(private, &theirs, &self.secret, &transcript, &ours)?;
        let text = serde_json::to_vec(welcome).map_err(|_| JoinError::Agreement)?;
        let sealed = seal(&key, &text, &[&transcript[..], &ours].concat()).ok_or(JoinError::Agreement)?;
        Ok(JoinAnswer { key: hex::encode(ours), sealed })
    }
}

impl Joiner {
    /// Begins an exchange.
    ///
    /// # Errors
    /// [`JoinError::Agreement`] when the system gives no randomness.
    pub fn new(token: &Token, intent: Intent, pod: PodId) -> Result<Self, JoinError> {
        let (private, public) = key_pair()?;
        let mut request = JoinRequest {
            format: FORMAT,
            token: token.id,
            intent,
            pod,
            nonce: hex::encode(rand::random::<[u8; KEY_BYTES]>()),
            key: hex::encode(public),
            proof: String::new(),
        };
        request.proof = hex::encode(proof(&token.secret, &request.transcript()));
        Ok(Self { secret: token.secret, private, request })
    }

    /// What to send. It may be sent again when no answer came: it counts once.
    pub fn request(&self) -> &JoinRequest {
        &self.request
    }

    /// Opens the answer.
    ///
    /// # Errors
    /// [`JoinError::Answer`] when it is not from a pod that knows the token.
    pub fn open(self, answer: &JoinAnswer) -> Result<Welcome, JoinError> {
        let theirs: [u8; KEY_BYTES] = bytes(&answer.key).ok_or(JoinError::Answer)?;
        let transcript = self.request.transcript();
        let key = agree(self.private, &theirs, &self.secret, &transcript, &theirs).map_err(|_| JoinError::Answer)?;
        let text = open(&key, &answer.sealed, &[&transcript[..], &theirs].concat()).ok_or(JoinError::Answer)?;
        serde_json::from_slice(&text).map_err(|_| JoinError::Answer)
    }
}

impl JoinRequest {
    /// All that is proven, each part after its length, so that no two requests have the same.
    fn transcript(&self) -> Vec<u8> {
        let intent = match self.intent {
            Intent::Look => "look",
            Intent::Join => "join",
        };
        let token = self.token.to_string();
        let mut text = LABEL.to_vec();
        for part in [&token, intent, self.pod.as_str(), &self.nonce, &self.key] {
            text.extend((part.len() as u64).to_be_bytes());
            text.extend(part.as_bytes());
        }
        text
    }
}

fn key_pair() -> Result<(EphemeralPrivateKey, [u8; KEY_BYTES]), JoinError> {
    let private = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).map_err(|_| JoinError::Agreement)?;
    let public = private.compute_public_key().map_err(|_| JoinError::Agreement)?;
    let public = public.as_ref().try_into().map_err(|_| JoinError::Agreement)?;
    Ok((private, public))
}

/// The answer's key; `ours` is the ring's public key, whoever computes this.
fn agree(
    private: EphemeralPrivateKey,
    theirs: &[u8; KEY_BYTES],
    secret: &[u8; SECRET_BYTES],
    transcript: &[u8],
    ours: &[u8; KEY_BYTES],
) -> Result<[u8; KEY_BYTES], JoinError> {
    agree_ephemeral(private, &UnparsedPublicKey::new(&X25519, theirs), |agreed| {
        let mut mac = keyed(&derived(secret, b" answer"));
        mac.update(transcript);
        mac.update(ours);
        mac.update(agreed);
        mac.finalize().into_bytes().into()
    })
    .map_err(|_| JoinError::Agreement)
}

fn proof(secret: &[u8; SECRET_BYTES], transcript: &[u8]) -> [u8; KEY_BYTES] {
    let mut mac = keyed(&derived(secret, b" proof"));
    mac.update(transcript);
    mac.finalize().into_bytes().into()
}

/// The key for one purpose.
fn derived(secret: &[u8; SECRET_BYTES], purpose: &[u8]) -> [u8; KEY_BYTES] {
    // Shorter than the block of SHA-256, so this never fails.
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret).expect("HMAC takes a key of any length");
    mac.update(LABEL);
    mac.update(purpose);
    mac.finalize().into_bytes().into()
}

/// Nonce and ciphertext, in hexadecimal digits. The nonce is random: with 24 bytes no two meet.
fn seal(key: &[u8; KEY_BYTES], text: &[u8], associated: &[u8]) -> Option<String> {
    let nonce: [u8; NONCE_BYTES] = rand::random();
    let cipher = XChaCha20Poly1305::new(&(*key).into());
    let sealed = cipher.encrypt(&XNonce::from(nonce), Payload { msg: text, aad: associated }).ok()?;
    Some(hex::encode([&nonce[..], &sealed].concat()))
}

fn open(key: &[u8; KEY_BYTES], sealed: &str, associated: &[u8]) -> Option<Vec<u8>> {
    if sealed.len() > 2 * MAX_SEALED_BYTES {
        return None;
    }
    let sealed = hex::decode(sealed).ok()?;
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>()?;
    let cipher = XChaCha20Poly1305::new(&(*key).into());
    cipher.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: associated }).ok()
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests;
