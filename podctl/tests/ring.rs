//! `podctl dev --pods N` as real processes: pods that agree on who takes the writes, and go on without any of them.

mod harness;

use std::time::{Duration, Instant};

use adea::folder::{Folder, Lock};
use adea::state::State;
use http::{Method, StatusCode};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use harness::{DEADLINE, Dev, free_ports, lives, pid, podctl};

/// How long the ring may be without a master when one is killed: with the default settings 3 s are the aim, and the
/// rest is for a machine that is busy with other tests.
const FAIL_OVER: Duration = Duration::from_secs(20);

/// The master that these pods name, if they agree.
async fn agreed(dev: &Dev, places: &[usize]) -> Option<String> {
    let mut named = Vec::new();
    for place in places {
        let (_, root) = dev.ask_pod(*place, Method::GET, "/", "").await?;
        named.push(root["adea"]["master"]["pod"].as_str()?.to_owned());
    }
    named.dedup();
    if named.len() == 1 { named.pop() } else { None }
}

async fn until_agreed(dev: &Dev, places: &[usize], so: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + FAIL_OVER;
    loop {
        let found = agreed(dev, places).await;
        if let Some(master) = found.as_ref().filter(|master| so(master)) {
            return master.clone();
        }
        assert!(Instant::now() < deadline, "no agreement: {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn folder(dev: &Dev, place: usize) -> Folder {
    Folder::new(dev.ready["pods"][place]["data"].as_str().unwrap().as_ref()).unwrap()
}

fn pids(folder: &Folder) -> Vec<u32> {
    let Some(state) = State::load(&folder.state_file()) else { return Vec::new() };
    let programs = state.programs.values().filter_map(|program| program.pid);
    programs.chain([state.adea_pid]).filter(|pid| *pid != 0).collect()
}

/// Kills all of a pod's processes, and keeps `dev` from starting them again for as long as the lock is held.
///
/// Gives when it killed the first.
async fn kill_pod(folder: &Folder) -> (Lock, Instant) {
    let killed = Instant::now();
    let deadline = killed + DEADLINE;
    loop {
        for one in pids(folder).into_iter().filter(|one| lives(*one)) {
            // It may have ended in between.
            let _ = kill_process(pid(one), Signal::KILL);
        }
        match folder.try_lock("adea") {
            Ok(lock) => return (lock, killed),
            Err(err) => assert!(Instant::now() < deadline, "{err}"),
        }
        // Not until they are gone for whoever collects the dead: the next agent is a tenth of a second away.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn put(dev: &Dev, place: usize, path: &str) -> Value {
    dev.until_pod(place, Method::PUT, path, "{}", StatusCode::CREATED).await
}

async fn see(dev: &Dev, places: &[usize], path: &str) {
    for place in places {
        dev.until_pod(*place, Method::GET, path, "", StatusCode::OK).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_pods_are_one_ring_and_go_on_without_their_master() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), free_ports(3), &["--no-example", "--pods", "3"]);
    let all = [0, 1, 2];
    let ids: Vec<&str> = all.iter().map(|place| dev.ready["pods"][*place]["pod"].as_str().unwrap()).collect();
    assert_eq!(ids, ["pod-1", "pod-2", "pod-3"]);
    assert!(dev.ready["master"].is_string(), "{}", dev.ready);
    // Two that meet before the third is there begin without it; it takes over when it has what they have.
    until_agreed(&dev, &all, |master| master == "pod-3").await;

    // Whatever pod is written to, all have it.
    put(&dev, 0, "/db").await;
    for place in all {
        let path = format!("/db/from-{place}");
        put(&dev, place, &path).await;
        // Whoever has written there may read there.
        let (status, _) = dev.ask_pod(place, Method::GET, &path, "").await.unwrap();
        assert_eq!(status, StatusCode::OK);
        see(&dev, &all, &path).await;
    }
    let deadline = Instant::now() + DEADLINE;
    // The pods' own word takes a moment.
    loop {
        let (code, out, err) = podctl(dir.path(), &["ring", "status"]);
        if code == Some(0) {
            assert!(ids.iter().all(|id| out.contains(id)) && out.contains("master"), "{out}");
            break;
        }
        assert!(Instant::now() < deadline, "{out}\n{err}");
    }

    let (code, out, err) = podctl(dir.path(), &["revocations", "--json"]);
    assert!(code == Some(0) && out.contains("\"open\":0"), "{out}\n{err}");
    let (code, out, err) = podctl(dir.path(), &["divergences"]);
    assert!(code == Some(0) && out.contains("no document has diverged"), "{out}\n{err}");

    let (lock, killed) = kill_pod(&folder(&dev, 2)).await;
    let next = until_agreed(&dev, &[0, 1], |master| master != "pod-3").await;
    eprintln!("a new master after {} ms", killed.elapsed().as_millis());
    assert_eq!(next, "pod-2");
    put(&dev, 0, "/db/without-1").await;
    put(&dev, 1, "/db/without-2").await;
    see(&dev, &[0, 1], "/db/without-1").await;
    see(&dev, &[0, 1], "/db/without-2").await;
    let (code, _, err) = podctl(dir.path(), &["ring", "status"]);
    assert!(code == Some(1) && err.contains("pod-3 is away"), "{err}");
    let (code, _, err) = podctl(dir.path(), &["ring", "key", "remove", "00000000"]);
    assert!(code == Some(1) && err.contains("00000000"), "{err}");

    // It comes back, catches up, and is the one with the highest id again.
    drop(lock);
    see(&dev, &all, "/db/without-2").await;
    until_agreed(&dev, &all, |master| master == "pod-3").await;
    put(&dev, 1, "/db/again").await;
    see(&dev, &all, "/db/again").await;

    let everyone: Vec<u32> = all.iter().flat_map(|place| pids(&folder(&dev, *place))).collect();
    assert_eq!(everyone.len(), 9);
    dev.stop().await;
    assert!(everyone.iter().all(|pid| !lives(*pid)));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_changed_with_nobody_lost_also_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_ports(2);
    let dev = Dev::start(dir.path(), port, &["--no-example", "--pods", "2"]);
    put(&dev, 0, "/db").await;
    let keys = || -> Value {
        let (code, out, err) = podctl(dir.path(), &["ring", "key", "list", "--json"]);
        assert_eq!(code, Some(0), "{err}");
        serde_json::from_str(&out).unwrap()
    };
    let first = keys()["primary"].as_str().unwrap().to_owned();
    let (code, out, err) = podctl(dir.path(), &["ring", "key", "add"]);
    assert!(code == Some(0) && out.contains("podctl ring key use"), "{out}\n{err}");
    let second = keys()["keys"][1].as_str().unwrap().to_owned();
    let (code, _, err) = podctl(dir.path(), &["ring", "key", "remove", &first]);
    assert!(code == Some(1) && err.contains("use another"), "{err}");
    for (step, key) in [("use", &second), ("remove", &first)] {
        // Each step after all have the last one.
        see(&dev, &[0, 1], "/_ring/keyring").await;
        let (code, out, err) = podctl(dir.path(), &["ring", "key", step, key]);
        assert_eq!(code, Some(0), "{out}\n{err}");
    }
    assert_eq!(keys(), serde_json::json!({"keys": [second], "primary": second}));
    dev.stop().await;

    // As many as there are.
    let dev = Dev::start(dir.path(), port, &[]);
    assert_eq!(dev.ready["pods"].as_array().map(Vec::len), Some(2));
    until_agreed(&dev, &[0, 1], |_| true).await;
    put(&dev, 1, "/db/x").await;
    see(&dev, &[0, 1], "/db/x").await;
    let other = tempfile::tempdir().unwrap();
    let alone = Dev::start(other.path(), free_ports(1), &["--no-example"]);
    let ring_file = dir.path().join("ring.json").display().to_string();
    let (code, _, err) = podctl(other.path(), &["ring", "key", "list", "--ring-file", &ring_file]);
    assert!(code == Some(1) && err.contains("not the ring file of the ring"), "{err}");
    alone.stop().await;
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_alone_gives_what_it_has_to_the_ring_and_can_do_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_ports(3);
    let dev = Dev::start(dir.path(), port, &["--no-example"]);
    assert!(dev.ready["pods"].is_null());
    dev.until(Method::PUT, "/db", "", StatusCode::CREATED).await;
    dev.until(Method::PUT, "/db/old", "{}", StatusCode::CREATED).await;
    let made = dev.until(Method::GET, "/_ring/db:db", "", StatusCode::OK).await;
    let (_, root) = dev.ask(Method::GET, "/", "").await.unwrap();
    assert_eq!(root["adea"]["role"], "alone");
    let first = root["adea"]["pod"].as_str().unwrap().to_owned();
    dev.stop().await;

    let dev = Dev::start(dir.path(), port, &["--pods", "3"]);
    assert_eq!(dev.ready["pods"][0]["pod"], *first);
    see(&dev, &[0, 1, 2], "/db/old").await;
    // Nobody began a ring without it, in which the same database would have been made again.
    let (code, out, err) = podctl(dir.path(), &["divergences", "--json"]);
    assert!(code == Some(0), "{out}\n{err}");
    assert_eq!(dev.until(Method::GET, "/_ring/db:db", "", StatusCode::OK).await["_rev"], made["_rev"]);
    put(&dev, 1, "/db/new").await;
    see(&dev, &[0, 1, 2], "/db/new").await;
    dev.stop().await;

    let dev = Dev::start(dir.path(), port, &["--pods", "1"]);
    assert_eq!(dev.ready["pods"].as_array().map(Vec::len), Some(1));
    see(&dev, &[0], "/db/new").await;
    put(&dev, 0, "/db/newer").await;
    dev.stop().await;

    // What it wrote alone is there when the other is back.
    let dev = Dev::start(dir.path(), port, &[]);
    see(&dev, &[0, 1, 2], "/db/newer").await;
    dev.stop().await;
}
