//! Where the documents of an answer come from: a list of ids, a range of ids, or the rows of an index. Each gives more
//! than is wanted, in the wanted order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::vec::IntoIter;

use http::StatusCode;
use rean_index::mango::plan::IdBounds;
use rean_index::mango::{Choice, IndexDef, KeyRange};
use rean_index::{Bound, Group, IndexError, Range, Row, Rows, View};
use rean_store::collate::{array_prefix, sort_key};
use rean_store::{DocRow, IdRange, partition_bounds, partition_of};
use serde_json::Value;

use super::args::FindArgs;
use super::planning::{Planned, group_of};
use crate::error::ApiError;
use crate::pod::Pod;
use crate::target::Target;
use crate::views::{Wanted, fresh, index_error};

/// Rows that are read at once.
const ROWS_A_READ: usize = 256;
/// What the ids of design documents start with: no query gives them.
const DESIGN: &str = "_design/";
/// Follows every byte that a sort key can go on with.
const BEHIND_ALL: u8 = 0xff;
/// How often a query asks again for an index that was dropped meanwhile, as when its design document is replaced.
const ATTEMPTS: usize = 3;

/// What is still to be looked at.
pub enum Source {
    /// Nothing can match.
    Nothing,
    /// These documents.
    Ids(IntoIter<String>),
    /// The documents in a range of ids: what was read, and where to go on.
    Range(VecDeque<DocRow>, Option<IdRange>),
    /// The rows of an index.
    Index(Box<IndexRows>),
}

/// The rows of an index that are left.
pub struct IndexRows {
    group: Group,
    view: usize,
    partition: Option<String>,
    range: Range,
    /// The range, opened. A client takes its time, and an open view holds back the removal of old data: between two
    /// pages it is let go of. So a document that changes meanwhile may come again at its new place, as it may with
    /// bookmarks.
    rows: Option<Rows>,
    read: VecDeque<Row>,
    /// The last row that was taken.
    last: Option<Row>,
    /// Everything up to this row was taken before the range was opened.
    after: Option<(Vec<u8>, String)>,
}

/// Something to look at.
pub enum Hit {
    /// A document that was listed.
    Listed(DocRow),
    /// A document that was named.
    Named(String),
    /// A row of an index.
    Row(Row),
}

impl Hit {
    /// The document's id.
    pub fn id(&self) -> &str {
        match self {
            Hit::Listed(row) => &row.id,
            Hit::Named(id) => id,
            Hit::Row(row) => &row.id,
        }
    }
}

/// Opens what the plan says, behind the bookmark. An index is brought up to date first, but for a reader of everything
/// who doesn't want it: an old row could tell others of a document that isn't theirs any more.
///
/// # Errors
/// The index or the store failed.
pub async fn open(pod: &Arc<Pod>, target: &Target, args: &FindArgs, planned: &Planned) -> Result<Source, ApiError> {
    if planned.plan.nothing {
        return Ok(Source::Nothing);
    }
    match &planned.plan.choice {
        Choice::AllDocs(bounds) => Ok(match &args.partition {
            None => of_ids(bounds.clone(), args),
            Some(partition) => of_ids(within(bounds.clone(), partition), args),
        }),
        Choice::Index(at, range) => of_index(pod, target, args, &planned.indexes[*at], range).await,
    }
}

/// Only ids of a partition.
fn within(mut bounds: IdBounds, partition: &str) -> IdBounds {
    let (low, behind) = partition_bounds(partition);
    bounds.low = Some(bounds.low.map_or(low.clone(), |other| other.max(low)));
    // No id of a partitioned database is `behind` itself: it has no colon.
    bounds.high = Some(bounds.high.map_or(behind.clone(), |other| other.min(behind)));
    if let Some(ids) = &mut bounds.ids {
        ids.retain(|id| partition_of(id) == Some(partition));
    }
    bounds
}

fn of_ids(bounds: IdBounds, args: &FindArgs) -> Source {
    let descending = args.sort.descending;
    let after = args.bookmark.as_ref().map(|bookmark| bookmark.id.as_str());
    if let Some(ids) = bounds.ids {
        let is_left =
            |id: &&String| after.is_none_or(|after| if descending { id.as_str() < after } else { id.as_str() > after });
        let mut ids: Vec<String> = ids.into_iter().filter(|id| is_left(&id)).collect();
        if descending {
            ids.reverse();
        }
        return Source::Ids(ids.into_iter());
    }
    let (mut low, mut high) = (bounds.low, bounds.high);
    // A bookmark from before the range leaves the range as it is.
    let start = if descending { &mut high } else { &mut low };
    let narrows =
        |after: &&str| start.as_deref().is_none_or(|start| if descending { *after <= start } else { *after >= start });
    let exclusive_start = match after.filter(narrows) {
        Some(after) => {
            *start = Some(after.to_owned());
            true
        }
        None => false,
    };
    if matches!((&low, &high), (Some(low), Some(high)) if low > high || (low == high && exclusive_start)) {
        return Source::Nothing;
    }
    let (start, end) = if descending { (high, low) } else { (low, high) };
    Source::Range(VecDeque::new(), Some(IdRange { start, end, exclusive_start, exclusive_end: false, descending }))
}

async fn of_index(
    pod: &Arc<Pod>,
    target: &Target,
    args: &FindArgs,
    index: &IndexDef,
    range: &KeyRange,
) -> Result<Source, ApiError> {
    let is_stale_fine = target.whole() && args.takes_stale();
    for _ in 0..ATTEMPTS {
        let Some((group, view)) = group_of(pod, target, index)? else { return Err(changed()) };
        let updated = if is_stale_fine { Ok(()) } else { fresh(pod, &group, &index.ddoc, Wanted::Now).await };
        let partition = args.partition.clone();
        match updated.and_then(|()| open_view(&group, target, view, partition.as_deref())) {
            Ok(open) => {
                let mut range = bounds_of(range, args.sort.descending);
                let place = args.bookmark.as_ref().and_then(|bookmark| Some((bookmark.row.as_ref()?, &bookmark.id)));
                let after = place.map(|(row, id)| go_on(&mut range, &Value::Array(row.key.clone()), id));
                let rows = Some(open.rows(range.clone()));
                return Ok(Source::Index(Box::new(IndexRows {
                    group,
                    view,
                    partition,
                    range,
                    rows,
                    read: VecDeque::new(),
                    last: None,
                    after,
                })));
            }
            Err(IndexError::Gone) if !target.db.is_gone() => {}
            Err(error) => return Err(index_error(error, &target.db)),
        }
    }
    Err(changed())
}

/// The rows of an index, or those of one partition.
fn open_view(group: &Group, target: &Target, view: usize, partition: Option<&str>) -> Result<View, IndexError> {
    let view = group.view(&target.scope, view)?;
    Ok(match partition {
        Some(partition) => view.within(partition),
        None => view,
    })
}

fn changed() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", "The index has just been changed; try again.")
}

/// A range in the bytes of the index.
fn bounds_of(range: &KeyRange, descending: bool) -> Range {
    let low = prefix(&range.start).map(|key| Bound { key, doc_id: None });
    let high = prefix(&range.end).map(|mut key| {
        key.push(BEHIND_ALL);
        Bound { key, doc_id: None }
    });
    let (start, end) = if descending { (high, low) } else { (low, high) };
    Range { start, end, exclusive_end: false, descending }
}

/// What the sort keys of all lists that begin with these values begin with.
fn prefix(values: &[Value]) -> Option<Vec<u8>> {
    let key = sort_key(&Value::Array(values.to_vec()));
    (!values.is_empty()).then(|| array_prefix(&key, values.len()).unwrap_or(&key).to_vec())
}

/// Lets a range begin at a row, and gives this row, which is to be left out.
fn go_on(range: &mut Range, key: &Value, id: &str) -> (Vec<u8>, String) {
    let key = sort_key(key);
    range.start = Some(Bound { key: key.clone(), doc_id: Some(id.to_owned()) });
    (key, id.to_owned())
}

impl Source {
    /// The next document to look at.
    ///
    /// # Errors
    /// The index or the store failed.
    pub fn next(&mut self, target: &Target) -> Result<Option<Hit>, ApiError> {
        loop {
            let hit = match self {
                Source::Nothing => None,
                Source::Ids(ids) => ids.next().map(Hit::Named),
                Source::Range(rows, rest) => {
                    if rows.is_empty() {
                        read_on(target, rows, rest)?;
                    }
                    rows.pop_front().map(Hit::Listed)
                }
                Source::Index(rows) => rows.next(target)?.map(Hit::Row),
            };
            if hit.as_ref().is_none_or(|hit| !hit.id().starts_with(DESIGN)) {
                return Ok(hit);
            }
        }
    }

    /// Holds nothing open until the next one is asked for.
    pub fn rest(&mut self) {
        if let Source::Index(rows) = self {
            rows.rest();
        }
    }
}

fn read_on(target: &Target, rows: &mut VecDeque<DocRow>, rest: &mut Option<IdRange>) -> Result<(), ApiError> {
    let Some(range) = rest.take() else { return Ok(()) };
    *rows = target.db.all_docs(&target.scope, &range, ROWS_A_READ)?.into();
    if rows.len() == ROWS_A_READ
        && let Some(last) = rows.back()
    {
        *rest = Some(range.after(&last.id));
    }
    Ok(())
}

impl IndexRows {
    fn next(&mut self, target: &Target) -> Result<Option<Row>, ApiError> {
        let failed = |error| index_error(error, &target.db);
        loop {
            if self.read.is_empty() {
                let rows = match &mut self.rows {
                    Some(rows) => rows,
                    closed => {
                        let view = open_view(&self.group, target, self.view, self.partition.as_deref());
                        let view = view.map_err(failed)?;
                        closed.insert(view.rows(self.range.clone()))
                    }
                };
                self.read = rows.next_page(ROWS_A_READ).map_err(failed)?.into();
            }
            let Some(row) = self.read.pop_front() else { return Ok(None) };
            // Only the first row can be the one that was taken before: there is one a document.
            let is_known = self.after.take().is_some_and(|(key, id)| row.id == id && key_of(&row) == Some(key));
            if !is_known {
                self.last = Some(row.clone());
                return Ok(Some(row));
            }
        }
    }

    fn rest(&mut self) {
        self.rows = None;
        self.read.clear();
        if let Some(last) = self.last.take()
            && let Ok(key) = serde_json::from_slice(&last.key)
        {
            self.after = Some(go_on(&mut self.range, &key, &last.id));
        }
    }
}

fn key_of(row: &Row) -> Option<Vec<u8>> {
    serde_json::from_slice(&row.key).ok().map(|key| sort_key(&key))
}
