//! Section `files` of the ring's configuration: where attachments go that are too large to travel with documents.
//!
//! ```json
//! {"files": {"above_mib": 16, "store": {"s3": {"bucket": "notes", "region": "eu-central-1"}}, "keep_hours": 168}}
//! ```
//! What opens the object storage is a secret of each machine, not of the ring's configuration: every administrator of
//! the database can read that, and it goes into backups.

use serde::{Deserialize, Serialize};

/// The longest text of a member, in bytes; S3 has names of 63 bytes at the most, and URLs are longer.
const MAX_TEXT_BYTES: usize = 1_024;
/// The largest attachment size that can be named, in MiB: 16 TiB, more than any object storage takes as one object.
pub const MAX_ABOVE_MIB: u64 = 16 << 20;

/// Where attachments go that are too large to travel with documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FilesConfig {
    /// Attachments above this size, in MiB, are kept outside of the store: 1 to 16,777,216.
    pub above_mib: u64,
    /// Where.
    pub store: FileStore,
    /// For how long a file is kept that no document has any more, in hours: 1 to 8,760. A pod that was away may still
    /// have a document with it.
    pub keep_hours: u64,
}

/// Where large attachments are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileStore {
    /// In a folder of each pod; the pods fetch them from one another.
    #[default]
    Local,
    /// In a bucket that all pods share.
    S3(S3Config),
}

/// A bucket of a storage with S3's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct S3Config {
    /// The bucket; it must be there.
    pub bucket: String,
    /// Its region.
    #[serde(default = "default_region")]
    pub region: String,
    /// The URL of the storage, where it is not Amazon's.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// What the names of all objects begin with.
    #[serde(default)]
    pub prefix: String,
    /// Whether the endpoint may be spoken to without TLS.
    #[serde(default)]
    pub allow_http: bool,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

impl Default for FilesConfig {
    fn default() -> Self {
        // Below 16 MiB a copy of the bytes in every pod's store is cheaper than another thing to look after. A week is
        // longer than a pod's machine is away for repair.
        Self { above_mib: 16, store: FileStore::Local, keep_hours: 168 }
    }
}

impl FilesConfig {
    /// The largest attachment that stays in the store, in bytes.
    pub fn above_bytes(&self) -> u64 {
        self.above_mib.saturating_mul(1 << 20)
    }

    /// The first member that has an impossible value, and why it is one.
    pub fn fault(&self) -> Option<(&'static str, String)> {
        if !(1..=MAX_ABOVE_MIB).contains(&self.above_mib) {
            return Some(("files.above_mib", format!("must be from 1 to {MAX_ABOVE_MIB}")));
        }
        if !(1..=8_760).contains(&self.keep_hours) {
            return Some(("files.keep_hours", "must be from 1 to 8760".to_owned()));
        }
        match &self.store {
            FileStore::Local => None,
            FileStore::S3(s3) => s3.fault(),
        }
    }
}

impl S3Config {
    fn fault(&self) -> Option<(&'static str, String)> {
        // <https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html>
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        if !(3..=63).contains(&self.bucket.len()) || !self.bucket.chars().all(is_name) {
            return Some(("files.store.s3.bucket", "must be 3 to 63 of a-z, 0-9, - and .".to_owned()));
        }
        let is_region = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if self.region.is_empty() || self.region.len() > MAX_TEXT_BYTES || !self.region.chars().all(is_region) {
            return Some(("files.store.s3.region", "must be letters, digits and -".to_owned()));
        }
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if self.prefix.len() > MAX_TEXT_BYTES
            || !self.prefix.chars().all(is_part)
            || self.prefix.split('/').any(|part| part == "." || part == "..")
        {
            return Some(("files.store.s3.prefix", "must be letters, digits, -, _, . and /".to_owned()));
        }
        let endpoint = self.endpoint.as_deref()?;
        let scheme = endpoint.split_once("://").map(|(scheme, rest)| (scheme, !rest.is_empty() && !rest.contains('@')));
        match scheme {
            _ if endpoint.len() > MAX_TEXT_BYTES => Some(("files.store.s3.endpoint", "is too long".to_owned())),
            Some(("https", true)) => None,
            Some(("http", true)) if self.allow_http => None,
            Some(("http", true)) => {
                Some(("files.store.s3.endpoint", "must be https, unless `allow_http` is true".to_owned()))
            }
            _ => Some(("files.store.s3.endpoint", "must be a URL without a name and a password in it".to_owned())),
        }
    }
}
