//! `_all_docs`, `_design_docs` and `_local_docs`: documents in the order of their ids, row by row
//! (<https://docs.couchdb.org/en/stable/api/database/bulk-api.html#db-all-docs>).

use std::collections::{HashSet, VecDeque};
use std::io::Write as _;
use std::sync::Arc;

use adea_ring::Identity;
use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use rean_store::json::push_string;
use rean_store::{Body, DocRow, DocView, IdRange, RevView, partition_bounds, partition_of};

use crate::body_in::{read_any, read_json, require_json};
use crate::error::ApiError;
use crate::list_args::{Before, ListArgs};
use crate::local_docs::{self, LocalRev, push_local};
use crate::page_body::{Out, Pages, paged};
use crate::partitions::unsupported;
use crate::pod::Pod;
use crate::render::{self, push_document, push_plain, push_rev};
use crate::route::{Request, Response};
use crate::several::{Listing, Several};
use crate::standing::Standing;
use crate::target::{self, Target};

/// Rows that are read from the store at once.
const ROWS_A_READ: usize = 256;
/// Reads before others get the thread: rows that are skipped make no output that would end a page.
const READS_A_PAGE: usize = 4;
/// Of databases up to this many documents it is told how many rows lie before a range: they are counted one by one, which
/// a client that goes through a large database page by page should not pay for. A thousand take half a millisecond.
const MAX_COUNTED: u64 = 10_000;
/// Between these are the design documents' ids.
const DESIGN_RANGE: (&str, &str) = ("_design/", "_design0");

/// Which list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    All,
    Design,
    Local,
}

impl Kind {
    fn of(request: &Request) -> Self {
        match request.segments.get(1).map(String::as_str) {
            Some("_design_docs") => Self::Design,
            Some("_local_docs") => Self::Local,
            _ => Self::All,
        }
    }

    /// What may be asked of a database without partitions.
    fn check(self, target: &Target, args: &[ListArgs]) -> Result<(), ApiError> {
        let asks_partition = self == Self::All && args.iter().any(|args| args.partition.is_some());
        if asks_partition && !target.db.is_partitioned() { Err(unsupported()) } else { Ok(()) }
    }

    fn require(self, target: &Target) -> Result<(), ApiError> {
        match self {
            Self::Local => target.require_local(),
            Self::All | Self::Design => target.require_read(),
        }
    }
}

/// GET and POST of `/db/_all_docs`, `/db/_design_docs`, `/db/_local_docs`.
///
/// # Errors
/// 400 for parameters with values that they can't have, 415 for a body that says it is something else than JSON.
pub async fn all_docs(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let standing = Standing::new(pod, who)?;
    let target = target::resolve(pod, who, request.db_name())?;
    let kind = Kind::of(&request);
    kind.require(&target)?;
    let args = if request.method == Method::POST {
        // Without a type it is taken for what it must be.
        if request.headers.contains_key(CONTENT_TYPE) {
            require_json(&request.headers)?;
        }
        let text = read_any(pod, &request.headers, request.body).await?;
        ListArgs::from_body(&request.query, &text)?
    } else {
        ListArgs::from_query(&request.query)?
    };
    kind.check(&target, std::slice::from_ref(&args))?;
    let db = target.db.clone();
    let pages = Lists::new(standing, target, kind, vec![args], false);
    Ok(render::json(StatusCode::OK, paged(&db, pages)?))
}

/// POST of `/db/_all_docs/queries` and its relatives: several lists in one answer.
///
/// # Errors
/// 400 for a body that has no queries.
pub async fn queries(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let standing = Standing::new(pod, who)?;
    let target = target::resolve(pod, who, request.db_name())?;
    let kind = Kind::of(&request);
    kind.require(&target)?;
    let text = read_json(pod, &request.headers, request.body).await?;
    let args = ListArgs::queries(&request.query, &text)?;
    kind.check(&target, &args)?;
    let db = target.db.clone();
    let pages = Lists::new(standing, target, kind, args, true);
    Ok(render::json(StatusCode::OK, paged(&db, pages)?))
}

/// The lists of one answer.
struct Lists {
    standing: Standing,
    target: Target,
    kind: Kind,
    lists: Several<List>,
}

impl Lists {
    fn new(standing: Standing, target: Target, kind: Kind, args: Vec<ListArgs>, several: bool) -> Self {
        let asks = args.into_iter().map(|args| (kind, args)).collect();
        Self { standing, target, kind, lists: Several::new(asks, several) }
    }
}

impl Pages for Lists {
    fn fill(&mut self, out: &mut Out) -> Result<bool, ApiError> {
        self.standing.check(&self.target, |target| self.kind.require(target))?;
        self.lists.fill(&self.target, out)
    }
}

/// One list on its way.
struct List {
    args: ListArgs,
    kind: Kind,
    source: Source,
    left: u64,
    skip: u64,
    started: bool,
}

/// Where rows come from.
enum Source {
    /// The ids in a range: what was read, and where to go on.
    Range { rows: VecDeque<DocRow>, rest: Option<IdRange> },
    /// Keys that were named.
    Keys(std::vec::IntoIter<Option<String>>),
    /// `_local` documents.
    Local(std::vec::IntoIter<(String, u64)>),
}

/// One row.
enum Row {
    Live(DocRow),
    /// A key: its document, if there is one for this reader, is looked up.
    Key(Option<String>),
    Local(String, u64),
}

/// What comes next in a list.
enum Next {
    Row(Row),
    /// Something, after others have had the thread.
    Later,
    End,
}

impl Listing for List {
    type Ask = (Kind, ListArgs);

    fn begin(target: &Target, (kind, args): Self::Ask, out: &mut Out) -> Result<Self, ApiError> {
        let list = Self::new(target, kind, args)?;
        list.push_head(target, out)?;
        Ok(list)
    }

    fn fill(&mut self, target: &Target, out: &mut Out) -> Result<bool, ApiError> {
        let mut reads_left = READS_A_PAGE;
        while !out.is_full() {
            let next = if self.left == 0 { Next::End } else { self.next(target, &mut reads_left)? };
            let row = match next {
                Next::Row(row) => row,
                Next::Later => return Ok(true),
                Next::End => {
                    out.text.extend_from_slice(b"\r\n]}");
                    return Ok(false);
                }
            };
            out.text.extend_from_slice(if self.started { b",\r\n" } else { b"\r\n" });
            self.started = true;
            self.left -= 1;
            self.push_row(target, out, row)?;
        }
        Ok(true)
    }
}

impl List {
    fn new(target: &Target, kind: Kind, mut args: ListArgs) -> Result<Self, ApiError> {
        clamp(kind, &mut args);
        let source = match (kind, args.keys.take()) {
            (Kind::Local, keys) => Source::Local(local_rows(target, &args, keys)?.into_iter()),
            (_, Some(mut keys)) => {
                if args.range.descending {
                    keys.reverse();
                }
                Source::Keys(keys.into_iter())
            }
            (_, None) => Source::Range { rows: VecDeque::new(), rest: (!args.empty).then(|| args.range.clone()) },
        };
        Ok(Self { left: args.limit, skip: args.skip, args, kind, source, started: false })
    }

    fn push_head(&self, target: &Target, out: &mut Out) -> Result<(), ApiError> {
        let db = &target.db;
        let text = &mut out.text;
        let total = match self.kind {
            Kind::All => Some(match &self.args.partition {
                None => db.scoped_info(&target.scope).doc_count,
                Some(partition) => db.partition_info(partition)?.docs,
            }),
            Kind::Design => Some(count_design_docs(target)?),
            Kind::Local => None,
        };
        // Writing to a vector can't fail.
        let _ = match total {
            Some(total) => write!(text, "{{\"total_rows\":{total}"),
            None => write!(text, "{{\"total_rows\":null"),
        };
        let before = match total {
            Some(total) if !matches!(self.source, Source::Keys(_)) => self.count_before(target, total)?,
            _ => None,
        };
        let _ = match before.zip(total) {
            Some((before, total)) => {
                write!(text, ",\"offset\":{}", before.saturating_add(self.args.skip).min(total))
            }
            None => write!(text, ",\"offset\":null"),
        };
        if self.args.update_seq {
            let seq = db.scoped_info(&target.scope).update_seq;
            text.extend_from_slice(b",\"update_seq\":");
            push_string(text, &db.seq_token(&target.scope, seq));
        }
        text.extend_from_slice(b",\"rows\":[");
        Ok(())
    }

    /// How many rows lie before the range, if there are few enough to count.
    fn count_before(&self, target: &Target, total: u64) -> Result<Option<u64>, ApiError> {
        match self.args.before {
            Before::None => return Ok(Some(0)),
            Before::All => return Ok(Some(total)),
            Before::Start if total > MAX_COUNTED => return Ok(None),
            Before::Start => {}
        }
        let mut list = ListArgs { range: IdRange::default(), empty: false, ..self.args.clone() };
        list.range.descending = self.args.range.descending;
        list.range.end.clone_from(&self.args.range.start);
        list.range.exclusive_end = true;
        clamp(self.kind, &mut list);
        if list.empty { Ok(Some(0)) } else { count(target, list.range).map(Some) }
    }

    fn next(&mut self, target: &Target, reads_left: &mut usize) -> Result<Next, ApiError> {
        loop {
            let row = match &mut self.source {
                Source::Keys(keys) => keys.next().map(Row::Key),
                Source::Local(rows) => rows.next().map(|(id, rev)| Row::Local(id, rev)),
                Source::Range { rows, rest } => {
                    if rows.is_empty() {
                        let Some(left) = reads_left.checked_sub(1) else { return Ok(Next::Later) };
                        *reads_left = left;
                        read_on(target, rows, rest, self.left.saturating_add(self.skip))?;
                    }
                    rows.pop_front().map(Row::Live)
                }
            };
            let Some(row) = row else { return Ok(Next::End) };
            if self.skip == 0 {
                return Ok(Next::Row(row));
            }
            self.skip -= 1;
        }
    }

    fn push_row(&self, target: &Target, out: &mut Out, row: Row) -> Result<(), ApiError> {
        match row {
            Row::Live(row) => {
                push_start(&mut out.text, &row.id, &row.rev);
                out.text.push(b'}');
                if self.args.include_docs {
                    self.push_doc(target, out, &row)?;
                }
                out.text.push(b'}');
                Ok(())
            }
            Row::Key(key) => self.push_key(target, out, key.as_deref()),
            Row::Local(id, rev) => {
                push_start(&mut out.text, &id, &LocalRev(rev));
                out.text.push(b'}');
                let name = id.strip_prefix(local_docs::PREFIX).unwrap_or(&id);
                if self.args.include_docs
                    && let Some(doc) = target.db.local_get(&target.owner, name)?
                {
                    out.text.extend_from_slice(b",\"doc\":");
                    push_local(&mut out.text, &id, doc.rev, &doc.body);
                }
                out.text.push(b'}');
                Ok(())
            }
        }
    }

    /// `,"doc":{..}`; `null` for one that has gone in the meantime.
    fn push_doc(&self, target: &Target, out: &mut Out, row: &DocRow) -> Result<(), ApiError> {
        out.text.extend_from_slice(b",\"doc\":");
        if self.args.needs_view() {
            if let Some(doc) = target.db.doc(&target.scope, &row.id)?
                && let Some(leaf) = doc.leaves.iter().find(|leaf| leaf.rev == row.rev)
            {
                return self.push_view(target, out, &doc, leaf);
            }
            out.text.extend_from_slice(b"null");
            return Ok(());
        }
        let body: Option<Body> = match row.body {
            Some(at) => target.db.body(at)?,
            None => None,
        };
        match body {
            Some(body) => push_plain(&mut out.text, &row.id, &row.rev, false, Some(&body)),
            None => out.text.extend_from_slice(b"null"),
        }
        Ok(())
    }

    /// A document with all that was asked for; `null` if its body was compacted away since it was found.
    fn push_view(&self, target: &Target, out: &mut Out, doc: &DocView, rev: &RevView) -> Result<(), ApiError> {
        match push_document(out, &target.db, doc, rev, &self.args.options) {
            Ok(_) => Ok(()),
            // Nothing of the document has been written.
            Err(error) if error.status == StatusCode::NOT_FOUND => {
                out.text.extend_from_slice(b"null");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn push_key(&self, target: &Target, out: &mut Out, key: Option<&str>) -> Result<(), ApiError> {
        let partition = self.args.partition.as_deref();
        let doc = match key.filter(|key| partition.is_none() || partition_of(key) == partition) {
            Some(key) => target.db.doc(&target.scope, key)?,
            None => None,
        };
        let Some(doc) = doc else {
            out.text.extend_from_slice(b"{\"key\":");
            match key {
                Some(key) => push_string(&mut out.text, key),
                None => out.text.extend_from_slice(b"null"),
            }
            out.text.extend_from_slice(b",\"error\":\"not_found\"}");
            return Ok(());
        };
        let winner = doc.winner();
        push_start(&mut out.text, &doc.id, &winner.rev);
        if winner.deleted {
            out.text.extend_from_slice(b",\"deleted\":true}");
            if self.args.include_docs {
                out.text.extend_from_slice(b",\"doc\":null");
            }
        } else {
            out.text.push(b'}');
            if self.args.include_docs {
                out.text.extend_from_slice(b",\"doc\":");
                self.push_view(target, out, &doc, winner)?;
            }
        }
        out.text.push(b'}');
        Ok(())
    }
}

/// Only the ids that the list is of.
fn clamp(kind: Kind, args: &mut ListArgs) {
    match (kind, &args.partition) {
        (Kind::Design, _) => args.clamp(DESIGN_RANGE.0, DESIGN_RANGE.1),
        (Kind::All, Some(partition)) => {
            let (low, behind) = partition_bounds(partition);
            args.clamp_range(&low, &behind);
        }
        _ => {}
    }
}

/// `{"id":..,"key":..,"value":{"rev":..` without the closing braces.
fn push_start(out: &mut Vec<u8>, id: &str, rev: &dyn std::fmt::Display) {
    out.extend_from_slice(b"{\"id\":");
    push_string(out, id);
    out.extend_from_slice(b",\"key\":");
    push_string(out, id);
    push_rev(out, b",\"value\":{\"rev\":", rev);
}

/// Reads the next rows of a range, no more than are wanted.
fn read_on(
    target: &Target,
    rows: &mut VecDeque<DocRow>,
    rest: &mut Option<IdRange>,
    wanted: u64,
) -> Result<(), ApiError> {
    let Some(range) = rest.take() else {
        return Ok(());
    };
    let limit = usize::try_from(wanted).map_or(ROWS_A_READ, |wanted| wanted.min(ROWS_A_READ));
    *rows = target.db.all_docs(&target.scope, &range, limit)?.into();
    if rows.len() == limit
        && let Some(last) = rows.back()
    {
        *rest = Some(range.after(&last.id));
    }
    Ok(())
}

fn count_design_docs(target: &Target) -> Result<u64, ApiError> {
    let (start, end) = (Some(DESIGN_RANGE.0.to_owned()), Some(DESIGN_RANGE.1.to_owned()));
    count(target, IdRange { start, end, ..IdRange::default() })
}

/// The rows of a range, one by one.
fn count(target: &Target, range: IdRange) -> Result<u64, ApiError> {
    let mut rest = Some(range);
    let mut count = 0;
    let mut rows = VecDeque::new();
    while rest.is_some() {
        read_on(target, &mut rows, &mut rest, u64::MAX)?;
        count += rows.len() as u64;
    }
    Ok(count)
}

/// The `_local` documents in the range, or those of the keys, in order.
fn local_rows(
    target: &Target,
    args: &ListArgs,
    keys: Option<Vec<Option<String>>>,
) -> Result<Vec<(String, u64)>, ApiError> {
    let list = target.db.local_list(&target.owner)?;
    let mut rows: Vec<(String, u64)> =
        list.into_iter().map(|(name, rev)| (format!("{}{name}", local_docs::PREFIX), rev)).collect();
    match keys {
        Some(keys) => {
            let keys: HashSet<String> = keys.into_iter().flatten().collect();
            rows.retain(|(id, _)| keys.contains(id));
        }
        None => rows.retain(|(id, _)| !args.empty && is_within(id, &args.range)),
    }
    if args.range.descending {
        rows.reverse();
    }
    Ok(rows)
}

fn is_within(id: &str, range: &IdRange) -> bool {
    let (low, low_out, high, high_out) = if range.descending {
        (&range.end, range.exclusive_end, &range.start, false)
    } else {
        (&range.start, false, &range.end, range.exclusive_end)
    };
    let above = |low: &String| id > low.as_str() || (id == low && !low_out);
    let below = |high: &String| id < high.as_str() || (id == high && !high_out);
    low.as_ref().is_none_or(above) && high.as_ref().is_none_or(below)
}
