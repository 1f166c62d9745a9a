//! Functions that never end, in views; and how feeds with the same filter share its answers.

mod harness;

use std::time::{Duration, Instant};

use harness::{World, admin, user};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_never_ends_is_an_error_and_is_left_alone_until_it_is_mended() {
    let world = World::limited(rean::Limits { max_function_ms: 100, ..rean::Limits::default() }).await;
    world.open_db("db").await;
    let docs: Vec<Value> = (0..100).map(|n| json!({"_id": format!("{n:03}")})).collect();
    world.post(&admin(), "/db/_bulk_docs", json!({ "docs": docs })).await.expect(201);
    let design = |map: &str| json!({"autoupdate": false, "views": {"v": {"map": map}}});
    let bad = world.put(&admin(), "/db/_design/bad", design("function (doc) { for (;;) {} }")).await.expect(201);
    world.put(&admin(), "/db/_design/good", design("function (doc) { emit(doc._id) }")).await.expect(201);
    let began = Instant::now();
    let first = world.get(&admin(), "/db/_design/bad/_view/v").await.expect(500);
    assert_eq!(first["error"], "os_process_error");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    // Left alone: no document is tried again.
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(world.get(&admin(), "/db/_design/bad/_view/v").await.expect(500)["error"], "os_process_error");
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(world.get(&admin(), "/db/_design/good/_view/v").await.expect(200)["total_rows"], 100);
    let mut mended = design("function (doc) { if (doc._id !== '007') emit(doc._id) }");
    mended["_rev"] = bad["rev"].clone();
    world.put(&admin(), "/db/_design/bad", mended).await.expect(201);
    assert_eq!(world.get(&admin(), "/db/_design/bad/_view/v").await.expect(200)["total_rows"], 99);
}

#[tokio::test(flavor = "multi_thread")]
async fn feeds_of_one_user_with_the_same_filter_share_its_answers() {
    let world = World::new().await;
    world.open_db("db").await;
    // Two calls with a hundred documents never say the same by chance.
    let by_chance = "function (doc) { return doc._id === 'end' || Math.random() < 0.5 }";
    world.put(&admin(), "/db/_design/d", json!({"filters": {"f": by_chance}})).await.expect(201);
    let path = "/db/_changes?feed=continuous&since=now&heartbeat=100&filter=d/f";
    let mut feeds = Vec::new();
    for name in ["ann", "ann", "ann", "ann", "bob"] {
        let mut feed = world.feed(&user(name, &[]), path).await;
        // It has come to where it waits.
        feed.step().await;
        feeds.push(feed);
    }
    let docs: Vec<Value> = (0..100).map(|n| json!({"_id": format!("{n:03}")})).collect();
    world.post(&admin(), "/db/_bulk_docs", json!({ "docs": docs })).await.expect(201);
    world.put(&admin(), "/db/end", json!({})).await.expect(201);
    let mut seen = Vec::new();
    for feed in &mut feeds {
        while !feed.text.contains("\"end\"") {
            assert!(feed.step().await, "the feed ended: {}", feed.text);
        }
        let ids: Vec<String> = feed.all_lines().iter().map(|row| row["id"].to_string()).collect();
        assert!((10..100).contains(&ids.len()), "{ids:?}");
        seen.push(ids);
    }
    assert!(seen[1..4].iter().all(|ids| *ids == seen[0]), "{seen:?}");
    assert_ne!(seen[4], seen[0], "somebody else's request is another question");
}

#[tokio::test(flavor = "multi_thread")]
async fn sequences_are_left_out_between_but_never_of_the_last_row() {
    let world = World::new().await;
    world.open_db("db").await;
    for n in 0..7 {
        world.put(&admin(), &format!("/db/d{n}"), json!({ "n": n })).await.expect(201);
    }
    for (query, with) in [
        ("seq_interval=3", vec![2, 5, 6]),
        ("seq_interval=3&limit=4", vec![2, 3]),
        ("seq_interval=100", vec![6]),
        ("seq_interval=1", (0..7).collect()),
    ] {
        let page = world.get(&admin(), &format!("/db/_changes?{query}")).await.expect(200);
        let rows = page["results"].as_array().expect("rows");
        let have: Vec<usize> = (0..rows.len()).filter(|place| rows[*place]["seq"].is_string()).collect();
        assert_eq!(have, with, "{query}");
    }
    for (query, reason) in [
        ("heartbeat=a1000", "Invalid heartbeat value. Expecting a positive integer value (in milliseconds)."),
        ("filter=nonsense", "`filter` must be of the form `designname/filtername`"),
    ] {
        let refused = world.get(&admin(), &format!("/db/_changes?{query}")).await.expect(400);
        assert_eq!(refused["reason"], reason);
    }
    let refused = world.post(&admin(), "/db/_changes?filter=_selector", json!({})).await.expect(400);
    assert_eq!(refused["reason"], "Selector must be specified in POST payload");
}
