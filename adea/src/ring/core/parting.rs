//! How a pod leaves its ring, by its own will or because it was removed, and what a pod that was removed is to the others.

use adea_ring::config::PodState;
use adea_ring::report::{Applied, Known, Role};
use adea_ring::{Member, PodId, View};

use super::{CHANGE_SILENT_MS, Core};

/// For how long a master that leaves waits for another to have all of its writes.
const DRAIN_MS: u64 = 3_000;
/// The same for a pod that was removed: it does not come back with what only it has, and there is no hurry.
const LAST_DRAIN_MS: u64 = 30_000;
/// For how long a pod that was removed waits for another to be fit to take the writes over, before it leaves anyway.
const RESIGN_MS: u64 = 10_000;

/// A pod on its way out.
#[derive(Debug)]
pub(super) struct Leaving {
    since_ms: u64,
    /// What the others must have of its writes; none until its rean has shut.
    awaited: Option<Applied>,
    /// Whether another is to have all of its writes first.
    hands_over: bool,
}

impl Core {
    /// Notes that this pod is to leave.
    pub(super) fn leave(&mut self, leaving: bool, now_ms: u64) {
        if leaving && self.leaving.is_none() {
            self.leaving = Some(Leaving { since_ms: now_ms, awaited: None, hands_over: self.claim.is_some() });
        }
    }

    /// A pod that was removed first hands over, as one that is reluctant does, and then leaves. What it has learned
    /// once stays so for this run: its data is of a ring that has gone on without it.
    pub(super) fn resign(&mut self, now_ms: u64) {
        if self.removed_since_ms.is_none() && self.pod_state() != PodState::Removed {
            return;
        }
        let since_ms = *self.removed_since_ms.get_or_insert(now_ms);
        let takes_writes = self.claim.is_some() || matches!(self.wanted, Role::Master(_));
        let is_time = !takes_writes || now_ms.saturating_sub(since_ms) > RESIGN_MS;
        if is_time && self.leaving.is_none() {
            self.leaving = Some(Leaving { since_ms: now_ms, awaited: None, hands_over: true });
        }
    }

    /// Whether a pod is to be reckoned with no longer: it was removed, and is not there any more.
    pub(super) fn is_gone(&self, id: &PodId, alive: bool) -> bool {
        !alive && self.config.state_of(id) == PodState::Removed
    }

    /// What another pod is to this one. One that was removed has left, whatever it says, as soon as it takes no writes:
    /// until then nobody else must begin to.
    pub(super) fn judged(&self, known: &Known) -> Member {
        let member = known.member.clone();
        if self.config.state_of(&member.id) != PodState::Removed {
            return member;
        }
        Member { reluctant: true, left: member.left || member.claim.is_none(), ..member }
    }

    /// Whether a pod that leaves has nothing left to do.
    pub(super) fn may_go(&mut self, view: &View, now_ms: u64) -> bool {
        let Some(leaving) = &self.leaving else { return false };
        let waited_ms = now_ms.saturating_sub(leaving.since_ms);
        let is_shut = self.claim.is_none() && !matches!(self.wanted, Role::Master(_));
        if !is_shut {
            return waited_ms > CHANGE_SILENT_MS + DRAIN_MS;
        }
        let is_removed = self.removed_since_ms.is_some();
        // One that was removed while it was away has not found the others yet when it starts.
        let may_come = is_removed && waited_ms <= self.config.election.start_ms;
        let has_others = view.live().any(|member| member.id != self.me.id) || may_come;
        let (Some(facts), true, true) = (&self.facts, leaving.hands_over, has_others) else {
            return true;
        };
        let own = || Applied::from([(facts.origin.clone(), facts.applied.get(&facts.origin).copied().unwrap_or(0))]);
        let awaited = leaving.awaited.clone().unwrap_or_else(own);
        let has_all = |known: &Known| {
            let applied = &known.said.applied;
            awaited.iter().all(|(origin, seq)| applied.get(origin).is_some_and(|has| has >= seq))
        };
        let patience_ms = if is_removed { LAST_DRAIN_MS } else { DRAIN_MS };
        let is_done =
            waited_ms > patience_ms || self.met.values().any(|known| self.judged(known).is_live() && has_all(known));
        if let Some(leaving) = &mut self.leaving {
            leaving.awaited = Some(awaited);
        }
        is_done
    }
}
