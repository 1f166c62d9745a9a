//! Databases as they were at one moment, read from one snapshot: for backups.
//!
//! Whatever is written, moved, compacted or deleted meanwhile, what is read here stays as it was. While a [`Frozen`] is
//! kept, the engine keeps what it shows, so it must be let go of some day.

use crate::db::DbKind;
use crate::engine::{Direction, Snapshot, Space};
use crate::error::StoreError;
use crate::outside::{StoredFile, is_file, read_record};
use crate::record::{BlobId, DbId, DbRecord, DbState, DocRecord, KindRecord, Seq, SeqRow, decode, decode_body, key};
use crate::rev::Rev;
use crate::store::Store;
use crate::view::Body;
use bytes::Bytes;

/// What the ids of design documents begin with, and the first id behind them.
const DESIGNS: [&str; 2] = ["_design/", "_design0"];

/// A store at one moment.
pub struct Frozen {
    snapshot: Box<dyn Snapshot>,
    seq: Seq,
}

/// A database at that moment.
#[derive(Debug, Clone)]
pub struct FrozenDb {
    id: DbId,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: DbKind,
    /// Whether the ids of its documents name partitions.
    pub partitioned: bool,
    /// New at each creation of a database of that name.
    pub instance: String,
    /// Its newest change.
    pub seq: Seq,
    /// Live documents.
    pub docs: u64,
    /// Deleted documents.
    pub deleted: u64,
    /// `_security` as text; empty: never set.
    pub security: String,
    /// How many revisions of a branch are remembered.
    pub revs_limit: u64,
}

/// A document at that moment.
#[derive(Debug, Clone)]
pub struct FrozenDoc {
    /// Its id.
    pub id: String,
    /// Its leaves, winner first.
    pub leaves: Vec<FrozenLeaf>,
}

/// A leaf.
#[derive(Debug, Clone)]
pub struct FrozenLeaf {
    /// Its name and those of its ancestors, newest first.
    pub history: Vec<Rev>,
    /// Whether it is a deletion.
    pub deleted: bool,
    /// Its content; `None`: only its name is known here.
    pub body: Option<Body>,
}

impl Store {
    /// The store at this moment. All that it shows is durable: blocks for at most the flush that is under way.
    ///
    /// # Errors
    /// The engine failed.
    pub fn freeze(&self) -> Result<Frozen, StoreError> {
        let (snapshot, clock) = self.inner().durable_snapshot()?;
        Ok(Frozen { snapshot, seq: clock.seq })
    }
}

impl Frozen {
    /// The store's sequence of that moment.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// All databases, by name.
    ///
    /// # Errors
    /// The engine failed.
    pub fn databases(&self) -> Result<Vec<FrozenDb>, StoreError> {
        let mut out = Vec::new();
        for item in self.snapshot.range(Space::Meta, key::DB, &key::after(key::DB), Direction::Forward) {
            let (name, value) = item?;
            let name = std::str::from_utf8(name.get(key::DB.len()..).unwrap_or_default());
            let name = name.map_err(|_| StoreError::Damaged("a database's name"))?.to_owned();
            let record: DbRecord = decode(&value, "a database")?;
            let state = self.snapshot.get(Space::Meta, &key::state(record.id))?;
            let state: DbState =
                state.map(|state| decode(&state, "a database's counts")).transpose()?.unwrap_or_default();
            out.push(FrozenDb {
                id: record.id,
                name,
                kind: record.kind.into(),
                partitioned: record.kind == KindRecord::Partitioned,
                instance: hex::encode(record.instance),
                seq: state.seq,
                docs: state.docs,
                deleted: state.deleted,
                security: record.security,
                revs_limit: record.revs_limit,
            });
        }
        Ok(out)
    }

    /// Calls `take` for each document, in the order of their last changes; design documents come last. It ends early
    /// when `take` gives an error.
    ///
    /// # Errors
    /// The engine failed, or what `take` gave.
    pub fn documents<E: From<StoreError>>(
        &self,
        db: &FrozenDb,
        mut take: impl FnMut(FrozenDoc) -> Result<(), E>,
    ) -> Result<(), E> {
        let (lo, hi) = (key::seq(db.id, 0), key::seq(db.id, Seq::MAX));
        for item in self.snapshot.range(Space::Seqs, &lo, &hi, Direction::Forward) {
            let (_, value) = item.map_err(StoreError::from)?;
            let row: SeqRow = decode(&value, "a row")?;
            if !row.id.starts_with(DESIGNS[0])
                && let Some(doc) = self.document(db, &row.id)?
            {
                take(doc)?;
            }
        }
        let [lo, hi] = DESIGNS.map(|id| key::doc(db.id, id));
        for item in self.snapshot.range(Space::Docs, &lo, &hi, Direction::Forward) {
            let (doc_key, value) = item.map_err(StoreError::from)?;
            let id = std::str::from_utf8(doc_key.get(lo.len() - DESIGNS[0].len()..).unwrap_or_default());
            let id = id.map_err(|_| StoreError::Damaged("a document's key"))?;
            take(self.view(db, id, &decode(&value, "a document")?)?)?;
        }
        Ok(())
    }

    /// A document; `None` if there was none.
    ///
    /// # Errors
    /// The engine failed.
    pub fn document(&self, db: &FrozenDb, id: &str) -> Result<Option<FrozenDoc>, StoreError> {
        let value = self.snapshot.get(Space::Docs, &key::doc(db.id, id))?;
        value.map(|value| self.view(db, id, &decode(&value, "a document")?)).transpose()
    }

    fn view(&self, db: &FrozenDb, id: &str, record: &DocRecord) -> Result<FrozenDoc, StoreError> {
        let nodes = record.tree.nodes();
        let mut leaves = Vec::new();
        for leaf in record.tree.leaves() {
            let body = match nodes[leaf].body {
                Some(at) => self.snapshot.get(Space::Bodies, &key::seq(db.id, at))?,
                None => None,
            };
            let body = body.map(|value| decode_body(&value)).transpose()?;
            leaves.push(FrozenLeaf {
                history: record.tree.path(leaf),
                deleted: nodes[leaf].deleted,
                body: body.map(|(attachments, json)| Body { attachments, json }),
            });
        }
        Ok(FrozenDoc { id: id.to_owned(), leaves })
    }

    /// The file that an attachment is; `None` if its bytes are in the store.
    ///
    /// # Errors
    /// The engine failed, or the record is gone or can't be read.
    pub fn file(&self, db: &FrozenDb, blob: BlobId) -> Result<Option<StoredFile>, StoreError> {
        if !is_file(blob) {
            return Ok(None);
        }
        let value = self.snapshot.get(Space::Blobs, &key::chunk(db.id, blob, 0))?;
        read_record(&value.ok_or(StoreError::Damaged("a file has no record"))?).map(Some)
    }

    /// A piece of an attachment, counted from 0; empty behind the last.
    ///
    /// # Errors
    /// The engine failed.
    pub fn blob_piece(&self, db: &FrozenDb, blob: BlobId, piece: u32) -> Result<Bytes, StoreError> {
        Ok(self.snapshot.get(Space::Blobs, &key::chunk(db.id, blob, piece))?.unwrap_or_default())
    }
}
