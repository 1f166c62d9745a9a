//! What an operator may want of a pod, and what a full disk does to it: it takes no clients, has been removed, or takes no
//! new data.

#[path = "harness/ring.rs"]
mod ring;

use std::time::Duration;

use adea_ring::config::{DiskConfig, PodState};
use adea_ring::host::DiskLevel;
use adea_ring::report::Role;
use adea_ring::{Identity, PodId, RingConfig};
use axum::body::Body;
use http::HeaderMap;
use http_body_util::BodyExt;
use rean::pod::Pod;
use rean::ring::removal::{self, REMOVED_HEADER};
use ring::{DEADLINE, TestRing, admin, id, until, user};
use serde_json::{Value, json};

/// How soon a feed ends when its pod takes no clients any more.
const FEED_END: Duration = Duration::from_secs(2);

fn system() -> Identity {
    Identity::system()
}

/// MiB that are free on the disk of the tests.
fn free_mib() -> u64 {
    let found = rustix::fs::statvfs(std::env::temp_dir()).expect("a disk");
    (found.f_bavail * found.f_frsize) >> 20
}

/// Limits by which the disk of the tests is full, and not to the last byte.
fn full() -> DiskConfig {
    let mib = free_mib() * 2;
    DiskConfig { low_percent: 0.0, low_mib: mib, full_percent: 0.0, full_mib: mib }
}

/// Lets one pod find its disk full, or roomy again.
fn set_disk(pod: &Pod, disk: DiskConfig) {
    pod.ring.set_config(RingConfig { disk, ..(*pod.ring.config()).clone() });
    pod.room.look(&disk);
}

impl TestRing {
    async fn is_there(&self, at: usize, path: &str) -> bool {
        self.get(at, &admin(), path).await.status == 200
    }

    /// Writes the states of pods by way of a pod, and waits until some have them in force.
    async fn set_states(&self, by: usize, states: Value, known_to: &[usize]) {
        let mut doc = match self.get(by, &admin(), "/_ring/config").await {
            answer if answer.status == 200 => answer.json(),
            _ => json!({}),
        };
        doc["pods"] = states;
        self.put(by, &admin(), "/_ring/config", doc.clone()).await.expect(201);
        let wanted = RingConfig::parse(&doc).expect("a good configuration").pods;
        for at in known_to {
            until("the states are known", || async { self.pod(*at).ring.config().pods == wanted }).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inactive_pod_sends_its_clients_to_the_others_and_goes_on_replicating() {
    let ring = TestRing::with_master(2, 0).await;
    let ann = user("ann", &[]);
    ring.make_db(0, "notes", &["ann"]).await;
    ring.put(0, &ann, "/notes/a", json!({})).await.expect(201);
    until("the document arrives", || ring.is_there(1, "/notes/a")).await;

    // A feed that is open; one of an administrator, and one of the pods, go on.
    let open = |who: Identity, path: &'static str| {
        let headers = adea_ring::Signer::new(&ring.secret).headers(&who);
        let mut request = http::Request::get(format!("http://{}{path}", ring.at(1).address));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Body::empty()).expect("a request");
        let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
        async move { client.request(request).await.expect("an answer").into_body() }
    };
    let feed = open(ann.clone(), "/notes/_changes?feed=continuous&heartbeat=60000").await;
    let mut of_admin = open(admin(), "/notes/_changes?feed=continuous&heartbeat=60000&since=now").await;
    let of_pods = open(Identity::anonymous(), "/_pods/_changes?feed=longpoll&since=now&timeout=60000").await;

    ring.set_states(0, json!({"pod-2": "inactive"}), &[0]).await;
    let rest = tokio::time::timeout(FEED_END + Duration::from_secs(1), feed.collect()).await;
    let rest = rest.expect("it ends in time").expect("it ends well").to_bytes();
    assert!(String::from_utf8_lossy(&rest).contains("\"last_seq\""), "{rest:?}");

    for (who, path) in
        [(&ann, "/notes/a"), (&ann, "/notes/_changes"), (&Identity::anonymous(), "/"), (&ann, "/_all_dbs")]
    {
        let answer = ring.get(1, who, path).await;
        assert!(answer.header("retry-after").is_some(), "{path}: {}", answer.text());
        let body = answer.expect(503);
        assert_eq!((&body["error"], &body["pods"]), (&json!("inactive"), &json!(["http://pod-1.example"])), "{path}");
    }
    ring.put(1, &ann, "/notes/b", json!({})).await.expect(503);
    for path in ["/_session", "/_pods/_all_docs"] {
        ring.get(1, &Identity::anonymous(), path).await.expect(200);
    }
    assert_eq!(ring.get(1, &Identity::anonymous(), "/_up").await.expect(404), json!({"status": "inactive"}));
    ring.get(0, &Identity::anonymous(), "/_up").await.expect(200);
    ring.get(0, &ann, "/notes/a").await.expect(200);

    // Administrators use it, and it follows.
    ring.get(1, &admin(), "/notes/a").await.expect(200);
    ring.put(1, &admin(), "/notes/c", json!({})).await.expect(201);
    ring.put(0, &ann, "/notes/d", json!({})).await.expect(201);
    until("documents still arrive", || ring.is_there(1, "/notes/d")).await;
    let frame = tokio::time::timeout(DEADLINE, of_admin.frame()).await.expect("in time").expect("more").expect("data");
    assert!(frame.is_data());
    let told = tokio::time::timeout(DEADLINE, of_pods.collect()).await.expect("in time").expect("it ends well");
    assert!(String::from_utf8_lossy(&told.to_bytes()).contains("pod:pod-"));
    for at in [0, 1] {
        until("everyone may know", || async {
            ring.get(at, &Identity::anonymous(), "/_pods/pod:pod-2").await.json()["state"] == "inactive"
        })
        .await;
    }
    until("it says so", || async { ring.get(0, &admin(), "/_ring/pod:pod-2").await.json()["state"] == "inactive" })
        .await;

    ring.set_states(0, json!({}), &[0, 1]).await;
    ring.get(1, &ann, "/notes/a").await.expect(200);
    ring.get(1, &Identity::anonymous(), "/_up").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_active_pod_that_is_there_stays_active() {
    let mut ring = TestRing::with_master(3, 0).await;
    let set =
        async |ring: &TestRing, states: Value| ring.put(0, &admin(), "/_ring/config", json!({"pods": states})).await;
    let refused = set(&ring, json!({"pod-1": "removed", "pod-2": "inactive", "pod-3": "removed"})).await.expect(400);
    assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains("`pods`")), "{refused}");
    set(&ring, json!({"pod-1": "asleep"})).await.expect(400);
    let bad = ring.put(0, &admin(), "/_ring/config", json!({"disk": {"low_percent": 1, "full_percent": 2}})).await;
    assert!(bad.expect(400)["reason"].as_str().is_some_and(|reason| reason.contains("disk.full_percent")));
    // Of two that would stay, none is there.
    for at in [1, 2] {
        ring.take_down(at).await;
    }
    ring.tell_all().await;
    set(&ring, json!({"pod-1": "inactive"})).await.expect(400);
    set(&ring, json!({"pod-2": "removed"})).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_pod_is_let_in_nowhere_and_its_status_goes_with_it() {
    let mut ring = TestRing::with_master(3, 0).await;
    until("it has a status", || ring.is_there(0, "/_ring/pod:pod-3")).await;
    until("it reads", || async { ring.pod(0).ring.links.feeds.readers().contains(&id("pod-3")) }).await;
    ring.set_states(0, json!({"pod-3": "removed"}), &[0, 1]).await;
    ring.tell_all().await;
    until("its feeds end", || async {
        (0..2).all(|at| !ring.pod(at).ring.links.feeds.readers().contains(&id("pod-3")))
    })
    .await;
    let wire = ring.pod(2).ring.wire().expect("a wire");
    let mut request = http::Request::get("/_pod/standing").body(Body::empty()).expect("a request");
    wire.identify(request.headers_mut());
    let answer = wire.send(&id("pod-1"), &ring.at(0).ring_address.to_string(), request).await.expect("an answer");
    assert_eq!(answer.status(), 410);
    let text = answer.into_body().collect().await.expect("a body").to_bytes();
    assert!(String::from_utf8_lossy(&text).contains("removed from the ring"), "{text:?}");

    // It learns of it, by its link or by the refusals, and adea with it.
    until("it knows", || async { ring.pod(2).ring.pod_state() == PodState::Removed }).await;
    let facts = ring.tell(2, &ring.state(2, ring.pod(2).ring.role())).await;
    assert_eq!(facts.config.state_of(&id("pod-3")), PodState::Removed);
    ring.get(2, &user("ann", &[]), "/_all_dbs").await.expect(503);

    ring.take_down(2).await;
    ring.tell_all().await;
    until("its status goes", || async { !ring.is_there(0, "/_ring/pod:pod-3").await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_removed_while_it_was_away_learns_it_from_the_refusals() {
    let mut ring = TestRing::with_master(2, 0).await;
    ring.put(0, &admin(), "/_ring/config", json!({"write": {"w": 1}})).await.expect(201);
    until("it has settings", || ring.is_there(1, "/_ring/config")).await;
    ring.take_down(1).await;
    ring.tell_all().await;
    ring.set_states(0, json!({"pod-2": "removed"}), &[0]).await;
    ring.bring_up(1).await;
    ring.tell_all().await;
    let epoch = ring.pod(0).ring.role().epoch().expect("an epoch").clone();
    ring.tell(1, &ring.state(1, Role::Follower(epoch))).await;
    until("it is told", || async { ring.pod(1).ring.pod_state() == PodState::Removed }).await;
    assert_eq!(ring.pod(1).ring.config().state_of(&id("pod-2")), PodState::Active, "its own settings are old");
    let facts = ring.tell(1, &ring.state(1, ring.pod(1).ring.role())).await;
    assert_eq!(facts.config.state_of(&id("pod-2")), PodState::Removed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_configuration_talks_nobody_out_of_the_ring() {
    let ring = TestRing::with_master(1, 0).await;
    for w in [1, 2] {
        let mut doc = json!({"write": {"w": w}});
        if w > 1 {
            doc["_rev"] = ring.get(0, &admin(), "/_ring/config").await.json()["_rev"].clone();
        }
        ring.put(0, &admin(), "/_ring/config", doc).await.expect(201);
    }
    let (pod, by): (_, PodId) = (ring.pod(0), id("pod-9"));
    let told =
        |rev: &str| HeaderMap::from_iter([(REMOVED_HEADER.parse().expect("a name"), rev.parse().expect("text"))]);
    for rev in ["1-ffffffffffffffffffffffffffffffff", "2-00000000000000000000000000000000", "", "zork"] {
        assert!(removal::note(pod, &by, &told(rev)));
        assert_eq!(pod.ring.pod_state(), PodState::Active, "{rev}");
    }
    assert!(!removal::note(pod, &by, &HeaderMap::new()));
    removal::note(pod, &by, &told("3-00000000000000000000000000000000"));
    assert_eq!(pod.ring.pod_state(), PodState::Removed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_takes_no_new_data_but_what_makes_room_and_keeps_the_ring_well() {
    let ring = TestRing::with_master(1, 0).await;
    let ann = user("ann", &[]);
    ring.make_db(0, "notes", &["ann"]).await;
    let mut revs = Vec::new();
    for name in ["a", "b", "c"] {
        revs.push(ring.put(0, &ann, &format!("/notes/{name}"), json!({})).await.expect(201)["rev"].clone());
    }
    let limits = full();
    let disk = json!({"low_percent": 0, "low_mib": limits.low_mib, "full_percent": 0, "full_mib": limits.full_mib});
    ring.put(0, &admin(), "/_ring/config", json!({"disk": disk})).await.expect(201);
    until("it is full", || async { ring.pod(0).room.is_full() }).await;

    let no_room = ring.put(0, &ann, "/notes/d", json!({})).await.expect(507);
    assert_eq!(no_room["error"], "insufficient_storage");
    ring.put(0, &ann, "/notes/a", json!({"_rev": revs[0]})).await.expect(507);
    ring.post(0, &ann, "/notes", json!({})).await.expect(507);
    ring.post(0, &ann, "/notes/_bulk_docs", json!({"docs": [{"_id": "d"}]})).await.expect(507);
    let pushed = json!({"new_edits": false, "docs": [{"_id": "d", "_rev": "1-a"}]});
    ring.post(0, &ann, "/notes/_bulk_docs", pushed).await.expect(507);
    // Not half of it: who is told of single documents goes on without them.
    let mixed = json!({"docs": [{"_id": "b", "_rev": revs[1], "_deleted": true}, {"_id": "d"}]});
    ring.post(0, &ann, "/notes/_bulk_docs", mixed).await.expect(507);
    ring.get(0, &ann, "/notes/b").await.expect(200);
    let loud = json!({"_id": "b", "_rev": revs[1], "_deleted": true, "text": "x".repeat(10_000)});
    ring.post(0, &ann, "/notes/_bulk_docs", json!({"docs": [loud]})).await.expect(507);
    let rev = revs[0].as_str().expect("a revision");
    ring.put(0, &ann, &format!("/notes/a/file?rev={rev}"), json!("x")).await.expect(507);
    ring.send(0, &admin(), "PUT", "/more", None).await.expect(507);
    ring.put(0, &admin(), "/_ring/image:00ff", json!({})).await.expect(507);

    ring.get(0, &ann, "/notes/a").await.expect(200);
    ring.send(0, &ann, "DELETE", &format!("/notes/a?rev={rev}"), None).await.expect(200);
    let deleted = json!({"docs": [{"_id": "b", "_rev": revs[1], "_deleted": true}]});
    ring.post(0, &ann, "/notes/_bulk_docs", deleted).await.expect(201);
    ring.put(0, &ann, "/notes/_local/place", json!({"n": 1})).await.expect(201);
    let account = json!({"name": "bob", "type": "user", "roles": [], "password": "a long password"});
    ring.put(0, &admin(), "/_users/org.couchdb.user:bob", account).await.expect(201);
    ring.send(0, &admin(), "POST", "/notes/_compact", Some(&json!({}))).await.expect(202);
    ring.post(0, &admin(), "/notes/_purge", json!({"c": [revs[2]]})).await.expect(201);
    for (path, who) in [("/_ring/pod:pod-1", admin()), ("/_pods/pod:pod-1", Identity::anonymous())] {
        until("it says so", || async { ring.get(0, &who, path).await.json()["disk"] == "full" }).await;
    }
    let facts = ring.tell(0, &ring.state(0, ring.pod(0).ring.role())).await;
    assert_eq!(facts.disk, DiskLevel::Full);

    // The way out is a setting, too.
    let mut doc = ring.get(0, &admin(), "/_ring/config").await.json();
    doc["disk"] = json!({"low_mib": 0, "full_mib": 0, "low_percent": 0, "full_percent": 0});
    ring.put(0, &admin(), "/_ring/config", doc).await.expect(201);
    until("there is room", || async { ring.pod(0).room.level() == DiskLevel::Roomy }).await;
    ring.put(0, &ann, "/notes/d", json!({})).await.expect(201);
    until("nothing is said", || async {
        ring.get(0, &Identity::anonymous(), "/_pods/pod:pod-1").await.json().get("disk").is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_nothing_goes_any_more_only_deletions_are_taken() {
    let ring = TestRing::with_master(1, 0).await;
    ring.make_db(0, "notes", &["ann"]).await;
    let rev = ring.put(0, &admin(), "/notes/a", json!({})).await.expect(201)["rev"].clone();
    let mib = free_mib() * 8;
    set_disk(ring.pod(0), DiskConfig { low_percent: 0.0, low_mib: mib, full_percent: 0.0, full_mib: mib });
    ring.put(0, &admin(), "/notes/_local/place", json!({})).await.expect(507);
    ring.put(0, &admin(), "/_ring/config", json!({})).await.expect(507);
    let rev = rev.as_str().expect("a revision");
    ring.send(0, &admin(), "DELETE", &format!("/notes/a?rev={rev}"), None).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pod_follows_accounts_and_settings_only_until_there_is_room_again() {
    let ring = TestRing::with_master(2, 0).await;
    ring.make_db(0, "notes", &["ann"]).await;
    ring.put(0, &admin(), "/notes/a", json!({})).await.expect(201);
    until("the document arrives", || ring.is_there(1, "/notes/a")).await;
    let before = DiskConfig { low_mib: 0, full_mib: 0, low_percent: 0.0, full_percent: 0.0 };
    set_disk(ring.pod(1), full());
    let link = || async { ring.get(1, &admin(), "/_pod/links").await.json()["links"][0]["state"].clone() };
    until("its link is paused", || async { link().await == "paused" }).await;

    ring.put(0, &admin(), "/notes/b", json!({})).await.expect(201);
    let account = json!({"name": "bob", "type": "user", "roles": [], "password": "a long password"});
    ring.put(0, &admin(), "/_users/org.couchdb.user:bob", account).await.expect(201);
    ring.put(0, &system(), "/_ring/session:0123", json!({})).await.expect(201);
    until("the account arrives", || ring.is_there(1, "/_users/org.couchdb.user:bob")).await;
    until("the session arrives", || ring.is_there(1, "/_ring/session:0123")).await;
    // What came before them did not.
    ring.get(1, &admin(), "/notes/b").await.expect(404);
    ring.get(1, &admin(), "/notes/a").await.expect(200);

    set_disk(ring.pod(1), before);
    until("all that was missed arrives", || ring.is_there(1, "/notes/b")).await;
    until("its link is live", || async { link().await == "live" }).await;
}
