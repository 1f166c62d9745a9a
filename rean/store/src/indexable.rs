//! What indexes over a database are kept up to date with: its durable changes, its purges, and who reads what.

use crate::db::{Db, DbKind};
use crate::engine::{Direction, Snapshot, Space, Value};
use crate::error::StoreError;
use crate::partition::visible;
use crate::record::{DbState, Leaf, PartNo, Seq, SeqRow, decode, decode_body, key};
use crate::rev::Rev;
use crate::view::{Body, Scope};

/// Purges that are remembered: CouchDB's default of `purged_infos_limit`.
pub(crate) const PURGED_INFOS: u64 = 1_000;

/// How far a database has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Newest {
    /// Its newest change.
    pub seq: Seq,
    /// Its purges so far.
    pub purges: u64,
}

/// A page of a database's newest changes.
#[derive(Debug, Clone)]
pub struct IndexPage {
    /// In the order of their sequences. A document is in it at most once.
    pub rows: Vec<IndexRow>,
    /// All that is at or below this sequence is in this page or was in one before it. All of it is durable.
    pub until: Seq,
    /// Whether there was nothing after it when the page was read.
    pub is_last: bool,
}

/// A document's newest change.
#[derive(Debug, Clone)]
pub struct IndexRow {
    /// Its sequence.
    pub seq: Seq,
    /// The document.
    pub id: String,
    /// Its winner; `None`: it is deleted.
    pub live: Option<IndexLive>,
}

/// The winner of a document that is not deleted.
#[derive(Debug, Clone)]
pub struct IndexLive {
    /// Its revision.
    pub rev: Rev,
    /// Its content.
    pub body: Body,
    /// The partial database that it is in.
    pub place: Option<PartNo>,
    /// Its other leaves, as far as the readers of that partial database may see them.
    pub conflicts: Vec<Rev>,
    /// Those of them that are deleted.
    pub deleted_conflicts: Vec<Rev>,
}

/// What was purged after a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Purges {
    /// Purges so far: those that this covers.
    pub until: u64,
    /// Documents that were purged and of which nothing is left. Of others there are newer changes.
    pub gone: Vec<String>,
}

impl Db {
    /// How far the database has come: durable and seen by all requests.
    pub fn newest(&self) -> Newest {
        let state = self.inner().state();
        Newest { seq: state.seq, purges: state.purges }
    }

    /// The name of the store's run of sequences, see [`crate::Store::history`].
    pub fn history(&self) -> &str {
        &self.inner().store.history
    }

    /// The newest sequence of the whole store.
    pub fn store_seq(&self) -> Seq {
        self.inner().store.progress.seq()
    }

    /// The changes after a sequence with the content of the winners, from one moment: at most `limit` (at least 1),
    /// fewer if they have more than `max_bytes` together. Blocks for at most the flush that is under way.
    ///
    /// # Errors
    /// The engine failed, or the database is gone.
    pub fn indexable(&self, since: Seq, limit: usize, max_bytes: usize) -> Result<IndexPage, StoreError> {
        self.present()?;
        let (snapshot, state) = self.durable_snapshot()?;
        let id = self.inner().id;
        let (lo, hi) = (key::seq(id, since.saturating_add(1)), key::seq(id, state.seq.saturating_add(1)));
        let mut rows: Vec<IndexRow> = Vec::new();
        let mut bytes = 0;
        for item in snapshot.range(Space::Seqs, &lo, &hi, Direction::Forward) {
            if rows.len() >= limit.max(1) || (bytes >= max_bytes && !rows.is_empty()) {
                let until = rows.last().map_or(since, |row| row.seq);
                return Ok(IndexPage { rows, until, is_last: false });
            }
            let (row_key, value) = item?;
            let seq = key::last_seq(&row_key).ok_or(StoreError::Damaged("a row's key"))?;
            let row: SeqRow = decode(&value, "a row")?;
            let live = self.live(snapshot.as_ref(), &row)?;
            bytes += row.id.len() + live.as_ref().map_or(0, |live| live.body.json.len());
            rows.push(IndexRow { seq, id: row.id, live });
        }
        Ok(IndexPage { rows, until: state.seq.max(since), is_last: true })
    }

    fn live(&self, snapshot: &dyn Snapshot, row: &SeqRow) -> Result<Option<IndexLive>, StoreError> {
        let Some(winner) = row.leaves.first().filter(|leaf| !leaf.deleted) else { return Ok(None) };
        let Some(at) = winner.body else { return Ok(None) };
        let value = snapshot.get(Space::Bodies, &key::seq(self.inner().id, at))?;
        let Some(value) = value else {
            // One damaged document must not keep the others out of every index.
            tracing::error!(db = self.name(), id = row.id, "the content of a document's winner is not there");
            return Ok(None);
        };
        let (attachments, json) = decode_body(&value)?;
        let (rev, body) = (winner.rev.clone(), Body { attachments, json });
        let (place, leaves) = match self.kind() {
            DbKind::Plain => (None, row.leaves.clone()),
            DbKind::App => {
                let app = self.inner().app.read();
                let place = app.part_of_acl(winner.acl);
                // Whoever is in none is an administrator, and sees all.
                (place, place.map_or_else(|| row.leaves.clone(), |part| visible(&app, row.leaves.clone(), part)))
            }
        };
        let (deleted, conflicts): (Vec<Leaf>, Vec<Leaf>) = leaves.into_iter().skip(1).partition(|leaf| leaf.deleted);
        let revs = |leaves: Vec<Leaf>| leaves.into_iter().map(|leaf| leaf.rev).collect();
        Ok(Some(IndexLive { rev, body, place, conflicts: revs(conflicts), deleted_conflicts: revs(deleted) }))
    }

    /// The documents that were purged after so many purges. `None`: that is longer ago than purges are remembered,
    /// or was not in this database's life.
    ///
    /// # Errors
    /// The engine failed, or the database is gone.
    pub fn purges_after(&self, purges: u64) -> Result<Option<Purges>, StoreError> {
        self.present()?;
        if self.newest().purges == purges {
            return Ok(Some(Purges { until: purges, gone: Vec::new() }));
        }
        let (snapshot, state) = self.durable_snapshot()?;
        if state.purges < purges || state.purges - purges > PURGED_INFOS {
            return Ok(None);
        }
        let id = self.inner().id;
        let (lo, hi) = (key::purged(id, purges + 1), key::purged(id, state.purges + 1));
        let entries: Vec<(Value, Value)> =
            snapshot.range(Space::Meta, &lo, &hi, Direction::Forward).collect::<Result<_, _>>()?;
        if entries.len() as u64 != state.purges - purges {
            // Some were made by a version that did not note them.
            return Ok(None);
        }
        let mut gone = Vec::new();
        for (_, doc_id) in entries {
            let doc_id = String::from_utf8(doc_id.to_vec()).map_err(|_| StoreError::Damaged("a purged id"))?;
            if snapshot.get(Space::Docs, &key::doc(id, &doc_id))?.is_none() {
                gone.push(doc_id);
            }
        }
        Ok(Some(Purges { until: state.purges, gone }))
    }

    /// The partial databases whose documents a scope shows, at this moment; `None`: it shows all documents.
    pub fn parts_in(&self, scope: &Scope) -> Option<Vec<PartNo>> {
        let app = self.inner().app.read();
        match scope {
            Scope::All => None,
            Scope::Part(reader, part) => Some(if app.may_read(reader, Some(*part)) { vec![*part] } else { Vec::new() }),
            Scope::Personal(reader) => Some(app.parts_of(reader)),
        }
    }

    /// A view of a moment, and this database's counts in it, once all that it shows is durable.
    fn durable_snapshot(&self) -> Result<(Box<dyn Snapshot>, DbState), StoreError> {
        let (snapshot, _) = self.inner().store.durable_snapshot()?;
        let state = snapshot.get(Space::Meta, &key::state(self.inner().id))?;
        // Without one it was deleted in the meantime.
        let state: DbState = decode(&state.ok_or(StoreError::Gone)?, "a database's counts")?;
        Ok((snapshot, state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Author, Edit, Mode, NoObserver, Store, StoreKeys, Write};
    use std::sync::{Arc, mpsc};

    fn store(dir: &std::path::Path) -> Store {
        let engine = Box::new(crate::engine::memory::MemoryEngine::new());
        Store::open_on(engine, dir, StoreKeys { chain: [1; 32], bookmark: [2; 32] }, Arc::new(NoObserver)).unwrap()
    }

    fn put(db: &Db, id: &str, parent: Option<Rev>, deleted: bool) -> Rev {
        let (history, attachments) = (Vec::new(), Vec::new());
        let body = r#"{"a":1}"#.into();
        let edit = Edit { id: id.to_owned(), parent, history, deleted, body, access: None, attachments };
        let (sender, receiver) = mpsc::channel();
        let write = Write { edits: vec![edit], author: Author::admin(Default::default()), mode: Mode::Interactive };
        db.submit(write, Box::new(move |done| sender.send(done).unwrap()));
        receiver.recv().unwrap().unwrap().remove(0).unwrap().rev
    }

    fn purge(db: &Db, id: &str, rev: &Rev) {
        let (sender, receiver) = mpsc::channel();
        db.purge(id, std::slice::from_ref(rev), Box::new(move |done| sender.send(done).unwrap()));
        assert_eq!(receiver.recv().unwrap().unwrap(), std::slice::from_ref(rev));
    }

    #[test]
    fn changes_come_once_with_the_winners_content() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let db = store.create_db("d", DbKind::Plain).unwrap();
        for id in ["a", "b", "c"] {
            put(&db, id, None, false);
        }
        let rev = put(&db, "d", None, false);
        put(&db, "d", Some(rev), true);
        let first = db.indexable(0, 2, 1 << 20).unwrap();
        assert_eq!(first.rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(first.until, first.rows[1].seq);
        assert!(!first.is_last);
        let rest = db.indexable(first.until, 100, 1 << 20).unwrap();
        assert_eq!(rest.rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["c", "d"]);
        assert_eq!(&rest.rows[0].live.as_ref().unwrap().body.json[..], br#"{"a":1}"#);
        assert!(rest.rows[1].live.is_none() && rest.is_last);
        assert_eq!((rest.until, 0), (db.newest().seq, db.newest().purges));
        // At least one row, however large.
        assert_eq!(db.indexable(0, 100, 0).unwrap().rows.len(), 1);
        store.delete_db("d").unwrap();
        assert!(matches!(db.indexable(0, 1, 1), Err(StoreError::Gone)));
    }

    #[test]
    fn purges_are_remembered_up_to_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let db = store.create_db("d", DbKind::Plain).unwrap();
        assert_eq!(db.purges_after(0).unwrap(), Some(Purges::default()));
        assert_eq!(db.purges_after(1).unwrap(), None);
        for id in ["a", "b"] {
            let rev = put(&db, id, None, false);
            purge(&db, id, &rev);
        }
        put(&db, "b", None, false);
        let gone = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<String>>();
        assert_eq!(db.purges_after(0).unwrap(), Some(Purges { until: 2, gone: gone(&["a"]) }));
        assert_eq!(db.purges_after(1).unwrap(), Some(Purges { until: 2, gone: gone(&[]) }));
        for _ in 0..PURGED_INFOS {
            let rev = put(&db, "c", None, false);
            purge(&db, "c", &rev);
        }
        assert_eq!(db.purges_after(1).unwrap(), None);
        assert_eq!(db.purges_after(2).unwrap().unwrap().gone.len(), PURGED_INFOS as usize);
        let prefix = key::purged(db.inner().id, 0);
        let kept = db.inner().store.engine.snapshot();
        let kept = kept.range(Space::Meta, &prefix, &key::after(&prefix[..prefix.len() - 8]), Direction::Forward);
        assert_eq!(kept.count(), PURGED_INFOS as usize);
    }
}
