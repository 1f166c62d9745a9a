//! Changes feeds over a real store: what listeners get, what they don't, and when feeds end.

mod harness;

use harness::{World, admin, user};
use serde_json::{Value, json};

fn ids(rows: &[Value]) -> Vec<&str> {
    rows.iter().filter_map(|row| row["id"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_continuous_feed_gives_old_and_new_changes_in_order() {
    let world = World::new().await;
    world.open_db("db").await;
    let ann = user("ann", &[]);
    for id in ["a", "b"] {
        world.put(&ann, &format!("/db/{id}"), json!({"n": id})).await.expect(201);
    }
    let path = "/db/_changes?feed=continuous&include_docs=true&heartbeat=5000";
    let (mut one, mut two) = (world.feed(&ann, path).await, world.feed(&ann, path).await);
    one.lines(2).await;
    two.lines(2).await;
    for n in 0..50 {
        world.put(&ann, &format!("/db/d{n}"), json!({"n": n})).await.expect(201);
    }
    let lines = one.lines(52).await;
    assert_eq!(ids(&lines)[..3], ["a", "b", "d0"]);
    assert_eq!(lines[51]["doc"]["n"], 49);
    // The second listener takes the rows that the first one wrote: they are the same text.
    two.lines(52).await;
    assert_eq!(one.text, two.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_missed_more_than_is_kept_reads_it_from_the_store() {
    let world = World::new().await;
    world.open_db("db").await;
    let ann = user("ann", &[]);
    let mut feed = world.feed(&ann, "/db/_changes?feed=continuous&since=now&heartbeat=5000").await;
    // Nobody reads the feed while three batches come in.
    for batch in 0..3 {
        let docs: Vec<Value> = (0..900).map(|n| json!({"_id": format!("{batch}-{n:04}")})).collect();
        world.post(&ann, "/db/_bulk_docs", json!({ "docs": docs })).await.expect(201);
    }
    let lines = feed.lines(2_700).await;
    let ids = ids(&lines);
    assert_eq!(ids.len(), 2_700);
    assert!(ids.is_sorted());
    assert!(feed.is_silent().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn longpoll_waits_times_out_and_gives_the_next_change() {
    let world = World::new().await;
    world.open_db("db").await;
    let ann = user("ann", &[]);
    let empty = world.get(&ann, "/db/_changes?feed=longpoll&since=now&timeout=50").await.expect(200);
    assert_eq!(empty["results"], json!([]));
    let mut feed = world.feed(&ann, "/db/_changes?feed=longpoll&since=now&heartbeat=100").await;
    for _ in 0..3 {
        feed.step().await;
    }
    assert!(feed.text.ends_with('\n') && !feed.text.contains("last_seq"));
    world.put(&ann, "/db/x", json!({})).await.expect(201);
    feed.end().await;
    let answer: Value = serde_json::from_str(&feed.text).expect("one object");
    assert_eq!(answer["results"][0]["id"], "x");
    let since = answer["last_seq"].as_str().expect("a sequence");
    let rest = world.get(&ann, &format!("/db/_changes?since={since}")).await.expect(200);
    assert_eq!(rest["results"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_pending_and_last_seq_go_on_from_each_other_also_with_a_filter() {
    let world = World::new().await;
    world.open_db("db").await;
    let ann = user("ann", &[]);
    let docs: Vec<Value> = (0..500).map(|n| json!({"_id": format!("{n:03}"), "even": n % 2 == 0})).collect();
    world.post(&ann, "/db/_bulk_docs", json!({ "docs": docs })).await.expect(201);
    let body = json!({"selector": {"even": true}});
    let mut since = "0".to_owned();
    let mut seen = Vec::new();
    for _ in 0..26 {
        let path = format!("/db/_changes?filter=_selector&limit=10&since={since}");
        let page = world.post(&ann, &path, body.clone()).await.expect(200);
        let rows = page["results"].as_array().expect("rows").clone();
        seen.extend(ids(&rows).into_iter().map(str::to_owned));
        since = page["last_seq"].as_str().expect("a sequence").to_owned();
    }
    assert_eq!(seen.len(), 250);
    seen.dedup();
    assert_eq!(seen.len(), 250);
    let first = world.get(&ann, "/db/_changes?limit=0").await.expect(200);
    assert_eq!((&first["results"], &first["pending"]), (&json!([]), &json!(500)));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_documents_come_one_piece_at_a_time() {
    let world = World::new().await;
    world.open_db("db").await;
    let ann = user("ann", &[]);
    let big = "x".repeat(100_000);
    for n in 0..20 {
        world.put(&ann, &format!("/db/{n:02}"), json!({ "big": big })).await.expect(201);
    }
    let mut feed = world.feed(&ann, "/db/_changes?include_docs=true").await;
    let mut longest = 0;
    let mut before = 0;
    while feed.step().await {
        longest = longest.max(feed.text.len() - before);
        before = feed.text.len();
    }
    assert!(longest < 300_000, "a piece of {longest} bytes");
    let answer: Value = serde_json::from_str(&feed.text).expect("one object");
    assert_eq!(answer["results"].as_array().map(Vec::len), Some(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn feeds_end_with_their_database_with_its_security_and_at_shutdown() {
    let world = World::new().await;
    for name in ["a", "b", "c"] {
        world.open_db(name).await;
    }
    let ann = user("ann", &[]);
    let path = |db: &str| format!("/{db}/_changes?feed=continuous&heartbeat=60000");
    let mut feeds = Vec::new();
    for name in ["a", "b", "c"] {
        feeds.push(world.feed(&ann, &path(name)).await);
    }
    assert_eq!(world.pod.hub.listeners(), 3);
    world.send(&admin(), "DELETE", "/a", None).await.expect(200);
    feeds[0].end().await;
    let closed = json!({"members": {"names": ["bob"], "roles": []}});
    world.put(&admin(), "/b/_security", closed).await.expect(200);
    feeds[1].end().await;
    assert_eq!(world.get(&ann, &path("b")).await.status, 403);
    world.pod.hub.close();
    feeds[2].end().await;
    drop(feeds);
    assert_eq!(world.pod.hub.listeners(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_of_an_app_gets_what_is_for_them_and_loses_the_feed_with_a_role() {
    let world = World::new().await;
    world.app("notes").await;
    world.account("ann", &["staff"]).await;
    let ann = user("ann", &["staff"]);
    let mut feed = world.feed(&ann, "/notes--me/_changes?feed=continuous&include_docs=true&heartbeat=60000").await;
    let put = async |id: &str, read: Value| {
        let access = json!({"read": read, "write": ["user:root"]});
        let path = format!("/notes/{id}");
        world.put(&admin(), &path, json!({"access": access, "of": id})).await.expect(201);
    };
    put("hidden", json!(["user:bob"])).await;
    put("mine", json!(["user:ann"])).await;
    put("staff", json!(["role:staff"])).await;
    let lines = feed.lines(2).await;
    assert_eq!(ids(&lines), ["mine", "staff"]);
    assert_eq!(lines[1]["doc"]["of"], "staff");
    assert!(!feed.text.contains("hidden"));
    assert!(feed.is_silent().await);

    let mut feed = world.feed(&ann, "/notes--me/_changes?feed=continuous&heartbeat=60000").await;
    let before = feed.lines(2).await;
    world.account("ann", &[]).await;
    feed.end().await;
    // The role that the proxy may still claim counts no more.
    let since = before[1]["seq"].as_str().expect("a sequence");
    let after = world.get(&ann, &format!("/notes--me/_changes?since={since}")).await.expect(200);
    let rows = after["results"].as_array().expect("rows");
    assert_eq!(ids(rows), ["staff"]);
    assert_eq!(rows[0]["deleted"], true);
    assert_eq!(world.get(&ann, "/notes--me/staff").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_document_is_told_whatever_the_filter() {
    let world = World::new().await;
    world.app("notes").await;
    let ann = user("ann", &[]);
    let doc = json!({"kind": "a", "access": {"read": ["user:ann"], "write": ["user:root"]}});
    let rev = world.put(&admin(), "/notes/x", doc).await.expect(201)["rev"].clone();
    let selector = json!({"selector": {"kind": "a"}});
    let path = |since: &str| format!("/notes--me/_changes?filter=_selector&since={since}");
    let first = world.post(&ann, &path("0"), selector.clone()).await.expect(200);
    assert_eq!(first["results"][0]["id"], "x");
    let doc = json!({"_rev": rev, "kind": "a", "access": {"read": ["user:bob"], "write": ["user:root"]}});
    world.put(&admin(), "/notes/x", doc).await.expect(201);
    let since = first["last_seq"].as_str().expect("a sequence");
    let second = world.post(&ann, &path(since), selector).await.expect(200);
    assert_eq!(second["results"][0]["id"], "x");
    assert_eq!(second["results"][0]["deleted"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn sequences_of_readers_tell_nothing_of_the_writes_of_others() {
    let world = World::new().await;
    world.app("notes").await;
    let ann = user("ann", &[]);
    let mine = json!({"access": {"read": ["user:ann"]}});
    let other = json!({"access": {"read": ["user:bob"]}});
    world.put(&admin(), "/notes/mine", mine).await.expect(201);
    let before = world.get(&ann, "/notes--me").await.expect(200);
    for n in 0..20 {
        world.put(&admin(), &format!("/notes/o{n}"), other.clone()).await.expect(201);
    }
    let after = world.get(&ann, "/notes--me").await.expect(200);
    assert_eq!(before, after);
    let row = world.get(&ann, "/notes--me/_changes").await.expect(200)["results"][0].clone();
    let seq = row["seq"].as_str().expect("a sequence");
    assert!(seq.len() > 40, "a sealed place, not {seq}");
}
