//! Who listens at a port of this machine: a pass of the pod goes to nobody else.
//!
//! The public port is often one that any user may take while the pod is away. Linux lists all sockets that listen, with
//! their owners (`/proc/net/tcp`, <https://docs.kernel.org/networking/proc_net_tcp.html>).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::bail;

/// The state of a socket that listens.
const LISTENS: &str = "0A";

/// Refuses an address at which somebody else than root, this user or the owner of the pod's data listens. Where nobody
/// does, there is nobody to be refused: the connection fails, or the system sends it on to a container.
pub fn check(address: SocketAddr, data_dir: &Path) -> anyhow::Result<()> {
    let mut trusted = vec![0, rustix::process::geteuid().as_raw()];
    trusted.extend(fs::metadata(data_dir).map(|about| about.uid()));
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A machine without IPv6 has no such table.
        let table = fs::read_to_string(table).unwrap_or_default();
        if let Some(uid) = owners(&table, address).find(|uid| !trusted.contains(uid)) {
            bail!(
                "the user {uid} of this machine listens at {address} in the pod's place, and would learn how to act as \
                 its administrator: end that program, and start the pod"
            );
        }
    }
    Ok(())
}

/// The owners of what listens where a connection to this address arrives.
fn owners(table: &str, address: SocketAddr) -> impl Iterator<Item = u32> {
    table.lines().skip(1).filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, uid) = (fields.get(1)?, fields.get(3)?, fields.get(7)?);
        let (ip, port) = local.split_once(':')?;
        let ip = ip_of(ip)?;
        let is_there = u16::from_str_radix(port, 16) == Ok(address.port())
            && (ip.is_unspecified() || ip == address.ip().to_canonical());
        (*state == LISTENS && is_there).then(|| uid.parse().ok())?
    })
}

/// An address as the kernel prints it: words of four bytes, each as this machine has it in memory.
fn ip_of(text: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> = (0..text.len() / 8)
        .map(|n| Some(u32::from_str_radix(text.get(n * 8..n * 8 + 8)?, 16).ok()?.to_ne_bytes()))
        .collect();
    let bytes = words?.concat();
    match bytes.len() {
        4 => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))),
        16 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::{check, owners};

    #[test]
    fn the_owner_of_a_listener_is_found() {
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let me = rustix::process::geteuid().as_raw();
            let here = ([127, 0, 0, 1], port).into();
            assert_eq!(owners(&table, here).collect::<Vec<_>>(), [me], "{address}");
            assert!(check(here, std::path::Path::new("/")).is_ok());
        }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn tables_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1760 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1\n\
             1: 0100007F:1760 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1001        0 2 1\n\
             2: 0200007F:1760 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1002        0 3 1\n\
             3: 00000000000000000000000000000000:1760 00000000000000000000000000000000:0000 0A 00000000:00000000 \
             00:00000000 00000000  1003        0 4 1\n\
             4: 0000000000000000FFFF00000100007F:1760 00000000000000000000000000000000:0000 0A 00000000:00000000 \
             00:00000000 00000000  1004        0 5 1\n";
        let found: Vec<u32> = owners(table, "127.0.0.1:5984".parse().unwrap()).collect();
        assert_eq!(found, [1000, 1003, 1004]);
        assert_eq!(owners(table, "127.0.0.1:5985".parse().unwrap()).count(), 0);
    }
}
