//! What users hold of a document because they wrote it, and were not given it by a feed.
//!
//! Who sends a document out of their own sight has the revision that did so, and has to be told its end. On the pod
//! that took the write the author is known. On others the revision comes from a pod: that a device made it is seen by
//! its name, for the store gives names of its own; whose device it was is not. And what was written there in
//! between may not come at all, but as a name in the history of what was written last.

use crate::app::AppState;
use crate::db::Db;
use crate::error::StoreError;
use crate::partition::NewPartRow;
use crate::record::{DocRecord, PartDoc, PartNo, PartRow, Past};
use crate::rev::Rev;
use crate::tree::RevTree;
use crate::writer::Tx;

/// Authors that are kept with a document: those of long ago have read it since.
const MAX_AUTHORS: usize = 32;

/// Stands among the authors of a document for a user who wrote on another pod. No user has this name.
pub(crate) const SOMEBODY: &str = "";

/// The revision that a commit is made for.
#[derive(Clone, Copy)]
pub(crate) struct Wrote<'a> {
    pub rev: &'a Rev,
    /// The user who made it on a device, or [`SOMEBODY`]; `None`: nobody who keeps what they wrote.
    pub by: Option<&'a str>,
}

/// A revision that an author may hold as live.
pub(crate) struct Held {
    pub rev: Rev,
    /// It and its ancestors.
    path: Vec<Rev>,
    /// The partial databases that it and what it was made from belong to: its author reads one, or did.
    parts: Vec<PartNo>,
}

impl Wrote<'_> {
    /// What its author, or that of the one before, may hold as live, if it is in a tree.
    pub fn held(&self, app: &AppState, tree: &RevTree) -> Option<Held> {
        let written = tree.find(self.rev)?;
        let nodes = tree.nodes();
        let made = self.by.is_some() && !nodes[written].deleted && tree.is_leaf(written);
        let held = Some(written).filter(|_| made).or_else(|| passed_over(tree, written))?;
        let below = tree.ancestors(held).find(|index| nodes[*index].acl != 0);
        let parts = [Some(held), below].into_iter().flatten().filter_map(|index| app.part_of_acl(nodes[index].acl));
        Some(Held { rev: nodes[held].rev.clone(), path: tree.path(held), parts: parts.collect() })
    }

    /// Adds those who may have what they wrote to a row's authors.
    pub fn add_authors(&self, tree: &RevTree, authors: &mut Vec<String>) {
        let passed_over = tree.find(self.rev).and_then(|written| passed_over(tree, written));
        for author in self.by.into_iter().chain(passed_over.map(|_| SOMEBODY)) {
            if !authors.iter().any(|known| known == author) {
                authors.push(author.to_owned());
                if authors.len() > MAX_AUTHORS {
                    authors.remove(0);
                }
            }
        }
    }
}

impl Held {
    /// Whether it may have been made from what a row showed.
    pub fn concerns(&self, part: PartNo, row: &PartDoc) -> bool {
        let mut shown = row.leaves.iter().map(|leaf| &leaf.rev).chain(&row.gone);
        self.parts.contains(&part) || shown.any(|rev| self.path.contains(rev))
    }
}

impl Tx<'_> {
    /// A revision was made from one that another pod's edit has taken out of its author's sight here: its end is told
    /// where the end of that one was told. `moving`: what this commit changes in any case.
    pub(crate) fn end_apart(
        &mut self,
        db: &Db,
        id: &str,
        record: &mut DocRecord,
        wrote: Wrote<'_>,
        moving: &[Option<PartNo>],
    ) -> Result<Vec<NewPartRow>, StoreError> {
        let (db_id, seq) = (db.inner().id, record.seq);
        let held = wrote.held(&db.inner().app.read(), &record.tree);
        let Some(held) = held else { return Ok(Vec::new()) };
        let mut rows: Vec<NewPartRow> = Vec::new();
        for part in held.parts {
            let told = record.tombs.contains(&part) && !moving.contains(&Some(part));
            if !told || rows.iter().any(|(done, _)| *done == part) {
                continue;
            }
            let Some(was) = self.part_doc(db_id, part, id)?.filter(|was| !was.gone.contains(&held.rev)) else {
                continue;
            };
            let row = self.put_tomb(db, id, part, seq, was, |was| {
                was.gone.push(held.rev.clone());
                wrote.add_authors(&record.tree, &mut was.authors);
            });
            record.ended.push((held.rev.clone(), seq));
            rows.push((part, row));
        }
        Ok(rows)
    }

    /// Puts a tombstone at the end of a partial database's feed, in place of the document's row there.
    pub(crate) fn put_tomb(
        &mut self,
        db: &Db,
        id: &str,
        part: PartNo,
        seq: u64,
        mut was: PartDoc,
        change: impl FnOnce(&mut PartDoc),
    ) -> PartRow {
        self.drop_part_row(db.inner().id, part, was.seq);
        self.count(db, part, seq, &was, None);
        change(&mut was);
        let left = if was.tomb { was.stay_until_it_left().1 } else { 0 };
        let past = Past { left, ..was.past };
        let PartDoc { entered, leaves, gone, authors, .. } = was;
        let row = PartRow { id: id.to_owned(), entered, tomb: true, leaves, gone, authors, past };
        self.put_part_row(db.inner().id, part, seq, &row);
        row
    }
}

/// The revision below a written one, if only its name came here, as when the other pod was several edits ahead. Who
/// made it holds it, or one below it.
fn passed_over(tree: &RevTree, written: usize) -> Option<usize> {
    let parent = tree.ancestors(written).next()?;
    let node = &tree.nodes()[parent];
    (node.body.is_none() && node.acl == 0).then_some(parent)
}
