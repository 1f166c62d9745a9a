//! The agent's part in the ring: it gossips, works out who takes the writes, and tells rean.
//!
//! What flows through: gossip says what the other pods say; rean says what its store has ([`rean`]); from both the pure
//! [`core`] works out, several times a second, what to keep on disk ([`kept`]), what to tell rean and what to say to
//! the others. Here is only the shell: sockets, files, clocks, and the order in which things are done.
//!
//! What always holds: nothing is told or said before what it rests on is on disk (that a master steps down rests on
//! nothing); gossip starts only after rean has answered for the first time, as rean keeps the keys and the settings of
//! gossip.

pub mod core;
mod hearing;
pub mod kept;
mod rean;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
pub mod turn;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use adea_ring::election::{Decision, Hold, Waiting};
use adea_ring::gossip::{Gossip, GossipConfig, GossipError, Heard, Keyring, KeyringDoc, KeyringError};
use adea_ring::report::{Dropped, Facts, Known, RingState, Role};
use adea_ring::{PodId, RingConfig, RingSecret, software};
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use crate::backoff::Backoff;
use crate::config::RingSection;
use crate::doing::Doing;
use crate::ring::core::{Core, PAUSE_MS};
use crate::ring::kept::{Kept, KeptError};
use crate::ring::rean::Teller;
use crate::ring::turn::{Answer, Aside, Inputs, Me, News, Outputs, Row};

/// How often rean is told, and asked, when nothing has changed.
const TELL_PERIOD: Duration = Duration::from_millis(250);
/// The shortest time between two turns: news come one by one, and a turn may write to disk.
const TURN_GAP: Duration = Duration::from_millis(10);
/// How often to say what this pod waits for.
const REMINDER: Duration = Duration::from_secs(10);
/// How often to look at the machine's load, which is a mean over a minute.
const LOAD_LOOK: Duration = Duration::from_secs(5);
/// Remembered addresses that are tried: one that answers is enough.
const MAX_SEEDS: usize = 100;
/// How long a pod may take to leave before its programs are stopped anyway.
pub const LEAVE_DEADLINE: Duration = Duration::from_secs(10);

/// What the ring's loop works with.
pub struct Setup {
    /// This pod.
    pub pod_id: PodId,
    /// The ring's secret.
    pub secret: RingSecret,
    /// Its part of the configuration.
    pub section: RingSection,
    /// How the programs are: where rean answers.
    pub doing: watch::Receiver<Doing>,
    /// `ring-state.json`.
    pub file: PathBuf,
    /// What the agent's other parts say of this pod.
    pub aside: watch::Receiver<Aside>,
    /// What they are told.
    pub news: watch::Sender<News>,
}

/// Why the ring's loop has to begin anew.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// What the pod remembers can't be used.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// What the pod has to remember can't be written.
    #[error("can't write {path}: {source}")]
    Keep {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The address that others are to reach this pod at leads nowhere.
    #[error("configuration key `ring.advertise`: can't find {0}")]
    Advertise(String),
    /// Gossip does not start.
    #[error(transparent)]
    Gossip(#[from] GossipError),
    /// Gossip has ended by itself.
    #[error("gossip has ended: {0}")]
    Ended(String),
}

/// Why a pod is in its ring no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to leave.
    Left,
    /// It was removed by the ring's configuration, has handed over, and is not to come back with its data.
    Removed,
}

/// A signal to leave the ring.
type Stop = Pin<Box<oneshot::Receiver<()>>>;

/// Takes part in the ring until told to leave, or removed from it, then leaves it: hands over, if others are there, and
/// says good-bye.
pub async fn run(setup: Setup, leave: oneshot::Receiver<()>) -> Ended {
    let mut stop: Stop = Box::pin(leave);
    let mut backoff = Backoff::default();
    loop {
        let began = Instant::now();
        match take_part(&setup, &mut stop).await {
            Ok(ended) => return ended,
            Err(err) => tracing::error!("the ring's loop begins anew: {err}"),
        }
        let ran_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tokio::select! {
            () = sleep(Duration::from_millis(backoff.after_end(ran_ms))) => {}
            _ = &mut stop => return Ended::Left,
        }
    }
}

/// One run of the loop; it ends well only when the pod has left.
async fn take_part(setup: &Setup, stop: &mut Stop) -> Result<Ended, RingError> {
    let mut kept = Kept::load(&setup.file)?;
    // Others go by the greatest; a clock that was set back must not hide this start from them.
    kept.generation = unix_ms().max(kept.generation + 1);
    keep(setup, &kept).await?;
    let me = Me {
        id: setup.pod_id.clone(),
        address: setup.section.address(),
        url: setup.section.url.clone(),
        generation: kept.generation,
        since_ms: unix_ms(),
        has_seeds: !setup.section.seeds.is_empty(),
    };
    let seeds = seeds(&setup.section, &kept);
    let mut teller = Teller::start(setup.doing.clone(), &setup.secret);
    let core = Core::new(me, kept);
    let mut first = core.before_anything();
    for known in &mut first.members {
        // Whoever reads this pod's status is not to take an upgrade for given up meanwhile.
        known.said.upgrade.clone_from(&setup.aside.borrow().upgrade);
    }
    let Some(facts) = first_facts(&mut teller, first, stop).await else {
        return Ok(Ended::Left);
    };
    let mut keys = Keys::new(&setup.secret);
    let keyring = keys.changed(facts.keyring.as_ref()).unwrap_or_else(|| Keyring::base(&setup.secret));
    let config = gossip_config(setup, core.generation(), seeds, &facts.config, keyring).await?;
    let gossip = Gossip::start(config).await?;
    tracing::info!("in the ring as {}, at {}", setup.pod_id, setup.section.address());
    let first = Answer::Facts(facts);
    Loop { setup, core, gossip, teller, keys, ears: Ears::default(), log: Log::default(), owed: None, disk_works: true }
        .run(first, stop)
        .await
}

/// Waits for rean; none when told to leave before it is there.
async fn first_facts(teller: &mut Teller, state: RingState, stop: &mut Stop) -> Option<Box<Facts>> {
    const POLL: Duration = Duration::from_millis(50);
    loop {
        teller.tell(state.clone()).await;
        tokio::select! {
            answer = teller.answer() => if let Answer::Facts(facts) = answer {
                return Some(facts);
            },
            _ = &mut *stop => return None,
        }
        tokio::select! {
            () = sleep(POLL) => {}
            _ = &mut *stop => return None,
        }
    }
}

async fn gossip_config(
    setup: &Setup,
    generation: u64,
    seeds: Vec<String>,
    config: &RingConfig,
    keyring: Keyring,
) -> Result<GossipConfig, RingError> {
    let address = setup.section.address();
    let unknown = || RingError::Advertise(address.clone());
    let mut found = tokio::net::lookup_host(&address).await.map_err(|_| unknown())?;
    let is_v4 = setup.section.listen.is_ipv4();
    let advertise = found.find(|found| found.is_ipv4() == is_v4).ok_or_else(unknown)?;
    let ring_id: String = setup.secret.key("ring id")[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(GossipConfig {
        me: setup.pod_id.clone(),
        generation,
        ring_id,
        listen: setup.section.listen,
        advertise,
        seeds,
        interval_ms: config.gossip.interval_ms,
        phi: config.gossip.phi,
        keyring,
    })
}

/// The addresses to try: those that were given, then those that are remembered, with the ones that had left last.
fn seeds(section: &RingSection, kept: &Kept) -> Vec<String> {
    let mut remembered: Vec<_> = kept.members.iter().collect();
    remembered.sort_by_key(|known| known.left);
    let remembered = remembered.into_iter().map(|known| &known.address).filter(|address| is_host_port(address));
    let mut seeds: Vec<String> = Vec::new();
    for address in section.seeds.iter().chain(remembered.take(MAX_SEEDS)) {
        if *address != section.address() && !seeds.contains(address) {
            seeds.push(address.clone());
        }
    }
    seeds
}

/// Whether a text is HOST:PORT.
pub(crate) fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_port = port.parse::<u16>().is_ok_and(|port| port != 0);
    is_port && !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b'@')
}

async fn keep(setup: &Setup, kept: &Kept) -> Result<(), RingError> {
    let (kept, path) = (kept.clone(), setup.file.clone());
    let saved = tokio::task::spawn_blocking(move || kept.save(&path)).await.map_err(io::Error::other);
    saved.flatten().map_err(|source| RingError::Keep { path: setup.file.clone(), source })
}

/// Milliseconds since 1970 by this machine's clock. One before 1970 counts as 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The loop's tools.
struct Loop<'a> {
    setup: &'a Setup,
    core: Core,
    gossip: Gossip,
    teller: Teller,
    keys: Keys<'a>,
    ears: Ears,
    log: Log,
    /// What is to be kept and isn't on disk yet.
    owed: Option<Kept>,
    disk_works: bool,
}

impl Loop<'_> {
    async fn run(mut self, first: Answer, stop: &mut Stop) -> Result<Ended, RingError> {
        let began = Instant::now();
        let mut tick = interval(TELL_PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut answer, mut leaving, mut asked, mut told) = (Some(first), false, false, None::<Instant>);
        let (mut load, mut looked, mut news) = (load(), began, false);
        loop {
            let turned = Instant::now();
            if turned.duration_since(looked) > LOAD_LOOK {
                (load, looked) = (self::load(), turned);
            }
            let counters = self.gossip.counters();
            let inputs = Inputs {
                elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                physical_ms: unix_ms(),
                heard: self.ears.rows(self.gossip.heard().await),
                answer: answer.take(),
                load,
                leaving,
                aside: self.setup.aside.borrow().clone(),
                disk_works: self.disk_works,
                dropped: Dropped {
                    garbage: counters.garbage,
                    foreign: counters.foreign,
                    replayed: counters.replayed,
                    malformed: counters.malformed,
                },
            };
            let outputs = self.core.step(inputs);
            self.log.note(&outputs);
            self.tell_news(&outputs);
            if let Some(tell) = step_back(&outputs)
                && !asked
            {
                self.teller.tell(tell).await;
                (asked, told) = (true, Some(Instant::now()));
            }
            let (tell, say) = self.carry_out(&outputs).await;
            let facts = software::say(&say, &["said"]).unwrap_or_default();
            if outputs.may_go {
                // Whoever has not heard it finds out that this pod is gone.
                self.gossip.leave(&facts).await?;
                return Ok(if outputs.removed { Ended::Removed } else { Ended::Left });
            }
            self.gossip.say(&facts).await?;
            news |= outputs.tell_now;
            // The process was not running: the next turn notices, and this one may have come to what is no longer so.
            let is_stale = turned.elapsed() > Duration::from_millis(PAUSE_MS);
            if let Some(tell) = tell
                && !(is_stale && matches!(tell.role, Role::Master(_)))
                && !asked
                && (news || told.is_none_or(|told| told.elapsed() >= TELL_PERIOD))
            {
                self.teller.tell(tell).await;
                (asked, news, told) = (true, false, Some(Instant::now()));
            }
            tokio::select! {
                _ = tick.tick() => {}
                () = self.gossip.changed() => {}
                heard = self.teller.answer(), if asked => {
                    self.take_settings(&heard);
                    (answer, asked) = (Some(heard), false);
                }
                _ = &mut *stop, if !leaving => leaving = true,
            }
            if let Some(why) = self.gossip.failure() {
                return Err(RingError::Ended(why));
            }
            sleep_until(turned + TURN_GAP).await;
        }
    }

    /// Keeps what is to be kept; gives what may be told and said after that.
    async fn carry_out(&mut self, outputs: &Outputs) -> (Option<RingState>, Known) {
        if let Some(kept) = &outputs.keep {
            self.owed = Some(kept.clone());
        }
        let mut say = outputs.say.clone();
        if let Some(kept) = &self.owed {
            match keep(self.setup, kept).await {
                Ok(()) => (self.owed, self.disk_works) = (None, true),
                Err(err) => {
                    if self.disk_works {
                        tracing::error!("this pod takes no writes and follows no master: {err}");
                    }
                    self.disk_works = false;
                    // Neither an epoch nor a stamp may be given away; that it steps back may be.
                    say.member.stamp = None;
                    let harmless = outputs.tell.role == Role::Waiting;
                    return (harmless.then(|| outputs.tell.clone()), say);
                }
            }
        }
        (Some(outputs.tell.clone()), say)
    }

    /// Tells the agent's other parts what has changed.
    fn tell_news(&self, outputs: &Outputs) {
        let facts = self.core.facts();
        let news = News {
            config: facts.map(|facts| facts.config.clone()),
            upgrade: facts.and_then(|facts| facts.upgrade.clone()),
            members: outputs.tell.members.clone(),
            role: facts.map(|facts| facts.role.clone()).unwrap_or_default(),
            state: self.core.pod_state(),
        };
        self.setup.news.send_if_modified(|told| {
            let is_news = *told != news;
            *told = news;
            is_news
        });
    }

    /// What of rean's answer is gossip's business.
    fn take_settings(&mut self, answer: &Answer) {
        if let Answer::Facts(facts) = answer {
            if let Some(keyring) = self.keys.changed(facts.keyring.as_ref()) {
                tracing::info!("the keys of gossip have changed; it seals with {} now", keyring.primary());
                self.gossip.set_keyring(keyring);
            }
            if facts.config.gossip != self.core.config().gossip {
                tracing::info!("the settings of gossip have changed: they count from this agent's next start on");
            }
        }
    }
}

/// What a master that steps down is told at once. It rests on nothing that has to be on disk, and until it is heard there
/// may be two masters; the stamp, which has to be, is left out.
fn step_back(outputs: &Outputs) -> Option<RingState> {
    let steps_down = matches!(outputs.decision, Decision::StepDown(_)) && outputs.tell.role == Role::Waiting;
    let mut tell = steps_down.then(|| outputs.tell.clone())?;
    let own = tell.members.iter_mut().filter(|known| known.member.id == tell.me);
    own.for_each(|known| known.member.stamp = None);
    Some(tell)
}

/// The keyring in force.
struct Keys<'a> {
    secret: &'a RingSecret,
    doc: Option<Value>,
}

impl<'a> Keys<'a> {
    fn new(secret: &'a RingSecret) -> Self {
        Self { secret, doc: None }
    }

    /// The keyring of a document, if it is another than before. One that can't be used changes nothing.
    fn changed(&mut self, doc: Option<&Value>) -> Option<Keyring> {
        if self.doc.as_ref() == doc {
            return None;
        }
        self.doc = doc.cloned();
        match doc.map(|doc| read_keyring(self.secret, doc)) {
            None => Some(Keyring::base(self.secret)),
            Some(Ok(keyring)) => Some(keyring),
            Some(Err(err)) => {
                tracing::error!("the document `_ring/keyring` can't be used: {err}; the keys stay as they are");
                None
            }
        }
    }
}

/// Why a document is no keyring.
#[derive(Debug, thiserror::Error)]
enum KeyringDocError {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Keys(#[from] KeyringError),
}

fn read_keyring(secret: &RingSecret, doc: &Value) -> Result<Keyring, KeyringDocError> {
    let mut doc = doc.clone();
    if let Some(members) = doc.as_object_mut() {
        // Those that begin with `_` are the database's own.
        members.retain(|name, _| !name.starts_with('_'));
    }
    Ok(Keyring::of_doc(secret, &serde_json::from_value::<KeyringDoc>(doc)?)?)
}

/// Reads what pods say, each version of it once.
#[derive(Default)]
struct Ears {
    read: HashMap<PodId, (u64, u64, Option<Known>)>,
}

impl Ears {
    fn rows(&mut self, heard: Vec<Heard>) -> Vec<Row> {
        heard.into_iter().map(|heard| self.row(heard)).collect()
    }

    fn row(&mut self, heard: Heard) -> Row {
        let Heard { id, generation, alive, address, version, facts } = heard;
        let read = self.read.get(&id).filter(|read| (read.0, read.1) == (generation, version));
        let known = match read {
            Some((_, _, known)) => known.clone(),
            None => {
                let known: Option<Known> = match &facts {
                    Value::Null => None,
                    facts => serde_json::from_value(facts.clone())
                        .inspect_err(|err| tracing::warn!("what {id} says makes no sense: {err}"))
                        .ok(),
                };
                self.read.insert(id.clone(), (generation, version, known.clone()));
                known
            }
        };
        Row { id, address: address.to_string(), generation, alive, version, known }
    }
}

/// Says what has changed, and what the pod waits for.
#[derive(Default)]
struct Log {
    last: Option<String>,
    reminded: Option<Instant>,
}

impl Log {
    fn note(&mut self, outputs: &Outputs) {
        let text = if outputs.removed {
            Some("this pod was removed from the ring: it hands over, and leaves".to_owned())
        } else if outputs.doubled {
            Some("another process takes itself for this pod: stop one of them; this one takes no writes".to_owned())
        } else if outputs.lonely {
            Some("this pod is new and has not met any other of its ring: it waits for one of `ring.seeds`".to_owned())
        } else {
            turn::describe(&outputs.decision)
        };
        let Some(text) = text else { return };
        let settles = matches!(outputs.decision, Decision::Wait(Waiting::ForOthers(Hold::Settling)));
        let due = self.reminded.is_none_or(|last| last.elapsed() >= REMINDER);
        if self.last.as_ref() != Some(&text) || (due && !settles) {
            tracing::info!("{text}");
            (self.last, self.reminded) = (Some(text), Some(Instant::now()));
        }
    }
}

/// Runnable processes for each core, over the last minute (proc(5)); 0 where that can't be known.
fn load() -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0.0);
    load / cores as f64
}
