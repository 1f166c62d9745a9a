//! Request bodies: read whole where they are JSON, piece by piece where they are attachments, never beyond a limit.

use std::io::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use flate2::write::GzDecoder;
use futures_util::{Stream, StreamExt};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};

use crate::error::ApiError;
use crate::pod::Pod;
use crate::shares::{Share, Shares, Whose};

/// Bodies up to this size, in bytes, don't wait for their share of the memory: most of what a pod takes is smaller,
/// and as many of them as there are connections fit beside the budget.
const SMALL_BODY_BYTES: usize = 16 << 10;
/// How long a body waits for its share of the memory.
const BUDGET_TIMEOUT: Duration = Duration::from_secs(20);
/// Compressed bytes that are unpacked at once.
const INFLATE_STEP_BYTES: usize = 4 << 10;

/// The memory that all request bodies share.
#[derive(Clone)]
pub struct BodyBudget {
    bytes: Shares,
}

impl BodyBudget {
    /// A budget of this many bytes (at most 4 GiB).
    pub fn new(bytes: usize) -> Self {
        Self { bytes: Shares::new(bytes) }
    }

    /// A share for a body of which no more will be read than this, for somebody.
    ///
    /// # Errors
    /// 503 when there is none for a while.
    pub async fn share(&self, whose: &Whose, bytes: usize) -> Result<BodyShare, ApiError> {
        if bytes <= SMALL_BODY_BYTES {
            return Ok(BodyShare { share: None });
        }
        Ok(BodyShare { share: Some(self.take(whose, bytes).await?) })
    }

    /// Waits for a share, and gives up after a while: two bodies may each wait for what the other has.
    async fn take(&self, whose: &Whose, bytes: usize) -> Result<Share, ApiError> {
        self.bytes.take(whose, bytes, BUDGET_TIMEOUT).await.ok_or_else(busy)
    }
}

fn busy() -> ApiError {
    let reason = "too many large requests at once; try again";
    ApiError::new(http::StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", reason)
}

/// 503 for a body that came slowly, and has lost its memory to another one.
fn crowded_out() -> ApiError {
    let reason =
        "The request body came slowly, and its place is needed: there are too many large requests at once; try again";
    ApiError::new(http::StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", reason)
}

/// A share of the memory, until it is dropped. Small bodies take none.
pub struct BodyShare {
    share: Option<Share>,
}

impl BodyShare {
    /// What the client says next.
    ///
    /// # Errors
    /// 503 when it was slow, and others need the memory.
    pub async fn hears<T>(&self, next: impl Future<Output = T>) -> Result<T, ApiError> {
        match &self.share {
            Some(share) => share.hears(next).await.ok_or_else(crowded_out),
            None => Ok(next.await),
        }
    }
}

/// A body in memory, with the share of the budget that it takes until it is dropped.
struct Held {
    bytes: Vec<u8>,
    _share: BodyShare,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a whole body that must say that it is JSON.
///
/// # Errors
/// 415 for another content type; otherwise as [`read_any`].
pub async fn read_json(pod: &Pod, headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    require_json(headers)?;
    read_any(pod, headers, body).await
}

/// Checks that a body says that it is JSON.
///
/// # Errors
/// 415 `bad_content_type`.
pub fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = text.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(ApiError::bad_content_type("application/json"))
    }
}

/// Reads a whole body, whatever its type.
///
/// # Errors
/// 413 beyond `max_body_bytes`, 415 for an unknown `Content-Encoding`, 400 when it breaks off or can't be unpacked.
pub async fn read_any(pod: &Pod, headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let max = pod.limits.max_body_bytes;
    let gzip = is_gzip(headers)?;
    if declared_length(headers).is_some_and(|length| length > max as u64) {
        return Err(ApiError::body_too_large());
    }
    let mut stream = body.into_data_stream();
    let mut gathered = Gathered {
        sink: Sink::new(gzip),
        budget: pod.bodies.clone(),
        whose: Whose::signed(headers),
        max,
        reserved: SMALL_BODY_BYTES,
        share: BodyShare { share: None },
    };
    while let Some(chunk) = gathered.share.hears(stream.next()).await? {
        let chunk = chunk.map_err(|_| broken_off())?;
        gathered.add(&chunk).await?;
    }
    gathered.finish().await
}

/// A body on its way into memory.
struct Gathered {
    sink: Sink,
    budget: BodyBudget,
    whose: Whose,
    max: usize,
    reserved: usize,
    share: BodyShare,
}

impl Gathered {
    async fn add(&mut self, chunk: &[u8]) -> Result<(), ApiError> {
        if let Some(share) = &self.share.share {
            share.came(chunk.len());
        }
        for step in chunk.chunks(self.sink.step_bytes()) {
            self.sink.write(step)?;
            self.check().await?;
        }
        Ok(())
    }

    async fn check(&mut self) -> Result<(), ApiError> {
        let length = self.sink.len();
        if length > self.max {
            return Err(ApiError::body_too_large());
        }
        if length > self.reserved {
            // Twice as much each time, as the vector grows: nothing is reserved for bytes that never come.
            let more = length.max(2 * self.reserved) - self.reserved;
            match &self.share.share {
                Some(share) if share.grow(more, BUDGET_TIMEOUT).await => {}
                Some(_) => return Err(busy()),
                None => self.share.share = Some(self.budget.take(&self.whose, more).await?),
            }
            self.reserved += more;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Bytes, ApiError> {
        self.sink.flush()?;
        self.check().await?;
        let bytes = self.sink.into_bytes()?;
        Ok(Bytes::from_owner(Held { bytes, _share: self.share }))
    }
}

/// Where received bytes go.
enum Sink {
    Plain(Vec<u8>),
    Gzip(Box<GzDecoder<Vec<u8>>>),
}

impl Sink {
    fn new(gzip: bool) -> Self {
        if gzip { Self::Gzip(Box::new(GzDecoder::new(Vec::new()))) } else { Self::Plain(Vec::new()) }
    }

    /// How much may be written before the length is looked at again: deflate grows up to a thousandfold.
    fn step_bytes(&self) -> usize {
        match self {
            Self::Plain(_) => usize::MAX,
            Self::Gzip(_) => INFLATE_STEP_BYTES,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        match self {
            Self::Plain(text) => {
                text.extend_from_slice(bytes);
                Ok(())
            }
            Self::Gzip(decoder) => decoder.write_all(bytes).map_err(|_| bad_gzip()),
        }
    }

    fn flush(&mut self) -> Result<(), ApiError> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Gzip(decoder) => decoder.try_finish().map_err(|_| bad_gzip()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Plain(text) => text.len(),
            Self::Gzip(decoder) => decoder.get_ref().len(),
        }
    }

    fn into_bytes(self) -> Result<Vec<u8>, ApiError> {
        match self {
            Self::Plain(text) => Ok(text),
            Self::Gzip(decoder) => decoder.finish().map_err(|_| bad_gzip()),
        }
    }
}

/// A multipart body, which may be as long as a document and its attachments.
pub struct Limited {
    stream: BodyDataStream,
    left: u64,
}

impl Limited {
    /// Reads at most `max` bytes.
    pub fn new(body: Body, max: u64) -> Self {
        Self { stream: body.into_data_stream(), left: max }
    }
}

/// Why a multipart body ended early.
#[derive(Debug, thiserror::Error)]
pub enum LimitedError {
    /// It is longer than allowed.
    #[error("the body is too large")]
    TooLarge,
    /// The connection broke.
    #[error("the body broke off")]
    BrokenOff,
}

impl Stream for Limited {
    type Item = Result<Bytes, LimitedError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = std::task::ready!(self.stream.poll_next_unpin(cx));
        Poll::Ready(next.map(|chunk| {
            let chunk = chunk.map_err(|_| LimitedError::BrokenOff)?;
            self.left = self.left.checked_sub(chunk.len() as u64).ok_or(LimitedError::TooLarge)?;
            Ok(chunk)
        }))
    }
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn is_gzip(headers: &HeaderMap) -> Result<bool, ApiError> {
    let Some(value) = headers.get(CONTENT_ENCODING) else {
        return Ok(false);
    };
    match value.as_bytes() {
        b"" => Ok(false),
        value if value.eq_ignore_ascii_case(b"identity") => Ok(false),
        value if value.eq_ignore_ascii_case(b"gzip") => Ok(true),
        _ => Err(ApiError::new(
            http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "bad_ctype",
            "Only gzip is supported as Content-Encoding",
        )),
    }
}

fn bad_gzip() -> ApiError {
    ApiError::bad_request("The body is not valid gzip")
}

/// The client has gone, or the proxy cut it off: the answer is for the log.
fn broken_off() -> ApiError {
    ApiError::bad_request("The body ended too early")
}
