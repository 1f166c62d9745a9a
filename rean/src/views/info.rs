//! `GET /db/_design/x/_info`: what is known of a design document's index
//! (<https://docs.couchdb.org/en/stable/api/ddoc/common.html#db-design-design-doc-info>).

use std::sync::Arc;

use ::http::StatusCode;
use adea_ring::Identity;
use serde_json::json;

use crate::databases::json_line;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::route::{Request, Response};
use crate::target;
use crate::views::http::design;
use crate::views::index_error;

/// What sorts keys; CouchDB names the version of its ICU library here.
const COLLATOR: &str = "icu4x";

/// Answers. Of an app only administrators are told: counts of the whole tell of what others have.
///
/// # Errors
/// 404 when there is no such design document, 401 or 403 without the right.
pub fn info(pod: &Arc<Pod>, who: &Identity, request: &Request) -> Result<Response, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_read()?;
    if !target.whole() {
        target.require_server_admin()?;
    }
    let design = design(pod, &target, request)?;
    let db = &target.db;
    let language = design.language();
    let (mut view_index, purge_seq) = match pod.views.group_spec(db, &design, &pod.scripts) {
        Some(spec) => {
            let group = pod.indexes.group(db, spec).map_err(|error| index_error(error, db))?;
            let info = group.info().map_err(|error| index_error(error, db))?;
            let (running, waiting) = pod.views.state(&group);
            let index = json!({
                "signature": info.signature,
                "updater_running": running || info.updating,
                "waiting_clients": waiting as u64 + info.waiting,
                "update_seq": info.seq,
                "sizes": {"active": info.row_bytes, "external": info.row_bytes, "file": info.disk_bytes},
            });
            (index, info.purge_seq)
        }
        // Without views there is no index; CouchDB tells of an empty one.
        None => {
            let index = json!({
                "signature": null,
                "updater_running": false,
                "waiting_clients": 0,
                "update_seq": 0,
                "sizes": {"active": 0, "external": 0, "file": 0},
            });
            (index, 0)
        }
    };
    let info = db.info();
    // Sequences are the whole store's: a database has fewer changes than they say.
    let behind = info.update_seq.saturating_sub(view_index["update_seq"].as_u64().unwrap_or(0));
    let pending = behind.min(info.doc_count.saturating_add(info.del_count));
    view_index["updates_pending"] = json!({"minimum": pending, "preferred": pending, "total": pending});
    view_index["language"] = json!(language);
    view_index["purge_seq"] = json!(purge_seq);
    view_index["compact_running"] = json!(pod.views.is_compacting());
    view_index["waiting_commit"] = json!(false);
    view_index["collator_versions"] = json!([COLLATOR]);
    let answer = json!({"name": design.name(), "view_index": view_index});
    Ok(json_line(StatusCode::OK, &answer))
}
