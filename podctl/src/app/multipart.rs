//! A document with the attachments that follow it, as one body that is read as it is sent.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::folder::Content;

/// What is read at once, in bytes.
const PART_BYTES: usize = 64 << 10;

/// A `multipart/related` body (RFC 2387).
pub struct Related {
    boundary: String,
    pieces: VecDeque<Content>,
    bytes: u64,
}

impl Related {
    /// Begins with the document.
    pub fn new(document: &str) -> Self {
        let boundary = format!("{:032x}", rand::random::<u128>());
        let head = format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n{document}");
        Self { bytes: head.len() as u64, pieces: [Content::Made(head.into())].into(), boundary }
    }

    /// Adds the next attachment, in the order of the document's `_attachments`.
    pub fn push(&mut self, content: Content, bytes: u64) {
        let head = format!("\r\n--{}\r\nContent-Length: {bytes}\r\n\r\n", self.boundary);
        self.bytes += head.len() as u64 + bytes;
        self.pieces.push_back(Content::Made(head.into()));
        self.pieces.push_back(content);
    }

    /// The type, the length and the bytes.
    pub fn into_body(mut self) -> (String, u64, impl Stream<Item = io::Result<Bytes>> + Send + 'static) {
        let mut end = String::new();
        // Writing to a string can't fail.
        let _ = write!(end, "\r\n--{}--", self.boundary);
        self.bytes += end.len() as u64;
        self.pieces.push_back(Content::Made(end.into()));
        let kind = format!("multipart/related; boundary=\"{}\"", self.boundary);
        let parts = stream::unfold((self.pieces, None::<File>), |(mut pieces, mut open)| async move {
            loop {
                if let Some(file) = &mut open {
                    let mut part = vec![0; PART_BYTES];
                    match file.read(&mut part).await {
                        Ok(0) => open = None,
                        Ok(read) => {
                            part.truncate(read);
                            return Some((Ok(Bytes::from(part)), (pieces, open)));
                        }
                        Err(error) => return Some((Err(error), (VecDeque::new(), None))),
                    }
                }
                if open.is_none() {
                    match pieces.pop_front()? {
                        Content::Made(bytes) => return Some((Ok(bytes), (pieces, open))),
                        Content::File(path) => match File::open(path).await {
                            Ok(file) => open = Some(file),
                            Err(error) => return Some((Err(error), (VecDeque::new(), None))),
                        },
                    }
                }
            }
        });
        (kind, self.bytes, parts)
    }
}

#[cfg(test)]
mod tests {
    use super::{Content, Related};
    use futures_util::TryStreamExt;

    #[tokio::test]
    async fn what_is_sent_has_the_length_that_is_said() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "content").unwrap();
        let mut body = Related::new("{}");
        body.push(Content::File(file.path().to_owned()), 7);
        body.push(Content::Made("made".into()), 4);
        let (kind, bytes, parts) = body.into_body();
        let all: Vec<bytes::Bytes> = parts.try_collect().await.unwrap();
        let text = String::from_utf8(all.concat()).unwrap();
        assert_eq!(text.len() as u64, bytes);
        let boundary = kind.split('"').nth(1).unwrap();
        assert!(text.ends_with(&format!("\r\n--{boundary}--")) && text.contains("\r\n\r\ncontent\r\n--"), "{text}");
    }
}
