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
/// What a log-in lasts at first. What must come before its end has so long to come on a busy machine, and what waits for its
/// end waits no longer than [`soon`] does.
const LIFE: Duration = Duration::from_secs(4);
/// What it lasts after [`lengthen`]: beyond any test. At once more than half of its time is over then, so it can be prolonged
/// without a wait for the right moment; and once it has been, it can't be again.
const LONG: Duration = Duration::from_secs(3600);

async fn pod(life: Duration, max_age: Duration) -> Pod {
    let pod = Pod::start_with(|config| {
        config.session_lifetime = life;
        config.session_max_age = max_age;
    })
    .await;
    pod.rean.put_user(ANN.0, ANN.1, &[]);
    pod
}

/// Log-ins last longer from a moment later on, also those that were begun before.
fn lengthen(pod: &Pod) {
    let long = LONG.as_secs().to_string();
    let times = json!({"chttpd_auth": {"session_timeout": long, "timeout": long}});
    pod.rean.put("_ring", "node_config", json!({"sections": times}));
}

/// Whether there is so much left as only [`lengthen`] gives.
fn is_long(session: &Value) -> bool {
    session["left_ms"].as_u64().is_some_and(|left_ms| u128::from(left_ms) > LONG.as_millis() / 2)
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

/// Asks to stay until that is granted, and for long enough.
async fn prolonged(pod: &Pod, session: &(String, String, Value), enough: impl Fn(&Value) -> bool) -> Value {
    let granted = async {
        loop {
            let answer = stay(pod, session).await;
            assert_eq!(answer.status, StatusCode::OK);
            let now = answer.json()["session"].clone();
            if now["expires"] != session.2["expires"] && enough(&now) {
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
async fn who_asks_too_early_is_told_the_time_and_writes_nothing() {
    let pod = pod(LONG, 2 * LONG).await;
    let session = log_in(&pod).await;
    assert!(is_long(&session.2) && session.2["longest"].is_string());
    for _ in 0..3 {
        let answer = stay(&pod, &session).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.json()["userCtx"]["name"], "ann");
        assert_eq!(answer.json()["session"]["expires"], session.2["expires"]);
        assert_eq!(answer.json()["session"].get("password"), None);
    }
    assert_eq!(document(&pod).0, 1);
}

#[tokio::test]
async fn a_session_stays_when_it_asks_and_its_feeds_with_it() {
    let pod = pod(LIFE, 2 * LONG).await;
    let session = log_in(&pod).await;
    assert!(session.2["left_ms"].as_u64().is_some_and(|left_ms| u128::from(left_ms) <= LIFE.as_millis()));
    let mut of_session = feed_of(&pod, &session).await;
    let other = log_in(&pod).await;
    let of_other = feed_of(&pod, &other).await;
    lengthen(&pod);
    let now = prolonged(&pod, &session, is_long).await;
    assert_eq!(now["longest"], session.2["longest"]);
    let me = pod.get("/_session", Some((&session.0, &session.1))).await.json();
    assert_eq!((&me["session"]["expires"], &me["info"]["authenticated"]), (&now["expires"], &json!("default")));
    // The other was begun later, and does not ask: when its feed has ended, that of the first would have.
    ends(of_other).await;
    assert_eq!(pod.get("/x", Some((&other.0, &other.1))).await.status, StatusCode::UNAUTHORIZED);
    goes_on(&pod, &mut of_session).await;
    assert_eq!(stay(&pod, &session).await.json()["session"]["expires"], now["expires"]);
}

#[tokio::test]
async fn no_session_outlives_the_longest_life() {
    let longest = LIFE + LIFE / 2;
    let pod = pod(LIFE, longest).await;
    let session = log_in(&pod).await;
    let of_session = feed_of(&pod, &session).await;
    lengthen(&pod);
    let now = prolonged(&pod, &session, |now| now["expires"] == now["longest"]).await;
    assert_eq!(now["longest"], session.2["longest"]);
    let (generation, doc) = document(&pod);
    let lasts_ms = doc["expires_at_ms"].as_u64().zip(doc["created_at_ms"].as_u64()).map(|(end, start)| end - start);
    assert_eq!(lasts_ms.map(u128::from), Some(longest.as_millis()));
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
    assert_eq!(document(&pod).0, generation, "asking in vain writes nothing");
    ends(of_session).await;
}

#[tokio::test]
async fn what_another_pod_has_prolonged_or_ended_counts_here() {
    let pod = pod(LIFE, LONG).await;
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
    let life = LIFE.as_secs().to_string();
    let times = json!({"chttpd_auth": {"timeout": life, "session_timeout": life}});
    pod.rean.put("_ring", "node_config", json!({"sections": times}));
    let log_in = async |body: Value| {
        pod.ask(request("POST", "/_session", None).header("content-type", "application/json"), &body.to_string()).await
    };
    let short = async {
        loop {
            let answer = log_in(json!({"name": ANN.0, "password": ANN.1})).await;
            let set = answer.header("set-cookie").expect("a cookie");
            if set.contains(&format!("Max-Age={life};")) {
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
    lengthen(&pod);
    let renewed = async {
        loop {
            let answer = pod.ask(with_cookie("PUT", "/_session"), "").await;
            assert_eq!((answer.status, &answer.json()["info"]["authenticated"]), (StatusCode::OK, &json!("cookie")));
            if is_long(&answer.json()["session"]) {
                assert!(answer.header("set-cookie").is_some_and(|set| set.starts_with(&cookie)));
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the prolonging", renewed).await;
    ends(of_other).await;
    goes_on(&pod, &mut of_cookie).await;
    // It has far more than half of its time left.
    let answer = pod.ask(with_cookie("PUT", "/_session"), "").await;
    assert_eq!((answer.status, answer.header("set-cookie")), (StatusCode::OK, None));
    pod.ask(with_cookie("DELETE", "/_session"), "").await;
    ends(of_cookie).await;
    assert_eq!(pod.ask(with_cookie("PUT", "/_session"), "").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn who_has_no_session_has_nothing_to_prolong() {
    let pod = pod(LIFE, LONG).await;
    assert_eq!(pod.ask(request("PUT", "/_session", None), "").await.status, StatusCode::UNAUTHORIZED);
    for login in [ANN, ADMIN] {
        let answer = pod.ask(request("PUT", "/_session", Some(login)), "").await;
        assert_eq!((answer.status, answer.json().get("session")), (StatusCode::OK, None));
    }
    assert!(pod.rean.ids("_ring").is_empty());
}
