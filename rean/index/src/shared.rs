//! What all handles on one index have in common: how far it is, and who works on it.

use crate::error::IndexError;
use crate::keys::{DEAD, GROUP, GroupNo, after, group_record};
use crate::page::{decode, encode};
use crate::records::GroupRecord;
use parking_lot::{Mutex, RwLock};
use rean_store::engine::{Batch, Direction, Engine, Space};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

/// What all indexes of a pod have in common.
pub(crate) struct Common {
    pub engine: Box<dyn Engine>,
    /// The program ends.
    pub closing: AtomicBool,
    /// The number that the next index gets.
    pub next: AtomicU32,
    /// Views that are looked at: each holds back the removal of old data.
    pub open_views: AtomicUsize,
}

/// One index.
pub(crate) struct Shared {
    pub common: Arc<Common>,
    pub instance: String,
    pub signature: String,
    /// Held by whoever brings it up to date.
    pub flight: Mutex<()>,
    pub waiting: AtomicU64,
    pub updating: AtomicBool,
    /// A record could not be decoded: it is to be made anew.
    pub damaged: AtomicBool,
    /// Attempts to bring it up to date so far, and the last one that failed.
    pub attempts: AtomicU64,
    pub failure: Mutex<Option<(u64, IndexError)>>,
    state: RwLock<State>,
}

struct State {
    record: GroupRecord,
    dropped: bool,
}

impl Common {
    /// Stages the next number.
    pub fn number(&self, batch: &mut Batch) -> GroupNo {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        batch.put(Space::Meta, crate::keys::NEXT.to_vec(), number.saturating_add(1).to_be_bytes().to_vec());
        number
    }

    /// Bytes of the rows of all indexes.
    pub fn page_bytes(&self) -> Result<u64, IndexError> {
        let snapshot = self.engine.snapshot();
        let records = snapshot.range(Space::Meta, GROUP, &after(GROUP), Direction::Forward);
        let bytes = records.map(|item| Ok(decode::<GroupRecord>(&item?.1, "an index")?.page_bytes));
        bytes.sum()
    }
}

impl Shared {
    pub fn new(common: Arc<Common>, instance: &str, signature: &str, record: GroupRecord) -> Shared {
        Shared {
            common,
            instance: instance.to_owned(),
            signature: signature.to_owned(),
            flight: Mutex::new(()),
            waiting: AtomicU64::new(0),
            updating: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            attempts: AtomicU64::new(0),
            failure: Mutex::new(None),
            state: RwLock::new(State { record, dropped: false }),
        }
    }

    pub fn record(&self) -> GroupRecord {
        self.state.read().record.clone()
    }

    /// What `look` makes of the record while nothing is committed to the index.
    pub fn with_record<T>(&self, look: impl FnOnce(&GroupRecord) -> T) -> Result<T, IndexError> {
        let state = self.state.read();
        if state.dropped { Err(IndexError::Gone) } else { Ok(look(&state.record)) }
    }

    /// Commits a batch with the record that goes with it, unless the index was dropped.
    pub fn commit(&self, mut batch: Batch, record: GroupRecord) -> Result<(), IndexError> {
        let mut state = self.state.write();
        if state.dropped {
            return Err(IndexError::Gone);
        }
        batch.put(Space::Meta, group_record(&self.instance, &self.signature), encode(&record));
        self.common.engine.commit(batch, false)?;
        state.record = record;
        Ok(())
    }

    /// Begins it anew, under another number, so that nothing of the old one can be taken for the new one's.
    pub fn reset(&self, history: &str, purges: u64) -> Result<(), IndexError> {
        let mut batch = Batch::new();
        let mut record = self.record();
        batch.put(Space::Meta, [DEAD, &record.number.to_be_bytes()].concat(), Vec::new());
        record.number = self.common.number(&mut batch);
        (record.seq, record.purges, record.page_bytes) = (0, purges, 0);
        record.history = history.to_owned();
        self.commit(batch, record)
    }

    /// Takes it out of the engine; what works on it fails at its next commit.
    pub fn discard(&self) -> Result<(), IndexError> {
        let mut state = self.state.write();
        if state.dropped {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.delete(Space::Meta, group_record(&self.instance, &self.signature));
        batch.put(Space::Meta, [DEAD, &state.record.number.to_be_bytes()].concat(), Vec::new());
        self.common.engine.commit(batch, false)?;
        state.dropped = true;
        Ok(())
    }
}
