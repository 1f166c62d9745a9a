//! `GET`, `POST` and `DELETE` of `/db/_index`: indexes as design documents.

use std::collections::HashMap;
use std::sync::Arc;

use adea_ring::Identity;
use http::{Method, StatusCode};
use rean_index::mango::{IndexDef, MangoError, NewIndex, definition, new_index, shown};
use rean_store::Mode;
use rean_store::document::parse_document;
use serde_json::{Map, Value, json};

use super::planning::indexes_of;
use crate::body_in::read_json;
use crate::databases::json_line;
use crate::designs::DesignDoc;
use crate::edit_in::{self, Incoming};
use crate::error::ApiError;
use crate::pod::Pod;
use crate::query::Query;
use crate::route::{Request, Response};
use crate::target::{self, Target};

/// How often a change of a design document is tried, where others change it at the same time.
const ATTEMPTS: usize = 5;
/// The only kind that can be deleted.
const KIND: &str = "json";
/// Most indexes of one bulk deletion: each is a write.
const MAX_DELETIONS: usize = 1_000;

/// All that lies at `/db/_index`.
///
/// # Errors
/// 404 for what isn't there, 401 or 403 for changes by those who are no administrators, 400 for what is no index.
pub async fn index(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_read()?;
    let segments = request.segments.clone();
    let below: Vec<&str> = segments[2..].iter().map(String::as_str).collect();
    match (request.method.clone(), below.as_slice()) {
        (Method::GET, []) => list(pod, &target, &request.query),
        (Method::POST, []) => create(pod, &target, request).await,
        (Method::POST, ["_bulk_delete"]) => bulk_delete(pod, &target, request).await,
        (Method::DELETE, ["_design", name, kind, index] | [name, kind, index]) => {
            let id = definition::design_id(name);
            target.require_write_doc(&id)?;
            if *kind != KIND || !delete(pod, &target, &id, Some(index)).await? {
                return Err(ApiError::missing());
            }
            Ok(json_line(StatusCode::OK, &json!({"ok": true})))
        }
        (_, ["_bulk_delete"]) => Err(ApiError::method_not_allowed("POST")),
        (_, ["_design", _, _, _] | [_, _, _]) => Err(ApiError::method_not_allowed("DELETE")),
        _ => Err(ApiError::missing()),
    }
}

fn list(pod: &Pod, target: &Target, query: &Query) -> Result<Response, ApiError> {
    let mut indexes = vec![definition::all_docs_json()];
    indexes.extend(sorted(indexes_of(pod, target)?).iter().map(IndexDef::to_json));
    let number = |name: &str| -> Result<Option<usize>, ApiError> {
        let Some(text) = query.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| MangoError::ListRange.into())
    };
    let (total, limit, skip) = (indexes.len(), number("limit")?, number("skip")?.unwrap_or(0));
    if limit == Some(0) {
        return Err(MangoError::ListRange.into());
    }
    let shown: Vec<Value> = indexes.into_iter().skip(skip).take(limit.unwrap_or(total)).collect();
    Ok(json_line(StatusCode::OK, &json!({"total_rows": total, "indexes": shown})))
}

/// In CouchDB's order: by design document and name.
fn sorted(mut indexes: Vec<IndexDef>) -> Vec<IndexDef> {
    indexes.sort_by(|a, b| (&a.ddoc, &a.name).cmp(&(&b.ddoc, &b.name)));
    indexes
}

async fn read_value(pod: &Pod, request: Request) -> Result<Value, ApiError> {
    let text = read_json(pod, &request.headers, request.body).await?;
    if text.len() > super::MAX_QUERY_BYTES {
        return Err(ApiError::body_too_large());
    }
    let value: Value = serde_json::from_slice(&text).map_err(|_| ApiError::invalid_json())?;
    if value.is_object() { Ok(value) } else { Err(ApiError::bad_request("Request body must be a JSON object")) }
}

async fn create(pod: &Arc<Pod>, target: &Target, request: Request) -> Result<Response, ApiError> {
    let wanted = NewIndex::parse(&read_value(pod, request).await?)?;
    if wanted.partitioned == Some(true) && !target.db.is_partitioned() {
        return Err(MangoError::Partitioned.into());
    }
    let told =
        |result: &str| json_line(StatusCode::OK, &json!({"result": result, "id": wanted.ddoc, "name": wanted.name}));
    for attempt in 1.. {
        let old = pod.designs.of(&target.db)?.get(&wanted.ddoc);
        let changed = wanted.put_into(old.as_deref().map(members).as_ref());
        if let Ok(None) = changed {
            // Clients ask for their indexes whenever they start. That it is there, `GET _index` says to everyone too.
            return Ok(told("exists"));
        }
        // Before it is said what else there is under this name.
        target.require_write_doc(&wanted.ddoc)?;
        let Some(design) = changed? else { break };
        match save(pod, target, &wanted.ddoc, old.as_deref(), Some(design)).await {
            Ok(()) => return Ok(told("created")),
            Err(error) if error.status == StatusCode::CONFLICT && attempt < ATTEMPTS => {}
            Err(error) => return Err(error),
        }
    }
    Err(ApiError::conflict())
}

/// Takes an index, or with no name the only one, from its design document. `false`: there is none.
async fn delete(pod: &Arc<Pod>, target: &Target, id: &str, name: Option<&str>) -> Result<bool, ApiError> {
    for attempt in 1.. {
        let Some(old) = pod.designs.of(&target.db)?.get(id).filter(|old| old.id == id) else { return Ok(false) };
        let there = IndexDef::of_design(&old.id, &old.value, target.db.is_partitioned());
        let named: Vec<&IndexDef> = there.iter().filter(|index| name.is_none_or(|name| name == index.name)).collect();
        // As in CouchDB, a design document is not deleted as a whole while it has several.
        let [index] = named.as_slice() else { return Ok(false) };
        let design = new_index::without(&members(&old), &index.name);
        match save(pod, target, id, Some(&old), design).await {
            Ok(()) => return Ok(true),
            Err(error) if error.status == StatusCode::CONFLICT && attempt < ATTEMPTS => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

async fn bulk_delete(pod: &Arc<Pod>, target: &Target, request: Request) -> Result<Response, ApiError> {
    let body = read_value(pod, request).await?;
    let docids = body.get("docids").ok_or(MangoError::MissingKey("docids"))?;
    let ids: Option<Vec<&str>> = docids.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
    let ids = ids.filter(|ids| ids.len() <= MAX_DELETIONS).ok_or_else(|| MangoError::BulkDocs(shown(docids)))?;
    for id in &ids {
        target.require_write_doc(&definition::design_id(id))?;
    }
    if ids.is_empty() {
        target.require_write_doc(&definition::design_id(""))?;
    }
    let (mut success, mut fail) = (Vec::new(), Vec::new());
    for id in ids {
        let id = definition::design_id(id);
        match delete(pod, target, &id, None).await {
            Ok(true) => success.push(json!({"id": id, "ok": true})),
            Ok(false) => fail.push(json!({"id": id, "error": "not_found"})),
            Err(error) => fail.push(json!({"id": id, "error": error.error})),
        }
    }
    Ok(json_line(StatusCode::OK, &json!({"success": success, "fail": fail})))
}

/// What a design document has besides its id and revision.
fn members(design: &DesignDoc) -> Map<String, Value> {
    let mut members = design.value.as_object().cloned().unwrap_or_default();
    members.shift_remove("_id");
    members.shift_remove("_rev");
    members
}

/// Writes a design document anew, as its author would; with nothing in it, it is deleted.
async fn save(
    pod: &Arc<Pod>,
    target: &Target,
    id: &str,
    old: Option<&DesignDoc>,
    design: Option<Map<String, Value>>,
) -> Result<(), ApiError> {
    let mut document = design.unwrap_or_else(|| Map::from_iter([("_deleted".to_owned(), Value::Bool(true))]));
    if let Some(old) = old {
        document.insert("_rev".to_owned(), old.rev.to_string().into());
    }
    rean_store::document::validate_id(id)?;
    let doc = parse_document(Value::Object(document).to_string().as_bytes())?;
    let edit = edit_in::edit(target, id.to_owned(), Incoming { doc, follows: HashMap::new() }, Mode::Interactive)?;
    edit_in::write_one(pod, target, edit, Mode::Interactive).await.map(|_| ())
}
