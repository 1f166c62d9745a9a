//! What the checks go by.

use std::net::{IpAddr, SocketAddr};

use adea_ring::config::DiskConfig;
use adea_ring::host::DiskLevel;

use crate::ring::status::Pods;

/// Everything that was gathered.
pub struct Facts {
    /// The ring; why it could not be asked otherwise.
    pub ring: Result<RingFacts, String>,
    /// This machine, if it is a pod's.
    pub machine: Option<MachineFacts>,
    /// By this machine's clock, in seconds since 1970.
    pub now_s: i64,
}

/// The ring, as a pod of it tells.
pub struct RingFacts {
    /// What the pods say.
    pub pods: Pods,
    /// The same troubles that `podctl status` tells.
    pub troubles: Vec<String>,
    /// What counts as a full disk.
    pub disk: DiskConfig,
    /// What was tried with each pod that is alive.
    pub tried: Vec<PodFacts>,
}

/// What was tried with a pod, from here.
pub struct PodFacts {
    /// Which.
    pub id: String,
    /// Its public URL; none if it tells none.
    pub url: Option<String>,
    /// Where the host of its URL leads; why nowhere otherwise.
    pub public_addresses: Result<Vec<IpAddr>, String>,
    /// Whether it answers at its URL; why not otherwise.
    pub public: Result<(), String>,
    /// How far its clock is ahead of this machine's, in milliseconds, to about a second.
    pub clock_ahead_ms: Option<i64>,
    /// Its certificate; none without TLS.
    pub certificate: Option<CertificateFacts>,
    /// HOST:PORT for the other pods.
    pub ring_address: Option<String>,
    /// Where its ring address leads.
    pub ring_addresses: Result<Vec<IpAddr>, String>,
    /// Whether its ring port takes connections from here.
    pub ring_port: Result<(), String>,
}

/// A pod's public certificate.
pub struct CertificateFacts {
    /// Its last second, in seconds since 1970; none if that can't be read.
    pub until_s: Option<i64>,
    /// Why it isn't trusted here; none if it is.
    pub untrusted: Option<String>,
}

/// This machine.
#[derive(Default)]
pub struct MachineFacts {
    /// The agent's configuration, if there is one: its path, and what is wrong with it.
    pub config: Option<(String, Result<(), String>)>,
    /// The ring file: its path, and its rights if it is there.
    pub ring_file: Option<(String, Option<Rights>)>,
    /// What is known here of the key for orders of upgrades; none where the ring file can't be read.
    pub order_key: Option<OrderKeyFacts>,
    /// The data folder, in the same way.
    pub data: Option<(String, Option<Rights>)>,
    /// Room on the data folder's disk: level, available bytes.
    pub disk: Option<(DiskLevel, u64)>,
    /// Memory: what programs could still get, and all, in bytes.
    pub memory: Option<(u64, u64)>,
    /// Whether the agent runs; none if that isn't known.
    pub agent_runs: Option<bool>,
    /// What the agent has last said it could not do.
    pub agent_trouble: Option<String>,
    /// How many files the agent may open, or a program that is started here.
    pub open_files: Option<u64>,
    /// The ports that the pod should listen on.
    pub ports: Vec<PortFacts>,
    /// Docker, where it runs the programs.
    pub docker: Option<DockerFacts>,
}

/// The key for orders of upgrades.
pub struct OrderKeyFacts {
    /// The fingerprint of the key whose orders the pod follows; none: it follows none.
    pub trusted: Option<String>,
    /// That key as text, if its orders count only from a time on that is yet to come, as some clock was wrong.
    pub awaited: Option<String>,
    /// The file of the private half.
    pub path: String,
    /// Its rights, and its fingerprint or why it can't be used; none if there is none here.
    pub private: Option<(Rights, Result<String, String>)>,
}

/// Who may do what with a file.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    /// The nine bits.
    pub mode: u32,
}

/// A port of this machine.
pub struct PortFacts {
    /// What it is for.
    pub name: &'static str,
    /// Where.
    pub addr: SocketAddr,
    /// Whether it is TCP, or UDP.
    pub is_tcp: bool,
    /// Whether somebody listens.
    pub is_open: bool,
}

/// The engine.
pub struct DockerFacts {
    /// Its socket.
    pub socket: String,
    /// What it says of itself: version and API version; why it can't be asked otherwise.
    pub version: Result<(String, String), String>,
    /// The image that is configured, and whether it is there.
    pub image: Option<(String, Result<bool, String>)>,
}
