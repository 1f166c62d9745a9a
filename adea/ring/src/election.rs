//! Who takes the writes: each pod works it out from its view of the ring, without a vote.
//!
//! The write master is the first of the order of preference (`prefer` as listed, then by highest id; never those in
//! `never`) among the live pods that are best informed: those caught up to the newest epoch that any live pod is
//! caught up to. So a former master that returns is not chosen again before it has caught up with what came after it.
//! One that has little room on its disk comes after all that have enough, one that is reluctant (inactive, about to be
//! replaced) comes after those, and one that takes no new data comes last; when no other is left they still take the
//! writes. (Little room is the weaker reason: where all disks are nearly full, a pod can still be taken out of service.)
//!
//! Each change of master starts an [`Epoch`], stamped by the hybrid logical clock of the new master. Epochs are unique
//! (the stamp holds the pod), grow (a pod begins none that is not above all that it has heard of, but for those of a
//! wrong clock), and order masters:
//!
//! - a master that hears of a newer epoch steps down, and follows;
//! - a master that sees that another should be steps down first, and only then does the other begin, so that a
//!   planned change of master has no moment with two;
//! - pods send writes to the live pod that claims the newest epoch, not to the one that should claim it.
//!
//! In a split each side has a master. When it heals, the older epoch's master steps down, catches up, and what both
//! accepted is merged as branches of documents: nothing here needs a majority, so that the last pod still takes writes.
//!
//! Epochs travel faster than the failure detector finds their pods alive, so that a pod that hears of a newer epoch waits
//! for its master to be found, and for its view to settle anew. Otherwise both masters of a split would begin one epoch
//! upon the other when it heals.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use crate::clock::{Clock, DriftError, Stamp};
use crate::host::DiskLevel;
use crate::member::{Member, PodId, View};

/// The stamp of a change of master; it names the master.
pub type Epoch = Stamp;

/// For how long a pod must have been the one to be chosen before it begins, and before the master hands over to it,
/// unless configured otherwise, in milliseconds: a few rounds of gossip, in which a view that was late changes its mind.
pub const DEFAULT_SETTLE_MS: u64 = 300;

/// For how long a pod that has just started waits for the pods that it remembers before it begins without them, and any
/// pod for the master of an epoch that it has just heard of, unless configured otherwise, in milliseconds: a pod that has not
/// found the ring yet, or not all of it, must not begin an epoch of its own.
pub const DEFAULT_START_MS: u64 = 3_000;

/// What the ring's configuration says of elections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Rather these, the first first.
    pub prefer: Vec<PodId>,
    /// Never these, also when no other is left.
    pub never: Vec<PodId>,
    /// See [`DEFAULT_SETTLE_MS`].
    pub settle_ms: u64,
    /// See [`DEFAULT_START_MS`].
    pub start_ms: u64,
}

/// What a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It knows no master.
    Waiting,
    /// Another takes the writes.
    Follower {
        /// The epoch; its pod is the master.
        epoch: Epoch,
    },
    /// It takes the writes itself.
    Master {
        /// Since when.
        epoch: Epoch,
    },
}

/// Where a pod stands between two decisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mastership {
    role: Role,
    /// The newest epoch heard of.
    seen: Option<Epoch>,
    /// Since when it has been the one to be chosen, with no newer epoch heard of.
    candidate_since_ms: Option<u64>,
    /// Who else has been the one to be chosen, and since when.
    rival: Option<(PodId, u64)>,
    /// Since when the newest epoch has been heard of while its pod was never found alive.
    unfound_since_ms: Option<u64>,
    /// When it started; none before the first decision.
    started_ms: Option<u64>,
}

/// When a decision is made, and how far what the pod sees can be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// From [`observe`] of the same view; an epoch that begins now has it as its name.
    pub stamp: Stamp,
    /// Since some moment before the first decision, in milliseconds that nobody sets: stamps stand still while a clock
    /// that was set back has not come as far again.
    pub elapsed_ms: u64,
    /// Whether this pod has not run for a while and not heard of any other since: what it sees is of before.
    pub is_deaf: bool,
}

/// What a pod does now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Go on as before, as master or follower.
    Stay,
    /// Send writes to the pod of this epoch.
    Follow(Epoch),
    /// Begin to take writes, in this epoch, once it is said to the others.
    Become(Epoch),
    /// Take no more writes; say so once the last is done.
    StepDown(Cause),
    /// There is no master to send writes to.
    Wait(Waiting),
}

/// Why a master steps down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Another began later.
    Newer(Epoch),
    /// Another comes before this pod in the order of preference, and is as well informed.
    HandOver(PodId),
    /// It leaves, may no longer be master, or its clock is off, and no other is there to hand over to.
    Barred,
    /// It has not run for a while, in which another may have begun.
    Deaf,
}

/// Why there is no master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// This pod is about to begin.
    ForOthers(Hold),
    /// That pod is about to begin.
    For(PodId),
    /// No live pod may be master: all the best informed are in `never`, and none else has caught up with them yet.
    NoCandidate,
}

/// What a pod that is to be master waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// The pods that it remembers may be there, and not found yet.
    Starting,
    /// This pod has not run for a while, and not heard of the others since.
    Deaf,
    /// The master of an older epoch has not stepped down yet.
    Older(PodId),
    /// That pod began the newest epoch, which was just heard of, and has not been found alive yet.
    Unfound(PodId),
    /// The view has not been the same for long enough.
    Settling,
    /// An epoch is ahead of this pod's clock.
    Clock,
}

impl Default for Config {
    fn default() -> Self {
        Self { prefer: Vec::new(), never: Vec::new(), settle_ms: DEFAULT_SETTLE_MS, start_ms: DEFAULT_START_MS }
    }
}

impl Mastership {
    /// A pod that starts; `seen` is the newest epoch that it had heard of, which it keeps on disk.
    pub fn starting(seen: Option<Epoch>) -> Self {
        Self {
            role: Role::Waiting,
            seen,
            candidate_since_ms: None,
            rival: None,
            unfound_since_ms: None,
            started_ms: None,
        }
    }

    /// What the pod is.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// The newest epoch heard of: what its member row says as `epoch`. To be on disk before an epoch is followed or begun.
    pub fn seen(&self) -> Option<&Epoch> {
        self.seen.as_ref()
    }

    /// The epoch in which this pod is master: what its member row says as `claim`.
    pub fn claim(&self) -> Option<&Epoch> {
        match &self.role {
            Role::Master { epoch } => Some(epoch),
            Role::Follower { .. } | Role::Waiting => None,
        }
    }
}

/// Lets a clock observe all stamps of a view, and gives the stamp to decide with, and the pods whose clocks are off:
/// what this pod's row says as `refuses`.
pub fn observe(clock: &mut Clock, view: &View, physical_ms: u64) -> (Stamp, Vec<DriftError>) {
    let mut off: Vec<DriftError> = Vec::new();
    for member in view.members() {
        for stamp in [&member.epoch, &member.claim, &member.caught_up_to, &member.stamp].into_iter().flatten() {
            match clock.observe(stamp, physical_ms) {
                Ok(_) => {}
                Err(err) => match off.iter_mut().find(|known| known.pod == err.pod) {
                    Some(known) => known.by_ms = known.by_ms.max(err.by_ms),
                    None => off.push(err),
                },
            }
        }
    }
    (clock.now(physical_ms), off)
}

/// What `me` does, given what it sees. To be called at each change of the view and a few times a second.
///
/// The view holds `me` as it is, and remembered pods that are not found (yet) as not alive. Same values, same decision;
/// where all pods see the same, they come to the same master.
pub fn decide(me: &PodId, view: &View, config: &Config, previous: &Mastership, now: &Moment) -> (Decision, Mastership) {
    let sight = Sight { me, view, config, previous, now, off: view.clocks_off() };
    let mut next = sight.noted();
    let decision = match previous.claim() {
        Some(epoch) => sight.as_master(epoch, &next),
        None => sight.as_other(&next),
    };
    match &decision {
        Decision::Stay => {}
        Decision::Follow(epoch) => next.role = Role::Follower { epoch: epoch.clone() },
        Decision::Become(epoch) => {
            next.role = Role::Master { epoch: epoch.clone() };
            next.seen = Some(epoch.clone());
        }
        Decision::StepDown(_) | Decision::Wait(_) => next.role = Role::Waiting,
    }
    (decision, next)
}

/// Whether it takes new data, whether it is willing, whether it has enough room, its place among the preferred, its id.
type Rank<'a> = (bool, bool, bool, Option<Reverse<usize>>, &'a PodId);

/// Whether a pod takes the writes only when nobody else can.
fn is_unwilling(member: &Member) -> bool {
    member.reluctant || member.disk >= DiskLevel::Low
}

/// What counts of what a pod sees.
struct Sight<'a> {
    me: &'a PodId,
    view: &'a View,
    config: &'a Config,
    previous: &'a Mastership,
    now: &'a Moment,
    /// The live pods whose clocks are off: they are not chosen, and their epochs don't count.
    off: Vec<&'a PodId>,
}

impl<'a> Sight<'a> {
    /// What stands before the decision: the newest epoch, and since when things have been as they are.
    fn noted(&self) -> Mastership {
        let (previous, now_ms) = (self.previous, self.now.elapsed_ms);
        let best = self.best().map(|best| &best.id);
        let seen = self.newest().cloned();
        let is_news = seen > previous.seen;
        let candidate_since_ms = previous.candidate_since_ms.filter(|_| !is_news).unwrap_or(now_ms);
        let rival_since_ms = |rival: &PodId| match &previous.rival {
            Some((known, since_ms)) if known == rival && !is_news => *since_ms,
            _ => now_ms,
        };
        let unfound_since_ms = if is_news { Some(now_ms) } else { previous.unfound_since_ms };
        Mastership {
            role: previous.role.clone(),
            candidate_since_ms: best.filter(|best| *best == self.me).map(|_| candidate_since_ms),
            rival: best.filter(|best| *best != self.me).map(|rival| (rival.clone(), rival_since_ms(rival))),
            unfound_since_ms: unfound_since_ms
                .filter(|_| seen.as_ref().is_some_and(|seen| self.is_unfound(seen.pod()))),
            seen,
            started_ms: Some(previous.started_ms.unwrap_or(now_ms)),
        }
    }

    /// Whether a pod may be there, though it is not known to be.
    fn is_unfound(&self, pod: &PodId) -> bool {
        pod != self.me && self.view.get(pod).is_none_or(|member| !member.alive && !member.left)
    }

    /// A master's decision.
    fn as_master(&self, epoch: &Epoch, next: &Mastership) -> Decision {
        if let Some(newest) = self.newest()
            && newest > epoch
        {
            return Decision::StepDown(Cause::Newer(newest.clone()));
        }
        if self.now.is_deaf {
            return Decision::StepDown(Cause::Deaf);
        }
        match self.best() {
            Some(best) if best.id == *self.me => Decision::Stay,
            Some(best) if self.may_be_master() && !self.is_time_to_go(best, next) => Decision::Stay,
            Some(best) => Decision::StepDown(Cause::HandOver(best.id.clone())),
            None => Decision::StepDown(Cause::Barred),
        }
    }

    /// Whether a master that could go on should hand over now. The other waits as long before it begins, so that one who
    /// goes at once only leaves a gap. While a pod that comes before the other is catching up, it gets some time to, so
    /// that not one after the other has its turn when many come back. One that is reluctant is in a hurry.
    fn is_time_to_go(&self, best: &Member, next: &Mastership) -> bool {
        let Config { settle_ms, start_ms, .. } = *self.config;
        let is_last = !self.candidates().any(|member| self.rank(member) > self.rank(best));
        let in_hurry = self.candidates().any(|member| member.id == *self.me && is_unwilling(member));
        let wait_ms = if is_last || in_hurry { settle_ms } else { settle_ms.max(start_ms) };
        self.has_passed(next.rival.as_ref().map(|rival| rival.1), wait_ms)
    }

    /// Whether this pod could be master, if only others were not better.
    fn may_be_master(&self) -> bool {
        self.candidates().any(|member| member.id == *self.me)
    }

    /// Whether so many milliseconds have passed since then; not, if there was no such moment.
    fn has_passed(&self, since_ms: Option<u64>, ms: u64) -> bool {
        since_ms.is_some_and(|since_ms| self.now.elapsed_ms.saturating_sub(since_ms) >= ms)
    }

    /// The decision of a pod that is not master.
    fn as_other(&self, next: &Mastership) -> Decision {
        let newest = self.newest();
        let master = self.claims().find(|claim| newest == Some(*claim));
        if let Some(epoch) = master {
            return match &self.previous.role {
                Role::Follower { epoch: known } if known == epoch => Decision::Stay,
                _ => Decision::Follow(epoch.clone()),
            };
        }
        match self.best() {
            None => Decision::Wait(Waiting::NoCandidate),
            Some(best) if best.id != *self.me => Decision::Wait(Waiting::For(best.id.clone())),
            Some(_) => match self.hold(next) {
                Some(hold) => Decision::Wait(Waiting::ForOthers(hold)),
                None => Decision::Become(self.now.stamp.clone()),
            },
        }
    }

    /// What keeps the pod that is to be master from beginning.
    fn hold(&self, next: &Mastership) -> Option<Hold> {
        let missing = self.view.members().iter().any(|member| !member.alive && !member.left);
        if self.now.is_deaf {
            return Some(Hold::Deaf);
        }
        if let Some(older) = self.claims().next() {
            return Some(Hold::Older(older.pod().clone()));
        }
        if missing && !self.has_passed(next.started_ms, self.config.start_ms) {
            return Some(Hold::Starting);
        }
        if let (Some(since_ms), Some(seen)) = (next.unfound_since_ms, &next.seen)
            && !self.has_passed(Some(since_ms), self.config.start_ms)
        {
            return Some(Hold::Unfound(seen.pod().clone()));
        }
        if !self.has_passed(next.candidate_since_ms, self.config.settle_ms) {
            return Some(Hold::Settling);
        }
        next.seen.as_ref().is_some_and(|seen| *seen >= self.now.stamp).then_some(Hold::Clock)
    }

    /// Which pod should be master.
    fn best(&self) -> Option<&'a Member> {
        let informed = self.trusted().map(|member| self.informed(member)).max()?;
        let informed = self.candidates().filter(|member| self.informed(member) == informed);
        informed.max_by_key(|member| self.rank(member))
    }

    /// The pods that may be masters.
    fn candidates(&self) -> impl Iterator<Item = &'a Member> {
        self.trusted().filter(|member| !self.config.never.contains(&member.id))
    }

    /// A pod's place in the order of preference; greater is better.
    fn rank<'b>(&self, member: &'b Member) -> Rank<'b> {
        let wanted = self.config.prefer.iter().position(|id| *id == member.id).map(Reverse);
        (member.disk < DiskLevel::Full, !member.reluctant, member.disk < DiskLevel::Low, wanted, &member.id)
    }

    /// The live pods whose clocks are right.
    fn trusted(&self) -> impl Iterator<Item = &'a Member> {
        self.view.live().filter(|member| !self.off.contains(&&member.id))
    }

    /// How well informed a pod is; this one may have become master after its row was written.
    fn informed(&self, member: &'a Member) -> Option<&Epoch> {
        let own = if member.id == *self.me { self.previous.claim() } else { None };
        member.informed_of().max(own).filter(|epoch| self.counts(epoch))
    }

    /// The epochs in which other live pods are masters now, but for claims to another's epoch.
    fn claims(&self) -> impl Iterator<Item = &'a Epoch> {
        let others = self.trusted().filter(|member| member.id != *self.me);
        others.filter_map(|member| member.claim.as_ref().filter(|claim| *claim.pod() == member.id))
    }

    /// The newest epoch that this pod or any other, also one that is gone, has heard of.
    fn newest(&self) -> Option<&Epoch> {
        let theirs = self.view.members().iter().flat_map(|member| [&member.epoch, &member.claim]).flatten();
        theirs.chain(&self.previous.seen).filter(|epoch| self.counts(epoch)).max()
    }

    /// Whether an epoch is to be reckoned with: not that of a pod whose clock is off. One that is ahead of `now` was refused by the clock; it counts only
    /// while its pod is there, with a clock that may be right. Else a wrong clock's epoch would outlive its pod, and keep
    /// all others from beginning one until their clocks have come that far.
    fn counts(&self, epoch: &Epoch) -> bool {
        let is_near = *epoch <= self.now.stamp || self.trusted().any(|member| member.id == *epoch.pod());
        is_near && !self.off.contains(&epoch.pod())
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
