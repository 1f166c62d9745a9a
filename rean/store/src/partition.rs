//! In which partial database a document is, kept within the commit that changes the document.
//!
//! A document is in at most one. When it goes elsewhere the same commit leaves a tombstone in the feed that
//! it leaves and a row in the one that it comes to. A tombstone keeps the leaves that its readers have, so
//! that each can be told of its end (see `chain`), and since when the document had been there, so that who
//! never saw it is not told.

use crate::app::AppState;
use crate::apply::{leaves_of, place_of};
use crate::authors::Wrote;
use crate::db::Db;
use crate::document;
use crate::engine::Space;
use crate::error::{StoreError, WriteError};
use crate::record::{
    DbId, DocRecord, Leaf, PartDoc, PartNo, PartRow, Past, Seq, SeqRow, decode_body, decode_part_doc, encode,
    encode_with_past, key,
};
use crate::rev::Rev;
use crate::tree::RevTree;
use crate::writer::Tx;

/// Documents that are placed anew in one job: the writer must not be kept from others for long.
const REPARTITION_PAGE: usize = 200;

/// Successors in a row, without an edit between: a bound, because readers who replay old places in a feed can
/// make the store mark and succeed again and again. Beyond it a device that was told the end shows the document
/// again at its next edit.
const MAX_SUCCESSORS: usize = 16;
/// A row that a commit has put into a partial database's feed.
pub(crate) type NewPartRow = (PartNo, PartRow);

impl Tx<'_> {
    /// Brings the partial databases in line with a document's new tree, and notes the result in `record`.
    pub(crate) fn place(
        &mut self,
        db: &Db,
        id: &str,
        old: Option<&DocRecord>,
        record: &mut DocRecord,
        wrote: Option<Wrote<'_>>,
    ) -> Result<Vec<NewPartRow>, StoreError> {
        let from = old.and_then(|old| old.place);
        let to = place_of(db, id, &record.tree, old);
        let moves = from.is_some() && from != to;
        succeed(db, id, old, record, moves);
        let mut rows = Vec::new();
        if let Some(from) = from.filter(|_| moves)
            && let Some(row) = self.leave(db, id, from, record, wrote)?
        {
            record.tombs.push(from);
            self.note_move(db, id, from, to, record);
            let seq = record.seq;
            record.ended.extend(row.leaves.iter().filter(|leaf| !leaf.deleted).map(|leaf| (leaf.rev.clone(), seq)));
            rows.push((from, row));
        }
        if let Some(wrote) = wrote {
            rows.extend(self.end_apart(db, id, record, wrote, &[from, to])?);
        }
        prune_ended(record);
        record.place = to;
        if let Some(to) = to {
            let row = self.stay(db, id, to, record, wrote)?;
            record.tombs.retain(|tomb| *tomb != to);
            rows.push((to, row));
        }
        Ok(rows)
    }

    /// Turns the document's row into a tombstone.
    fn leave(
        &mut self,
        db: &Db,
        id: &str,
        part: PartNo,
        record: &mut DocRecord,
        wrote: Option<Wrote<'_>>,
    ) -> Result<Option<PartRow>, StoreError> {
        let (db_id, seq) = (db.inner().id, record.seq);
        let Some(was) = self.part_doc(db_id, part, id)? else { return Ok(None) };
        let held = wrote.and_then(|wrote| wrote.held(&db.inner().app.read(), &record.tree));
        let held = held.filter(|held| held.concerns(part, &was) && !was.gone.contains(&held.rev));
        if let Some(held) = &held {
            // Who sent it out of their own sight has the revision that did so.
            record.ended.push((held.rev.clone(), seq));
        }
        let row = self.put_tomb(db, id, part, seq, was, |was| {
            was.gone.extend(held.map(|held| held.rev));
            wrote.into_iter().for_each(|wrote| wrote.add_authors(&record.tree, &mut was.authors));
        });
        Ok(Some(row))
    }

    /// Puts the document's row at the end of the feed, whether or not it was in it before.
    fn stay(
        &mut self,
        db: &Db,
        id: &str,
        part: PartNo,
        record: &mut DocRecord,
        wrote: Option<Wrote<'_>>,
    ) -> Result<PartRow, StoreError> {
        let (db_id, seq) = (db.inner().id, record.seq);
        let was = self.part_doc(db_id, part, id)?;
        if let Some(was) = &was {
            self.delete(Space::PartSeqs, key::part_seq(db_id, part, was.seq));
        }
        let (entered, past) = match &was {
            None => (seq, Past::default()),
            Some(was) if was.tomb => (seq, Past { left: 0, earlier: Some(was.stay_until_it_left()) }),
            Some(was) => (was.entered, was.past),
        };
        let leaves = visible(&db.inner().app.read(), leaves_of(record), part);
        let gone = was.as_ref().map(|was| gone_of(&was.leaves, &was.gone, &record.tree, &leaves)).unwrap_or_default();
        // None of them is among the leaves of the row, so these stay as they are.
        record.ended.extend(gone.iter().map(|rev| (rev.clone(), seq)));
        prune_ended(record);
        let mut authors = was.as_ref().map(|was| was.authors.clone()).unwrap_or_default();
        wrote.into_iter().for_each(|wrote| wrote.add_authors(&record.tree, &mut authors));
        let row = PartRow { id: id.to_owned(), entered, tomb: false, leaves, gone, authors, past };
        let before = was.filter(|was| !was.tomb).unwrap_or_else(|| PartDoc::nothing(seq));
        self.count(db, part, seq, &before, Some(&row));
        self.put_part_row(db_id, part, seq, &row);
        Ok(row)
    }

    /// Notes that somebody is about to be shown the end of these revisions, as far as they are leaves.
    pub(crate) fn mark_ended(&mut self, db: &Db, ends: &[(String, Vec<Rev>)]) -> Result<(), StoreError> {
        for (id, revs) in ends {
            let db_id = db.inner().id;
            let doc_key = key::doc(db_id, id);
            let Some(mut record) = self.doc_record(&doc_key)? else { continue };
            let news = |leaf: &Leaf| !leaf.deleted && leaf.ended <= record.seq && revs.contains(&leaf.rev);
            let news: Vec<Rev> = leaves_of(&record).into_iter().filter(news).map(|leaf| leaf.rev).collect();
            if news.is_empty() {
                continue;
            }
            // Later than the row: whoever reads the row from now on may be somebody who was shown the end.
            record.ended.retain(|(rev, _)| !news.contains(rev));
            let since = record.seq + 1;
            record.ended.extend(news.into_iter().map(|rev| (rev, since)));
            let mut leaves = leaves_of(&record);
            // The rows stay where they are: nobody has anything new to read.
            let row = SeqRow { id: id.clone(), leaves: leaves.clone() };
            self.put(Space::Seqs, key::seq(db_id, record.seq), encode(&row));
            if let Some(place) = record.place
                && let Some(was) = self.part_doc(db_id, place, id)?
            {
                leaves = visible(&db.inner().app.read(), leaves, place);
                let PartDoc { entered, tomb, gone, authors, past, .. } = was;
                let row = PartRow { id: id.clone(), entered, tomb, leaves, gone, authors, past };
                self.put_part_row(db_id, place, was.seq, &row);
            }
            self.put(Space::Docs, doc_key, encode(&record));
        }
        Ok(())
    }

    /// Gives these documents' winners a successor, if their end was shown to somebody.
    pub(crate) fn succeed_ended(&mut self, db: &Db, ids: &[String]) -> Result<(), StoreError> {
        db.present()?;
        for id in ids {
            let Some(old) = self.doc_record(&key::doc(db.inner().id, id))? else { continue };
            let winner = old.tree.winner().map(|winner| &old.tree.nodes()[winner]);
            if winner.is_some_and(|winner| !winner.deleted && old.ended.iter().any(|(rev, _)| *rev == winner.rev)) {
                let mut record = DocRecord { seq: self.next_seq(), ..old.clone() };
                // As if it moved: it is about to be shown to somebody who was shown its end.
                succeed(db, id, Some(&old), &mut record, true);
                self.store_doc(db, id, Some(&old), record, None)?;
            }
        }
        Ok(())
    }

    pub(crate) fn drop_part_row(&mut self, db_id: DbId, part: PartNo, seq: Seq) {
        self.delete(Space::PartSeqs, key::part_seq(db_id, part, seq));
    }

    pub(crate) fn put_part_row(&mut self, db_id: DbId, part: PartNo, seq: Seq, row: &PartRow) {
        let PartRow { entered, tomb, leaves, gone, authors, past, .. } = row.clone();
        let doc = PartDoc { seq, entered, tomb, leaves, gone, authors, past };
        self.put(Space::PartDocs, key::part_doc(db_id, part, &row.id), encode_with_past(&doc, past));
        self.put(Space::PartSeqs, key::part_seq(db_id, part, seq), encode_with_past(row, past));
    }

    pub(crate) fn part_doc(&self, db_id: DbId, part: PartNo, id: &str) -> Result<Option<PartDoc>, StoreError> {
        let value = self.get(Space::PartDocs, &key::part_doc(db_id, part, id))?;
        value.map(|value| decode_part_doc(&value)).transpose()
    }

    /// Keeps the partial database's counts.
    pub(crate) fn count(&mut self, db: &Db, part: PartNo, seq: Seq, before: &PartDoc, after: Option<&PartRow>) {
        let gone = |leaves: &[Leaf]| leaves.first().is_none_or(|leaf| leaf.deleted);
        self.state(db);
        self.touch_part(db.inner().id, part);
        let mut app = db.inner().app.write();
        let Some(record) = app.part_mut(part).map(|part| &mut part.count) else { return };
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
        self.store_doc(db, id, Some(&old), record, None)?;
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

/// The leaves that readers of a partial database see of a document that is in it: the winner, and those that
/// have the same readers. A leaf that only some of them may read is a conflict for an administrator to resolve.
pub(crate) fn visible(app: &AppState, leaves: Vec<Leaf>, place: PartNo) -> Vec<Leaf> {
    let mut first = true;
    let seen = |leaf: &Leaf| std::mem::take(&mut first) || app.part_of_acl(leaf.acl) == Some(place);
    leaves.into_iter().filter(seen).collect()
}

/// Of the leaves of a row and what had gone before it, what no leaf that is seen now descends from: its readers
/// may hold these, or what they deleted, as live.
pub(crate) fn gone_of(leaves: &[Leaf], gone: &[Rev], tree: &RevTree, seen: &[Leaf]) -> Vec<Rev> {
    let held = leaves.iter().map(|leaf| &leaf.rev).chain(gone);
    let seen: Vec<usize> = seen.iter().filter_map(|leaf| tree.find(&leaf.rev)).collect();
    let mut gone: Vec<Rev> = Vec::new();
    for rev in held {
        let Some(index) = tree.find(rev) else { continue };
        if !seen.iter().any(|leaf| tree.descends(*leaf, index)) && !gone.contains(rev) {
            gone.push(rev.clone());
        }
    }
    gone
}

/// Whether the revision whose history this is has had as many successors as there may be.
pub(crate) fn has_all_successors(db: &Db, id: &str, path: &[Rev]) -> bool {
    let chain = &db.inner().chain;
    path.windows(2).take_while(|pair| chain.successor(id, &pair[1]) == pair[0]).count() >= MAX_SUCCESSORS
}

/// Gives the winner a successor with the same content, if it is about to be shown to people one of whom was
/// shown its end: it moves, or another leaf stood before it. Other leaves are left alone: a successor's higher
/// generation would make it the winner.
fn succeed(db: &Db, id: &str, old: Option<&DocRecord>, record: &mut DocRecord, moves: bool) {
    let Some(index) = record.tree.winner() else { return };
    let winner = record.tree.nodes()[index].clone();
    let won_before = old.and_then(|old| Some(&old.tree.nodes()[old.tree.winner()?].rev));
    let shown_anew = moves || won_before != Some(&winner.rev) || old.is_some_and(|old| old.place.is_none());
    if winner.deleted || !shown_anew || !record.ended.iter().any(|(rev, _)| *rev == winner.rev) {
        return;
    }
    let path = record.tree.path(index);
    if has_all_successors(db, id, &path) {
        return;
    }
    let mut history = vec![db.inner().chain.successor(id, &winner.rev)];
    history.extend(path);
    // The body is not copied: both name the same one (see `unnamed`).
    let _ = record.tree.merge(&history, false, winner.body, winner.acl);
    prune_ended(record);
}

fn prune_ended(record: &mut DocRecord) {
    let tree = &record.tree;
    record.ended.retain(|(rev, _)| tree.find(rev).is_some_and(|index| tree.is_leaf(index)));
    // Of two times the later one stays.
    record.ended.sort_unstable_by(|a, b| b.cmp(a));
    record.ended.dedup_by(|a, b| a.0 == b.0);
}
