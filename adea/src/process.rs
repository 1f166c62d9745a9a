//! The runtime that starts programs as plain child processes.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal as OsSignal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use crate::config::LogTo;
use crate::folder::Folder;
use crate::health;
use crate::logging::FILTER_ENV;
use crate::logs::{self, LOG_BYTES};
use crate::plan::{Desired, Launch, Program};
use crate::runtime::{Found, Instance, Runtime, RuntimeError, Sighting, Signal};

/// How often to look at the length of the logs.
const LOG_LOOK: Duration = Duration::from_secs(2);

/// Programs as child processes.
#[derive(Debug)]
pub struct ProcessRuntime {
    folder: Folder,
    log_to: LogTo,
    log_filter: String,
    children: BTreeMap<Program, Watched>,
    ended: Arc<Notify>,
    logs_looked: Instant,
}

/// A child process and the task that watches it.
#[derive(Debug)]
struct Watched {
    pid: u32,
    signals: mpsc::Sender<Signal>,
    ended: watch::Receiver<Option<String>>,
}

impl ProcessRuntime {
    /// A runtime with nothing running.
    pub fn new(folder: Folder, log_to: LogTo, log_filter: String) -> Self {
        Self {
            folder,
            log_to,
            log_filter,
            children: BTreeMap::new(),
            ended: Arc::new(Notify::new()),
            logs_looked: Instant::now(),
        }
    }

    fn spawn(&self, program: Program, launch: &Launch) -> io::Result<Watched> {
        let mut command = Command::new(&launch.software);
        command
            .args(&launch.args)
            .env(FILTER_ENV, &self.log_filter)
            .stdin(Stdio::piped())
            // A Ctrl-C at the terminal goes to its whole process group; the order of stopping is the agent's.
            .process_group(0);
        if self.log_to == LogTo::Files {
            let log = logs::open(&self.folder.log_file(program.name()))?;
            command.stdout(log.try_clone()?).stderr(log);
        }
        let child = command.spawn()?;
        let pid = child.id().ok_or_else(|| io::Error::other("it ended at once"))?;
        // Two signals are all that one program ever gets.
        let (signals, to_send) = mpsc::channel(2);
        let (ended, end_seen) = watch::channel(None);
        tokio::spawn(watch_child(child, to_send, ended, Arc::clone(&self.ended)));
        Ok(Watched { pid, signals, ended: end_seen })
    }

    fn bound_logs(&mut self) {
        if self.log_to != LogTo::Files || self.logs_looked.elapsed() < LOG_LOOK {
            return;
        }
        self.logs_looked = Instant::now();
        let names = self.children.keys().map(|program| program.name());
        for name in names.chain(["adea"]) {
            if let Err(err) = logs::bound(&self.folder.log_file(name), LOG_BYTES) {
                tracing::warn!("can't shorten the log of {name}: {err}");
            }
        }
    }
}

impl Runtime for ProcessRuntime {
    /// Each child holds the other end of a pipe, and goes with its parent.
    const OUTLIVES_AGENT: bool = false;

    async fn find(&mut self, _desired: &Desired) -> Result<Vec<Found>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn start(&mut self, program: Program, launch: &Launch) -> Result<Instance, RuntimeError> {
        let pid = match self.children.get(&program) {
            Some(child) if child.ended.borrow().is_none() => child.pid,
            _ => {
                let spawned = self.spawn(program, launch);
                let child = spawned.map_err(|source| RuntimeError::new(format!("start {program}"), source))?;
                let pid = child.pid;
                self.children.insert(program, child);
                pid
            }
        };
        let is_this = this_program().is_ok_and(|path| path == Path::new(&launch.software));
        let version = is_this.then(|| adea_ring::software::version().to_owned());
        Ok(Instance { pid, addr: reachable(launch.up), container: None, version })
    }

    async fn signal(&mut self, program: Program, signal: Signal) -> Result<(), RuntimeError> {
        if let Some(child) = self.children.get(&program) {
            // A full channel holds the same signals already; a closed one means that the child is gone.
            let _ = child.signals.try_send(signal);
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<Vec<Sighting>, RuntimeError> {
        self.bound_logs();
        let sightings = self.children.iter().map(|(program, child)| Sighting {
            program: *program,
            pid: child.pid,
            ended: child.ended.borrow().clone(),
        });
        Ok(sightings.collect())
    }

    async fn healthy(&mut self, _program: Program, addr: SocketAddr) -> bool {
        health::is_well(addr).await
    }

    async fn changed(&mut self) {
        self.ended.notified().await;
    }
}

/// The file of the running program, also where a new build has replaced it since: Linux then adds a word to its name.
///
/// # Errors
/// When Linux doesn't tell.
pub fn this_program() -> io::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    match exe.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(replaced) => Ok(PathBuf::from(replaced)),
        None => Ok(exe),
    }
}

/// Where a listener on `addr` is reached from this machine.
fn reachable(addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() { SocketAddr::from((Ipv4Addr::LOCALHOST, addr.port())) } else { addr }
}

/// Waits for a child to end and hands it signals meanwhile. One task does both, so that no signal is ever sent to a
/// process id that has been given to someone else.
async fn watch_child(
    mut child: Child,
    mut signals: mpsc::Receiver<Signal>,
    ended: watch::Sender<Option<String>>,
    notify: Arc<Notify>,
) {
    // Held open until the child is gone; `wait` would close it, and so tell the child that its parent is gone.
    let parent_pipe = child.stdin.take();
    let end = loop {
        tokio::select! {
            end = child.wait() => break end,
            Some(signal) = signals.recv() => send(&child, signal),
        }
    };
    drop(parent_pipe);
    ended.send_replace(Some(describe(end)));
    notify.notify_one();
}

fn send(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let Some(pid) = pid else {
        return;
    };
    let os_signal = match signal {
        Signal::Terminate => OsSignal::TERM,
        Signal::Kill => OsSignal::KILL,
    };
    if let Err(err) = kill_process(pid, os_signal) {
        tracing::warn!("can't signal process {}: {err}", pid.as_raw_nonzero());
    }
}

fn describe(end: io::Result<ExitStatus>) -> String {
    match end {
        // "exit status: 1", "signal: 9 (SIGKILL)"
        Ok(status) => status.to_string(),
        Err(err) => format!("unknown: {err}"),
    }
}
