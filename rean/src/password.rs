//! Passwords: argon2id, in the PHC string format.
//!
//! Source of the parameters: OWASP's password storage cheat sheet (19 MiB, 2 passes, 1 lane), the crate's default.

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{Error, PasswordHasher};
use serde_json::{Map, Value};

/// What `password_scheme` says of such a hash.
pub const SCHEME: &str = "argon2id";
/// What it says of a hash that comes from CouchDB.
pub const PBKDF2: &str = "pbkdf2";
/// Rounds that such a hash may ask for: as many as the log-in is ready to do, some 0.3 s.
const MAX_PBKDF2_ITERATIONS: u64 = 1_000_000;
/// The functions that CouchDB has for them; where none is named it is `sha`.
const PBKDF2_PRFS: [&str; 5] = ["sha", "sha224", "sha256", "sha384", "sha512"];
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

/// Whether an account's members hold a CouchDB hash that a log-in can check
/// (<https://docs.couchdb.org/en/stable/intro/security.html#users-documents>). It stays until the next one, which puts an
/// argon2id hash in its place.
pub fn is_acceptable_pbkdf2(account: &Map<String, Value>) -> bool {
    let text = |name: &str| account.get(name).and_then(Value::as_str);
    let prf =
        account.get("pbkdf2_prf").is_none_or(|_| text("pbkdf2_prf").is_some_and(|prf| PBKDF2_PRFS.contains(&prf)));
    let key = text("derived_key").is_some_and(|key| hex::decode(key).is_ok_and(|key| !key.is_empty()));
    let rounds = account.get("iterations").and_then(Value::as_u64);
    prf && key && text("salt").is_some() && rounds.is_some_and(|rounds| (1..=MAX_PBKDF2_ITERATIONS).contains(&rounds))
}

#[cfg(test)]
mod tests {
    use super::{hash, is_acceptable, is_acceptable_pbkdf2};
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

    #[test]
    fn hashes_of_couchdb_are_taken_if_they_can_be_checked() {
        let fits = |account: serde_json::Value| is_acceptable_pbkdf2(account.as_object().expect("an object"));
        let with = |prf: serde_json::Value, key: &str, iterations: serde_json::Value| serde_json::json!({"pbkdf2_prf": prf, "derived_key": key, "salt": "0f", "iterations": iterations});
        assert!(fits(with("sha256".into(), "ab", 600_000.into())));
        assert!(fits(serde_json::json!({"derived_key": "ab", "salt": "", "iterations": 10})));
        assert!(!fits(with("md5".into(), "ab", 10.into())));
        assert!(!fits(with(7.into(), "ab", 10.into())));
        assert!(!fits(with("sha".into(), "zz", 10.into())));
        assert!(!fits(with("sha".into(), "", 10.into())));
        assert!(!fits(with("sha".into(), "ab", 0.into())));
        assert!(!fits(with("sha".into(), "ab", 4_000_000_000_u64.into())));
        assert!(!fits(serde_json::json!({"derived_key": "ab", "iterations": 10})));
    }
}
