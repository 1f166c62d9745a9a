//! A pod whose store was put back from an old copy: it would give sequences again that the others have under its name.
//!
//! They would take what it writes then for what they have: `?w=N` would count pods that have nothing of it, and a pod
//! that isn't caught up would pass for one that is. So no sequence is given again that another pod has heard of. What was
//! lost here comes back over the links.

use std::sync::Arc;

use adea_ring::PodId;
use adea_ring::report::{Origin, RingState};
use rean_store::StoreError;

use crate::pod::Pod;

/// A pod that says to have more than this beyond the end of this store says nonsense: a store that takes 100,000 writes
/// a second needs four months for as many. Sequences must not run out.
const MOST_AHEAD: u64 = 1 << 40;

/// How much the other pods have of an origin, as they say.
fn heard(state: &RingState, me: &PodId, of: &Origin) -> u64 {
    let others = state.members.iter().filter(|known| known.member.id != *me);
    others.filter_map(|known| known.said.applied.get(of).copied()).max().unwrap_or(0)
}

/// Goes on behind all that the other pods have of this store. To be asked before this pod takes writes.
pub async fn go_on_behind_others(pod: &Arc<Pod>, state: &RingState) {
    let ring = &pod.ring;
    go_on_behind(pod, heard(state, ring.me(), &ring.origin)).await;
}

/// Goes on behind a sequence that another pod has of this store.
pub async fn go_on_behind(pod: &Arc<Pod>, seq: u64) {
    let own = pod.store.seq();
    if seq <= own {
        return;
    }
    if seq - own > MOST_AHEAD {
        tracing::error!(own, seq, "another pod says to have more of this store than there can be");
        return;
    }
    tracing::error!(
        own,
        seq,
        "another pod has more of this store than is here: was an old copy put back? It goes on behind that"
    );
    let store = pod.store.clone();
    let skipped = tokio::task::spawn_blocking(move || store.skip_to(seq)).await;
    let skipped: Result<(), StoreError> = skipped.unwrap_or(Err(StoreError::Closing));
    if let Err(error) = skipped {
        // The next command asks again.
        tracing::error!(%error, "the store's sequences can't be skipped");
    }
}
