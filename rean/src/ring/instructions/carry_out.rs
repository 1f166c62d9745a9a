//! Finds out which instructions this pod has carried out.
//!
//! There is nothing to be done for an instruction: a document moves when its revision or its app's rules arrive. So the
//! worker only looks; what isn't done within some seconds makes it have the links compare everything once more.
//!
//! A move is carried out where all that the master had when it made the move is known, and documents are placed by what
//! is known: the document's revision, and the app's rules. Where the document is doesn't tell. Before its revision has
//! come it may be elsewhere, or not be at all, and then come, by something still older, to where it may not be read any
//! more; and after that it may be there again, by something newer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use adea_ring::Stamp;
use rean_store::{Db, DocRow, DocView, Rev, Scope, Store, StoreError};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::progress::Progress;
use super::{Number, PREFIX, ring_of};
use crate::apps;
use crate::pod::Pod;
use crate::ring::databases;
use crate::ring::databases::db_doc::live_instances;
use crate::ring::follow::{Follow, Occasion};
use crate::ring::ring_doc::{self, prefixed};
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
/// How long a missing instruction or document is waited for, a comparison included. Then it was pruned while this pod
/// was away, or purged.
const LOST_PATIENCE: Duration = Duration::from_secs(40);
/// What a comparison takes at least before its result counts.
const COMPARISON: Duration = Duration::from_secs(10);

/// An instruction as it is stored.
#[derive(Deserialize)]
struct Instruction {
    #[serde(default)]
    prev: Option<String>,
    /// The databases of its moves.
    #[serde(default)]
    dbs: BTreeMap<String, OfDb>,
    #[serde(default)]
    moves: Vec<Moved>,
}

/// What the master had of a database.
#[derive(Default, Deserialize)]
struct OfDb {
    /// None where the database was in no document of the ring yet.
    #[serde(default)]
    instance: Option<String>,
    /// The revision of the app's rules; none where it has none.
    #[serde(default)]
    rules: Option<String>,
}

/// One of its moves.
#[derive(Deserialize)]
struct Moved {
    db: String,
    id: String,
    rev: String,
}

/// Why an instruction is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    /// The one before it is not here.
    Gap { prev: String },
    /// A document is older than the move, or not placed by the rules of it.
    Waits { db: String, id: String },
    /// A document is not here: it is on its way, and may come in the state before the move; or it was purged.
    Missing { db: String, id: String },
}

/// What is known of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is carried out.
    Done,
    /// The document, or the rules, are older than the move.
    Behind,
    /// The document is not here.
    Missing,
}

/// Puts the rules of a database in force as far as they have come, and tells whether all its documents are placed by
/// them.
pub(super) type Place<'a> = dyn Fn(&Db) -> Result<bool, StoreError> + 'a;

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
    // What they miss was waited for long enough; the rest of them is still to be carried out.
    let mut passed: BTreeSet<Number> = BTreeSet::new();
    loop {
        passed.extend(open.values().filter(|open| open.is_lost(repaired)).map(|open| open.number.clone()));
        // The first open ones of their epochs, at most.
        passed.retain(|number| open.get(&number.epoch).is_some_and(|open| open.number == *number));
        let (pass_pod, for_pass) = (Arc::clone(&pod), passed.clone());
        let look = move || {
            let place = |db: &Db| apps::apply(&pass_pod, db).map(|()| !db.needs_repartition());
            pass(&pass_pod.store, &pass_pod.ring.records.progress, &for_pass, &place)
        };
        let look = tokio::task::spawn_blocking(look)
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
    /// Whether what is missing was waited for long enough: all was compared since, and it has not come.
    fn is_lost(&self, repaired: Option<Instant>) -> bool {
        let can_be = !matches!(self.reason, Reason::Waits { .. });
        let is_compared = repaired.is_some_and(|at| at >= self.since && at.elapsed() >= COMPARISON);
        can_be && is_compared && self.since.elapsed() >= LOST_PATIENCE
    }
}

fn pause(open: &BTreeMap<Stamp, Open>) -> Duration {
    match open.values().map(|open| open.since.elapsed()).min() {
        None => PAUSE,
        Some(youngest) if youngest < PATIENCE / 4 => SHORT_PAUSE,
        Some(_) => LONG_PAUSE,
    }
}

/// Whether more is on its way here: a comparison would begin that anew, again and again.
fn is_catching_up(links: &Value) -> bool {
    let links = links.as_array().into_iter().flatten();
    links.filter_map(|link| link.get("state")).any(|state| state == "catching_up")
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
    if repaired.is_some_and(|at| at.elapsed() < REPAIR_PAUSE) || is_catching_up(&pod.ring.records.describe_links()) {
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
        Reason::Waits { db, id } | Reason::Missing { db, id } => {
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
pub(super) fn pass(
    store: &Store,
    progress: &Progress,
    passed: &BTreeSet<Number>,
    place: &Place<'_>,
) -> Result<Look, StoreError> {
    let ring = ring_of(store)?;
    let here = Here { store, ring: &ring, progress, place };
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
            if let Some(reason) = here.check(&row, passed.contains(&number))? {
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

/// What instructions are compared with.
struct Here<'a> {
    store: &'a Store,
    ring: &'a Db,
    progress: &'a Progress,
    place: &'a Place<'a>,
}

impl Here<'_> {
    /// Why an instruction is not carried out; none if it is. `has_waited`: what is not here at all is not waited for
    /// any longer.
    fn check(&self, row: &DocRow, has_waited: bool) -> Result<Option<Reason>, StoreError> {
        let Some(instruction) = read(self.ring, row)? else {
            // Gone in between, or nothing that can be carried out.
            return Ok(None);
        };
        let prev = instruction.prev.as_deref().and_then(|prev| prev.parse::<Number>().ok());
        if let Some(prev) = prev
            && !has_waited
            && !self.has_seen(&prev)?
        {
            return Ok(Some(Reason::Gap { prev: prev.to_string() }));
        }
        let mut placed: BTreeMap<&str, bool> = BTreeMap::new();
        for moved in &instruction.moves {
            let state = self.state_of(moved, &instruction.dbs, &mut placed)?;
            let (db, id) = (moved.db.clone(), moved.id.clone());
            match state {
                State::Done => {}
                State::Missing if has_waited => {}
                State::Missing => return Ok(Some(Reason::Missing { db, id })),
                State::Behind => return Ok(Some(Reason::Waits { db, id })),
            }
        }
        Ok(None)
    }

    /// Whether an instruction is here or has been carried out, or came before this pod did. One that was taken out
    /// before this pod had carried it out is missing, though its tombstone is here.
    fn has_seen(&self, prev: &Number) -> Result<bool, StoreError> {
        if self.progress.is_new() || self.progress.reached(&prev.epoch) >= prev.number {
            return Ok(true);
        }
        Ok(self.ring.doc(&Scope::All, &prev.doc_id())?.is_some_and(|prev| !prev.winner().deleted))
    }

    /// `placed`: the databases that were looked at before for this instruction.
    fn state_of<'m>(
        &self,
        moved: &'m Moved,
        dbs: &BTreeMap<String, OfDb>,
        placed: &mut BTreeMap<&'m str, bool>,
    ) -> Result<State, StoreError> {
        // A database that is not here shows nobody anything.
        let Some(db) = self.store.db(&moved.db) else { return Ok(State::Done) };
        let Ok(rev) = moved.rev.parse::<Rev>() else { return Ok(State::Done) };
        let of_db = dbs.get(&moved.db);
        let mut state = || {
            let is_placed = match placed.get(moved.db.as_str()) {
                Some(is_placed) => *is_placed,
                None if self.is_of_another(moved, of_db)? => return Ok(State::Done),
                None => *placed.entry(&moved.db).or_insert(self.is_placed(&db, of_db)?),
            };
            let Some(view) = db.doc(&Scope::All, &moved.id)? else { return Ok(State::Missing) };
            let is_done = is_placed && is_up_to(&db, &view, &rev)?;
            Ok(if is_done { State::Done } else { State::Behind })
        };
        match state() {
            Err(StoreError::Gone) => Ok(State::Done),
            state => state,
        }
    }

    /// Whether the database that a document moved in has been deleted: there is another one of its name now.
    fn is_of_another(&self, moved: &Moved, of_db: Option<&OfDb>) -> Result<bool, StoreError> {
        let Some(instance) = of_db.and_then(|of_db| of_db.instance.as_ref()) else { return Ok(false) };
        let leaves = ring_doc::leaves(self.ring, &databases::doc_id(&moved.db))?;
        Ok(!leaves.is_empty() && live_instances(&leaves).all(|live| live != instance))
    }

    /// Whether the rules that the master had are here, or had been, and all documents are placed by those that are in
    /// force. To be asked before a document is looked at.
    fn is_placed(&self, db: &Db, of_db: Option<&OfDb>) -> Result<bool, StoreError> {
        let rules = of_db.and_then(|of_db| of_db.rules.as_ref()?.parse::<Rev>().ok());
        if let Some(rules) = rules {
            let here = self.ring.doc(&Scope::All, &format!("{}{}", apps::PREFIX, db.name()))?;
            let Some(here) = here else { return Ok(false) };
            if !is_up_to(self.ring, &here, &rules)? {
                return Ok(false);
            }
        }
        (self.place)(db)
    }
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

/// Whether a document has a revision, or had it: a long history forgets its beginning. One that lacks it may be
/// elsewhere than where it moved from, and what comes on the way to that revision bring it there; also if it wins.
fn is_up_to(db: &Db, view: &DocView, rev: &Rev) -> Result<bool, StoreError> {
    let forgotten = view.history(view.winner()).last().is_some_and(|oldest| oldest.generation > rev.generation);
    Ok(forgotten || db.revs_diff(&Scope::All, &view.id, std::slice::from_ref(rev))?.missing.is_empty())
}
