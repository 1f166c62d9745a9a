//! Who may see and do what: databases, partial databases, accounts, the server's own resources. Everything that says
//! "no" says the same whether or not there is something.

mod harness;

use adea_ring::Identity;
use harness::{Answer, World, admin, user};
use serde_json::{Value, json};

#[track_caller]
fn refused(answer: &Answer, status: u16, error: &str) {
    assert_eq!(answer.status, status, "{}", answer.text);
    assert_eq!(answer.json()["error"], error);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_database_that_is_not_for_the_reader_looks_like_none() {
    let world = World::new().await;
    world.app("notes").await;
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    let doc = json!({"access": {"read": ["user:ann"]}});
    world.put(&admin(), "/notes/x", doc).await.expect(201);
    let shown = world.get(&ann, "/notes/_access").await.expect(200);
    let part = shown["partials"][0]["db"].as_str().expect("a name").to_owned();
    assert_eq!(shown["personal"], "notes--me");
    assert_eq!(shown["partials"][0]["readers"], json!(["user:ann"]));
    let none = "notes--000000000000000000000000";
    for below in ["", "/_changes", "/_all_docs", "/x", "/y", "/_local/c", "/_access"] {
        for who in [&bob, &Identity::anonymous()] {
            let there = world.get(who, &format!("/{part}{below}")).await;
            let not = world.get(who, &format!("/{none}{below}")).await;
            assert_eq!((there.status, &there.text), (not.status, &not.text), "{below}");
            assert!(there.status == 401 || there.status == 403);
        }
    }
    assert_eq!(world.get(&bob, "/notes/_access").await.expect(200)["partials"], json!([]));
    world.get(&ann, &format!("/{part}/x")).await.expect(200);
    let mine = world.get(&ann, &format!("/{part}")).await.expect(200);
    assert_eq!(mine["db_name"], part);
    assert_eq!(mine["doc_count"], 1);
    let write = world.put(&ann, &format!("/{part}/new"), json!({"access": {"read": ["user:ann"]}})).await;
    refused(&write, 403, "forbidden");
    refused(&world.get(&admin(), &format!("/{none}")).await, 404, "not_found");
    world.get(&admin(), &format!("/{part}/x")).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_administrators_reads_an_aggregate_in_any_way() {
    let world = World::new().await;
    world.app("notes").await;
    let doc = json!({"access": {"read": ["user:ann"]}});
    let rev = world.put(&admin(), "/notes/x", doc).await.expect(201)["rev"].clone();
    let rev = rev.as_str().expect("a revision");
    let ann = user("ann", &[]);
    let below = [
        String::new(),
        "/_changes".to_owned(),
        "/_changes?feed=continuous&timeout=1".to_owned(),
        "/_all_docs".to_owned(),
        "/_design_docs".to_owned(),
        "/_local_docs".to_owned(),
        "/_local/x".to_owned(),
        "/_security".to_owned(),
        "/_revs_limit".to_owned(),
        "/_index".to_owned(),
        "/_design/a/_view/b".to_owned(),
        "/x".to_owned(),
        "/none".to_owned(),
        format!("/x?rev={rev}"),
        "/x?open_revs=all".to_owned(),
        "/x/file".to_owned(),
    ];
    for path in &below {
        let path = format!("/notes{path}");
        refused(&world.get(&ann, &path).await, 403, "forbidden");
        refused(&world.get(&Identity::anonymous(), &path).await, 401, "unauthorized");
    }
    for (path, body) in [
        ("_bulk_get", json!({"docs": [{"id": "x"}]})),
        ("_revs_diff", json!({"x": [rev]})),
        ("_missing_revs", json!({"x": [rev]})),
        ("_all_docs", json!({"keys": ["x"]})),
        ("_changes", json!({})),
        ("_find", json!({"selector": {}})),
    ] {
        let answer = world.post(&ann, &format!("/notes/{path}"), body).await;
        refused(&answer, 403, "forbidden");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_an_app_are_its_administrators_only() {
    let world = World::new().await;
    world.app("notes").await;
    let ann = user("ann", &[]);
    for db in ["notes", "notes--me"] {
        let security = world.put(&ann, &format!("/{db}/_security"), json!({"admins": {"names": ["ann"]}})).await;
        refused(&security, 403, "forbidden");
        for (path, body) in [
            ("_purge", json!({"x": ["1-a"]})),
            ("_compact", json!({})),
            ("_index", json!({"index": {"fields": ["a"]}})),
        ] {
            let answer = world.post(&ann, &format!("/{db}/{path}"), body).await;
            assert!(answer.status.is_client_error(), "{path}: {}", answer.text);
        }
        let design = world.put(&ann, &format!("/{db}/_design/x"), json!({"access": {"read": ["user:ann"]}})).await;
        assert!(design.status == 401 || design.status == 403, "{}", design.text);
        let delete = world.send(&ann, "DELETE", &format!("/{db}"), None).await;
        refused(&delete, 401, "unauthorized");
    }
    let names = world.put(&admin(), "/notes--mine", json!({})).await;
    refused(&names, 400, "illegal_database_name");
    let delete = world.send(&admin(), "DELETE", "/notes--me", None).await;
    refused(&delete, 403, "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_resources_are_for_administrators() {
    let world = World::new().await;
    for who in [user("ann", &["staff"]), Identity::anonymous()] {
        let of_the_server =
            ["/_all_dbs", "/_dbs_info", "/_active_tasks", "/_membership", "/_pod/workers", "/_pod/store"];
        for path in of_the_server.into_iter().chain(["/_node/_local/_config", "/_cluster_setup"]) {
            refused(&world.get(&who, path).await, 401, "unauthorized");
        }
        let create = world.send(&who, "PUT", "/new", None).await;
        refused(&create, 401, "unauthorized");
        for db in ["_ring", "_replicator", "_users"] {
            let answer = world.get(&who, &format!("/{db}")).await;
            assert!(answer.status == 401 || answer.status == 403);
        }
        world.get(&who, "/_pods").await.expect(200);
        world.get(&who, "/_pods/_changes").await.expect(200);
        let write = world.put(&who, "/_pods/x", json!({})).await;
        assert!(write.status == 401 || write.status == 403);
    }
    let workers = world.get(&admin(), "/_pod/workers").await.expect(200);
    let names: Vec<&Value> =
        workers["workers"].as_array().expect("a list").iter().map(|worker| &worker["name"]).collect();
    for name in ["databases", "ring_settings", "apps", "replications", "sessions", "instructions", "status", "pods"] {
        assert!(names.iter().any(|known| *known == name), "{name}: {names:?}");
    }
    let delete = world.send(&admin(), "DELETE", "/_ring", None).await;
    refused(&delete, 403, "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_no_resource_are_404_for_everybody() {
    let world = World::new().await;
    for who in [user("ann", &["staff"]), Identity::anonymous(), admin()] {
        for path in
            ["/_utils", "/_utils/index.html", "/_zork", "/_zork/_local/_config/a/b", "/_zork/x", "/_zork/_changes"]
        {
            for method in ["GET", "POST", "DELETE"] {
                let answer = world.send(&who, method, path, Some(&json!({}))).await;
                refused(&answer, 404, "not_found");
                assert!(answer.text.contains("There is no resource _"), "{}", answer.text);
            }
        }
        let put = world.put(&who, "/_zork/_local/_config/a/b", json!({})).await;
        refused(&put, 404, "not_found");
    }
    for path in ["/_node/_local/_config/a/b", "/_reshard/zork", "/_utils"] {
        refused(&world.get(&admin(), path).await, 404, "not_found");
    }
    refused(&world.send(&admin(), "PUT", "/_zork", None).await, 400, "illegal_database_name");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_sees_what_the_store_holds() {
    let world = World::new().await;
    world.app("notes").await;
    for (id, read) in [("a", json!(["user:ann"])), ("b", json!(["user:ann"])), ("c", json!(["role:staff"]))] {
        let doc = json!({"access": {"read": read, "write": ["user:ann"]}});
        world.put(&admin(), &format!("/notes/{id}"), doc).await.expect(201);
    }
    let store = world.get(&admin(), "/_pod/store").await.expect(200);
    assert_eq!(store["databases"], 5);
    assert!(store["commits"].as_u64() > Some(0) && store["seq"].as_u64() >= Some(3), "{store}");
    let notes = json!({"name": "notes", "doc_count": 3, "doc_del_count": 0, "partials": 2,
        "partials_without_docs": 0, "repartition": false});
    assert_eq!(store["apps"], json!([notes]));
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_their_owners_alone() {
    let world = World::new().await;
    let path = "/_users/org.couchdb.user:ann";
    let doc = json!({"name": "ann", "type": "user", "roles": ["staff"], "password": "secret"});
    world.put(&admin(), path, doc).await.expect(201);
    world.account("bob", &[]).await;
    let (ann, bob) = (user("ann", &["staff"]), user("bob", &[]));
    let own = world.get(&ann, path).await.expect(200);
    assert!(own.get("password").is_none());
    assert_eq!(own["password_scheme"], "argon2id");
    let others = world.get(&bob, path).await;
    let none = world.get(&bob, "/_users/org.couchdb.user:nobody").await;
    assert_eq!((others.status, &others.text), (none.status, &none.text));
    for below in ["", "/_all_docs", "/_changes", "/_design_docs", "/_security", "/_local/x"] {
        let answer = world.get(&ann, &format!("/_users{below}")).await;
        refused(&answer, 403, "forbidden");
    }
    let ids = json!({"docs": [{"id": "org.couchdb.user:bob"}]});
    refused(&world.post(&ann, "/_users/_bulk_get", ids).await, 403, "forbidden");

    let mut stolen = own.clone();
    stolen["roles"] = json!(["staff", "boss"]);
    refused(&world.put(&ann, path, stolen.clone()).await, 403, "forbidden");
    let bulk = world.post(&ann, "/_users/_bulk_docs", json!({"docs": [stolen.clone()], "new_edits": false})).await;
    assert!(!bulk.text.contains("\"ok\""), "{}", bulk.text);
    stolen["roles"] = json!(["staff"]);
    stolen["password"] = "other".into();
    refused(&world.put(&bob, path, stolen.clone()).await, 403, "forbidden");
    let sign_up = json!({"name": "eve", "type": "user", "roles": [], "password": "x"});
    let answer = world.put(&bob, "/_users/org.couchdb.user:eve", sign_up.clone()).await;
    refused(&answer, 403, "forbidden");
    world.put(&ann, path, stolen).await.expect(201);
    let hash = world.get(&admin(), path).await.expect(200)["derived_key"].clone();
    assert_ne!(hash, own["derived_key"]);

    let open = json!({"members": {"names": [], "roles": []}});
    world.put(&admin(), "/_users/_security", open).await.expect(200);
    let nobody = Identity::anonymous();
    world.put(&nobody, "/_users/org.couchdb.user:eve", sign_up).await.expect(201);
    let boss = json!({"name": "mal", "type": "user", "roles": ["boss"], "password": "x"});
    let answer = world.put(&nobody, "/_users/org.couchdb.user:mal", boss).await;
    refused(&answer, 403, "forbidden");
    refused(&world.get(&nobody, "/_users/_all_docs").await, 401, "unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_account_is_nobody_at_once() {
    let world = World::new().await;
    let path = "/_users/org.couchdb.user:ann";
    world.account("ann", &["staff"]).await;
    world.open_db("db").await;
    let ann = user("ann", &["staff"]);
    world.get(&ann, "/db").await.expect(200);
    let rev = world.get(&admin(), path).await.expect(200)["_rev"].clone();
    let rev = rev.as_str().expect("a revision");
    world.send(&admin(), "DELETE", &format!("{path}?rev={rev}"), None).await.expect(200);
    refused(&world.get(&ann, "/db").await, 401, "unauthorized");
    refused(&world.get(&ann, "/_session").await, 401, "unauthorized");
    // Whoever gets the name after that has the new account's roles, whatever the proxy remembers.
    world.account("ann", &[]).await;
    let session = world.get(&ann, "/_session").await.expect(200);
    assert_eq!(session["userCtx"]["roles"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_checked_before_they_are_stored_and_then_place_what_is_there() {
    let world = World::new().await;
    world.app("notes").await;
    let bad = world.put(&admin(), "/_ring/app:notes", json!({"rules": [{"read": ["users"]}]})).await;
    refused(&bad, 400, "bad_request");
    assert!(bad.json()["reason"].as_str().is_some_and(|why| why.contains("selector")));
    let docs: Vec<Value> = (0..300).map(|n| json!({"_id": format!("{n}"), "owner": "ann"})).collect();
    world.post(&admin(), "/notes/_bulk_docs", json!({ "docs": docs })).await.expect(201);
    let ann = user("ann", &[]);
    assert_eq!(world.get(&ann, "/notes--me").await.expect(200)["doc_count"], 0);
    let rules = json!({"rules": [{"selector": {}, "read": ["user:${owner}"]}]});
    world.put(&admin(), "/_ring/app:notes", rules).await.expect(201);
    let deadline = tokio::time::Instant::now() + harness::DEADLINE;
    while world.get(&ann, "/notes--me").await.expect(200)["doc_count"] != 300 {
        assert!(tokio::time::Instant::now() < deadline, "not placed in time");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(world.get(&user("bob", &[]), "/notes--me").await.expect(200)["doc_count"], 0);
    // Rules that are there before their app hold from its first document.
    let rules = json!({"rules": [{"selector": {}, "read": ["user:${owner}"]}]});
    world.put(&admin(), "/_ring/app:late", rules).await.expect(201);
    world.app("late").await;
    world.put(&admin(), "/late/x", json!({"owner": "ann"})).await.expect(201);
    world.get(&ann, "/late--me/x").await.expect(200);
}
