//! `podctl dev` as real processes, and who asks it.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use adea::folder::Folder;
use adea::state::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

/// Long enough for a loaded machine; nothing waits for it when all is well.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A running `podctl dev`; killed at the end of a test, however that ends.
pub struct Dev {
    pub child: Child,
    _out: BufReader<ChildStdout>,
    pub ready: Value,
    pub folder: Folder,
}

impl Dev {
    /// Starts it and waits until it is ready.
    pub fn start(data: &Path, port: u16, more: &[&str]) -> Self {
        Self::start_with(data, port, more, Stdio::inherit())
    }

    /// The same; what it complains of can be waited for.
    pub fn start_heard(data: &Path, port: u16, more: &[&str]) -> Self {
        Self::start_with(data, port, more, Stdio::piped())
    }

    fn start_with(data: &Path, port: u16, more: &[&str], complaints: Stdio) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_podctl"))
            .args(["dev", "--json", "--port", &port.to_string(), "--data"])
            .arg(data)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(complaints)
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

    /// Waits for the next line of complaint with a text in it. What was read once is gone.
    pub fn until_says(&mut self, text: &str) -> String {
        let (tell, told) = std::sync::mpsc::channel();
        let complaints = BufReader::new(self.child.stderr.take().unwrap());
        // To its end, as nobody may write to a pipe that nobody reads.
        std::thread::spawn(move || {
            for line in complaints.lines().map_while(Result::ok) {
                // The test may have heard enough.
                let _ = tell.send(line);
            }
        });
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = told.recv_timeout(left).unwrap_or_else(|err| panic!("never said of {text}: {err}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    pub fn state(&self) -> State {
        State::load(&self.folder.state_file()).unwrap()
    }

    /// The process ids of the agent and the programs.
    pub fn pids(&self) -> Vec<u32> {
        let state = self.state();
        let programs = state.programs.values().filter_map(|program| program.pid);
        programs.chain([state.adea_pid]).collect()
    }

    /// A request as administrator; none if there was no answer.
    pub async fn ask(&self, method: Method, path: &str, body: &str) -> Option<(StatusCode, Value)> {
        let admin = &self.ready["admin"];
        let (name, password) = (admin["name"].as_str()?, admin["password"].as_str()?);
        self.ask_as(name, password, method, path, body).await
    }

    pub async fn ask_as(
        &self,
        name: &str,
        password: &str,
        method: Method,
        path: &str,
        body: &str,
    ) -> Option<(StatusCode, Value)> {
        let login = (name, password);
        request(self.ready["ready"].as_str()?, login, method, path, body).await
    }

    /// A request as administrator to the pod of a place, counted from 0.
    pub async fn ask_pod(&self, place: usize, method: Method, path: &str, body: &str) -> Option<(StatusCode, Value)> {
        let admin = &self.ready["admin"];
        let login = (admin["name"].as_str()?, admin["password"].as_str()?);
        request(self.ready["pods"][place]["url"].as_str()?, login, method, path, body).await
    }

    /// Asks the pod of a place until the answer has this status.
    pub async fn until_pod(&self, place: usize, method: Method, path: &str, body: &str, wanted: StatusCode) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let answer = self.ask_pod(place, method.clone(), path, body).await;
            if let Some((status, value)) = &answer
                && *status == wanted
            {
                return value.clone();
            }
            assert!(Instant::now() < deadline, "pod {place}: {method} {path}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks until the answer has this status.
    pub async fn until(&self, method: Method, path: &str, body: &str, wanted: StatusCode) -> Value {
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
    pub async fn until_state(&self, what: &str, wanted: impl Fn(&State) -> bool) -> State {
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
    pub async fn stop(mut self) {
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

pub fn pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

pub fn signal(to: u32, signal: Signal) {
    kill_process(pid(to), signal).unwrap();
}

pub fn lives(process: u32) -> bool {
    test_kill_process(pid(process)).is_ok()
}

pub async fn until_gone(pids: &[u32]) {
    let deadline = Instant::now() + DEADLINE;
    while let Some(pid) = pids.iter().find(|pid| lives(**pid)) {
        assert!(Instant::now() < deadline, "process {pid} does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A request to a pod; none if there was no answer.
pub async fn request(
    base: &str,
    (name, password): (&str, &str),
    method: Method,
    path: &str,
    body: &str,
) -> Option<(StatusCode, Value)> {
    let login = STANDARD.encode(format!("{name}:{password}"));
    let request = Request::builder()
        .method(method)
        .uri(format!("{base}{path}"))
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

/// The first of the ports of so many pods: below those that Linux lends to outgoing connections, as the ring's ports
/// are not asked for one by one.
pub fn free_ports(pods: u16) -> u16 {
    let is_free =
        |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok();
    // Tests run beside one another, each in a process of its own: each has its own fifty first.
    let mine = (0..180u32).map(|step| 10_000 + (std::process::id() + step * 7) % 180 * 50);
    let mut mine = mine.map(|port| u16::try_from(port).unwrap());
    mine.find(|base| (0..pods).all(|pod| is_free(base + 10 * pod) && is_free(base + 10 * pod + 1))).unwrap()
}

/// Runs a command on a data folder to its end: exit code, what it printed, what it complained of.
pub fn podctl(data: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_podctl")).args(args).arg("--data").arg(data).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}
