//! How the pods of a ring find one another, and tell one another how they are.
//!
//! [`Gossip`] is the shell around chitchat (Scuttlebutt reconciliation and phi-accrual failure detection): what a pod
//! says of itself reaches all others in a few rounds, and each judges for itself who is alive. Its datagrams are sealed
//! ([`keyring`]); what is not of this ring, was changed or was seen before is counted and dropped before chitchat sees it.
//! Any one address of the ring is enough to join it.
//!
//! chitchat sends a digest of all pods in one message and can't count beyond 64 KiB of it: rings of about a thousand
//! pods.

mod counters;
pub mod keyring;
mod memory;
mod parts;
mod replay;
mod seal;
mod seeds;
mod transport;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chitchat::{Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, ListenerHandle};
use rand::seq::IteratorRandom;
use serde_json::Value;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, timeout};

pub use self::counters::CountersSnapshot;
pub use self::keyring::{KeyId, Keyring, KeyringDoc, KeyringError, WrappedKey};
use self::memory::{FACTS_KEY, Memory};
use self::seeds::Seeds;
use self::transport::{SealedTransport, Shared};
use crate::PodId;

/// The largest facts of a pod, in bytes of JSON: they are sent to all others at each change.
pub const MAX_FACTS_BYTES: usize = 8 * 1024;

/// Peers that are told at once when what this pod says changes; they and the next rounds tell the others.
const TOLD_AT_ONCE: usize = 3;

/// How long a pod that leaves waits for its peers to hear so.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// Stopping waits for nobody; this is for a machine that is busy.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long chitchat keeps the dead; half of it they are in its digests. Each start of a pod counts, so that a pod which
/// crashes each second, with the longest of ids, still leaves room in them. This run remembers them on ([`Gossip::heard`]).
const DEAD_GRACE: Duration = Duration::from_secs(20 * 60);

/// Heartbeats whose intervals are averaged. chitchat adds five prior ones; see [`failure_detector`].
const HEARTBEATS_AVERAGED: usize = 2;

/// What chitchat is to take for the usual interval between heartbeats, in rounds.
const PRIOR_ROUNDS: f64 = 1.1;

/// Longer intervals, in rounds, don't enter the average: they were pauses.
const LONGEST_ROUNDS: u32 = 10;

/// So many rounds without a look at the others: this process was not running. A second pause within it starts it anew.
const PAUSE_ROUNDS: u32 = 4;

/// How a pod gossips.
#[derive(Debug, Clone)]
pub struct GossipConfig {
    /// This pod.
    pub me: PodId,
    /// Greater with each start of this pod; what is said under a smaller one, others ignore.
    pub generation: u64,
    /// The ring's id. Pods of rings with other ids are not heard even with the same keys.
    pub ring_id: String,
    /// The address to listen at; port 0 for any.
    pub listen: SocketAddr,
    /// Where others reach it; port 0 for the one that it listens at.
    pub advertise: SocketAddr,
    /// HOST:PORT of pods of the ring, of which one that answers is enough: those that were given, and those remembered.
    pub seeds: Vec<String>,
    /// Between two rounds, in milliseconds: 10 to 10,000; 150 by default ([`crate::config::GossipConfig`]).
    pub interval_ms: u64,
    /// A silence of about this many usual intervals is taken for death: 1 to 50; 8 by default.
    pub phi: f64,
    /// The keys of the ring.
    pub keyring: Keyring,
}

/// A pod as gossip knows it, by its newest start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Which pod.
    pub id: PodId,
    /// Grows with each start of it.
    pub generation: u64,
    /// Whether this pod's failure detector takes it for alive.
    pub alive: bool,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Grows within a generation with each change of its facts.
    pub version: u64,
    /// What it says; null when it was heard of and not yet heard.
    pub facts: Value,
}

/// Why gossip can't be started, or can't say something.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    /// A setting that can't be.
    #[error("gossip: {member} {reason}")]
    Config {
        /// Which one.
        member: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A seed that isn't HOST:PORT.
    #[error("gossip: seeds: {0:?} is not HOST:PORT")]
    Seed(String),
    /// The port is taken, or the address not this machine's.
    #[error("gossip: listen at {address} (UDP)")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// chitchat didn't start.
    #[error("gossip: start: {0}")]
    Start(String),
    /// The facts are too large.
    #[error("gossip: a pod's facts are at most {MAX_FACTS_BYTES} bytes, not {0}")]
    TooLarge(usize),
}

/// A pod's part in the gossip of its ring. Dropped, it stops, as if the pod had crashed.
pub struct Gossip {
    inner: Arc<Inner>,
    changes: watch::Receiver<u64>,
    _listener: ListenerHandle,
    /// Aborted when this is dropped.
    _tasks: JoinSet<()>,
}

struct Inner {
    me: ChitchatId,
    handle: ChitchatHandle,
    chitchat: Arc<tokio::sync::Mutex<Chitchat>>,
    shared: Arc<Shared>,
    seeds: Seeds,
    memory: Mutex<Memory>,
    interval: Duration,
    /// When peers were last told at once.
    told: Mutex<Option<Instant>>,
    failure: Mutex<Option<String>>,
}

impl Gossip {
    /// Starts to listen, and to try the seeds. With nobody there it waits for somebody to come.
    ///
    /// # Errors
    /// When a setting is wrong or the address can't be listened at.
    pub async fn start(config: GossipConfig) -> Result<Self, GossipError> {
        config.check()?;
        let seeds = Seeds::default();
        seeds.add(&config.seeds)?;
        let bind = |source| GossipError::Bind { address: config.listen, source };
        let udp = UdpSocket::bind(config.listen).await.map_err(bind)?;
        let mut address = config.advertise;
        if address.port() == 0 {
            address.set_port(udp.local_addr().map_err(bind)?.port());
        }
        let shared = Arc::new(Shared::new(config.keyring.clone()));
        let transport = SealedTransport::new(udp, shared.clone(), &config.me, config.generation);
        let me = ChitchatId::new(config.me.as_str(), config.generation, address);
        let handle = chitchat::spawn_chitchat(config.chitchat(me.clone()), Vec::new(), &transport)
            .await
            .map_err(|error| GossipError::Start(error.to_string()))?;
        let interval = Duration::from_millis(config.interval_ms);
        let inner = Arc::new(Inner {
            me,
            chitchat: handle.chitchat(),
            handle,
            shared,
            seeds,
            memory: Mutex::new(Memory::new(interval * PAUSE_ROUNDS)),
            interval,
            told: Mutex::new(None),
            failure: Mutex::new(None),
        });
        Ok(Self::run(inner).await)
    }

    async fn run(inner: Arc<Inner>) -> Self {
        let (changed, changes) = watch::channel(0);
        let on_key = changed.clone();
        let (listener, lives) = {
            let chitchat = inner.chitchat.lock().await;
            let listener = chitchat.subscribe_event(FACTS_KEY, move |_| on_key.send_modify(|count| *count += 1));
            (listener, chitchat.live_nodes_watcher())
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_lives(inner.clone(), lives, changed));
        tasks.spawn(look_around(inner.clone()));
        let resolver = inner.clone();
        tasks.spawn(async move { resolver.seeds.resolve(|| resolver.is_alone()).await });
        Self { inner, changes, _listener: listener, _tasks: tasks }
    }

    /// Where this pod tells others to reach it.
    pub fn address(&self) -> SocketAddr {
        self.inner.me.gossip_advertise_addr
    }

    /// Says this of this pod from now on; some peers hear it at once. Nothing happens when it is what was said before.
    ///
    /// # Errors
    /// [`GossipError::TooLarge`].
    pub async fn say(&self, facts: &Value) -> Result<(), GossipError> {
        if self.inner.set_facts(facts).await? {
            self.inner.tell_some().await;
        }
        Ok(())
    }

    /// Every pod ever heard of in this run, this one among them, each by its newest start, sorted by id. A start of this
    /// pod's id that is newer than its own is another process that takes itself for this pod.
    pub async fn heard(&self) -> Vec<Heard> {
        let chitchat = self.inner.chitchat.lock().await;
        let mut memory = self.inner.memory();
        memory.look(&chitchat);
        memory.pods().cloned().collect()
    }

    /// Waits until something may have changed since it last returned.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The tasks are gone, as the runtime is shutting down.
            std::future::pending().await
        }
    }

    /// Why gossip has stopped by itself, as when its socket broke; start a new one then. [`Gossip::changed`] resolves when
    /// this happens.
    pub fn failure(&self) -> Option<String> {
        self.inner.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What came and went so far, and what was dropped.
    pub fn counters(&self) -> CountersSnapshot {
        self.inner.shared.counters.snapshot()
    }

    /// Uses these keys from the next datagram on.
    pub fn set_keyring(&self, keyring: Keyring) {
        self.inner.shared.set_keyring(keyring);
    }

    /// Tries these addresses, too.
    ///
    /// # Errors
    /// [`GossipError::Seed`]; those before it are taken.
    pub fn add_seeds(&self, seeds: &[String]) -> Result<(), GossipError> {
        self.inner.seeds.add(seeds)
    }

    /// Says its last facts (which tell that it leaves), sees to it that all live peers have heard them, for at most half
    /// a second, and stops.
    ///
    /// # Errors
    /// [`GossipError::TooLarge`]; it has stopped nevertheless.
    pub async fn leave(self, last_facts: &Value) -> Result<(), GossipError> {
        let said = self.inner.set_facts(last_facts).await;
        if said.is_ok() {
            let peers = self.inner.live_peers().await;
            let mut awaited = self.inner.shared.wait_for(peers.clone());
            for peer in peers {
                self.inner.gossip_with(peer);
            }
            // Who has not answered in time hears it from the others, or finds out that this pod is gone.
            let _ = timeout(LEAVE_TIMEOUT, awaited.wait_for(HashSet::is_empty)).await;
        }
        self.stop().await;
        said.map(|_| ())
    }

    /// Stops; the port is free afterwards. Others will find this pod dead.
    pub async fn stop(self) {
        let _ = self.inner.handle.initiate_shutdown();
        let _ = timeout(STOP_TIMEOUT, self.inner.handle.termination_watcher()).await;
    }
}

impl Drop for Gossip {
    fn drop(&mut self) {
        self.inner.handle.abort();
    }
}

impl Inner {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when it was news.
    async fn set_facts(&self, facts: &Value) -> Result<bool, GossipError> {
        let text = facts.to_string();
        if text.len() > MAX_FACTS_BYTES {
            return Err(GossipError::TooLarge(text.len()));
        }
        let mut chitchat = self.chitchat.lock().await;
        let state = chitchat.self_node_state();
        let before = state.max_version();
        state.set(FACTS_KEY, text);
        Ok(state.max_version() != before)
    }

    /// Begins a handshake with some live peers, at most three times a round however often something is said.
    async fn tell_some(&self) {
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.is_some_and(|at| at.elapsed() < self.interval / 3) {
                return;
            }
            *told = Some(Instant::now());
        }
        let peers = self.live_peers().await.into_iter().sample(&mut rand::rng(), TOLD_AT_ONCE);
        peers.into_iter().for_each(|peer| self.gossip_with(peer));
    }

    async fn live_peers(&self) -> HashSet<SocketAddr> {
        let chitchat = self.chitchat.lock().await;
        let others = chitchat.live_nodes().filter(|id| **id != self.me);
        others.map(|id| id.gossip_advertise_addr).collect()
    }

    fn gossip_with(&self, peer: SocketAddr) {
        // An error means that chitchat has stopped, which is noticed elsewhere.
        let _ = self.handle.gossip(peer);
    }

    fn is_alone(&self) -> bool {
        !self.memory().pods().any(|pod| pod.alive && pod.id.as_str() != &*self.me.node_id)
    }
}

impl GossipConfig {
    fn check(&self) -> Result<(), GossipError> {
        let wrong = |member, reason| Err(GossipError::Config { member, reason });
        if !(10..=10_000).contains(&self.interval_ms) {
            return wrong("interval_ms", "must be from 10 to 10,000");
        }
        if !(1.0..=50.0).contains(&self.phi) {
            return wrong("phi", "must be from 1 to 50");
        }
        if self.advertise.ip().is_unspecified() {
            return wrong("advertise", "must be an address that others reach");
        }
        if !(1..=128).contains(&self.ring_id.len()) {
            return wrong("ring_id", "must have 1 to 128 bytes");
        }
        Ok(())
    }

    fn chitchat(&self, me: ChitchatId) -> ChitchatConfig {
        ChitchatConfig {
            chitchat_id: me,
            cluster_id: self.ring_id.clone(),
            gossip_interval: Duration::from_millis(self.interval_ms),
            listen_addr: self.listen,
            seed_nodes: Vec::new(),
            failure_detector_config: failure_detector(self.interval_ms, self.phi),
            // No key is ever deleted.
            marked_for_deletion_grace_period: DEAD_GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
        }
    }
}

/// When a pod is taken for dead: after a silence of phi times the mean of its last intervals and of five prior ones.
///
/// A heartbeat grows with each message that its pod takes in, and comes over all others, so that in a small ring the
/// intervals are far shorter than a round; their mean alone would have a pod die that got no processor for a quarter of
/// a second. So the prior weighs most: with rounds of 150 ms and a phi of 8 death is found after 0.94 s of silence and 2.3
/// times the mean interval more, whatever the size of the ring, and slower networks still get more time.
fn failure_detector(interval_ms: u64, phi: f64) -> FailureDetectorConfig {
    let interval = Duration::from_millis(interval_ms);
    FailureDetectorConfig::new(
        phi,
        HEARTBEATS_AVERAGED,
        interval * LONGEST_ROUNDS,
        interval.mul_f64(PRIOR_ROUNDS),
        DEAD_GRACE,
    )
}

/// Tells of pods that come, go and change, and of the end of chitchat.
async fn watch_lives<T>(inner: Arc<Inner>, mut lives: watch::Receiver<T>, changed: watch::Sender<u64>) {
    let ended = inner.handle.termination_watcher();
    tokio::pin!(ended);
    loop {
        let failure = tokio::select! {
            ended = &mut ended => Some(ended.err().map_or("it was stopped".to_owned(), |error| error.to_string())),
            more = lives.changed() => more.err().map(|error| error.to_string()),
        };
        let stopped = failure.is_some();
        *inner.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        changed.send_modify(|count| *count += 1);
        if stopped {
            return;
        }
    }
}

/// Each round: takes in what chitchat knows, and tries addresses at which nobody is known to live.
async fn look_around(inner: Arc<Inner>) {
    let mut rounds = tokio::time::interval(inner.interval);
    // A round that could not be is not made up for.
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let me = inner.me.gossip_advertise_addr;
    for round in 0.. {
        rounds.tick().await;
        let chitchat = inner.chitchat.lock().await;
        let (alive, strangers) = {
            let mut memory = inner.memory();
            memory.look(&chitchat);
            let others = memory.pods().filter(|pod| pod.id.as_str() != &*inner.me.node_id);
            let (alive, strangers): (Vec<_>, Vec<_>) = others.partition(|pod| pod.alive);
            let addresses = |pods: Vec<&Heard>| pods.into_iter().map(|pod| pod.address).collect::<HashSet<_>>();
            (addresses(alive), addresses(strangers))
        };
        drop(chitchat);
        inner.seeds.pick(round, me, &alive, &strangers).into_iter().for_each(|peer| inner.gossip_with(peer));
    }
}
