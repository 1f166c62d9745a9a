//! What a turn of the ring's loop goes by, and what it comes to.

use adea_ring::PodId;
use adea_ring::config::{PodState, RingConfig};
use adea_ring::election::{Cause, Decision, Hold, Waiting};
use adea_ring::host::HostReport;
use adea_ring::report::{Dropped, Facts, Known, RingState};
use adea_ring::upgrade::{OrderTrust, Progress};

use crate::ring::kept::Kept;

/// Who this pod is.
#[derive(Debug, Clone)]
pub struct Me {
    /// The pod.
    pub id: PodId,
    /// Where other pods reach it: HOST:PORT.
    pub address: String,
    /// Where clients reach it.
    pub url: Option<String>,
    /// Greater with each start.
    pub generation: u64,
    /// When it started, in milliseconds since 1970.
    pub since_ms: u64,
    /// Whether it was given pods to join. If so, it begins no epoch before it has met one of them.
    pub has_seeds: bool,
}

/// A pod as gossip has it.
#[derive(Debug, Clone)]
pub struct Row {
    /// Which.
    pub id: PodId,
    /// Where gossip reaches it.
    pub address: String,
    /// Of which start.
    pub generation: u64,
    /// Whether the failure detector takes it for alive.
    pub alive: bool,
    /// Grows with each change.
    pub version: u64,
    /// What it says; none when that is not known or makes no sense.
    pub known: Option<Known>,
}

/// What came from rean since the last turn.
#[derive(Debug, Clone)]
pub enum Answer {
    /// It answered.
    Facts(Box<Facts>),
    /// Nobody listens there.
    Down,
    /// It took too long, or the answer made no sense.
    Failed,
}

/// What the agent's other parts say of this pod, for the others and for rean.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Aside {
    /// Whether it should be no master, beside what its state and its disk come to.
    pub reluctant: bool,
    /// How far it is with an upgrade.
    pub upgrade: Option<Progress>,
    /// The machine.
    pub host: Option<HostReport>,
    /// Whose orders of upgrades it follows.
    pub order_trust: Option<OrderTrust>,
}

/// What the ring's loop tells the agent's other parts after each turn in which it has changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct News {
    /// The ring's configuration, once rean has answered.
    pub config: Option<RingConfig>,
    /// The document that orders an upgrade.
    pub upgrade: Option<serde_json::Value>,
    /// The pods, this one among them.
    pub members: Vec<Known>,
    /// What this pod does about writes, as its rean says.
    pub role: adea_ring::report::Role,
    /// What the operator wants of this pod.
    pub state: PodState,
}

/// What a turn goes by.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Since this process started, in milliseconds that nobody sets.
    pub elapsed_ms: u64,
    /// By this machine's clock, in milliseconds since 1970.
    pub physical_ms: u64,
    /// All pods that gossip knows.
    pub heard: Vec<Row>,
    /// What came from rean.
    pub answer: Option<Answer>,
    /// Of this machine: runnable processes for each core.
    pub load: f64,
    /// Whether this pod is to leave.
    pub leaving: bool,
    /// What the agent's other parts say.
    pub aside: Aside,
    /// Whether what was to be kept last is on disk.
    pub disk_works: bool,
    /// Gossip's refuse.
    pub dropped: Dropped,
}

/// What a turn comes to, in the order in which it is to be done.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// To be on disk before anything else is done.
    pub keep: Option<Kept>,
    /// For rean.
    pub tell: RingState,
    /// Whether rean should hear it at once.
    pub tell_now: bool,
    /// For the other pods.
    pub say: Known,
    /// What was decided.
    pub decision: Decision,
    /// Whether the pod waits for a first other one.
    pub lonely: bool,
    /// Whether another process takes itself for this pod.
    pub doubled: bool,
    /// Whether the pod was removed from the ring: it leaves by itself.
    pub removed: bool,
    /// Whether the pod may go now.
    pub may_go: bool,
}

/// Why there is no master, or why this pod is none any more, for a log.
pub fn describe(decision: &Decision) -> Option<String> {
    match decision {
        Decision::Stay => None,
        Decision::Follow(epoch) => Some(format!("{} takes the writes now (epoch {epoch})", epoch.pod())),
        Decision::Become(epoch) => Some(format!("this pod begins to take the writes (epoch {epoch})")),
        Decision::StepDown(Cause::Newer(epoch)) => Some(format!("stepping down: {} began later", epoch.pod())),
        Decision::StepDown(Cause::HandOver(pod)) => Some(format!("stepping down: {pod} is to take the writes")),
        Decision::StepDown(Cause::Barred) => Some("stepping down: this pod can't take writes".to_owned()),
        Decision::StepDown(Cause::Deaf) => {
            Some("stepping down: this agent was paused, and another may have begun".to_owned())
        }
        Decision::Wait(Waiting::For(pod)) => Some(format!("no write master; {pod} is about to be")),
        Decision::Wait(Waiting::ForOthers(hold)) => Some(match hold {
            Hold::Starting => "no write master; waiting for the pods that were there before".to_owned(),
            Hold::Deaf => "no write master known; this agent was paused, and waits to hear of the others".to_owned(),
            Hold::Unfound(pod) => format!("no write master; waiting to find {pod}, which began later"),
            Hold::Older(pod) => format!("no write master; waiting for {pod} to step down"),
            Hold::Settling => "no write master; this pod is about to be".to_owned(),
            Hold::Clock => "no write master; an epoch is ahead of this pod's clock".to_owned(),
        }),
        Decision::Wait(Waiting::NoCandidate) => Some("no write master, and no pod that may be".to_owned()),
    }
}
