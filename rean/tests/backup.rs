//! `GET /_backup`: for administrators only, all of one moment whatever happens meanwhile, and nothing of the ring's.

mod harness;

use std::time::Instant;

use adea_ring::Identity;
use harness::{DEADLINE, World, admin, user};
use http_body_util::BodyExt;
use rean::backup::format::{Database, Head, Reader, Record, Sum, check};
use serde_json::{Value, json};

/// What a backup has: of each database its leaves, and each attachment's bytes in the place of its stub.
struct Contents {
    head: Head,
    databases: Vec<(Database, Sum)>,
    leaves: Vec<(String, Value)>,
    pieces: Vec<u8>,
    bytes: Vec<u8>,
}

impl Contents {
    fn read(bytes: Vec<u8>) -> Self {
        let (head, databases) = check(&bytes[..]).expect("a whole backup");
        let mut reader = Reader::new(&bytes[..]).expect("a backup");
        let (mut leaves, mut pieces, mut name) = (Vec::new(), Vec::new(), String::new());
        while let Some(record) = reader.record().expect("a whole backup") {
            match record {
                Record::Database(database) => name = database.name,
                Record::Revision(text) => leaves.push((name.clone(), serde_json::from_slice(&text).expect("JSON"))),
                Record::Piece(piece) => pieces.extend(piece),
                _ => {}
            }
        }
        Self { head, databases, leaves, pieces, bytes }
    }

    fn of(&self, name: &str) -> Vec<&Value> {
        self.leaves.iter().filter(|(db, _)| db == name).map(|(_, leaf)| leaf).collect()
    }

    fn names(&self) -> Vec<&str> {
        self.databases.iter().map(|(database, _)| database.name.as_str()).collect()
    }
}

async fn bytes(response: axum::http::Response<axum::body::Body>) -> Vec<u8> {
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.expect("whole").to_bytes().to_vec()
}

async fn backup(world: &World, query: &str) -> Contents {
    Contents::read(bytes(world.raw(&admin(), "GET", &format!("/_backup{query}"), None).await).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_get_one_and_others_learn_of_no_database() {
    let world = World::new().await;
    world.open_db("open").await;
    for who in [user("ann", &["staff"]), Identity::anonymous()] {
        for path in ["/_backup", "/_backup?db=open", "/_backup?db=none"] {
            assert_eq!(world.get(&who, path).await.status, 401, "{path}");
        }
    }
    for none in ["/_backup?db=none", "/_backup?db=_ring", "/_backup?db=_users", "/_backup?db=open&db=none"] {
        assert_eq!(world.get(&admin(), none).await.status, 404, "{none}");
    }
    assert_eq!(world.send(&admin(), "POST", "/_backup", None).await.status, 405);
    assert_eq!(world.send(&admin(), "HEAD", "/_backup", None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_has_all_that_it_should_and_nothing_of_the_ring() {
    let world = World::new().await;
    let root = admin();
    world.account("ann", &["staff"]).await;
    world.put(&root, "/_ring/app:notes", json!({"create": ["role:staff"]})).await.expect(201);
    world.put(&root, "/_ring/session:x", json!({"type": "session", "secret_sha256": "hush"})).await.expect(201);
    world.app("notes").await;
    let data = json!({"a.txt": {"content_type": "text/plain", "data": "aGVsbG8="}});
    let doc = json!({"access": {"read": ["user:ann"]}, "_attachments": data});
    let rev = world.put(&root, "/notes/gone", doc.clone()).await.expect(201)["rev"].clone();
    world.put(&root, "/notes/kept", doc).await.expect(201);
    let rev = rev.as_str().expect("a revision");
    world.send(&root, "DELETE", &format!("/notes/gone?rev={rev}"), None).await.expect(200);
    world.put(&root, "/notes/_local/mark", json!({"seq": 1})).await.expect(201);
    world.open_db("plain").await;
    let branch = |letter: &str| {
        let (own, base) = (letter.repeat(32), "b".repeat(32));
        json!({"_id": "k", "_rev": format!("2-{own}"), "_revisions": {"start": 2, "ids": [own, base]}, "n": 1.50})
    };
    let docs = json!({"new_edits": false, "docs": [branch("a"), branch("c")]});
    world.post(&root, "/plain/_bulk_docs", docs).await.expect(201);
    world.put(&root, "/plain/_design/d", json!({"views": {}})).await.expect(201);
    world.put(&root, "/plain/last", json!({})).await.expect(201);

    let all = backup(&world, "").await;
    assert!(all.head.whole);
    assert_eq!(all.names(), ["_users", "notes", "plain", "_replicator"]);
    let notes = &all.databases[1].0;
    assert!(notes.app && (notes.doc_count, notes.doc_del_count) == (1, 1));
    assert_eq!(notes.settings.as_ref().expect("settings")["create"], json!(["role:staff"]));
    let gone = all.of("notes").into_iter().find(|leaf| leaf["_id"] == "gone").expect("the deletion");
    // Whose it was is said by the deletion itself, so that it comes to the same readers again.
    assert_eq!((&gone["_deleted"], &gone["access"]["read"]), (&json!(true), &json!(["user:ann"])));
    assert_eq!(all.pieces, b"hello");
    let plain: Vec<&str> = all.of("plain").into_iter().filter_map(|leaf| leaf["_id"].as_str()).collect();
    assert_eq!(plain, ["k", "k", "last", "_design/d"]);
    assert_eq!(all.of("plain")[0]["_revisions"], json!({"start": 2, "ids": ["c".repeat(32), "b".repeat(32)]}));
    let security = all.databases[2].0.security.as_ref().expect("it was set");
    assert_eq!(security["members"], json!({"names": [], "roles": []}));
    let texts: String = all.leaves.iter().map(|(_, leaf)| leaf.to_string()).collect();
    assert!(!texts.contains("hush") && !texts.contains("_local"));

    let one = backup(&world, "?db=plain").await;
    assert!(!one.head.whole && one.names() == ["plain"] && one.head.config.is_none());
    assert!(one.bytes.len() < all.bytes.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_meanwhile_is_not_in_it() {
    let world = World::new().await;
    let root = admin();
    world.open_db("db").await;
    // More than waits to be sent, so that most of it is read after what happens below.
    let text: String = (0..40_000).map(|_| char::from(b'a' + rand::random::<u8>() % 26)).collect();
    for round in 0..8 {
        let docs: Vec<Value> =
            (0..40).map(|n| json!({"_id": format!("d{round}-{n}"), "text": text.as_str()[n..]})).collect();
        world.post(&root, "/db/_bulk_docs", json!({ "docs": docs })).await.expect(201);
    }
    let before = world.get(&root, "/db").await.expect(200);
    let under_way = world.raw(&root, "GET", "/_backup", None).await;
    assert_eq!(world.get(&root, "/_backup").await.status, 503);
    world.put(&root, "/db/new", json!({})).await.expect(201);
    let doc = world.get(&root, "/db/d7-3").await.expect(200);
    let rev = doc["_rev"].as_str().expect("a revision");
    world.send(&root, "DELETE", &format!("/db/d7-3?rev={rev}"), None).await.expect(200);
    world.send(&root, "DELETE", "/db", None).await.expect(200);
    let contents = Contents::read(bytes(under_way).await);
    let database = &contents.databases.iter().find(|(database, _)| database.name == "db").expect("it was there").0;
    assert_eq!((database.doc_count, database.doc_del_count), (before["doc_count"].as_u64().expect("a count"), 0));
    let ids: Vec<&str> = contents.of("db").into_iter().filter_map(|leaf| leaf["_id"].as_str()).collect();
    assert!(ids.len() == 320 && ids.contains(&"d7-3") && !ids.contains(&"new"), "{}", ids.len());

    // The place is free again, also after one that nobody read to its end.
    let deadline = Instant::now() + DEADLINE;
    for _ in 0..2 {
        loop {
            let next = world.raw(&root, "GET", "/_backup", None).await;
            if next.status() == 200 {
                break;
            }
            assert!(Instant::now() < deadline, "{}", next.status());
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}
