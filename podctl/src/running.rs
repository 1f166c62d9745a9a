//! What runs in a data folder of `podctl dev`, as its agents' accounts tell.

use std::path::Path;

use adea::folder::Folder;
use adea::plan::Program;
use adea::ring_file::RingFile;
use adea::state::State;
use anyhow::{Context, bail};

use crate::dev;

/// A data folder in which something has been started.
pub struct Running {
    /// The pods that have been started and not stopped; some may have been killed since. The first is not always there.
    pub pods: Vec<RunningPod>,
    /// The administrator's name.
    pub name: String,
    /// The administrator's password.
    pub password: String,
}

/// A pod that has been started.
pub struct RunningPod {
    /// Where clients reach it.
    pub url: String,
    /// Its programs' process ids.
    pub pids: Vec<u32>,
}

impl Running {
    /// Reads the accounts of a data folder.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        if !path.is_dir() {
            bail!("{} is no folder", path.display());
        }
        let ring_file = path.join("ring.json");
        let ring = RingFile::load(&ring_file)?.with_context(|| format!("there is no {}", ring_file.display()))?;
        let pods: Vec<RunningPod> =
            dev::pods::places(path).iter().filter_map(|place| RunningPod::load(place)).collect();
        if pods.is_empty() {
            bail!("nothing runs in {}", path.display());
        }
        let password = ring
            .dev
            .map(|dev| dev.admin_password)
            .with_context(|| format!("{} was not made by `podctl dev`: give a URL with a log-in", path.display()))?;
        Ok(Self { pods, name: ring.admin.name, password })
    }
}

impl RunningPod {
    fn load(place: &Path) -> Option<Self> {
        let folder = Folder::new(place).ok()?;
        let programs = State::load(&folder.state_file())?.programs;
        let proxy = programs.get(&Program::Proxy)?.addr?;
        let pids = programs.values().filter_map(|program| program.pid).collect();
        Some(Self { url: format!("http://{proxy}"), pids })
    }
}
