//! Answers that are made page by page while they are sent: text with attachments in between, never whole in memory.

use std::collections::VecDeque;
use std::future::poll_fn;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use rean_store::{BlobId, Db, Reading, StoreError};

use crate::error::ApiError;

/// A page of text is sent when it has grown to this, in bytes: few frames, little memory.
pub const PAGE_BYTES: usize = 64 << 10;
/// What is read of an attachment at once, in bytes: the store keeps pieces of this size.
const BLOB_CHUNK_BYTES: usize = 64 << 10;

/// What is to be sent, in order.
#[derive(Default)]
pub struct Out {
    /// The text at the end; add to it freely.
    pub text: Vec<u8>,
    queue: VecDeque<Piece>,
}

enum Piece {
    Text(Bytes),
    Blob(BlobPiece),
}

/// A part of an attachment that is still to be sent.
struct BlobPiece {
    blob: BlobId,
    at: u64,
    end: u64,
    base64: bool,
    /// Base64 takes three bytes at a time: the one or two that wait for the next read.
    carry: Vec<u8>,
    /// The file that it is, once it is being read.
    file: Option<Box<dyn Reading>>,
}

/// Why an attachment can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is a file, and that can't be read.
    #[error(transparent)]
    File(#[from] std::io::Error),
}

impl Out {
    /// Adds the bytes `from..to` of an attachment as they are.
    pub fn push_blob(&mut self, blob: BlobId, from: u64, to: u64) {
        self.push_piece(BlobPiece { blob, at: from, end: to, base64: false, carry: Vec::new(), file: None });
    }

    /// Adds a whole attachment as Base64 text.
    pub fn push_base64(&mut self, blob: BlobId, length: u64) {
        self.push_piece(BlobPiece { blob, at: 0, end: length, base64: true, carry: Vec::new(), file: None });
    }

    fn push_piece(&mut self, piece: BlobPiece) {
        self.close_text();
        self.queue.push_back(Piece::Blob(piece));
    }

    fn close_text(&mut self) {
        if !self.text.is_empty() {
            let text = std::mem::take(&mut self.text);
            self.queue.push_back(Piece::Text(text.into()));
        }
    }

    /// Whether enough has been gathered to be sent.
    pub fn is_full(&self) -> bool {
        self.text.len() >= PAGE_BYTES || !self.queue.is_empty()
    }

    /// How many bytes are still to be sent.
    pub fn len(&self) -> u64 {
        let queued = self.queue.iter().map(|piece| match piece {
            Piece::Text(text) => text.len() as u64,
            Piece::Blob(piece) => {
                let bytes = piece.end.saturating_sub(piece.at) + piece.carry.len() as u64;
                if piece.base64 { bytes.div_ceil(3) * 4 } else { bytes }
            }
        });
        queued.sum::<u64>() + self.text.len() as u64
    }

    /// Whether nothing is left to be sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole text, if there is nothing but text.
    pub fn into_text(self) -> Option<Vec<u8>> {
        self.queue.is_empty().then_some(self.text)
    }

    /// The next bytes to send; `None` when all has been sent.
    ///
    /// # Errors
    /// When an attachment can't be read or is shorter than its record says.
    pub async fn next_chunk(&mut self, db: &Db) -> Result<Option<Bytes>, ChunkError> {
        loop {
            match self.queue.front_mut() {
                None => {
                    let text = std::mem::take(&mut self.text);
                    return Ok((!text.is_empty()).then(|| text.into()));
                }
                Some(Piece::Text(text)) => {
                    let text = std::mem::take(text);
                    self.queue.pop_front();
                    return Ok(Some(text));
                }
                Some(Piece::Blob(piece)) if piece.at >= piece.end => {
                    self.queue.pop_front();
                }
                Some(Piece::Blob(piece)) => return piece.next_chunk(db).await.map(Some),
            }
        }
    }
}

impl BlobPiece {
    async fn next_chunk(&mut self, db: &Db) -> Result<Bytes, ChunkError> {
        let read = self.read(db).await?;
        if !self.base64 {
            return Ok(read);
        }
        let mut bytes = std::mem::take(&mut self.carry);
        bytes.extend_from_slice(&read);
        let whole = if self.at >= self.end { bytes.len() } else { bytes.len() - bytes.len() % 3 };
        self.carry = bytes.split_off(whole);
        Ok(STANDARD.encode(&bytes).into())
    }

    async fn read(&mut self, db: &Db) -> Result<Bytes, ChunkError> {
        if self.file.is_none()
            && let Some(file) = db.file(self.blob)?
        {
            self.file = Some(db.read_file(&file, self.at, self.end));
        }
        let bytes = match &mut self.file {
            Some(file) => poll_fn(|context| file.poll_bytes(context)).await.transpose()?.unwrap_or_default(),
            None => {
                let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
                db.blob_read(self.blob, self.at, BLOB_CHUNK_BYTES.min(left))?
            }
        };
        if bytes.is_empty() {
            return Err(StoreError::Damaged("an attachment is shorter than its record").into());
        }
        self.at += bytes.len() as u64;
        Ok(bytes)
    }
}

/// Makes an answer page by page.
pub trait Pages: Send + 'static {
    /// Adds the next page; says whether there is more to come. It may end before the page is full, so that others get
    /// the thread.
    ///
    /// # Errors
    /// An error after the first page cuts the answer off: the client sees that it isn't whole.
    fn fill(&mut self, out: &mut Out) -> Result<bool, ApiError>;
}

/// The one page that is there already.
struct Nothing;

impl Pages for Nothing {
    fn fill(&mut self, _: &mut Out) -> Result<bool, ApiError> {
        Ok(false)
    }
}

/// A body that sends what `out` holds.
pub fn body(db: &Db, out: Out) -> Body {
    if out.queue.is_empty() {
        return Body::from(out.text);
    }
    sent(PageBody { db: db.clone(), out, pages: Box::new(Nothing), more: false })
}

/// A body that is made while it is sent. The first page is made at once, so that its error becomes the answer,
/// and so that a short answer has its length.
///
/// # Errors
/// That of the first page.
pub fn paged(db: &Db, mut pages: impl Pages) -> Result<Body, ApiError> {
    let mut out = Out::default();
    let more = pages.fill(&mut out)?;
    if !more {
        return Ok(body(db, out));
    }
    Ok(sent(PageBody { db: db.clone(), out, pages: Box::new(pages), more }))
}

struct PageBody {
    db: Db,
    out: Out,
    pages: Box<dyn Pages>,
    more: bool,
}

/// Why an answer was cut off.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut off: {0}")]
struct CutOff(String);

fn sent(body: PageBody) -> Body {
    Body::from_stream(stream::unfold(Some(body), |body| async {
        let mut body = body?;
        match body.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(body))),
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "an answer was cut off");
                Some((Err(error), None))
            }
        }
    }))
}

impl PageBody {
    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, CutOff> {
        loop {
            if self.out.is_full() || !self.more {
                let chunk = self.out.next_chunk(&self.db).await.map_err(|error| CutOff(error.to_string()))?;
                if chunk.is_some() || !self.more {
                    return Ok(chunk);
                }
            }
            self.more = self.pages.fill(&mut self.out).map_err(|error| CutOff(error.cause().to_owned()))?;
            if self.more && !self.out.is_full() {
                // The next page is made when others have had their turn.
                tokio::task::yield_now().await;
            }
        }
    }
}
