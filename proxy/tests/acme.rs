//! Certificates from an ACME authority: Pebble, Let's Encrypt's own test server, as Debian packages it.
//!
//! Where Pebble is not installed there is nothing to test against, and the test says so and ends; with
//! `ADEA_TESTS_NEED_PEBBLE` it fails.

mod common;

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use adea_ring::public_tls::{Acme, PublicTls};
use adea_ring::trust::Trust;
use common::{FakeRean, soon};
use proxy::{Config, Server};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;

const NAMES: [&str; 2] = ["pod.example.org", "notes.example.org"];

/// A process that is gone when the test is.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: &str, args: &[&str]) -> Process {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // No waiting before it looks, and no errors on purpose: what is tested is here and not there.
    command.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "0").env("PEBBLE_AUTHZREUSE", "0");
    Process(command.spawn().unwrap_or_else(|error| panic!("can't start {program}: {error}")))
}

fn is_installed() -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join("pebble").exists())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// Pebble, the name server that it asks, and where they are.
struct Authority {
    port: u16,
    management: u16,
    ca: PathBuf,
    folder: PathBuf,
    names: u16,
    running: Vec<Process>,
}

impl Authority {
    /// One that looks at this port of this machine for every name.
    async fn start(folder: &Path, tls_port: u16) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).expect("a certificate");
        let issuer = Issuer::new(params, key);
        let own_key = KeyPair::generate().expect("a key");
        let own = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let own = own.signed_by(&own_key, &issuer).expect("a certificate");
        for (name, text) in [("ca.pem", ca.pem()), ("own.pem", own.pem()), ("own.key", own_key.serialize_pem())] {
            std::fs::write(folder.join(name), text).expect("written");
        }
        let (port, management, names) = (free_port(), free_port(), free_port());
        let config = json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": folder.join("own.pem"), "privateKey": folder.join("own.key"),
            "httpPort": 1, "tlsPort": tls_port, "ocspResponderURL": "", "externalAccountBindingRequired": false,
        }});
        std::fs::write(folder.join("pebble.json"), config.to_string()).expect("written");
        let (ca, folder) = (folder.join("ca.pem"), folder.to_owned());
        let mut authority = Self { port, management, ca, folder, names, running: Vec::new() };
        authority.run().await;
        authority
    }

    /// Runs anew, and has forgotten everything.
    async fn run(&mut self) {
        self.running.clear();
        let (dns, off) = (format!("127.0.0.1:{}", self.names), ["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        let management = format!("127.0.0.1:{}", free_port());
        let mut args =
            vec!["-defaultIPv6", "", "-defaultIPv4", "127.0.0.1", "-dns01", &dns, "-management", &management];
        args.extend(off);
        self.running.push(start("pebble-challtestsrv", &args));
        let config = self.folder.join("pebble.json");
        self.running.push(start("pebble", &["-config", config.to_str().expect("text"), "-dnsserver", &dns]));
        for port in [self.port, self.management] {
            soon("pebble", async {
                while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        }
    }

    /// Who signs its certificates.
    async fn root(&self) -> Trust {
        let own = Trust::nobody().with_file(&self.ca).expect("an authority");
        let stream = TcpStream::connect(("127.0.0.1", self.management)).await.expect("connects");
        let name = ServerName::try_from("localhost").expect("a name");
        let mut stream = TlsConnector::from(own.client_config(&[])).connect(name, stream).await.expect("TLS");
        stream.write_all(b"GET /roots/0 HTTP/1.0\r\nHost: localhost\r\n\r\n").await.expect("sent");
        let mut answer = String::new();
        // Go closes without TLS's good-bye.
        let _ = stream.read_to_string(&mut answer).await;
        Trust::nobody().with_pem(answer.as_bytes()).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }
}

/// A pod's public port that gets its certificate from there.
struct Port {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

fn bind(rean: &FakeRean, listen: SocketAddr, acme: Acme) -> Server {
    let mut config = Config::new(listen, rean.address, rean.secret.clone());
    config.tls = Some(PublicTls::Acme(acme));
    Server::bind(&config).expect("binds")
}

impl Port {
    fn serve(server: Server) -> Self {
        let (stop, stopped) = oneshot::channel();
        let address = server.local_addr();
        let served = tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        Self { address, stop, served }
    }

    async fn stop(self) {
        self.stop.send(()).expect("serving");
        self.served.await.expect("no panic");
    }

    /// Whether its certificate is for a name by the word of this authority.
    async fn proves(&self, name: &'static str, trust: &Trust) -> bool {
        let stream = TcpStream::connect(self.address).await.expect("connects");
        let name = ServerName::try_from(name).expect("a name");
        TlsConnector::from(trust.client_config(&[b"http/1.1"])).connect(name, stream).await.is_ok()
    }

    async fn until_proved(&self, trust: &Trust) {
        let proved = tokio::time::timeout(Duration::from_secs(60), async {
            for name in NAMES {
                while !self.proves(name, trust).await {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
        proved.await.expect("a certificate in a minute");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_ordered_kept_and_used_again() {
    if !is_installed() {
        assert!(
            std::env::var_os("ADEA_TESTS_NEED_PEBBLE").is_none(),
            "pebble is not installed: apt-get install pebble"
        );
        eprintln!("SKIPPED: pebble is not installed, so no certificate could be ordered (apt-get install pebble)");
        return;
    }
    tracing_subscriber::fmt().with_test_writer().init();
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache");
    let rean = FakeRean::start().await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let port = free_port();
    let mut authority = Authority::start(folder.path(), port).await;
    let acme = Acme {
        domains: NAMES.map(str::to_owned).to_vec(),
        contact: vec!["mailto:ops@example.org".to_owned()],
        directory: format!("https://localhost:{}/dir", authority.port),
        ca: Some(authority.ca.clone()),
        cache: Some(cache.clone()),
    };
    let server = bind(&rean, SocketAddr::from(([127, 0, 0, 1], port)), acme.clone());
    let one = Port::serve(server);
    one.until_proved(&authority.root().await).await;
    assert!(!one.proves("other.example.org", &authority.root().await).await);
    let mode = |path: &Path| std::fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    assert_eq!(mode(&cache), 0o700);
    let files: Vec<PathBuf> =
        std::fs::read_dir(&cache).expect("a folder").map(|entry| entry.expect("read").path()).collect();
    assert!(files.len() == 2 && files.iter().all(|file| mode(file) == 0o600), "{files:?}");

    // The next process has it at once, also when nobody answers there.
    let root = authority.root().await;
    authority.running.clear();
    one.stop().await;
    let two = Port::serve(bind(&rean, any, acme.clone()));
    assert!(two.proves(NAMES[0], &root).await);
    two.stop().await;

    // An authority that has forgotten the account, and a certificate that was lost: both are made anew.
    authority.run().await;
    for file in files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "pem")) {
        std::fs::remove_file(file).expect("removed");
    }
    let three = Port::serve(bind(&rean, SocketAddr::from(([127, 0, 0, 1], port)), acme));
    three.until_proved(&authority.root().await).await;
    three.stop().await;
}
