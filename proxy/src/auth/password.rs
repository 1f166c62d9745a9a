//! Checking passwords: slow on purpose, so few at once, and never on the threads that carry requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};
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
    /// CouchDB's `pbkdf2`, as accounts that come from there have it
    /// (<https://docs.couchdb.org/en/stable/intro/security.html#users-documents>).
    Pbkdf2 {
        /// What is iterated.
        prf: Prf,
        /// The derived key in hexadecimal digits.
        derived_key: String,
        /// The salt, as text.
        salt: String,
        /// Rounds.
        iterations: u32,
    },
    /// CouchDB's `simple` of before 1.3: SHA-1 of the password and the salt, in hexadecimal digits.
    Simple {
        /// The hash in hexadecimal digits.
        password_sha: String,
        /// The salt, as text.
        salt: String,
    },
    /// There is no such account, or it has no password: checked all the same, so that it takes as long.
    Nothing,
}

/// The pseudorandom function of a `pbkdf2` hash: HMAC with one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prf {
    /// CouchDB's only one before 3.4, and the one that is meant where a document names none.
    Sha1,
    /// SHA-224.
    Sha224,
    /// CouchDB's default since 3.4.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Prf {
    /// By its name in `pbkdf2_prf`.
    pub fn of_name(name: Option<&str>) -> Option<Self> {
        Some(match name {
            None | Some("sha" | "sha1") => Self::Sha1,
            Some("sha224") => Self::Sha224,
            Some("sha256") => Self::Sha256,
            Some("sha384") => Self::Sha384,
            Some("sha512") => Self::Sha512,
            Some(_) => return None,
        })
    }
}

impl Stored {
    /// Whether this is a hash of another server's, which is replaced by one of ours once the password is known.
    pub fn is_foreign(&self) -> bool {
        matches!(self, Self::Pbkdf2 { .. } | Self::Simple { .. })
    }

    /// A short form that differs with each password that is set (there is salt in it), in hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let text = match self {
            Self::Argon2(hash) => hash.clone(),
            Self::Pbkdf2 { prf: Prf::Sha256, derived_key, salt, iterations } => {
                format!("{derived_key}\n{salt}\n{iterations}")
            }
            Self::Pbkdf2 { prf, derived_key, salt, iterations } => {
                format!("{prf:?}\n{derived_key}\n{salt}\n{iterations}")
            }
            Self::Simple { password_sha, salt } => format!("simple\n{password_sha}\n{salt}"),
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
        Stored::Pbkdf2 { prf, derived_key, salt, iterations } => {
            // An old hash may be quick to check: how long a log-in takes is not to tell who has one.
            argon2(password, dummy);
            pbkdf2(*prf, password, derived_key, salt, *iterations)
        }
        Stored::Simple { password_sha, salt } => {
            argon2(password, dummy);
            simple(password, password_sha, salt)
        }
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

fn simple(password: &str, password_sha: &str, salt: &str) -> bool {
    let Ok(expected) = hex::decode(password_sha) else { return false };
    let found = Sha1::new().chain_update(password).chain_update(salt).finalize();
    found.as_slice().ct_eq(&expected).into()
}

fn pbkdf2(prf: Prf, password: &str, derived_key: &str, salt: &str, iterations: u32) -> bool {
    let Ok(expected) = hex::decode(derived_key) else { return false };
    if expected.is_empty() || !(1..=MAX_PBKDF2_ITERATIONS).contains(&iterations) {
        return false;
    }
    let derive = match prf {
        Prf::Sha1 => first_block::<Hmac<Sha1>>,
        Prf::Sha224 => first_block::<Hmac<Sha224>>,
        Prf::Sha256 => first_block::<Hmac<Sha256>>,
        Prf::Sha384 => first_block::<Hmac<Sha384>>,
        Prf::Sha512 => first_block::<Hmac<Sha512>>,
    };
    let Some(key) = derive(password.as_bytes(), salt.as_bytes(), iterations) else { return false };
    key.get(..expected.len()).is_some_and(|key| key.ct_eq(&expected).into())
}

/// The first block of PBKDF2 (RFC 8018, 5.2): a key of one hash's length, which is all that CouchDB makes.
fn first_block<M: Mac + KeyInit + Clone>(password: &[u8], salt: &[u8], iterations: u32) -> Option<Vec<u8>> {
    let keyed = <M as KeyInit>::new_from_slice(password).ok()?;
    let first = keyed.clone().chain_update(salt).chain_update(1u32.to_be_bytes());
    let mut round = first.finalize().into_bytes();
    let mut key = round.to_vec();
    for _ in 1..iterations {
        round = keyed.clone().chain_update(&round).finalize().into_bytes();
        key.iter_mut().zip(round.iter()).for_each(|(sum, byte)| *sum ^= byte);
    }
    Some(key)
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
        let sha256 = |key: &str, iterations: u32| pbkdf2(Prf::Sha256, "passwd", key, "salt", iterations);
        assert!(sha256(key, 1));
        assert!(!sha256(key, 2));
        assert!(!sha256("", 1));
        assert!(!sha256(key, 0));
        assert!(!sha256("zz", 1));
        assert!(!sha256(&format!("{key}00"), 1));
        assert!(!pbkdf2(Prf::Sha512, "passwd", key, "salt", 1));
        // RFC 6070: PBKDF2-HMAC-SHA-1.
        for (iterations, key) in
            [(1, "0c60c80f961f0e71f3a9b524af6012062fe037a6"), (4096, "4b007901b765489abead49d926f721d065a429c1")]
        {
            assert!(pbkdf2(Prf::Sha1, "password", key, "salt", iterations));
            assert!(!pbkdf2(Prf::Sha1, "passwort", key, "salt", iterations));
        }
    }

    #[test]
    fn all_functions_of_couchdb() {
        // Made with Python's hashlib.pbkdf2_hmac for the password "pass:ä", the salt "0f1e" and 10 rounds.
        let keys = [
            ("sha", "19996bed0d39d90aca61394d7ed953d6caa4c692"),
            ("sha224", "aaa8cf99ce98282d868005a1672ddfd1af95363d3814daa3fc4ff1e4"),
            ("sha256", "016d31893e1f1a41e4bf8123fa8d5e23269f3e037ee84226e18d5912e7c7167a"),
            (
                "sha384",
                "2e7c1f45ded92ee8f65d89e9a23742564f93011d7c2bf82357b08bb6c786e73e\
                 03f292437dfb1be4a29f91f27b47b618",
            ),
            (
                "sha512",
                "6d5dced26534e62298b46d16036a9898e36debb9c355d89d7330aec1eca68d30\
                 44a18038108674c346b335616967158818ada72c486f48cb06b3fccd654f622d",
            ),
        ];
        for (name, key) in keys {
            let prf = Prf::of_name(Some(name)).expect("known");
            assert!(pbkdf2(prf, "pass:ä", key, "0f1e", 10), "{name}");
            assert!(!pbkdf2(prf, "pass:a", key, "0f1e", 10), "{name}");
        }
        assert_eq!((Prf::of_name(None), Prf::of_name(Some("md5"))), (Some(Prf::Sha1), None));
        // sha1("secret" + "salt")
        assert!(simple("secret", "8152bc582f58c854f580cb101d3182813dec4afe", "salt"));
        assert!(!simple("Secret", "8152bc582f58c854f580cb101d3182813dec4afe", "salt"));
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let passwords = Passwords::new();
        passwords.waiting.store(MAX_WAITING + AT_ONCE, Ordering::Release);
        assert_eq!(passwords.check("x".into(), Stored::Nothing).await, Err(Busy));
        assert_eq!(passwords.waiting.load(Ordering::Acquire), MAX_WAITING + AT_ONCE);
    }
}
