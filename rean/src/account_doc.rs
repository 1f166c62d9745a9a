//! One document of `_users`: what may be written by whom, and what the pod adds. Pure: it reads no store and no clock.
//!
//! The rules and their words are those of CouchDB's own validation of its authentication database
//! (<https://docs.couchdb.org/en/stable/intro/security.html#users-documents>), and then some that keep a user from
//! getting roles back through conflicting revisions.

use adea_ring::identity::SYSTEM_NAME;
use rean_store::{Author, Edit};
use serde_json::{Map, Value};

use crate::accounts::Stored;
use crate::error::ApiError;
use crate::password;
use crate::target::ACCOUNT_PREFIX;

/// Bytes of an account's document: it is read at log-in.
const MAX_DOCUMENT_BYTES: usize = 64 * 1024;
/// Bytes of an account's name. It goes into headers, percent-encoded, and into access entries.
const MAX_NAME_BYTES: usize = 200;
/// Roles of one account. They are in each request's headers and in each bookmark of its feeds, which have bounds.
const MAX_ROLES: usize = 100;
/// Bytes of all roles of one account together, for the same reason.
const MAX_ROLES_BYTES: usize = 3_000;
/// Members about the password, which only the pod and administrators write.
const SECRET_MEMBERS: [&str; 6] =
    ["derived_key", "salt", "password_scheme", "iterations", "pbkdf2_prf", "password_sha"];

/// What is to be done with an edit.
#[derive(Debug)]
pub enum Plan {
    /// Write it as it is.
    Verbatim,
    /// A deletion: write it without any members.
    Removed,
    /// Write these members, with the hash of this password if there is one.
    Written {
        /// The members of the document.
        body: Map<String, Value>,
        /// The new password.
        password: Option<String>,
    },
}

/// Decides what to do with an edit of `_users`.
///
/// # Errors
/// 403 with CouchDB's words when the document does not fit; 409 when it does not extend the current revision.
pub fn plan(edit: &Edit, stored: Option<&Stored>, author: &Author, replicated: bool) -> Result<Plan, ApiError> {
    // The pods of a ring pass accounts on as they are: what follows has been done where they were written.
    if replicated && author.is_admin() && author.name() == Some(SYSTEM_NAME) {
        return Ok(Plan::Verbatim);
    }
    if edit.id.starts_with("_design/") {
        return if author.is_admin() {
            Ok(Plan::Verbatim)
        } else {
            Err(forbidden("You are not a db or server admin."))
        };
    }
    if !author.is_admin() {
        check_own(edit, stored, author, replicated)?;
    }
    if edit.deleted {
        return Ok(Plan::Removed);
    }
    if edit.body.len() > MAX_DOCUMENT_BYTES {
        return Err(forbidden("The user document is too large."));
    }
    let new: Map<String, Value> = serde_json::from_slice(&edit.body).map_err(|_| ApiError::invalid_json())?;
    let old = stored.filter(|stored| !stored.deleted);
    check_form(&edit.id, &new)?;
    if !author.is_admin() {
        check_roles(&new, old)?;
    }
    complete(new, old, author)
}

/// Members of an array that are texts.
pub fn strings(value: Option<&Value>) -> Vec<String> {
    let items = value.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Puts a new hash in the place of everything about the old password.
pub fn set_hash(body: &mut Map<String, Value>, hash: String) {
    for member in SECRET_MEMBERS {
        body.remove(member);
    }
    body.insert("password_scheme".to_owned(), password::SCHEME.into());
    body.insert("derived_key".to_owned(), hash.into());
}

fn forbidden(reason: impl Into<String>) -> ApiError {
    ApiError::forbidden(reason.into())
}

/// What someone who is no administrator may write at all: the own account's one revision, or a new account.
fn check_own(edit: &Edit, stored: Option<&Stored>, author: &Author, replicated: bool) -> Result<(), ApiError> {
    if replicated {
        return Err(forbidden("Accounts are not replicated by their users."));
    }
    if !edit.attachments.is_empty() {
        return Err(forbidden("User documents take no attachments."));
    }
    let Some(old) = stored.filter(|stored| !stored.deleted) else {
        return if edit.deleted { Err(ApiError::missing()) } else { Ok(()) };
    };
    let own = author.name() == old.body.get("name").and_then(Value::as_str);
    if !own {
        return Err(forbidden("You may only update your own user document."));
    }
    // With conflicts about, a user who deletes the winning revision would get the roles of the next one.
    if old.live_leaves > 1 {
        return Err(forbidden("This account has conflicting revisions: an administrator must resolve them first."));
    }
    if edit.parent.as_ref() != Some(&old.rev) {
        return Err(ApiError::conflict());
    }
    Ok(())
}

/// CouchDB's checks of the document itself.
fn check_form(id: &str, new: &Map<String, Value>) -> Result<(), ApiError> {
    if new.get("type").and_then(Value::as_str) != Some("user") {
        return Err(forbidden("doc.type must be user"));
    }
    let Some(name) = new.get("name").and_then(Value::as_str) else {
        return Err(forbidden("doc.name is required"));
    };
    let Some(roles) = new.get("roles") else {
        return Err(forbidden("doc.roles must exist"));
    };
    let Value::Array(roles) = roles else {
        return Err(forbidden("doc.roles must be an array"));
    };
    if id.strip_prefix(ACCOUNT_PREFIX) != Some(name) {
        return Err(forbidden("Doc ID must be of the form org.couchdb.user:name"));
    }
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(forbidden(format!("doc.name must have 1 to {MAX_NAME_BYTES} bytes")));
    }
    if name.starts_with('_') {
        return Err(forbidden("Username may not start with underscore."));
    }
    if name.contains(':') {
        return Err(forbidden("Character `:` is not allowed in usernames."));
    }
    if name.chars().any(char::is_control) {
        return Err(forbidden("Control characters are not allowed in usernames."));
    }
    check_each_role(roles)
}

fn check_each_role(roles: &[Value]) -> Result<(), ApiError> {
    let mut bytes = 0;
    for role in roles {
        let Value::String(role) = role else {
            return Err(forbidden("doc.roles can only contain strings"));
        };
        if role.starts_with('_') {
            return Err(forbidden("No system roles (starting with underscore) in users db."));
        }
        if role.is_empty() || role.chars().any(char::is_control) {
            return Err(forbidden("A role must not be empty or contain control characters."));
        }
        bytes += role.len();
    }
    if roles.len() > MAX_ROLES || bytes > MAX_ROLES_BYTES {
        return Err(forbidden(format!(
            "doc.roles may have at most {MAX_ROLES} roles with {MAX_ROLES_BYTES} bytes in all"
        )));
    }
    Ok(())
}

/// Users leave their roles as they are.
fn check_roles(new: &Map<String, Value>, old: Option<&Stored>) -> Result<(), ApiError> {
    let sorted = |value: Option<&Value>| {
        let mut roles = strings(value);
        roles.sort_unstable();
        roles.dedup();
        roles
    };
    let roles = sorted(new.get("roles"));
    match old {
        Some(old) if sorted(old.body.get("roles")) != roles => Err(forbidden("Only _admin may edit roles")),
        None if !roles.is_empty() => Err(forbidden("Only _admin may set roles")),
        _ => Ok(()),
    }
}

/// Takes the password out and, without a new one, keeps the old hash.
fn complete(mut new: Map<String, Value>, old: Option<&Stored>, author: &Author) -> Result<Plan, ApiError> {
    let password = take_password(&mut new)?;
    if !author.is_admin() {
        for member in SECRET_MEMBERS {
            new.remove(member);
        }
    }
    if password.is_none() {
        let scheme = new.get("password_scheme").and_then(Value::as_str);
        let hash = new.get("derived_key").and_then(Value::as_str);
        match hash {
            // CouchDB of before 1.3 had its hash in this member.
            None if new.get("password_sha").is_some_and(Value::is_string) => {}
            None => keep_secret(&mut new, old),
            Some(hash) if scheme == Some(password::SCHEME) && !password::is_acceptable(hash) => {
                return Err(forbidden("doc.derived_key is no argon2id hash of reasonable cost"));
            }
            Some(_) if scheme == Some(password::PBKDF2) && !password::is_acceptable_pbkdf2(&new) => {
                return Err(forbidden("doc.derived_key is no pbkdf2 hash of reasonable cost"));
            }
            Some(_) => {}
        }
    }
    Ok(Plan::Written { body: new, password })
}

fn take_password(new: &mut Map<String, Value>) -> Result<Option<String>, ApiError> {
    match new.remove("password") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(password)) if !password.is_empty() && password.len() <= password::MAX_PASSWORD_BYTES => {
            Ok(Some(password))
        }
        Some(Value::String(_)) => Err(forbidden(format!("A password has 1 to {} bytes", password::MAX_PASSWORD_BYTES))),
        Some(_) => Err(forbidden("Password must be a string")),
    }
}

fn keep_secret(new: &mut Map<String, Value>, old: Option<&Stored>) {
    for member in SECRET_MEMBERS {
        match old.and_then(|old| old.body.get(member)) {
            Some(value) => {
                new.insert(member.to_owned(), value.clone());
            }
            None => {
                new.remove(member);
            }
        }
    }
}

#[cfg(test)]
mod tests;
