//! Whether an edit of an app's document is let in, and which access list the new revision gets.
//!
//! Refusals tell a user nothing of a document that they can't read: there, every edit is a conflict, as if
//! the id were simply taken.

use crate::access::{Access, Signature};
use crate::apply::leaf_of;
use crate::db::Db;
use crate::edit::{AttachmentEditSource, Author, Edit, Mode};
use crate::engine::Space;
use crate::error::WriteError;
use crate::record::{AclNo, DocRecord, encode, key};
use crate::rev::{Rev, RevHash};
use crate::writer::Tx;

/// The highest generation that is taken in an app: a document that is edited every second for a century has
/// fewer, and what the store puts on top of it must stay a revision that others can read.
const MAX_GENERATION: u64 = 1 << 32;
/// Entries of one list of a user's `access`. Beyond it a role is the better name.
const MAX_USER_ENTRIES: usize = 100;
/// Partial databases that a user can leave a document's tombstone in: each is kept with the document for good.
const MAX_TOMBS: usize = 1_000;

/// The access that an edit is let in with.
pub(crate) enum Admitted {
    /// The number of a known pair.
    Number(AclNo),
    /// A pair, which may be new.
    Pair(Access),
}

/// `parent`: the history that the edit stands on, newest first; `None` if it stands on nothing that it may.
pub(crate) fn admit(
    db: &Db,
    old: Option<&DocRecord>,
    edit: &Edit,
    author: &Author,
    mode: Mode,
    parent: Option<&[Rev]>,
) -> Result<Admitted, WriteError> {
    if edit.history.first().is_some_and(|rev| rev.generation > MAX_GENERATION) {
        return Err(malformed(format!("Revisions above generation {MAX_GENERATION} are not taken."), mode));
    }
    let is_ours = |rev: &Rev| matches!(rev.hash, RevHash::Md5(_));
    if !author.admin && !edit.history.iter().all(is_ours) {
        // Every client makes such; others would only make the document's record large.
        return Err(malformed("A revision's hash must be 32 hexadecimal digits here.".to_owned(), mode));
    }
    let standing = if author.admin { Standing::Edits } else { check_rights(db, old, edit, author, mode, parent)? };
    let unseen = standing == Standing::Unseen;
    if unseen && edit.parent.is_some() {
        return Err(conflict(mode));
    }
    let parent = if unseen { &[] } else { parent.ok_or_else(|| conflict(mode))? };
    if edit.deleted && edit.access.is_none() {
        // A deletion (PouchDB sends it bare) keeps the access of what it deletes.
        let edits = standing == Standing::Edits;
        return if edits { Ok(Admitted::Number(acl_below(old, parent))) } else { Err(conflict(mode)) };
    }
    let access = db
        .rules()
        .effective(&edit.id, edit.access.as_deref(), &edit.body)
        .map_err(|error| malformed(error.to_string(), mode))?;
    if standing != Standing::Edits && !author.reader.is_among(&access.write) {
        return Err(WriteError::Forbidden(
            "You must be among the writers of a document that you create: name yourself in `access`.".to_owned(),
        ));
    }
    if !author.admin {
        check_size(db, old.filter(|_| !unseen), &access)?;
    }
    if unseen {
        // A new document has no attachments that a stub could mean.
        let stub = edit.attachments.iter().find(|a| matches!(a.source, AttachmentEditSource::Stub { .. }));
        let missing = |name: &str| WriteError::MissingStub { id: edit.id.clone(), name: name.to_owned() };
        return Err(stub.map_or_else(|| conflict(mode), |stub| missing(&stub.name)));
    }
    if edit.deleted && standing == Standing::Creates {
        return Err(conflict(mode));
    }
    Ok(Admitted::Pair(access))
}

/// What users may ask for is less than what administrators may: each list is kept, in memory and for good.
fn check_size(db: &Db, old: Option<&DocRecord>, access: &Access) -> Result<(), WriteError> {
    let too_long = |list: &[String]| list.len() > MAX_USER_ENTRIES;
    if too_long(&access.read) || too_long(&access.write) {
        return Err(WriteError::Forbidden(format!(
            "`access` names more than {MAX_USER_ENTRIES} users and roles: give them a role."
        )));
    }
    let tombs = old.map(|record| record.tombs.as_slice()).unwrap_or_default();
    let stays = || {
        let app = db.inner().app.read();
        let signature = Signature::of(&access.read);
        app.part_by_signature(signature.as_str())
            .is_some_and(|part| tombs.contains(&part) || old.is_some_and(|old| old.place == Some(part)))
    };
    if tombs.len() >= MAX_TOMBS && !access.read.is_empty() && !stays() {
        return Err(WriteError::Forbidden("This document has been moved between too many sets of readers.".to_owned()));
    }
    Ok(())
}

impl Tx<'_> {
    /// The number of the access that an edit was let in with.
    pub(crate) fn number(&mut self, db: &Db, admitted: Admitted, author: &Author) -> Result<AclNo, WriteError> {
        match admitted {
            Admitted::Number(number) => Ok(number),
            Admitted::Pair(access) => self.acl_number(db, &access, author.name().filter(|_| !author.admin)),
        }
    }

    fn acl_number(&mut self, db: &Db, access: &Access, maker: Option<&str>) -> Result<AclNo, WriteError> {
        let id = db.inner().id;
        let mut app = db.inner().app.write();
        if !app.has_room_for(access, maker) {
            return Err(WriteError::Forbidden("There are too many different access lists.".to_owned()));
        }
        let (number, new) = app.number_of(access, maker);
        drop(app);
        if let Some(new) = new {
            self.put(Space::Meta, key::acl(id, number), encode(&new.record));
            if let Some((part, readers)) = new.new_part {
                self.put(Space::Meta, key::part(id, part), encode(&readers));
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
        match self.acl_number(db, &access, None) {
            Err(WriteError::Forbidden(reason)) => {
                // Rules may have been tightened: without room for what they say, nobody reads it.
                tracing::error!(
                    db = db.name(),
                    id,
                    reason,
                    "a document is placed nowhere: only administrators read it"
                );
                Ok(0)
            }
            other => other,
        }
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
    let seen = |index: &usize| *index == winner || app.part_of_acl(tree.nodes()[*index].acl) == record.place;
    let below = parent.unwrap_or_default().iter().find_map(|rev| tree.find(rev));
    if tree.nodes()[winner].deleted {
        // Made again on top of a tombstone that they see, or from nothing: never on what lies below, which may
        // have been others' to read.
        let on_top = below.is_none_or(|index| tree.is_leaf(index) && seen(&index));
        // A deletion keeps the access of what it deleted: the id stays its writers'.
        let allowed = on_top && app.may_write_acl(&author.reader, tree.nodes()[winner].acl);
        drop(app);
        check_create(db, author)?;
        return if allowed { Ok(Standing::Creates) } else { Err(conflict(mode)) };
    }
    // The leaf that the edit extends decides; for an edit that extends none the winner, so that who may
    // not write is told so whatever revision they name.
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
