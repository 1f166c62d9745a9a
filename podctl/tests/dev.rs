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
