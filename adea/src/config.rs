//! The agent's configuration: a JSON file, checked before anything starts.
//!
//! ```json
//! {
//!   "pod_id": "pod-1f0c", "ring_file": "/data/ring.json", "data_dir": "/data",
//!   "rean": {"listen": "127.0.0.1:0", "engine": "fjall"},
//!   "proxy": {"listen": "127.0.0.1:5984", "access_log": false, "couch_cookie": false},
//!   "ring": {"listen": "10.0.0.1:5985", "advertise": "pod-1.example.org:5985", "seeds": ["10.0.0.2:5985"],
//!            "url": "http://pod-1.example.org:5984"},
//!   "log": "info", "log_to": "files"
//! }
//! ```
//! All but `pod_id`, `ring_file`, `data_dir` and `proxy.listen` may be left out; without `ring` the pod is alone, and
//! in it all but `listen`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::folder::Folder;
use crate::plan::{Desired, Launch, Program};
use crate::ring::is_host_port;

/// What the agent has to run, and where.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The pod's name in its ring.
    pub pod_id: String,
    /// The ring's secret and administrator ([`crate::ring_file`]).
    pub ring_file: PathBuf,
    /// Where the pod keeps everything.
    pub data_dir: PathBuf,
    /// The program file that can be each of the others; without it, the running one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
    /// The database server.
    #[serde(default)]
    pub rean: ReanConfig,
    /// The public port.
    pub proxy: ProxyConfig,
    /// The other pods; without it there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring: Option<RingSection>,
    /// What the programs log, in the language of `ADEA_LOG`.
    #[serde(default = "default_log")]
    pub log: String,
    /// Where the programs' logs go.
    #[serde(default)]
    pub log_to: LogTo,
}

/// The database server's part.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReanConfig {
    /// Where it listens: loopback only. Port 0 takes a free one.
    #[serde(default = "any_loopback_port")]
    pub listen: SocketAddr,
    /// The storage engine; rean knows which there are.
    #[serde(default = "default_engine")]
    pub engine: String,
}

impl Default for ReanConfig {
    fn default() -> Self {
        Self { listen: any_loopback_port(), engine: default_engine() }
    }
}

/// The proxy's part.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyConfig {
    /// The public address.
    pub listen: SocketAddr,
    /// Whether to log a line for each request.
    #[serde(default)]
    pub access_log: bool,
    /// Whether a log-in gives CouchDB's cookie; `_node/_local/_config` can switch it too.
    #[serde(default)]
    pub couch_cookie: bool,
}

/// The pod's place in its ring.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingSection {
    /// Where the other pods reach this one: gossip over UDP, documents over TCP, on the same port.
    pub listen: SocketAddr,
    /// What the others are told, HOST:PORT, when that is not what is listened on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// Pods of the ring to join, HOST:PORT; one that answers is enough. The first pod of a ring has none: it begins it.
    #[serde(default)]
    pub seeds: Vec<String>,
    /// Where clients reach this pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// The most seeds: one that answers is enough, and each is looked up again and again.
const MAX_SEEDS: usize = 100;

impl RingSection {
    /// Where the other pods are told to reach this one.
    pub fn address(&self) -> String {
        self.advertise.clone().unwrap_or_else(|| self.listen.to_string())
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, reason: &str| Err(ConfigError::Value { key, reason: reason.to_owned() });
        if self.listen.port() == 0 {
            return wrong("ring.listen", "must name a port: the other pods need to know it");
        }
        match &self.advertise {
            None if self.listen.ip().is_unspecified() => {
                return wrong("ring.advertise", "is needed where `ring.listen` names no address of this machine");
            }
            Some(address) if !is_host_port(address) => return wrong("ring.advertise", "must be HOST:PORT"),
            _ => {}
        }
        if self.seeds.len() > MAX_SEEDS {
            return wrong("ring.seeds", "are more than 100: one that answers is enough");
        }
        if !self.seeds.iter().all(|seed| is_host_port(seed)) {
            return wrong("ring.seeds", "must each be HOST:PORT");
        }
        let is_url = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        if !self.url.as_ref().is_none_or(is_url) {
            return wrong("ring.url", "must start with http:// or https://");
        }
        Ok(())
    }
}

/// Where logs go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogTo {
    /// Bounded files in `DATA/run`.
    #[default]
    Files,
    /// The agent's own standard error, for containers, whose runtime keeps logs.
    Inherit,
}

/// A configuration that can't be used; it names the key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no JSON, or a key is wrong or missing.
    #[error("the configuration {path} is wrong: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A value can't be used.
    #[error("configuration key `{key}`: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// When it can't be read or a key is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        let config: Self =
            serde_json::from_slice(&text).map_err(|source| ConfigError::Parse { path: path.to_path_buf(), source })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, reason: &str| Err(ConfigError::Value { key, reason: reason.to_owned() });
        let id_fits = (1..=64).contains(&self.pod_id.len())
            && self.pod_id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !id_fits {
            return wrong("pod_id", "1 to 64 of a-z, 0-9 and -");
        }
        if !self.rean.listen.ip().is_loopback() {
            // rean trusts signed headers and speaks no TLS: only the proxy may face a network.
            return wrong("rean.listen", "must be a loopback address");
        }
        if self.proxy.listen.port() == 0 {
            return wrong("proxy.listen", "must name a port: clients need to know it");
        }
        if self.proxy.listen == self.rean.listen {
            return wrong("proxy.listen", "is the same as rean.listen");
        }
        if let Some(ring) = &self.ring {
            if [self.proxy.listen, self.rean.listen].contains(&ring.listen) {
                return wrong("ring.listen", "is the same as proxy.listen or rean.listen");
            }
            ring.check()?;
        }
        Ok(())
    }

    /// What should run on this machine. Takes a free port for rean if none is named.
    ///
    /// # Errors
    /// When there is no free port, or the running program's file can't be found.
    pub fn desired(&self, folder: &Folder) -> Result<Desired, ConfigError> {
        let exe = match &self.program {
            Some(exe) => exe.clone(),
            None => crate::process::this_program().map_err(|source| ConfigError::Value {
                key: "program",
                reason: format!("not given, and the running one is not to be found: {source}"),
            })?,
        };
        let mut rean_addr = self.rean.listen;
        if rean_addr.port() == 0 {
            rean_addr.set_port(free_port(rean_addr, self.proxy.listen.port())?);
        }
        let ring_file = self.ring_file.display().to_string();
        let mut rean = Launch {
            exe: exe.clone(),
            args: args(&[
                "rean",
                "--exit-with-parent",
                "--ring-file",
                &ring_file,
                "--data",
                &folder.store().display().to_string(),
                "--listen",
                &rean_addr.to_string(),
                "--engine",
                &self.rean.engine,
            ]),
            addr: rean_addr,
        };
        if let Some(ring) = &self.ring {
            rean.args.extend(["--ring-listen".to_owned(), ring.listen.to_string()]);
        }
        let mut proxy = Launch {
            exe,
            args: args(&[
                "proxy",
                "--exit-with-parent",
                "--ring-file",
                &ring_file,
                "--listen",
                &self.proxy.listen.to_string(),
                "--upstream",
                &rean_addr.to_string(),
            ]),
            addr: reachable(self.proxy.listen),
        };
        if self.proxy.access_log {
            proxy.args.push("--access-log".to_owned());
        }
        if self.proxy.couch_cookie {
            proxy.args.push("--couch-cookie".to_owned());
        }
        Ok(Desired::from([(Program::Rean, rean), (Program::Proxy, proxy)]))
    }
}

/// The first free port of a range that belongs to the public port, so that pods on one machine
/// rarely meet, and that lies below the ports which Linux lends to outgoing connections (32768 on),
/// so that none of these takes it while rean is being started again.
fn free_port(addr: SocketAddr, public_port: u16) -> Result<u16, ConfigError> {
    /// Enough for as many pods on one machine as anyone has tried.
    const TRIES: u16 = 200;
    let first = 20_000 + public_port % 10_000;
    (first..first + TRIES)
        .find(|port| *port != public_port && TcpListener::bind((addr.ip(), *port)).is_ok())
        .ok_or_else(|| ConfigError::Value {
            key: "rean.listen",
            reason: format!("no free port in {first}..{}", first + TRIES),
        })
}

/// Where a listener on `addr` is reached from this machine.
fn reachable(addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() { SocketAddr::from((Ipv4Addr::LOCALHOST, addr.port())) } else { addr }
}

fn args(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

fn any_loopback_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn default_engine() -> String {
    "fjall".to_owned()
}

fn default_log() -> String {
    "info".to_owned()
}

#[cfg(test)]
mod tests {
    use super::Config;
    use crate::folder::Folder;
    use crate::plan::Program;

    fn parse(rean: &str, proxy: &str) -> Result<Config, String> {
        let text = format!(
            r#"{{"pod_id":"pod-1","ring_file":"/r","data_dir":"/d","program":"/p","rean":{rean},"proxy":{proxy}}}"#
        );
        let config: Config = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        config.check().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn names_the_wrong_key() {
        let err = parse(r#"{"listen":"0.0.0.0:1"}"#, r#"{"listen":"127.0.0.1:2"}"#).unwrap_err();
        assert!(err.contains("rean.listen"), "{err}");
        let err = parse("{}", r#"{"listen":"127.0.0.1:0"}"#).unwrap_err();
        assert!(err.contains("proxy.listen"), "{err}");
        let err = parse(r#"{"lisen":1}"#, r#"{"listen":"127.0.0.1:2"}"#).unwrap_err();
        assert!(err.contains("lisen"), "{err}");
    }

    #[test]
    fn a_place_in_a_ring() {
        let with = |ring: &str| -> Result<Config, String> {
            let mut config = parse("{}", r#"{"listen":"127.0.0.1:5984"}"#)?;
            config.ring = Some(serde_json::from_str(ring).map_err(|err| err.to_string())?);
            config.check().map_err(|err| err.to_string())?;
            Ok(config)
        };
        let config = with(r#"{"listen":"127.0.0.1:5985","seeds":["[::1]:1","b.example:5985"]}"#).unwrap();
        assert_eq!(config.ring.as_ref().unwrap().address(), "127.0.0.1:5985");
        let dir = tempfile::tempdir().unwrap();
        let desired = config.desired(&Folder::new(dir.path()).unwrap()).unwrap();
        assert!(desired[&Program::Rean].args.ends_with(&["--ring-listen".into(), "127.0.0.1:5985".into()]));
        for (ring, key) in [
            (r#"{"listen":"127.0.0.1:0"}"#, "ring.listen"),
            (r#"{"listen":"127.0.0.1:5984"}"#, "ring.listen"),
            (r#"{"listen":"0.0.0.0:5985"}"#, "ring.advertise"),
            (r#"{"listen":"0.0.0.0:5985","advertise":"here"}"#, "ring.advertise"),
            (r#"{"listen":"127.0.0.1:5985","seeds":["b.example"]}"#, "ring.seeds"),
            (r#"{"listen":"127.0.0.1:5985","seeds":["http://b:1"]}"#, "ring.seeds"),
            (r#"{"listen":"127.0.0.1:5985","url":"pod-1:5984"}"#, "ring.url"),
            (r#"{"listen":"127.0.0.1:5985","sead":[]}"#, "sead"),
        ] {
            let err = with(ring).unwrap_err();
            assert!(err.contains(key), "{ring}: {err}");
        }
    }

    #[test]
    fn the_proxy_is_told_where_rean_is() {
        let dir = tempfile::tempdir().unwrap();
        let config = parse("{}", r#"{"listen":"0.0.0.0:5984","access_log":true,"couch_cookie":true}"#).unwrap();
        let desired = config.desired(&Folder::new(dir.path()).unwrap()).unwrap();
        let rean = &desired[&Program::Rean];
        let proxy = &desired[&Program::Proxy];
        assert_ne!(rean.addr.port(), 0);
        assert!(rean.addr.port() < 32768);
        assert!(proxy.args.contains(&rean.addr.to_string()));
        assert!(proxy.args.contains(&"--access-log".to_owned()));
        assert!(proxy.args.contains(&"--couch-cookie".to_owned()));
        assert_eq!(proxy.addr.to_string(), "127.0.0.1:5984");
    }
}
