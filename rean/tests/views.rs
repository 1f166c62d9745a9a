//! Views over HTTP: rows, ranges, groups, freshness, ETags, the indexer.

mod harness;

use std::time::Instant;

use adea_ring::Identity;
use axum::body::Body;
use harness::{DEADLINE, World, admin, user};
use http_body_util::BodyExt;
use rean::route::{self, Request};
use serde_json::{Value, json};

const PEOPLE: [(&str, &str, u64); 5] =
    [("ann", "x", 1), ("bob", "x", 2), ("cat", "y", 3), ("dan", "y", 4), ("eve", "z", 5)];

/// A database with five people and a design document `v` with these views.
async fn people(views: Value) -> World {
    let world = World::new().await;
    world.open_db("db").await;
    let docs: Vec<Value> = PEOPLE.iter().map(|(id, team, n)| json!({"_id": id, "team": team, "n": n})).collect();
    world.post(&admin(), "/db/_bulk_docs", json!({"docs": docs})).await.expect(201);
    world.put(&admin(), "/db/_design/v", json!({"views": views})).await.expect(201);
    world
}

fn team() -> Value {
    let map = "function (doc) { emit(doc.team, doc.n); }";
    json!({
        "team": {"map": map},
        "sum": {"map": map, "reduce": "_sum"},
        "max": {"map": map, "reduce": "function (keys, values) { return Math.max.apply(null, values); }"},
        "pair": {"map": "function (doc) { emit([doc.team, doc.n % 2], doc.n); }", "reduce": "_sum"},
    })
}

fn ids(answer: &Value) -> Vec<&str> {
    answer["rows"].as_array().expect("rows").iter().map(|row| row["id"].as_str().expect("an id")).collect()
}

async fn ask(world: &World, path: &str) -> Value {
    world.get(&admin(), &format!("/db/_design/v/_view/{path}")).await.expect(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_ranges_and_counts() {
    let world = people(team()).await;
    let all = ask(&world, "team").await;
    assert_eq!((&all["total_rows"], &all["offset"]), (&json!(5), &json!(0)));
    assert_eq!(all["rows"][0], json!({"id": "ann", "key": "x", "value": 1}));
    for (query, wanted) in [
        ("key=%22y%22", vec!["cat", "dan"]),
        ("keys=[%22z%22,%22none%22,%22x%22]", vec!["eve", "ann", "bob"]),
        ("keys=[%22z%22,%22x%22]&skip=2", vec!["bob"]),
        ("keys=[%22x%22,%22x%22]&limit=3", vec!["ann", "bob", "ann"]),
        ("keys=[]", vec![]),
        ("startkey=%22y%22", vec!["cat", "dan", "eve"]),
        ("startkey=%22x%22&endkey=%22y%22&inclusive_end=false", vec!["ann", "bob"]),
        ("startkey=%22x%22&startkey_docid=bob&endkey=%22y%22&endkey_docid=cat", vec!["bob", "cat"]),
        ("descending=true&limit=2", vec!["eve", "dan"]),
        ("descending=true&startkey=%22y%22&endkey=%22x%22", vec!["dan", "cat", "bob", "ann"]),
        ("skip=3", vec!["dan", "eve"]),
        ("skip=9", vec![]),
        ("limit=0", vec![]),
    ] {
        assert_eq!(ids(&ask(&world, &format!("team?{query}")).await), wanted, "{query}");
    }
    assert_eq!(ask(&world, "team?startkey=%22y%22&skip=1").await["offset"], 3);
    assert_eq!(ask(&world, "team?descending=true&startkey=%22y%22").await["offset"], 1);
    assert_eq!(ask(&world, "team?startkey=%22zz%22").await["offset"], 5);
    let unsorted = ask(&world, "team?sorted=false").await;
    assert!(unsorted.get("total_rows").is_none() && unsorted["rows"].as_array().expect("rows").len() == 5);
    assert!(ask(&world, "team?update_seq=true").await["update_seq"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_one_document_with_one_key_have_the_order_of_their_values() {
    let map = "function (doc) {
        ['z', 'a', 10, [1], 9, {b: 1}, true, null].forEach(function (value) { emit(doc.team, value); });
        emit('w', doc.n);
    }";
    let world = people(json!({"many": {"map": map}})).await;
    let answer = ask(&world, "many?key=%22z%22").await;
    let values: Vec<&Value> = answer["rows"].as_array().expect("rows").iter().map(|row| &row["value"]).collect();
    assert_eq!(json!(values), json!([9, 10, null, true, {"b": 1}, [1], "a", "z"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn backwards_the_rows_of_one_document_with_one_key_still_come_forwards() {
    let world = World::new().await;
    world.open_db("plain").await;
    world.app("notes").await;
    world.send(&admin(), "PUT", "/parts?partitioned=true", None).await.expect(201);
    // Each document has 40 rows with one key, which fill several pages, one before and one behind them.
    let map = "function (doc) { for (var n = 0; n < 40; n++) emit(1, doc.pad + (99 - n)); emit(0); emit(2); }";
    let design = json!({"views": {"v": {"map": map}}});
    let pad = "x".repeat(300);
    let rows = |key: u32| {
        let values: Vec<Value> =
            if key == 1 { (60..100).map(|n| json!(format!("{pad}{n}"))).collect() } else { vec![Value::Null] };
        ["p:c", "p:b", "p:a"]
            .map(|id| values.clone().into_iter().map(move |value| (id, key, value)))
            .into_iter()
            .flatten()
    };
    let wanted: Vec<_> = rows(2).chain(rows(1)).chain(rows(0)).collect();
    for (db, asked) in
        [("plain", "plain/"), ("parts", "parts/_partition/p/"), ("notes", "notes--me/"), ("notes", "notes/")]
    {
        let who = if asked == "notes--me/" { user("ann", &[]) } else { admin() };
        if asked != "notes/" {
            world.put(&admin(), &format!("/{db}/_design/v"), design.clone()).await.expect(201);
            // Of two partial databases, where there are any.
            for (id, readers) in [
                ("p:a", ["user:ann", "user:bob"]),
                ("p:b", ["user:ann", "user:ann"]),
                ("p:c", ["user:ann", "user:bob"]),
            ] {
                let doc = json!({"pad": pad, "access": {"read": readers}});
                world.put(&admin(), &format!("/{db}/{id}"), doc).await.expect(201);
            }
        }
        let view = format!("/{asked}_design/v/_view/v");
        let listed = |answer: &Value| -> Vec<(String, u32, Value)> {
            let rows = answer["rows"].as_array().expect("rows").iter();
            rows.map(|row| {
                let key = row["key"].as_u64().expect("a number") as u32;
                (row["id"].as_str().expect("an id").to_owned(), key, row["value"].clone())
            })
            .collect()
        };
        let expect = |found: &Value, from: usize, to: usize, what: &str| {
            let wanted = wanted[from..to].iter().map(|(id, key, value)| ((*id).to_owned(), *key, value.clone()));
            assert_eq!(listed(found), wanted.collect::<Vec<_>>(), "{asked} {what}");
        };
        for (query, from, to) in [
            ("", 0, 126),
            ("&limit=30", 0, 30),
            ("&skip=13&limit=50", 13, 63),
            ("&skip=60", 60, 126),
            ("&startkey=1&startkey_docid=p:b&limit=45", 43, 88),
            ("&startkey=1&endkey=1&endkey_docid=p:b", 3, 83),
            ("&startkey=1&endkey=1&endkey_docid=p:b&inclusive_end=false", 3, 43),
            ("&keys=[2,1]&skip=5", 5, 123),
            ("&key=1&skip=39&limit=2", 42, 44),
        ] {
            let found = world.get(&who, &format!("{view}?descending=true{query}")).await.expect(200);
            expect(&found, from, to, query);
        }
        let queries =
            json!({"queries": [{"descending": true, "skip": 20, "limit": 40}, {"descending": true, "key": 1}]});
        let found = world.post(&who, &format!("{view}/queries"), queries).await.expect(200);
        expect(&found["results"][0], 20, 60, "queries");
        expect(&found["results"][1], 3, 123, "queries");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reductions_and_groups() {
    let world = people(team()).await;
    for (query, wanted) in [
        ("sum", json!([{"key": null, "value": 15}])),
        ("sum?key=%22y%22", json!([{"key": null, "value": 7}])),
        ("sum?key=%22none%22", json!([])),
        (
            "sum?group=true&keys=[%22z%22,%22none%22,%22x%22]",
            json!([{"key": "z", "value": 5}, {"key": "x", "value": 3}]),
        ),
        ("max", json!([{"key": null, "value": 5}])),
        ("max?group=true", json!([{"key": "x", "value": 2}, {"key": "y", "value": 4}, {"key": "z", "value": 5}])),
        (
            "pair?group_level=1",
            json!([{"key": ["x"], "value": 3}, {"key": ["y"], "value": 7}, {"key": ["z"], "value": 5}]),
        ),
        ("pair?group_level=1&limit=1&skip=1", json!([{"key": ["y"], "value": 7}])),
        ("pair?group_level=1&descending=true&limit=1", json!([{"key": ["z"], "value": 5}])),
    ] {
        assert_eq!(ask(&world, query).await, json!({"rows": wanted}), "{query}");
    }
    assert_eq!(ask(&world, "pair?group=true").await["rows"].as_array().expect("rows").len(), 5);
    assert_eq!(ask(&world, "sum?reduce=false&limit=2").await["total_rows"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_queries_in_one_request() {
    let world = people(team()).await;
    let queries = json!({"queries": [{"group": true}, {"reduce": false, "limit": 1}, {"key": "none"}]});
    for path in ["/db/_design/v/_view/sum/queries", "/db/_design/v/_view/sum"] {
        let answer = world.post(&admin(), path, queries.clone()).await.expect(200);
        let results = answer["results"].as_array().expect("results");
        assert_eq!(results[0]["rows"].as_array().expect("rows").len(), 3);
        assert_eq!(ids(&results[1]), ["ann"]);
        assert_eq!(results[2], json!({"rows": []}));
    }
    let none = world.post(&admin(), "/db/_design/v/_view/sum/queries", json!({"queries": []})).await.expect(200);
    assert_eq!(none, json!({"results": []}));
    let get = world.get(&admin(), "/db/_design/v/_view/sum/queries").await;
    assert_eq!(get.status, 405);
    let bad = json!({"queries": [{"include_docs": true}]});
    let bad = world.post(&admin(), "/db/_design/v/_view/sum/queries", bad).await;
    assert_eq!((bad.status.as_u16(), &bad.json()["error"]), (400, &json!("query_parse_error")));
    let body = json!({"keys": ["z"], "limit": 1});
    let posted = world.post(&admin(), "/db/_design/v/_view/team", body).await.expect(200);
    assert_eq!(ids(&posted), ["eve"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_and_linked_documents() {
    let world = people(json!({
        "team": {"map": "function (doc) { emit(doc.team, null); }"},
        "link": {"map": "function (doc) { if (doc.to) emit(null, {_id: doc.to, _rev: doc.rev}); }"},
    }))
    .await;
    let first = ask(&world, "team?include_docs=true&limit=1").await["rows"][0]["doc"].clone();
    assert_eq!((&first["_id"], &first["n"]), (&json!("ann"), &json!(1)));
    let old = world.get(&admin(), "/db/eve").await.expect(200);
    let mut new = old.clone();
    new["n"] = json!(6);
    world.put(&admin(), "/db/eve", new).await.expect(201);
    for (id, to, rev) in [
        ("l1", "eve", None),
        ("l2", "eve", Some(old["_rev"].as_str().expect("a revision"))),
        ("l3", "none", None),
        ("l4", "eve", Some("zork")),
    ] {
        world.put(&admin(), &format!("/db/{id}"), json!({"to": to, "rev": rev})).await.expect(201);
    }
    let linked = ask(&world, "link?include_docs=true").await;
    let shown: Vec<&Value> = linked["rows"].as_array().expect("rows").iter().map(|row| &row["doc"]["n"]).collect();
    assert_eq!(shown, [&json!(6), &json!(5), &Value::Null, &Value::Null]);
    assert_eq!(linked["rows"][2]["doc"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_follows_writes_and_design_documents() {
    let world = people(team()).await;
    ask(&world, "sum").await;
    let mut bob = world.get(&admin(), "/db/bob").await.expect(200);
    bob["n"] = json!(20);
    world.put(&admin(), "/db/bob", bob).await.expect(201);
    let ann = world.get(&admin(), "/db/ann").await.expect(200);
    let path = format!("/db/ann?rev={}", ann["_rev"].as_str().expect("a revision"));
    world.send(&admin(), "DELETE", &path, None).await.expect(200);
    assert_eq!(ask(&world, "sum").await["rows"][0]["value"], 32);
    let eve = world.get(&admin(), "/db/eve").await.expect(200);
    world.post(&admin(), "/db/_purge", json!({"eve": [eve["_rev"]]})).await.expect(201);
    assert_eq!(ask(&world, "sum").await["rows"][0]["value"], 27);
    let mut design = world.get(&admin(), "/db/_design/v").await.expect(200);
    design["views"]["sum"]["map"] = json!("function (doc) { emit(null, 1); }");
    world.put(&admin(), "/db/_design/v", design).await.expect(201);
    assert_eq!(ask(&world, "sum").await["rows"][0]["value"], 3);
    // A database of the same name is another one.
    world.send(&admin(), "DELETE", "/db", None).await.expect(200);
    world.open_db("db").await;
    world.put(&admin(), "/db/_design/v", json!({"views": team()})).await.expect(201);
    assert_eq!(ask(&world, "sum").await, json!({"rows": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_or_wrong_is_told_in_couchdbs_words() {
    let world = people(team()).await;
    world.put(&admin(), "/db/_design/erl", json!({"language": "erlang", "views": {"a": {"map": "x"}}})).await;
    for (path, status, error, reason) in [
        ("_design/v/_view/none", 404, "not_found", "missing_named_view"),
        ("_design/none/_view/team", 404, "not_found", "missing"),
        ("_design/none/_info", 404, "not_found", "missing"),
        ("_design/v/_view", 404, "not_found", "missing"),
        ("_design/v/_view/team?group=true", 400, "query_parse_error", "Invalid use of grouping on a map view."),
        ("_design/v/_view/sum?include_docs=true", 400, "query_parse_error", "`include_docs` is invalid for reduce"),
        ("_design/v/_view/team?key=bad{", 400, "bad_request", "invalid UTF-8 JSON"),
        ("_design/erl/_view/a", 400, "unknown_query_language", "erlang"),
        ("_design/v/_search/x", 404, "not_found", "Search is not available"),
        ("_temp_view", 410, "gone", "Temporary views are not supported in CouchDB"),
        ("_partition/p/_design/v/_view/team", 400, "bad_request", "database is not partitioned"),
    ] {
        let answer = world.get(&admin(), &format!("/db/{path}")).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
        assert_eq!(answer.json()["error"], error, "{path}");
        assert!(answer.json()["reason"].as_str().expect("a reason").contains(reason), "{path}: {}", answer.text);
    }
    world.send(&admin(), "DELETE", "/db/_design/v/_view/team", None).await.expect(405);
    let design = world.get(&admin(), "/db/_design/v").await.expect(200);
    let path = format!("/db/_design/v?rev={}", design["_rev"].as_str().expect("a revision"));
    world.send(&admin(), "DELETE", &path, None).await.expect(200);
    assert_eq!(world.get(&admin(), "/db/_design/v/_view/team").await.expect(404)["reason"], "deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_throws_has_no_rows_for_that_document() {
    let world = people(json!({"v": {"map": "function (doc) { emit(doc.a.b, 1); }"}})).await;
    assert_eq!(ask(&world, "v").await["rows"], json!([]));
    world.put(&admin(), "/db/good", json!({"a": {"b": 7}})).await.expect(201);
    assert_eq!(ask(&world, "v").await["rows"], json!([{"id": "good", "key": 7, "value": 1}]));
}

/// An answer with its ETag, to a client that has one.
async fn tagged(world: &World, who: &Identity, path: &str, known: Option<&str>) -> (u16, String) {
    let mut request = http::Request::builder().uri(path);
    if let Some(known) = known {
        request = request.header("if-none-match", known);
    }
    let request = Request::from_http(request.body(Body::empty()).expect("a request")).expect("a path");
    let response = route::dispatch(&world.pod, who, request).await.unwrap_or_else(|error| error.into_response());
    let etag = response.headers().get("etag").expect("an ETag").to_str().expect("text").to_owned();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(status == 304, body.is_empty());
    (status, etag)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etag_stays_until_the_answer_changes() {
    let world = people(team()).await;
    let path = "/db/_design/v/_view/sum?group=true";
    let (status, first) = tagged(&world, &admin(), path, None).await;
    assert_eq!(status, 200);
    assert_eq!(tagged(&world, &admin(), path, Some(&first)).await, (304, first.clone()));
    let (status, other) = tagged(&world, &admin(), "/db/_design/v/_view/sum", Some(&first)).await;
    assert_eq!(status, 200);
    assert_ne!(first, other);
    world.put(&admin(), "/db/new", json!({"team": "x", "n": 1})).await.expect(201);
    let (status, second) = tagged(&world, &admin(), path, Some(&first)).await;
    assert_eq!(status, 200);
    assert_ne!(first, second);
}

/// Waits for a state.
async fn until<F: Future<Output = bool>>(what: &str, mut state: impl FnMut() -> F) {
    let began = Instant::now();
    while !state().await {
        assert!(began.elapsed() < DEADLINE, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_indexer_works_ahead_and_drops_what_nobody_needs() {
    let world = people(team()).await;
    // Nobody asks for it, and it comes to hold all rows.
    until("it is indexed", async || ask(&world, "team?update=false").await["total_rows"] == 5).await;
    let info = world.get(&admin(), "/db/_design/v/_info").await.expect(200);
    let index = &info["view_index"];
    assert_eq!((&info["name"], &index["language"]), (&json!("v"), &json!("javascript")));
    assert_eq!(index["signature"].as_str().expect("a signature").len(), 32);
    for name in ["sizes", "updater_running", "update_seq", "updates_pending", "waiting_clients", "compact_running"] {
        assert!(index.get(name).is_some(), "{name}");
    }
    let signatures = async || {
        let db = world.pod.store.db("db").expect("a database");
        let groups = world.pod.indexes.groups(&db).expect("groups");
        groups.into_iter().map(|group| group.signature).collect::<Vec<_>>()
    };
    let old = signatures().await;
    assert_eq!(old.len(), 1);
    let mut design = world.get(&admin(), "/db/_design/v").await.expect(200);
    design["views"] = json!({"v": {"map": "function (doc) { emit(1); }"}});
    world.put(&admin(), "/db/_design/v", design).await.expect(201);
    until("the new one is there alone", async || {
        let now = signatures().await;
        now.len() == 1 && now != old
    })
    .await;
    let answer = world.post(&admin(), "/db/_view_cleanup", json!({})).await.expect(202);
    assert_eq!(answer, json!({"ok": true}));
    world.post(&admin(), "/db/_compact/v", json!({})).await.expect(202);
    world.post(&admin(), "/db/_compact/none", json!({})).await.expect(404);
    world.post(&user("ann", &[]), "/db/_view_cleanup", json!({})).await.expect(403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_view_is_sent_whole() {
    let world = World::new().await;
    world.open_db("db").await;
    let docs: Vec<Value> = (0..3_000).map(|n| json!({"_id": format!("d{n:05}"), "n": n})).collect();
    world.post(&admin(), "/db/_bulk_docs", json!({"docs": docs})).await.expect(201);
    let map = "function (doc) { emit(doc.n, 'x'.repeat(100)); }";
    let views = json!({"v": {"map": map}, "c": {"map": map, "reduce": "_count"}});
    world.put(&admin(), "/db/_design/v", json!({"views": views})).await.expect(201);
    let all = ask(&world, "v?include_docs=true").await;
    assert_eq!(all["total_rows"], 3_000);
    let rows = all["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 3_000);
    assert!(rows.iter().enumerate().all(|(n, row)| row["key"] == n && row["doc"]["n"] == n));
    let groups = ask(&world, "c?group=true&skip=10&limit=2500").await;
    assert_eq!(groups["rows"].as_array().expect("rows").len(), 2_500);
    assert_eq!(groups["rows"][0], json!({"key": 10, "value": 1}));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_ask_at_once_get_what_was_written_before() {
    let world = people(team()).await;
    let world = std::sync::Arc::new(world);
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..40 {
        let world = std::sync::Arc::clone(&world);
        asking.spawn(async move {
            world.put(&admin(), &format!("/db/p{n}"), json!({"team": "p", "n": n})).await.expect(201);
            let key = format!("team?key=%22p%22&startkey_docid=p{n}&endkey_docid=p{n}");
            assert_eq!(ids(&ask(&world, &key).await), [format!("p{n}")]);
        });
    }
    while let Some(asked) = asking.join_next().await {
        asked.expect("it is there");
    }
    assert_eq!(ask(&world, "team?key=%22p%22&limit=0").await["total_rows"], 45);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_is_none_and_one_that_never_ends_cost_their_own_request() {
    let world = World::new().await;
    world.open_db("db").await;
    world.put(&admin(), "/db/a", json!({"n": 1})).await.expect(201);
    // As it comes by replication: a request may not write it.
    let bad = json!({"docs": [{"_id": "_design/v", "_rev": "1-0123456789abcdef0123456789abcdef",
        "autoupdate": false, "views": {"v": {"map": "function (doc) {"}}}], "new_edits": false});
    world.post(&admin(), "/db/_bulk_docs", bad).await.expect(201);
    let answer = world.get(&admin(), "/db/_design/v/_view/v").await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]),
        (400, &json!("compilation_error")),
        "{}",
        answer.text
    );
    let good = json!({"views": {"v": {"map": "function (doc) { emit(doc.n); }"}}});
    world.put(&admin(), "/db/_design/good", good).await.expect(201);
    let rows = world.get(&admin(), "/db/_design/good/_view/v").await.expect(200);
    assert_eq!(rows["total_rows"], 1);
    let info = world.get(&admin(), "/db/_design/v/_info").await.expect(200);
    assert_eq!(info["view_index"]["update_seq"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_hits_a_limit_fails_the_request_that_waited_and_a_bad_reduction_is_a_row() {
    let world = World::new().await;
    world.open_db("db").await;
    world.put(&admin(), "/db/a", json!({"n": 1})).await.expect(201);
    world.put(&admin(), "/db/b", json!({"n": 2})).await.expect(201);
    let views = json!({
        "deep": {"map": "function (doc) { if (doc.n === 2) { (function f() { f(); f(); })(); } emit(doc.n, doc.n); }"},
        "big": {"map": "function (doc) { emit(doc.n, doc.n); }",
            "reduce": "function () { var all = []; for (var n = 0; n < 1000; n++) all.push('wazzap'); return all; }"},
    });
    world.put(&admin(), "/db/_design/big", json!({"views": {"big": views["big"]}})).await.expect(201);
    let big = world.get(&admin(), "/db/_design/big/_view/big").await.expect(200);
    assert_eq!(
        (&big["rows"][0]["key"], &big["rows"][0]["error"]),
        (&Value::Null, &json!("reduce_overflow_error")),
        "{big}"
    );
    assert!(big["rows"][0]["reason"].is_string() && big["rows"].as_array().expect("rows").len() == 1);
    let deep = json!({"autoupdate": false, "views": {"deep": views["deep"]}});
    world.put(&admin(), "/db/_design/deep", deep).await.expect(201);
    let first = world.get(&admin(), "/db/_design/deep/_view/deep").await;
    let rows = world.get(&admin(), "/db/_design/deep/_view/deep").await.expect(200);
    assert_eq!(ids(&rows), ["a"]);
    // A function may catch neither; which of its limits a deep one hits first is not said.
    assert!(matches!(first.status.as_u16(), 200 | 500), "{}", first.text);
    if first.status == 500 {
        assert_eq!(first.json()["error"], "os_process_error");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn map_functions_see_conflicts_of_the_winner() {
    let world = people(json!({"c": {"map":
        "function (doc) { if (doc._conflicts || doc._deleted_conflicts) emit(doc._conflicts, doc._deleted_conflicts); }"}}))
    .await;
    assert_eq!(ask(&world, "c").await["rows"], json!([]));
    let rev = |letter: &str| format!("1-{}", letter.repeat(32));
    for (letter, deleted) in [("c", false), ("b", false), ("a", true)] {
        let docs = json!({"docs": [{"_id": "x", "_rev": rev(letter), "_deleted": deleted}], "new_edits": false});
        world.post(&admin(), "/db/_bulk_docs", docs).await.expect(201);
    }
    let row = json!({"id": "x", "key": [rev("b")], "value": [rev("a")]});
    assert_eq!(ask(&world, "c").await["rows"], json!([row]));
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_collation_orders_strings_by_their_bytes() {
    let world = World::new().await;
    world.open_db("db").await;
    let sorted = [
        json!(1),
        json!(2),
        json!(false),
        json!(null),
        json!(true),
        json!({"a": 1}),
        json!({"b": 1}),
        json!(["a"]),
        json!(["b", "c"]),
        json!("A"),
        json!("B"),
        json!("a"),
        json!("aa"),
        json!("b"),
    ];
    let docs: Vec<Value> =
        sorted.iter().enumerate().map(|(n, key)| json!({"_id": format!("{}", 99 - n), "k": key})).collect();
    world.post(&admin(), "/db/_bulk_docs", json!({"docs": docs})).await.expect(201);
    let map = "function (doc) { emit(doc.k, 1); }";
    let raw = json!({"collation": "raw"});
    let views = json!({"raw": {"map": map, "options": raw}, "count": {"map": map, "reduce": "_count", "options": raw},
        "icu": {"map": map}});
    world.put(&admin(), "/db/_design/v", json!({"views": views})).await.expect(201);
    let keys = |answer: &Value| -> Vec<Value> {
        answer["rows"].as_array().expect("rows").iter().map(|row| row["key"].clone()).collect()
    };
    assert_eq!(keys(&ask(&world, "raw").await), sorted);
    assert_eq!(keys(&ask(&world, "raw?startkey=%22Z%22&endkey=%22a%22").await), [json!("a")]);
    assert_eq!(keys(&ask(&world, "raw?keys=[%22A%22,%22b%22]").await), [json!("A"), json!("b")]);
    assert_eq!(keys(&ask(&world, "raw?endkey=%22b%22&inclusive_end=false").await), sorted[..13]);
    let groups = ask(&world, "count?group_level=1&startkey=[]&endkey=%22%22").await;
    assert_eq!(keys(&groups), [json!(["a"]), json!(["b"])]);
    let icu = ["a", "A", "aa", "b", "B"].map(Value::from);
    assert_eq!(keys(&ask(&world, "icu?startkey=%22%22&endkey=%22z%22").await), icu);
}
