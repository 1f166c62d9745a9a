//! The agent's configuration: a JSON file, checked before anything starts.
//!
//! ```json
//! {
//!   "pod_id": "pod-1f0c", "ring_file": "/data/ring.json", "data_dir": "/data",
//!   "rean": {"listen": "127.0.0.1:0", "engine": "fjall"},
//!   "proxy": {"listen": "127.0.0.1:5984", "access_log": false, "couch_cookie": false},
//!   "ring": {"listen": "10.0.0.1:5985", "advertise": "pod-1.example.org:5985", "seeds": ["10.0.0.2:5985"],
//!            "url": "http://pod-1.example.org:5984"},
//!   "log": "info", "log_to": "files", "runtime": "process"
//! }
//! ```
//! All but `pod_id`, `ring_file`, `data_dir` and `proxy.listen` may be left out; without `ring` the pod is alone, and
//! in it all but `listen`. [`RuntimeConfig`] and [`PublicTls`] say what `runtime` and `proxy.tls` may be.

mod runtime;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use adea_ring::public_tls::{PublicTls, PublicTlsError};
use serde::{Deserialize, Serialize};

use crate::ring::is_host_port;

pub use runtime::{DockerConfig, RuntimeConfig, is_image_name};

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
    /// Who runs the programs.
    #[serde(default)]
    pub runtime: RuntimeConfig,
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
    /// The certificate; without it the public port speaks plain HTTP, for a load balancer before it or a local trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<PublicTls>,
    /// Where plain HTTP is answered by the way to HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<SocketAddr>,
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
        if let Some(tls) = &self.proxy.tls {
            let wrong = |err: PublicTlsError| ConfigError::Value { key: "proxy.tls", reason: err.to_string() };
            tls.check().map_err(wrong)?;
        } else if self.proxy.redirect.is_some() {
            return wrong("proxy.redirect", "leads to HTTPS, for which `proxy.tls` is needed");
        }
        if self.proxy.redirect.is_some_and(|redirect| redirect.port() == 0 || redirect == self.proxy.listen) {
            return wrong("proxy.redirect", "must name a port, and another than proxy.listen");
        }
        self.runtime.check()?;
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
    fn docker_and_tls() {
        let with = |runtime: &str, proxy: &str| -> Result<Config, String> {
            let mut config = parse("{}", proxy)?;
            config.runtime = serde_json::from_str(runtime).map_err(|err| err.to_string())?;
            config.check().map_err(|err| err.to_string())?;
            Ok(config)
        };
        let plain = r#"{"listen":"0.0.0.0:5984"}"#;
        assert!(with(r#""process""#, plain).unwrap().runtime.docker().is_none());
        let config = with(r#"{"docker":{"memory_mib":{"rean":512}}}"#, plain).unwrap();
        assert_eq!(config.runtime.docker().unwrap().memory_mib[&Program::Rean], 512);
        for (runtime, key) in [
            (r#"{"docker":{"socket":"docker.sock"}}"#, "runtime.docker.socket"),
            (r#"{"docker":{"image":"-x"}}"#, "runtime.docker.image"),
            (r#"{"docker":{"user":0}}"#, "runtime.docker.user"),
            (r#"{"docker":{"memory_mib":{"rean":1}}}"#, "runtime.docker.memory_mib"),
            (r#"{"docker":{"cpus":{"proxy":-1}}}"#, "runtime.docker.cpus"),
            (r#"{"docker":{"cpus":{"zork":1}}}"#, "zork"),
            (r#""zork""#, "zork"),
        ] {
            let err = with(runtime, plain).unwrap_err();
            assert!(err.contains(key), "{runtime}: {err}");
        }
        for (proxy, key) in [
            (r#"{"listen":"0.0.0.0:443","redirect":"0.0.0.0:80"}"#, "proxy.redirect"),
            (r#"{"listen":"0.0.0.0:443","tls":"ring","redirect":"0.0.0.0:443"}"#, "proxy.redirect"),
            (r#"{"listen":"0.0.0.0:443","tls":{"acme":{"domains":[]}}}"#, "proxy.tls"),
            (r#"{"listen":"0.0.0.0:443","tls":{"files":{"certificate":"/c"}}}"#, "key"),
        ] {
            let err = with(r#""process""#, proxy).unwrap_err();
            assert!(err.contains(key), "{proxy}: {err}");
        }
        with(r#""process""#, r#"{"listen":"0.0.0.0:443","tls":"ring","redirect":"0.0.0.0:80"}"#).unwrap();
    }
}
