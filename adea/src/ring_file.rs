//! `ring.json`: the ring's secret, this pod's name, the administrator, and whose orders of upgrades count. Readable for its
//! owner only.
//!
//! Members that are not known here are borne: a newer version may have written the file before it was rolled back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use adea_ring::clock::DEFAULT_MAX_DRIFT_MS;
use adea_ring::upgrade::{OrderKeyError, OrderPublicKey, OrderTrust};
use adea_ring::{PodId, RingSecret};
use serde::{Deserialize, Serialize};

use crate::file_fault::FileFault;

/// What `ring.json` holds.
#[derive(Clone, Serialize, Deserialize)]
pub struct RingFile {
    /// The ring's secret, in hexadecimal.
    ring_secret: String,
    /// This pod's name in the ring.
    pub pod_id: String,
    /// The administrator.
    pub admin: Admin,
    /// The public key of those orders of upgrades that count on this machine, in hexadecimal; none in a ring that an
    /// earlier version made. Here and nowhere in the ring, so that only who has the machine decides on its software.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    order_key: Option<String>,
    /// On whose machine its private half was made, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    order_key_at: Option<PodId>,
    /// Orders that were made before this don't count, in milliseconds since 1970: when the machine joined, or was told of
    /// another key. So an old order that somebody puts back moves no new machine.
    #[serde(default)]
    pub orders_since_ms: u64,
    /// Only for `podctl dev`, whose users shouldn't have to remember passwords.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dev: Option<DevSecrets>,
}

/// The administrator's name and password.
#[derive(Clone, Serialize, Deserialize)]
pub struct Admin {
    /// The name.
    pub name: String,
    /// The password's argon2id hash, in PHC form.
    pub password_hash: String,
}

/// Passwords that `podctl dev` has made up or been given, to be printed again at the next start.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct DevSecrets {
    /// The administrator's.
    pub admin_password: String,
    /// That of the example's users; none if there is no example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example_password: Option<String>,
    /// Whether the example is still to be made.
    #[serde(default)]
    pub example_pending: bool,
}

/// A ring file that can't be used. No message shows what is in it.
#[derive(Debug, thiserror::Error)]
pub enum RingFileError {
    /// It can't be read or written.
    #[error(transparent)]
    File(#[from] FileFault),
    /// It isn't what it should be.
    #[error("{path} is no ring file: line {line}, column {column}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// The secret isn't one.
    #[error("{path}: key `ring_secret`: {source}")]
    Secret {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: adea_ring::SecretError,
    },
    /// The key for orders isn't one.
    #[error("{path}: key `order_key`: {source}; `podctl upgrade key --trust KEY` writes another")]
    OrderKey {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: OrderKeyError,
    },
}

impl RingFile {
    /// A new ring with a new secret, and no key for orders yet.
    pub fn new(pod_id: String, admin: Admin) -> Self {
        Self::of(RingSecret::random().to_hex(), pod_id, admin)
    }

    /// The file of a pod that joins a ring.
    ///
    /// # Errors
    /// When the secret is none.
    pub fn joined(ring_secret: &str, pod_id: String, admin: Admin) -> Result<Self, adea_ring::SecretError> {
        Ok(Self::of(RingSecret::from_hex(ring_secret)?.to_hex(), pod_id, admin))
    }

    fn of(ring_secret: String, pod_id: String, admin: Admin) -> Self {
        Self { ring_secret, pod_id, admin, order_key: None, order_key_at: None, orders_since_ms: 0, dev: None }
    }

    /// The file of another pod of the same ring: the same secret and administrator.
    #[must_use]
    pub fn for_pod(&self, pod_id: String) -> Self {
        Self { pod_id, dev: None, ..self.clone() }
    }

    /// Reads a ring file; none if there is no such file.
    ///
    /// # Errors
    /// When it can't be read, or isn't a ring file.
    pub fn load(path: &Path) -> Result<Option<Self>, RingFileError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(FileFault::during("read", path)(source).into());
            }
        };
        let file: Self = serde_json::from_slice(&text).map_err(|err| RingFileError::Parse {
            path: path.to_path_buf(),
            line: err.line(),
            column: err.column(),
        })?;
        RingSecret::from_hex(&file.ring_secret)
            .map_err(|source| RingFileError::Secret { path: path.to_path_buf(), source })?;
        if let Some(key) = &file.order_key {
            key.parse::<OrderPublicKey>()
                .map_err(|source| RingFileError::OrderKey { path: path.to_path_buf(), source })?;
        }
        Ok(Some(file))
    }

    /// The ring's secret.
    ///
    /// # Errors
    /// When it isn't one; [`RingFile::load`] has seen to that.
    pub fn secret(&self) -> Result<RingSecret, adea_ring::SecretError> {
        RingSecret::from_hex(&self.ring_secret)
    }

    /// Whose orders of upgrades count on this machine; none: no order does.
    pub fn order_trust(&self) -> Option<OrderTrust> {
        let key = self.order_key.as_ref()?.parse().ok()?;
        Some(OrderTrust { key, at: self.order_key_at.clone() })
    }

    /// From now on these orders count, if they are made later than this, in milliseconds since 1970.
    pub fn trust_orders(&mut self, trust: &OrderTrust, since_ms: u64) {
        self.order_key = Some(trust.key.to_string());
        self.order_key_at.clone_from(&trust.at);
        self.orders_since_ms = since_ms;
    }

    /// From now on the orders of a key count that was made this moment: none of them is old, so no clock has a say in it.
    pub fn trust_new_key(&mut self, trust: &OrderTrust) {
        self.trust_orders(trust, 0);
    }

    /// Whether no order counts yet, though some key is known: a clock was wrong when that was written, as `now_ms` is
    /// earlier, in milliseconds since 1970.
    pub fn waits_for_orders(&self, now_ms: u64) -> bool {
        self.order_key.is_some() && is_to_come(self.orders_since_ms, now_ms)
    }

    /// Writes the file, whole or not at all, for its owner only.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn save(&self, path: &Path) -> Result<(), RingFileError> {
        let text =
            serde_json::to_vec_pretty(self).map_err(io::Error::from).map_err(FileFault::during("write", path))?;
        Ok(replace(path, &text).map_err(FileFault::during("write", path))?)
    }
}

/// Whether a time is so much later than now that it was told by a wrong clock, both in milliseconds since 1970. What is
/// less than clocks of pods may differ by is over before anybody asks.
pub(crate) fn is_to_come(time_ms: u64, now_ms: u64) -> bool {
    time_ms > now_ms.saturating_add(DEFAULT_MAX_DRIFT_MS)
}

/// Replaces a file by way of a new one beside it, so that a reader or a crash sees the old or the new.
///
/// # Errors
/// When it can't be written.
pub(crate) fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    replace_ready(path, text, |_| Ok(()))
}

/// The same; `ready` gives the new file its owner and its rights before it takes the old one's place.
///
/// # Errors
/// When it can't be written, or `ready` fails.
pub(crate) fn replace_ready(path: &Path, text: &[u8], ready: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let new = path.with_extension("new");
    // A leftover might have other permissions than ours.
    match fs::remove_file(&new) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text)?;
    ready(&file)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let folder = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::{Admin, RingFile};
    use adea_ring::upgrade::{OrderKey, OrderTrust};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn is_kept_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring.json");
        assert!(RingFile::load(&path).unwrap().is_none());
        let admin = Admin { name: "admin".into(), password_hash: "$argon2id$".into() };
        let ring = RingFile::new("pod-1".into(), admin);
        ring.save(&path).unwrap();
        ring.save(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let read = RingFile::load(&path).unwrap().unwrap();
        assert_eq!(read.secret().unwrap().to_hex(), ring.secret().unwrap().to_hex());
        assert_eq!(read.pod_id, "pod-1");
    }

    #[test]
    fn a_newer_versions_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring.json");
        let admin = r#"{"name":"a","password_hash":"h","later":1}"#;
        let text = format!(r#"{{"ring_secret":"{}","pod_id":"p","admin":{admin},"later":[]}}"#, "5a".repeat(32));
        std::fs::write(&path, text).unwrap();
        assert_eq!(RingFile::load(&path).unwrap().unwrap().admin.name, "a");
    }

    #[test]
    fn whose_orders_count_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring.json");
        let admin = Admin { name: "admin".into(), password_hash: "$argon2id$".into() };
        let mut ring = RingFile::new("pod-1".into(), admin);
        assert_eq!(ring.order_trust(), None, "as in a ring of an earlier version");
        let trust = OrderTrust { key: OrderKey::random().public(), at: Some("pod-1".parse().unwrap()) };
        ring.trust_orders(&trust, 7);
        ring.save(&path).unwrap();
        let read = RingFile::load(&path).unwrap().unwrap();
        assert_eq!((read.order_trust(), read.orders_since_ms), (Some(trust), 7));
        assert!(!read.waits_for_orders(7));
        ring.trust_orders(&read.order_trust().unwrap(), 1_060_001);
        assert!(ring.waits_for_orders(1_000_000) && !ring.waits_for_orders(1_000_001));
        ring.trust_new_key(&read.order_trust().unwrap());
        assert!(!ring.waits_for_orders(0), "whatever the clock said");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(&read.order_trust().unwrap().key.to_string(), "abc")).unwrap();
        let err = RingFile::load(&path).err().unwrap().to_string();
        assert!(err.contains("order_key") && err.contains("podctl upgrade key"), "{err}");
    }

    #[test]
    fn a_wrong_file_is_refused_without_showing_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring.json");
        for text in ["", "{}", r#"{"ring_secret":"secretish","pod_id":"p","admin":{"name":"a","password_hash":"h"}}"#] {
            std::fs::write(&path, text).unwrap();
            let err = RingFile::load(&path).err().expect("refused").to_string();
            assert!(err.contains("ring.json") && !err.contains("secretish"), "{err}");
        }
    }
}
