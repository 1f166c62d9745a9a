//! Those who take a long answer: how many there may be of one account.
//!
//! A long answer keeps a moment of the index open for as long as its client takes to read it, and there are only so many
//! of those: one account with slow clients must not take all of them.

use std::collections::HashMap;
use std::sync::Arc;

use ::http::StatusCode;
use adea_ring::Identity;
use parking_lot::Mutex;

use crate::error::ApiError;

/// Long answers at once of one account: an index holds 1,024 moments, so sixteen accounts have room with all of theirs.
const MAX_OF_ONE: usize = 64;
/// Of an administrator, whose programs ask for many; and of all together who have not logged in.
const MAX_OF_MANY: usize = 256;

/// The readers of a pod.
#[derive(Default)]
pub struct Readers {
    by_name: Arc<Mutex<HashMap<Name, usize>>>,
}

type Name = Option<Box<str>>;

/// A place among the readers; given back when dropped.
pub struct Seat {
    by_name: Arc<Mutex<HashMap<Name, usize>>>,
    name: Name,
}

impl Readers {
    /// A place for one long answer.
    ///
    /// # Errors
    /// 429 when the account has as many as it may have.
    pub fn admit(&self, who: &Identity) -> Result<Seat, ApiError> {
        let name: Name = who.name.as_deref().map(Into::into);
        let most = if who.is_admin() || name.is_none() { MAX_OF_MANY } else { MAX_OF_ONE };
        let mut by_name = self.by_name.lock();
        let count = by_name.entry(name.clone()).or_default();
        if *count >= most {
            return Err(ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_requests",
                "You have too many long answers open.",
            ));
        }
        *count += 1;
        drop(by_name);
        Ok(Seat { by_name: Arc::clone(&self.by_name), name })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut by_name = self.by_name.lock();
        if let Some(count) = by_name.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                by_name.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_OF_ONE, Readers};
    use adea_ring::Identity;

    #[test]
    fn places_are_bounded_for_each_account_and_come_back() {
        let readers = Readers::default();
        let named = |name: &str| Identity { name: Some(name.to_owned()), roles: Vec::new() };
        let seats: Vec<_> = (0..MAX_OF_ONE).map(|_| readers.admit(&named("ann")).expect("a place")).collect();
        assert!(readers.admit(&named("ann")).is_err());
        assert!(readers.admit(&named("bob")).is_ok());
        assert!(readers.admit(&Identity::anonymous()).is_ok());
        drop(seats);
        assert!(readers.admit(&named("ann")).is_ok());
        assert!(readers.by_name.lock().is_empty());
    }
}
