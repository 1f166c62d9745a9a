//! A body as lines, with a bound on each.

use axum::body::{Body, BodyDataStream};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;

/// The longest line, in bytes: a row with 5,000 leaves, or a vector of 10,000 origins, fits.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Longer than [`MAX_LINE_BYTES`].
    #[error("a line is too long")]
    TooLong,
    /// It broke off.
    #[error("it broke off: {0}")]
    Broken(String),
}

/// A body as lines.
pub struct Lines {
    body: BodyDataStream,
    buffer: BytesMut,
    /// Bytes of the buffer in which there is no end of a line.
    searched: usize,
}

impl Lines {
    /// The lines of a body.
    pub fn new(body: Body) -> Self {
        Self { body: body.into_data_stream(), buffer: BytesMut::new(), searched: 0 }
    }

    /// A line that has arrived already.
    pub fn ready(&mut self) -> Option<Bytes> {
        let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n').map(|at| at + self.searched);
        let Some(end) = end else {
            self.searched = self.buffer.len();
            return None;
        };
        let line = self.buffer.split_to(end).freeze();
        self.buffer.advance(1);
        self.searched = 0;
        Some(line)
    }

    /// The next line that isn't empty; `None` at the end. A call that is given up loses nothing.
    ///
    /// # Errors
    /// When the body breaks off or a line is too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LineError> {
        loop {
            while let Some(line) = self.ready() {
                if !line.is_empty() {
                    return Ok(Some(line));
                }
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(LineError::TooLong);
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(error)) => return Err(LineError::Broken(error.to_string())),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(LineError::Broken("in the middle of a line".to_owned())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Lines, MAX_LINE_BYTES};
    use axum::body::Body;
    use bytes::Bytes;
    use futures_util::stream;

    fn lines(text: &str, step: usize) -> Lines {
        let chunks: Vec<Result<Bytes, std::io::Error>> =
            text.as_bytes().chunks(step).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        Lines::new(Body::from_stream(stream::iter(chunks)))
    }

    #[tokio::test]
    async fn lines_come_out_whole_however_they_are_cut() {
        for step in 1..9 {
            let mut lines = lines("one\n\ntwo\nthree\n", step);
            for expected in ["one", "two", "three"] {
                assert_eq!(lines.next().await.expect("whole").expect("a line"), expected);
            }
            assert!(lines.next().await.expect("the end").is_none());
        }
        assert!(lines("one\ntw", 2).next().await.is_ok());
        assert!(lines("tw", 2).next().await.is_err());
        assert!(lines(&"x".repeat(MAX_LINE_BYTES * 2), 100_000).next().await.is_err());
    }
}
