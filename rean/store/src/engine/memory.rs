//! An engine in memory, for tests: it can fail on demand and show what a crash would leave.
//!
//! Its snapshots share the maps and make the next commit copy those it touches, so it is slow when
//! a large store is written while snapshots are held. Nothing here is for production data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    Batch, ClosedSnapshot, Direction, Engine, EngineError, EngineStats, Poison, Range, Snapshot, Space, Value,
};

type Tables = [Arc<BTreeMap<Value, Value>>; Space::ALL.len()];

/// The memory engine. A clone is another handle on the same data.
#[derive(Debug, Clone, Default)]
pub struct MemoryEngine {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    live: Tables,
    /// What a power cut would leave.
    durable: Tables,
    /// Keys that differ between the two.
    dirty: BTreeSet<(Space, Value)>,
    /// Commits that still succeed; `None` for all.
    commits_left: Option<u64>,
    poison: Poison,
    closed: bool,
}

struct MemorySnapshot {
    tables: Tables,
}

impl MemoryEngine {
    /// An empty engine.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `commits` more commits succeed. The next fails as a disk would, applies nothing, and
    /// from then on writes are refused.
    pub fn fail_after(&self, commits: u64) {
        self.shared.lock().commits_left = Some(commits);
    }

    /// A new engine with what a power cut at this moment would leave: all up to the last durable
    /// commit.
    pub fn crash_image(&self) -> MemoryEngine {
        Self::with_tables(self.shared.lock().durable.clone())
    }

    /// A new engine with what the death of the process at this moment would leave: every commit.
    pub fn kill_image(&self) -> MemoryEngine {
        Self::with_tables(self.shared.lock().live.clone())
    }

    fn with_tables(tables: Tables) -> MemoryEngine {
        let state = State { live: tables.clone(), durable: tables, ..State::default() };
        MemoryEngine { shared: Arc::new(Mutex::new(state)) }
    }
}

impl State {
    fn apply(&mut self, batch: Batch) {
        for op in batch.into_ops() {
            let table = Arc::make_mut(&mut self.live[op.space.index()]);
            match op.value {
                Some(value) => table.insert(op.key.clone(), value),
                None => table.remove(&op.key),
            };
            self.dirty.insert((op.space, op.key));
        }
    }

    fn flush(&mut self) {
        for (space, key) in std::mem::take(&mut self.dirty) {
            let value = self.live[space.index()].get(&key).cloned();
            let table = Arc::make_mut(&mut self.durable[space.index()]);
            match value {
                Some(value) => table.insert(key, value),
                None => table.remove(&key),
            };
        }
    }
}

impl Engine for MemoryEngine {
    fn commit(&self, batch: Batch, durable: bool) -> Result<(), EngineError> {
        let mut state = self.shared.lock();
        if state.closed {
            return Err(EngineError::Closed);
        }
        state.poison.check()?;
        batch.check()?;
        match &mut state.commits_left {
            Some(0) => {
                let fault = std::io::Error::other("a fault was asked for");
                return Err(state.poison.set("commit", fault));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        state.apply(batch);
        if durable {
            state.flush();
        }
        Ok(())
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Value>, EngineError> {
        let state = self.shared.lock();
        if state.closed {
            return Err(EngineError::Closed);
        }
        Ok(state.live[space.index()].get(key).cloned())
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        let state = self.shared.lock();
        if state.closed {
            return Box::new(ClosedSnapshot);
        }
        Box::new(MemorySnapshot { tables: state.live.clone() })
    }

    fn stats(&self) -> EngineStats {
        let tables = self.shared.lock().live.clone();
        let entries = tables.iter().flat_map(|table| table.iter());
        let bytes = entries.map(|(key, value)| key.len() + value.len()).sum::<usize>();
        EngineStats { disk_bytes: bytes as u64, ..EngineStats::default() }
    }

    fn compact(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn close(&self) -> Result<(), EngineError> {
        let mut state = self.shared.lock();
        if !state.closed && state.poison.check().is_ok() {
            state.flush();
        }
        state.closed = true;
        Ok(())
    }

    fn name(&self) -> &'static str {
        "memory"
    }

    fn power_safe(&self) -> bool {
        false
    }
}

impl Snapshot for MemorySnapshot {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Value>, EngineError> {
        Ok(self.tables[space.index()].get(key).cloned())
    }

    fn range<'a>(&'a self, space: Space, lo: &[u8], hi: &[u8], direction: Direction) -> Range<'a> {
        if lo >= hi {
            return Box::new(std::iter::empty());
        }
        let table = &self.tables[space.index()];
        let entries = table.range::<[u8], _>((std::ops::Bound::Included(lo), std::ops::Bound::Excluded(hi)));
        let entries = entries.map(|(key, value)| Ok((key.clone(), value.clone())));
        match direction {
            Direction::Forward => Box::new(entries),
            Direction::Backward => Box::new(entries.rev()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryEngine;
    use crate::engine::{Batch, Engine, EngineError, Space};

    fn put(key: &str) -> Batch {
        let mut batch = Batch::new();
        batch.put(Space::Docs, key.as_bytes().to_vec(), b"1".to_vec());
        batch
    }

    #[test]
    fn after_the_asked_fault_writes_are_refused_and_reads_go_on() {
        let engine = MemoryEngine::new();
        engine.fail_after(1);
        engine.commit(put("a"), true).unwrap();
        let failed = engine.commit(put("b"), true);
        assert!(matches!(failed, Err(EngineError::Write { .. })), "{failed:?}");
        let refused = engine.commit(put("c"), true);
        assert!(matches!(refused, Err(EngineError::Poisoned { .. })), "{refused:?}");
        assert!(engine.get(Space::Docs, b"a").unwrap().is_some());
        assert!(engine.get(Space::Docs, b"b").unwrap().is_none());
    }

    #[test]
    fn a_crash_keeps_what_was_durable_and_a_kill_keeps_all() {
        let engine = MemoryEngine::new();
        engine.commit(put("a"), false).unwrap();
        engine.commit(put("b"), true).unwrap();
        engine.commit(put("c"), false).unwrap();
        let crashed = engine.crash_image();
        let killed = engine.kill_image();
        for (key, after_crash) in [("a", true), ("b", true), ("c", false)] {
            let found = crashed.get(Space::Docs, key.as_bytes()).unwrap();
            assert_eq!(found.is_some(), after_crash, "{key}");
            assert!(killed.get(Space::Docs, key.as_bytes()).unwrap().is_some(), "{key}");
        }
        crashed.commit(put("d"), true).unwrap();
        assert!(engine.get(Space::Docs, b"d").unwrap().is_none(), "an image is a copy");
    }
}
