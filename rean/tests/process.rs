//! rean as a process: what its port gives to whom, and that what it acknowledged outlives `kill -9`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use adea_ring::{Identity, RingSecret, Signer};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// What waits for a state gives up after this.
const DEADLINE: Duration = Duration::from_secs(20);

struct Rean {
    child: Child,
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
    signer: Signer,
}

impl Rean {
    fn start(folder: &Path, secret: &RingSecret) -> Self {
        let config = serde_json::json!({
            "listen": "127.0.0.1:0",
            "data_dir": folder.join("store"),
            "ring_secret": secret.to_hex(),
        });
        let file = folder.join("rean.json");
        std::fs::write(&file, config.to_string()).expect("a configuration");
        let mut child = Command::new(env!("CARGO_BIN_EXE_rean"))
            .arg("--config")
            .arg(&file)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("rean starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let base = line.trim().strip_prefix("ready rean ").expect("it is ready").to_owned();
        Self { child, base, client: Client::builder(TokioExecutor::new()).build_http(), signer: Signer::new(secret) }
    }

    async fn send(&self, who: Option<&Identity>, method: &str, path: &str, body: &str) -> http::Response<Bytes> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("content-type", "application/json");
        for (name, value) in who.map(|who| self.signer.headers(who)).unwrap_or_default() {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).expect("a request");
        let answer = tokio::time::timeout(DEADLINE, self.client.request(request)).await;
        let (parts, body) = answer.expect("in time").expect("an answer").into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        http::Response::from_parts(parts, bytes)
    }
}

impl Drop for Rean {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_without_a_signed_identity() {
    let folder = tempfile::tempdir().expect("a folder");
    let rean = Rean::start(folder.path(), &RingSecret::random());
    assert_eq!(rean.send(None, "GET", "/_up", "").await.status(), 200);
    for path in ["/", "/_all_dbs", "/_users", "/none", "/_up/x"] {
        assert_eq!(rean.send(None, "GET", path, "").await.status(), 401, "{path}");
    }
    let forged = Signer::new(&RingSecret::random());
    let mut request = http::Request::get(format!("{}/_all_dbs", rean.base));
    for (name, value) in forged.headers(&Identity::system()) {
        request = request.header(name, value);
    }
    let answer = rean.client.request(request.body(Full::default()).expect("a request")).await;
    assert_eq!(answer.expect("an answer").status(), 401);
    let anonymous = Identity::anonymous();
    assert_eq!(rean.send(Some(&anonymous), "GET", "/", "").await.status(), 200);
    assert_eq!(rean.send(Some(&anonymous), "GET", "/_users/_all_docs", "").await.status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn head_has_the_length_of_get_and_no_body() {
    let folder = tempfile::tempdir().expect("a folder");
    let rean = Rean::start(folder.path(), &RingSecret::random());
    let root = Identity::system();
    assert_eq!(rean.send(Some(&root), "PUT", "/db", "").await.status(), 201);
    assert_eq!(rean.send(Some(&root), "PUT", "/db/a", "{\"n\":1}").await.status(), 201);
    for path in ["/db/a", "/db", "/db/none", "/"] {
        let get = rean.send(Some(&root), "GET", path, "").await;
        let head = rean.send(Some(&root), "HEAD", path, "").await;
        assert_eq!(head.status(), get.status(), "{path}");
        assert!(head.body().is_empty());
        assert_eq!(head.headers().get("content-length"), get.headers().get("content-length"), "{path}");
        assert_eq!(head.headers().get("etag"), get.headers().get("etag"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_body_was_not_read_says_that_it_ends() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let folder = tempfile::tempdir().expect("a folder");
    let secret = RingSecret::random();
    let rean = Rean::start(folder.path(), &secret);
    let root = Identity::system();
    assert_eq!(rean.send(Some(&root), "PUT", "/db", "").await.status(), 201);
    let identity: String =
        Signer::new(&secret).headers(&root).into_iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let address = rean.base.strip_prefix("http://").expect("an address");
    // The body of the first is still to come when it is answered.
    for (path, body, closes) in [("/none/a", "", true), ("/db/a", "{}", false)] {
        let mut socket = tokio::net::TcpStream::connect(address).await.expect("a connection");
        let request = format!("PUT {path} HTTP/1.1\r\nhost: x\r\n{identity}content-length: 2\r\n\r\n{body}");
        socket.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
            let read = tokio::time::timeout(DEADLINE, socket.read_buf(&mut answer)).await.expect("in time");
            assert!(read.expect("an answer") > 0);
        }
        let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        assert_eq!(answer.contains("connection: close"), closes, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_outlives_a_kill() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = RingSecret::random();
    let root = Identity::system();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let mut rean = Rean::start(folder.path(), &secret);
        if round == 0 {
            assert_eq!(rean.send(Some(&root), "PUT", "/db", "").await.status(), 201);
        }
        for id in &acknowledged {
            let answer = rean.send(Some(&root), "GET", &format!("/db/{id}"), "").await;
            assert_eq!(answer.status(), 200, "{id}");
        }
        for n in 0..20 {
            let id = format!("d{round}-{n}");
            let answer = rean.send(Some(&root), "PUT", &format!("/db/{id}"), "{}").await;
            assert_eq!(answer.status(), 201);
            acknowledged.push(id);
        }
        rean.child.kill().expect("SIGKILL");
        rean.child.wait().expect("it ends");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_it_cleanly_while_a_feed_is_open() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut rean = Rean::start(folder.path(), &RingSecret::random());
    let root = Identity::system();
    let mut request = http::Request::get(format!("{}/_pods/_changes?feed=continuous&heartbeat=60000", rean.base));
    for (name, value) in rean.signer.headers(&root) {
        request = request.header(name, value);
    }
    let feed = rean.client.request(request.body(Full::default()).expect("a request")).await.expect("a feed");
    let pid = rean.child.id().to_string();
    assert!(Command::new("kill").arg(&pid).status().expect("kill runs").success());
    let end = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = rean.child.try_wait().expect("a child") {
            break status;
        }
        assert!(Instant::now() < end, "it did not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(status.success(), "{status}");
    drop(feed);
}

#[test]
fn a_bad_configuration_is_refused_with_the_keys_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("rean.json");
    let config = r#"{"listen":"0.0.0.0:0","data_dir":"x","ring_secret":"00"}"#;
    std::fs::write(&file, config).expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_rean")).arg("--config").arg(&file).output().expect("it runs");
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("listen"), "{message}");
}
