//! What this pod tells a neighbour up its feed: what it has, and what it has heard of others' having.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use adea_ring::PodId;
use adea_ring::report::{Applied, Origin};
use axum::body::Body;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::pod::Pod;
use crate::ring::feed::text::{Ack, news, push_line};
use crate::ring::link::road::Traffic;

/// What is told of other pods' having waits this long for more: a write that is to be on more pods than its master has
/// neighbours is rare, and each pod's word of each other's goes over each link.
const OTHERS_PACE: Duration = Duration::from_millis(20);
/// What nobody waits for, how far this pod has the writes of pods that take none, goes with the rest or this often.
const REST_PACE: Duration = Duration::from_millis(250);

/// The acknowledgements of one feed. They are made when they can be sent: what comes meanwhile is in the next one.
struct Acks {
    pod: Arc<Pod>,
    /// Who is told.
    peer: PodId,
    traffic: Arc<Traffic>,
    arrivals: watch::Receiver<Applied>,
    others: watch::Receiver<BTreeMap<PodId, Applied>>,
    /// What has been told.
    told: Applied,
    told_of: Option<Origin>,
    told_others: BTreeMap<PodId, u64>,
    told_at: Option<Instant>,
}

/// The body of the request for a feed.
pub fn body(pod: &Arc<Pod>, peer: &PodId, traffic: &Arc<Traffic>) -> Body {
    let acks = Acks {
        peer: peer.clone(),
        arrivals: pod.ring.knowledge.arrivals(),
        others: pod.ring.knowledge.news(),
        pod: Arc::clone(pod),
        traffic: Arc::clone(traffic),
        told: Applied::new(),
        told_of: None,
        told_others: BTreeMap::new(),
        told_at: None,
    };
    let lines = futures_util::stream::unfold(acks, |mut acks| async move {
        let line = acks.next().await?;
        Some((Ok::<_, std::convert::Infallible>(line), acks))
    });
    Body::from_stream(lines)
}

impl Acks {
    /// Waits for something to tell; `None` when there will be nothing more.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.arrivals.mark_unchanged();
            self.others.mark_unchanged();
            let now = Instant::now();
            let due = self.due(now);
            if due.is_some_and(|due| due <= now) {
                let ack = self.take();
                let mut line = Vec::with_capacity(128);
                push_line(&mut line, &ack);
                self.traffic.sent.fetch_add(line.len() as u64, Ordering::Relaxed);
                self.told_at = Some(now);
                return Some(line.into());
            }
            tokio::select! {
                changed = self.arrivals.changed() => changed.ok()?,
                changed = self.others.changed() => changed.ok()?,
                () = tokio::time::sleep_until(due.unwrap_or(now)), if due.is_some() => {}
            }
        }
    }

    /// When there is something to tell; none if there is nothing.
    fn due(&self, now: Instant) -> Option<Instant> {
        let ring = &self.pod.ring;
        let of = ring.master_origin();
        let after = |pace| self.told_at.map_or(now, |at| at + pace);
        let is_told = |origin: &Origin, seq: u64| self.told.get(origin).is_some_and(|told| *told >= seq);
        if let Some(of) = &of {
            let has = ring.knowledge.has(of);
            if has > 0 && !is_told(of, has) {
                return Some(now);
            }
            let told = |pod: &PodId, seq: u64| {
                self.told_of.as_ref() == Some(of) && self.told_others.get(pod).is_some_and(|told| *told >= seq)
            };
            let mut known = ring.knowledge.who_has(of).into_iter();
            if known.any(|(pod, seq)| pod != self.peer && !told(&pod, seq)) {
                return Some(after(OTHERS_PACE));
            }
        }
        let applied = ring.applied(self.pod.store.seq());
        let is_new = applied.iter().any(|(origin, seq)| !is_told(origin, *seq));
        is_new.then(|| after(REST_PACE))
    }

    /// What is new, which counts as told from here on.
    fn take(&mut self) -> Ack {
        let ring = &self.pod.ring;
        let applied = news(&ring.applied(self.pod.store.seq()), &mut self.told);
        let of = ring.master_origin();
        if of != self.told_of {
            self.told_of.clone_from(&of);
            self.told_others.clear();
        }
        let mut known = of.as_ref().map(|of| ring.knowledge.who_has(of)).unwrap_or_default();
        known.remove(&self.peer);
        let is_new = |(pod, seq): &(&PodId, &u64)| self.told_others.get(*pod).is_none_or(|told| told < *seq);
        let others: BTreeMap<PodId, u64> = known.iter().filter(is_new).map(|(pod, seq)| (pod.clone(), *seq)).collect();
        self.told_others = known;
        Ack { applied, of: of.filter(|_| !others.is_empty()), others }
    }
}
