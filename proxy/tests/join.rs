//! The door for new pods, and the pass of an operator on the pod's machine.

mod common;

use std::time::{SystemTime, UNIX_EPOCH};

use adea_ring::operator::{MAX_LIFE_MS, OperatorKey};
use adea_ring::{PodId, RingSecret};
use common::{ADMIN, Pod, request, soon};
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::json;

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis()).expect("not so late")
}

fn pod_id(id: &str) -> PodId {
    id.parse().expect("a pod's id")
}

#[tokio::test]
async fn whoever_knocks_is_nobody_and_need_not_be_anybody() {
    let pod = Pod::start().await;
    for login in [None, Some(ADMIN), Some(("admin", "wrong"))] {
        let request = request("POST", "/_join", login).header("content-encoding", "gzip").header("cookie", "a=b");
        let answer = pod.ask(request, "good").await;
        assert_eq!(answer.status, StatusCode::OK);
        let seen = answer.json();
        assert_eq!((&seen["name"], &seen["roles"]), (&json!(null), &json!([])));
        assert_eq!(seen["headers"]["content-type"], "application/json");
        assert_eq!(seen["headers"]["content-length"], "4");
        assert!(seen["headers"]["content-encoding"].is_null() && seen["headers"]["authorization"].is_null());
    }
}

#[tokio::test]
async fn the_door_takes_only_what_is_small() {
    let pod = Pod::start().await;
    assert_eq!(pod.get("/_join", None).await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(pod.ask(request("POST", "/_join", None), "").await.status, StatusCode::BAD_REQUEST);
    let large = "x".repeat(5_000);
    assert_eq!(pod.ask(request("POST", "/_join", None), &large).await.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn who_knocks_too_often_has_to_wait_however_the_path_is_spelled() {
    let pod = Pod::start().await;
    for _ in 0..30 {
        assert_eq!(pod.ask(request("POST", "/_join", None), "good").await.status, StatusCode::OK, "these don't count");
    }
    let paths = ["/_join", "//_join", "/%5Fjoin"];
    let mut refused = 0;
    let answer = loop {
        let answer = pod.ask(request("POST", paths[refused % paths.len()], None), "bad").await;
        if answer.status != StatusCode::FORBIDDEN {
            break answer;
        }
        refused += 1;
        assert!(refused <= 25, "no end of it");
    };
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(answer.header("retry-after").is_some_and(|wait| wait.parse::<u64>().is_ok_and(|wait| wait <= 5)));
    assert_eq!(answer.json()["reason"], "Too many requests to join. Try again later.");
    // All else goes on.
    assert_eq!(pod.get("/x", Some(ADMIN)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_operators_pass_makes_an_administrator_of_one_pod_for_a_while() {
    let pod = Pod::start_with(|config| config.pod_id = Some(pod_id("pod-1"))).await;
    let key = OperatorKey::new(&pod.rean.secret);
    let status = async |key: &OperatorKey, id: &str, expires_at_ms: u64| {
        let (name, password) = key.pass(&pod_id(id), expires_at_ms);
        pod.get("/x", Some((&name, &password))).await.status
    };
    let (name, password) = key.pass(&pod_id("pod-1"), now_ms() + 60_000);
    let seen = pod.get("/x", Some((&name, &password))).await.json();
    assert_eq!((&seen["name"], &seen["roles"]), (&json!("admin"), &json!(["_admin"])));
    for (key, id, expires_at_ms) in [
        (&key, "pod-2", now_ms() + 60_000),
        (&key, "pod-1", now_ms() - 1),
        (&key, "pod-1", now_ms() + MAX_LIFE_MS + 60_000),
        (&OperatorKey::new(&RingSecret::random()), "pod-1", now_ms() + 60_000),
    ] {
        assert_eq!(status(key, id, expires_at_ms).await, StatusCode::UNAUTHORIZED);
    }
    // It can't be made into a session, which would last longer.
    let body = json!({"name": name, "password": password}).to_string();
    let request = request("POST", "/_session", None).header("content-type", "application/json");
    assert_eq!(pod.ask(request, &body).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn feeds_of_a_pass_end_with_it() {
    let pod = Pod::start_with(|config| config.pod_id = Some(pod_id("pod-1"))).await;
    let key = OperatorKey::new(&pod.rean.secret);
    let (name, password) = key.pass(&pod_id("pod-1"), now_ms() + 2_000);
    let feed = request("GET", "/a/_changes?feed=continuous", Some((&name, &password)));
    let (feed, _task) = pod.open(feed, bytes::Bytes::new()).await;
    assert_eq!(feed.status(), StatusCode::OK);
    soon("the feed's end", feed.into_body().collect()).await.expect("a clean end");
    assert_eq!(pod.get("/x", Some((&name, &password))).await.status, StatusCode::UNAUTHORIZED, "and not before");
}

#[tokio::test]
async fn a_proxy_that_does_not_know_its_pod_takes_no_pass() {
    let pod = Pod::start().await;
    let (name, password) = OperatorKey::new(&pod.rean.secret).pass(&pod_id("pod-1"), now_ms() + 60_000);
    assert_eq!(pod.get("/x", Some((&name, &password))).await.status, StatusCode::UNAUTHORIZED);
}
