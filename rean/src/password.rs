//! Passwords: argon2id, in the PHC string format.
//!
//! Source of the parameters: OWASP's password storage cheat sheet (19 MiB, 2 passes, 1 lane), the crate's default.

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{Error, PasswordHasher};

/// What `password_scheme` says of such a hash.
pub const SCHEME: &str = "argon2id";
/// Bytes of a password: hashing must not take longer because somebody sends a novel.
pub const MAX_PASSWORD_BYTES: usize = 1_024;
/// Memory that a hash from elsewhere may ask for, in KiB: each log-in pays it.
const MAX_MEMORY_KIB: u32 = 64 * 1_024;
/// Passes that a hash from elsewhere may ask for.
const MAX_PASSES: u32 = 8;
/// Lanes that a hash from elsewhere may ask for.
const MAX_LANES: u32 = 4;

/// Hashes a password with a new salt. Takes a core for some 20 ms.
///
/// # Errors
/// When the system has no randomness.
pub fn hash(password: &str) -> Result<String, Error> {
    Ok(Argon2::default().hash_password(password.as_bytes())?.to_string())
}

/// Whether a hash that was made elsewhere is an argon2id hash that may be checked at each log-in.
pub fn is_acceptable(hash: &str) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else {
        return false;
    };
    let within = |name: &str, most: u32| hash.params.get_decimal(name).is_some_and(|value| (1..=most).contains(&value));
    hash.algorithm.as_str() == SCHEME
        && hash.hash.is_some()
        && within("m", MAX_MEMORY_KIB)
        && within("t", MAX_PASSES)
        && within("p", MAX_LANES)
}

#[cfg(test)]
mod tests {
    use super::{hash, is_acceptable};
    use argon2::password_hash::PasswordVerifier;
    use argon2::password_hash::phc::PasswordHash;

    #[test]
    fn a_hash_verifies_and_is_salted() {
        let (first, second) = (hash("p:ä 1").expect("hash"), hash("p:ä 1").expect("hash"));
        assert_ne!(first, second);
        assert!(is_acceptable(&first));
        let parsed = PasswordHash::new(&first).expect("PHC");
        let argon2 = argon2::Argon2::default();
        assert!(argon2.verify_password("p:ä 1".as_bytes(), &parsed).is_ok());
        assert!(argon2.verify_password(b"p", &parsed).is_err());
    }

    #[test]
    fn costly_or_foreign_hashes_are_refused() {
        let tail = "$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNo";
        assert!(is_acceptable(&format!("$argon2id$v=19$m=19456,t=2,p=1{tail}")));
        for head in [
            "$argon2id$v=19$m=4194304,t=2,p=1",
            "$argon2id$v=19$m=19456,t=2000,p=1",
            "$argon2id$v=19$m=19456,t=2,p=100",
            "$argon2i$v=19$m=19456,t=2,p=1",
            "$argon2id$v=19",
        ] {
            assert!(!is_acceptable(&format!("{head}{tail}")), "{head}");
        }
        assert!(!is_acceptable("nonsense"));
    }
}
