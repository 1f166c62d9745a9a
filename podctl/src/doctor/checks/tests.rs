//! Each fault is found, and a well ring has none.

use std::net::{IpAddr, Ipv4Addr};

use adea_ring::config::DiskConfig;
use adea_ring::host::DiskLevel;
use serde_json::{Value, json};

use super::all;
use crate::doctor::facts::{
    CertificateFacts, DockerFacts, Facts, MachineFacts, OrderKeyFacts, PodFacts, PortFacts, Rights, RingFacts,
};
use crate::doctor::finding::{Finding, Level, text};
use crate::paint::Paint;
use crate::ring::status::{Pods, Row};

fn pod(id: &str) -> PodFacts {
    PodFacts {
        id: id.into(),
        url: Some(format!("https://{id}.example")),
        public_addresses: Ok(vec![IpAddr::from([10, 0, 0, 1])]),
        public: Ok(()),
        clock_ahead_ms: Some(200),
        certificate: Some(CertificateFacts { until_s: Some(90 * 86_400), untrusted: None }),
        ring_address: Some("10.0.0.1:5985".into()),
        ring_addresses: Ok(vec![IpAddr::from([10, 0, 0, 1])]),
        ring_port: Ok(()),
    }
}

fn row(id: &str, own: Value) -> Row {
    Row { id: id.into(), own, seen: json!({"alive": true}) }
}

fn ring() -> RingFacts {
    let rows = ["a", "b", "c"].map(|id| row(id, json!({"alive_seen": ["a", "b", "c"], "dropped": {"foreign": 0}})));
    let pods = Pods { asked: Some("a".into()), master: Some("c".into()), rows: rows.into() };
    RingFacts { pods, troubles: Vec::new(), tried: ["a", "b", "c"].map(pod).into(), disk: DiskConfig::default() }
}

fn machine() -> MachineFacts {
    let rights = |mode| Some(Rights { mode });
    let port = |name, is_tcp| PortFacts { name, addr: (Ipv4Addr::UNSPECIFIED, 443).into(), is_tcp, is_open: true };
    MachineFacts {
        config: Some(("/etc/adea/adea.json".into(), Ok(()))),
        ring_file: Some(("/d/ring.json".into(), rights(0o600))),
        order_key: Some(OrderKeyFacts {
            trusted: Some("ab".into()),
            awaited: None,
            path: "/d/order.key".into(),
            private: Some((Rights { mode: 0o600 }, Ok("ab".into()))),
        }),
        data: Some(("/d".into(), rights(0o700))),
        disk: Some((DiskLevel::Roomy, 50 << 30)),
        memory: Some((4 << 30, 8 << 30)),
        agent_runs: Some(true),
        agent_trouble: None,
        open_files: Some(1 << 20),
        ports: vec![port("public", true), port("gossip", false)],
        docker: Some(DockerFacts {
            socket: "/s".into(),
            version: Ok(("20.10.24".into(), "1.41".into())),
            image: Some(("adea:1".into(), Ok(true))),
        }),
    }
}

fn found(ring: RingFacts, machine: MachineFacts) -> Vec<Finding> {
    all(&Facts { ring: Ok(ring), machine: Some(machine), now_s: 0 })
}

fn faults(findings: &[Finding]) -> Vec<(&str, &str, Level)> {
    let faults = findings.iter().filter(|finding| finding.level != Level::Well);
    faults.map(|finding| (finding.check, finding.place.as_str(), finding.level)).collect()
}

/// What is found when one thing of the ring is otherwise; each says why and what to do.
fn with_ring(change: impl FnOnce(&mut RingFacts)) -> Vec<(String, String, Level)> {
    let mut ring = ring();
    change(&mut ring);
    checked(&found(ring, machine()))
}

fn with_machine(change: impl FnOnce(&mut MachineFacts)) -> Vec<(String, String, Level)> {
    let mut machine = machine();
    change(&mut machine);
    checked(&found(ring(), machine))
}

fn checked(findings: &[Finding]) -> Vec<(String, String, Level)> {
    for finding in findings {
        let is_well = finding.level == Level::Well;
        assert_eq!((finding.why.is_empty(), finding.todo.is_empty()), (is_well, is_well), "{finding:?}");
    }
    faults(findings).into_iter().map(|(check, place, level)| (check.to_owned(), place.to_owned(), level)).collect()
}

fn one(check: &str, place: &str, level: Level) -> Vec<(String, String, Level)> {
    vec![(check.to_owned(), place.to_owned(), level)]
}

#[test]
fn a_well_ring_on_a_well_machine_has_no_faults() {
    let findings = found(ring(), machine());
    assert!(faults(&findings).is_empty(), "{findings:?}");
    let text = text(&findings, false, Paint::off());
    assert!(text.lines().count() == 1 && text.ends_with("0 to look at, 0 wrong\n"), "{text}");
}

#[test]
fn faults_of_the_ring() {
    use Level::{Bad, Warn};
    assert_eq!(with_ring(|ring| ring.troubles.push("b is away: start it again".into())), one("ring", "ring", Bad));
    assert_eq!(with_ring(|ring| ring.tried[1].url = None), one("public", "b", Warn));
    assert_eq!(with_ring(|ring| ring.tried[1].public = Err("refused".into())), one("public", "b", Bad));
    assert_eq!(with_ring(|ring| ring.tried[1].public_addresses = Err("unknown".into())), one("dns", "b", Bad));
    assert_eq!(with_ring(|ring| ring.tried[1].ring_addresses = Err("unknown".into())), one("dns", "b", Warn));
    assert_eq!(with_ring(|ring| ring.tried[1].ring_port = Err("refused".into())), one("ring port", "b", Warn));
    let loopback = |ring: &mut RingFacts| ring.tried[2].ring_addresses = Ok(vec![Ipv4Addr::LOCALHOST.into()]);
    assert_eq!(with_ring(loopback), one("address", "c", Bad));
    let all_loopback = |ring: &mut RingFacts| {
        ring.tried.iter_mut().for_each(|pod| pod.ring_addresses = Ok(vec![Ipv4Addr::LOCALHOST.into()]));
    };
    assert!(with_ring(all_loopback).is_empty(), "a ring on one machine is none");
}

#[test]
fn clocks_are_compared_with_most() {
    use Level::{Bad, Warn};
    assert_eq!(with_ring(|ring| ring.tried[0].clock_ahead_ms = Some(5_000)), one("clock", "a", Warn));
    assert_eq!(with_ring(|ring| ring.tried[0].clock_ahead_ms = Some(-60_000)), one("clock", "a", Bad));
    let own_is_off = |ring: &mut RingFacts| ring.tried.iter_mut().for_each(|pod| pod.clock_ahead_ms = Some(90_000));
    assert_eq!(with_ring(own_is_off), one("clock", "here", Warn));
    assert!(with_ring(|ring| ring.tried.iter_mut().for_each(|pod| pod.clock_ahead_ms = None)).is_empty());
}

#[test]
fn certificates_that_end() {
    use Level::{Bad, Warn};
    let until = |until_s: Option<i64>| {
        with_ring(|ring| ring.tried[0].certificate = Some(CertificateFacts { until_s, untrusted: None }))
    };
    assert_eq!(until(Some(-1)), one("certificate", "a", Bad));
    assert_eq!(until(Some(3 * 86_400)), one("certificate", "a", Warn));
    assert_eq!(until(None), one("certificate", "a", Warn));
    let untrusted = Some(CertificateFacts { until_s: Some(90 * 86_400), untrusted: Some("unknown issuer".into()) });
    assert_eq!(with_ring(|ring| ring.tried[0].certificate = untrusted), one("certificate", "a", Warn));
}

#[test]
fn pods_that_do_not_hear_one_another() {
    let deaf =
        |ring: &mut RingFacts| ring.pods.rows[0].own = json!({"alive_seen": ["a", "b"], "dropped": {"foreign": 3}});
    let both = [one("gossip", "a", Level::Bad), one("gossip", "a", Level::Warn)].concat();
    assert_eq!(with_ring(deaf), both);
}

#[test]
fn faults_of_the_machine() {
    use Level::{Bad, Warn};
    let rights = |mode| Some(Rights { mode });
    assert_eq!(with_machine(|here| here.config = Some(("/c".into(), Err("key".into())))), one("config", "here", Bad));
    assert_eq!(with_machine(|here| here.ring_file = Some(("/r".into(), rights(0o644)))), one("rights", "here", Bad));
    assert_eq!(with_machine(|here| here.ring_file = Some(("/r".into(), None))), one("rights", "here", Bad));
    assert_eq!(with_machine(|here| here.data = Some(("/d".into(), rights(0o755)))), one("rights", "here", Warn));
    let order_key = |trusted: Option<&str>, private: Option<(u32, Result<&str, &str>)>| {
        let private = private.map(|(mode, key)| (Rights { mode }, key.map(str::to_owned).map_err(str::to_owned)));
        let facts = OrderKeyFacts { trusted: trusted.map(str::to_owned), awaited: None, path: "/k".into(), private };
        with_machine(|here| here.order_key = Some(facts))
    };
    assert_eq!(order_key(None, None), one("orders", "here", Warn));
    assert_eq!(order_key(Some("ab"), None), []);
    assert_eq!(order_key(Some("ab"), Some((0o640, Ok("ab")))), one("orders", "here", Bad));
    // Wherever the key lies.
    for is_here in [true, false] {
        let awaits = |machine: &mut MachineFacts| {
            let facts = machine.order_key.as_mut().unwrap();
            facts.awaited = Some("abab".into());
            facts.private = facts.private.take().filter(|_| is_here);
        };
        assert_eq!(with_machine(awaits), one("orders", "here", Bad), "{is_here}");
    }
    assert_eq!(order_key(Some("ab"), Some((0o600, Ok("cd")))), one("orders", "here", Warn));
    assert_eq!(order_key(Some("ab"), Some((0o600, Err("no key")))), one("orders", "here", Warn));
    assert_eq!(with_machine(|here| here.disk = Some((DiskLevel::Low, 1))), one("disk", "here", Warn));
    assert_eq!(with_machine(|here| here.disk = Some((DiskLevel::Full, 1))), one("disk", "here", Bad));
    assert_eq!(with_machine(|here| here.memory = Some((1 << 20, 1 << 30))), one("memory", "here", Warn));
    assert_eq!(with_machine(|here| here.open_files = Some(1_024)), one("files", "here", Bad));
    assert_eq!(with_machine(|here| here.open_files = Some(8_192)), one("files", "here", Warn));
    assert_eq!(with_machine(|here| here.agent_trouble = Some("no image".into())), one("agent", "here", Bad));
    assert_eq!(with_machine(|here| here.ports[1].is_open = false), one("port", "here", Bad));
    let nothing_runs = |here: &mut MachineFacts| {
        here.agent_runs = Some(false);
        here.ports[1].is_open = false;
    };
    // The agent, and who has its public port.
    assert_eq!(with_machine(nothing_runs), [one("agent", "here", Bad), one("port", "here", Bad)].concat());
}

#[test]
fn faults_of_docker() {
    use Level::{Bad, Warn};
    let docker = |change: fn(&mut DockerFacts)| with_machine(|here| here.docker.iter_mut().for_each(change));
    assert_eq!(docker(|docker| docker.version = Err("refused".into())), one("docker", "here", Bad));
    assert_eq!(docker(|docker| docker.version = Ok(("19.03".into(), "1.40".into()))), one("docker", "here", Bad));
    assert!(docker(|docker| docker.version = Ok(("29.0".into(), "1.52".into()))).is_empty());
    assert_eq!(docker(|docker| docker.image = Some(("x".into(), Ok(false)))), one("docker", "here", Warn));
}

#[test]
fn without_an_answer_this_machine_is_looked_at() {
    let findings = all(&Facts { ring: Err("refused".into()), machine: Some(machine()), now_s: 0 });
    assert_eq!(checked(&findings), one("ring", "here", Level::Bad));
    assert!(findings.len() > 5);
    let verbose = text(&findings, true, Paint::off());
    assert!(verbose.starts_with("!! ring, here") && verbose.contains("ok docker, here"), "{verbose}");
}
