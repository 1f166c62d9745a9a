//! `podctl dev` as real processes: what is acknowledged survives the death of any of them, and none outlives it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use adea::folder::Folder;
use adea::plan::Program;
use adea::state::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rean_store::EngineKind;
use rean_store::engine::{self, Batch, Direction, Space};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};

/// Long enough for a loaded machine; nothing waits for it when all is well.
const DEADLINE: Duration = Duration::from_secs(60);

/// A running `podctl dev`; killed at the end of a test, however that ends.
struct Dev {
    child: Child,
    _out: BufReader<ChildStdout>,
    ready: Value,
    folder: Folder,
}

impl Dev {
    /// Starts it and waits until it is ready.
    fn start(data: &Path, port: u16, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_podctl"))
            .args(["dev", "--json", "--port", &port.to_string(), "--data"])
            .arg(data)
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        // It gives up by itself when it isn't ready in time.
        out.read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| {
            let _ = child.kill();
            panic!("not ready: {line:?}")
        });
        Self { child, _out: out, ready, folder: Folder::new(data).unwrap() }
    }

    fn state(&self) -> State {
        State::load(&self.folder.state_file()).unwrap()
    }

    /// The process ids of the agent and the programs.
    fn pids(&self) -> Vec<u32> {
        let state = self.state();
        let programs = state.programs.values().filter_map(|program| program.pid);
        programs.chain([state.adea_pid]).collect()
    }

    /// A request as administrator; none if there was no answer.
    async fn ask(&self, method: Method, path: &str, body: &str) -> Option<(StatusCode, Value)> {
        let admin = &self.ready["admin"];
        let (name, password) = (admin["name"].as_str()?, admin["password"].as_str()?);
        self.ask_as(name, password, method, path, body).await
    }

    async fn ask_as(
        &self,
        name: &str,
        password: &str,
        method: Method,
        path: &str,
        body: &str,
    ) -> Option<(StatusCode, Value)> {
        let login = STANDARD.encode(format!("{name}:{password}"));
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.ready["ready"].as_str()?))
            .header("authorization", format!("Basic {login}"))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(request).await.ok()?;
        let status = response.status();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    /// Asks until the answer has this status.
    async fn until(&self, method: Method, path: &str, body: &str, wanted: StatusCode) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let answer = self.ask(method.clone(), path, body).await;
            if let Some((status, value)) = &answer
                && *status == wanted
            {
                return value.clone();
            }
            assert!(Instant::now() < deadline, "{method} {path}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the agent's account satisfies the condition.
    async fn until_state(&self, what: &str, wanted: impl Fn(&State) -> bool) -> State {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let state = self.state();
            if wanted(&state) {
                return state;
            }
            assert!(Instant::now() < deadline, "never {what}: {state:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops it as an operator would, and checks that it did so cleanly.
    async fn stop(mut self) {
        let pids = self.pids();
        signal(self.child.id(), Signal::TERM);
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "dev does not stop");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(status.code(), Some(0));
        for pid in pids {
            assert!(!lives(pid), "process {pid} outlived dev");
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // The others see it and end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

fn signal(to: u32, signal: Signal) {
    kill_process(pid(to), signal).unwrap();
}

fn lives(process: u32) -> bool {
    test_kill_process(pid(process)).is_ok()
}

async fn until_gone(pids: &[u32]) {
    let deadline = Instant::now() + DEADLINE;
    while let Some(pid) = pids.iter().find(|pid| lives(**pid)) {
        assert!(Instant::now() < deadline, "process {pid} does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

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

/// Runs a command on a data folder to its end: exit code, what it printed, what it complained of.
fn podctl(data: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_podctl")).args(args).arg("--data").arg(data).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (args, wanted) in [
        (vec!["--pods", "3"], "only one pod"),
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
