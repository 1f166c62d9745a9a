//! Revisions that no one wrote.
//!
//! A reader from whose sight a document goes gets a tombstone: a revision one generation above the one that
//! they have and its child. Its hash is an HMAC under a ring key, so that every pod makes the same one, a
//! client's push of it is recognised, and nobody else can make one. It is never written to the aggregate.
//!
//! When the same revision comes back, its readers' devices hold it as dead. So it first gets a successor: a
//! real revision with the same content, whose name is made the same way on every pod.

use crate::rev::{Rev, RevHash};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Makes and recognises the revisions of one database.
#[derive(Clone)]
pub(crate) struct Chain {
    key: [u8; 32],
    database: String,
}

impl Chain {
    /// `key` is the ring's, so that all pods agree; the name of the database keeps databases apart.
    pub fn new(key: [u8; 32], database: &str) -> Chain {
        Chain { key, database: database.to_owned() }
    }

    /// The tombstone of a revision.
    pub fn tomb(&self, id: &str, rev: &Rev) -> Rev {
        Rev { generation: rev.generation + 1, hash: self.hash("tomb", id, rev) }
    }

    /// The successor of a revision whose end somebody was shown.
    pub fn successor(&self, id: &str, rev: &Rev) -> Rev {
        Rev { generation: rev.generation + 1, hash: self.hash("successor", id, rev) }
    }

    /// The deletion that ends a successor when an edit of what it succeeded comes after all.
    pub fn closing(&self, id: &str, rev: &Rev) -> Rev {
        Rev { generation: rev.generation + 1, hash: self.hash("closing", id, rev) }
    }

    /// The revision that a real edit of an app's document gets, from its plain one. A reader sees the names
    /// of revisions that they could not read (they stand in histories); without a key those would confirm a
    /// guess of the content.
    pub fn veil(&self, id: &str, rev: &Rev) -> Rev {
        Rev { generation: rev.generation, hash: self.hash("veil", id, rev) }
    }

    /// Whether `rev` is the tombstone of `base`.
    pub fn is_tomb(&self, id: &str, base: &Rev, rev: &Rev) -> bool {
        rev.generation == base.generation + 1 && matches!(rev.hash, RevHash::Md5(_)) && self.tomb(id, base) == *rev
    }

    fn hash(&self, purpose: &str, id: &str, rev: &Rev) -> RevHash {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        for part in [purpose, &self.database, id, &rev.to_string()] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        let tag = mac.finalize().into_bytes();
        let mut hash = [0u8; 16];
        hash.copy_from_slice(&tag[..16]);
        RevHash::Md5(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tombstone_is_recognised_by_key_database_document_and_base() {
        let chain = Chain::new([1; 32], "notes");
        let base: Rev = "3-0123456789abcdef0123456789abcdef".parse().unwrap();
        let tomb = chain.tomb("x", &base);
        assert_eq!(tomb.generation, 4);
        assert!(chain.is_tomb("x", &base, &tomb));
        assert!(!chain.is_tomb("y", &base, &tomb));
        assert!(!chain.is_tomb("x", &base, &chain.successor("x", &base)));
        assert!(!chain.is_tomb("x", &tomb, &tomb));
        assert!(!Chain::new([2; 32], "notes").is_tomb("x", &base, &tomb));
        assert!(!Chain::new([1; 32], "other").is_tomb("x", &base, &tomb));
    }
}
