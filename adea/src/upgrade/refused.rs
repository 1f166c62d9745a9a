//! An order that this pod doesn't follow, and what the others hear of it.

use adea_ring::PodId;
use adea_ring::upgrade::{Order, OrderError, OrderTrust, Progress, Step};
use serde_json::Value;

use crate::ring_file::is_to_come;
use crate::upgrade::core::{Core, short};
use crate::upgrade::journal::Journal;

/// Why an order that is signed as it should be isn't followed.
const OLDER: &str = "upgrade: it was made before the newest order that this pod has seen, or before this machine joined the \
                     ring or got its key for orders: order the upgrade anew; if the clocks were wrong, set them first";

/// Why no order of this time counts: the machine was told when that began by a wrong clock.
const AWAITED: &str = "upgrade: this machine's ring file lets orders count only from a time on that is yet to come, as a clock was \
                       wrong: set it, and do what `podctl doctor` says there; then order the upgrade anew";

/// Why one of a clock that is wrong isn't: all that come after it would be refused.
const AHEAD: &str = "upgrade: it says that it was made more than a day from now: set the clocks of this machine and of the one \
                     that orders upgrades, and order the upgrade anew";

/// An order that this pod doesn't follow.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which, if it is one at all and names this pod.
    id: Option<String>,
    /// Why.
    pub reason: String,
}

impl Refused {
    fn new(doc: &Value, me: &PodId, reason: String) -> Self {
        let order = Order::parse(doc).ok().filter(|order| order.pods.contains(me));
        Self { id: order.map(|order| order.id), reason }
    }

    /// What the others are told instead of how far the pod is: they would wait for it and not know why. Not of the order
    /// that it has gone through, under a key that was replaced since; and not in the middle of another one, of which they
    /// have to know.
    pub fn progress(&self, journal: &Journal) -> Option<Progress> {
        let id = self.id.clone()?;
        let is_known = journal.order.as_ref().is_some_and(|known| known.id == id);
        let reason = Some(short(format!("it does not follow this order: {}", self.reason)));
        (!is_known && !journal.is_busy()).then_some(Progress { order: id, step: Step::Fetching, reason })
    }
}

/// The order in a document, if the pod follows it; `now_ms` and `since_ms` in milliseconds since 1970.
///
/// # Errors
/// Why it doesn't.
pub fn read(
    doc: &Value,
    trust: Option<&OrderTrust>,
    since_ms: u64,
    now_ms: u64,
    core: &Core,
) -> Result<Order, Refused> {
    let key = trust.map(|trust| &trust.key);
    match Order::verify(doc, key) {
        Ok(order) if core.is_far_ahead(&order, now_ms) => Err(Refused::new(doc, core.me(), AHEAD.to_owned())),
        Ok(order) if core.is_too_old(&order, key, since_ms) => {
            let why = if is_to_come(since_ms, now_ms) { AWAITED } else { OLDER };
            Err(Refused::new(doc, core.me(), why.to_owned()))
        }
        Ok(order) => Ok(order),
        Err(why @ (OrderError::Form(_) | OrderError::Format(_) | OrderError::Old)) => {
            Err(Refused { id: None, reason: why.to_string() })
        }
        Err(why) => Err(Refused::new(doc, core.me(), why.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::{Refused, read};
    use crate::upgrade::core::Core;
    use crate::upgrade::journal::Journal;
    use adea_ring::upgrade::{Order, OrderKey, OrderTrust, Source, Step};
    use serde_json::Value;

    fn order() -> Order {
        let pods = vec!["me".parse().unwrap(), "other".parse().unwrap()];
        Order { archive_sha256: Some("0".repeat(64)), ..Order::new(Source::Ring, None, pods, 7) }
    }

    fn core(journal: Journal) -> Core {
        Core::new("me".parse().unwrap(), journal)
    }

    #[test]
    fn only_the_machine_s_own_key_counts() {
        let (key, order) = (OrderKey::random(), order());
        let trust = |key: &OrderKey| Some(OrderTrust { key: key.public(), at: None });
        let doc = Value::from(order.sign(&key));
        let core = core(Journal::default());
        assert_eq!(read(&doc, trust(&key).as_ref(), 7, 9, &core).unwrap(), order);
        let why =
            |trust: Option<OrderTrust>, since_ms| read(&doc, trust.as_ref(), since_ms, 9, &core).unwrap_err().reason;
        assert!(why(None, 0).contains("knows no key"));
        assert!(why(trust(&OrderKey::random()), 0).contains("not signed with the key"));
        assert!(why(trust(&key), 8).contains("before this machine joined"));
        assert!(why(trust(&key), 60_010).contains("yet to come"));
        let late = Order { made_at_ms: u64::MAX, ..order.clone() };
        let late = read(&Value::from(late.sign(&key)), trust(&key).as_ref(), 7, 9, &core).unwrap_err();
        assert!(late.reason.contains("set the clocks"), "{}", late.reason);
        assert!(late.progress(core.journal()).is_some());
        let mut old = doc.clone();
        old["format"] = 1.into();
        assert!(read(&old, trust(&key).as_ref(), 0, 9, &core).unwrap_err().reason.contains("anew"));
    }

    #[test]
    fn the_others_hear_why() {
        let (key, order) = (OrderKey::random(), order());
        let doc = Value::from(order.sign(&key));
        let refused = read(&doc, None, 0, 9, &core(Journal::default())).unwrap_err();
        let said = refused.progress(&Journal::default()).unwrap();
        assert_eq!((&said.order, said.step), (&order.id, Step::Fetching));
        assert!(said.reason.unwrap().contains("does not follow this order"));
        // All of the longest reasons gets there.
        for since_ms in [8, u64::MAX] {
            let trust = OrderTrust { key: key.public(), at: None };
            let said = read(&doc, Some(&trust), since_ms, 9, &core(Journal::default())).unwrap_err();
            let reason = said.progress(&Journal::default()).unwrap().reason.unwrap();
            assert!(reason.contains("order the upgrade anew"), "{reason}");
        }
        // It has gone through it before the key was replaced.
        let done = Journal { order: Some(order.clone()), step: Some(Step::Done), ..Journal::default() };
        assert_eq!(refused.progress(&done), None);
        let busy = Journal { order: Some(order_of_before()), step: Some(Step::CatchingUp), ..Journal::default() };
        assert_eq!(refused.progress(&busy), None);
        // It is not for this pod, or no order.
        let elsewhere = Order { pods: vec!["other".parse().unwrap()], ..order };
        let elsewhere = read(&Value::from(elsewhere.sign(&key)), None, 0, 9, &core(Journal::default())).unwrap_err();
        assert_eq!(elsewhere.progress(&Journal::default()), None);
        let nothing: Refused = read(&Value::Null, None, 0, 9, &core(Journal::default())).unwrap_err();
        assert_eq!(nothing.progress(&Journal::default()), None);
    }

    fn order_of_before() -> Order {
        Order { made_at_ms: 3, ..order() }
    }
}
