//! Which of a user's replicated revisions need no storing.

use crate::apply::{name_of, recognised};
use crate::db::{Db, DbKind};
use crate::edit::{Author, Edit, Written};
use crate::engine::Value;
use crate::error::StoreError;
use crate::record::{DocRecord, Seq, decode_body};
use crate::rev::Rev;
use crate::tree::RevTree;

/// Reads a stored body.
pub(crate) type BodyOf<'a> = &'a dyn Fn(Seq) -> Result<Option<Value>, StoreError>;

/// A user's replicated revision that needs no storing: it is in the tree, it is a made-up one that came
/// back, or it deletes what is not here, as far as the user can see.
pub(crate) fn known_already(
    db: &Db,
    old: Option<&DocRecord>,
    edit: &Edit,
    author: &Author,
    body: BodyOf<'_>,
) -> Result<Option<Written>, StoreError> {
    if db.kind() == DbKind::Plain || author.admin {
        return Ok(None);
    }
    let Some(rev) = edit.history.first() else { return Ok(None) };
    let chain = &db.inner().chain;
    let is_made_up = |parent: &Rev| chain.is_tomb(&edit.id, parent, rev) || chain.successor(&edit.id, parent) == *rev;
    let known = match old {
        // Also where what it was made of has not come yet: another pod has told it.
        _ if edit.history.get(1).is_some_and(is_made_up) => true,
        None => edit.deleted,
        Some(record) if recognised(db, &edit.id, record, rev) => true,
        Some(record) => {
            let sees = db.inner().app.read().may_read(&author.reader, record.place);
            let gone = record.tree.winner().is_none_or(|winner| record.tree.nodes()[winner].deleted);
            match record.tree.find(rev) {
                Some(_) if sees => true,
                // Who sends back what they were given before it went out of their sight is told no news.
                Some(index) => edit.deleted || was_made_here(db, &edit.id, &record.tree, index, body)?,
                None => edit.deleted && (gone || !sees),
            }
        }
    };
    Ok(known.then(|| Written { id: edit.id.clone(), rev: rev.clone(), changed: false, diverged: false }))
}

/// Whether a revision got its name here: who names it was shown it. One that a client named can be guessed.
pub(crate) fn was_made_here(
    db: &Db,
    id: &str,
    tree: &RevTree,
    index: usize,
    body: BodyOf<'_>,
) -> Result<bool, StoreError> {
    let node = &tree.nodes()[index];
    let parent = node.parent.and_then(|parent| tree.nodes().get(parent as usize)).map(|parent| &parent.rev);
    let chain = &db.inner().chain;
    if parent.is_some_and(|parent| chain.successor(id, parent) == node.rev) {
        return Ok(true);
    }
    let Some(value) = node.body.map(body).transpose()?.flatten() else { return Ok(false) };
    let (attachments, json) = decode_body(&value)?;
    Ok(name_of(db, id, parent, node.deleted, &json, &attachments) == node.rev)
}
