//! The attachments of a new revision: from uploads, from the parent revision, from another document.

use crate::blob::digest_text;
use crate::db::{Db, DbKind};
use crate::edit::{AttachmentEditSource, Author, Edit, Mode};
use crate::engine::Space;
use crate::error::{StoreError, WriteError};
use crate::record::{Attachment, BlobId, decode_body, key};
use crate::rev::Rev;
use crate::tree::RevTree;
use crate::writer::Tx;
use std::sync::atomic::Ordering;

/// Stands for bytes that are not taken up yet; no number reaches it.
const NOT_YET: BlobId = BlobId::MAX;

impl Tx<'_> {
    /// The attachments that an edit asks for, those from uploads not yet taken up. Stages nothing.
    pub(crate) fn resolve(
        &self,
        db: &Db,
        tree: &RevTree,
        edit: &Edit,
        parent: &[Rev],
        author: &Author,
        mode: Mode,
    ) -> Result<Vec<Attachment>, WriteError> {
        let generation = match mode {
            Mode::Interactive => parent.first().map_or(1, |rev| rev.generation + 1),
            Mode::Replicated => edit.history.first().map_or(1, |rev| rev.generation),
        };
        let missing = |name: &str| WriteError::MissingStub { id: edit.id.clone(), name: name.to_owned() };
        let mut out = Vec::with_capacity(edit.attachments.len());
        // Read once, and only if there are stubs.
        let mut inherited: Option<Vec<Attachment>> = None;
        for wanted in &edit.attachments {
            let attachment = match &wanted.source {
                AttachmentEditSource::Blob(blob) => Attachment {
                    name: wanted.name.clone(),
                    content_type: wanted.content_type.clone().unwrap_or_else(|| "application/octet-stream".to_owned()),
                    digest_md5: blob.digest_md5(),
                    length: blob.length(),
                    revpos: match mode {
                        Mode::Replicated => wanted.revpos.unwrap_or(generation).min(generation),
                        Mode::Interactive => generation,
                    },
                    blob: NOT_YET,
                },
                AttachmentEditSource::Existing(attachment) => {
                    // A compaction may have removed the bytes since the other document was read.
                    if !self.has_bytes(db, attachment.blob)? {
                        return Err(missing(&wanted.name));
                    }
                    Attachment { name: wanted.name.clone(), revpos: generation, ..attachment.clone() }
                }
                AttachmentEditSource::Stub { digest } => {
                    if inherited.is_none() {
                        inherited = Some(self.inherited(db, tree, parent, author)?);
                    }
                    // Who edits names the attachment that is there; a replicator's source counts as it likes.
                    let placed = |a: &Attachment| {
                        mode == Mode::Replicated || wanted.revpos.is_none_or(|revpos| revpos == a.revpos)
                    };
                    let same = |a: &&Attachment| {
                        a.name == wanted.name
                            && placed(a)
                            && digest.as_ref().is_none_or(|d| *d == digest_text(&a.digest_md5))
                    };
                    let found = inherited.iter().flatten().find(same);
                    found.cloned().ok_or_else(|| missing(&wanted.name))?
                }
            };
            out.push(attachment);
        }
        Ok(out)
    }

    /// Takes up the uploads among an edit's attachments.
    pub(crate) fn take_up(
        &mut self,
        db: &Db,
        edit: &Edit,
        mut attachments: Vec<Attachment>,
    ) -> Result<Vec<Attachment>, WriteError> {
        for (attachment, wanted) in attachments.iter_mut().zip(&edit.attachments) {
            if let AttachmentEditSource::Blob(blob) = &wanted.source {
                let missing = || WriteError::MissingStub { id: edit.id.clone(), name: wanted.name.clone() };
                attachment.blob = blob.take_up(self, db)?.ok_or_else(missing)?;
            }
        }
        if db.inner().compacting.load(Ordering::Acquire) {
            db.inner().pinned.lock().extend(attachments.iter().map(|a| a.blob));
        }
        Ok(attachments)
    }

    pub(crate) fn has_bytes(&self, db: &Db, blob: BlobId) -> Result<bool, StoreError> {
        Ok(self.get(Space::Blobs, &key::chunk(db.inner().id, blob, 0))?.is_some())
    }

    /// The attachments of the nearest ancestor that has a body, if the author may read that one.
    fn inherited(
        &self,
        db: &Db,
        tree: &RevTree,
        parent: &[Rev],
        author: &Author,
    ) -> Result<Vec<Attachment>, StoreError> {
        let known = |rev: &Rev| tree.find(rev).map(|index| &tree.nodes()[index]).filter(|node| node.body.is_some());
        let Some(node) = parent.iter().find_map(known) else { return Ok(Vec::new()) };
        let theirs =
            db.kind() == DbKind::Plain || author.admin || db.inner().app.read().may_read_acl(&author.reader, node.acl);
        let Some(body) = node.body.filter(|_| theirs) else { return Ok(Vec::new()) };
        match self.get(Space::Bodies, &key::seq(db.inner().id, body))? {
            Some(value) => Ok(decode_body(&value)?.0),
            None => Ok(Vec::new()),
        }
    }
}
