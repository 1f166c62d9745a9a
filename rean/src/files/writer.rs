//! Writes a file: in parts as the bytes arrive, complete and flushed at the end.

use std::sync::Arc;
use std::time::Duration;

use md5::{Digest, Md5};
use object_store::{ObjectStoreExt, WriteMultipart};
use rean_store::{AttachmentEditSource, BlobRef, Db, Edit, FileKey, FilePlace, StoredFile};
use sha2::Sha256;

use crate::error::ApiError;
use crate::files::error::FileError;
use crate::files::{Files, above_bytes};
use crate::pod::Pod;
use crate::ring::places::Taken;
use crate::shares::{Share, Whose};
use crate::target::Target;

/// Parts in memory at once: one that fills, and one on its way.
const PARTS: usize = 2;
/// Uploads into object storage of one user at once: more than a browser sends to one server.
const MAX_EACH: usize = 6;
/// An upload waits so long for its turn; after that its client rather tries again.
const TURN: Duration = Duration::from_secs(30);
/// Bytes that are copied at once out of the store.
const COPY_BYTES: usize = 64 << 10;

/// A file that is being written. Dropped before its end, nothing of it stays.
pub struct FileWriter {
    files: Arc<Files>,
    key: FileKey,
    place: FilePlace,
    parts: Option<WriteMultipart>,
    length: u64,
    md5: Md5,
    sha256: Sha256,
    turn: Share,
    _share: Taken<Option<String>>,
}

impl FileWriter {
    /// Begins a file of at most `most_bytes` for somebody.
    ///
    /// # Errors
    /// When there are too many uploads, or the storage fails.
    pub async fn begin(
        files: &Arc<Files>,
        who: Option<String>,
        whose: &Whose,
        most_bytes: u64,
    ) -> Result<Self, FileError> {
        let (key, place) = (FileKey::random(), files.place());
        let object = files.object(place, key)?;
        let part_mib = object.part_mib_for(most_bytes);
        let share = files.each.take(who, MAX_EACH).ok_or(FileError::Busy)?;
        // A part that is larger than all that there is waits for all.
        let units = (part_mib * PARTS).min(super::UPLOAD_MIB);
        let turn = files.uploads.take(whose, units, TURN).await.ok_or(FileError::Busy)?;
        let upload = object.store.put_multipart(&object.path).await;
        let upload = upload.map_err(|error| FileError::storage("beginning a file", error))?;
        Ok(Self {
            files: Arc::clone(files),
            key,
            place,
            parts: Some(WriteMultipart::new_with_chunk_size(upload, part_mib << 20)),
            length: 0,
            md5: Md5::new(),
            sha256: Sha256::new(),
            turn,
            _share: share,
        })
    }

    /// Its place among the uploads.
    pub fn place(&self) -> &Share {
        &self.turn
    }

    /// Takes the next bytes; waits while the storage is slower than they come.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let Some(parts) = &mut self.parts else { return Err(FileError::Damaged) };
        self.md5.update(bytes);
        self.sha256.update(bytes);
        self.length += bytes.len() as u64;
        self.turn.came(bytes.len());
        // In steps, so that a piece of any size fills one part at a time.
        for step in bytes.chunks(COPY_BYTES) {
            let ready = parts.wait_for_capacity(PARTS - 1).await;
            ready.map_err(|error| FileError::storage("writing a file", error))?;
            parts.write(step);
        }
        Ok(())
    }

    /// Takes all of an upload that has come into the store, which then needn't keep it.
    ///
    /// # Errors
    /// When the store or the storage fails.
    pub async fn write_blob(&mut self, blob: &BlobRef) -> Result<(), ApiError> {
        let mut at = 0;
        while at < blob.length() {
            let bytes = blob.read(at, COPY_BYTES)?;
            if bytes.is_empty() {
                return Err(FileError::Damaged.into());
            }
            self.write(&bytes).await?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Ends it: all bytes are where they stay, and flushed. If no document takes it up it is removed.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn finish(mut self, db: &Db) -> Result<BlobRef, FileError> {
        let Some(parts) = self.parts.take() else { return Err(FileError::Damaged) };
        parts.finish().await.map_err(|error| FileError::storage("completing a file", error))?;
        let file = StoredFile {
            key: self.key,
            place: self.place,
            length: self.length,
            digest_md5: self.md5.clone().finalize().into(),
            sha256: self.sha256.clone().finalize().into(),
        };
        let files = Arc::clone(&self.files);
        Ok(db.file_ref(file, Some(Box::new(move || files.discard(&file)))))
    }
}

/// Turns what has come whole, and is larger than attachments in the store are to be, into files.
///
/// # Errors
/// As [`FileWriter`].
pub async fn move_out(pod: &Pod, target: &Target, mut edits: Vec<Edit>) -> Result<Vec<Edit>, ApiError> {
    let above = above_bytes(pod, target);
    for attachment in edits.iter_mut().flat_map(|edit| &mut edit.attachments) {
        let AttachmentEditSource::Blob(blob) = &attachment.source else { continue };
        if blob.is_file() || blob.length() <= above {
            continue;
        }
        let mut file =
            FileWriter::begin(&pod.files, target.who.name.clone(), &Whose::account(&target.who), blob.length()).await?;
        file.write_blob(blob).await?;
        attachment.source = AttachmentEditSource::Blob(file.finish(&target.db).await?);
    }
    Ok(edits)
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        let (Some(parts), Ok(runtime)) = (self.parts.take(), tokio::runtime::Handle::try_current()) else { return };
        runtime.spawn(async move {
            if let Err(error) = parts.abort().await {
                tracing::debug!(%error, "an upload that broke off could not be cleared away");
            }
        });
    }
}
