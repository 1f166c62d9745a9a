//! Who may write what is served as pages: administrators of the server, and nobody else.
//!
//! An administrator of one database may write its design documents. But a page runs with the sessions of whoever visits
//! it, on the origin of all databases: whoever puts one there could act as any of its visitors everywhere.

use rean_store::Edit;
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::hosting::version::{self, MEMBER, PREFIX, ROUTING, Version};
use crate::target::Target;

/// Checks an edit before it is stored. Others than design documents of apps pass.
///
/// # Errors
/// 401 or 403 unless by an administrator of the server; 400 naming the member that is wrong.
pub fn check(target: &Target, edit: &Edit) -> Result<(), ApiError> {
    let version = edit.id.strip_prefix(PREFIX);
    if version.is_none() && edit.id != ROUTING {
        return Ok(());
    }
    let body: Map<String, Value> = serde_json::from_slice(&edit.body).unwrap_or_default();
    let member = body.get(MEMBER);
    // A design document of the name `app` may be one as any other.
    if version.is_none() && member.is_none() {
        return Ok(());
    }
    target.require_server_admin()?;
    let Some(member) = member.filter(|_| !edit.deleted) else { return Ok(()) };
    let checked = match version {
        // The copy that a version is started from says another one's name.
        Some(name) => Version::read("", name, &of_name(member, name), Vec::new()).map(|_| ()),
        None => version::shares(member).map(|_| ()),
    };
    checked.map_err(|reason| ApiError::bad_request(format!("{}: {reason}", edit.id)))
}

/// The member as if it said this version's name, where it says any.
fn of_name(member: &Value, name: &str) -> Value {
    let mut member = member.clone();
    if let Some(own) = member.get_mut("version").filter(|own| own.is_string()) {
        *own = name.into();
    }
    member
}
