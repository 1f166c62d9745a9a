//! What a machine tells of itself: how busy it is, how full, and what runs on it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How much room a pod's disk has, by the settings of [`crate::config::DiskConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskLevel {
    /// Enough.
    #[default]
    Roomy,
    /// Little: the pod gives back mastership and says so, and goes on following.
    Low,
    /// So little that no new data is taken.
    Full,
}

impl fmt::Display for DiskLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Roomy => "roomy",
            Self::Low => "low",
            Self::Full => "full",
        })
    }
}

/// A machine, as its agent sees it. What is not known is 0 or none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostReport {
    /// Cores.
    pub cpus: u32,
    /// Of all cores together, over the last seconds, in percent: 0 to 100.
    pub cpu_percent: f64,
    /// Bytes.
    pub memory_bytes: u64,
    /// What programs could still get, in bytes.
    pub memory_available_bytes: u64,
    /// Of the file system of the data folder, in bytes.
    pub disk_bytes: u64,
    /// What the pod could still write there, in bytes.
    pub disk_available_bytes: u64,
    /// Room on the disk.
    pub disk: DiskLevel,
    /// Linux's release.
    pub kernel: String,
    /// `process`, or `docker` with the engine's version.
    pub runtime: String,
    /// The image that the programs are to run from; none where they run as child processes.
    pub image: Option<String>,
    /// What runs.
    pub programs: Vec<ProgramReport>,
    /// What doesn't work on this machine, in words for people, the worst first.
    pub troubles: Vec<String>,
}

/// A program of the pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProgramReport {
    /// `adea`, `rean` or `proxy`.
    pub name: String,
    /// Of its build.
    pub software: String,
    /// Whether it answers.
    pub healthy: bool,
    /// How often it was started anew.
    pub restarts: u32,
    /// What it occupies, in bytes.
    pub memory_bytes: u64,
    /// Of one core, in percent.
    pub cpu_percent: f64,
    /// The container's name, if it is one.
    pub container: Option<String>,
}
