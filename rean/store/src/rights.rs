//! Whether an edit of an app's document is let in, and which access list the new revision gets.
//!
//! Refusals tell a user nothing of a document that they can't read: there, every edit is a conflict, as if
//! the id were simply taken.

use crate::access::Access;
use crate::apply::leaf_of;
use crate::db::Db;
use crate::edit::{Author, Edit, Mode};
use crate::engine::Space;
use crate::error::WriteError;
use crate::record::{AclNo, DocRecord, encode, key};
use crate::rev::Rev;
use crate::writer::Tx;

impl Tx<'_> {
    /// `parent`: the history that the edit stands on, newest first; `None` if it stands on nothing that it may.
    pub(crate) fn admit(
        &mut self,
        db: &Db,
        old: Option<&DocRecord>,
        edit: &Edit,
        author: &Author,
        mode: Mode,
        parent: Option<&[Rev]>,
    ) -> Result<AclNo, WriteError> {
        let standing = if author.admin { Standing::Edits } else { check_rights(db, old, edit, author, mode, parent)? };
        let unseen = standing == Standing::Unseen;
        if unseen && edit.parent.is_some() {
            return Err(conflict(mode));
        }
        let parent = if unseen { &[] } else { parent.ok_or_else(|| conflict(mode))? };
        if edit.deleted && edit.access.is_none() {
            // A deletion (PouchDB sends it bare) keeps the access of what it deletes.
            return if standing == Standing::Edits { Ok(acl_below(old, parent)) } else { Err(conflict(mode)) };
        }
        let rules = db.rules();
        let access = rules
            .effective(&edit.id, edit.access.as_deref(), &edit.body)
            .map_err(|error| malformed(error.to_string(), mode))?;
        if standing != Standing::Edits && !author.reader.is_among(&access.write) {
            return Err(WriteError::Forbidden(
                "You must be among the writers of a document that you create: name yourself in `access`.".to_owned(),
            ));
        }
        if unseen || (edit.deleted && standing == Standing::Creates) {
            return Err(conflict(mode));
        }
        self.acl_number(db, &access)
    }

    fn acl_number(&mut self, db: &Db, access: &Access) -> Result<AclNo, WriteError> {
        let id = db.inner().id;
        let mut app = db.inner().app.write();
        if !app.has_room_for(access) {
            return Err(WriteError::Forbidden("This app has too many different access lists.".to_owned()));
        }
        let (number, new) = app.number_of(access);
        drop(app);
        if let Some(new) = new {
            self.put(Space::Meta, key::acl(id, number), encode(&new.record));
            if let Some(part) = new.new_part {
                self.state(db);
                self.touch_part(id, part);
            }
        }
        Ok(number)
    }

    /// The access list of a document under the rules in force, for one that is there already.
    pub(crate) fn classify(&mut self, db: &Db, id: &str, own: Option<&str>, body: &[u8]) -> Result<AclNo, WriteError> {
        // What was let in once and can't be read now is nobody's but the administrators'.
        let access = db.rules().effective(id, own, body).unwrap_or_default();
        self.acl_number(db, &access)
    }
}

/// How an author stands to the document that they edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is theirs to edit, or they are an administrator.
    Edits,
    /// There is none: they create it.
    Creates,
    /// There is one that they can't read. All that they would be told if there were none comes first, so that
    /// only who would have created it learns that the id is taken.
    Unseen,
}

/// An error if the author may not do what the edit does.
fn check_rights(
    db: &Db,
    old: Option<&DocRecord>,
    edit: &Edit,
    author: &Author,
    mode: Mode,
    parent: Option<&[Rev]>,
) -> Result<Standing, WriteError> {
    if edit.id.starts_with("_design/") {
        return Err(denied(author, "Only administrators may write design documents."));
    }
    let Some(record) = old else {
        return check_create(db, author).map(|()| Standing::Creates);
    };
    let app = db.inner().app.read();
    if !app.may_read(&author.reader, record.place) {
        drop(app);
        return check_create(db, author).map(|()| Standing::Unseen);
    }
    let tree = &record.tree;
    let winner = tree.winner().ok_or_else(|| conflict(mode))?;
    if tree.nodes()[winner].deleted {
        drop(app);
        return check_create(db, author).map(|()| Standing::Creates);
    }
    // The leaf that the edit extends decides; for an edit that extends none the winner, so that who may
    // not write is told so whatever revision they name.
    let below = parent.unwrap_or_default().iter().find_map(|rev| tree.find(rev));
    let seen = |index: &usize| *index == winner || app.part_of_acl(tree.nodes()[*index].acl) == record.place;
    let extended = below.and_then(|index| leaf_of(db, &edit.id, tree, index)).filter(seen);
    let decides = extended.unwrap_or(winner);
    if !app.may_write_acl(&author.reader, tree.nodes()[decides].acl) {
        return Err(denied(author, "You may not write this document."));
    }
    match extended {
        Some(leaf) if !tree.nodes()[leaf].deleted => Ok(Standing::Edits),
        _ => Err(match mode {
            Mode::Interactive => WriteError::Conflict,
            Mode::Replicated => WriteError::Forbidden(
                "This edit does not extend the document's current revision: \
                     take in the current one and edit again."
                    .to_owned(),
            ),
        }),
    }
}

fn check_create(db: &Db, author: &Author) -> Result<(), WriteError> {
    if author.reader.is_among(db.rules().create()) {
        return Ok(());
    }
    Err(denied(author, "You may not create documents here."))
}

fn denied(author: &Author, reason: &str) -> WriteError {
    match author.name() {
        Some(_) => WriteError::Forbidden(reason.to_owned()),
        None => WriteError::Unauthorized(format!("{reason} Log in first.")),
    }
}

/// In a replication push PouchDB stops at a conflict, but reports a `forbidden` as `denied` and carries on.
fn conflict(mode: Mode) -> WriteError {
    match mode {
        Mode::Interactive => WriteError::Conflict,
        Mode::Replicated => WriteError::Forbidden("Document update conflict.".to_owned()),
    }
}

fn malformed(reason: String, mode: Mode) -> WriteError {
    match mode {
        Mode::Interactive => WriteError::BadRequest(reason),
        Mode::Replicated => WriteError::Forbidden(reason),
    }
}

fn acl_below(old: Option<&DocRecord>, parent: &[Rev]) -> AclNo {
    let Some(record) = old else { return 0 };
    let tree = &record.tree;
    let of = |rev: &Rev| Some(tree.nodes()[tree.find(rev)?].acl).filter(|acl| *acl != 0);
    let winner = || tree.winner().map(|w| tree.nodes()[w].acl);
    parent.iter().find_map(of).or_else(winner).unwrap_or(0)
}
