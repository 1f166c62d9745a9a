//! Files: attachments whose bytes are kept outside of the store. The store has a record of each, in the place of its first
//! piece, and knows neither where the bytes are nor how they are read.
//!
//! A file's number has its highest bit set, which no other attachment's has: so all files of a database lie together. A
//! file is found by its key, never by its content: each upload is a file of its own, so that it is clear who has it.

use crate::blob::{BlobRef, Upload};
use crate::db::Db;
use crate::engine::{Direction, Space};
use crate::error::StoreError;
use crate::record::{BlobId, decode, encode, key};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::ops::ControlFlow;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};

/// Marks the numbers of files. Those of other attachments start below it and count up by one.
const FILE_BIT: BlobId = 1 << 63;

/// The name of a file, wherever it is kept: random, so that nobody who knows the content knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileKey([u8; 16]);

/// A text that is no file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a file's name is 32 hexadecimal digits")]
pub struct FileKeyError;

/// In what kind of storage a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilePlace {
    /// In the pods' own folders.
    Local,
    /// In the bucket that all pods share.
    S3,
}

/// What the store knows of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its name.
    pub key: FileKey,
    /// Where it is.
    pub place: FilePlace,
    /// Bytes.
    pub length: u64,
    /// MD5 of its bytes: CouchDB's digest.
    pub digest_md5: [u8; 16],
    /// SHA-256 of its bytes: by this a copy is checked.
    pub sha256: [u8; 32],
}

impl StoredFile {
    /// The member `file` of the attachment, as other pods are told of it ([`crate::document::IncomingAttachment::file`]).
    pub fn member(&self) -> String {
        let place = match self.place {
            FilePlace::Local => "local",
            FilePlace::S3 => "s3",
        };
        format!("{{\"key\":\"{}\",\"place\":\"{place}\",\"sha256\":\"{}\"}}", self.key, hex::encode(self.sha256))
    }
}

/// The record of a file; the variant is its version.
#[derive(Serialize, Deserialize)]
enum Record {
    V1(StoredFile),
}

/// Reads files.
pub trait Outside: Send + Sync {
    /// Begins to read the bytes `from..to` of a file.
    fn read(&self, file: &StoredFile, from: u64, to: u64) -> Box<dyn Reading>;
}

/// A file that is being read.
pub trait Reading: Send {
    /// The next bytes; none at the end.
    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<std::io::Result<Bytes>>>;
}

impl FileKey {
    /// A new name.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// Where the index of attachments has it. It can't be mistaken for a content's SHA-256.
    pub(crate) fn index(self) -> [u8; 32] {
        Sha256::new().chain_update(b"file ").chain_update(self.0).finalize().into()
    }
}

impl std::fmt::Display for FileKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::fmt::Debug for FileKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileKey({self})")
    }
}

impl FromStr for FileKey {
    type Err = FileKeyError;

    fn from_str(text: &str) -> Result<Self, FileKeyError> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| FileKeyError)?;
        // One name, one spelling.
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) { Err(FileKeyError) } else { Ok(Self(bytes)) }
    }
}

/// Whether this is a file's number.
pub(crate) fn is_file(blob: BlobId) -> bool {
    blob & FILE_BIT != 0
}

impl Db {
    /// A file that is stored already, for an edit to take up. If none does, `unused` is called when the last clone is
    /// dropped.
    pub fn file_ref(&self, file: StoredFile, unused: Option<Box<dyn FnOnce() + Send>>) -> BlobRef {
        BlobRef {
            upload: Arc::new(Upload {
                db: self.clone(),
                blob: self.inner().store.next_blob() | FILE_BIT,
                small: Some(Bytes::from(encode(&Record::V1(file)))),
                pieces: 0,
                length: file.length,
                md5: file.digest_md5,
                sha256: file.key.index(),
                taken: AtomicBool::new(false),
                unused: Mutex::new(unused),
            }),
        }
    }

    /// The file that an attachment is; `None` if its bytes are in the store.
    ///
    /// # Errors
    /// The engine failed, or the record is gone or can't be read.
    pub fn file(&self, blob: BlobId) -> Result<Option<StoredFile>, StoreError> {
        if !is_file(blob) {
            return Ok(None);
        }
        let value = self.inner().store.engine.get(Space::Blobs, &key::chunk(self.inner().id, blob, 0))?;
        let value = value.ok_or(StoreError::Damaged("a file has no record"))?;
        read_record(&value).map(Some)
    }

    /// Whether this database has a file: some revision did when it was last compacted, or does since.
    ///
    /// # Errors
    /// The engine failed.
    pub fn has_file(&self, file: FileKey) -> Result<bool, StoreError> {
        let index = key::blob_index(self.inner().id, &file.index());
        Ok(self.inner().store.engine.get(Space::BlobIndex, &index)?.is_some())
    }

    /// Shows all files of this database, in no order that means anything, until it is told to stop.
    ///
    /// # Errors
    /// The engine failed, or a record can't be read.
    pub fn each_file(&self, mut show: impl FnMut(StoredFile) -> ControlFlow<()>) -> Result<(), StoreError> {
        let id = self.inner().id;
        let (from, to) = (key::chunk(id, FILE_BIT, 0), key::after(&key::doc(id, "")));
        let snapshot = self.inner().store.engine.snapshot();
        for item in snapshot.range(Space::Blobs, &from, &to, Direction::Forward) {
            if show(read_record(&item?.1)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Begins to read the bytes `from..to` of a file.
    pub fn read_file(&self, file: &StoredFile, from: u64, to: u64) -> Box<dyn Reading> {
        match self.inner().store.outside.read().as_ref() {
            Some(outside) => outside.read(file, from, to),
            None => Box::new(Nowhere),
        }
    }
}

impl crate::store::Store {
    /// Says who reads files. Until then they can't be read.
    pub fn set_outside(&self, outside: Arc<dyn Outside>) {
        *self.inner().outside.write() = Some(outside);
    }
}

impl BlobRef {
    /// Whether its bytes are kept outside of the store.
    pub fn is_file(&self) -> bool {
        is_file(self.upload.blob)
    }
}

impl Upload {
    /// Says that nobody has taken it up.
    pub(crate) fn tell_unused(&self) {
        let unused = self.unused.lock().take();
        if let Some(unused) = unused {
            unused();
        }
    }
}

pub(crate) fn read_record(value: &[u8]) -> Result<StoredFile, StoreError> {
    let Record::V1(file) = decode(value, "a file's record")?;
    Ok(file)
}

/// Where no files are read.
struct Nowhere;

impl Reading for Nowhere {
    fn poll_bytes(&mut self, _: &mut Context<'_>) -> Poll<Option<std::io::Result<Bytes>>> {
        Poll::Ready(Some(Err(std::io::Error::other("no files are read here"))))
    }
}

#[cfg(test)]
mod tests {
    use super::FileKey;

    #[test]
    fn a_name_has_one_spelling() {
        let key = FileKey::random();
        assert_eq!(key.to_string().parse(), Ok(key));
        for bad in ["", "00", "0123456789ABCDEF0123456789ABCDEF", "0123456789abcdef0123456789abcdeg"] {
            assert!(bad.parse::<FileKey>().is_err(), "{bad}");
        }
    }
}
