//! What a pod does next about its ring, from what it has heard: no sockets, no files, no clock of its own.
//!
//! One turn is one [`Core::step`]. What it gives is to be carried out in this order: [`Outputs::keep`] is put on disk,
//! then rean is told [`Outputs::tell`] and the other pods [`Outputs::say`]. What rean answers goes into the next turn.
//!
//! What always holds:
//! - an epoch is on disk before it is followed or begun, and the clock's bound before a stamp is given away;
//! - this pod says that it is master exactly while its rean takes writes: from when rean has answered that it does
//!   until rean has answered that the last write is done, or has been silent for too long;
//! - a pod whose rean does not answer is no candidate, by its own reckoning and by that of all others;
//! - a pod that has not run for a while is no master before it has heard of the others again, or found them gone;
//! - a pod that was removed hands over and leaves, and nobody waits for it: to the others it has left, but while it
//!   takes writes they wait for it to step down, and while it lives they pull what only it has.

use std::collections::BTreeMap;
use std::convert::Infallible;

use adea_ring::config::{PodState, RingConfig};
use adea_ring::election::{self, Decision, Epoch, Mastership, Moment};
use adea_ring::host::DiskLevel;
use adea_ring::peering;
use adea_ring::report::{Dropped, Facts, Known, RingState, Role, Said};
use adea_ring::software;
use adea_ring::{Clock, Member, PodId, Stamp, View};

use crate::ring::core::parting::Leaving;
use crate::ring::hearing::Hearing;
use crate::ring::kept::{Kept, Remembered};
use crate::ring::turn::{Answer, Aside, Inputs, Me, Outputs, Row};

mod parting;

/// A rean that has not answered for so long is taken for dead: it answers each 250 ms, and a starved machine is late
/// by half a second.
pub const SILENT_MS: u64 = 1_000;
/// The same while it changes its role: it finishes the writes under way, or pulls what its neighbours have, each for
/// a few seconds at most, before it answers.
pub const CHANGE_SILENT_MS: u64 = 4_500;
/// A rean that answers, and does not become master in this time, won't.
const BECOME_PATIENCE_MS: u64 = 8_000;
/// For how long a pod is no candidate after that, so that another has its turn.
const PENALTY_MS: u64 = 10_000;
/// Two turns further apart than this: the process was not running, and what it knows is old.
pub const PAUSE_MS: u64 = 2_000;
/// After a pause, rean has to have answered for so long before this pod calls itself caught up.
const FRESH_MS: u64 = 1_000;
/// How often to say what changes all the time: it is for people and for dashboards.
const VOLATILE_MS: u64 = 500;
/// The most that is said, in bytes of JSON. Gossip takes 8 KiB.
const SAID_BYTES: usize = 7 * 1024;

/// A pod's reckoning.
#[derive(Debug)]
pub struct Core {
    me: Me,
    kept: Kept,
    clock: Clock,
    config: RingConfig,
    mastership: Mastership,
    /// The pods that were heard in this run.
    met: BTreeMap<PodId, Known>,
    refuses: Vec<PodId>,
    facts: Option<Facts>,
    /// The epoch in which this pod's rean takes writes.
    claim: Option<Epoch>,
    answered_ms: Option<u64>,
    /// Since when answers have come without a gap.
    fresh_since_ms: Option<u64>,
    /// Whether nobody listens at rean's port.
    is_down: bool,
    /// The role that rean is to have, and since when.
    wanted: Role,
    wanted_since_ms: u64,
    /// Whether rean answered when its role was changed: then it may take its time to.
    wanted_of_the_living: bool,
    /// Since when it has been told to be master and has not said that it is.
    unclaimed_since_ms: Option<u64>,
    unfit_until_ms: u64,
    stepped_ms: Option<u64>,
    /// Whether this process has paused, and not been sure of what it has since.
    in_doubt: bool,
    hearing: Hearing,
    leaving: Option<Leaving>,
    /// Since when this pod has known that it was removed.
    removed_since_ms: Option<u64>,
    said: Option<Known>,
    said_ms: u64,
    told: Option<Digest>,
    aside: Aside,
}

/// What of a ring's state rean should hear of at once.
#[derive(Debug, PartialEq, Eq)]
struct Digest {
    role: Role,
    neighbours: Vec<PodId>,
    clocks_off: Vec<PodId>,
    /// Without what changes all the time.
    members: Vec<Member>,
    /// Where masters began.
    starts: Vec<Option<u64>>,
}

impl Core {
    /// A pod that starts.
    pub fn new(me: Me, mut kept: Kept) -> Self {
        kept.generation = me.generation;
        kept.members.retain(|known| known.id != me.id);
        let config = RingConfig::default();
        Self {
            clock: Clock::new(me.id.clone(), kept.clock.clone(), config.clock.max_drift_ms),
            mastership: Mastership::starting(kept.seen.clone()),
            me,
            kept,
            config,
            met: BTreeMap::new(),
            refuses: Vec::new(),
            facts: None,
            claim: None,
            answered_ms: None,
            fresh_since_ms: None,
            is_down: false,
            wanted: Role::Waiting,
            wanted_since_ms: 0,
            wanted_of_the_living: false,
            unclaimed_since_ms: None,
            unfit_until_ms: 0,
            stepped_ms: None,
            in_doubt: false,
            hearing: Hearing::default(),
            leaving: None,
            removed_since_ms: None,
            said: None,
            said_ms: 0,
            told: None,
            aside: Aside::default(),
        }
    }

    /// The ring's configuration in force.
    pub fn config(&self) -> &RingConfig {
        &self.config
    }

    /// What rean answered last.
    pub fn facts(&self) -> Option<&Facts> {
        self.facts.as_ref()
    }

    /// Of this start.
    pub fn generation(&self) -> u64 {
        self.me.generation
    }

    /// What rean is told until gossip has started: nobody is known to live, and nobody takes writes.
    pub fn before_anything(&self) -> RingState {
        let view = View::new([self.member(false)]);
        self.state(&view, &Known { member: self.member(false), said: Said::default() }, Dropped::default())
    }

    /// One turn.
    pub fn step(&mut self, inputs: Inputs) -> Outputs {
        let before = self.kept.clone();
        let now_ms = inputs.elapsed_ms;
        self.aside = inputs.aside;
        self.notice_pause(now_ms);
        let doubled = self.take_heard(inputs.heard, now_ms);
        match inputs.answer {
            Some(Answer::Facts(facts)) => self.take_facts(*facts, now_ms),
            Some(Answer::Down) => self.is_down = true,
            Some(Answer::Failed) | None => {}
        }
        self.leave(inputs.leaving, now_ms);
        self.resign(now_ms);
        let fit = self.is_fit(now_ms) && inputs.disk_works && !doubled;
        if !self.answers(now_ms) {
            // Its writes have nobody to answer them.
            self.claim = None;
        }
        self.judge_caught_up(now_ms);
        let (stamp, view) = self.look(fit, inputs.physical_ms);
        let decision = self.decide(&view, &stamp, now_ms);
        self.want(now_ms);
        self.keep_bound(inputs.physical_ms);
        let say = self.row(fit, inputs.load, &stamp, now_ms);
        let tell = self.state(&view, &say, inputs.dropped);
        let digest = digest(&tell);
        let tell_now = self.told.as_ref() != Some(&digest);
        self.told = Some(digest);
        Outputs {
            keep: (self.kept != before).then(|| self.kept.clone()),
            tell,
            tell_now,
            say,
            decision,
            lonely: !self.may_begin(),
            doubled,
            removed: self.removed_since_ms.is_some(),
            may_go: self.may_go(&view, now_ms),
        }
    }

    /// A pod that has not run for a while can't know what it missed.
    fn notice_pause(&mut self, now_ms: u64) {
        if self.stepped_ms.is_some_and(|last_ms| now_ms.saturating_sub(last_ms) > PAUSE_MS) {
            self.in_doubt = true;
            self.fresh_since_ms = None;
            self.kept.caught_up_to = None;
            // Its rean had nobody to answer to.
            self.answered_ms = self.answered_ms.map(|_| now_ms);
            self.hearing.lose(now_ms);
        }
        self.stepped_ms = Some(now_ms);
    }

    /// Takes in what gossip knows; whether another process takes itself for this pod.
    fn take_heard(&mut self, heard: Vec<Row>, now_ms: u64) -> bool {
        let mut doubled = false;
        self.hearing.begin();
        for row in heard {
            if row.id == self.me.id {
                doubled |= row.alive && row.generation > self.me.generation;
                continue;
            }
            let said = |known: &Known| (known.member.generation, known.member.version);
            let is_news = self.met.get(&row.id).is_none_or(|known| said(known) < (row.generation, row.version));
            self.hearing.note(row.alive, is_news, now_ms);
            let known = row.known.filter(|known| known.member.id == row.id);
            let Some(mut known) = known.or_else(|| self.met.get(&row.id).cloned()) else {
                // It may be master: it counts as one that is missing until it has said what it is.
                self.kept.remember(Remembered { id: row.id, address: row.address, left: false });
                continue;
            };
            self.kept.joined |= row.alive;
            if known.member.generation != row.generation {
                // It has started anew, and not said anything yet: what it said before it died is no longer so.
                (known.member.claim, known.said) = (None, Said::default());
            }
            // A pod whose database does not answer can't take writes, nor give what it has.
            known.member.alive = row.alive && known.said.healthy;
            known.member.generation = row.generation;
            known.member.version = row.version;
            let Member { id, address, left, .. } = &known.member;
            self.kept.remember(Remembered { id: id.clone(), address: address.clone(), left: *left });
            self.met.insert(row.id, known);
        }
        if self.met.is_empty() {
            self.hearing.forget();
        }
        self.hearing.judge(&self.config.election, now_ms);
        doubled
    }

    fn take_facts(&mut self, facts: Facts, now_ms: u64) {
        let gap = self.answered_ms.is_none_or(|last_ms| now_ms.saturating_sub(last_ms) > SILENT_MS);
        if gap || self.fresh_since_ms.is_none() {
            self.fresh_since_ms = Some(now_ms);
        }
        self.answered_ms = Some(now_ms);
        self.is_down = false;
        if self.kept.origin.as_ref() != Some(&facts.origin) {
            // Another store: whatever the last one had, this one may not have.
            self.kept.caught_up_to = None;
            self.kept.origin = Some(facts.origin.clone());
        }
        self.claim = match &facts.role {
            Role::Master(epoch) if facts.start.as_ref().is_some_and(|start| start.epoch == *epoch) => {
                Some(epoch.clone())
            }
            Role::Master(_) | Role::Follower(_) | Role::Waiting => None,
        };
        if facts.config != self.config {
            if facts.config.clock != self.config.clock {
                let bound = self.kept.clock.clone();
                self.clock = Clock::new(self.me.id.clone(), bound, facts.config.clock.max_drift_ms);
            }
            self.config = facts.config.clone();
        }
        self.facts = Some(facts);
    }

    /// Whether this pod wants to be no master; room on its disk is another matter.
    fn is_reluctant(&self) -> bool {
        let is_removed = self.removed_since_ms.is_some();
        self.aside.reluctant || is_removed || self.pod_state() != PodState::Active
    }

    /// Room on this pod's disks: that of the machine's data folder, and that of rean's store, which may be another.
    fn disk(&self) -> DiskLevel {
        let of_host = self.aside.host.as_ref().map(|host| host.disk).unwrap_or_default();
        let of_store = self.facts.as_ref().map(|facts| facts.disk).unwrap_or_default();
        of_host.max(of_store)
    }

    /// Whether rean has answered lately; it may take its time to change its role, when it is there.
    fn answers(&self, now_ms: u64) -> bool {
        let Some(answered_ms) = self.answered_ms else { return false };
        let changes = self.facts.as_ref().is_some_and(|facts| facts.role != self.wanted);
        let (since_ms, patience_ms) = if changes && self.wanted_of_the_living && !self.is_down {
            (answered_ms.max(self.wanted_since_ms), CHANGE_SILENT_MS)
        } else {
            (answered_ms, SILENT_MS)
        };
        now_ms.saturating_sub(since_ms) <= patience_ms
    }

    /// Whether this pod can take part.
    fn is_fit(&mut self, now_ms: u64) -> bool {
        if self.claim.is_some() || !matches!(self.wanted, Role::Master(_)) {
            self.unclaimed_since_ms = None;
        } else {
            let since_ms = *self.unclaimed_since_ms.get_or_insert(now_ms);
            if now_ms.saturating_sub(since_ms) > BECOME_PATIENCE_MS {
                self.unfit_until_ms = now_ms + PENALTY_MS;
            }
        }
        self.answers(now_ms) && now_ms >= self.unfit_until_ms
    }

    fn judge_caught_up(&mut self, now_ms: u64) {
        let fresh = self.fresh_since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= FRESH_MS);
        self.in_doubt &= !fresh;
        if self.in_doubt {
            return;
        }
        let reported = self.facts.as_ref().and_then(|facts| facts.caught_up_to.as_ref());
        let best = reported.max(self.claim.as_ref());
        if best > self.kept.caught_up_to.as_ref() {
            self.kept.caught_up_to = best.cloned();
        }
    }

    /// The ring as this pod sees it now, itself included, and the stamp to decide with.
    fn look(&mut self, fit: bool, physical_ms: u64) -> (Stamp, View) {
        // One that has left may have come back while this pod was away: a pod that starts waits for it, too.
        let missing = self.missing().map(|known| {
            let member = Member::new(known.id.clone(), &known.address, 0);
            Member { alive: false, ..member }
        });
        let met = self.met.values().filter(|known| !self.is_gone(&known.member.id, known.member.alive));
        let met = met.map(|known| self.judged(known));
        let mut view = View::new(met.chain(missing));
        let (stamp, off) = election::observe(&mut self.clock, &view, physical_ms);
        self.refuses = off.into_iter().map(|err| err.pod).collect();
        view.update(self.member(fit));
        (stamp, view)
    }

    /// The pods that are remembered, and were not heard in this run.
    fn missing(&self) -> impl Iterator<Item = &Remembered> {
        let missing = self.kept.members.iter().filter(|known| !self.met.contains_key(&known.id));
        missing.filter(|known| !self.is_gone(&known.id, false))
    }

    fn decide(&mut self, view: &View, stamp: &Stamp, now_ms: u64) -> Decision {
        let mut config = self.config.election.clone();
        if !self.may_begin() {
            // A new pod that has not found its ring must not begin another.
            config.never.push(self.me.id.clone());
        }
        if view.members().len() == 1 {
            // Nobody's news can be late.
            config.settle_ms = 0;
        }
        let now = Moment { stamp: stamp.clone(), elapsed_ms: now_ms, is_deaf: self.hearing.is_deaf() };
        let (decision, next) = election::decide(&self.me.id, view, &config, &self.mastership, &now);
        self.mastership = next;
        self.kept.seen = self.mastership.seen().cloned();
        if let Decision::Become(epoch) = &decision {
            // The others are to wait for it from now on, not only when its rean is ready; and whoever began has joined.
            self.kept.caught_up_to = Some(epoch.clone());
            self.kept.joined = true;
        }
        decision
    }

    fn may_begin(&self) -> bool {
        self.kept.joined || !self.me.has_seeds
    }

    fn want(&mut self, now_ms: u64) {
        let role = match self.mastership.role() {
            election::Role::Waiting => Role::Waiting,
            election::Role::Follower { epoch } => Role::Follower(epoch.clone()),
            election::Role::Master { epoch } => Role::Master(epoch.clone()),
        };
        if role != self.wanted {
            self.wanted_of_the_living = self.answers(now_ms);
            self.wanted = role;
            self.wanted_since_ms = now_ms;
        }
    }

    fn keep_bound(&mut self, physical_ms: u64) {
        let kept = &mut self.kept;
        let done: Result<(), Infallible> = self.clock.reserve(physical_ms, |bound| {
            kept.clock = Some(bound.clone());
            Ok(())
        });
        // Nothing can fail here: it is written with the rest.
        let Ok(()) = done;
    }

    fn member(&self, fit: bool) -> Member {
        Member {
            alive: fit,
            left: self.leaving.is_some(),
            epoch: self.mastership.seen().cloned(),
            claim: self.claim.clone(),
            caught_up_to: self.kept.caught_up_to.clone(),
            refuses: self.refuses.clone(),
            reluctant: self.is_reluctant(),
            disk: self.disk(),
            ..Member::new(self.me.id.clone(), &self.me.address, self.me.generation)
        }
    }

    /// What this pod says now: as before, if nothing of weight has changed and it was said just now.
    fn row(&mut self, fit: bool, load: f64, stamp: &Stamp, now_ms: u64) -> Known {
        let start = self.facts.as_ref().and_then(|facts| facts.start.clone());
        let said = Said {
            url: self.me.url.clone(),
            software: software::version().to_owned(),
            since_ms: self.me.since_ms,
            healthy: fit,
            load,
            applied: self.facts.as_ref().map(|facts| facts.applied.clone()).unwrap_or_default(),
            start: start.filter(|start| self.claim.as_ref() == Some(&start.epoch)),
            state: self.pod_state(),
            disk: self.disk(),
            upgrade: self.aside.upgrade.clone(),
        };
        let member = Member { stamp: Some(stamp.clone()), ..self.member(fit) };
        let mut row = Known { member, said };
        if let Some(last) = &self.said {
            let quiet = Known {
                member: Member { stamp: last.member.stamp.clone(), ..row.member.clone() },
                said: Said { load: last.said.load, applied: last.said.applied.clone(), ..row.said.clone() },
            };
            // While a pod leaves, the others' progress is what it waits for.
            let hurry = self.met.values().any(|known| known.member.left && known.member.alive);
            if quiet == *last && !hurry && now_ms.saturating_sub(self.said_ms) < VOLATILE_MS {
                return quiet;
            }
        }
        shorten(&mut row);
        self.said = Some(row.clone());
        self.said_ms = now_ms;
        row
    }

    fn state(&self, view: &View, own: &Known, dropped: Dropped) -> RingState {
        let met = self.met.values().filter(|known| !self.is_gone(&known.member.id, known.member.alive));
        let mut members: Vec<Known> =
            met.map(|known| Known { member: self.judged(known), said: known.said.clone() }).collect();
        members.extend(self.missing().map(|known| Known {
            member: Member { alive: false, left: known.left, ..Member::new(known.id.clone(), &known.address, 0) },
            said: Said::default(),
        }));
        members.push(own.clone());
        members.sort_by(|a, b| a.member.id.cmp(&b.member.id));
        // A pod that is about to leave is linked to until it is gone: somebody has to take over its last writes.
        let linked = View::new(view.members().iter().map(|member| Member { left: false, ..member.clone() }));
        RingState {
            me: self.me.id.clone(),
            generation: self.me.generation,
            role: self.wanted.clone(),
            members,
            neighbours: peering::neighbours(&linked, &self.me.id, &self.config.peering),
            clocks_off: view.clocks_off().into_iter().cloned().collect(),
            dropped,
            host: self.aside.host.clone(),
            order_trust: self.aside.order_trust.clone(),
        }
    }

    /// What the operator wants of this pod.
    pub fn pod_state(&self) -> PodState {
        self.config.state_of(&self.me.id)
    }
}

/// Leaves out what only people look at, from the stores that were written to least, until it fits.
fn shorten(row: &mut Known) {
    while serde_json::to_vec(row).map_or(0, |text| text.len()) > SAID_BYTES && !row.said.applied.is_empty() {
        let mut seqs: Vec<u64> = row.said.applied.values().copied().collect();
        seqs.sort_unstable();
        let least = seqs[seqs.len() / 4];
        let own = row.member.id.clone();
        let before = row.said.applied.len();
        row.said.applied.retain(|origin, seq| *seq > least || origin.pod == own);
        if row.said.applied.len() == before {
            row.said.applied.clear();
        }
    }
}

fn digest(state: &RingState) -> Digest {
    let rows = state.members.iter().map(|known| &known.member);
    let rows = rows.map(|member| Member { version: 0, stamp: None, refuses: Vec::new(), ..member.clone() });
    Digest {
        role: state.role.clone(),
        neighbours: state.neighbours.clone(),
        clocks_off: state.clocks_off.clone(),
        members: rows.collect(),
        starts: state.members.iter().map(|known| known.said.start.as_ref().map(|start| start.seq)).collect(),
    }
}
