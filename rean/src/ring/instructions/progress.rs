//! Which instructions this pod has carried out.

use std::collections::{BTreeMap, BTreeSet};

use adea_ring::Stamp;
use parking_lot::Mutex;
use rean_store::{Store, StoreError};
use serde_json::{Map, Value};

use super::Number;

/// The note that it is kept in.
const NOTE: &str = "carried_out";
/// Epochs that are remembered: those with the newest instructions. A record is some 60 bytes, in the note and in the
/// status; an instruction of an epoch that is not remembered is looked at once more.
const MAX_EPOCHS: usize = 200;

/// Which instructions this pod has carried out.
#[derive(Debug, Default)]
pub struct Progress {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// For each epoch, up to which number all that are known are carried out.
    reached: BTreeMap<Stamp, u64>,
    /// The epochs that have instructions here.
    live: BTreeSet<Stamp>,
    /// The first of each epoch that is not carried out.
    open: BTreeSet<Number>,
}

impl Progress {
    /// Takes up what an earlier run of the pod had carried out.
    ///
    /// # Errors
    /// When the store fails.
    pub fn load(&self, store: &Store) -> Result<(), StoreError> {
        let note = store.note(NOTE)?.and_then(|note| serde_json::from_slice::<Map<String, Value>>(&note).ok());
        self.state.lock().reached = read_reached(note.unwrap_or_default().iter());
        Ok(())
    }

    /// Up to which number of an epoch all are carried out.
    pub fn reached(&self, epoch: &Stamp) -> u64 {
        self.state.lock().reached.get(epoch).copied().unwrap_or(0)
    }

    /// Whether nothing was ever carried out here: a new pod.
    pub fn is_new(&self) -> bool {
        self.state.lock().reached.is_empty()
    }

    /// Notes that an instruction and all before it in its epoch are carried out.
    pub fn reach(&self, number: &Number) {
        let mut state = self.state.lock();
        let reached = state.reached.entry(number.epoch.clone()).or_default();
        *reached = number.number.max(*reached);
        while state.reached.len() > MAX_EPOCHS {
            state.reached.pop_first();
        }
    }

    /// Notes what one look at all instructions has found: the epochs that have any, and the first open ones. Gives
    /// whether any is open that wasn't, or the other way round.
    pub fn found(&self, live: BTreeSet<Stamp>, open: BTreeSet<Number>) -> bool {
        let mut state = self.state.lock();
        let news = state.open != open;
        (state.live, state.open) = (live, open);
        news
    }

    /// Keeps it for the next run.
    ///
    /// # Errors
    /// When the store fails.
    pub fn save(&self, store: &Store) -> Result<(), StoreError> {
        let state = self.state.lock();
        store.set_note_lazily(NOTE, Some(describe(state.reached.iter()).to_string().into_bytes()))
    }

    /// The newest instruction up to which this pod has carried out all that it knows of, whatever their epochs.
    pub fn carried_out(&self) -> Option<Number> {
        let state = self.state.lock();
        let first_open = state.open.first().map(|open| &open.epoch);
        let newest = state.reached.iter().rfind(|(epoch, _)| first_open.is_none_or(|open| *epoch <= open))?;
        Some(Number { epoch: newest.0.clone(), number: *newest.1 })
    }

    /// For each epoch that has instructions here, up to which number they are carried out; `{"EPOCH": 12}`.
    pub fn by_epoch(&self) -> Value {
        let state = self.state.lock();
        describe(state.reached.iter().filter(|(epoch, _)| state.live.contains(epoch)))
    }

    /// The first instructions that are not carried out, one of each epoch.
    pub fn open(&self) -> Vec<String> {
        self.state.lock().open.iter().map(Number::to_string).collect()
    }
}

fn describe<'a>(reached: impl Iterator<Item = (&'a Stamp, &'a u64)>) -> Value {
    reached.map(|(epoch, number)| (epoch.to_string(), Value::from(*number))).collect::<Map<String, Value>>().into()
}

/// What a pod says in `carried_out_in`: `{"EPOCH": 12}`.
pub fn read_reached<'a>(members: impl Iterator<Item = (&'a String, &'a Value)>) -> BTreeMap<Stamp, u64> {
    members.filter_map(|(epoch, number)| Some((epoch.parse().ok()?, number.as_u64()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::{MAX_EPOCHS, Progress};
    use crate::ring::instructions::Number;
    use std::collections::BTreeSet;

    fn number(epoch: u64, number: u64) -> Number {
        Number { epoch: format!("{epoch:012x}-0000-a").parse().expect("a stamp"), number }
    }

    #[test]
    fn what_is_open_holds_back_what_came_later() {
        let progress = Progress::default();
        assert_eq!(progress.carried_out(), None);
        for (epoch, last) in [(1, 4), (2, 7), (3, 2)] {
            progress.reach(&number(epoch, last));
        }
        assert_eq!(progress.carried_out(), Some(number(3, 2)));
        assert!(progress.found(BTreeSet::from([number(2, 0).epoch]), BTreeSet::from([number(2, 8)])));
        assert_eq!(progress.carried_out(), Some(number(2, 7)));
        assert_eq!(progress.by_epoch(), serde_json::json!({"000000000002-0000-a": 7}));
        assert!(!progress.found(BTreeSet::new(), BTreeSet::from([number(2, 8)])));
        progress.reach(&number(2, 3));
        assert_eq!(progress.reached(&number(2, 0).epoch), 7);
    }

    #[test]
    fn epochs_are_bounded() {
        let progress = Progress::default();
        for epoch in 0..MAX_EPOCHS as u64 + 5 {
            progress.reach(&number(epoch, 1));
        }
        assert_eq!((progress.reached(&number(4, 0).epoch), progress.reached(&number(5, 0).epoch)), (0, 1));
    }
}
