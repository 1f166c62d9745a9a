//! What a client asks the store to change.

use crate::app::{Reader, Who};
use crate::blob::BlobRef;
use crate::record::Attachment;
use crate::rev::Rev;
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

/// One document's new revision.
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
