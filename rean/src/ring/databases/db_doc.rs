//! The document of a database: what is in it.

use std::collections::BTreeSet;

use rean_store::{Db, DbKind};
use serde_json::{Map, Value};

use crate::ring::ring_doc::Leaf;

/// What the store has for a database whose number of kept revisions nobody has set.
pub const DEFAULT_REVS_LIMIT: u64 = 1_000;
/// What the store gives for a `_security` that was never set.
pub const SECURITY_NEVER_SET: &[u8] = b"{}";
/// Deleted instances that a document remembers: a pod that was away while a name was used this often drops what it has
/// all the same, since no document names its instance any more.
const MAX_GONE: usize = 32;
/// Hexadecimal digits of an instance.
const INSTANCE_DIGITS: usize = 8;

/// What a database is, from its making to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A CouchDB database.
    Plain,
    /// One with partitions.
    Partitioned,
    /// An app.
    App,
}

impl Kind {
    /// That of a database that is here.
    pub fn of(db: &Db) -> Self {
        match db.kind() {
            DbKind::App => Self::App,
            DbKind::Plain if db.is_partitioned() => Self::Partitioned,
            DbKind::Plain => Self::Plain,
        }
    }
}

/// A document that says that there is a database.
pub struct DbDoc {
    /// Whether it is an app.
    pub app: bool,
    /// Whether the ids of its documents name partitions.
    pub partitioned: bool,
    /// Tells it from other databases of its name.
    pub instance: String,
    /// Its `_security`; none: never set.
    pub security: Option<Value>,
    /// Revisions of a branch that are kept.
    pub revs_limit: u64,
    /// The purges that are remembered, as somebody has set it.
    pub purged_infos_limit: Option<u64>,
    /// Earlier databases of the name, which were deleted; the newest last.
    pub gone: Vec<String>,
}

impl DbDoc {
    /// Reads it; none if it can't be read.
    pub fn read(leaf: &Leaf) -> Option<Self> {
        let instance = leaf.text("instance").filter(|text| is_instance(text))?.to_owned();
        Some(Self {
            app: leaf.body.get("app").and_then(Value::as_bool).unwrap_or(false),
            partitioned: leaf.body.get("partitioned").and_then(Value::as_bool).unwrap_or(false),
            instance,
            security: leaf.body.get("security").filter(|value| value.is_object()).cloned(),
            revs_limit: leaf.body.get("revs_limit").and_then(Value::as_u64).unwrap_or(DEFAULT_REVS_LIMIT),
            purged_infos_limit: leaf.body.get("purged_infos_limit").and_then(Value::as_u64),
            gone: gone_of(leaf),
        })
    }

    /// The document of a database that has none.
    pub fn of(db: &Db, instance: String, gone: Vec<String>) -> Self {
        let stored = db.security();
        let security = (&stored[..] != SECURITY_NEVER_SET).then(|| serde_json::from_slice(&stored).ok()).flatten();
        let (app, revs_limit) = (db.kind() == DbKind::App, db.revs_limit());
        Self { app, partitioned: db.is_partitioned(), instance, security, revs_limit, purged_infos_limit: None, gone }
    }

    /// What kind of database.
    pub fn kind(&self) -> Kind {
        match (self.app, self.partitioned) {
            (true, _) => Kind::App,
            (false, true) => Kind::Partitioned,
            (false, false) => Kind::Plain,
        }
    }

    /// Its members.
    pub fn body(&self) -> Map<String, Value> {
        let mut body = Map::new();
        body.insert("app".to_owned(), self.app.into());
        if self.partitioned {
            body.insert("partitioned".to_owned(), true.into());
        }
        body.insert("instance".to_owned(), self.instance.clone().into());
        body.insert("gone".to_owned(), self.gone.clone().into());
        if let Some(security) = &self.security {
            body.insert("security".to_owned(), security.clone());
        }
        body.insert("revs_limit".to_owned(), self.revs_limit.into());
        if let Some(limit) = self.purged_infos_limit {
            body.insert("purged_infos_limit".to_owned(), limit.into());
        }
        body
    }
}

/// One for a database that is made.
pub fn new_instance() -> String {
    hex::encode(rand::random::<[u8; INSTANCE_DIGITS / 2]>())
}

fn is_instance(text: &str) -> bool {
    text.len() == INSTANCE_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The instance that a leaf names.
pub fn instance_of(leaf: &Leaf) -> Option<&str> {
    leaf.text("instance").filter(|text| is_instance(text))
}

/// The instances that live leaves name: with several, pods have made the database each on its own.
pub fn live_instances(leaves: &[Leaf]) -> impl Iterator<Item = &str> {
    leaves.iter().filter(|leaf| !leaf.deleted).filter_map(instance_of)
}

/// What a leaf says to be gone.
pub fn gone_of(leaf: &Leaf) -> Vec<String> {
    let gone = leaf.body.get("gone").and_then(Value::as_array).into_iter().flatten();
    gone.filter_map(Value::as_str).filter(|text| is_instance(text)).map(str::to_owned).collect()
}

/// What any leaf says to be gone, the newest last.
pub fn all_gone(leaves: &[Leaf]) -> Vec<String> {
    // The winner's come last: they are the newest of the longest history.
    let mut gone: Vec<String> = leaves.iter().rev().flat_map(gone_of).collect();
    shorten(&mut gone);
    gone
}

/// Leaves the newest, each once.
pub fn shorten(gone: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    gone.reverse();
    gone.retain(|one| seen.insert(one.clone()));
    gone.truncate(MAX_GONE);
    gone.reverse();
}

#[cfg(test)]
mod tests {
    use super::{MAX_GONE, shorten};

    #[test]
    fn the_newest_of_what_is_gone_are_remembered_once() {
        let mut gone: Vec<String> = (0..40).map(|n| format!("{n:08x}")).collect();
        gone.push("00000000".to_owned());
        shorten(&mut gone);
        assert_eq!(gone.len(), MAX_GONE);
        assert_eq!(gone.last().map(String::as_str), Some("00000000"));
        assert_eq!(gone.iter().filter(|one| *one == "00000000").count(), 1);
        assert_eq!(gone[0], "00000009");
    }
}
