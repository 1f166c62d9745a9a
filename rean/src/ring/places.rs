//! Places of which nobody gets more than their share: handshakes of one address, uploads of one user.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// Who has how many places. There are no entries but for those who have some.
pub struct Places<K: Eq + Hash + Clone> {
    counts: Arc<Mutex<HashMap<K, usize>>>,
}

/// A place, until it is dropped.
pub struct Taken<K: Eq + Hash + Clone> {
    counts: Arc<Mutex<HashMap<K, usize>>>,
    by: K,
}

impl<K: Eq + Hash + Clone> Default for Places<K> {
    fn default() -> Self {
        Self { counts: Arc::default() }
    }
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// Takes a place for somebody who is to have at most this many.
    pub fn take(&self, by: K, most: usize) -> Option<Taken<K>> {
        let mut counts = self.counts.lock();
        match counts.get_mut(&by) {
            Some(count) if *count >= most => return None,
            Some(count) => *count += 1,
            None if most == 0 => return None,
            None => {
                counts.insert(by.clone(), 1);
            }
        }
        Some(Taken { counts: Arc::clone(&self.counts), by })
    }
}

impl<K: Eq + Hash + Clone> Drop for Taken<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.by) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.by);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Places;

    #[test]
    fn nobody_gets_more_than_their_share_and_nothing_is_left_behind() {
        let places = Places::default();
        let first = places.take("a", 2);
        let second = places.take("a", 2);
        assert!(first.is_some() && second.is_some() && places.take("a", 2).is_none());
        assert!(places.take("b", 1).is_some() && places.take("c", 0).is_none());
        drop(first);
        assert!(places.take("a", 2).is_some());
        drop(second);
        assert!(places.counts.lock().is_empty());
    }
}
