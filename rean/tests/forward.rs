//! Writes in a ring: that each is done on the write master, once and with the rights of who sent it, wherever it arrives.

#[path = "harness/ring.rs"]
mod ring;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use adea_ring::report::Role;
use adea_ring::tls::Credentials;
use adea_ring::{Identity, RingSecret, Signer};
use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rean::Limits;
use rean::ring::wire::{Wire, WireError};
use ring::{DEADLINE, TestRing, admin, id, until, user};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

/// A body of zeros that counts what is taken of it, and ends after `chunks` of 64 KiB.
fn counted(chunks: usize) -> (Body, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    let pieces = stream::iter(0..chunks).map(move |_| {
        counter.fetch_add(64 << 10, Ordering::Relaxed);
        Ok::<_, Infallible>(Bytes::from_static(&[0; 64 << 10]))
    });
    (Body::from_stream(pieces), taken)
}

/// A body of which one piece comes at once, and the rest when it is let go.
fn held(first: &'static str, rest: &'static str) -> (Body, Arc<Notify>) {
    let go = Arc::new(Notify::new());
    let wait = Arc::clone(&go);
    let rest = stream::once(async move {
        wait.notified().await;
        Ok::<_, Infallible>(Bytes::from_static(rest.as_bytes()))
    });
    let first = stream::once(async move { Ok(Bytes::from_static(first.as_bytes())) });
    (Body::from_stream(first.chain(rest)), go)
}

fn put(path: &str, body: Body) -> http::Request<Body> {
    http::Request::put(path).header("content-type", "application/json").body(body).expect("a request")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_at_a_follower_is_done_on_the_master_with_its_authors_rights() {
    let ring = TestRing::with_master(2, 0).await;
    ring.make_db(1, "notes", &["ann"]).await;
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    let answer = ring.put(1, &ann, "/notes/a%2Fb?batch=no", json!({"by": "ann"})).await;
    assert!(answer.header("x-adea-applied").is_none() && answer.header("x-adea-w").is_none());
    let etag = answer.header("etag").expect("a tag").to_owned();
    let written = answer.expect(201);
    assert_eq!(etag, format!("\"{}\"", written["rev"].as_str().expect("a revision")));
    assert_eq!(ring.get(0, &ann, "/notes/a%2Fb").await.expect(200)["by"], "ann");

    for (who, method, path, status) in [
        (&bob, "PUT", "/notes/b", 403),
        (&Identity::anonymous(), "PUT", "/notes/b", 401),
        (&ann, "PUT", "/notes/_design/d", 403),
        (&ann, "PUT", "/other", 401),
        (&ann, "DELETE", "/notes", 401),
        (&admin(), "PUT", "/_ring/pod:pod-1", 403),
        (&admin(), "PUT", "/_pods/pod:pod-1", 403),
    ] {
        let here = ring.send(0, who, method, path, Some(&json!({}))).await;
        let there = ring.send(1, who, method, path, Some(&json!({}))).await;
        assert_eq!(there.status, status, "{method} {path}: {}", there.text());
        assert_eq!((here.status, here.json()), (there.status, there.json()), "{method} {path}");
        assert_eq!(here.header("cache-control"), there.header("cache-control"));
    }
    assert_eq!(ring.get(0, &admin(), "/notes/b").await.status, 404);
    // Each pod's own matters stay with it.
    ring.put(0, &admin(), "/notes/_local/x", json!({"of": "pod-1"})).await.expect(201);
    assert_eq!(ring.send(1, &admin(), "POST", "/_session", None).await.status, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_at_a_follower_reads_it_there() {
    let ring = TestRing::with_master(2, 0).await;
    ring.make_db(1, "notes", &[]).await;
    let who = user("ann", &[]);
    let count = AtomicUsize::new(0);
    // A write that has come back in less than the time that a slow link is given is here.
    until("a link in good time", || async {
        let path = format!("/notes/{}", count.fetch_add(1, Ordering::Relaxed));
        let began = Instant::now();
        ring.put(1, &who, &path, json!({})).await.expect(201);
        let in_time = began.elapsed() < Duration::from_millis(900);
        let status = ring.get(1, &who, &path).await.status;
        assert!(status == 200 || !in_time, "{status}");
        in_time
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_through_a_follower() {
    let ring = TestRing::with_master(2, 0).await;
    ring.make_db(1, "files", &[]).await;
    let bytes: Vec<u8> = (0..20_u32 << 20).map(|at| (at % 251) as u8).collect();
    let request = http::Request::put("/files/a/data.bin").header("content-type", "application/octet-stream");
    let pieces: Vec<Result<Bytes, Infallible>> = bytes.chunks(50_000).map(|piece| Ok(piece.to_vec().into())).collect();
    let request = request.body(Body::from_stream(stream::iter(pieces))).expect("a request");
    assert_eq!(ring.request(1, &user("ann", &[]), request).await.status, 201);
    let answer = ring.get(0, &admin(), "/files/a/data.bin").await;
    assert!(answer.status == 200 && answer.body == bytes, "it is the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_does_not_read_stops_the_client() {
    let ring = TestRing::start(1).await;
    let quiet = Arc::new(Notify::new());
    let wait = Arc::clone(&quiet);
    let address = fake_pod(&ring.secret, move |_request| {
        let wait = Arc::clone(&wait);
        async move {
            wait.notified().await;
            Some(http::Response::builder().status(413).body(Body::empty()).expect("an answer"))
        }
    })
    .await;
    follow(&ring, &address).await;
    let (body, taken) = counted(1_000);
    let who = admin();
    let (answer, ()) = tokio::join!(ring.request(0, &who, put("/files/a/data.bin", body)), async {
        // Until nothing more is taken for half a second.
        let (mut last, mut still) = (0, 0);
        while still < 50 || last == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = taken.load(Ordering::Relaxed);
            still = if now == last { still + 1 } else { 0 };
            last = now;
        }
        assert!(last < 16 << 20, "{last} bytes of {} were taken", 1_000 << 16);
        quiet.notify_one();
    });
    assert_eq!(answer.status, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_master_a_write_waits_and_is_refused() {
    let ring = TestRing::start(1).await;
    ring.configure(json!({"write": {"wait_ms": 300}})).await;
    ring.tell(0, &ring.state(0, Role::Waiting)).await;
    let began = Instant::now();
    let answer = ring.send(0, &admin(), "PUT", "/notes", None).await;
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!((answer.header("retry-after"), answer.status.as_u16()), (Some("1"), 503));
    assert_eq!(answer.json()["error"], "no_master");
    // Reads go on, and so do each pod's own matters.
    ring.get(0, &admin(), "/_ring").await.expect(200);
    ring.put(0, &admin(), "/_ring/_local/x", json!({})).await.expect(201);
    assert_eq!(ring.get(0, &Identity::anonymous(), "/").await.expect(200)["adea"]["role"], "waiting");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_appears_gets_the_writes_that_wait() {
    let ring = TestRing::start(2).await;
    ring.configure(json!({"write": {"wait_ms": 15_000}})).await;
    for at in 0..2 {
        ring.tell(at, &ring.state(at, Role::Waiting)).await;
    }
    let who = admin();
    let (large, _) = counted(16);
    let file = async {
        let request = put("/_users/org.couchdb.user:ann", Body::from(r#"{"name":"ann","type":"user","roles":[]}"#));
        ring.request(1, &who, request).await
    };
    let (first, second, third, _) = tokio::join!(
        ring.send(0, &who, "PUT", "/one", None),
        ring.send(1, &who, "PUT", "/two", None),
        file,
        ring.elect(0)
    );
    assert_eq!([first.status.as_u16(), second.status.as_u16(), third.status.as_u16()], [201; 3]);
    for path in ["/one", "/two", "/_users/org.couchdb.user:ann"] {
        ring.get(0, &who, path).await.expect(200);
    }

    // A streamed body that has not been touched waits too: its master is not where it is said to be.
    let epoch = ring.next_epoch(0);
    let mut lost = ring.state(1, Role::Follower(epoch.clone()));
    lost.members[0].member.address = "127.0.0.1:1".to_owned();
    ring.tell(1, &lost).await;
    let back = async {
        ring.tell(0, &ring.state(0, Role::Master(epoch.clone()))).await;
        ring.tell(1, &ring.state(1, Role::Follower(epoch.clone()))).await;
    };
    let (answer, ()) = tokio::join!(ring.request(1, &who, put("/one/a/data.bin", large)), back);
    assert_eq!(answer.status, 201, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pods_that_take_one_another_for_master_do_not_loop() {
    let ring = TestRing::start(2).await;
    ring.configure(json!({"write": {"wait_ms": 300}})).await;
    for at in 0..2 {
        let epoch = ring.next_epoch(1 - at);
        ring.tell(at, &ring.state(at, Role::Follower(epoch))).await;
    }
    for at in 0..2 {
        let answer = ring.send(at, &admin(), "PUT", "/notes", None).await;
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, Some("1")));
        assert_eq!(answer.json()["error"], "no_master");
        assert!(answer.header("x-adea-not-master").is_none());
        // Of a streamed body a part is gone by then, so it is not tried again.
        let (body, _go) = held("{", "}");
        let answer = ring.request(at, &admin(), put("/notes/a", body)).await;
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, Some("1")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_not_master_says_so_before_it_reads_anything() {
    let ring = TestRing::with_master(2, 0).await;
    let wire = caller(&ring.secret, "pod-1", &ring.secret);
    let (body, _go) = held("{", "}");
    let mut request = put("/notes/a", body);
    wire.identify(request.headers_mut());
    let address = ring.at(1).ring_address.to_string();
    let asked = id("pod-2");
    let answer = tokio::time::timeout(DEADLINE, wire.send(&asked, &address, request))
        .await
        .expect("in time")
        .expect("an answer");
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("x-adea-not-master"));
    let text = answer.into_body().collect().await.expect("a body").to_bytes();
    assert!(String::from_utf8_lossy(&text).contains("not_master"));
    // Reads are answered there.
    let mut request = http::Request::get("/_ring").body(Body::empty()).expect("a request");
    wire.identify(request.headers_mut());
    assert_eq!(wire.send(&id("pod-2"), &address, request).await.expect("an answer").status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_waits_for_the_writes_under_way() {
    let ring = TestRing::with_master(2, 0).await;
    ring.make_db(0, "notes", &[]).await;
    let (body, go) = held(r#"{"a":"#, "1}");
    let who = admin();
    let epoch = ring.next_epoch(1);
    let (answer, facts, ()) = tokio::join!(
        ring.request(0, &who, put("/notes/a", body)),
        async {
            until("the write is let in", || async { ring.pod(0).ring.gate.inside() == 1 }).await;
            ring.tell(0, &ring.state(0, Role::Follower(epoch.clone()))).await
        },
        async {
            until("the gate is shut", || async { !ring.pod(0).ring.is_master() }).await;
            assert_eq!(ring.pod(0).ring.gate.inside(), 1);
            go.notify_one();
        }
    );
    answer.expect(201);
    assert_eq!((facts.role, facts.start), (Role::Follower(epoch), None));

    // One that does not come to its end is cut off, and nothing of it is done afterwards.
    ring.elect(0).await;
    let (body, go) = held(r#"{"b":"#, "1}");
    let (answer, facts) = tokio::join!(ring.request(0, &who, put("/notes/b", body)), async {
        until("the write is let in", || async { ring.pod(0).ring.gate.inside() == 1 }).await;
        let facts = ring.tell(0, &ring.state(0, Role::Waiting)).await;
        assert_eq!(ring.pod(0).ring.gate.inside(), 0);
        go.notify_one();
        facts
    });
    assert_eq!((answer.status.as_u16(), facts.role), (503, Role::Waiting));
    assert_eq!(answer.json()["error"], "unknown_outcome");
    assert_eq!(ring.get(0, &who, "/notes/b").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_is_not_sent_again() {
    let ring = TestRing::start(1).await;
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let address = fake_pod(&ring.secret, move |request| {
        let counter = Arc::clone(&counter);
        async move {
            let _ = request.into_body().collect().await;
            counter.fetch_add(1, Ordering::Relaxed);
            None
        }
    })
    .await;
    follow(&ring, &address).await;
    let answer = ring.put(0, &admin(), "/notes/a", json!({})).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["error"], "unknown_outcome");
    assert!(answer.header("retry-after").is_none());
    assert_eq!(seen.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_at_the_master_breaks_off_at_the_follower() {
    let ring = TestRing::start(1).await;
    let go = Arc::new(Notify::new());
    let wait = Arc::clone(&go);
    let address = fake_pod(&ring.secret, move |_request| {
        let wait = Arc::clone(&wait);
        let first = stream::once(async { Ok(Bytes::from_static(b"[{")) });
        let rest = stream::once(async move {
            wait.notified().await;
            Err(std::io::Error::other("broken"))
        });
        let answer = http::Response::builder().status(201).body(Body::from_stream(first.chain(rest)));
        std::future::ready(Some(answer.expect("an answer")))
    })
    .await;
    follow(&ring, &address).await;
    let mut request = put("/notes/_bulk_docs", Body::from("{}"));
    *request.uri_mut() = format!("http://{}/notes/_bulk_docs", ring.at(0).address).parse().expect("a URI");
    for (name, value) in Signer::new(&ring.secret).headers(&admin()) {
        request.headers_mut().insert(name, value.parse().expect("a header"));
    }
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http::<Body>();
    let answer = client.request(request).await.expect("the head of an answer");
    assert_eq!(answer.status(), 201);
    go.notify_one();
    assert!(answer.into_body().collect().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_gets_through_the_port_for_pods() {
    let ring = TestRing::with_master(2, 0).await;
    let address = ring.at(0).ring_address.to_string();
    let asking = |wire: &Wire| {
        let mut request = http::Request::get("/_ring").body(Body::empty()).expect("a request");
        wire.identify(request.headers_mut());
        request
    };
    // Right headers, over a connection with another ring's certificate: neither side accepts the other.
    let stranger = caller(&RingSecret::random(), "pod-2", &ring.secret);
    let refused = stranger.send(&id("pod-1"), &address, asking(&stranger)).await.expect_err("refused");
    assert!(matches!(refused, WireError::NotSent { .. }), "{refused}");
    // Another pod than the one that is meant.
    let friend = caller(&ring.secret, "pod-2", &ring.secret);
    let refused = friend.send(&id("pod-3"), &address, asking(&friend)).await.expect_err("refused");
    assert!(matches!(refused, WireError::NotSent { .. }), "{refused}");
    // No TLS at all.
    let plain = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http::<Body>();
    let request = http::Request::get(format!("http://{address}/_up")).body(Body::empty()).expect("a request");
    assert!(plain.request(request).await.is_err());
    until("all three are counted", || async { ring.pod(0).ring.refused() == 3 }).await;

    // The right certificate gives no right by itself.
    let request = http::Request::get("/_ring").body(Body::empty()).expect("a request");
    assert_eq!(friend.send(&id("pod-1"), &address, request).await.expect("an answer").status(), 401);
    let liar = caller(&ring.secret, "pod-2", &RingSecret::random());
    assert_eq!(liar.send(&id("pod-1"), &address, asking(&liar)).await.expect("an answer").status(), 401);
    assert_eq!(friend.send(&id("pod-1"), &address, asking(&friend)).await.expect("an answer").status(), 200);

    // What adea says comes from this pod's adea alone.
    let state = serde_json::to_value(ring.state(0, Role::Waiting)).expect("JSON");
    let mut request = http::Request::post("/_pod/ring").header("content-type", "application/json");
    request.headers_mut().map(|headers| friend.identify(headers)).expect("a good request");
    let request = request.body(Body::from(state.to_string())).expect("a request");
    assert_eq!(friend.send(&id("pod-1"), &address, request).await.expect("an answer").status(), 404);
    assert_eq!(ring.post(0, &admin(), "/_pod/ring", state.clone()).await.status, 401);
    assert_eq!(ring.post(1, &Identity::system(), "/_pod/ring", state).await.status, 400);
    assert!(ring.pod(0).ring.is_master());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_says_on_how_many_pods_it_is() {
    let mut ring = TestRing::with_master(3, 0).await;
    ring.configure(json!({"write": {"wait_ms": 300}})).await;
    ring.make_db(0, "notes", &[]).await;
    let who = user("ann", &[]);
    for bad in ["0", "x", "-1", "1.5", "101", ""] {
        let answer = ring.put(1, &who, &format!("/notes/a?w={bad}"), json!({})).await;
        assert_eq!(answer.status, 400, "{bad}");
        assert!(answer.json()["reason"].as_str().is_some_and(|reason| reason.contains(" w:")), "{}", answer.text());
    }
    let answer = ring.put(0, &who, "/notes/a?w=1", json!({})).await;
    assert!(answer.header("x-adea-w").is_none());
    answer.expect(201);
    // More than there are: that is known at once, also through a follower.
    let answer = ring.put(1, &who, "/notes/b?w=4", json!({})).await;
    assert!(answer.header("x-adea-w").is_some_and(|w| w.ends_with("/4")), "{:?}", answer.headers);
    let rev = answer.expect(202)["rev"].clone();
    let path = format!("/notes/b?w=4&rev={}", rev.as_str().expect("a revision"));
    assert_eq!(ring.send(0, &who, "DELETE", &path, None).await.status, 202);
    // A 200 of something else than a deletion stays.
    let security = json!({"members": {"names": [], "roles": []}});
    assert_eq!(ring.put(0, &admin(), "/notes/_security?w=4", security).await.status, 200);

    // Pods that are taken for alive and don't answer are waited for.
    let mut state = ring.state(0, ring.pod(0).ring.role());
    ring.take_down(1).await;
    ring.take_down(2).await;
    state.generation = 2;
    ring.tell(0, &state).await;
    let began = Instant::now();
    let answer = ring.put(0, &who, "/notes/c?w=2", json!({})).await;
    assert_eq!(answer.header("x-adea-w"), Some("1/2"));
    answer.expect(202);
    assert!(began.elapsed() >= Duration::from_millis(300));
    // As the app's default.
    ring.pod(0).ring.app_w.write().insert("notes".to_owned(), 2);
    ring.put(0, &who, "/notes/d", json!({})).await.expect(202);
    ring.put(0, &who, "/notes/e?w=1", json!({})).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_of_which_nobody_speaks_takes_no_writes() {
    let limits = Limits { max_silence_ms: 1_000, ..Limits::default() };
    let ring = TestRing::start_with(2, limits).await;
    ring.configure(json!({"write": {"wait_ms": 100}})).await;
    let start = ring.elect(0).await;
    let follower = ring.pod(1).ring.role();
    until("it has given up", || async { !ring.pod(0).ring.is_master() }).await;
    let answer = ring.send(0, &admin(), "PUT", "/notes", None).await;
    assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (503, Some("no_master")));
    assert_eq!((ring.pod(0).ring.role(), ring.pod(1).ring.role()), (Role::Waiting, follower));
    // adea is back, and has not heard of another master meanwhile.
    let facts = ring.tell(0, &ring.state(0, Role::Master(start.epoch.clone()))).await;
    assert_eq!(facts.role, Role::Master(start.epoch.clone()));
    assert_eq!(facts.caught_up_to, Some(start.epoch));
    ring.send(0, &admin(), "PUT", "/notes", None).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_says_when_it_is_caught_up() {
    let ring = TestRing::start(2).await;
    let epoch = ring.next_epoch(0);
    let facts = ring.tell(0, &ring.state(0, Role::Master(epoch.clone()))).await;
    // Its workers may have written since.
    let start = facts.start.expect("a start");
    assert!(start.epoch == epoch && start.seq <= ring.pod(0).store.seq());
    // A master that began further on than anything that has come here.
    let role = Role::Follower(epoch.clone());
    let mut ahead = ring.state(1, role.clone());
    ahead.members[0].said.start.as_mut().expect("a start").seq = u64::MAX;
    assert_eq!(ring.tell(1, &ahead).await.caught_up_to, None);
    until("what the master had has come", || async {
        ring.tell(1, &ring.state(1, role.clone())).await.caught_up_to == Some(epoch.clone())
    })
    .await;
    // It stays so, whatever the master says later.
    assert_eq!(ring.tell(1, &ahead).await.caught_up_to, Some(epoch));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pod_says_who_takes_the_writes() {
    let ring = TestRing::start(2).await;
    let start = ring.elect(1).await;
    assert_eq!((start.origin.pod, start.epoch.pod()), (id("pod-2"), &id("pod-2")));
    let about = |answer: ring::Answer| answer.expect(200)["adea"].clone();
    let master = json!({"pod": "pod-2", "url": "http://pod-2.example"});
    for (at, role) in [(0, "follower"), (1, "master")] {
        let said = about(ring.get(at, &Identity::anonymous(), "/").await);
        let wanted: Value = json!({"pod": format!("pod-{}", at + 1), "role": role, "master": master, "pods": "/_pods"});
        assert_eq!(said, wanted);
    }
}

/// A way to pods with this ring's certificate, and identities signed under that one's secret.
fn caller(ring: &RingSecret, me: &str, signed: &RingSecret) -> Wire {
    Wire::new(&Credentials::issue(ring, &id(me)).expect("credentials"), &Signer::new(signed))
}

/// Makes the only pod of a ring follow a pod at this address.
async fn follow(ring: &TestRing, address: &str) {
    let epoch = "000000000001-0000-fake".parse().expect("a stamp");
    let mut state = ring.state(0, Role::Follower(epoch));
    let mut fake = state.members[0].clone();
    fake.member.id = id("fake");
    fake.member.address = address.to_owned();
    state.members.insert(0, fake);
    ring.tell(0, &state).await;
}

/// A pod named `fake` that answers writes as the test says; where it has no answer, the connection breaks.
async fn fake_pod<A, F>(secret: &RingSecret, answer: A) -> String
where
    A: Fn(http::Request<hyper::body::Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Option<http::Response<Body>>> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(Credentials::issue(secret, &id("fake")).expect("credentials").server_config());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let broken = Arc::new(Notify::new());
            let (answer, breaks) = (answer.clone(), Arc::clone(&broken));
            let service = service_fn(move |request: http::Request<_>| {
                // Links ask it things too.
                let is_link = request.uri().path().starts_with("/_pod/");
                let (answer, breaks) = ((!is_link).then(|| answer(request)), Arc::clone(&breaks));
                async move {
                    let Some(answer) = answer else {
                        let refusal = http::Response::builder().status(404).body(Body::empty());
                        return Ok::<_, Infallible>(refusal.expect("an answer"));
                    };
                    if let Some(answer) = answer.await {
                        return Ok(answer);
                    }
                    breaks.notify_one();
                    std::future::pending().await
                }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let serving = builder.serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move {
                tokio::select! {
                    _ = serving => {}
                    () = broken.notified() => {}
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_under_way_to_a_master_that_is_lost_is_given_up_at_once() {
    let mut ring = TestRing::with_master(3, 0).await;
    ring.make_db(1, "notes", &["ann"]).await;
    ring.configure(json!({"write": {"wait_ms": 30_000}})).await;
    ring.take_down(2).await;
    // The master takes the third pod for alive, and waits for it.
    let mut state = ring.state(0, ring.pod(0).ring.role());
    state.members.iter_mut().for_each(|known| known.member.alive = true);
    ring.tell(0, &state).await;
    let began = Instant::now();
    let who = user("ann", &[]);
    let write = ring.put(1, &who, "/notes/a?w=3", json!({}));
    let lose = async {
        until("the write is done on the master", || async {
            ring.get(0, &user("ann", &[]), "/notes/a").await.status == 200
        })
        .await;
        let mut state = ring.state(1, Role::Waiting);
        state.members.iter_mut().for_each(|known| known.member.alive = known.member.id == id("pod-2"));
        ring.tell(1, &state).await;
    };
    let (answer, ()) = tokio::join!(write, lose);
    assert_eq!(answer.expect(503)["error"], "unknown_outcome");
    assert!(began.elapsed() < Duration::from_secs(15), "it was waited for");
}
