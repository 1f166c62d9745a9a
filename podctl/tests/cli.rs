//! What operators do with a running ring, and the exit codes that scripts rely on.

mod harness;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use harness::{DEADLINE, Dev, free_ports, podctl};
use http::{Method, StatusCode};
use serde_json::Value;

/// Runs podctl as it is, without a data folder.
fn bare(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_podctl"))
        .args(args)
        .env("HOME", "/nonexistent")
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .env_remove("ADEA_PASSWORD")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn json(data: &Path, args: &[&str]) -> Value {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let (code, out, err) = podctl(data, &args);
    assert_eq!(code, Some(0), "{args:?}: {out}\n{err}");
    serde_json::from_str(&out).unwrap_or_else(|_| panic!("{args:?} gave no JSON: {out}"))
}

/// Asks until the answer is as wanted.
fn until(data: &Path, args: &[&str], is_so: impl Fn(Option<i32>, &str) -> bool) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (code, out, err) = podctl(data, args);
        if is_so(code, &out) {
            return out;
        }
        assert!(Instant::now() < deadline, "{args:?}: {code:?} {out}\n{err}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn exit_codes_without_a_ring() {
    let (code, _, err) = bare(&["--zork"]);
    assert_eq!(code, Some(2), "{err}");
    let (code, _, err) = bare(&["status", "--url", "http://admin:x@127.0.0.1:9"]);
    assert_eq!(code, Some(3), "{err}");
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) = podctl(dir.path(), &["pods", "activate"]);
    assert!(code == Some(2) && err.contains("<POD>"), "{err}");
    let (code, out, _) = bare(&["exit-codes"]);
    assert!(code == Some(0) && out.contains("5  the question was answered"), "{out}");
    let (code, out, _) = bare(&["help", "exit-codes"]);
    assert!(code == Some(0) && out.contains("3  no pod answers"), "{out}");
    let (code, out, _) = bare(&["--help"]);
    assert!(code == Some(0) && out.contains("Exit codes:"), "{out}");
}

#[test]
fn completions_and_the_manual() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, out, err) = bare(&["completions", shell]);
        assert!(code == Some(0) && out.contains("maintenance"), "{shell}: {err}");
    }
    let (code, _, err) = bare(&["completions", "zork"]);
    assert!(code == Some(2) && err.contains("bash"), "{err}");
    let dir = tempfile::tempdir().unwrap();
    let man = dir.path().join("man1");
    let (code, _, err) = bare(&["man", man.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{err}");
    let page = std::fs::read_to_string(man.join("podctl-pods-remove.1")).unwrap();
    assert!(page.contains(".TH"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_of_an_operator() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    let dev = Dev::start(data, free_ports(2), &["--no-example", "--pods", "2"]);
    dev.until(Method::PUT, "/notes?access=true", "", StatusCode::CREATED).await;
    dev.until(Method::PUT, "/notes/a", r#"{"access":{"read":["role:staff"]}}"#, StatusCode::CREATED).await;

    // However full the disk is that this runs on.
    let (code, _, err) =
        podctl(data, &["config", "set", "disk={\"low_percent\":0,\"low_mib\":0,\"full_percent\":0,\"full_mib\":0}"]);
    assert_eq!(code, Some(0), "{err}");
    let out = until(data, &["status"], |code, _| code == Some(0));
    assert!(out.contains("ring well") && out.contains("pod-2") && out.contains("1 apps"), "{out}");
    assert!(!out.contains('\u{1b}'), "no colours in a pipe: {out}");
    let status = json(data, &["status"]);
    assert_eq!((&status["well"], &status["apps"]), (&Value::from(true), &Value::from(1)));
    assert_eq!(json(data, &["pods"])["pods"].as_array().unwrap().len(), 2);
    let (code, _, err) = podctl(data, &["pods", "deactivate", "pod-9"]);
    assert!(code == Some(2) && err.contains("pod-1, pod-2"), "{err}");
    let (code, _, err) = podctl(data, &["pods", "remove", "pod-2"]);
    assert!(code == Some(2) && err.contains("--yes"), "{err}");

    apps_and_maintenance(&dev, data).await;
    users(&dev, data).await;
    configuration(data);
    logs_and_top(data);
    wrong_log_ins(&dev);
    let (code, out, err) = podctl(data, &["doctor", "--verbose"]);
    assert!(code == Some(0) && out.contains("ok clock, pod-1") && out.contains("ok gossip"), "{out}\n{err}");

    // One pod goes: the state is not well, and that has a code of its own.
    let place = dev.ready["pods"][1]["data"].as_str().unwrap().to_owned();
    let folder = adea::folder::Folder::new(place.as_ref()).unwrap();
    let state = adea::state::State::load(&folder.state_file()).unwrap();
    let pids = state.programs.values().filter_map(|program| program.pid).chain([state.adea_pid]);
    let pids: Vec<u32> = pids.collect();
    for pid in &pids {
        harness::signal(*pid, rustix::process::Signal::STOP);
    }
    let out = until(data, &["status", "--url", &with_login(&dev)], |code, _| code == Some(5));
    assert!(out.contains("! pod-2 is away: start it again"), "{out}");
    let (code, out, _) = podctl(data, &["doctor", "--ring-only", "--json", "--url", &with_login(&dev)]);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert!(code == Some(5) && found["well"] == false, "{out}");
    for pid in &pids {
        harness::signal(*pid, rustix::process::Signal::CONT);
    }
    dev.stop().await;
}

/// The first pod, as its administrator.
fn with_login(dev: &Dev) -> String {
    let admin = &dev.ready["admin"];
    let (name, password) = (admin["name"].as_str().unwrap(), admin["password"].as_str().unwrap());
    dev.ready["ready"].as_str().unwrap().replace("http://", &format!("http://{name}:{password}@"))
}

async fn apps_and_maintenance(dev: &Dev, data: &Path) {
    let apps = json(data, &["apps"]);
    assert_eq!((&apps["apps"][0]["app"], &apps["apps"][0]["doc_count"]), (&Value::from("notes"), &Value::from(1)));
    let shown = json(data, &["apps", "show", "notes"]);
    assert_eq!(shown["partials"][0]["readers"][0], "role:staff");
    let (code, _, err) = podctl(data, &["apps", "show", "zork"]);
    assert!(code == Some(2) && err.contains("no app zork"), "{err}");

    let (code, _, err) = podctl(data, &["maintenance", "on", "zork"]);
    assert!(code == Some(2) && err.contains("no database zork"), "{err}");
    let feed = open_feed(dev);
    for (args, read, write) in [
        (&["maintenance", "on", "notes", "--write-only"][..], StatusCode::FORBIDDEN, StatusCode::CREATED),
        (&["maintenance", "on", "notes"], StatusCode::SERVICE_UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE),
    ] {
        json(data, args);
        for place in [0, 1] {
            dev.until_pod(place, Method::GET, "/notes/a", "", read).await;
            let path = format!("/notes/in-maintenance-{place}-{}", args.len());
            dev.until_pod(place, Method::PUT, &path, "{}", write).await;
        }
    }
    ends(feed);
    assert_eq!(json(data, &["maintenance"])["maintenance"][0]["rule"], "closed");
    assert_eq!(json(data, &["apps"])["apps"][0]["maintenance"], "closed");
    let (code, out, _) = podctl(data, &["status"]);
    assert!(code == Some(0) && out.contains("podctl maintenance off notes"), "{out}");
    json(data, &["maintenance", "off", "notes"]);
    for place in [0, 1] {
        dev.until_pod(place, Method::GET, "/notes/a", "", StatusCode::OK).await;
    }
    let (code, _, err) = podctl(data, &["maintenance", "off", "notes"]);
    assert!(code == Some(2) && err.contains("not in maintenance"), "{err}");
}

/// A changes feed that has begun.
fn open_feed(dev: &Dev) -> BufReader<TcpStream> {
    let base = dev.ready["ready"].as_str().unwrap();
    let admin = &dev.ready["admin"];
    let login = STANDARD.encode(format!("{}:{}", admin["name"].as_str().unwrap(), admin["password"].as_str().unwrap()));
    let mut stream = TcpStream::connect(base.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = "GET /notes/_changes?feed=continuous&heartbeat=1000 HTTP/1.1\r\nHost: x\r\nConnection: close";
    write!(stream, "{head}\r\nAuthorization: Basic {login}\r\n\r\n").unwrap();
    let mut feed = BufReader::new(stream);
    let mut line = String::new();
    while !line.contains("\"id\"") {
        line.clear();
        assert_ne!(feed.read_line(&mut line).unwrap(), 0, "no row");
    }
    feed
}

/// A heartbeat each second would go on for ever; the end comes before the deadline of one read.
fn ends(mut feed: BufReader<TcpStream>) {
    let deadline = Instant::now() + DEADLINE;
    let mut some = [0u8; 1024];
    while feed.read(&mut some).unwrap() > 0 {
        assert!(Instant::now() < deadline, "the feed goes on");
    }
}

async fn users(dev: &Dev, data: &Path) {
    let made = json(data, &["users", "add", "ann", "--role", "staff,boss", "--generate"]);
    let password = made["password"].as_str().unwrap().to_owned();
    let (status, who) = dev.ask_as("ann", &password, Method::GET, "/_session", "").await.unwrap();
    assert!(status == StatusCode::OK && who["userCtx"]["roles"].as_array().unwrap().len() == 2, "{who}");
    let (code, _, err) = podctl(data, &["users", "add", "ann", "--generate"]);
    assert!(code == Some(1) && err.contains("already"), "{err}");
    assert_eq!(
        json(data, &["users", "roles", "ann", "--remove", "boss", "--add", "x"])["roles"],
        serde_json::json!(["staff", "x"])
    );
    let file = data.join("new-password");
    std::fs::write(&file, "a better one\n").unwrap();
    json(data, &["users", "password", "ann", "--new-password-file", file.to_str().unwrap()]);
    let (status, _) = dev.ask_as("ann", "a better one", Method::GET, "/_session", "").await.unwrap();
    assert_eq!(status, StatusCode::OK);
    let (code, out, err) = podctl(data, &["users"]);
    assert!(code == Some(0) && out.contains("ann   staff, x"), "{out}\n{err}");
    let (code, out, _) = podctl(data, &["users", "list", "--json"]);
    assert!(code == Some(0) && !out.contains("derived") && !out.contains("argon2"), "{out}");
    json(data, &["users", "remove", "ann", "--yes"]);
    let (code, _, err) = podctl(data, &["users", "roles", "ann"]);
    assert!(code == Some(2) && err.contains("no account ann"), "{err}");
}

fn configuration(data: &Path) {
    let (code, out, err) = podctl(data, &["config", "set", "write.wait_ms=4000", "election.settle_ms=200"]);
    assert!(code == Some(0) && out.contains("+") && out.contains("\"wait_ms\": 4000"), "{out}\n{err}");
    let (code, _, err) = podctl(data, &["config", "set", "write.w=0"]);
    assert!(code == Some(1) && err.contains("write.w") && err.contains("nothing was changed"), "{err}");
    let (code, _, err) = podctl(data, &["config", "set", "zork"]);
    assert!(code == Some(2) && err.contains("KEY=VALUE"), "{err}");
    // An editor that first writes nonsense, then what can be used; it is told in the file what was wrong.
    let script = data.join("editor.sh");
    let disk = r#""disk":{"low_percent":0,"low_mib":0,"full_percent":0,"full_mib":0}"#;
    let say = |w: u8| format!("echo '{{\"write\":{{\"w\":{w}}},{disk}}}' > \"$1\"");
    let text = format!("if grep -q 'must be from 1 to 100' \"$1\"; then {}; else {}; fi\n", say(2), say(0));
    std::fs::write(&script, text).unwrap();
    let editor = format!("sh {}", script.display());
    let (code, out, err) = podctl(data, &["config", "edit", "--editor", &editor]);
    assert!(
        code == Some(0) && out.contains("-     \"wait_ms\": 4000") && out.contains("+     \"w\": 2"),
        "{out}\n{err}"
    );
    assert_eq!(json(data, &["config", "show"])["write"], serde_json::json!({"w": 2}));
    let (code, out, _) = podctl(data, &["config", "edit", "--editor", "true"]);
    assert!(code == Some(0) && out.contains("nothing was changed"), "{out}");
    json(data, &["config", "set", "write.w="]);
    assert!(json(data, &["config", "show"])["write"].is_null());
    assert!(json(data, &["config", "show", "--all"])["election"].is_object());
}

fn logs_and_top(data: &Path) {
    let (code, out, err) = podctl(data, &["logs", "--program", "rean", "--lines", "4000"]);
    assert!(code == Some(0) && out.contains("pod-1 rean |") && out.contains("pod-2 rean |"), "{out}\n{err}");
    let (code, out, _) = podctl(data, &["logs", "pod-2", "--json", "--lines", "3"]);
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(code == Some(0) && lines.len() == 3 && lines.iter().all(|line| line["pod"] == "pod-2"), "{out}");
    let (code, _, err) = podctl(data, &["logs", "pod-9"]);
    assert!(code == Some(2) && err.contains("no pod pod-9"), "{err}");
    follows(data);

    let (code, out, err) = podctl(data, &["top", "-n", "2"]);
    let looks: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(code == Some(0) && looks.len() == 2, "{out}\n{err}");
    assert!(looks[1]["pods"].as_array().unwrap().iter().all(|pod| pod["reads_per_s"].is_number()), "{out}");
}

/// What is logged while the log is followed comes.
fn follows(data: &Path) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_podctl"))
        .args(["logs", "pod-1", "--program", "proxy", "--follow", "--data"])
        .arg(data)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let log = data.join("run/proxy.log");
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.starts_with("pod-1 proxy |"), "{line}");
    writeln!(std::fs::OpenOptions::new().append(true).open(&log).unwrap(), "2099-01-01T00:00:00Z  INFO followed")
        .unwrap();
    // It ends with the test's deadline at the latest: nextest has one for each test.
    while !line.contains("followed") {
        line.clear();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "it ended");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
}

/// Who may not, or shows the wrong password, learns so by the code.
fn wrong_log_ins(dev: &Dev) {
    let url = dev.ready["ready"].as_str().unwrap().replace("http://", "http://admin:wrong@");
    for args in [&["status"][..], &["users"], &["logs"], &["config", "show"]] {
        let args: Vec<&str> = args.iter().copied().chain(["--url", &url]).collect();
        let (code, out, err) = bare(&args);
        assert_eq!(code, Some(4), "{args:?}: {out}\n{err}");
        assert!(!err.contains("wrong@"), "{err}");
    }
}
