//! Functions of design documents in a ring: the write master asks validators, and what it has taken arrives everywhere.

#[path = "harness/ring.rs"]
mod ring;

use ring::{DEADLINE, TestRing, admin, user};
use serde_json::{Value, json};

async fn put(ring: &TestRing, at: usize, path: &str, body: Value) -> Value {
    ring.put(at, &admin(), path, body).await.expect(201)
}

/// Waits until a pod has all that another one has at this moment.
async fn has_all_of(ring: &TestRing, at: usize, of: usize) {
    let (origin, seq) = (ring.pod(of).ring.origin.clone(), ring.pod(of).store.seq());
    assert!(ring.pod(at).ring.knowledge.wait_here(&origin, seq, DEADLINE).await, "{at} has not all of {of}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_at_a_follower_is_validated_on_the_master() {
    let ring = TestRing::with_master(2, 0).await;
    ring.make_db(1, "db", &["ann"]).await;
    let function = "function (n, o, userCtx) { if (n.bad) throw({forbidden: userCtx.name + ' ' + userCtx.db}); }";
    put(&ring, 1, "/db/_design/v", json!({"validate_doc_update": function})).await;
    let ann = user("ann", &[]);
    let refused = ring.put(1, &ann, "/db/a", json!({"bad": 1})).await.expect(403);
    assert_eq!(refused, json!({"error": "forbidden", "reason": "ann db"}));
    ring.put(1, &ann, "/db/a", json!({"good": 1})).await.expect(201);
    let updates = json!({"updates": {"u": "function (doc, req) { return [{_id: req.id}, req.userCtx.name]; }"}});
    put(&ring, 1, "/db/_design/u", updates).await;
    let answer = ring.post(1, &ann, "/db/_design/u/_update/u/made", json!({})).await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (201, "ann"));
    ring.get(0, &ann, "/db/made").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_pod_has_taken_no_validator_keeps_from_the_others() {
    let mut ring = TestRing::with_master(2, 0).await;
    ring.make_db(0, "db", &[]).await;
    let function = "function (n) { throw({forbidden: 'closed'}); }";
    put(&ring, 0, "/db/_design/v", json!({"validate_doc_update": function})).await;
    has_all_of(&ring, 1, 0).await;
    ring.take_down(1).await;
    let open = ring.get(0, &admin(), "/db/_design/v").await.expect(200)["_rev"].clone();
    let open = put(&ring, 0, "/db/_design/v", json!({"_rev": open})).await["rev"].clone();
    for n in 0..20 {
        put(&ring, 0, &format!("/db/d{n}"), json!({"n": n})).await;
    }
    put(&ring, 0, "/db/_design/v", json!({"_rev": open, "validate_doc_update": function})).await;
    // What this pod would not take from a client.
    let replicated = json!({"_rev": "1-aa", "views": "zork"});
    put(&ring, 0, "/db/_design/odd?new_edits=false", replicated).await;
    ring.put(0, &admin(), "/db/late", json!({})).await.expect(403);
    ring.bring_up(1).await;
    ring.elect(0).await;
    has_all_of(&ring, 1, 0).await;
    for n in 0..20 {
        ring.get(1, &admin(), &format!("/db/d{n}")).await.expect(200);
    }
    ring.get(1, &admin(), "/db/_design/odd").await.expect(200);
    ring.put(1, &admin(), "/db/late", json!({})).await.expect(403);
}
