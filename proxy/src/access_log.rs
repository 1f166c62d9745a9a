//! The access log: one line a request, to the program's log or to a file of its own.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::clock;
use crate::config::AccessLogTarget;
use crate::metrics::Metrics;

/// Lines that may wait for the disk: about 2 MB. When it is slower than that, lines are lost and counted, as a full
/// disk must not stop the service.
const WAITING_LINES: usize = 16_384;

/// Where access log lines go.
#[derive(Debug)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// To the program's log, target `access`.
    Log,
    /// To a file, by a thread of its own.
    File(SyncSender<String>),
}

/// One line.
#[derive(Debug)]
pub struct Line<'a> {
    /// The method.
    pub method: &'a str,
    /// The path without the query.
    pub path: &'a str,
    /// The answer's status.
    pub status: u16,
    /// Body bytes sent.
    pub bytes: u64,
    /// Milliseconds from the request's header to the end of the answer.
    pub ms: u128,
    /// The account.
    pub user: Option<&'a str>,
    /// The client's address.
    pub peer: IpAddr,
    /// Whether the answer broke off.
    pub broken: bool,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, path, status, bytes, ms, peer, .. } = self;
        write!(f, "method={method} path={path:?} status={status} bytes={bytes} ms={ms} peer={peer}")?;
        // Names are the users' own: quoted, so that none can forge a line.
        if let Some(user) = self.user {
            write!(f, " user={user:?}")?;
        }
        if self.broken { f.write_str(" broken=true") } else { Ok(()) }
    }
}

impl AccessLog {
    /// Opens the log.
    ///
    /// # Errors
    /// When its file can't be opened or its thread can't be started.
    pub fn open(target: &AccessLogTarget) -> std::io::Result<Self> {
        match target {
            AccessLogTarget::Off => Ok(Self::Off),
            AccessLogTarget::Log => Ok(Self::Log),
            AccessLogTarget::File(path) => open_file(path),
        }
    }

    /// Whether lines go anywhere now.
    pub fn is_on(&self) -> bool {
        match self {
            Self::Off => false,
            Self::Log => tracing::enabled!(target: "access", tracing::Level::INFO),
            Self::File(_) => true,
        }
    }

    /// Writes a line, never waiting for the disk.
    pub fn write(&self, line: &Line<'_>, metrics: &Metrics) {
        match self {
            Self::Off => {}
            Self::Log => tracing::info!(target: "access", "{line}"),
            Self::File(sender) => {
                let text = format!("{} {line}\n", clock::iso8601(clock::now_ms()));
                if sender.try_send(text).is_err() {
                    metrics.log_lines_lost.fetch_add(1, Relaxed);
                }
            }
        }
    }
}

fn open_file(path: &Path) -> std::io::Result<AccessLog> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let (sender, receiver) = sync_channel(WAITING_LINES);
    std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write_lines(file, &receiver))?;
    Ok(AccessLog::File(sender))
}

/// Ends when the last sender is gone. Flushes whenever it has caught up.
fn write_lines(file: File, lines: &Receiver<String>) {
    let mut file = BufWriter::new(file);
    while let Ok(first) = lines.recv() {
        let mut result = file.write_all(first.as_bytes());
        while let Ok(line) = lines.try_recv() {
            result = result.and_then(|()| file.write_all(line.as_bytes()));
        }
        if let Err(error) = result.and_then(|()| file.flush()) {
            tracing::warn!(%error, "the access log can't be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_can_not_be_forged() {
        let line = Line {
            method: "GET",
            path: "/a",
            status: 200,
            bytes: 3,
            ms: 1,
            user: Some("x\nmethod=PUT"),
            peer: IpAddr::from([127, 0, 0, 1]),
            broken: false,
        };
        let text = line.to_string();
        assert_eq!(text, r#"method=GET path="/a" status=200 bytes=3 ms=1 peer=127.0.0.1 user="x\nmethod=PUT""#);
    }
}
