//! What users, and settings, must not be able to do to a ring: stop its links, make its pods disagree for good, shut out
//! all writes.

#[path = "harness/ring.rs"]
mod ring;

use std::time::Duration;

use adea_ring::report::Applied;
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{TestRing, admin, until, user};
use serde_json::{Map, Value, json};

/// Two pods with the database `notes`, of which the first is master; documents have at most 10,000 bytes.
async fn two() -> TestRing {
    let limits = rean::config::Limits {
        max_silence_ms: 600_000,
        max_document_bytes: 10_000,
        max_body_bytes: 400_000,
        max_attachment_bytes: 300_000,
        ..rean::config::Limits::default()
    };
    let ring = TestRing::start_with(2, limits).await;
    ring.elect(0).await;
    ring.send(0, &admin(), "PUT", "/notes?access=true", None).await.expect(201);
    ring.tell_all().await;
    ring
}

/// Waits until both pods say the same of a document, and gives that.
async fn same(ring: &TestRing, path: &str) -> Value {
    let master = ring.get(0, &admin(), path).await;
    let is_same = || async {
        let follower = ring.get(1, &admin(), path).await;
        (follower.status, &follower.body) == (master.status, &master.body)
    };
    until("both pods say the same", is_same).await;
    master.json()
}

/// What is written after something odd arrives too.
async fn goes_on(ring: &TestRing, id: &str) {
    ring.put(0, &admin(), &format!("/notes/{id}"), json!({})).await.expect(201);
    same(ring, &format!("/notes/{id}")).await;
}

async fn attach(ring: &TestRing, path: &str, kind: &str, bytes: Vec<u8>) -> ring::Answer {
    let request = http::Request::put(path).header("content-type", kind).body(Body::from(bytes)).expect("a request");
    ring.request(0, &user("ann", &[]), request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_with_long_content_types_stops_no_link() {
    let ring = two().await;
    let many = |kind: &str| -> Map<String, Value> {
        (0..100).map(|n| (format!("a{n}"), json!({"content_type": kind, "data": ""}))).collect()
    };
    let doc = |kind: &str| json!({"access": {"read": ["user:ann"]}, "_attachments": many(kind)});
    let ann = user("ann", &[]);
    ring.put(0, &ann, "/notes--me/odd", doc(&"t".repeat(3_900))).await.expect(400);
    ring.put(0, &ann, "/notes--me/odd", doc(&"t".repeat(1_024))).await.expect(201);
    same(&ring, "/notes/odd").await;
    goes_on(&ring, "next").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_master_takes_the_followers_take_too() {
    let ring = two().await;
    let ann = user("ann", &[]);
    let read = json!({"read": ["user:ann", "user:bob"]});

    // A deletion gets the access of its document, and is larger than a document may be.
    let rev = ring.put(0, &ann, "/notes--me/gone", json!({"access": read})).await.expect(201)["rev"].clone();
    same(&ring, "/notes/gone").await;
    let body = json!({"_rev": rev, "_deleted": true, "text": "x".repeat(10_000 - 11)});
    ring.put(0, &ann, "/notes--me/gone", body).await.expect(200);
    same(&ring, "/notes/gone").await;
    ring.get(1, &user("bob", &[]), "/notes--me/gone").await.expect(404);

    // With its history and what is said of its attachments, its text in one piece is too.
    let text = "x".repeat(9_900);
    let answer = ring.put(0, &ann, "/notes--me/large", json!({"access": read, "text": text})).await.expect(201);
    let rev = answer["rev"].as_str().expect("a revision");
    let answer = attach(&ring, &format!("/notes--me/large/a?rev={rev}"), "x/y", vec![1; 290_000]).await.expect(201);
    let rev = answer["rev"].as_str().expect("a revision");
    // And all attachments together are larger than one may be.
    let answer = attach(&ring, &format!("/notes--me/large/b?rev={rev}"), "x/y", vec![2; 290_000]).await.expect(201);
    let rev = answer["rev"].as_str().expect("a revision");
    attach(&ring, &format!("/notes--me/large/c?rev={rev}"), "x/y", vec![3; 290_000]).await.expect(201);
    let doc = same(&ring, "/notes/large").await;
    assert_eq!(doc["_attachments"].as_object().expect("attachments").len(), 3);
    goes_on(&ring, "next").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_attachment_too_many_is_refused_by_the_master() {
    let ring = two().await;
    let many: Map<String, Value> = (0..1_000).map(|n| (format!("a{n}"), json!({"data": ""}))).collect();
    let doc = json!({"access": {"read": ["user:ann"]}, "_attachments": many});
    let answer = ring.put(0, &user("ann", &[]), "/notes--me/full", doc).await.expect(201);
    let rev = answer["rev"].as_str().expect("a revision");
    attach(&ring, &format!("/notes--me/full/one?rev={rev}"), "x/y", vec![1]).await.expect(413);
    attach(&ring, &format!("/notes--me/full/a1?rev={rev}"), &"t".repeat(1_025), vec![1]).await.expect(400);
    attach(&ring, &format!("/notes--me/full/a1?rev={rev}"), "x/y", vec![1]).await.expect(201);
    same(&ring, "/notes/full").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attachments_whose_names_look_alike_stay_apart() {
    let ring = two().await;
    // Large ones travel as parts, whose headers can't have a line break.
    let data = |byte: u8, length: usize| STANDARD.encode(vec![byte; length]);
    let doc = json!({
        "access": {"read": ["user:ann"]},
        "_attachments": {"b\r": {"data": data(1, 100_000)}, "b ": {"data": data(2, 90_000)}, "a": {"data": data(3, 9)}},
    });
    ring.put(0, &user("ann", &[]), "/notes--me/alike", doc).await.expect(201);
    let doc = same(&ring, "/notes/alike").await;
    assert_eq!(doc["_attachments"]["b\r"]["length"], 100_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_under_which_nobody_could_write_are_refused() {
    let ring = two().await;
    let never = |ids: Value| json!({"election": {"never": ids}});
    let refused = ring.put(1, &admin(), "/_ring/config", never(json!(["pod-1", "pod-2", "pod-3"]))).await.expect(400);
    assert!(refused["reason"].as_str().expect("a reason").contains("election.never"), "{refused}");
    ring.put(1, &admin(), "/_ring/config", never(json!(["pod-2"]))).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_an_old_copy_of_its_store_gives_no_sequence_again() {
    let ring = two().await;
    let origin = ring.pod(0).ring.origin.clone();
    let has = ring.pod(0).store.seq() + 10_000;
    // As if the other pod had more of it than it has itself.
    let mut state = ring.state(0, ring.pod(0).ring.role());
    for known in state.members.iter_mut().filter(|known| known.member.id.as_str() == "pod-2") {
        known.said.applied = Applied::from([(origin.clone(), has)]);
    }
    let facts = ring.tell(0, &state).await;
    assert!(facts.applied[&origin] >= has);
    ring.put(0, &admin(), "/notes/later", json!({})).await.expect(201);
    assert!(ring.pod(0).store.seq() > has);
    same(&ring, "/notes/later").await;

    // What can't be does nothing.
    let now = ring.pod(0).store.seq();
    for known in &mut state.members {
        known.said.applied = Applied::from([(origin.clone(), u64::MAX)]);
    }
    ring.tell(0, &state).await;
    assert!(ring.pod(0).store.seq() < now + 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_behind_makes_no_branch_where_few_revisions_are_kept() {
    let mut ring = two().await;
    ring.send(0, &admin(), "PUT", "/notes/_revs_limit", Some(&json!(2))).await.expect(200);
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    let doc = |names: &[&str], rev: &Value| json!({"_rev": rev, "access": {"read": names, "write": ["user:ann"]}});
    let mut first = doc(&["user:ann", "user:bob"], &Value::Null);
    first.as_object_mut().expect("an object").remove("_rev");
    let mut rev = ring.put(0, &ann, "/notes--me/often", first).await.expect(201)["rev"].clone();
    same(&ring, "/notes/often").await;
    ring.get(1, &bob, "/notes--me/often").await.expect(200);

    ring.take_down(1).await;
    for _ in 0..9 {
        rev = ring.put(0, &ann, "/notes--me/often", doc(&["user:ann"], &rev)).await.expect(201)["rev"].clone();
    }
    ring.bring_up(1).await;
    ring.tell_all().await;
    ring.elect(0).await;
    let path = "/notes/often?conflicts=true&deleted_conflicts=true&revs=true";
    let doc = same(&ring, path).await;
    assert!(doc.get("_conflicts").is_none() && doc.get("_deleted_conflicts").is_none(), "{doc}");
    assert_eq!(doc["_revisions"]["ids"].as_array().expect("revisions").len(), 2);

    // And what was replaced doesn't come back.
    let rev = rev.as_str().expect("a revision");
    ring.send(0, &ann, "DELETE", &format!("/notes--me/often?rev={rev}"), None).await.expect(200);
    same(&ring, "/notes/often").await;
    goes_on(&ring, "next").await;
    for at in 0..2 {
        ring.get(at, &admin(), "/notes/often").await.expect(404);
        ring.get(at, &bob, "/notes--me/often").await.expect(404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_show_nothing_keep_no_pod_out() {
    let mut ring = two().await;
    ring.take_down(1).await;
    let master = ring.at(0).ring_address;
    // All from one address that isn't the other pod's.
    let mut silent = Vec::new();
    for _ in 0..200 {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.2:0".parse().expect("an address")).expect("an address of this machine");
        silent.push(socket.connect(master).await.expect("a connection"));
    }
    // Before any of them is given up for its slowness, which takes 5 s.
    let refused = until("most are refused", || async { ring.pod(0).ring.refused() >= 136 });
    tokio::time::timeout(Duration::from_secs(4), refused).await.expect("in time");
    ring.bring_up(1).await;
    ring.elect(0).await;
    ring.put(1, &admin(), "/notes/through", json!({})).await.expect(201);
    drop(silent);
}
