//! Documents on their way between pods: that all of them arrive, once, in spite of breaks, and that what a pod says to
//! have is there.

#[path = "harness/ring.rs"]
mod ring;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use adea_ring::Identity;
use adea_ring::report::{Origin, Role};
use axum::body::Body;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use rean::ring::command::carry_out;
use rean::ring::links::Links;
use rean::route::{self, Request};
use ring::{DEADLINE, TestRing, admin, id, until, user};
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// Who is whose neighbour.
type Edges = &'static [(usize, usize)];

const LINE: Edges = &[(0, 1), (1, 2)];
const TRIANGLE: Edges = &[(0, 1), (1, 2), (0, 2)];

/// Held while a pod is told of the ring: nobody says again what is old by then.
static TURN: Mutex<()> = Mutex::const_new(());

/// Says the same to a pod again and again, as adea does: a master that hears nothing for seconds gives up.
fn go_on_saying(ring: &TestRing, at: usize) {
    let pod = Arc::downgrade(ring.pod(at));
    tokio::spawn(async move {
        while let Some(pod) = pod.upgrade() {
            let turn = TURN.lock().await;
            if let Some(state) = pod.ring.state() {
                carry_out(pod, (*state).clone()).await;
            }
            drop(turn);
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    });
}

/// Tells a pod the ring with these edges only.
async fn tell(ring: &TestRing, edges: Edges, at: usize, role: Role) {
    let _turn = TURN.lock().await;
    let mut state = ring.state(at, role);
    let is_edge = |other: usize| edges.contains(&(at, other)) || edges.contains(&(other, at));
    let others = (0..ring.places.len()).filter(|other| is_edge(*other));
    let wanted: Vec<_> = others.map(|other| ring.places[other].id.clone()).collect();
    state.neighbours.retain(|peer| wanted.contains(peer));
    ring.tell(at, &state).await;
}

/// Tells all pods the ring as it is now, the first of them master.
async fn tell_all(ring: &TestRing, edges: Edges) {
    let epoch = match ring.pod(0).ring.role() {
        Role::Master(epoch) => epoch,
        _ => ring.next_epoch(0),
    };
    for at in (0..ring.places.len()).filter(|at| ring.is_up(*at)) {
        let role = if at == 0 { Role::Master(epoch.clone()) } else { Role::Follower(epoch.clone()) };
        tell(ring, edges, at, role).await;
    }
}

async fn start(count: usize, edges: Edges) -> TestRing {
    let ring = TestRing::start(count).await;
    tell_all(&ring, edges).await;
    go_on_saying(&ring, 0);
    ring
}

/// Waits until a pod has all that another one has at this moment.
async fn has_all_of(ring: &TestRing, at: usize, of: usize) {
    let (origin, seq) = (ring.pod(of).ring.origin.clone(), ring.pod(of).store.seq());
    let here = ring.pod(at).ring.knowledge.wait_here(&origin, seq, DEADLINE).await;
    assert!(here, "{at} has not all of {of}: {:?}", ring.pod(at).ring.links.describe());
}

async fn put(ring: &TestRing, at: usize, path: &str, body: Value) -> Value {
    let answer = ring.put(at, &admin(), path, body).await;
    assert!(answer.status.is_success(), "{path}: {}", answer.text());
    answer.json()
}

async fn bulk(ring: &TestRing, at: usize, db: &str, docs: Vec<Value>) {
    let answer = ring.post(at, &admin(), &format!("/{db}/_bulk_docs"), json!({ "docs": docs })).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
}

/// All documents of a database with all their leaves and bodies.
async fn everything(ring: &TestRing, at: usize, db: &str) -> Vec<(String, Value, Value)> {
    let path = format!("/{db}/_changes?style=all_docs&include_docs=true&attachments=true");
    let feed = ring.get(at, &admin(), &path).await.expect(200);
    let rows = feed["results"].as_array().expect("rows").iter();
    let mut all: Vec<_> = rows
        .map(|row| {
            let mut leaves: Vec<_> = row["changes"].as_array().expect("leaves").clone();
            leaves.sort_by_key(Value::to_string);
            (row["id"].as_str().expect("an id").to_owned(), Value::from(leaves), row["doc"].clone())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

async fn same(ring: &TestRing, a: usize, b: usize, db: &str) {
    let (a, b) = (everything(ring, a, db).await, everything(ring, b, db).await);
    assert!(!a.is_empty(), "{db} is empty");
    assert_eq!(a, b, "{db} differs");
}

/// A counter of a pod's link to another.
fn count(ring: &TestRing, at: usize, peer: usize, what: &str) -> u64 {
    let links = ring.pod(at).ring.links.describe();
    let link = links.iter().find(|link| link["peer"] == ring.places[peer].id.as_str()).expect("a link");
    link[what].as_u64().unwrap_or_else(|| panic!("{what} in {link}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn all_kinds_of_documents_arrive_at_the_far_end() {
    let ring = start(3, LINE).await;
    ring.make_db(0, "plain", &[]).await;
    ring.send(0, &admin(), "PUT", "/notes?access=true", None).await.expect(201);
    ring.make_db(0, "doomed", &[]).await;
    put(&ring, 0, "/doomed/a", json!({})).await;

    let rev = put(&ring, 0, "/plain/gone", json!({"n": 1})).await["rev"].clone();
    let path = format!("/plain/gone?rev={}", rev.as_str().expect("a revision"));
    ring.send(0, &admin(), "DELETE", &path, None).await.expect(200);
    for (rev, n) in [("2-aaaa", 1), ("2-bbbb", 2), ("3-cccc", 3)] {
        let (generation, hash) = rev.split_once('-').expect("a revision");
        let start: u64 = generation.parse().expect("a number");
        let ids: Vec<String> = (0..start)
            .rev()
            .map(|at| if at + 1 == start { hash.to_owned() } else { format!("{at:02}{hash}") })
            .collect();
        let doc = json!({"_id": "torn", "_rev": rev, "_revisions": {"start": start, "ids": ids}, "n": n});
        let body = json!({"new_edits": false, "docs": [doc]});
        ring.post(0, &admin(), "/plain/_bulk_docs", body).await.expect(201);
    }
    let attachment = json!({"content_type": "text/plain", "data": "aGVsbG8="});
    put(&ring, 0, "/plain/small", json!({"_attachments": {"a.txt": attachment}})).await;
    let large: Vec<u8> = (0..5u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let request = http::Request::put("/plain/large/b.bin").header("content-type", "application/octet-stream");
    let request = request.body(Body::from(large.clone())).expect("a request");
    assert_eq!(ring.request(0, &admin(), request).await.status, 201);
    put(&ring, 0, "/plain/_design/d", json!({"views": {}})).await;
    put(&ring, 0, "/_users/org.couchdb.user:eve", json!({"name": "eve", "type": "user", "roles": [], "password": "x"}))
        .await;
    let access = |who: &str| json!({"read": [format!("user:{who}")], "write": [format!("user:{who}")]});
    let rev = put(&ring, 0, "/notes/moved", json!({"access": access("ann")})).await["rev"].clone();
    has_all_of(&ring, 2, 0).await;
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    ring.get(2, &ann, "/notes--me/moved").await.expect(200);
    put(&ring, 0, "/notes/moved", json!({"_rev": rev, "access": access("bob")})).await;
    ring.send(0, &admin(), "DELETE", "/doomed", None).await.expect(200);
    put(&ring, 0, "/notes/last", json!({"access": access("ann")})).await;
    has_all_of(&ring, 2, 0).await;

    ring.get(2, &bob, "/notes--me/moved").await.expect(200);
    ring.get(2, &ann, "/notes--me/moved").await.expect(404);
    ring.get(2, &ann, "/notes--me/last").await.expect(200);
    for db in ["plain", "notes", "_users"] {
        same(&ring, 0, 2, db).await;
    }
    let conflicts = ring.get(2, &admin(), "/plain/torn?conflicts=true").await.expect(200);
    assert_eq!(conflicts["_conflicts"].as_array().map(Vec::len), Some(2), "{conflicts}");
    assert_eq!(ring.get(2, &admin(), "/plain/large/b.bin").await.body, large);
    until("the deleted database is gone", || async { ring.get(2, &admin(), "/doomed").await.status == 404 }).await;
    for (at, peer) in [(1, 0), (2, 1)] {
        assert_eq!(count(&ring, at, peer, "refused"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_break_is_resumed_where_it_was_and_a_new_store_is_filled() {
    const BEFORE: usize = 2_500;
    let mut ring = start(3, LINE).await;
    ring.make_db(0, "plain", &[]).await;
    for part in 0..BEFORE / 500 {
        bulk(&ring, 0, "plain", (0..500).map(|n| json!({"_id": format!("a{part}-{n}"), "n": n})).collect()).await;
    }
    has_all_of(&ring, 2, 0).await;
    let seq = count(&ring, 1, 0, "pulled");
    // The place is kept a moment later.
    until("the place is kept", || async {
        let note = ring.pod(1).store.note("link/pod-1").expect("a note").unwrap_or_default();
        let note: Value = serde_json::from_slice(&note).unwrap_or_default();
        note["seq"].as_u64() >= Some(seq)
    })
    .await;
    ring.take_down(1).await;
    bulk(&ring, 0, "plain", (0..50).map(|n| json!({"_id": format!("b{n}")})).collect()).await;
    ring.bring_up(1).await;
    tell_all(&ring, LINE).await;
    has_all_of(&ring, 2, 0).await;
    same(&ring, 0, 2, "plain").await;
    let rows = count(&ring, 1, 0, "rows");
    assert!((50..1_000).contains(&rows), "it started over: {rows} rows");
    // The pods' own status is among them.
    let fetched = count(&ring, 1, 0, "fetched");
    assert!((50..60).contains(&fetched), "{fetched} fetched");

    // The far end loses its store, and so does the middle.
    ring.take_down(2).await;
    ring.wipe(2);
    ring.bring_up(2).await;
    tell_all(&ring, LINE).await;
    has_all_of(&ring, 2, 0).await;
    same(&ring, 0, 2, "plain").await;
    ring.take_down(1).await;
    ring.wipe(1);
    ring.bring_up(1).await;
    tell_all(&ring, LINE).await;
    put(&ring, 0, "/plain/c", json!({})).await;
    has_all_of(&ring, 2, 0).await;
    same(&ring, 0, 1, "plain").await;
    same(&ring, 0, 2, "plain").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_acknowledged_when_as_many_pods_have_it() {
    let mut ring = start(3, LINE).await;
    ring.make_db(0, "plain", &[]).await;
    for w in [2, 3] {
        let path = format!("/plain/w{w}?w={w}");
        let answer = ring.put(0, &admin(), &path, json!({})).await;
        assert_eq!(answer.status, 201, "w={w}: {} {:?}", answer.text(), answer.header("x-adea-w"));
        for at in 0..w {
            ring.get(at, &admin(), &format!("/plain/w{w}")).await.expect(200);
        }
        // At a follower too, and at the far one.
        let answer = ring.put(2, &admin(), &format!("/plain/far{w}?w={w}"), json!({})).await;
        assert_eq!(answer.status, 201, "w={w}: {}", answer.text());
        ring.get(2, &admin(), &format!("/plain/far{w}")).await.expect(200);
    }
    ring.take_down(2).await;
    tell_all(&ring, LINE).await;
    assert_eq!(ring.put(0, &admin(), "/plain/few?w=3", json!({})).await.status, 202);
    assert_eq!(ring.put(0, &admin(), "/plain/two?w=2", json!({})).await.status, 201);
}

/// Writes that are no requests of clients: as links write, at any pod.
async fn write_here(ring: &TestRing, at: usize, path: &str) -> u64 {
    let request = http::Request::put(path).header("content-type", "application/json").body(Body::from("{}"));
    let request = Request::from_http(request.expect("a request")).expect("a good path");
    let answer = route::dispatch(ring.pod(at), &Identity::system(), request).await;
    assert_eq!(answer.expect("an answer").status(), 201);
    ring.pod(at).store.seq()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_says_to_have_can_be_read_there() {
    const WRITERS: usize = 8;
    const WRITES: usize = 60;
    let ring = Arc::new(start(3, TRIANGLE).await);
    ring.make_db(0, "plain", &[]).await;
    for at in [1, 2] {
        has_all_of(&ring, at, 0).await;
    }
    let checked = Arc::new(AtomicU64::new(0));
    let writers = (0..WRITERS).map(|writer| {
        let (ring, checked) = (Arc::clone(&ring), Arc::clone(&checked));
        tokio::spawn(async move {
            // Two sides of a split write, and all pods read.
            let from = writer % 2;
            let origin: Origin = ring.pod(from).ring.origin.clone();
            for n in 0..WRITES {
                let path = format!("/plain/{writer}-{n}");
                let seq = write_here(&ring, from, &path).await;
                for at in (0..3).filter(|at| *at != from) {
                    let here = ring.pod(at).ring.knowledge.wait_here(&origin, seq, DEADLINE).await;
                    assert!(here, "{at} has not {seq} of {origin}: {:?}", ring.pod(at).ring.links.describe());
                    let db = ring.pod(at).store.db("plain").expect("it is there");
                    let found = db.doc(&rean_store::Scope::All, path.trim_start_matches("/plain/")).expect("reads");
                    assert!(found.is_some(), "{path} is not at {at}, which says to have it");
                    checked.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("no panic");
    }
    assert_eq!(checked.load(Ordering::Relaxed), (WRITERS * WRITES * 2) as u64);
    for at in [1, 2] {
        has_all_of(&ring, at, 0).await;
        has_all_of(&ring, at - 1, at).await;
    }
    same(&ring, 0, 1, "plain").await;
    same(&ring, 0, 2, "plain").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_crosses_about_once_and_costs_little() {
    const CHANGES: u64 = 100;
    let ring = start(3, TRIANGLE).await;
    ring.make_db(0, "plain", &[]).await;
    for at in [1, 2] {
        has_all_of(&ring, at, 0).await;
    }
    let body = json!({"text": "x".repeat(500)});
    let total = |at: usize, what: &str| -> u64 {
        (0..3).filter(|peer| *peer != at).map(|peer| count(&ring, at, peer, what)).sum()
    };
    let before: Vec<u64> = ["rows", "fetched", "received_bytes", "sent_bytes"].map(|what| total(2, what)).to_vec();
    let began = Instant::now();
    let mut took = Vec::new();
    for n in 0..CHANGES {
        let sent = Instant::now();
        put(&ring, 0, &format!("/plain/{n}"), body.clone()).await;
        let written = sent.elapsed();
        has_all_of(&ring, 2, 0).await;
        took.push((sent.elapsed(), written));
    }
    let after: Vec<u64> = ["rows", "fetched", "received_bytes", "sent_bytes"].map(|what| total(2, what)).to_vec();
    let each: Vec<u64> = after.iter().zip(&before).map(|(after, before)| (after - before) / CHANGES).collect();
    took.sort();
    println!(
        "a change of 500 bytes, at one of three pods with two links: {} rows, {} bytes received, {} sent; {:?} in all; \
         written and there p50 {:?}, written {:?}",
        each[0],
        each[2],
        each[3],
        began.elapsed(),
        took[CHANGES as usize / 2].0,
        took[CHANGES as usize / 2].1,
    );
    let fetched = after[1] - before[1];
    assert!((CHANGES..CHANGES + CHANGES / 10).contains(&fetched), "{fetched} bodies for {CHANGES} changes");
    assert!(each[2] < 4_000, "{} bytes for a change", each[2]);

    // A comparison of everything moves no body.
    let rows = total(2, "rows");
    Links::repair(ring.pod(2)).expect("the store works");
    until("all rows have come again", || async { total(2, "rows") >= rows + CHANGES * 2 }).await;
    has_all_of(&ring, 2, 0).await;
    assert!(total(2, "fetched") < after[1] + CHANGES / 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_come_before_the_documents_that_were_written_under_them() {
    let mut ring = start(3, LINE).await;
    ring.send(0, &admin(), "PUT", "/notes?access=true", None).await.expect(201);
    let open = json!({"default": {"read": ["users"]}});
    let rev = put(&ring, 0, "/_ring/app:notes", open.clone()).await["rev"].clone();
    put(&ring, 0, "/notes/open", json!({})).await;
    has_all_of(&ring, 2, 0).await;
    let ann = user("ann", &[]);
    until("the rules are in force", || async { ring.get(2, &ann, "/notes--me/open").await.status == 200 }).await;

    ring.take_down(2).await;
    tell_all(&ring, LINE).await;
    let closed = json!({"_rev": rev, "default": {"read": ["role:staff"]}});
    let rev = put(&ring, 0, "/_ring/app:notes", closed).await["rev"].clone();
    until("the rules are in force", || async { ring.get(0, &ann, "/notes--me/open").await.status == 404 }).await;
    for part in 0..10 {
        bulk(&ring, 0, "notes", (0..500).map(|n| json!({"_id": format!("s{part}-{n}")})).collect()).await;
    }
    // The rules' row moves behind those of the documents.
    let same = json!({"_rev": rev, "default": {"read": ["role:staff"]}, "create": ["users"]});
    put(&ring, 0, "/_ring/app:notes", same).await;
    has_all_of(&ring, 1, 0).await;
    ring.bring_up(2).await;
    tell_all(&ring, LINE).await;
    let (origin, seq) = (ring.pod(1).ring.origin.clone(), ring.pod(1).store.seq());
    let mut looks = 0;
    while ring.pod(2).ring.knowledge.has(&origin) < seq {
        looks += 1;
        let seen = ring.get(2, &ann, "/notes--me/_all_docs?startkey=%22s%22").await.expect(200);
        assert_eq!(seen["rows"], json!([]));
    }
    assert!(looks > 3, "it had caught up before anybody looked");
    has_all_of(&ring, 2, 0).await;
    same_count(&ring, "notes").await;
    ring.get(2, &user("eve", &["staff"]), "/notes--me/s9-499").await.expect(200);
}

async fn same_count(ring: &TestRing, db: &str) {
    let path = format!("/{db}");
    let (a, b) = (ring.get(0, &admin(), &path).await.expect(200), ring.get(2, &admin(), &path).await.expect(200));
    assert_eq!(a["doc_count"], b["doc_count"]);
}

/// A feed as a neighbour asks for it.
async fn open_feed(ring: &TestRing, at: usize, peer: &str, since: u64) -> Body {
    let history = ring.pod(at).store.history();
    let uri = format!("/_pod/feed?since={since}&history={history}");
    let pending = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
    let request = http::Request::post(uri).body(Body::from_stream(pending)).expect("a request");
    let mut request = Request::from_http(request).expect("a good path");
    request.from_peer = Some(id(peer));
    let answer = route::dispatch(ring.pod(at), &Identity::system(), request).await.expect("a feed");
    answer.into_body()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_is_not_made_faster_than_it_is_read() {
    const DOCS: usize = 10_000;
    let ring = start(1, &[]).await;
    ring.make_db(0, "plain", &[]).await;
    for part in 0..DOCS / 1_000 {
        bulk(&ring, 0, "plain", (0..1_000).map(|n| json!({"_id": format!("document-{part}-{n}")})).collect()).await;
    }
    let mut body = open_feed(&ring, 0, "pod-9", 0).await;
    // Time enough to make all of it, if nobody held it back.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut ahead = 0;
    let mut text = Vec::new();
    tokio::task::block_in_place(|| {
        while let Some(Some(frame)) = body.frame().now_or_never() {
            let bytes = frame.expect("whole").into_data().expect("data");
            ahead += 1;
            text.extend_from_slice(&bytes);
            if ahead >= 8 {
                break;
            }
        }
    });
    assert!(text.len() < 1 << 20, "{} bytes were made ahead", text.len());
    // It goes on where it was, to the last document.
    let last = ring.pod(0).store.seq();
    while !String::from_utf8_lossy(&text[text.len().saturating_sub(300)..]).contains(&format!("{{\"mark\":{last}")) {
        let frame = tokio::time::timeout(DEADLINE, body.frame()).await.expect("in time").expect("more");
        text.extend_from_slice(&frame.expect("whole").into_data().expect("data"));
    }
    let rows =
        text.split(|byte| *byte == b'\n').filter(|line| line.windows(14).any(|part| part == b"\"db\":\"plain\",\""));
    assert!(rows.filter(|line| line.windows(9).any(|part| part == b"\"changes\"")).count() >= DOCS);
    // A neighbour that comes again takes the place of its feed before.
    let _second = open_feed(&ring, 0, "pod-9", last).await;
    let end = async { while body.frame().await.is_some() {} };
    tokio::time::timeout(DEADLINE, end).await.expect("the first one ends");
    assert_eq!(ring.pod(0).ring.links.feeds.readers(), [id("pod-9")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pods_of_the_ring_get_a_feed() {
    let ring = start(1, &[]).await;
    for who in [&admin(), &user("ann", &[]), &Identity::anonymous(), &Identity::system()] {
        assert_eq!(ring.send(0, who, "POST", "/_pod/feed?since=0&history=", None).await.status, 404);
        assert_eq!(ring.get(0, who, "/_pod/standing").await.status, 404);
    }
    assert_eq!(ring.get(0, &user("ann", &[]), "/_pod/links").await.status, 401);
    assert_eq!(ring.get(0, &admin(), "/_pod/links").await.expect(200)["links"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_pulls_what_others_have_before_it_takes_writes() {
    let ring = start(2, &[(0, 1)]).await;
    ring.make_db(0, "plain", &[]).await;
    has_all_of(&ring, 1, 0).await;
    for round in 0..3 {
        bulk(&ring, 0, "plain", (0..300).map(|n| json!({"_id": format!("{round}-{n}")})).collect()).await;
        let epoch = ring.next_epoch(1);
        tell(&ring, &[(0, 1)], 0, Role::Waiting).await;
        let seq = ring.pod(0).store.seq();
        tell(&ring, &[(0, 1)], 1, Role::Master(epoch)).await;
        assert!(ring.pod(1).ring.is_master());
        assert!(ring.pod(1).ring.knowledge.has(&ring.pod(0).ring.origin) >= seq, "round {round}");
        tell(&ring, &[(0, 1)], 1, Role::Waiting).await;
        let epoch = ring.next_epoch(0);
        tell(&ring, &[(0, 1)], 0, Role::Master(epoch.clone())).await;
        tell(&ring, &[(0, 1)], 1, Role::Follower(epoch)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_in_no_document_comes_when_it_is() {
    let ring = start(3, LINE).await;
    // As from before the ring: a folder that another pod brought along.
    let store = ring.pod(1).store.clone();
    let made = tokio::task::spawn_blocking(move || store.create_db("stray", rean_store::DbKind::Plain)).await;
    made.expect("no panic").expect("a database");
    write_here(&ring, 1, "/stray/a").await;
    // Others are not held up by it for good.
    ring.make_db(0, "plain", &[]).await;
    put(&ring, 0, "/plain/a", json!({})).await;
    for at in [0, 2] {
        has_all_of(&ring, at, 1).await;
        ring.get(at, &admin(), "/stray").await.expect(404);
    }
    ring.send(0, &admin(), "PUT", "/stray", None).await.expect(201);
    for at in [0, 2] {
        until("its documents have come", || async { ring.get(at, &admin(), "/stray/a").await.status == 200 }).await;
    }
    put(&ring, 0, "/stray/b", json!({})).await;
    has_all_of(&ring, 2, 0).await;
    same(&ring, 0, 1, "stray").await;
    same(&ring, 0, 2, "stray").await;
}
