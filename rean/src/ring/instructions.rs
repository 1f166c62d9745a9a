//! Instructions: the numbered record of documents that left a partial database, so that it can be told on which pods a
//! revocation is done.
//!
//! The write master's store asks for one with each commit that moves documents ([`Recorder`]), and writes it in that
//! commit, as `_ring/instruction:EPOCH.NUMBER`:
//! ```json
//! {"prev": "EPOCH.NUMBER", "stamp": "...", "dbs": {"notes": {"instance": "0a1b2c3d", "rules": "2-b"}},
//!  "moves": [{"db": "notes", "id": "x", "from": "...", "to": null, "rev": "3-a"}]}
//! ```
//! Numbers count from 1 in each epoch and have ten digits, so that ids sort in the order of their making. `prev` names
//! the one before, whatever its epoch, so that a gap shows. `rules` is the revision of the app's rules (`app:NAME`) that
//! the master had: a pod has carried a move out when it has that and the document's revision, or later ones, and has
//! placed the document by them. Every pod finds out which it has carried out ([`carry_out`])
//! and says so in its status; the master prunes what all have carried out ([`prune`]).
//!
//! What always holds: within an epoch, a pod says that it has carried out a number only when it has carried out all
//! lower ones that it knows of.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Weak};

use adea_ring::Stamp;
use adea_ring::report::Role;
use rean_store::{Db, Instructor, Move, Scope, Store, StoreError};
use serde_json::{Map, json};

use crate::apps;
use crate::pod::Pod;
use crate::ring::databases;
use crate::ring::ring_doc::{RING, prefixed};
use crate::ring::stamps::Stamps;

pub mod carry_out;
pub mod progress;
pub mod prune;
#[cfg(test)]
mod simulation;

/// What the id of an instruction begins with.
pub const PREFIX: &str = "instruction:";
/// Digits of a number: a billion instructions in an epoch, at a thousand a second in four months, without a fail-over.
const NUMBER_DIGITS: usize = 10;
/// Numbers that are tried when some are taken: they are only after a crash or by deletions that nobody remembers.
const NUMBER_TRIES: usize = 1_000;

/// Which instruction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number {
    /// The epoch of the master that gave it.
    pub epoch: Stamp,
    /// Its number in that epoch, from 1.
    pub number: u64,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:0NUMBER_DIGITS$}", self.epoch, self.number)
    }
}

/// A text is no instruction's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an instruction's number is an epoch, a dot and {NUMBER_DIGITS} digits")]
pub struct NumberError;

impl FromStr for Number {
    type Err = NumberError;

    fn from_str(text: &str) -> Result<Self, NumberError> {
        let (epoch, number) = text.rsplit_once('.').ok_or(NumberError)?;
        let fits = number.len() == NUMBER_DIGITS && number.bytes().all(|byte| byte.is_ascii_digit());
        let number = number.parse().ok().filter(|_| fits).ok_or(NumberError)?;
        Ok(Self { epoch: epoch.parse().map_err(|_| NumberError)?, number })
    }
}

impl Number {
    /// The id of its document.
    pub fn doc_id(&self) -> String {
        format!("{PREFIX}{self}")
    }

    /// The number in the id of a document.
    pub fn of_doc(id: &str) -> Option<Self> {
        id.strip_prefix(PREFIX)?.parse().ok()
    }
}

/// The instructions that this pod gives: one after the other.
#[derive(Debug, Default)]
pub struct Chain {
    /// The epoch of a pod without a ring: one for each start.
    alone: Option<Stamp>,
    /// The epoch that `number` counts in.
    epoch: Option<Stamp>,
    number: u64,
    /// The newest of all.
    last: Option<Number>,
}

/// Gives the store the instructions of its moves, while this pod takes the writes.
pub struct Recorder {
    pod: Weak<Pod>,
}

impl Recorder {
    /// Has the moves of this pod recorded from now on, and takes up what an earlier run had carried out.
    pub fn install(pod: &Arc<Pod>) {
        if let Err(error) = pod.ring.records.progress.load(&pod.store) {
            // All are looked at once more.
            tracing::error!(%error, "what is carried out could not be read");
        }
        pod.store.set_instructor(Some(Arc::new(Self { pod: Arc::downgrade(pod) })));
    }
}

impl Instructor for Recorder {
    fn instruct(&self, moves: &[Move]) -> Vec<(String, Vec<u8>)> {
        let Some(pod) = self.pod.upgrade() else {
            return Vec::new();
        };
        match pod.ring.records.chain.lock().give_as(&pod, moves) {
            Ok(given) => given.into_iter().collect(),
            Err(error) => {
                tracing::error!(%error, moves = moves.len(), "moves of documents could not be recorded");
                Vec::new()
            }
        }
    }
}

impl Chain {
    /// The instruction of these moves; none while another pod gives them.
    fn give_as(&mut self, pod: &Pod, moves: &[Move]) -> Result<Option<(String, Vec<u8>)>, StoreError> {
        let Some(epoch) = self.epoch_now(pod)? else { return Ok(None) };
        let instance = |db: &str| databases::instance_here(pod, db);
        self.give(&pod.store, &pod.ring.records.stamps, epoch, moves, &instance).map(Some)
    }

    /// The instruction of these moves by the master of `epoch`: its id and its body. `instance`: of a database.
    fn give(
        &mut self,
        store: &Store,
        stamps: &Stamps,
        epoch: Stamp,
        moves: &[Move],
        instance: &dyn Fn(&str) -> Result<Option<String>, StoreError>,
    ) -> Result<(String, Vec<u8>), StoreError> {
        if self.epoch.as_ref() != Some(&epoch) {
            self.begin(store, stamps, epoch.clone())?;
        }
        let ring = ring_of(store)?;
        let mut next = Number { epoch, number: self.number + 1 };
        for _ in 0..NUMBER_TRIES {
            if ring.doc(&Scope::All, &next.doc_id())?.is_none() {
                break;
            }
            next.number += 1;
        }
        let stamp = stamps.now(store)?;
        let mut dbs = Map::new();
        for one in moves {
            if !dbs.contains_key(&one.db) {
                let rules = ring.doc(&Scope::All, &format!("{}{}", apps::PREFIX, one.db))?;
                let rules = rules.map(|rules| rules.winner().rev.to_string());
                dbs.insert(one.db.clone(), json!({"instance": instance(&one.db)?, "rules": rules}));
            }
        }
        let describe = |one: &Move| {
            let rev = one.rev.to_string();
            json!({"db": one.db, "id": one.id, "from": one.from, "to": one.to, "rev": rev})
        };
        let moves: Vec<_> = moves.iter().map(describe).collect();
        let prev = self.last.as_ref().map(Number::to_string);
        let body = json!({"prev": prev, "stamp": stamp, "dbs": dbs, "moves": moves}).to_string().into_bytes();
        let id = next.doc_id();
        self.number = next.number;
        self.last = Some(next);
        Ok((id, body))
    }

    fn epoch_now(&mut self, pod: &Pod) -> Result<Option<Stamp>, StoreError> {
        if pod.ring.is_alone() {
            if self.alone.is_none() {
                self.alone = Some(pod.ring.records.stamps.now(&pod.store)?);
            }
            return Ok(self.alone.clone());
        }
        Ok(match pod.ring.role() {
            Role::Master(epoch) => Some(epoch),
            // Writes that were let in before the gate was shut are this pod's still.
            _ if pod.ring.gate.inside() > 0 => self.epoch.clone(),
            _ => None,
        })
    }

    /// Goes on after the newest instruction that is here.
    fn begin(&mut self, store: &Store, stamps: &Stamps, epoch: Stamp) -> Result<(), StoreError> {
        stamps.observe(store, &epoch)?;
        let ring = ring_of(store)?;
        self.last = newest(&ring, PREFIX)?;
        // After a restart in the middle of an epoch.
        let own = newest(&ring, &format!("{PREFIX}{epoch}."))?;
        self.number = own.map_or(0, |own| own.number);
        self.epoch = Some(epoch);
        Ok(())
    }
}

/// The newest instruction whose id begins so.
///
/// # Errors
/// When the store fails.
pub fn newest(ring: &Db, prefix: &str) -> Result<Option<Number>, StoreError> {
    let mut range = prefixed(prefix);
    // Downwards: from before the end to the start.
    std::mem::swap(&mut range.start, &mut range.end);
    (range.exclusive_start, range.exclusive_end, range.descending) = (true, false, true);
    let rows = ring.all_docs(&Scope::All, &range, 1)?;
    Ok(rows.first().and_then(|row| Number::of_doc(&row.id)))
}

/// The database that the instructions are in.
fn ring_of(store: &Store) -> Result<Db, StoreError> {
    store.db(RING).ok_or(StoreError::Closing)
}

#[cfg(test)]
mod tests {
    use super::Number;

    #[test]
    fn numbers_are_read_back_and_sort_as_text() {
        let of = |text: &str| text.parse::<Number>();
        let first = of("0190a1b2c3d4-0000-pod-1.0000000009").expect("a number");
        assert_eq!(first.number, 9);
        assert_eq!(Number::of_doc(&first.doc_id()), Some(first.clone()));
        let second = Number { number: 10, ..first.clone() };
        assert!(first < second && first.to_string() < second.to_string());
        for bad in
            ["", "0190a1b2c3d4-0000-p", "0190a1b2c3d4-0000-p.1", "0190a1b2c3d4-0000-p.+000000001", "x.0000000001"]
        {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
