//! Partitioned databases: what may be in one, and what is asked of one of its partitions.

mod harness;

use harness::{Answer, World, admin, user};
use rean::error::ApiError;
use rean::ring::databases::{Ensured, ensure_from};
use rean::route::{Request, dispatch};
use rean_store::Db;
use serde_json::{Value, json};

const ID_FORM: &str = "Doc id must be of form partition:id";
const MAX_PARTITION_SIZE: &str = "/_node/_local/_config/couchdb/max_partition_size";

impl World {
    /// A partitioned database that everyone may read and write.
    async fn partitioned(&self, name: &str) -> Db {
        self.send(&admin(), "PUT", &format!("/{name}?partitioned=true"), None).await.expect(201);
        let everyone = json!({"members": {"names": [], "roles": []}});
        self.put(&admin(), &format!("/{name}/_security"), everyone).await.expect(200);
        self.pod.store.db(name).expect("it is here")
    }

    /// Documents `foo:N` and `bar:N` with their numbers, from 1 to 20, and which group they are in.
    async fn fill(&self, name: &str) {
        let doc = |partition: &str, n: u32| {
            let group = if n.is_multiple_of(3) { "one" } else { "two" };
            json!({"_id": format!("{partition}:{n:02}"), "n": n, "group": ["x", group]})
        };
        let docs: Vec<Value> =
            (1..=20).map(|n| doc("foo", n)).chain((1..=20).map(|n| doc("bar", n))).chain([doc("foobar", 1)]).collect();
        self.post(&admin(), &format!("/{name}/_bulk_docs"), json!({"docs": docs})).await.expect(201);
    }

    /// Changes the bound of partitions; gives what it was.
    async fn set_max_partition_size(&self, bytes: &str) -> Value {
        self.put(&admin(), MAX_PARTITION_SIZE, json!(bytes)).await.expect(200)
    }

    async fn copy(&self, from: &str, to: &str) -> Result<(), ApiError> {
        let request = http::Request::builder().method("COPY").uri(from).header("destination", to);
        let request = Request::from_http(request.body(axum::body::Body::empty()).expect("a request"));
        dispatch(&self.pod, &user("ann", &[]), request.expect("a path")).await.map(drop)
    }

    async fn rows(&self, path: &str) -> Vec<String> {
        ids_of(&self.get(&user("ann", &[]), path).await.expect(200))
    }
}

fn ids_of(answer: &Value) -> Vec<String> {
    let rows = answer["rows"].as_array().or(answer["docs"].as_array()).expect("rows").iter();
    rows.map(|row| row["id"].as_str().or(row["_id"].as_str()).unwrap_or("-").to_owned()).collect()
}

fn numbered(partition: &str, numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(|n| format!("{partition}:{n:02}")).collect()
}

#[track_caller]
fn refused(answer: Answer, error: &str, reason: &str) {
    let said = answer.expect(400);
    assert_eq!(said["error"], error, "{said}");
    assert!(said["reason"].as_str().is_some_and(|said| said.contains(reason)), "{said}");
}

/// That all counts are those of what is there.
fn verify(db: &Db) {
    assert_eq!(db.verify().expect("it can be read"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_made_partitioned_or_not() {
    let world = World::new().await;
    world.partitioned("parts").await;
    world.open_db("plain").await;
    assert_eq!(world.get(&user("ann", &[]), "/parts").await.expect(200)["props"], json!({"partitioned": true}));
    assert_eq!(world.get(&user("ann", &[]), "/plain").await.expect(200)["props"], json!({}));
    let put = async |path: &str| world.send(&admin(), "PUT", path, None).await;
    refused(put("/other?partitioned=tru").await, "bad_request", "Invalid `partitioned` parameter");
    refused(put("/_replicator?partitioned=true").await, "bad_request", "Cannot partition a system database");
    refused(put("/other?partitioned=true&access=true").await, "bad_request", "partial databases");
    assert_eq!(put("/other").await.status, 201);
    assert_eq!(world.send(&user("ann", &[]), "PUT", "/mine?partitioned=true", None).await.status, 401);
    let doc = world.get(&admin(), "/_ring/db:parts").await.expect(200);
    assert_eq!((&doc["partitioned"], &doc["app"]), (&json!(true), &json!(false)));
    assert!(world.get(&admin(), "/_ring/db:plain").await.expect(200).get("partitioned").is_none());
    // One of the same name is another one.
    world.send(&admin(), "DELETE", "/parts", None).await.expect(200);
    put("/parts").await.expect(201);
    assert_eq!(world.get(&admin(), "/parts").await.expect(200)["props"], json!({}));
    world.put(&admin(), "/parts/no-partition", json!({})).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_name_a_partition_on_every_way_in() {
    let world = World::new().await;
    let db = world.partitioned("parts").await;
    let ann = user("ann", &[]);
    for (id, error, reason) in [
        ("none", "illegal_docid", ID_FORM),
        (":none", "illegal_partition", "Partition must not be empty"),
        ("p:", "illegal_docid", "Document id must not be empty"),
        ("p:_x", "illegal_docid", "Only reserved document ids may start with underscore."),
        ("_p:x", "illegal_docid", "Only reserved document ids may start with underscore."),
    ] {
        let doc = json!({"_id": id});
        refused(world.put(&ann, &format!("/parts/{id}"), json!({})).await, error, reason);
        refused(world.post(&ann, "/parts", doc.clone()).await, error, reason);
        for new_edits in [true, false] {
            let mut docs = json!([{"_id": "p:good"}, doc]);
            if !new_edits {
                (docs[0]["_rev"], docs[1]["_rev"]) = (json!("1-aa"), json!("1-aa"));
            }
            let body = json!({"docs": docs, "new_edits": new_edits});
            refused(world.post(&ann, "/parts/_bulk_docs", body).await, error, reason);
        }
    }
    assert_eq!(db.info().doc_count, 0, "a refused request writes nothing");
    refused(world.send(&ann, "DELETE", "/parts/none?rev=1-a", None).await, "illegal_docid", ID_FORM);
    refused(world.put(&ann, "/parts/none/file.txt", json!("x")).await, "illegal_docid", ID_FORM);
    refused(world.get(&ann, "/parts/none").await, "illegal_docid", ID_FORM);
    refused(
        world.post(&admin(), "/parts/_purge", json!({"none": ["1-0123456789abcdef0123456789abcdef"]})).await,
        "illegal_docid",
        ID_FORM,
    );
    let got = world.post(&ann, "/parts/_bulk_get", json!({"docs": [{"id": "none"}]})).await.expect(200);
    assert_eq!(got["results"][0]["docs"][0]["error"]["error"], "illegal_docid");
    // A document without an id gets one that has no partition.
    refused(world.post(&ann, "/parts", json!({"n": 1})).await, "illegal_docid", ID_FORM);
    // What has no partition anywhere, and what does.
    world
        .put(
            &admin(),
            "/parts/_design/d",
            json!({"updates": {"new": "function (doc, req) { return [{_id: req.id || 'none'}, 'ok']; }"}}),
        )
        .await
        .expect(201);
    assert_eq!(world.send(&ann, "PUT", "/parts/_design/d/_update/new/none", None).await.status, 400);
    assert_eq!(world.send(&ann, "PUT", "/parts/_design/d/_update/new/p:made", None).await.status, 201);
    world.put(&ann, "/parts/_local/x", json!({})).await.expect(201);
    world.post(&ann, "/parts/_bulk_docs", json!({"docs": [{"_id": "p:1:2"}, {"_id": "a b:ü"}]})).await.expect(201);
    let error = world.copy("/parts/p:1:2", "none").await.expect_err("refused");
    assert_eq!((error.status.as_u16(), &*error.error), (400, "illegal_docid"));
    // What another pod has taken counts here too.
    world.put(&adea_ring::Identity::system(), "/parts/none", json!({})).await.expect(201);
    verify(&db);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_counted_through_every_change() {
    let world = World::new().await;
    let db = world.partitioned("parts").await;
    let ann = user("ann", &[]);
    let info = async |partition: &str| world.get(&ann, &format!("/parts/_partition/{partition}")).await.expect(200);
    let sizes = json!({"active": 0, "external": 0});
    let empty = json!({"db_name": "parts", "partition": "p", "doc_count": 0, "doc_del_count": 0, "sizes": sizes});
    assert_eq!(info("p").await, empty);
    let mut revs = Vec::new();
    for id in ["p:1", "p:2", "p2:1", "p;:1"] {
        let made = world.put(&ann, &format!("/parts/{id}"), json!({"n": 1})).await.expect(201);
        revs.push(made["rev"].as_str().expect("a revision").to_owned());
    }
    let one = "{\"n\":1}".len() as u64;
    let now = info("p").await;
    assert_eq!(
        (&now["doc_count"], &now["doc_del_count"], &now["sizes"]["external"]),
        (&json!(2), &json!(0), &json!(2 * one))
    );
    assert_eq!(info("p2").await["doc_count"], 1);
    world.send(&ann, "DELETE", &format!("/parts/p:1?rev={}", revs[0]), None).await.expect(200);
    let changed = world.put(&ann, "/parts/p:2", json!({"_rev": revs[1], "n": 22})).await.expect(201);
    let now = info("p").await;
    assert_eq!((&now["doc_count"], &now["doc_del_count"]), (&json!(1), &json!(1)));
    verify(&db);
    world.post(&admin(), "/parts/_purge", json!({"p:2": [changed["rev"]]})).await.expect(201);
    db.compact().expect("compacted");
    verify(&db);
    let now = info("p").await;
    assert_eq!((&now["doc_count"], &now["doc_del_count"], &now["sizes"]["active"]), (&json!(0), &json!(1), &json!(2)));
    // A partition ends where CouchDB's rules for names end, and not everyone may ask.
    for (path, error, reason) in [
        ("/parts/_partition", "bad_request", "invalid_partition_req"),
        ("/parts/_partition/_p", "illegal_partition", "underscore"),
        ("/parts/_partition/a:b", "illegal_partition", "colon"),
        ("/parts/_partition/_find", "illegal_partition", "underscore"),
    ] {
        refused(world.get(&ann, path).await, error, reason);
    }
    assert_eq!(world.post(&ann, "/parts/_partition/p", json!({})).await.status, 405);
    for path in [
        "/parts/_partition/p/_changes",
        "/parts/_partition/p/x",
        "/parts/_partition/p/_design/d",
        "/parts/_partition/p/_bulk_docs",
    ] {
        assert_eq!(world.get(&ann, path).await.status, 404, "{path}");
    }
    let members = json!({"members": {"names": ["bob"], "roles": []}});
    world.put(&admin(), "/parts/_security", members).await.expect(200);
    assert_eq!(world.get(&ann, "/parts/_partition/p").await.status, 403);
    assert_eq!(world.get(&user("bob", &[]), "/parts/_partition/p").await.status, 200);
}

#[track_caller]
fn overflows(answer: Answer, id: &str) {
    assert_eq!(answer.expect(403), overflow_of(id));
}

/// In CouchDB's words.
fn overflow_of(id: &str) -> Value {
    json!({"error": "partition_overflow", "reason": format!("Partition limit exceeded due to update on '{id}'")})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_too_large_takes_no_more_on_any_way_in() {
    let world = World::new().await;
    let db = world.partitioned("parts").await;
    let ann = user("ann", &[]);
    let path = |id: &str| format!("/parts/{id}");
    let update = "function (doc, req) { return [{_id: req.id, text: 'x'}, 'ok']; }";
    world.put(&admin(), "/parts/_design/d", json!({"updates": {"new": update}})).await.expect(201);
    assert_eq!(world.set_max_partition_size("1000").await, "10737418240");
    let text = "x".repeat(100);
    // All of a batch count as one: the partition was not too large when it came.
    let docs: Vec<Value> = (10..25).map(|n| json!({"_id": format!("foo:{n}"), "text": text})).collect();
    let rows = world.post(&ann, "/parts/_bulk_docs", json!({"docs": docs})).await.expect(201);
    assert!(rows.as_array().expect("rows").iter().all(|row| row["ok"] == true), "{rows}");
    let info = world.get(&ann, "/parts/_partition/foo").await.expect(200);
    assert!(info["sizes"]["external"].as_u64().is_some_and(|bytes| bytes >= 1_000), "{info}");
    let rev_of =
        async |id: &str| world.get(&ann, &path(id)).await.expect(200)["_rev"].as_str().expect("one").to_owned();
    overflows(world.put(&ann, &path("foo:bar"), json!({})).await, "foo:bar");
    overflows(world.post(&ann, "/parts", json!({"_id": "foo:bar"})).await, "foo:bar");
    overflows(world.put(&admin(), &path("foo:bar"), json!({})).await, "foo:bar");
    overflows(world.put(&ann, &path("foo:bar/file"), json!("bytes")).await, "foo:bar");
    let rev = rev_of("foo:10").await;
    overflows(world.put(&ann, &path(&format!("foo:10/file?rev={rev}")), json!("bytes")).await, "foo:10");
    let inline = json!({"_rev": rev, "_attachments": {"a": {"data": "eHh4".repeat(60)}}});
    overflows(world.put(&ann, &path("foo:10"), inline).await, "foo:10");
    overflows(world.put(&ann, &path("foo:10"), json!({"_rev": rev, "text": format!("{text}x")})).await, "foo:10");
    overflows(world.send(&ann, "PUT", &path("_design/d/_update/new/foo:bar"), None).await, "foo:bar");
    world.put(&ann, &path("bar:1"), json!({"text": "other partitions are not concerned"})).await.expect(201);
    let error = world.copy("/parts/bar:1", "foo:bar").await.expect_err("refused");
    assert_eq!((error.status.as_u16(), &*error.error), (403, "partition_overflow"));
    let docs = json!([{"_id": "foo:bar"}, {"_id": "bar:2"}]);
    let rows = world.post(&ann, "/parts/_bulk_docs", json!({"docs": docs})).await.expect(201);
    let mut wanted = overflow_of("foo:bar");
    wanted["id"] = json!("foo:bar");
    assert_eq!((&rows[0], &rows[1]["ok"]), (&wanted, &json!(true)));
    // What was taken elsewhere is taken here, and what has no partition, and other databases.
    let came = json!({"_id": "foo:came", "_rev": "1-0123456789abcdef0123456789abcdef", "text": text});
    let rows = world.post(&ann, "/parts/_bulk_docs", json!({"new_edits": false, "docs": [came]})).await.expect(201);
    assert_eq!(rows, json!([]));
    world.put(&ann, "/parts/_local/x", json!({"text": text})).await.expect(201);
    world.put(&admin(), "/parts/_design/foo:e", json!({"text": text})).await.expect(201);
    world.open_db("plain").await;
    world.put(&ann, "/plain/foo:bar", json!({"text": "x".repeat(2_000)})).await.expect(201);
    verify(&db);
    // What takes away from it is let through; then there is room, also before a compaction.
    world.put(&ann, &path("foo:10"), json!({"_rev": rev, "text": ""})).await.expect(201);
    overflows(world.put(&ann, &path("foo:bar"), json!({})).await, "foo:bar");
    for n in 11..20 {
        let id = format!("foo:{n}");
        let path = path(&format!("{id}?rev={}", rev_of(&id).await));
        world.send(&ann, "DELETE", &path, None).await.expect(200);
    }
    let made = world.put(&ann, &path("foo:bar"), json!({})).await.expect(201);
    // Attachments count.
    let with_file = path(&format!("foo:bar/file?rev={}", made["rev"].as_str().expect("a revision")));
    world.put(&ann, &with_file, json!("x".repeat(1_000))).await.expect(201);
    overflows(world.put(&ann, &path("foo:baz"), json!({})).await, "foo:baz");
    // With a stub they count once, and not any more when they are gone.
    let rev = rev_of("foo:bar").await;
    let stub = json!({"_rev": rev, "_attachments": {"file": {"stub": true}}});
    world.put(&ann, &path("foo:bar"), stub).await.expect(201);
    verify(&db);
    let rev = rev_of("foo:bar").await;
    world.post(&admin(), "/parts/_purge", json!({"foo:bar": [rev]})).await.expect(201);
    world.put(&ann, &path("foo:baz"), json!({})).await.expect(201);
    verify(&db);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bound_of_partitions_is_a_setting() {
    let world = World::new().await;
    world.partitioned("parts").await;
    let ann = user("ann", &[]);
    let put = async |id: &str| world.put(&ann, &format!("/parts/p:{id}"), json!({"text": "x".repeat(50)})).await;
    assert_eq!(world.get(&admin(), MAX_PARTITION_SIZE).await.expect(200), "10737418240");
    assert_eq!(world.get(&ann, MAX_PARTITION_SIZE).await.status, 401);
    put("1").await.expect(201);
    world.set_max_partition_size("10").await;
    overflows(put("2").await, "p:2");
    world.set_max_partition_size("100").await;
    put("2").await.expect(201);
    overflows(put("3").await, "p:3");
    // 0: there is none.
    world.set_max_partition_size("0").await;
    put("3").await.expect(201);
    assert_eq!(world.get(&admin(), MAX_PARTITION_SIZE).await.expect(200), "0");
    for wrong in ["-1", "10 GiB", "infinity", ""] {
        assert_eq!(world.put(&admin(), MAX_PARTITION_SIZE, json!(wrong)).await.status, 400, "{wrong}");
    }
    world.set_max_partition_size("10").await;
    overflows(put("4").await, "p:4");
    assert_eq!(world.send(&admin(), "DELETE", MAX_PARTITION_SIZE, None).await.expect(200), "10");
    put("4").await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_without_partitions_have_none() {
    let world = World::new().await;
    world.open_db("plain").await;
    world.app("notes").await;
    let ann = user("ann", &[]);
    world.put(&ann, "/notes--me/p:1", json!({"access": {"read": ["user:ann"]}})).await.expect(201);
    for path in [
        "/plain/_partition/p",
        "/plain/_partition/p/_all_docs",
        "/notes--me/_partition/p",
        "/notes--me/_partition/p/_all_docs",
    ] {
        refused(world.get(&ann, path).await, "bad_request", "database is not partitioned");
    }
    // Who may not read the whole learns nothing, not even that.
    assert_eq!(world.get(&ann, "/notes/_partition/p").await.status, 403);
    refused(world.get(&admin(), "/notes/_partition/p").await, "bad_request", "not partitioned");
    for path in ["/plain/_all_docs?partition=p", "/notes--me/_all_docs?partition=p"] {
        refused(world.get(&ann, path).await, "query_parse_error", "`partition` parameter is not supported");
    }
    let query = json!({"selector": {}, "partition": "p"});
    refused(world.post(&ann, "/plain/_find", query).await, "query_parse_error", "`partition`");
    let design = json!({"options": {"partitioned": true}, "views": {"v": {"map": "function (doc) { emit(1); }"}}});
    let reason = "partitioned option cannot be true in a non-partitioned database.";
    for db in ["plain", "notes"] {
        refused(world.put(&admin(), &format!("/{db}/_design/d"), design.clone()).await, "invalid_design_doc", reason);
    }
    let index = json!({"index": {"fields": ["n"]}, "partitioned": true});
    refused(world.post(&admin(), "/plain/_index", index).await, "invalid_design_doc", reason);
    // By replication it can come: then it is a view like others.
    let mut came = design.clone();
    (came["_id"], came["_rev"]) = (json!("_design/d"), json!("1-0123456789abcdef0123456789abcdef"));
    world.post(&admin(), "/plain/_bulk_docs", json!({"new_edits": false, "docs": [came]})).await.expect(201);
    world.get(&ann, "/plain/_design/d/_view/v").await.expect(200);
    refused(
        world.get(&ann, "/plain/_design/d/_view/v?partition=p").await,
        "query_parse_error",
        "not supported in this design doc",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn all_docs_of_a_partition() {
    let world = World::new().await;
    world.partitioned("parts").await;
    world.fill("parts").await;
    let ann = user("ann", &[]);
    let all = world.get(&ann, "/parts/_partition/foo/_all_docs").await.expect(200);
    assert_eq!((&all["total_rows"], &all["offset"]), (&json!(20), &json!(0)));
    assert_eq!(ids_of(&all), numbered("foo", 1..=20));
    assert_eq!(world.rows("/parts/_all_docs?partition=foobar").await, ["foobar:01"]);
    assert_eq!(world.rows("/parts/_partition/none/_all_docs").await, Vec::<String>::new());
    for (query, expected) in [
        ("limit=3&skip=2", numbered("foo", 3..=5)),
        ("descending=true&limit=2", numbered("foo", [20, 19])),
        ("startkey=\"foo:18\"", numbered("foo", 18..=20)),
        ("startkey=\"a\"&endkey=\"foo:02\"", numbered("foo", 1..=2)),
        ("endkey=\"zzz\"&descending=false&limit=1", numbered("foo", [1])),
        ("startkey=\"bar:01\"&endkey=\"bar:20\"", Vec::new()),
        ("key=\"foo:07\"", numbered("foo", [7])),
        ("key=\"bar:07\"", Vec::new()),
        ("startkey=\"foo:03\"&endkey=\"foo:01\"&descending=true&inclusive_end=false", numbered("foo", [3, 2])),
    ] {
        let path = format!("/parts/_partition/foo/_all_docs?{}", query.replace('"', "%22"));
        assert_eq!(world.rows(&path).await, expected, "{query}");
    }
    let answer = world.get(&ann, "/parts/_partition/foo/_all_docs?startkey=%22foo:04%22&limit=1").await.expect(200);
    assert_eq!(answer["offset"], 3);
    // A key of another partition is none.
    let keys = json!({"keys": ["foo:02", "bar:02"], "partition": "bar"});
    let answer = world.post(&ann, "/parts/_partition/foo/_all_docs", keys).await.expect(200);
    assert_eq!((&answer["rows"][0]["id"], &answer["rows"][1]["error"]), (&json!("foo:02"), &json!("not_found")));
    let queries = json!({"queries": [{"limit": 1}, {"key": "bar:02"}]});
    let answer = world.post(&ann, "/parts/_partition/foo/_all_docs/queries", queries).await.expect(200);
    assert_eq!(ids_of(&answer["results"][0]), numbered("foo", [1]));
    assert_eq!(ids_of(&answer["results"][1]), Vec::<String>::new());
    refused(world.get(&ann, "/parts/_partition/foo/_all_docs?partition=bar").await, "bad_request", "Conflicting value");
    let docs = world.get(&ann, "/parts/_partition/foo/_all_docs?include_docs=true&limit=1").await.expect(200);
    assert_eq!(docs["rows"][0]["doc"]["n"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn views_are_asked_one_partition_at_a_time_unless_they_say_otherwise() {
    let world = World::new().await;
    let db = world.partitioned("parts").await;
    world.fill("parts").await;
    let ann = user("ann", &[]);
    let count = "function (keys, values, again) { return again ? sum(values) : values.length; }";
    let views = json!({
        "n": {"map": "function (doc) { if (doc.n) emit(doc.n, null); }"},
        "group": {"map": "function (doc) { if (doc.group) emit(doc.group, 1); }", "reduce": "_sum"},
        "own": {"map": "function (doc) { if (doc.group) emit(doc.group, 1); }", "reduce": count},
    });
    world.put(&admin(), "/parts/_design/p", json!({"views": views})).await.expect(201);
    world
        .put(&admin(), "/parts/_design/g", json!({"views": views, "options": {"partitioned": false}}))
        .await
        .expect(201);
    let with_design = json!({"partitioned": true, "include_design": true});
    world.put(&admin(), "/parts/_design/i", json!({"views": views, "options": with_design})).await.expect(201);
    let view = "/parts/_partition/foo/_design/p/_view/n";
    let all = world.get(&ann, view).await.expect(200);
    assert_eq!((&all["total_rows"], &all["offset"]), (&json!(20), &json!(0)));
    assert_eq!(ids_of(&all), numbered("foo", 1..=20));
    for (query, expected) in [
        ("limit=2&skip=3", numbered("foo", 4..=5)),
        ("descending=true&limit=2", numbered("foo", [20, 19])),
        ("startkey=18", numbered("foo", 18..=20)),
        ("startkey=3&endkey=1&descending=true", numbered("foo", [3, 2, 1])),
        ("key=7&include_docs=true", numbered("foo", [7])),
        ("keys=[9,7,99]", numbered("foo", [9, 7])),
        ("startkey=\"foo:12\"", Vec::new()),
        ("startkey=5&startkey_docid=foo:06&limit=1", numbered("foo", [6])),
    ] {
        assert_eq!(world.rows(&format!("{view}?{}", query.replace('"', "%22"))).await, expected, "{query}");
    }
    assert_eq!(world.get(&ann, &format!("{view}?startkey=4&limit=1")).await.expect(200)["offset"], 3);
    assert_eq!(world.get(&ann, &format!("{view}?startkey=18&descending=true&limit=1")).await.expect(200)["offset"], 2);
    assert_eq!(world.rows("/parts/_design/p/_view/n?partition=foobar").await, ["foobar:01"]);
    assert_eq!(world.rows("/parts/_partition/foo/_design/i/_view/n").await, numbered("foo", 1..=20));
    for name in ["group", "own"] {
        let reduced =
            async |query: &str| world.get(&ann, &format!("/parts/_partition/bar/_design/p/_view/{name}{query}")).await;
        assert_eq!(reduced("").await.expect(200)["rows"], json!([{"key": null, "value": 20}]));
        assert_eq!(reduced("?group_level=1").await.expect(200)["rows"], json!([{"key": ["x"], "value": 20}]));
        let groups = json!([{"key": ["x", "one"], "value": 6}, {"key": ["x", "two"], "value": 14}]);
        for query in ["?group=true", "?group_level=2"] {
            assert_eq!(reduced(query).await.expect(200)["rows"], groups);
        }
        let keys = reduced("?group=true&keys=[[%22x%22,%22one%22]]").await.expect(200);
        assert_eq!(keys["rows"], json!([{"key": ["x", "one"], "value": 6}]));
    }
    // Each kind is asked in its own way.
    refused(
        world.get(&ann, "/parts/_design/p/_view/n").await,
        "query_parse_error",
        "mandatory for queries to this view.",
    );
    let of_global = world.get(&ann, "/parts/_partition/foo/_design/g/_view/n").await;
    refused(of_global, "query_parse_error", "is not supported in this design doc");
    assert_eq!(world.rows("/parts/_design/g/_view/n").await.len(), 41);
    refused(world.get(&ann, &format!("{view}?partition=bar")).await, "bad_request", "Conflicting value");
    let queries = json!({"queries": [{"key": 1}, {"key": 2, "partition": "bar"}]});
    let several = world.post(&ann, &format!("{view}/queries"), queries).await.expect(200);
    assert_eq!(ids_of(&several["results"][1]), numbered("foo", [2]));
    assert_eq!(world.get(&ann, "/parts/_partition/foo/_design/p/_view/none").await.status, 404);
    // Indexes follow changes and purges.
    let rev = world.get(&ann, "/parts/foo:20").await.expect(200)["_rev"].clone();
    world.post(&admin(), "/parts/_purge", json!({"foo:20": [rev]})).await.expect(201);
    world.put(&ann, "/parts/foo:00", json!({"n": 99})).await.expect(201);
    assert_eq!(world.rows(&format!("{view}?startkey=19")).await, ["foo:19", "foo:00"]);
    verify(&db);
}

#[tokio::test(flavor = "multi_thread")]
async fn find_looks_at_one_partition_with_its_own_indexes() {
    let world = World::new().await;
    world.partitioned("parts").await;
    world.fill("parts").await;
    let ann = user("ann", &[]);
    let find = async |path: &str, query: Value| world.post(&ann, &format!("/parts{path}"), query).await;
    let range = json!({"selector": {"n": {"$gte": 6, "$lt": 11}}});
    let expected = numbered("foo", 6..=10);
    let name = async |path: &str, query: &Value| find(path, query.clone()).await.expect(200)["index"]["name"].clone();
    // Without an index, by ids, then with one of each kind.
    assert_eq!(ids_of(&find("/_partition/foo/_find", range.clone()).await.expect(200)), expected);
    let ids = json!({"selector": {"_id": {"$in": ["foo:03", "bar:03"]}}});
    assert_eq!(ids_of(&find("/_partition/foo/_find", ids).await.expect(200)), numbered("foo", [3]));
    let ids = json!({"selector": {"_id": {"$gt": "foo:18"}}, "sort": [{"_id": "desc"}]});
    assert_eq!(ids_of(&find("/_partition/foo/_find", ids).await.expect(200)), numbered("foo", [20, 19]));
    let index = |name: &str, more: Value| {
        let mut index = json!({"index": {"fields": ["n"]}, "name": name, "ddoc": name});
        index.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        index
    };
    let make = async |body: Value| world.post(&admin(), "/parts/_index", body).await;
    make(index("global", json!({"partitioned": false}))).await.expect(200);
    assert_eq!(name("/_explain", &range).await, "global");
    assert_eq!(name("/_partition/foo/_explain", &range).await, "_all_docs");
    let sorted = json!({"selector": {"n": {"$gt": 0}}, "sort": ["n"]});
    let none = find("/_partition/foo/_find", sorted.clone()).await;
    refused(none, "no_usable_index", "No partitioned index exists for this sort");
    make(index("parts", json!({}))).await.expect(200);
    assert_eq!(name("/_explain", &range).await, "global");
    assert_eq!(name("/_partition/foo/_explain", &range).await, "parts");
    let told = find("/_partition/foo/_explain", range.clone()).await.expect(200);
    assert_eq!(
        (&told["partitioned"], &told["opts"]["partition"], &told["mrargs"]["partition"]),
        (&json!(true), &json!("foo"), &json!("foo"))
    );
    assert_eq!(find("/_explain", range.clone()).await.expect(200)["mrargs"]["partition"], Value::Null);
    for (path, partition) in [("/_partition/foo/_find", "foo"), ("/_partition/bar/_find", "bar")] {
        let found = find(path, range.clone()).await.expect(200);
        assert_eq!(ids_of(&found), numbered(partition, 6..=10));
        assert!(found.get("warning").is_none(), "{found}");
        let mut page = range.clone();
        page["limit"] = json!(3);
        let first = find(path, page.clone()).await.expect(200);
        page["bookmark"] = first["bookmark"].clone();
        let second = find(path, page).await.expect(200);
        assert_eq!((ids_of(&first), ids_of(&second)), (numbered(partition, 6..=8), numbered(partition, 9..=10)));
        let mut stats = sorted.clone();
        stats["execution_stats"] = json!(true);
        let found = find(path, stats).await.expect(200);
        assert_eq!(ids_of(&found), numbered(partition, 1..=20));
        assert_eq!(found["execution_stats"]["total_keys_examined"], 20, "other partitions are not looked at");
    }
    let mut by_body = range.clone();
    by_body["partition"] = json!("bar");
    assert_eq!(ids_of(&find("/_find", by_body.clone()).await.expect(200)), numbered("bar", 6..=10));
    refused(find("/_partition/foo/_find", by_body).await, "invalid_partition", "another one");
    assert_eq!(ids_of(&find("/_find", range).await.expect(200)).len(), 10);
    let told = world.get(&ann, "/parts/_index").await.expect(200);
    let kinds: Vec<_> =
        told["indexes"].as_array().expect("a list").iter().map(|one| one["partitioned"].clone()).collect();
    assert_eq!(kinds, [Value::Null, json!(false), json!(true)]);
    refused(
        make(index("parts", json!({"name": "x", "partitioned": false}))).await,
        "partitioned_option_mismatch",
        "does not match",
    );
    assert_eq!(make(index("parts", json!({}))).await.expect(200)["result"], "exists");
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_makes_and_keeps_to_partitions_and_a_backup_tells_them() {
    let world = World::new().await;
    world.partitioned("parts").await;
    world.fill("parts").await;
    world.put(&admin(), "/parts/_design/d", json!({"views": {}})).await.expect(201);
    let params = json!({"partitioned": true});
    let wish = json!({"source": "parts", "target": "copy", "create_target": true, "create_target_params": params});
    let done = world.post(&admin(), "/_replicate", wish).await.expect(200);
    assert_eq!(done["ok"], true);
    assert_eq!(world.get(&admin(), "/copy").await.expect(200)["props"], json!({"partitioned": true}));
    assert_eq!(world.get(&admin(), "/copy/_partition/foo").await.expect(200)["doc_count"], 20);
    // What has no partition stays behind, and is told of.
    world.open_db("plain").await;
    for id in ["none", "p:1"] {
        world.put(&admin(), &format!("/plain/{id}"), json!({})).await.expect(201);
    }
    let done = world.post(&admin(), "/_replicate", json!({"source": "plain", "target": "copy"})).await.expect(200);
    assert_eq!(done["history"][0]["doc_write_failures"], 1, "{done}");
    assert_eq!(world.get(&admin(), "/copy/_partition/p").await.expect(200)["doc_count"], 1);
    verify(&world.pod.store.db("copy").expect("it is here"));
    let frozen = world.pod.store.freeze().expect("a moment");
    let databases = frozen.databases().expect("databases");
    let kinds: Vec<_> =
        databases.iter().filter(|db| !db.name.starts_with('_')).map(|db| (&*db.name, db.partitioned)).collect();
    assert_eq!(kinds, [("copy", true), ("parts", true), ("plain", false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_of_one_name_with_partitions_and_without_do_not_mix() {
    let world = World::new().await;
    for name in ["full", "empty"] {
        world.send(&admin(), "PUT", &format!("/{name}"), None).await.expect(201);
        if name == "full" {
            world.put(&admin(), "/full/none", json!({})).await.expect(201);
        }
        // The other side of a split has made it with partitions.
        let doc = json!({
            "_id": format!("db:{name}"), "_rev": "2-ffff", "_revisions": {"start": 2, "ids": ["ffff", "fffe"]},
            "app": false, "partitioned": true, "instance": "22222222", "gone": []
        });
        let body = json!({"new_edits": false, "docs": [doc]});
        world.post(&adea_ring::Identity::system(), "/_ring/_bulk_docs", body).await.expect(201);
        let expected = if name == "full" { Ensured::NotYet } else { Ensured::Here };
        assert_eq!(
            ensure_from(&world.pod, name, Some("22222222")).await.expect("the store answers"),
            expected,
            "{name}"
        );
    }
    assert_eq!(world.get(&admin(), "/full").await.expect(200)["props"], json!({}));
    assert!(world.pod.ring.records.mixed.lock().contains("full"));
    assert_eq!(world.get(&admin(), "/empty").await.expect(200)["props"], json!({"partitioned": true}));
}
