//! `/db/_partition/P`: one partition of a partitioned database
//! (<https://docs.couchdb.org/en/stable/api/partitioned-dbs.html>).
//!
//! What is asked of a partition is asked of the database with the parameter `partition`, which a client may set itself:
//! the path is only another way to say it. So there is one place for each question, and this is none of them.

use adea_ring::Identity;
use http::StatusCode;
use rean_store::validate_partition;
use serde_json::json;

use crate::databases::json_line;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::query::Query;
use crate::route::{Request, Response, join_prefixed, only};
use crate::target;

/// The parameter that names a partition.
pub const PARAMETER: &str = "partition";
/// What stands before a partition's name in a path.
pub const RESOURCE: &str = "_partition";

/// What a request under `/db/_partition` comes to.
pub enum Asked {
    /// It is answered.
    Info(Response),
    /// It is a request for the database.
    Database(Request),
}

/// Answers, or makes a request for the database of it.
///
/// # Errors
/// 400 without partitions, for a name that no partition can have, and for another one in the parameters; 404 for what
/// partitions don't have; or what the database's rights say.
pub fn open(pod: &Pod, who: &Identity, mut request: Request) -> Result<Asked, ApiError> {
    let target = target::resolve(pod, who, request.db_name())?;
    target.require_read()?;
    // CouchDB's word for it.
    let name = request.segments.get(2).ok_or_else(|| ApiError::bad_request("invalid_partition_req"))?.clone();
    validate_partition(&name)?;
    if request.segments.len() == 3 {
        only(&request, "GET,HEAD")?;
    }
    if !target.db.is_partitioned() {
        return Err(ApiError::bad_request("database is not partitioned"));
    }
    if request.segments.len() == 3 {
        let info = target.db.partition_info(&name)?;
        let answer = json!({
            "db_name": target.name,
            "sizes": {"active": info.bytes, "external": info.size()},
            "partition": name,
            "doc_count": info.docs,
            "doc_del_count": info.deleted,
        });
        return Ok(Asked::Info(json_line(StatusCode::OK, &answer)));
    }
    request.segments.drain(1..3);
    join_prefixed(&mut request.segments);
    let below: Vec<&str> = request.segments[1..].iter().map(String::as_str).collect();
    let is_there = match below.as_slice() {
        ["_all_docs"] | ["_all_docs", "queries"] | ["_find" | "_explain"] => true,
        [design, "_view", ..] => design.starts_with("_design/"),
        _ => false,
    };
    if !is_there {
        return Err(ApiError::missing());
    }
    if request.query.get(PARAMETER).is_some_and(|other| other != name) {
        return Err(ApiError::bad_request("Conflicting value for `partition` in query string"));
    }
    let mut pairs = request.query.pairs().to_vec();
    pairs.push((PARAMETER.to_owned(), name));
    request.query = Query::from_pairs(pairs);
    Ok(Asked::Database(request))
}

/// What is said of the parameter where there are no partitions.
pub fn unsupported() -> ApiError {
    ApiError::query("`partition` parameter is not supported on this db")
}
