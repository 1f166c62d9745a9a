//! Log-ins that last as long as they are used, with the feeds that were opened with them, and no longer than they may.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{ADMIN, Answer, Pod, request, soon};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

const ANN: (&str, &str) = ("ann", "right");
const LIFE: Duration = Duration::from_secs(3);

async fn pod(max_age: Duration) -> Pod {
    let pod = Pod::start_with(|config| {
        config.session_lifetime = LIFE;
        config.session_max_age = max_age;
    })
    .await;
    pod.rean.put_user(ANN.0, ANN.1, &[]);
    pod
}

/// A temporary name and password, and what was said of their time.
async fn log_in(pod: &Pod) -> (String, String, Value) {
    let asked = request("POST", "/_session", None).header("content-type", "application/json");
    let answer = pod.ask(asked, &json!({"name": ANN.0, "password": ANN.1}).to_string()).await;
    let session = answer.json()["session"].clone();
    let text = |member: &str| session[member].as_str().expect("text").to_owned();
    (text("name"), text("password"), session)
}

async fn stay(pod: &Pod, session: &(String, String, Value)) -> Answer {
    pod.ask(request("PUT", "/_session", Some((&session.0, &session.1))), "").await
}

/// Asks to stay until it is granted, which is when half of the time is over.
async fn prolonged(pod: &Pod, session: &(String, String, Value)) -> Value {
    let granted = async {
        loop {
            let now = stay(pod, session).await.json()["session"].clone();
            if now["expires"] != session.2["expires"] {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the prolonging", granted).await
}

async fn feed(pod: &Pod, asked: http::request::Builder) -> Incoming {
    let (feed, _task) = pod.open(asked, Bytes::new()).await;
    assert_eq!(feed.status(), StatusCode::OK);
    feed.into_body()
}

async fn feed_of(pod: &Pod, session: &(String, String, Value)) -> Incoming {
    feed(pod, request("GET", "/a/_changes?feed=continuous&silent", Some((&session.0, &session.1)))).await
}

/// Puts a document, and waits until the feed tells of it.
async fn goes_on(pod: &Pod, feed: &mut Incoming) {
    pod.rean.put("a", "doc", json!({}));
    let told = async {
        loop {
            let frame = feed.frame().await.expect("open").expect("open");
            if frame.data_ref().is_some_and(|data| data.windows(5).any(|five| five == b"\"doc\"")) {
                return;
            }
        }
    };
    soon("the row", told).await;
}

async fn ends(feed: Incoming) {
    soon("the feed's end", feed.collect()).await.expect("a clean end");
}

/// The one session's document, and its generation.
fn document(pod: &Pod) -> (u64, Value) {
    let docs = pod.rean.docs.lock().expect("lock");
    let mut sessions = docs.iter().filter(|(id, _)| id.starts_with("_ring/session:"));
    sessions.next().expect("a session").1.clone()
}

#[tokio::test]
async fn a_session_stays_when_it_asks_and_its_feeds_with_it() {
    let pod = pod(Duration::from_secs(3600)).await;
    let session = log_in(&pod).await;
    assert!(session.2["left_ms"].as_u64().is_some_and(|left_ms| left_ms <= 3000) && session.2["longest"].is_string());
    // Too early: nothing is written, and the answer says how long it lasts.
    for _ in 0..3 {
        let answer = stay(&pod, &session).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.json()["userCtx"]["name"], "ann");
        assert_eq!(answer.json()["session"]["expires"], session.2["expires"]);
        assert_eq!(answer.json()["session"].get("password"), None);
    }
    assert_eq!(document(&pod).0, 1);
    let mut of_session = feed_of(&pod, &session).await;
    let other = log_in(&pod).await;
    let of_other = feed_of(&pod, &other).await;
    let now = prolonged(&pod, &session).await;
    assert_eq!(now["longest"], session.2["longest"]);
    let me = pod.get("/_session", Some((&session.0, &session.1))).await.json();
    assert_eq!((&me["session"]["expires"], &me["info"]["authenticated"]), (&now["expires"], &json!("default")));
    // The other was begun later: when its feed has ended, that of the first would have.
    let used = async {
        loop {
            assert_eq!(stay(&pod, &session).await.status, StatusCode::OK);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let goes_on = async {
        ends(of_other).await;
        assert_eq!(pod.get("/x", Some((&other.0, &other.1))).await.status, StatusCode::UNAUTHORIZED);
        goes_on(&pod, &mut of_session).await;
    };
    tokio::select! {
        () = used => {}
        () = goes_on => {}
    }
    // Nobody asks any more.
    ends(of_session).await;
    assert_eq!(stay(&pod, &session).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn no_session_outlives_the_longest_life() {
    let pod = pod(LIFE + LIFE / 4).await;
    let session = log_in(&pod).await;
    let of_session = feed_of(&pod, &session).await;
    let now = prolonged(&pod, &session).await;
    assert_eq!(now["expires"], now["longest"]);
    let (generation, doc) = document(&pod);
    let lasts_ms = doc["expires_at_ms"].as_u64().zip(doc["created_at_ms"].as_u64()).map(|(end, start)| end - start);
    assert_eq!((generation, lasts_ms), (2, Some(3750)));
    let over = async {
        loop {
            let answer = stay(&pod, &session).await;
            match answer.status {
                StatusCode::OK => assert_eq!(answer.json()["session"]["expires"], now["expires"]),
                StatusCode::UNAUTHORIZED => return,
                other => panic!("{other}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("its end", over).await;
    assert_eq!(document(&pod).0, 2, "asking in vain writes nothing");
    ends(of_session).await;
}

#[tokio::test]
async fn what_another_pod_has_prolonged_or_ended_counts_here() {
    let pod = pod(Duration::from_secs(3600)).await;
    let session = log_in(&pod).await;
    let mut of_session = feed_of(&pod, &session).await;
    let (_, mut doc) = document(&pod);
    let later_ms = doc["expires_at_ms"].as_u64().expect("a number") + 3_600_000;
    doc["expires_at_ms"] = later_ms.into();
    let id = pod.rean.ids("_ring").pop().expect("a session");
    pod.rean.put("_ring", &id, doc);
    let other = log_in(&pod).await;
    ends(feed_of(&pod, &other).await).await;
    goes_on(&pod, &mut of_session).await;
    // The log-out is another pod's as well.
    pod.rean.delete("_ring", &id);
    ends(of_session).await;
    let out = async { while stay(&pod, &session).await.status != StatusCode::UNAUTHORIZED {} };
    soon("the log-out", out).await;
}

#[tokio::test]
async fn a_cookie_in_use_keeps_the_feeds_that_came_with_it() {
    let pod = Pod::start_with(|config| config.cookie = true).await;
    pod.rean.put_user(ANN.0, ANN.1, &[]);
    pod.rean.put(
        "_ring",
        "node_config",
        json!({"sections": {"chttpd_auth": {"timeout": "3", "session_timeout": "3"}}}),
    );
    let log_in = async |body: Value| {
        pod.ask(request("POST", "/_session", None).header("content-type", "application/json"), &body.to_string()).await
    };
    let short = async {
        loop {
            let answer = log_in(json!({"name": ANN.0, "password": ANN.1})).await;
            let set = answer.header("set-cookie").expect("a cookie");
            if set.contains("Max-Age=3;") {
                return set.split(';').next().expect("a pair").to_owned();
            }
        }
    };
    let cookie = soon("the shorter time", short).await;
    let with_cookie = |method: &str, path: &str| request(method, path, None).header("cookie", &cookie);
    let mut of_cookie = feed(&pod, with_cookie("GET", "/a/_changes?feed=continuous&silent")).await;
    // One that is not prolonged, begun later, shows when the first time of the cookie is over.
    let answer = log_in(json!({"name": ANN.0, "password": ANN.1, "session": true})).await.json();
    let text = |member: &str| answer["session"][member].as_str().expect("text").to_owned();
    let other = (text("name"), text("password"), answer["session"].clone());
    let of_other = feed_of(&pod, &other).await;
    let mut renewals = 0;
    let used = async {
        loop {
            let answer = pod.ask(with_cookie("PUT", "/_session"), "").await;
            assert_eq!((answer.status, &answer.json()["info"]["authenticated"]), (StatusCode::OK, &json!("cookie")));
            if answer.header("set-cookie").is_some() {
                assert!(answer.json()["session"]["left_ms"].as_u64().is_some_and(|left_ms| left_ms >= 2000));
                renewals += 1;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let goes_on = async {
        ends(of_other).await;
        goes_on(&pod, &mut of_cookie).await;
    };
    tokio::select! {
        () = used => {}
        () = goes_on => {}
    }
    assert!((1..=3).contains(&renewals), "{renewals}");
    ends(of_cookie).await;
    assert_eq!(pod.ask(with_cookie("PUT", "/_session"), "").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn who_has_no_session_has_nothing_to_prolong() {
    let pod = pod(Duration::from_secs(3600)).await;
    assert_eq!(pod.ask(request("PUT", "/_session", None), "").await.status, StatusCode::UNAUTHORIZED);
    for login in [ANN, ADMIN] {
        let answer = pod.ask(request("PUT", "/_session", Some(login)), "").await;
        assert_eq!((answer.status, answer.json().get("session")), (StatusCode::OK, None));
    }
    assert!(pod.rean.ids("_ring").is_empty());
}
