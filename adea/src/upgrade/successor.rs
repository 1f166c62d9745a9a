//! Which program is the agent: after an upgrade it is the ring's, in the place of the one that was installed.
//!
//! Whatever starts the agent always starts the installed program; that becomes the ring's (`exec`, the process stays the
//! same) before it does anything else. So when the ring's program ends at once, there is one left that notices, and goes
//! back.

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::folder::Folder;
use crate::process::this_program;
use crate::upgrade::core::MAX_AGENT_TRIES;
use crate::upgrade::journal::Journal;

/// The arguments that this agent was started with, as podctl takes them.
pub fn arguments() -> Vec<OsString> {
    let mut given = std::env::args_os();
    let name = given.next().unwrap_or_default();
    let is_agent_only = Path::new(&name).file_name().is_some_and(|name| name == "adea");
    is_agent_only.then(|| "adea".into()).into_iter().chain(given).collect()
}

/// Goes on as the program that is to be the agent, if that is another. Returns when this one is it, or the other can't
/// be: what went wrong is logged, and the upgrade notices. Of the configuration only the data folder counts here: the
/// other program may be of a later version, whose configuration this one can't read.
pub fn hand_over(config: &Path) {
    let data_dir = fs::read(config).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let data_dir = data_dir.and_then(|config| Some(PathBuf::from(config.get("data_dir")?.as_str()?)));
    let Some(folder) = data_dir.filter(|dir| dir.is_dir()).and_then(|dir| Folder::new(&dir).ok()) else {
        // The first start, or a configuration that will be refused.
        return;
    };
    if let Err(err) = try_hand_over(&folder) {
        tracing::error!("going on as the program that was installed: {err}");
    }
}

fn try_hand_over(folder: &Folder) -> Result<(), Box<dyn Error>> {
    let mut journal = Journal::load(folder)?;
    let program = this_program()?.canonicalize()?;
    if journal.heed_installed(&program) {
        tracing::warn!("another {} was installed: it counts from now on, not the ring's", program.display());
        journal.save(folder)?;
    }
    let Some(agent) = journal.agent.clone().filter(|agent| *agent != program) else { return Ok(()) };
    if journal.agent_tries > MAX_AGENT_TRIES {
        return Err(format!("{} ended at once each time that it was begun", agent.display()).into());
    }
    // It begins with one more; a run that goes well sets it back.
    journal.agent_tries += 1;
    journal.save(folder)?;
    tracing::info!("going on as {}, which the ring has put here", agent.display());
    let err = Command::new(&agent).args(arguments()).exec();
    Err(format!("{} can't be started: {err}", agent.display()).into())
}

/// Begins anew, as the program that is to be the agent. Returns only when that can't be done.
pub fn begin_anew(folder: &Folder) -> io::Error {
    if let Err(err) = try_hand_over(folder) {
        tracing::error!("beginning anew as this program: {err}");
    }
    match this_program() {
        Ok(program) => Command::new(program).args(std::env::args_os().skip(1)).exec(),
        Err(err) => err,
    }
}
