//! The pod as one of a ring: who takes the writes, how they get there, and how documents come from the other pods.
//!
//! What flows through it: adea tells what the ring is ([`command`]), which sets the role ([`gate`]) and the neighbours
//! ([`links`]). A request that writes passes the gate: here on the write master, else it is forwarded ([`forward`]).
//! Each link pulls a neighbour's merged feed ([`feed`] is the serving side) and notes what has arrived from whom
//! ([`applied`]); that is what `?w=N`, reading one's own writes and being caught up are decided by.
//! What the pods agree on are documents of `_ring`: which databases there are ([`databases`]), settings
//! ([`config_doc`], [`app_w`]), which documents have left a partial database ([`instructions`]), how each pod is
//! ([`status`]), what has diverged ([`divergence`]). Everyone may read which pods there are ([`pods`]). A pod may be told
//! to take no clients ([`clients`]), or be removed ([`removal`]).
//!
//! What always holds: two pods of a planned change of master never take writes at once; what this pod says to have
//! applied is durable here; a pod that was started without a ring takes all writes itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use adea_ring::config::PodState;
use adea_ring::election::Epoch;
use adea_ring::report::{Applied, EpochStart, Origin, RingState, Role};
use adea_ring::tls::Credentials;
use adea_ring::{PodId, RingConfig};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::sync::watch;

use crate::ring::applied::Knowledge;
use crate::ring::clients::Clients;
use crate::ring::forward::Uploads;
use crate::ring::gate::Gate;
use crate::ring::instructions::Number;
use crate::ring::links::Links;
use crate::ring::records::Records;
use crate::ring::removal::Removal;
use crate::ring::wire::Wire;

pub mod app_w;
pub mod applied;
pub mod brought;
pub mod clients;
pub mod command;
pub mod config_doc;
pub mod databases;
pub mod divergence;
pub mod elsewhere;
pub mod feed;
pub mod follow;
pub mod forward;
pub mod gate;
pub mod images;
pub mod instructions;
pub mod join;
pub mod link;
pub mod links;
pub mod logs;
pub mod places;
pub mod pods;
pub mod port;
pub mod records;
pub mod removal;
pub mod restored;
pub mod ring_doc;
pub mod stamps;
pub mod standing;
pub mod status;
pub mod upgrade;
pub mod wire;
pub mod writes;

/// How a pod of a ring reaches the others, and lets them in.
pub struct Doors {
    /// What it shows to them.
    pub credentials: Credentials,
    /// The way to them.
    pub wire: Wire,
}

/// What has happened at the port for the other pods, since the start.
#[derive(Default)]
pub struct PeerPort {
    /// Connections that were refused: no certificate of this ring, or too slow.
    pub refused: AtomicU64,
}

/// What this pod knows of its ring, and does about it.
pub struct Ring {
    /// This pod's store.
    pub origin: Origin,
    /// Whether there is a ring; without one this pod is always master.
    alone: bool,
    /// Who may write now.
    pub gate: Gate,
    /// Whether clients are let in.
    pub clients: Clients,
    /// Whether others have told that this pod was removed.
    pub removal: Removal,
    /// What has arrived from whom.
    pub knowledge: Knowledge,
    /// The links to the neighbours.
    pub links: Links,
    /// The port for the other pods.
    pub peer_port: PeerPort,
    /// On how many pods the writes of an app are to be, where that is its own: `w` of its document.
    pub app_w: RwLock<HashMap<String, usize>>,
    /// What the workers on the ring's documents share.
    pub records: Records,
    /// Uploads that are on their way to the write master.
    pub uploads: Uploads,
    doors: Option<Doors>,
    state: watch::Sender<Option<Arc<RingState>>>,
    config: watch::Sender<Arc<RingConfig>>,
    keyring: RwLock<Option<Value>>,
    /// Where this pod began as master, while it is that.
    start: Mutex<Option<EpochStart>>,
    /// The newest epoch that it was caught up with.
    caught_up: Mutex<Option<Epoch>>,
    /// Held while a command is carried out: one at a time.
    commands: tokio::sync::Mutex<()>,
}

/// Whether a database is each pod's own: what is in it goes to no other pod.
pub fn is_local_db(name: &str) -> bool {
    name == "_pods"
}

impl Ring {
    /// A pod without a ring.
    pub fn alone(origin: Origin) -> Self {
        Self::new(origin, None)
    }

    /// A pod of a ring; it waits until adea has told it what to do.
    pub fn member(origin: Origin, doors: Doors) -> Self {
        Self::new(origin, Some(doors))
    }

    fn new(origin: Origin, doors: Option<Doors>) -> Self {
        let alone = doors.is_none();
        Self {
            gate: if alone { Gate::open() } else { Gate::closed() },
            clients: Clients::default(),
            removal: Removal::default(),
            knowledge: Knowledge::new(origin.clone()),
            links: Links::default(),
            records: Records::new(origin.pod.clone()),
            origin,
            alone,
            peer_port: PeerPort::default(),
            app_w: RwLock::default(),
            uploads: Uploads::default(),
            doors,
            state: watch::Sender::new(None),
            config: watch::Sender::default(),
            keyring: RwLock::default(),
            start: Mutex::default(),
            caught_up: Mutex::default(),
            commands: tokio::sync::Mutex::default(),
        }
    }

    /// This pod.
    pub fn me(&self) -> &PodId {
        &self.origin.pod
    }

    /// Whether there is no ring.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Whether this pod takes writes.
    pub fn is_master(&self) -> bool {
        self.gate.is_open()
    }

    /// The role in force.
    pub fn role(&self) -> Role {
        self.gate.role()
    }

    /// The way to the other pods; none for a pod that is alone.
    pub fn wire(&self) -> Option<&Wire> {
        self.doors.as_ref().map(|doors| &doors.wire)
    }

    /// What this pod shows to the others; none for a pod that is alone.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.doors.as_ref().map(|doors| &doors.credentials)
    }

    /// What adea said last; none before it has said anything.
    pub fn state(&self) -> Option<Arc<RingState>> {
        self.state.borrow().clone()
    }

    /// To follow what adea says.
    pub fn states(&self) -> watch::Receiver<Option<Arc<RingState>>> {
        self.state.subscribe()
    }

    /// Notes what adea says; the role is set by [`Gate`].
    pub fn set_state(&self, state: RingState) {
        self.state.send_replace(Some(Arc::new(state)));
    }

    /// The ring's configuration in force.
    pub fn config(&self) -> Arc<RingConfig> {
        Arc::clone(&self.config.borrow())
    }

    /// Puts a configuration in force.
    pub fn set_config(&self, config: RingConfig) {
        self.config.send_if_modified(|known| {
            let news = **known != config;
            if news {
                *known = Arc::new(config);
            }
            news
        });
        self.clients.set(self.pod_state() == PodState::Active);
    }

    /// The document of the gossip's keys, where there is one.
    pub fn keyring(&self) -> Option<Value> {
        self.keyring.read().clone()
    }

    /// Notes the document of the gossip's keys.
    pub fn set_keyring(&self, keyring: Option<Value>) {
        *self.keyring.write() = keyring;
    }

    /// On how many pods a write into this database is to be, unless the request says otherwise.
    pub fn default_w(&self, db_name: &str) -> usize {
        self.app_w.read().get(db_name).copied().unwrap_or_else(|| self.config().write.w)
    }

    /// Where this pod began as master, while it is that.
    pub fn start(&self) -> Option<EpochStart> {
        self.start.lock().clone()
    }

    /// Handshakes that were refused at the port for the other pods.
    pub fn refused(&self) -> u64 {
        self.peer_port.refused.load(Ordering::Relaxed)
    }

    /// The newest instruction up to which this pod has carried out all that it knows of.
    pub fn carried_out(&self) -> Option<Number> {
        self.records.progress.carried_out()
    }

    /// Whose writes others may be waited for to have: the write master's store, unless it is this one.
    pub fn master_origin(&self) -> Option<Origin> {
        let role = self.role();
        let master = role.epoch()?.pod();
        if master == self.me() {
            return None;
        }
        let state = self.state()?;
        let said = &state.get(master)?.said;
        match &said.start {
            Some(start) => Some(start.origin.clone()),
            // It has just begun: of its stores the one with the newest sequence it says to have.
            None => {
                let own = said.applied.iter().filter(|(origin, _)| origin.pod == *master);
                own.max_by_key(|(_, seq)| **seq).map(|(origin, _)| origin.clone())
            }
        }
    }

    /// What this pod's store has, with its own sequence.
    pub fn applied(&self, own_seq: u64) -> Applied {
        self.knowledge.applied(own_seq)
    }
}
