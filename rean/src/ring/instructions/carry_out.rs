//! Finds out which instructions this pod has carried out.
//!
//! There is nothing to be done for an instruction: a document moves when its revision or its app's rules arrive. So the
//! worker only looks; what isn't done within some seconds makes it have the links compare everything once more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use adea_ring::Stamp;
use rean_store::{Db, DocRow, IdRange, Rev, Scope, Store, StoreError};
use serde::Deserialize;
use tokio::time::Instant;

use super::progress::Progress;
use super::{Number, PREFIX, ring_of};
use crate::apps;
use crate::pod::Pod;
use crate::ring::follow::{Follow, Occasion};
use crate::ring::ring_doc::prefixed;
use crate::workers::Stop;

/// Rows that are read at once.
const PAGE: usize = 100;
/// Instructions of one pass: with up to a thousand moves each it takes a moment, and the worker must be stoppable.
const MAX_PASS: usize = 500;
/// A look without being told, in case one was missed.
const PAUSE: Duration = Duration::from_secs(60);
/// Between two looks at what is open: at first its document is on the way,
const SHORT_PAUSE: Duration = Duration::from_millis(100);
/// later something is wrong.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// An instruction is on the way for this long at most when all is well.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two comparisons of everything: each costs a look at all documents.
const REPAIR_PAUSE: Duration = Duration::from_secs(30);
/// How long a missing instruction is waited for, a comparison included. Then it was pruned while this pod was away.
const GAP_PATIENCE: Duration = Duration::from_secs(40);
/// Later instructions that are searched for a document's return.
const MAX_LATER: usize = 200;

/// An instruction as it is stored.
#[derive(Deserialize)]
struct Instruction {
    #[serde(default)]
    prev: Option<String>,
    #[serde(default)]
    moves: Vec<Moved>,
}

/// One of its moves.
#[derive(Deserialize)]
struct Moved {
    db: String,
    id: String,
    from: String,
    #[serde(default)]
    to: Option<String>,
    rev: String,
}

/// Why an instruction is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    /// The one before it is not here.
    Gap { prev: String },
    /// A document is still where it was.
    Waits { db: String, id: String },
}

/// What is open, and since when.
struct Open {
    number: Number,
    reason: Reason,
    since: Instant,
}

/// What one pass has found.
#[derive(Default)]
pub(super) struct Look {
    pub(super) live: BTreeSet<Stamp>,
    /// The first of each epoch that isn't carried out.
    pub(super) open: BTreeMap<Stamp, (Number, Reason)>,
    pub(super) carried: usize,
    /// There is more to look at.
    pub(super) more: bool,
}

/// Looks until it is told to stop.
///
/// # Errors
/// When the store fails; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    let mut follow = Follow::new(&pod)?;
    let mut open: BTreeMap<Stamp, Open> = BTreeMap::new();
    let mut repaired: Option<Instant> = None;
    loop {
        let pass_pod = Arc::clone(&pod);
        // A gap that was waited for long enough is passed over.
        let passed: BTreeSet<Number> = open.values().filter(|open| open.is_lost()).map(|o| o.number.clone()).collect();
        let look = tokio::task::spawn_blocking(move || pass(&pass_pod.store, &pass_pod.ring.records.progress, &passed))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        let more = look.more;
        note(&pod, look, &mut open).map_err(|error| error.to_string())?;
        repair(&pod, &open, &mut repaired).await;
        if more && !stop.is_stopped() {
            continue;
        }
        match follow.next(pause(&open), &mut stop, |id| id.starts_with(PREFIX)).await {
            Occasion::End => return Ok(()),
            Occasion::All | Occasion::Ids(_) => {}
        }
    }
}

impl Open {
    fn is_lost(&self) -> bool {
        matches!(self.reason, Reason::Gap { .. }) && self.since.elapsed() >= GAP_PATIENCE
    }
}

fn pause(open: &BTreeMap<Stamp, Open>) -> Duration {
    match open.values().map(|open| open.since.elapsed()).min() {
        None => PAUSE,
        Some(youngest) if youngest < PATIENCE / 4 => SHORT_PAUSE,
        Some(_) => LONG_PAUSE,
    }
}

/// Publishes what a pass has found.
fn note(pod: &Pod, look: Look, open: &mut BTreeMap<Stamp, Open>) -> Result<(), StoreError> {
    let now = Instant::now();
    let before = std::mem::take(open);
    for (epoch, (number, reason)) in look.open {
        let known = before.get(&epoch).filter(|known| known.number == number && known.reason == reason);
        let since = known.map_or(now, |known| known.since);
        open.insert(epoch, Open { number, reason, since });
    }
    let progress = &pod.ring.records.progress;
    let firsts = open.values().map(|open| open.number.clone()).collect();
    let news = progress.found(look.live, firsts);
    if look.carried > 0 {
        progress.save(&pod.store)?;
    }
    if look.carried > 0 || news {
        pod.ring.records.status.notify_one();
    }
    Ok(())
}

/// Has everything compared when something is open for too long.
async fn repair(pod: &Arc<Pod>, open: &BTreeMap<Stamp, Open>, repaired: &mut Option<Instant>) {
    let Some(late) = open.values().find(|open| open.since.elapsed() >= PATIENCE) else {
        return;
    };
    if repaired.is_some_and(|at| at.elapsed() < REPAIR_PAUSE) {
        return;
    }
    if let Reason::Waits { db, .. } = &late.reason {
        let Some(app) = pod.store.db(db) else { return };
        let for_rules = Arc::clone(pod);
        let placed = tokio::task::spawn_blocking(move || {
            let applied = apps::apply(&for_rules, &app);
            applied.map(|()| !app.needs_repartition())
        });
        match placed.await {
            Ok(Ok(true)) => {}
            // Documents are being placed by new rules: that takes its time.
            Ok(Ok(false)) => return,
            failed => {
                tracing::error!(?failed, "the rules of an app could not be looked at");
                return;
            }
        }
    }
    *repaired = Some(Instant::now());
    let for_links = Arc::clone(pod);
    let asked = tokio::task::spawn_blocking(move || for_links.ring.records.repair()).await.unwrap_or(false);
    let instruction = late.number.to_string();
    match &late.reason {
        Reason::Gap { prev } => {
            tracing::warn!(instruction, prev, asked, "an instruction is missing; comparing with the other pods");
        }
        Reason::Waits { db, id } => {
            tracing::warn!(
                instruction,
                database = db,
                doc = id,
                asked,
                "an instruction is not carried out yet; comparing with the other pods"
            );
        }
    }
}

/// One look at all instructions that aren't carried out. Blocking.
pub(super) fn pass(store: &Store, progress: &Progress, passed: &BTreeSet<Number>) -> Result<Look, StoreError> {
    let ring = ring_of(store)?;
    let mut look = Look::default();
    let mut range = prefixed(PREFIX);
    let mut looked = 0;
    // What is carried out is jumped over: one row is read for each epoch.
    while let Some(next) = ring.all_docs(&Scope::All, &range, 1)?.pop() {
        let Some(number) = Number::of_doc(&next.id) else {
            tracing::warn!(id = next.id, "this is no instruction");
            range = range.after(&next.id);
            continue;
        };
        look.live.insert(number.epoch.clone());
        let reached = progress.reached(&number.epoch);
        if number.number <= reached {
            range = range.after(&Number { number: reached, ..number }.doc_id());
            continue;
        }
        if look.open.contains_key(&number.epoch) {
            range = range.after(&end_of(&number.epoch));
            continue;
        }
        for row in ring.all_docs(&Scope::All, &range, PAGE)? {
            let Some(number) = Number::of_doc(&row.id).filter(|one| one.epoch == number.epoch) else { break };
            looked += 1;
            let reason = if passed.contains(&number) { None } else { check(store, progress, &ring, &row, &number)? };
            if let Some(reason) = reason {
                look.open.insert(number.epoch.clone(), (number, reason));
                break;
            }
            progress.reach(&number);
            look.carried += 1;
        }
        if looked >= MAX_PASS {
            look.more = true;
            break;
        }
    }
    Ok(look)
}

/// An id after all of an epoch.
fn end_of(epoch: &Stamp) -> String {
    format!("{PREFIX}{epoch}.~")
}

/// Why an instruction is not carried out; none if it is.
fn check(
    store: &Store,
    progress: &Progress,
    ring: &Db,
    row: &DocRow,
    number: &Number,
) -> Result<Option<Reason>, StoreError> {
    let Some(instruction) = read(ring, row)? else {
        // Gone in between, or nothing that can be carried out.
        return Ok(None);
    };
    let prev = instruction.prev.as_deref().and_then(|prev| prev.parse::<Number>().ok());
    if let Some(prev) = prev
        && !is_seen(progress, ring, &prev)?
    {
        return Ok(Some(Reason::Gap { prev: prev.to_string() }));
    }
    for (at, moved) in instruction.moves.iter().enumerate() {
        if is_carried_out(store, moved)?
            || instruction.moves[at + 1..].iter().any(|later| later.undoes(moved))
            || returned(ring, moved, number)?
        {
            continue;
        }
        return Ok(Some(Reason::Waits { db: moved.db.clone(), id: moved.id.clone() }));
    }
    Ok(None)
}

fn read(ring: &Db, row: &DocRow) -> Result<Option<Instruction>, StoreError> {
    let Some(at) = row.body else { return Ok(None) };
    let Some(body) = ring.body(at)? else { return Ok(None) };
    let read = serde_json::from_slice(&body.json);
    if let Err(error) = &read {
        tracing::warn!(id = row.id, %error, "an instruction can't be read");
    }
    Ok(read.ok())
}

/// Whether an instruction has been here, or came before this pod did.
fn is_seen(progress: &Progress, ring: &Db, prev: &Number) -> Result<bool, StoreError> {
    if progress.is_new() || progress.reached(&prev.epoch) >= prev.number {
        return Ok(true);
    }
    Ok(ring.doc(&Scope::All, &prev.doc_id())?.is_some())
}

fn is_carried_out(store: &Store, moved: &Moved) -> Result<bool, StoreError> {
    // A database that is not here shows nobody anything.
    let Some(db) = store.db(&moved.db) else { return Ok(true) };
    let Ok(rev) = moved.rev.parse::<Rev>() else { return Ok(true) };
    match db.move_state(&moved.id, &moved.from, &rev) {
        Err(StoreError::Gone) => Ok(true),
        state => state,
    }
}

impl Moved {
    /// Whether this later move brings the document back to where `earlier` took it from, as when rules are changed
    /// and changed back: then it may be there again by the same revision.
    fn undoes(&self, earlier: &Self) -> bool {
        self.db == earlier.db && self.id == earlier.id && self.to.as_ref() == Some(&earlier.from)
    }
}

/// Whether a later instruction brings the document back.
fn returned(ring: &Db, moved: &Moved, number: &Number) -> Result<bool, StoreError> {
    let range = IdRange { start: Some(number.doc_id()), exclusive_start: true, ..prefixed(PREFIX) };
    for row in ring.all_docs(&Scope::All, &range, MAX_LATER)? {
        if read(ring, &row)?.is_some_and(|later| later.moves.iter().any(|later| later.undoes(moved))) {
            return Ok(true);
        }
    }
    Ok(false)
}
