//! What this pod says of itself to administrators: the document `_ring/pod:ID`, which it alone writes.
//!
//! It is written when something that matters has changed, not oftener than every two seconds, and once a minute without
//! that. Figures that move with every write, such as sequences and counters, are in it and don't count as changes: else
//! the pods' statuses would set one another off for ever.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use adea_ring::PodId;
use adea_ring::host::ProgramReport;
use adea_ring::report::{Known, RingState, Role};
use adea_ring::software;
use http::StatusCode;
use rean_store::StoreError;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::databases::blocking;
use crate::error::ApiError;
use crate::pod::{Pod, SYSTEM_DATABASES};
use crate::replicate::moment::Moment;
use crate::ring::ring_doc::{self, ring_db};
use crate::workers::Stop;

/// What the id of a status begins with.
pub const PREFIX: &str = "pod:";
/// Between two writes: all pods get each of them.
const LEAST_PAUSE: Duration = Duration::from_secs(2);
/// Without a change: so old a status tells that its pod is away.
const MOST_PAUSE: Duration = Duration::from_secs(60);
/// Between two looks at what tells nobody that it has changed.
const TICK: Duration = Duration::from_millis(500);

/// The id of a pod's status.
pub fn doc_id(pod: &PodId) -> String {
    format!("{PREFIX}{pod}")
}

/// What a pod does about writes, in words.
pub struct Standing {
    /// `master`, `follower` or `waiting`.
    pub role: &'static str,
    /// The epoch, if there is one.
    pub epoch: Option<String>,
    /// Who takes the writes.
    pub master: Option<PodId>,
}

impl Standing {
    /// This pod's.
    pub fn of(pod: &Pod) -> Self {
        if pod.ring.is_alone() {
            return Self { role: "master", epoch: None, master: Some(pod.ring.me().clone()) };
        }
        let role = pod.ring.role();
        let epoch = role.epoch().map(ToString::to_string);
        let master = role.epoch().map(|epoch| epoch.pod().clone());
        let role = match role {
            Role::Waiting => "waiting",
            Role::Follower(_) => "follower",
            Role::Master(_) => "master",
        };
        Self { role, epoch, master }
    }
}

/// Writes this pod's status until it is told to stop.
///
/// # Errors
/// When the store fails; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    let mut roles = pod.ring.gate.roles();
    let mut written: Option<(Value, Instant)> = None;
    loop {
        observe(&pod).map_err(|error| error.to_string())?;
        // Before adea has said anything there is nothing to say.
        if pod.ring.is_alone() || pod.ring.state().is_some() {
            let matters = matters(&pod);
            let is_due = written.as_ref().is_none_or(|(told, at)| {
                let is_same = *told == matters;
                // Nobody looks from afar whether a pod without a ring is there.
                let is_enough = is_same && pod.ring.is_alone();
                !is_enough && at.elapsed() >= if is_same { MOST_PAUSE } else { LEAST_PAUSE }
            });
            if is_due && write(&pod, &matters).await.map_err(|error| error.cause().to_owned())? {
                written = Some((matters, Instant::now()));
            }
        }
        tokio::select! {
            () = pod.ring.records.status.notified() => {}
            Ok(()) = roles.changed() => {}
            () = tokio::time::sleep(TICK) => {}
            () = stop.stopped() => return Ok(()),
        }
    }
}

/// Lets the clock go on after what the others have said.
fn observe(pod: &Pod) -> Result<(), StoreError> {
    let Some(state) = pod.ring.state() else { return Ok(()) };
    for known in &state.members {
        for stamp in [&known.member.stamp, &known.member.epoch].into_iter().flatten() {
            pod.ring.records.stamps.observe(&pod.store, stamp)?;
        }
    }
    Ok(())
}

/// What is told at once when it has changed.
fn matters(pod: &Pod) -> Value {
    let ring = &pod.ring;
    let state = ring.state();
    let standing = Standing::of(pod);
    let me = state.as_ref().and_then(|state| state.get(ring.me()));
    let seen = |alive: bool| -> Vec<&str> {
        let members = state.iter().flat_map(|state| &state.members).filter(|known| !known.member.left);
        members.filter(|known| known.member.alive == alive).map(|known| known.member.id.as_str()).collect()
    };
    let clocks_off: &[PodId] = state.as_ref().map_or(&[], |state| &state.clocks_off);
    let host = state.as_ref().and_then(|state| state.host.as_ref());
    json!({
        "url": me.and_then(|me| me.said.url.clone()),
        "state": ring.pod_state(),
        "disk": pod.room.level().max(me.map(|me| me.said.disk).unwrap_or_default()),
        "upgrade": me.and_then(|me| me.said.upgrade.clone()),
        "troubles": host.map(|host| &host.troubles),
        "programs": host.map(|host| host.programs.iter().map(steady_program).collect::<Vec<_>>()),
        "ring_address": me.map(|me| me.member.address.clone()),
        "role": standing.role,
        "epoch": standing.epoch,
        "master": standing.master,
        "alive_seen": seen(true),
        "dead_seen": seen(false),
        "carried_out": ring.carried_out().map(|number| number.to_string()),
        "carried_out_in": ring.records.progress.by_epoch(),
        "open": ring.records.progress.open(),
        "caught_up": is_caught_up(pod, me),
        "links": steady(ring.records.describe_links()),
        "clocks_off": clocks_off,
        "clock_off": clocks_off.contains(ring.me()),
        "databases_in_conflict": &*ring.records.mixed.lock(),
        "config_error": ring.records.config_error.read().clone(),
    })
}

fn is_caught_up(pod: &Pod, me: Option<&Known>) -> bool {
    match pod.ring.role() {
        _ if pod.ring.is_alone() => true,
        Role::Waiting => false,
        Role::Master(_) => true,
        Role::Follower(epoch) => me.is_some_and(|me| me.member.caught_up_to.as_ref() >= Some(&epoch)),
    }
}

/// Of a program, what doesn't move all the time.
fn steady_program(program: &ProgramReport) -> Value {
    json!({"name": program.name, "software": program.software, "healthy": program.healthy, "restarts": program.restarts})
}

/// Of the links, what doesn't move with every write: a link that is open catches up with each of them.
fn steady(links: Value) -> Value {
    let Value::Array(links) = links else { return links };
    let steady = links.into_iter().map(|link| match link {
        Value::Object(mut link) => {
            link.retain(|name, _| matches!(name.as_str(), "peer" | "state" | "last_error"));
            if link.get("state").is_some_and(|state| state == "catching_up") {
                link.insert("state".to_owned(), "live".into());
            }
            Value::Object(link)
        }
        other => other,
    });
    steady.collect::<Vec<Value>>().into()
}

/// The whole status. Blocking: the engine counts its bytes.
fn status(pod: &Pod, matters: &Value) -> Result<Map<String, Value>, StoreError> {
    let ring = &pod.ring;
    let state = ring.state();
    let me = state.as_ref().and_then(|state| state.get(ring.me()));
    let stats = pod.store.stats();
    let names = pod.store.db_names();
    let own = names.iter().filter(|name| !SYSTEM_DATABASES.contains(&name.as_str()));
    let docs: u64 = own.filter_map(|name| pod.store.db(name)).map(|db| db.info().doc_count).sum();
    let mut status = matters.as_object().cloned().unwrap_or_default();
    let figures = json!({
        "pod": ring.me(),
        "software": software(pod, me),
        "since": since(pod, me),
        "stamp": ring.records.stamps.now(&pod.store)?,
        "history": ring.origin.history(),
        "seq": pod.store.seq(),
        "applied": ring.applied(pod.store.seq()),
        "links": ring.records.describe_links(),
        "host": state.as_ref().and_then(|state| state.host.clone()),
        "dropped": state.as_ref().map(|state: &Arc<RingState>| state.dropped),
        "refused_handshakes": ring.refused(),
        "divergences_not_told": ring.records.found.not_told(),
        "docs": docs,
        "disk_bytes": stats.disk_bytes,
        "load": load(me),
    });
    status.extend(figures.as_object().cloned().unwrap_or_default());
    Ok(status)
}

/// What the pod's programs are.
pub fn software(pod: &Pod, known: Option<&Known>) -> String {
    let own = || software::version().to_owned();
    match known {
        Some(known) if known.member.id == *pod.ring.me() && known.said.software.is_empty() => own(),
        Some(known) => known.said.software.clone(),
        None => own(),
    }
}

/// When a pod started.
pub fn since(pod: &Pod, known: Option<&Known>) -> String {
    let since_s = match known {
        Some(known) => known.said.since_ms / 1_000,
        None => {
            let start = std::time::SystemTime::now().checked_sub(pod.started.elapsed());
            start.and_then(|start| start.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
        }
    };
    Moment::of_unix_s(since_s).iso8601()
}

/// A pod's load, to two digits; that of this machine for a pod without a ring.
pub fn load(known: Option<&Known>) -> f64 {
    let load = known.map_or_else(own_load, |known| known.said.load);
    if load.is_finite() { (load * 100.0).round() / 100.0 } else { 0.0 }
}

/// Runnable processes over the last minute, for each core.
fn own_load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let all: f64 = text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    #[allow(clippy::cast_precision_loss, reason = "nobody has 2^52 cores")]
    let cores = cores as f64;
    all / cores
}

/// Writes it; `false` when somebody else has changed the document in between: once more, then.
async fn write(pod: &Arc<Pod>, matters: &Value) -> Result<bool, ApiError> {
    let (for_status, matters) = (Arc::clone(pod), matters.clone());
    let body = blocking(move || status(&for_status, &matters)).await??;
    let ring = ring_db(pod)?;
    let id = doc_id(pod.ring.me());
    let leaves = ring_doc::leaves(&ring, &id)?;
    let parent = leaves.first().filter(|winner| !winner.deleted).map(|winner| winner.rev.clone());
    let mut edits = vec![ring_doc::edit(&id, parent, &body)];
    // Branches are from a store that was made anew, or of a history so long that its beginning was forgotten.
    let others = leaves.iter().skip(1).filter(|leaf| !leaf.deleted);
    edits.extend(others.map(|leaf| ring_doc::deletion(&id, leaf.rev.clone(), &Map::new())));
    for result in ring_doc::write_all(pod, &ring, edits).await? {
        match result {
            Err(error) if error.status == StatusCode::CONFLICT => return Ok(false),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    Ok(true)
}
