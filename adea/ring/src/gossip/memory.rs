//! Every pod that was heard of in this run.
//!
//! chitchat keeps each start of a pod as a node of its own, and forgets the dead after a while. Here each pod is once,
//! by its newest start, for as long as this run lasts.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use chitchat::{Chitchat, ChitchatId};
use serde_json::Value;
use tokio::time::Instant;

use super::Heard;
use crate::PodId;

/// The key under which a pod says its facts. One for all: what belongs together arrives together.
pub(super) const FACTS_KEY: &str = "facts";

/// Pods that are remembered: far more than gossip carries.
const MAX_PODS: usize = 4096;

#[derive(Debug)]
pub(super) struct Memory {
    pods: BTreeMap<PodId, Heard>,
    /// When nobody has looked for that long, this process was not running, and can't judge who lives.
    pause: Duration,
    looked: Instant,
    /// Until then nobody dies.
    hold_until: Option<Instant>,
}

/// What chitchat knows of one start of a pod.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) id: &'a str,
    pub(super) generation: u64,
    pub(super) alive: bool,
    pub(super) address: SocketAddr,
    pub(super) version: u64,
    pub(super) facts: Option<&'a str>,
}

impl Memory {
    /// Nothing heard yet. To be refreshed at least once in `pause`.
    pub(super) fn new(pause: Duration) -> Self {
        Self { pods: BTreeMap::new(), pause, looked: Instant::now(), hold_until: None }
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &Heard> {
        self.pods.values()
    }

    /// Takes in what chitchat knows.
    pub(super) fn look(&mut self, chitchat: &Chitchat) {
        let live: HashSet<&ChitchatId> = chitchat.live_nodes().collect();
        let rows = chitchat.node_states().iter().map(|(id, state)| Row {
            id: &id.node_id,
            generation: id.generation_id,
            alive: live.contains(id),
            address: id.gossip_advertise_addr,
            version: state.max_version(),
            facts: state.get(FACTS_KEY),
        });
        self.refresh(rows, Instant::now());
    }

    fn refresh<'a>(&mut self, rows: impl Iterator<Item = Row<'a>>, now: Instant) {
        if now - self.looked > self.pause {
            self.hold_until = Some(now + self.pause);
        }
        self.looked = now;
        self.hold_until = self.hold_until.filter(|until| now < *until);
        let lived: Vec<(PodId, u64)> = match self.hold_until {
            Some(_) => self.pods().filter(|pod| pod.alive).map(|pod| (pod.id.clone(), pod.generation)).collect(),
            None => Vec::new(),
        };
        self.pods.values_mut().for_each(|pod| pod.alive = false);
        for row in rows {
            // What a pod can't be called, chitchat's peers can still say; it is no pod.
            if let Ok(id) = row.id.parse() {
                self.note(id, row);
            }
        }
        for (id, generation) in lived {
            if let Some(pod) = self.pods.get_mut(&id) {
                pod.alive |= pod.generation == generation;
            }
        }
    }

    fn note(&mut self, id: PodId, row: Row<'_>) {
        match self.pods.get_mut(&id) {
            Some(known) if known.generation > row.generation => {}
            Some(known) if known.generation == row.generation => {
                known.alive |= row.alive;
                if row.version > known.version {
                    *known = Heard { alive: known.alive, ..row.heard(id) };
                }
            }
            Some(known) => *known = row.heard(id),
            None => {
                if self.has_room() {
                    self.pods.insert(id.clone(), row.heard(id));
                }
            }
        }
    }

    /// Makes room if it can: the dead go before the living.
    fn has_room(&mut self) -> bool {
        if self.pods.len() < MAX_PODS {
            return true;
        }
        let dead = self.pods().find(|pod| !pod.alive).map(|pod| pod.id.clone());
        dead.is_some_and(|id| self.pods.remove(&id).is_some())
    }
}

impl Row<'_> {
    fn heard(&self, id: PodId) -> Heard {
        Heard {
            id,
            generation: self.generation,
            alive: self.alive,
            address: self.address,
            version: self.version,
            facts: self.facts.and_then(|facts| serde_json::from_str(facts).ok()).unwrap_or(Value::Null),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::{MAX_PODS, Memory, Row};

    const PAUSE: Duration = Duration::from_millis(600);

    fn row(id: &str, generation: u64, alive: bool, version: u64) -> Row<'_> {
        let address = "127.0.0.1:1".parse().expect("an address");
        Row { id, generation, alive, address, version, facts: Some(r#"{"a":1}"#) }
    }

    fn alive(memory: &Memory) -> Vec<(&str, u64)> {
        memory.pods().filter(|pod| pod.alive).map(|pod| (pod.id.as_str(), pod.generation)).collect()
    }

    #[test]
    fn the_newest_start_counts() {
        let mut memory = Memory::new(PAUSE);
        let now = Instant::now();
        memory.refresh([row("a", 1, true, 5), row("a", 2, false, 0), row("No Pod", 1, true, 1)].into_iter(), now);
        assert_eq!((memory.pods().count(), alive(&memory).len()), (1, 0));
        memory.refresh([row("a", 2, true, 1), row("a", 1, true, 9)].into_iter(), now);
        assert_eq!(alive(&memory), [("a", 2)]);
        assert_eq!(memory.pods().next().map(|pod| (&pod.facts, pod.version)), Some((&json!({"a": 1}), 1)));
        memory.refresh([].into_iter(), now);
        assert_eq!((memory.pods().count(), alive(&memory).len()), (1, 0), "forgotten by gossip, not by the run");
        memory.refresh([Row { facts: None, ..row("a", 2, true, 0) }].into_iter(), now);
        assert_eq!(memory.pods().next().map(|pod| pod.version), Some(1), "gossip that has forgotten knows less");
        memory.refresh([Row { facts: Some("{"), ..row("a", 3, true, 1) }].into_iter(), now);
        assert_eq!(memory.pods().next().map(|pod| &pod.facts), Some(&Value::Null));
    }

    #[test]
    fn who_was_paused_does_not_judge() {
        let mut memory = Memory::new(PAUSE);
        let at = |ms: u64| Duration::from_millis(ms);
        let start = memory.looked;
        memory.refresh([row("a", 1, true, 1), row("b", 1, true, 1), row("c", 1, false, 1)].into_iter(), start);
        let dead = [row("a", 1, false, 1), row("b", 2, false, 1), row("c", 1, false, 1)];
        memory.refresh(dead.into_iter(), start + at(10_000));
        assert_eq!(alive(&memory), [("a", 1)], "b has started anew");
        memory.refresh(dead.into_iter(), start + at(10_150));
        assert_eq!(alive(&memory), [("a", 1)]);
        for ms in [10_300, 10_450, 10_600] {
            memory.refresh(dead.into_iter(), start + at(ms));
        }
        assert!(alive(&memory).is_empty(), "it had its time");
        memory.refresh([row("a", 1, true, 1)].into_iter(), start + at(10_750));
        memory.refresh(dead.into_iter(), start + at(10_900));
        assert!(alive(&memory).is_empty(), "no pause, no hold");
    }

    #[test]
    fn bounded() {
        let mut memory = Memory::new(PAUSE);
        let names: Vec<String> = (0..MAX_PODS + 5).map(|pod| format!("pod-{pod}")).collect();
        memory.refresh(names.iter().map(|name| row(name, 1, true, 1)), Instant::now());
        assert_eq!(memory.pods().count(), MAX_PODS);
        memory.refresh([row("zz", 1, true, 1)].into_iter(), Instant::now());
        assert_eq!((memory.pods().count(), alive(&memory)), (MAX_PODS, vec![("zz", 1)]));
    }
}
