//! A ring on machines, made by `init` and `join`, as real processes; log-ins; and `leave`.

mod harness;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use harness::{DEADLINE, free_ports, request, signal};
use http::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

const ADMIN: (&str, &str) = ("admin", "an operator's password");

/// Machines of one ring on this one, each with its own folder and two ports.
struct Machines {
    dir: TempDir,
    base: u16,
    agents: Vec<Option<Child>>,
}

impl Machines {
    fn new(count: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("password"), format!("{}\n", ADMIN.1)).unwrap();
        Self { dir, base: free_ports(count), agents: (0..count).map(|_| None).collect() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self, at: usize) -> PathBuf {
        self.path(&format!("machine-{at}/etc/adea.json"))
    }

    fn data(&self, at: usize) -> PathBuf {
        self.path(&format!("machine-{at}/data"))
    }

    fn port(&self, at: usize) -> u16 {
        self.base + 10 * u16::try_from(at).unwrap()
    }

    fn url(&self, at: usize) -> String {
        format!("http://127.0.0.1:{}", self.port(at))
    }

    /// What tells a pod's files and ports, for `init` and `join`.
    fn machine(&self, at: usize, pod: &str) -> Vec<String> {
        let text = |path: PathBuf| path.display().to_string();
        let listen = format!("127.0.0.1:{}", self.port(at));
        let ring = format!("127.0.0.1:{}", self.port(at) + 1);
        let (data, config) = (text(self.data(at)), text(self.config(at)));
        let options = [
            ("--pod", pod),
            ("--data", &data),
            ("--config", &config),
            ("--listen", &listen),
            ("--ring-listen", &ring),
            ("--runtime", "process"),
        ];
        options.iter().flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()]).collect()
    }

    /// podctl in a place of its own: no log-in, no variables and no data folder of whoever runs the tests.
    fn podctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podctl"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("XDG_CONFIG_HOME", self.path("home")).env("NO_COLOR", "1");
        for variable in ["ADEA_PASSWORD", "ADEA_CONFIG", "ADEA_JOIN_TOKEN", "SSL_CERT_FILE"] {
            command.env_remove(variable);
        }
        command
    }

    fn init(&self) -> Output {
        let password = self.path("password").display().to_string();
        let mut args = vec!["init".to_owned(), "--json".to_owned(), "--admin-password-file".to_owned(), password];
        args.extend(self.machine(0, "pod-a"));
        self.run(&args)
    }

    fn join(&self, at: usize, pod: &str, invitation: &str) -> Output {
        let mut args = vec!["join".to_owned(), "--json".to_owned(), invitation.to_owned()];
        args.extend(self.machine(at, pod));
        self.run(&args)
    }

    fn run(&self, args: &[String]) -> Output {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.podctl(&args).output().unwrap()
    }

    /// On a machine, as its operator.
    fn on(&self, at: usize, args: &[&str]) -> Output {
        self.podctl(args).env("ADEA_CONFIG", self.config(at)).output().unwrap()
    }

    fn start(&mut self, at: usize) {
        let config = self.config(at).display().to_string();
        let log = std::fs::File::create(self.path(&format!("adea-{at}.log"))).unwrap();
        let agent = self.podctl(&["adea", "--config", &config]).stderr(log).spawn().unwrap();
        self.agents[at] = Some(agent);
    }

    async fn until(&self, at: usize, method: Method, path: &str, wanted: StatusCode) -> Value {
        let deadline = Instant::now() + DEADLINE;
        let is_document = method == Method::PUT && path.matches('/').count() > 1;
        let body = if is_document { "{}" } else { "" };
        loop {
            let answer = request(&self.url(at), ADMIN, method.clone(), path, body).await;
            if let Some((status, value)) = &answer
                && *status == wanted
            {
                return value.clone();
            }
            assert!(Instant::now() < deadline, "machine {at}: {method} {path}: {answer:?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// A ring of one pod that runs and takes writes.
    async fn first() -> Self {
        let mut machines = Self::new(3);
        let made = ok(&machines.init());
        assert_eq!((&made["pod"], &made["url"]), (&"pod-a".into(), &Value::from(machines.url(0))));
        assert!(made["admin"]["password"].is_null(), "a given one is not repeated");
        machines.start(0);
        machines.until(0, Method::PUT, "/db", StatusCode::CREATED).await;
        machines
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for agent in self.agents.iter_mut().flatten() {
            // Its programs see it and end.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

#[track_caller]
fn ok(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {}", text(&output.stdout)))
}

/// The complaint of a command that ended with this code.
#[track_caller]
fn fails(output: &Output, code: i32) -> String {
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{told}{}", text(&output.stdout));
    told
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn invitation(token: &Value, url: &str) -> String {
    format!("{}@{url}", token["token"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_machines_become_a_ring_and_one_leaves_it() {
    let mut machines = Machines::first().await;
    assert!(fails(&machines.init(), 1).contains("not overwritten"));
    let made = ok(&machines.on(0, &["token", "create", "--uses", "2", "--json"]));
    let join = made["join"].as_str().unwrap();
    assert!(join.starts_with("podctl join ") && join.ends_with(&machines.url(0)), "{join}");

    let taken = machines.join(1, "pod-a", &invitation(&made, &machines.url(0)));
    assert!(fails(&taken, 1).contains("--pod NAME"));
    assert!(!machines.config(1).exists() && !machines.data(1).exists(), "nothing is written");
    let joined = ok(&machines.join(1, "pod-b", &invitation(&made, &machines.url(0))));
    assert_eq!(joined["seeds"], serde_json::json!([format!("127.0.0.1:{}", machines.port(0) + 1)]));
    machines.start(1);
    machines.until(1, Method::GET, "/db", StatusCode::OK).await;

    // By way of the second pod, and waiting until all is there.
    let place = machines.url(1);
    let mut args = vec!["join", "--wait", "--json", &place];
    let options = machines.machine(2, "pod-c");
    args.extend(options.iter().map(String::as_str));
    let mut waiting = machines.podctl(&args);
    waiting.env("ADEA_JOIN_TOKEN", made["token"].as_str().unwrap());
    let waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !machines.config(2).exists() {
        assert!(Instant::now() < deadline, "the third pod's configuration is not written");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    machines.start(2);
    let waited = tokio::task::spawn_blocking(move || waiting.wait_with_output().unwrap()).await.unwrap();
    let joined = ok(&waited);
    assert_eq!(joined["pod"], "pod-c");
    machines.until(2, Method::PUT, "/db/from-c", StatusCode::CREATED).await;
    machines.until(0, Method::GET, "/db/from-c", StatusCode::OK).await;

    let tokens = ok(&machines.on(2, &["token", "list", "--json"]));
    assert_eq!(tokens[0]["left"], 0);
    let used: Vec<&str> =
        tokens[0]["used"].as_array().unwrap().iter().map(|one| one["pod"].as_str().unwrap()).collect();
    assert_eq!(used, ["pod-b", "pod-c"]);

    let no = machines.on(2, &["leave"]);
    assert!(fails(&no, 1).contains("--yes"));
    let left = ok(&machines.on(2, &["leave", "--yes", "--purge", "--json"]));
    assert_eq!((&left["pod"], &left["purged"]), (&"pod-c".into(), &true.into()));
    assert!(!machines.data(2).exists() && !machines.config(2).exists());
    let code = machines.agents[2].take().unwrap().wait().unwrap();
    assert_eq!(code.code(), Some(0), "so that systemd does not start it again");
    machines.until(0, Method::PUT, "/db/without-c", StatusCode::CREATED).await;
    machines.until(1, Method::GET, "/db/without-c", StatusCode::OK).await;
    // What only it had taken stays, and its name does not come back.
    machines.until(1, Method::GET, "/db/from-c", StatusCode::OK).await;
    let again = ok(&machines.on(0, &["token", "create", "--json"]));
    let refused = machines.join(2, "pod-c", &invitation(&again, &machines.url(0)));
    assert!(fails(&refused, 1).contains("was removed"), "{}", text(&refused.stderr));
}

/// A program that says the right things when it is asked, and ends as soon as it is to do anything: pods that follow the
/// order try it and go back.
fn bad_program(machines: &Machines, name: &str) -> String {
    let path = machines.path(name);
    let text =
        "#!/bin/sh\ncase \"$*\" in\n--version) echo \"podctl 9.9.9\"; exit 0;;\n*--check*) exit 0;;\nesac\nexit 7\n";
    std::fs::write(&path, format!("{text}# {name}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// Whether an order was followed, as `bad_program` is: to its end, which is back where all were.
#[track_caller]
fn was_followed(output: &Output) {
    let told = fails(output, 1);
    let last = text(&output.stdout).lines().last().map(str::to_owned).unwrap_or_default();
    assert!(last.contains(r#""result":"failed""#) && told.contains("ended by themselves"), "{last}{told}");
}

/// Orders an upgrade as soon as it can be: pods that have just started are away until the others have heard of them, and
/// agents look at their ring files four times a second.
fn order(machines: &Machines, at: usize, args: &[&str]) -> Output {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let done = machines.on(at, &[&["upgrade", "--json", "--patience", "60s", "--binary"], args].concat());
        let told = text(&done.stderr);
        if !told.contains("is away") && !told.contains("not signed with the key") {
            return done;
        }
        assert!(Instant::now() < deadline, "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrades_are_ordered_with_a_key_that_one_machine_has() {
    let mut machines = Machines::first().await;
    let key = machines.data(0).join("order.key");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let known = ok(&machines.on(0, &["upgrade", "key", "--json"]));
    assert_eq!((&known["made_at"], &known["private"]), (&"pod-a".into(), &key.display().to_string().into()));

    // A pod that says another key than the machine of the token is not believed, and costs no use.
    let made = ok(&machines.on(0, &["token", "create", "--json"]));
    let token = made["token"].as_str().unwrap();
    let (head, last) = token.split_at(token.len() - 1);
    let other = format!("{head}{}@{}", if last == "0" { "1" } else { "0" }, machines.url(0));
    assert!(fails(&machines.join(1, "pod-b", &other), 1).contains("is not what it should be"));
    assert!(!machines.config(1).exists() && !machines.data(1).exists(), "nothing is written");
    let joined = ok(&machines.join(1, "pod-b", &invitation(&made, &machines.url(0))));
    assert!(joined["order_key"].is_null() && !machines.data(1).join("order.key").exists());
    let there = ok(&machines.on(1, &["upgrade", "key", "--json"]));
    assert_eq!((&there["key"], &there["private"]), (&known["key"], &Value::Null));
    machines.start(1);
    machines.until(1, Method::GET, "/db", StatusCode::OK).await;

    let first = bad_program(&machines, "first");
    let refused = fails(&order(&machines, 1, &[&first]), 1);
    assert!(refused.contains("machine of pod-a") && refused.contains("--order-key"), "{refused}");
    was_followed(&order(&machines, 0, &[&first]));
    // With a copy of the key it can be ordered anywhere.
    let old_key = machines.path("copy").display().to_string();
    std::fs::copy(&key, &old_key).unwrap();
    let second = bad_program(&machines, "second");
    was_followed(&order(&machines, 1, &[&second, "--order-key", &old_key]));

    // The key is replaced while the pods run; what the old one signs counts no more.
    let new = ok(&machines.on(0, &["upgrade", "key", "--replace", "--json"]));
    assert_ne!(new["key"], known["key"]);
    let trust = new["key"].as_str().unwrap();
    ok(&machines.on(1, &["upgrade", "key", "--trust", trust, "--at", "pod-a", "--json"]));
    let third = bad_program(&machines, "third");
    let refused = order(&machines, 1, &[&third, "--order-key", &old_key]);
    assert!(fails(&refused, 1).contains("is the key"));
    was_followed(&order(&machines, 0, &[&third]));

    // A machine that was told of the key by a wrong clock refuses orders, says why and what to do, and that helps.
    let ring_file = machines.data(1).join("ring.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(&ring_file).unwrap()).unwrap();
    file["orders_since_ms"] = 4_000_000_000_000_u64.into();
    std::fs::write(&ring_file, file.to_string()).unwrap();
    let said = text(&machines.on(1, &["doctor"]).stdout);
    let advice = format!("podctl upgrade key --trust {trust}");
    assert!(said.contains("yet to come") && said.contains(&advice), "{said}");
    assert_eq!(ok(&machines.on(1, &["upgrade", "key", "--json"]))["waits"], true);
    let fourth = bad_program(&machines, "fourth");
    ok(&order(&machines, 0, &[&fourth, "--no-wait"]));
    let deadline = Instant::now() + DEADLINE;
    loop {
        let status = text(&machines.on(0, &["upgrade", "status"]).stdout);
        if status.contains("yet to come") {
            break;
        }
        assert!(Instant::now() < deadline, "{status}");
    }
    let healed = machines.on(1, &["upgrade", "key", "--trust", trust, "--json"]);
    assert!(!text(&healed.stderr).contains("could not be compared"), "{}", text(&healed.stderr));
    let healed = ok(&healed);
    assert_eq!((&healed["waits"], &healed["made_at"]), (&false.into(), &"pod-a".into()));
    was_followed(&order(&machines, 0, &[&bad_program(&machines, "fifth"), "--force"]));

    // A ring file of an earlier version has no key: nothing can be ordered, and that is said.
    file.as_object_mut().unwrap().remove("order_key").unwrap();
    std::fs::write(&ring_file, file.to_string()).unwrap();
    assert!(fails(&order(&machines, 1, &[&third]), 1).contains("--replace"));
    let doctor = text(&machines.on(1, &["doctor"]).stdout);
    assert!(doctor.contains("orders, here") && doctor.contains("podctl upgrade key"), "{doctor}");
}

/// A place that leads to `to`, whose answers have the date of a clock that was never set.
fn with_an_old_clock(to: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = format!("http://{}", listener.local_addr().unwrap());
    let to = to.trim_start_matches("http://").to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), TcpStream::connect(&to).unwrap());
            let (mut asks, mut asked) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut asks, &mut asked));
            std::thread::spawn(move || {
                // One answer for each connection has a head; the rest goes through as it is.
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && server.read(&mut byte).unwrap_or(0) == 1 {
                    head.push(byte[0]);
                }
                let lines = String::from_utf8(head).unwrap();
                let dated = lines.split_inclusive("\r\n").map(|line| match line.to_lowercase().starts_with("date: ") {
                    true => "date: Thu, 01 Jan 1970 00:02:00 GMT\r\n",
                    false => line,
                });
                let _ = client.write_all(dated.collect::<String>().as_bytes());
                let _ = std::io::copy(&mut server, &mut client);
            });
        }
    });
    place
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_clock_is_not_the_ring_s_does_not_join() {
    let machines = Machines::first().await;
    let made = ok(&machines.on(0, &["token", "create", "--json"]));
    let place = with_an_old_clock(&machines.url(0));
    let refused = fails(&machines.join(1, "pod-b", &invitation(&made, &place)), 1);
    assert!(refused.contains("s ahead of the ring's") && refused.contains("timedatectl"), "{refused}");
    assert!(!machines.config(1).exists() && !machines.data(1).exists());
    // No use of it was spent.
    ok(&machines.join(1, "pod-b", &invitation(&made, &machines.url(0))));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_token_that_counts_learns_nothing_and_writes_nothing() {
    let machines = Machines::first().await;
    let made = ok(&machines.on(0, &["token", "create", "--json"]));
    let id = made["id"].as_str().unwrap();
    let wrong = format!("{id}.{}@{}", "0".repeat(64), machines.url(0));
    assert!(fails(&machines.join(1, "pod-b", &wrong), 4).contains("lets nobody in"));
    let short = format!("{id}@{}", machines.url(0));
    fails(&machines.join(1, "pod-b", &short), 2);
    ok(&machines.on(0, &["token", "revoke", id, "--json"]));
    let revoked = machines.join(1, "pod-b", &invitation(&made, &machines.url(0)));
    assert!(fails(&revoked, 4).contains("lets nobody in"));
    assert!(!text(&revoked.stderr).contains(made["token"].as_str().unwrap()));
    assert!(!machines.config(1).exists() && !machines.data(1).exists());
    assert!(fails(&machines.on(0, &["token", "revoke", id]), 1).contains("there is no token"));
    for (option, value) in [("--ttl", "31d"), ("--ttl", "x"), ("--uses", "0"), ("--uses", "101")] {
        assert!(fails(&machines.on(0, &["token", "create", option, value]), 2).contains(option));
    }
    // A port that is taken here is told before the ring is asked.
    let _taken = TcpListener::bind(("127.0.0.1", machines.port(1))).unwrap();
    let nowhere = format!("{}@http://127.0.0.1:1", made["token"].as_str().unwrap());
    assert!(fails(&machines.join(1, "pod-b", &nowhere), 1).contains("is taken"));
}

#[test]
fn a_token_is_not_in_the_process_list() {
    let machines = Machines::new(2);
    // It takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = silent.local_addr().unwrap().to_string();
    let token = format!("{}.{}", "a".repeat(12), "b".repeat(64));
    let mut args = vec!["join".to_owned(), format!("{token}@http://{place}")];
    args.extend(machines.machine(1, "pod-b"));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut joining = machines.podctl(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // It knocks once it has begun for good.
    let (mut knock, _) = silent.accept().unwrap();
    let mut head = [0; 12];
    knock.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"POST /_join ");
    let secret = "b".repeat(32);
    let shown = std::fs::read(format!("/proc/{}/cmdline", joining.id())).unwrap();
    let shown = text(&shown);
    assert!(shown.contains("join") && shown.contains(&place) && !shown.contains(&secret), "{shown}");
    let anybody = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        text(&line).contains(&secret)
    });
    assert!(!anybody, "another process shows it");
    signal(joining.id(), Signal::TERM);
    joining.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_is_kept_for_the_commands_that_follow_until_it_ends() {
    let machines = Machines::first().await;
    let url = machines.url(0);
    let status = || machines.podctl(&["ring", "status"]).output().unwrap();
    assert!(fails(&status(), 3).contains("podctl login"));
    let log_in =
        |password: &str| machines.podctl(&["login", &url, "--json"]).env("ADEA_PASSWORD", password).output().unwrap();
    assert!(fails(&log_in("wrong"), 4).contains("incorrect"));
    assert!(fails(&machines.podctl(&["login", &url]).output().unwrap(), 1).contains("--password-file"));
    assert_eq!(ok(&log_in(ADMIN.1))["pods"], 1);
    let kept = machines.path("home/adea/credentials.json");
    assert!(!std::fs::read_to_string(&kept).unwrap().contains(ADMIN.1));
    assert!(text(&ok_text(&status())).contains("pod-a"));
    let named = machines.podctl(&["ring", "status", "--url", &url]).output().unwrap();
    assert!(text(&ok_text(&named)).contains("pod-a"));

    // Somebody ends all sessions: the next command says what to do.
    let sessions = machines.until(
        0,
        Method::GET,
        "/_ring/_all_docs?startkey=%22session:%22&endkey=%22session%3B%22",
        StatusCode::OK,
    );
    for row in sessions.await["rows"].as_array().unwrap() {
        let path = format!("/_ring/{}?rev={}", row["id"].as_str().unwrap(), row["value"]["rev"].as_str().unwrap());
        machines.until(0, Method::DELETE, &path, StatusCode::OK).await;
    }
    assert!(fails(&status(), 4).contains("podctl login"));
    ok(&log_in(ADMIN.1));
    ok(&machines.podctl(&["logout", "--json"]).output().unwrap());
    assert!(fails(&status(), 3).contains("podctl login"));
    // On the machine itself no log-in is needed, and nothing is kept.
    assert!(text(&ok_text(&machines.on(0, &["ring", "status"]))).contains("pod-a"));
    // But by nobody who can't read the ring file.
    let other = Machines::new(1);
    std::fs::create_dir_all(other.config(0).parent().unwrap()).unwrap();
    let config = std::fs::read_to_string(machines.config(0)).unwrap();
    let ring_file = machines.data(0).join("ring.json").display().to_string();
    std::fs::write(other.config(0), config.replace(&ring_file, &other.path("none").display().to_string())).unwrap();
    assert!(fails(&other.on(0, &["ring", "status"]), 1).contains("there is no"));
}

#[track_caller]
fn ok_text(output: &Output) -> Vec<u8> {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    output.stdout.clone()
}

#[test]
fn a_password_that_nobody_would_see_is_not_made_up() {
    let machines = Machines::new(1);
    let mut args = vec!["init".to_owned()];
    args.extend(machines.machine(0, "pod-a"));
    assert!(fails(&machines.run(&args), 1).contains("nobody would see"));
    assert!(!Path::new(&machines.config(0)).exists());
    args.push("--json".to_owned());
    let made = ok(&machines.run(&args));
    assert_eq!(made["admin"]["password"].as_str().map(str::len), Some(20));
    let ring = std::fs::read_to_string(machines.data(0).join("ring.json")).unwrap();
    assert!(!ring.contains(made["admin"]["password"].as_str().unwrap()));
}
