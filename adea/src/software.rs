//! Which software a pod's programs are: it changes while the agent runs, and the programs with it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What the programs are to be started from. What is none is what the configuration says, or else this very program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Software {
    /// The image, by a name that the engine knows; only where they run in containers.
    pub image: Option<String>,
    /// The program file that can be each of the programs; only where they run as child processes.
    pub program: Option<PathBuf>,
}
