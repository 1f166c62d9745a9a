//! `/_node/POD/..`: logs and figures of the pod that is asked, and of the others by way of it.

mod harness;
#[path = "harness/ring.rs"]
mod ring;

use harness::{World, admin, user};
use ring::TestRing;
use serde_json::json;

fn write_log(folder: &std::path::Path, program: &str, text: &str) {
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join(format!("{program}.log")), text).expect("a log");
}

#[tokio::test]
async fn administrators_read_logs_and_nobody_else() {
    let world = World::new().await;
    let folder = world.pod.logs_dir.clone().expect("a folder for logs");
    let missing = world.get(&admin(), "/_node/_local/_logs").await.expect(404);
    assert!(missing["reason"].as_str().expect("a reason").contains("journalctl"), "{missing}");
    write_log(&folder, "rean", "one\ntwo\nthree\n");
    write_log(&folder, "secret", "no\n");
    world.account("ann", &[]).await;
    for who in [user("ann", &[]), adea_ring::Identity::anonymous()] {
        let status = world.get(&who, "/_node/_local/_logs").await.status;
        assert!([401, 403].contains(&status.as_u16()), "{status}");
    }
    let told = world.get(&admin(), "/_node/_local/_logs?lines=2").await.expect(200);
    assert_eq!((&told["lines"], &told["program"]), (&json!(["two", "three"]), &json!("rean")));
    let position = told["position"].as_str().expect("a position");
    write_log(&folder, "rean", "one\ntwo\nthree\nfour\n");
    let next = world.get(&admin(), &format!("/_node/pod/_logs?since={position}")).await.expect(200);
    assert_eq!(next["lines"], json!(["four"]));
    for bad in ["program=secret", "program=..%2Frean", "lines=0", "lines=100000", "lines=x", "since=x"] {
        world.get(&admin(), &format!("/_node/_local/_logs?{bad}")).await.expect(400);
    }
    world.get(&admin(), "/_node/other/_logs").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pod_asks_another_and_says_when_it_can_not() {
    let mut pods = TestRing::with_master(2, 0).await;
    for at in 0..2 {
        let folder = pods.pod(at).logs_dir.clone().expect("a folder for logs");
        write_log(&folder, "proxy", &format!("of {at}\n"));
    }
    let name = |pods: &TestRing, at: usize| pods.pod(at).ring.me().to_string();
    let (first, second) = (name(&pods, 0), name(&pods, 1));
    for (asked, of, wanted) in [(0, &second, "of 1"), (1, &first, "of 0"), (0, &first, "of 0")] {
        let path = format!("/_node/{of}/_logs?program=proxy");
        let told = pods.get(asked, &ring::admin(), &path).await.expect(200);
        assert_eq!((&told["lines"], &told["pod"]), (&json!([wanted]), &json!(of)));
        // What a client asks is counted where it asks, and what a pod passes on isn't counted again.
        let reads = format!("/_node/{of}/_stats/adea/reads/value");
        let before = pods.get(asked, &ring::admin(), &reads).await.expect(200).as_u64().expect("a number");
        let after = pods.get(asked, &ring::admin(), &reads).await.expect(200).as_u64().expect("a number");
        let is_own = pods.pod(asked).ring.me().as_str() == of;
        assert_eq!(after - before, u64::from(is_own), "{of} by way of {asked}");
        pods.get(asked, &ring::admin(), &format!("/_node/{of}/_system")).await.expect(200);
    }
    // Who may not ask here may not ask there.
    let status = pods.get(0, &ring::user("ann", &[]), &format!("/_node/{second}/_logs")).await.status;
    assert!([401, 403].contains(&status.as_u16()), "{status}");
    // Settings are asked for nowhere else.
    pods.get(0, &ring::admin(), &format!("/_node/{second}/_config")).await.expect(404);
    pods.take_down(1).await;
    let gone = pods.get(0, &ring::admin(), &format!("/_node/{second}/_logs?program=proxy")).await.expect(502);
    assert_eq!(gone["error"], "pod_out_of_reach");
}
