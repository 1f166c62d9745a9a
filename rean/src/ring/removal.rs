//! Pods that were removed from the ring: `"pods": {"pod-3": "removed"}` in `_ring/config`.
//!
//! A pod that finds itself there hands over and leaves; its adea stops it. To the others it has left: they wait for it
//! no more, and give it nothing. While it lives they go on pulling from it, so that what only it has is not lost.
//!
//! One that was away at that time does not know it. It has no link by which it could learn, as nobody lets it in; so the
//! refusal tells it, with the revision of the configuration that says so. It believes that only of a later configuration
//! than its own, and while nobody gives it a feed: a pod with old settings must not talk a healthy one out of the ring.
//! All pods of a ring hold its secret, so this is about order and not about trust.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adea_ring::config::{CONFIG_ID, PodState};
use adea_ring::{PodId, RingConfig};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rean_store::StoreError;
use rean_store::rev::Rev;
use serde_json::Map;

use crate::databases::blocking;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::ring::Ring;
use crate::ring::ring_doc::{self, ring_db};
use crate::ring::status;
use crate::route::Request;
use crate::workers::Stop;

/// With the refusal of a pod that was removed: the revision of the configuration by which it was.
pub const REMOVED_HEADER: &str = "x-adea-removed";
/// Between two looks for statuses of pods that were removed: nobody waits for them to go.
const PAUSE: Duration = Duration::from_secs(5);

/// Whether this pod was removed, as others have told it.
#[derive(Debug, Default)]
pub struct Removal {
    is_told: AtomicBool,
}

impl Ring {
    /// What the operator wants of this pod, as far as it knows. A pod without a ring takes part for good.
    pub fn pod_state(&self) -> PodState {
        match self.is_alone() {
            true => PodState::Active,
            false if self.removal.is_told.load(Ordering::Acquire) => PodState::Removed,
            false => self.config().state_of(self.me()),
        }
    }

    /// Whether a pod was removed, as this one knows it.
    pub fn is_removed(&self, pod: &PodId) -> bool {
        self.config().state_of(pod) == PodState::Removed
    }

    /// The configuration as adea is to have it: with what others have told of this pod.
    pub fn told_config(&self) -> RingConfig {
        let mut config = (*self.config()).clone();
        if self.pod_state() == PodState::Removed {
            config.pods.insert(self.me().clone(), PodState::Removed);
        }
        config
    }
}

/// Refuses what a pod asks that was removed.
///
/// # Errors
/// 410 for such a pod.
pub fn check(pod: &Pod, request: &Request) -> Result<(), ApiError> {
    let Some(peer) = request.from_peer.as_ref().filter(|peer| pod.ring.is_removed(peer)) else { return Ok(()) };
    let rev = config_rev(pod)?.map_or_else(String::new, |rev| rev.to_string());
    let reason = format!(
        "{peer} was removed from the ring: stop it, or list it as active and start it with an empty data folder"
    );
    let refusal = ApiError::new(StatusCode::GONE, "removed", reason);
    Err(match HeaderValue::try_from(rev) {
        Ok(rev) => refusal.with_header(HeaderName::from_static(REMOVED_HEADER), rev),
        Err(_) => refusal,
    })
}

/// Whether an answer is such a refusal. What it says is noted, if it is to be believed.
pub fn note(pod: &Pod, by: &PodId, headers: &HeaderMap) -> bool {
    let Some(told) = headers.get(REMOVED_HEADER) else { return false };
    let told: Option<Rev> = told.to_str().ok().and_then(|text| text.parse().ok());
    // What can't be read now is told again soon.
    let is_later = told.is_some_and(|told| config_rev(pod).is_ok_and(|own| Some(told) > own));
    if is_later && !pod.ring.links.is_any_open() && !pod.ring.removal.is_told.swap(true, Ordering::AcqRel) {
        tracing::warn!(%by, "this pod was removed from its ring while it was away");
        pod.ring.clients.set(false);
    }
    true
}

fn config_rev(pod: &Pod) -> Result<Option<Rev>, StoreError> {
    Ok(ring_doc::live(&ring_db(pod)?, CONFIG_ID)?.map(|leaf| leaf.rev))
}

/// Takes the statuses of removed pods out of `_ring` once they are gone, until it is told to stop. The write master does.
///
/// # Errors
/// When the store fails; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    loop {
        forget(&pod).await.map_err(|error| error.cause().to_owned())?;
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.stopped() => return Ok(()),
        }
    }
}

async fn forget(pod: &Arc<Pod>) -> Result<(), ApiError> {
    let config = pod.ring.config();
    let is_there = |id: &PodId| match pod.ring.state() {
        // One that lives writes its status anew until it has left.
        Some(state) => state.get(id).is_some_and(|known| known.member.alive),
        None => true,
    };
    let removed = config.pods.iter().filter(|(id, state)| **state == PodState::Removed && !is_there(id));
    let removed: Vec<PodId> = removed.map(|(id, _)| id.clone()).filter(|id| id != pod.ring.me()).collect();
    if removed.is_empty() {
        return Ok(());
    }
    // A role is given up after this.
    let Some(_pass) = pod.ring.gate.enter() else { return Ok(()) };
    let for_look = Arc::clone(pod);
    let look = move || -> Result<Vec<rean_store::Edit>, StoreError> {
        let ring = ring_db(&for_look)?;
        let mut edits = Vec::new();
        for id in removed.iter().map(status::doc_id) {
            let leaves = ring_doc::leaves(&ring, &id)?.into_iter().filter(|leaf| !leaf.deleted);
            edits.extend(leaves.map(|leaf| ring_doc::deletion(&id, leaf.rev, &Map::new())));
        }
        Ok(edits)
    };
    let edits = blocking(look).await??;
    // What somebody else has changed in between is looked at again.
    ring_doc::write_all(pod, &ring_db(pod)?, edits).await?;
    Ok(())
}
