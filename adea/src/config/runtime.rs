//! Who runs the programs: `"process"`, or `{"docker": {"socket": "/var/run/docker.sock", "memory_mib": {"rean": 2048}}}`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::plan::Program;

/// Who runs the programs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeConfig {
    /// The agent itself, as child processes.
    #[default]
    Process,
    /// Docker, as containers.
    Docker(DockerConfig),
}

/// How Docker runs them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DockerConfig {
    /// The engine's socket on this machine.
    pub socket: PathBuf,
    /// The image; without it, one that is made from the running program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The user and group that the programs run as, and that their data belongs to.
    pub user: u32,
    /// The most memory of a program, in MiB, 64 or more; 0 or nothing is no limit.
    pub memory_mib: BTreeMap<Program, u64>,
    /// The most cores of a program, 0.1 or more; 0 or nothing is no limit.
    pub cpus: BTreeMap<Program, f64>,
    /// Whether an image that the engine doesn't have is fetched from its registry.
    pub pull: bool,
}

/// Less memory than this is not enough to start with.
const MIN_MEMORY_MIB: u64 = 64;
/// With less of a core than this a program misses the deadlines of the others.
const MIN_CPUS: f64 = 0.1;

impl Default for DockerConfig {
    fn default() -> Self {
        Self {
            socket: "/var/run/docker.sock".into(),
            image: None,
            // "Nonroot" of the images that are made from scratch; no system gives it to a person.
            user: 65_532,
            memory_mib: BTreeMap::new(),
            cpus: BTreeMap::new(),
            pull: true,
        }
    }
}

impl RuntimeConfig {
    /// Docker's part, if it runs the programs.
    pub fn docker(&self) -> Option<&DockerConfig> {
        match self {
            Self::Process => None,
            Self::Docker(config) => Some(config),
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, reason: &str| Err(ConfigError::Value { key, reason: reason.to_owned() });
        let Self::Docker(config) = self else { return Ok(()) };
        if !config.socket.is_absolute() {
            return wrong("runtime.docker.socket", "must be the absolute path of a socket, as /var/run/docker.sock");
        }
        if config.image.as_ref().is_some_and(|image| !is_image_name(image)) {
            return wrong("runtime.docker.image", "is no name of an image, as registry.example.org/adea:0.1.0");
        }
        if config.user == 0 {
            return wrong("runtime.docker.user", "must not be 0: the programs need no rights of root");
        }
        if config.memory_mib.values().any(|mib| (1..MIN_MEMORY_MIB).contains(mib) || *mib > 1 << 24) {
            return wrong("runtime.docker.memory_mib", "must be 0 or from 64 to 16777216");
        }
        if config.cpus.values().any(|cpus| *cpus != 0.0 && !(MIN_CPUS..=4_096.0).contains(cpus)) {
            return wrong("runtime.docker.cpus", "must be 0 or from 0.1 to 4096");
        }
        Ok(())
    }
}

/// Whether a text may be the name of an image: the engine checks the rest of it.
pub fn is_image_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/@".contains(&byte);
    // Longer ones are no names: a repository has at most 255 characters, a tag 128.
    (1..=512).contains(&text.len()) && text.bytes().all(fits) && text.as_bytes()[0].is_ascii_alphanumeric()
}
