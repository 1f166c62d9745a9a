//! The lines of a feed between pods, and of the acknowledgements that go the other way.
//!
//! ```json
//! {"origin":"pod-b@1a2b3c4d","newest":20,"since":11}
//! {"db":"notes","instance":"0a1b2c3d"}
//! {"seq":12,"db":"notes","id":"x","changes":[{"rev":"2-a"}]}
//! {"mark":15,"newest":20,"applied":{"pod-a@0a0a0a0a":100}}
//! ```
//! A mark says that all up to its sequence has been sent, and what the sender had of each origin at least when it had
//! that much; of the vector only what is new since the mark before it. `newest` is left out where it is the same. Which
//! database of a name rows are of is said before the first of them, where the ring has given it an instance.
//!
//! ```json
//! {"applied":{"pod-b@1a2b3c4d":15},"of":"pod-b@1a2b3c4d","others":{"pod-x":12}}
//! ```
//! An acknowledgement says what its sender has, and what it has heard of other pods' having of one origin; only what is
//! new since the one before it.

use std::collections::BTreeMap;

use adea_ring::PodId;
use adea_ring::report::{Applied, Origin};
use rean_store::StoreRow;
use rean_store::json::push_string;
use serde::{Deserialize, Serialize};

use crate::render::push_rev;

/// Leaves of one line: a document with more conflicts comes in several, so that none is longer than a reader takes.
const LINE_LEAVES: usize = 5_000;

/// One line of a feed.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// The first: whose feed it is.
    First(First),
    /// Which database of a name the rows from here on are of.
    Instance(String, String),
    /// A document that has changed.
    Row(Row),
    /// All before it has been sent.
    Mark(Mark),
}

/// Whose feed it is.
#[derive(Debug, PartialEq, Eq)]
pub struct First {
    /// The sender's store.
    pub origin: Origin,
    /// Its newest sequence.
    pub newest: u64,
    /// From where the feed goes on: 0 if the sender doesn't know the place that it was asked for.
    pub since: u64,
}

/// A document that has changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// Its sequence at the sender.
    pub seq: u64,
    /// Its database.
    pub db: String,
    /// Its id.
    pub id: String,
    /// Its leaves, or some of them.
    pub revs: Vec<String>,
}

/// How far a feed is.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// All up to this sequence has been sent.
    #[serde(rename = "mark")]
    pub seq: u64,
    /// The sender's newest sequence, if it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest: Option<u64>,
    /// What who has all up to that sequence has of other origins.
    #[serde(skip_serializing_if = "Applied::is_empty")]
    pub applied: Applied,
}

/// What is told up a feed.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ack {
    /// What its sender has.
    #[serde(skip_serializing_if = "Applied::is_empty")]
    pub applied: Applied,
    /// Whose writes `others` is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<Origin>,
    /// Up to which sequence of that origin others have everything.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<PodId, u64>,
}

/// A line isn't one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line has another form")]
pub struct BadLine;

/// All members that a line can have: each kind is told by those that are there.
#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    seq: Option<u64>,
    #[serde(default)]
    db: Option<String>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    changes: Vec<Leaf>,
    #[serde(default)]
    mark: Option<u64>,
    #[serde(default)]
    newest: Option<u64>,
    #[serde(default)]
    applied: Applied,
    #[serde(default)]
    origin: Option<Origin>,
    #[serde(default)]
    since: u64,
    #[serde(default)]
    instance: Option<String>,
}

#[derive(Deserialize)]
struct Leaf {
    rev: String,
}

impl Line {
    /// Reads a line.
    ///
    /// # Errors
    /// When it has another form.
    pub fn parse(text: &[u8]) -> Result<Self, BadLine> {
        let raw: Raw = serde_json::from_slice(text).map_err(|_| BadLine)?;
        match raw {
            Raw { seq: Some(seq), db: Some(db), id: Some(id), changes, .. } => {
                Ok(Self::Row(Row { seq, db, id, revs: changes.into_iter().map(|leaf| leaf.rev).collect() }))
            }
            Raw { db: Some(db), instance: Some(instance), .. } => Ok(Self::Instance(db, instance)),
            Raw { mark: Some(seq), newest, applied, .. } => Ok(Self::Mark(Mark { seq, newest, applied })),
            Raw { origin: Some(origin), newest: Some(newest), since, .. } => {
                Ok(Self::First(First { origin, newest, since }))
            }
            _ => Err(BadLine),
        }
    }
}

/// Writes the first line of a feed.
pub fn push_first(out: &mut Vec<u8>, origin: &Origin, newest: u64, since: u64) {
    out.extend_from_slice(format!("{{\"origin\":\"{origin}\",\"newest\":{newest},\"since\":{since}}}\n").as_bytes());
}

/// Writes which database of a name the rows from here on are of.
pub fn push_instance(out: &mut Vec<u8>, db: &str, instance: &str) {
    out.extend_from_slice(b"{\"db\":");
    push_string(out, db);
    out.extend_from_slice(b",\"instance\":");
    push_string(out, instance);
    out.extend_from_slice(b"}\n");
}

/// Writes a row, as several lines if it has many leaves.
pub fn push_row(out: &mut Vec<u8>, row: &StoreRow) {
    for leaves in row.leaves.chunks(LINE_LEAVES) {
        out.extend_from_slice(format!("{{\"seq\":{},\"db\":", row.seq).as_bytes());
        push_string(out, row.db.name());
        out.extend_from_slice(b",\"id\":");
        push_string(out, &row.id);
        out.extend_from_slice(b",\"changes\":[");
        for (n, rev) in leaves.iter().enumerate() {
            push_rev(out, if n == 0 { b"{\"rev\":" } else { b",{\"rev\":" }, rev);
            out.push(b'}');
        }
        out.extend_from_slice(b"]}\n");
    }
}

/// Writes a mark or an acknowledgement as a line.
pub fn push_line(out: &mut Vec<u8>, line: &impl Serialize) {
    // Maps with keys of text and numbers: that can't fail.
    let _ = serde_json::to_writer(&mut *out, line);
    out.push(b'\n');
}

/// What of a vector is more than what is known already; that is known from then on.
pub fn news(now: &Applied, known: &mut Applied) -> Applied {
    let is_new = |(origin, seq): &(&Origin, &u64)| known.get(*origin).is_none_or(|known| known < *seq);
    let news: Applied = now.iter().filter(is_new).map(|(origin, seq)| (origin.clone(), *seq)).collect();
    known.extend(news.iter().map(|(origin, seq)| (origin.clone(), *seq)));
    // What the pod has forgotten need not be kept here.
    if known.len() > now.len() {
        known.retain(|origin, _| now.contains_key(origin));
    }
    news
}

#[cfg(test)]
mod tests {
    use super::{Ack, First, Line, Mark, Row, news, push_first, push_instance, push_line};
    use adea_ring::report::{Applied, Origin};

    fn origin(text: &str) -> Origin {
        text.parse().expect("an origin")
    }

    #[test]
    fn lines_are_told_apart() {
        let mut first = Vec::new();
        push_first(&mut first, &origin("b@0a1b2c3d"), 7, 3);
        let expected = First { origin: origin("b@0a1b2c3d"), newest: 7, since: 3 };
        assert_eq!(Line::parse(&first), Ok(Line::First(expected)));
        let mut instance = Vec::new();
        push_instance(&mut instance, "notes", "0a1b");
        assert_eq!(Line::parse(&instance), Ok(Line::Instance("notes".to_owned(), "0a1b".to_owned())));
        let row = br#"{"seq":12,"db":"notes","id":"x","changes":[{"rev":"2-a"},{"rev":"2-b"}]}"#;
        let revs = vec!["2-a".to_owned(), "2-b".to_owned()];
        assert_eq!(Line::parse(row), Ok(Line::Row(Row { seq: 12, db: "notes".to_owned(), id: "x".to_owned(), revs })));
        let applied = Applied::from([(origin("a@00000001"), 5)]);
        for mark in [Mark { seq: 5, newest: Some(9), applied: applied.clone() }, Mark { seq: 5, ..Mark::default() }] {
            let mut text = Vec::new();
            push_line(&mut text, &mark);
            assert_eq!(Line::parse(&text), Ok(Line::Mark(mark)));
        }
        for bad in ["", "{}", "7", r#"{"seq":1,"db":"x"}"#, r#"{"mark":-1}"#, r#"{"mark":1,"applied":{"x":1}}"#] {
            assert!(Line::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let ack: Ack = serde_json::from_str(r#"{"others":{"b":3},"of":"a@00000001"}"#).expect("an acknowledgement");
        assert_eq!(ack.of, Some(origin("a@00000001")));
    }

    #[test]
    fn only_news_is_told() {
        let (a, b) = (origin("a@00000001"), origin("b@00000001"));
        let mut known = Applied::new();
        let now = Applied::from([(a.clone(), 1), (b.clone(), 2)]);
        assert_eq!(news(&now, &mut known), now);
        assert!(news(&now, &mut known).is_empty());
        let now = Applied::from([(a.clone(), 1), (b.clone(), 3)]);
        assert_eq!(news(&now, &mut known), Applied::from([(b, 3)]));
        assert!(news(&Applied::from([(a.clone(), 1)]), &mut known).is_empty());
        assert_eq!(known, Applied::from([(a, 1)]));
    }
}
