//! Changes of documents that are not yet in the pages.
//!
//! A document can change again while they are collected, so what is known of its rows is looked for here first.

use crate::error::IndexError;
use crate::keys::{ALL, GroupNo, TreeId, back, place};
use crate::page::{Cell, decode, encode};
use crate::records::{Back, BackRow};
use bytes::Bytes;
use rean_store::engine::{Batch, Engine, Space};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};

/// Changes of rows that are put into pages at once. Each can touch a page of its own, of which both the old and the new
/// state are in memory.
const MAX_ROWS: usize = 20_000;
/// And their bytes.
const MAX_BYTES: usize = 16 << 20;
/// Documents without rows cost little more than their ids.
const MAX_DOCS: usize = 20_000;

/// A row that a document is to have.
pub(crate) struct NewRow {
    pub sort_key: Vec<u8>,
    pub key: Bytes,
    pub value: Bytes,
}

/// See the module.
pub(crate) struct Pending {
    group: GroupNo,
    trees: BTreeMap<TreeId, BTreeMap<Vec<u8>, Option<Cell>>>,
    backs: HashMap<String, Back>,
    rows: usize,
    bytes: usize,
}

/// One row's change in one tree.
struct Write<'a> {
    view: usize,
    sort_key: &'a [u8],
    number: usize,
    cell: Option<Cell>,
}

impl Pending {
    pub fn new(group: GroupNo) -> Pending {
        Pending { group, trees: BTreeMap::new(), backs: HashMap::new(), rows: 0, bytes: 0 }
    }

    pub fn is_full(&self) -> bool {
        self.rows >= MAX_ROWS || self.bytes >= MAX_BYTES || self.backs.len() >= MAX_DOCS
    }

    /// Gives a document these rows, for each view, in this part; takes away all others.
    pub fn set(&mut self, engine: &dyn Engine, id: &str, part: u32, views: Vec<Vec<NewRow>>) -> Result<(), IndexError> {
        let old = self.back(engine, id)?;
        let rows_of = |rows: &Vec<NewRow>| rows.iter().map(BackRow::of).collect();
        let new = Back { part, views: views.iter().map(rows_of).collect() };
        if old == new || (!old.has_rows() && !new.has_rows()) {
            return Ok(());
        }
        let stays = old.part == new.part;
        for (view, rows) in old.views.iter().enumerate() {
            for (number, row) in rows.iter().enumerate() {
                let now = new.views.get(view).and_then(|rows| rows.get(number));
                let is_there = now.is_some_and(|now| now.sort_key == row.sort_key);
                let gone = || Write { view, sort_key: &row.sort_key, number, cell: None };
                if !is_there {
                    self.write(id, ALL, gone());
                }
                if old.part != ALL && (!is_there || !stays) {
                    self.write(id, old.part, gone());
                }
            }
        }
        for (view, rows) in views.into_iter().enumerate() {
            for (number, row) in rows.into_iter().enumerate() {
                let was = old.views.get(view).and_then(|rows| rows.get(number));
                let same = was.is_some_and(|was| *was == new.views[view][number]);
                let cell =
                    || Some(Cell { sort_len: row.sort_key.len(), key: row.key.clone(), value: row.value.clone() });
                let write = || Write { view, sort_key: &row.sort_key, number, cell: cell() };
                if !same {
                    self.write(id, ALL, write());
                }
                if part != ALL && (!same || !stays) {
                    self.write(id, part, write());
                }
            }
        }
        self.bytes += id.len();
        self.backs.insert(id.to_owned(), new);
        Ok(())
    }

    /// The changes, by tree and place.
    pub fn take_trees(&mut self) -> BTreeMap<TreeId, BTreeMap<Vec<u8>, Option<Cell>>> {
        std::mem::take(&mut self.trees)
    }

    /// Stages what is to be known of the documents' rows.
    pub fn stage_backs(&mut self, batch: &mut Batch) {
        for (id, rows) in std::mem::take(&mut self.backs) {
            let key = back(self.group, &id);
            if rows.has_rows() { batch.put(Space::Docs, key, encode(&rows)) } else { batch.delete(Space::Docs, key) }
        }
        (self.rows, self.bytes) = (0, 0);
    }

    fn back(&self, engine: &dyn Engine, id: &str) -> Result<Back, IndexError> {
        if let Some(known) = self.backs.get(id) {
            return Ok(known.clone());
        }
        let stored = engine.get(Space::Docs, &back(self.group, id))?;
        stored.map_or_else(|| Ok(Back::default()), |stored| decode(&stored, "the rows of a document"))
    }

    fn write(&mut self, id: &str, part: u32, write: Write<'_>) {
        let tree = TreeId { group: self.group, view: write.view as u16, part };
        let place = place(write.sort_key, id, write.number as u32);
        self.rows += 1;
        self.bytes += place.len() + write.cell.as_ref().map_or(0, |cell| cell.key.len() + cell.value.len());
        self.trees.entry(tree).or_default().insert(place, write.cell);
    }
}

impl BackRow {
    fn of(row: &NewRow) -> BackRow {
        let mut hash = Sha256::new();
        hash.update((row.key.len() as u64).to_be_bytes());
        hash.update(&row.key);
        hash.update(&row.value);
        let mut short = [0; 12];
        short.copy_from_slice(&hash.finalize()[..12]);
        BackRow { sort_key: row.sort_key.clone(), hash: short }
    }
}
