//! What has arrived here from whom, and what other pods are known to have.
//!
//! A pod's vector says for each origin up to which sequence all of that origin's writes are in its store. Vectors
//! travel with the feeds of links: a mark holds the sender's vector as of its own sequence, so whoever has all rows up
//! to that sequence has all that the vector says. Acknowledgements go the other way, and are how a master knows on how
//! many pods a write is. (The rule is that of version vectors: D. S. Parker et al., "Detection of Mutual Inconsistency
//! in Distributed Systems", 1983.)

use std::collections::BTreeMap;
use std::time::Duration;

use adea_ring::PodId;
use adea_ring::report::{Applied, Origin};
use tokio::sync::watch;

/// Origins that are kept: pods whose stores were made anew leave theirs behind. Those with the lowest sequences go first.
const MAX_ORIGINS: usize = 10_000;

/// What has arrived here from whom, and what other pods have.
pub struct Knowledge {
    own: Origin,
    mine: watch::Sender<Applied>,
    /// For each pod, how much it has of each origin.
    others: watch::Sender<BTreeMap<PodId, Applied>>,
}

impl Knowledge {
    /// Nothing has arrived yet.
    pub fn new(own: Origin) -> Self {
        Self { own, mine: watch::Sender::default(), others: watch::Sender::default() }
    }

    /// This pod's vector; its own sequence is passed in.
    pub fn applied(&self, own_seq: u64) -> Applied {
        let mut applied = self.mine.borrow().clone();
        applied.insert(self.own.clone(), own_seq);
        applied
    }

    /// Notes that all that a neighbour's vector says is durable here.
    pub fn arrived(&self, vector: &Applied) {
        self.mine.send_if_modified(|mine| {
            let mut news = false;
            for (origin, seq) in vector.iter().filter(|(origin, _)| **origin != self.own) {
                news |= raise(mine, origin, *seq);
            }
            bound(mine);
            news
        });
    }

    /// Up to which sequence this pod has the writes of an origin that isn't its own.
    pub fn has(&self, origin: &Origin) -> u64 {
        self.mine.borrow().get(origin).copied().unwrap_or(0)
    }

    /// Waits until this pod has an origin's writes up to a sequence; whether that came in time.
    pub async fn wait_here(&self, origin: &Origin, seq: u64, patience: Duration) -> bool {
        if *origin == self.own {
            return true;
        }
        let mut mine = self.mine.subscribe();
        let has = mine.wait_for(|mine| mine.get(origin).is_some_and(|has| *has >= seq));
        tokio::time::timeout(patience, has).await.is_ok()
    }

    /// Notes what another pod has, as it or somebody else says; a vector never takes anything back.
    pub fn heard(&self, pod: &PodId, vector: &Applied) {
        if *pod == self.own.pod {
            return;
        }
        self.others.send_if_modified(|others| {
            let known = others.entry(pod.clone()).or_default();
            let mut news = false;
            for (origin, seq) in vector {
                news |= raise(known, origin, *seq);
            }
            bound(known);
            news
        });
    }

    /// Forgets the pods that are not among these.
    pub fn keep(&self, is_known: impl Fn(&PodId) -> bool) {
        self.others.send_if_modified(|others| {
            let before = others.len();
            others.retain(|pod, _| is_known(pod));
            others.len() != before
        });
    }

    /// Who of the others has how much of an origin, as far as is known.
    pub fn who_has(&self, origin: &Origin) -> BTreeMap<PodId, u64> {
        let others = self.others.borrow();
        others.iter().filter_map(|(pod, applied)| Some((pod.clone(), *applied.get(origin)?))).collect()
    }

    /// To follow what others have.
    pub fn news(&self) -> watch::Receiver<BTreeMap<PodId, Applied>> {
        self.others.subscribe()
    }

    /// To follow what has arrived here.
    pub fn arrivals(&self) -> watch::Receiver<Applied> {
        self.mine.subscribe()
    }

    /// Waits until `pods` pods, this one counted, have this pod's writes up to a sequence; whether that came in time.
    pub async fn wait_everywhere(&self, seq: u64, pods: usize, patience: Duration) -> bool {
        if pods <= 1 {
            return true;
        }
        let mut others = self.others.subscribe();
        let enough = others.wait_for(|others| {
            let have = |applied: &&Applied| applied.get(&self.own).is_some_and(|has| *has >= seq);
            others.values().filter(have).count() + 1 >= pods
        });
        tokio::time::timeout(patience, enough).await.is_ok()
    }
}

fn raise(vector: &mut Applied, origin: &Origin, seq: u64) -> bool {
    match vector.get_mut(origin) {
        Some(known) if *known >= seq => false,
        Some(known) => {
            *known = seq;
            true
        }
        None => {
            vector.insert(origin.clone(), seq);
            true
        }
    }
}

fn bound(vector: &mut Applied) {
    while vector.len() > MAX_ORIGINS {
        let Some(least) = vector.iter().min_by_key(|(_, seq)| **seq).map(|(origin, _)| origin.clone()) else { return };
        vector.remove(&least);
    }
}

#[cfg(test)]
mod tests {
    use super::Knowledge;
    use adea_ring::report::{Applied, Origin};
    use std::time::Duration;

    fn origin(text: &str) -> Origin {
        text.parse().expect("an origin")
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_what_is_missing() {
        let knowledge = Knowledge::new(origin("a@00000001"));
        let (b, patience) = (origin("b@00000001"), Duration::from_millis(10));
        assert!(!knowledge.wait_here(&b, 5, patience).await);
        knowledge.arrived(&Applied::from([(b.clone(), 5), (origin("a@00000001"), 99)]));
        knowledge.arrived(&Applied::from([(b.clone(), 3)]));
        assert!(knowledge.wait_here(&b, 5, patience).await && !knowledge.wait_here(&b, 6, patience).await);
        assert_eq!(knowledge.applied(7), Applied::from([(b, 5), (origin("a@00000001"), 7)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_on_as_many_pods_as_say_so() {
        let knowledge = Knowledge::new(origin("a@00000001"));
        let patience = Duration::from_millis(10);
        let has = |seq| Applied::from([(origin("a@00000001"), seq)]);
        assert!(knowledge.wait_everywhere(4, 1, patience).await);
        assert!(!knowledge.wait_everywhere(4, 2, patience).await);
        knowledge.heard(&"b".parse().expect("an id"), &has(4));
        // What it says of itself by another way doesn't count.
        knowledge.heard(&"a".parse().expect("an id"), &has(4));
        assert!(knowledge.wait_everywhere(4, 2, patience).await && !knowledge.wait_everywhere(4, 3, patience).await);
        assert!(!knowledge.wait_everywhere(5, 2, patience).await);
        knowledge.keep(|_| false);
        assert!(!knowledge.wait_everywhere(4, 2, patience).await);
    }
}
