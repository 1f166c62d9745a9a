//! The order of an upgrade: the document `upgrade` of `_ring`, checked where it is written and handed to adea.
//!
//! adea checks it again, by what its own ring file says: it is what puts programs on the machine.

use adea_ring::config::PodState;
use adea_ring::upgrade::{IMAGE_PREFIX, Order, OrderError, UPGRADE_ID};
use parking_lot::RwLock;
use rean_store::{Edit, StoreError};
use serde_json::Value;

use crate::error::ApiError;
use crate::pod::Pod;
use crate::ring::ring_doc::{self, ring_db};

/// Digits of a SHA-256.
const DIGEST_DIGITS: usize = 64;

/// What the pod knows of upgrades.
#[derive(Default)]
pub struct Upgrades {
    doc: RwLock<Option<Value>>,
}

impl Upgrades {
    /// The document that orders an upgrade, where there is one.
    pub fn doc(&self) -> Option<Value> {
        self.doc.read().clone()
    }

    /// The order in it, if it is one that this pod follows.
    pub fn order(&self, pod: &Pod) -> Option<Order> {
        self.doc.read().as_ref().and_then(|doc| verify(pod, doc).ok())
    }
}

/// Reads the document anew. Blocking.
///
/// # Errors
/// When the store fails.
pub fn load(pod: &Pod) -> Result<(), StoreError> {
    let doc = ring_doc::live(&ring_db(pod)?, UPGRADE_ID)?.map(|leaf| Value::from(leaf.body));
    *pod.upgrades.doc.write() = doc;
    Ok(())
}

/// By the key that adea has told, which reads it from a file that containers can't change.
fn verify(pod: &Pod, doc: &Value) -> Result<Order, OrderError> {
    let state = pod.ring.state();
    let trust = state.as_ref().and_then(|state| state.order_trust.as_ref());
    Order::verify(doc, trust.map(|trust| &trust.key))
}

/// Checks an edit of `_ring` before it is stored.
///
/// # Errors
/// 400 for what is no order, and on a pod without a ring; 403 for one that isn't signed with the key that the pod knows,
/// is older than the one there, or comes while that is being carried out.
pub fn check(pod: &Pod, edit: &Edit) -> Result<(), ApiError> {
    if let Some(digest) = edit.id.strip_prefix(IMAGE_PREFIX) {
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let fits = digest.len() == DIGEST_DIGITS && digest.bytes().all(is_digit);
        return if fits { Ok(()) } else { Err(ApiError::bad_request("image: the id must be image:SHA256")) };
    }
    if edit.id != UPGRADE_ID {
        return Ok(());
    }
    if pod.ring.is_alone() {
        return Err(ApiError::bad_request(
            "upgrade: this pod was started without a ring; replace its program file and start it again",
        ));
    }
    if edit.deleted {
        return Err(ApiError::forbidden("An upgrade is called off with `podctl upgrade cancel`; its order stays."));
    }
    let doc: Value = serde_json::from_slice(&edit.body).map_err(|_| ApiError::invalid_json())?;
    let order = verify(pod, &doc).map_err(|error| match error {
        OrderError::Signature | OrderError::NoKey => ApiError::forbidden(error.to_string()),
        OrderError::Form(_) | OrderError::Format(_) | OrderError::Old => ApiError::bad_request(error.to_string()),
    })?;
    // As stored now: what the worker has read may be older. One that is signed with another key stands in nobody's way.
    let known = ring_doc::live(&ring_db(pod)?, UPGRADE_ID)?.map(|leaf| Value::from(leaf.body));
    let known = known.and_then(|doc| verify(pod, &doc).ok());
    match known {
        Some(known) => check_follows(&known, &order, || is_settled(pod, &known)),
        None => Ok(()),
    }
}

fn check_follows(known: &Order, order: &Order, is_settled: impl FnOnce() -> bool) -> Result<(), ApiError> {
    if known == order {
        return Ok(());
    }
    if !order.is_newer_than(known) {
        return Err(ApiError::forbidden("upgrade: there is a newer order"));
    }
    if known.id == order.id || order.force || is_settled() {
        return Ok(());
    }
    Err(ApiError::forbidden(format!(
        "upgrade: the order {} is being carried out: wait for its end (`podctl upgrade status`), or call it off \
         (`podctl upgrade cancel`)",
        known.id
    )))
}

/// Whether nothing is left to do about an order, as far as this pod has heard.
pub fn is_settled(pod: &Pod, order: &Order) -> bool {
    let Some(state) = pod.ring.state() else { return false };
    let config = pod.ring.config();
    order.is_settled(|id| match config.pods.get(id) {
        Some(PodState::Removed) => None,
        _ => Some(state.get(id).and_then(|known| known.said.upgrade.clone())),
    })
}

#[cfg(test)]
mod tests {
    use super::check_follows;
    use adea_ring::upgrade::{Order, OrderState, Source};

    #[test]
    fn one_order_at_a_time() {
        let pods = vec!["a".parse().expect("a pod's id")];
        let first = Order { archive_sha256: Some("0".repeat(64)), ..Order::new(Source::Ring, None, pods, 5) };
        let stopped = Order { state: OrderState::Stopped, ..first.clone() };
        let later = Order { id: "1".repeat(16), made_at_ms: 6, ..first.clone() };
        let refusal =
            |known: &Order, order: &Order| check_follows(known, order, || false).err().map(|error| error.reason);
        assert_eq!(refusal(&first, &first), None, "as it is");
        assert_eq!(refusal(&first, &stopped), None, "it is called off");
        assert!(refusal(&stopped, &first).expect("refused").contains("newer"), "replayed");
        assert!(refusal(&later, &stopped).expect("refused").contains("newer"), "replayed");
        assert!(refusal(&first, &later).expect("refused").contains("carried out"));
        assert!(check_follows(&first, &later, || true).is_ok(), "all are through");
        assert_eq!(refusal(&first, &Order { force: true, ..later }), None);
    }
}
