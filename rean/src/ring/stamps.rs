//! rean's hybrid logical clock: it stamps instructions, status and what is found.
//!
//! A stamp is only given away in a document. The bound that keeps the clock from running backwards after a restart is
//! a lazy note of the store, which is committed with the next commit at the latest: so with that document or before.

use adea_ring::{Clock, PodId, Stamp};
use parking_lot::Mutex;
use rean_store::{Store, StoreError};

use crate::ring::ring_doc::now_ms;

/// The note that the bound is kept in.
const NOTE: &str = "clock";

/// A clock that begins where the last run's ended.
pub struct Stamps {
    pod: PodId,
    state: Mutex<State>,
}

struct State {
    /// None before the first stamp: the bound has yet to be read.
    clock: Option<Clock>,
    max_drift_ms: u64,
}

impl Stamps {
    /// A clock of this pod.
    pub fn new(pod: PodId) -> Self {
        let max_drift_ms = adea_ring::clock::DEFAULT_MAX_DRIFT_MS;
        Self { pod, state: Mutex::new(State { clock: None, max_drift_ms }) }
    }

    /// A new stamp, for a document that is written after this. May be called on the store's writer thread.
    ///
    /// # Errors
    /// When the bound can't be read or kept: then there is no stamp.
    pub fn now(&self, store: &Store) -> Result<Stamp, StoreError> {
        let mut state = self.state.lock();
        let clock = self.clock(&mut state, store)?;
        let physical_ms = now_ms();
        let stamp = clock.now(physical_ms);
        clock.reserve(physical_ms, |bound| store.set_note_lazily(NOTE, Some(bound.to_string().into_bytes())))?;
        Ok(stamp)
    }

    /// Goes on after a stamp of another pod. One that is too far ahead is passed over: adea names its pod.
    ///
    /// # Errors
    /// As [`Stamps::now`].
    pub fn observe(&self, store: &Store, stamp: &Stamp) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        // Refused ones leave the clock as it is; that is all there is to do about them here.
        let _ = self.clock(&mut state, store)?.observe(stamp, now_ms());
        Ok(())
    }

    /// Allows other pods' stamps to be this far ahead from now on.
    ///
    /// # Errors
    /// As [`Stamps::now`].
    pub fn set_max_drift(&self, store: &Store, max_drift_ms: u64) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if state.max_drift_ms == max_drift_ms {
            return Ok(());
        }
        let last = self.clock(&mut state, store)?.now(now_ms());
        *state = State { clock: Some(Clock::new(self.pod.clone(), Some(last), max_drift_ms)), max_drift_ms };
        Ok(())
    }

    fn clock<'a>(&self, state: &'a mut State, store: &Store) -> Result<&'a mut Clock, StoreError> {
        let clock = match state.clock.take() {
            Some(clock) => clock,
            None => {
                let note = store.note(NOTE)?;
                let last = note.and_then(|note| String::from_utf8(note).ok()).and_then(|text| text.parse().ok());
                Clock::new(self.pod.clone(), last, state.max_drift_ms)
            }
        };
        Ok(state.clock.insert(clock))
    }
}

#[cfg(test)]
mod tests {
    use super::Stamps;
    use rean_store::{EngineKind, NoObserver, Store, StoreKeys, StoreOptions};
    use std::sync::Arc;

    fn open(path: &std::path::Path) -> Store {
        let keys = StoreKeys { chain: [1; 32], bookmark: [2; 32] };
        let observer = Arc::new(NoObserver);
        Store::open(StoreOptions { path: path.to_owned(), engine: EngineKind::Fjall, keys, observer }).expect("opens")
    }

    #[test]
    fn a_restart_goes_on_after_all_that_was_stamped_and_passes_over_what_is_far_off() {
        let dir = tempfile::tempdir().expect("a folder");
        let me = || "a".parse().expect("a pod's id");
        let (store, stamps) = (open(dir.path()), Stamps::new(me()));
        let first = stamps.now(&store).expect("a stamp");
        let ahead = format!("{:012x}-0000-b", first.millis() + 30_000).parse().expect("a stamp");
        stamps.observe(&store, &ahead).expect("the store answers");
        let second = stamps.now(&store).expect("a stamp");
        assert!(second > ahead);
        let far = format!("{:012x}-0000-b", first.millis() + 600_000).parse().expect("a stamp");
        stamps.observe(&store, &far).expect("the store answers");
        assert!(stamps.now(&store).expect("a stamp") < far);
        stamps.set_max_drift(&store, 3_600_000).expect("the store answers");
        stamps.observe(&store, &far).expect("the store answers");
        let last = stamps.now(&store).expect("a stamp");
        assert!(last > far);
        store.close();
        let store = open(dir.path());
        assert!(Stamps::new(me()).now(&store).expect("a stamp") > last);
        store.close();
    }
}
