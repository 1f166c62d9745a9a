//! Compressing answers on their way to the client.

use std::io::Write;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use tokio::sync::OwnedSemaphorePermit;

use crate::body::{Body, BodyError, UpstreamBody};

/// Below this, in bytes, an answer fits into a packet and compressing it saves nothing.
const SMALLEST_BYTES: u64 = 1024;
/// Answers compressed at once: each holds about 300 KB. Further ones go out as they are.
pub const MOST_AT_ONCE: usize = 256;

/// An answer that is compressed as it comes.
#[derive(Debug)]
pub struct GzipBody {
    body: UpstreamBody,
    /// `None` once it has ended.
    encoder: Option<GzEncoder<Vec<u8>>>,
    _permit: OwnedSemaphorePermit,
}

impl GzipBody {
    /// Level 1: the fastest that still finds repeated keys, of which JSON is full.
    pub fn new(body: UpstreamBody, permit: OwnedSemaphorePermit) -> Self {
        let encoder = Some(GzEncoder::new(Vec::new(), Compression::fast()));
        Self { body, encoder, _permit: permit }
    }

    /// The next compressed part.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let Some(encoder) = &mut self.encoder else { return Poll::Ready(None) };
            let data = match ready!(self.body.poll(context)) {
                None => return Poll::Ready(self.finish()),
                Some(Err(error)) => {
                    self.encoder = None;
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(frame)) => frame.into_data(),
            };
            // Trailers don't pass: rean sends none.
            let Ok(data) = data else { continue };
            if let Err(error) = encoder.write_all(&data) {
                self.encoder = None;
                return Poll::Ready(Some(Err(BodyError::Gzip(error))));
            }
            let out = std::mem::take(encoder.get_mut());
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
        }
    }

    fn finish(&mut self) -> Option<Result<Frame<Bytes>, BodyError>> {
        let encoder = self.encoder.take()?;
        Some(encoder.finish().map(|rest| Frame::data(rest.into())).map_err(BodyError::Gzip))
    }
}

/// Whether a client takes gzip (RFC 9110, 12.5.3).
pub fn accepts(headers: &HeaderMap) -> bool {
    let lists = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|item| {
        let mut parts = item.split(';').map(str::trim);
        let gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip") || name == "*");
        let refused = parts.any(|part| {
            let value = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            value.is_some_and(|value| value.trim().parse::<f32>().is_ok_and(|value| value <= 0.0))
        });
        gzip && !refused
    })
}

/// Whether compressing an answer to a client that takes gzip is worth it and right.
///
/// Only JSON and text; no ranges, as they count the bytes of the plain form; nothing that is encoded already.
pub fn is_worth_it(response: &Response<Body>) -> bool {
    let status = response.status();
    let headers = response.headers();
    let plain = !headers.contains_key(header::CONTENT_ENCODING)
        && !headers.contains_key(header::CONTENT_RANGE)
        && status != StatusCode::PARTIAL_CONTENT;
    let large = response.body().upstream_size().is_some_and(|size| match size.exact() {
        Some(bytes) => bytes > SMALLEST_BYTES,
        None => true,
    });
    let text = headers.get(header::CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes();
        kind.starts_with(b"application/json") || kind.starts_with(b"text/") && !kind.starts_with(b"text/event-stream")
    });
    plain && large && text
}

/// Turns the answer into its compressed form.
///
/// The `ETag` stays as it is: for CouchDB's clients it is the revision, which they send back as they got it. `Vary`
/// keeps the two forms apart in caches.
pub fn compress(response: &mut Response<Body>, permit: OwnedSemaphorePermit) {
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    response.body_mut().compress(permit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_encoding_is_read() {
        for (value, expected) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("*", true),
            ("gzip;q=0, br", false),
            ("gzip; q=0.000", false),
            ("deflate", false),
            ("", false),
            ("xgzip", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            assert_eq!(accepts(&headers), expected, "{value}");
        }
        assert!(!accepts(&HeaderMap::new()));
    }
}
