//! Asks the ring and looks at this machine. What can't be learnt is a fact, too; nothing here fails.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use adea::Config as AgentConfig;
use adea::folder::Folder;
use adea::order_key;
use adea::ring_file::RingFile;
use adea::state::State;
use adea_ring::certificate::validity_s;
use adea_ring::config::DiskConfig;
use adea_ring::host::DiskLevel;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::engine;
use super::facts::{
    CertificateFacts, DockerFacts, Facts, MachineFacts, OrderKeyFacts, PodFacts, PortFacts, Rights, RingFacts,
};
use crate::command::doctor::Args;
use crate::http::Peer;
use crate::look::ring_config::{RingSettings, check};
use crate::look::status;
use crate::moment::now_ms;
use crate::ring::clocks;
use crate::ring::status::Row;

/// A pod or a name that takes longer is said not to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Gathers all of it.
pub async fn gather(args: &Args) -> Facts {
    let ring = ring(args).await.map_err(|err| format!("{err:#}"));
    let disk = ring.as_ref().map(|ring| ring.disk).unwrap_or_default();
    let machine = if args.ring_only { None } else { machine(args, &disk).await };
    Facts { ring, machine, now_s: i64::try_from(now_ms() / 1_000).unwrap_or(i64::MAX) }
}

async fn ring(args: &Args) -> anyhow::Result<RingFacts> {
    let mut conn = args.ask.target.connect().await?;
    let (pods, troubles) = status::pods_and_troubles(&mut conn).await?;
    // What can't be used is a trouble of its own; until then the defaults say what is full.
    let settings = RingSettings::read(&mut conn).await?;
    let disk = check(&settings.members).map(|config| config.disk).unwrap_or_default();
    let mut tried = Vec::new();
    for row in pods.rows.iter().filter(|row| row.is_alive()) {
        tried.push(try_pod(row, args).await);
    }
    Ok(RingFacts { pods, troubles, tried, disk })
}

async fn try_pod(row: &Row, args: &Args) -> PodFacts {
    let url = row.url();
    let mut facts = PodFacts {
        id: row.id.clone(),
        public_addresses: Ok(Vec::new()),
        public: Ok(()),
        clock_ahead_ms: None,
        certificate: None,
        ring_address: row.own["ring_address"].as_str().map(str::to_owned),
        ring_addresses: Ok(Vec::new()),
        ring_port: Ok(()),
        url,
    };
    if let Some(url) = facts.url.clone() {
        facts.public_addresses = addresses(&host_port_of(&url)).await;
        try_public(&url, args, &mut facts).await;
    }
    if let Some(address) = facts.ring_address.clone() {
        facts.ring_addresses = addresses(&address).await;
        facts.ring_port = connects(&address).await;
    }
    facts
}

/// Whether it answers at its URL, what its clock says, and what it shows.
async fn try_public(url: &str, args: &Args, facts: &mut PodFacts) {
    let peer = match Peer::parse(url) {
        Ok(peer) => peer,
        Err(err) => {
            facts.public = Err(format!("{err:#}"));
            return;
        }
    };
    if peer.is_https() {
        facts.certificate = certificate(&peer, args).await;
    }
    match timeout(PATIENCE, clocks::ahead_ms(&peer)).await {
        Ok(Ok(ahead_ms)) => facts.clock_ahead_ms = ahead_ms,
        Ok(Err(err)) => facts.public = Err(format!("{err:#}")),
        Err(_) => facts.public = Err("it does not answer".to_owned()),
    }
}

async fn certificate(peer: &Peer, args: &Args) -> Option<CertificateFacts> {
    let shown = timeout(PATIENCE, peer.certificates()).await.ok()?.ok()??;
    let until_s = shown.first().and_then(|certificate| validity_s(certificate)).map(|(_, until_s)| until_s);
    let trusting = match &args.ask.target.ca {
        None => Ok(peer.clone()),
        Some(ca) => adea_ring::trust::Trust::nobody().with_file(ca).map(|trust| peer.clone().with_trust(&trust)),
    };
    let untrusted = match trusting {
        Err(err) => Some(err.to_string()),
        Ok(peer) => match timeout(PATIENCE, peer.connect()).await {
            Ok(Err(err)) => Some(format!("{err:#}")),
            _ => None,
        },
    };
    Some(CertificateFacts { until_s, untrusted })
}

fn host_port_of(url: &str) -> String {
    let uri: http::Uri = url.parse().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    format!("{}:{port}", uri.host().unwrap_or_default())
}

async fn addresses(host_port: &str) -> Result<Vec<IpAddr>, String> {
    match timeout(PATIENCE, lookup_host(host_port)).await {
        Ok(Ok(found)) => Ok(found.map(|addr| addr.ip()).collect()),
        Ok(Err(err)) => Err(err.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

async fn connects(host_port: &str) -> Result<(), String> {
    match timeout(PATIENCE, TcpStream::connect(host_port)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(err)) => Err(err.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// This machine; none if no pod is on it.
async fn machine(args: &Args, disk: &DiskConfig) -> Option<MachineFacts> {
    let target = &args.ask.target;
    let path = target.config.display().to_string();
    if target.data.is_none() && target.config.exists() {
        return Some(match AgentConfig::load(&target.config) {
            Ok(config) => of_config(path, &config, disk).await,
            Err(err) => MachineFacts { config: Some((path, Err(err.to_string()))), ..MachineFacts::default() },
        });
    }
    // A `podctl dev`: its first pod is in the folder itself.
    let data = target.data();
    if !data.join("ring.json").exists() {
        return None;
    }
    Some(of_folder(data, &data.join("ring.json"), disk))
}

async fn of_config(path: String, config: &AgentConfig, disk: &DiskConfig) -> MachineFacts {
    let mut facts = of_folder(&config.data_dir, &config.ring_file, disk);
    facts.config = Some((path, Ok(())));
    facts.ports.push(tcp_port("public", config.proxy.listen).await);
    if let Some(redirect) = config.proxy.redirect {
        facts.ports.push(tcp_port("redirect", redirect).await);
    }
    if let Some(ring) = &config.ring {
        facts.ports.push(tcp_port("ring", ring.listen).await);
        facts.ports.push(udp_port("gossip", ring.listen));
    }
    if let Some(docker) = config.runtime.docker() {
        let version = engine::version(&docker.socket).await.map_err(|err| format!("{err:#}"));
        let image = match &docker.image {
            Some(name) => {
                let found = engine::has_image(&docker.socket, name).await.map_err(|err| format!("{err:#}"));
                Some((name.clone(), found))
            }
            None => None,
        };
        facts.docker = Some(DockerFacts { socket: docker.socket.display().to_string(), version, image });
    }
    facts
}

fn of_folder(data: &Path, ring_file: &Path, disk: &DiskConfig) -> MachineFacts {
    // Not made where it isn't there: a look changes nothing.
    let state = data.join("run").is_dir().then(|| Folder::new(data).ok()).flatten();
    let state = state.and_then(|folder| State::load(&folder.state_file()));
    let pid = state.as_ref().map(|state| state.adea_pid).filter(|pid| *pid != 0);
    let is_running = pid.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists());
    MachineFacts {
        ring_file: Some((ring_file.display().to_string(), rights(ring_file))),
        order_key: order_key_facts(ring_file),
        data: Some((data.display().to_string(), rights(data))),
        disk: room(data, disk),
        memory: memory(),
        agent_runs: state.is_some().then_some(is_running),
        agent_trouble: state.and_then(|state| state.trouble),
        open_files: open_files(pid.filter(|_| is_running)),
        ..MachineFacts::default()
    }
}

fn order_key_facts(ring_file: &Path) -> Option<OrderKeyFacts> {
    let file = RingFile::load(ring_file).ok()??;
    let trust = file.order_trust();
    let path = order_key::beside(ring_file);
    let private = rights(&path).and_then(|rights| {
        let key = order_key::load(&path).map_err(|err| err.to_string()).transpose()?;
        Some((rights, key.map(|key| key.public().fingerprint().to_string())))
    });
    let trusted = trust.as_ref().map(|trust| trust.key.fingerprint().to_string());
    let awaited = if file.waits_for_orders(now_ms()) { trust.map(|trust| trust.key.to_string()) } else { None };
    Some(OrderKeyFacts { trusted, awaited, path: path.display().to_string(), private })
}

fn rights(path: &Path) -> Option<Rights> {
    fs::metadata(path).ok().map(|meta| Rights { mode: meta.mode() & 0o777 })
}

fn room(path: &Path, config: &DiskConfig) -> Option<(DiskLevel, u64)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let (total, available) = (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize);
    Some((config.level(DiskLevel::Roomy, total, available), available))
}

fn memory() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    Some((kib("MemAvailable:")? * 1_024, kib("MemTotal:")? * 1_024))
}

/// Of the agent if it runs, which hands it on to its programs; else of this process.
fn open_files(agent: Option<u32>) -> Option<u64> {
    let limits = match agent {
        Some(pid) => fs::read_to_string(format!("/proc/{pid}/limits")),
        None => fs::read_to_string("/proc/self/limits"),
    };
    let limits = limits.ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    // The second number: programs raise their own limit to it.
    match line.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

async fn tcp_port(name: &'static str, listen: SocketAddr) -> PortFacts {
    let mut addr = listen;
    if addr.ip().is_unspecified() {
        addr.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let is_open = matches!(timeout(PATIENCE, TcpStream::connect(addr)).await, Ok(Ok(_)));
    PortFacts { name, addr: listen, is_tcp: true, is_open }
}

/// Whether somebody listens for datagrams shows only in the system's list.
fn udp_port(name: &'static str, listen: SocketAddr) -> PortFacts {
    let wanted = format!(":{:04X}", listen.port());
    let lists = ["/proc/net/udp", "/proc/net/udp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let is_open = lists
        .iter()
        .flat_map(|list| list.lines().skip(1))
        .any(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&wanted)));
    PortFacts { name, addr: listen, is_tcp: false, is_open }
}

#[cfg(test)]
mod tests {
    use super::{host_port_of, open_files, udp_port};

    #[test]
    fn where_a_url_leads() {
        assert_eq!(host_port_of("https://a.example"), "a.example:443");
        assert_eq!(host_port_of("http://[::1]:5984"), "[::1]:5984");
    }

    #[test]
    fn what_this_machine_tells() {
        assert!(open_files(None).is_some_and(|most| most > 0));
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        assert!(udp_port("gossip", socket.local_addr().expect("an address")).is_open);
    }
}
