//! What rean is started with: one JSON file, checked whole before anything is opened or bound.
//!
//! ```json
//! {"listen": "127.0.0.1:5986", "data_dir": "/data/rean", "engine": "fjall", "ring_secret": "64 hex digits", "limits": {}}
//! ```
//! `engine`, `limits`, `logs_dir`, `pod_id` and `ring_listen` may be left out. A listen port of 0 takes a free one, which the `ready` line tells.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use adea_ring::{PodId, RingSecret};
use rean_store::EngineKind;
use serde::Deserialize;

/// A shorter silence than this is none: a machine under load keeps a program waiting for as long.
const MIN_SILENCE_MS: u64 = 100;
/// What a function may be given: less than ten milliseconds is no time for a collection of garbage, and after a minute
/// clients have gone.
const FUNCTION_MS: std::ops::RangeInclusive<u64> = 10..=60_000;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen: loopback only, the proxy is the public port.
    pub listen: SocketAddr,
    /// The store's folder.
    pub data_dir: PathBuf,
    /// The storage engine.
    pub engine: EngineKind,
    /// The ring's secret: identities are signed under it, and the store's keys are made from it.
    pub ring_secret: RingSecret,
    /// Bounds on requests.
    pub limits: Limits,
    /// This pod's name in its ring.
    pub pod_id: PodId,
    /// Where the other pods reach this one, over TLS; without it the pod is alone.
    pub ring_listen: Option<SocketAddr>,
    /// Where the pod's programs log to: `rean.log`, `proxy.log`, `adea.log`, which administrators may read.
    pub logs_dir: Option<PathBuf>,
}

/// Bounds on what a request may carry.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest document without its attachments, in bytes (CouchDB's `max_document_size`, same default).
    pub max_document_bytes: usize,
    /// Largest JSON body of a request, in bytes, after decompression: eight of the largest documents.
    pub max_body_bytes: usize,
    /// Largest attachment, in bytes (CouchDB's `max_attachment_size`, same default).
    pub max_attachment_bytes: u64,
    /// All request bodies that are in memory at once, in bytes; more wait their turn.
    pub max_bodies_bytes: usize,
    /// Connections at once. The proxy keeps a few and sends all requests through them.
    pub max_connections: usize,
    /// How long a write master of a ring goes on without a word from adea, in milliseconds, 100 or more. adea speaks four
    /// times a second; if it is gone, so is this pod's voice in the ring, and the others choose another master.
    pub max_silence_ms: u64,
    /// CPU time of one call of a design document's function with one document, in milliseconds, 10 to 60,000 (CouchDB's
    /// `os_process_timeout`, same default).
    pub max_function_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_document_bytes: 8_000_000,
            max_body_bytes: 64 << 20,
            max_attachment_bytes: 1 << 30,
            max_bodies_bytes: 256 << 20,
            max_connections: 20_000,
            max_silence_ms: 2_000,
            max_function_ms: 5_000,
        }
    }
}

/// Why a configuration isn't one. It names the key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file isn't the JSON that it should be.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A value isn't possible.
    #[error("{key}: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: SocketAddr,
    data_dir: PathBuf,
    #[serde(default)]
    engine: Option<String>,
    ring_secret: String,
    #[serde(default)]
    limits: Limits,
    #[serde(default = "default_pod_id")]
    pod_id: String,
    #[serde(default)]
    ring_listen: Option<SocketAddr>,
    #[serde(default)]
    logs_dir: Option<PathBuf>,
}

/// The name of a pod that nobody else needs to know.
fn default_pod_id() -> String {
    "pod".to_owned()
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// When the file can't be read or a value in it isn't possible; the message names the key and never the secret.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &[u8], path: &Path) -> Result<Self, ConfigError> {
        let raw: Raw =
            serde_json::from_slice(text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        let value = |key, why| ConfigError::Value { key, why };
        if !raw.listen.ip().is_loopback() {
            return Err(value("listen", "rean listens on loopback only; the proxy is the public port"));
        }
        let limits = raw.limits;
        if limits.max_document_bytes == 0 || limits.max_document_bytes > limits.max_body_bytes {
            return Err(value("limits.max_document_bytes", "must be from 1 to limits.max_body_bytes"));
        }
        if limits.max_body_bytes > limits.max_bodies_bytes || limits.max_bodies_bytes > (u32::MAX as usize) {
            return Err(value("limits.max_bodies_bytes", "must be from limits.max_body_bytes to 4 GiB"));
        }
        if limits.max_connections == 0 {
            return Err(value("limits.max_connections", "must be at least 1"));
        }
        if !FUNCTION_MS.contains(&limits.max_function_ms) {
            return Err(value("limits.max_function_ms", "must be from 10 to 60000"));
        }
        if limits.max_silence_ms < MIN_SILENCE_MS {
            return Err(value("limits.max_silence_ms", "must be at least 100"));
        }
        Ok(Self {
            listen: raw.listen,
            data_dir: raw.data_dir,
            engine: engine(raw.engine.as_deref())?,
            ring_secret: RingSecret::from_hex(&raw.ring_secret)
                .map_err(|_| value("ring_secret", "must be 64 hexadecimal digits"))?,
            limits,
            pod_id: raw.pod_id.parse().map_err(|_| value("pod_id", "must be 1 to 64 of a-z, 0-9 and -"))?,
            ring_listen: raw.ring_listen,
            logs_dir: raw.logs_dir,
        })
    }
}

fn engine(name: Option<&str>) -> Result<EngineKind, ConfigError> {
    name.unwrap_or("fjall").parse().map_err(|_| ConfigError::Value {
        key: "engine",
        why: "must be \"fjall\", or \"sled\" where that was built in",
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Config, ConfigError};

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text.as_bytes(), Path::new("rean.json"))
    }

    fn secret() -> String {
        "ab".repeat(32)
    }

    fn with(members: &str) -> String {
        format!(r#"{{"listen":"127.0.0.1:0","data_dir":"/d","ring_secret":"{}",{members}}}"#, secret())
    }

    #[test]
    fn the_shortest_file_is_enough_and_the_secret_is_not_printed() {
        let config = parse(&format!(r#"{{"listen":"127.0.0.1:0","data_dir":"/d","ring_secret":"{}"}}"#, secret()))
            .expect("a good file");
        assert_eq!(config.limits.max_document_bytes, 8_000_000);
        assert!(!format!("{config:?}").contains("abab"));
    }

    #[test]
    fn a_bad_value_names_its_key() {
        for (text, key) in [
            (format!(r#"{{"listen":"0.0.0.0:1","data_dir":"/d","ring_secret":"{}"}}"#, secret()), "listen"),
            (r#"{"listen":"127.0.0.1:1","data_dir":"/d","ring_secret":"zz"}"#.to_owned(), "ring_secret"),
            (
                format!(r#"{{"listen":"127.0.0.1:1","data_dir":"/d","ring_secret":"{}","engine":"zork"}}"#, secret()),
                "engine",
            ),
            (with(r#""pod_id":"Not an id""#), "pod_id"),
            (with(r#""limits":{"max_silence_ms":1}"#), "limits.max_silence_ms"),
        ] {
            match parse(&text) {
                Err(ConfigError::Value { key: named, .. }) => assert_eq!(named, key),
                other => panic!("{other:?}"),
            }
        }
        assert!(parse("{}").is_err());
        assert!(parse(&with(r#""ring_listen":"5985""#)).is_err());
        let config = parse(&with(r#""pod_id":"pod-1","ring_listen":"0.0.0.0:5985""#)).expect("a good file");
        assert_eq!((config.pod_id.as_str(), config.ring_listen.map(|at| at.port())), ("pod-1", Some(5985)));
    }
}
