//! What the filters of all feeds share of a live change: the document's text, its value, and what functions said of it.
//!
//! It hangs on the change, which the hub keeps for a while. So a document is read and parsed once, however many feeds
//! look at it, and feeds that ask the same function the same question have one answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rean_store::FeedRow;
use serde_json::Value;

/// The longest text that is kept, in bytes: of longer ones the parsing is the smaller part of what a feed costs.
const MAX_TEXT_BYTES: usize = 64 * 1024;
/// What all that is kept may take up, in bytes.
const MAX_KEPT_BYTES: usize = 128 << 20;
/// How much more a value takes than its text, about.
const VALUE_GROWTH: usize = 8;
/// Answers that are kept for a change.
const MAX_VERDICTS: usize = 64;

/// What is kept now, in bytes.
static KEPT_BYTES: AtomicUsize = AtomicUsize::new(0);

/// A question to a function: which one, of which design document, and the request as it sees it.
pub type Question = [u8; 32];

/// A document as filters see it, and what they found.
#[derive(Debug)]
pub struct Seen {
    text: Box<str>,
    value: OnceLock<Option<Value>>,
    verdicts: Mutex<Vec<(Question, bool)>>,
    /// What is counted for it.
    bytes: usize,
}

impl Seen {
    /// What hangs on a row's change already.
    pub fn of(row: &FeedRow) -> Option<Arc<Self>> {
        Arc::clone(row.change.as_ref()?.kept.get()?).downcast().ok()
    }

    /// Takes a document's text; it hangs on the row's change if there is room. Only for rows that are the same for all.
    pub fn keep(row: &FeedRow, text: String) -> Arc<Self> {
        let mut bytes = text.len() * (1 + VALUE_GROWTH);
        let has_room = text.len() <= MAX_TEXT_BYTES && KEPT_BYTES.load(Ordering::Relaxed) + bytes <= MAX_KEPT_BYTES;
        if !has_room {
            bytes = 0;
        }
        KEPT_BYTES.fetch_add(bytes, Ordering::Relaxed);
        let mut seen = Self::alone(text);
        seen.bytes = bytes;
        let seen = Arc::new(seen);
        if let Some(change) = row.change.as_ref().filter(|_| has_room) {
            // Another listener may have been first; it saw the same.
            let _ = change.kept.set(Arc::clone(&seen) as Arc<dyn std::any::Any + Send + Sync>);
            return Self::of(row).unwrap_or(seen);
        }
        seen
    }

    /// Of one feed only.
    pub fn alone(text: String) -> Self {
        Self { text: text.into(), value: OnceLock::new(), verdicts: Mutex::default(), bytes: 0 }
    }

    /// The document's text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The document; `None`: it is nested too deeply for a tree.
    pub fn value(&self) -> Option<&Value> {
        self.value.get_or_init(|| serde_json::from_str(&self.text).ok()).as_ref()
    }

    /// What a function said of it.
    pub fn verdict(&self, question: &Question) -> Option<bool> {
        self.verdicts.lock().iter().find(|(asked, _)| asked == question).map(|(_, verdict)| *verdict)
    }

    /// Keeps what a function said of it.
    pub fn set_verdict(&self, question: Question, verdict: bool) {
        let mut verdicts = self.verdicts.lock();
        if verdicts.len() < MAX_VERDICTS {
            verdicts.push((question, verdict));
        }
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        KEPT_BYTES.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_VERDICTS, Seen};

    #[test]
    fn it_is_parsed_once_and_answers_are_bounded() {
        let seen = Seen::alone(r#"{"a":1}"#.to_owned());
        let first = seen.value().expect("a value");
        assert_eq!(first["a"], 1);
        assert!(std::ptr::eq(first, seen.value().expect("a value")));
        assert!(Seen::alone("[".repeat(1_000)).value().is_none());
        for n in 0..=u8::try_from(MAX_VERDICTS).expect("few") {
            seen.set_verdict([n; 32], n == 3);
        }
        assert_eq!((seen.verdict(&[3; 32]), seen.verdict(&[4; 32])), (Some(true), Some(false)));
        assert_eq!(seen.verdict(&[MAX_VERDICTS as u8; 32]), None);
    }
}
