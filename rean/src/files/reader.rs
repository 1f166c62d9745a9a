//! Reads a file: from where it is, or while it is not here yet, from a pod that has it.

use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt};
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectStore};
use rean_store::{FilePlace, Reading, StoredFile};

use crate::files::error::FileError;
use crate::files::{Files, peers};

/// What is read of a file at once, in bytes.
const CHUNK_BYTES: u64 = 256 << 10;
/// A storage that says nothing for so long has broken off.
const SILENCE: Duration = Duration::from_secs(60);

/// A file's bytes as they come.
pub type FileStream = BoxStream<'static, Result<Bytes, FileError>>;

impl Files {
    /// Opens the bytes `from..to` of a file, which must be some. The first of them are there when this returns.
    ///
    /// # Errors
    /// When they can't be read. Later errors come with the bytes; a stream that ends has given all.
    pub async fn read(self: &Arc<Self>, file: StoredFile, from: u64, to: u64) -> Result<FileStream, FileError> {
        let bytes = match self.open_here(&file, from, to).await {
            Err(FileError::Missing) if file.place == FilePlace::Local => peers::open(self, file, from, to).await?,
            opened => opened?,
        };
        let mut bytes = counted(bytes, to.saturating_sub(from));
        match bytes.next().await {
            Some(first) => {
                let first = first?;
                Ok(stream::iter([Ok(first)]).chain(bytes).boxed())
            }
            None => Ok(stream::empty().boxed()),
        }
    }

    /// As [`Files::read`], and only where the file should be.
    ///
    /// # Errors
    /// [`FileError::Missing`] if it isn't there.
    pub async fn open_here(&self, file: &StoredFile, from: u64, to: u64) -> Result<FileStream, FileError> {
        let object = self.object(file.place, file.key)?;
        let options = GetOptions { range: Some(GetRange::Bounded(from..to)), ..GetOptions::default() };
        let found = object.store.get_opts(&object.path, options).await;
        let found = found.map_err(|error| FileError::storage("opening a file", error))?;
        // A copy that was cut short must not pass for the file.
        if found.meta.size != file.length {
            return Err(FileError::Damaged);
        }
        Ok(match found.payload {
            GetResultPayload::File(open, _) => of_disk(open, from, to),
            GetResultPayload::Stream(bytes) => {
                bytes.map_err(|error| FileError::storage("reading a file", error)).boxed()
            }
        })
    }
}

/// Reads on a thread where it may block.
fn of_disk(open: std::fs::File, from: u64, to: u64) -> FileStream {
    let open = Arc::new(open);
    stream::try_unfold(from, move |at| {
        let open = Arc::clone(&open);
        async move {
            if at >= to {
                return Ok(None);
            }
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; usize::try_from(CHUNK_BYTES.min(to - at)).unwrap_or_default()];
                open.read_exact_at(&mut bytes, at).map(|()| bytes)
            });
            let bytes = read.await.map_err(|error| FileError::Pods(error.to_string()))?;
            let bytes = bytes.map_err(|error| FileError::io("reading a file", &error))?;
            let next = at + bytes.len() as u64;
            Ok(Some((Bytes::from(bytes), next)))
        }
    })
    .boxed()
}

/// Gives exactly so many bytes, or an error: also for what ends too early, goes on too long, or stops.
fn counted(bytes: FileStream, length: u64) -> FileStream {
    stream::try_unfold((bytes, length), |(mut bytes, left)| async move {
        let next = tokio::time::timeout(SILENCE, bytes.next()).await;
        let silent = || FileError::Storage { step: "reading a file", why: "nothing more came in time".to_owned() };
        match next.map_err(|_| silent())? {
            None if left == 0 => Ok(None),
            None => Err(FileError::Damaged),
            Some(piece) => {
                let piece = piece?;
                let left = left.checked_sub(piece.len() as u64).ok_or(FileError::Damaged)?;
                Ok(Some((piece, (bytes, left))))
            }
        }
    })
    .boxed()
}

/// A file that is opened when its turn in an answer has come.
pub struct Lazy {
    bytes: Pin<Box<dyn Stream<Item = Result<Bytes, FileError>> + Send>>,
}

impl Lazy {
    /// The bytes `from..to` of a file.
    pub fn new(files: Arc<Files>, file: StoredFile, from: u64, to: u64) -> Self {
        let opened = async move { files.read(file, from, to).await };
        Self { bytes: Box::pin(opened.into_stream().try_flatten()) }
    }
}

impl Reading for Lazy {
    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<std::io::Result<Bytes>>> {
        self.bytes.as_mut().poll_next(context).map(|next| next.map(|bytes| bytes.map_err(std::io::Error::other)))
    }
}
