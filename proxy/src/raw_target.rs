//! Request targets as people type them.
//!
//! CouchDB takes `?startkey="a"` as it is, its documentation is written so, and curl sends it so. RFC 3986 wants such
//! bytes percent-encoded, and `http::Uri` refuses most of them before any of our code is asked. So they are encoded
//! here, between the socket and hyper, in request lines and nowhere else.
//!
//! To know what is a request line, the reader follows the framing of the messages (RFC 9112): heads, bodies with a
//! `Content-Length`, and chunks. It decides nothing: hyper reads the same bytes and has the last word. Where both might
//! not agree, the reader is [`At::Blind`] from then on, and all bytes pass as they came.

use bytes::{Buf, Bytes};
use memchr::{memchr, memchr2};
use tokio::io::ReadBuf;

/// What is kept of a line that comes in pieces, in bytes. The lines that count, `Content-Length` and
/// `Transfer-Encoding`, are shorter unless somebody plays games.
const LINE_BYTES: usize = 128;

/// Follows one HTTP/1.1 connection and encodes its request targets.
#[derive(Debug)]
pub struct RawTargets {
    at: At,
    body: Framing,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    /// What had no room in the buffer that was read into, because encoding makes it longer.
    over: Bytes,
}

/// Where in a message the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before a request line, where empty lines don't count (RFC 9112, 2.2).
    Start,
    Method,
    Target,
    Version,
    Header,
    /// In a body, or in a chunk and the line end after it: this many bytes are left.
    Body(u64),
    Chunk(u64),
    ChunkSize,
    Trailer,
    /// Not known any more.
    Blind,
}

/// How the body of the message ends, as far as its head has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    None,
    Length(u64),
    Chunked,
    /// The head says two things, or something odd.
    Unclear,
}

impl RawTargets {
    /// For a connection on which a request comes next.
    pub fn new() -> Self {
        Self { at: At::Start, body: Framing::None, line: Vec::new(), over: Bytes::new() }
    }

    /// For a connection that speaks something else.
    pub fn off() -> Self {
        Self { at: At::Blind, ..Self::new() }
    }

    /// Whether bytes wait that the socket doesn't have any more.
    pub fn has_over(&self) -> bool {
        !self.over.is_empty()
    }

    /// Gives what waits.
    pub fn give(&mut self, buffer: &mut ReadBuf<'_>) {
        let fits = self.over.len().min(buffer.remaining());
        buffer.put_slice(&self.over[..fits]);
        self.over.advance(fits);
        if self.over.is_empty() {
            self.over = Bytes::new();
        }
    }

    /// Looks at what has been read since `before` bytes were in the buffer, and encodes what has to be.
    pub fn pass(&mut self, buffer: &mut ReadBuf<'_>, before: usize) {
        if self.at == At::Blind {
            return;
        }
        let read = &buffer.filled()[before..];
        let raw = self.follow(read);
        if raw.is_empty() {
            return;
        }
        self.over = encode(read, &raw).into();
        buffer.set_filled(before);
        self.give(buffer);
    }

    /// Follows the messages through these bytes; gives the targets that have to be encoded, as ranges.
    fn follow(&mut self, bytes: &[u8]) -> Vec<(usize, usize)> {
        let mut raw = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            at += match self.at {
                At::Target => self.target(bytes, at, &mut raw),
                _ => self.step(&bytes[at..]),
            };
        }
        raw
    }

    /// Goes on in these bytes, of which there is at least one; gives how many are done with.
    fn step(&mut self, bytes: &[u8]) -> usize {
        match self.at {
            At::Start if matches!(bytes[0], b'\r' | b'\n') => 1,
            At::Start | At::Method => {
                self.until(bytes, At::Method, |end| if end == b' ' { At::Target } else { At::Header })
            }
            // `follow` sees to it.
            At::Target => 0,
            At::Version => match memchr(b'\n', bytes) {
                Some(end) => self.go(At::Header, end + 1),
                None => bytes.len(),
            },
            At::Header | At::ChunkSize | At::Trailer => self.line(bytes),
            At::Body(left) => self.skip(bytes, left, At::Body, At::Start),
            At::Chunk(left) => self.skip(bytes, left, At::Chunk, At::ChunkSize),
            At::Blind => bytes.len(),
        }
    }

    fn go(&mut self, at: At, bytes: usize) -> usize {
        self.at = at;
        bytes
    }

    /// To the next space or line end, and past it.
    fn until(&mut self, bytes: &[u8], here: At, next: impl FnOnce(u8) -> At) -> usize {
        match memchr2(b' ', b'\n', bytes) {
            Some(end) => self.go(next(bytes[end]), end + 1),
            None => self.go(here, bytes.len()),
        }
    }

    fn target(&mut self, bytes: &[u8], start: usize, raw: &mut Vec<(usize, usize)>) -> usize {
        // Without a version behind it, hyper refuses the request.
        let done = self.until(&bytes[start..], At::Target, |end| if end == b' ' { At::Version } else { At::Header });
        if bytes[start..start + done].iter().any(|byte| is_raw(*byte)) {
            raw.push((start, start + done));
        }
        done
    }

    fn skip(&mut self, bytes: &[u8], left: u64, here: fn(u64) -> At, next: At) -> usize {
        let skipped = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let left = left - skipped as u64;
        self.go(if left == 0 { next } else { here(left) }, skipped)
    }

    /// To the end of a line, which then is looked at.
    fn line(&mut self, bytes: &[u8]) -> usize {
        let end = memchr(b'\n', bytes);
        let piece = &bytes[..end.unwrap_or(bytes.len())];
        if end.is_some() && self.line.is_empty() {
            self.read_line(piece);
        } else {
            // One byte more than counts tells that it was longer.
            let room = (LINE_BYTES + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                self.read_line(&line);
            }
        }
        end.map_or(bytes.len(), |end| end + 1)
    }

    fn read_line(&mut self, line: &[u8]) {
        let whole = line.len() <= LINE_BYTES;
        let text = line.strip_suffix(b"\r").unwrap_or(line);
        match self.at {
            At::Header if text.is_empty() => self.end_head(),
            At::Header => {
                if let Some(framing) = framing_of(text) {
                    let first = self.body == Framing::None;
                    self.body = if first && whole { framing } else { Framing::Unclear };
                }
            }
            // hyper wants the carriage return here.
            At::ChunkSize | At::Trailer if text.len() == line.len() => self.at = At::Blind,
            At::ChunkSize => {
                self.at = match chunk_size(text).filter(|_| whole) {
                    Some(0) => At::Trailer,
                    Some(size) => At::Chunk(size.saturating_add(2)),
                    None => At::Blind,
                }
            }
            At::Trailer if text.is_empty() => self.at = At::Start,
            _ => {}
        }
    }

    fn end_head(&mut self) {
        self.at = match std::mem::replace(&mut self.body, Framing::None) {
            Framing::None | Framing::Length(0) => At::Start,
            Framing::Length(bytes) => At::Body(bytes),
            Framing::Chunked => At::ChunkSize,
            Framing::Unclear => At::Blind,
        }
    }
}

/// Whether a byte of a target has to be encoded. A space can't be told from the end of the target, and `#`, which
/// begins what is not sent, means what it means.
fn is_raw(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x80..)
}

fn encode(bytes: &[u8], targets: &[(usize, usize)]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(bytes.len() + 64);
    let mut done = 0;
    for (start, end) in targets {
        out.extend_from_slice(&bytes[done..*start]);
        for byte in &bytes[*start..*end] {
            if is_raw(*byte) {
                out.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
            } else {
                out.push(*byte);
            }
        }
        done = *end;
    }
    out.extend_from_slice(&bytes[done..]);
    out
}

/// What a header line says of the body; `None` when it is another header.
fn framing_of(line: &[u8]) -> Option<Framing> {
    if !matches!(line.first(), Some(b'C' | b'c' | b'T' | b't')) {
        return None;
    }
    let colon = memchr(b':', line)?;
    let value = line[colon + 1..].trim_ascii();
    let name = &line[..colon];
    if name.eq_ignore_ascii_case(b"content-length") {
        return Some(decimal(value).map_or(Framing::Unclear, Framing::Length));
    }
    if name.eq_ignore_ascii_case(b"transfer-encoding") {
        let chunked = value.eq_ignore_ascii_case(b"chunked");
        return Some(if chunked { Framing::Chunked } else { Framing::Unclear });
    }
    None
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::{At, RawTargets};
    use tokio::io::ReadBuf;

    /// What hyper sees when the client's bytes come in pieces of this size, into a buffer of that one.
    fn seen(reader: &mut RawTargets, sent: &[u8], piece: usize, room: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for bytes in sent.chunks(piece.min(room)) {
            let mut memory = vec![0; room];
            let mut buffer = ReadBuf::new(&mut memory);
            buffer.put_slice(bytes);
            reader.pass(&mut buffer, 0);
            out.extend_from_slice(buffer.filled());
            while reader.has_over() {
                let mut buffer = ReadBuf::new(&mut memory);
                reader.give(&mut buffer);
                assert!(!buffer.filled().is_empty());
                out.extend_from_slice(buffer.filled());
            }
        }
        out
    }

    /// However the bytes come, hyper sees this.
    fn check(sent: &str, wanted: &str) {
        let all = sent.len().max(1);
        for (piece, room) in [(all, all), (1, 1), (2, 5), (3, 3), (7, 16), (16, 16), (all, all * 3)] {
            let mut reader = RawTargets::new();
            let seen = seen(&mut reader, sent.as_bytes(), piece, room);
            assert_eq!(String::from_utf8_lossy(&seen), wanted, "in pieces of {piece}, {room}");
        }
    }

    #[test]
    fn raw_bytes_of_a_target_are_encoded_and_of_nothing_else() {
        check(
            "GET /db/_all_docs?startkey=\"a\"&x=<{[|^`\\]}>é%22 HTTP/1.1\r\nX-\"a\": {\"é\"}\r\n\r\n",
            "GET /db/_all_docs?startkey=%22a%22&x=%3C%7B[%7C%5E%60%5C]%7D%3E%C3%A9%22 HTTP/1.1\r\nX-\"a\": {\"é\"}\r\n\r\n",
        );
        let plain = "GET /db/%22a?x='!~#y HTTP/1.1\r\nHost: x\r\n\r\n";
        check(plain, plain);
    }

    #[test]
    fn requests_follow_each_other() {
        check(
            "\r\nGET /\"1 HTTP/1.1\r\n\r\n\r\n\nGET /\"2 HTTP/1.1\nHost: x\n\nDELETE /\"3 HTTP/1.0\r\n\r\n",
            "\r\nGET /%221 HTTP/1.1\r\n\r\n\r\n\nGET /%222 HTTP/1.1\nHost: x\n\nDELETE /%223 HTTP/1.0\r\n\r\n",
        );
    }

    #[test]
    fn bodies_pass_as_they_are() {
        let body = "\r\n\r\nGET /\"no\" HTTP/1.1\r\n\r\n{\"a\":\"é\"}";
        let with_length = format!("PUT /a\" HTTP/1.1\r\ncontent-LENGTH: \t{} \r\n\r\n{body}", body.len());
        check(
            &format!("{with_length}GET /\"b HTTP/1.1\r\n\r\n"),
            &format!("{}GET /%22b HTTP/1.1\r\n\r\n", with_length.replacen("/a\"", "/a%22", 1)),
        );
        let chunked = format!(
            "POST /a HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nExpect: 100-continue\r\n\r\n\
             {:X};x=\"y\"\r\n{body}\r\n3 \r\n\"\n\"\r\n0\r\nX-Trailer: \"/\"\r\n\r\n",
            body.len()
        );
        check(&format!("{chunked}GET /\"b HTTP/1.1\r\n\r\n"), &format!("{chunked}GET /%22b HTTP/1.1\r\n\r\n"));
    }

    #[test]
    fn what_is_unclear_is_not_touched() {
        let long = "0".repeat(300);
        for head in [
            "Content-Length: 3\r\nContent-Length: 3".to_owned(),
            "Content-Length: 3\r\nTransfer-Encoding: chunked".to_owned(),
            "Transfer-Encoding: gzip, chunked".to_owned(),
            "Content-Length: +3".to_owned(),
            "Content-Length: ".to_owned(),
            "Content-Length: 99999999999999999999".to_owned(),
            format!("Content-Length: {long}3"),
            "Transfer-Encoding: chunked\r\n\r\nzz".to_owned(),
            "Transfer-Encoding: chunked\r\n\r\n0\n".to_owned(),
            "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff".to_owned(),
        ] {
            let text = format!("PUT / HTTP/1.1\r\n{head}\r\n\r\nGET /\"a HTTP/1.1\r\n\r\n");
            check(&text, &text);
        }
        let mut off = RawTargets::off();
        assert_eq!(seen(&mut off, b"GET /\" HTTP/1.1\r\n\r\n", 4, 4), b"GET /\" HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn nothing_is_kept_of_what_does_not_count() {
        let mut reader = RawTargets::new();
        let line = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(100_000));
        seen(&mut reader, line.as_bytes(), 1_000, 1_000);
        assert!(reader.line.capacity() < 1_000 && reader.over.is_empty());
        seen(&mut reader, b"\r\n\r\n", 1, 1);
        assert_eq!((reader.at, reader.line.capacity()), (At::Start, 0));
    }
}
