//! An attachment on its way from a client to where it is kept: the store, or, if it is large, object storage.

use std::io::Write as _;
use std::sync::Arc;

use adea_ring::Identity;
use flate2::write::GzDecoder;
use http::HeaderMap;
use rean_store::{BlobRef, BlobWriter, Db};

use crate::error::ApiError;
use crate::files::error::FileError;
use crate::files::writer::FileWriter;
use crate::files::{self, Files};
use crate::pod::Pod;
use crate::room;
use crate::shares::Whose;
use crate::target::Target;

/// Of an attachment that says that it is large so many bytes must have come before it gets a place among the files: what
/// is only said takes none.
const SURE_BYTES: u64 = 1 << 20;
/// Compressed bytes of an attachment that are unpacked at once.
const INFLATE_STEP_BYTES: usize = 4 << 10;

/// An attachment on its way into the store, unpacked if it comes compressed: CouchDB's replicator sends text so. One that
/// is large goes to where files are.
pub struct Upload {
    sink: Sink,
    decoder: Option<Box<GzDecoder<Vec<u8>>>>,
    left: u64,
    /// What has come, in bytes.
    length: u64,
    /// What will come, as its sender says.
    expected: u64,
    /// Beyond this it is a file.
    above: u64,
    db: Db,
    files: Arc<Files>,
    who: Option<String>,
    whose: Whose,
}

/// Where the bytes go.
enum Sink {
    /// None after a fault.
    Store(Option<Box<BlobWriter>>),
    File(Box<FileWriter>),
}

impl Upload {
    /// Begins one.
    ///
    /// # Errors
    /// 415 for an encoding other than gzip, 507 when the disk is full.
    pub fn begin(pod: &Pod, target: &Target, encoding: Option<&str>, expected: Option<u64>) -> Result<Self, ApiError> {
        room::check(pod)?;
        let decoder = match encoding {
            None | Some("" | "identity") => None,
            Some("gzip") => Some(Box::new(GzDecoder::new(Vec::new()))),
            Some(_) => {
                return Err(ApiError::new(
                    http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "bad_ctype",
                    "Only gzip is supported as encoding of an attachment",
                ));
            }
        };
        Ok(Self {
            sink: Sink::Store(Some(Box::new(target.db.blob_writer()))),
            decoder,
            left: pod.settings.get().max_attachment_bytes,
            length: 0,
            expected: expected.unwrap_or(0),
            above: files::above_bytes(pod, target),
            db: target.db.clone(),
            files: Arc::clone(&pod.files),
            who: target.who.name.clone(),
            whose: Whose::account(&target.who),
        })
    }

    /// Says by which request it comes: its place among the files is its sender's and the address's.
    #[must_use]
    pub fn by(mut self, who: &Identity, headers: &HeaderMap) -> Self {
        self.whose = Whose::of(who, headers);
        self
    }

    /// What the client says next.
    ///
    /// # Errors
    /// 503 when it was slow, and others need its place.
    pub fn hears<T>(&self, next: impl Future<Output = T>) -> impl Future<Output = Result<T, ApiError>> {
        let place = match &self.sink {
            Sink::File(file) => Some(file.place()),
            Sink::Store(_) => None,
        };
        async move {
            match place {
                Some(place) => place.hears(next).await.ok_or_else(|| FileError::Slow.into()),
                None => Ok(next.await),
            }
        }
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// 413 beyond the limit, 400 for broken gzip, 503 when a file can't be written.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        if self.decoder.is_none() {
            return self.store(bytes).await;
        }
        for step in bytes.chunks(INFLATE_STEP_BYTES) {
            let unpacked = match &mut self.decoder {
                None => return Ok(()),
                Some(decoder) => {
                    decoder.write_all(step).map_err(|_| bad_encoding())?;
                    std::mem::take(decoder.get_mut())
                }
            };
            self.store(&unpacked).await?;
        }
        Ok(())
    }

    async fn store(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(ApiError::body_too_large)?;
        self.length += bytes.len() as u64;
        if let Sink::Store(blob) = &mut self.sink
            && (self.length > self.above || self.expected > self.above && self.length >= SURE_BYTES)
        {
            let mut file =
                FileWriter::begin(&self.files, self.who.clone(), &self.whose, self.length + self.left).await?;
            if let Some(blob) = blob.take() {
                file.write_blob(&blob.finish()?).await?;
            }
            self.sink = Sink::File(Box::new(file));
        }
        match &mut self.sink {
            Sink::Store(Some(blob)) => Ok(blob.write(bytes)?),
            Sink::Store(None) => Err(ApiError::internal("an upload went on after a fault")),
            Sink::File(file) => Ok(file.write(bytes).await?),
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// 400 for gzip that ends too early, 503 when a file can't be completed.
    pub async fn finish(mut self) -> Result<BlobRef, ApiError> {
        if let Some(decoder) = self.decoder.take() {
            let rest = decoder.finish().map_err(|_| bad_encoding())?;
            self.store(&rest).await?;
        }
        match self.sink {
            Sink::Store(Some(blob)) => Ok(blob.finish()?),
            Sink::Store(None) => Err(ApiError::internal("an upload went on after a fault")),
            Sink::File(file) => Ok(file.finish(&self.db).await?),
        }
    }
}

fn bad_encoding() -> ApiError {
    ApiError::bad_request("The attachment is not valid gzip")
}
