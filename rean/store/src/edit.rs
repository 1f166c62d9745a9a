//! What a client asks the store to change.

use crate::app::{Reader, Who};
use crate::blob::BlobRef;
use crate::record::Attachment;
use crate::rev::Rev;
use crate::view::BodyRef;
use bytes::Bytes;
use std::sync::Arc;

/// Edits that are applied in one commit, each on its own: one that is refused does not stop the others.
pub struct Write {
    /// The edits, in order.
    pub edits: Vec<Edit>,
    /// On whose behalf.
    pub author: Author,
    /// How revisions are made.
    pub mode: Mode,
}

/// How revisions are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The edit names its parent, the store makes the revision, and a parent that is no leaf is a conflict.
    Interactive,
    /// The edit brings its revision and history (CouchDB's `new_edits=false`).
    Replicated,
}

/// On whose behalf something is written. In an app the store checks their rights; in a plain database the
/// caller has done so.
#[derive(Clone)]
pub struct Author {
    pub(crate) reader: Arc<Reader>,
    pub(crate) admin: bool,
}

impl Author {
    /// A user, or nobody in particular.
    pub fn user(who: Who) -> Author {
        Author { reader: Arc::new(Reader::new(who)), admin: false }
    }

    /// Somebody to whom access lists don't apply: an administrator, or a worker of the pod.
    pub fn admin(who: Who) -> Author {
        Author { reader: Arc::new(Reader::new(who)), admin: true }
    }

    /// Their name.
    pub fn name(&self) -> Option<&str> {
        self.reader.name()
    }

    /// Whether access lists don't apply.
    pub fn is_admin(&self) -> bool {
        self.admin
    }
}

/// What an edit stands on, as whoever validates it is to see it. The commit of a validated edit finds the same base, or
/// the edit is refused ([`crate::WriteError::Overtaken`]).
#[derive(Debug, Clone)]
pub enum Base {
    /// Nothing is to be stored: the revision is known.
    Known,
    /// It will be refused, whatever a validator says: a conflict, or a want of rights.
    Refused,
    /// It is a new document as far as its author can see: it follows nothing, or what they may not read.
    New,
    /// It follows this revision.
    Old(OldRevision),
}

/// The stored revision that an edit follows.
#[derive(Debug, Clone)]
pub struct OldRevision {
    /// Its name and those of its ancestors, newest first.
    pub history: Vec<Rev>,
    /// Whether it is a deletion.
    pub deleted: bool,
    /// Its content, if it has any.
    pub body: Option<BodyRef>,
}

impl Base {
    /// Whether a validator that saw `self` has seen what it would see of `other`.
    pub(crate) fn is_same(&self, other: &Base) -> bool {
        match (self, other) {
            (Base::Known, Base::Known) | (Base::Refused, Base::Refused) | (Base::New, Base::New) => true,
            (Base::Old(one), Base::Old(other)) => one.history.first() == other.history.first(),
            _ => false,
        }
    }
}

/// One document's new revision.
#[derive(Clone)]
pub struct Edit {
    /// The document.
    pub id: String,
    /// Interactive: the revision that was edited, if the client named one.
    pub parent: Option<Rev>,
    /// Replicated: the revision and its ancestors, newest first, generations falling by one.
    pub history: Vec<Rev>,
    /// Whether it is a deletion.
    pub deleted: bool,
    /// The members that don't begin with `_`, as minified JSON object.
    pub body: Bytes,
    /// The text of the member `access`.
    pub access: Option<String>,
    /// All attachments of the new revision.
    pub attachments: Vec<AttachmentEdit>,
}

/// One attachment of a new revision.
#[derive(Clone)]
pub struct AttachmentEdit {
    /// Its name within the document.
    pub name: String,
    /// Its media type; for a stub that of the parent's is kept.
    pub content_type: Option<String>,
    /// Replicated: the generation in which it was written.
    pub revpos: Option<u64>,
    /// Its bytes.
    pub source: AttachmentEditSource,
}

/// Where an attachment's bytes come from.
#[derive(Clone)]
pub enum AttachmentEditSource {
    /// From the parent revision; with a digest (`md5-...`), only if it is that one.
    Stub {
        /// CouchDB's digest.
        digest: Option<String>,
    },
    /// From an upload.
    Blob(BlobRef),
    /// From another document of the same database, as its reader got it.
    Existing(Attachment),
}

/// An edit that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The document.
    pub id: String,
    /// Its revision.
    pub rev: Rev,
    /// `false`: it was known already.
    pub changed: bool,
    /// A replicated revision has left the document with more than one live leaf, and it had at most one before: edits
    /// were made apart.
    pub diverged: bool,
}
