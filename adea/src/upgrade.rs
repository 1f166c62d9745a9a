//! Changing the software of this pod when the ring orders it: `adea_ring::upgrade` says what to do next, here it is done.
//!
//! What flows through: the order comes with the ring's news and is checked against the [key](trusted) in the machine's ring
//! file; the pure [`core`] works out a turn from it, from what the other pods say and from how the programs are; this loop
//! carries it out: [fetches](depot) the software, tells the agent which to run, and has the agent end and [begin anew](successor) as the
//! new program.
//!
//! What always holds: the [journal] is on disk before anything is done that rests on it, so an agent that dies at any
//! point goes on where it was; nothing is run that was not signed for by somebody with that key, and no order that is
//! older than one that was seen.

pub mod core;
pub mod depot;
mod fetching;
pub mod journal;
mod rean;
mod refused;
mod retry;
pub mod successor;
mod trusted;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use adea_ring::RingSecret;
use adea_ring::config::PodState;
use adea_ring::report::Role;
use adea_ring::upgrade::{Order, Peer};
use adea_ring::{Identity, PodId, Signer};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::doing::Doing;
use crate::levers::Levers;
use crate::plan::Program;
use crate::process::this_program;
use crate::ring::turn::News;
use crate::ring::unix_ms;
use crate::software::Software;
use crate::stop::End;
use crate::upgrade::core::{Core, Inputs, Outputs};
use crate::upgrade::depot::{Depot, FetchError};
use crate::upgrade::fetching::Fetching;
use crate::upgrade::journal::{Installed, Journal, JournalError, Outfit};
use crate::upgrade::rean::Rean;
use crate::upgrade::refused::Refused;
use crate::upgrade::trusted::Trusted;

/// How often to look: what an upgrade waits for takes seconds.
const LOOK: Duration = Duration::from_millis(250);
/// How often rean is asked for its links while it catches up.
const LINKS_LOOK: Duration = Duration::from_secs(1);

/// Why upgrades are not followed.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// What the pod remembers can't be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Linux does not tell which file the running program is.
    #[error("can't tell which file this program is: {0}")]
    ThisProgram(#[source] io::Error),
}

/// Follows the ring's orders for as long as it is awaited.
pub async fn run(levers: Levers, me: PodId, secret: RingSecret, journal: Journal) {
    match Upgrader::new(levers, me, secret, journal) {
        Ok(mut upgrader) => upgrader.run().await,
        Err(err) => tracing::error!("this pod takes part in no upgrades: {err}"),
    }
}

struct Upgrader {
    levers: Levers,
    trusted: Trusted,
    core: Core,
    depot: Depot,
    rean: Rean,
    /// This program's file.
    agent: PathBuf,
    began: Instant,
    fetching: Fetching,
    /// What the links said last.
    links: Option<Links>,
    trouble: Option<String>,
    /// The order that is not followed, and why.
    refused: Option<Refused>,
}

/// What the links of rean said.
struct Links {
    are_live: bool,
    at: Instant,
    /// The process of that rean: another one's links are others.
    pid: Option<u32>,
}

impl Upgrader {
    fn new(levers: Levers, me: PodId, secret: RingSecret, journal: Journal) -> Result<Self, UpgradeError> {
        let agent = this_program().and_then(|path| path.canonicalize()).map_err(UpgradeError::ThisProgram)?;
        let identity = Signer::new(&secret).headers(&Identity::system());
        let rean = Rean::new(levers.doing.clone(), identity);
        let depot = Depot::new(&levers.folder, levers.engine.clone());
        let trusted = Trusted::new(levers.ring_file.clone());
        Ok(Self {
            levers,
            trusted,
            core: Core::new(me, journal),
            fetching: Fetching::new(depot.clone(), rean.clone()),
            depot,
            rean,
            agent,
            began: Instant::now(),
            links: None,
            trouble: None,
            refused: None,
        })
    }

    async fn run(&mut self) {
        // The ring hears first where the pod stands, and then that it is there.
        self.levers.board.set_upgrade(self.core.progress());
        self.levers.board.set_reluctant(self.core.journal().is_busy());
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.turn().await;
        }
    }

    async fn turn(&mut self) {
        let news = self.levers.news.borrow().clone();
        let doing = self.levers.doing.borrow().clone();
        self.trusted.refresh();
        self.levers.board.set_order_trust(self.trusted.trust.clone());
        let order = self.order(&news);
        let fetched = self.fetched().await;
        let outputs = self.core.turn(Inputs {
            now_ms: unix_ms(),
            elapsed_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            order,
            key: self.trusted.trust.as_ref().map(|trust| trust.key),
            peers: peers(&news),
            is_master: matches!(news.role, Role::Master(_)),
            up: doing.up.then(|| doing.software.clone()),
            ends: if doing.software == *self.levers.software.borrow() { doing.ends } else { 0 },
            runs: self.runs(&doing),
            agent: self.agent.clone(),
            installed: self.installed(),
            is_caught_up: doing.up
                && self.links.as_ref().is_some_and(|links| links.are_live && links.pid == pid(&doing)),
            fetched,
            trouble: self.trouble.clone().or_else(|| trouble(&doing)),
        });
        self.carry_out(outputs, &news, &doing).await;
    }

    async fn carry_out(&mut self, outputs: Outputs, news: &News, doing: &Doing) {
        if outputs.save {
            let (journal, folder) = (self.core.journal().clone(), self.levers.folder.clone());
            let saved = tokio::task::spawn_blocking(move || journal.save(&folder)).await;
            if let Err(err) = saved.map_err(io::Error::other).flatten() {
                // Said so, and tried again at the next turn: nothing may rest on what is not kept.
                self.trouble = Some(format!("can't write {}: {err}", Journal::path(&self.levers.folder).display()));
                self.core.unsaved();
                return;
            }
            self.trouble = None;
        }
        if let Some(line) = &outputs.log {
            tracing::info!("upgrade: {line}");
        }
        self.levers.board.set_reluctant(outputs.reluctant);
        let refusal = self.refused.as_ref().and_then(|refused| refused.progress(self.core.journal()));
        self.levers.board.set_upgrade(refusal.or(outputs.progress));
        let software = outputs.software;
        self.levers.software.send_if_modified(|now| {
            let changes = *now != software;
            if changes {
                *now = software;
            }
            changes
        });
        self.fetching.want(outputs.fetch);
        if let Some(kept) = outputs.tidy {
            let depot = self.depot.clone();
            // What is left over is in nobody's way.
            let _ = tokio::task::spawn_blocking(move || depot.tidy(&kept)).await;
            let gone = self.depot.tidy_images(&self.core.journal().images, &self.images()).await;
            self.core.forget_images(&gone);
        }
        self.look_at_links(outputs.asks_links && doing.up, news, doing).await;
        if outputs.begin_anew {
            // The channel has room for one wish; another end that is under way is as good.
            let _ = self.levers.end.try_send(End::LetGo);
        }
    }

    /// Asks rean whether it has what the others have.
    async fn look_at_links(&mut self, wanted: bool, news: &News, doing: &Doing) {
        if !wanted {
            self.links = None;
            return;
        }
        let pid = pid(doing);
        if self.links.as_ref().is_some_and(|links| links.pid == pid && links.at.elapsed() < LINKS_LOOK) {
            return;
        }
        let me = self.core.me();
        let live: Vec<&PodId> = news
            .members
            .iter()
            .map(|known| &known.member)
            .filter(|m| m.is_live() && m.id != *me)
            .map(|m| &m.id)
            .collect();
        let are_live = live.is_empty() || self.rean.are_links_live(&live).await.unwrap_or(false);
        self.links = Some(Links { are_live, at: Instant::now(), pid });
    }

    async fn fetched(&mut self) -> Option<Result<Outfit, FetchError>> {
        let done = self.fetching.done().await?;
        self.trouble = done.as_ref().err().map(FetchError::to_string);
        Some(done)
    }

    /// The order in the ring, if it is one that counts.
    fn order(&mut self, news: &News) -> Option<Order> {
        let read = |doc| refused::read(doc, self.trusted.trust.as_ref(), self.trusted.since_ms, unix_ms(), &self.core);
        let (order, refused) = match news.upgrade.as_ref().map(read) {
            Some(Err(refused)) => (None, Some(refused)),
            Some(Ok(order)) => (Some(order), None),
            None => (None, None),
        };
        if let Some(refused) = &refused
            && self.refused.as_ref() != Some(refused)
        {
            tracing::error!("the order to upgrade is not followed: {}", refused.reason);
        }
        self.refused = refused;
        order
    }

    fn installed(&self) -> Option<Installed> {
        if self.core.journal().installed.is_some() { None } else { Installed::of(&self.agent).ok() }
    }

    /// The images that the pod runs, or may go back to.
    fn images(&self) -> BTreeSet<String> {
        let journal = self.core.journal();
        let outfits = journal.old.iter().chain(&journal.new).filter_map(|outfit| outfit.software.image.clone());
        outfits.chain(journal.software.image.clone()).chain(self.levers.image.clone()).collect()
    }

    /// What the programs are started from now.
    fn runs(&self, doing: &Doing) -> Software {
        let wanted = self.levers.software.borrow().clone();
        if self.levers.engine.is_some() {
            return Software { image: wanted.image.or_else(|| self.levers.image.clone()), program: None };
        }
        let running =
            doing.state.programs.get(&Program::Rean).and_then(|rean| rean.software.as_ref()).map(PathBuf::from);
        Software { image: None, program: Some(wanted.program.or(running).unwrap_or_else(|| self.agent.clone())) }
    }
}

fn peers(news: &News) -> Vec<Peer> {
    let states = news.config.as_ref().map(|config| &config.pods);
    news.members
        .iter()
        .map(|known| Peer {
            id: known.member.id.clone(),
            is_live: known.member.is_live() && known.said.healthy,
            is_removed: states.and_then(|states| states.get(&known.member.id)) == Some(&PodState::Removed),
            progress: known.said.upgrade.clone(),
        })
        .collect()
}

/// What keeps the programs from being up, for people.
fn trouble(doing: &Doing) -> Option<String> {
    if let Some(trouble) = &doing.state.trouble {
        return Some(trouble.clone());
    }
    let (program, state) = doing.state.programs.iter().find(|(_, state)| !state.healthy)?;
    let end = state.last_end.as_ref().filter(|_| state.pid.is_none());
    Some(end.map_or_else(|| format!("{program} does not answer"), |end| format!("{program} ended: {end}")))
}

/// The process of rean.
fn pid(doing: &Doing) -> Option<u32> {
    doing.state.programs.get(&Program::Rean)?.pid
}
