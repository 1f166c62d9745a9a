//! Whether the public port is free, and who has it if not.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use adea::folder::Folder;
use adea::plan::Program;
use adea::state::State;
use anyhow::bail;
use tokio::time::{Instant, sleep};

/// What is left of an earlier run ends within the agent's own deadline.
const EARLIER_RUN_DEADLINE: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(50);
/// How Linux writes "listening" in /proc/net/tcp.
const LISTENING: &str = "0A";

/// A process that listens on a port.
#[derive(Debug, PartialEq, Eq)]
struct Holder {
    pid: u32,
    name: String,
}

/// Waits until the port is free, if what has it is an earlier run in the same folder that is just ending.
pub async fn wait_until_free(port: u16, folder: &Folder) -> anyhow::Result<()> {
    let deadline = Instant::now() + EARLIER_RUN_DEADLINE;
    let mut told = false;
    loop {
        let taken = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(()),
            Err(err) => err,
        };
        let holder = holder_of(port);
        let earlier = holder.as_ref().is_some_and(|holder| {
            State::load(&folder.state_file()).is_some_and(|state| {
                state.programs.get(&Program::Proxy).is_some_and(|proxy| proxy.pid == Some(holder.pid))
            })
        });
        if !earlier || Instant::now() > deadline {
            let by = match holder {
                Some(Holder { pid, name }) => format!(" by process {pid} ({name})"),
                None => String::new(),
            };
            bail!(
                "port {port} is taken{by}: {taken}\nstop that first, or choose another port: --port {}",
                port.checked_add(1000).unwrap_or(8080)
            );
        }
        if !told {
            eprintln!("waiting for an earlier run in this folder to end ...");
            told = true;
        }
        sleep(POLL).await;
    }
}

fn holder_of(port: u16) -> Option<Holder> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening_inodes(&table, port))
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

/// The sockets that listen on the port, from Linux's table of them (proc(5)): second column the local address as
/// `ADDRESS:PORT` in hexadecimal, fourth the state, tenth the inode.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    let port = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let is_it = columns.get(1)?.ends_with(&port) && *columns.get(3)? == LISTENING;
            is_it.then(|| columns.get(9).map(|inode| (*inode).to_owned()))?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{holder_of, wait_until_free};
    use adea::folder::Folder;
    use std::net::TcpListener;

    #[tokio::test]
    async fn names_who_has_the_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(holder_of(port).unwrap().pid, std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        let err = wait_until_free(port, &folder).await.unwrap_err().to_string();
        assert!(err.contains(&std::process::id().to_string()), "{err}");
        assert!(err.contains("--port"), "{err}");
        drop(listener);
        wait_until_free(port, &folder).await.unwrap();
    }
}
