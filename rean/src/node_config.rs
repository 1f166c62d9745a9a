//! CouchDB's server settings: those that somebody has made, and what they mean for this program.
//!
//! They are one document of `_ring` ([`adea_ring::node_config`]), so they are the same on all pods of a ring. rean puts
//! its part in force here, at start and at each change of the document; the proxy follows the document by itself. What is
//! told and changed by HTTP is in [`http`]; which settings mean something here is in [`known`].

pub mod http;
pub mod known;
pub mod stats;

use std::sync::Arc;

use adea_ring::node_config::NODE_CONFIG_ID;
use adea_ring::{NodeConfig, log_level};
use parking_lot::RwLock;
use rean_store::{Edit, MAX_PARTITION_BYTES, StoreError};
use serde_json::Value;

use crate::config::Limits;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::ring::ring_doc::{self, ring_db};

/// The settings in force.
pub struct Settings {
    limits: Limits,
    current: RwLock<Arc<InForce>>,
}

/// What the settings mean for rean at one moment.
#[derive(Debug)]
pub struct InForce {
    /// What somebody has set.
    pub config: NodeConfig,
    /// Largest document without its attachments, in bytes: `couchdb/max_document_size`.
    pub max_document_bytes: usize,
    /// Largest attachment, in bytes: `couchdb/max_attachment_size`.
    pub max_attachment_bytes: u64,
    /// From how many bytes on a partition takes nothing that makes it larger; 0: always. `couchdb/max_partition_size`.
    pub max_partition_bytes: u64,
    /// Whether a new plain database is open to everyone: `couchdb/default_security`.
    pub open_databases: bool,
    /// Whether only administrators may list the databases: `chttpd/admin_only_all_dbs`.
    pub admin_only_all_dbs: bool,
    /// Databases that one `_dbs_info` describes: `chttpd/max_db_number_for_dbs_info_req`.
    pub max_dbs_info: usize,
    /// Ids that one `_uuids` gives: `uuids/max_count`.
    pub max_uuids: u64,
}

impl Settings {
    /// Nobody has set anything.
    pub fn new(limits: &Limits) -> Self {
        let current = RwLock::new(Arc::new(InForce::of(NodeConfig::default(), limits)));
        Self { limits: limits.clone(), current }
    }

    /// The settings of this moment.
    pub fn get(&self) -> Arc<InForce> {
        Arc::clone(&self.current.read())
    }

    fn put_in_force(&self, config: NodeConfig) {
        log_level::set(config.get("log", "level"));
        *self.current.write() = Arc::new(InForce::of(config, &self.limits));
    }
}

impl InForce {
    fn of(config: NodeConfig, limits: &Limits) -> Self {
        let text = |section: &str, key: &str| config.get(section, key).filter(|value| known::fits(section, key, value));
        let number = |section: &str, key: &str| text(section, key).and_then(|value| value.parse::<u64>().ok());
        let size = |key: &str| match text("couchdb", key) {
            Some("infinity") => Some(u64::MAX),
            _ => number("couchdb", key),
        };
        let document = size("max_document_size").and_then(|bytes| usize::try_from(bytes).ok());
        Self {
            // A document in a larger body would be refused all the same.
            max_document_bytes: document.unwrap_or(limits.max_document_bytes).min(limits.max_body_bytes),
            max_attachment_bytes: size("max_attachment_size").unwrap_or(limits.max_attachment_bytes),
            max_partition_bytes: number("couchdb", "max_partition_size").unwrap_or(MAX_PARTITION_BYTES),
            open_databases: text("couchdb", "default_security") == Some("everyone"),
            admin_only_all_dbs: text("chttpd", "admin_only_all_dbs") != Some("false"),
            max_dbs_info: number("chttpd", "max_db_number_for_dbs_info_req")
                .and_then(|most| usize::try_from(most).ok())
                .unwrap_or(known::MAX_DBS_INFO),
            max_uuids: number("uuids", "max_count").unwrap_or(known::MAX_UUIDS),
            config,
        }
    }
}

/// Checks an edit of the document before it is stored.
///
/// # Errors
/// 400 naming what is wrong.
pub fn check(edit: &Edit) -> Result<(), ApiError> {
    if edit.id != NODE_CONFIG_ID || edit.deleted {
        return Ok(());
    }
    let doc: Value = serde_json::from_slice(&edit.body).map_err(|_| ApiError::invalid_json())?;
    let wrong = |reason: String| ApiError::bad_request(format!("{NODE_CONFIG_ID}: {reason}"));
    let config = NodeConfig::parse(&doc).map_err(|error| wrong(error.to_string()))?;
    if !config.admins.values().all(|hash| crate::password::is_acceptable(hash)) {
        return Err(wrong("`admins` must have argon2id hashes".to_owned()));
    }
    let mut values =
        config.sections.iter().flat_map(|(section, keys)| keys.iter().map(move |(key, value)| (section, key, value)));
    match values.find(|(section, key, value)| !known::fits(section, key, value)) {
        // As when it is set by `_config`: what can't be meant would silently not count.
        Some((section, key, _)) => Err(wrong(format!("{section}/{key} must be {}", known::allowed(section, key)))),
        None => Ok(()),
    }
}

/// Puts the document's settings in force. Blocking. One that can't be read leaves those before it.
///
/// # Errors
/// When the store fails.
pub fn load(pod: &Pod) -> Result<(), StoreError> {
    let body = ring_doc::live(&ring_db(pod)?, NODE_CONFIG_ID)?.map(|leaf| leaf.body).unwrap_or_default();
    match NodeConfig::parse(&Value::Object(body)) {
        Ok(config) if config == pod.settings.get().config => {}
        Ok(config) => {
            pod.settings.put_in_force(config);
            pod.store.set_max_partition_bytes(pod.settings.get().max_partition_bytes);
        }
        Err(error) => tracing::error!(%error, "the server settings can't be read; those before them stay in force"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Settings;
    use crate::config::Limits;
    use adea_ring::NodeConfig;
    use serde_json::json;

    #[test]
    fn what_is_set_counts_and_nonsense_does_not() {
        let settings = Settings::new(&Limits::default());
        assert_eq!(settings.get().max_document_bytes, 8_000_000);
        assert!(settings.get().admin_only_all_dbs && !settings.get().open_databases);
        assert_eq!(settings.get().max_partition_bytes, 10_737_418_240);
        let doc = json!({"sections": {
            "couchdb": {"max_document_size": "1000", "default_security": "everyone", "max_attachment_size": "infinity"},
            "chttpd": {"admin_only_all_dbs": "false"},
            "uuids": {"max_count": "zork"},
        }});
        settings.put_in_force(NodeConfig::parse(&doc).expect("good"));
        let now = settings.get();
        assert_eq!((now.max_document_bytes, now.max_attachment_bytes), (1_000, u64::MAX));
        assert!(!now.admin_only_all_dbs && now.open_databases);
        assert_eq!(now.max_uuids, 1_000);
        let doc = json!({"sections": {"couchdb": {"max_document_size": "99999999999"}}});
        settings.put_in_force(NodeConfig::parse(&doc).expect("good"));
        assert_eq!(settings.get().max_document_bytes, Limits::default().max_body_bytes);
    }
}
