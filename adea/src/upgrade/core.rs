//! A turn of an upgrade: from what is known to what is kept, said and done. No files, no sockets, no clock of its own.

use std::path::{Path, PathBuf};

use adea_ring::PodId;
use adea_ring::upgrade::{Act, Order, OrderPublicKey, OrderState, Own, Peer, Progress, Side, Step, next};

use crate::docker::Brought;
use crate::software::Software;
use crate::upgrade::depot::FetchError;
use crate::upgrade::journal::{Installed, Journal, Outfit};

/// An agent that could not be begun in so many tries is none: it ended at once each time.
pub const MAX_AGENT_TRIES: u32 = 3;

/// What a turn goes by.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// By this machine's clock, in milliseconds since 1970.
    pub now_ms: u64,
    /// Since this process started, in milliseconds that nobody sets.
    pub elapsed_ms: u64,
    /// The order in the ring, signed as it should be, neither [too old](Core::is_too_old) nor
    /// [far ahead](Core::is_far_ahead).
    pub order: Option<Order>,
    /// By which key orders count on this machine.
    pub key: Option<OrderPublicKey>,
    /// All pods.
    pub peers: Vec<Peer>,
    /// Whether this one takes the writes.
    pub is_master: bool,
    /// The software under which all programs are up; none when they are not.
    pub up: Option<Software>,
    /// How often they have ended by themselves under the software that they have now.
    pub ends: u32,
    /// What they are started from, by name also where nothing else is said.
    pub runs: Software,
    /// This program's file.
    pub agent: PathBuf,
    /// The same as it is on disk; needed only as long as the journal has none.
    pub installed: Option<Installed>,
    /// Whether the links to the other pods have brought all there is, since the programs are up.
    pub is_caught_up: bool,
    /// The software that was fetched, or why it could not be.
    pub fetched: Option<Result<Outfit, FetchError>>,
    /// What doesn't work, for people.
    pub trouble: Option<String>,
}

/// What a turn comes to, in the order in which it is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outputs {
    /// Whether the journal is to be on disk before anything else.
    pub save: bool,
    /// For the log.
    pub log: Option<String>,
    /// What the other pods are told.
    pub progress: Option<Progress>,
    /// Whether this pod should be no write master.
    pub reluctant: bool,
    /// What the programs are to be started from.
    pub software: Software,
    /// The order whose software is to be fetched.
    pub fetch: Option<Order>,
    /// Whether rean is to be asked how its links are.
    pub asks_links: bool,
    /// The program files to keep; others of upgrades can go.
    pub tidy: Option<Vec<PathBuf>>,
    /// Whether the agent is to end and begin anew, as the journal says.
    pub begin_anew: bool,
}

/// An upgrade as this pod goes through it.
#[derive(Debug)]
pub struct Core {
    me: PodId,
    journal: Journal,
    /// Whether the journal on disk is older.
    is_unsaved: bool,
    /// When the step was entered in this process.
    step_since_ms: Option<u64>,
}

impl Core {
    /// A pod that goes on with what it remembers.
    pub fn new(me: PodId, journal: Journal) -> Self {
        Self { me, journal, is_unsaved: false, step_since_ms: None }
    }

    /// Which pod.
    pub fn me(&self) -> &PodId {
        &self.me
    }

    /// What is to be kept.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Where the pod stands, as far as it remembers.
    pub fn progress(&self) -> Option<Progress> {
        let (order, step) = (self.journal.order.as_ref()?, self.journal.step?);
        Some(Progress { order: order.id.clone(), step, reason: self.journal.why.clone() })
    }

    /// Whether an order is older than one under the same key that this pod has seen, or than this time, in milliseconds
    /// since 1970: then somebody has put it back. The one that it goes by already is never that.
    pub fn is_too_old(&self, order: &Order, key: Option<&OrderPublicKey>, since_ms: u64) -> bool {
        let is_known = self.journal.order.as_ref().is_some_and(|known| known.id == order.id);
        let seen_ms = if was_replaced(self.journal.seen_key().as_ref(), key) { 0 } else { self.journal.seen_ms };
        !is_known && order.made_at_ms < seen_ms.max(since_ms)
    }

    /// Whether an order was made so late that this pod, having seen it, would follow none for long. The one that it goes by
    /// already is never that: this machine's clock may have been set since.
    pub fn is_far_ahead(&self, order: &Order, now_ms: u64) -> bool {
        let known = self.journal.order.as_ref();
        let is_known = known.is_some_and(|known| (&known.id, known.made_at_ms) == (&order.id, order.made_at_ms));
        !is_known && order.is_ahead_of(now_ms)
    }

    /// These images are no longer in the engine: whoever brings one again, it is theirs.
    pub fn forget_images(&mut self, gone: &[Brought]) {
        self.journal.images.retain(|image| !gone.contains(image));
        self.is_unsaved |= !gone.is_empty();
    }

    /// The journal could not be written.
    pub fn unsaved(&mut self) {
        self.is_unsaved = true;
    }

    /// One turn.
    pub fn turn(&mut self, inputs: Inputs) -> Outputs {
        let before = self.journal.clone();
        self.heed_seen_key(inputs.key);
        if let Some(order) = &inputs.order {
            self.take_order(order, &inputs);
        }
        self.heed_key(inputs.key.as_ref());
        if let Some(Ok(outfit)) = &inputs.fetched {
            // Also when another order has just taken the place of the one that it is for.
            if let Some(brought) = &outfit.brought {
                self.journal.note_image(brought);
            }
            if self.journal.step == Some(Step::Fetching) {
                self.journal.new = Some(outfit.clone());
            }
        }
        let is_agent = self.journal.agent.as_ref().is_none_or(|agent| *agent == inputs.agent);
        if is_agent && inputs.up.is_some() {
            self.journal.agent_tries = 0;
        }
        let mut outputs = Outputs::default();
        let mut reason = self.journal.why.clone();
        if let Some(order) = self.journal.order.clone() {
            let since_ms = *self.step_since_ms.get_or_insert(inputs.elapsed_ms);
            let own = self.own(&inputs, inputs.elapsed_ms.saturating_sub(since_ms));
            let act = next(&order, &self.me, &inputs.peers, &own);
            self.carry_out(act, &order, &inputs, &mut outputs, &mut reason);
            self.give_back(&order, &inputs, &mut outputs);
        }
        self.conclude(&mut outputs, reason, &inputs);
        outputs.save = self.journal != before || self.is_unsaved;
        self.is_unsaved = false;
        outputs
    }

    /// Goes by the newest order; what is under way is brought to an end first.
    fn take_order(&mut self, order: &Order, inputs: &Inputs) {
        let journal = &mut self.journal;
        journal.seen_ms = journal.seen_ms.max(order.made_at_ms);
        if let Some(known) = &mut journal.order {
            if known.id == order.id {
                if order.is_newer_than(known) {
                    *known = order.clone();
                }
                return;
            }
            let is_under_way = journal.step.is_some_and(|step| step.is_busy() && step != Step::HandingOver);
            // When the other was made says nothing if another key has signed it. The time since which this key counts keeps
            // old ones away.
            let is_same_key = journal.key == inputs.key;
            if (is_same_key && !order.is_newer_than(known)) || (is_under_way && !order.force) {
                return;
            }
        }
        if !order.pods.contains(&self.me) {
            return;
        }
        // What was being tried is not what one goes back to.
        let old = if journal.is_busy() { journal.old.take() } else { None };
        journal.old =
            old.or_else(|| Some(Outfit { software: inputs.runs.clone(), agent: inputs.agent.clone(), brought: None }));
        if journal.installed.is_none() {
            journal.installed.clone_from(&inputs.installed);
        }
        (journal.order, journal.key) = (Some(order.clone()), inputs.key);
        (journal.step, journal.why, journal.trial_since_ms, journal.new) = (None, None, None, None);
        self.step_since_ms = Some(inputs.elapsed_ms);
    }

    /// What was seen under another key bounds nothing under this one.
    fn heed_seen_key(&mut self, key: Option<OrderPublicKey>) {
        let journal = &mut self.journal;
        if was_replaced(journal.seen_key().as_ref(), key.as_ref()) {
            journal.seen_ms = 0;
        }
        journal.seen_key = key.or(journal.seen_key);
    }

    /// An order that is under way and that a key has signed which was replaced since, perhaps as somebody had stolen it,
    /// is called off: this pod goes back, and so the others do.
    fn heed_key(&mut self, key: Option<&OrderPublicKey>) {
        let journal = &mut self.journal;
        let is_over = matches!(journal.step, Some(Step::Done | Step::RolledBack));
        let was_replaced = was_replaced(journal.key.as_ref(), key);
        if let Some(order) = journal.order.as_mut().filter(|_| was_replaced && !is_over) {
            order.state = OrderState::Stopped;
        }
    }

    fn own(&self, inputs: &Inputs, step_ms: u64) -> Own {
        let journal = &self.journal;
        let is_on_way_back = matches!(journal.step, Some(Step::RollingBack | Step::RolledBack));
        let is_back = |is_old: bool, is_new: bool| match (is_old, is_new) {
            // The same software was ordered that was there.
            (true, true) => Some(if is_on_way_back { Side::Old } else { Side::New }),
            (true, false) => Some(Side::Old),
            (false, true) => Some(Side::New),
            (false, false) => None,
        };
        let (old, new) = (journal.old.as_ref(), journal.new.as_ref());
        let is_new = new.is_some_and(|new| new.software == journal.software);
        // Where nothing was ever set, what runs is the old one.
        let is_old = !is_new || old.is_some_and(|old| old.software == journal.software);
        let side = is_back(is_old, is_new);
        let has = |outfit: Option<&Outfit>| outfit.is_some_and(|outfit| outfit.agent == inputs.agent);
        let is_given_up = |outfit: Option<&Outfit>| {
            let wanted = outfit.map(|outfit| &outfit.agent);
            journal.agent_tries > MAX_AGENT_TRIES && wanted == journal.agent.as_ref() && !has(outfit)
        };
        // On the way back any agent will do that works: this one does.
        let agent = if is_on_way_back && is_given_up(old) { Some(Side::Old) } else { is_back(has(old), has(new)) };
        Own {
            step: journal.step,
            step_ms,
            trial_ms: journal.trial_since_ms.map_or(0, |since_ms| inputs.now_ms.saturating_sub(since_ms)),
            why: journal.why.clone(),
            has_software: new.is_some(),
            is_master: inputs.is_master,
            up: side.filter(|_| inputs.up.as_ref() == Some(&journal.software)),
            agent,
            // Of software that was there before, what ended before counts for nothing.
            crashes: if is_new && !is_old { inputs.ends } else { 0 },
            is_caught_up: inputs.is_caught_up,
            trouble: inputs.trouble.clone(),
            fault: match &inputs.fetched {
                Some(Err(FetchError::Fault(why))) if journal.step == Some(Step::Fetching) => Some(why.clone()),
                _ => (!is_on_way_back && is_given_up(new))
                    .then(|| "the new agent ended at once each time that it was begun".to_owned()),
            },
        }
    }

    fn carry_out(
        &mut self,
        act: Act,
        order: &Order,
        inputs: &Inputs,
        outputs: &mut Outputs,
        reason: &mut Option<String>,
    ) {
        let journal = &mut self.journal;
        match act {
            Act::Rest => {}
            Act::Wait(why) => {
                *reason = why.or_else(|| reason.take());
                outputs.asks_links = matches!(journal.step, Some(Step::CatchingUp | Step::RollingBack));
                // While an order is called off nothing is fetched: that time doesn't make the software late.
                if journal.step == Some(Step::Fetching) {
                    self.step_since_ms = Some(inputs.elapsed_ms);
                }
            }
            Act::Fetch => {
                outputs.fetch = Some(order.clone());
                *reason = inputs.trouble.clone();
            }
            Act::Enter(step, why) => {
                outputs.log = Some(log_line(order, step, why.as_deref()));
                if matches!(step, Step::RollingBack | Step::RolledBack) {
                    journal.why.clone_from(&why);
                }
                match step {
                    Step::Replacing => (journal.trial_since_ms, journal.agent_tries) = (Some(inputs.now_ms), 0),
                    Step::RolledBack => journal.agent_tries = 0,
                    _ => {}
                }
                // A pod that had not begun has nothing to go back to.
                if step == Step::RolledBack && journal.step != Some(Step::Fetching) {
                    journal.agent = Some(inputs.agent.clone());
                }
                if step == Step::Done {
                    outputs.tidy = Some(journal.old.iter().chain(&journal.new).flat_map(files).collect());
                }
                journal.step = Some(step);
                self.step_since_ms = Some(inputs.elapsed_ms);
                *reason = why;
            }
            Act::Programs(side) => {
                if let Some(outfit) = outfit(journal, side) {
                    journal.software = outfit.software;
                }
                *reason = journal.why.clone().or_else(|| inputs.trouble.clone());
            }
            Act::Agent(side) => {
                if let Some(outfit) = outfit(journal, side)
                    && outfit.agent != inputs.agent
                {
                    outputs.log = Some(format!("the agent goes on as {}", outfit.agent.display()));
                    if journal.agent.as_ref() != Some(&outfit.agent) {
                        (journal.agent, journal.agent_tries) = (Some(outfit.agent), 0);
                    }
                    outputs.begin_anew = true;
                }
            }
        }
    }

    /// Once an order has failed or was called off, and all pods run what they ran before, nobody needs its software.
    fn give_back(&mut self, order: &Order, inputs: &Inputs, outputs: &mut Outputs) {
        // In `Fetching`, when the software arrived just as it failed elsewhere.
        let is_before = matches!(self.journal.step, Some(Step::Fetching | Step::Ready | Step::RolledBack));
        let own = self.progress();
        let is_over = order.is_settled(|pod| {
            if *pod == self.me {
                return Some(own.clone());
            }
            let peer = inputs.peers.iter().find(|peer| peer.id == *pod);
            peer.filter(|peer| !peer.is_removed).map(|peer| peer.progress.clone())
        });
        let journal = &mut self.journal;
        if !is_before || !is_over || journal.new.is_none() {
            return;
        }
        // The agent may be the new one still, where the old one could not be begun.
        let agents = journal.agent.iter().chain([&inputs.agent]).cloned();
        let program = journal.software.program.clone();
        outputs.tidy = Some(journal.old.iter().flat_map(files).chain(agents).chain(program).collect());
        journal.new = None;
    }

    fn conclude(&self, outputs: &mut Outputs, reason: Option<String>, inputs: &Inputs) {
        let journal = &self.journal;
        outputs.software = journal.software.clone();
        outputs.reluctant = journal.is_busy();
        outputs.asks_links |= matches!(journal.step, Some(Step::CatchingUp | Step::RollingBack)) && inputs.up.is_some();
        outputs.progress = self.progress().map(|progress| Progress { reason: reason.map(short), ..progress });
    }
}

/// Whether two keys are known and differ.
fn was_replaced(before: Option<&OrderPublicKey>, now: Option<&OrderPublicKey>) -> bool {
    before.is_some() && now.is_some() && before != now
}

fn outfit(journal: &Journal, side: Side) -> Option<Outfit> {
    match side {
        Side::Old => journal.old.clone(),
        Side::New => journal.new.clone(),
    }
}

fn files(outfit: &Outfit) -> Vec<PathBuf> {
    let program = outfit.software.program.as_deref().map(Path::to_path_buf);
    program.into_iter().chain([outfit.agent.clone()]).collect()
}

fn log_line(order: &Order, step: Step, why: Option<&str>) -> String {
    let what = order.image.as_ref().or(order.software.as_ref()).map_or("", String::as_str);
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    format!("order {} ({what}): {step}{why}", order.id)
}

/// Gossip carries this: it is for people, and has to fit.
pub fn short(mut text: String) -> String {
    /// A sentence with a cause.
    const MAX_BYTES: usize = 300;
    if text.len() > MAX_BYTES {
        let end = (0..=MAX_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests;
