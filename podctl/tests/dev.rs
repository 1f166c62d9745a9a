//! `podctl dev` as real processes: what is acknowledged survives the death of any of them, and none outlives it.

mod harness;

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use adea::plan::Program;
use http::{Method, StatusCode};
use rean_store::EngineKind;
use rean_store::engine::{self, Batch, Direction, Space};
use rustix::process::Signal;
use serde_json::json;

use harness::{Dev, free_port, free_ports, podctl, signal, until_gone};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_survives_the_death_of_any_process() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let dev = Dev::start(dir.path(), port, &["--no-example"]);
    dev.until(Method::PUT, "/db", "", StatusCode::CREATED).await;
    for (round, victim) in [Program::Rean, Program::Proxy].into_iter().enumerate() {
        let path = format!("/db/doc-{round}");
        dev.until(Method::PUT, &path, r#"{"a":1}"#, StatusCode::CREATED).await;
        let before = dev.state().programs[&victim].clone();
        signal(before.pid.unwrap(), Signal::KILL);
        let after = dev
            .until_state("back", |state| {
                let program = &state.programs[&victim];
                program.healthy && program.restarts > before.restarts
            })
            .await;
        assert_ne!(after.programs[&victim].pid, before.pid);
        let doc = dev.until(Method::GET, &path, "", StatusCode::OK).await;
        assert_eq!(doc["a"], 1);
    }
    // And the agent itself: its programs go with it, and all come back.
    dev.until(Method::PUT, "/db/doc-2", r#"{"a":1}"#, StatusCode::CREATED).await;
    let before = dev.state();
    let programs: Vec<u32> = before.programs.values().filter_map(|program| program.pid).collect();
    signal(before.adea_pid, Signal::KILL);
    until_gone(&programs).await;
    dev.until_state("back", |state| {
        state.adea_pid != before.adea_pid
            && state.programs.len() == 2
            && state.programs.values().all(|program| program.healthy)
    })
    .await;
    for round in 0..3 {
        dev.until(Method::GET, &format!("/db/doc-{round}"), "", StatusCode::OK).await;
    }
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_start_finds_data_passwords_and_the_example() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let dev = Dev::start(dir.path(), port, &[]);
    let first = dev.ready.clone();
    let password = first["example"]["password"].as_str().unwrap().to_owned();
    let note = json!({"text": "hello", "access": {"read": ["role:staff"]}}).to_string();
    let (status, answer) = dev.ask_as("alice", &password, Method::PUT, "/notes--me/note-1", &note).await.unwrap();
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    dev.stop().await;

    let dev = Dev::start(dir.path(), port, &[]);
    assert_eq!(dev.ready, first);
    for (user, wanted) in [("bob", StatusCode::OK), ("carol", StatusCode::NOT_FOUND)] {
        let (status, answer) = dev.ask_as(user, &password, Method::GET, "/notes--me/note-1", "").await.unwrap();
        assert_eq!(status, wanted, "{user}: {answer}");
    }
    dev.stop().await;

    let dev = Dev::start(dir.path(), port, &["--admin", "ann:another one"]);
    assert_eq!(dev.ready["admin"]["name"], "ann");
    dev.until(Method::GET, "/notes/note-1", "", StatusCode::OK).await;
    let old = first["admin"]["password"].as_str().unwrap();
    let (status, _) = dev.ask_as("admin", old, Method::GET, "/notes", "").await.unwrap();
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_process_outlives_a_killed_dev_and_the_next_start_waits_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut dev = Dev::start(dir.path(), port, &["--no-example"]);
    dev.until(Method::PUT, "/db", "", StatusCode::CREATED).await;
    let pids = dev.pids();
    dev.child.kill().unwrap();
    dev.child.wait().unwrap();
    let next = Dev::start(dir.path(), port, &[]);
    until_gone(&pids).await;
    next.until(Method::GET, "/db", "", StatusCode::OK).await;
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_pods_store_can_be_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) = podctl(dir.path(), &["check"]);
    assert!(code == Some(1) && err.contains("there is no store in"), "{err}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    let dev = Dev::start(dir.path(), free_port(), &["--no-example"]);
    dev.until(Method::PUT, "/db", "", StatusCode::CREATED).await;
    dev.until(Method::PUT, "/db/a", r#"{"x":1}"#, StatusCode::CREATED).await;
    let (code, _, err) = podctl(dir.path(), &["check"]);
    assert!(code == Some(1) && err.contains("stop the pod first"), "{err}");
    // It did no harm.
    dev.until(Method::GET, "/db/a", "", StatusCode::OK).await;
    dev.stop().await;

    let (code, out, err) = podctl(dir.path(), &["check"]);
    assert!(code == Some(0) && err.is_empty(), "{err}");
    assert!(out.contains("db: 1 documents, well") && out.ends_with("5 databases, no faults\n"), "{out}");

    let engine = engine::open(EngineKind::Fjall, &dir.path().join("rean/fjall")).unwrap();
    let mut batch = Batch::default();
    for item in engine.snapshot().range(Space::Bodies, &[], &[0xff; 16], Direction::Forward) {
        batch.delete(Space::Bodies, item.unwrap().0.to_vec());
    }
    assert!(!batch.is_empty());
    engine.commit(batch, true).unwrap();
    engine.close().unwrap();
    drop(engine);
    let (code, out, err) = podctl(&dir.path().join("rean"), &["check"]);
    assert!(code == Some(1) && out.contains("db: 1 documents, NOT well\n  a: no body"), "{out}");
    assert!(err.contains("faults in"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_removed_is_not_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_ports(2);
    let mut dev = Dev::start_heard(dir.path(), port, &["--no-example", "--pods", "2"]);
    assert_eq!(dev.ready["pods"].as_array().map(Vec::len), Some(2), "{}", dev.ready);
    let removed = r#"{"pods": {"pod-2": "removed"}}"#;
    dev.until_pod(0, Method::PUT, "/_ring/config", removed, StatusCode::CREATED).await;
    // Said once by `dev` itself; were the agent begun anew, its keeper would say another thing.
    let said = dev.until_says("pod-2");
    assert!(said.contains("not started again") && said.contains("adea.log"), "{said}");
    dev.until_pod(0, Method::GET, "/_ring/config", "", StatusCode::OK).await;
    dev.stop().await;

    // The next start does without it, and doesn't wait for it.
    let dev = Dev::start(dir.path(), port, &["--no-example", "--pods", "2"]);
    let pods: Vec<_> = dev.ready["pods"].as_array().unwrap().iter().map(|pod| pod["pod"].clone()).collect();
    assert_eq!(pods, ["pod-1"], "{}", dev.ready);
    dev.until(Method::GET, "/_ring/config", "", StatusCode::OK).await;
    dev.stop().await;
}

#[test]
fn a_start_that_cannot_succeed_is_given_up_soon() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("rean/fjall");
    std::fs::create_dir_all(&store).unwrap();
    std::fs::write(store.join("version"), "of something else").unwrap();
    let began = Instant::now();
    let (code, _, err) = podctl(dir.path(), &["dev", "--no-example", "--port", &free_port().to_string()]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("rean does not start") && err.contains("can't be opened"), "{err}");
    // Not the time that a store may take which reads its journal.
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
    assert_eq!(std::fs::read(store.join("version")).unwrap(), b"of something else");
}

#[test]
fn says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (args, wanted) in [
        (vec!["--pods", "10"], "at most 9"),
        (vec!["--pods", "0"], "at least one pod"),
        (vec!["--port", port.as_str()], "is taken by process"),
        (vec!["--admin", "nameonly"], "NAME:PASSWORD"),
        (vec!["--engine", "paper"], "fjall"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_podctl"))
            .args(["dev", "--data"])
            .arg(dir.path())
            .args(&args)
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && err.contains(wanted), "{args:?}: {err}");
    }
}
