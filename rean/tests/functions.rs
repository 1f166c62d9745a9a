//! Functions of design documents over HTTP: validators on every way to write, filters of feeds, update handlers.

mod harness;

use std::task::Poll;

use adea_ring::Identity;
use axum::body::Body;
use harness::{World, admin, user};
use http_body_util::BodyExt;
use rean::route::{self, Request};
use serde_json::{Value, json};

const HASH: &str = "0123456789abcdef0123456789abcdef";

/// A database with a validator; everyone may write to it.
async fn validated(body: &str) -> World {
    let world = World::new().await;
    world.open_db("db").await;
    let function = format!("function (newDoc, oldDoc, userCtx, secObj) {{ {body} }}");
    world.put(&admin(), "/db/_design/v", json!({"validate_doc_update": function})).await.expect(201);
    world
}

async fn design(world: &World, db: &str, design: Value) {
    world.put(&admin(), &format!("/{db}/_design/d"), design).await.expect(201);
}

/// Sends a request whose body is no JSON; gives status, headers and text.
async fn raw(
    world: &World,
    who: &Identity,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, http::HeaderMap, String) {
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = Request::from_http(request.body(Body::from(body.to_owned())).expect("a request")).expect("a path");
    let answer = route::dispatch(&world.pod, who, request).await.unwrap_or_else(|error| error.into_response());
    let (parts, body) = answer.into_parts();
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    (parts.status.as_u16(), parts.headers, String::from_utf8(bytes.to_vec()).expect("text"))
}

fn ids(answer: &Value) -> Vec<&str> {
    answer["results"].as_array().expect("rows").iter().map(|row| row["id"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn every_way_to_write_is_validated() {
    let world = validated(
        "if (newDoc._deleted) throw({forbidden: 'no deletions'});
         if (newDoc._attachments && newDoc._attachments.f.length !== 3) throw({forbidden: 'three bytes'});
         if (newDoc.login) throw({unauthorized: 'log in'});
         if (newDoc.bad || newDoc._id === 'bad') throw({forbidden: 'bad'});",
    )
    .await;
    let ann = user("ann", &[]);
    let refused = |answer: Value, error: &str, reason: &str| {
        assert_eq!(answer, json!({"error": error, "reason": reason}));
    };
    let bad = || json!({"bad": 1});
    refused(world.put(&ann, "/db/a", bad()).await.expect(403), "forbidden", "bad");
    refused(world.put(&admin(), "/db/a", bad()).await.expect(403), "forbidden", "bad");
    refused(world.put(&ann, "/db/a", json!({"login": 1})).await.expect(401), "unauthorized", "log in");
    refused(world.post(&ann, "/db", bad()).await.expect(403), "forbidden", "bad");
    let replicated = json!({"_rev": format!("1-{HASH}"), "bad": 1});
    refused(world.put(&ann, "/db/a?new_edits=false", replicated.clone()).await.expect(403), "forbidden", "bad");
    let rev = world.put(&ann, "/db/a", json!({})).await.expect(201)["rev"].as_str().expect("one").to_owned();
    let delete = world.send(&ann, "DELETE", &format!("/db/a?rev={rev}"), None).await.expect(403);
    refused(delete, "forbidden", "no deletions");
    let kind = [("content-type", "text/plain")];
    let (status, _, text) = raw(&world, &ann, "PUT", &format!("/db/a/f?rev={rev}"), &kind, "four").await;
    assert!(status == 403 && text.contains("three bytes"), "{status} {text}");
    let (status, _, text) = raw(&world, &ann, "PUT", &format!("/db/a/f?rev={rev}"), &kind, "abc").await;
    assert_eq!(status, 201, "{text}");
    let (status, _, text) = raw(&world, &ann, "COPY", "/db/a", &[("destination", "bad")], "").await;
    assert!(status == 403 && text.contains("bad"), "{status} {text}");
    let docs = json!({"docs": [{"_id": "b"}, {"_id": "c", "bad": 1}, {"_id": "_design/other"}, {"_id": "d"}]});
    let rows = world.post(&admin(), "/db/_bulk_docs", docs).await.expect(201);
    let outcomes: Vec<&str> =
        rows.as_array().expect("rows").iter().map(|row| row["error"].as_str().unwrap_or("")).collect();
    assert_eq!(outcomes, ["", "forbidden", "", ""]);
    let docs = json!({"new_edits": false, "docs": [{"_id": "e", "_rev": format!("1-{HASH}")},
        {"_id": "f", "_rev": format!("1-{HASH}"), "bad": 1}]});
    let rows = world.post(&ann, "/db/_bulk_docs", docs).await.expect(201);
    let row = json!([{"id": "f", "rev": format!("1-{HASH}"), "error": "forbidden", "reason": "bad"}]);
    assert_eq!(rows, row);
    world.get(&ann, "/db/e").await.expect(200);
    world.get(&ann, "/db/f").await.expect(404);
    // Neither `_local` nor design documents are asked about.
    world.put(&admin(), "/db/_local/x", bad()).await.expect(201);
    world.put(&admin(), "/db/_design/x", bad()).await.expect(201);
}

#[tokio::test]
async fn a_validator_sees_what_couchdb_shows() {
    let world =
        validated("if (newDoc.show) throw({forbidden: JSON.stringify([newDoc, oldDoc, userCtx, secObj])});").await;
    let ann = user("ann", &["staff"]);
    let shown =
        |answer: Value| -> Value { serde_json::from_str(answer["reason"].as_str().expect("a reason")).expect("JSON") };
    let first = shown(world.put(&ann, "/db/a", json!({"show": 1})).await.expect(403));
    assert_eq!(first[0], json!({"_id": "a", "show": 1, "_revisions": {"start": 0, "ids": []}}));
    assert_eq!(first[1], Value::Null);
    assert_eq!(first[2], json!({"db": "db", "name": "ann", "roles": ["staff"]}));
    assert_eq!(first[3]["members"], json!({"names": [], "roles": []}));
    let file = json!({"f": {"content_type": "text/plain", "data": "YWJj"}});
    let rev = world.put(&ann, "/db/a", json!({"n": 1, "_attachments": file})).await.expect(201)["rev"].clone();
    let stub = json!({"show": 1, "_rev": rev, "_attachments": {"f": {"stub": true}}});
    let second = shown(world.put(&ann, "/db/a", stub).await.expect(403));
    let hash = rev.as_str().expect("a revision").strip_prefix("1-").expect("the first");
    assert_eq!(second[0]["_rev"], rev);
    assert_eq!(second[0]["_revisions"], json!({"start": 1, "ids": [hash]}));
    assert_eq!(second[0]["_attachments"]["f"]["length"], 3);
    assert_eq!(second[1]["n"], 1);
    assert_eq!(second[1]["_revisions"], json!({"start": 1, "ids": [hash]}));
    assert_eq!(second[1]["_attachments"], second[0]["_attachments"]);
}

#[tokio::test]
async fn a_validator_that_fails_lets_nothing_through() {
    for (function, status, error) in [
        ("function (n) { n.no.such.member(); }", 500, "TypeError"),
        ("function (n) { for (;;) {} }", 500, "os_process_error"),
        ("function (n) { var a = []; for (;;) a.push(new Array(1000)); }", 500, "os_process_error"),
        ("this is no function", 400, "compilation_error"),
        ("function (n) { throw 'text'; }", 500, "unknown_error"),
        ("function (n) { throw({other: 'x'}); }", 500, "unknown_error"),
    ] {
        // Time enough for what ends, and a short test for what doesn't.
        let world = World::limited(rean::Limits { max_function_ms: 300, ..rean::Limits::default() }).await;
        world.open_db("db").await;
        world.put(&admin(), "/db/_design/v", json!({"validate_doc_update": function})).await.expect(201);
        let answer = world.put(&user("ann", &[]), "/db/a", json!({})).await.expect(status);
        assert_eq!(answer["error"], error, "{function}: {answer}");
        let rows = world.post(&admin(), "/db/_bulk_docs", json!({"docs": [{"_id": "a"}]})).await.expect(201);
        assert!(rows[0]["error"].is_string(), "{rows}");
        world.get(&admin(), "/db/a").await.expect(404);
        // It can be replaced.
        let rev = world.get(&admin(), "/db/_design/v").await.expect(200)["_rev"].clone();
        let better = json!({"_rev": rev, "validate_doc_update": "function () {}"});
        world.put(&admin(), "/db/_design/v", better).await.expect(201);
        world.put(&user("ann", &[]), "/db/a", json!({})).await.expect(201);
    }
}

#[tokio::test]
async fn conflicts_come_before_validators_and_one_document_can_be_twice_in_a_request() {
    let world = validated("if (oldDoc && oldDoc.closed) throw({forbidden: 'closed'});").await;
    let ann = user("ann", &[]);
    let rev = world.put(&ann, "/db/a", json!({"closed": true})).await.expect(201)["rev"].clone();
    world.put(&ann, "/db/a", json!({})).await.expect(409);
    world.put(&ann, "/db/a", json!({"_rev": rev})).await.expect(403);
    // The second revision stands on the first, which comes with it.
    let revisions = |hashes: &[&str]| json!({"start": hashes.len(), "ids": hashes});
    let docs = json!([
        {"_id": "b", "_rev": "1-a", "_revisions": revisions(&["a"]), "closed": true},
        {"_id": "b", "_rev": "2-b", "_revisions": revisions(&["b", "a"])},
        {"_id": "c", "_rev": "1-a", "_revisions": revisions(&["a"])},
        {"_id": "c", "_rev": "2-b", "_revisions": revisions(&["b", "a"])},
    ]);
    let rows = world.post(&ann, "/db/_bulk_docs", json!({"new_edits": false, "docs": docs})).await.expect(201);
    assert_eq!(rows, json!([{"id": "b", "rev": "2-b", "error": "forbidden", "reason": "closed"}]));
    assert_eq!(world.get(&ann, "/db/c").await.expect(200)["_rev"], "2-b");
    // What is known already is no new write.
    let again = json!({"new_edits": false, "docs": [docs[0]]});
    assert_eq!(world.post(&ann, "/db/_bulk_docs", again).await.expect(201), json!([]));
}

/// An app with a validator; ann has a document in it.
async fn guarded(body: &str) -> World {
    let world = World::new().await;
    world.app("notes").await;
    for name in ["ann", "eve"] {
        world.account(name, &[]).await;
    }
    let secret = json!({"secret": "s3cret", "access": {"read": ["user:ann"]}});
    world.put(&admin(), "/notes/taken", secret).await.expect(201);
    let function = format!("function (newDoc, oldDoc, userCtx, secObj) {{ {body} }}");
    world.put(&admin(), "/notes/_design/v", json!({"validate_doc_update": function})).await.expect(201);
    world
}

#[tokio::test]
async fn a_validator_tells_nothing_of_a_document_that_its_author_can_not_read() {
    let eve = user("eve", &[]);
    for body in [
        "throw({forbidden: JSON.stringify(oldDoc)});",
        "if (oldDoc) throw({unauthorized: oldDoc.secret}); throw({forbidden: 'none'});",
        "oldDoc.secret.length;",
        "throw({forbidden: typeof oldDoc});",
        "if (oldDoc) for (;;) {} throw({forbidden: 'none'});",
    ] {
        let world = guarded(body).await;
        let own = || json!({"access": {"read": ["user:eve"]}});
        let rev = format!("1-{HASH}");
        for db in ["notes", "notes--me"] {
            for make in [
                &(|id: &str| ("PUT", format!("/{db}/{id}"), own())) as &dyn Fn(&str) -> (&'static str, String, Value),
                &|id| {
                    (
                        "PUT",
                        format!("/{db}/{id}?new_edits=false"),
                        json!({"_rev": rev, "access": {"read": ["user:eve"]}}),
                    )
                },
                &|id| ("PUT", format!("/{db}/{id}?rev={rev}"), own()),
                &|id| {
                    (
                        "POST",
                        format!("/{db}/_bulk_docs"),
                        json!({"docs": [{"_id": id, "access": {"read": ["user:eve"]}}]}),
                    )
                },
                &|id| {
                    let doc = json!({"_id": id, "_rev": rev, "_deleted": true});
                    ("POST", format!("/{db}/_bulk_docs"), json!({"new_edits": false, "docs": [doc]}))
                },
            ] {
                let mut told = Vec::new();
                for id in ["taken", "free!"] {
                    let (method, path, body) = make(id);
                    let answer = world.send(&eve, method, &path, Some(&body)).await;
                    told.push((answer.status, answer.text.replace(id, "ID")));
                }
                assert_eq!(told[0], told[1], "{body} {db}");
            }
        }
        assert_eq!(world.get(&user("ann", &[]), "/notes--me/taken").await.expect(200)["secret"], "s3cret");
    }
}

#[tokio::test]
async fn in_an_app_its_validators_see_what_the_author_can_read() {
    let world = guarded("if (oldDoc && oldDoc.secret !== newDoc.secret) throw({forbidden: [userCtx.db, userCtx.name, oldDoc.secret].join()});").await;
    let ann = user("ann", &[]);
    let rev = world.get(&ann, "/notes--me/taken").await.expect(200)["_rev"].clone();
    let access = json!({"read": ["user:ann"]});
    let changed = json!({"_rev": rev, "secret": "other", "access": access});
    let answer = world.put(&ann, "/notes--me/taken", changed).await.expect(403);
    assert_eq!(answer["reason"], "notes--me,ann,s3cret");
    let same = json!({"_rev": rev, "secret": "s3cret", "n": 2, "access": access});
    world.put(&ann, "/notes--me/taken", same).await.expect(201);
    // A role that was taken away is none.
    world.account("ann", &["staff"]).await;
    let staff = user("ann", &["staff", "boss"]);
    let rev = world.get(&staff, "/notes--me/taken").await.expect(200)["_rev"].clone();
    let function = "function (n, o, userCtx) { throw({forbidden: userCtx.roles.join()}); }";
    world.put(&admin(), "/notes/_design/w", json!({"validate_doc_update": function})).await.expect(201);
    let same = json!({"_rev": rev, "secret": "s3cret", "access": access});
    assert_eq!(world.put(&staff, "/notes--me/taken", same).await.expect(403)["reason"], "staff");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_changes_while_it_is_validated_is_validated_again() {
    // Pushed revisions extend one another; each must count on from what it follows.
    let world = std::sync::Arc::new(
        validated("if ((oldDoc ? oldDoc.n : 0) + 1 !== newDoc.n) throw({forbidden: 'after ' + (oldDoc && oldDoc.n)});")
            .await,
    );
    let hash = |n: u32| format!("{n:032x}");
    let doc = move |n: u32| {
        let ids: Vec<String> = (1..=n).rev().map(hash).collect();
        json!({"_id": "a", "_rev": format!("{n}-{}", hash(n)), "_revisions": {"start": n, "ids": ids}, "n": n})
    };
    for n in (1..40).step_by(4) {
        let mut pushes = Vec::new();
        for step in [1, 0, 2, 3] {
            let world = std::sync::Arc::clone(&world);
            pushes.push(tokio::spawn(async move {
                let body = json!({"new_edits": false, "docs": [doc(n + step)]});
                world.post(&user("ann", &[]), "/db/_bulk_docs", body).await.expect(201)
            }));
        }
        for push in pushes {
            push.await.expect("no panic");
        }
        // Those that came too early were refused: now all come in their order.
        for step in 0..4 {
            let body = json!({"new_edits": false, "docs": [doc(n + step)]});
            let rows = world.post(&user("ann", &[]), "/db/_bulk_docs", body).await.expect(201);
            assert_eq!(rows, json!([]));
        }
    }
    let now = world.get(&admin(), "/db/a?conflicts=true").await.expect(200);
    assert_eq!(now["n"], 40);
    assert_eq!(now["_conflicts"], Value::Null);
}

#[tokio::test]
async fn functions_of_views_are_checked_when_they_are_written() {
    let world = World::new().await;
    world.open_db("db").await;
    for (design, error) in [
        (json!({"views": {"v": {"map": "function (doc) {"}}}), "compilation_error"),
        (json!({"views": {"v": {"map": "function (doc) {}", "reduce": "no function"}}}), "compilation_error"),
        (json!({"views": {"v": {"map": "function (doc) {}", "reduce": "_zork"}}}), "invalid_design_doc"),
        (json!({"views": "zork"}), "invalid_design_doc"),
        (json!({"filters": 5}), "invalid_design_doc"),
    ] {
        let answer = world.put(&admin(), "/db/_design/x", design.clone()).await.expect(400);
        assert_eq!(answer["error"], error, "{design}");
        // What another server has taken is taken.
        let mut replicated = design;
        replicated["_rev"] = json!(format!("1-{HASH}"));
        world.put(&admin(), "/db/_design/y?new_edits=false", replicated).await.expect(201);
    }
    let docs = json!({"docs": [{"_id": "_design/z", "views": 5}, {"_id": "a"}]});
    let rows = world.post(&admin(), "/db/_bulk_docs", docs).await.expect(201);
    assert!(rows[0]["error"] == "invalid_design_doc" && rows[1]["ok"] == true, "{rows}");
}

const FILTERS: &str = "function (doc, req) { return !!doc._deleted || doc.kind === req.query.kind; }";

#[tokio::test]
async fn filters_let_through_what_they_say() {
    let world = World::new().await;
    world.open_db("db").await;
    design(
        &world,
        "db",
        json!({
            "filters": {
                "kind": FILTERS,
                "wants": "function (doc, req) { return req.body.want.indexOf(doc._id) >= 0; }",
                "leaf": "function (doc) { return doc.v === 2; }",
                "first": "function (doc) { return doc._revisions && doc._revisions.start === 1; }",
                "bad": "function (doc) { throw new Error('boom'); }",
            },
            "views": {"odd": {"map": "function (doc) { if (doc.n % 2) emit(doc._id); }"}},
        }),
    )
    .await;
    let docs: Vec<Value> = (0..450).map(|n| json!({"_id": format!("d{n:03}"), "n": n, "kind": n % 3})).collect();
    world.post(&admin(), "/db/_bulk_docs", json!({"docs": docs})).await.expect(201);
    let ann = user("ann", &[]);
    let changes = async |query: &str| world.get(&ann, &format!("/db/_changes?{query}")).await;
    let kinds = changes("filter=d/kind&kind=1").await.expect(200);
    assert_eq!(ids(&kinds), Vec::<&str>::new(), "a parameter is text");
    design_text(&world).await;
    let kinds = changes("filter=d/kind&kind=1").await.expect(200);
    assert_eq!(ids(&kinds).len(), 150);
    assert_eq!(kinds["pending"], 0);
    let some = changes("filter=d/kind&kind=1&limit=10").await.expect(200);
    assert_eq!(ids(&some), ids(&kinds)[..10]);
    let next = some["last_seq"].as_str().expect("a place");
    let more = changes(&format!("filter=d/kind&kind=1&limit=5&since={next}")).await.expect(200);
    assert_eq!(ids(&more), ids(&kinds)[10..15]);
    let back = changes("filter=d/kind&kind=1&descending=true&limit=2&include_docs=true").await.expect(200);
    assert_eq!(ids(&back), ["d448", "d445"]);
    assert_eq!(back["results"][0]["doc"]["n"], 448);
    assert_eq!(ids(&changes("filter=_view&view=d/odd").await.expect(200)).len(), 225);
    assert_eq!(ids(&changes("filter=d/first&limit=3").await.expect(200)).len(), 3);
    let wanted = world.post(&ann, "/db/_changes?filter=d/wants", json!({"want": ["d007"]})).await.expect(200);
    assert_eq!(ids(&wanted), ["d007"]);
    let failed = changes("filter=d/bad").await.expect(500);
    assert_eq!(failed["reason"], "boom");
    for (query, status) in [
        ("filter=d/none", 404),
        ("filter=x/y", 404),
        ("filter=none", 400),
        ("filter=_view", 400),
        ("filter=_view&view=d/none", 404),
    ] {
        changes(query).await.expect(status);
    }
    // Of several leaves those are shown that pass.
    for (rev, v) in [("1-a", 1), ("1-b", 2), ("1-c", 2)] {
        world.put(&admin(), "/db/leaves?new_edits=false", json!({"_rev": rev, "v": v})).await.expect(201);
    }
    let all = changes("filter=d/leaf&style=all_docs").await.expect(200);
    assert_eq!(all["results"][0]["changes"], json!([{"rev": "1-c"}, {"rev": "1-b"}]));
    let selector = json!({"selector": {"v": 1}});
    let all = world.post(&ann, "/db/_changes?filter=_selector&style=all_docs", selector.clone()).await.expect(200);
    assert_eq!(all["results"][0]["changes"], json!([{"rev": "1-a"}]));
    let main = world.post(&ann, "/db/_changes?filter=_selector", selector).await.expect(200);
    assert_eq!(ids(&main), Vec::<&str>::new());
}

/// Makes the filter compare text with text.
async fn design_text(world: &World) {
    let mut design = world.get(&admin(), "/db/_design/d").await.expect(200);
    design["filters"]["kind"] = FILTERS.replace("doc.kind ===", "String(doc.kind) ===").into();
    world.put(&admin(), "/db/_design/d", design).await.expect(201);
}

#[tokio::test]
async fn filters_see_live_changes_and_end_with_their_readers_rights() {
    let world = World::new().await;
    world.app("notes").await;
    world.account("ann", &["staff"]).await;
    world.account("eve", &[]).await;
    let echo = "function (doc, req) { return doc._id === req.userCtx.name || doc.mark === req.userCtx.db; }";
    design(&world, "notes", json!({"filters": {"mine": echo}})).await;
    let ann = user("ann", &["staff"]);
    for feed in ["continuous", "eventsource"] {
        let path = format!("/notes--me/_changes?feed={feed}&filter=d/mine&include_docs=true&heartbeat=60000");
        let mut listener = world.feed(&ann, &path).await;
        let staff = json!({"read": ["role:staff"]});
        let id = |name: &str| format!("{feed}-{name}");
        for (name, access) in [("a", staff.clone()), ("hidden", json!({"read": ["user:eve"]})), ("b", staff)] {
            let doc = json!({"_id": id(name), "mark": "notes--me", "access": access});
            world.post(&admin(), "/notes", doc).await.expect(201);
            world.post(&admin(), "/notes", json!({"_id": id(&format!("{name}2")), "access": access})).await.expect(201);
        }
        while !listener.text.contains(&id("b")) {
            assert!(listener.step().await, "the feed ended: {}", listener.text);
        }
        assert!(listener.text.contains(&id("a")));
        for absent in ["a2", "b2", "hidden"] {
            assert!(!listener.text.contains(&id(absent)), "{absent}: {}", listener.text);
        }
        world.account("ann", &[]).await;
        listener.end().await;
        world.account("ann", &["staff"]).await;
    }
    let mut poll = world.feed(&ann, "/notes--me/_changes?feed=longpoll&since=now&filter=d/mine").await;
    assert!(poll.is_silent().await || !poll.text.contains("seq"));
    world.put(&admin(), "/notes/not", json!({"access": {"read": ["user:ann"]}})).await.expect(201);
    world.put(&admin(), "/notes/ann", json!({"access": {"read": ["user:ann"]}})).await.expect(201);
    poll.end().await;
    assert!(poll.text.contains("\"id\":\"ann\"") && !poll.text.contains("\"id\":\"not\""), "{}", poll.text);
}

#[tokio::test]
async fn who_lost_a_document_is_told_whatever_they_filter_by() {
    let world = World::new().await;
    world.app("notes").await;
    world.account("ann", &[]).await;
    design(&world, "notes", json!({"filters": {"none": "function () { return false; }"}})).await;
    let access = |read: &str| json!({"read": [read]});
    let rev = world.put(&admin(), "/notes/a", json!({"access": access("user:ann")})).await.expect(201)["rev"].clone();
    let ann = user("ann", &[]);
    let seq = world.get(&ann, "/notes--me/_changes").await.expect(200)["last_seq"].clone();
    world.put(&admin(), "/notes/a", json!({"_rev": rev, "access": access("user:eve")})).await.expect(201);
    let path = format!("/notes--me/_changes?filter=d/none&since={}", seq.as_str().expect("a place"));
    let told = world.get(&ann, &path).await.expect(200);
    assert_eq!(ids(&told), ["a"]);
    assert_eq!(told["results"][0]["deleted"], true);
}

#[tokio::test]
async fn update_handlers_write_as_their_caller() {
    let world = World::new().await;
    world.open_db("db").await;
    design(
        &world,
        "db",
        json!({"updates": {
            "make": "function (doc, req) {
            if (!doc) return [{_id: req.id || req.uuid, by: req.method, form: req.form.f}, 'made'];
            doc.n = (doc.n || 0) + 1;
            return [doc, {code: 202, headers: {'X-Mine': 'yes', 'Set-Cookie': 'AuthSession=x'}, json: {n: doc.n}}];
        }",
            "none": "function (doc, req) { return [null, JSON.stringify([doc, req.path, req.query.q, req.body])]; }",
            "remove": "function (doc) { doc._deleted = true; return [doc, 'gone']; }",
            "design": "function (doc, req) { return [{_id: '_design/evil'}, 'x']; }",
            "noid": "function (doc, req) { return [{}, 'x']; }",
            "broken": "function (doc, req) { return 5; }",
            "lost": "function (doc, req) { throw(['error', 'not_found', 'no such thing']); }",
            "headers": "function (doc, req) { return [null, {json: req.headers}]; }",
        }}),
    )
    .await;
    let ann = user("ann", &[]);
    let call = async |method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        raw(&world, &ann, method, &format!("/db/_design/d/_update/{path}"), headers, body).await
    };
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let (status, headers, text) = call("PUT", "make/a/b", &form, "f=x%20y").await;
    assert_eq!((status, text.as_str(), &headers["x-couch-id"]), (201, "made", &"a%2Fb".parse().expect("a value")));
    let made = world.get(&ann, "/db/a%2Fb").await.expect(200);
    assert_eq!((&made["by"], &made["form"]), (&json!("PUT"), &json!("x y")));
    assert_eq!(headers["x-couch-update-newrev"], made["_rev"].as_str().expect("a revision"));
    let (status, headers, text) = call("POST", "make/a/b", &[], "").await;
    assert_eq!((status, text.as_str()), (202, r#"{"n":1}"#));
    assert_eq!(headers["x-mine"], "yes");
    assert!(!headers.contains_key("set-cookie"));
    let (_, headers, _) = call("POST", "make", &[], "").await;
    let id = headers["x-couch-id"].to_str().expect("text");
    assert_eq!(world.get(&ann, &format!("/db/{id}")).await.expect(200)["by"], "POST");
    let (status, _, text) = call("POST", "none/zork?q=7", &[], "body").await;
    assert_eq!(status, 200);
    let shown: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(shown, json!([null, ["db", "_design", "d", "_update", "none", "zork"], "7", "body"]));
    assert_eq!(call("POST", "remove/a/b", &[], "").await.0, 201);
    world.get(&ann, "/db/a%2Fb").await.expect(404);
    for (path, status) in [("design", 403), ("noid", 400), ("broken", 500), ("lost", 404), ("nope", 404)] {
        let (got, _, text) = call("POST", path, &[], "").await;
        assert_eq!(got, status, "{path}: {text}");
    }
    assert_eq!(call("GET", "make/a", &[], "").await.0, 405);
    let secrets = [("authorization", "Basic x"), ("cookie", "s=1"), ("x-auth-couchdb-token", "t"), ("x-mine", "m")];
    let (_, _, text) = call("POST", "headers", &secrets, "").await;
    let headers: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(headers, json!({"X-Mine": "m"}));
    for gone in ["_show/s/a", "_list/l/v", "_rewrite/x"] {
        assert_eq!(world.get(&ann, &format!("/db/_design/d/{gone}")).await.expect(410)["error"], "gone");
    }
}

#[tokio::test]
async fn in_an_app_update_handlers_see_and_write_what_their_caller_may() {
    let world = World::new().await;
    world.app("notes").await;
    for name in ["ann", "eve"] {
        world.account(name, &[]).await;
    }
    let secret = json!({"secret": "s3cret", "access": {"read": ["user:ann"]}});
    world.put(&admin(), "/notes/taken", secret).await.expect(201);
    design(&world, "notes", json!({"updates": {
        "show": "function (doc, req) { return [null, JSON.stringify(doc && doc.secret)]; }",
        "take": "function (doc, req) { return [doc || {_id: req.id, access: {read: ['user:ann'], write: ['user:ann']}}, 'ok']; }",
    }}))
    .await;
    for db in ["notes", "notes--me"] {
        let call = async |who: &Identity, handler: &str, id: &str| {
            let path = format!("/{db}/_design/d/_update/{handler}/{id}");
            let (status, _, text) = raw(&world, who, "POST", &path, &[], "").await;
            (status, text.replace(id, "ID"))
        };
        assert_eq!(call(&user("ann", &[]), "show", "taken").await.1, "\"s3cret\"");
        let eve = user("eve", &[]);
        for handler in ["show", "take"] {
            assert_eq!(call(&eve, handler, "taken").await, call(&eve, handler, "free!").await, "{db} {handler}");
        }
        assert_eq!(call(&eve, "show", "taken").await.1, "null");
    }
    let parts = world.get(&user("ann", &[]), "/notes/_access").await.expect(200);
    let part = parts["partials"][0]["db"].as_str().expect("a partial database");
    let path = format!("/{part}/_design/d/_update/take/x");
    assert_eq!(raw(&world, &user("ann", &[]), "POST", &path, &[], "").await.0, 403, "it is read-only");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_functions_of_one_database_do_not_stop_those_of_another() {
    let world = World::limited(rean::Limits { max_function_ms: 500, ..rean::Limits::default() }).await;
    let world = std::sync::Arc::new(world);
    for (db, function) in
        [("bad", "function () { for (;;) {} }"), ("good", "function (n) { if (!n.x) throw({forbidden: 'x'}); }")]
    {
        world.open_db(db).await;
        world.put(&admin(), &format!("/{db}/_design/v"), json!({"validate_doc_update": function})).await.expect(201);
    }
    let mut hostile = Vec::new();
    for n in 0..12 {
        let world = std::sync::Arc::clone(&world);
        hostile.push(tokio::spawn(async move {
            let answer = world.put(&user("eve", &[]), &format!("/bad/d{n}"), json!({})).await;
            assert!(answer.status.is_server_error(), "{}", answer.text);
        }));
    }
    let began = std::time::Instant::now();
    for n in 0..20 {
        world.put(&user("ann", &[]), &format!("/good/d{n}"), json!({"x": n + 1})).await.expect(201);
    }
    let took = began.elapsed();
    assert!(took < harness::DEADLINE, "{took:?}");
    for task in hostile {
        task.await.expect("refused");
    }
    assert_eq!(world.get(&admin(), "/bad").await.expect(200)["doc_count"], 1);
}

#[tokio::test]
async fn who_lost_the_right_while_validators_were_asked_does_not_write() {
    let world = validated("").await;
    let designs = world.pod.designs.of(&world.pod.store.db("db").expect("a database")).expect("read");
    let all = u32::try_from(designs.calls().available_permits()).expect("few");
    let turns = designs.calls().acquire_many(all).await.expect("all turns");
    let ann = user("ann", &[]);
    let write = world.put(&ann, "/db/a", json!({}));
    tokio::pin!(write);
    let waits = std::future::poll_fn(|context| Poll::Ready(write.as_mut().poll(context).is_pending())).await;
    assert!(waits, "for the validator's turn");
    let security = json!({"members": {"names": ["eve"], "roles": []}});
    world.put(&admin(), "/db/_security", security).await.expect(200);
    drop(turns);
    write.await.expect(403);
    world.get(&admin(), "/db/a").await.expect(404);
}

#[tokio::test]
async fn a_feed_asks_the_filter_that_is_there_and_ends_without_one() {
    let world = World::new().await;
    world.open_db("db").await;
    let filter = |body: &str| json!({"filters": {"f": format!("function (doc) {{ {body} }}")}});
    design(&world, "db", filter("return doc.n === 1;")).await;
    let mut listener = world.feed(&user("ann", &[]), "/db/_changes?feed=continuous&filter=d/f&heartbeat=60000").await;
    for (id, n) in [("a", 2), ("b", 1)] {
        world.put(&admin(), &format!("/db/{id}"), json!({"n": n})).await.expect(201);
    }
    while !listener.text.contains("\"b\"") {
        assert!(listener.step().await, "the feed ended: {}", listener.text);
    }
    let mut now = filter("return !!doc._revisions && doc.n === 2;");
    now["_rev"] = world.get(&admin(), "/db/_design/d").await.expect(200)["_rev"].clone();
    design(&world, "db", now).await;
    for (id, n) in [("c", 1), ("d", 2)] {
        world.put(&admin(), &format!("/db/{id}"), json!({"n": n})).await.expect(201);
    }
    while !listener.text.contains("\"d\"") {
        assert!(listener.step().await, "the feed ended: {}", listener.text);
    }
    assert!(!listener.text.contains("\"a\"") && !listener.text.contains("\"c\""), "{}", listener.text);
    let rev = world.get(&admin(), "/db/_design/d").await.expect(200)["_rev"].clone();
    let path = format!("/db/_design/d?rev={}", rev.as_str().expect("one"));
    world.send(&admin(), "DELETE", &path, None).await.expect(200);
    world.put(&admin(), "/db/e", json!({"n": 2})).await.expect(201);
    listener.end().await;
    assert!(!listener.text.contains("\"e\""), "{}", listener.text);
}

#[tokio::test]
async fn the_design_documents_of_a_database_are_bounded() {
    let world = World::new().await;
    world.open_db("db").await;
    let large = |rev: &str| json!({"_rev": rev, "text": "x".repeat(7 << 20)});
    let rev = format!("1-{HASH}");
    for (id, status) in [("a", 201), ("b", 201), ("c", 413)] {
        let path = format!("/db/_design/{id}?new_edits=false");
        world.put(&admin(), &path, large(&rev)).await.expect(status);
    }
    let mut large_new = large(&rev);
    large_new.as_object_mut().expect("an object").remove("_rev");
    let docs = json!({"docs": [{"_id": "_design/d", "text": large_new["text"]}, {"_id": "_design/e"}, {"_id": "x"}]});
    let rows = world.post(&admin(), "/db/_bulk_docs", docs).await.expect(201);
    let outcomes: Vec<&str> =
        rows.as_array().expect("rows").iter().map(|row| row["error"].as_str().unwrap_or("")).collect();
    assert_eq!(outcomes, ["document_too_large", "", ""]);
    // One that is there may stay as large as it is, and be made smaller.
    world.put(&admin(), "/db/_design/a", large(&rev)).await.expect(201);
    let small = json!({"_rev": rev});
    world.put(&admin(), "/db/_design/b", small).await.expect(201);
    world.put(&admin(), "/db/_design/d", large_new).await.expect(201);
}
