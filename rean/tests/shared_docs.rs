//! Databases, instructions, status and diverged documents with several pods of a ring.

#[path = "harness/ring.rs"]
mod ring;

use std::time::Duration;

use adea_ring::report::Role;
use rean::ring::divergence;
use ring::{TestRing, admin, user};
use serde_json::{Value, json};

const INSTRUCTIONS: &str = "/_ring/_all_docs?startkey=%22instruction:%22&endkey=%22instruction%3B%22";

async fn status(ring: &TestRing, at: usize, path: &str) -> u16 {
    ring.get(at, &admin(), path).await.status.as_u16()
}

/// Waits until something is so, and tells the pods the ring meanwhile, as adea does: a master that hears nothing steps
/// down.
async fn until(ring: &TestRing, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + ring::DEADLINE;
    let mut told = tokio::time::Instant::now();
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
        if told.elapsed() > Duration::from_millis(500) {
            ring.tell_all().await;
            told = tokio::time::Instant::now();
        }
    }
}

/// Tells a pod that it is master and knows of no other.
async fn cut_off(ring: &TestRing, at: usize) {
    let mut state = ring.state(at, Role::Master(ring.next_epoch(at)));
    state.neighbours.clear();
    state.members.retain(|known| known.member.id == state.me);
    let facts = ring.tell(at, &state).await;
    assert_eq!(facts.role, state.role);
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_are_there_for_who_made_them_and_go_everywhere() {
    let mut ring = TestRing::with_master(3, 0).await;
    // Made at a follower, it is there for the next request, whichever pod the first went to.
    ring.send(1, &admin(), "PUT", "/app?access=true", None).await.expect(201);
    ring.get(1, &admin(), "/app/_access").await.expect(200);
    ring.make_db(2, "notes", &["ann"]).await;
    for at in 0..3 {
        until(&ring, "it is everywhere", async || status(&ring, at, "/app/_access").await == 200).await;
        until(&ring, "so are its rights", async || ring.get(at, &user("ann", &[]), "/notes").await.status == 200).await;
        assert_eq!(ring.get(at, &user("bob", &[]), "/notes").await.status, 403);
    }
    ring.put(1, &admin(), "/notes/old", json!({})).await.expect(201);
    until(&ring, "the document is everywhere", async || status(&ring, 2, "/notes/old").await == 200).await;

    // While a pod is away, the database is deleted and made anew.
    ring.take_down(2).await;
    ring.tell_all().await;
    ring.send(1, &admin(), "DELETE", "/notes", None).await.expect(200);
    until(&ring, "it is gone", async || status(&ring, 1, "/notes").await == 404).await;
    ring.send(1, &admin(), "PUT", "/notes", None).await.expect(201);
    ring.put(1, &admin(), "/notes/new", json!({})).await.expect(201);
    ring.bring_up(2).await;
    ring.tell(2, &ring.state(2, Role::Follower(ring.pod(0).ring.role().epoch().expect("an epoch").clone()))).await;
    ring.tell_all().await;
    until(&ring, "the new one is there", async || status(&ring, 2, "/notes/new").await == 200).await;
    for at in 0..3 {
        assert_eq!(status(&ring, at, "/notes/old").await, 404, "{at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_of_a_split_keep_what_they_made_and_what_diverged_is_reported() {
    let ring = TestRing::with_master(2, 0).await;
    ring.send(0, &admin(), "PUT", "/both", None).await.expect(201);
    let made = ring.put(0, &admin(), "/both/x", json!({"by": "all"})).await.expect(201);
    until(&ring, "it is on both", async || status(&ring, 1, "/both/x").await == 200).await;

    for at in [0, 1] {
        cut_off(&ring, at).await;
    }
    for at in [0, 1] {
        ring.send(at, &admin(), "PUT", "/notes", None).await.expect(201);
        ring.put(at, &admin(), &format!("/notes/of-{at}"), json!({})).await.expect(201);
        ring.put(at, &admin(), "/both/x", json!({"_rev": made["rev"], "by": at})).await.expect(201);
    }
    // The one with the newer epoch stays.
    let epoch = ring.pod(1).ring.role().epoch().expect("an epoch").clone();
    ring.tell(0, &ring.state(0, Role::Follower(epoch.clone()))).await;
    ring.tell(1, &ring.state(1, Role::Master(epoch))).await;
    for at in [0, 1] {
        for path in ["/notes/of-0", "/notes/of-1"] {
            until(&ring, "what both wrote is on both", async || status(&ring, at, path).await == 200).await;
        }
    }
    let report = format!("/_ring/{}", divergence::doc_id("both", "x").replace(':', "%3A"));
    for at in [0, 1] {
        until(&ring, "it is reported", async || status(&ring, at, &report).await == 200).await;
    }
    let told = ring.get(0, &admin(), &report).await.expect(200);
    assert_eq!((&told["db"], &told["id"], &told["by"]), (&json!("both"), &json!("x"), &json!("pod-2")));
    let doc = ring.get(0, &admin(), "/both/x?conflicts=true").await.expect(200);
    assert_eq!(told["revs"], json!([doc["_rev"], doc["_conflicts"][0]]));
    assert_eq!(ring.get(0, &user("ann", &[]), &report).await.status, 403);

    // Resolved by somebody, the report goes.
    let losing = doc["_conflicts"][0].as_str().expect("a revision").to_owned();
    ring.send(0, &admin(), "DELETE", &format!("/both/x?rev={losing}"), None).await.expect(200);
    divergence::review(ring.pod(1)).await.expect("the store answers");
    until(&ring, "the report is gone", async || status(&ring, 0, &report).await == 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_pods_say_what_they_have_carried_out_and_the_master_prunes() {
    let mut ring = TestRing::with_master(3, 0).await;
    ring.send(0, &admin(), "PUT", "/app?access=true", None).await.expect(201);
    let readers = |who: &str| json!({"read": [format!("user:{who}")]});
    let mut rev = ring.put(0, &admin(), "/app/a", json!({"access": readers("ann")})).await.expect(201)["rev"].clone();
    until(&ring, "it is on all", async || {
        status(&ring, 1, "/app/a").await == 200 && status(&ring, 2, "/app/a").await == 200
    })
    .await;
    ring.take_down(2).await;
    ring.tell_all().await;
    for who in ["bob", "cyn", "ann"] {
        let doc = json!({"_rev": rev, "access": readers(who)});
        rev = ring.put(1, &admin(), "/app/a", doc).await.expect(201)["rev"].clone();
    }
    let newest = |at: usize| ring.pod(at).ring.carried_out().map(|number| number.to_string());
    let third = format!("{}.0000000003", ring.pod(0).ring.role().epoch().expect("an epoch"));
    for at in [0, 1] {
        until(&ring, "it is carried out", async || newest(at) == Some(third.clone())).await;
        let path = format!("/_ring/pod:pod-{}", at + 1);
        until(&ring, "and said", async || {
            let said = ring.get(at, &admin(), &path).await;
            said.status == 200 && said.json()["carried_out"] == third.as_str()
        })
        .await;
    }
    // A pod is away: nothing is pruned.
    assert_eq!(ring.get(0, &admin(), INSTRUCTIONS).await.expect(200)["rows"].as_array().map(Vec::len), Some(3));
    ring.bring_up(2).await;
    let epoch = ring.pod(0).ring.role().epoch().expect("an epoch").clone();
    ring.tell(2, &ring.state(2, Role::Follower(epoch))).await;
    ring.tell_all().await;
    for at in 0..3 {
        until(&ring, "all but the last are pruned", async || {
            let left = ring.get(at, &admin(), INSTRUCTIONS).await.expect(200)["rows"].clone();
            let ids: Vec<&Value> = left.as_array().expect("rows").iter().map(|row| &row["id"]).collect();
            ids == [&format!("instruction:{third}")]
        })
        .await;
    }
    let said = ring.get(1, &admin(), "/_ring/pod:pod-2").await.expect(200);
    assert_eq!((&said["role"], &said["master"]), (&json!("follower"), &json!("pod-1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_pod_tells_everyone_of_all_pods_and_the_ring_comes_to_rest() {
    let mut ring = TestRing::with_master(3, 1).await;
    ring.tell_all().await;
    let nobody = adea_ring::Identity::anonymous();
    let role = async |ring: &TestRing, at: usize, of: usize| {
        let info = ring.get(at, &nobody, &format!("/_pods/pod:pod-{of}")).await;
        if info.status == 200 { info.json()["role"].as_str().unwrap_or_default().to_owned() } else { String::new() }
    };
    for at in 0..3 {
        for (of, wanted) in [(1, "follower"), (2, "master"), (3, "follower")] {
            until(&ring, "roles are told", async || role(&ring, at, of).await == wanted).await;
        }
    }
    let info = ring.get(0, &nobody, "/_pods/pod:pod-2").await.expect(200);
    assert_eq!(info["url"], "http://pod-2.example");
    let text = info.to_string();
    for of in 0..3 {
        assert!(!text.contains(&ring.at(of).ring_address.to_string()), "{text}");
    }
    // Statuses travel, and don't set one another off: with nothing to tell, nobody writes.
    until(&ring, "all statuses are everywhere", async || {
        let mut all = true;
        for at in 0..3 {
            for of in 1..=3 {
                all &= status(&ring, at, &format!("/_ring/pod:pod-{of}")).await == 200;
            }
        }
        all
    })
    .await;
    let deadline = tokio::time::Instant::now() + ring::DEADLINE;
    loop {
        let before = ring.pod(0).store.seq();
        // Longer than the shortest pause between two statuses.
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            ring.tell_all().await;
        }
        if ring.pod(0).store.seq() == before {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the ring does not come to rest");
    }

    ring.take_down(2).await;
    ring.tell_all().await;
    until(&ring, "it is told that a pod is gone", async || role(&ring, 0, 3).await == "gone").await;
    let mut state = ring.state(0, ring.pod(0).ring.role());
    state.members.last_mut().expect("a member").member.left = true;
    ring.tell(0, &state).await;
    // By the harness's own waiting, which doesn't tell the pods anything else meanwhile.
    ring::until("a pod that left is not there any more", || async {
        status(&ring, 0, "/_pods/pod:pod-3").await == 404
    })
    .await;
}
