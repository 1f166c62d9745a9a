//! Ports and addresses of this machine.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::{Context, bail};

/// An address of the documentation's network (RFC 5737), by which the way out of this machine is asked for; nothing is
/// sent there.
const OUTSIDE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), 9);

/// Whether the pod can listen there.
pub fn check_free(listen: SocketAddr, ring: SocketAddr, redirect: Option<SocketAddr>) -> anyhow::Result<()> {
    for (option, addr) in [("--listen", listen), ("--ring-listen", ring)] {
        if addr.port() == 0 {
            bail!("{option} must name a port: the others need to know it");
        }
    }
    if listen.port() == ring.port() {
        bail!("--listen and --ring-listen need two ports");
    }
    let redirect = redirect.map(|addr| ("the way to HTTPS", addr));
    for (option, addr) in [("--listen", listen), ("--ring-listen", ring)].into_iter().chain(redirect) {
        TcpListener::bind(addr).map(drop).or_else(|err| explain(option, addr, "TCP", &err))?;
    }
    UdpSocket::bind(ring).map(drop).or_else(|err| explain("--ring-listen", ring, "UDP", &err))
}

fn explain(option: &str, addr: SocketAddr, kind: &str, err: &io::Error) -> anyhow::Result<()> {
    let port = addr.port();
    match err.kind() {
        io::ErrorKind::AddrInUse => {
            bail!(
                "{kind} port {port} is taken ({option}): `ss -tulpn` shows by what; stop that, or choose another port"
            )
        }
        io::ErrorKind::PermissionDenied => {
            bail!("{kind} port {port} may not be listened on ({option}): do this as root, or choose one above 1023")
        }
        io::ErrorKind::AddrNotAvailable => bail!("{} is no address of this machine ({option})", addr.ip()),
        _ => bail!("{addr} can't be listened on ({option}, {kind}): {err}"),
    }
}

/// The address of this machine by which it reaches another, or else the outside.
pub fn source_address(towards: Option<SocketAddr>) -> Option<IpAddr> {
    let towards = towards.unwrap_or(OUTSIDE);
    let any: IpAddr =
        if towards.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let way = || -> anyhow::Result<IpAddr> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(towards).context("no way there")?;
        Ok(socket.local_addr()?.ip())
    };
    way().ok().filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::{check_free, source_address};
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    #[test]
    fn a_taken_port_is_named() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let udp_at = udp.local_addr().unwrap();
        let err = |listen, ring| check_free(listen, ring, None).unwrap_err().to_string();
        assert!(err(free, udp_at).contains("UDP port"), "{}", err(free, udp_at));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap();
        assert!(err(taken, free).contains(&taken.port().to_string()));
        assert!(err(free, free).contains("two ports"));
        assert!(err("127.0.0.1:0".parse().unwrap(), free).contains("--listen must name a port"));
        assert!(err("203.0.113.7:4000".parse().unwrap(), free).contains("no address of this machine"));
    }

    #[test]
    fn the_way_to_this_machine_is_itself() {
        let here = source_address(Some((Ipv4Addr::LOCALHOST, 9).into()));
        assert_eq!(here, Some(Ipv4Addr::LOCALHOST.into()));
    }
}
