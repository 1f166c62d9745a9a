//! What this pod tells a neighbour up its feed: what it has, and what it has heard of others' having.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use adea_ring::PodId;
use adea_ring::report::{Applied, Origin};
use axum::body::Body;
use bytes::Bytes;
use tokio::sync::watch;

use crate::pod::Pod;
use crate::ring::feed::text::{Ack, news, push_line};
use crate::ring::link::road::Traffic;

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
            let ack = self.now();
            if ack != Ack::default() {
                let mut line = Vec::with_capacity(128);
                push_line(&mut line, &ack);
                self.traffic.sent.fetch_add(line.len() as u64, Ordering::Relaxed);
                return Some(line.into());
            }
            tokio::select! {
                changed = self.arrivals.changed() => changed.ok()?,
                changed = self.others.changed() => changed.ok()?,
            }
        }
    }

    fn now(&mut self) -> Ack {
        let ring = &self.pod.ring;
        let applied = news(&ring.applied(self.pod.store.seq()), &mut self.told);
        let of = master(&self.pod);
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

/// Whose writes others may be waited for to have: the write master's store, unless it is this one.
fn master(pod: &Pod) -> Option<Origin> {
    let role = pod.ring.role();
    let master = role.epoch()?.pod();
    if master == pod.ring.me() {
        return None;
    }
    let state = pod.ring.state()?;
    let said = &state.get(master)?.said;
    match &said.start {
        Some(start) => Some(start.origin.clone()),
        // It has just begun: of its stores the one with the newest sequence it says to have.
        None => {
            let own = said.applied.iter().filter(|(origin, _)| origin.pod == *master);
            own.max_by_key(|(_, seq)| **seq).map(|(origin, _)| origin.clone())
        }
    }
}
