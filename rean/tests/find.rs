//! `_find`, `_explain` and `_index` on a plain database, as CouchDB answers them.

mod harness;

use harness::{World, admin, user};
use serde_json::{Value, json};

/// A database with the documents `a` to `e`, which everyone may read.
async fn world() -> World {
    let world = World::new().await;
    world.open_db("db").await;
    let docs = json!([
        {"_id": "a", "n": 1, "name": "Ann", "tags": ["x", "y"], "addr": {"city": "Bern", "zip": 3000}, "ok": true},
        {"_id": "b", "n": 2, "name": "Bob", "tags": ["y"], "addr": {"city": "Basel"}},
        {"_id": "c", "n": 3, "name": "Cat", "tags": [], "nil": null},
        {"_id": "d", "n": "four", "name": "dan", "dot.ted": 7},
        {"_id": "e", "n": 10, "name": "Eve", "ok": false},
    ]);
    world.post(&admin(), "/db/_bulk_docs", json!({"docs": docs})).await.expect(201);
    world
}

async fn index(world: &World, fields: Value) -> Value {
    world.post(&admin(), "/db/_index", json!({"index": {"fields": fields}})).await.expect(200)
}

async fn find(world: &World, query: Value) -> Value {
    world.post(&user("ann", &[]), "/db/_find", query).await.expect(200)
}

fn ids(answer: &Value) -> Vec<&str> {
    answer["docs"].as_array().expect("docs").iter().map(|doc| doc["_id"].as_str().expect("an id")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_index_all_documents_are_looked_at() {
    let world = world().await;
    index(&world, json!(["unrelated"])).await;
    let answer = find(&world, json!({"selector": {"name": "Bob"}, "execution_stats": true})).await;
    assert_eq!(ids(&answer), ["b"]);
    assert!(answer["docs"][0]["_rev"].as_str().is_some_and(|rev| rev.starts_with("1-")));
    assert_eq!(answer["warning"], "No matching index found, create an index to optimize query time.");
    let stats = &answer["execution_stats"];
    // The design document of the index is no document to look at.
    let counts = ["total_keys_examined", "total_docs_examined", "total_quorum_docs_examined", "results_returned"];
    assert_eq!(counts.map(|name| stats[name].as_u64()), [Some(5), Some(5), Some(0), Some(1)]);
    assert!(stats["execution_time_ms"].is_number());
    assert_eq!(ids(&find(&world, json!({"selector": {}})).await), ["a", "b", "c", "d", "e"]);
    assert_eq!(ids(&find(&world, json!({"selector": {}, "limit": 2, "skip": 1})).await), ["b", "c"]);
    assert_eq!(ids(&find(&world, json!({"selector": {}, "limit": 0})).await), Vec::<&str>::new());
    let by_id = json!({"selector": {"_id": {"$gt": "a"}}, "sort": [{"_id": "desc"}]});
    assert_eq!(ids(&find(&world, by_id).await), ["e", "d", "c", "b"]);
    let some = json!({"selector": {"_id": {"$in": ["c", "a", "zork"]}}});
    assert_eq!(ids(&find(&world, some).await), ["a", "c"]);
    assert_eq!(find(&world, json!({"selector": {"$or": []}})).await["docs"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_are_picked() {
    let world = world().await;
    let query = json!({"selector": {"_id": "a"}, "fields": ["_id", "addr.city", "none"]});
    assert_eq!(find(&world, query).await["docs"], json!([{"_id": "a", "addr": {"city": "Bern"}}]));
    let query = json!({"selector": {"dot\\.ted": 7}, "fields": ["dot\\.ted"]});
    assert_eq!(find(&world, query).await["docs"], json!([{"dot.ted": 7}]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_serves_and_follows_changes() {
    let world = world().await;
    index(&world, json!(["n"])).await;
    let query = json!({"selector": {"n": {"$gt": 1}}, "sort": ["n"], "execution_stats": true});
    let answer = find(&world, query.clone()).await;
    assert_eq!(ids(&answer), ["b", "c", "e", "d"]);
    assert_eq!(answer["warning"], Value::Null);
    assert!(answer["execution_stats"]["total_docs_examined"].as_u64() <= Some(5), "{answer}");
    let down = json!({"selector": {"n": {"$gt": 1}}, "sort": [{"n": "desc"}], "limit": 2});
    assert_eq!(ids(&find(&world, down).await), ["d", "e"]);
    let rev = world.get(&admin(), "/db/c").await.expect(200)["_rev"].clone();
    world.put(&admin(), "/db/c", json!({"_rev": rev, "n": 0})).await.expect(201);
    world.put(&admin(), "/db/z", json!({"n": 5})).await.expect(201);
    let rev = world.get(&admin(), "/db/e").await.expect(200)["_rev"].as_str().expect("a revision").to_owned();
    world.send(&admin(), "DELETE", &format!("/db/e?rev={rev}"), None).await.expect(200);
    assert_eq!(ids(&find(&world, query).await), ["b", "z", "d"]);
    // Members that are missing keep a document out.
    index(&world, json!(["ok"])).await;
    assert_eq!(ids(&find(&world, json!({"selector": {"ok": {"$gt": null}}})).await), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bookmark_leads_through_all_pages_once() {
    let world = world().await;
    for sort in [json!([]), json!(["n"]), json!([{"n": "desc"}])] {
        if sort == json!(["n"]) {
            index(&world, json!(["n"])).await;
        }
        let query = json!({"selector": {"n": {"$gt": 0}}, "sort": sort, "limit": 100});
        let all: Vec<String> = ids(&find(&world, query).await).iter().map(|id| (*id).to_owned()).collect();
        assert_eq!(all.len(), 5);
        let (mut seen, mut bookmark) = (Vec::new(), json!(null));
        for _ in 0..4 {
            let query = json!({"selector": {"n": {"$gt": 0}}, "sort": sort, "limit": 2, "bookmark": bookmark});
            let answer = find(&world, query).await;
            seen.extend(ids(&answer).iter().map(|id| (*id).to_owned()));
            bookmark = answer["bookmark"].clone();
        }
        assert_eq!(seen, all, "{sort}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bookmark_outlives_its_document_and_newer_indexes() {
    let world = world().await;
    index(&world, json!(["n"])).await;
    let selector = json!({"n": {"$gt": 0}, "name": {"$gt": null}});
    let query = |bookmark: &Value| json!({"selector": selector, "limit": 2, "bookmark": bookmark});
    let first = find(&world, query(&json!(null))).await;
    assert_eq!(ids(&first), ["a", "b"]);
    let rev = first["docs"][1]["_rev"].as_str().expect("a revision");
    world.send(&admin(), "DELETE", &format!("/db/b?rev={rev}"), None).await.expect(200);
    index(&world, json!(["name", "n"])).await;
    let second = find(&world, query(&first["bookmark"])).await;
    assert_eq!(ids(&second), ["c", "e"]);
    // The index that it comes from is gone: nobody knows where that was.
    let list = world.get(&admin(), "/db/_index").await.expect(200);
    let one = list["indexes"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|index| index["def"]["fields"] == json!([{"n": "asc"}]));
    let one = one.expect("the index");
    let path =
        format!("/db/_index/{}/json/{}", one["ddoc"].as_str().expect("an id"), one["name"].as_str().expect("a name"));
    world.send(&admin(), "DELETE", &path, None).await.expect(200);
    let lost = world.post(&admin(), "/db/_find", query(&second["bookmark"])).await.expect(400);
    assert_eq!(lost["error"], "invalid_bookmark");
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_are_made_listed_and_deleted() {
    let world = world().await;
    let by_n = json!({"index": {"fields": ["n"]}, "name": "by-n", "ddoc": "idx", "type": "json"});
    let made = world.post(&admin(), "/db/_index", by_n.clone()).await.expect(200);
    assert_eq!(made, json!({"result": "created", "id": "_design/idx", "name": "by-n"}));
    assert_eq!(world.post(&admin(), "/db/_index", by_n).await.expect(200)["result"], "exists");
    let named = index(&world, json!(["name"])).await;
    assert_eq!(index(&world, json!(["name"])).await["id"], named["id"]);
    let list = world.get(&admin(), "/db/_index").await.expect(200);
    assert_eq!(list["total_rows"], 3);
    assert_eq!(
        list["indexes"][0],
        json!({"ddoc": null, "name": "_all_docs", "type": "special", "def": {"fields": [{"_id": "asc"}]}})
    );
    let some = world.get(&admin(), "/db/_index?limit=1&skip=1").await.expect(200);
    assert_eq!((some["indexes"].as_array().map(Vec::len), &some["total_rows"]), (Some(1), &json!(3)));
    let stored = world.get(&admin(), "/db/_design/idx").await.expect(200);
    assert_eq!(stored["language"], "query");
    assert_eq!(
        stored["views"]["by-n"],
        json!({"map": {"fields": {"n": "asc"}, "partial_filter_selector": {}}, "reduce": "_count",
               "options": {"def": {"fields": ["n"]}}})
    );
    // Two in one design document: deleting one leaves the other.
    world
        .post(&admin(), "/db/_index", json!({"index": {"fields": ["ok"]}, "name": "by-ok", "ddoc": "idx"}))
        .await
        .expect(200);
    let path = "/db/_index/_design/idx/json/by-n";
    assert_eq!(world.send(&admin(), "DELETE", path, None).await.expect(200), json!({"ok": true}));
    assert_eq!(world.send(&admin(), "DELETE", path, None).await.expect(404)["error"], "not_found");
    world.get(&admin(), "/db/_design/idx").await.expect(200);
    world.send(&admin(), "DELETE", "/db/_index/idx/text/by-ok", None).await.expect(404);
    world.send(&admin(), "DELETE", "/db/_index/idx/json/by-ok", None).await.expect(200);
    world.get(&admin(), "/db/_design/idx").await.expect(404);
    let bulk = json!({"docids": [named["id"], "zork"]});
    let done = world.post(&admin(), "/db/_index/_bulk_delete", bulk).await.expect(200);
    assert_eq!(done["success"], json!([{"id": named["id"], "ok": true}]));
    assert_eq!(done["fail"], json!([{"id": "_design/zork", "error": "not_found"}]));
    assert_eq!(world.get(&admin(), "/db/_index").await.expect(200)["total_rows"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_ask_for_the_same_index_at_once() {
    let world = std::sync::Arc::new(world().await);
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let world = std::sync::Arc::clone(&world);
            tokio::spawn(async move {
                let name = format!("f{}", n % 4);
                let index = json!({"index": {"fields": [name]}, "ddoc": "shared", "name": name});
                world.post(&admin(), "/db/_index", index).await.expect(200);
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("made");
    }
    assert_eq!(world.get(&admin(), "/db/_index").await.expect(200)["total_rows"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_change_indexes() {
    let world = world().await;
    let ann = user("ann", &[]);
    let wanted = json!({"index": {"fields": ["n"]}, "name": "by-n", "ddoc": "idx"});
    assert_eq!(world.post(&ann, "/db/_index", wanted.clone()).await.expect(403)["error"], "forbidden");
    world.post(&admin(), "/db/_index", wanted.clone()).await.expect(200);
    assert_eq!(world.post(&ann, "/db/_index", wanted).await.expect(200)["result"], "exists");
    for path in ["idx/json/by-n", "idx/json/none", "none/json/none"] {
        world.send(&ann, "DELETE", &format!("/db/_index/{path}"), None).await.expect(403);
    }
    world.post(&ann, "/db/_index/_bulk_delete", json!({"docids": ["idx"]})).await.expect(403);
    world.post(&ann, "/db/_index/_bulk_delete", json!({"docids": []})).await.expect(403);
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_what_would_be_done() {
    let world = world().await;
    world
        .post(&admin(), "/db/_index", json!({"index": {"fields": ["n"]}, "name": "by-n", "ddoc": "idx"}))
        .await
        .expect(200);
    let query = json!({"selector": {"n": {"$gt": 1}}, "limit": 3, "skip": 1, "fields": ["n"]});
    let told = world.post(&admin(), "/db/_explain", query).await.expect(200);
    assert_eq!(
        (&told["dbname"], &told["index"]["ddoc"], &told["index"]["type"]),
        (&json!("db"), &json!("_design/idx"), &json!("json"))
    );
    assert_eq!((&told["limit"], &told["skip"], &told["fields"]), (&json!(3), &json!(1), &json!(["n"])));
    assert_eq!(told["selector"], json!({"n": {"$gt": 1}}));
    assert_eq!(told["mrargs"]["start_key"], json!([1]));
    assert_eq!(told["mrargs"]["end_key"], json!(["<MAX>"]));
    assert_eq!((&told["covering"], &told["opts"]["r"], &told["opts"]["sort"]), (&json!(true), &json!(1), &json!({})));
    assert_eq!(
        told["index_candidates"].as_array().unwrap().last().unwrap()["analysis"]["reasons"],
        json!([{"name": "unfavored_type"}])
    );
    assert_eq!(told["selector_hints"][0]["indexable_fields"], json!(["n"]));
    let query = json!({"selector": {"name": "Bob"}, "sort": [], "use_index": "zork"});
    let told = world.post(&admin(), "/db/_explain", query).await.expect(200);
    assert_eq!((&told["index"]["name"], &told["index"]["type"]), (&json!("_all_docs"), &json!("special")));
    // What the index has is enough.
    let covered = find(&world, json!({"selector": {"n": {"$gt": 1}}, "fields": ["n"], "execution_stats": true})).await;
    assert_eq!(covered["docs"], json!([{"n": 2}, {"n": 3}, {"n": 10}, {"n": "four"}]));
    assert_eq!(covered["execution_stats"]["total_docs_examined"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_index_is_taken_or_its_lack_told() {
    let world = world().await;
    for (ddoc, partial) in [("all", json!({})), ("part", json!({"ok": {"$exists": true}}))] {
        let index = json!({"index": {"fields": ["n"], "partial_filter_selector": partial}, "ddoc": ddoc});
        world.post(&admin(), "/db/_index", index).await.expect(200);
    }
    let query = |use_index: Value| json!({"selector": {"n": {"$gt": 0}}, "use_index": use_index});
    assert_eq!(ids(&find(&world, query(json!("part"))).await), ["a", "e"]);
    assert_eq!(ids(&find(&world, query(json!(null))).await), ["a", "b", "c", "e", "d"]);
    let other = find(&world, query(json!(["zork", "x"]))).await;
    assert_eq!(ids(&other).len(), 5);
    assert_eq!(other["warning"], "_design/zork, x was not used because it is not a valid index for this query.");
    let strict = json!({"selector": {"n": {"$gt": 0}}, "use_index": "zork", "allow_fallback": false});
    assert_eq!(world.post(&admin(), "/db/_find", strict).await.expect(400)["error"], "invalid_index");
    let strict = json!({"selector": {"zork": 1}, "allow_fallback": false});
    assert_eq!(world.post(&admin(), "/db/_find", strict).await.expect(400)["error"], "no_usable_index");
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicts_are_found() {
    let world = world().await;
    let twins = json!({"new_edits": false, "docs": [
        {"_id": "t", "_rev": "1-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "n": 1},
        {"_id": "t", "_rev": "1-bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "n": 2}]});
    world.post(&admin(), "/db/_bulk_docs", twins).await.expect(201);
    let query = json!({"selector": {"_conflicts": {"$exists": true}}, "conflicts": true});
    let answer = find(&world, query).await;
    assert_eq!(ids(&answer), ["t"]);
    assert_eq!(answer["docs"][0]["_conflicts"], json!(["1-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]));
    let query = json!({"selector": {"_conflicts": {"$exists": true}}});
    assert_eq!(find(&world, query).await["docs"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_in_couchdbs_words() {
    let world = world().await;
    let javascript = json!({"views": {"v": {"map": "function (doc) {}"}}});
    world.put(&admin(), "/db/_design/js", javascript).await.expect(201);
    for (path, body, status, error) in [
        ("_find", json!({}), 400, "missing_required_key"),
        ("_find", json!({"selector": "x"}), 400, "invalid_selector_json"),
        ("_find", json!({"selector": {"n": {"$zork": 1}}}), 400, "invalid_operator"),
        ("_find", json!({"selector": {"$text": "x"}}), 400, "not_supported"),
        ("_find", json!({"selector": {}, "limit": -1}), 400, "invalid_non_neg_integer"),
        ("_find", json!({"selector": {"n": {"$gt": 1}}, "sort": ["n"]}), 400, "no_usable_index"),
        ("_find", json!({"selector": {}, "bookmark": "zork"}), 400, "invalid_bookmark"),
        ("_explain", json!({"selector": []}), 400, "invalid_selector_json"),
        ("_index", json!({}), 400, "missing_required_key"),
        ("_index", json!({"index": {}}), 400, "missing_required_key"),
        ("_index", json!({"index": {"fields": ["a"]}, "type": "text"}), 503, "required index service unavailable"),
        ("_index", json!({"index": {"fields": ["a"]}, "ddoc": "js"}), 400, "invalid_ddoc_lang"),
        ("_index", json!({"index": {"fields": ["a"]}, "ddoc": ""}), 400, "illegal_docid"),
        ("_index/_bulk_delete", json!({"docids": "x"}), 400, "invalid_bulk_docs"),
    ] {
        let answer = world.post(&admin(), &format!("/db/{path}"), body.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]),
            (status, &json!(error)),
            "{path} {body}: {}",
            answer.text
        );
    }
    let long = json!({"selector": {"a": {"$in": ["x".repeat(2 << 20)]}}});
    world.post(&admin(), "/db/_find", long).await.expect(413);
    world.get(&admin(), "/db/_index?limit=0").await.expect(500);
    world.get(&admin(), "/db/_index?limit=x").await.expect(500);
    world.send(&admin(), "DELETE", "/db/_index/a", None).await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_answer_streams_and_is_whole() {
    let world = world().await;
    let text = "x".repeat(2_000);
    let docs: Vec<Value> = (0..1_500).map(|n| json!({"_id": format!("m{n:05}"), "m": n, "text": text})).collect();
    world.post(&admin(), "/db/_bulk_docs", json!({"docs": docs})).await.expect(201);
    index(&world, json!(["m"])).await;
    let query = json!({"selector": {"m": {"$gte": 0}}, "limit": 1_000_000_000});
    let answer = find(&world, query).await;
    let ids = ids(&answer);
    assert_eq!(ids.len(), 1_500);
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    let scan = find(&world, json!({"selector": {"text": "none"}})).await;
    let warning = scan["warning"].as_str().expect("a warning");
    assert!(warning.contains("\nThe number of documents examined is high"), "{warning}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_without_an_index_says_why_there_is_none() {
    let world = world().await;
    index(&world, json!(["n"])).await;
    let query = json!({"selector": {"name": "Bob"}, "sort": ["zork"]});
    let refused = world.post(&admin(), "/db/_find", query.clone()).await;
    assert_eq!(refused.status, 400);
    let told = world.post(&admin(), "/db/_explain", query).await.expect(200);
    assert_eq!(told["index"], Value::Null);
    let candidates = told["index_candidates"].as_array().expect("candidates");
    assert_eq!(candidates.len(), 2);
    assert!(candidates.iter().all(|one| one["analysis"]["usable"] == json!(false)), "{candidates:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_below_index_is_told_apart() {
    let world = world().await;
    for path in ["a", "a/b", "a/b/c/d", "_design/a/json/b/c"] {
        assert_eq!(world.get(&admin(), &format!("/db/_index/{path}")).await.status, 404, "{path}");
        assert_eq!(world.send(&admin(), "DELETE", &format!("/db/_index/{path}"), None).await.status, 404, "{path}");
    }
    for path in ["_bulk_delete", "dd/json/one", "_design/dd/json/one"] {
        assert_eq!(world.get(&admin(), &format!("/db/_index/{path}")).await.status, 405, "{path}");
    }
    let nameless = world.post(&admin(), "/db/_index", json!({"index": {"fields": ["n"]}, "name": ""})).await;
    assert_eq!(nameless.status, 400);
    index(&world, json!(["n"])).await;
    let listed = world.get(&admin(), "/db/_index?limit=1;skip=1").await.expect(200);
    assert_eq!(listed["indexes"].as_array().map(Vec::len), Some(1));
}
