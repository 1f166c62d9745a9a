//! The checks: functions of what was gathered.

mod order_key;

use std::net::IpAddr;

use adea_ring::host::DiskLevel;

use super::facts::{DockerFacts, Facts, MachineFacts, PodFacts, PortFacts, RingFacts};
use super::finding::Finding;
use crate::import::teller::size;
use crate::ring::clocks::middle;

/// Clocks that differ by more than this are worth a word; what is measured is right to about a second.
const CLOCK_WARN_MS: i64 = 2_000;
/// Pods with clocks further apart are not chosen (`clock.max_drift_ms` is a minute at first), and sessions end early.
const CLOCK_BAD_MS: i64 = 30_000;
/// A certificate that ends so soon should have been renewed: ACME does it a month before.
const CERTIFICATE_WARN_S: i64 = 14 * 86_400;
/// Each client with a feed holds an open connection, and the store some hundred files.
const OPEN_FILES_WARN: u64 = 65_536;
const OPEN_FILES_BAD: u64 = 4_096;
/// An idle pod takes about 60 MB; with less than this a compaction may meet the kernel's killer.
const MEMORY_WARN_BYTES: u64 = 256 << 20;
/// Docker 20.10: before it, `host-gateway` and some limits were unknown.
const DOCKER_API: (u32, u32) = (1, 41);
/// Where findings of this machine are.
const HERE: &str = "here";

/// All findings, in the order in which somebody would look.
pub fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings = match &facts.ring {
        Ok(ring) => of_ring(ring, facts.now_s),
        Err(why) => vec![Finding::bad(
            "ring",
            HERE,
            format!("no pod could be asked: {why}"),
            "without an answer only this machine can be looked at",
            "start a pod, name one with --url, or log in with `podctl login URL`",
        )],
    };
    if let Some(machine) = &facts.machine {
        findings.extend(of_machine(machine));
    }
    findings
}

fn of_ring(ring: &RingFacts, now_s: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    for trouble in &ring.troubles {
        let (what, todo) = trouble.rsplit_once(": ").unwrap_or((trouble, "look at `podctl status` and the logs"));
        findings.push(Finding::bad("ring", "ring", what, "the pods say so themselves", todo));
    }
    if ring.troubles.is_empty() {
        findings.push(Finding::well("ring", "ring", "all pods are there and agree"));
    }
    for pod in &ring.tried {
        findings.extend(public(pod));
        findings.extend(certificate(pod, now_s));
        findings.extend(ring_port(pod));
    }
    findings.extend(clocks(&ring.tried));
    findings.extend(loopback(&ring.tried));
    findings.extend(gossip(ring));
    findings
}

/// Whether clients get to a pod.
fn public(pod: &PodFacts) -> Vec<Finding> {
    let Some(url) = &pod.url else {
        return vec![Finding::warn(
            "public",
            &pod.id,
            "the pod tells no URL",
            "clients that know another pod can't find this one in _pods",
            "set `ring.url` in its agent's configuration",
        )];
    };
    let mut findings = Vec::new();
    if let Err(why) = &pod.public_addresses {
        findings.push(Finding::bad(
            "dns",
            &pod.id,
            format!("the host of {url} is not found: {why}"),
            "no client finds the pod",
            "make a DNS record for it, or set another `ring.url`",
        ));
        return findings;
    }
    findings.push(match &pod.public {
        Ok(()) => Finding::well("public", &pod.id, format!("{url} answers")),
        Err(why) => Finding::bad(
            "public",
            &pod.id,
            format!("{url} does not answer from here: {why}"),
            "clients that are where you are can't reach the pod, though the ring says that it is alive",
            "look at the firewall and the port of its proxy, and whether `ring.url` is right",
        ),
    });
    findings
}

fn certificate(pod: &PodFacts, now_s: i64) -> Vec<Finding> {
    let Some(certificate) = &pod.certificate else { return Vec::new() };
    let renew = "with ACME look at the proxy's log; with files renew them: the proxy takes new ones by itself";
    let mut findings = vec![match certificate.until_s.map(|until_s| until_s - now_s) {
        None => Finding::warn("certificate", &pod.id, "its end can't be read", "nobody is warned of it", renew),
        Some(left_s) if left_s <= 0 => {
            Finding::bad("certificate", &pod.id, "it has ended", "clients refuse to connect", renew)
        }
        Some(left_s) if left_s < CERTIFICATE_WARN_S => Finding::warn(
            "certificate",
            &pod.id,
            format!("it ends in {} days", left_s / 86_400),
            "clients refuse to connect then",
            renew,
        ),
        Some(left_s) => Finding::well("certificate", &pod.id, format!("it holds for {} days", left_s / 86_400)),
    }];
    if let Some(why) = &certificate.untrusted {
        findings.push(Finding::warn(
            "certificate",
            &pod.id,
            format!("it isn't trusted here: {why}"),
            "clients without the ring's own authority refuse to connect",
            "if the ring signs its own certificates, give --ca FILE; else look at the names that it is for",
        ));
    }
    findings
}

/// Whether the port for the other pods takes connections. It may be closed to whoever sits elsewhere.
fn ring_port(pod: &PodFacts) -> Vec<Finding> {
    let Some(address) = &pod.ring_address else { return Vec::new() };
    if let Err(why) = &pod.ring_addresses {
        return vec![Finding::warn(
            "dns",
            &pod.id,
            format!("the host of its ring address {address} is not found from here: {why}"),
            "if the other pods can't find it either, nothing reaches it",
            "check it on a pod's machine; set `ring.advertise` in its agent's configuration",
        )];
    }
    vec![match &pod.ring_port {
        Ok(()) => Finding::well("ring port", &pod.id, format!("{address} takes connections")),
        Err(why) => Finding::warn(
            "ring port",
            &pod.id,
            format!("{address} takes no connections from here: {why}"),
            "that is right where only pods may reach it; between pods it must be open for TCP and UDP",
            "if links of the pod are down as well, open it between the pods",
        ),
    }]
}

/// Clocks are compared with this machine's, and so with one another.
fn clocks(tried: &[PodFacts]) -> Vec<Finding> {
    let known: Vec<(&str, i64)> = tried.iter().filter_map(|pod| Some((pod.id.as_str(), pod.clock_ahead_ms?))).collect();
    let Some(middle) = middle(known.iter().map(|(_, ahead_ms)| *ahead_ms)) else { return Vec::new() };
    let why = "a pod with a wrong clock is not chosen as write master, and sessions end too early or too late";
    let todo = "let NTP set it: `timedatectl set-ntp true`, and look at `timedatectl`";
    let mut findings = Vec::new();
    for (id, ahead_ms) in &known {
        let off_ms = ahead_ms - middle;
        let what =
            || format!("its clock is {} s {}", off_ms.abs() / 1_000, if off_ms > 0 { "ahead" } else { "behind" });
        findings.push(match off_ms.abs() {
            off if off >= CLOCK_BAD_MS => Finding::bad("clock", id, what() + " of the others", why, todo),
            off if off >= CLOCK_WARN_MS => Finding::warn("clock", id, what() + " of the others", why, todo),
            _ => Finding::well("clock", id, "its clock is as the others'"),
        });
    }
    if middle.abs() >= CLOCK_WARN_MS {
        let what = format!("the pods' clocks are {} s off this machine's", middle.abs() / 1_000);
        findings.push(Finding::warn("clock", HERE, what, "one of both is wrong, and tokens and passes go by it", todo));
    }
    findings
}

/// Addresses of this machine alone, told to other machines.
fn loopback(tried: &[PodFacts]) -> Vec<Finding> {
    let is_loopback = |pod: &&PodFacts| {
        pod.ring_addresses.as_ref().is_ok_and(|all| !all.is_empty() && all.iter().all(IpAddr::is_loopback))
    };
    let told = tried.iter().filter(|pod| pod.ring_address.is_some());
    let (own, other): (Vec<&PodFacts>, Vec<&PodFacts>) = told.partition(is_loopback);
    if own.is_empty() || other.is_empty() {
        return Vec::new();
    }
    let finding = |pod: &&PodFacts| {
        Finding::bad(
            "address",
            &pod.id,
            format!("it tells the others to reach it at {}", pod.ring_address.as_deref().unwrap_or("-")),
            "on another machine that leads to the other machine itself",
            "set `ring.advertise` in its agent's configuration to an address that the others reach",
        )
    };
    own.iter().map(finding).collect()
}

/// Who hears whom: gossip goes by UDP, which a firewall may drop where it lets TCP through.
fn gossip(ring: &RingFacts) -> Vec<Finding> {
    let alive: Vec<&str> = ring.pods.rows.iter().filter(|row| row.is_alive()).map(|row| row.id.as_str()).collect();
    let mut findings = Vec::new();
    for row in ring.pods.rows.iter().filter(|row| row.is_alive()) {
        let Some(heard) = row.own["alive_seen"].as_array() else { continue };
        let deaf: Vec<&str> =
            alive.iter().copied().filter(|id| *id != row.id && !heard.iter().any(|seen| seen == id)).collect();
        if !deaf.is_empty() {
            findings.push(Finding::bad(
                "gossip",
                &row.id,
                format!("it does not hear {}", deaf.join(", ")),
                "pods that don't hear one another can't agree on who takes the writes",
                "let UDP through between their ring ports, both ways; if it was started just now, ask again",
            ));
        }
        let foreign = row.own["dropped"]["foreign"].as_u64().unwrap_or(0);
        if foreign > 0 {
            findings.push(Finding::warn(
                "gossip",
                &row.id,
                format!("{foreign} datagrams came that are sealed under another key"),
                "a pod of another ring uses its address, or one has missed a change of the keys",
                "look at `podctl ring key list` and at `ring.seeds` of other rings",
            ));
        }
    }
    if findings.is_empty() && alive.len() > 1 {
        findings.push(Finding::well("gossip", "ring", "all pods hear one another"));
    }
    findings
}

fn of_machine(machine: &MachineFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &machine.config {
        Some((path, Err(why))) => findings.push(Finding::bad(
            "config",
            HERE,
            why.clone(),
            "the agent does not start with it",
            format!("put {path} right; what runs goes on until the agent is started again"),
        )),
        Some((path, Ok(()))) => findings.push(Finding::well("config", HERE, format!("{path} can be used"))),
        None => {}
    }
    findings.extend(files(machine));
    findings.extend(machine.order_key.iter().flat_map(order_key::order_key));
    findings.extend(resources(machine));
    findings.extend(agent(machine));
    findings.extend(machine.docker.iter().flat_map(docker));
    findings
}

fn files(machine: &MachineFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &machine.ring_file {
        Some((path, None)) => findings.push(Finding::bad(
            "rights",
            HERE,
            format!("{path} can't be looked at, or isn't there"),
            "without the ring's secret the pod takes no part",
            "run this as the owner (root); if it is gone, take it from a backup or join anew with `podctl join`",
        )),
        Some((path, Some(rights))) if rights.mode & 0o077 != 0 => findings.push(Finding::bad(
            "rights",
            HERE,
            format!("{path} can be read or changed by others (mode {:o})", rights.mode),
            "it holds the ring's secret: whoever reads it can be any pod and any user",
            format!("chmod 600 {path}; if others have been on this machine, make the keys anew"),
        )),
        Some((path, Some(_))) => findings.push(Finding::well("rights", HERE, format!("only its owner reads {path}"))),
        None => {}
    }
    match &machine.data {
        Some((path, Some(rights))) if rights.mode & 0o007 != 0 => findings.push(Finding::warn(
            "rights",
            HERE,
            format!("everyone may look into {path} (mode {:o})", rights.mode),
            "documents, logs and sockets are in it",
            format!("chmod 700 {path}"),
        )),
        Some((path, Some(_))) => findings.push(Finding::well("rights", HERE, format!("{path} is closed to others"))),
        Some((path, None)) => findings.push(Finding::bad(
            "rights",
            HERE,
            format!("{path} can't be looked at, or isn't there"),
            "the pod keeps everything in it",
            "run this as its owner (root), or make it",
        )),
        None => {}
    }
    findings
}

fn resources(machine: &MachineFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((level, available)) = machine.disk {
        let free = format!("{} are free on the disk of the data folder", size(available));
        let why = "a pod whose disk is nearly full gives back the mastership, and one whose disk is full takes no data";
        let todo = "make room, or give it a larger disk; `disk` in `podctl config` says what counts as full";
        findings.push(match level {
            DiskLevel::Roomy => Finding::well("disk", HERE, free),
            DiskLevel::Low => Finding::warn("disk", HERE, free, why, todo),
            DiskLevel::Full => Finding::bad("disk", HERE, free, why, todo),
        });
    }
    if let Some((available, all)) = machine.memory {
        let what = format!("{} of {} of memory could be had", size(available), size(all));
        findings.push(if available < MEMORY_WARN_BYTES {
            let why = "when there is none left, the kernel kills what takes most";
            Finding::warn("memory", HERE, what, why, "end other programs, or give the machine more")
        } else {
            Finding::well("memory", HERE, what)
        });
    }
    if let Some(most) = machine.open_files {
        let what = format!("{most} files may be open at once");
        let why = "each client that follows a feed holds one, and so do the store and the pods";
        let todo = "LimitNOFILE=1048576 in the agent's unit, as in deploy/adea.service";
        findings.push(match most {
            most if most < OPEN_FILES_BAD => Finding::bad("files", HERE, what, why, todo),
            most if most < OPEN_FILES_WARN => Finding::warn("files", HERE, what, why, todo),
            u64::MAX => Finding::well("files", HERE, "any number of files may be open"),
            _ => Finding::well("files", HERE, what),
        });
    }
    findings
}

fn agent(machine: &MachineFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let runs = machine.agent_runs;
    match runs {
        Some(true) => findings.push(Finding::well("agent", HERE, "it runs")),
        Some(false) | None => findings.push(Finding::bad(
            "agent",
            HERE,
            "no agent runs here",
            "it starts the pod's programs, and starts them again",
            "systemctl start adea, or podctl adea --config FILE; then look at journalctl -u adea",
        )),
    }
    if let Some(trouble) = machine.agent_trouble.as_ref().filter(|_| runs == Some(true)) {
        let why = "until then the pod's programs may not run";
        findings.push(Finding::bad("agent", HERE, trouble.clone(), why, "look at journalctl -u adea"));
    }
    findings.extend(machine.ports.iter().map(|port| local_port(port, runs == Some(true))));
    findings
}

fn local_port(port: &PortFacts, agent_runs: bool) -> Finding {
    let kind = if port.is_tcp { "TCP" } else { "UDP" };
    let at = format!("the {} port {} ({kind})", port.name, port.addr);
    match (port.is_open, agent_runs) {
        (true, true) => Finding::well("port", HERE, format!("{at} is listened on")),
        (false, false) => Finding::well("port", HERE, format!("{at} is free, as no agent runs")),
        (false, true) => Finding::bad(
            "port",
            HERE,
            format!("nobody listens on {at}"),
            "others can't reach the pod there",
            "look at `podctl logs` and journalctl -u adea: the program may just be starting, or may not get the port",
        ),
        (true, false) => Finding::bad(
            "port",
            HERE,
            format!("{at} is taken, and no agent runs"),
            "the pod can't start while another program has its port",
            format!("`ss -lnp | grep {}` shows which; end it, or give the pod another port", port.addr.port()),
        ),
    }
}

fn docker(docker: &DockerFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (version, api) = match &docker.version {
        Ok(version) => version,
        Err(why) => {
            findings.push(Finding::bad(
                "docker",
                HERE,
                format!("the engine at {} can't be asked: {why}", docker.socket),
                "the agent runs the pod's programs by it",
                "systemctl start docker; run this as root or as a member of the group docker",
            ));
            return findings;
        }
    };
    findings.push(if is_older(api, DOCKER_API) {
        Finding::bad(
            "docker",
            HERE,
            format!("its version is {version}, its API {api}"),
            "the agent speaks API 1.41 and later",
            "upgrade Docker to 20.10 or later",
        )
    } else {
        Finding::well("docker", HERE, format!("version {version}, API {api}"))
    });
    match &docker.image {
        None | Some((_, Ok(true))) => {}
        Some((name, Ok(false))) => findings.push(Finding::warn(
            "docker",
            HERE,
            format!("the image {name} is not there"),
            "the agent fetches it when it next starts a program; without a registry it can't",
            "docker load it, or leave `runtime.docker.image` out: the agent makes one from its own program",
        )),
        Some((name, Err(why))) => findings.push(Finding::warn(
            "docker",
            HERE,
            format!("whether the image {name} is there can't be said: {why}"),
            "the agent needs it to start the programs",
            "docker images",
        )),
    }
    findings
}

/// Whether `1.40` is older than (1, 41); what can't be read isn't.
fn is_older(version: &str, than: (u32, u32)) -> bool {
    let number = |text: &str| text.parse::<u32>().ok();
    let parts = version.split_once('.').and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
    parts.is_some_and(|parts| parts < than)
}

#[cfg(test)]
mod tests;
