//! Bringing an index up to date with its database.
//!
//! Changes are read in the order of their sequences, mapped, and collected; a commit puts what was collected into the
//! pages together with the sequence up to which it goes. So a crash leaves an index that is right up to its sequence,
//! and goes on from there. Nothing is flushed: what a crash takes away is made again.

use crate::doc::index_doc;
use crate::error::IndexError;
use crate::group::Group;
use crate::keys::{MAX_PLACE_BYTES, place};
use crate::pending::{NewRow, Pending};
use crate::records::GroupRecord;
use crate::same_key;
use crate::shared::Shared;
use crate::spec::{Emitted, IndexDoc, MapError, Unmapped};
use crate::tree;
use bytes::Bytes;
use rean_store::engine::{Batch, Space};
use rean_store::{IndexRow, Newest, Seq, partition_of};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Documents that are read and mapped at once, and their bytes: enough to share out the cost of a call, and little to
/// have in memory.
const READ_DOCS: usize = 1_000;
const READ_BYTES: usize = 4 << 20;

/// Rows that a view may have of one document, and their bytes. A document beyond has none there.
const MAX_DOC_ROWS: usize = 100_000;
const MAX_DOC_BYTES: usize = 16 << 20;

/// Documents of which a run tells in the log why they have no rows.
const MAX_TOLD: usize = 10;

/// See [`Group::update`].
pub(crate) fn run(group: &Group, progress: &mut dyn FnMut(u64, u64)) -> Result<Seq, IndexError> {
    let target = group.db.newest();
    let shared = &group.shared;
    if let Some(seq) = covers(group, target)? {
        return Ok(seq);
    }
    let attempts_before = shared.attempts.load(Ordering::Acquire);
    let waits = Counted::new(&shared.waiting);
    let flight = shared.flight.lock();
    drop(waits);
    if let Some(seq) = covers(group, target)? {
        return Ok(seq);
    }
    if let Some((attempt, error)) = &*shared.failure.lock()
        && *attempt > attempts_before
    {
        // It began after this call, and would fail again.
        return Err(error.clone());
    }
    if shared.toll.lock().rests(Instant::now()).is_some() {
        return Err(resting());
    }
    let attempt = shared.attempts.fetch_add(1, Ordering::AcqRel) + 1;
    shared.updating.store(true, Ordering::Relaxed);
    let mut result = Run::begin(group, target).and_then(|run| run.go(progress));
    if let Err(IndexError::Damaged(what)) = result {
        tracing::error!(db = group.db.name(), what, "an index is damaged and is made anew");
        shared.damaged.store(true, Ordering::Release);
        result = Run::begin(group, target).and_then(|run| run.go(progress));
    }
    shared.updating.store(false, Ordering::Relaxed);
    *shared.failure.lock() = result.as_ref().err().map(|error| (attempt, error.clone()));
    drop(flight);
    result
}

fn resting() -> IndexError {
    let words = "functions of the index hit limits with one document after the other: it is left alone for a while";
    IndexError::Map(MapError::Resting(words.to_owned()))
}

/// The index's sequence, if it has all of this.
pub(crate) fn covers(group: &Group, target: Newest) -> Result<Option<Seq>, IndexError> {
    if group.db.is_gone() {
        return Err(IndexError::Gone);
    }
    let is_damaged = group.shared.damaged.load(Ordering::Acquire);
    let seq = |record: &GroupRecord| (record.seq >= target.seq && record.purges >= target.purges).then_some(record.seq);
    Ok(group.shared.with_record(seq)?.filter(|_| !is_damaged))
}

/// One who is counted.
struct Counted<'a>(&'a std::sync::atomic::AtomicU64);

impl<'a> Counted<'a> {
    fn new(count: &'a std::sync::atomic::AtomicU64) -> Counted<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One run, from where the index is to the target or beyond.
struct Run<'a> {
    group: &'a Group,
    shared: &'a Shared,
    target: Newest,
    /// As it is to be after the next commit.
    record: GroupRecord,
    pending: Pending,
    /// Documents that have no rows though they should.
    failed: usize,
}

impl<'a> Run<'a> {
    fn begin(group: &'a Group, target: Newest) -> Result<Run<'a>, IndexError> {
        let shared = &*group.shared;
        let purges = group.db.purges_after(shared.record().purges)?;
        let is_damaged = shared.damaged.load(Ordering::Acquire);
        let purges = match purges.filter(|_| !is_damaged) {
            Some(purges) => purges,
            None => {
                // Too many purges ago: which rows are to go is not known any more.
                shared.reset(group.db.history(), group.db.newest().purges, group.spec.views.len() as u32)?;
                shared.damaged.store(false, Ordering::Release);
                rean_store::Purges { until: shared.record().purges, gone: Vec::new() }
            }
        };
        let record = GroupRecord { purges: purges.until, ..shared.record() };
        let pending = Pending::new(record.number);
        let mut run = Run { group, shared, target, record, pending, failed: 0 };
        for id in purges.gone {
            run.pending.set(run.engine(), &id, 0, Vec::new())?;
        }
        Ok(run)
    }

    fn engine(&self) -> &'a dyn rean_store::engine::Engine {
        self.shared.common.engine.as_ref()
    }

    fn go(mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<Seq, IndexError> {
        let mut done = 0;
        let mut total = 0;
        loop {
            if self.shared.common.closing.load(Ordering::Acquire) {
                return Err(IndexError::Closing);
            }
            let page = self.group.db.indexable(self.record.seq, READ_DOCS, READ_BYTES)?;
            if total == 0 {
                total = self.total(page.rows.len() as u64, page.is_last);
            }
            done += page.rows.len() as u64;
            let stopped_at = self.take(page.rows)?;
            let is_end = stopped_at.is_none() && (page.is_last || page.until >= self.target.seq);
            self.record.seq = stopped_at.unwrap_or(page.until);
            let rests = self.shared.toll.lock().rests(Instant::now());
            if self.pending.is_full() || is_end || rests.is_some() {
                self.commit()?;
            }
            if let Some(rest) = rests
                && !is_end
            {
                let rest_ms = rest.as_millis() as u64;
                tracing::warn!(db = self.group.db.name(), rest_ms, "functions of an index hit limits: it rests");
                return Err(resting());
            }
            progress(done, total.max(done));
            if is_end {
                if self.failed > MAX_TOLD {
                    tracing::warn!(
                        db = self.group.db.name(),
                        documents = self.failed,
                        "documents have no rows in an index"
                    );
                }
                return Ok(self.record.seq);
            }
            std::thread::yield_now();
        }
    }

    /// About how many changes there are.
    fn total(&self, read: u64, is_last: bool) -> u64 {
        if is_last {
            return read;
        }
        let info = self.group.db.info();
        // Sequences are the store's: other databases have taken some of them.
        (info.doc_count + info.del_count).min(self.target.seq.saturating_sub(self.record.seq)).max(read)
    }

    /// Maps changes and collects what they do to the rows. Gives the sequence of the last one that was looked at, if
    /// the mapper didn't look at all.
    fn take(&mut self, rows: Vec<IndexRow>) -> Result<Option<Seq>, IndexError> {
        let spec = &self.group.spec;
        let mut docs = Vec::new();
        let mut parts = Vec::new();
        let mut seqs = Vec::new();
        for row in rows {
            let is_design = row.id.starts_with("_design/");
            let has_place = !spec.partitioned || partition_of(&row.id).is_some();
            match row.live.as_ref().filter(|_| has_place && (spec.include_design || !is_design)) {
                Some(live) => {
                    seqs.push(row.seq);
                    parts.push(live.place.map_or(0, |part| part + 1));
                    docs.push(index_doc(&row.id, live, spec.local_seq.then(|| self.group.db.shown_seq(row.seq))));
                }
                None => self.pending.set(self.engine(), &row.id, 0, Vec::new())?,
            }
        }
        if docs.is_empty() {
            return Ok(None);
        }
        let ids: Vec<String> = docs.iter().map(|doc| doc.id.clone()).collect();
        let mapped = self.map(docs).inspect_err(|error| self.charge(error))?;
        let stopped_at = if mapped.len() < ids.len() { seqs.get(mapped.len() - 1).copied() } else { None };
        for ((id, part), emitted) in ids.into_iter().zip(parts).zip(mapped) {
            let views =
                emitted.into_iter().enumerate().map(|(view, emitted)| self.rows_of(&id, view, emitted)).collect();
            self.pending.set(self.engine(), &id, part, views)?;
            if self.pending.is_full() {
                // The sequence stays that of the page before: a document that comes again changes nothing.
                self.commit()?;
            }
        }
        Ok(stopped_at)
    }

    /// What it costs that the mapper gave up at once.
    fn charge(&self, error: &IndexError) {
        if matches!(error, IndexError::Map(MapError::Resting(_))) {
            let mut toll = self.shared.toll.lock();
            while toll.add(Instant::now()).is_none() {}
        }
    }

    fn map(&mut self, docs: Vec<IndexDoc>) -> Result<Vec<Vec<Emitted>>, IndexError> {
        let mapper = &self.group.spec.mapper;
        let count = docs.len();
        // One that fails is tried alone: then it is known which it is.
        let again = (count > 1).then(|| docs.clone());
        match (mapper.map(docs), again) {
            (Ok(mapped), _) => self.checked(mapped, count),
            (Err(MapError::Documents(_)), Some(docs)) => {
                let mut mapped = Vec::with_capacity(count);
                for doc in docs {
                    if self.shared.common.closing.load(Ordering::Acquire) {
                        return Err(IndexError::Closing);
                    }
                    mapped.extend(self.map(vec![doc])?);
                }
                Ok(mapped)
            }
            (Err(MapError::Documents(message)), None) => {
                Ok(vec![vec![Err(message.into()); self.group.spec.views.len()]])
            }
            (Err(error), _) => Err(IndexError::Map(error)),
        }
    }

    fn checked(&self, mapped: Vec<Vec<Emitted>>, docs: usize) -> Result<Vec<Vec<Emitted>>, IndexError> {
        let views = self.group.spec.views.len();
        let is_costly =
            |of_doc: &Vec<Emitted>| of_doc.iter().any(|emitted| matches!(emitted, Err(Unmapped { costly: true, .. })));
        let costly = mapped.iter().filter(|of_doc| is_costly(of_doc)).count();
        let mut toll = self.shared.toll.lock();
        for _ in 0..costly {
            toll.add(Instant::now());
        }
        drop(toll);
        let count_fits = mapped.len() == docs || (costly > 0 && mapped.len() < docs);
        if count_fits && mapped.iter().all(|of_doc| of_doc.len() == views) {
            return Ok(mapped);
        }
        Err(IndexError::Map(MapError::Function("the map function gave another number of results".to_owned())))
    }

    /// The rows that a view is to have of a document.
    fn rows_of(&mut self, id: &str, view: usize, emitted: Emitted) -> Vec<NewRow> {
        let rows = match emitted {
            Ok(emits) if emits.len() > MAX_DOC_ROWS => {
                Err(format!("{} rows are more than {MAX_DOC_ROWS}", emits.len()).into())
            }
            Ok(emits) if emits.iter().map(|emit| emit.key.len() + emit.value.len()).sum::<usize>() > MAX_DOC_BYTES => {
                Err(format!("its rows have more than {MAX_DOC_BYTES} bytes").into())
            }
            Ok(emits) => Ok(emits),
            Err(unmapped) => Err(unmapped),
        };
        let emits = match rows {
            Ok(emits) => emits,
            Err(Unmapped { words, .. }) => {
                self.tell(id, view, &words);
                return Vec::new();
            }
        };
        let mut rows = Vec::with_capacity(emits.len());
        for emit in emits {
            let Ok(key) = serde_json::from_str::<serde_json::Value>(&emit.key) else {
                self.tell(id, view, "a key is no JSON value that can be sorted");
                continue;
            };
            let Some(sort_key) = self.group.spec.sort_key(view, id, &key) else { continue };
            if place(&sort_key, id, u32::MAX).len() > MAX_PLACE_BYTES {
                self.tell(id, view, "a key is too long to be sorted");
                continue;
            }
            rows.push(NewRow { sort_key, key: Bytes::from(emit.key), value: Bytes::from(emit.value) });
        }
        same_key::sort(&mut rows);
        rows
    }

    fn tell(&mut self, id: &str, view: usize, message: &str) {
        self.failed += 1;
        if self.failed <= MAX_TOLD {
            let names = self.group.spec.views.get(view).map(|view| view.names.join(", ")).unwrap_or_default();
            let message: String = message.chars().take(500).collect();
            tracing::warn!(
                db = self.group.db.name(),
                id,
                view = names,
                message,
                "a document has not all its rows in a view"
            );
        }
    }

    /// Puts what was collected into the pages.
    fn commit(&mut self) -> Result<(), IndexError> {
        let mut batch = Batch::new();
        let trees = self.pending.take_trees();
        if !trees.is_empty() {
            let snapshot = self.engine().snapshot();
            for (id, changes) in trees {
                let Some(view) = self.group.spec.views.get(usize::from(id.view)) else { continue };
                let delta = tree::apply(snapshot.as_ref(), id, changes.into_iter(), &view.reduce, &mut batch)?;
                let rows = crate::view::stored_rows(snapshot.as_ref(), id)?.saturating_add_signed(delta.rows);
                match rows {
                    0 => batch.delete(Space::Meta, id.rows()),
                    rows => batch.put(Space::Meta, id.rows(), rows.to_be_bytes().to_vec()),
                }
                self.record.page_bytes = self.record.page_bytes.saturating_add_signed(delta.page_bytes);
            }
        }
        self.pending.stage_backs(&mut batch);
        self.shared.commit(batch, self.record.clone())
    }
}
