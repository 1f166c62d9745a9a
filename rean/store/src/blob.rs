//! Attachments' bytes: written in pieces as they arrive, known by their SHA-256, kept once a database.
//!
//! An upload of one piece waits in memory and is stored by the commit of the document that takes it up. A
//! longer one is stored as it arrives, under a marker that names it as nobody's yet; the document's commit
//! removes the marker. What no document takes up is removed at once, or after a crash at the next opening.

use crate::db::Db;
use crate::engine::{Batch, Space};
use crate::error::StoreError;
use crate::outside::is_file;
use crate::record::{BlobEntry, BlobId, decode, encode, key};
use crate::writer::Tx;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use md5::Md5;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a piece: what one upload or download holds in memory.
pub const PIECE_BYTES: usize = 64 * 1024;

/// CouchDB's form of a digest: `md5-` and base64.
pub fn digest_text(md5: &[u8; 16]) -> String {
    format!("md5-{}", STANDARD.encode(md5))
}

/// Takes an attachment's bytes.
pub struct BlobWriter {
    db: Db,
    blob: BlobId,
    piece: Vec<u8>,
    pieces: u32,
    length: u64,
    md5: Md5,
    sha256: Sha256,
}

/// Bytes that were uploaded and that an edit may take up. If none does, they are removed when the last
/// clone is dropped.
#[derive(Clone)]
pub struct BlobRef {
    pub(crate) upload: Arc<Upload>,
}

pub(crate) struct Upload {
    pub db: Db,
    pub blob: BlobId,
    /// All bytes, if they were few; the record of a file.
    pub small: Option<Bytes>,
    pub pieces: u32,
    pub length: u64,
    pub md5: [u8; 16],
    /// Of its bytes; of a file it is what stands for its name.
    pub sha256: [u8; 32],
    pub taken: AtomicBool,
    /// Called once if nobody takes it up.
    pub unused: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Db {
    /// Starts an upload.
    pub fn blob_writer(&self) -> BlobWriter {
        BlobWriter {
            db: self.clone(),
            blob: self.inner().store.next_blob(),
            piece: Vec::new(),
            pieces: 0,
            length: 0,
            md5: Md5::new(),
            sha256: Sha256::new(),
        }
    }

    /// Bytes of an attachment from an offset on, at most `max`, at most to the end of the piece that the
    /// offset is in; empty at the end, and for a file ([`Db::read_file`]).
    ///
    /// # Errors
    /// The engine failed.
    pub fn blob_read(&self, blob: BlobId, from: u64, max: usize) -> Result<Bytes, StoreError> {
        if is_file(blob) {
            return Ok(Bytes::new());
        }
        let Ok(piece) = u32::try_from(from / PIECE_BYTES as u64) else { return Ok(Bytes::new()) };
        let within = (from % PIECE_BYTES as u64) as usize;
        let value = self.inner().store.engine.get(Space::Blobs, &key::chunk(self.inner().id, blob, piece))?;
        let value = value.unwrap_or_default();
        let end = value.len().min(within.saturating_add(max));
        Ok(if within < end { value.slice(within..end) } else { Bytes::new() })
    }
}

impl BlobWriter {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// The engine failed.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        self.md5.update(bytes);
        self.sha256.update(bytes);
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.piece.len() == PIECE_BYTES {
                self.store_piece()?;
            }
            let take = bytes.len().min(PIECE_BYTES - self.piece.len());
            self.piece.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
        }
        Ok(())
    }

    /// Ends the upload.
    ///
    /// # Errors
    /// The engine failed.
    pub fn finish(mut self) -> Result<BlobRef, StoreError> {
        let small = if self.pieces == 0 {
            Some(Bytes::from(std::mem::take(&mut self.piece)))
        } else {
            self.store_piece()?;
            None
        };
        let upload = Upload {
            db: self.db.clone(),
            blob: self.blob,
            small,
            pieces: std::mem::take(&mut self.pieces),
            length: self.length,
            md5: self.md5.clone().finalize().into(),
            sha256: self.sha256.clone().finalize().into(),
            taken: AtomicBool::new(false),
            unused: Mutex::new(None),
        };
        Ok(BlobRef { upload: Arc::new(upload) })
    }

    fn store_piece(&mut self) -> Result<(), StoreError> {
        let inner = self.db.inner();
        let mut batch = Batch::default();
        if self.pieces == 0 {
            batch.put(Space::Meta, upload_key(self.blob), encode(&(inner.id, self.blob)));
        }
        let piece = std::mem::take(&mut self.piece);
        batch.put(Space::Blobs, key::chunk(inner.id, self.blob, self.pieces), piece);
        inner.store.engine.commit(batch, false)?;
        self.pieces += 1;
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        discard(&self.db, self.blob, self.pieces);
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.taken.load(Ordering::Acquire) {
            discard(&self.db, self.blob, self.pieces);
            self.tell_unused();
        }
    }
}

impl BlobRef {
    /// Their number of bytes.
    pub fn length(&self) -> u64 {
        self.upload.length
    }

    /// Their MD5.
    pub fn digest_md5(&self) -> [u8; 16] {
        self.upload.md5
    }

    /// Bytes from an offset on, as [`Db::blob_read`] gives them, before any document has taken them up. Of a file there
    /// are none.
    ///
    /// # Errors
    /// The engine failed.
    pub fn read(&self, from: u64, max: usize) -> Result<Bytes, StoreError> {
        let upload = &self.upload;
        match &upload.small {
            Some(_) if is_file(upload.blob) => Ok(Bytes::new()),
            Some(bytes) => {
                let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes.slice(from..from.saturating_add(max).min(bytes.len())))
            }
            None => upload.db.blob_read(upload.blob, from, max),
        }
    }

    /// Makes the bytes a document's, within its commit; gives the number under which they are kept. `None`: they
    /// are gone.
    pub(crate) fn take_up(&self, tx: &mut Tx<'_>, db: &Db) -> Result<Option<BlobId>, StoreError> {
        let upload = &self.upload;
        let db_id = db.inner().id;
        let index_key = key::blob_index(db_id, &upload.sha256);
        if let Some(value) = tx.get(Space::BlobIndex, &index_key)? {
            let known: BlobEntry = decode(&value, "an attachment's entry")?;
            // The upload, if it is another, goes when it is dropped.
            return Ok(Some(known.blob));
        }
        let taken_before = upload.taken.swap(true, Ordering::AcqRel);
        if taken_before && upload.small.is_none() && !tx.has_bytes(db, upload.blob)? {
            // Taken up by an earlier edit, let go of again and compacted away.
            return Ok(None);
        }
        if let Some(bytes) = &upload.small {
            tx.put(Space::Blobs, key::chunk(db_id, upload.blob, 0), bytes.to_vec());
        } else {
            tx.delete(Space::Meta, upload_key(upload.blob));
        }
        let entry = BlobEntry { blob: upload.blob, length: upload.length };
        tx.put(Space::BlobIndex, index_key, encode(&entry));
        Ok(Some(upload.blob))
    }
}

fn upload_key(blob: BlobId) -> Vec<u8> {
    key::meta(key::UPLOAD, &[&blob.to_be_bytes()])
}

fn discard(db: &Db, blob: BlobId, pieces: u32) {
    if pieces == 0 {
        return;
    }
    let inner = db.inner();
    let mut batch = Batch::default();
    for piece in 0..pieces {
        batch.delete(Space::Blobs, key::chunk(inner.id, blob, piece));
    }
    batch.delete(Space::Meta, upload_key(blob));
    if let Err(error) = inner.store.engine.commit(batch, false) {
        // The marker is still there: the next opening removes them.
        tracing::warn!(%error, "an unused upload could not be removed");
    }
}
