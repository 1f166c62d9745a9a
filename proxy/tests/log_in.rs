//! Log-ins, their cache, throttling, sessions, and the feeds that end with them.

mod common;

use std::sync::atomic::Ordering;

use bytes::Bytes;
use common::{ADMIN, Pod, hash, request, soon, until};
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ANN: (&str, &str) = ("ann", "right");

fn unauthorized() -> Value {
    json!({"error": "unauthorized", "reason": "Name or password is incorrect."})
}

#[tokio::test]
async fn right_wrong_and_unknown() {
    let pod = Pod::start().await;
    pod.rean.put_user("ann", "right", &["staff", "_admin"]);
    let seen = pod.get("/x", Some(ANN)).await.json();
    // Only the configuration makes administrators.
    assert_eq!((&seen["name"], &seen["roles"]), (&json!("ann"), &json!(["staff"])));
    for login in [("ann", "wrong"), ("nobody", "right"), ("admin", "wrong"), ("session-x", "y")] {
        let answer = pod.get("/x", Some(login)).await;
        assert_eq!((answer.status, answer.json()), (StatusCode::UNAUTHORIZED, unauthorized()));
        assert_eq!(answer.header("www-authenticate"), None);
    }
}

#[tokio::test]
async fn couchdbs_own_hashes_work() {
    let pod = Pod::start().await;
    // RFC 7914, 11.
    let doc = json!({"name": "old", "roles": [], "password_scheme": "pbkdf2", "pbkdf2_prf": "sha256",
        "salt": "salt", "iterations": 1,
        "derived_key": "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"});
    pod.rean.put("_users", "org.couchdb.user:old", doc);
    assert_eq!(pod.get("/x", Some(("old", "passwd"))).await.status, StatusCode::OK);
    assert_eq!(pod.get("/x", Some(("old", "passwe"))).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn malformed_authorization_is_no_500() {
    let pod = Pod::start().await;
    for (value, status) in [
        ("Basic", 200),
        ("Basic bm9jb2xvbg==", 200),
        ("Bearer x.y.z", 200),
        ("Zork", 200),
        ("Basic !!!", 400),
        ("Basic /w==", 401),
    ] {
        let answer = pod.ask(request("GET", "/_session", None).header("authorization", value), "").await;
        assert_eq!(answer.status, status, "{value}");
        if status == 200 {
            assert_eq!(answer.json()["userCtx"], json!({"name": null, "roles": []}));
        }
    }
}

#[tokio::test]
async fn a_challenge_is_sent_when_asked_for() {
    let pod = Pod::start_with(|config| config.www_authenticate = true).await;
    let answer = pod.get("/x", Some(("nobody", "x"))).await;
    assert!(answer.header("www-authenticate").is_some_and(|text| text.starts_with("Basic ")));
    assert_eq!(pod.get("/x", None).await.header("www-authenticate"), None);
}

#[tokio::test]
async fn the_cache_asks_once_and_hears_of_changes() {
    let pod = Pod::start().await;
    pod.rean.put_user("ann", "right", &[]);
    for _ in 0..5 {
        assert_eq!(pod.get("/x", Some(ANN)).await.status, StatusCode::OK);
    }
    assert_eq!(pod.rean.user_reads.load(Ordering::SeqCst), 1);
    // Roles count once the feed has told of them.
    pod.rean.put_user("ann", "right", &["late"]);
    soon("the new role", async { while pod.get("/x", Some(ANN)).await.json()["roles"] != json!(["late"]) {} }).await;
    pod.rean.delete("_users", "org.couchdb.user:ann");
    soon("the end of ann", async { while pod.get("/x", Some(ANN)).await.status != StatusCode::UNAUTHORIZED {} }).await;
}

#[tokio::test]
async fn a_change_through_the_proxy_counts_at_the_next_request() {
    let pod = Pod::start().await;
    pod.rean.put_user("ann", "right", &[]);
    for n in 0..20 {
        let password = n.to_string();
        let doc =
            json!({"name": "ann", "roles": [password], "password_scheme": "argon2id", "derived_key": hash("right")});
        let put = request("PUT", "/_users/org.couchdb.user%3aann", Some(ADMIN));
        let put = put.header("content-type", "application/json");
        assert_eq!(pod.ask(put, &doc.to_string()).await.status, StatusCode::CREATED);
        assert_eq!(pod.get("/x", Some(ANN)).await.json()["roles"], json!([password]));
    }
}

#[tokio::test]
async fn many_requests_with_new_credentials_are_one_check() {
    let pod = Pod::start().await;
    pod.rean.put_user("ann", "right", &[]);
    let asking = (0..20).map(|_| pod.get("/x", Some(ANN)));
    for answer in futures_util::future::join_all(asking).await {
        assert_eq!(answer.status, StatusCode::OK);
    }
    assert_eq!(pod.rean.user_reads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn guessing_is_slowed_down_and_the_owner_is_not_locked_out() {
    let pod = Pod::start().await;
    pod.rean.put_user("ann", "right", &[]);
    assert_eq!(pod.get("/x", Some(ANN)).await.status, StatusCode::OK);
    let mut throttled = None;
    for n in 0..8 {
        let answer = pod.get("/x", Some(("ann", &format!("guess {n}")))).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            throttled = Some(answer);
            break;
        }
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    let throttled = throttled.expect("a guess that is refused");
    assert_eq!(throttled.json()["error"], "too_many_requests");
    assert!(throttled.header("retry-after").is_some());
    let answer = pod.ask(login_request(), &json!({"name": "ann", "password": "guess"}).to_string()).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    // From the cache, and when the cache has forgotten.
    assert_eq!(pod.get("/x", Some(ANN)).await.status, StatusCode::OK);
    pod.rean.put_user("ann", "right", &["new"]);
    soon("the new role", async { while pod.get("/x", Some(ANN)).await.json()["roles"] != json!(["new"]) {} }).await;
}

fn login_request() -> http::request::Builder {
    request("POST", "/_session", None).header("content-type", "application/json")
}

async fn log_in(pod: &Pod, login: (&str, &str)) -> (String, String) {
    let body = json!({"name": login.0, "password": login.1}).to_string();
    let answer = pod.ask(login_request(), &body).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("set-cookie"), None);
    let answer = answer.json();
    assert_eq!((&answer["ok"], &answer["name"]), (&json!(true), &json!(login.0)));
    let text = |name: &str| answer["session"][name].as_str().expect("text").to_owned();
    assert!(text("expires").ends_with('Z'));
    assert_eq!(text("password").len(), 43);
    (text("name"), text("password"))
}

#[tokio::test]
async fn a_session_acts_as_its_user() {
    let pod = Pod::start().await;
    let hash = hash("right");
    let put = |roles: &[&str]| {
        let doc =
            json!({"name": "ann", "roles": roles, "type": "user", "password_scheme": "argon2id", "derived_key": hash});
        pod.rean.put("_users", "org.couchdb.user:ann", doc);
    };
    put(&["staff"]);
    let (name, secret) = log_in(&pod, ANN).await;
    let session = Some((name.as_str(), secret.as_str()));
    let seen = pod.get("/x", session).await.json();
    assert_eq!((&seen["name"], &seen["roles"]), (&json!("ann"), &json!(["staff"])));
    let me = pod.get("/_session", session).await.json();
    assert_eq!(me["userCtx"], json!({"name": "ann", "roles": ["staff"]}));
    assert_eq!(me["info"]["authenticated"], "default");
    assert_eq!(pod.get("/x", Some((&name, "wrong"))).await.status, StatusCode::UNAUTHORIZED);
    // With the roles of now.
    put(&["boss"]);
    soon("the new role", async { while pod.get("/x", session).await.json()["roles"] != json!(["boss"]) {} }).await;
    // A session makes no further session.
    let body = json!({"name": name, "password": secret}).to_string();
    assert_eq!(pod.ask(login_request(), &body).await.status, StatusCode::UNAUTHORIZED);
    // The end.
    let answer = pod.ask(request("DELETE", "/_session", session), "").await;
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({"ok": true})));
    assert_eq!(pod.get("/x", session).await.status, StatusCode::UNAUTHORIZED);
    assert!(pod.rean.ids("_ring").is_empty());
}

#[tokio::test]
async fn a_new_password_ends_the_sessions_of_the_old_one() {
    let pod = Pod::start().await;
    pod.rean.put_user("ann", "right", &[]);
    let (name, secret) = log_in(&pod, ANN).await;
    let session = Some((name.as_str(), secret.as_str()));
    assert_eq!(pod.get("/x", session).await.status, StatusCode::OK);
    // The same password set anew, or another account of the same name: it is told by the salt.
    pod.rean.put_user("ann", "right", &[]);
    let ended = async { while pod.get("/x", session).await.status != StatusCode::UNAUTHORIZED {} };
    soon("the session's end", ended).await;
    assert_eq!(pod.get("/x", Some(ANN)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn administrators_and_forms_get_sessions_too() {
    let pod = Pod::start().await;
    let form = request("POST", "/_session", None).header("content-type", "application/x-www-form-urlencoded");
    let answer = pod.ask(form, "name=admin&password=secret").await.json();
    assert_eq!(answer["roles"], json!(["_admin"]));
    let text = |name: &str| answer["session"][name].as_str().expect("text").to_owned();
    let (name, secret) = (text("name"), text("password"));
    let seen = pod.get("/x", Some((&name, &secret))).await.json();
    assert_eq!((&seen["name"], &seen["roles"]), (&json!("admin"), &json!(["_admin"])));
    for (body, status) in [("{", 400), ("[]", 400), ("{}", 400), ("{\"name\":\"admin\"}", 401)] {
        assert_eq!(pod.ask(login_request(), body).await.status, status, "{body}");
    }
    let other = request("POST", "/_session", None).header("content-type", "text/plain");
    assert_eq!(pod.ask(other, "x").await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(pod.ask(request("COPY", "/_session", None), "").await.status, StatusCode::METHOD_NOT_ALLOWED);
    let large = json!({"name": "x".repeat(20_000), "password": ""}).to_string();
    assert_eq!(pod.ask(login_request(), &large).await.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn sessions_expire_and_end_their_feeds() {
    let lifetime = std::time::Duration::from_millis(1500);
    let pod = Pod::start_with(|config| config.session_lifetime = lifetime).await;
    pod.rean.put_user("ann", "right", &[]);
    let (name, secret) = log_in(&pod, ANN).await;
    let session = Some((name.as_str(), secret.as_str()));
    let feed = request("GET", "/a/_changes?feed=continuous", session);
    let (feed, _task) = pod.open(feed, Bytes::new()).await;
    assert_eq!(feed.status(), StatusCode::OK);
    soon("the feed's end", feed.into_body().collect()).await.expect("a clean end");
    assert_eq!(pod.get("/x", session).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn no_session_begins_with_more_than_the_longest_life() {
    const LONGEST_MS: u64 = 60_000;
    let pod = Pod::start_with(|config| {
        config.session_max_age = std::time::Duration::from_millis(LONGEST_MS);
        config.cookie = true;
    })
    .await;
    pod.rean.put_user("ann", "right", &[]);
    for wants_session in [true, false] {
        let asked = request("POST", "/_session", None).header("content-type", "application/json");
        let body = json!({"name": ANN.0, "password": ANN.1, "session": wants_session}).to_string();
        let answer = pod.ask(asked, &body).await;
        assert_eq!(answer.status, StatusCode::OK);
        let session = &answer.json()["session"];
        assert_eq!((session.is_object(), &session["expires"]), (wants_session, &session["longest"]));
        let docs = pod.rean.docs.lock().expect("lock");
        let sessions = docs.iter().filter(|(id, _)| id.starts_with("_ring/session:")).map(|(_, (_, doc))| doc);
        let doc = sessions.into_iter().find(|doc| doc["cookie"].is_null() == wants_session).expect("a session");
        let lasts = doc["expires_at_ms"].as_u64().zip(doc["created_at_ms"].as_u64()).map(|(end, start)| end - start);
        assert_eq!(lasts, Some(LONGEST_MS));
    }
}

#[tokio::test]
async fn a_log_out_counts_though_the_session_was_prolonged_elsewhere() {
    let pod = Pod::start().await;
    pod.rean.put_user("ann", "right", &[]);
    let (one, two) = (log_in(&pod, ANN).await, log_in(&pod, ANN).await);
    let open = async |(name, secret): &(String, String)| {
        let asked = request("GET", "/a/_changes?feed=continuous", Some((name, secret)));
        let (feed, _task) = pod.open(asked, Bytes::new()).await;
        assert_eq!(feed.status(), StatusCode::OK);
        feed.into_body()
    };
    let (mut of_one, of_two) = (open(&one).await, open(&two).await);
    let id = |session: &(String, String)| session.0.replacen('-', ":", 1);
    // Prolonged on both sides of a split, it lives on both. Ended on the other side, it ends here, where the log-in was
    // checked a moment ago and the document's winner stays as it was.
    pod.rean.branch("_ring", &id(&one), false);
    pod.rean.branch("_ring", &id(&two), true);
    soon("the feed's end", of_two.collect()).await.expect("a clean end");
    // The rows come in their order: that of the first has been looked at by now.
    for (session, status) in [(&one, StatusCode::OK), (&two, StatusCode::UNAUTHORIZED)] {
        for method in ["GET", "PUT"] {
            let asked = request(method, "/_session", Some((&session.0, &session.1)));
            assert_eq!(pod.ask(asked, "").await.status, status, "{method}");
        }
    }
    pod.rean.put("a", "doc", json!({}));
    let told = async {
        while !of_one.frame().await.expect("open").expect("open").data_ref().is_some_and(|data| data.contains(&b'd')) {}
    };
    soon("the row", told).await;
}

#[tokio::test]
async fn feeds_end_when_the_right_to_them_does() {
    let pod = Pod::start().await;
    pod.rean.put_user("ann", "right", &[]);
    pod.rean.put_user("bob", "right", &[]);
    let (name, secret) = log_in(&pod, ANN).await;
    let session = Some((name.as_str(), secret.as_str()));
    let open = |path: &'static str, login| pod.open(request("GET", path, login), Bytes::new());
    let (of_session, _a) = open("/a/_changes?feed=continuous", session).await;
    let (of_poll, _b) = open("/a/_changes?feed=longpoll", session).await;
    let (of_ann, _c) = open("/a/_changes?feed=eventsource&silent", Some(ANN)).await;
    let (of_bob, _d) = open("/a/_change%73?feed=continuous", Some(("bob", "right"))).await;
    until("four feeds", || pod.rean.feeds.load(Ordering::SeqCst) == 6).await;
    // The log-out, somewhere else: this proxy hears of it by the feed of `_ring`.
    let id = pod.rean.ids("_ring").pop().expect("a session");
    pod.rean.delete("_ring", &id);
    soon("the end of the session's feed", of_session.into_body().collect()).await.expect("clean");
    // Half a JSON value must not look like a whole one.
    assert!(soon("the end of the poll", of_poll.into_body().collect()).await.is_err());
    assert_eq!(pod.rean.feeds.load(Ordering::SeqCst), 4);
    pod.rean.put_user("ann", "changed", &[]);
    soon("the end of ann's feed", of_ann.into_body().collect()).await.expect("clean");
    let mut of_bob = of_bob.into_body();
    soon("bob's next beat", of_bob.frame()).await.expect("open").expect("open");
    drop(of_bob);
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_feed_along() {
    let pod = Pod::start().await;
    let (feed, task) = pod.open(request("GET", "/a/_changes?feed=continuous", None), Bytes::new()).await;
    until("the feed", || pod.rean.feeds.load(Ordering::SeqCst) == 3).await;
    task.abort();
    drop(feed);
    until("the feed's end", || pod.rean.feeds.load(Ordering::SeqCst) == 2).await;
}

#[tokio::test]
async fn many_feeds_share_few_connections() {
    let pod = Pod::start().await;
    let feeds = (0..450).map(|_| pod.open(request("GET", "/a/_changes?feed=continuous&silent", None), Bytes::new()));
    let feeds = soon("all feeds", futures_util::future::join_all(feeds)).await;
    until("all feeds at rean", || pod.rean.feeds.load(Ordering::SeqCst) == 452).await;
    pod.rean.put("a", "doc", json!({}));
    for (feed, _task) in feeds {
        let mut text = Vec::new();
        let mut feed = feed.into_body();
        while !text.ends_with(b"}\n") {
            let frame = soon("the row", feed.frame()).await.expect("open").expect("open");
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        }
    }
}

/// Reads from a socket until `end` has come.
async fn read_to(socket: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut bytes = [0; 1024];
        let read = soon("more", socket.read(&mut bytes)).await.expect("reads");
        assert!(read > 0, "closed after {text:?}");
        text.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    text
}

#[tokio::test]
async fn a_connection_serves_on_after_a_feed() {
    let pod = Pod::start().await;
    let mut socket = TcpStream::connect(pod.address).await.expect("connects");
    for n in 0..3 {
        let get = "GET /a/_changes?feed=continuous&once&silent HTTP/1.1\r\nHost: x\r\n\r\n";
        socket.write_all(get.as_bytes()).await.expect("writes");
        let head = read_to(&mut socket, "\r\n\r\n1\r\n\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
        assert!(head.contains("\r\nserver: Adea/"), "{head}");
        pod.rean.put("a", &format!("doc{n}"), json!({}));
        let row = read_to(&mut socket, "0\r\n\r\n").await;
        assert!(row.contains(&format!("\"doc{n}\"")), "{row}");
        socket.write_all(b"GET /_up HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
        read_to(&mut socket, "{\"status\":\"ok\"}\n").await;
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_its_silent_feed() {
    let pod = Pod::start().await;
    for more in ["", "Connection: close\r\n"] {
        let mut socket = TcpStream::connect(pod.address).await.expect("connects");
        let get = format!("GET /a/_changes?feed=continuous&silent HTTP/1.1\r\nHost: x\r\n{more}\r\n");
        socket.write_all(get.as_bytes()).await.expect("writes");
        until("the feed", || pod.rean.feeds.load(Ordering::SeqCst) == 3).await;
        drop(socket);
        until("the feed's end", || pod.rean.feeds.load(Ordering::SeqCst) == 2).await;
    }
}

#[tokio::test]
async fn a_request_behind_a_feed_ends_the_connection_with_it() {
    let pod = Pod::start().await;
    let mut socket = TcpStream::connect(pod.address).await.expect("connects");
    let get = "GET /a/_changes?feed=continuous&once&silent HTTP/1.1\r\nHost: x\r\n\r\n";
    socket.write_all(get.as_bytes()).await.expect("writes");
    read_to(&mut socket, "\r\n\r\n1\r\n\n\r\n").await;
    socket.write_all(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
    pod.rean.put("a", "doc", json!({}));
    let mut rest = Vec::new();
    // A reset instead of an end is as good: the client has written what nobody read.
    let _ = soon("the end", socket.read_to_end(&mut rest)).await;
    assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1"));
}
