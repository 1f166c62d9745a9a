//! Views of an app's readers: exact over what they may read, and nothing else changes a byte of them.

mod harness;

use adea_ring::Identity;
use axum::body::Body;
use harness::{World, admin, user};
use http_body_util::BodyExt;
use rean::route::{self, Request};
use serde_json::{Value, json};

/// What is asked by those who may read a part.
const QUERIES: [&str; 12] = [
    "n?update_seq=true",
    "n?limit=2&skip=1&update_seq=true",
    "n?descending=true&limit=3",
    "n?startkey=3&endkey=40",
    "n?keys=[1,2,3]",
    "n?include_docs=true",
    "n?update=false",
    "n?stale=ok&update_seq=true",
    "sum",
    "sum?group=true",
    "pair?group_level=1",
    "link?include_docs=true",
];

async fn app() -> World {
    let world = World::new().await;
    world.app("notes").await;
    let design = json!({"views": {
        "n": {"map": "function (doc) { emit(doc.n, doc._id); }"},
        "sum": {"map": "function (doc) { emit(doc.n, doc.n); }", "reduce": "_sum"},
        "pair": {"map": "function (doc) { emit([doc.n % 2, doc.n], doc.n); }", "reduce": "_stats"},
        "link": {"map": "function (doc) { if (doc.to) emit(null, {_id: doc.to}); }"},
    }});
    world.put(&admin(), "/notes/_design/v", design).await.expect(201);
    world
}

async fn write(world: &World, id: &str, n: u64, readers: &[&str]) -> Value {
    let old = world.get(&admin(), &format!("/notes/{id}")).await;
    let mut doc = json!({"n": n, "to": "hidden", "access": {"read": readers}});
    if old.status == 200 {
        doc["_rev"] = old.json()["_rev"].clone();
    }
    world.put(&admin(), &format!("/notes/{id}"), doc).await.expect(201)
}

/// All bytes of an answer, with its headers.
async fn bytes(world: &World, who: &Identity, path: &str) -> (u16, Vec<String>, String) {
    let request = http::Request::builder().uri(path).body(Body::empty()).expect("a request");
    let request = Request::from_http(request).expect("a path");
    let response = route::dispatch(&world.pod, who, request).await.unwrap_or_else(|error| error.into_response());
    let status = response.status().as_u16();
    let headers = response.headers().iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, headers, String::from_utf8(body.to_vec()).expect("text"))
}

fn ids(answer: &Value) -> Vec<&str> {
    answer["rows"].as_array().expect("rows").iter().map(|row| row["id"].as_str().expect("an id")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_limits_and_reductions_are_those_of_the_readers_documents() {
    let world = app().await;
    for n in 1..=20 {
        let readers: &[&str] = match n % 4 {
            0 => &["user:ann"],
            1 => &["user:bob"],
            2 => &["role:staff"],
            _ => &["users"],
        };
        write(&world, &format!("d{n:02}"), n, readers).await;
    }
    let of = |who: &'static str, roles: &'static [&'static str], rests: [bool; 4]| {
        let mine: Vec<u64> = (1..=20).filter(|n| rests[(n % 4) as usize]).collect();
        (user(who, roles), mine)
    };
    for (who, mine) in [
        of("ann", &[], [true, false, false, true]),
        of("bob", &["staff"], [false, true, true, true]),
        of("eve", &[], [false, false, false, true]),
    ] {
        let ask = async |path: &str| world.get(&who, &format!("/notes--me/_design/v/_view/{path}")).await.expect(200);
        let all = ask("n").await;
        assert_eq!(all["total_rows"], mine.len());
        let keys: Vec<u64> =
            all["rows"].as_array().expect("rows").iter().map(|row| row["key"].as_u64().expect("a number")).collect();
        assert_eq!(keys, mine);
        let page = ask("n?skip=2&limit=3&descending=true").await;
        assert_eq!(page["offset"], 2);
        let wanted: Vec<String> = mine.iter().rev().skip(2).take(3).map(|n| format!("d{n:02}")).collect();
        assert_eq!(ids(&page), wanted);
        let from = ask("n?startkey=8&limit=1").await;
        assert_eq!(from["offset"], mine.iter().filter(|n| **n < 8).count());
        assert_eq!(ask("sum").await["rows"][0]["value"], mine.iter().sum::<u64>());
        assert_eq!(ask("sum?group=true").await["rows"].as_array().expect("rows").len(), mine.len());
        let odd: u64 = mine.iter().filter(|n| **n % 2 == 1).sum();
        let pairs = ask("pair?group_level=1&startkey=[1]").await;
        let shown = pairs["rows"]
            .as_array()
            .expect("rows")
            .first()
            .map_or(0, |row| row["value"]["sum"].as_u64().expect("a sum"));
        assert_eq!(shown, odd);
        // The aggregate's view is not theirs.
        world.get(&who, "/notes/_design/v/_view/n").await.expect(403);
    }
    let shown = world.get(&user("ann", &[]), "/notes/_access").await.expect(200);
    for partial in shown["partials"].as_array().expect("partials") {
        let db = partial["db"].as_str().expect("a name");
        let rows = world.get(&user("ann", &[]), &format!("/{db}/_design/v/_view/n")).await.expect(200);
        assert_eq!(rows["total_rows"], 5);
        // Others don't learn whether there is such a database.
        if partial["readers"] == json!(["user:ann"]) {
            let there = world.get(&user("bob", &[]), &format!("/{db}/_design/v/_view/n")).await;
            let none = "/notes--000000000000000000000000/_design/v/_view/n";
            let not = world.get(&user("bob", &[]), none).await;
            assert_eq!((there.status, there.text), (not.status, not.text));
        }
    }
    assert_eq!(world.get(&admin(), "/notes/_design/v/_view/n").await.expect(200)["total_rows"], 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_writes_change_nothing_in_the_bytes_of_an_answer() {
    let world = app().await;
    for n in 1..=5 {
        write(&world, &format!("d{n}"), n, &["user:ann"]).await;
    }
    let ann = user("ann", &[]);
    let part = world.get(&ann, "/notes/_access").await.expect(200)["partials"][0]["db"].clone();
    let part = part.as_str().expect("a name").to_owned();
    let seen = async || {
        let mut seen = Vec::new();
        for db in ["notes--me", &part] {
            for query in QUERIES {
                let answer = bytes(&world, &ann, &format!("/{db}/_design/v/_view/{query}")).await;
                assert_eq!(answer.0, 200, "{query}: {}", answer.2);
                seen.push((format!("{db} {query}"), answer));
            }
        }
        seen
    };
    let before = seen().await;
    assert!(before.iter().all(|(_, (_, headers, _))| headers.iter().any(|line| line.starts_with("etag"))));
    let hidden = write(&world, "hidden", 3, &["user:bob"]).await;
    assert_eq!(before, seen().await, "a hidden document");
    for n in 10..30 {
        write(&world, &format!("h{n}"), n % 6, &["user:bob", "role:staff"]).await;
    }
    write(&world, "hidden", 1, &["role:staff"]).await;
    assert_eq!(before, seen().await, "hidden documents, and a hidden move");
    let rev = hidden["rev"].clone();
    let now = world.get(&admin(), "/notes/hidden").await.expect(200)["_rev"].clone();
    assert_ne!(rev, now);
    world.post(&admin(), "/notes/_purge", json!({"hidden": [now]})).await.expect(201);
    assert_eq!(before, seen().await, "a hidden purge");
    let gone = world.get(&admin(), "/notes/h10").await.expect(200)["_rev"].clone();
    let path = format!("/notes/h10?rev={}", gone.as_str().expect("a revision"));
    world.send(&admin(), "DELETE", &path, None).await.expect(200);
    assert_eq!(before, seen().await, "a hidden deletion");
    write(&world, "d1", 9, &["user:ann"]).await;
    let after = seen().await;
    assert!(before.iter().zip(&after).all(|(before, after)| before != after), "her own document");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_revoked_is_never_shown_again() {
    let world = app().await;
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    for n in 1..=3 {
        write(&world, &format!("d{n}"), n, &["user:ann", "user:bob"]).await;
    }
    let stale =
        ["n", "n?update=false", "n?update=lazy", "n?stale=ok", "n?stale=update_after", "n?update=false&stable=true"];
    for query in stale {
        let rows = world.get(&bob, &format!("/notes--me/_design/v/_view/{query}")).await.expect(200);
        assert_eq!(ids(&rows), ["d1", "d2", "d3"], "{query}");
    }
    for (n, query) in (2..=7).zip(stale) {
        let id = format!("d{n}");
        write(&world, &id, n, &["user:ann", "user:bob"]).await;
        write(&world, &id, n, &["user:ann"]).await;
        let path = format!("/notes--me/_design/v/_view/{query}");
        let rows = world.get(&bob, &path).await.expect(200);
        assert!(!ids(&rows).contains(&id.as_str()), "{query}: {rows}");
        assert_eq!(rows["total_rows"], 1 + u64::from(n < 3), "{query}");
        assert!(ids(&world.get(&ann, &path).await.expect(200)).contains(&id.as_str()), "{query}");
    }
    let queries = json!({"queries": [{"update": "false"}, {"stale": "ok"}]});
    write(&world, "d1", 1, &["user:ann"]).await;
    let answer = world.post(&bob, "/notes--me/_design/v/_view/n/queries", queries).await.expect(200);
    assert!(answer["results"].as_array().expect("results").iter().all(|result| result["rows"] == json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn linked_documents_are_shown_to_those_who_may_read_them() {
    let world = app().await;
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    write(&world, "hidden", 1, &["user:ann"]).await;
    write(&world, "shared", 2, &["user:ann", "user:bob"]).await;
    let linked = async |who: &Identity| {
        let rows = world.get(who, "/notes--me/_design/v/_view/link?include_docs=true").await.expect(200);
        let row = rows["rows"].as_array().expect("rows").iter().find(|row| row["id"] == "shared").cloned();
        row.expect("the row")["doc"].clone()
    };
    assert_eq!(linked(&ann).await["n"], 1);
    let not_readable = linked(&bob).await;
    let rev = world.get(&admin(), "/notes/hidden").await.expect(200)["_rev"].clone();
    world.post(&admin(), "/notes/_purge", json!({"hidden": [rev]})).await.expect(201);
    assert_eq!(not_readable, linked(&bob).await);
    assert_eq!(not_readable, Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_taken_away_takes_its_rows_away() {
    let world = app().await;
    world.account("bob", &["staff"]).await;
    write(&world, "d1", 1, &["role:staff"]).await;
    write(&world, "d2", 2, &["user:bob"]).await;
    let bob = user("bob", &["staff"]);
    let path = "/notes--me/_design/v/_view/n";
    let before = bytes(&world, &bob, path).await;
    assert_eq!(world.get(&bob, path).await.expect(200)["total_rows"], 2);
    world.account("bob", &[]).await;
    let after = bytes(&world, &bob, path).await;
    assert_eq!(world.get(&bob, path).await.expect(200)["total_rows"], 1);
    assert_ne!(before.1, after.1, "the ETag changes with the rights");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_an_index_is_for_administrators() {
    let world = app().await;
    write(&world, "d1", 1, &["user:ann"]).await;
    let ann = user("ann", &[]);
    for db in ["notes--me", "notes"] {
        let answer = world.get(&ann, &format!("/{db}/_design/v/_info")).await;
        assert!(matches!(answer.status.as_u16(), 401 | 403), "{db}: {}", answer.text);
        for path in ["_view_cleanup", "_compact/v"] {
            let answer = world.post(&ann, &format!("/{db}/{path}"), json!({})).await;
            assert!(matches!(answer.status.as_u16(), 401 | 403), "{db}/{path}: {}", answer.text);
        }
    }
    world.get(&admin(), "/notes/_design/v/_info").await.expect(200);
}

/// A view whose answer is larger than what is made ahead of its reader.
async fn large(world: &World, readers: &[&str]) {
    let text = "x".repeat(2_000);
    let docs: Vec<Value> =
        (0..200).map(|n| json!({"_id": format!("l{n}"), "n": n, "text": text, "access": {"read": readers}})).collect();
    world.post(&admin(), "/notes/_bulk_docs", json!({"docs": docs})).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_lost_ends_an_answer_in_its_middle() {
    let world = app().await;
    world.account("bob", &["staff"]).await;
    large(&world, &["role:staff"]).await;
    let bob = user("bob", &["staff"]);
    let path = "/notes--me/_design/v/_view/n?include_docs=true";
    let mut body = world.raw(&bob, "GET", path, None).await.into_body();
    body.frame().await.expect("a frame").expect("a first page");
    world.account("bob", &[]).await;
    let mut pages = 1;
    let broken = loop {
        match body.frame().await {
            Some(Ok(_)) => pages += 1,
            Some(Err(_)) => break true,
            None => break false,
        }
    };
    assert!(broken && pages <= 2, "{pages} pages");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_of_one_account_leave_room_for_others() {
    let world = app().await;
    large(&world, &["users"]).await;
    let path = "/notes--me/_design/v/_view/n?include_docs=true";
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    let mut open = Vec::new();
    let refused = loop {
        let response = world.raw(&ann, "GET", path, None).await;
        if response.status() != 200 {
            break response.status();
        }
        open.push(response);
        assert!(open.len() < 1_000, "there is no bound");
    };
    assert_eq!(refused, 429);
    assert_eq!(world.get(&bob, path).await.expect(200)["total_rows"], 200);
    // Short answers are not counted.
    world.get(&ann, "/notes--me/_design/v/_view/n?limit=1").await.expect(200);
    drop(open);
    world.get(&ann, path).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn map_functions_tell_readers_of_the_conflicts_that_they_may_see() {
    let world = app().await;
    let design = json!({"views": {"c": {"map": "function (doc) { emit(doc._id, doc._conflicts); }"}}});
    world.put(&admin(), "/notes/_design/c", design).await.expect(201);
    let rev = |letter: &str| format!("1-{}", letter.repeat(32));
    let put = async |id: &str, letter: &str, reader: &str| {
        let doc = json!({"_id": id, "_rev": rev(letter), "access": {"read": [reader]}});
        world.post(&admin(), "/notes/_bulk_docs", json!({"docs": [doc], "new_edits": false})).await.expect(201);
    };
    let rows = async || {
        let answer = bytes(&world, &user("ann", &[]), "/notes--me/_design/c/_view/c").await;
        assert_eq!(answer.0, 200, "{}", answer.2);
        answer
    };
    put("d", "b", "user:ann").await;
    let before = rows().await;
    put("d", "a", "user:bob").await;
    let hidden = rows().await;
    assert_eq!(before.2, hidden.2, "a branch that she may not see");
    put("e", "b", "user:ann").await;
    put("e", "a", "user:ann").await;
    let shown = rows().await;
    assert!(shown.2.contains(&format!("\"value\":[\"{}\"]", rev("a"))), "{}", shown.2);
}
