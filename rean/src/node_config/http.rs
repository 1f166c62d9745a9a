//! `/_node/..`: settings and figures of a pod, for administrators.
//!
//! Source: <https://docs.couchdb.org/en/stable/api/server/configuration.html>. All pods of a ring have the same settings,
//! so every name of a node that there may be means the pod that is asked, and a change is made on the write master. Figures
//! and logs are each pod's own: with another pod's name, that pod is asked for them.
//! Passwords of administrators are given back neither as they are nor as hashes.

use std::collections::BTreeMap;
use std::sync::Arc;

use adea_ring::node_config::{ADMINS, FILE_SETTINGS_HEADER, NODE_CONFIG_ID, is_admin_name};
use adea_ring::{Identity, NodeConfig, NodeConfigError};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

use super::{known, load, stats};
use crate::accounts::hash_password;
use crate::body_in;
use crate::databases::{NODE, blocking, json_line};
use crate::error::ApiError;
use crate::password::MAX_PASSWORD_BYTES;
use crate::pod::Pod;
use crate::ring::ring_doc::{self, ring_db};
use crate::ring::{elsewhere, logs};
use crate::route::{Request, Response, no_resource};
use crate::target::require_server_admin;

/// The names that mean the pod that is asked. The last is what a CouchDB that nobody has named calls itself, and what
/// its clients' tools and tests have written into them.
const NODES: [&str; 3] = ["_local", NODE, "nonode@nohost"];
/// What is shown in the place of an administrator's password.
const HIDDEN: &str = "-argon2id-hidden";
/// The sections with which CouchDB once ran programs and code: it lets nobody change them by HTTP, whether or not they
/// still mean something.
const PROGRAM_SECTIONS: [&str; 8] = [
    "daemons",
    "external",
    "httpd_db_handlers",
    "httpd_design_handlers",
    "httpd_global_handlers",
    "native_query_servers",
    "os_daemons",
    "query_servers",
];
/// Tries to change the document while others change it too.
const TRIES: usize = 5;

/// Section -> key -> value, as it is shown.
type Sections = BTreeMap<String, BTreeMap<String, String>>;

/// Everything below `/_node`.
///
/// # Errors
/// 401 for all but administrators; 404 for what there isn't; 400 and 403 for what can't be set.
pub async fn node(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    let segments = request.segments.clone();
    let below: Vec<&str> = segments[1..].iter().map(String::as_str).collect();
    let Some((name, below)) = below.split_first() else { return Err(no_resource("_node")) };
    let is_own = NODES.contains(name) || *name == pod.ring.me().as_str();
    let is_elsewhere = !is_own && request.method == Method::GET;
    // Settings are the same on all pods, and changed by way of the write master: no other pod is asked for them.
    if is_elsewhere
        && matches!(below.first(), Some(&"_logs" | &"_stats" | &"_system" | &"_versions"))
        && let Some(question) = elsewhere::question(pod, name, below, &request)
    {
        return elsewhere::ask(pod, question).await;
    }
    if !is_own {
        let shown: String = name.chars().take(80).collect();
        return Err(ApiError::not_found(format!("no such node: {shown}")));
    }
    match below {
        ["_config", "_reload"] => {
            only(&request, Method::POST, "POST")?;
            reload(pod).await?;
            Ok(json_line(StatusCode::OK, &json!({"ok": true})))
        }
        ["_config", below @ ..] => config(pod, request, below).await,
        ["_restart"] => Err(ApiError::not_implemented("A pod is restarted by what runs it.")),
        _ => {
            only(&request, Method::GET, "GET,HEAD")?;
            match below {
                [] => Ok(json_line(StatusCode::OK, &json!({"name": NODE}))),
                ["_stats", path @ ..] => Ok(json_line(StatusCode::OK, &stats::stats(pod, path)?)),
                ["_logs"] => logs::logs(pod, logs::Asked::of(&request)?).await,
                ["_system"] => Ok(json_line(StatusCode::OK, &stats::system(pod))),
                ["_versions"] => Ok(json_line(StatusCode::OK, &stats::versions())),
                _ => Err(no_resource("_node")),
            }
        }
    }
}

fn only(request: &Request, method: Method, allowed: &'static str) -> Result<(), ApiError> {
    if request.method == method { Ok(()) } else { Err(ApiError::method_not_allowed(allowed)) }
}

async fn config(pod: &Arc<Pod>, request: Request, below: &[&str]) -> Result<Response, ApiError> {
    match (request.method.clone(), below) {
        (Method::GET, []) => Ok(json_line(StatusCode::OK, &json!(shown(pod, &request.headers)))),
        (Method::GET, [section]) => {
            let all = shown(pod, &request.headers);
            Ok(json_line(StatusCode::OK, &json!(all.get(*section).cloned().unwrap_or_default())))
        }
        (Method::GET, [section, key]) => {
            let all = shown(pod, &request.headers);
            let value = all.get(*section).and_then(|keys| keys.get(*key)).ok_or_else(unknown)?;
            Ok(json_line(StatusCode::OK, &json!(value)))
        }
        (Method::PUT, [section, key]) => put(pod, request, section, key).await,
        (Method::DELETE, [section, key]) => delete(pod, request, section, key).await,
        (_, [_, _]) => Err(ApiError::method_not_allowed("DELETE,GET,HEAD,PUT")),
        (_, [] | [_]) => Err(ApiError::method_not_allowed("GET,HEAD")),
        _ => Err(ApiError::missing()),
    }
}

fn unknown() -> ApiError {
    ApiError::not_found("unknown_config_value")
}

/// All settings: what somebody has set, else what the proxy's file says, else the defaults.
fn shown(pod: &Pod, headers: &HeaderMap) -> Sections {
    let mut all = Sections::new();
    let mut add = |section: &str, key: &str, value: &str| {
        all.entry(section.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
    };
    for (section, key, value) in known::defaults(&pod.limits) {
        add(section, key, &value);
    }
    add("couchdb", "uuid", &pod.uuid);
    for (section, keys) in of_file(headers) {
        let is_admins = section == ADMINS;
        keys.iter().for_each(|(key, value)| add(&section, key, if is_admins { HIDDEN } else { value }));
    }
    let config = &pod.settings.get().config;
    for (section, keys) in &config.sections {
        keys.iter().for_each(|(key, value)| add(section, key, value));
    }
    config.admins.keys().for_each(|name| add(ADMINS, name, HIDDEN));
    all
}

/// What the proxy's own file says.
fn of_file(headers: &HeaderMap) -> Sections {
    let text = headers.get(FILE_SETTINGS_HEADER).map(|value| value.as_bytes());
    text.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
}

fn is_of_file(headers: &HeaderMap, admin: &str) -> bool {
    of_file(headers).get(ADMINS).is_some_and(|admins| admins.contains_key(admin))
}

fn old_value(pod: &Pod, headers: &HeaderMap, section: &str, key: &str) -> String {
    shown(pod, headers).get(section).and_then(|keys| keys.get(key)).cloned().unwrap_or_default()
}

async fn put(pod: &Arc<Pod>, request: Request, section: &str, key: &str) -> Result<Response, ApiError> {
    let old = old_value(pod, &request.headers, section, key);
    if section == "couchdb" && key == "uuid" {
        return Err(ApiError::forbidden("The uuid is the ring's, for its whole life."));
    }
    if PROGRAM_SECTIONS.contains(&section) {
        return Err(ApiError::forbidden("Config section blacklisted for modification over HTTP API."));
    }
    let text = body_in::read_any(pod, &request.headers, request.body).await?;
    let value: String =
        serde_json::from_slice(&text).map_err(|_| ApiError::bad_request("The value must be a JSON string"))?;
    let value = value.trim().to_owned();
    if section == ADMINS {
        require_name(&request.headers, key)?;
        let hash = hash_password(pod, checked_password(value)?).await?;
        change(pod, |config| config.admins.insert(key.to_owned(), hash.clone())).await?;
        tracing::info!(admin = key, "an administrator was made or changed");
        return Ok(json_line(StatusCode::OK, &json!(old)));
    }
    if !known::fits(section, key, &value) {
        let reason = format!("{section}/{key} must be {}", known::allowed(section, key));
        return Err(ApiError::bad_request(reason));
    }
    let make = |config: &mut NodeConfig| {
        config.sections.entry(section.to_owned()).or_default().insert(key.to_owned(), value.clone())
    };
    change(pod, make).await?;
    Ok(json_line(StatusCode::OK, &json!(old)))
}

async fn delete(pod: &Arc<Pod>, request: Request, section: &str, key: &str) -> Result<Response, ApiError> {
    let old = old_value(pod, &request.headers, section, key);
    let removed = if section == ADMINS {
        if is_of_file(&request.headers, key) {
            return Err(of_the_file());
        }
        change(pod, |config| config.admins.remove(key)).await?
    } else {
        let remove = |config: &mut NodeConfig| {
            let keys = config.sections.get_mut(section)?;
            let removed = keys.remove(key);
            if keys.is_empty() {
                config.sections.remove(section);
            }
            removed
        };
        change(pod, remove).await?
    };
    // What only has its default can't be removed.
    removed.ok_or_else(unknown)?;
    Ok(json_line(StatusCode::OK, &json!(old)))
}

fn of_the_file() -> ApiError {
    ApiError::forbidden("This administrator is of the pod's own file, and is changed there.")
}

fn require_name(headers: &HeaderMap, name: &str) -> Result<(), ApiError> {
    if is_of_file(headers, name) {
        return Err(of_the_file());
    }
    if !is_admin_name(name) {
        return Err(ApiError::bad_request(NodeConfigError::AdminName.to_string()));
    }
    Ok(())
}

fn checked_password(password: String) -> Result<String, ApiError> {
    if password.is_empty() || password.len() > MAX_PASSWORD_BYTES {
        return Err(ApiError::bad_request(format!("A password has 1 to {MAX_PASSWORD_BYTES} bytes")));
    }
    if ["-pbkdf2-", "-pbkdf2:", "-hashed-", "-argon2id-"].iter().any(|scheme| password.starts_with(scheme)) {
        return Err(ApiError::bad_request("Send the password itself: a hash of it is not taken"));
    }
    Ok(password)
}

/// Changes the document, and puts it in force here. What `edit` gives back is that of the change that was written.
async fn change<T>(pod: &Arc<Pod>, edit: impl Fn(&mut NodeConfig) -> T) -> Result<T, ApiError> {
    let ring = ring_db(pod)?;
    for _ in 0..TRIES {
        let leaf = ring_doc::live(&ring, NODE_CONFIG_ID)?;
        let body = leaf.as_ref().map(|leaf| leaf.body.clone()).unwrap_or_default();
        let before = NodeConfig::parse(&Value::Object(body))
            .map_err(|error| ApiError::internal("the settings can't be read").with_cause(error))?;
        let mut config = before.clone();
        let done = edit(&mut config);
        if config == before {
            return Ok(done);
        }
        config.check().map_err(|error| ApiError::bad_request(error.to_string()))?;
        let edit = ring_doc::edit(NODE_CONFIG_ID, leaf.map(|leaf| leaf.rev), &config.body());
        match ring_doc::write(pod, &ring, edit).await {
            Ok(_) => {
                reload(pod).await?;
                return Ok(done);
            }
            Err(error) if error.status == StatusCode::CONFLICT => {}
            Err(error) => return Err(error),
        }
    }
    Err(ApiError::conflict())
}

async fn reload(pod: &Arc<Pod>) -> Result<(), ApiError> {
    let pod = Arc::clone(pod);
    Ok(blocking(move || load(&pod)).await??)
}
