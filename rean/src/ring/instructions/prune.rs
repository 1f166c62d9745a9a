//! Takes instructions out of `_ring` that all pods have carried out.
//!
//! The write master deletes them, so that all pods do; their tombstones each pod purges by itself after a while. A pod
//! that was away for longer brings them back for a moment: they are carried out, and go again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use adea_ring::{PodId, Stamp};
use rean_store::{Db, Edit, Feed, FeedError, IdRange, Rev, Scope, Since, StoreError, WriteError};
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::progress::{Progress, read_reached};
use super::{Number, PREFIX, newest};
use crate::databases::blocking;
use crate::pod::Pod;
use crate::ring::ring_doc::{self, now_ms, prefixed, ring_db};
use crate::ring::status;
use crate::workers::Stop;

/// Between two passes.
const PAUSE: Duration = Duration::from_secs(5);
/// Instructions that one pass takes out: one commit of small edits.
const MAX_PASS: usize = 200;
/// How long a tombstone stays: a pod that was away for less learns of the deletion by it.
const KEPT: Duration = Duration::from_secs(3_600);
/// Tombstones that are remembered until then, at some 100 bytes each; there are more only after a mass of moves, and
/// they are found again.
const MAX_TOMBSTONES: usize = 20_000;
/// Rows that are read at once.
const PAGE_ROWS: usize = 500;
/// Milliseconds of an hour.
const HOUR_MS: u64 = 3_600_000;

/// Prunes until it is told to stop.
///
/// # Errors
/// When the store fails; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    let mut tombstones = Tombstones::new(&pod).map_err(|error| error.to_string())?;
    loop {
        let pruned = pass(&pod).await?;
        let purged = tombstones.pass(KEPT).await.map_err(|error| error.to_string())?;
        if pruned + purged > 0 {
            tracing::debug!(pruned, purged, "took out instructions that are carried out");
        }
        // More of them at once, but not without a pause: others write too.
        let pause = if pruned == MAX_PASS { PAUSE / 50 } else { PAUSE };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.stopped() => return Ok(()),
        }
    }
}

/// Takes out what may go, if it is for this pod to do; gives how many.
async fn pass(pod: &Arc<Pod>) -> Result<usize, String> {
    // A role is given up after this.
    let Some(_pass) = pod.ring.gate.enter() else { return Ok(0) };
    let for_look = Arc::clone(pod);
    let found = blocking(move || prunable_now(&for_look)).await.map_err(|error| error.cause().to_owned())?;
    let found = found.map_err(|error| error.to_string())?;
    let ring = ring_db(pod).map_err(|error| error.to_string())?;
    let count = found.len();
    if pod.ring.is_alone() {
        // Nobody else has them.
        for (id, rev) in found {
            purge(&ring, &id, vec![rev]).await.map_err(|error| error.to_string())?;
        }
        return Ok(count);
    }
    let edits: Vec<Edit> = found.into_iter().map(|(id, rev)| ring_doc::deletion(&id, rev, &Map::new())).collect();
    // One that was deleted in between is a conflict, and done.
    ring_doc::write_all(pod, &ring, edits).await.map_err(|error| error.cause().to_owned())?;
    Ok(count)
}

/// What may go now; nothing while the pods are not known.
fn prunable_now(pod: &Pod) -> Result<Vec<(String, Rev)>, StoreError> {
    let others = match pod.ring.state() {
        _ if pod.ring.is_alone() => Vec::new(),
        None => return Ok(Vec::new()),
        Some(state) => {
            let others = state.members.iter().filter(|known| !known.member.left && known.member.id != state.me);
            others.map(|known| known.member.id.clone()).collect()
        }
    };
    let kept_ms = pod.ring.config().instructions.keep_hours.saturating_mul(HOUR_MS);
    prunable(&ring_db(pod)?, &pod.ring.records.progress, &others, now_ms().saturating_sub(kept_ms))
}

/// What this pod and all `others` have carried out, or was given before `oldest_ms` (since 1970); never the newest,
/// which the next one is to name.
pub(super) fn prunable(
    ring: &Db,
    progress: &Progress,
    others: &[PodId],
    oldest_ms: u64,
) -> Result<Vec<(String, Rev)>, StoreError> {
    let reached = reached_by_all(ring, progress, others)?;
    let Some(newest) = newest(ring, PREFIX)? else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    let mut range = IdRange { end: Some(newest.doc_id()), exclusive_end: true, ..prefixed(PREFIX) };
    while out.len() < MAX_PASS {
        let rows = ring.all_docs(&Scope::All, &range, MAX_PASS)?;
        let Some(last) = rows.last().map(|row| row.id.clone()) else { break };
        let mut after = last;
        for row in rows {
            let Some(number) = Number::of_doc(&row.id) else { continue };
            let is_done = reached.get(&number.epoch).is_some_and(|reached| *reached >= number.number);
            if !is_done && stamp_ms(ring, row.body)? >= oldest_ms {
                // Nor is a later one of its epoch.
                after = format!("{PREFIX}{}.~", number.epoch);
                break;
            }
            out.push((row.id, row.rev));
        }
        range = range.after(&after);
    }
    out.truncate(MAX_PASS);
    Ok(out)
}

fn stamp_ms(ring: &Db, body: Option<rean_store::BodyRef>) -> Result<u64, StoreError> {
    let Some(at) = body else { return Ok(0) };
    let body: Value = ring.body(at)?.and_then(|body| serde_json::from_slice(&body.json).ok()).unwrap_or_default();
    let stamp: Option<Stamp> = body.get("stamp").and_then(Value::as_str).and_then(|text| text.parse().ok());
    Ok(stamp.map_or(0, |stamp| stamp.millis()))
}

/// Up to which number of each epoch all pods have carried out the instructions, those that are away and have not left
/// among them.
fn reached_by_all(ring: &Db, progress: &Progress, others: &[PodId]) -> Result<BTreeMap<Stamp, u64>, StoreError> {
    let own = progress.by_epoch();
    let mut least = read_reached(own.as_object().into_iter().flatten());
    for id in others {
        let said = ring_doc::live(ring, &status::doc_id(id))?;
        let theirs = said.as_ref().and_then(|said| said.body.get("carried_out_in")).and_then(Value::as_object);
        let theirs = read_reached(theirs.into_iter().flatten());
        least.retain(|epoch, _| theirs.contains_key(epoch));
        for (epoch, number) in &mut least {
            *number = theirs.get(epoch).copied().unwrap_or(0).min(*number);
        }
    }
    Ok(least)
}

/// The tombstones of instructions, in the order in which they came.
struct Tombstones {
    ring: Db,
    feed: Feed,
    waiting: VecDeque<(Instant, String, Vec<Rev>)>,
    /// Some found no place in `waiting`.
    missed: bool,
}

impl Tombstones {
    fn new(pod: &Pod) -> Result<Self, FeedError> {
        let ring = ring_db(pod)?;
        let feed = ring.feed(&Scope::All, Since::Start)?;
        Ok(Self { ring, feed, waiting: VecDeque::new(), missed: false })
    }

    /// Purges those that have been here for so long; gives how many.
    async fn pass(&mut self, kept: Duration) -> Result<usize, FeedError> {
        if self.missed && self.waiting.is_empty() {
            self.missed = false;
            self.feed = self.ring.feed(&Scope::All, Since::Start)?;
        }
        loop {
            for row in self.feed.next_page(PAGE_ROWS)? {
                if !row.deleted || !row.id.starts_with(PREFIX) {
                    continue;
                }
                if self.waiting.len() < MAX_TOMBSTONES {
                    self.waiting.push_back((Instant::now(), row.id.to_string(), row.revs));
                } else {
                    self.missed = true;
                }
            }
            if self.feed.caught_up() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut purged = 0;
        while self.waiting.front().is_some_and(|(since, ..)| since.elapsed() >= kept)
            && let Some((_, id, revs)) = self.waiting.pop_front()
        {
            purge(&self.ring, &id, revs).await?;
            purged += 1;
        }
        Ok(purged)
    }
}

async fn purge(ring: &Db, id: &str, revs: Vec<Rev>) -> Result<(), StoreError> {
    let (done, answer) = oneshot::channel();
    ring.purge(
        id,
        &revs,
        Box::new(move |result| {
            // Nobody listens when the worker was cut off; the purge stands.
            let _ = done.send(result);
        }),
    );
    match answer.await {
        Ok(Err(WriteError::Store(error))) => Err(error),
        Err(_) => Err(StoreError::Closing),
        // Somebody else changed or removed it in between.
        Ok(_) => Ok(()),
    }
}
