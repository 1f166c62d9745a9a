//! The runtime against an engine that is not there.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::fake_engine::{Container, FakeEngine};
use super::{Brought, DockerRuntime, Engine, EngineError};
use crate::blueprint::Blueprint;
use crate::config::Config;
use crate::folder::Folder;
use crate::plan::{Desired, Program};
use crate::ring_file::{Admin, RingFile};
use crate::runtime::{Runtime, Signal};
use crate::software::Software;

const REAN: &str = "adea-pod-1-rean";
const PROXY: &str = "adea-pod-1-proxy";

struct Pod {
    engine: FakeEngine,
    runtime: DockerRuntime,
    blueprint: Blueprint,
    dir: tempfile::TempDir,
}

/// A pod whose image is there, unless `docker` says otherwise.
fn pod(docker: serde_json::Value) -> Pod {
    let dir = tempfile::tempdir().unwrap();
    let engine = FakeEngine::start(dir.path());
    engine.world().images.insert("adea:1".into(), "sha256:1".into());
    let admin = Admin { name: "admin".into(), password_hash: "$argon2id$".into() };
    RingFile::new("pod-1".into(), admin).save(&dir.path().join("ring.json")).unwrap();
    let (runtime, blueprint) = runtime(dir.path(), &engine, docker);
    Pod { engine, runtime, blueprint, dir }
}

/// An agent's runtime, as it is after its start.
fn runtime(dir: &Path, engine: &FakeEngine, docker: serde_json::Value) -> (DockerRuntime, Blueprint) {
    let mut docker = docker;
    docker["socket"] = json!(engine.socket);
    docker["user"] = json!(rustix::process::geteuid().as_raw());
    let config: Config = serde_json::from_value(json!({
        "pod_id": "pod-1", "ring_file": dir.join("ring.json"), "data_dir": dir.join("data"),
        "program": dir.join("podctl"), "proxy": {"listen": "0.0.0.0:5984"},
        "ring": {"listen": "10.0.0.1:5985"}, "runtime": {"docker": docker},
    }))
    .unwrap();
    let folder = Folder::new(&config.data_dir).unwrap();
    DockerRuntime::prepare(&config, config.runtime.docker().unwrap(), &folder).unwrap()
}

fn ready() -> serde_json::Value {
    json!({"image": "adea:1"})
}

impl Pod {
    fn desired(&self) -> Desired {
        self.blueprint.wanted(&Software::default()).desired
    }

    async fn start(&mut self, program: Program) -> Result<crate::runtime::Instance, String> {
        let launch = self.desired()[&program].clone();
        self.runtime.start(program, &launch).await.map_err(|err| err.to_string())
    }

    /// The agent ends, and another begins.
    fn begin_anew(&mut self, docker: serde_json::Value) {
        (self.runtime, self.blueprint) = runtime(self.dir.path(), &self.engine, docker);
    }
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_container_has_next_to_no_rights() {
    let mut pod = pod(json!({"image": "adea:1", "memory_mib": {"rean": 512}, "cpus": {"rean": 1.5}}));
    let instance = pod.start(Program::Rean).await.unwrap();
    assert_eq!(instance.addr.to_string(), "172.30.0.2:5986");
    assert_eq!((instance.container.as_deref(), instance.version.as_deref()), (Some(REAN), Some("1.2.3")));
    assert_eq!(pod.engine.orders(), ["network adea-pod-1", "create adea-pod-1-rean", "start adea-pod-1-rean"]);
    let rean = pod.engine.world().containers[REAN].clone();
    let host = &rean.body["HostConfig"];
    assert_eq!(host["ReadonlyRootfs"], true);
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
    assert_eq!(host["RestartPolicy"]["Name"], "no");
    assert_eq!((&host["Memory"], &host["NanoCpus"]), (&json!(512 << 20), &json!(1_500_000_000)));
    assert!(host["Privileged"].is_null() && host["PidsLimit"].as_i64().unwrap() > 0);
    // The ring's port alone: what the proxy speaks to is on no address of the machine.
    assert_eq!(host["PortBindings"], json!({"5985/tcp": [{"HostIp": "10.0.0.1", "HostPort": "5985"}]}));
    let user = rustix::process::geteuid().as_raw();
    assert_eq!(rean.body["User"], format!("{user}:{user}"));
    assert!(rean.body["Env"].as_array().unwrap().contains(&json!("MIMALLOC_ALLOW_THP=0")), "{}", rean.body["Env"]);
    let writable: Vec<_> = host["Mounts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|mount| mount["ReadOnly"] == false)
        .map(|mount| mount["Target"].as_str().unwrap())
        .collect();
    assert_eq!(writable, ["/data"]);
    let secret = RingFile::load(&pod.dir.path().join("ring.json")).unwrap().unwrap().secret().unwrap().to_hex();
    assert!(!rean.body.to_string().contains(&secret), "the secret is in no container's description");
}

#[tokio::test]
async fn what_runs_is_adopted_if_it_fits() {
    let mut pod = pod(ready());
    let rean = pod.start(Program::Rean).await.unwrap();
    pod.start(Program::Proxy).await.unwrap();
    pod.engine.orders();
    pod.begin_anew(ready());
    let desired = pod.desired();
    let found = pod.runtime.find(&desired).await.unwrap();
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|found| found.launch.as_ref() == desired.get(&found.program)));
    assert_eq!(found[0].instance, rean);
    // A start finds it too.
    assert_eq!(pod.start(Program::Rean).await.unwrap(), rean);
    assert_eq!(pod.engine.orders(), [""; 0]);
    // Other bounds, or another image under the same name: it runs, but has to be replaced.
    pod.begin_anew(json!({"image": "adea:1", "memory_mib": {"rean": 512}}));
    let found = pod.runtime.find(&pod.desired()).await.unwrap();
    assert!(found[0].launch.is_none() && found[1].launch.is_none());
    pod.begin_anew(ready());
    pod.engine.world().images.insert("adea:1".into(), "sha256:other".into());
    let found = pod.runtime.find(&pod.desired()).await.unwrap();
    assert!(found[0].launch.is_none() && found[0].instance.pid == rean.pid);
}

#[tokio::test]
async fn an_ended_container_is_started_again_or_replaced() {
    let mut pod = pod(ready());
    let first = pod.start(Program::Rean).await.unwrap();
    assert_eq!(pod.runtime.look().await.unwrap()[0].ended, None);
    pod.engine.world().end(REAN, 137);
    let ended = pod.runtime.look().await.unwrap()[0].ended.clone().unwrap();
    assert!(ended.contains("137"), "{ended}");
    pod.engine.orders();
    let second = pod.start(Program::Rean).await.unwrap();
    assert_ne!(first.pid, second.pid);
    assert_eq!(pod.engine.orders(), [format!("start {REAN}")], "the same container");
    pod.runtime.signal(Program::Rean, Signal::Terminate).await.unwrap();
    // It is gone already, which is no error.
    pod.runtime.signal(Program::Rean, Signal::Kill).await.unwrap();
    pod.engine.orders();
    pod.engine.world().images.insert("adea:2".into(), "sha256:2".into());
    let newer = pod.blueprint.wanted(&Software { image: Some("adea:2".into()), program: None }).desired;
    pod.runtime.start(Program::Rean, &newer[&Program::Rean]).await.unwrap();
    let orders = ["remove", "create", "start"].map(|order| format!("{order} {REAN}"));
    assert_eq!(pod.engine.orders(), orders);
    // Somebody else restarts it, or removes it.
    pod.engine.world().containers.get_mut(REAN).unwrap().pid = 7;
    assert!(pod.runtime.look().await.unwrap()[0].ended.is_some());
    pod.engine.world().containers.clear();
    assert!(pod.runtime.look().await.unwrap()[0].ended.as_ref().unwrap().contains("gone"));
}

#[tokio::test]
async fn what_is_not_ours_is_never_touched() {
    for (label, value, whose) in [
        ("org.adea.pod", None, "not made by adea"),
        ("org.adea.pod", Some("pod-2"), "not made by adea"),
        ("org.adea.ring", Some("00"), "another ring"),
        ("org.adea.data", Some("/elsewhere"), "/elsewhere"),
    ] {
        for pid in [0, 5] {
            let mut pod = pod(ready());
            pod.start(Program::Rean).await.unwrap();
            let mut labels = pod.engine.world().containers[REAN].labels();
            match value {
                Some(value) => labels.insert(label.into(), value.into()),
                None => labels.remove(label),
            };
            let foreign = Container {
                id: "foreign".into(),
                body: json!({"Labels": labels, "Image": "adea:1"}),
                pid,
                ..Container::default()
            };
            pod.engine.world().containers.insert(REAN.into(), foreign);
            pod.engine.orders();
            pod.begin_anew(ready());
            let err = pod.runtime.find(&pod.desired()).await.unwrap_err().to_string();
            assert!(err.contains(whose) && err.contains(REAN), "{err}");
            let err = pod.start(Program::Rean).await.unwrap_err();
            assert!(err.contains(whose), "{err}");
            pod.runtime.signal(Program::Rean, Signal::Kill).await.unwrap();
            assert_eq!(pod.engine.orders(), [""; 0]);
        }
    }
    let mut pod = pod(ready());
    pod.engine.world().networks.insert("adea-pod-1".into(), HashMap::new());
    let err = pod.start(Program::Rean).await.unwrap_err();
    assert!(err.contains("network adea-pod-1"), "{err}");
    assert_eq!(pod.engine.orders(), [""; 0]);
}

/// The head of a static program.
fn program() -> Vec<u8> {
    let mut text = vec![0; 5_000];
    text[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (text[18], text[32], text[54], text[56], text[64]) = (62, 64, 56, 1, 1);
    text
}

#[tokio::test]
async fn an_image_is_made_or_fetched_where_it_is_missing() {
    let mut pod = pod(ready());
    std::fs::write(pod.dir.path().join("podctl"), program()).unwrap();
    pod.begin_anew(json!({}));
    let own = pod.desired()[&Program::Rean].software.clone();
    assert!(own.starts_with("adea:"), "{own}");
    pod.start(Program::Rean).await.unwrap();
    pod.start(Program::Proxy).await.unwrap();
    let loads = pod.engine.orders().into_iter().filter(|order| order.starts_with("load")).collect::<Vec<_>>();
    assert_eq!(loads, [format!("load {own}")]);

    pod.begin_anew(json!({"image": "registry.example.org:5000/adea:9"}));
    let err = pod.start(Program::Proxy).await.unwrap_err();
    assert!(err.contains("pull access denied"), "{err}");
    pod.engine.world().registry.push("registry.example.org:5000/adea:9".into());
    pod.start(Program::Proxy).await.unwrap();
    pod.engine.orders();
    pod.begin_anew(json!({"image": "adea:8", "pull": false}));
    let err = pod.start(Program::Proxy).await.unwrap_err();
    assert!(err.contains("adea:8") && err.contains("docker load"), "{err}");
    assert_eq!(pod.engine.orders(), [""; 0]);
}

#[tokio::test]
async fn an_engine_that_goes_away_is_found_again() {
    let mut pod = pod(ready());
    pod.engine.set_up(false);
    for _ in 0..2 {
        let err = pod.runtime.find(&pod.desired()).await.unwrap_err().to_string();
        assert!(err.contains("docker.sock") && err.contains("systemctl"), "{err}");
    }
    pod.engine.set_up(true);
    assert!(pod.runtime.find(&pod.desired()).await.unwrap().is_empty());
    let before = pod.start(Program::Rean).await.unwrap();
    pod.engine.set_up(false);
    assert!(pod.runtime.look().await.is_err());
    assert!(pod.runtime.signal(Program::Rean, Signal::Terminate).await.is_err());
    // As after a restart that keeps containers alive, and after one that doesn't.
    pod.engine.set_up(true);
    let sighting = pod.runtime.look().await.unwrap()[0].clone();
    assert_eq!((sighting.pid, sighting.ended), (before.pid, None));
    pod.engine.world().end(REAN, 0);
    assert!(pod.runtime.look().await.unwrap()[0].ended.is_some());
    assert_ne!(pod.start(Program::Rean).await.unwrap().pid, before.pid);
}

#[tokio::test]
async fn a_container_that_ends_at_once_is_a_failed_start() {
    let mut pod = pod(ready());
    pod.engine.world().ends_at_once = Some(2);
    let err = pod.start(Program::Rean).await.unwrap_err();
    assert!(err.contains("ended at once (exit status: 2)"), "{err}");
    pod.engine.world().ends_at_once = None;
    pod.start(Program::Rean).await.unwrap();
}

#[tokio::test]
async fn logs_are_followed_without_gaps_or_doubles() {
    let mut pod = pod(ready());
    let line = |second: u32, text: &str| format!("2027-01-01T00:00:{second:02}.000000001Z {text}\n");
    pod.start(Program::Proxy).await.unwrap();
    pod.engine.world().containers.get_mut(PROXY).unwrap().log = vec![line(1, "one"), line(2, "two")];
    let path = pod.dir.path().join("data/run/logs/proxy.log");
    let has = |text: &str| std::fs::read_to_string(&path).is_ok_and(|log| log == text);
    until("two lines", || has("one\ntwo\n")).await;
    // The engine gives all of them again, and one more.
    pod.engine.world().containers.get_mut(PROXY).unwrap().log.push(line(3, "three"));
    until("three lines", || has("one\ntwo\nthree\n")).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(!pod.dir.path().join("data/run/logs/rean.log").exists());
}

#[tokio::test]
async fn images_that_nothing_needs_go_and_those_of_others_stay() {
    let mut pod = pod(ready());
    pod.start(Program::Rean).await.unwrap();
    let engine = Engine::new(&pod.engine.socket);
    let kept = BTreeSet::from(["adea:before".to_owned(), "adea:gone".to_owned()]);
    let brought = |name: &str| Brought { id: format!("sha256:{name}"), name: format!("adea:{name}") };
    // One that runs, one to go back to, two that nothing needs, two that people have named, and one that is gone.
    let pulled = Brought { name: "adea@sha256:pulled".into(), ..brought("pulled") };
    let mut all = ["1", "before", "oldest", "both", "renamed", "gone"].map(brought).to_vec();
    all.push(pulled.clone());
    let tidied = async || engine.remove_brought(&all, &kept).await.unwrap();
    let of_people = [("other:both", "both"), ("mine:1", "renamed"), ("adea:loaded", "loaded"), ("postgres:17", "17")];
    {
        let mut world = pod.engine.world();
        for image in all.iter().filter(|image| !["adea:gone", "adea:renamed"].contains(&image.name.as_str())) {
            world.images.insert(image.name.clone(), image.id.clone());
        }
        world.images.extend(of_people.map(|(name, id)| (name.to_owned(), format!("sha256:{id}"))));
        world.orders.clear();
    }
    // What another pod on the machine may go back to, only its agent knows.
    let other =
        Container { body: json!({"Labels": {"org.adea.pod": "pod-2", "org.adea.data": "/d"}}), ..Container::default() };
    pod.engine.world().containers.insert("adea-pod-2-rean".into(), other);
    assert_eq!(tidied().await, []);
    pod.engine.world().containers.remove("adea-pod-2-rean");
    assert_eq!(tidied().await, [brought("oldest"), brought("gone"), pulled]);
    assert_eq!(pod.engine.orders(), ["remove image adea:oldest", "remove image adea@sha256:pulled"]);
    let left: Vec<_> = pod.engine.world().images.keys().cloned().collect();
    assert_eq!(left, ["adea:1", "adea:before", "adea:both", "adea:loaded", "mine:1", "other:both", "postgres:17"]);
    // A container that doesn't run needs its image, too.
    pod.engine.world().end(REAN, 0);
    tidied().await;
    assert_eq!(pod.engine.orders(), [""; 0]);
}

#[tokio::test]
async fn what_has_another_name_was_brought_by_somebody_else() {
    let pod = pod(ready());
    let engine = Engine::new(&pod.engine.socket);
    let brought = |name: &str| Some(Brought { id: "sha256:2".into(), name: name.into() });
    assert_eq!(engine.brought("adea:2").await, None);
    pod.engine.world().images.insert("adea:2".into(), "sha256:2".into());
    assert_eq!(engine.brought("adea:2").await, brought("adea:2"));
    pod.engine.world().images.insert("adea@sha256:0".into(), "sha256:2".into());
    assert_eq!(engine.brought("adea:2").await, brought("adea:2"));
    assert_eq!(engine.brought("adea@sha256:0").await, None, "it has a tag");
    pod.engine.world().images.insert("mine:1".into(), "sha256:2".into());
    assert_eq!(engine.brought("adea:2").await, None);
    // Podman names it so.
    pod.engine.world().images = [("localhost/adea:2".to_owned(), "sha256:3".to_owned())].into();
    let all = [Brought { id: "sha256:3".into(), name: "adea:2".into() }];
    assert_eq!(engine.remove_brought(&all, &BTreeSet::new()).await.unwrap(), all);
}

#[tokio::test]
async fn a_removed_pod_leaves_nothing_of_its_own_and_all_of_others() {
    let mut pod = pod(ready());
    pod.start(Program::Rean).await.unwrap();
    pod.start(Program::Proxy).await.unwrap();
    pod.engine.world().end(PROXY, 0);
    pod.engine.orders();
    let left_over = pod.runtime.left_over();
    let all = [REAN, PROXY, "adea-pod-1"];
    assert_eq!(left_over.remove().await.unwrap(), all);
    let orders =
        ["stop adea-pod-1-rean", "remove adea-pod-1-rean", "remove adea-pod-1-proxy", "remove network adea-pod-1"];
    assert_eq!(pod.engine.orders(), orders);
    assert_eq!(left_over.remove().await.unwrap(), [""; 0], "there is nothing left to do");

    let foreign = Container { id: "foreign".into(), body: json!({"Labels": {}}), pid: 5, ..Container::default() };
    pod.engine.world().containers.insert(REAN.into(), foreign);
    pod.engine.world().networks.insert("adea-pod-1".into(), HashMap::new());
    assert_eq!(left_over.remove().await.unwrap(), [""; 0]);
    assert_eq!(pod.engine.orders(), [""; 0]);
    pod.engine.set_up(false);
    assert!(matches!(left_over.remove().await, Err(EngineError::Away { .. })));
}

#[tokio::test]
async fn a_program_is_taken_out_of_an_image() {
    let pod = pod(ready());
    let engine = Engine::new(&pod.engine.socket);
    let to = pod.dir.path().join("taken");
    assert!(matches!(engine.extract_binary("adea:none", &to).await, Err(EngineError::NoImage(_))));
    let archive = |kind: tar::EntryType, text: &[u8]| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(text.len() as u64);
        header.set_mode(0o4755);
        if kind == tar::EntryType::Symlink {
            header.set_link_name("/etc/shadow").unwrap();
        }
        tar.append_data(&mut header, "podctl", text).unwrap();
        tar.into_inner().unwrap()
    };
    pod.engine.world().program = archive(tar::EntryType::Regular, b"a program");
    std::fs::write(&to, "an older one").unwrap();
    engine.extract_binary("adea:1", &to).await.unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), b"a program");
    assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o7777, 0o755);
    pod.engine.world().program = archive(tar::EntryType::Symlink, b"");
    assert!(engine.extract_binary("adea:1", &to).await.is_err());
    pod.engine.world().program = Vec::new();
    assert!(engine.extract_binary("adea:1", &to).await.is_err());
    assert_eq!(std::fs::read(&to).unwrap(), b"a program", "nothing has changed");
    assert!(pod.engine.world().containers.is_empty(), "nothing is left behind");
    assert!(!pod.dir.path().join("taken.tar").exists());
}

#[tokio::test]
async fn a_broken_archive_is_not_loaded() {
    let pod = pod(ready());
    let engine = Engine::new(&pod.engine.socket);
    let err = engine.load(&b"no archive at all"[..]).await.unwrap_err();
    assert!(matches!(err, EngineError::Refused { .. } | EngineError::Odd(_)), "{err}");
    let program_file = pod.dir.path().join("podctl");
    std::fs::write(&program_file, program()).unwrap();
    let mut archive = Vec::new();
    crate::image::archive(&program_file, "1", Some("adea:x"), &mut archive).unwrap();
    assert_eq!(engine.load(std::io::Cursor::new(archive)).await.unwrap(), ["adea:x"]);
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the disk is gone"))
        }
    }
    let err = engine.load(Broken).await.unwrap_err().to_string();
    assert!(err.contains("the disk is gone") || err.contains("read the image"), "{err}");
}
