//! Who may order an upgrade: who has the key that adea has told, and nobody else.

#[path = "harness/ring.rs"]
mod ring;

use adea_ring::report::{RingState, Role};
use adea_ring::upgrade::{Order, OrderKey, OrderState, OrderTrust, Source};
use ring::{TestRing, admin};
use serde_json::{Value, json};

fn order(made_at_ms: u64) -> Order {
    let pods = vec!["pod-1".parse().expect("a pod's id")];
    Order { archive_sha256: Some("0".repeat(64)), ..Order::new(Source::Ring, None, pods, made_at_ms) }
}

/// Tells the pod, which is the master, whose orders count.
async fn trust(ring: &TestRing, key: Option<&OrderKey>) {
    let epoch = ring.pod(0).ring.start().expect("it is master").epoch;
    let order_trust = key.map(|key| OrderTrust { key: key.public(), at: None });
    ring.tell(0, &RingState { order_trust, ..ring.state(0, Role::Master(epoch)) }).await;
}

async fn put(ring: &TestRing, order: &Order, key: &OrderKey) -> (u16, Value) {
    let path = "/_ring/upgrade";
    let mut doc = order.sign(key);
    let known = ring.get(0, &admin(), path).await;
    if known.status == 200 {
        doc.insert("_rev".to_owned(), known.json()["_rev"].clone());
    }
    let answer = ring.send(0, &admin(), "PUT", path, Some(&Value::Object(doc))).await;
    (answer.status.into(), answer.json())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_counts_by_the_key_that_the_machine_knows() {
    let ring = TestRing::with_master(1, 0).await;
    let (key, other) = (OrderKey::random(), OrderKey::random());
    let (status, why) = put(&ring, &order(5), &key).await;
    assert_eq!(status, 403);
    assert!(why["reason"].as_str().expect("a reason").contains("knows no key"), "{why}");
    trust(&ring, Some(&key)).await;
    let (status, why) = put(&ring, &order(5), &other).await;
    assert_eq!(status, 403);
    assert!(why["reason"].as_str().expect("a reason").contains("not signed with the key"), "{why}");
    assert_eq!(put(&ring, &Order { state: OrderState::Stopped, ..order(5) }, &key).await.0, 201);
    assert_eq!(put(&ring, &order(4), &key).await.0, 403, "older than the one there");
    let rev = ring.get(0, &admin(), "/_ring/upgrade").await.expect(200)["_rev"].clone();
    let purge = ring.post(0, &admin(), "/_ring/_purge", json!({"upgrade": [rev]})).await.expect(403);
    assert!(purge["reason"].as_str().expect("a reason").contains("upgrade"), "an older one could come after it");
    // One under a key that was replaced stands in nobody's way.
    trust(&ring, Some(&other)).await;
    assert_eq!(put(&ring, &order(3), &other).await.0, 201);
}
