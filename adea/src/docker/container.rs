//! From a launch to a container: names, labels, rights and bounds. Nothing here speaks to an engine.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType,
    NetworkCreateRequest, NetworkingConfig, PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use sha2::{Digest, Sha256};

use crate::config::DockerConfig;
use crate::docker::EngineError;
use crate::image::PROGRAM;
use crate::logging::FILTER_ENV;
use crate::plan::{Launch, Program};

/// The labels by which an agent knows its own.
pub const POD_LABEL: &str = "org.adea.pod";
const RING_LABEL: &str = "org.adea.ring";
const PROGRAM_LABEL: &str = "org.adea.program";
/// Which data folder its pod has: two pods may have one name.
pub const DATA_LABEL: &str = "org.adea.data";
/// The label with the hash of what a container was made by.
pub const LAUNCH_LABEL: &str = "org.adea.launch";
/// Another number makes every container be replaced, for when what is below changes.
const FORMAT: u32 = 2;

/// Threads of a program: the runtime's 512 for blocking work, a store's, and as many again.
const MAX_PIDS: i64 = 2_048;
/// For the allocator. Where Linux gives huge pages to all who don't refuse them, a program that holds a few KiB here and there
/// takes 2 MiB for each.
const NO_HUGE_PAGES: &str = "MIMALLOC_ALLOW_THP=0";
/// Two of these are kept by the engine, for `docker logs`; the agent keeps its own.
const LOG_SIZE: &str = "8m";
/// What a stop by somebody else gives the program, in seconds: a little more than the agent itself does.
const STOP_TIMEOUT_S: i64 = 20;
const SECOND_NS: i64 = 1_000_000_000;
const MIB: u64 = 1 << 20;

/// Whose containers they are.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The pod.
    pub pod_id: String,
    /// Which ring it is of: a name made from the secret that doesn't tell it.
    pub ring_id: String,
    /// Its data folder.
    pub data: String,
}

/// How containers are made.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Whose they are.
    pub owner: Owner,
    /// Their user and bounds.
    pub docker: DockerConfig,
    /// What they log.
    pub log: String,
}

impl Owner {
    /// The name of a program's container.
    pub fn container(&self, program: Program) -> String {
        format!("adea-{}-{program}", self.pod_id)
    }

    /// The name of the pod's network.
    pub fn network(&self) -> String {
        format!("adea-{}", self.pod_id)
    }

    fn labels(&self) -> HashMap<String, String> {
        let labels = [(POD_LABEL, &self.pod_id), (RING_LABEL, &self.ring_id), (DATA_LABEL, &self.data)];
        labels.into_iter().map(|(name, value)| (name.to_owned(), value.clone())).collect()
    }

    /// Checks that something is this pod's by its labels.
    ///
    /// # Errors
    /// When it isn't: it may not be touched then.
    pub fn check(&self, what: &str, labels: Option<&HashMap<String, String>>) -> Result<(), EngineError> {
        let none = HashMap::new();
        let labels = labels.unwrap_or(&none);
        let own = self.labels();
        let differs = |label: &str| labels.get(label) != own.get(label);
        let whose = if !labels.contains_key(POD_LABEL) || differs(POD_LABEL) {
            "was not made by adea for this pod".to_owned()
        } else if differs(RING_LABEL) {
            "belongs to a pod of the same name in another ring".to_owned()
        } else if differs(DATA_LABEL) {
            let data = labels.get(DATA_LABEL).map_or("", String::as_str);
            format!("belongs to this pod's agent for another data folder, {data}")
        } else {
            return Ok(());
        };
        Err(EngineError::Foreign { what: what.to_owned(), whose })
    }
}

impl Recipe {
    /// A hash of all that a container is made by.
    pub fn hash(&self, program: Program, launch: &Launch) -> String {
        let parts =
            (FORMAT, program, launch, (&self.docker.user, &self.docker.memory_mib, &self.docker.cpus), &self.log);
        let text = serde_json::to_vec(&parts).unwrap_or_default();
        hex::encode(&Sha256::digest(text)[..16])
    }

    /// The pod's own network: what is on it reaches rean without TLS, so nothing else is put there.
    pub fn network(&self) -> NetworkCreateRequest {
        NetworkCreateRequest {
            name: self.owner.network(),
            driver: Some("bridge".to_owned()),
            labels: Some(self.owner.labels()),
            ..NetworkCreateRequest::default()
        }
    }

    fn environment(&self, program: Program) -> Vec<String> {
        let mut env = vec![format!("{FILTER_ENV}={}", self.log), NO_HUGE_PAGES.to_owned()];
        if program == Program::Proxy {
            // Hashing a password takes 19 MiB for a moment; rean gives and takes too often for this.
            env.push("MIMALLOC_PURGE_DELAY=0".to_owned());
        }
        env
    }

    /// The container of a program.
    pub fn container(&self, program: Program, launch: &Launch) -> ContainerCreateBody {
        let mut labels = self.owner.labels();
        labels.insert(PROGRAM_LABEL.to_owned(), program.name().to_owned());
        labels.insert(LAUNCH_LABEL.to_owned(), self.hash(program, launch));
        let endpoint =
            EndpointSettings { aliases: Some(vec![program.name().to_owned()]), ..EndpointSettings::default() };
        let inside = |port: u16| format!("{port}/tcp");
        ContainerCreateBody {
            image: Some(launch.software.clone()),
            cmd: Some(launch.args.clone()),
            env: Some(self.environment(program)),
            user: Some(format!("{0}:{0}", self.docker.user)),
            labels: Some(labels),
            exposed_ports: Some(launch.shares.ports.iter().map(|port| inside(port.inside)).collect()),
            healthcheck: Some(HealthConfig {
                test: Some(vec![
                    "CMD".to_owned(),
                    format!("/{PROGRAM}"),
                    "health".to_owned(),
                    "--url".to_owned(),
                    format!("http://127.0.0.1:{}/_up", launch.up.port()),
                ]),
                // For people who look at `docker ps`; the agent itself asks more often, and costs no process each time.
                interval: Some(30 * SECOND_NS),
                timeout: Some(5 * SECOND_NS),
                start_period: Some(30 * SECOND_NS),
                retries: Some(3),
                start_interval: None,
            }),
            stop_signal: Some("SIGTERM".to_owned()),
            stop_timeout: Some(STOP_TIMEOUT_S),
            host_config: Some(self.host_config(program, launch)),
            networking_config: Some(NetworkingConfig {
                endpoints_config: Some(HashMap::from([(self.owner.network(), endpoint)])),
            }),
            ..ContainerCreateBody::default()
        }
    }

    fn host_config(&self, program: Program, launch: &Launch) -> HostConfig {
        let mounts = launch.shares.mounts.iter().map(|mount| Mount {
            typ: Some(MountType::BIND),
            source: Some(mount.from.display().to_string()),
            target: Some(mount.to.to_owned()),
            read_only: Some(!mount.writable),
            ..Mount::default()
        });
        let ports = launch.shares.ports.iter().map(|port| {
            let binding = PortBinding {
                host_ip: Some(port.outside.ip().to_string()),
                host_port: Some(port.outside.port().to_string()),
            };
            (format!("{}/tcp", port.inside), Some(vec![binding]))
        });
        let log =
            HashMap::from([("max-size".to_owned(), LOG_SIZE.to_owned()), ("max-file".to_owned(), "2".to_owned())]);
        let memory = self.docker.memory_mib.get(&program).filter(|mib| **mib > 0);
        let memory = memory.map(|mib| i64::try_from(mib.saturating_mul(MIB)).unwrap_or(i64::MAX));
        let cpus = self.docker.cpus.get(&program).filter(|cpus| **cpus > 0.0);
        HostConfig {
            mounts: Some(mounts.collect()),
            port_bindings: Some(ports.collect()),
            network_mode: Some(self.owner.network()),
            readonly_rootfs: Some(true),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            pids_limit: Some(MAX_PIDS),
            log_config: Some(HostConfigLogConfig { typ: Some("local".to_owned()), config: Some(log) }),
            // The agent starts it again, after a pause and in order.
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            memory,
            // A database that swaps is slower than one that starts again.
            memory_swap: memory,
            // Cores are given to the billionth, of which a fraction of one is no matter.
            nano_cpus: cpus.map(|cpus| (cpus * 1e9) as i64),
            ..HostConfig::default()
        }
    }
}
