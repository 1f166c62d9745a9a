//! The runtime that starts programs as plain child processes.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal as OsSignal, kill_process};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::config::LogTo;
use crate::folder::Folder;
use crate::logging::FILTER_ENV;
use crate::logs::{self, LOG_BYTES};
use crate::plan::{Launch, Program};
use crate::runtime::{Runtime, RuntimeError, Sighting, Signal};

/// A busy database answers late, a dead one never; the agent waits for either meanwhile.
const HEALTH_DEADLINE: Duration = Duration::from_secs(2);
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
        let mut command = Command::new(&launch.exe);
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
    async fn start(&mut self, program: Program, launch: &Launch) -> Result<u32, RuntimeError> {
        if let Some(child) = self.children.get(&program)
            && child.ended.borrow().is_none()
        {
            return Ok(child.pid);
        }
        let child = self.spawn(program, launch).map_err(|source| RuntimeError { step: "start", program, source })?;
        let pid = child.pid;
        self.children.insert(program, child);
        Ok(pid)
    }

    async fn signal(&mut self, program: Program, signal: Signal) -> Result<(), RuntimeError> {
        if let Some(child) = self.children.get(&program) {
            // A full channel holds the same signals already; a closed one means that the child is gone.
            let _ = child.signals.try_send(signal);
        }
        Ok(())
    }

    async fn look(&mut self) -> Vec<Sighting> {
        self.bound_logs();
        self.children
            .iter()
            .map(|(program, child)| Sighting { program: *program, pid: child.pid, ended: child.ended.borrow().clone() })
            .collect()
    }

    async fn healthy(&mut self, _program: Program, launch: &Launch) -> bool {
        matches!(timeout(HEALTH_DEADLINE, ask_up(launch.addr)).await, Ok(Ok(StatusCode::OK)))
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

/// The status of `GET /_up` at `addr`.
async fn ask_up(addr: SocketAddr) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(addr).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/_up").header(HOST, addr.to_string()).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    // Read to the end, so that the server doesn't log a client that went away.
    let _ = response.into_body().collect().await;
    connection.abort();
    Ok(status)
}
