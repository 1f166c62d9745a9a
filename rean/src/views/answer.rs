//! The answers of views, made page by page while they are sent.

use std::collections::VecDeque;
use std::io::Write as _;
use std::iter::Peekable;
use std::sync::Arc;

use ::http::StatusCode;
use rean_index::{Bound, Grouping, IndexError, Range, Reduced, ReducedRow, Row, Rows, View};
use rean_store::Rev;
use rean_store::json::push_string;
use serde::Deserialize;

use crate::aside::aside;
use crate::error::ApiError;
use crate::page_body::{Out, Pages};
use crate::pod::Pod;
use crate::render::{Options, push_document};
use crate::several::{Listing, Several};
use crate::standing::Standing;
use crate::target::Target;
use crate::views::args::{Group, Key, ViewArgs};
use crate::views::index_error;
use crate::views::readers::Seat;

/// Rows that are read from the index at once.
const ROWS_A_READ: usize = 256;
/// Reads before others get the thread: keys without rows make no output that would end a page.
const READS_A_PAGE: usize = 16;

/// One query that is to be answered.
pub struct Query {
    /// What was asked.
    pub args: ViewArgs,
    /// How its rows are put together; `None`: not at all.
    pub group: Option<Group>,
    /// The rows.
    pub view: View,
    /// What `update_seq` tells, if it was asked for.
    pub update_seq: Option<String>,
}

/// The answers of one request.
pub struct Answers {
    pod: Arc<Pod>,
    /// From the second page on: until then nobody can keep the index waiting.
    seat: Option<Seat>,
    standing: Standing,
    target: Target,
    answers: Several<Answer>,
}

impl Answers {
    /// The answers to these queries of one view.
    pub fn new(pod: &Arc<Pod>, standing: Standing, target: Target, queries: Vec<Query>, several: bool) -> Self {
        Self { pod: Arc::clone(pod), seat: None, standing, target, answers: Several::new(queries, several) }
    }
}

impl Pages for Answers {
    fn fill(&mut self, out: &mut Out) -> Result<bool, ApiError> {
        self.standing.check(&self.target, Target::require_read)?;
        let more = self.answers.fill(&self.target, out)?;
        if more && self.seat.is_none() {
            self.seat = Some(self.pod.views.readers.admit(&self.target.who)?);
        }
        Ok(more)
    }
}

/// One answer on its way.
struct Answer {
    view: View,
    ranges: Peekable<Ranges>,
    source: Source,
    include_docs: bool,
    options: Options,
    left: u64,
    skip: u64,
    started: bool,
}

/// Where rows come from.
enum Source {
    Rows { open: Option<Rows>, read: VecDeque<Row> },
    Reduced { grouping: Grouping, open: Option<Reduced>, read: VecDeque<ReducedRow> },
}

/// What comes next.
enum Next {
    Row(Row),
    Reduced(ReducedRow),
    /// Why there are no more: CouchDB's `error` and `reason`.
    Failed(String, String),
    /// Something, after others have had the thread.
    Later,
    End,
}

impl Listing for Answer {
    type Ask = Query;

    /// Writes what stands before the rows.
    fn begin(target: &Target, mut query: Query, out: &mut Out) -> Result<Self, ApiError> {
        let keys = query.args.keys.take();
        let mut ranges = Ranges::of(&query.args, keys).peekable();
        let text = &mut out.text;
        text.push(b'{');
        if query.group.is_none() && query.args.sorted {
            let total = query.view.total_rows().map_err(|error| index_error(error, &target.db))?;
            let before = match ranges.peek() {
                Some(range) => query.view.offset(range).map_err(|error| index_error(error, &target.db))?,
                None => 0,
            };
            let offset = before.saturating_add(query.args.skip).min(total);
            // Writing to a vector can't fail.
            let _ = write!(text, "\"total_rows\":{total},\"offset\":{offset},");
        }
        if let Some(seq) = &query.update_seq {
            text.extend_from_slice(b"\"update_seq\":");
            push_string(text, seq);
            text.push(b',');
        }
        text.extend_from_slice(b"\"rows\":[");
        let source = match query.group {
            None => Source::Rows { open: None, read: VecDeque::new() },
            Some(group) => Source::Reduced { grouping: grouping(group), open: None, read: VecDeque::new() },
        };
        Ok(Self {
            view: query.view,
            ranges,
            source,
            include_docs: query.args.include_docs,
            options: query.args.doc_options(),
            left: query.args.limit,
            skip: query.args.skip,
            started: false,
        })
    }

    fn fill(&mut self, target: &Target, out: &mut Out) -> Result<bool, ApiError> {
        let mut reads_left = READS_A_PAGE;
        while !out.is_full() {
            let next = if self.left == 0 { Next::End } else { self.next(target, &mut reads_left)? };
            match next {
                Next::Later => return Ok(true),
                Next::End => {
                    out.text.extend_from_slice(b"\r\n]}");
                    return Ok(false);
                }
                Next::Row(row) => {
                    self.begin_row(out);
                    out.text.extend_from_slice(b"{\"id\":");
                    push_string(&mut out.text, &row.id);
                    push_key_and_value(&mut out.text, b",\"key\":", &row.key, &row.value);
                    if self.include_docs {
                        out.text.extend_from_slice(b",\"doc\":");
                        push_doc(target, out, &row, &self.options)?;
                    }
                    out.text.push(b'}');
                }
                Next::Failed(error, reason) => {
                    self.begin_row(out);
                    out.text.extend_from_slice(b"{\"key\":null,\"error\":");
                    push_string(&mut out.text, &error);
                    out.text.extend_from_slice(b",\"reason\":");
                    push_string(&mut out.text, &reason);
                    out.text.push(b'}');
                    self.left = 0;
                }
                Next::Reduced(row) => {
                    self.begin_row(out);
                    push_key_and_value(&mut out.text, b"{\"key\":", &row.key, &row.value);
                    out.text.push(b'}');
                }
            }
        }
        Ok(true)
    }
}

impl Answer {
    fn begin_row(&mut self, out: &mut Out) {
        out.text.extend_from_slice(if self.started { b",\r\n" } else { b"\r\n" });
        self.started = true;
        self.left -= 1;
    }

    fn next(&mut self, target: &Target, reads_left: &mut usize) -> Result<Next, ApiError> {
        loop {
            match &mut self.source {
                Source::Rows { read, .. } => {
                    if let Some(row) = read.pop_front() {
                        return Ok(Next::Row(row));
                    }
                }
                Source::Reduced { read, .. } => {
                    while let Some(row) = read.pop_front() {
                        if self.skip == 0 {
                            return Ok(Next::Reduced(row));
                        }
                        self.skip -= 1;
                    }
                }
            }
            let Some(left) = reads_left.checked_sub(1) else { return Ok(Next::Later) };
            *reads_left = left;
            match self.read_on() {
                Ok(true) => {}
                Ok(false) => return Ok(Next::End),
                // A reduction that can't be made is a row that says so, as in CouchDB.
                Err(IndexError::Reduce { error, reason }) => return Ok(Next::Failed(error, reason)),
                Err(error) => return Err(index_error(error, &target.db)),
            }
        }
    }

    /// Reads the next rows, or opens the next range; `false`: there are no more.
    fn read_on(&mut self) -> Result<bool, IndexError> {
        let limit = usize::try_from(self.left).map_or(ROWS_A_READ, |left| left.min(ROWS_A_READ));
        match &mut self.source {
            Source::Rows { open: Some(rows), read } => {
                if self.skip > 0 {
                    self.skip = self.skip.saturating_sub(rows.skip(self.skip)?);
                }
                // What is still to be left out lies in the ranges that follow.
                if self.skip == 0 {
                    *read = rows.next_page(limit)?.into();
                }
            }
            Source::Reduced { open: Some(reduced), read, .. } => {
                let wanted = self.left.saturating_add(self.skip);
                let limit = usize::try_from(wanted).map_or(ROWS_A_READ, |wanted| wanted.min(ROWS_A_READ));
                // Functions may run for that.
                *read = aside(|| reduced.next_page(limit))?.into();
            }
            _ => {}
        }
        match &mut self.source {
            Source::Rows { open, read } if read.is_empty() => {
                *open = self.ranges.next().map(|range| self.view.rows(range));
                Ok(open.is_some())
            }
            Source::Reduced { grouping, open, read } if read.is_empty() => {
                *open = self.ranges.next().map(|range| self.view.reduce(range, *grouping));
                Ok(open.is_some())
            }
            _ => Ok(true),
        }
    }
}

fn grouping(group: Group) -> Grouping {
    match group {
        Group::All => Grouping::None,
        Group::Exact => Grouping::Exact,
        Group::Level(level) => Grouping::Level(level),
    }
}

/// The ranges of a query: one, or one for each key.
struct Ranges {
    whole: Option<Range>,
    keys: std::vec::IntoIter<Key>,
    start_doc_id: Option<String>,
    end_doc_id: Option<String>,
    exclusive_end: bool,
    descending: bool,
}

impl Ranges {
    fn of(args: &ViewArgs, keys: Option<Vec<Key>>) -> Self {
        let has_keys = keys.is_some();
        let mut ranges = Self {
            whole: None,
            keys: keys.unwrap_or_default().into_iter(),
            start_doc_id: args.start_doc_id.clone(),
            end_doc_id: args.end_doc_id.clone(),
            exclusive_end: !args.inclusive_end,
            descending: args.descending,
        };
        ranges.whole = (!has_keys).then(|| ranges.range(args.start.as_ref(), args.end.as_ref()));
        ranges
    }

    fn range(&self, start: Option<&Key>, end: Option<&Key>) -> Range {
        let bound = |key: &Key, doc_id: &Option<String>| Bound { key: key.sort.clone(), doc_id: doc_id.clone() };
        Range {
            start: start.map(|key| bound(key, &self.start_doc_id)),
            end: end.map(|key| bound(key, &self.end_doc_id)),
            exclusive_end: self.exclusive_end,
            descending: self.descending,
        }
    }
}

impl Iterator for Ranges {
    type Item = Range;

    fn next(&mut self) -> Option<Range> {
        if let Some(whole) = self.whole.take() {
            return Some(whole);
        }
        let key = self.keys.next()?;
        Some(self.range(Some(&key), Some(&key)))
    }
}

fn push_key_and_value(out: &mut Vec<u8>, before: &[u8], key: &[u8], value: &[u8]) {
    out.extend_from_slice(before);
    out.extend_from_slice(key);
    out.extend_from_slice(b",\"value\":");
    out.extend_from_slice(value);
}

/// The members of a row's value that name another document
/// (<https://docs.couchdb.org/en/stable/ddocs/views/joins.html#linked-documents>).
#[derive(Default, Deserialize)]
struct Link {
    #[serde(rename = "_id")]
    id: Option<String>,
    #[serde(rename = "_rev")]
    rev: Option<String>,
}

/// The row's document, or the one that its value names; `null` where there is none for this reader.
fn push_doc(target: &Target, out: &mut Out, row: &Row, options: &Options) -> Result<(), ApiError> {
    let link = match row.value.first() {
        // What names a document wrongly names none.
        Some(b'{') => match serde_json::from_slice::<Link>(&row.value) {
            Ok(link) => link,
            Err(_) => return push_null(out),
        },
        _ => Link::default(),
    };
    let id = link.id.as_deref().unwrap_or(&row.id);
    let found = match link.rev.as_deref().map(str::parse::<Rev>) {
        None => target.db.doc(&target.scope, id)?.and_then(|doc| {
            let winner = doc.winner().clone();
            (!winner.deleted).then_some((doc, winner))
        }),
        Some(Ok(rev)) => target.db.revision(&target.scope, id, &rev)?,
        Some(Err(_)) => None,
    };
    let Some((doc, rev)) = found else { return push_null(out) };
    match push_document(out, &target.db, &doc, &rev, options) {
        Ok(_) => Ok(()),
        // Its body was compacted away in between; nothing of it has been written.
        Err(error) if error.status == StatusCode::NOT_FOUND => push_null(out),
        Err(error) => Err(error),
    }
}

fn push_null(out: &mut Out) -> Result<(), ApiError> {
    out.text.extend_from_slice(b"null");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Link, Ranges};
    use crate::query::Query;
    use crate::views::args::ViewArgs;

    fn args(raw: &str) -> ViewArgs {
        ViewArgs::from_query(&Query::parse(Some(raw)).expect("a query")).expect("good values")
    }

    #[test]
    fn bounds_have_the_documents_that_were_named() {
        let args = args("startkey=1&startkey_docid=a&endkey=2&inclusive_end=false&descending=true");
        let ranges: Vec<_> = Ranges::of(&args, None).collect();
        assert_eq!(ranges.len(), 1);
        let range = &ranges[0];
        assert_eq!(range.start.as_ref().and_then(|bound| bound.doc_id.as_deref()), Some("a"));
        assert_eq!(range.end.as_ref().and_then(|bound| bound.doc_id.as_deref()), None);
        assert!(range.exclusive_end && range.descending);
    }

    #[test]
    fn each_key_is_a_range_and_no_keys_are_none() {
        let mut asked = args("keys=[2,1,2]");
        let keys = asked.keys.take();
        let all: Vec<_> = Ranges::of(&asked, keys).collect();
        assert_eq!(all.len(), 3);
        assert_eq!(all[0], all[2]);
        assert_eq!(all[1].start, all[1].end);
        assert!(Ranges::of(&asked, Some(Vec::new())).next().is_none());
        // A document without a key bounds nothing, as in CouchDB.
        assert_eq!(Ranges::of(&args("startkey_docid=x"), None).next().expect("a range").start, None);
    }

    #[test]
    fn links_are_found_in_objects() {
        let link = serde_json::from_str::<Link>(r#"{"_id":"a","n":{"_id":"b"}}"#).expect("a link");
        assert_eq!((link.id.as_deref(), link.rev), (Some("a"), None));
        assert!(serde_json::from_str::<Link>(r#"{"_id":1}"#).is_err());
    }
}
