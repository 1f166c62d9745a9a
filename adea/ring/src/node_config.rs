//! CouchDB's server settings, as `_node/_local/_config` shows and changes them: one document of `_ring`, the same on all
//! pods, read by rean and by the proxy.
//!
//! ```json
//! {"sections": {"cors": {"origins": "https://example.org"}}, "admins": {"ann": "$argon2id$..."}}
//! ```
//! Only what somebody has set is in it; everything else has the value of the program's own file or a default. Values are
//! texts, as in CouchDB (<https://docs.couchdb.org/en/stable/api/server/configuration.html>). It holds settings that
//! mean nothing here as well: CouchDB takes any, and gives them back.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The id of the document in `_ring`.
pub const NODE_CONFIG_ID: &str = "node_config";
/// By this header the proxy tells rean what its own file says, as a JSON object of sections; taken from nobody else.
pub const FILE_SETTINGS_HEADER: &str = "x-adea-file-settings";
/// The section of the administrators, whose values are passwords.
pub const ADMINS: &str = "admins";
/// The section of databases in maintenance: database -> [`CLOSED`] or [`WRITE_ONLY`]. A rule for an app holds for all that
/// is made from it. CouchDB knows no such section.
pub const MAINTENANCE: &str = "maintenance";
/// Nobody gets at the database.
pub const CLOSED: &str = "closed";
/// The database can be written and not read.
pub const WRITE_ONLY: &str = "write-only";

/// What names of sessions begin with.
const SESSION_PREFIX: &str = "session-";
/// Settings and administrators together: CouchDB has some 200 settings.
const MAX_SETTINGS: usize = 1_000;
/// Bytes of the name of a section or a key; the longest of CouchDB's has 40.
const MAX_NAME_BYTES: usize = 128;
/// Bytes of a value: room for a list of origins.
const MAX_VALUE_BYTES: usize = 16 * 1024;
/// Bytes of all of it together: it is read anew at each change, by two programs on each pod.
const MAX_BYTES: usize = 256 * 1024;

/// The settings that somebody has made.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct NodeConfig {
    /// Section -> key -> value.
    pub sections: BTreeMap<String, BTreeMap<String, String>>,
    /// Administrators beside the one of the pod's own file: name -> argon2id hash.
    pub admins: BTreeMap<String, String>,
}

/// Why a document isn't one of settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeConfigError {
    /// A member has another form.
    #[error("`{0}` must be an object of texts")]
    Form(&'static str),
    /// A name is empty, too long or has control characters.
    #[error("a name of a section or a key must have 1 to {MAX_NAME_BYTES} bytes and no control characters")]
    Name,
    /// A value is too long or has control characters.
    #[error("a value must have at most {MAX_VALUE_BYTES} bytes and no control characters")]
    Value,
    /// An administrator's name can't be sent in a log-in, or means something else there.
    #[error("an administrator's name has no colon and begins neither with _ nor with {SESSION_PREFIX}")]
    AdminName,
    /// There are too many, or they are too long together.
    #[error("at most {MAX_SETTINGS} settings of {MAX_BYTES} bytes together")]
    TooMany,
}

impl std::fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let admins: Vec<&String> = self.admins.keys().collect();
        f.debug_struct("NodeConfig").field("sections", &self.sections).field("admins", &admins).finish()
    }
}

impl NodeConfig {
    /// Reads the document; members that it doesn't know are passed over.
    ///
    /// # Errors
    /// When it has another form, or more than it may have.
    pub fn parse(doc: &Value) -> Result<Self, NodeConfigError> {
        let mut config = Self::default();
        match doc.get("sections") {
            None => {}
            Some(Value::Object(sections)) => {
                for (name, keys) in sections {
                    config.sections.insert(name.clone(), texts(keys, "sections")?);
                }
            }
            Some(_) => return Err(NodeConfigError::Form("sections")),
        }
        if let Some(admins) = doc.get(ADMINS) {
            config.admins = texts(admins, ADMINS)?;
        }
        config.check()?;
        Ok(config)
    }

    /// The document's members.
    pub fn body(&self) -> Map<String, Value> {
        let mut body = Map::new();
        body.insert("type".to_owned(), NODE_CONFIG_ID.into());
        body.insert("sections".to_owned(), serde_json::json!(self.sections));
        body.insert(ADMINS.to_owned(), serde_json::json!(self.admins));
        body
    }

    /// A setting that somebody has made.
    pub fn get(&self, section: &str, key: &str) -> Option<&str> {
        self.sections.get(section)?.get(key).map(String::as_str)
    }

    /// Checks names, values and bounds.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), NodeConfigError> {
        let named = self.sections.iter().flat_map(|(section, keys)| keys.iter().map(move |pair| (section, pair)));
        let admins = ADMINS.to_owned();
        let all = named.chain(self.admins.iter().map(|pair| (&admins, pair)));
        let (mut count, mut bytes) = (0, 0);
        for (section, (key, value)) in all {
            if !is_name(section) || !is_name(key) {
                return Err(NodeConfigError::Name);
            }
            if value.len() > MAX_VALUE_BYTES || value.chars().any(char::is_control) {
                return Err(NodeConfigError::Value);
            }
            count += 1;
            bytes += section.len() + key.len() + value.len();
        }
        if !self.admins.keys().all(|name| is_admin_name(name)) {
            return Err(NodeConfigError::AdminName);
        }
        if count > MAX_SETTINGS || bytes > MAX_BYTES { Err(NodeConfigError::TooMany) } else { Ok(()) }
    }
}

/// Whether an administrator may be called so: not as the pods themselves, nor as a session.
pub fn is_admin_name(name: &str) -> bool {
    !name.starts_with('_') && !name.starts_with(SESSION_PREFIX) && !name.contains(':')
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn texts(value: &Value, member: &'static str) -> Result<BTreeMap<String, String>, NodeConfigError> {
    let Value::Object(keys) = value else { return Err(NodeConfigError::Form(member)) };
    let pairs = keys.iter().map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    pairs.collect::<Option<_>>().ok_or(NodeConfigError::Form(member))
}

#[cfg(test)]
mod tests {
    use super::{MAX_SETTINGS, NodeConfig, NodeConfigError};
    use serde_json::{Value, json};

    #[test]
    fn what_is_written_is_read_back() {
        let doc = json!({"sections": {"cors": {"origins": "*"}}, "admins": {"ann": "$argon2id$x"}, "_rev": "1-a"});
        let config = NodeConfig::parse(&doc).expect("good");
        assert_eq!(config.get("cors", "origins"), Some("*"));
        assert_eq!(config.get("cors", "zork"), None);
        assert_eq!(NodeConfig::parse(&Value::Object(config.body())), Ok(config.clone()));
        assert!(!format!("{config:?}").contains("argon2id"));
        assert_eq!(NodeConfig::parse(&json!({})), Ok(NodeConfig::default()));
    }

    #[test]
    fn other_forms_and_too_much_are_refused() {
        for bad in [
            json!({"sections": 5}),
            json!({"sections": {"a": []}}),
            json!({"sections": {"a": {"b": 1}}}),
            json!({"sections": {"": {"b": "1"}}}),
            json!({"sections": {"a": {"b\n": "1"}}}),
            json!({"sections": {"a": {"b": "x".repeat(20_000)}}}),
            json!({"admins": {"a": null}}),
            json!({"admins": {"_pod": "x"}}),
            json!({"admins": {"session-a": "x"}}),
        ] {
            assert!(NodeConfig::parse(&bad).is_err(), "{bad}");
        }
        let keys: serde_json::Map<String, Value> = (0..=MAX_SETTINGS).map(|n| (n.to_string(), "1".into())).collect();
        assert_eq!(NodeConfig::parse(&json!({"sections": {"a": keys}})), Err(NodeConfigError::TooMany));
    }
}
