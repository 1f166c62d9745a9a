//! The answer of `_find`, made page by page.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rean_index::mango::IndexDef;
use rean_store::json::push_string;
use serde_json::Value;

use super::args::FindArgs;
use super::bookmark::{Bookmark, RowPlace};
use super::documents;
use super::planning::Planned;
use super::project::project;
use super::source::{Hit, Source};
use crate::error::ApiError;
use crate::page_body::{Out, Pages};
use crate::pod::Pod;
use crate::standing::Standing;
use crate::target::Target;
use crate::views::readers::Seat;

/// Documents that are looked at before others get the thread.
const DOCS_A_PAGE: u64 = 256;
/// Or so long: a document may be large, and a selector dear.
const TIME_A_PAGE: Duration = Duration::from_millis(3);
/// More documents than this for each that is given deserve a warning: CouchDB's `index_scan_warning_threshold`.
const SCAN_WARNING_RATIO: u64 = 10;
const NO_INDEX: &str = "No matching index found, create an index to optimize query time.";
const LONG_SCAN: &str = "The number of documents examined is high in proportion to the number of results returned. \
                         Consider adding a more specific index to improve this.";

/// An answer on its way.
pub struct Answer {
    pod: Arc<Pod>,
    /// Its place among the account's long answers, once it is one.
    seat: Option<Seat>,
    standing: Standing,
    target: Target,
    args: FindArgs,
    planned: Planned,
    source: Source,
    /// All that is asked for stands in the index: no document is read.
    covering: bool,
    left: u64,
    skip: u64,
    started: bool,
    last: Option<Bookmark>,
    stats: Stats,
}

/// What it cost.
struct Stats {
    keys: u64,
    docs: u64,
    results: u64,
    began: Instant,
}

/// What was found out about one hit.
enum Looked {
    /// Not there, or not wanted.
    No,
    /// The text to give, with the values of the index's fields where it came from one.
    Yes(Vec<u8>),
}

impl Answer {
    /// Begins one.
    pub fn new(
        pod: &Arc<Pod>,
        standing: Standing,
        target: Target,
        args: FindArgs,
        planned: Planned,
        source: Source,
    ) -> Self {
        // Others get nothing but documents that were read for them at this moment.
        let covering = planned.plan.covering && target.whole() && !args.conflicts;
        Self {
            pod: Arc::clone(pod),
            seat: None,
            standing,
            target,
            covering,
            left: args.limit,
            skip: args.skip,
            started: false,
            last: None,
            stats: Stats { keys: 0, docs: 0, results: 0, began: Instant::now() },
            args,
            planned,
            source,
        }
    }

    fn page(&mut self, out: &mut Out) -> Result<bool, ApiError> {
        if !std::mem::replace(&mut self.started, true) {
            out.text.extend_from_slice(b"{\"docs\":[");
        }
        let (began, mut looked) = (Instant::now(), 0);
        while !out.is_full() {
            if looked == DOCS_A_PAGE || began.elapsed() > TIME_A_PAGE {
                return Ok(true);
            }
            looked += 1;
            let hit = if self.left == 0 { None } else { self.source.next(&self.target)? };
            let Some(hit) = hit else {
                self.push_tail(&mut out.text);
                return Ok(false);
            };
            self.stats.keys += 1;
            let Looked::Yes(text) = self.look(&hit)? else { continue };
            self.last = Some(place_of(self.planned.index(), &hit));
            match self.skip.checked_sub(1) {
                Some(skip) => self.skip = skip,
                None => self.give(out, &text),
            }
        }
        self.source.rest();
        Ok(true)
    }

    fn look(&mut self, hit: &Hit) -> Result<Looked, ApiError> {
        if let (true, Hit::Row(row), Some(index)) = (self.covering, hit, self.planned.index()) {
            let document = documents::of_row(index, &row.id, &row.key);
            return Ok(self.judge(document, Vec::new()));
        }
        let Some(text) = documents::text_of(&self.target, hit, self.args.conflicts)? else { return Ok(Looked::No) };
        self.stats.docs += 1;
        // What is nested too deeply for a tree matches no selector.
        let document = serde_json::from_slice(&text).ok();
        Ok(self.judge(document, text))
    }

    fn judge(&self, document: Option<Value>, text: Vec<u8>) -> Looked {
        match document.filter(|document| self.args.selector.matches(document)) {
            None => Looked::No,
            Some(_) if self.args.fields.is_empty() => Looked::Yes(text),
            Some(document) => Looked::Yes(project(&document, &self.args.fields).to_string().into_bytes()),
        }
    }

    fn give(&mut self, out: &mut Out, text: &[u8]) {
        out.text.extend_from_slice(if self.stats.results == 0 { b"\r\n" } else { b",\r\n" });
        out.text.extend_from_slice(text);
        self.stats.results += 1;
        self.left -= 1;
    }

    fn push_tail(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\n],\r\n\"bookmark\": ");
        let bookmark = self.last.as_ref().map_or_else(|| self.args.bookmark_text.clone(), Bookmark::text);
        push_string(out, &bookmark);
        if self.args.stats {
            let (docs, quorum) = if self.args.r > 1 { (0, self.stats.docs) } else { (self.stats.docs, 0) };
            // Writing to a vector can't fail.
            let _ = write!(
                out,
                ",\r\n\"execution_stats\": {{\"total_keys_examined\":{},\"total_docs_examined\":{docs},\
                 \"total_quorum_docs_examined\":{quorum},\"results_returned\":{},\"execution_time_ms\":{:.3}}}",
                self.stats.keys,
                self.stats.results,
                self.stats.began.elapsed().as_secs_f64() * 1_000.0,
            );
        }
        let warnings = self.warnings();
        if !warnings.is_empty() {
            out.extend_from_slice(b",\r\n\"warning\": ");
            push_string(out, &warnings.join("\n"));
        }
        out.extend_from_slice(b"}\r\n");
    }

    fn warnings(&self) -> Vec<&str> {
        let mut warnings: Vec<&str> = self.planned.plan.warning.as_deref().into_iter().collect();
        if self.planned.index().is_none() {
            warnings.push(NO_INDEX);
        }
        if self.stats.docs > SCAN_WARNING_RATIO * self.stats.results.max(1) {
            warnings.push(LONG_SCAN);
        }
        warnings
    }
}

impl Pages for Answer {
    fn fill(&mut self, out: &mut Out) -> Result<bool, ApiError> {
        self.standing.check(&self.target, Target::require_read)?;
        let more = self.page(out)?;
        if more && self.seat.is_none() {
            self.seat = Some(self.pod.views.readers.admit(&self.target.who)?);
        }
        Ok(more)
    }
}

/// Where a hit stands.
fn place_of(index: Option<&IndexDef>, hit: &Hit) -> Bookmark {
    let row = match (index, hit) {
        (Some(index), Hit::Row(row)) => Some(RowPlace {
            ddoc: index.ddoc.clone(),
            name: index.name.clone(),
            key: serde_json::from_slice(&row.key).unwrap_or_default(),
        }),
        _ => None,
    };
    Bookmark { row, id: hit.id().to_owned() }
}
