//! The ring's configuration: the document `config` of `_ring`, one for all pods.
//!
//! ```json
//! {"election": {"prefer": ["pod-a"], "never": []}, "write": {"w": 2}}
//! ```
//! All members may be left out. What is written is checked whole, and refused with the name of the member that is wrong.

pub mod read;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clock::DEFAULT_MAX_DRIFT_MS;
use crate::election;
use crate::files::FilesConfig;
use crate::host::DiskLevel;
use crate::member::PodId;
use crate::peering::Params;

/// The id of the document.
pub const CONFIG_ID: &str = "config";
/// The most pods that a write may be made to wait for.
pub const MAX_W: usize = 100;
/// The most pods that may have a state of their own: as many as peering was tried with, and as many that were removed.
const MAX_STATES: usize = 4_000;
/// The largest limit of a disk, in MiB: 16 TiB.
const MAX_DISK_MIB: u64 = 16 << 20;

/// The ring's configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RingConfig {
    /// Who may take the writes.
    pub election: election::Config,
    /// Who replicates with whom.
    pub peering: Params,
    /// How pods find one another.
    pub gossip: GossipConfig,
    /// Stamps.
    pub clock: ClockConfig,
    /// When a write counts as done.
    pub write: WriteConfig,
    /// The record of moves.
    pub instructions: InstructionsConfig,
    /// What each pod is to do; one that is not here is active.
    pub pods: BTreeMap<PodId, PodState>,
    /// When a disk counts as nearly full.
    pub disk: DiskConfig,
    /// Where large attachments are kept.
    pub files: FilesConfig,
}

/// What the operator wants of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    /// It takes part.
    #[default]
    Active,
    /// It replicates, but takes no clients and is no write master while another can be.
    Inactive,
    /// It is to hand over, leave the ring and stop; nobody waits for it any more.
    Removed,
}

/// When a disk counts as nearly full. The smaller of the two counts for each: a share fits small disks, but of a large one
/// it is many times what a pod needs, on a machine that may be well filled with other things. 0 doesn't count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskConfig {
    /// Below this share of the disk, in percent, a pod gives back the mastership: 0 to 90.
    pub low_percent: f64,
    /// The same in MiB: 0 to 16,777,216.
    pub low_mib: u64,
    /// Below this share of the disk, in percent, a pod takes no new data: 0 to 90, at most `low_percent`.
    pub full_percent: f64,
    /// The same in MiB: 0 to 16,777,216, at most `low_mib`.
    pub full_mib: u64,
}

/// How pods find one another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GossipConfig {
    /// Between two rounds, in milliseconds: 50 to 10,000.
    pub interval_ms: u64,
    /// How sure a pod must be to take another for dead, as the phi of "The φ Accrual Failure Detector" (Hayashibara et
    /// al., 2004): 1 to 50.
    pub phi: f64,
}

/// Stamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClockConfig {
    /// How far ahead another pod's clock may be, in milliseconds: 1,000 to 86,400,000.
    pub max_drift_ms: u64,
}

/// When a write counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WriteConfig {
    /// On how many pods it is to be before it is acknowledged with 201, unless the app or the request says
    /// otherwise: 1 to 100.
    pub w: usize,
    /// How long a write waits for them, or for a master, in milliseconds: 0 to 60,000.
    pub wait_ms: u64,
}

/// The record of moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstructionsConfig {
    /// For how long an instruction is kept for a pod that is away, in hours: 1 to 8,760.
    pub keep_hours: u64,
}

/// A configuration that can't be used; it names the member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{member}`: {reason}")]
pub struct RingConfigError {
    /// Which member, with dots.
    pub member: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self { interval_ms: 150, phi: 8.0 }
    }
}

impl Default for DiskConfig {
    fn default() -> Self {
        // What is needed for compaction, logs and an image is some hundred MiB.
        Self { low_percent: 10.0, low_mib: 2_048, full_percent: 5.0, full_mib: 512 }
    }
}

impl DiskConfig {
    /// How much room there is on a disk of `total_bytes`, of which the pod could still write `available_bytes`. `before`
    /// is the level of the last look: it is left for a better one only when there is a tenth more than its limit, so
    /// that a pod at a limit doesn't give back the mastership and take it again all the time.
    pub fn level(&self, before: DiskLevel, total_bytes: u64, available_bytes: u64) -> DiskLevel {
        if total_bytes == 0 {
            // Some network file systems don't tell.
            return DiskLevel::Roomy;
        }
        let is_below = |percent: f64, mib: u64, level: DiskLevel| {
            let (total, available) = (total_bytes as f64, available_bytes as f64);
            let limits = [total * percent / 100.0, mib as f64 * 1_048_576.0];
            let limit = limits.into_iter().filter(|limit| *limit > 0.0).fold(f64::INFINITY, f64::min);
            limit.is_finite() && available < if before >= level { limit * 1.1 } else { limit }
        };
        if is_below(self.full_percent, self.full_mib, DiskLevel::Full) {
            DiskLevel::Full
        } else if is_below(self.low_percent, self.low_mib, DiskLevel::Low) {
            DiskLevel::Low
        } else {
            DiskLevel::Roomy
        }
    }
}

impl Default for ClockConfig {
    fn default() -> Self {
        Self { max_drift_ms: DEFAULT_MAX_DRIFT_MS }
    }
}

impl Default for WriteConfig {
    fn default() -> Self {
        Self { w: 1, wait_ms: 5_000 }
    }
}

impl Default for InstructionsConfig {
    fn default() -> Self {
        // A week: longer than a pod's machine is away for repair.
        Self { keep_hours: 168 }
    }
}

impl RingConfig {
    /// Reads the document; members that begin with `_` are the database's own.
    ///
    /// # Errors
    /// When a member is unknown, has the wrong type or a value that is not possible; the error names it.
    pub fn parse(doc: &Value) -> Result<Self, RingConfigError> {
        let Some(members) = doc.as_object() else {
            return Err(wrong("config", "must be an object"));
        };
        let mut config = Self::default();
        for (name, value) in members.iter().filter(|(name, _)| !name.starts_with('_')) {
            match name.as_str() {
                "election" => config.election = section(name, value)?,
                "peering" => config.peering = section(name, value)?,
                "gossip" => config.gossip = section(name, value)?,
                "clock" => config.clock = section(name, value)?,
                "write" => config.write = section(name, value)?,
                "instructions" => config.instructions = section(name, value)?,
                "pods" => config.pods = section(name, value)?,
                "disk" => config.disk = section(name, value)?,
                "files" => config.files = section(name, value)?,
                _ => return Err(wrong(name, "there is no such setting")),
            }
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), RingConfigError> {
        let within = |member: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(wrong(member, &format!("must be from {least} to {most}")))
        };
        within("election.settle_ms", self.election.settle_ms, 0, 60_000)?;
        within("election.start_ms", self.election.start_ms, 0, 600_000)?;
        within("peering.k", u64::from(self.peering.k), 1, 16)?;
        if !(0.0..=16.0).contains(&self.peering.p) {
            return Err(wrong("peering.p", "must be from 0 to 16"));
        }
        within("gossip.interval_ms", self.gossip.interval_ms, 50, 10_000)?;
        if !(1.0..=50.0).contains(&self.gossip.phi) {
            return Err(wrong("gossip.phi", "must be from 1 to 50"));
        }
        within("clock.max_drift_ms", self.clock.max_drift_ms, 1_000, 86_400_000)?;
        within("write.w", self.write.w as u64, 1, MAX_W as u64)?;
        within("write.wait_ms", self.write.wait_ms, 0, 60_000)?;
        within("instructions.keep_hours", self.instructions.keep_hours, 1, 8_760)?;
        if self.pods.len() > MAX_STATES {
            return Err(wrong("pods", &format!("at most {MAX_STATES} pods may be listed")));
        }
        self.check_disk()?;
        if let Some((member, reason)) = self.files.fault() {
            return Err(wrong(member, &reason));
        }
        if let Some(both) = self.election.prefer.iter().find(|id| self.election.never.contains(id)) {
            return Err(wrong("election.never", &format!("{both} is also in election.prefer")));
        }
        Ok(())
    }

    fn check_disk(&self) -> Result<(), RingConfigError> {
        let disk = &self.disk;
        for (member, percent) in [("disk.low_percent", disk.low_percent), ("disk.full_percent", disk.full_percent)] {
            if !(0.0..=90.0).contains(&percent) {
                return Err(wrong(member, "must be from 0 to 90"));
            }
        }
        for (member, mib) in [("disk.low_mib", disk.low_mib), ("disk.full_mib", disk.full_mib)] {
            if mib > MAX_DISK_MIB {
                return Err(wrong(member, &format!("must be from 0 to {MAX_DISK_MIB}")));
            }
        }
        if disk.full_percent > disk.low_percent {
            return Err(wrong("disk.full_percent", "must be at most disk.low_percent"));
        }
        if disk.full_mib > disk.low_mib {
            return Err(wrong("disk.full_mib", "must be at most disk.low_mib"));
        }
        Ok(())
    }

    /// What the operator wants of a pod.
    pub fn state_of(&self, pod: &PodId) -> PodState {
        self.pods.get(pod).copied().unwrap_or_default()
    }
}

/// Reads one section member by member, so that an error names the one that is wrong.
fn section<T>(name: &str, value: &Value) -> Result<T, RingConfigError>
where
    T: for<'de> Deserialize<'de> + Serialize,
{
    let section = known_section(name, value)?;
    match read::unknown(name, value, &section).first() {
        Some(member) => Err(wrong(member, "there is no such setting")),
        None => Ok(section),
    }
}

/// As [`section`]; members that this version doesn't know don't count.
fn known_section<T>(name: &str, value: &Value) -> Result<T, RingConfigError>
where
    T: for<'de> Deserialize<'de>,
{
    let Some(members) = value.as_object() else {
        return Err(wrong(name, "must be an object"));
    };
    let mut whole = Map::new();
    for (member, value) in members {
        let mut alone = whole.clone();
        alone.insert(member.clone(), value.clone());
        if let Err(error) = T::deserialize(Value::Object(alone)) {
            return Err(wrong(&format!("{name}.{member}"), &error.to_string()));
        }
        whole.insert(member.clone(), value.clone());
    }
    T::deserialize(Value::Object(whole)).map_err(|error| wrong(name, &error.to_string()))
}

fn wrong(member: &str, reason: &str) -> RingConfigError {
    RingConfigError { member: member.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::{DiskConfig, PodState, RingConfig};
    use crate::host::DiskLevel;
    use serde_json::json;

    #[test]
    fn what_is_left_out_is_as_it_was() {
        let doc = json!({"_id": "config", "_rev": "1-a", "peering": {"k": 2}, "election": {"prefer": ["pod-b"]}});
        let config = RingConfig::parse(&doc).expect("a good document");
        assert_eq!((config.peering.k, config.peering.p), (2, 1.5));
        assert_eq!(config.election.settle_ms, 300);
        assert_eq!(config.write.w, 1);
        assert_eq!(RingConfig::parse(&json!({})).expect("empty"), RingConfig::default());
        let text = serde_json::to_value(&config).expect("JSON");
        assert_eq!(RingConfig::parse(&text).expect("read back"), config);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (doc, member) in [
            (json!([]), "config"),
            (json!({"zork": 1}), "zork"),
            (json!({"election": 5}), "election"),
            (json!({"election": {"prefer": ["Not an id"]}}), "election.prefer"),
            (json!({"election": {"zork": 1}}), "election.zork"),
            (json!({"election": {"prefer": ["a"], "never": ["a"]}}), "election.never"),
            (json!({"peering": {"k": 0}}), "peering.k"),
            (json!({"peering": {"p": -1}}), "peering.p"),
            (json!({"peering": {"zork": -1}}), "peering.zork"),
            (json!({"gossip": {"interval_ms": 1}}), "gossip.interval_ms"),
            (json!({"gossip": {"phi": "high"}}), "gossip.phi"),
            (json!({"write": {"w": 0}}), "write.w"),
            (json!({"write": {"w": 1.5}}), "write.w"),
            (json!({"clock": {"max_drift_ms": 1}}), "clock.max_drift_ms"),
            (json!({"instructions": {"keep_hours": 0}}), "instructions.keep_hours"),
            (json!({"pods": {"pod-1": "asleep"}}), "pods.pod-1"),
            (json!({"pods": {"Pod 1": "inactive"}}), "pods.Pod 1"),
            (json!({"disk": {"low_percent": 91}}), "disk.low_percent"),
            (json!({"disk": {"low_percent": 1}}), "disk.full_percent"),
            (json!({"disk": {"full_percent": -1}}), "disk.full_percent"),
            (json!({"disk": {"full_mib": 3_000}}), "disk.full_mib"),
            (json!({"disk": {"low_mib": 20_000_000}}), "disk.low_mib"),
            (json!({"files": {"above_mib": 0}}), "files.above_mib"),
            (json!({"files": {"keep_hours": 0}}), "files.keep_hours"),
            (json!({"files": {"store": "zork"}}), "files.store"),
            (json!({"files": {"store": {"s3": {"bucket": "A"}}}}), "files.store.s3.bucket"),
            (json!({"files": {"store": {"s3": {"bucket": "abc", "prefix": "a/../b"}}}}), "files.store.s3.prefix"),
            (json!({"files": {"store": {"s3": {"bucket": "abc", "endpoint": "http://a"}}}}), "files.store.s3.endpoint"),
            (json!({"files": {"store": {"s3": {"bucket": "abc", "secret": "s"}}}}), "files.store.s3.secret"),
        ] {
            let error = RingConfig::parse(&doc).expect_err(member);
            assert_eq!(error.member, member, "{doc}: {error}");
        }
    }

    #[test]
    fn a_pod_that_is_not_named_is_active() {
        let config = RingConfig::parse(&json!({"pods": {"a": "inactive", "b": "removed"}})).expect("a good document");
        let state = |id: &str| config.state_of(&id.parse().expect("a pod's id"));
        assert_eq!([state("a"), state("b"), state("c")], [PodState::Inactive, PodState::Removed, PodState::Active]);
    }

    #[test]
    fn the_smaller_limit_counts_and_a_level_is_not_left_at_once() {
        let (roomy, low, full) = (DiskLevel::Roomy, DiskLevel::Low, DiskLevel::Full);
        let config = DiskConfig { low_percent: 10.0, low_mib: 50, full_percent: 5.0, full_mib: 20 };
        let level = |before, available: u64| config.level(before, 100 << 20, available << 20);
        assert_eq!([10, 9, 5, 4].map(|available| level(roomy, available)), [roomy, low, low, full]);
        assert_eq!([10, 11].map(|available| level(low, available)), [low, roomy]);
        assert_eq!([5, 6, 10, 11].map(|available| level(full, available)), [full, low, low, roomy]);
        let large = |config: DiskConfig, available: u64| config.level(roomy, 100 << 30, available << 20);
        assert_eq!([50, 49, 20, 19].map(|available| large(config, available)), [roomy, low, low, full]);
        let by_size = DiskConfig { low_percent: 0.0, full_percent: 0.0, ..config };
        assert_eq!([50, 49, 19].map(|available| large(by_size, available)), [roomy, low, full]);
        let by_share = DiskConfig { low_mib: 0, full_mib: 0, ..config };
        assert_eq!([10_240, 10_239, 5_119].map(|available| large(by_share, available)), [roomy, low, full]);
        assert_eq!(large(DiskConfig { low_percent: 0.0, full_percent: 0.0, ..by_share }, 0), roomy, "no limits");
        // A machine with a large disk that is well filled with other things is as good as any.
        let (default, total) = (DiskConfig::default(), 252 << 30);
        assert_eq!(default.level(roomy, total, 2_100 << 20), roomy);
        assert_eq!([1 << 30, 500 << 20].map(|available| default.level(roomy, total, available)), [low, full]);
        assert_eq!(DiskConfig::default().level(roomy, 0, 0), roomy, "a disk that tells nothing");
    }
}
