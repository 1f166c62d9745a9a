//! From a method and a path to the handler of a resource.
//!
//! Paths are CouchDB's: segments are percent-decoded one by one, `db%2Fsub` names one database, `_design/x` and
//! `_local/x` are two segments (or one, encoded), and an attachment's name is all that follows its document.

use std::sync::Arc;

use adea_ring::{Identity, PodId};
use axum::body::Body;
use http::{HeaderMap, HeaderName, Method, Uri};
use hyper::upgrade::OnUpgrade;
use percent_encoding::percent_decode_str;

use crate::error::ApiError;
use crate::files::{self, resumable};
use crate::pod::{Pod, SYSTEM_DATABASES};
pub use crate::query::Query;
use crate::ring::port::FromPeer;
use crate::ring::{command, feed, join, links, standing};
use crate::target::require_server_admin;
use crate::{
    all_docs, attachments, backup, bulk, bulk_get, changes, cluster, databases, db_updates, docs, feeds, form,
    functions, hosting, local_docs, node_config, partitions, replicate, views,
};

/// By this header the proxy names a request, in both logs and in the answer.
pub const REQUEST_ID_HEADER: &str = "x-couch-request-id";

/// What every handler answers with.
pub type Response = http::Response<Body>;

/// A request after its path and parameters have been read.
#[derive(Debug)]
pub struct Request {
    /// The method; HEAD arrives as GET with `head` set, and the server strips the body.
    pub method: Method,
    /// Whether the client sent HEAD: no body will be sent, so none need be made.
    pub head: bool,
    /// The path and the parameters as they came.
    pub uri: Uri,
    /// The pod that sent it over a link; none for what came from this pod's own programs.
    pub from_peer: Option<PodId>,
    /// The decoded segments of the path; the first is the database.
    pub segments: Vec<String>,
    /// The parameters.
    pub query: Query,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, not yet read.
    pub body: Body,
    /// The way to the connection itself, where the client asks for another protocol on it.
    pub upgrade: Option<OnUpgrade>,
    /// Whether it asks for one of many feeds of a connection.
    pub shared: bool,
}

impl Request {
    /// Reads method, path and parameters.
    ///
    /// # Errors
    /// 400 when the path holds bad escapes or no UTF-8.
    pub fn from_http(request: http::Request<Body>) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let head = parts.method == Method::HEAD;
        let mut segments = split_path(parts.uri.path())?;
        join_prefixed(&mut segments);
        Ok(Self {
            method: if head { Method::GET } else { parts.method },
            head,
            segments,
            from_peer: parts.extensions.remove().map(|FromPeer(pod)| pod),
            upgrade: parts.extensions.remove(),
            shared: false,
            query: Query::parse(parts.uri.query())?,
            uri: parts.uri,
            headers: parts.headers,
            body,
        })
    }

    /// The text of a header; a value that isn't visible ASCII counts as absent.
    pub fn header(&self, name: impl Into<HeaderName>) -> Option<&str> {
        self.headers.get(name.into()).and_then(|value| value.to_str().ok())
    }

    /// The database's name as it was asked for; empty for the server's own resources.
    pub fn db_name(&self) -> &str {
        self.segments.first().map_or("", String::as_str)
    }
}

/// The proxy's name for a request; empty for one that has none.
pub fn request_id(headers: &HeaderMap) -> &str {
    headers.get(REQUEST_ID_HEADER).and_then(|id| id.to_str().ok()).unwrap_or("")
}

/// Splits a raw path into decoded segments. Empty ones don't count (CouchDB: a trailing slash is nothing), and `+` is
/// a space, as CouchDB's `decode_plus_to_space` has it by default.
fn split_path(path: &str) -> Result<Vec<String>, ApiError> {
    path.split('/').filter(|segment| !segment.is_empty()).map(decode_segment).collect()
}

fn decode_segment(segment: &str) -> Result<String, ApiError> {
    let bytes = segment.as_bytes();
    if !bytes.contains(&b'%') && !bytes.contains(&b'+') {
        return Ok(segment.to_owned());
    }
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        let digits = rest.get(at + 1..at + 3).unwrap_or_default();
        if digits.len() != 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(ApiError::bad_request("Invalid percent-escape in the path"));
        }
        rest = &rest[at + 3..];
    }
    let spaced = segment.replace('+', " ");
    let decoded =
        percent_decode_str(&spaced).decode_utf8().map_err(|_| ApiError::bad_request("The path is not UTF-8"))?;
    Ok(decoded.into_owned())
}

/// Whether what is asked for lies below a database.
fn is_database(request: &Request) -> bool {
    !is_server_resource(request.db_name()) && !is_no_resource(request.db_name())
}

/// Refuses a method that a resource doesn't have.
///
/// # Errors
/// 405.
pub fn only(request: &Request, allowed: &'static str) -> Result<(), ApiError> {
    let method = request.method.as_str();
    if allowed.split(',').any(|name| name == method) { Ok(()) } else { Err(ApiError::method_not_allowed(allowed)) }
}

/// Finds the resource and lets it answer.
///
/// # Errors
/// Whatever the resource says; 404 and 405 when there is none.
pub async fn dispatch(pod: &Arc<Pod>, who: &Identity, mut request: Request) -> Result<Response, ApiError> {
    if request.segments.get(1).is_some_and(|name| name == partitions::RESOURCE) && is_database(&request) {
        request = match partitions::open(pod, who, request)? {
            partitions::Asked::Info(response) => return Ok(response),
            partitions::Asked::Database(request) => request,
        };
    }
    let segments: Vec<&str> = request.segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        [] => {
            only(&request, "GET,HEAD")?;
            databases::root(pod, who, request).await
        }
        [first, ..] if is_server_resource(first) => server_resource(pod, who, request).await,
        // `PUT /_zork` is answered as the making of a database: CouchDB says what is wrong with the name.
        [first, below @ ..] if is_no_resource(first) && (!below.is_empty() || request.method != Method::PUT) => {
            Err(no_resource(first))
        }
        [_] => database(pod, who, request).await,
        [_, second, ..] if is_database_resource(second) => database_resource(pod, who, request).await,
        [_, id, ..] if id.starts_with("_local/") => {
            if segments.len() > 2 {
                return Err(ApiError::bad_request("_local documents do not accept attachments."));
            }
            only(&request, "DELETE,GET,HEAD,PUT")?;
            local_docs::document(pod, who, request).await
        }
        [_, id, rest, ..] if id.starts_with("_design/") && rest.starts_with('_') => {
            design_resource(pod, who, request).await
        }
        [_, _] => document(pod, who, request).await,
        _ => {
            only(&request, "DELETE,GET,HEAD,PUT")?;
            attachments::attachment(pod, who, request).await
        }
    }
}

/// `_design/x` and `_local/x` are one name each, whether they came as one segment or as two. Below `_node`, `_local` is a
/// node.
pub fn join_prefixed(segments: &mut Vec<String>) {
    if segments.len() >= 3 && segments[0] != "_node" && matches!(segments[1].as_str(), "_design" | "_local") {
        let name = segments.remove(2);
        segments[1].push('/');
        segments[1].push_str(&name);
    }
}

/// The server's own resources; `_users` and its like are databases.
pub fn is_server_resource(name: &str) -> bool {
    matches!(
        name,
        "_all_dbs"
            | "_dbs_info"
            | "_uuids"
            | "_membership"
            | "_active_tasks"
            | "_backup"
            | "_session"
            | "_join"
            | "_up"
            | "_pod"
            | "_utils"
            | "_node"
            | "_replicate"
            | "_scheduler"
            | "_db_updates"
            | "_feeds"
            | "_cluster_setup"
            | "_reload_query_servers"
            | "_reshard"
    )
}

/// Whether a name begins as those of the server's resources do, and is none of them.
fn is_no_resource(name: &str) -> bool {
    name.starts_with('_') && !SYSTEM_DATABASES.contains(&name)
}

/// 404 for what the server doesn't have, whoever asks.
pub fn no_resource(name: &str) -> ApiError {
    /// More of a name that isn't there helps nobody.
    const SHOWN: usize = 80;
    let shown: String = name.chars().take(SHOWN).collect();
    ApiError::not_found(format!("There is no resource {shown} on this server."))
}

async fn server_resource(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let name = request.db_name().to_owned();
    match (name.as_str(), request.segments.len()) {
        ("_all_dbs", 1) => {
            only(&request, "GET,HEAD")?;
            databases::all_dbs(pod, who, request).await
        }
        ("_dbs_info", 1) => {
            only(&request, "GET,HEAD,POST")?;
            databases::dbs_info(pod, who, request).await
        }
        ("_uuids", 1) => {
            // As CouchDB says it; HEAD comes as GET.
            only(&request, "GET")?;
            databases::uuids(pod, who, request).await
        }
        ("_membership", 1) => {
            only(&request, "GET,HEAD")?;
            databases::membership(pod, who, request).await
        }
        ("_active_tasks", 1) => {
            only(&request, "GET,HEAD")?;
            databases::active_tasks(pod, who, request).await
        }
        ("_backup", 1) => {
            only(&request, "GET,HEAD")?;
            backup::backup(pod, who, request).await
        }
        ("_session", 1) => {
            only(&request, "GET,HEAD")?;
            databases::session(pod, who, request).await
        }
        ("_join", 1) => {
            only(&request, "POST")?;
            join::join(pod, request).await
        }
        ("_feeds", 1) => {
            only(&request, "GET,POST")?;
            match request.method {
                Method::POST => feeds::tell(pod, who, request).await,
                _ => feeds::connect(pod, who, request),
            }
        }
        ("_db_updates", 1) => {
            only(&request, "GET,HEAD")?;
            db_updates::db_updates(pod, who, request).await
        }
        ("_node", _) => node_config::http::node(pod, who, request).await,
        ("_reshard", _) => cluster::reshard(who, request).await,
        ("_cluster_setup", 1) => cluster::setup(pod, who, request).await,
        ("_reload_query_servers", 1) => {
            only(&request, "POST")?;
            databases::reload_query_servers(pod, who, request).await
        }
        ("_pod", 2) if request.segments[1] == "workers" => {
            only(&request, "GET,HEAD")?;
            databases::workers(pod, who, request).await
        }
        ("_pod", 2) if request.segments[1] == "store" => {
            only(&request, "GET,HEAD")?;
            databases::store(pod, who, request).await
        }
        ("_pod", 2) if request.segments[1] == "ring" => {
            only(&request, "POST")?;
            command::ring(pod, who, request).await
        }
        ("_pod", 2) if request.segments[1] == "feed" => {
            only(&request, "POST")?;
            feed::feed(pod, who, request).await
        }
        ("_pod", 2) if request.segments[1] == "standing" => {
            only(&request, "GET,HEAD")?;
            standing::standing(pod, who, request).await
        }
        ("_pod", 2) if request.segments[1] == "links" => {
            only(&request, "GET,HEAD")?;
            links::list(pod, who, request).await
        }
        ("_pod", 3) if request.segments[1] == "files" => files::peers::serve(pod, who, request).await,
        // CouchDB's pages for people.
        ("_utils", _) => Err(no_resource(&name)),
        ("_replicate", _) => replicate::api::replicate(pod, who, request).await,
        ("_scheduler", _) => replicate::api::scheduler(pod, who, request).await,
        _ => {
            require_server_admin(who)?;
            Err(no_resource(&name))
        }
    }
}

async fn database(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    only(&request, "DELETE,GET,HEAD,POST,PUT")?;
    match request.method {
        Method::GET => databases::info(pod, who, request).await,
        Method::PUT => databases::create(pod, who, request).await,
        Method::DELETE => databases::delete(pod, who, request).await,
        _ => docs::post(pod, who, request).await,
    }
}

/// What begins with `_` below a database and isn't a document.
fn is_database_resource(name: &str) -> bool {
    name.starts_with('_') && !name.starts_with("_design/") && !name.starts_with("_local/")
}

async fn database_resource(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let name = request.segments[1].clone();
    let below: Vec<&str> = request.segments[2..].iter().map(String::as_str).collect();
    match (name.as_str(), below.as_slice()) {
        ("_all_docs", []) | ("_design_docs", []) | ("_local_docs", []) => {
            only(&request, "GET,HEAD,POST")?;
            all_docs::all_docs(pod, who, request).await
        }
        ("_all_docs" | "_design_docs" | "_local_docs", ["queries"]) => {
            only(&request, "POST")?;
            all_docs::queries(pod, who, request).await
        }
        ("_bulk_docs", []) => {
            only(&request, "POST")?;
            bulk::bulk_docs(pod, who, request).await
        }
        ("_bulk_get", []) => {
            only(&request, "POST")?;
            bulk_get::bulk_get(pod, who, request).await
        }
        ("_revs_diff", []) => {
            only(&request, "POST")?;
            bulk::revs_diff(pod, who, request).await
        }
        ("_missing_revs", []) => {
            only(&request, "POST")?;
            bulk::missing_revs(pod, who, request).await
        }
        ("_changes", []) => {
            only(&request, "GET,HEAD,POST")?;
            changes::changes(pod, who, request).await
        }
        // Which methods it takes depends on what is below: it says so itself.
        ("_uploads", _) => resumable::uploads(pod, who, request).await,
        ("_app", _) => hosting::serve(pod, who, request).await,
        ("_access", []) => {
            only(&request, "GET,HEAD")?;
            databases::access(pod, who, request).await
        }
        _ => maintenance_resource(pod, who, request).await,
    }
}

async fn maintenance_resource(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let name = request.segments[1].clone();
    let depth = request.segments.len() - 2;
    match (name.as_str(), depth) {
        ("_security", 0) => {
            only(&request, "GET,HEAD,PUT")?;
            databases::security(pod, who, request).await
        }
        ("_revs_limit", 0) => {
            only(&request, "GET,HEAD,PUT")?;
            databases::revs_limit(pod, who, request).await
        }
        ("_compact", 0) => {
            only(&request, "POST")?;
            databases::compact(pod, who, request).await
        }
        ("_compact", 1) => {
            only(&request, "POST")?;
            views::http::compact(pod, who, request).await
        }
        ("_view_cleanup", 0) => {
            only(&request, "POST")?;
            views::http::cleanup(pod, who, request).await
        }
        ("_temp_view", 0) => views::http::temporary(pod, who, &request),
        ("_ensure_full_commit", 0) => {
            only(&request, "POST")?;
            databases::ensure_full_commit(pod, who, request).await
        }
        ("_purge", 0) => {
            only(&request, "POST")?;
            databases::purge(pod, who, request).await
        }
        ("_purged_infos_limit", 0) => {
            only(&request, "GET,HEAD,PUT")?;
            databases::purged_infos_limit(pod, who, request).await
        }
        ("_shards", 0 | 1) => {
            only(&request, "GET,HEAD")?;
            cluster::shards(pod, who, request).await
        }
        ("_sync_shards", 0) => {
            only(&request, "POST")?;
            cluster::sync_shards(pod, who, request).await
        }
        ("_local", 0) => Err(ApiError::bad_request("Invalid _local document id.")),
        ("_find" | "_explain", 0) => {
            only(&request, "POST")?;
            databases::find(pod, who, request).await
        }
        ("_index", 0) => {
            only(&request, "GET,HEAD,POST")?;
            databases::index(pod, who, request).await
        }
        // Which methods it takes depends on what is below: it says so itself.
        ("_index", _) => databases::index(pod, who, request).await,
        // `PUT /db/_zork`, `PUT /db/_zork/attachment`: a document can't have such a name.
        (_, 0 | 1) if request.method == Method::PUT => docs::refuse_reserved(pod, who, request).await,
        _ => docs::no_such_resource(pod, who, request).await,
    }
}

async fn design_resource(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    match request.segments[2].as_str() {
        "_view" => {
            only(&request, "GET,HEAD,POST")?;
            views::http::view(pod, who, request).await
        }
        "_info" => {
            only(&request, "GET,HEAD")?;
            views::info::info(pod, who, &request)
        }
        "_search" | "_search_info" | "_nouveau" | "_nouveau_info" | "_geo" | "_geo_info" => {
            views::http::no_search(pod, who, &request)
        }
        "_update" if request.segments.len() > 3 => {
            only(&request, "DELETE,POST,PUT")?;
            functions::update::update(pod, who, request).await
        }
        "_show" | "_list" | "_rewrite" => functions::given_up(pod, who, request).await,
        _ => docs::no_such_resource(pod, who, request).await,
    }
}

async fn document(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    match request.method.as_str() {
        "GET" => docs::get(pod, who, request).await,
        "PUT" => docs::put(pod, who, request).await,
        "POST" => form::post(pod, who, request).await,
        "DELETE" => docs::delete(pod, who, request).await,
        "COPY" => docs::copy(pod, who, request).await,
        _ => Err(ApiError::method_not_allowed("DELETE,GET,HEAD,POST,PUT,COPY")),
    }
}

#[cfg(test)]
mod tests {
    use super::{join_prefixed, split_path};

    fn segments(path: &str) -> Vec<String> {
        let mut segments = split_path(path).expect("a good path");
        join_prefixed(&mut segments);
        segments
    }

    #[test]
    fn segments_are_decoded_one_by_one() {
        assert_eq!(segments("/"), Vec::<String>::new());
        assert_eq!(segments("/db/"), ["db"]);
        assert_eq!(segments("/db%2Fsub/a%2Fb"), ["db/sub", "a/b"]);
        assert_eq!(segments("/db/a+b%2Bc"), ["db", "a b+c"]);
        assert_eq!(segments("/db/%2E%2E"), ["db", ".."]);
        assert_eq!(segments("/db/_design/x/_view/y"), ["db", "_design/x", "_view", "y"]);
        assert_eq!(segments("/db/_design%2Fx"), ["db", "_design/x"]);
        assert_eq!(segments("/db/_local/x"), ["db", "_local/x"]);
        assert_eq!(segments("/_node/_local/_config"), ["_node", "_local", "_config"]);
    }

    #[test]
    fn bad_escapes_and_bad_text_are_refused() {
        for path in ["/%zz", "/%", "/a%", "/a%2", "/%ff%fe", "/db/%C3"] {
            assert!(split_path(path).is_err(), "{path}");
        }
    }
}
