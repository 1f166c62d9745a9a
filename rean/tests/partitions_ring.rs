//! Partitioned databases in a ring: all pods have them as what they are, and each answers for its partitions.

#[path = "harness/ring.rs"]
mod ring;

use ring::{DEADLINE, TestRing, admin, until};
use serde_json::json;

/// Waits until a pod has all that another one has at this moment.
async fn has_all_of(ring: &TestRing, at: usize, of: usize) {
    let (origin, seq) = (ring.pod(of).ring.origin.clone(), ring.pod(of).store.seq());
    assert!(ring.pod(at).ring.knowledge.wait_here(&origin, seq, DEADLINE).await, "{at} has not all of {of}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pod_has_the_partitions() {
    let mut ring = TestRing::with_master(3, 0).await;
    // One pod hears of it late.
    ring.take_down(2).await;
    ring.tell_all().await;
    ring.send(1, &admin(), "PUT", "/parts?partitioned=true", None).await.expect(201);
    let map = "function (doc) { emit(doc.n, doc._id); }";
    ring.put(1, &admin(), "/parts/_design/d", json!({"views": {"v": {"map": map, "reduce": "_count"}}}))
        .await
        .expect(201);
    let docs: Vec<_> = (0..30).map(|n| json!({"_id": format!("{}:{n}", ["a", "b", "c"][n % 3]), "n": n})).collect();
    ring.post(1, &admin(), "/parts/_bulk_docs", json!({"docs": docs})).await.expect(201);
    let error = ring.put(1, &admin(), "/parts/none", json!({})).await.expect(400);
    assert_eq!(error["error"], "illegal_docid");
    ring.bring_up(2).await;
    ring.elect(0).await;
    // What the master took is never refused by another pod, whatever that holds for too large.
    ring.pod(1).store.set_max_partition_bytes(1);
    ring.put(0, &admin(), "/parts/c:large", json!({"text": "x".repeat(1_000)})).await.expect(201);
    for at in 0..3 {
        has_all_of(&ring, at, 0).await;
        let db = || ring.pod(at).store.db("parts").filter(|db| db.is_partitioned());
        until("the database is partitioned here", || async { db().is_some() }).await;
        let info = ring.get(at, &admin(), "/parts/_partition/b").await.expect(200);
        assert_eq!((&info["doc_count"], &info["doc_del_count"]), (&json!(10), &json!(0)), "{at}");
        ring.get(at, &admin(), "/parts/c:large").await.expect(200);
        // Asked of a follower, it is the follower that answers.
        let query = json!({"selector": {"n": {"$lt": 7}}});
        let found = ring.post(at, &admin(), "/parts/_partition/b/_find", query).await.expect(200);
        let ids: Vec<_> = found["docs"].as_array().expect("documents").iter().map(|doc| doc["_id"].clone()).collect();
        assert_eq!(ids, ["b:1", "b:4"], "{at}");
        let view = "/parts/_partition/b/_design/d/_view/v";
        let rows =
            ring.get(at, &admin(), &format!("{view}?reduce=false&startkey=25")).await.expect(200)["rows"].clone();
        assert_eq!(
            rows,
            json!([{"id": "b:25", "key": 25, "value": "b:25"}, {"id": "b:28", "key": 28, "value": "b:28"}])
        );
        let counted = ring.post(at, &admin(), view, json!({"keys": [1, 2], "group": true})).await.expect(200);
        assert_eq!(counted["rows"], json!([{"key": 1, "value": 1}]));
    }
    // Another master keeps to it too.
    ring.elect(2).await;
    let error = ring.post(0, &admin(), "/parts/_bulk_docs", json!({"docs": [{"_id": "none"}]})).await.expect(400);
    assert_eq!(error["error"], "illegal_docid");
    let rev = ring.get(0, &admin(), "/parts/b:1").await.expect(200)["_rev"].clone();
    let path = format!("/parts/b:1?rev={}", rev.as_str().expect("a revision"));
    ring.send(0, &admin(), "DELETE", &path, None).await.expect(200);
    for at in 0..3 {
        has_all_of(&ring, at, 2).await;
        let info = ring.get(at, &admin(), "/parts/_partition/b").await.expect(200);
        assert_eq!((&info["doc_count"], &info["doc_del_count"]), (&json!(9), &json!(1)), "{at}");
        assert_eq!(ring.pod(at).store.db("parts").expect("it is here").verify().expect("read"), Vec::<String>::new());
    }
    ring.send(1, &admin(), "DELETE", "/parts", None).await.expect(200);
    ring.send(1, &admin(), "PUT", "/parts", None).await.expect(201);
    for at in 0..3 {
        let is_plain = || async { ring.pod(at).store.db("parts").is_some_and(|db| !db.is_partitioned()) };
        until("one of the same name is another one", is_plain).await;
    }
}
