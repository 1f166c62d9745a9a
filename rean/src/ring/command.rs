//! What adea says: `POST /_pod/ring` with a [`RingState`], answered with [`Facts`] once it is carried out.
//!
//! One command at a time. A role ends before the answer: when it says "follower", the last write that was let in has
//! been answered or cut off. A role begins before the answer too, so a master that is told of takes writes already.

use std::sync::Arc;
use std::time::Duration;

use adea_ring::Identity;
use adea_ring::election::Epoch;
use adea_ring::report::{EpochStart, Facts, RingState, Role};
use adea_ring::software;
use http::StatusCode;
use tokio::time::Instant;

use crate::body_in;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::render;
use crate::ring::{Ring, links, restored};
use crate::route::{Request, Response};
use crate::workers::Stop;

/// How long the writes under way have when this pod is no longer to be master. The ring waits for it.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(3);
/// How long cutting them off may take then.
const CUT_PATIENCE: Duration = Duration::from_millis(500);
/// How long this pod pulls what the others have before it takes writes.
const BARRIER_PATIENCE: Duration = Duration::from_secs(1);

/// `POST /_pod/ring`, for this pod's adea alone.
///
/// # Errors
/// 404 for another pod, 401 for anybody else; 400 for what isn't for this pod.
pub async fn ring(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    if request.from_peer.is_some() {
        return Err(ApiError::missing());
    }
    if *who != Identity::system() {
        return Err(ApiError::unauthorized("Only the pod itself may do this."));
    }
    let body = body_in::read_json(pod, &request.headers, request.body).await?;
    let state: RingState = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request(format!("the state of the ring: {error}")))?;
    if pod.ring.is_alone() {
        return Err(ApiError::bad_request("This pod was started without a ring."));
    }
    if state.me != *pod.ring.me() {
        return Err(ApiError::bad_request(format!("This is the pod {}.", pod.ring.me())));
    }
    if let Role::Master(epoch) = &state.role
        && epoch.pod() != pod.ring.me()
    {
        return Err(ApiError::bad_request("An epoch's master is the pod in its stamp."));
    }
    // In a task of its own: what has begun is done to its end, also when adea does not wait for it.
    let doing = tokio::spawn(carry_out(Arc::clone(pod), state));
    let facts = doing.await.map_err(|error| ApiError::internal("the command failed").with_cause(error))?;
    let text = software::say(&facts, &["config"])
        .and_then(|facts| serde_json::to_vec(&facts))
        .map_err(|error| ApiError::internal("the facts").with_cause(error))?;
    Ok(render::json(StatusCode::OK, text))
}

/// Carries out one command, after those that came before it.
pub async fn carry_out(pod: Arc<Pod>, state: RingState) -> Facts {
    let ring = &pod.ring;
    let _alone = ring.commands.lock().await;
    let renew = || ring.gate.lease_until(Instant::now() + Duration::from_millis(pod.limits.max_silence_ms));
    renew();
    let wanted = state.role.clone();
    if let Some(wire) = ring.wire() {
        wire.keep(|id| state.get(id).is_some());
        ring.links.feeds.keep(|id| !ring.is_removed(id));
    }
    ring.knowledge.keep(|id| state.get(id).is_some() && !ring.is_removed(id));
    restored::go_on_behind_others(&pod, &state).await;
    // The state first: who follows must know where its master is.
    ring.set_state(state);
    if ring.role() != wanted {
        match wanted {
            Role::Master(epoch) => become_master(&pod, epoch).await,
            role => step_down(&pod, role).await,
        }
    }
    // A change of role takes its time.
    renew();
    note_caught_up(ring);
    facts(&pod)
}

/// Gives up mastership when adea is silent for too long. It comes back with adea's next command.
///
/// # Errors
/// None.
pub async fn keep_lease(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    let lease = Duration::from_millis(pod.limits.max_silence_ms);
    loop {
        tokio::select! {
            () = tokio::time::sleep(lease / 4) => {}
            () = stop.stopped() => return Ok(()),
        }
        let _alone = pod.ring.commands.lock().await;
        if pod.ring.is_master() && pod.ring.gate.is_lease_over() {
            tracing::warn!("adea has gone silent: this pod takes no writes until it is back");
            step_down(&pod, Role::Waiting).await;
        }
    }
}

async fn become_master(pod: &Arc<Pod>, epoch: Epoch) {
    let ring = &pod.ring;
    if !ring.is_master() && tokio::time::timeout(BARRIER_PATIENCE, links::barrier(pod)).await.is_err() {
        tracing::warn!("not all neighbours could be asked for what they have");
    }
    let start = EpochStart { epoch: epoch.clone(), origin: ring.origin.clone(), seq: pod.store.seq() };
    tracing::info!(%epoch, seq = start.seq, "this pod takes the writes");
    *ring.start.lock() = Some(start);
    raise(ring, &epoch);
    ring.gate.open_as(Role::Master(epoch));
}

async fn step_down(pod: &Arc<Pod>, role: Role) {
    let ring = &pod.ring;
    if !ring.is_master() {
        ring.gate.shut_as(role, Duration::ZERO).await;
        return;
    }
    tracing::info!(?role, "this pod no longer takes the writes");
    // Replications write without passing the gate; who waits for one has passed it.
    let shut = async { ring.gate.shut_as(role, HAND_OVER_PATIENCE).await };
    let ended = async {
        for job in pod.replications.list().into_iter().filter(|job| job.origin.is_none()) {
            pod.replications.cancel(&job).await;
        }
    };
    let (mut left, ()) = tokio::join!(shut, ended);
    if left > 0 {
        left = ring.gate.cut(CUT_PATIENCE).await;
        tracing::warn!(left, "writes were cut off");
    }
    *ring.start.lock() = None;
}

/// Notes the newest epoch of a live master of which this pod has all that the master had at its start.
fn note_caught_up(ring: &Ring) {
    let Some(state) = ring.state() else { return };
    for known in state.members.iter().filter(|known| known.member.is_live()) {
        if let (Some(claim), Some(start)) = (&known.member.claim, &known.said.start)
            && start.epoch == *claim
            && start.origin.pod == known.member.id
            && ring.knowledge.has(&start.origin) >= start.seq
        {
            raise(ring, claim);
        }
    }
}

fn raise(ring: &Ring, epoch: &Epoch) {
    let mut newest = ring.caught_up.lock();
    if newest.as_ref().is_none_or(|known| known < epoch) {
        *newest = Some(epoch.clone());
    }
}

fn facts(pod: &Pod) -> Facts {
    let ring = &pod.ring;
    Facts {
        role: ring.role(),
        origin: ring.origin.clone(),
        applied: ring.applied(pod.store.seq()),
        start: ring.start(),
        caught_up_to: ring.caught_up.lock().clone(),
        config: ring.told_config(),
        keyring: ring.keyring(),
        upgrade: pod.upgrades.doc(),
        disk: pod.room.level(),
    }
}
