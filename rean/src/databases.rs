//! Databases as things: making, deleting, listing and describing them, and who reads what of an app.

use std::sync::Arc;

use adea_ring::Identity;
use http::header::LOCATION;
use http::{HeaderValue, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rean_store::{DbKind, PartInfo, Reader, Scope};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::body_in;
use crate::error::ApiError;
pub use crate::find::{find, index};
pub use crate::maintenance::{
    compact, ensure_full_commit, purge, purged_infos_limit, reload_query_servers, revs_limit, security,
};
use crate::pod::{Pod, SYSTEM_DATABASES};
use crate::render;
use crate::ring::databases as documents;
use crate::ring::databases::db_doc::Kind;
use crate::room;
use crate::route::{Request, Response};
use crate::security;
pub use crate::server_info::{active_tasks, membership, root, session, store, uuids, workers};
use crate::target::{PERSONAL, SEPARATOR, Target, require_server_admin, resolve, stand_in};

/// What stands for the one node of a pod where CouchDB names nodes.
pub const NODE: &str = "adea@localhost";
/// CouchDB's word for "not told": replicators compare it and find it the same.
pub const INSTANCE_START_TIME: &str = "0";
/// Bytes of a database's name; CouchDB's bound.
const MAX_NAME_BYTES: usize = 238;
/// The form of `disk_format_version` that CouchDB 3 has; it means nothing here.
const DISK_FORMAT_VERSION: u32 = 8;

/// `PUT /db`; with `?access=true` it is an app.
///
/// # Errors
/// 401 for all but administrators; 400 for a name that can't be; 412 when there is one.
pub async fn create(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    let name = request.db_name().to_owned();
    check_name(&name)?;
    room::check(pod)?;
    let kind = kind_of(&name, &request)?;
    let location = format!("/{}", utf8_percent_encode(&name, NON_ALPHANUMERIC_BUT_PLAIN));
    documents::make(pod, &name, kind).await?;
    if kind != Kind::App && pod.settings.get().open_databases && !SYSTEM_DATABASES.contains(&name.as_str()) {
        let db = pod.store.db(&name).ok_or_else(ApiError::no_database)?;
        documents::set_security(pod, &db, security::check(b"{}")?).await?;
    }
    let mut response = ok(StatusCode::CREATED);
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

/// What kind of database is asked for.
fn kind_of(name: &str, request: &Request) -> Result<Kind, ApiError> {
    let partitioned = match request.query.get("partitioned") {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(ApiError::bad_request("Invalid `partitioned` parameter")),
    };
    let access = request.query.flag("access")?;
    match (access, partitioned) {
        (false, false) => Ok(Kind::Plain),
        (true, false) => Ok(Kind::App),
        (_, true) if SYSTEM_DATABASES.contains(&name) => {
            Err(ApiError::bad_request("Cannot partition a system database"))
        }
        (false, true) => Ok(Kind::Partitioned),
        (true, true) => Err(ApiError::bad_request(
            "An app has partial databases by its readers, and no partitions by ids: make it with `access` or with \
             `partitioned`, not with both.",
        )),
    }
}

/// What stands unescaped in the path of a database's name.
const NON_ALPHANUMERIC_BUT_PLAIN: &percent_encoding::AsciiSet =
    &NON_ALPHANUMERIC.remove(b'_').remove(b'-').remove(b'$').remove(b'(').remove(b')');

/// Checks the name of a database that is to be made
/// (<https://docs.couchdb.org/en/stable/api/database/common.html#put--db>).
///
/// # Errors
/// 400 `illegal_database_name`.
pub fn check_name(name: &str) -> Result<(), ApiError> {
    if SYSTEM_DATABASES.contains(&name) {
        return Ok(());
    }
    let illegal = |reason: String| Err(ApiError::new(StatusCode::BAD_REQUEST, "illegal_database_name", reason));
    let mut bytes = name.bytes();
    let well_formed = bytes.next().is_some_and(|first| first.is_ascii_lowercase())
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_$()+-/".contains(&byte));
    if !well_formed || name.len() > MAX_NAME_BYTES {
        let shown: String = name.chars().take(80).collect();
        return illegal(format!(
            "Name: '{shown}'. Only lowercase characters (a-z), digits (0-9), and any of the characters _, $, (, ), \
             +, -, and / are allowed. Must begin with a letter."
        ));
    }
    if name.contains(SEPARATOR) {
        return illegal(format!(
            "Name: '{name}'. Two hyphens are kept for the partial and personal databases of apps, which come by \
             themselves."
        ));
    }
    Ok(())
}

/// `DELETE /db`.
///
/// # Errors
/// 401 for all but administrators; 404 when there is none.
pub async fn delete(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    let name = request.db_name().to_owned();
    if request.query.get("rev").is_some() {
        return Err(ApiError::bad_request(
            // The slip is CouchDB's.
            "You tried to DELETE a database with a ?=rev parameter. Did you mean to DELETE a document instead?",
        ));
    }
    if SYSTEM_DATABASES.contains(&name.as_str()) {
        return Err(ApiError::forbidden("The pod's own databases can't be deleted."));
    }
    if name.contains(SEPARATOR) {
        resolve(pod, who, &name)?;
        return Err(ApiError::forbidden("Partial and personal databases go with their app."));
    }
    if documents::remove(pod, &name).await? { Ok(ok(StatusCode::OK)) } else { Err(ApiError::no_database()) }
}

/// `GET /db`.
///
/// # Errors
/// 401, 403 and 404, as the target says.
pub async fn info(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = resolve(pod, who, request.db_name())?;
    target.require_read()?;
    Ok(json_line(StatusCode::OK, &describe(&target)))
}

/// What a reader may know of a database: counts of what they may read.
fn describe(target: &Target) -> Value {
    let info = target.db.scoped_info(&target.scope);
    json!({
        "db_name": target.name,
        "purge_seq": format!("{}-{}", info.purge_seq, target.db.instance()),
        "update_seq": target.db.seq_token(&target.scope, info.update_seq),
        "sizes": {
            "file": info.sizes.file,
            "external": info.sizes.external,
            "active": info.sizes.active,
        },
        "props": if target.db.is_partitioned() { json!({"partitioned": true}) } else { json!({}) },
        "doc_del_count": info.del_count,
        "doc_count": info.doc_count,
        "disk_format_version": DISK_FORMAT_VERSION,
        "compact_running": info.compact_running,
        "cluster": {"q": 1, "n": 1, "w": 1, "r": 1},
        "instance_start_time": INSTANCE_START_TIME,
    })
}

/// `GET /_all_dbs`, for administrators unless a setting opens it.
///
/// # Errors
/// 401 for others; 400 for malformed parameters.
pub async fn all_dbs(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    if pod.settings.get().admin_only_all_dbs {
        require_server_admin(who)?;
    }
    let names = listed(pod, &request)?;
    Ok(json_line(StatusCode::OK, &json!(names)))
}

fn listed(pod: &Pod, request: &Request) -> Result<Vec<String>, ApiError> {
    let query = &request.query;
    let key = |names: [&str; 2]| -> Result<Option<String>, ApiError> {
        match query.any(&names) {
            None => Ok(None),
            Some(text) => crate::query::parse_json(names[0], text).map(Some),
        }
    };
    let only = key(["key", "key"])?;
    let (mut low, mut high) = match &only {
        Some(name) => (Some(name.clone()), Some(name.clone())),
        None => (key(["startkey", "start_key"])?, key(["endkey", "end_key"])?),
    };
    let descending = query.flag("descending")?;
    let inclusive_end = only.is_some() || query.bool("inclusive_end")?.unwrap_or(true);
    let end = high.clone();
    if descending {
        std::mem::swap(&mut low, &mut high);
    }
    let bound = |value: Option<u64>, default| value.map_or(default, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let skip = bound(query.u64("skip")?, 0);
    let limit = bound(query.u64("limit")?, usize::MAX);
    let mut names: Vec<String> = pod
        .store
        .db_names()
        .into_iter()
        .filter(|name| low.as_ref().is_none_or(|low| name >= low))
        .filter(|name| high.as_ref().is_none_or(|high| name <= high))
        .filter(|name| inclusive_end || end.as_ref() != Some(name))
        .collect();
    if descending {
        names.reverse();
    }
    Ok(names.into_iter().skip(skip).take(limit).collect())
}

/// `GET` and `POST /_dbs_info`, for administrators.
///
/// # Errors
/// 401 for others; 400 for a malformed body.
pub async fn dbs_info(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    #[derive(Deserialize)]
    struct Asked {
        keys: Vec<String>,
    }
    require_server_admin(who)?;
    let names = if request.method == http::Method::POST {
        let text = body_in::read_json(pod, &request.headers, request.body).await?;
        let asked: Asked =
            serde_json::from_slice(&text).map_err(|_| ApiError::bad_request("`keys` member must exist."))?;
        if asked.keys.len() > pod.settings.get().max_dbs_info {
            return Err(ApiError::bad_request("too_many_keys"));
        }
        asked.keys
    } else {
        listed(pod, &request)?
    };
    let infos: Vec<Value> = names
        .into_iter()
        .map(|name| match resolve(pod, who, &name) {
            Ok(target) => json!({"key": name, "info": describe(&target)}),
            Err(_) => json!({"key": name, "error": "not_found"}),
        })
        .collect();
    Ok(json_line(StatusCode::OK, &json!(infos)))
}

/// `GET /db/_access`: which databases of an app the asker may read.
///
/// # Errors
/// 404 for what is no app.
pub async fn access(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = resolve(pod, who, request.db_name())?;
    if target.db.kind() != DbKind::App || target.name != target.db.name() {
        target.require_read()?;
        return Err(ApiError::missing());
    }
    let reader = target.db.reader(pod.accounts.who(who)?);
    let parts = if target.whole() { target.db.parts() } else { target.db.parts_of(&reader) };
    let partials: Vec<Value> = parts.into_iter().map(|part| describe_part(&target, &reader, part)).collect();
    let answer = json!({
        "personal": format!("{}{SEPARATOR}{PERSONAL}", target.name),
        "partials": partials,
    });
    Ok(json_line(StatusCode::OK, &answer))
}

fn describe_part(target: &Target, reader: &Arc<Reader>, part: PartInfo) -> Value {
    // The sequence as the feed of that partial database shows it to this reader.
    let update_seq = target.db.part(&part.signature).map(|number| {
        let reader = if target.whole() { stand_in(&part.readers) } else { Arc::clone(reader) };
        let scope = Scope::Part(reader, number);
        target.db.seq_token(&scope, part.update_seq)
    });
    json!({
        "db": format!("{}{SEPARATOR}{}", target.name, part.signature),
        "readers": part.readers,
        "doc_count": part.doc_count,
        "update_seq": update_seq,
    })
}

/// `{"ok":true}`.
pub fn ok(status: StatusCode) -> Response {
    render::json(status, &b"{\"ok\":true}\n"[..])
}

/// A JSON value and a newline.
pub fn json_line(status: StatusCode, value: &Value) -> Response {
    render::json(status, format!("{value}\n"))
}

/// Runs what blocks where that is allowed.
///
/// # Errors
/// 500 when it panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::internal("the request could not be handled").with_cause(error))
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn names_are_couchdbs_without_two_hyphens() {
        for good in ["a", "notes", "a_0$()+-/b", "_users", "a-b"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "a".repeat(239);
        for bad in [
            "",
            "Upper",
            "1digit",
            "sp ace",
            "dot.dot",
            "é",
            "a?b",
            "_under",
            "a--b",
            "notes--me",
            "_all_dbs",
            "-a",
            &long,
        ] {
            let error = check_name(bad).expect_err(bad);
            assert_eq!(error.error, "illegal_database_name", "{bad}");
        }
    }
}
