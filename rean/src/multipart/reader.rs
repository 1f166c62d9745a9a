//! Reads a multipart body as it arrives.

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};

use super::parameter;

/// Most bytes of headers that a part may have. Parts have three or four short headers; a file name is the
/// longest thing in them.
pub const MAX_HEADER_BYTES: usize = 8 * 1024;

/// Most parts of a body: a document and as many attachments as one may have.
pub const MAX_PARTS: usize = 1 + 1_000;

/// Most spaces that may follow a boundary; RFC 2046 allows some, nobody sends any.
const MAX_PADDING_BYTES: usize = 64;

/// Why a multipart body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MultipartError {
    /// The body is not what its type says.
    #[error("malformed multipart body: {0}")]
    Malformed(&'static str),
    /// More parts or longer headers than are taken.
    #[error("multipart body has too many parts or too long headers")]
    TooLarge,
    /// The connection broke.
    #[error("reading the body failed")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The headers of one part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartHeaders {
    /// Names in lower case, and values.
    list: Vec<(String, String)>,
}

impl PartHeaders {
    /// The first header of this name, which is in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.list.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// `Content-Length`, if it is a number.
    pub fn content_length(&self) -> Option<u64> {
        self.get("content-length")?.parse().ok()
    }

    /// The file name that `Content-Disposition` gives.
    pub fn filename(&self) -> Option<String> {
        parameter(self.get("content-disposition")?, "filename")
    }

    /// The name of the field of a form that `Content-Disposition` gives (RFC 7578).
    pub fn field(&self) -> Option<String> {
        parameter(self.get("content-disposition")?, "name")
    }

    fn parse(block: &[u8]) -> Result<PartHeaders, MultipartError> {
        let mut list: Vec<(String, String)> = Vec::new();
        for line in String::from_utf8_lossy(block).split("\r\n").filter(|line| !line.is_empty()) {
            if let (true, Some((_, value))) = (line.starts_with([' ', '\t']), list.last_mut()) {
                value.push(' '); // A folded line goes on with the one before.
                value.push_str(line.trim());
                continue;
            }
            let (name, value) = line.split_once(':').ok_or(MultipartError::Malformed("a header has no colon"))?;
            list.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(PartHeaders { list })
    }
}

/// A multipart body. Call [`next_part`](Multipart::next_part), then [`chunk`](Multipart::chunk) until it gives
/// `None`, and so on. What the body's length may be is for the caller to limit, chunk by chunk.
#[derive(Debug)]
pub struct Multipart<S> {
    stream: S,
    /// What was received and not given out.
    buffer: Bytes,
    /// CRLF, two dashes and the boundary.
    delimiter: Vec<u8>,
    state: State,
    parts: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first boundary, or within a part.
    Content,
    /// At the CRLF that ends a boundary's line.
    Headers,
    /// Behind the last boundary, or behind an error.
    Done,
}

/// What is in the buffer where a delimiter could start.
enum Delimiter {
    /// Content.
    No,
    /// Cannot be told before more bytes come.
    Unclear,
    /// A delimiter; so many bytes from there the CRLF of its line is.
    Part(usize),
    /// The last delimiter.
    Last,
}

impl<S, E> Multipart<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Reads `stream`, whose type named this boundary (see [`boundary_of`](super::boundary_of)).
    pub fn new(stream: S, boundary: &str) -> Multipart<S> {
        Multipart {
            stream,
            // The first boundary has no CRLF before it if there is no preamble.
            buffer: Bytes::from_static(b"\r\n"),
            delimiter: [b"\r\n--", boundary.as_bytes()].concat(),
            state: State::Content,
            parts: 0,
        }
    }

    /// Goes on to the next part, skipping what is left of this one. `None` behind the last.
    ///
    /// # Errors
    /// [`MultipartError`]; after one there is no more to read. A body that ends without its last boundary is an
    /// error, so a broken upload is not taken for a whole one.
    pub async fn next_part(&mut self) -> Result<Option<PartHeaders>, MultipartError> {
        while self.chunk().await?.is_some() {}
        if self.state == State::Done {
            return Ok(None);
        }
        let headers = self.headers().await;
        self.state = if headers.is_ok() { State::Content } else { State::Done };
        headers.map(Some)
    }

    /// The next piece of the current part's content, never empty; `None` at its end.
    ///
    /// # Errors
    /// As for [`next_part`](Multipart::next_part).
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, MultipartError> {
        while self.state == State::Content {
            let (length, delimiter) = self.content_length();
            if length > 0 {
                return Ok(Some(self.buffer.split_to(length)));
            }
            match delimiter {
                Delimiter::Part(skipped) => {
                    drop(self.buffer.split_to(skipped));
                    self.state = State::Headers;
                }
                Delimiter::Last => self.state = State::Done,
                Delimiter::No | Delimiter::Unclear => self.fill().await?,
            }
        }
        Ok(None)
    }

    /// Reads the headers up to the empty line behind them.
    async fn headers(&mut self) -> Result<PartHeaders, MultipartError> {
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return Err(MultipartError::TooLarge);
        }
        let mut searched = 0;
        loop {
            let found = self.buffer[searched..].windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = found.map(|at| at + searched) {
                if end > MAX_HEADER_BYTES {
                    return Err(MultipartError::TooLarge);
                }
                let block = self.buffer.split_to(end + 4);
                return PartHeaders::parse(&block);
            }
            if self.buffer.len() > MAX_HEADER_BYTES {
                return Err(MultipartError::TooLarge);
            }
            searched = self.buffer.len().saturating_sub(3);
            self.fill().await?;
        }
    }

    /// How many bytes at the start of the buffer are content for certain, and what comes behind them.
    fn content_length(&self) -> (usize, Delimiter) {
        let mut from = 0;
        while let Some(found) = self.buffer[from..].iter().position(|&byte| byte == b'\r') {
            let at = from + found;
            match self.delimiter_at(at) {
                Delimiter::No => from = at + 1,
                delimiter => return (at, delimiter),
            }
        }
        (self.buffer.len(), Delimiter::No)
    }

    /// A boundary counts only if nothing but padding is on its line: a nested body's may begin with it.
    fn delimiter_at(&self, at: usize) -> Delimiter {
        let rest = &self.buffer[at..];
        if rest.len() < self.delimiter.len() {
            let begins = self.delimiter.starts_with(rest);
            return if begins { Delimiter::Unclear } else { Delimiter::No };
        }
        let Some(line) = rest.strip_prefix(&self.delimiter[..]) else {
            return Delimiter::No;
        };
        let is_padding = |&&byte: &&u8| byte == b' ' || byte == b'\t';
        let padding = line.iter().take(MAX_PADDING_BYTES).take_while(is_padding).count();
        match &line[padding..] {
            [b'-', b'-', ..] if padding == 0 => Delimiter::Last,
            [b'\r', b'\n', ..] => Delimiter::Part(self.delimiter.len() + padding),
            [] | [b'\r'] => Delimiter::Unclear,
            [b'-'] if padding == 0 => Delimiter::Unclear,
            _ => Delimiter::No,
        }
    }

    /// Receives more. The buffer holds only headers, or what could become a delimiter, when this is called.
    async fn fill(&mut self) -> Result<(), MultipartError> {
        let chunk = match self.stream.next().await {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => {
                self.state = State::Done;
                return Err(MultipartError::Body(error.into()));
            }
            None => {
                self.state = State::Done;
                return Err(MultipartError::Malformed("it ends before its last boundary"));
            }
        };
        if self.buffer.is_empty() {
            self.buffer = chunk;
        } else {
            let mut joined = BytesMut::with_capacity(self.buffer.len() + chunk.len());
            joined.extend_from_slice(&self.buffer);
            joined.extend_from_slice(&chunk);
            self.buffer = joined.freeze();
        }
        Ok(())
    }
}
