//! Writes what stands between the contents of a multipart body.

use bytes::Bytes;

/// The lines between parts. Send [`part`](PartWriter::part) or [`attachment`](PartWriter::attachment), then that
/// part's content, and so on, then [`end`](PartWriter::end).
#[derive(Clone, Debug)]
pub struct PartWriter {
    boundary: String,
    is_first: bool,
}

/// What the headers of an attachment's part say.
#[derive(Clone, Copy, Debug)]
pub struct Attachment<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its media type.
    pub content_type: &'a str,
    /// Its length in bytes as it is sent.
    pub length: u64,
    /// How it is compressed, if it is.
    pub encoding: Option<&'a str>,
}

/// A boundary that occurs in no content but by malice or one chance in 2^128.
pub fn random_boundary() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

impl Default for PartWriter {
    fn default() -> PartWriter {
        PartWriter::new()
    }
}

impl PartWriter {
    /// A body with a boundary of its own.
    pub fn new() -> PartWriter {
        PartWriter { boundary: random_boundary(), is_first: true }
    }

    /// The boundary.
    pub fn boundary(&self) -> &str {
        &self.boundary
    }

    /// The body's `Content-Type`; `subtype` is `related` or `mixed`.
    pub fn content_type(&self, subtype: &str) -> String {
        format!("multipart/{subtype}; boundary=\"{}\"", self.boundary)
    }

    /// What comes before a part's content: the end of the part before, the boundary and these headers.
    pub fn part(&mut self, headers: &[(&str, &str)]) -> Bytes {
        let mut text = self.delimiter();
        text.push_str("\r\n");
        for (name, value) in headers {
            text.push_str(name);
            text.push_str(": ");
            text.extend(value.chars().map(without_control));
            text.push_str("\r\n");
        }
        text.push_str("\r\n");
        Bytes::from(text)
    }

    /// What comes before an attachment's content, with the headers that CouchDB's replicator reads.
    pub fn attachment(&mut self, attachment: Attachment<'_>) -> Bytes {
        let name = attachment.name.replace('\\', "\\\\").replace('"', "\\\"");
        let disposition = format!("attachment; filename=\"{name}\"");
        let length = attachment.length.to_string();
        let mut headers = vec![
            ("Content-Disposition", disposition.as_str()),
            ("Content-Type", attachment.content_type),
            ("Content-Length", length.as_str()),
        ];
        headers.extend(attachment.encoding.map(|encoding| ("Content-Encoding", encoding)));
        self.part(&headers)
    }

    /// What comes behind the last part's content.
    pub fn end(mut self) -> Bytes {
        let mut text = self.delimiter();
        text.push_str("--");
        Bytes::from(text)
    }

    fn delimiter(&mut self) -> String {
        let start = if self.is_first { "--" } else { "\r\n--" };
        self.is_first = false;
        format!("{start}{}", self.boundary)
    }
}

/// Names and types are a client's: a line break in one would make headers, or a part.
fn without_control(character: char) -> char {
    if character.is_control() { ' ' } else { character }
}
