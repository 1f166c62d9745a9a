//! Purging, compacting, and checking that what is stored agrees with itself.

use crate::apply::{leaves_of, unnamed};
use crate::db::{Db, DbKind};
use crate::engine::{Direction, Snapshot, Space};
use crate::error::{StoreError, WriteError};
use crate::indexable::PURGED_INFOS;
use crate::outside::is_file;
use crate::partitioned::{PartitionInfo, leaf_bytes_in, partition_of};
use crate::record::{
    BlobEntry, BlobId, DbState, DocRecord, PartNo, Seq, SeqRow, decode, decode_body, decode_part_doc, decode_row,
    encode, key,
};
use crate::rev::Rev;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::Ordering;

/// Documents that are compacted in one job.
const COMPACT_PAGE: usize = 500;

/// What is called when a purge is durable, with the revisions that were there.
pub type PurgeDone = Box<dyn FnOnce(Result<Vec<Rev>, WriteError>) + Send>;

impl Db {
    /// Forgets leaves with those ancestors that no other leaf has, as if they had never been
    /// (<https://docs.couchdb.org/en/stable/api/database/misc.html#db-purge>).
    pub fn purge(&self, id: &str, revs: &[Rev], done: PurgeDone) {
        let (db, id, revs) = (self.clone(), id.to_owned(), revs.to_vec());
        let _ = self.inner().store.submit(Box::new(move |tx| {
            let result = tx.purge(&db, &id, &revs);
            if let Err(WriteError::Store(error)) = &result {
                tx.fail(error.clone());
            }
            Box::new(move |committed| done(committed.map_err(WriteError::from).and(result)))
        }));
    }

    /// Removes the bodies of revisions that are no leaves, and attachments that nobody has any more; then has
    /// the engine give back space. Blocks for as long as that takes.
    ///
    /// # Errors
    /// The engine failed, or the database is gone.
    pub fn compact(&self) -> Result<(), StoreError> {
        if self.inner().compacting.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let result = self.compact_documents().and_then(|()| self.drop_unused_blobs());
        self.inner().pinned.lock().clear();
        self.inner().compacting.store(false, Ordering::Release);
        result?;
        Ok(self.inner().store.engine.compact()?)
    }

    fn compact_documents(&self) -> Result<(), StoreError> {
        // A group of jobs that began before this compaction may commit after its first look: wait for it.
        self.inner().store.call(|_| Ok(()))?;
        let mut after = String::new();
        loop {
            let ids = self.ids_after(&after, COMPACT_PAGE)?;
            let Some(last) = ids.last().cloned() else { return Ok(()) };
            let db = self.clone();
            self.inner().store.call(move |tx| {
                db.present()?;
                for id in ids {
                    let doc_key = key::doc(db.inner().id, &id);
                    let Some(mut record) = tx.doc_record(&doc_key)? else { continue };
                    let dropped = record.tree.forget_inner_bodies();
                    if dropped.is_empty() {
                        continue;
                    }
                    for body in unnamed(dropped, &record.tree) {
                        tx.drop_body(&db, &id, body).map_err(|e| tx.fail(e))?;
                    }
                    tx.put(Space::Docs, doc_key, encode(&record));
                }
                Ok(())
            })?;
            after = last;
        }
    }

    fn drop_unused_blobs(&self) -> Result<(), StoreError> {
        let id = self.inner().id;
        let prefix = key::doc(id, "");
        let end = key::after(&prefix);
        let mut used: HashSet<BlobId> = HashSet::new();
        let mut known: Vec<(Vec<u8>, BlobEntry)> = Vec::new();
        {
            let snapshot = self.inner().store.engine.snapshot();
            for item in snapshot.range(Space::BlobIndex, &prefix, &end, Direction::Forward) {
                let (entry_key, value) = item?;
                known.push((entry_key.to_vec(), decode(&value, "an attachment's entry")?));
            }
            if known.is_empty() {
                return Ok(());
            }
            for item in snapshot.range(Space::Bodies, &prefix, &end, Direction::Forward) {
                used.extend(decode_body(&item?.1)?.0.into_iter().map(|attachment| attachment.blob));
            }
        }
        known.retain(|(_, entry)| !used.contains(&entry.blob));
        for unused in known.chunks(COMPACT_PAGE) {
            let (db, unused) = (self.clone(), unused.to_vec());
            self.inner().store.call(move |tx| {
                // A commit since the snapshot may have taken one up again.
                let pinned = db.inner().pinned.lock().clone();
                for (entry_key, entry) in unused.into_iter().filter(|(_, entry)| !pinned.contains(&entry.blob)) {
                    // Of a file there is the record only; whoever keeps it sees that nobody has it any more.
                    let pieces = match is_file(entry.blob) {
                        true => 1,
                        false => entry.length.div_ceil(crate::blob::PIECE_BYTES as u64).max(1),
                    };
                    for piece in 0..pieces as u32 {
                        tx.delete(Space::Blobs, key::chunk(db.inner().id, entry.blob, piece));
                    }
                    tx.delete(Space::BlobIndex, entry_key);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Compares all that is stored of this database with itself; gives each fault in words. For tests and
    /// for an operator: it reads everything, and wants the database at rest.
    ///
    /// # Errors
    /// The engine failed.
    pub fn verify(&self) -> Result<Vec<String>, StoreError> {
        let mut check = Check {
            db: self,
            faults: Vec::new(),
            counted: DbState::default(),
            parts: BTreeMap::new(),
            partitions: BTreeMap::new(),
        };
        check.documents()?;
        check.rows()?;
        if self.kind() == DbKind::App {
            check.partial_documents()?;
        }
        check.partition_counts()?;
        check.counts();
        Ok(check.faults)
    }
}

impl crate::writer::Tx<'_> {
    fn purge(&mut self, db: &Db, id: &str, revs: &[Rev]) -> Result<Vec<Rev>, WriteError> {
        db.present()?;
        let db_id = db.inner().id;
        let doc_key = key::doc(db_id, id);
        let Some(old) = self.doc_record(&doc_key)? else { return Ok(Vec::new()) };
        let mut record = old.clone();
        let bytes_before = self.leaf_bytes(db, id, Some(&old), None)?;
        let mut purged = Vec::new();
        for rev in revs {
            let leaf = record.tree.find(rev).filter(|index| record.tree.is_leaf(*index));
            if let Some(leaf) = leaf {
                let dropped = record.tree.remove_leaf(leaf);
                for body in unnamed(dropped, &record.tree) {
                    self.drop_body(db, id, body)?;
                }
                purged.push(rev.clone());
            }
        }
        if purged.is_empty() {
            return Ok(purged);
        }
        self.note_purge(db, id);
        let bytes_now = self.leaf_bytes(db, id, Some(&record), None)?;
        self.count_external(db, id, bytes_before, bytes_now)?;
        if !record.tree.is_empty() {
            if db.kind() == DbKind::App {
                db.inner().chain.close_overtaken(id, &mut record.tree);
            }
            record.seq = self.next_seq();
            self.store_doc(db, id, Some(&old), record, None)?;
            return Ok(purged);
        }
        self.delete(Space::Seqs, key::seq(db_id, old.seq));
        self.delete(Space::Docs, doc_key);
        self.leave_all(db, id, &old)?;
        let deleted = old.tree.winner().is_none_or(|winner| old.tree.nodes()[winner].deleted);
        let state = self.state(db);
        let count = if deleted { &mut state.deleted } else { &mut state.docs };
        *count = count.saturating_sub(1);
        self.count_partition(db, id, |partition| {
            let count = if deleted { &mut partition.deleted } else { &mut partition.docs };
            *count = count.saturating_sub(1);
        })?;
        Ok(purged)
    }
}

impl crate::writer::Tx<'_> {
    /// Notes for indexes what was purged, and forgets the oldest note.
    fn note_purge(&mut self, db: &Db, id: &str) {
        let state = self.state(db);
        state.purges += 1;
        let purges = state.purges;
        let db_id = db.inner().id;
        self.put(Space::Meta, key::purged(db_id, purges), id.as_bytes().to_vec());
        if let Some(old) = purges.checked_sub(PURGED_INFOS) {
            self.delete(Space::Meta, key::purged(db_id, old));
        }
    }
}

/// A walk over a database that notes what does not agree.
struct Check<'a> {
    db: &'a Db,
    faults: Vec<String>,
    counted: DbState,
    /// Live and deleted documents by partial database.
    parts: BTreeMap<PartNo, (u64, u64)>,
    /// The same by partition, for a partitioned database, with the bytes of bodies.
    partitions: BTreeMap<String, PartitionInfo>,
}

impl Check<'_> {
    fn documents(&mut self) -> Result<(), StoreError> {
        let db = self.db;
        let prefix = key::doc(db.inner().id, "");
        let snapshot = db.inner().store.engine.snapshot();
        for item in snapshot.range(Space::Docs, &prefix, &key::after(&prefix), Direction::Forward) {
            let (doc_key, value) = item?;
            let id = String::from_utf8_lossy(&doc_key[prefix.len()..]).into_owned();
            let record: DocRecord = decode(&value, "a document")?;
            let leaves = leaves_of(&record);
            let deleted = leaves.first().is_none_or(|leaf| leaf.deleted);
            *(if deleted { &mut self.counted.deleted } else { &mut self.counted.docs }) += 1;
            match snapshot.get(Space::Seqs, &key::seq(db.inner().id, record.seq))? {
                None => self.faults.push(format!("{id}: no row at its sequence {}", record.seq)),
                Some(row) => {
                    let row: SeqRow = decode(&row, "a row")?;
                    if row.id != id || row.leaves != leaves {
                        self.faults.push(format!("{id}: its row is of {} with other leaves", row.id));
                    }
                }
            }
            for leaf in leaves.iter().filter(|leaf| leaf.body.is_some()) {
                let body = key::seq(db.inner().id, leaf.body.unwrap_or_default());
                if snapshot.get(Space::Bodies, &body)?.is_none() {
                    self.faults.push(format!("{id}: no body of its leaf {}", leaf.rev));
                }
            }
            let mut closed = record.tree.clone();
            db.inner().chain.close_overtaken(&id, &mut closed);
            if db.kind() == DbKind::App && closed != record.tree {
                self.faults.push(format!("{id}: a successor of a revision that was edited is open"));
            }
            self.count_partition(snapshot.as_ref(), &id, &record, deleted)?;
            if let Some(place) = record.place {
                let count = self.parts.entry(place).or_default();
                *(if deleted { &mut count.1 } else { &mut count.0 }) += 1;
            }
            for part in record.place.iter().chain(&record.tombs) {
                let part_key = key::part_doc(db.inner().id, *part, &id);
                if snapshot.get(Space::PartDocs, &part_key)?.is_none() {
                    self.faults.push(format!("{id}: partial database {part} does not know it"));
                }
            }
        }
        Ok(())
    }

    fn rows(&mut self) -> Result<(), StoreError> {
        let db = self.db;
        let prefix = key::seq(db.inner().id, 0)[..4].to_vec();
        let snapshot = db.inner().store.engine.snapshot();
        for item in snapshot.range(Space::Seqs, &prefix, &key::after(&prefix), Direction::Forward) {
            let (row_key, value) = item?;
            let row: SeqRow = decode(&value, "a row")?;
            let seq = key::last_seq(&row_key);
            self.counted.seq = self.counted.seq.max(seq.unwrap_or_default());
            let record = db.record(&row.id)?;
            if record.map(|record| record.seq) != seq {
                self.faults.push(format!("{}: a row at {seq:?} that is not its latest", row.id));
            }
        }
        Ok(())
    }

    fn partial_documents(&mut self) -> Result<(), StoreError> {
        let db = self.db;
        let prefix = key::doc(db.inner().id, "");
        let snapshot = db.inner().store.engine.snapshot();
        let mut rows = 0u64;
        for item in snapshot.range(Space::PartDocs, &prefix, &key::after(&prefix), Direction::Forward) {
            let (doc_key, value) = item?;
            rows += 1;
            let part = PartNo::from_be_bytes(doc_key[4..8].try_into().map_err(|_| StoreError::Damaged("a key"))?);
            let id = String::from_utf8_lossy(&doc_key[8..]).into_owned();
            let doc = decode_part_doc(&value)?;
            let record = db.record(&id)?.unwrap_or_default();
            if !doc.tomb && record.place != Some(part) {
                self.faults.push(format!("{id}: in partial database {part}, its place is {:?}", record.place));
            }
            if doc.tomb && !record.tombs.contains(&part) {
                self.faults.push(format!("{id}: an unknown tombstone in partial database {part}"));
            }
            match snapshot.get(Space::PartSeqs, &key::part_seq(db.inner().id, part, doc.seq))? {
                None => self.faults.push(format!("{id}: no row in partial database {part}")),
                Some(row) => {
                    let row = decode_row(&row)?;
                    if row.id != id
                        || row.tomb != doc.tomb
                        || row.leaves != doc.leaves
                        || row.entered != doc.entered
                        || row.past != doc.past
                    {
                        self.faults.push(format!("{id}: its row in partial database {part} is another"));
                    }
                }
            }
        }
        let found = snapshot.range(Space::PartSeqs, &prefix, &key::after(&prefix), Direction::Forward).count() as u64;
        if found != rows {
            self.faults.push(format!("{found} rows in partial databases, {rows} documents"));
        }
        Ok(())
    }

    fn count_partition(
        &mut self,
        snapshot: &dyn Snapshot,
        id: &str,
        record: &DocRecord,
        deleted: bool,
    ) -> Result<(), StoreError> {
        let Some(partition) = partition_of(id).filter(|_| self.db.is_partitioned()) else { return Ok(()) };
        let count = self.partitions.entry(partition.to_owned()).or_default();
        *(if deleted { &mut count.deleted } else { &mut count.docs }) += 1;
        let bodies: BTreeSet<Seq> = record.tree.nodes().iter().filter_map(|node| node.body).collect();
        for body in bodies {
            if let Some(value) = snapshot.get(Space::Bodies, &key::seq(self.db.inner().id, body))? {
                count.bytes += decode_body(&value)?.1.len() as u64;
            }
        }
        let external = leaf_bytes_in(snapshot, self.db.inner().id, &record.tree)?;
        count.external = count.external.map(|sum| sum + external);
        Ok(())
    }

    fn partition_counts(&mut self) -> Result<(), StoreError> {
        let prefix = key::partition(self.db.inner().id, "");
        let snapshot = self.db.inner().store.engine.snapshot();
        let mut stored = BTreeMap::new();
        for item in snapshot.range(Space::Meta, &prefix, &key::after(&prefix), Direction::Forward) {
            let (name, value) = item?;
            let name = String::from_utf8_lossy(&name[prefix.len()..]).into_owned();
            let counts = PartitionInfo::decode(&value)?;
            if let Some(found) = self.partitions.get_mut(&name).filter(|_| counts.external.is_none()) {
                // An earlier version began to count it, and knew nothing of these.
                found.external = None;
            }
            stored.insert(name, counts);
        }
        if stored != self.partitions {
            self.faults.push(format!("partitions count {stored:?}, found {:?}", self.partitions));
        }
        Ok(())
    }

    fn counts(&mut self) {
        let state = self.db.inner().state();
        if (state.docs, state.deleted) != (self.counted.docs, self.counted.deleted) {
            self.faults.push(format!("counts are {state:?}, found {:?}", self.counted));
        }
        if state.seq < self.counted.seq {
            self.faults.push(format!("a row at {} after the newest, {}", self.counted.seq, state.seq));
        }
        let app = self.db.inner().app.read();
        for (number, part) in app.parts() {
            let found = self.parts.get(&number).copied().unwrap_or_default();
            if (part.count.docs, part.count.deleted) != found {
                self.faults.push(format!(
                    "partial database {number} counts {} and {} deleted, found {found:?}",
                    part.count.docs, part.count.deleted
                ));
            }
        }
    }
}
