//! Software in the ring: the documents `image:SHA256` of `_ring`. This worker keeps the order of an upgrade at hand for
//! adea, and on the write master deletes the software that no order needs any more.

use std::sync::Arc;
use std::time::Duration;

use adea_ring::upgrade::{IMAGE_PREFIX, UPGRADE_ID};
use rean_store::StoreError;

use crate::error::ApiError;
use crate::pod::Pod;
use crate::ring::follow::{Follow, Occasion};
use crate::ring::ring_doc::{self, ring_db};
use crate::ring::upgrade;
use crate::workers::Stop;

/// A look without being told: that an upgrade is done is said by gossip and not by a document.
const PAUSE: Duration = Duration::from_secs(30);
/// What was put in this lately may be for an order that is yet to come, in milliseconds: an upload takes a while.
const FRESH_MS: u64 = 3_600_000;

/// Keeps at it until it is told to stop.
///
/// # Errors
/// When the store fails; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    let mut follow = Follow::new(&pod)?;
    loop {
        let for_pass = Arc::clone(&pod);
        let unneeded = tokio::task::spawn_blocking(move || {
            upgrade::load(&for_pass)?;
            unneeded(&for_pass, ring_doc::now_ms())
        });
        let unneeded = unneeded.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        for id in unneeded {
            if let Err(error) = delete(&pod, &id).await {
                // The next look tries again.
                tracing::debug!(
                    id,
                    reason = error.cause(),
                    "software that is not needed any more could not be deleted"
                );
            }
        }
        if follow.next(PAUSE, &mut stop, |id| id == UPGRADE_ID).await == Occasion::End {
            return Ok(());
        }
    }
}

/// The ids of the software that can go: neither of the newest order nor of the one before it, not put here lately, and
/// all pods are through. Blocking.
fn unneeded(pod: &Pod, now_ms: u64) -> Result<Vec<String>, StoreError> {
    let Some(order) = pod.upgrades.order(pod) else { return Ok(Vec::new()) };
    if !pod.ring.is_master() || !upgrade::is_settled(pod, &order) {
        return Ok(Vec::new());
    }
    let mut gone = Vec::new();
    ring_doc::each(&ring_db(pod)?, IMAGE_PREFIX, |id, leaf| {
        let digest = id.strip_prefix(IMAGE_PREFIX);
        let is_needed = [&order.archive_sha256, &order.previous].into_iter().any(|kept| kept.as_deref() == digest);
        let put_at_ms = leaf.body.get("put_at_ms").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if !is_needed && now_ms.saturating_sub(put_at_ms) > FRESH_MS {
            gone.push(id.to_owned());
        }
        true
    })?;
    Ok(gone)
}

async fn delete(pod: &Pod, id: &str) -> Result<(), ApiError> {
    let ring = ring_db(pod)?;
    if let Some(leaf) = ring_doc::live(&ring, id)? {
        ring_doc::write(pod, &ring, ring_doc::deletion(id, leaf.rev, &serde_json::Map::new())).await?;
        tracing::info!(id, "software that no upgrade needs any more was deleted");
    }
    Ok(())
}
