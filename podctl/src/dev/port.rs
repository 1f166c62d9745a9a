//! Whether the ports that others need to know are free, and who has one if not.

use std::fs;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;

use adea::folder::Folder;
use adea::state::State;
use anyhow::bail;
use tokio::time::{Instant, sleep};

use crate::dev::pods::{Pod, loopback};

/// What is left of an earlier run ends within the agent's own deadline.
const EARLIER_RUN_DEADLINE: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(50);
/// What a port is listened on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
}

/// A process that listens on a port.
#[derive(Debug, PartialEq, Eq)]
struct Holder {
    pid: u32,
    name: String,
}

/// Waits until all ports of the pods are free, if what has one is an earlier run in the same folder that is just ending.
pub async fn wait_until_free(pods: &[Pod]) -> anyhow::Result<()> {
    let deadline = Instant::now() + EARLIER_RUN_DEADLINE;
    let mut told = false;
    for pod in pods {
        let of_the_ring = pod.ring_port.into_iter().flat_map(|port| [(port, Kind::Tcp), (port, Kind::Udp)]);
        for (port, kind) in [(pod.port, Kind::Tcp)].into_iter().chain(of_the_ring) {
            wait_for_one(port, kind, &pod.folder, deadline, &mut told).await?;
        }
    }
    Ok(())
}

async fn wait_for_one(
    port: u16,
    kind: Kind,
    folder: &Folder,
    deadline: Instant,
    told: &mut bool,
) -> anyhow::Result<()> {
    loop {
        let Err(taken) = kind.try_port(port) else { return Ok(()) };
        let holder = holder_of(port, kind);
        let earlier = holder.as_ref().is_some_and(|holder| is_of(folder, holder.pid));
        if !earlier || Instant::now() > deadline {
            let by = match holder {
                Some(Holder { pid, name }) => format!(" by process {pid} ({name})"),
                None => String::new(),
            };
            bail!(
                "port {port}{} is taken{by}: {taken}\nstop that first, or choose another port: --port {}",
                if kind == Kind::Udp { " (UDP)" } else { "" },
                port.checked_add(1000).unwrap_or(8080)
            );
        }
        if !*told {
            eprintln!("waiting for an earlier run in this folder to end ...");
            *told = true;
        }
        sleep(POLL).await;
    }
}

/// Whether a process is one of those that an earlier run in the folder has started.
fn is_of(folder: &Folder, pid: u32) -> bool {
    State::load(&folder.state_file())
        .is_some_and(|state| state.adea_pid == pid || state.programs.values().any(|program| program.pid == Some(pid)))
}

impl Kind {
    fn try_port(self, port: u16) -> io::Result<()> {
        match self {
            Self::Tcp => TcpListener::bind(loopback(port)).map(drop),
            Self::Udp => UdpSocket::bind(loopback(port)).map(drop),
        }
    }

    /// Linux's tables of its sockets, and how a socket that listens stands in them.
    fn tables(self) -> ([&'static str; 2], &'static str) {
        match self {
            Self::Tcp => (["/proc/net/tcp", "/proc/net/tcp6"], "0A"),
            Self::Udp => (["/proc/net/udp", "/proc/net/udp6"], "07"),
        }
    }
}

fn holder_of(port: u16, kind: Kind) -> Option<Holder> {
    let (paths, listening) = kind.tables();
    let inodes: Vec<String> = paths
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening_inodes(&table, port, listening))
        .collect();
    let sockets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        // Other people's processes don't show theirs.
        let has_it = fs::read_dir(process.path().join("fd"))
            .ok()?
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|link| sockets.iter().any(|socket| link == Path::new(socket)));
        has_it.then(|| Holder {
            pid,
            name: fs::read_to_string(process.path().join("comm"))
                .map(|name| name.trim().to_owned())
                .unwrap_or_default(),
        })
    })
}

/// The sockets that listen on the port, from one of Linux's tables of them (proc(5)): second column the local address as
/// `ADDRESS:PORT` in hexadecimal, fourth the state, tenth the inode.
fn listening_inodes(table: &str, port: u16, listening: &str) -> Vec<String> {
    let port = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let is_it = columns.get(1)?.ends_with(&port) && *columns.get(3)? == listening;
            is_it.then(|| columns.get(9).map(|inode| (*inode).to_owned()))?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Kind, holder_of, wait_until_free};
    use crate::dev::pods::Pod;
    use adea::folder::Folder;
    use std::net::{TcpListener, UdpSocket};

    #[tokio::test]
    async fn names_who_has_the_port() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        let pod = |port: u16, ring_port: Option<u16>| Pod { id: "p".into(), folder: folder.clone(), port, ring_port };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let ring_port = socket.local_addr().unwrap().port();
        let me = std::process::id();
        assert_eq!(holder_of(port, Kind::Tcp).unwrap().pid, me);
        assert_eq!(holder_of(ring_port, Kind::Udp).unwrap().pid, me);
        let err = wait_until_free(&[pod(port, None)]).await.unwrap_err().to_string();
        assert!(err.contains(&me.to_string()), "{err}");
        assert!(err.contains("--port"), "{err}");
        drop(listener);
        // Somebody else may take one that has just become free.
        let mut is_free = false;
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            is_free |= wait_until_free(&[pod(port, None)]).await.is_ok();
        }
        assert!(is_free);
        let err = wait_until_free(&[pod(port, Some(ring_port))]).await.unwrap_err().to_string();
        assert!(err.contains(&me.to_string()) && err.contains("UDP"), "{err}");
    }
}
