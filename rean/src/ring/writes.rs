//! Requests that write: which they are, where they are done, and on how many pods they must be before they count.
//!
//! A request passes here before it comes to the router. Where this pod is the write master it is done here, otherwise
//! on the master ([`forward`]). What runs inside the pod (links, workers) goes to the router directly.

use std::sync::Arc;

use adea_ring::Identity;
use adea_ring::config::MAX_W;
use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::error::ApiError;
use crate::pod::Pod;
use crate::ring::forward::{self, Parcel};
use crate::ring::gate::Pass;
use crate::route::{self, Request, Response};
use crate::target::SEPARATOR;

/// Tells the pod that forwarded a write how far the master's writes are with it: `ORIGIN SEQ`.
pub const APPLIED_HEADER: &str = "x-adea-applied";
/// Marks the answer of a pod that isn't the write master, to one that took it for that.
pub const NOT_MASTER_HEADER: &str = "x-adea-not-master";
/// Tells a client on how many pods its write was, of how many were wanted: `1/2`.
const W_HEADER: HeaderName = HeaderName::from_static("x-adea-w");

/// What may be posted to and only reads, or is each pod's own matter.
const LOCAL_RESOURCES: [&str; 14] = [
    "_all_docs",
    "_bulk_get",
    "_changes",
    "_compact",
    "_design_docs",
    "_ensure_full_commit",
    "_explain",
    "_find",
    "_local",
    "_local_docs",
    "_missing_revs",
    "_partition",
    "_revs_diff",
    "_view_cleanup",
];

/// Whether a request, as its path was read, may change what all pods share.
pub fn is_write(method: &Method, segments: &[String]) -> bool {
    // Uploads in several requests are where they were begun.
    if matches!(segments, [_, below, ..] if below == "_uploads") {
        return *method != Method::OPTIONS;
    }
    if !matches!(method.as_str(), "PUT" | "POST" | "DELETE" | "COPY") {
        return false;
    }
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        [] => false,
        ["_replicate", ..] => *method == Method::POST,
        // Its uses are counted in one place.
        ["_join"] => *method == Method::POST,
        // The settings are the same on all pods.
        ["_node", _, "_config", ..] => *method != Method::POST,
        [first, ..] if route::is_server_resource(first) => false,
        // Each pod's own, which no client writes; the router refuses it.
        ["_pods", ..] => false,
        [_, below, ..] if LOCAL_RESOURCES.contains(below) || below.starts_with("_local/") => false,
        [_, design, "_view", ..] => !design.starts_with("_design/"),
        _ => true,
    }
}

/// Answers a request: here, or through the write master if it writes.
///
/// # Errors
/// Whatever the resource says; 503 when there is no write master for as long as a write waits, or its answer is lost.
pub async fn take(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    if !is_write(&request.method, &request.segments) {
        return route::dispatch(pod, who, request).await;
    }
    let wanted = wanted_pods(pod, &request)?;
    if let Some(pass) = pod.ring.gate.enter() {
        return here(pod, who, request, wanted, pass).await;
    }
    if request.from_peer.is_some() {
        // It was sent to the master once: another such step could go round in circles.
        return Err(not_master());
    }
    let mut parcel = Parcel::new(pod, who, request).await?;
    let deadline = tokio::time::Instant::now() + forward::patience(pod);
    loop {
        // Before the look at who is master, so that no change is missed.
        let (mut roles, mut states) = (pod.ring.gate.roles(), pod.ring.states());
        if let Some(pass) = pod.ring.gate.enter() {
            return here(pod, who, parcel.into_request(), wanted, pass).await;
        }
        let why = match forward::attempt(pod, &mut parcel).await {
            Ok(answer) => return answer,
            Err(why) => why,
        };
        tokio::select! {
            _ = roles.changed() => {}
            _ = states.changed() => {}
            () = tokio::time::sleep_until(deadline) => return Err(no_master(why)),
        }
    }
}

/// Does a write on this pod, which is the master.
async fn here(
    pod: &Arc<Pod>,
    who: &Identity,
    request: Request,
    wanted: usize,
    mut pass: Pass<'_>,
) -> Result<Response, ApiError> {
    let (method, uri, headers) = (request.method.clone(), request.uri.clone(), request.headers.clone());
    let from_peer = request.from_peer.is_some();
    let done = tokio::select! {
        done = route::dispatch(pod, who, request) => done,
        () = pass.cut_off() => Err(unknown_outcome("Another pod became the write master")),
    };
    let seq = pod.store.seq();
    // Others may take over now: what is committed is passed on whoever is master.
    drop(pass);
    let mut response = match done {
        Err(error) if !from_peer => return Err(error),
        Err(error) => {
            error.log(route::request_id(&headers), &method, uri.path());
            error.into_response()
        }
        Ok(response) => response,
    };
    if wanted > 1 && response.status().is_success() {
        settle(pod, &mut response, seq, wanted, method == Method::DELETE).await;
    }
    if from_peer && let Ok(value) = HeaderValue::try_from(format!("{} {seq}", pod.ring.origin)) {
        response.headers_mut().insert(APPLIED_HEADER, value);
    }
    Ok(response)
}

/// Waits until a write is on as many pods as are wanted. If that doesn't come about, the answer is `202 Accepted`, as
/// CouchDB's is when a write's quorum fails (<https://docs.couchdb.org/en/stable/api/document/common.html>).
async fn settle(pod: &Pod, response: &mut Response, seq: u64, wanted: usize, is_delete: bool) {
    let ring = &pod.ring;
    let live = if ring.is_alone() { 1 } else { ring.state().map_or(1, |state| state.live_count()) };
    let reached = live >= wanted && ring.knowledge.wait_everywhere(seq, wanted, forward::patience(pod)).await;
    let others = ring.knowledge.who_has(&ring.origin);
    let have = others.values().filter(|has| **has >= seq).count() + 1;
    if let Ok(value) = HeaderValue::try_from(format!("{have}/{wanted}")) {
        response.headers_mut().insert(W_HEADER, value);
    }
    let counts = response.status() == StatusCode::CREATED || (is_delete && response.status() == StatusCode::OK);
    if !reached && counts {
        *response.status_mut() = StatusCode::ACCEPTED;
    }
}

/// On how many pods a write is to be: as the request says, else the app, else the ring.
fn wanted_pods(pod: &Pod, request: &Request) -> Result<usize, ApiError> {
    let Some(text) = request.query.get("w") else {
        let name = request.db_name();
        return Ok(pod.ring.default_w(name.rsplit_once(SEPARATOR).map_or(name, |(app, _)| app)));
    };
    let count = text.parse().ok().filter(|count| (1..=MAX_W).contains(count));
    count.ok_or_else(|| ApiError::query(format!("Invalid value for w: it must be from 1 to {MAX_W}")))
}

fn no_master(why: &'static str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "no_master", why).with_header(RETRY_AFTER, HeaderValue::from(1))
}

fn not_master() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_master", "This pod is not the write master")
        .with_header(HeaderName::from_static(NOT_MASTER_HEADER), HeaderValue::from(1))
}

/// 503 for a write of which nobody can say whether it was done. It is not tried again blindly.
pub fn unknown_outcome(why: &str) -> ApiError {
    let reason = format!("{why}; the write may or may not have been done");
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unknown_outcome", reason)
}

#[cfg(test)]
mod tests {
    use super::is_write;
    use axum::body::Body;
    use http::Method;

    fn asked(method: &str, path: &str) -> bool {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let request = http::Request::builder().method(method).uri(path).body(Body::empty()).expect("a request");
        let request = crate::route::Request::from_http(request).expect("a good path");
        is_write(&request.method, &request.segments)
    }

    #[test]
    fn what_changes_shared_things_is_a_write() {
        for (method, path) in [
            ("PUT", "/notes"),
            ("POST", "/_join"),
            ("DELETE", "/notes"),
            ("POST", "/notes"),
            ("PUT", "/notes/a"),
            ("PUT", "/notes--me/a"),
            ("DELETE", "/notes/a?rev=1-a"),
            ("COPY", "/notes/a"),
            ("PUT", "/notes/a/_all_docs"),
            ("PUT", "/notes/_local_x"),
            ("PUT", "/notes/_design/d"),
            ("PUT", "/notes/_design%2Fd/att"),
            ("POST", "/notes/_design/d/_update/u"),
            ("PUT", "/notes/a/_view/x"),
            ("POST", "/notes/_bulk_docs"),
            ("POST", "/notes/_purge"),
            ("POST", "/notes/_index"),
            ("DELETE", "/notes/_index/_design/d/json/i"),
            ("PUT", "/notes/_security"),
            ("PUT", "/notes/_revs_limit"),
            ("POST", "/_replicate"),
            ("PUT", "/_node/_local/_config/cors/origins"),
            ("DELETE", "/_node/x/_config/cors/origins"),
            ("PUT", "/_users/org.couchdb.user:ann"),
            ("PUT", "/_ring/session:1"),
            ("PUT", "/_replicator/a"),
        ] {
            assert!(asked(method, path), "{method} {path}");
        }
    }

    #[test]
    fn what_reads_or_is_a_pods_own_is_none() {
        for (method, path) in [
            ("GET", "/notes/a"),
            ("HEAD", "/notes/a"),
            ("OPTIONS", "/notes"),
            ("PATCH", "/notes/a"),
            ("POST", "/"),
            ("POST", "/notes/_all_docs"),
            ("POST", "/notes/_all_docs/queries"),
            ("POST", "/notes/_design_docs/queries"),
            ("POST", "/notes/_local_docs"),
            ("POST", "/notes/_bulk_get"),
            ("POST", "/notes/_revs_diff"),
            ("POST", "/notes/_missing_revs"),
            ("POST", "/notes/_changes"),
            ("POST", "/notes/_find"),
            ("POST", "/notes/_explain"),
            ("POST", "/notes/_partition/p/_find"),
            ("POST", "/notes/_partition/p/_design/d/_view/v"),
            ("POST", "/notes/_design/d/_view/v"),
            ("POST", "/notes/_design%2Fd/_view/v/queries"),
            ("POST", "/notes/_ensure_full_commit"),
            ("POST", "/notes/_compact"),
            ("POST", "/notes/_compact/d"),
            ("POST", "/notes/_view_cleanup"),
            ("PUT", "/notes/_local/x"),
            ("DELETE", "/notes/_local%2Fx"),
            ("POST", "/_session"),
            ("POST", "/_dbs_info"),
            ("POST", "/_node/_local/_config/_reload"),
            ("POST", "/_pod/ring"),
            ("POST", "/_pod/feed"),
            ("PUT", "/_pods/pod:a"),
            ("POST", "/_pods/_bulk_docs"),
            ("GET", "/_replicate"),
        ] {
            assert!(!asked(method, path), "{method} {path}");
        }
    }
}
