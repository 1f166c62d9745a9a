//! A plain database's `_security` object: who its members and its administrators are.
//!
//! Source: <https://docs.couchdb.org/en/stable/api/database/security.html>.

use adea_ring::Identity;
use adea_ring::identity::ADMIN_ROLE;
use serde::Deserialize;
use serde_json::Value;

use crate::error::ApiError;

/// What a database says that never had a `_security`: as in CouchDB 3, administrators only.
pub const DEFAULT: &[u8] = br#"{"members":{"roles":["_admin"]},"admins":{"roles":["_admin"]}}"#;
/// Bytes of a `_security` object: it is read for each request of everyone but administrators.
pub const MAX_SECURITY_BYTES: usize = 64 * 1024;
/// What the store gives for a database that never had one.
const NEVER_SET: &[u8] = b"{}";

/// The parts of a `_security` object that count here.
#[derive(Debug, Deserialize)]
pub struct Security {
    #[serde(default)]
    admins: Group,
    members: Option<Group>,
    /// What CouchDB 1.0 called the members. CouchDB still takes it where there are no `members`, so a database with this
    /// member alone must not stand open.
    readers: Option<Group>,
}

#[derive(Debug, Default, Deserialize)]
struct Group {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    roles: Vec<String>,
}

impl Security {
    /// Reads what the store holds. What can't be read admits nobody but administrators.
    pub fn of(stored: &[u8]) -> Self {
        if stored == NEVER_SET {
            return Self::closed();
        }
        serde_json::from_slice(stored).unwrap_or_else(|_| Self::closed())
    }

    fn closed() -> Self {
        let administrators = || Group { names: Vec::new(), roles: vec![ADMIN_ROLE.to_owned()] };
        Self { admins: administrators(), members: Some(administrators()), readers: None }
    }

    /// Whether this identity administers the database.
    pub fn is_admin(&self, who: &Identity) -> bool {
        who.is_admin() || self.admins.holds(who)
    }

    /// Whether this identity may read the database and write plain documents to it.
    pub fn is_member(&self, who: &Identity) -> bool {
        self.is_public() || self.members().is_some_and(|members| members.holds(who)) || self.is_admin(who)
    }

    /// Whether the database is open to everyone.
    pub fn is_public(&self) -> bool {
        self.members().is_none_or(|members| members.names.is_empty() && members.roles.is_empty())
    }

    fn members(&self) -> Option<&Group> {
        self.members.as_ref().or(self.readers.as_ref())
    }
}

impl Group {
    fn holds(&self, who: &Identity) -> bool {
        who.name.as_ref().is_some_and(|name| self.names.contains(name))
            || who.roles.iter().any(|role| self.roles.contains(role))
    }
}

/// The text to give to a client.
pub fn shown(stored: &[u8]) -> &[u8] {
    if stored == NEVER_SET { DEFAULT } else { stored }
}

/// Checks what a client wants to set, and gives the text to store.
///
/// # Errors
/// 400 naming the member that is wrong.
pub fn check(text: &[u8]) -> Result<Vec<u8>, ApiError> {
    if text.len() > MAX_SECURITY_BYTES {
        return Err(ApiError::bad_request("The security object is too large"));
    }
    let value: Value = serde_json::from_slice(text).map_err(|_| ApiError::invalid_json())?;
    let Value::Object(members) = &value else {
        return Err(ApiError::bad_request("Request body must be a JSON object"));
    };
    for group in ["admins", "members", "readers"] {
        match members.get(group) {
            None => {}
            Some(Value::Object(lists)) => {
                for list in ["names", "roles"] {
                    check_list(lists.get(list), group, list)?;
                }
            }
            Some(_) => {
                return Err(ApiError::bad_request(format!("`{group}` must be a JSON object")));
            }
        }
    }
    // An empty object opens the database to everyone, as in CouchDB. It must differ from what the store gives for
    // "never set", which closes it.
    if members.is_empty() {
        return Ok(b"{ }".to_vec());
    }
    Ok(text.to_vec())
}

fn check_list(value: Option<&Value>, group: &str, list: &str) -> Result<(), ApiError> {
    let fits = match value {
        None => true,
        Some(Value::Array(items)) => items.iter().all(Value::is_string),
        Some(_) => false,
    };
    if fits { Ok(()) } else { Err(ApiError::bad_request(format!("`{group}.{list}` must be a JSON list of strings"))) }
}

#[cfg(test)]
mod tests {
    use super::{Security, check};
    use adea_ring::Identity;

    fn named(name: &str, roles: &[&str]) -> Identity {
        Identity { name: Some(name.to_owned()), roles: roles.iter().map(|role| (*role).to_owned()).collect() }
    }

    #[test]
    fn never_set_or_unreadable_is_closed_and_an_empty_object_is_open() {
        for closed in [&b"{}"[..], b"nonsense", br#"{"members":5}"#] {
            let security = Security::of(closed);
            assert!(!security.is_member(&named("ann", &["staff"])));
            assert!(!security.is_member(&Identity::anonymous()));
            assert!(security.is_member(&named("root", &["_admin"])));
        }
        let open = Security::of(&check(b"{}").expect("is allowed"));
        assert!(open.is_member(&Identity::anonymous()));
        assert!(!open.is_admin(&Identity::anonymous()));
    }

    #[test]
    fn names_and_roles_admit() {
        let security = Security::of(br#"{"members":{"names":["ann"],"roles":["staff"]},"admins":{"names":["cy"]}}"#);
        assert!(security.is_member(&named("ann", &[])));
        assert!(security.is_member(&named("bob", &["staff"])));
        assert!(!security.is_member(&named("bob", &["ann"])));
        assert!(!security.is_member(&named("staff", &[])));
        assert!(security.is_member(&named("cy", &[])) && security.is_admin(&named("cy", &[])));
        assert!(!security.is_admin(&named("ann", &[])));
    }

    #[test]
    fn readers_are_members_where_there_are_no_members() {
        let old = Security::of(br#"{"readers":{"names":["ann"],"roles":[]}}"#);
        assert!(old.is_member(&named("ann", &[])));
        assert!(!old.is_member(&named("bob", &[])) && !old.is_member(&Identity::anonymous()) && !old.is_public());
        let both = Security::of(br#"{"members":{"names":["bob"]},"readers":{"names":["ann"]}}"#);
        assert!(both.is_member(&named("bob", &[])) && !both.is_member(&named("ann", &[])));
        assert!(check(br#"{"readers":{"names":"ann"}}"#).is_err());
    }

    #[test]
    fn wrong_kinds_are_refused() {
        for bad in ["[]", "1", "{", r#"{"admins":"x"}"#, r#"{"members":{"names":[1]}}"#, r#"{"members":{"roles":{}}}"#]
        {
            assert!(check(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(check(br#"{"extra":{"mine":1}}"#).is_ok());
    }
}
