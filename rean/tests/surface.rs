//! The rest of CouchDB's surface: settings, `_db_updates`, shards and nodes.

mod harness;

use axum::body::Body;
use harness::{World, admin, user};
use http_body_util::BodyExt;
use rean::route::{self, Request};
use serde_json::{Value, json};

const CONFIG: &str = "/_node/_local/_config";

/// Asks for a setting as a proxy does, whose file has an administrator and allows all origins.
async fn ask(world: &World, method: &str, path: &str, body: Option<&str>) -> (u16, Value) {
    let told = json!({"cors": {"origins": "*"}, "admins": {"root": "never shown"}}).to_string();
    let request = http::Request::builder()
        .method(method)
        .uri(format!("{CONFIG}{path}"))
        .header("x-adea-file-settings", told)
        .body(Body::from(body.unwrap_or("").to_owned()))
        .expect("a request");
    let request = Request::from_http(request).expect("a path");
    let response = match route::dispatch(&world.pod, &admin(), request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&bytes).expect("JSON"))
}

#[tokio::test]
async fn settings_are_set_shown_and_removed() {
    let world = World::new().await;
    assert_eq!(ask(&world, "GET", "/cors/origins", None).await, (200, json!("*")));
    assert_eq!(ask(&world, "PUT", "/cors/origins", Some("\" http://a \"")).await, (200, json!("*")));
    assert_eq!(ask(&world, "GET", "/cors", None).await, (200, json!({"origins": "http://a"})));
    // CouchDB takes anything, and gives it back.
    assert_eq!(ask(&world, "PUT", "/zork/key%2Fx", Some("\"y\"")).await, (200, json!("")));
    assert_eq!(ask(&world, "GET", "/zork", None).await, (200, json!({"key/x": "y"})));
    let (status, all) = ask(&world, "GET", "", None).await;
    assert_eq!(status, 200);
    assert_eq!(all["couchdb"]["max_document_size"], "8000000");
    assert_eq!((&all["zork"]["key/x"], &all["cors"]["origins"]), (&json!("y"), &json!("http://a")));
    assert_eq!(ask(&world, "DELETE", "/cors/origins", None).await, (200, json!("http://a")));
    assert_eq!(ask(&world, "GET", "/cors/origins", None).await, (200, json!("*")));
    for (method, path) in [("DELETE", "/cors/origins"), ("DELETE", "/no/thing"), ("GET", "/no/thing")] {
        let (status, answer) = ask(&world, method, path, None).await;
        assert_eq!((status, &answer["reason"]), (404, &json!("unknown_config_value")), "{method} {path}");
    }
    assert_eq!(ask(&world, "GET", "/no", None).await, (200, json!({})));
    assert_eq!(ask(&world, "POST", "/_reload", None).await, (200, json!({"ok": true})));
}

#[tokio::test]
async fn what_can_not_be_set_is_refused() {
    let world = World::new().await;
    let long = format!("\"{}\"", "x".repeat(20_000));
    for (path, body) in [
        ("/a/b", "5"),
        ("/a/b", "true"),
        ("/a/b", ""),
        ("/a/b", "{"),
        ("/a/b", "\"two\\nlines\""),
        ("/a/b", long.as_str()),
        ("/couchdb/max_document_size", "\"-1\""),
        ("/chttpd/enable_cors", "\"perhaps\""),
        ("/chttpd_auth/timeout", "\"soon\""),
        ("/admins/_x", "\"password\""),
        ("/admins/session-x", "\"password\""),
        ("/admins/a:b", "\"password\""),
        ("/admins/ann", "\"\""),
        ("/admins/ann", "\"-pbkdf2-abc,def,10\""),
    ] {
        let (status, answer) = ask(&world, "PUT", path, Some(body)).await;
        assert_eq!((status, &answer["error"]), (400, &json!("bad_request")), "{path} {body}: {answer}");
    }
    assert_eq!(ask(&world, "PUT", "/couchdb/uuid", Some("\"x\"")).await.0, 403);
    assert_eq!(ask(&world, "PUT", "/a", Some("\"x\"")).await.0, 405);
    assert_eq!(ask(&world, "PATCH", "/a/b", Some("\"x\"")).await.0, 405);
    // No end of settings either.
    let keys: std::collections::BTreeMap<String, &str> = (0..999).map(|n| (n.to_string(), "1")).collect();
    world.put(&admin(), "/_ring/node_config", json!({"sections": {"a": keys}})).await.expect(201);
    let full = async {
        while world.pod.settings.get().config.get("a", "998").is_none() {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(harness::DEADLINE, full).await.expect("the settings of the document come into force");
    assert_eq!(ask(&world, "PUT", "/b/1", Some("\"x\"")).await.0, 200);
    assert_eq!(ask(&world, "PUT", "/b/2", Some("\"x\"")).await.0, 400);
}

#[tokio::test]
async fn administrators_are_made_and_their_passwords_never_shown() {
    let world = World::new().await;
    assert_eq!(ask(&world, "PUT", "/admins/ann", Some("\"her password\"")).await, (200, json!("")));
    let (_, shown) = ask(&world, "GET", "/admins", None).await;
    assert_eq!(shown, json!({"ann": "-argon2id-hidden", "root": "-argon2id-hidden"}));
    let hash = world.pod.settings.get().config.admins["ann"].clone();
    assert!(hash.starts_with("$argon2id$"));
    let (_, all) = ask(&world, "GET", "", None).await;
    assert!(!all.to_string().contains("$argon2id") && !all.to_string().contains("password\""));
    assert_eq!(ask(&world, "PUT", "/admins/ann", Some("\"another\"")).await, (200, json!("-argon2id-hidden")));
    assert_ne!(world.pod.settings.get().config.admins["ann"], hash);
    // That of the pod's own file is changed there.
    for method in ["PUT", "DELETE"] {
        assert_eq!(ask(&world, method, "/admins/root", Some("\"usurped\"")).await.0, 403, "{method}");
    }
    assert_eq!(ask(&world, "DELETE", "/admins/ann", None).await.0, 200);
    assert!(world.pod.settings.get().config.admins.is_empty());
    assert_eq!(ask(&world, "DELETE", "/admins/ann", None).await.0, 404);
    // Nor by the document can a password that is no good hash be set.
    let doc = json!({"admins": {"ann": "plain"}});
    assert_eq!(world.put(&admin(), "/_ring/node_config", doc).await.status, 400);
}

#[tokio::test]
async fn the_document_of_the_settings_takes_what_config_takes() {
    let world = World::new().await;
    for (section, key, value) in [("uuids", "max_count", "zork"), ("chttpd", "admin_only_all_dbs", "perhaps")] {
        let sections = json!({section: {key: value}});
        let refused = world.put(&admin(), "/_ring/node_config", json!({"sections": sections})).await.expect(400);
        let reason = refused["reason"].as_str().expect("a reason");
        assert!(reason.starts_with(&format!("node_config: {section}/{key} must be ")), "{reason}");
    }
    let good = json!({"sections": {"uuids": {"max_count": "10"}, "of": {"others": "anything"}}});
    world.put(&admin(), "/_ring/node_config", good).await.expect(201);
}

#[tokio::test]
async fn settings_take_effect() {
    let world = World::new().await;
    ask(&world, "PUT", "/couchdb/max_document_size", Some("\"100\"")).await;
    ask(&world, "PUT", "/couchdb/default_security", Some("\"everyone\"")).await;
    world.send(&admin(), "PUT", "/open", None).await.expect(201);
    let ann = user("ann", &[]);
    world.put(&ann, "/open/a", json!({"x": 1})).await.expect(201);
    let long = json!({"x": "y".repeat(200)});
    assert_eq!(world.put(&ann, "/open/b", long.clone()).await.status, 413);
    let rows = world.post(&ann, "/open/_bulk_docs", json!({"docs": [long.clone()]})).await;
    assert_ne!(rows.status, 201, "{}", rows.text);
    ask(&world, "DELETE", "/couchdb/max_document_size", None).await;
    ask(&world, "DELETE", "/couchdb/default_security", None).await;
    world.put(&ann, "/open/b", long).await.expect(201);
    world.send(&admin(), "PUT", "/closed", None).await.expect(201);
    assert_eq!(world.put(&ann, "/closed/a", json!({})).await.status, 403);

    assert_eq!(world.get(&ann, "/_all_dbs").await.status, 401);
    ask(&world, "PUT", "/chttpd/admin_only_all_dbs", Some("\"false\"")).await;
    world.get(&ann, "/_all_dbs").await.expect(200);
    ask(&world, "PUT", "/uuids/max_count", Some("\"5\"")).await;
    assert_eq!(world.get(&ann, "/_uuids?count=6").await.status, 400);

    ask(&world, "PUT", "/replicator/checkpoint_interval", Some("\"1234\"")).await;
    let wish = json!({"source": "open", "target": "copy", "create_target": true, "continuous": true});
    world.post(&admin(), "/_replicate", wish).await.expect(202);
    let told = async {
        loop {
            let tasks = world.get(&admin(), "/_active_tasks").await.expect(200);
            let mut tasks = tasks.as_array().expect("a list").iter();
            if let Some(task) = tasks.find(|task| task["type"] == "replication") {
                return task["checkpoint_interval"].clone();
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    assert_eq!(tokio::time::timeout(harness::DEADLINE, told).await.expect("the task is shown"), 1_234);
}

#[tokio::test]
async fn the_surface_of_a_node_is_for_administrators() {
    let world = World::new().await;
    world.open_db("plain").await;
    for path in ["/_node/_local", CONFIG, "/_node/_local/_stats", "/_db_updates", "/_reshard", "/_cluster_setup"] {
        for who in [user("ann", &["staff"]), adea_ring::Identity::anonymous()] {
            assert_eq!(world.get(&who, path).await.status, 401, "{path}");
        }
        world.get(&admin(), path).await.expect(200);
    }
    for (method, path) in
        [("PUT", "/_node/_local/_config/a/b"), ("POST", "/plain/_sync_shards"), ("POST", "/_reshard/jobs")]
    {
        assert_eq!(world.send(&user("ann", &[]), method, path, Some(&json!("x"))).await.status, 401, "{path}");
    }
    assert_eq!(world.get(&admin(), "/_node/other@host/_config").await.status, 404);
    assert_eq!(world.get(&admin(), "/_node/nonode@nohost/_config").await.status, 200);
    assert_eq!(world.get(&admin(), "/_node/_local").await.json(), json!({"name": "adea@localhost"}));
    let stats = world.get(&admin(), "/_node/_local/_stats/couchdb/open_databases").await.expect(200);
    assert_eq!(stats["value"], 5);
    assert_eq!(world.get(&admin(), "/_node/_local/_stats/zork").await.status, 404);
    assert!(world.get(&admin(), "/_node/_local/_system").await.expect(200)["uptime"].is_u64());
    world.get(&admin(), "/_node/_local/_versions").await.expect(200);
}

#[tokio::test]
async fn a_database_has_one_shard() {
    let world = World::new().await;
    world.open_db("plain").await;
    let ann = user("ann", &[]);
    assert_eq!(
        world.get(&ann, "/plain/_shards").await.expect(200),
        json!({"shards": {"00000000-ffffffff": ["adea@localhost"]}})
    );
    assert_eq!(world.get(&ann, "/plain/_shards/a").await.expect(200)["range"], "00000000-ffffffff");
    world.post(&admin(), "/plain/_sync_shards", json!({})).await.expect(202);
    assert_eq!(world.get(&ann, "/plain/_partition/x").await.status, 400);
    assert_eq!(world.get(&ann, "/plain/_purged_infos_limit").await.expect(200), 1_000);
    assert_eq!(world.put(&admin(), "/plain/_purged_infos_limit", json!(0)).await.status, 400);
    assert_eq!(world.post(&admin(), "/_cluster_setup", json!({"action": "finish_cluster"})).await.status, 400);
}

/// The rows of an answer that isn't live: type and name, without what the pod has of its own.
fn rows(answer: &Value) -> Vec<(String, String)> {
    let rows = answer["results"].as_array().expect("rows").iter();
    let text = |row: &Value, member: &str| row[member].as_str().expect("a text").to_owned();
    rows.map(|row| (text(row, "type"), text(row, "db_name"))).filter(|(_, name)| !name.starts_with('_')).collect()
}

fn pair(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn databases_that_change_are_told_of() {
    let world = World::new().await;
    let root = admin();
    world.send(&root, "PUT", "/first", None).await.expect(201);
    let seen = world.get(&root, "/_db_updates").await.expect(200);
    assert_eq!(rows(&seen), [pair("created", "first")]);
    let since = seen["last_seq"].as_str().expect("a place").to_owned();

    world.put(&root, "/first/a", json!({})).await.expect(201);
    world.put(&root, "/first/b", json!({})).await.expect(201);
    world.open_db("second").await;
    world.send(&root, "PUT", "/third", None).await.expect(201);
    world.send(&root, "DELETE", "/third", None).await.expect(200);
    let after = world.get(&root, &format!("/_db_updates?since={since}")).await.expect(200);
    let told = rows(&after);
    assert!(told.contains(&pair("updated", "first")) && told.contains(&pair("deleted", "third")), "{told:?}");
    assert_eq!(told.iter().filter(|(_, name)| name == "first").count(), 1, "{told:?}");
    assert!(told.iter().any(|(_, name)| name == "second"), "{told:?}");

    let now = after["last_seq"].as_str().expect("a place");
    let nothing = world.get(&root, &format!("/_db_updates?since={now}")).await.expect(200);
    assert_eq!((rows(&nothing), &nothing["last_seq"]), (vec![], &json!(now)));
    assert_eq!(rows(&world.get(&root, "/_db_updates?since=now").await.expect(200)), []);
    // From another pod's place everything is told anew.
    let anew = rows(&world.get(&root, "/_db_updates?since=5-another").await.expect(200));
    assert!(anew.contains(&pair("created", "second")), "{anew:?}");
    // Page by page, and backwards.
    let first = world.get(&root, "/_db_updates?limit=1").await.expect(200);
    assert_eq!(first["results"].as_array().expect("rows").len(), 1);
    let rest = world.get(&root, &format!("/_db_updates?since={}", first["last_seq"].as_str().expect("one"))).await;
    let all = world.get(&root, "/_db_updates").await.expect(200)["results"].as_array().expect("rows").len();
    assert_eq!(rest.expect(200)["results"].as_array().expect("rows").len() + 1, all);
    assert_eq!(world.get(&root, "/_db_updates?feed=zork").await.status, 400);
    assert_eq!(world.get(&root, "/_db_updates?since=zork").await.status, 400);
}

#[tokio::test]
async fn live_feeds_tell_of_databases_as_they_change() {
    let world = World::new().await;
    let root = admin();
    let mut feed = world.feed(&root, "/_db_updates?feed=continuous&since=now&heartbeat=1000").await;
    world.open_db("plain").await;
    world.put(&root, "/plain/a", json!({})).await.expect(201);
    world.send(&root, "DELETE", "/plain", None).await.expect(200);
    let told = async {
        while !(feed.text.contains("\"deleted\"")) {
            assert!(feed.step().await, "the feed ended: {}", feed.text);
        }
    };
    tokio::time::timeout(harness::DEADLINE, told).await.expect("the deletion is told of");
    for line in feed.text.lines().filter(|line| !line.is_empty()) {
        let row: Value = serde_json::from_str(line).expect("a row");
        assert_eq!(row["db_name"], "plain");
    }
    // A long poll waits for the first, or for its time to be over.
    let waiting = world.get(&root, "/_db_updates?feed=longpoll&since=now&timeout=50").await.expect(200);
    assert_eq!(waiting["results"], json!([]));
    let mut poll = world.feed(&root, "/_db_updates?feed=longpoll&since=now&heartbeat=true").await;
    world.send(&root, "PUT", "/again", None).await.expect(201);
    let ended = async { while poll.step().await {} };
    tokio::time::timeout(harness::DEADLINE, ended).await.expect("the poll ends");
    let answer: Value = serde_json::from_str(&poll.text).expect("JSON");
    assert_eq!(rows(&answer)[0], pair("created", "again"));
    let mut events = world.feed(&root, "/_db_updates?feed=eventsource&limit=1").await;
    while events.step().await {}
    for form in ["continuous", "eventsource"] {
        let path = format!("/_db_updates?feed={form}&since=now&heartbeat=60000");
        let mut feed = world.feed(&root, &path).await;
        assert!(feed.is_silent().await);
        world.account("root", &[form]).await;
        feed.end().await;
    }
    assert!(events.text.starts_with("data: {") && events.text.contains("\nid: "), "{}", events.text);
}
