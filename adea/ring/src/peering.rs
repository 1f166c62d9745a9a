//! Whom a pod replicates with: a small world that each pod works out alone.
//!
//! After M. E. J. Newman and D. J. Watts, "Renormalization group analysis of the small-world network model" (1999): all
//! live pods form a circle by their ids, each is linked to its `k` nearest on either side, and there are `p` shortcuts
//! for each pod to pods far away. Nothing is agreed on: both ends of a link work it out from the same list of members.
//!
//! The shortcuts are drawn as neighbours on further circles, in each of which a hash puts the pods in another order
//! (C. Law, K.-Y. Siu, "Distributed construction of random expander networks", 2003). To shortcuts drawn pod by pod
//! this adds that no pod has more than `2 * (k + ⌈p⌉)` links, and that a pod that comes or goes changes at most `k + ⌈p⌉`
//! links between the others. With as many links, hops are fewer the more of them are shortcuts: `podctl sim peering`.
//!
//! What always holds: every live pod is reachable from every other, since a circle through all of them is part of it;
//! and a pod is its neighbours' neighbour, given the same members.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::member::{PodId, View};

/// The most neighbours on a side, and the most shortcuts for each pod: with 16 of each a pod has 64 links, more than
/// one pod should feed, and 2,000 pods are within 3 hops.
const LARGEST: u16 = 16;

/// What all pods of a ring must agree on to come to the same links; part of the ring's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Params {
    /// How many neighbours on either side of the circle of ids; taken as 1 to 16.
    pub k: u16,
    /// How many shortcuts there are for each pod, on average: the whole part for certain, the rest by chance; taken as
    /// 0 to 16.
    pub p: f64,
    /// Makes one ring's shortcuts unlike another's.
    pub seed: u64,
}

/// The links of a ring, worked out once for all pods.
#[derive(Debug, Clone)]
pub struct Peering {
    /// The live pods, sorted by id.
    ids: Vec<PodId>,
    k: usize,
    circles: Vec<Circle>,
}

/// One order of the live pods; pods are named by their place among the ids.
#[derive(Debug, Clone)]
struct Circle {
    /// Which pod is at each place of the circle.
    order: Vec<usize>,
    /// At which place of the circle each pod is.
    place: Vec<usize>,
    /// Whether the pod at each place has a link to the next one.
    linked: Vec<bool>,
}

impl Default for Params {
    /// 2.5 links for each pod: as many as the usual Newman–Watts network with two neighbours on a side and a shortcut for
    /// every other pod, which at 1,000 pods needs 5.8 hops on average and at most 10; this one needs 4.7 and at most 7.
    fn default() -> Self {
        Self { k: 1, p: 1.5, seed: 0 }
    }
}

/// The live pods that `me` replicates with, sorted by id; none when `me` is not among the live ones itself.
///
/// ```
/// use adea_ring::peering::{Params, neighbours};
/// use adea_ring::{Member, View};
/// let id = |i: u32| format!("pod-{i:02}").parse().unwrap();
/// let view = View::new((0..50).map(|i| Member::new(id(i), "", 1)));
/// let params = Params { k: 2, p: 0.0, seed: 7 };
/// assert_eq!(neighbours(&view, &id(0), &params), [id(1), id(2), id(48), id(49)]);
/// ```
pub fn neighbours(view: &View, me: &PodId, params: &Params) -> Vec<PodId> {
    Peering::new(view, params).neighbours(me).into_iter().cloned().collect()
}

impl Peering {
    /// The links between the live pods of a view.
    pub fn new(view: &View, params: &Params) -> Self {
        let ids: Vec<PodId> = view.live().map(|member| member.id.clone()).collect();
        // What is not a number counts as none.
        let p = params.p.max(0.0).min(f64::from(LARGEST));
        let circles = (0..LARGEST).map(|number| (number, p - f64::from(number))).take_while(|(_, share)| *share > 0.0);
        let circles = circles.map(|(number, share)| Circle::new(&ids, params.seed, number, share)).collect();
        Self { k: usize::from(params.k.clamp(1, LARGEST)), ids, circles }
    }

    /// The live pods, sorted by id.
    pub fn pods(&self) -> &[PodId] {
        &self.ids
    }

    /// Whom a pod is linked to, sorted by id; nobody when it is not live.
    pub fn neighbours(&self, of: &PodId) -> Vec<&PodId> {
        match self.ids.binary_search(of) {
            Ok(pod) => self.linked_to(pod).into_iter().map(|other| &self.ids[other]).collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Whom each pod is linked to, both by their places in [`Peering::pods`].
    pub fn links(&self) -> Vec<Vec<usize>> {
        (0..self.ids.len()).map(|pod| self.linked_to(pod).into_iter().collect()).collect()
    }

    fn linked_to(&self, pod: usize) -> BTreeSet<usize> {
        let count = self.ids.len();
        let near = (1..=self.k.min(count)).flat_map(|step| [(pod + step) % count, (pod + count - step) % count]);
        let far = self.circles.iter().flat_map(|circle| circle.linked_to(pod));
        near.chain(far).filter(|other| *other != pod).collect()
    }
}

impl Circle {
    /// The circle of a number, on which each link is there with a probability of `share`.
    fn new(ids: &[PodId], seed: u64, number: u16, share: f64) -> Self {
        let mut keyed: Vec<(u64, usize)> =
            ids.iter().enumerate().map(|(pod, id)| (hash(b"place", seed, number, &[id]), pod)).collect();
        keyed.sort_unstable();
        let order: Vec<usize> = keyed.into_iter().map(|(_, pod)| pod).collect();
        let mut place = vec![0; order.len()];
        for (at, pod) in order.iter().enumerate() {
            place[*pod] = at;
        }
        let linked = (0..order.len()).map(|at| {
            let (a, b) = (order[at], order[(at + 1) % order.len()]);
            // The pair decides, not the way round, so that a circle of two has one answer.
            share >= 1.0 || chance(hash(b"link", seed, number, &[&ids[a.min(b)], &ids[a.max(b)]])) < share
        });
        Self { linked: linked.collect(), place, order }
    }

    fn linked_to(&self, pod: usize) -> impl Iterator<Item = usize> {
        let (at, count) = (self.place[pod], self.order.len());
        let (next, before) = ((at + 1) % count, (at + count - 1) % count);
        let next = self.linked[at].then_some(self.order[next]);
        let before = self.linked[before].then_some(self.order[before]);
        next.into_iter().chain(before)
    }
}

/// The same on every machine and in every version: pods of different versions must come to the same links.
fn hash(what: &[u8], seed: u64, circle: u16, ids: &[&PodId]) -> u64 {
    let mut hash = Sha256::new();
    hash.update(what);
    hash.update(seed.to_be_bytes());
    hash.update(circle.to_be_bytes());
    for id in ids {
        hash.update(id.as_str());
        // No id contains it.
        hash.update(b"\n");
    }
    let digest: [u8; 32] = hash.finalize().into();
    u64::from_be_bytes(*digest.first_chunk().expect("a digest is longer than 8 bytes"))
}

/// A hash as a number from 0 to 1, 1 excluded; the 53 bits that are kept are exact, so it is the same everywhere.
fn chance(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::btree_set;
    use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, proptest};

    use super::{Params, Peering, neighbours};
    use crate::member::{Member, PodId, View};

    fn view(ids: impl IntoIterator<Item = PodId>) -> View {
        View::new(ids.into_iter().map(|id| Member::new(id, "", 1)))
    }

    fn numbered(count: usize) -> View {
        view((0..count).map(|i| format!("pod-{i:04}").parse().expect("a pod's id")))
    }

    fn params() -> impl Strategy<Value = Params> {
        (0..5u16, 0.0..4.0f64, any::<u64>()).prop_map(|(k, p, seed)| Params { k, p, seed })
    }

    fn pods() -> impl Strategy<Value = BTreeSet<PodId>> {
        btree_set("[a-z0-9-]{1,12}".prop_map(|id| id.parse().expect("a pod's id")), 1..80)
    }

    /// The links, each once.
    fn pairs(view: &View, params: &Params) -> BTreeSet<(PodId, PodId)> {
        let peering = Peering::new(view, params);
        let of = |id: &PodId| peering.neighbours(id).into_iter().cloned().collect::<Vec<_>>();
        let all = peering.pods().iter().flat_map(|id| of(id).into_iter().map(move |other| (id.clone(), other)));
        all.filter(|(a, b)| a < b).collect()
    }

    /// How many hops it is from a pod to each that can be reached.
    fn hops(links: &[Vec<usize>], from: usize) -> Vec<usize> {
        let mut hops = vec![None; links.len()];
        let mut queue = std::collections::VecDeque::from([from]);
        hops[from] = Some(0);
        while let Some(pod) = queue.pop_front() {
            for other in &links[pod] {
                if hops[*other].is_none() {
                    hops[*other] = hops[pod].map(|hops| hops + 1);
                    queue.push_back(*other);
                }
            }
        }
        hops.into_iter().flatten().collect()
    }

    #[test]
    fn few_pods() {
        let me: PodId = "pod-0000".parse().expect("a pod's id");
        for (count, links) in [(1, 0), (2, 1), (3, 2)] {
            assert_eq!(neighbours(&numbered(count), &me, &Params::default()).len(), links);
        }
        assert!(neighbours(&numbered(0), &me, &Params::default()).is_empty());
        let stranger = "x".parse().expect("a pod's id");
        assert!(neighbours(&numbered(9), &stranger, &Params::default()).is_empty());
        for p in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e300] {
            let links = neighbours(&numbered(100), &me, &Params { k: u16::MAX, p, seed: 1 }).len();
            assert!((32..=64).contains(&links), "{p}: {links}");
        }
    }

    #[test]
    fn the_links_do_not_change_between_versions() {
        let me = "pod-0000".parse().expect("a pod's id");
        let found = neighbours(&numbered(100), &me, &Params { k: 1, p: 2.5, seed: 42 });
        let found: Vec<&str> = found.iter().map(PodId::as_str).collect();
        assert_eq!(found, ["pod-0001", "pod-0013", "pod-0046", "pod-0064", "pod-0073", "pod-0088", "pod-0099"]);
    }

    #[test]
    fn a_thousand_pods_are_closer_than_with_the_usual_shortcuts() {
        for seed in 0..3 {
            let links = Peering::new(&numbered(1_000), &Params { seed, ..Params::default() }).links();
            let count = links.iter().map(Vec::len).sum::<usize>() / 2;
            assert!((2_400..=2_600).contains(&count), "seed {seed}: {count} links");
            let hops: Vec<usize> = (0..1_000).step_by(20).flat_map(|from| hops(&links, from)).collect();
            let mean = hops.iter().sum::<usize>() as f64 / hops.len() as f64;
            assert!(mean < 5.0, "seed {seed}: {mean} hops on average");
            assert!(hops.iter().all(|hops| *hops <= 8), "seed {seed}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn all_live_pods_are_reachable_and_links_are_mutual(ids in pods(), params in params(), dead in any::<u64>()) {
            let mut view = view(ids);
            for (i, id) in view.clone().members().iter().enumerate() {
                view.set_alive(&id.id, dead >> (i % 64) & 1 == 0);
            }
            let peering = Peering::new(&view, &params);
            let most = 2 * (usize::from(params.k.max(1)) + params.p.ceil() as usize);
            for id in peering.pods() {
                let found = peering.neighbours(id);
                prop_assert!(found.len() <= most && !found.contains(&id));
                for other in found {
                    prop_assert!(peering.neighbours(other).contains(&id));
                }
                let alone = neighbours(&view, id, &params);
                prop_assert!(alone.iter().eq(peering.neighbours(id)));
            }
            if !peering.pods().is_empty() {
                prop_assert_eq!(hops(&peering.links(), 0).len(), peering.pods().len());
            }
        }

        #[test]
        fn one_that_goes_hardly_matters_to_the_others(ids in pods(), params in params(), which in any::<proptest::sample::Index>()) {
            let mut view = view(ids);
            let before = pairs(&view, &params);
            let gone = which.get(view.members()).id.clone();
            view.set_alive(&gone, false);
            let after = pairs(&view, &params);
            let new = after.difference(&before).count();
            prop_assert!(new <= usize::from(params.k.max(1)) + params.p.ceil() as usize, "{} new", new);
            prop_assert!(before.difference(&after).all(|(a, b)| *a == gone || *b == gone));
        }
    }
}
