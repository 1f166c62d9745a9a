//! Bodies on their way through the proxy. Neither kind is ever held as a whole.
//!
//! [`RequestBody`] goes to rean: it counts, stops at the limit and gives up on a client that is too slow.
//! [`Body`] goes to the client: its own small answers, rean's answers as they come, compressed ones, and feeds.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use adea_ring::pace::Pace;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::feeds::{Close, FeedTicket};
use crate::gzip::GzipBody;
use crate::metrics::Metrics;
use crate::outflow::Giver;
use crate::tally::Tally;
use crate::tunnel::Tunnel;
use crate::upstream::{PoolLease, StreamLease};

/// How much of a refused body is read and thrown away, in bytes, so that a client that sends first and listens later
/// gets the answer and not a reset connection.
const DRAIN_BYTES: u64 = 64 * 1024 * 1024;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// How much is given at once where it is watched whether the client takes it, in bytes: what HTTP/2 puts into one frame.
/// That a piece has been sent shows only when all of it has, and what comes from rean may be hundreds of KiB: who takes
/// that slowly and steadily would seem to take nothing.
const PIECE_BYTES: usize = 16 << 10;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client sent more than it may.
    #[error("the body is too large")]
    TooLarge,
    /// The client sent nothing for too long, or not enough.
    #[error("the body did not arrive in time")]
    Timeout,
    /// The connection broke, or what came was no HTTP.
    #[error("the body was broken off")]
    Broken(#[source] hyper::Error),
    /// The right to the feed has ended.
    #[error("the feed has ended")]
    FeedEnded,
    /// Compressing failed.
    #[error("the body could not be compressed")]
    Gzip(#[source] std::io::Error),
}

/// A body for rean.
#[derive(Debug)]
pub enum RequestBody {
    /// None.
    Empty,
    /// One of the proxy's own.
    Full(Option<Bytes>),
    /// A client's.
    Stream(ClientBody),
}

/// How slowly a body may come.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The longest pause.
    pub idle: Duration,
    /// How fast it must be on the whole; `None`: anything goes.
    pub pace: Option<Pace>,
}

/// A client's body.
#[derive(Debug)]
pub struct ClientBody {
    /// Taken out when it has ended, so that what is left at the drop is what was not read.
    incoming: Option<Incoming>,
    left_bytes: u64,
    patience: Patience,
    /// Since when the client is waited for. What passes while rean takes nothing is not the client's fault.
    waits_since: Option<Instant>,
    /// Ends when the client is given up; made when it is waited for the first time.
    alarm: Option<Pin<Box<Sleep>>>,
    metrics: Arc<Metrics>,
    /// A client that waits for `100 Continue` has sent nothing yet, so there is nothing to throw away.
    waits: bool,
    /// Set once all of it was read.
    sent: Arc<AtomicBool>,
}

impl ClientBody {
    /// A client's body of at most `limit_bytes`.
    pub fn new(incoming: Incoming, limit_bytes: u64, patience: Patience, waits: bool, metrics: Arc<Metrics>) -> Self {
        Self {
            incoming: Some(incoming),
            left_bytes: limit_bytes,
            patience,
            waits_since: None,
            alarm: None,
            metrics,
            waits,
            sent: Arc::default(),
        }
    }

    /// The number of bytes that are to come, where that is known.
    pub fn exact_bytes(&self) -> Option<u64> {
        self.incoming.as_ref().and_then(|incoming| http_body::Body::size_hint(incoming).exact())
    }

    /// Lowers the limit.
    pub fn limit(&mut self, limit_bytes: u64) {
        self.left_bytes = self.left_bytes.min(limit_bytes);
    }

    /// The whole of a small body.
    ///
    /// # Errors
    /// When it is larger than the limit, late or broken.
    pub async fn collect(self) -> Result<Bytes, BodyError> {
        Ok(RequestBody::Stream(self).collect().await?.to_bytes())
    }

    /// Set when the waiting begins, and not again until something has come.
    fn alarm(&mut self) -> Pin<&mut Sleep> {
        let Patience { idle, pace } = self.patience;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        if self.waits_since.is_none() {
            let now = Instant::now();
            self.waits_since = Some(now);
            alarm.as_mut().reset(now + pace.map_or(idle, |pace| pace.left().min(idle)));
        }
        alarm.as_mut()
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        match http_body::Body::poll_frame(Pin::new(incoming), context) {
            Poll::Pending => {
                let alarm = self.alarm();
                ready!(alarm.poll(context));
                self.incoming = None;
                Poll::Ready(Some(Err(BodyError::Timeout)))
            }
            Poll::Ready(None) => {
                self.incoming = None;
                self.sent.store(true, Release);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.incoming = None;
                Poll::Ready(Some(Err(BodyError::Broken(error))))
            }
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                let waited = self.waits_since.take().map(|since| since.elapsed());
                if let Some(pace) = &mut self.patience.pace {
                    pace.waited(waited.unwrap_or_default());
                    pace.came(bytes);
                }
                self.metrics.bytes_in.fetch_add(bytes, Relaxed);
                match self.left_bytes.checked_sub(bytes) {
                    Some(left) => self.left_bytes = left,
                    None => return Poll::Ready(Some(Err(BodyError::TooLarge))),
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        let Some(incoming) = self.incoming.take() else { return };
        if http_body::Body::is_end_stream(&incoming) {
            self.sent.store(true, Release);
            return;
        }
        if self.waits {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = tokio::time::timeout(DRAIN_TIME, drain(incoming)).await;
            });
        }
    }
}

async fn drain(mut incoming: Incoming) {
    let mut seen_bytes = 0;
    while let Some(Ok(frame)) = incoming.frame().await {
        seen_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        if seen_bytes > DRAIN_BYTES {
            return;
        }
    }
}

impl RequestBody {
    /// Is set once all of a client's body was read; `None` for a body that is there already.
    pub fn sent_flag(&self) -> Option<Arc<AtomicBool>> {
        match self {
            Self::Stream(body) => Some(Arc::clone(&body.sent)),
            Self::Empty | Self::Full(_) => None,
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(body) => body.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Stream(body) => body.incoming.as_ref().is_none_or(http_body::Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Stream(body) => match &body.incoming {
                Some(incoming) => http_body::Body::size_hint(incoming),
                None => SizeHint::with_exact(0),
            },
        }
    }
}

/// A body for a client.
#[derive(Debug)]
pub struct Body {
    kind: Kind,
    /// Written down when the body has ended or was dropped.
    tally: Option<Box<Tally>>,
    /// Where somebody looks whether the client takes it.
    giver: Option<Giver>,
    /// What has come and was not given yet; empty where nobody looks.
    rest: Bytes,
}

#[derive(Debug)]
enum Kind {
    Full(Option<Bytes>),
    Plain(UpstreamBody),
    Gzip(Box<GzipBody>),
    Feed(FeedBody),
    /// Not a body, but what comes in its place; `None` once it was taken.
    Tunnel(Option<Box<Tunnel>>),
}

/// rean's answer, and the connection that it comes from.
#[derive(Debug)]
pub struct UpstreamBody {
    incoming: Incoming,
    /// Given back when the whole body was read; dropped otherwise, which closes the connection.
    lease: Option<PoolLease>,
}

/// What a feed is made of, for how it may end before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedForm {
    /// Lines: it may end after any.
    Lines,
    /// One JSON value, which must not look complete.
    Json,
    /// Events of many feeds, of which the last says why it ends. `true`: the last one that came is whole.
    Events(bool),
}

/// A feed from rean.
#[derive(Debug)]
struct FeedBody {
    incoming: Option<Incoming>,
    ticket: FeedTicket,
    form: FeedForm,
    metrics: Arc<Metrics>,
    _stream: StreamLease,
}

impl Drop for FeedBody {
    fn drop(&mut self) {
        self.metrics.feeds.fetch_sub(1, Relaxed);
    }
}

impl UpstreamBody {
    /// The body of an answer that came over a pooled connection.
    pub fn new(incoming: Incoming, lease: PoolLease) -> Self {
        let mut body = Self { incoming, lease: Some(lease) };
        if http_body::Body::is_end_stream(&body.incoming) {
            body.give_back();
        }
        body
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }

    /// The next part.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(http_body::Body::poll_frame(Pin::new(&mut self.incoming), context));
        if frame.is_none() || http_body::Body::is_end_stream(&self.incoming) {
            self.give_back();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)))
    }

    /// The whole body, for the proxy's own questions.
    ///
    /// # Errors
    /// When it is larger than `limit_bytes` or breaks off.
    pub async fn collect(mut self, limit_bytes: usize) -> Result<Vec<u8>, BodyError> {
        let mut all = Vec::new();
        while let Some(frame) = std::future::poll_fn(|context| self.poll(context)).await {
            if let Ok(data) = frame?.into_data() {
                if all.len() + data.len() > limit_bytes {
                    return Err(BodyError::TooLarge);
                }
                all.extend_from_slice(&data);
            }
        }
        Ok(all)
    }

    /// Whether nothing is to come, and how much is where that is known.
    pub fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.incoming)
    }

    fn is_end_stream(&self) -> bool {
        http_body::Body::is_end_stream(&self.incoming)
    }
}

impl Body {
    fn of(kind: Kind) -> Self {
        Self { kind, tally: None, giver: None, rest: Bytes::new() }
    }

    /// No body.
    pub fn empty() -> Self {
        Self::of(Kind::Full(None))
    }

    /// A small body of the proxy's own.
    pub fn full(bytes: Bytes) -> Self {
        Self::of(Kind::Full(Some(bytes).filter(|bytes| !bytes.is_empty())))
    }

    /// rean's answer as it comes.
    pub fn plain(body: UpstreamBody) -> Self {
        Self::of(Kind::Plain(body))
    }

    /// rean's answer, to be compressed when [`Body::compress`] is called.
    pub fn upstream_size(&self) -> Option<SizeHint> {
        match &self.kind {
            Kind::Plain(body) => Some(body.size_hint()),
            _ => None,
        }
    }

    /// Compresses rean's answer; any other body stays as it is.
    pub fn compress(&mut self, permit: tokio::sync::OwnedSemaphorePermit) {
        let kind = std::mem::replace(&mut self.kind, Kind::Full(None));
        self.kind = match kind {
            Kind::Plain(body) => Kind::Gzip(Box::new(GzipBody::new(body, permit))),
            other => other,
        };
    }

    /// A feed, which ends when its ticket says so.
    pub fn feed(
        incoming: Incoming,
        stream: StreamLease,
        ticket: FeedTicket,
        form: FeedForm,
        metrics: Arc<Metrics>,
    ) -> Self {
        metrics.feeds.fetch_add(1, Relaxed);
        let incoming = Some(incoming);
        Self::of(Kind::Feed(FeedBody { incoming, ticket, form, metrics, _stream: stream }))
    }

    /// Whether this is a feed.
    pub fn is_feed(&self) -> bool {
        matches!(self.kind, Kind::Feed(_))
    }

    /// What comes after a `101`.
    pub fn tunnel(tunnel: Tunnel) -> Self {
        Self::of(Kind::Tunnel(Some(Box::new(tunnel))))
    }

    /// Whether a tunnel is to be taken from this.
    pub fn is_tunnel(&self) -> bool {
        matches!(self.kind, Kind::Tunnel(Some(_)))
    }

    /// Takes the tunnel, if this is one.
    pub fn take_tunnel(&mut self) -> Option<Tunnel> {
        match &mut self.kind {
            Kind::Tunnel(tunnel) => tunnel.take().map(|tunnel| *tunnel),
            _ => None,
        }
    }

    /// Counts bytes that went out in a tunnel.
    pub fn sent(&mut self, bytes: u64) {
        if let Some(tally) = &mut self.tally {
            tally.sent(bytes);
        }
    }

    /// Has the request written down when the body has ended.
    pub fn tallied(&mut self, tally: Box<Tally>) {
        self.tally = Some(tally);
    }

    /// Has it watched whether the client takes it.
    pub fn watched(&mut self, giver: Option<Giver>) {
        self.giver = giver;
    }

    /// Throws the content away: the answer to a HEAD request.
    pub fn clear(&mut self) {
        self.kind = Kind::Full(None);
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { kind, tally, giver, rest } = self.get_mut();
        let polled = match kind {
            _ if !rest.is_empty() => Poll::Ready(Some(Ok(Frame::data(std::mem::take(rest))))),
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Plain(body) => body.poll(context),
            Kind::Gzip(body) => body.poll(context),
            Kind::Feed(feed) => poll_feed(feed, context),
            Kind::Tunnel(_) => Poll::Ready(None),
        };
        if let Some(giver) = giver {
            giver.asked(&polled);
        }
        let mut frame = ready!(polled);
        if let Some(giver) = giver {
            let piece = |mut bytes: Bytes| {
                *rest = bytes.split_off(bytes.len().min(PIECE_BYTES));
                giver.give(bytes)
            };
            frame = frame.map(|frame| frame.map(|frame| frame.map_data(piece)));
        }
        if let Some(tally) = tally {
            match &frame {
                Some(Ok(frame)) => tally.sent(frame.data_ref().map_or(0, |data| data.len() as u64)),
                Some(Err(_)) => tally.broken(),
                None => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let has_all_come = match &self.kind {
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Plain(body) => body.is_end_stream(),
            Kind::Gzip(_) | Kind::Feed(_) => false,
            Kind::Tunnel(_) => true,
        };
        has_all_come && self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let to_come = match &self.kind {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Kind::Plain(body) => body.size_hint(),
            Kind::Gzip(_) | Kind::Feed(_) => SizeHint::default(),
            Kind::Tunnel(_) => SizeHint::with_exact(0),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(to_come.lower().saturating_add(rest));
        if let Some(upper) = to_come.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}

fn poll_feed(feed: &mut FeedBody, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    let Some(incoming) = &mut feed.incoming else { return Poll::Ready(None) };
    if feed.ticket.poll_ended(context.waker()) {
        feed.incoming = None;
        return Poll::Ready(match feed.form {
            // In the middle of an event nothing else can be said; one without its end counts as none.
            FeedForm::Lines | FeedForm::Events(false) => None,
            FeedForm::Json => Some(Err(BodyError::FeedEnded)),
            FeedForm::Events(true) => Some(Ok(Frame::data(last_event(feed.ticket.why())))),
        });
    }
    let frame = ready!(http_body::Body::poll_frame(Pin::new(incoming), context));
    if let (FeedForm::Events(whole), Some(Ok(frame))) = (&mut feed.form, &frame)
        && let Some(data) = frame.data_ref().filter(|data| !data.is_empty())
    {
        // A piece that is no more than a line break is cut out of an event, or after one: either way no end to rely on.
        *whole = data.ends_with(b"\n\n");
    }
    Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)))
}

/// The message `close` of the feeds' protocol (`proxy/web/FEEDS.md`), as an event.
fn last_event(close: Close) -> Bytes {
    let message = serde_json::json!({"op": "close", "code": close.code(), "reason": close.reason()});
    format!("data: {message}\n\n").into()
}
