//! What clients written for CouchDB take for granted of single requests: statuses, reasons, headers.

mod harness;

use axum::body::Body;
use harness::{Answer, World, admin, user};
use http_body_util::BodyExt;
use rean::route::{self, Request};
use serde_json::{Value, json};

/// Sends bytes with headers; gives the answer and its headers.
async fn ask(
    world: &World,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (Answer, http::HeaderMap) {
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = Request::from_http(request.body(Body::from(body.to_owned())).expect("a request")).expect("a path");
    let answer = route::dispatch(&world.pod, &admin(), request).await.unwrap_or_else(|error| error.into_response());
    let (parts, body) = answer.into_parts();
    let text = String::from_utf8(body.collect().await.expect("a body").to_bytes().to_vec()).expect("UTF-8");
    (Answer { status: parts.status, text }, parts.headers)
}

fn refused(answer: Answer, status: u16, error: &str, reason: &str) {
    assert_eq!(answer.expect(status), json!({"error": error, "reason": reason}));
}

async fn with_docs(ids: &[&str]) -> World {
    let world = World::new().await;
    world.open_db("db").await;
    for id in ids {
        world.put(&admin(), &format!("/db/{id}"), json!({})).await.expect(201);
    }
    world
}

#[tokio::test]
async fn who_is_somebody_is_forbidden_and_who_is_nobody_unauthorized() {
    let world = with_docs(&[]).await;
    let nobody = adea_ring::Identity::anonymous();
    for (method, path) in [("PUT", "/db/_design/d"), ("PUT", "/db/_security"), ("PUT", "/db/_revs_limit")] {
        let body = json!({});
        assert_eq!(world.send(&nobody, method, path, Some(&body)).await.expect(401)["error"], "unauthorized", "{path}");
        assert_eq!(world.send(&user("ann", &[]), method, path, Some(&body)).await.expect(403)["error"], "forbidden");
    }
    // What is the server's is 401 for everybody.
    assert_eq!(world.get(&user("ann", &[]), "/_all_dbs").await.status, 401);
    // Another's account and one that isn't there look the same.
    world.account("ann", &[]).await;
    for path in ["/_users/org.couchdb.user:ann", "/_users/org.couchdb.user:none"] {
        refused(world.get(&nobody, path).await, 404, "not_found", "missing");
        refused(world.get(&user("bob", &[]), path).await, 404, "not_found", "missing");
    }
    assert_eq!(world.get(&nobody, "/_users/_all_docs").await.status, 401);
}

#[tokio::test]
async fn lists_tell_how_many_rows_lie_before() {
    let world = with_docs(&["a", "b", "c", "d"]).await;
    let offset =
        async |query: &str| world.get(&admin(), &format!("/db/_all_docs?{query}")).await.expect(200)["offset"].clone();
    for (query, wanted) in [
        ("", json!(0)),
        ("skip=3", json!(3)),
        ("skip=9", json!(4)),
        ("startkey=%22b%22", json!(1)),
        ("startkey=%22bb%22&skip=1", json!(3)),
        ("key=%22c%22", json!(2)),
        ("startkey=%22b%22&descending=true", json!(2)),
        ("startkey=%22zz%22", json!(4)),
        ("startkey=%7B%7D", json!(4)),
        ("startkey=%7B%7D&descending=true", json!(0)),
        ("startkey=%22c%22&endkey=%22a%22", json!(2)),
        ("keys=%5B%22a%22%5D", Value::Null),
    ] {
        assert_eq!(offset(query).await, wanted, "{query}");
    }
    let many: Vec<Value> = (0..2_000).map(|n| json!({"_id": format!("m{n:04}")})).collect();
    world.post(&admin(), "/db/_bulk_docs", json!({"docs": many})).await.expect(201);
    assert_eq!(offset("startkey=%22m1500%22&limit=1").await, json!(1_504));
    let designs = world.get(&admin(), "/db/_design_docs?startkey=%22zz%22").await.expect(200);
    assert_eq!((&designs["total_rows"], &designs["offset"]), (&json!(0), &json!(0)));
}

#[tokio::test]
async fn offsets_count_what_the_reader_may_read_and_no_more() {
    let world = World::new().await;
    world.app("notes").await;
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    for (who, id) in [(&ann, "a"), (&bob, "b"), (&ann, "c"), (&bob, "d"), (&ann, "e")] {
        let name = who.name.as_deref().expect("a name");
        let doc = json!({"access": {"read": [format!("user:{name}")]}});
        world.put(who, &format!("/notes--me/{id}"), doc).await.expect(201);
    }
    for (who, offset) in [(&ann, 2), (&bob, 2)] {
        let list = world.get(who, "/notes--me/_all_docs?startkey=%22e%22").await.expect(200);
        assert_eq!(list["offset"], offset);
    }
    let list = world.get(&bob, "/notes--me/_all_docs?startkey=%22c%22").await.expect(200);
    assert_eq!((&list["offset"], list["rows"].as_array().map(Vec::len)), (&json!(1), Some(1)));
}

#[tokio::test]
async fn flags_are_read_as_couchdb_reads_them() {
    let world = with_docs(&["a"]).await;
    // Of a document and of changes only exactly `true` counts, and the rest is passed over: Python's clients send `True`.
    let doc = world.get(&admin(), "/db/a?revs=true&conflicts=1&meta=True").await.expect(200);
    assert!(doc["_revisions"].is_object() && doc.get("_revs_info").is_none(), "{doc}");
    let changes = world.get(&admin(), "/db/_changes?include_docs=True&descending=1").await.expect(200);
    assert!(changes["results"][0].get("doc").is_none(), "{changes}");
    world.put(&admin(), "/db/b?new_edits=maybe", json!({})).await.expect(201);
    // Lists read it in capitals too, and refuse what is neither.
    let list = world.get(&admin(), "/db/_all_docs?include_docs=TRUE").await.expect(200);
    assert_eq!(list["rows"][0]["doc"]["_id"], "a");
    world.get(&admin(), "/db/_all_docs?include_docs=1").await.expect(400);
}

#[tokio::test]
async fn a_batched_write_names_no_revision() {
    let world = with_docs(&[]).await;
    let json = [("content-type", "application/json")];
    for (method, path) in [("PUT", "/db/a?batch=ok"), ("POST", "/db?batch=ok")] {
        let id = if method == "PUT" { "a" } else { "b" };
        let (answer, headers) = ask(&world, method, path, &json, &json!({"_id": id}).to_string()).await;
        assert_eq!(answer.expect(202), json!({"ok": true, "id": id}), "{method}");
        assert!(headers.get("etag").is_none(), "{method}");
        world.get(&admin(), &format!("/db/{id}")).await.expect(200);
    }
}

#[tokio::test]
async fn replicated_documents_must_say_their_revision() {
    let world = with_docs(&[]).await;
    let hash = "a".repeat(32);
    let good = json!({"_id": "good", "_revisions": {"start": 1, "ids": [&hash]}});
    let docs = json!({"new_edits": false, "docs": [good, {"_id": "bad"}]});
    let reason = "When `new_edits: false`, the document needs `_rev` or `_revisions` specified";
    refused(world.post(&admin(), "/db/_bulk_docs", docs).await, 400, "bad_request", reason);
    world.get(&admin(), "/db/good").await.expect(404);
    let docs = json!({"new_edits": false, "docs": [good]});
    assert_eq!(world.post(&admin(), "/db/_bulk_docs", docs).await.expect(201), json!([]));
}

#[tokio::test]
async fn a_put_may_have_any_content_type() {
    let world = with_docs(&[]).await;
    // What curl's -d says.
    let form = [("content-type", "application/x-www-form-urlencoded")];
    for (path, body) in [
        ("/db/a", "{}"),
        ("/db/_security", r#"{"members":{"names":["ann"]}}"#),
        ("/db/_revs_limit", "10"),
        ("/db/_purged_infos_limit", "10"),
    ] {
        for headers in [&form[..], &[]] {
            let path = if path == "/db/a" && headers.is_empty() { "/db/b" } else { path };
            let (answer, _) = ask(&world, "PUT", path, headers, body).await;
            assert!(answer.status.is_success(), "{path}: {} {}", answer.status, answer.text);
        }
    }
    assert_eq!(world.get(&admin(), "/db/_security").await.expect(200)["members"]["names"], json!(["ann"]));
}

#[tokio::test]
async fn parameters_of_lists_are_couchdbs() {
    let world = with_docs(&["a", "b", "c"]).await;
    let rows = world.post(&admin(), "/db/_all_docs?limit=1", json!({"limit": 3})).await.expect(200);
    assert_eq!(rows["rows"].as_array().map(Vec::len), Some(1));
    let both = world.post(&admin(), "/db/_all_docs", json!({"keys": ["a"], "startkey": "a"})).await;
    refused(both, 400, "query_parse_error", "`keys` is incompatible with `key`, `start_key` and `end_key`");
    let list = world.post(&admin(), "/db/_all_docs", json!({"keys": 1})).await;
    refused(list, 400, "bad_request", "`keys` body member must be an array.");
    refused(world.get(&admin(), "/db/_all_docs?startkey=foo").await, 400, "bad_request", "invalid UTF-8 JSON");
    let form = [("content-type", "application/x-www-form-urlencoded")];
    assert_eq!(ask(&world, "POST", "/db/_all_docs", &form, "{}").await.0.status, 415);
    ask(&world, "POST", "/db/_all_docs", &[], "{}").await.0.expect(200);
}

#[tokio::test]
async fn reasons_are_couchdbs() {
    let world = with_docs(&["a"]).await;
    let reason = "You tried to DELETE a database with a ?=rev parameter. Did you mean to DELETE a document instead?";
    refused(world.send(&admin(), "DELETE", "/db?rev=1-a", None).await, 400, "bad_request", reason);
    let uuids = world.post(&admin(), "/_uuids", json!({})).await;
    refused(uuids, 405, "method_not_allowed", "Only GET allowed");
    let body = r#"{"_rev":"1-967a00dff5e02add41819138abb3284d"}"#;
    let (answer, _) = ask(&world, "PUT", "/db/a", &[("if-match", "2-b")], body).await;
    refused(answer, 400, "bad_request", "Document rev and etag have different values");
    let (answer, _) = ask(&world, "PUT", "/db/a?rev=2-b", &[], body).await;
    refused(answer, 400, "bad_request", "Document rev from request body and query string have different values");
    let all = world.post(&admin(), "/db/_bulk_docs", json!({"docs": [{"_id": "n"}], "all_or_nothing": true})).await;
    let row = json!({"id": "n", "error": "not_implemented", "reason": "all_or_nothing is not supported"});
    assert_eq!(all.expect(417), json!([row]));
    assert_eq!(world.get(&admin(), "/db/n").await.status, 404);
    for section in ["os_daemons", "query_servers", "httpd_design_handlers"] {
        let answer = world.put(&admin(), &format!("/_node/_local/_config/{section}/x"), json!("y")).await;
        assert_eq!(answer.expect(403)["error"], "forbidden");
    }
}

#[tokio::test]
async fn a_limit_of_purges_is_noted() {
    let world = with_docs(&[]).await;
    let path = "/db/_purged_infos_limit";
    assert_eq!(world.get(&admin(), path).await.expect(200), json!(1000));
    world.put(&admin(), path, json!(2)).await.expect(200);
    assert_eq!(world.get(&admin(), path).await.expect(200), json!(2));
    // It outlives other settings of the database.
    world.put(&admin(), "/db/_revs_limit", json!(7)).await.expect(200);
    assert_eq!(world.get(&admin(), path).await.expect(200), json!(2));
    for bad in [json!(0), json!(-1), json!("2")] {
        world.put(&admin(), path, bad).await.expect(400);
    }
    assert_eq!(world.put(&user("ann", &[]), path, json!(3)).await.status, 403);
}

#[tokio::test]
async fn attachments_are_couchdbs() {
    let world = with_docs(&[]).await;
    let kind = [("content-type", "text/plain")];
    let (made, headers) = ask(&world, "PUT", "/db/d/f%20g.txt", &kind, "some text").await;
    let rev = made.expect(201)["rev"].as_str().expect("a revision").to_owned();
    assert_eq!(headers["location"], "/db/d/f%20g.txt");
    let at = "/db/d/f%20g.txt";
    let (got, headers) = ask(&world, "GET", at, &[], "").await;
    assert_eq!((got.status.as_u16(), got.text.as_str()), (200, "some text"));
    assert_eq!(headers["content-md5"], "VS4hzUzZkYZ448Gg30kbww==");
    let (all, headers) = ask(&world, "GET", at, &[("range", "bytes=0-")], "").await;
    assert_eq!((all.status.as_u16(), headers.get("content-range")), (200, None));
    let (part, headers) = ask(&world, "GET", at, &[("range", "bytes=5-")], "").await;
    assert_eq!((part.status.as_u16(), part.text.as_str(), headers.get("content-md5")), (206, "text", None));
    assert_eq!(ask(&world, "GET", at, &[("range", "bytes=5-3")], "").await.0.status, 416);
    for method in ["PUT", "DELETE"] {
        let (answer, _) = ask(&world, method, &format!("{at}?rev=4-garbage"), &kind, "").await;
        refused(answer, 409, "not_found", "missing_rev");
    }
    let (answer, _) = ask(&world, "PUT", "/db/e/f", &[("content-md5", "AAAA")], "x").await;
    refused(answer, 400, "content_md5_mismatch", "Possible message corruption.");
    let (answer, _) = ask(&world, "PUT", "/db/e/_f.txt", &kind, "x").await;
    refused(answer, 400, "bad_request", "Attachment name '_f.txt' starts with prohibited character '_'");
    assert_eq!(ask(&world, "PUT", "/db/_nonexistant/f", &kind, "x").await.0.status, 400);
    let (whole, headers) = ask(&world, "GET", "/db/d?attachments=true", &[("accept", "multipart/related")], "").await;
    assert!(whole.text.starts_with("--") && whole.text.contains("some text"), "{}", whole.text);
    assert_eq!(headers["content-length"], whole.text.len().to_string().as_str());
    for (revpos, status) in [(json!(10), 412), (json!(1), 201)] {
        let stub = json!({"_rev": rev, "_attachments": {"f g.txt": {"stub": true, "revpos": revpos}}});
        assert_eq!(world.put(&admin(), "/db/d", stub).await.status, status, "{revpos}");
    }
}

#[tokio::test]
async fn forms_add_files_to_documents() {
    let world = with_docs(&["d"]).await;
    let rev = world.get(&admin(), "/db/d").await.json()["_rev"].as_str().expect("a revision").to_owned();
    let part = |head: &str, body: &str| format!("--x\r\nContent-Disposition: form-data; {head}\r\n\r\n{body}\r\n");
    let file = |name: &str, text: &str| {
        part(&format!("name=\"_attachments\"; filename=\"{name}\"\r\nContent-Type: text/x-{name}"), text)
    };
    let kind = [("content-type", "multipart/form-data; boundary=x")];
    let send = async |path: &str, parts: String| ask(&world, "POST", path, &kind, &format!("{parts}--x--\r\n")).await.0;
    let form = part("name=\"_rev\"", &rev) + &part("name=\"other\"", "y") + &file("a", "AA") + &file("", "");
    let made = send("/db/d", form.clone()).await.expect(201);
    let doc = world.get(&admin(), "/db/d").await.expect(200);
    assert_eq!((&doc["_rev"], doc["_attachments"].as_object().map(serde_json::Map::len)), (&made["rev"], Some(1)));
    assert_eq!(doc["_attachments"]["a"]["content_type"], "text/x-a");
    assert_eq!(world.get(&admin(), "/db/d/a").await.text, "AA");
    assert_eq!(send("/db/d", form).await.status, 409);
    // The files that were there stay.
    let rev = made["rev"].as_str().expect("a revision");
    send("/db/d", part("name=\"_rev\"", rev) + &file("b", "B")).await.expect(201);
    assert_eq!(world.get(&admin(), "/db/d/a").await.text, "AA");
    send("/db/n", part("name=\"_doc\"", r#"{"n":1}"#) + &file("c", "C")).await.expect(201);
    let doc = world.get(&admin(), "/db/n").await.expect(200);
    assert_eq!((&doc["n"], &doc["_attachments"]["c"]["length"]), (&json!(1), &json!(1)));
    assert_eq!(send("/db/m", file("c", "C")).await.status, 400);
    let (answer, _) =
        ask(&world, "POST", "/db/d", &[("content-type", "application/x-www-form-urlencoded")], "a=b").await;
    refused(answer, 415, "bad_content_type", "Content-Type must be multipart/form-data");
    // A form is no way around the rights.
    let request =
        http::Request::builder().method("POST").uri("/_users/org.couchdb.user:x").header(kind[0].0, kind[0].1);
    let request = Request::from_http(request.body(Body::empty()).expect("a request")).expect("a path");
    let answer = route::dispatch(&world.pod, &user("ann", &[]), request).await.expect_err("refused");
    assert_eq!(answer.status, 403);
}
