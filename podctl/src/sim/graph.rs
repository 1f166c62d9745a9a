//! Pods and their links, and how far it is between them.

use std::collections::{BTreeSet, VecDeque};

use adea_ring::PodId;
use adea_ring::peering::Peering;

/// Some pods and the links between them, each known from both ends.
pub struct Graph {
    pods: Vec<PodId>,
    links: Vec<Vec<usize>>,
}

/// How far it is from each pod to each other one.
pub struct Reach {
    /// How many links there are.
    pub links: usize,
    /// The most links of one pod.
    pub most_links: usize,
    /// Over the pairs that have a way between them.
    pub hops_mean: f64,
    /// Over the same pairs.
    pub hops_max: usize,
    /// The share of the pairs that have a way between them; 1 where there are no pairs.
    pub reached: f64,
    /// How many pods have no link.
    pub alone: usize,
}

impl Graph {
    /// The links that the pods of a view have.
    pub fn new(peering: &Peering) -> Self {
        Self { pods: peering.pods().to_vec(), links: peering.links() }
    }

    /// What is left when some pods are gone.
    pub fn without(&self, is_gone: impl Fn(&PodId) -> bool) -> Self {
        let mut pods = Vec::new();
        let place: Vec<Option<usize>> = self
            .pods
            .iter()
            .map(|pod| {
                (!is_gone(pod)).then(|| {
                    pods.push(pod.clone());
                    pods.len() - 1
                })
            })
            .collect();
        let left = self.links.iter().zip(&place).filter(|(_, place)| place.is_some());
        let links = left.map(|(links, _)| links.iter().filter_map(|other| place[*other]).collect()).collect();
        Self { pods, links }
    }

    /// How many links the other graph does not have.
    pub fn links_not_in(&self, other: &Self) -> usize {
        let (ours, theirs) = (self.pairs(), other.pairs());
        ours.difference(&theirs).count()
    }

    /// Follows all links from each pod.
    pub fn reach(&self) -> Reach {
        let count = self.pods.len();
        let (mut pairs, mut hops, mut hops_max) = (0usize, 0usize, 0);
        for from in 0..count {
            for far in self.hops(from).into_iter().flatten().filter(|far| *far > 0) {
                (pairs, hops, hops_max) = (pairs + 1, hops + far, hops_max.max(far));
            }
        }
        let share = |part: usize, of: usize, none: f64| if of == 0 { none } else { part as f64 / of as f64 };
        Reach {
            links: self.links.iter().map(Vec::len).sum::<usize>() / 2,
            most_links: self.links.iter().map(Vec::len).max().unwrap_or(0),
            hops_mean: share(hops, pairs, 0.0),
            hops_max,
            reached: share(pairs, count * count.saturating_sub(1), 1.0),
            alone: self.links.iter().filter(|links| links.is_empty()).count(),
        }
    }

    fn pairs(&self) -> BTreeSet<(&PodId, &PodId)> {
        let all = self.links.iter().zip(&self.pods);
        let all = all.flat_map(|(links, pod)| links.iter().map(move |other| (pod, &self.pods[*other])));
        all.filter(|(a, b)| a < b).collect()
    }

    /// How many hops it is to each pod, where there is a way.
    fn hops(&self, from: usize) -> Vec<Option<usize>> {
        let mut hops = vec![None; self.pods.len()];
        hops[from] = Some(0);
        let mut queue = VecDeque::from([(from, 0)]);
        while let Some((pod, far)) = queue.pop_front() {
            for other in &self.links[pod] {
                if hops[*other].is_none() {
                    hops[*other] = Some(far + 1);
                    queue.push_back((*other, far + 1));
                }
            }
        }
        hops
    }
}

#[cfg(test)]
mod tests {
    use super::Graph;

    fn line(count: usize) -> Graph {
        let pods = (0..count).map(|i| format!("pod-{i}").parse().expect("a pod's id")).collect();
        let links =
            (0..count).map(|i| [i.checked_sub(1), Some(i + 1)].into_iter().flatten().filter(|j| *j < count).collect());
        Graph { links: links.collect(), pods }
    }

    #[test]
    fn a_line() {
        let reach = line(4).reach();
        assert_eq!((reach.links, reach.most_links, reach.hops_max, reach.alone), (3, 2, 3, 0));
        assert!((reach.hops_mean - 10.0 / 6.0).abs() < 1e-9);
        assert!((reach.reached - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_broken_line() {
        let broken = line(4).without(|id| id.as_str() == "pod-1");
        let reach = broken.reach();
        assert_eq!((reach.links, reach.hops_max, reach.alone), (1, 1, 1));
        assert!((reach.reached - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!((line(4).links_not_in(&broken), broken.links_not_in(&line(4))), (2, 0));
    }

    #[test]
    fn none_and_one() {
        for count in [0, 1] {
            let reach = line(count).reach();
            assert_eq!((reach.links, reach.hops_max, reach.alone), (0, 0, count));
            assert!((reach.reached - 1.0).abs() < 1e-9);
        }
    }
}
