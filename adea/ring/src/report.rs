//! What a pod's programs tell one another: adea tells rean of the ring ([`RingState`]), rean answers with what it has
//! ([`Facts`]), and adea says both to the other pods ([`Said`]).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::Stamp;
use crate::config::{PodState, RingConfig};
use crate::election::Epoch;
use crate::host::{DiskLevel, HostReport};
use crate::member::{Member, PodId};
use crate::upgrade::{OrderTrust, Progress};

/// Digits of the name of a store's history.
const HISTORY_DIGITS: usize = 8;

/// Where writes come from: a pod, and the history of its store, whose sequences start anew with it.
///
/// As text, `POD@HISTORY`, the history 8 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Origin {
    /// The pod.
    pub pod: PodId,
    history: String,
}

/// A text is no origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an origin is a pod's id, @ and {HISTORY_DIGITS} hexadecimal digits")]
pub struct OriginError;

/// How far a pod has the writes of each origin: all up to that sequence.
pub type Applied = BTreeMap<Origin, u64>;

/// From where an epoch's writes count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochStart {
    /// The epoch; its pod is the master.
    pub epoch: Epoch,
    /// The master's store.
    pub origin: Origin,
    /// Its sequence when the epoch began: who has all up to it is caught up.
    pub seq: u64,
}

/// What a pod does about writes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It knows no master.
    #[default]
    Waiting,
    /// The pod of this epoch takes them.
    Follower(Epoch),
    /// It takes them itself.
    Master(Epoch),
}

/// What a pod says of itself to all others, beside what its [`Member`] row holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Said {
    /// Where clients reach it; none while that is not known.
    pub url: Option<String>,
    /// Of its programs.
    pub software: String,
    /// When it started, in milliseconds since 1970.
    pub since_ms: u64,
    /// Whether its database answers.
    pub healthy: bool,
    /// Runnable processes of its machine over the last minute, for each core.
    pub load: f64,
    /// What its store has of each origin.
    pub applied: Applied,
    /// Where it began as master, if it is that.
    pub start: Option<EpochStart>,
    /// What the operator wants of it, as far as it knows.
    pub state: PodState,
    /// Room on its disk.
    pub disk: DiskLevel,
    /// How far it is with an upgrade.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<Progress>,
}

/// A pod, as adea tells rean of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// The row that elections are decided by.
    #[serde(flatten)]
    pub member: Member,
    /// What else it says.
    pub said: Said,
}

/// Datagrams that were dropped since the start, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dropped {
    /// Not of our form.
    pub garbage: u64,
    /// Sealed under a key that isn't ours, or changed on the way.
    pub foreign: u64,
    /// Seen before.
    pub replayed: u64,
    /// Ours, and not readable.
    pub malformed: u64,
}

/// What adea tells rean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RingState {
    /// This pod.
    pub me: PodId,
    /// Grows with each start of adea.
    pub generation: u64,
    /// What it does about writes.
    pub role: Role,
    /// All pods that are known, this one among them, sorted by id.
    pub members: Vec<Known>,
    /// The pods that it replicates with.
    pub neighbours: Vec<PodId>,
    /// The live pods with a wrong clock.
    pub clocks_off: Vec<PodId>,
    /// Gossip's refuse.
    #[serde(default)]
    pub dropped: Dropped,
    /// This machine; none before it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostReport>,
    /// Whose orders of upgrades this pod follows, as its machine's ring file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_trust: Option<OrderTrust>,
}

/// What rean answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The role that it now has: a step to it may have failed.
    pub role: Role,
    /// This pod's store.
    pub origin: Origin,
    /// What it has.
    pub applied: Applied,
    /// Where it began as master.
    pub start: Option<EpochStart>,
    /// The newest epoch in which it has all that the master had at its start, if it is a follower.
    pub caught_up_to: Option<Epoch>,
    /// The ring's configuration as this pod has it.
    #[serde(deserialize_with = "crate::config::read::tolerant")]
    pub config: RingConfig,
    /// The document of the gossip's keys, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyring: Option<Value>,
    /// The document that orders an upgrade, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<Value>,
    /// Room on the disk of its store.
    #[serde(default)]
    pub disk: DiskLevel,
}

/// What a pod asks another's rean over a link: how far it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Its store.
    pub origin: Origin,
    /// What it has; its own sequence under its own origin.
    pub applied: Applied,
    /// What it does about writes.
    pub role: Role,
    /// By its clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
}

impl Origin {
    /// The store of a pod.
    ///
    /// # Errors
    /// When the history isn't 8 hexadecimal digits.
    pub fn new(pod: PodId, history: &str) -> Result<Self, OriginError> {
        let fits = history.len() == HISTORY_DIGITS && history.bytes().all(|b| b.is_ascii_hexdigit());
        if fits { Ok(Self { pod, history: history.to_owned() }) } else { Err(OriginError) }
    }

    /// The history.
    pub fn history(&self) -> &str {
        &self.history
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pod, self.history)
    }
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let (pod, history) = text.split_once('@').ok_or(OriginError)?;
        Self::new(pod.parse().map_err(|_| OriginError)?, history)
    }
}

impl TryFrom<String> for Origin {
    type Error = OriginError;

    fn try_from(text: String) -> Result<Self, OriginError> {
        text.parse()
    }
}

impl From<Origin> for String {
    fn from(origin: Origin) -> Self {
        origin.to_string()
    }
}

impl Role {
    /// The epoch, of whoever is master in it.
    pub fn epoch(&self) -> Option<&Epoch> {
        match self {
            Self::Waiting => None,
            Self::Follower(epoch) | Self::Master(epoch) => Some(epoch),
        }
    }
}

impl RingState {
    /// A pod that is known.
    pub fn get(&self, id: &PodId) -> Option<&Known> {
        self.members.iter().find(|known| known.member.id == *id)
    }

    /// How many pods take part, this one included.
    pub fn live_count(&self) -> usize {
        self.members.iter().filter(|known| known.member.is_live()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::{Applied, Origin, Role};

    #[test]
    fn origins_are_read_back() {
        let origin: Origin = "pod-1@0a1b2c3d".parse().expect("an origin");
        assert_eq!((origin.pod.as_str(), origin.history()), ("pod-1", "0a1b2c3d"));
        for bad in ["", "pod-1", "pod-1@", "pod-1@0a1b2c3", "Pod@0a1b2c3d", "pod@0a1b2c3g", "a@b@0a1b2c3d"] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
        let applied = Applied::from([(origin, 5)]);
        let text = serde_json::to_string(&applied).expect("JSON");
        assert_eq!(text, r#"{"pod-1@0a1b2c3d":5}"#);
        assert_eq!(serde_json::from_str::<Applied>(&text).expect("a vector"), applied);
    }

    #[test]
    fn roles_as_text() {
        let role = Role::Master("000000000001-0000-a".parse().expect("a stamp"));
        assert_eq!(serde_json::to_string(&role).expect("JSON"), r#"{"master":"000000000001-0000-a"}"#);
        assert_eq!(serde_json::to_string(&Role::Waiting).expect("JSON"), r#""waiting""#);
    }
}
