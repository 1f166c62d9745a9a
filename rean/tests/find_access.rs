//! Queries on an app's partial and personal databases: nothing of what their readers may not read.

mod harness;

use std::collections::BTreeMap;

use adea_ring::Identity;
use harness::{World, admin, user};
use http_body_util::BodyExt;
use serde_json::{Value, json};

/// An app with an index on `n`, in which ann and bob have documents of their own and one together.
async fn world() -> World {
    let world = World::new().await;
    world.app("notes").await;
    let docs = json!([
        {"_id": "a1", "n": 1, "access": {"read": ["user:ann"]}},
        {"_id": "b1", "n": 2, "access": {"read": ["user:bob"]}},
        {"_id": "ab", "n": 3, "access": {"read": ["user:ann", "user:bob"]}},
        {"_id": "a2", "n": 4, "access": {"read": ["user:ann"]}},
        {"_id": "b2", "n": 5, "secret": "tiger", "access": {"read": ["user:bob"]}},
    ]);
    world.post(&admin(), "/notes/_bulk_docs", json!({"docs": docs})).await.expect(201);
    world
        .post(&admin(), "/notes/_index", json!({"index": {"fields": ["n"]}, "ddoc": "idx", "name": "by-n"}))
        .await
        .expect(200);
    world
}

fn ids(answer: &Value) -> Vec<String> {
    let docs = answer["docs"].as_array().expect("docs");
    docs.iter().map(|doc| doc["_id"].as_str().expect("an id").to_owned()).collect()
}

async fn found(world: &World, who: &Identity, db: &str, query: Value) -> Vec<String> {
    ids(&world.post(who, &format!("/{db}/_find"), query).await.expect(200))
}

/// The partial databases that somebody may read, by the number of their documents.
async fn partials(world: &World, who: &Identity) -> Vec<(String, u64)> {
    let access = world.get(who, "/notes/_access").await.expect(200);
    let partials = access["partials"].as_array().expect("a list");
    partials
        .iter()
        .map(|one| (one["db"].as_str().expect("a name").to_owned(), one["doc_count"].as_u64().expect("a count")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_personal_database_gives_ones_own() {
    let world = world().await;
    let (ann, bob, eve) = (user("ann", &[]), user("bob", &[]), user("eve", &[]));
    for selector in [json!({"n": {"$gt": 0}}), json!({"access": {"$exists": true}})] {
        let query = json!({"selector": selector});
        assert_eq!(found(&world, &ann, "notes--me", query.clone()).await.len(), 3, "{query}");
        assert_eq!(found(&world, &eve, "notes--me", query.clone()).await.len(), 0, "{query}");
        assert_eq!(found(&world, &admin(), "notes", query).await.len(), 5);
    }
    let sorted = json!({"selector": {"n": {"$gt": 0}}, "sort": [{"n": "desc"}]});
    assert_eq!(found(&world, &ann, "notes--me", sorted.clone()).await, ["a2", "ab", "a1"]);
    assert_eq!(found(&world, &bob, "notes--me", sorted).await, ["b2", "ab", "b1"]);
    for (limit, skip, expected) in [(1, 0, vec!["a1"]), (1, 1, vec!["ab"]), (5, 2, vec!["a2"])] {
        let query = json!({"selector": {"n": {"$gt": 0}}, "limit": limit, "skip": skip});
        assert_eq!(found(&world, &ann, "notes--me", query).await, expected);
    }
    world.post(&ann, "/notes/_find", json!({"selector": {}})).await.expect(403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_database_gives_its_documents() {
    let world = world().await;
    let ann = user("ann", &[]);
    let mut all = Vec::new();
    for (db, count) in partials(&world, &ann).await {
        let got = found(&world, &ann, &db, json!({"selector": {"n": {"$gte": 0}}})).await;
        assert_eq!(got.len() as u64, count, "{db}");
        assert_eq!(found(&world, &ann, &db, json!({"selector": {"_id": {"$gt": null}}})).await.len() as u64, count);
        all.extend(got);
    }
    all.sort();
    assert_eq!(all, ["a1", "a2", "ab"]);
    let of_bob = partials(&world, &user("bob", &[])).await;
    for (db, _) in of_bob.iter().filter(|(_, count)| *count == 2) {
        world.post(&ann, &format!("/{db}/_find"), json!({"selector": {}})).await.expect(403);
        world.get(&ann, &format!("/{db}/_index")).await.expect(403);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_write_changes_no_byte() {
    let world = world().await;
    let ann = user("ann", &[]);
    let queries = [
        json!({"selector": {"n": {"$gt": 0}}, "r": 1}),
        json!({"selector": {"n": {"$gt": 0}}, "limit": 2}),
        json!({"selector": {"secret": "tiger"}}),
        json!({"selector": {"n": {"$lt": 100}}, "sort": [{"n": "desc"}], "limit": 1}),
        json!({"selector": {"_id": {"$in": ["b2", "a1", "new"]}}}),
        json!({"selector": {"_id": "b2"}}),
        json!({"selector": {}}),
        json!({"selector": {"n": {"$gt": 0}}, "fields": ["_id", "n"]}),
    ];
    let look = async || {
        let mut seen = BTreeMap::new();
        for query in &queries {
            for resource in ["_find", "_explain"] {
                let answer = world.post(&ann, &format!("/notes--me/{resource}"), query.clone()).await;
                seen.insert(format!("{resource} {query}"), answer.text);
            }
        }
        seen.insert("_index".to_owned(), world.get(&ann, "/notes--me/_index").await.text);
        seen
    };
    let before = look().await;
    let others = json!([
        {"_id": "new", "n": 1.5, "secret": "tiger", "access": {"read": ["user:bob"]}},
        {"_id": "new2", "n": 99, "access": {"read": ["role:x"]}},
    ]);
    world.post(&admin(), "/notes/_bulk_docs", json!({"docs": others})).await.expect(201);
    assert_eq!(look().await, before);
    // Statistics too, but for the time.
    let stats = json!({"selector": {"n": {"$gt": 0}}, "execution_stats": true});
    let told = world.post(&ann, "/notes--me/_find", stats).await.expect(200);
    assert_eq!(told["execution_stats"]["total_keys_examined"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_a_document_does_not_find_it() {
    let world = world().await;
    let ann = user("ann", &[]);
    let query = json!({"selector": {"n": {"$gt": 0}}, "fields": ["_id", "n"]});
    let first =
        world.post(&ann, "/notes--me/_find", json!({"selector": {"n": {"$gt": 0}}, "limit": 2})).await.expect(200);
    assert_eq!(ids(&first), ["a1", "ab"]);
    let rev = world.get(&admin(), "/notes/ab").await.expect(200)["_rev"].clone();
    world.put(&admin(), "/notes/ab", json!({"_rev": rev, "n": 3, "access": {"read": ["user:bob"]}})).await.expect(201);
    // Neither with the newest index nor when asking for an old one.
    for more in
        [json!({}), json!({"update": false}), json!({"stale": "ok"}), json!({"update": false, "conflicts": true})]
    {
        let mut query = query.clone();
        query.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        assert_eq!(found(&world, &ann, "notes--me", query).await, ["a1", "a2"], "{more}");
    }
    let on = json!({"selector": {"n": {"$gt": 0}}, "bookmark": first["bookmark"]});
    assert_eq!(found(&world, &ann, "notes--me", on).await, ["a2"]);
    assert_eq!(found(&world, &user("bob", &[]), "notes--me", query).await, ["b1", "ab", "b2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bookmark_of_somebody_else_gives_nothing_more() {
    let world = world().await;
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    let query = json!({"selector": {"n": {"$gt": 0}}, "limit": 1});
    let of_bob = world.post(&bob, "/notes--me/_find", query).await.expect(200);
    assert_eq!(ids(&of_bob), ["b1"]);
    let on = json!({"selector": {"n": {"$gt": 0}}, "bookmark": of_bob["bookmark"]});
    assert_eq!(found(&world, &ann, "notes--me", on.clone()).await, ["ab", "a2"]);
    assert_eq!(found(&world, &admin(), "notes", on).await, ["ab", "a2", "b2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_are_the_apps() {
    let world = world().await;
    let ann = user("ann", &[]);
    let known = json!({"index": {"fields": ["n"]}, "ddoc": "idx", "name": "by-n"});
    let exists = world.post(&ann, "/notes--me/_index", known).await.expect(200);
    assert_eq!(exists["result"], "exists");
    for who in [ann.clone(), admin()] {
        let new = json!({"index": {"fields": ["zork"]}});
        assert_eq!(world.post(&who, "/notes--me/_index", new).await.expect(403)["error"], "forbidden");
        world.send(&who, "DELETE", "/notes--me/_index/idx/json/by-n", None).await.expect(403);
        world.send(&who, "DELETE", "/notes--me/_index/none/json/by-n", None).await.expect(403);
        world.post(&who, "/notes--me/_index/_bulk_delete", json!({"docids": ["idx"]})).await.expect(403);
    }
    assert_eq!(world.get(&ann, "/notes--me/_index").await.expect(200)["total_rows"], 2);
    // What else there is under a name shows nothing.
    world.put(&admin(), "/notes/_design/js", json!({"views": {"v": {"map": "function (doc) {}"}}})).await.expect(201);
    let of = async |ddoc: &str| {
        let index = json!({"index": {"fields": ["zork"]}, "ddoc": ddoc, "name": "x"});
        world.post(&ann, "/notes--me/_index", index).await.text
    };
    assert_eq!(of("js").await, of("none").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_does_not_keep_old_rights() {
    let world = World::new().await;
    world.app("notes").await;
    world.account("ann", &["staff"]).await;
    let text = "x".repeat(1_000);
    let docs: Vec<Value> = (0..400)
        .map(|n| json!({"_id": format!("d{n:03}"), "n": n, "text": text, "access": {"read": ["role:staff"]}}))
        .collect();
    world.post(&admin(), "/notes/_bulk_docs", json!({"docs": docs})).await.expect(201);
    world.post(&admin(), "/notes/_index", json!({"index": {"fields": ["n"]}})).await.expect(200);
    let ann = user("ann", &["staff"]);
    for selector in [json!({"n": {"$gte": 0}}), json!({"text": {"$exists": true}})] {
        world.account("ann", &["staff"]).await;
        let query = json!({"selector": selector, "limit": 1_000});
        let response = world.raw(&ann, "POST", "/notes--me/_find", Some(&query)).await;
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        body.frame().await.expect("a frame").expect("data");
        world.account("ann", &[]).await;
        let mut more = 0;
        let whole = loop {
            match body.frame().await {
                None => break true,
                Some(Err(_)) => break false,
                Some(Ok(_)) => more += 1,
            }
        };
        assert!(!whole && more <= 1, "{selector}: {more} more pages");
    }
}
