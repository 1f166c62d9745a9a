//! `state.json`: the agent's account of what runs, for people, tests and `podctl`.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::plan::Program;
use crate::ring_file::replace;

/// What the agent knows of its programs. Process ids of an agent that was killed stay in the file: check that
/// they live.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// The pod's name in its ring.
    pub pod_id: String,
    /// The agent's own process id; 0 once it has ended.
    pub adea_pid: u32,
    /// Each program.
    pub programs: BTreeMap<Program, ProgramState>,
    /// Why the agent can't do its work, if it can't.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// What the agent knows of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramState {
    /// The process id, if it runs.
    pub pid: Option<u32>,
    /// Where it listens.
    pub addr: Option<SocketAddr>,
    /// What it was started from: a program file or an image.
    #[serde(default)]
    pub software: Option<String>,
    /// The version of its build, where that is known.
    #[serde(default)]
    pub version: Option<String>,
    /// The container's name, if it is one.
    #[serde(default)]
    pub container: Option<String>,
    /// Whether it answered when last asked.
    pub healthy: bool,
    /// How many times it was started after the first.
    pub restarts: u32,
    /// How it last ended, in words.
    pub last_end: Option<String>,
}

/// The file, and what it says now.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    written: Option<State>,
}

impl State {
    /// Reads an agent's account; none if there is none, or none that makes sense.
    pub fn load(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }
}

impl StateFile {
    /// An account to be written to `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, written: None }
    }

    /// Writes the state if it has changed.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&mut self, state: State) -> io::Result<()> {
        if self.written.as_ref() == Some(&state) {
            return Ok(());
        }
        replace(&self.path, &serde_json::to_vec_pretty(&state)?)?;
        self.written = Some(state);
        Ok(())
    }
}
