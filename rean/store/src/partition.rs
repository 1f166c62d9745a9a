//! In which partial database a document is, kept within the commit that changes the document.
//!
//! A document is in at most one. When it goes elsewhere the same commit leaves a tombstone in the feed that
//! it leaves and a row in the one that it comes to. A tombstone keeps the leaves that its readers have, so
//! that each can be told of its end (see `chain`), and since when the document had been there, so that who
//! never saw it is not told.

use crate::apply::{leaves_of, place_of};
use crate::db::Db;
use crate::document;
use crate::engine::Space;
use crate::error::{StoreError, WriteError};
use crate::record::{DbId, DocRecord, Leaf, PartDoc, PartNo, PartRow, Seq, decode, decode_body, encode, key};
use crate::writer::Tx;

/// Documents that are placed anew in one job: the writer must not be kept from others for long.
const REPARTITION_PAGE: usize = 200;

/// A row that a commit has put into a partial database's feed.
pub(crate) type NewPartRow = (PartNo, PartRow);

impl Tx<'_> {
    /// Brings the partial databases in line with a document's new leaves, and notes the result in `record`.
    pub(crate) fn place(
        &mut self,
        db: &Db,
        id: &str,
        old: Option<&DocRecord>,
        record: &mut DocRecord,
        leaves: &[Leaf],
    ) -> Result<Vec<NewPartRow>, StoreError> {
        let from = old.and_then(|old| old.place);
        let to = place_of(&db.inner().app.read(), &record.tree, old);
        let mut rows = Vec::new();
        if let Some(from) = from
            && Some(from) != to
            && let Some(row) = self.leave(db, id, from, record.seq)?
        {
            record.tombs.push(from);
            rows.push((from, row));
        }
        record.place = to;
        record.cycles.clear();
        if let Some(to) = to {
            let row = self.stay(db, id, to, record.seq, leaves)?;
            record.tombs.retain(|tomb| *tomb != to);
            let came_back = row.leaves.iter().filter(|leaf| leaf.cycle > 0);
            record.cycles = came_back.map(|leaf| (leaf.rev.clone(), leaf.cycle)).collect();
            rows.push((to, row));
        }
        Ok(rows)
    }

    /// Turns the document's row into a tombstone.
    fn leave(&mut self, db: &Db, id: &str, part: PartNo, seq: Seq) -> Result<Option<PartRow>, StoreError> {
        let db_id = db.inner().id;
        let Some(was) = self.part_doc(db_id, part, id)? else { return Ok(None) };
        self.delete(Space::PartSeqs, key::part_seq(db_id, part, was.seq));
        self.count(db, part, seq, &was, None);
        let row = PartRow { id: id.to_owned(), entered: was.entered, tomb: true, leaves: was.leaves };
        self.put_part_row(db_id, part, seq, &row);
        Ok(Some(row))
    }

    /// Puts the document's row at the end of the feed, whether or not it was in it before.
    fn stay(&mut self, db: &Db, id: &str, part: PartNo, seq: Seq, leaves: &[Leaf]) -> Result<PartRow, StoreError> {
        let db_id = db.inner().id;
        let was = self.part_doc(db_id, part, id)?;
        let mut leaves = leaves.to_vec();
        if let Some(was) = &was {
            self.delete(Space::PartSeqs, key::part_seq(db_id, part, was.seq));
            for leaf in &mut leaves {
                if let Some(before) = was.leaves.iter().find(|before| before.rev == leaf.rev) {
                    leaf.cycle = before.cycle + u32::from(was.tomb);
                }
            }
        }
        let entered = was.as_ref().map_or(seq, |was| was.entered);
        let row = PartRow { id: id.to_owned(), entered, tomb: false, leaves };
        let before = was.filter(|was| !was.tomb);
        match &before {
            Some(before) => self.count(db, part, seq, before, Some(&row)),
            None => {
                let nothing = PartDoc { seq, entered, tomb: true, leaves: Vec::new() };
                self.count(db, part, seq, &nothing, Some(&row));
            }
        }
        self.put_part_row(db_id, part, seq, &row);
        Ok(row)
    }

    fn put_part_row(&mut self, db_id: DbId, part: PartNo, seq: Seq, row: &PartRow) {
        let doc = PartDoc { seq, entered: row.entered, tomb: row.tomb, leaves: row.leaves.clone() };
        self.put(Space::PartDocs, key::part_doc(db_id, part, &row.id), encode(&doc));
        self.put(Space::PartSeqs, key::part_seq(db_id, part, seq), encode(row));
    }

    pub(crate) fn part_doc(&self, db_id: DbId, part: PartNo, id: &str) -> Result<Option<PartDoc>, StoreError> {
        let value = self.get(Space::PartDocs, &key::part_doc(db_id, part, id))?;
        value.map(|value| decode(&value, "a document of a partial database")).transpose()
    }

    /// Keeps the partial database's counts.
    fn count(&mut self, db: &Db, part: PartNo, seq: Seq, before: &PartDoc, after: Option<&PartRow>) {
        let gone = |leaves: &[Leaf]| leaves.first().is_none_or(|leaf| leaf.deleted);
        self.state(db);
        self.touch_part(db.inner().id, part);
        let mut app = db.inner().app.write();
        let Some(record) = app.part_mut(part) else { return };
        record.seq = record.seq.max(seq);
        if !before.tomb {
            let count = if gone(&before.leaves) { &mut record.deleted } else { &mut record.docs };
            *count = count.saturating_sub(1);
        }
        if let Some(after) = after {
            let count = if gone(&after.leaves) { &mut record.deleted } else { &mut record.docs };
            *count += 1;
        }
    }

    /// Takes a document out of all partial databases, for a purge.
    pub(crate) fn leave_all(&mut self, db: &Db, id: &str, record: &DocRecord) -> Result<(), StoreError> {
        let db_id = db.inner().id;
        for part in record.tombs.iter().chain(&record.place).copied() {
            if let Some(was) = self.part_doc(db_id, part, id)? {
                if !was.tomb {
                    self.count(db, part, was.seq, &was, None);
                }
                self.delete(Space::PartSeqs, key::part_seq(db_id, part, was.seq));
                self.delete(Space::PartDocs, key::part_doc(db_id, part, id));
            }
        }
        Ok(())
    }

    /// Gives a document's leaves the access of the rules in force, and moves it where it now belongs.
    fn reclassify(&mut self, db: &Db, id: &str) -> Result<(), WriteError> {
        let db_id = db.inner().id;
        let Some(old) = self.doc_record(&key::doc(db_id, id))? else { return Ok(()) };
        let mut record = old.clone();
        let mut changed = false;
        for index in old.tree.leaves() {
            let node = &old.tree.nodes()[index];
            let Some(body) = node.body else { continue };
            let Some(value) = self.get(Space::Bodies, &key::seq(db_id, body))? else { continue };
            let (_, json) = decode_body(&value)?;
            let own = document::access_member(&json);
            if node.deleted && own.is_none() {
                continue;
            }
            let acl = self.classify(db, id, own.as_deref(), &json)?;
            if acl != node.acl {
                record.tree.set_acl(index, acl);
                changed = true;
            }
        }
        if !changed {
            return Ok(());
        }
        record.seq = self.next_seq();
        self.store_doc(db, id, Some(&old), record)?;
        Ok(())
    }
}

impl Db {
    /// Places all documents by the rules in force. Blocks for as long as that takes; goes on where an earlier
    /// call stopped. `progress` is told how many documents are done, of how many.
    ///
    /// # Errors
    /// The engine failed, or the database is gone.
    pub fn repartition(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), StoreError> {
        let state = self.inner().state();
        let total = state.docs + state.deleted;
        let mut done = 0;
        while let Some(cursor) = self.repartition_cursor() {
            self.present()?;
            let ids = self.ids_after(&cursor, REPARTITION_PAGE)?;
            let Some(last) = ids.last().cloned() else {
                // Rules may have changed once more while the last page was read: then the cursor was set back.
                self.move_repartition_cursor(cursor, None)?;
                continue;
            };
            done += ids.len() as u64;
            let db = self.clone();
            self.inner().store.call(move |tx| {
                for id in ids {
                    if let Err(error) = tx.reclassify(&db, &id) {
                        match error {
                            WriteError::Store(error) => return Err(tx.fail(error)),
                            // No room for one more access list: the document stays where it is, which its
                            // present readers may read.
                            refused => tracing::warn!(db = db.name(), id, %refused, "a document was not placed anew"),
                        }
                    }
                }
                Ok(())
            })?;
            self.move_repartition_cursor(cursor, Some(last))?;
            progress(done.min(total), total);
        }
        Ok(())
    }
}

/// The leaves of a document's tree, with how often each came back to its place.
pub(crate) fn leaves_in_place(record: &DocRecord) -> Vec<Leaf> {
    let mut leaves = leaves_of(&record.tree);
    for leaf in &mut leaves {
        leaf.cycle = record.cycles.iter().find(|(rev, _)| *rev == leaf.rev).map_or(0, |(_, cycle)| *cycle);
    }
    leaves
}
