//! Applying an edit, on the writer thread: the one path that every write takes.
//!
//! An edit either stages everything that it needs (document, row, body, partial databases, counts) or, when
//! it is refused, nothing.

use crate::authors::{SOMEBODY, Wrote};
use crate::base::base_on;
use crate::db::{Db, DbKind};
use crate::document::{access_member, with_access};
use crate::edit::{Author, Base, Edit, Mode, Write, Written};
use crate::engine::{Space, Value};
use crate::error::{StoreError, WriteError};
use crate::feed::Change;
use crate::known::{known_already, was_made_here};
use crate::partitioned::Full;
use crate::record::{
    AclNo, Attachment, DocRecord, Leaf, PartNo, Seq, SeqRow, decode, decode_body, encode, encode_body, key,
};
use crate::rev::{MAX_GENERATION, Rev};
use crate::rights::{Admitted, admit};
use crate::tree::{Merged, RevTree};
use crate::writer::Tx;

/// What `submit` calls when the edits are durable: one result an edit, in order.
pub type Done = Box<dyn FnOnce(Result<Vec<Result<Written, WriteError>>, StoreError>) + Send>;

/// Live leaves that a document can have. In normal operation it has one; pods that merge after a split go beyond.
const MAX_LEAVES: usize = 200;

/// Names of revisions that a branch keeps, whatever `_revs_limit` says of what clients are shown: the default of that.
/// A pod that is more edits behind than there are names can't tell that what it has was replaced: it would keep that as
/// a branch, give it to the others, and show it again once the document is deleted.
const LEAST_NAMES: usize = 1_000;

impl Db {
    /// Hands edits to the writer. `done` is called on the writer thread: it must not block.
    pub fn submit(&self, write: Write, done: Done) {
        self.submit_validated(write, Vec::new(), done);
    }

    /// As [`Db::submit`], for edits of which some were validated: what [`Db::base`] said of each, in their order. One
    /// that stands on something else by now is refused ([`WriteError::Overtaken`]).
    pub fn submit_validated(&self, write: Write, bases: Vec<Option<Base>>, done: Done) {
        let db = self.clone();
        let job = Box::new(move |tx: &mut Tx<'_>| -> crate::writer::After {
            let Write { edits, author, mode } = write;
            let full = match mode {
                Mode::Interactive => tx.full_partitions(&db, &edits),
                Mode::Replicated => Ok(Full::new()),
            };
            let full = full.unwrap_or_else(|error| {
                tx.fail(error);
                Full::new()
            });
            let bases = bases.into_iter().chain(std::iter::repeat(None));
            let edits = edits.into_iter().zip(bases);
            let results: Vec<_> = edits
                .map(|(edit, base)| {
                    tx.validated_edit(&db, edit, &author, mode, Checked { base: base.as_ref(), full: &full })
                })
                .collect();
            Box::new(move |committed| done(committed.map(|()| results)))
        });
        // Nobody takes the job of a store that is closing: then `done` is dropped with it, and the caller,
        // who waits for it, sees that.
        let _ = self.inner().store.submit(job);
    }
}

/// What an edit is checked against, besides the document.
#[derive(Clone, Copy)]
struct Checked<'a> {
    /// What it stood on when it was validated, if it was.
    base: Option<&'a Base>,
    /// Partitions that take no more.
    full: &'a Full,
}

/// A document as it is about to become.
struct Draft {
    record: DocRecord,
    rev: Rev,
    /// Whether the edit's body is to be stored; not if only history came.
    with_body: bool,
}

impl Tx<'_> {
    /// An edit that nobody has validated.
    pub(crate) fn edit(&mut self, db: &Db, edit: Edit, author: &Author, mode: Mode) -> Result<Written, WriteError> {
        self.validated_edit(db, edit, author, mode, Checked { base: None, full: &Full::new() })
    }

    fn validated_edit(
        &mut self,
        db: &Db,
        edit: Edit,
        author: &Author,
        mode: Mode,
        checked: Checked<'_>,
    ) -> Result<Written, WriteError> {
        let result = self.try_edit(db, edit, author, mode, checked);
        if let Err(WriteError::Store(error)) = &result
            && !matches!(error, StoreError::Gone)
        {
            // It may have staged a part of itself.
            self.fail(error.clone());
        }
        result
    }

    fn try_edit(
        &mut self,
        db: &Db,
        mut edit: Edit,
        author: &Author,
        mode: Mode,
        checked: Checked<'_>,
    ) -> Result<Written, WriteError> {
        db.present()?;
        let doc_key = key::doc(db.inner().id, &edit.id);
        let old = self.doc_record(&doc_key)?;
        if mode == Mode::Replicated
            && let Some(written) = known_already(db, old.as_ref(), &edit, author, &|seq| self.body(db, seq))?
        {
            return Ok(written);
        }
        let parent = parent_of(db, old.as_ref(), &edit, mode);
        let admitted = match db.kind() {
            DbKind::Plain => Admitted::Number(0),
            DbKind::App => admit(db, old.as_ref(), &edit, author, mode, parent.as_deref().ok())?,
        };
        let parent = parent?;
        let no_tree = RevTree::new();
        let tree = old.as_ref().map_or(&no_tree, |old| &old.tree);
        check_leaves(tree, &parent, author, mode)?;
        // After the author's rights: nobody learns by it that there is a document that they can't read.
        if checked.base.is_some_and(|then| !then.is_same(&base_on(db, tree, &edit, &parent, author, mode))) {
            return Err(WriteError::Overtaken);
        }
        // All that can be refused is, before anything is staged or numbered.
        let attachments = self.resolve(db, tree, &edit, &parent, author, mode)?;
        self.check_partition(db, checked.full, tree, &edit, parent.first(), &attachments)?;
        let acl = self.number(db, admitted, author)?;
        say_access(db, &mut edit, acl);
        let draft = match mode {
            Mode::Interactive => self.draft_interactive(db, old.as_ref(), &edit, parent, acl, &attachments)?,
            Mode::Replicated => match self.draft_replicated(db, old.as_ref(), &edit, &parent, acl, author)? {
                Some(draft) => draft,
                None => {
                    let rev = edit.history.first().cloned().ok_or(WriteError::Conflict)?;
                    return Ok(Written { id: edit.id, rev, changed: false, diverged: false });
                }
            },
        };
        let Draft { mut record, rev, with_body } = draft;
        if db.kind() == DbKind::App {
            db.inner().chain.close_overtaken(&edit.id, &mut record.tree);
        }
        let gone = self.leaf_bytes(db, &edit.id, old.as_ref(), Some(&record))?;
        self.stem(db, &edit.id, &mut record)?;
        if with_body {
            let attachments = self.take_up(db, &edit, attachments)?;
            let bytes = edit.body.len() as u64;
            self.state(db).bytes += bytes;
            self.count_partition(db, &edit.id, |partition| partition.bytes += bytes)?;
            let value = encode_body(&attachments, &edit.body);
            self.put(Space::Bodies, key::seq(db.inner().id, record.seq), value);
        }
        let came = self.leaf_bytes(db, &edit.id, Some(&record), old.as_ref())?;
        self.count_external(db, &edit.id, gone, came)?;
        let by = self.written_by(db, &edit.id, &record.tree, &rev, author, mode)?;
        let diverged = mode == Mode::Replicated && live_leaves(tree) <= 1 && live_leaves(&record.tree) > 1;
        let wrote = Wrote { rev: &rev, by: by.as_deref() };
        self.store_doc(db, &edit.id, old.as_ref(), record, Some(wrote))?;
        Ok(Written { id: edit.id, rev, changed: true, diverged })
    }

    pub(crate) fn doc_record(&self, doc_key: &[u8]) -> Result<Option<DocRecord>, StoreError> {
        self.get(Space::Docs, doc_key)?.map(|value| decode(&value, "a document")).transpose()
    }

    fn body(&self, db: &Db, at: Seq) -> Result<Option<Value>, StoreError> {
        self.get(Space::Bodies, &key::seq(db.inner().id, at))
    }

    /// The user who wrote a revision, or [`SOMEBODY`]; `None`: nobody who keeps what they wrote on a device.
    fn written_by(
        &self,
        db: &Db,
        id: &str,
        tree: &RevTree,
        rev: &Rev,
        author: &Author,
        mode: Mode,
    ) -> Result<Option<String>, StoreError> {
        if !author.admin {
            return Ok(author.name().map(str::to_owned));
        }
        if mode == Mode::Interactive || db.kind() == DbKind::Plain {
            return Ok(None);
        }
        // From another pod, or from an administrator's device: it is a device's if the store did not name it.
        let made_here = match tree.find(rev) {
            Some(index) => {
                chain_made(db, id, tree, index) || was_made_here(db, id, tree, index, &|seq| self.body(db, seq))?
            }
            None => true,
        };
        Ok((!made_here).then(|| SOMEBODY.to_owned()))
    }

    fn draft_interactive(
        &mut self,
        db: &Db,
        old: Option<&DocRecord>,
        edit: &Edit,
        parent: Vec<Rev>,
        acl: AclNo,
        attachments: &[Attachment],
    ) -> Result<Draft, WriteError> {
        let mut record = old.cloned().unwrap_or_default();
        let rev = name_of(db, &edit.id, parent.first(), edit.deleted, &edit.body, attachments);
        let mut history = vec![rev.clone()];
        history.extend(parent);
        let seq = self.next_seq();
        if let Merged::Known(_) | Merged::Grafted(_) = record.tree.merge(&history, edit.deleted, Some(seq), acl) {
            // The same edit of the same parent stands on another branch.
            return Err(WriteError::Conflict);
        }
        record.seq = seq;
        Ok(Draft { record, rev, with_body: true })
    }

    /// `None`: the revision was known, nothing is to be stored.
    fn draft_replicated(
        &mut self,
        db: &Db,
        old: Option<&DocRecord>,
        edit: &Edit,
        parent: &[Rev],
        acl: AclNo,
        author: &Author,
    ) -> Result<Option<Draft>, WriteError> {
        let mut record = old.cloned().unwrap_or_default();
        let Some(rev) = edit.history.first().cloned() else {
            return Err(WriteError::BadRequest("a replicated revision needs a `_rev`".to_owned()));
        };
        let seq = self.clock.seq + 1;
        let history = taken_history(db, &record.tree, edit, parent, author);
        let with_body = match record.tree.merge(&history, edit.deleted, Some(seq), acl) {
            Merged::Known(_) => return Ok(None),
            Merged::Grafted(_) => false,
            Merged::Filled(_) | Merged::Extended { .. } | Merged::Branched { .. } => true,
        };
        record.seq = self.next_seq();
        Ok(Some(Draft { record, rev, with_body }))
    }

    fn stem(&mut self, db: &Db, id: &str, record: &mut DocRecord) -> Result<(), StoreError> {
        let limit = usize::try_from(db.revs_limit()).unwrap_or(usize::MAX);
        let mut dropped = record.tree.stem(limit.max(LEAST_NAMES));
        dropped.extend(record.tree.forget_bodies_behind(limit));
        for body in unnamed(dropped, &record.tree) {
            self.drop_body(db, id, body)?;
        }
        Ok(())
    }

    /// Forgets a stored body of a document.
    pub(crate) fn drop_body(&mut self, db: &Db, id: &str, body: Seq) -> Result<(), StoreError> {
        let body_key = key::seq(db.inner().id, body);
        if let Some(value) = self.get(Space::Bodies, &body_key)? {
            let (_, json) = decode_body(&value)?;
            let bytes = json.len() as u64;
            let state = self.state(db);
            state.bytes = state.bytes.saturating_sub(bytes);
            self.count_partition(db, id, |partition| partition.bytes = partition.bytes.saturating_sub(bytes))?;
        }
        self.delete(Space::Bodies, body_key);
        Ok(())
    }

    /// Stages a document's record with its row, its partial databases and the counts. `wrote`: the revision
    /// that it is for, if somebody wrote one.
    pub(crate) fn store_doc(
        &mut self,
        db: &Db,
        id: &str,
        old: Option<&DocRecord>,
        mut record: DocRecord,
        wrote: Option<Wrote<'_>>,
    ) -> Result<(), StoreError> {
        let db_id = db.inner().id;
        let seq = record.seq;
        if let Some(old) = old {
            self.delete(Space::Seqs, key::seq(db_id, old.seq));
        }
        let part_rows = match db.kind() {
            DbKind::Plain => Vec::new(),
            DbKind::App => self.place(db, id, old, &mut record, wrote)?,
        };
        let leaves = leaves_of(&record);
        let deleted = leaves.first().is_none_or(|leaf| leaf.deleted);
        let was_deleted = old.map(|old| old.tree.winner().is_none_or(|w| old.tree.nodes()[w].deleted));
        let state = self.state(db);
        recount(&mut state.docs, &mut state.deleted, was_deleted, deleted);
        let prev = std::mem::replace(&mut state.seq, seq);
        self.count_partition(db, id, |partition| {
            recount(&mut partition.docs, &mut partition.deleted, was_deleted, deleted);
        })?;
        let row = SeqRow { id: id.to_owned(), leaves };
        self.put(Space::Seqs, key::seq(db_id, seq), encode(&row));
        self.put(Space::Docs, key::doc(db_id, id), encode(&record));
        self.changed(db, Change::new(seq, prev, row, record.place, part_rows));
        Ok(())
    }
}

/// Counts a document that was there, deleted or not, or was not, as what it is now.
fn recount(docs: &mut u64, deleted: &mut u64, was_deleted: Option<bool>, is_deleted: bool) {
    match was_deleted {
        Some(true) => *deleted = deleted.saturating_sub(1),
        Some(false) => *docs = docs.saturating_sub(1),
        None => {}
    }
    *(if is_deleted { deleted } else { docs }) += 1;
}

/// Whether a revision is a successor or a closing.
fn chain_made(db: &Db, id: &str, tree: &RevTree, index: usize) -> bool {
    let chain = &db.inner().chain;
    let parent = tree.ancestors(index).next().map(|parent| &tree.nodes()[parent].rev);
    parent.is_some_and(|parent| chain.successor(id, parent) == tree.nodes()[index].rev)
        || chain.is_closing(id, tree, index)
}

/// The name that the store gives to a revision.
pub(crate) fn name_of(
    db: &Db,
    id: &str,
    parent: Option<&Rev>,
    deleted: bool,
    body: &[u8],
    attachments: &[Attachment],
) -> Rev {
    let digests = attachments.iter().map(|a| (a.name.as_str(), a.content_type.as_str(), &a.digest_md5[..]));
    let rev = Rev::next(parent, deleted, body, digests);
    match db.kind() {
        DbKind::Plain => rev,
        DbKind::App => db.inner().chain.veil(id, &rev),
    }
}

/// The history below an interactive edit, newest first; empty for a first revision.
fn interactive_parent(db: &Db, old: Option<&DocRecord>, edit: &Edit) -> Result<Vec<Rev>, WriteError> {
    let Some(record) = old else {
        return if edit.parent.is_some() { Err(WriteError::Conflict) } else { Ok(Vec::new()) };
    };
    let tree = &record.tree;
    let Some(parent) = &edit.parent else {
        return match tree.winner() {
            Some(winner) if tree.nodes()[winner].deleted && !edit.deleted => Ok(tree.path(winner)),
            None => Ok(Vec::new()),
            Some(_) => Err(WriteError::Conflict),
        };
    };
    if let Some(index) = tree.find(parent) {
        let again = tree.nodes()[index].deleted && edit.deleted;
        let leaf = leaf_of(db, &edit.id, tree, index).filter(|_| !again);
        return leaf.map(|leaf| tree.path(leaf)).ok_or(WriteError::Conflict);
    }
    Err(WriteError::Conflict)
}

/// The leaf that an edit of a revision extends: the revision itself, or the live one that the store gave it as
/// successor (see `chain`).
pub(crate) fn leaf_of(db: &Db, id: &str, tree: &RevTree, index: usize) -> Option<usize> {
    let mut at = index;
    while !tree.is_leaf(at) {
        let successor = db.inner().chain.successor(id, &tree.nodes()[at].rev);
        at = tree.find(&successor).filter(|next| *next > at)?;
    }
    (at == index || !tree.nodes()[at].deleted).then_some(at)
}

/// The history below an edit, newest first.
pub(crate) fn parent_of(db: &Db, old: Option<&DocRecord>, edit: &Edit, mode: Mode) -> Result<Vec<Rev>, WriteError> {
    match mode {
        Mode::Interactive => interactive_parent(db, old, edit),
        Mode::Replicated => Ok(replicated_parent(old, edit)),
    }
}

/// The history that a replicated edit is taken in with.
pub(crate) fn taken_history(db: &Db, tree: &RevTree, edit: &Edit, parent: &[Rev], author: &Author) -> Vec<Rev> {
    let mut history = edit.history.clone();
    let below = parent.first().and_then(|rev| tree.find(rev));
    if let Some(index) = below.filter(|_| !author.admin && db.kind() == DbKind::App) {
        // What lies below the revision that a user extends is for the tree to say: a claim about it could
        // join branches that are not theirs.
        let at = history.iter().position(|rev| *rev == tree.nodes()[index].rev);
        history.truncate(at.unwrap_or(history.len()));
        history.extend(tree.path(index));
    }
    history
}

/// The part of a replicated history that the tree knows, from the newest such revision down; empty if none.
fn replicated_parent(old: Option<&DocRecord>, edit: &Edit) -> Vec<Rev> {
    let Some(record) = old else { return Vec::new() };
    let ancestors = edit.history.get(1..).unwrap_or_default();
    let known = ancestors.iter().position(|rev| record.tree.find(rev).is_some());
    known.map(|at| ancestors[at..].to_vec()).unwrap_or_default()
}

/// Whether this is the tombstone of a revision that the document has or had.
pub(crate) fn recognised(db: &Db, id: &str, record: &DocRecord, rev: &Rev) -> bool {
    base_of(db, id, record, rev).is_some()
}

/// The stored revision whose tombstone this is.
pub(crate) fn base_of(db: &Db, id: &str, record: &DocRecord, rev: &Rev) -> Option<usize> {
    let nodes = record.tree.nodes().iter();
    let is_base = |rev_of: &Rev| db.inner().chain.is_tomb(id, rev_of, rev);
    nodes.enumerate().find(|(_, node)| is_base(&node.rev)).map(|(index, _)| index)
}

/// Of bodies that some revisions have let go of, those that no other names: a revision and its successor (see
/// `chain`) have one body.
pub(crate) fn unnamed(mut dropped: Vec<u64>, tree: &RevTree) -> Vec<u64> {
    dropped.sort_unstable();
    dropped.dedup();
    dropped.retain(|body| tree.nodes().iter().all(|node| node.body != Some(*body)));
    dropped
}

/// Refuses one more branch where there are too many: every row of a feed names all leaves.
pub(crate) fn check_leaves(tree: &RevTree, parent: &[Rev], author: &Author, mode: Mode) -> Result<(), WriteError> {
    let top_is_full = mode == Mode::Interactive && parent.first().is_some_and(|rev| rev.generation >= MAX_GENERATION);
    if top_is_full {
        // A child would have its parent's generation, and be a branch.
        return Err(WriteError::Forbidden("This document can have no more revisions.".to_owned()));
    }
    let extends = parent.iter().find_map(|rev| tree.find(rev)).is_some_and(|index| tree.is_leaf(index));
    let replicates = author.admin && mode == Mode::Replicated;
    if extends || replicates || tree.nodes().len() < MAX_LEAVES || live_leaves(tree) < MAX_LEAVES {
        return Ok(());
    }
    Err(WriteError::Forbidden(format!("This document has {MAX_LEAVES} conflicting revisions: resolve some first.")))
}

fn live_leaves(tree: &RevTree) -> usize {
    tree.leaves().into_iter().filter(|leaf| !tree.nodes()[*leaf].deleted).count()
}

pub(crate) fn leaves_of(record: &DocRecord) -> Vec<Leaf> {
    let leaf = |index: usize| {
        let node = &record.tree.nodes()[index];
        let ended = record.ended.iter().find(|(rev, _)| *rev == node.rev).map_or(0, |(_, since)| *since);
        Leaf { rev: node.rev.clone(), deleted: node.deleted, body: node.body, acl: node.acl, ended }
    };
    record.tree.leaves().into_iter().map(leaf).collect()
}

/// Writes into a deletion that says nothing of its readers and writers who they are: those of what it deletes. So it
/// is placed where its document was on every pod, also on one that never had that document, and the id stays its
/// writers' there.
fn say_access(db: &Db, edit: &mut Edit, acl: AclNo) {
    if !edit.deleted || edit.access.is_some() || acl == 0 || db.kind() == DbKind::Plain {
        return;
    }
    if let [rev, parent, ..] = edit.history.as_slice()
        && db.inner().chain.closing(&edit.id, parent) == *rev
    {
        // Pods make these for themselves: they have no body that would be the same on all.
        return;
    }
    if let Some(access) = db.inner().app.read().access_of(acl)
        && access_member(&edit.body).is_none()
    {
        edit.body = with_access(&edit.body, &access.to_text()).into();
    }
}

/// The partial database that a tree's winner belongs to. Of a deleted document the best leaf decides that says by
/// its access where the document was; if none does, it stays where it was here.
pub(crate) fn place_of(db: &Db, id: &str, tree: &RevTree, old: Option<&DocRecord>) -> Option<PartNo> {
    let app = db.inner().app.read();
    let winner = tree.winner()?;
    if !tree.nodes()[winner].deleted {
        return app.part_of_acl(tree.nodes()[winner].acl);
    }
    let says = |leaf: &usize| tree.nodes()[*leaf].acl != 0 && !db.inner().chain.is_closing(id, tree, *leaf);
    match tree.leaves().into_iter().find(says) {
        Some(leaf) => app.part_of_acl(tree.nodes()[leaf].acl),
        None => old.and_then(|old| old.place),
    }
}
