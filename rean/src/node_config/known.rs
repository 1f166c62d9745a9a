//! The settings that mean something here, by CouchDB's names
//! (<https://docs.couchdb.org/en/stable/config/index.html>): their values when nobody has set them, and what they may be.
//!
//! Those of the proxy (cross-origin requests, log-ins, cookies) have no value here: the proxy tells with each request what
//! its own file says.

use adea_ring::log_level;
use adea_ring::node_config::{CLOSED, MAINTENANCE, WRITE_ONLY};

use rean_store::MAX_PARTITION_BYTES;

use crate::config::Limits;
use crate::databases::check_name;

/// Ids that one `_uuids` gives, unless something else is set; CouchDB's bound.
pub const MAX_UUIDS: u64 = 1_000;
/// Databases that one `_dbs_info` describes, unless something else is set; CouchDB's bound.
pub const MAX_DBS_INFO: usize = 100;
/// The most of both that may be set: the whole answer is in memory.
const MAX_LISTED: u64 = 100_000;
/// The largest partition that may be set: what CouchDB's clients can read as a number. 0 is no bound.
const MAX_PARTITION_SIZE: u64 = 1 << 53;
/// The longest time that may be set, in seconds: ten years. CouchDB's times are seconds or milliseconds.
const MAX_TIME: u64 = 10 * 366 * 86_400;

/// What may be said of a database in maintenance.
const RULES: [&str; 2] = [CLOSED, WRITE_ONLY];

/// A setting.
struct Known {
    section: &'static str,
    key: &'static str,
    kind: Kind,
    default: Default,
}

/// What a value may be.
enum Kind {
    Text,
    Bool,
    /// A whole number, from and to.
    Number(u64, u64),
    /// A number of bytes from 1, or `infinity`.
    Size,
    OneOf(&'static [&'static str]),
    /// How much is logged.
    Level,
}

/// What counts when nobody has set it.
enum Default {
    Text(&'static str),
    Limit(fn(&Limits) -> u64),
    /// What somebody else says: nearly always the proxy.
    Elsewhere,
}

const fn known(section: &'static str, key: &'static str, kind: Kind, default: Default) -> Known {
    Known { section, key, kind, default }
}

const KNOWN: [Known; 32] = [
    known("chttpd", "admin_only_all_dbs", Kind::Bool, Default::Text("true")),
    known("chttpd", "authentication_handlers", Kind::Text, Default::Elsewhere),
    // CouchDB has no such setting: here a body must come at least so fast.
    known("chttpd", "body_bytes_per_second", Kind::Number(0, 1 << 30), Default::Elsewhere),
    known("chttpd", "enable_cors", Kind::Bool, Default::Elsewhere),
    known("chttpd", "max_db_number_for_dbs_info_req", Kind::Number(1, MAX_LISTED), Default::Text("100")),
    known("chttpd", "max_http_request_size", Kind::Size, Default::Elsewhere),
    known("chttpd", "require_valid_user", Kind::Bool, Default::Elsewhere),
    known("chttpd", "require_valid_user_except_for_up", Kind::Bool, Default::Elsewhere),
    known("chttpd_auth", "allow_persistent_cookies", Kind::Bool, Default::Elsewhere),
    known("chttpd_auth", "cookie_domain", Kind::Text, Default::Elsewhere),
    // CouchDB has no such setting: how long a log-in can be prolonged.
    known("chttpd_auth", "max_session_age", Kind::Number(1, MAX_TIME), Default::Elsewhere),
    known("chttpd_auth", "require_valid_user", Kind::Bool, Default::Elsewhere),
    known("chttpd_auth", "same_site", Kind::OneOf(&["", "none", "lax", "strict"]), Default::Elsewhere),
    // Nor this: how long a temporary name and password last.
    known("chttpd_auth", "session_timeout", Kind::Number(1, MAX_TIME), Default::Elsewhere),
    known("chttpd_auth", "timeout", Kind::Number(1, MAX_TIME), Default::Elsewhere),
    known("couch_httpd_auth", "timeout", Kind::Number(1, MAX_TIME), Default::Elsewhere),
    known("cors", "credentials", Kind::Bool, Default::Elsewhere),
    known("cors", "headers", Kind::Text, Default::Elsewhere),
    known("cors", "max_age", Kind::Number(0, MAX_TIME), Default::Elsewhere),
    known("cors", "methods", Kind::Text, Default::Elsewhere),
    known("cors", "origins", Kind::Text, Default::Elsewhere),
    known(
        "couchdb",
        "default_security",
        Kind::OneOf(&["admin_only", "admin_local", "everyone"]),
        Default::Text("admin_only"),
    ),
    known("couchdb", "max_attachment_size", Kind::Size, Default::Limit(|limits| limits.max_attachment_bytes)),
    known("couchdb", "max_document_size", Kind::Size, Default::Limit(|limits| limits.max_document_bytes as u64)),
    known(
        "couchdb",
        "max_partition_size",
        Kind::Number(0, MAX_PARTITION_SIZE),
        Default::Limit(|_| MAX_PARTITION_BYTES),
    ),
    known("log", "level", Kind::Level, Default::Elsewhere),
    known("replicator", "checkpoint_interval", Kind::Number(1, MAX_TIME), Default::Text("5000")),
    known("replicator", "use_checkpoints", Kind::Bool, Default::Text("true")),
    known("replicator", "worker_batch_size", Kind::Number(1, 2_000), Default::Text("500")),
    known("uuids", "algorithm", Kind::Text, Default::Text("random")),
    known("uuids", "max_count", Kind::Number(1, MAX_LISTED), Default::Text("1000")),
    known("purge", "max_document_id_number", Kind::Text, Default::Text("1000")),
];

fn find(section: &str, key: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.section == section && known.key == key)
}

/// What rean's own settings are when nobody has set them: section, key, value.
pub fn defaults(limits: &Limits) -> impl Iterator<Item = (&'static str, &'static str, String)> {
    KNOWN.iter().filter_map(|known| {
        let value = match known.default {
            Default::Text(text) => text.to_owned(),
            Default::Limit(limit) => limit(limits).to_string(),
            Default::Elsewhere => return None,
        };
        Some((known.section, known.key, value))
    })
}

/// Whether a setting may have a value. What means nothing here may have any.
pub fn fits(section: &str, key: &str, value: &str) -> bool {
    if section == MAINTENANCE {
        return RULES.contains(&value) && check_name(key).is_ok();
    }
    let Some(known) = find(section, key) else { return true };
    match known.kind {
        Kind::Text => true,
        Kind::Bool => matches!(value, "true" | "false"),
        Kind::Number(from, to) => value.parse().is_ok_and(|number: u64| (from..=to).contains(&number)),
        Kind::Size => value == "infinity" || value.parse().is_ok_and(|bytes: u64| bytes > 0),
        Kind::OneOf(values) => values.contains(&value),
        Kind::Level => log_level::names().any(|name| name == value),
    }
}

/// What a setting may be, for people.
pub fn allowed(section: &str, key: &str) -> String {
    if section == MAINTENANCE {
        return format!("one of {RULES:?}, for a name that a database may have");
    }
    match find(section, key).map(|known| &known.kind) {
        None | Some(Kind::Text) => "a text".to_owned(),
        Some(Kind::Bool) => "true or false".to_owned(),
        Some(Kind::Number(from, to)) => format!("a whole number from {from} to {to}"),
        Some(Kind::Size) => "a number of bytes, or infinity".to_owned(),
        Some(Kind::OneOf(values)) => format!("one of {values:?}"),
        Some(Kind::Level) => format!("one of {:?}", log_level::names().collect::<Vec<_>>()),
    }
}

#[cfg(test)]
mod tests {
    use super::{KNOWN, defaults, fits};
    use crate::config::Limits;

    #[test]
    fn defaults_are_values_that_fit() {
        let limits = Limits::default();
        let mut count = 0;
        for (section, key, value) in defaults(&limits) {
            assert!(fits(section, key, &value), "{section}/{key}={value}");
            count += 1;
        }
        assert!(count > 5 && count < KNOWN.len());
    }

    #[test]
    fn values_are_checked_where_they_mean_something() {
        for (section, key, value) in [
            ("zork", "x", "y"),
            ("cors", "origins", "*"),
            ("chttpd", "enable_cors", "true"),
            ("uuids", "max_count", "5"),
            ("maintenance", "notes", "closed"),
            ("maintenance", "a/b", "write-only"),
        ] {
            assert!(fits(section, key, value), "{section}/{key}={value}");
        }
        for (section, key, value) in [
            ("chttpd", "enable_cors", "yes"),
            ("chttpd_auth", "timeout", "0"),
            ("chttpd_auth", "same_site", "loose"),
            ("couchdb", "max_document_size", "-1"),
            ("uuids", "max_count", "99999999"),
            ("maintenance", "notes", "open"),
            ("maintenance", "_ring,x", "closed"),
        ] {
            assert!(!fits(section, key, value), "{section}/{key}={value}");
        }
    }
}
