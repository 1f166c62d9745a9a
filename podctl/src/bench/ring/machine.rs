//! A pod whose processes can be taken down, as if its machine had lost its power.

use std::path::Path;

use adea::folder::Folder;
use adea::plan::Program;
use adea::ring_file::RingFile;
use adea::state::State;
use adea_ring::Signer;
use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::http::Peer;

/// A pod of a `podctl dev` on this machine.
pub struct Machine {
    /// Where clients reach it.
    pub url: String,
    /// The same, as the administrator.
    pub peer: Peer,
    /// Signs what is asked of its database server.
    pub signer: Signer,
    folder: Folder,
}

/// A pod that is down until this is dropped: its database server and proxy are killed, and its agent, which would start
/// them again, stands still. To the other pods that is the same as a crash of all three.
pub struct Down {
    agent: Pid,
}

impl Machine {
    /// The pod of a folder, if it runs there.
    pub fn load(place: &Path, name: &str, password: &str) -> anyhow::Result<Option<Self>> {
        let folder = Folder::new(place)?;
        let Some(state) = State::load(&folder.state_file()) else { return Ok(None) };
        let Some(proxy) = state.programs.get(&Program::Proxy).and_then(|proxy| proxy.addr) else { return Ok(None) };
        let url = format!("http://{proxy}");
        let peer = Peer::parse(&url)?.with_login(name, password)?;
        let ring_file = folder.ring_file();
        let file = RingFile::load(&ring_file)?.with_context(|| format!("there is no {}", ring_file.display()))?;
        let signer = Signer::new(&file.secret().context("the ring's secret")?);
        Ok(Some(Self { url, peer, signer, folder }))
    }

    /// Where its database server listens now.
    pub fn rean(&self) -> anyhow::Result<String> {
        let rean = self.state()?.programs.get(&Program::Rean).and_then(|rean| rean.addr);
        Ok(format!("http://{}", rean.with_context(|| format!("{} has no database server", self.url))?))
    }

    /// Takes it down.
    pub fn take_down(&self) -> anyhow::Result<Down> {
        let state = self.state()?;
        let agent = pid(state.adea_pid).with_context(|| format!("{} has no agent", self.url))?;
        kill_process(agent, Signal::STOP)?;
        let down = Down { agent };
        // Read anew: the agent may have started one just before it stood still.
        for program in self.state()?.programs.values() {
            if let Some(pid) = program.pid.and_then(pid) {
                kill_process(pid, Signal::KILL)?;
            }
        }
        Ok(down)
    }

    fn state(&self) -> anyhow::Result<State> {
        let path = self.folder.state_file();
        let Some(state) = State::load(&path) else { bail!("there is no {}", path.display()) };
        Ok(state)
    }
}

impl Down {
    /// Lets the agent go on: it starts the others again.
    pub fn let_up(self) {
        drop(self);
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        if let Err(error) = kill_process(self.agent, Signal::CONT) {
            eprintln!("the agent {} can't be let go on: {error}", self.agent.as_raw_nonzero());
        }
    }
}

fn pid(raw: u32) -> Option<Pid> {
    i32::try_from(raw).ok().and_then(Pid::from_raw)
}
