//! Moves of documents between partial databases, and the instructions that are written of them.
//!
//! A move is one commit here (see `partition`). The write master's instruction of it, a document of `_ring`, is
//! written in the same commit, so that no move is without its record and no record without its move. What an
//! instruction says is the server's affair: the store asks an [`Instructor`] for it.

use crate::access::Signature;
use crate::app::AppState;
use crate::db::{Db, DbKind};
use crate::edit::{Author, Edit, Mode};
use crate::engine::Space;
use crate::error::{StoreError, WriteError};
use crate::record::{DocRecord, PartNo, key};
use crate::rev::Rev;
use crate::store::Store;
use crate::writer::Tx;
use std::sync::Arc;

/// The database that instructions are written to.
const RING: &str = "_ring";
/// Moves that an instructor is given at a time: an instruction of them stays below 256 KiB or so, even if a
/// repartition or a large bulk write puts tens of thousands of moves into one commit.
const MOVES_AT_A_TIME: usize = 1_000;

/// A document has left a partial database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The app's database.
    pub db: String,
    /// The document.
    pub id: String,
    /// The signature of the partial database that it left.
    pub from: String,
    /// The signature of the one that it is in now; `None`: of none, only administrators read it.
    pub to: Option<String>,
    /// The winning revision after it.
    pub rev: Rev,
}

/// Makes the records of moves.
pub trait Instructor: Send + Sync {
    /// Gives new documents for `_ring` (id, and JSON object without members that begin with `_`), which are written
    /// in the commit that makes these moves. Called on the writer thread before the commit, for each thousand moves
    /// of it, in their order: it must not block, and not ask the store to write.
    fn instruct(&self, moves: &[Move]) -> Vec<(String, Vec<u8>)>;
}

impl Store {
    /// Has moves recorded from the next commit on, or no longer.
    pub fn set_instructor(&self, instructor: Option<Arc<dyn Instructor>>) {
        *self.inner().instructor.write() = instructor;
    }
}

impl Tx<'_> {
    /// Notes that a document leaves a partial database.
    pub(crate) fn note_move(&mut self, db: &Db, id: &str, from: PartNo, to: Option<PartNo>, record: &DocRecord) {
        if self.instructor.is_none() {
            return;
        }
        let app = db.inner().app.read();
        let (Some(from), Some(winner)) = (signature(&app, from), record.tree.winner()) else { return };
        let to = to.and_then(|to| signature(&app, to));
        let rev = record.tree.nodes()[winner].rev.clone();
        self.moves.push(Move { db: db.name().to_owned(), id: id.to_owned(), from, to, rev });
    }

    /// Stages the records of this group's moves, as its last work.
    pub(crate) fn instruct(&mut self) {
        let Some(instructor) = self.instructor.clone() else { return };
        let moves = std::mem::take(&mut self.moves);
        if moves.is_empty() {
            return;
        }
        let ring = self.store.dbs.read().get(RING).cloned();
        let Some(ring) = ring.filter(|ring| ring.kind() == DbKind::Plain) else {
            tracing::error!(moves = moves.len(), "there is no `{RING}`: moves of documents are not recorded");
            return;
        };
        for some in moves.chunks(MOVES_AT_A_TIME) {
            for (id, body) in instructor.instruct(some) {
                if let Err(error) = self.write_new(&ring, &id, body) {
                    tracing::error!(id, %error, "an instruction was not written");
                }
            }
        }
    }

    fn write_new(&mut self, db: &Db, id: &str, body: Vec<u8>) -> Result<(), WriteError> {
        if self.get(Space::Docs, &key::doc(db.inner().id, id)).map_err(|error| self.fail(error))?.is_some() {
            return Err(WriteError::Conflict);
        }
        let edit = Edit {
            id: id.to_owned(),
            parent: None,
            history: Vec::new(),
            deleted: false,
            body: body.into(),
            access: None,
            attachments: Vec::new(),
        };
        self.edit(db, edit, &Author::admin(Default::default()), Mode::Interactive).map(|_| ())
    }
}

impl Db {
    /// Whether a move is carried out here: the document is not in the partial database of the signature `from`, or
    /// it is there again by a revision that wins over the move's, `rev`.
    ///
    /// # Errors
    /// The engine failed, or the database is gone.
    pub fn move_state(&self, id: &str, from: &str, rev: &Rev) -> Result<bool, StoreError> {
        let Some(record) = self.record(id)? else { return Ok(true) };
        let place = record.place.and_then(|place| signature(&self.inner().app.read(), place));
        let Some(winner) = record.tree.winner().filter(|_| place.as_deref() == Some(from)) else { return Ok(true) };
        let path = record.tree.path(winner);
        // A long history forgets its beginning: what lies that far back can't be missing.
        let forgotten = path.last().is_some_and(|oldest| oldest.generation > rev.generation);
        Ok(path.first() != Some(rev) && (forgotten || record.tree.find(rev).is_some()))
    }
}

fn signature(app: &AppState, part: PartNo) -> Option<String> {
    app.part(part).map(|part| Signature::of(&part.readers).to_string())
}
