//! What everyone may know of the pods: the database `_pods`, with a document for each pod that this one knows.
//!
//! ```json
//! {"pod": "pod-a", "url": "https://a.example", "role": "master", "alive": true, "load": 0.3, "software": "0.1.0",
//!  "since": "2026-01-02T03:04:05Z", "epoch": "...", "seen": "...", "state": "active", "disk": "low"}
//! ```
//! `state` is `inactive` for a pod that takes no clients; `disk` is there when it is `low` or `full`, without sizes.
//! It is each pod's own: what it says is what this pod knows. Nothing in it tells of documents or of the pods' inner
//! addresses. A client that has one pod's URL finds all others here, and follows them by the changes feed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::host::DiskLevel;
use adea_ring::report::{Known, RingState};
use rean_store::{Edit, StoreError};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::databases::blocking;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::ring::ring_doc::{self, Leaf};
use crate::ring::status::{self, PREFIX, Standing};
use crate::workers::Stop;

/// The database.
pub const PODS: &str = "_pods";
/// A document is written once more after this, so that its readers see that somebody looks after it.
const MOST_PAUSE: Duration = Duration::from_secs(60);
/// Between two looks.
const TICK: Duration = Duration::from_millis(500);
/// A load that has moved by more than this is told.
const LOAD_STEP: f64 = 0.25;
/// Members whose changes are told at once.
const TOLD: [&str; 8] = ["url", "role", "alive", "software", "since", "epoch", "state", "disk"];

/// Keeps the documents until it is told to stop.
///
/// # Errors
/// When the store fails; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    let mut roles = pod.ring.gate.roles();
    let mut written = BTreeMap::new();
    loop {
        if pod.ring.is_alone() || pod.ring.state().is_some() {
            pass(&pod, &mut written).await.map_err(|error| error.cause().to_owned())?;
        }
        tokio::select! {
            Ok(()) = roles.changed() => {}
            () = tokio::time::sleep(TICK) => {}
            () = stop.stopped() => return Ok(()),
        }
    }
}

/// When a document was written last, in this run.
type Written = BTreeMap<String, Instant>;

async fn pass(pod: &Arc<Pod>, written: &mut Written) -> Result<(), ApiError> {
    let for_look = Arc::clone(pod);
    let times = std::mem::take(written);
    let (edits, times) = blocking(move || edits(&for_look, times)).await??;
    *written = times;
    let Some(db) = pod.store.db(PODS) else { return Ok(()) };
    for result in ring_doc::write_all(pod, &db, edits).await? {
        result?;
    }
    Ok(())
}

/// What has to be written. Blocking.
fn edits(pod: &Pod, mut written: Written) -> Result<(Vec<Edit>, Written), StoreError> {
    let Some(db) = pod.store.db(PODS) else { return Ok((Vec::new(), written)) };
    let wanted = wanted(pod)?;
    let mut there: BTreeMap<String, Leaf> = BTreeMap::new();
    ring_doc::each(&db, PREFIX, |id, leaf| {
        there.insert(id.to_owned(), leaf);
        true
    })?;
    let mut edits = Vec::new();
    for (id, leaf) in &there {
        if !wanted.contains_key(id) {
            edits.push(ring_doc::deletion(id, leaf.rev.clone(), &Map::new()));
        }
    }
    written.retain(|id, _| wanted.contains_key(id));
    for (id, body) in &wanted {
        let known = there.get(id);
        let is_old = written.get(id).is_none_or(|at| at.elapsed() >= MOST_PAUSE && !pod.ring.is_alone());
        if !is_old && known.is_some_and(|known| !is_news(&known.body, body)) {
            continue;
        }
        edits.push(ring_doc::edit(id, known.map(|known| known.rev.clone()), body));
        written.insert(id.clone(), Instant::now());
    }
    Ok((edits, written))
}

fn is_news(known: &Map<String, Value>, new: &Map<String, Value>) -> bool {
    let load = |body: &Map<String, Value>| body.get("load").and_then(Value::as_f64).unwrap_or(0.0);
    TOLD.iter().any(|member| known.get(*member) != new.get(*member)) || (load(known) - load(new)).abs() > LOAD_STEP
}

/// The documents as they should be, by their ids.
fn wanted(pod: &Pod) -> Result<BTreeMap<String, Map<String, Value>>, StoreError> {
    let stamp = || pod.ring.records.stamps.now(&pod.store).map(|stamp| stamp.to_string());
    let Some(state) = pod.ring.state() else {
        let standing = Standing::of(pod);
        let doc = json!({
            "pod": pod.ring.me(),
            "url": null,
            "role": standing.role,
            "alive": true,
            "load": status::load(None),
            "software": status::software(pod, None),
            "since": status::since(pod, None),
            "epoch": standing.epoch,
            "seen": stamp()?,
            "state": pod.ring.pod_state(),
        });
        let doc = with_disk(doc, pod.room.level());
        return Ok(BTreeMap::from([(status::doc_id(pod.ring.me()), doc)]));
    };
    let mut wanted = BTreeMap::new();
    for known in state.members.iter().filter(|known| !known.member.left) {
        let standing = standing_of(pod, &state, known);
        let seen = match &known.member.stamp {
            Some(stamp) => stamp.to_string(),
            None => stamp()?,
        };
        let doc = json!({
            "pod": known.member.id,
            "url": known.said.url,
            "role": standing.role,
            "alive": known.member.alive,
            "load": status::load(Some(known)),
            "software": status::software(pod, Some(known)),
            "since": status::since(pod, Some(known)),
            "epoch": standing.epoch,
            "seen": seen,
            "state": pod.ring.config().state_of(&known.member.id),
        });
        // This pod's agent hears of rean's own disk a moment later.
        let is_own = known.member.id == *pod.ring.me();
        let own = if is_own { pod.room.level() } else { DiskLevel::Roomy };
        wanted.insert(status::doc_id(&known.member.id), with_disk(doc, known.said.disk.max(own)));
    }
    Ok(wanted)
}

/// Everyone may know that a disk is nearly full, as writes go wrong then, and not how large it is.
fn with_disk(doc: Value, level: DiskLevel) -> Map<String, Value> {
    let mut doc = doc.as_object().cloned().unwrap_or_default();
    if level > DiskLevel::Roomy {
        doc.insert("disk".to_owned(), json!(level));
    }
    doc
}

/// What a pod does about writes, as this one knows it.
fn standing_of(pod: &Pod, state: &RingState, known: &Known) -> Standing {
    if known.member.id == *pod.ring.me() {
        return Standing::of(pod);
    }
    let live = state.members.iter().filter(|known| known.member.is_live());
    let newest = live.filter_map(|known| known.member.claim.as_ref()).max();
    let role = match (known.member.alive, newest) {
        (false, _) => "gone",
        (true, None) => "waiting",
        (true, Some(newest)) if known.member.claim.as_ref() == Some(newest) => "master",
        (true, Some(_)) => "follower",
    };
    let epoch = newest.filter(|_| known.member.alive).map(ToString::to_string);
    Standing { role, epoch, master: newest.map(|newest| newest.pod().clone()) }
}
