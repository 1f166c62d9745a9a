//! TLS on the public port: certificates from files and from the ring, handshakes that are slow or wrong, plain HTTP beside
//! it, and that requests that come by it are told so.

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::certificate::validity_s;
use adea_ring::public_tls::PublicTls;
use adea_ring::trust::{self, Trust};
use adea_ring::web_tls::WebAuthority;
use common::{ADMIN, Answer, Pod, request, soon, until};
use http::{StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proxy::{Config, Server, TlsError};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const H1: &[&[u8]] = &[b"http/1.1"];
const NAME: &str = "pod.example";

/// An authority of the test's own, and what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate and its key, PEM, until the start of a year.
    fn sign(&self, name: &str, until: i32) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("a certificate").pem(), key.serialize_pem())
    }

    fn trust(&self) -> Trust {
        Trust::nobody().with_pem(self.pem.as_bytes()).expect("an authority")
    }
}

/// A pair of files in a folder.
fn write(folder: &Path, pair: &(String, String)) -> PublicTls {
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    std::fs::write(&certificate, &pair.0).expect("written");
    std::fs::write(&key, &pair.1).expect("written");
    PublicTls::Files { certificate, key }
}

async fn connect(to: SocketAddr, name: &str, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    TlsConnector::from(config).connect(ServerName::try_from(name.to_owned()).expect("a name"), stream).await
}

/// Asks by HTTP/1.1 over TLS.
async fn ask(pod: &Pod, trust: &Trust, request: http::request::Builder, body: &str) -> Answer {
    let stream = connect(pod.address, NAME, trust.client_config(H1)).await.expect("TLS");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    let request =
        request.header("host", NAME).body(Full::<bytes::Bytes>::new(body.to_owned().into())).expect("a request");
    let (parts, body) = sender.send_request(request).await.expect("an answer").into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    Answer { status: parts.status, headers: parts.headers, body }
}

async fn metrics(pod: &Pod, trust: &Trust) -> String {
    let answer = ask(pod, trust, request("GET", "/_metrics", Some(ADMIN)), "").await;
    String::from_utf8(answer.body.to_vec()).expect("text")
}

/// Until when the certificate that is shown holds.
async fn shown_until_s(to: SocketAddr) -> i64 {
    let stream = connect(to, NAME, trust::unverified_client_config(H1)).await.expect("TLS");
    let chain = stream.get_ref().1.peer_certificates().expect("a certificate");
    validity_s(&chain[0]).expect("a certificate").1
}

/// What a client that speaks plain HTTP is told.
async fn plain(to: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(to).await.expect("connects");
    stream.write_all(text.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer)).await.expect("read");
    answer.to_ascii_lowercase()
}

#[tokio::test]
async fn a_certificate_from_files_is_renewed_while_the_pod_runs() {
    let (folder, authority) = (tempfile::tempdir().expect("a folder"), Authority::new());
    let tls = write(folder.path(), &authority.sign(NAME, 2090));
    let pod = Pod::start_with(|config| config.tls = Some(tls)).await;
    let trust = authority.trust();
    let answer = ask(&pod, &trust, request("GET", "/x", Some(ADMIN)), "").await;
    assert_eq!(answer.status, StatusCode::OK);
    let open = connect(pod.address, NAME, trust.client_config(H1)).await.expect("TLS");
    let before_s = shown_until_s(pod.address).await;

    // A pair that doesn't fit, one that has expired, and no pair at all: the old one stays.
    let (other, expired) = (authority.sign(NAME, 2091), authority.sign(NAME, 2021));
    std::fs::write(folder.path().join("certificate.pem"), &other.0).expect("written");
    let failures = async |wanted: u32| {
        let line = format!("adea_proxy_certificate_renewal_failures_total {wanted}");
        soon("a failure", async {
            while !metrics(&pod, &trust).await.lines().any(|l| l == line) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    };
    failures(1).await;
    assert_eq!(shown_until_s(pod.address).await, before_s);
    std::fs::write(folder.path().join("key.pem"), &expired.1).expect("written");
    failures(2).await;
    std::fs::write(folder.path().join("certificate.pem"), &expired.0).expect("written");
    failures(3).await;
    assert_eq!(shown_until_s(pod.address).await, before_s);

    write(folder.path(), &other);
    soon("the new certificate", async {
        while shown_until_s(pod.address).await == before_s {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let answer = ask(&pod, &trust, request("GET", "/x", Some(ADMIN)), "").await;
    assert_eq!(answer.status, StatusCode::OK);
    let text = metrics(&pod, &trust).await;
    let days = text.lines().find_map(|line| line.strip_prefix("adea_proxy_certificate_valid_days "));
    let days: f64 = days.expect("the certificate's days").parse().expect("a number");
    assert!(days > 10_000.0 && text.contains("adea_proxy_tls_handshakes_total"), "{text}");
    drop(open);
}

#[test]
fn files_that_make_no_pair_are_named() {
    let (folder, authority) = (tempfile::tempdir().expect("a folder"), Authority::new());
    let (one, two) = (authority.sign(NAME, 2090), authority.sign(NAME, 2090));
    let refused = |certificate: &str, key: &str| {
        let tls = write(folder.path(), &(certificate.to_owned(), key.to_owned()));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config::new(any, any, adea_ring::RingSecret::random());
        config.tls = Some(tls);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _entered = runtime.enter();
        match Server::bind(&config) {
            Err(proxy::RunError::Tls(error @ TlsError::File { .. })) => error.to_string(),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("taken"),
        }
    };
    for (certificate, key, told) in [
        (one.0.as_str(), two.1.as_str(), "`files.key`"),
        ("zork", one.1.as_str(), "`files.certificate`"),
        (one.0.as_str(), "zork", "`files.key`"),
        (one.1.as_str(), one.1.as_str(), "`files.certificate`"),
    ] {
        let error = refused(certificate, key);
        assert!(error.contains(told) && error.contains(".pem"), "{error}");
        assert!(!error.contains("PRIVATE KEY-"), "{error}");
    }
}

#[tokio::test]
async fn the_rings_authority_names_the_pod() {
    let secret = adea_ring::RingSecret::random();
    let names = vec![NAME.to_owned(), "127.0.0.1".to_owned()];
    let pod = Pod::start_with(|config| config.tls = Some(PublicTls::Ring { names })).await;
    let authority = WebAuthority::new(&pod.rean.secret).expect("an authority");
    let trust = Trust::nobody().with_pem(authority.pem().as_bytes()).expect("an authority");
    let answer = ask(&pod, &trust, request("GET", "/x", None), "").await;
    assert_eq!(answer.status, StatusCode::OK);
    connect(pod.address, "127.0.0.1", trust.client_config(H1)).await.expect("by its address");

    let wrong_name = connect(pod.address, "other.example", trust.client_config(H1)).await.expect_err("another name");
    let told = trust::explain(&wrong_name).expect("explained");
    assert!(told.contains("not for other.example") && told.contains(NAME), "{told}");
    let other = WebAuthority::new(&secret).expect("an authority");
    for trust in [Trust::web(), Trust::nobody().with_pem(other.pem().as_bytes()).expect("an authority")] {
        let stranger = connect(pod.address, NAME, trust.client_config(H1)).await.expect_err("another authority");
        let told = trust::explain(&stranger).expect("explained");
        assert!(told.contains("not trusted") || told.contains("can't be trusted"), "{told}");
    }
    // What clients can be shown, so that they may trust it.
    let shown = connect(pod.address, NAME, trust::unverified_client_config(H1)).await.expect("TLS");
    let chain: Vec<CertificateDer<'_>> = shown.get_ref().1.peer_certificates().expect("certificates").to_vec();
    assert_eq!(chain.len(), 2);
    connect(pod.address, NAME, Trust::nobody().with_pem(authority.pem().as_bytes()).expect("pem").client_config(H1))
        .await
        .expect("TLS");
}

#[tokio::test]
async fn http2_is_agreed_on_in_the_handshake() {
    let names = vec![NAME.to_owned()];
    let pod = Pod::start_with(|config| config.tls = Some(PublicTls::Ring { names })).await;
    let config = trust::unverified_client_config(&[b"h2", b"http/1.1"]);
    let stream = connect(pod.address, NAME, config).await.expect("TLS");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.expect("HTTP/2");
    tokio::spawn(connection);
    let asking = request("GET", "https://pod.example/x", Some(ADMIN)).body(Full::new(bytes::Bytes::new()));
    let response = sender.send_request(asking.expect("a request")).await.expect("an answer");
    assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
    let told: serde_json::Value =
        serde_json::from_slice(&response.into_body().collect().await.expect("a body").to_bytes()).expect("JSON");
    assert_eq!(told["headers"]["host"], NAME);
    assert_eq!(told["headers"]["x-forwarded-proto"], "https");
    // A client that offers nothing that is spoken here is refused, not misunderstood.
    assert!(connect(pod.address, NAME, trust::unverified_client_config(&[b"spdy/3"])).await.is_err());
    // One that offers nothing gets HTTP/1.1.
    let mut bare = connect(pod.address, NAME, trust::unverified_client_config(&[])).await.expect("TLS");
    bare.write_all(b"GET /_up HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    soon("an answer", bare.read_to_string(&mut answer)).await.expect("read, and closed as TLS wants it");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn feeds_and_large_answers_arrive_over_tls() {
    let names = vec![NAME.to_owned()];
    let pod = Pod::start_with(|config| config.tls = Some(PublicTls::Ring { names })).await;
    let mut stream = connect(pod.address, NAME, trust::unverified_client_config(H1)).await.expect("TLS");
    let login = request("GET", "/db/_changes?feed=continuous&silent", Some(ADMIN)).body(()).expect("a request");
    let login = login.headers()["authorization"].to_str().expect("text").to_owned();
    let head =
        format!("GET /notes/_changes?feed=continuous&silent HTTP/1.1\r\nhost: x\r\nauthorization: {login}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    // rean is silent after the start: what it said must not wait in a buffer for more.
    let mut until_has = async |what: &str| {
        soon(what, async {
            while !seen.contains(what) {
                let count = stream.read(&mut buffer).await.expect("read");
                assert_ne!(count, 0, "{seen}");
                seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        })
        .await;
    };
    until_has("transfer-encoding: chunked").await;
    pod.rean.put("notes", "first", serde_json::json!({}));
    until_has("\"first\"").await;
    pod.rean.put("notes", "second", serde_json::json!({}));
    until_has("\"second\"").await;
    drop(stream);
    until("the end of the feed", || pod.rean.feeds.load(std::sync::atomic::Ordering::SeqCst) == 2).await;

    let big = ask(&pod, &unverified_trust(&pod), request("GET", "/big", Some(ADMIN)), "").await;
    assert!(big.body.len() > 100_000);
}

fn unverified_trust(pod: &Pod) -> Trust {
    let authority = WebAuthority::new(&pod.rean.secret).expect("an authority");
    Trust::nobody().with_pem(authority.pem().as_bytes()).expect("an authority")
}

#[tokio::test]
async fn a_slow_or_wrong_handshake_holds_nobody_up() {
    let names = vec![NAME.to_owned()];
    let mut pod = Pod::start_with(|config| config.tls = Some(PublicTls::Ring { names })).await;
    let trust = unverified_trust(&pod);
    let mut slow = Vec::new();
    for n in 0..300 {
        let mut stream = TcpStream::connect(pod.address).await.expect("connects");
        if n % 2 == 0 {
            // The beginning of a hello that never ends, from the one address that all others here have too.
            stream.write_all(&[0x16, 3, 1, 1, 0, 1, 0]).await.expect("sent");
        }
        slow.push(stream);
    }
    let answer = soon("an answer", ask(&pod, &trust, request("GET", "/_up", None), "")).await;
    assert_eq!(answer.status, StatusCode::OK);

    // TLS 1.1 (RFC 4346): refused with an alert, 70 for the version.
    let mut old = TcpStream::connect(pod.address).await.expect("connects");
    let mut hello = vec![1, 0, 0, 43, 3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0, 0x2f, 1, 0, 0, 0]);
    let mut record = vec![0x16, 3, 1, 0, u8::try_from(hello.len()).expect("short")];
    record.extend(hello);
    old.write_all(&record).await.expect("sent");
    let mut alert = Vec::new();
    soon("the refusal", old.read_to_end(&mut alert)).await.expect("read");
    assert_eq!((alert.first(), alert.get(5)), (Some(&0x15), Some(&2)), "{alert:?}");
    let text = metrics(&pod, &trust).await;
    assert!(!text.contains("adea_proxy_tls_handshake_failures_total 0"), "{text}");

    // Nor do they hold up the end.
    pod.stop();
    let served = pod.served.take().expect("served");
    tokio::time::timeout(Duration::from_secs(5), served).await.expect("the end in time").expect("no panic");
    drop(slow);
}

#[tokio::test]
async fn plain_http_is_sent_on_and_told_only_whether_the_pod_is_up() {
    let (folder, authority) = (tempfile::tempdir().expect("a folder"), Authority::new());
    let tls = write(folder.path(), &authority.sign(NAME, 2090));
    let rean = common::FakeRean::start().await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config::new(any, rean.address, rean.secret.clone());
    (config.tls, config.redirect, config.public_port) = (Some(tls), Some(any), Some(443));
    let server = Server::bind(&config).expect("binds");
    let (public, redirect) = (server.local_addr(), server.redirect_addr().expect("bound"));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = tokio::spawn(server.serve(async {
        let _ = stopped.await;
    }));
    for port in [public, redirect] {
        let sent_on = plain(port, "GET /a%2Fb?x=%22 HTTP/1.1\r\nHost: pod.example:80\r\n\r\n").await;
        assert!(sent_on.starts_with("http/1.1 308"), "{sent_on}");
        assert!(sent_on.contains("location: https://pod.example/a%2fb?x=%22\r\n"), "{sent_on}");
        let foreign = plain(port, "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n").await;
        assert!(foreign.starts_with("http/1.1 421") && !foreign.contains("location"), "{foreign}");
        let careless = plain(port, "GET / HTTP/1.1\r\nHost: pod.example\r\nAuthorization: Basic eDp5\r\n\r\n").await;
        assert!(careless.starts_with("http/1.1 403") && careless.contains("https"), "{careless}");
    }
    let up = plain(public, "GET /_up HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
    assert!(up.starts_with("http/1.1 200") && up.contains("\"status\""), "{up}");
    let up = plain(redirect, "GET /_up HTTP/1.1\r\nHost: pod.example\r\n\r\n").await;
    assert!(up.starts_with("http/1.1 308"), "{up}");
    // A request after it on the same connection gets nothing.
    let two = "GET /_up HTTP/1.1\r\nHost: x\r\n\r\nGET /x HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(plain(public, two).await.matches("http/1.1").count(), 1);
    stop.send(()).expect("served");
    soon("the end", served).await.expect("no panic");
}

#[tokio::test]
async fn requests_over_tls_are_known_as_such() {
    let names = vec![NAME.to_owned()];
    let pod = Pod::start_with(|config| {
        config.tls = Some(PublicTls::Ring { names });
        (config.cookie, config.hsts_s) = (true, Some(3600));
    })
    .await;
    let trust = unverified_trust(&pod);
    pod.rean.put_user("ann", "sesame", &[]);
    let form = request("POST", "/_session", None).header("content-type", "application/json");
    let lie = form.header("x-forwarded-proto", "http").header("x-adea-peer", "10.1.2.3");
    let answer = ask(&pod, &trust, lie, r#"{"name":"ann","password":"sesame"}"#).await;
    let cookie = answer.header("set-cookie").expect("a cookie").to_owned();
    assert!(cookie.contains("; Secure"), "{cookie}");
    assert_eq!(answer.header("strict-transport-security"), Some("max-age=3600"));
    let cookie = cookie.split(';').next().expect("a pair").to_owned();
    let echo = request("GET", "/x", None).header("cookie", cookie.clone()).header("x-adea-peer", "10.1.2.3");
    let told = ask(&pod, &trust, echo.header("origin", "https://pod.example"), "").await.json();
    assert_eq!((&told["name"], &told["headers"]["x-adea-peer"]), (&"ann".into(), &"127.0.0.1".into()), "{told}");
    // The same host without TLS is another origin: who can change that page must not be able to use the cookie here.
    let foreign = request("GET", "/x", None).header("cookie", cookie).header("x-forwarded-proto", "http");
    let told = ask(&pod, &trust, foreign.header("origin", "http://pod.example"), "").await.json();
    assert!(told["name"].is_null(), "{told}");
}
