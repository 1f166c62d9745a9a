use adea::ring_file::{Admin, RingFile};
use adea_ring::upgrade::OrderKey;
use serde_json::{Value, json};

use super::{Machine, MachineArgs, RuntimeName, Tls, parse_tls, pod_of_host};

fn args(dir: &std::path::Path) -> MachineArgs {
    MachineArgs {
        pod: Some("pod-1".parse().unwrap()),
        data: dir.join("data"),
        config: dir.join("etc/adea.json"),
        listen: Some("127.0.0.1:40443".parse().unwrap()),
        url: None,
        ring_listen: "127.0.0.1:40985".parse().unwrap(),
        ring_address: None,
        runtime: Some(RuntimeName::Process),
        tls: Tls::None,
        acme_contact: None,
        start: false,
        json: false,
    }
}

fn ring() -> RingFile {
    RingFile::new("pod-1".into(), Admin { name: "admin".into(), password_hash: "$argon2id$".into() })
}

#[test]
fn names_of_machines_become_names_of_pods() {
    for (host, pod) in
        [("db1.example.org", "db1"), ("My_Host", "my-host"), ("-a-", "a"), (&"x".repeat(70), &"x".repeat(64))]
    {
        assert_eq!(pod_of_host(host).unwrap().as_str(), pod);
    }
    for bad in ["", "...", "localhost", "ü"] {
        assert!(pod_of_host(bad).is_err(), "{bad}");
    }
}

#[test]
fn certificates_are_from_four_places() {
    assert_eq!(parse_tls("none"), Ok(Tls::None));
    assert_eq!(parse_tls("ring"), Ok(Tls::Ring));
    let files = Tls::Files { certificate: "/c".into(), key: "/k".into() };
    assert_eq!(parse_tls("files:/c,/k"), Ok(files));
    assert_eq!(parse_tls("acme:a.example,b.example"), Ok(Tls::Acme(vec!["a.example".into(), "b.example".into()])));
    for bad in ["", "x", "files:", "files:/c", "files:,/k", "files:/a,/b,/c", "acme:", "ring:x"] {
        assert!(parse_tls(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_is_there_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let args = args(dir.path());
    let machine = Machine::check(&args).unwrap();
    assert!(!args.data.exists(), "a look writes nothing");
    let written = machine.write(&ring(), Some(&OrderKey::random()), &["127.0.0.1:1".into()], None).unwrap();
    assert_eq!((written.url.as_str(), written.ring_address.as_str()), ("http://127.0.0.1:40443", "127.0.0.1:40985"));
    let config: Value = serde_json::from_slice(&std::fs::read(&args.config).unwrap()).unwrap();
    assert_eq!(config["ring"]["seeds"], json!(["127.0.0.1:1"]));
    assert_eq!(adea::Config::load(&args.config).unwrap().pod_id, "pod-1");

    let secret = std::fs::read(&written.ring_file).unwrap();
    let err = Machine::check(&args).err().unwrap().to_string();
    assert!(err.contains("not overwritten"), "{err}");
    let key = std::fs::read(written.order_key.as_ref().unwrap()).unwrap();
    // Nor by one who has looked before.
    assert!(machine.write(&ring(), None, &[], None).is_err());
    std::fs::remove_file(&args.config).unwrap();
    assert!(machine.write(&ring(), None, &[], None).is_err());
    assert!(Machine::check(&args).is_err());
    assert_eq!(std::fs::read(&written.ring_file).unwrap(), secret);
    assert_eq!(std::fs::read(args.data.join("order.key")).unwrap(), key);
    std::fs::remove_file(&written.ring_file).unwrap();
    assert!(Machine::check(&args).err().unwrap().to_string().contains("order.key"), "a key that is left alone");
    assert_eq!(std::fs::read_dir(args.config.parent().unwrap()).unwrap().count(), 0, "no leftovers");
}

#[test]
fn a_configuration_that_the_agent_would_refuse_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let args = MachineArgs { ring_address: Some("no port".into()), ..args(dir.path()) };
    let err = format!("{:#}", Machine::check(&args).unwrap().write(&ring(), None, &[], None).err().unwrap());
    assert!(err.contains("ring.advertise"), "{err}");
    assert!(!args.config.exists() && !args.data.join("ring.json").exists());
}

#[test]
fn urls_follow_from_names_and_ports() {
    let dir = tempfile::tempdir().unwrap();
    let url = |listen: &str, tls: Tls| {
        let machine = Machine {
            pod: "pod-1".parse().unwrap(),
            data: dir.path().into(),
            config: dir.path().join("c"),
            listen: listen.parse().unwrap(),
            url: None,
            ring_listen: "0.0.0.0:5985".parse().unwrap(),
            ring_address: None,
            runtime: RuntimeName::Process,
            tls,
            acme_contact: None,
        };
        (machine.url("10.0.0.7:5985"), machine.redirect().is_some())
    };
    assert_eq!(url("0.0.0.0:5984", Tls::None), ("http://10.0.0.7:5984".into(), false));
    assert_eq!(url("10.0.0.8:80", Tls::None), ("http://10.0.0.8".into(), false));
    assert_eq!(url("0.0.0.0:443", Tls::Ring), ("https://10.0.0.7".into(), true));
    assert_eq!(url("[::1]:8443", Tls::Ring), ("https://[::1]:8443".into(), false));
    assert_eq!(url("0.0.0.0:443", Tls::Acme(vec!["a.example".into()])), ("https://a.example".into(), true));
}
