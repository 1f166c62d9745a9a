//! The way to a neighbour, and what has gone along it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use adea_ring::PodId;
use axum::body::Body;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http_body::Frame;

use crate::pod::Pod;
use crate::replicate::peer::{Answering, Road};
use crate::route::Response;

/// Bytes of bodies that have gone along a link, since the start; what TLS and HTTP add is not counted.
#[derive(Default)]
pub struct Traffic {
    /// From the neighbour.
    pub received: AtomicU64,
    /// To it.
    pub sent: AtomicU64,
}

/// The way to a neighbour.
pub struct ToNeighbour {
    /// This pod.
    pub pod: Arc<Pod>,
    /// The neighbour.
    pub peer: PodId,
    /// Where it is reached.
    pub address: String,
    /// What has gone along.
    pub traffic: Arc<Traffic>,
}

impl ToNeighbour {
    /// Asks for a feed.
    ///
    /// # Errors
    /// Why no answer began.
    pub async fn send_feed(&self, request: http::Request<Body>) -> Result<Response, String> {
        self.exchange(request, true).await
    }

    async fn exchange(&self, mut request: http::Request<Body>, is_feed: bool) -> Result<Response, String> {
        let Some(wire) = self.pod.ring.wire() else {
            return Err("this pod is alone".to_owned());
        };
        wire.identify(request.headers_mut());
        let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        self.traffic.sent.fetch_add(length.unwrap_or(0), Ordering::Relaxed);
        let answer = match is_feed {
            true => wire.send_feed(&self.peer, &self.address, request).await,
            false => wire.send(&self.peer, &self.address, request).await,
        };
        let traffic = Arc::clone(&self.traffic);
        answer.map(|answer| answer.map(|body| Body::new(Counted { body, traffic }))).map_err(|error| error.to_string())
    }
}

impl Road for ToNeighbour {
    fn send(&self, request: http::Request<Body>) -> Answering<'_> {
        Box::pin(self.exchange(request, false))
    }
}

/// A body whose bytes are counted as they come.
struct Counted {
    body: Body,
    traffic: Arc<Traffic>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(bytes) = frame.data_ref()
        {
            self.traffic.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
