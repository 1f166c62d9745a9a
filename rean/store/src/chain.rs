//! Revisions that no one wrote: the tombstone that a reader gets when a document leaves their sight, and the
//! revival that they get when the same revision comes back.
//!
//! From a stored revision `b` hangs a chain of made-up ones, each the child of the one before:
//! `b -> 1 -> 2 -> 3 ...`. Odd steps are deletions, even steps are live and have the content of `b`. A reader
//! who loses sight for the first time is shown step 1, whose parent is the revision that they have; who gets
//! the same revision back is shown step 2, and so on. Each step's hash is an HMAC under a ring key of the
//! one before, so that every pod makes the same one, a client's push of one is recognised, and nobody else
//! can make one. A step is never written to the aggregate as a leaf.

use crate::rev::{Rev, RevHash};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Steps that are made and recognised. A reader can lose and regain the same unchanged revision this many
/// times halved; recognising an unknown revision costs at most this squared HMACs.
pub const MAX_STEPS: u32 = 32;

/// Makes and recognises the steps of one database.
#[derive(Clone)]
pub struct Chain {
    key: [u8; 32],
    database: String,
}

impl Chain {
    /// `key` is the ring's, so that all pods agree; the name of the database keeps databases apart.
    pub fn new(key: [u8; 32], database: &str) -> Chain {
        Chain { key, database: database.to_owned() }
    }

    /// The step after a revision.
    pub fn next(&self, id: &str, rev: &Rev) -> Rev {
        Rev { generation: rev.generation + 1, hash: self.hash("step", id, rev) }
    }

    /// The revision that a real edit of an app's document gets, from its plain one. A reader sees the names
    /// of revisions that they could not read (they stand in histories); without a key those would confirm a
    /// guess of the content.
    pub fn veil(&self, id: &str, rev: &Rev) -> Rev {
        Rev { generation: rev.generation, hash: self.hash("veil", id, rev) }
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

    /// The revision that is `steps` behind `base` (0: `base` itself).
    pub fn step(&self, id: &str, base: &Rev, steps: u32) -> Rev {
        (0..steps.min(MAX_STEPS)).fold(base.clone(), |rev, _| self.next(id, &rev))
    }

    /// Steps `steps..=1`, newest first: what stands before `base` in the history of the last one.
    pub fn steps(&self, id: &str, base: &Rev, steps: u32) -> Vec<Rev> {
        let mut out = Vec::with_capacity(steps as usize);
        let mut rev = base.clone();
        for _ in 0..steps.min(MAX_STEPS) {
            rev = self.next(id, &rev);
            out.push(rev.clone());
        }
        out.reverse();
        out
    }

    /// How many steps `rev` is behind `base`, if it is one of its chain.
    pub fn recognise(&self, id: &str, base: &Rev, rev: &Rev) -> Option<u32> {
        let steps = u32::try_from(rev.generation.checked_sub(base.generation)?).ok()?;
        if steps == 0 || steps > MAX_STEPS || !matches!(rev.hash, RevHash::Md5(_)) {
            return None;
        }
        (self.step(id, base, steps) == *rev).then_some(steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rev(text: &str) -> Rev {
        text.parse().unwrap()
    }

    #[test]
    fn steps_are_recognised_and_differ_by_key_database_and_document() {
        let chain = Chain::new([1; 32], "notes");
        let base = rev("3-0123456789abcdef0123456789abcdef");
        for steps in 1..=MAX_STEPS {
            let made = chain.step("x", &base, steps);
            assert_eq!(made.generation, 3 + u64::from(steps));
            assert_eq!(chain.recognise("x", &base, &made), Some(steps));
            assert_eq!(chain.recognise("y", &base, &made), None);
            assert_eq!(Chain::new([2; 32], "notes").recognise("x", &base, &made), None);
            assert_eq!(Chain::new([1; 32], "other").recognise("x", &base, &made), None);
        }
        assert_eq!(chain.recognise("x", &base, &base), None);
        let steps = chain.steps("x", &base, 3);
        assert_eq!(steps[0], chain.step("x", &base, 3));
        assert_eq!(steps[2], chain.step("x", &base, 1));
    }
}
