//! Reading documents as somebody in particular.

use crate::app::{AppState, Reader};
use crate::apply::{base_of, leaves_of};
use crate::db::Db;
use crate::engine::Space;
use crate::error::StoreError;
use crate::partition::visible;
use crate::record::{Attachment, DocRecord, Leaf, PartNo, Seq, decode, decode_body, key};
use crate::rev::Rev;
use crate::tree::RevTree;
use bytes::Bytes;
use std::sync::Arc;

/// What of a database is looked at, and by whom.
#[derive(Clone)]
pub enum Scope {
    /// All of it: plain databases, and administrators in an app's.
    All,
    /// One partial database.
    Part(Arc<Reader>, PartNo),
    /// All that this reader may read.
    Personal(Arc<Reader>),
}

/// Where a body is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyRef(pub(crate) Seq);

/// A revision's content.
#[derive(Debug, Clone)]
pub struct Body {
    /// Its attachments.
    pub attachments: Vec<Attachment>,
    /// The members that don't begin with `_`, as JSON object.
    pub json: Bytes,
}

/// A revision as a reader sees it.
#[derive(Debug, Clone)]
pub struct RevView {
    /// Its name for this reader.
    pub rev: Rev,
    /// Whether it is a tombstone.
    pub deleted: bool,
    /// Its content; `None`: it has none to show.
    pub body: Option<BodyRef>,
    node: usize,
    /// It is the made-up tombstone of the stored revision `node`.
    tomb: bool,
}

/// A document as a reader sees it.
#[derive(Clone)]
pub struct DocView {
    /// The document.
    pub id: String,
    /// Its latest change, as clients see it ([`Db::shown_seq`]).
    pub seq: Seq,
    /// The leaves that the reader may see, winner first; never empty.
    pub leaves: Vec<RevView>,
    db: Db,
    reader: Option<Arc<Reader>>,
    tree: RevTree,
}

/// What a replicator asks before it sends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevsDiff {
    /// Those that are not here.
    pub missing: Vec<Rev>,
    /// Leaves that may be their ancestors.
    pub possible_ancestors: Vec<Rev>,
}

impl Scope {
    pub(crate) fn reader(&self) -> Option<&Arc<Reader>> {
        match self {
            Scope::All => None,
            Scope::Part(reader, _) | Scope::Personal(reader) => Some(reader),
        }
    }

    /// Whether documents in this partial database (or in none) are in the scope.
    pub(crate) fn shows(&self, app: &AppState, place: Option<PartNo>) -> bool {
        match self {
            Scope::All => true,
            Scope::Part(reader, part) => place == Some(*part) && app.may_read(reader, place),
            Scope::Personal(reader) => app.may_read(reader, place),
        }
    }
}

impl Db {
    pub(crate) fn record(&self, id: &str) -> Result<Option<DocRecord>, StoreError> {
        self.present()?;
        let value = self.inner().store.engine.get(Space::Docs, &key::doc(self.inner().id, id))?;
        value.map(|value| decode(&value, "a document")).transpose()
    }

    /// A document. `None`: there is none for this reader; whether it is missing or not theirs looks the same.
    ///
    /// # Errors
    /// The engine failed.
    pub fn doc(&self, scope: &Scope, id: &str) -> Result<Option<DocView>, StoreError> {
        Ok(self.record(id)?.and_then(|record| self.view(scope, id, record)))
    }

    fn view(&self, scope: &Scope, id: &str, record: DocRecord) -> Option<DocView> {
        let app = self.inner().app.read();
        if !scope.shows(&app, record.place) {
            return None;
        }
        let leaves = leaves_of(&record);
        let show = |leaf: &Leaf, with_body: bool| {
            Some(RevView {
                rev: leaf.rev.clone(),
                deleted: leaf.deleted,
                body: leaf.body.filter(|_| with_body).map(BodyRef),
                node: record.tree.find(&leaf.rev)?,
                tomb: false,
            })
        };
        let leaves: Vec<RevView> = match (scope.reader(), record.place) {
            (Some(reader), Some(place)) => visible(&app, leaves, place)
                .iter()
                .filter_map(|leaf| show(leaf, app.may_read_acl(reader, leaf.acl)))
                .collect(),
            _ => leaves.iter().filter_map(|leaf| show(leaf, true)).collect(),
        };
        if leaves.is_empty() {
            return None;
        }
        drop(app);
        Some(DocView {
            id: id.to_owned(),
            seq: self.shown_seq(record.seq),
            leaves,
            db: self.clone(),
            reader: scope.reader().cloned(),
            tree: record.tree,
        })
    }

    /// One revision, if this reader may fetch it: a leaf, an older one that was theirs to read as the
    /// present one is, or the tombstone that tells them of a document's leaving.
    ///
    /// # Errors
    /// The engine failed.
    pub fn revision(&self, scope: &Scope, id: &str, rev: &Rev) -> Result<Option<(DocView, RevView)>, StoreError> {
        let Some(record) = self.record(id)? else { return Ok(None) };
        let stored = record.tree.find(rev);
        if stored.is_none()
            && scope.reader().is_some()
            && let Some(node) = base_of(self, id, &record, rev)
        {
            // Whoever names it was shown it: it can't be guessed.
            let tomb = RevView { rev: rev.clone(), deleted: true, body: None, node, tomb: true };
            let view = DocView {
                id: id.to_owned(),
                seq: self.shown_seq(record.seq),
                leaves: vec![tomb.clone()],
                db: self.clone(),
                reader: scope.reader().cloned(),
                tree: record.tree,
            };
            return Ok(Some((view, tomb)));
        }
        let Some(view) = self.view(scope, id, record) else { return Ok(None) };
        let found = stored.and_then(|node| view.at(node));
        Ok(found.map(|found| (view, found)))
    }

    /// A revision's content; `None`: it was compacted away.
    ///
    /// # Errors
    /// The engine failed.
    pub fn body(&self, at: BodyRef) -> Result<Option<Body>, StoreError> {
        self.present()?;
        let value = self.inner().store.engine.get(Space::Bodies, &key::seq(self.inner().id, at.0))?;
        let Some(value) = value else { return Ok(None) };
        let (attachments, json) = decode_body(&value)?;
        Ok(Some(Body { attachments, json }))
    }

    /// Which of these revisions are not here.
    ///
    /// # Errors
    /// The engine failed.
    pub fn revs_diff(&self, scope: &Scope, id: &str, revs: &[Rev]) -> Result<RevsDiff, StoreError> {
        let Some(record) = self.record(id)? else {
            return Ok(RevsDiff { missing: revs.to_vec(), possible_ancestors: Vec::new() });
        };
        let shown = scope.shows(&self.inner().app.read(), record.place);
        let is_here = |rev: &&Rev| {
            let in_tree = shown && record.tree.find(rev).is_some();
            // A made-up revision counts as known to whoever has it, so that it is not sent back.
            in_tree || (scope.reader().is_some() && base_of(self, id, &record, rev).is_some())
        };
        let missing: Vec<Rev> = revs.iter().filter(|rev| !is_here(rev)).cloned().collect();
        let highest = missing.iter().map(|rev| rev.generation).max().unwrap_or(0);
        let mut possible_ancestors = Vec::new();
        if highest > 0
            && let Some(view) = self.view(scope, id, record)
        {
            let lower = view.leaves.iter().filter(|leaf| leaf.rev.generation < highest);
            possible_ancestors = lower.map(|leaf| leaf.rev.clone()).collect();
        }
        Ok(RevsDiff { missing, possible_ancestors })
    }
}

impl DocView {
    /// The revision that a read without one gets.
    pub fn winner(&self) -> &RevView {
        &self.leaves[0]
    }

    /// A revision's name and those of its ancestors, newest first: what `_revisions` lists.
    pub fn history(&self, rev: &RevView) -> Vec<Rev> {
        let mut history = self.tree.path(rev.node);
        if rev.tomb {
            history.insert(0, rev.rev.clone());
        }
        history
    }

    /// How many revisions of a history clients are shown, at most: `_revs_limit`.
    pub fn shown_revs(&self) -> usize {
        usize::try_from(self.db.revs_limit()).unwrap_or(usize::MAX)
    }

    /// What `_revs_info` lists: each revision of the history with `available`, `missing` or `deleted`.
    pub fn revs_info(&self, rev: &RevView) -> Vec<(Rev, &'static str)> {
        let app = self.db.inner().app.read();
        let status = |rev: Rev| {
            let Some(node) = self.tree.find(&rev) else { return (rev, "missing") };
            let node = &self.tree.nodes()[node];
            let readable = self.reader.as_ref().is_none_or(|reader| app.may_read_acl(reader, node.acl));
            match (node.body, node.deleted) {
                (Some(_), true) if readable => (rev, "deleted"),
                (Some(_), false) if readable => (rev, "available"),
                _ => (rev, "missing"),
            }
        };
        self.history(rev).into_iter().map(status).collect()
    }

    /// The leaves that descend from a revision, or are it.
    pub fn latest(&self, rev: &RevView) -> Vec<RevView> {
        let below = |leaf: &&RevView| leaf.node == rev.node || self.tree.descends(leaf.node, rev.node);
        self.leaves.iter().filter(below).cloned().collect()
    }

    /// The stored revision `node`, if it is one that this reader may have.
    fn at(&self, node: usize) -> Option<RevView> {
        if let Some(leaf) = self.leaves.iter().find(|leaf| leaf.node == node) {
            return Some(leaf.clone());
        }
        let stored = &self.tree.nodes()[node];
        let app = self.db.inner().app.read();
        let readable = self.reader.as_ref().is_none_or(|reader| app.may_read_acl(reader, stored.acl));
        let body = stored.body.filter(|_| readable)?;
        let rev = stored.rev.clone();
        Some(RevView { rev, deleted: stored.deleted, body: Some(BodyRef(body)), node, tomb: false })
    }
}
