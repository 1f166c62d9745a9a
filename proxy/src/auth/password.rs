//! Checking passwords: slow on purpose, so few at once, and never on the threads that carry requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

/// Checks at once. Each takes a core for some 20 ms and 19 MiB.
const AT_ONCE: usize = 2;
/// Checks that may wait: about five seconds of work. Further log-ins are told to come again.
const MAX_WAITING: usize = 512;
/// Bounds for hashes that come from documents: a document must not be able to order gigabytes or minutes.
const MAX_MEMORY_KIB: u32 = 256 * 1024;
const MAX_PASSES: u32 = 20;
const MAX_LANES: u32 = 16;
const MAX_PBKDF2_ITERATIONS: u32 = 1_000_000;

/// What a password is checked against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// A PHC string of argon2id.
    Argon2(String),
    /// CouchDB's `pbkdf2` with SHA-256, its default since 3.4
    /// (<https://docs.couchdb.org/en/stable/intro/security.html#users-documents>).
    Pbkdf2 {
        /// The derived key in hexadecimal digits.
        derived_key: String,
        /// The salt, as text.
        salt: String,
        /// Rounds.
        iterations: u32,
    },
    /// There is no such account, or it has no password: checked all the same, so that it takes as long.
    Nothing,
}

impl Stored {
    /// A short form that differs with each password that is set (there is salt in it), in hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let text = match self {
            Self::Argon2(hash) => hash.clone(),
            Self::Pbkdf2 { derived_key, salt, iterations } => format!("{derived_key}\n{salt}\n{iterations}"),
            Self::Nothing => return String::new(),
        };
        hex::encode(Sha256::digest(text))
    }
}

/// Too many checks wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// Checks passwords, a few at once.
#[derive(Debug)]
pub struct Passwords {
    permits: Semaphore,
    waiting: AtomicUsize,
    dummy: Arc<str>,
}

impl Passwords {
    /// Makes the dummy hash too, with the parameters of a new account's hash. Takes some 20 ms.
    pub fn new() -> Self {
        let secret: [u8; 16] = rand::random();
        // Cannot fail for 16 bytes and default parameters; an empty text would only cost the equal timing.
        let dummy = Argon2::default().hash_password(&secret).map(|hash| hash.to_string());
        Self { permits: Semaphore::new(AT_ONCE), waiting: AtomicUsize::new(0), dummy: dummy.unwrap_or_default().into() }
    }

    /// Whether the password is right.
    ///
    /// # Errors
    /// When too many checks wait already.
    pub async fn check(&self, password: String, stored: Stored) -> Result<bool, Busy> {
        struct Place<'a>(&'a AtomicUsize);
        impl Drop for Place<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::AcqRel);
            }
        }
        let before = self.waiting.fetch_add(1, Ordering::AcqRel);
        let _place = Place(&self.waiting);
        if before >= MAX_WAITING + AT_ONCE {
            return Err(Busy);
        }
        let _permit = self.permits.acquire().await.map_err(|_| Busy)?;
        let dummy = Arc::clone(&self.dummy);
        let checking = tokio::task::spawn_blocking(move || is_right(&password, &stored, &dummy));
        // A check that panicked has not found the password right.
        Ok(checking.await.unwrap_or(false))
    }
}

fn is_right(password: &str, stored: &Stored, dummy: &str) -> bool {
    match stored {
        Stored::Argon2(hash) => argon2(password, hash),
        Stored::Pbkdf2 { derived_key, salt, iterations } => pbkdf2(password, derived_key, salt, *iterations),
        Stored::Nothing => {
            argon2(password, dummy);
            false
        }
    }
}

fn argon2(password: &str, hash: &str) -> bool {
    let Ok(parsed) = PasswordHash::new(hash) else { return false };
    if parsed.algorithm.as_str() != "argon2id" {
        return false;
    }
    let Ok(params) = argon2::Params::try_from(&parsed) else { return false };
    params.m_cost() <= MAX_MEMORY_KIB
        && params.t_cost() <= MAX_PASSES
        && params.p_cost() <= MAX_LANES
        && Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok()
}

/// PBKDF2 (RFC 8018, 5.2) for a key of at most one hash's length, which is all that CouchDB makes.
fn pbkdf2(password: &str, derived_key: &str, salt: &str, iterations: u32) -> bool {
    let Ok(expected) = hex::decode(derived_key) else { return false };
    if expected.is_empty() || expected.len() > 32 || !(1..=MAX_PBKDF2_ITERATIONS).contains(&iterations) {
        return false;
    }
    let Ok(keyed) = <Hmac<Sha256> as KeyInit>::new_from_slice(password.as_bytes()) else { return false };
    let first = keyed.clone().chain_update(salt.as_bytes()).chain_update(1u32.to_be_bytes());
    let mut round: [u8; 32] = first.finalize().into_bytes().into();
    let mut key = round;
    for _ in 1..iterations {
        round = keyed.clone().chain_update(round).finalize().into_bytes().into();
        key.iter_mut().zip(round).for_each(|(sum, byte)| *sum ^= byte);
    }
    key[..expected.len()].ct_eq(&expected).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// argon2id of "secret" with the least parameters: quick enough for tests.
    fn quick(password: &str) -> String {
        let params = argon2::Params::new(8, 1, 1, None).expect("valid");
        let argon = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        argon.hash_password(password.as_bytes()).expect("hashes").to_string()
    }

    #[tokio::test]
    async fn right_wrong_and_no_account() {
        let passwords = Passwords::new();
        let stored = Stored::Argon2(quick("secret"));
        assert_eq!(passwords.check("secret".into(), stored.clone()).await, Ok(true));
        assert_eq!(passwords.check("Secret".into(), stored).await, Ok(false));
        assert_eq!(passwords.check("secret".into(), Stored::Nothing).await, Ok(false));
        assert_eq!(passwords.check("x".into(), Stored::Argon2("zork".into())).await, Ok(false));
    }

    #[test]
    fn the_dummy_is_a_real_hash() {
        let passwords = Passwords::new();
        let parsed = PasswordHash::new(&passwords.dummy).expect("a PHC string");
        let params = argon2::Params::try_from(&parsed).expect("argon2");
        assert_eq!(params.m_cost(), argon2::Params::default().m_cost());
    }

    #[test]
    fn a_hash_that_orders_gigabytes_is_refused() {
        let hash = quick("x").replace("m=8,", "m=4000000,");
        assert!(PasswordHash::new(&hash).is_ok());
        assert!(!argon2("x", &hash));
    }

    #[test]
    fn pbkdf2_of_the_rfc() {
        // RFC 7914, 11: PBKDF2-HMAC-SHA-256 (P="passwd", S="salt", c=1), first 32 bytes.
        let key = "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc";
        assert!(pbkdf2("passwd", key, "salt", 1));
        assert!(!pbkdf2("passwd", key, "salt", 2));
        assert!(!pbkdf2("passwd", "", "salt", 1));
        assert!(!pbkdf2("passwd", key, "salt", 0));
        assert!(!pbkdf2("passwd", "zz", "salt", 1));
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let passwords = Passwords::new();
        passwords.waiting.store(MAX_WAITING + AT_ONCE, Ordering::Release);
        assert_eq!(passwords.check("x".into(), Stored::Nothing).await, Err(Busy));
        assert_eq!(passwords.waiting.load(Ordering::Acquire), MAX_WAITING + AT_ONCE);
    }
}
