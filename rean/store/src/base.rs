//! What an edit stands on, for whoever validates it before it is submitted.
//!
//! It is found by the same steps that the commit takes, without its effects: so the commit can tell whether the document
//! is still what the validator saw.

use crate::apply::{check_leaves, parent_of, taken_history};
use crate::db::{Db, DbKind};
use crate::edit::{Author, Base, Edit, Mode, OldRevision};
use crate::engine::Space;
use crate::error::StoreError;
use crate::known::known_already;
use crate::record::{DocRecord, Seq, key};
use crate::rev::Rev;
use crate::rights::admit;
use crate::tree::{Merged, RevTree};
use crate::view::BodyRef;

impl Db {
    /// What an edit stands on at this moment, as CouchDB has it: an interactive one on the revision that it names; a
    /// replicated one on the newest of its ancestors that is stored with its content. For an author who can't read the
    /// document there is none: all that they are told is what they would be told of an id that is free.
    ///
    /// # Errors
    /// The engine failed, or the database is gone.
    pub fn base(&self, edit: &Edit, author: &Author, mode: Mode) -> Result<Base, StoreError> {
        let old = self.record(&edit.id)?;
        let body = |at: Seq| Ok(self.inner().store.engine.get(Space::Bodies, &key::seq(self.inner().id, at))?);
        if mode == Mode::Replicated && known_already(self, old.as_ref(), edit, author, &body)?.is_some() {
            return Ok(Base::Known);
        }
        let sees = |record: &DocRecord| {
            self.kind() == DbKind::Plain
                || author.admin
                || self.inner().app.read().may_read(&author.reader, record.place)
        };
        let old = old.filter(sees);
        let parent = parent_of(self, old.as_ref(), edit, mode);
        if self.kind() == DbKind::App && admit(self, old.as_ref(), edit, author, mode, parent.as_deref().ok()).is_err()
        {
            return Ok(Base::Refused);
        }
        let Ok(parent) = parent else { return Ok(Base::Refused) };
        let no_tree = RevTree::new();
        let tree = old.as_ref().map_or(&no_tree, |old| &old.tree);
        if check_leaves(tree, &parent, author, mode).is_err() {
            return Ok(Base::Refused);
        }
        Ok(base_on(self, tree, edit, &parent, author, mode))
    }
}

/// What an edit stands on that nothing speaks against. `parent`: the history below it.
pub(crate) fn base_on(db: &Db, tree: &RevTree, edit: &Edit, parent: &[Rev], author: &Author, mode: Mode) -> Base {
    let index = match mode {
        // Also over a tombstone an edit that names no revision makes a new document.
        Mode::Interactive if edit.parent.is_none() => return Base::New,
        Mode::Interactive => parent.first().and_then(|rev| tree.find(rev)),
        Mode::Replicated if edit.history.is_empty() => return Base::Refused,
        Mode::Replicated => {
            let history = taken_history(db, tree, edit, parent, author);
            if let Merged::Known(_) | Merged::Grafted(_) = tree.clone().merge(&history, edit.deleted, Some(0), 0) {
                return Base::Known;
            }
            let with_body = |index: &usize| tree.nodes()[*index].body.is_some();
            parent.iter().filter_map(|rev| tree.find(rev)).find(with_body)
        }
    };
    let Some(index) = index else { return Base::New };
    let node = &tree.nodes()[index];
    let readable =
        db.kind() == DbKind::Plain || author.admin || db.inner().app.read().may_read_acl(&author.reader, node.acl);
    if !readable {
        return Base::New;
    }
    Base::Old(OldRevision { history: tree.path(index), deleted: node.deleted, body: node.body.map(BodyRef) })
}
