//! What somebody may try with queries and functions to learn of a document that they may not read: it must look like one
//! that isn't there, and whatever happens to it must change no byte of any answer.

mod harness;

use adea_ring::Identity;
use axum::body::Body;
use harness::{DEADLINE, World, admin, user};
use http_body_util::BodyExt;
use rean::route::{self, Request};
use serde_json::{Value, json};

/// Same length, and before all ids of the reader's own documents.
const HIDDEN: &str = "hidden";
const ABSENT: &str = "absent";
const HASH: &str = "0123456789abcdef0123456789abcdef";

/// Revisions of the hidden document, the newest first; in the newest it has an attachment.
type Revs = [String; 2];

/// Status, headers, body.
type Seen = (u16, Vec<String>, String);

struct Ask {
    method: &'static str,
    path: String,
    body: Option<Value>,
}

fn get(path: String) -> Ask {
    Ask { method: "GET", path, body: None }
}

fn post(path: String, body: Value) -> Ask {
    Ask { method: "POST", path, body: Some(body) }
}

impl Ask {
    async fn send(&self, world: &World, who: &Identity) -> Seen {
        let mut request = http::Request::builder().method(self.method).uri(&self.path);
        if self.body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = self.body.as_ref().map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = Request::from_http(request.body(body).expect("a request")).expect("a path");
        let response = route::dispatch(&world.pod, who, request).await.unwrap_or_else(|error| error.into_response());
        let status = response.status().as_u16();
        let mut headers: Vec<String> =
            response.headers().iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        headers.sort();
        let bytes = tokio::time::timeout(DEADLINE, response.into_body().collect()).await.expect("it ends in time");
        let text = String::from_utf8_lossy(&bytes.expect("a whole body").to_bytes()).into_owned();
        (status, headers, without_time(&text))
    }

    fn name(&self) -> String {
        let body = self.body.as_ref().map(Value::to_string).unwrap_or_default();
        format!("{} {} {body}", self.method, self.path)
    }
}

/// How long a query took is in its statistics.
fn without_time(text: &str) -> String {
    const NAME: &str = "\"execution_time_ms\":";
    let Some(at) = text.find(NAME) else { return text.to_owned() };
    let (before, rest) = text.split_at(at + NAME.len());
    format!("{before}{}", rest.trim_start_matches(|character: char| character.is_ascii_digit() || character == '.'))
}

async fn written(world: &World, id: &str, doc: Value) -> String {
    let answer = world.put(&admin(), &format!("/notes/{id}"), doc).await.expect(201);
    answer["rev"].as_str().expect("a revision").to_owned()
}

/// Views, filters and handlers of many kinds.
fn design() -> Value {
    json!({
        "views": {
            "id": {"map": "function (doc) { if (!doc.to) emit(doc._id, doc.n); }"},
            "n": {"map": "function (doc) { emit(doc.n, {r: doc._rev, c: doc._conflicts, a: doc._attachments}); }"},
            "sum": {"map": "function (doc) { emit([doc.n % 2, doc._id], doc.n || 0); }", "reduce": "_sum"},
            "stats": {"map": "function (doc) { emit([doc.n % 2, doc._id], doc.n || 0); }", "reduce": "_stats"},
            "count": {"map": "function (doc) { emit(doc.n, null); }", "reduce": "_count"},
            "about": {"map": "function (doc) { emit(doc._id, null); }", "reduce": "_approx_count_distinct"},
            "own": {"map": "function (doc) { emit(doc.n, doc._id); }",
                    "reduce": "function (keys, values, again) { return values.length && 1; }"},
            "link": {"map": "function (doc) { if (doc.to) emit(doc.to, {_id: doc.to, _rev: doc.rev}); }"},
        },
        "filters": {
            "same": "function (doc, req) { return doc._id === req.query.id; }",
            "info": "function (doc, req) { return req.info.doc_count % 2 === 0; }",
        },
        "updates": {
            "echo": "function (doc, req) { delete req.uuid; return [null, JSON.stringify([doc, req])]; }",
            "put": "function (doc, req) {
                var access = {read: ['user:ann', 'user:eve']};
                return [{_id: req.id, _rev: req.query.rev, access: access}, JSON.stringify(doc)];
            }",
        },
    })
}

/// An app in which ann has some documents, and bob one that she may not read though she knows its revisions.
async fn app() -> (World, Revs) {
    let world = World::new().await;
    world.app("notes").await;
    for name in ["ann", "bob", "eve"] {
        world.account(name, &[]).await;
    }
    world.put(&admin(), "/notes/_design/d", design()).await.expect(201);
    let index = json!({"index": {"fields": ["n"]}, "ddoc": "idx", "name": "by-n"});
    world.post(&admin(), "/notes/_index", index).await.expect(200);
    let bob = json!({"read": ["user:bob"]});
    let old = written(&world, HIDDEN, json!({"n": 2, "secret": "tiger", "access": bob})).await;
    let attached = json!({"f": {"content_type": "text/plain", "data": "c2VjcmV0"}});
    let doc = json!({"_rev": old, "n": 3, "secret": "tiger", "access": bob, "_attachments": attached});
    let new = written(&world, HIDDEN, doc).await;
    for n in 1..=4 {
        written(&world, &format!("m{n}"), json!({"n": n, "access": {"read": ["user:ann"]}})).await;
    }
    (world, [new, old])
}

/// Everything that can be asked of a database with this id in it.
fn asks(db: &str, id: &str, revs: &Revs) -> Vec<Ask> {
    let mut asks = views(db, id);
    asks.extend(finds(db, id, revs));
    asks.extend(changes(db, id));
    for path in ["", "/", &format!("/{id}?rev={}", revs[0]), &format!("/{id}/more?x=1")] {
        asks.push(post(format!("/{db}/_design/d/_update/echo{path}"), json!({"a": 1})));
    }
    for rev in revs {
        asks.push(post(format!("/{db}/_design/d/_update/put/{id}?rev={rev}"), json!({})));
    }
    for list in ["_all_docs", "_design_docs", "_local_docs"] {
        for query in [
            format!("key=%22{id}%22&include_docs=true&conflicts=true&update_seq=true"),
            format!("startkey=%22{id}%22&limit=2"),
            format!("startkey=%22{id}%22&endkey=%22{id}%22&inclusive_end=false"),
            format!("endkey=%22{id}%22&descending=true&skip=1"),
        ] {
            asks.push(get(format!("/{db}/{list}?{query}")));
        }
        asks.push(post(format!("/{db}/{list}"), json!({"keys": [id, "m1", id], "include_docs": true})));
    }
    asks
}

fn views(db: &str, id: &str) -> Vec<Ask> {
    let mut asks = Vec::new();
    let key = format!("%22{id}%22");
    for view in ["id", "about"] {
        for query in [
            format!("key={key}"),
            format!("keys=[{key},%22m1%22,{key}]"),
            format!("startkey={key}&limit=2&update_seq=true"),
            format!("startkey={key}&endkey={key}&inclusive_end=false"),
            format!("endkey={key}&descending=true"),
            format!("startkey={key}&startkey_docid={id}&skip=1"),
            format!("key={key}&startkey_docid={id}&endkey_docid={id}"),
            format!("key={key}&include_docs=true&attachments=true&conflicts=true&reduce=false"),
            format!("key={key}&sorted=false&stable=true"),
            format!("key={key}&update=false"),
            format!("key={key}&stale=update_after&descending=true"),
            format!("key={key}&group=true"),
            format!("startkey={key}&group_level=1&skip=1&limit=1"),
            format!("key={key}&reduce=true"),
            format!("key={key}&reduce=false&local_seq=true&att_encoding_info=true"),
        ] {
            asks.push(get(format!("/{db}/_design/d/_view/{view}?{query}")));
        }
        let queries = json!({"queries": [{"key": id}, {"keys": [id]}, {"start_key": id, "limit": 1}, {"stale": "ok"}]});
        asks.push(post(format!("/{db}/_design/d/_view/{view}/queries"), queries));
        asks.push(post(format!("/{db}/_design/d/_view/{view}"), json!({"keys": [id, "m2"]})));
    }
    for view in ["sum", "stats"] {
        for query in ["", "?group=true", "?group_level=1", "?group_level=1&startkey=[1]&endkey=[1,{}]", "?limit=1"] {
            let query = query.replace('{', "%7B").replace('}', "%7D");
            asks.push(get(format!("/{db}/_design/d/_view/{view}{query}")));
        }
        let range = format!("startkey=[1,{key}]&endkey=[1,{key}]");
        asks.push(get(format!("/{db}/_design/d/_view/{view}?{range}")));
        asks.push(get(format!("/{db}/_design/d/_view/{view}?{range}&reduce=false&include_docs=true")));
    }
    for view in ["n", "count", "own"] {
        for query in [
            "",
            "?key=3",
            &format!("?key=3&startkey_docid={id}"),
            "?startkey=2&endkey=4&update_seq=true",
            "?startkey=2&descending=true",
            "?skip=1&limit=1",
        ] {
            asks.push(get(format!("/{db}/_design/d/_view/{view}{query}")));
        }
        for query in ["reduce=false&include_docs=true", "reduce=false&limit=0", "group=true"] {
            asks.push(get(format!("/{db}/_design/d/_view/{view}?{query}")));
        }
    }
    asks
}

fn finds(db: &str, id: &str, revs: &Revs) -> Vec<Ask> {
    let mut asks = Vec::new();
    let selectors = [
        json!({"_id": id}),
        json!({"_id": {"$in": [id, "m1"]}}),
        json!({"_id": {"$gte": id, "$lte": id}}),
        json!({"$or": [{"_id": id}, {"n": 3}]}),
        json!({"$not": {"_id": {"$ne": id}}}),
        json!({"_id": {"$regex": format!("^{id}$")}}),
        json!({"_rev": revs[0]}),
        json!({"n": 3, "_id": {"$lt": "m"}}),
        json!({"_attachments": {"f": {"$exists": true}}}),
        json!({"access": {"read": {"$elemMatch": {"$eq": "user:bob"}}}}),
    ];
    for selector in selectors {
        for more in [
            json!({}),
            json!({"use_index": "idx", "execution_stats": true}),
            json!({"limit": 1, "skip": 1}),
            json!({"sort": [{"n": "desc"}], "fields": ["_id", "secret"]}),
            json!({"update": false, "stable": true, "conflicts": true, "r": 3}),
        ] {
            let mut query = json!({"selector": selector});
            query.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            asks.push(post(format!("/{db}/_find"), query.clone()));
            asks.push(post(format!("/{db}/_explain"), query));
        }
    }
    asks
}

fn changes(db: &str, id: &str) -> Vec<Ask> {
    let mut asks = Vec::new();
    for query in [
        format!("filter=_doc_ids&doc_ids=[%22{id}%22]"),
        format!("filter=_doc_ids&doc_ids=[%22{id}%22,%22m1%22]&style=all_docs&include_docs=true&conflicts=true"),
        format!("filter=d/same&id={id}&include_docs=true"),
        "filter=d/info&limit=2".to_owned(),
        "filter=_view&view=d/n&descending=true".to_owned(),
        "filter=_view&view=d/n&limit=1&seq_interval=1".to_owned(),
        "feed=longpoll&timeout=100&since=0&style=all_docs&attachments=true&include_docs=true".to_owned(),
    ] {
        asks.push(get(format!("/{db}/_changes?{query}")));
    }
    asks.push(post(format!("/{db}/_changes?filter=_doc_ids"), json!({"doc_ids": [id]})));
    asks.push(post(format!("/{db}/_changes?filter=_selector"), json!({"selector": {"_id": id}})));
    asks.push(post(format!("/{db}/_changes?filter=_selector&descending=true"), json!({"selector": {"n": 3}})));
    asks
}

/// The partial database that is ann's alone.
async fn part(world: &World) -> String {
    let access = world.get(&user("ann", &[]), "/notes/_access").await.expect(200);
    let partials = access["partials"].as_array().expect("a list");
    partials.first().expect("one")["db"].as_str().expect("a name").to_owned()
}

/// An answer as it is for another id. The query is in its ETag, so that one differs.
fn for_absent((status, headers, body): Seen) -> Seen {
    let headers = headers.into_iter().filter(|line| !line.starts_with("etag"));
    (status, headers.map(|line| line.replace(HIDDEN, ABSENT)).collect(), body.replace(HIDDEN, ABSENT))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_document_and_a_missing_one_look_the_same_to_all_queries() {
    let (world, revs) = app().await;
    let part = part(&world).await;
    let mut answered = 0;
    for who in [user("ann", &[]), user("eve", &[]), Identity::anonymous()] {
        for db in ["notes--me", "notes", &part] {
            for (hidden, absent) in asks(db, HIDDEN, &revs).iter().zip(&asks(db, ABSENT, &revs)) {
                let (there, not) = (hidden.send(&world, &who).await, absent.send(&world, &who).await);
                assert!(!there.2.contains("tiger") && !there.2.contains("c2Vj"), "{}", hidden.name());
                answered += usize::from(there.0 == 200);
                assert_eq!(for_absent(there), for_absent(not), "{}", hidden.name());
            }
        }
    }
    // What is refused altogether shows nothing either, but would prove nothing.
    assert!(answered > 400, "{answered}");
    assert_eq!(world.get(&admin(), "/notes/hidden").await.expect(200)["_rev"], revs[0].as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_hidden_documents_changes_no_byte() {
    let (world, revs) = app().await;
    let part = part(&world).await;
    let ann = user("ann", &[]);
    let look = async || {
        let mut seen = Vec::new();
        for db in ["notes--me", &part] {
            let mut all = asks(db, HIDDEN, &revs);
            all.extend([get(format!("/{db}")), get(format!("/{db}/_changes")), get("/notes/_access".to_owned())]);
            for ask in all {
                let answer = ask.send(&world, &ann).await;
                seen.push((ask.name(), answer));
            }
        }
        seen
    };
    let same = async |before: &[(String, Seen)], what: &str| {
        for (before, after) in before.iter().zip(&look().await) {
            assert_eq!(before, after, "{what}");
        }
    };
    let before = look().await;
    same(&before, "nothing").await;
    let docs: Vec<Value> = (0..30)
        .map(|n| json!({"_id": format!("h{n}"), "n": n % 5, "access": {"read": [format!("user:u{}", n % 7)]}}))
        .collect();
    world.post(&admin(), "/notes/_bulk_docs", json!({"docs": docs})).await.expect(201);
    same(&before, "hidden documents, and hidden partial databases").await;
    let moved = json!({"_rev": revs[0], "n": 1, "access": {"read": ["role:staff"]}});
    let rev = written(&world, HIDDEN, moved).await;
    same(&before, "a hidden move").await;
    let branch =
        json!({"_id": HIDDEN, "_rev": format!("1-{HASH}"), "n": 3, "access": {"read": ["user:bob", "user:eve"]}});
    world.post(&admin(), "/notes/_bulk_docs", json!({"docs": [branch], "new_edits": false})).await.expect(201);
    same(&before, "a hidden conflict").await;
    world.send(&admin(), "DELETE", &format!("/notes/{HIDDEN}?rev={rev}"), None).await.expect(200);
    same(&before, "a hidden deletion").await;
    let h1 = world.get(&admin(), "/notes/h1").await.expect(200)["_rev"].clone();
    world.post(&admin(), "/notes/_purge", json!({"h1": [h1]})).await.expect(201);
    same(&before, "a hidden purge").await;
    written(&world, "m9", json!({"n": 3, "access": {"read": ["user:ann"]}})).await;
    let after = look().await;
    let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert!(changed > 100, "her own document changes what she sees: {changed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_to_hidden_documents_lead_nowhere() {
    let (world, revs) = app().await;
    let ann = user("ann", &[]);
    for rev in [None, Some(&revs[0]), Some(&revs[1])] {
        for id in [HIDDEN, ABSENT] {
            let name = format!("n-{id}");
            let now = world.get(&admin(), &format!("/notes/{name}")).await;
            let mut doc = json!({"to": id, "access": {"read": ["user:ann"]}});
            if let Some(rev) = rev {
                doc["rev"] = json!(rev);
            }
            if now.status == 200 {
                doc["_rev"] = now.json()["_rev"].clone();
            }
            written(&world, &name, doc).await;
        }
        for more in ["", "&conflicts=true", "&attachments=true", "&descending=true"] {
            let path = format!("/notes--me/_design/d/_view/link?include_docs=true{more}");
            let rows = world.get(&ann, &path).await.expect(200);
            let of = |id: &str| {
                let rows = rows["rows"].as_array().expect("rows");
                rows.iter().find(|row| row["key"] == id).expect("a row").to_string()
            };
            assert_eq!(of(HIDDEN).replace(HIDDEN, ABSENT), of(ABSENT), "{rev:?} {more}");
            assert!(of(HIDDEN).contains("\"doc\":null"), "{}", of(HIDDEN));
        }
    }
}

/// Two revisions, the newest first, with these readers and with names that somebody can guess: a client gave them. Who names
/// one that the pod gave has been shown it, and is told no news by its being there.
async fn named(world: &World, id: &str, readers: [&[&str]; 2]) -> Revs {
    let hashes = ["ab".repeat(16), "cd".repeat(16)];
    for (generation, ids, readers) in [(1, &hashes[1..], readers[1]), (2, &hashes[..], readers[0])] {
        let rev = format!("{generation}-{}", ids[0]);
        let history = json!({"start": generation, "ids": ids});
        let doc = json!({
            "_id": id, "_rev": rev, "_revisions": history, "secret": "tiger", "access": {"read": readers},
        });
        let answer = world.post(&admin(), "/notes/_bulk_docs", json!({"new_edits": false, "docs": [doc]})).await;
        assert_eq!(answer.expect(201), json!([]));
    }
    [format!("2-{}", hashes[0]), format!("1-{}", hashes[1])]
}

/// Writes of one who knows the revisions of a document that they may not read.
fn writes(id: &str, revs: &Revs) -> Vec<Ask> {
    let hash = |rev: &str| rev.split_once('-').expect("a revision").1.to_owned();
    let own = json!({"read": ["user:eve"], "write": ["user:eve"]});
    let mut asks = Vec::new();
    for db in ["notes", "notes--me"] {
        let histories = [
            json!({"start": 3, "ids": [HASH, hash(&revs[0]), hash(&revs[1])]}),
            json!({"start": 2, "ids": [HASH, hash(&revs[1])]}),
            json!({"start": 2, "ids": [hash(&revs[0]), hash(&revs[1])]}),
        ];
        for history in histories {
            for deleted in [false, true] {
                let rev = format!("{}-{}", history["start"], history["ids"][0].as_str().expect("a hash"));
                let mut doc = json!({"_id": id, "_rev": rev, "_revisions": history, "access": own});
                if deleted {
                    doc["_deleted"] = json!(true);
                }
                asks.push(post(format!("/{db}/_bulk_docs"), json!({"new_edits": false, "docs": [doc]})));
                asks.push(Ask { method: "PUT", path: format!("/{db}/{id}?new_edits=false"), body: Some(doc) });
            }
        }
        for rev in revs {
            let doc = json!({"_id": id, "_rev": rev, "access": own});
            asks.push(post(format!("/{db}"), doc.clone()));
            asks.push(post(format!("/{db}/_bulk_docs"), json!({"docs": [doc, doc]})));
            asks.push(post(format!("/{db}/_design/d/_update/put/{id}?rev={rev}"), json!({})));
            asks.push(Ask { method: "DELETE", path: format!("/{db}/{id}?rev={rev}"), body: None });
            asks.push(Ask { method: "PUT", path: format!("/{db}/{id}/f?rev={rev}"), body: Some(json!(1)) });
            asks.push(Ask { method: "DELETE", path: format!("/{db}/{id}/f?rev={rev}"), body: None });
        }
        asks.push(post(format!("/{db}/_design/d/_update/put/{id}"), json!({})));
    }
    asks
}

#[tokio::test(flavor = "multi_thread")]
async fn validators_are_no_oracle_for_who_knows_the_revisions() {
    let eve = user("eve", &[]);
    for body in [
        "throw({forbidden: JSON.stringify([oldDoc, secObj, userCtx])});",
        "if (oldDoc) throw({unauthorized: 'there'}); throw({forbidden: 'none'});",
        "throw({forbidden: String(oldDoc.secret)});",
        "throw({forbidden: JSON.stringify([newDoc, oldDoc])});",
    ] {
        let (world, _) = app().await;
        let guessed = named(&world, "guess!", [&["user:bob"], &["user:bob"]]).await;
        // She could read what it was once.
        let gone = named(&world, "gone!!", [&["user:bob"], &["user:bob", "user:eve"]]).await;
        let function = format!("function (newDoc, oldDoc, userCtx, secObj) {{ {body} }}");
        world.put(&admin(), "/notes/_design/v", json!({"validate_doc_update": function})).await.expect(201);
        for (id, revs) in [("guess!", &guessed), ("gone!!", &gone)] {
            for (hidden, absent) in writes(id, revs).iter().zip(&writes(ABSENT, revs)) {
                let (there, not) = (hidden.send(&world, &eve).await, absent.send(&world, &eve).await);
                assert_eq!((there.0, there.2.replace(id, ABSENT)), (not.0, not.2), "{body}: {}", hidden.name());
                assert!(!there.2.contains("tiger"), "{body}: {}", hidden.name());
            }
            let now = world.get(&admin(), &format!("/notes/{id}?conflicts=true")).await.expect(200);
            assert_eq!((&now["_rev"], now.get("_conflicts")), (&json!(revs[0]), None));
        }
    }
}
