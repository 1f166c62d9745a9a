//! Takes the items of a list out of a JSON answer as it arrives: of `{"results":[..],"last_seq":..}` or of `[..]`. So an
//! answer of any length takes the memory of one item.

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};

use super::fault::Fault;

/// What may stand around the list, in bytes: a sequence of a large cluster is some KiB.
const MAX_ENVELOPE_BYTES: usize = 256 << 10;

/// An answer whose list is taken apart.
pub struct Split<S> {
    stream: S,
    /// Whose answer it is, for faults.
    shown: String,
    buffer: BytesMut,
    /// So much of the buffer has been looked at.
    seen: usize,
    /// Everything but the items.
    envelope: Vec<u8>,
    max_item_bytes: usize,
    place: Place,
    depth: usize,
    text: Text,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Before,
    Between,
    Item,
    After,
}

/// Whether a byte stands within a JSON string.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Text {
    Outside,
    Inside,
    Escaped,
}

impl<S, E> Split<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    /// Takes an answer apart; an item above `max_item_bytes` is a fault.
    pub fn new(stream: S, shown: &str, max_item_bytes: usize) -> Self {
        Self {
            stream,
            shown: shown.to_owned(),
            buffer: BytesMut::new(),
            seen: 0,
            envelope: Vec::new(),
            max_item_bytes,
            place: Place::Before,
            depth: 0,
            text: Text::Outside,
        }
    }

    /// The next item, as text; `None` behind the last, when the whole answer has been read.
    ///
    /// # Errors
    /// When the answer breaks off, isn't JSON of that form, or has an item that is too large.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            if let Some(item) = self.scan()? {
                return Ok(Some(item));
            }
            match self.stream.next().await {
                Some(Ok(chunk)) => self.buffer.extend_from_slice(&chunk),
                Some(Err(error)) => return Err(self.broken(&error.to_string())),
                None if self.place == Place::After => return Ok(None),
                None => return Err(self.broken("it ended too early")),
            }
        }
    }

    /// What stood around the list, with an empty one in its place. Complete when [`Split::next`] gave `None`.
    pub fn envelope(&self) -> &[u8] {
        &self.envelope
    }

    fn broken(&self, why: &str) -> Fault {
        Fault::Passing(format!("{}: the answer broke off: {why}", self.shown))
    }

    /// Looks at what has arrived; gives an item that is complete.
    fn scan(&mut self) -> Result<Option<Bytes>, Fault> {
        while let Some(&byte) = self.buffer.get(self.seen) {
            match self.place {
                Place::Before | Place::After => self.step_around(byte)?,
                Place::Between => match byte {
                    b']' => {
                        self.buffer.advance(self.seen);
                        self.seen = 0;
                        self.place = Place::After;
                    }
                    b',' | b' ' | b'\t' | b'\r' | b'\n' => self.seen += 1,
                    _ => {
                        self.buffer.advance(self.seen);
                        self.seen = 0;
                        self.depth = 0;
                        self.place = Place::Item;
                    }
                },
                Place::Item => {
                    let outside = self.text == Text::Outside;
                    if outside && self.depth == 0 && matches!(byte, b',' | b']') {
                        let item = self.buffer.split_to(self.seen).freeze();
                        self.seen = 0;
                        self.place = Place::Between;
                        return Ok(Some(item));
                    }
                    self.nest(byte);
                    self.seen += 1;
                    if self.seen > self.max_item_bytes {
                        return Err(Fault::fatal(
                            http::StatusCode::PAYLOAD_TOO_LARGE,
                            "too_large",
                            format!("{}: one document of the answer is too large", self.shown),
                        ));
                    }
                }
            }
        }
        Ok(None)
    }

    fn step_around(&mut self, byte: u8) -> Result<(), Fault> {
        if self.envelope.len() >= MAX_ENVELOPE_BYTES {
            return Err(self.broken("it has no list"));
        }
        let begins = self.place == Place::Before && self.text == Text::Outside && byte == b'[' && self.depth <= 1;
        self.envelope.push(byte);
        self.buffer.advance(1);
        if begins {
            self.place = Place::Between;
        } else {
            self.nest(byte);
        }
        Ok(())
    }

    fn nest(&mut self, byte: u8) {
        self.text = match (self.text, byte) {
            (Text::Outside, b'"') => Text::Inside,
            (Text::Outside, b'{' | b'[') => {
                self.depth += 1;
                Text::Outside
            }
            (Text::Outside, b'}' | b']') => {
                self.depth = self.depth.saturating_sub(1);
                Text::Outside
            }
            (Text::Outside, _) => Text::Outside,
            (Text::Inside, b'"') => Text::Outside,
            (Text::Inside, b'\\') => Text::Escaped,
            (Text::Inside | Text::Escaped, _) => Text::Inside,
        };
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;

    use super::Split;

    async fn split(text: &str, step: usize) -> Option<(Vec<String>, String)> {
        let chunks: Vec<Result<Bytes, std::io::Error>> =
            text.as_bytes().chunks(step).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let mut split = Split::new(stream::iter(chunks), "there", 1_000);
        let mut items = Vec::new();
        while let Some(item) = split.next().await.ok()? {
            items.push(String::from_utf8(item.to_vec()).expect("text").trim_end().to_owned());
        }
        Some((items, String::from_utf8(split.envelope().to_vec()).expect("text")))
    }

    #[tokio::test]
    async fn items_come_out_whole_however_the_answer_is_cut() {
        let text = "\n\n{\"results\" : [\n{\"a\":\"]},{\\\"[\",\"b\":[1,[2]]} ,\n 7, \"x,]\"],\n\"last_seq\":\"9-[\",\"pending\":0}\n";
        for step in 1..text.len() {
            let (items, envelope) = split(text, step).await.expect("whole");
            assert_eq!(items, ["{\"a\":\"]},{\\\"[\",\"b\":[1,[2]]}", "7", "\"x,]\""]);
            let envelope: serde_json::Value = serde_json::from_str(&envelope).expect("JSON");
            assert_eq!(envelope, serde_json::json!({"results": [], "last_seq": "9-[", "pending": 0}));
        }
        assert_eq!(split("[]", 1).await.expect("whole").0, Vec::<String>::new());
        assert_eq!(split("[{\"ok\":{}}]", 3).await.expect("whole").0, ["{\"ok\":{}}"]);
    }

    #[tokio::test]
    async fn an_answer_that_ends_early_or_is_too_large_is_a_fault() {
        for text in ["", "{}", "{\"results\":[", "{\"results\":[{\"a\":1}"] {
            assert!(split(text, 4).await.is_none(), "{text}");
        }
        assert!(split(&format!("[\"{}\"]", "x".repeat(2_000)), 100).await.is_none());
    }
}
