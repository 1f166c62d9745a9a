//! What all handles on one index have in common: how far it is, and who works on it.

use crate::error::IndexError;
use crate::keys::{self, DEAD, GROUP, GroupNo, OF_GROUPS, ROWS, after, group_record};
use crate::page::{decode, encode};
use crate::records::GroupRecord;
use crate::toll::Toll;
use parking_lot::{Mutex, RwLock};
use rean_store::engine::{Batch, Direction, Engine, Space};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

/// Keys that are deleted in one commit: small, so that who brings an index up to date never waits long for it.
const CLEARED_KEYS: usize = 2_000;

/// What all indexes of a pod have in common.
pub(crate) struct Common {
    pub engine: Box<dyn Engine>,
    /// The program ends.
    pub closing: AtomicBool,
    /// The number that the next index gets.
    pub next: AtomicU32,
    /// Views that are looked at: each holds back the removal of old data.
    pub open_views: AtomicUsize,
    /// Clears what dropped indexes have left.
    pub janitor: Mutex<Option<JoinHandle<()>>>,
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
    /// What its functions have cost lately.
    pub toll: Mutex<Toll>,
    state: RwLock<State>,
}

struct State {
    record: GroupRecord,
    dropped: bool,
}

impl Common {
    /// Stages the next number.
    pub fn number(&self, batch: &mut Batch) -> GroupNo {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        batch.put(Space::Meta, keys::NEXT.to_vec(), number.saturating_add(1).to_be_bytes().to_vec());
        number
    }

    /// Clears what dropped indexes have left, on a thread of its own.
    pub fn start_janitor(self: &Arc<Common>) {
        let mut janitor = self.janitor.lock();
        if janitor.as_ref().is_some_and(|handle| !handle.is_finished()) {
            // It looks for work again before it ends; what it misses is found when the next index is dropped.
            return;
        }
        let weak = Arc::downgrade(self);
        let spawned = std::thread::Builder::new().name("index-janitor".to_owned()).spawn(move || {
            if let Err(error) = clear_dead(&weak) {
                tracing::warn!(%error, "clearing dropped indexes stopped; it goes on at the next start");
            }
        });
        match spawned {
            Ok(handle) => *janitor = Some(handle),
            Err(error) => tracing::warn!(%error, "no thread for clearing dropped indexes"),
        }
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
            toll: Mutex::default(),
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
    pub fn reset(&self, history: &str, purges: u64, views: u32) -> Result<(), IndexError> {
        let mut batch = Batch::new();
        let mut record = self.record();
        batch.put(Space::Meta, [DEAD, &record.number.to_be_bytes()].concat(), Vec::new());
        record.number = self.common.number(&mut batch);
        (record.seq, record.purges, record.page_bytes, record.views) = (0, purges, 0, views);
        record.history = history.to_owned();
        self.commit(batch, record)?;
        self.common.start_janitor();
        Ok(())
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

fn clear_dead(common: &Weak<Common>) -> Result<(), IndexError> {
    loop {
        let Some(common) = common.upgrade() else { return Ok(()) };
        if common.closing.load(Ordering::Acquire) {
            return Ok(());
        }
        let snapshot = common.engine.snapshot();
        let dead = snapshot.range(Space::Meta, DEAD, &after(DEAD), Direction::Forward).next().transpose()?;
        let Some((dead, _)) = dead else { return Ok(()) };
        let number = dead.get(DEAD.len()..).unwrap_or_default().to_vec();
        let mut batch = Batch::new();
        for space in OF_GROUPS {
            let room = CLEARED_KEYS - batch.len();
            for item in snapshot.range(space, &number, &keys::after(&number), Direction::Forward).take(room) {
                batch.delete(space, item?.0);
            }
        }
        if batch.len() < CLEARED_KEYS {
            let rows = [ROWS, &number].concat();
            for item in snapshot.range(Space::Meta, &rows, &after(&rows), Direction::Forward) {
                batch.delete(Space::Meta, item?.0);
            }
            batch.delete(Space::Meta, dead);
        }
        drop(snapshot);
        common.engine.commit(batch, false)?;
    }
}
