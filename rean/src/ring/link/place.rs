//! How far a link has come, kept in the store: it may lag behind what has arrived, and never leads.

use std::collections::BTreeSet;

use rean_store::{MAX_NOTE_BYTES, Store, StoreError};
use serde::{Deserialize, Serialize};

use adea_ring::PodId;
use adea_ring::report::{Applied, Origin};

use crate::ring::Ring;

/// What has arrived from whom, for the next start.
const APPLIED_NOTE: &str = "ring/applied";
/// Databases whose rows were passed over.
const PASSED_NOTE: &str = "ring/passed_over";
/// How often all links were begun anew.
const ROUND_NOTE: &str = "ring/round";
/// An entry of a vector as JSON, in bytes: a pod's id of 64, the history, a number.
const ENTRY_BYTES: usize = 100;

/// A place in a neighbour's feed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// This store's history: with another one, rows that had arrived may be gone.
    here: String,
    /// The neighbour's history.
    pub history: String,
    /// All up to this sequence is here.
    pub seq: u64,
    /// Places of an earlier round don't count.
    round: u64,
}

/// [`APPLIED_NOTE`].
#[derive(Serialize, Deserialize)]
struct Vector {
    here: String,
    applied: Applied,
}

impl Place {
    /// The start of a neighbour's feed.
    pub fn start(store: &Store, history: &str, round: u64) -> Self {
        Self { here: store.history().to_owned(), history: history.to_owned(), seq: 0, round }
    }

    /// The place that was reached with a neighbour in this round; the start of no history if there is none.
    ///
    /// # Errors
    /// The store failed.
    pub fn load(store: &Store, peer: &PodId, round: u64) -> Result<Self, StoreError> {
        let note = store.note(&note_name(peer))?;
        let place: Option<Self> = note.and_then(|note| serde_json::from_slice(&note).ok());
        let counts = |place: &Self| place.here == store.history() && place.round == round;
        Ok(place.filter(counts).unwrap_or_else(|| Self::start(store, "", round)))
    }

    /// Keeps it, with the next commit or soon.
    ///
    /// # Errors
    /// The store failed.
    pub fn keep(&self, store: &Store, peer: &PodId) -> Result<(), StoreError> {
        store.set_note_lazily(&note_name(peer), serde_json::to_vec(self).ok())
    }
}

fn note_name(peer: &PodId) -> String {
    format!("link/{peer}")
}

/// Takes up what had arrived before this start.
///
/// # Errors
/// The store failed.
pub fn recall_applied(store: &Store, ring: &Ring) -> Result<(), StoreError> {
    let note = store.note(APPLIED_NOTE)?;
    let vector: Option<Vector> = note.and_then(|note| serde_json::from_slice(&note).ok());
    if let Some(vector) = vector.filter(|vector| vector.here == store.history()) {
        ring.knowledge.arrived(&vector.applied);
    }
    Ok(())
}

/// Keeps what has arrived, all of which must be durable. Beyond what a note holds the entries with the lowest sequences
/// are left out: they come again with the first mark of each link.
///
/// # Errors
/// The store failed.
pub fn keep_applied(store: &Store, applied: &Applied) -> Result<(), StoreError> {
    let most = MAX_NOTE_BYTES / ENTRY_BYTES - 1;
    let mut entries: Vec<(Origin, u64)> = applied.iter().map(|(origin, seq)| (origin.clone(), *seq)).collect();
    if entries.len() > most {
        entries.sort_by_key(|(_, seq)| std::cmp::Reverse(*seq));
        entries.truncate(most);
    }
    let vector = Vector { here: store.history().to_owned(), applied: entries.into_iter().collect() };
    store.set_note_lazily(APPLIED_NOTE, serde_json::to_vec(&vector).ok())
}

/// The round that places count for.
///
/// # Errors
/// The store failed.
pub fn round(store: &Store) -> Result<u64, StoreError> {
    let note = store.note(ROUND_NOTE)?;
    Ok(note.and_then(|note| serde_json::from_slice(&note).ok()).unwrap_or(0))
}

/// Begins the next round: all places are at the start. Blocks until that is durable.
///
/// # Errors
/// The store failed.
pub fn next_round(store: &Store) -> Result<u64, StoreError> {
    let next = round(store)? + 1;
    store.set_note(ROUND_NOTE, Some(next.to_string().into_bytes()))?;
    Ok(next)
}

/// The databases whose rows were passed over, because no document of the ring names them.
///
/// # Errors
/// The store failed.
pub fn passed_over(store: &Store) -> Result<BTreeSet<String>, StoreError> {
    let note = store.note(PASSED_NOTE)?;
    Ok(note.and_then(|note| serde_json::from_slice(&note).ok()).unwrap_or_default())
}

/// Keeps them. Blocks until that is durable.
///
/// # Errors
/// The store failed.
pub fn keep_passed_over(store: &Store, names: &BTreeSet<String>) -> Result<(), StoreError> {
    let note = if names.is_empty() { None } else { serde_json::to_vec(names).ok() };
    store.set_note(PASSED_NOTE, note)
}
