//! A document that one may not read and a document that isn't there give the same answer, whatever is asked.

mod harness;

use adea_ring::Identity;
use axum::body::Body;
use harness::{World, admin, user};
use http_body_util::BodyExt;
use rean::route::{self, Request};
use serde_json::{Value, json};

/// Same length, so that nothing differs but the letters.
const HIDDEN: &str = "hidden";
const ABSENT: &str = "absent";

struct Seen {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

struct Ask<'a> {
    method: &'a str,
    path: String,
    headers: Vec<(&'a str, String)>,
    body: Option<Value>,
}

fn ask<'a>(method: &'a str, path: impl Into<String>) -> Ask<'a> {
    Ask { method, path: path.into(), headers: Vec::new(), body: None }
}

impl<'a> Ask<'a> {
    fn with(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn json(mut self, body: Value) -> Self {
        self.body = Some(body);
        self.with("content-type", "application/json")
    }

    async fn send(&self, world: &World, who: &Identity) -> Seen {
        let mut request = http::Request::builder().method(self.method).uri(&self.path);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let body = self.body.as_ref().map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = Request::from_http(request.body(body).expect("a request")).expect("a path");
        let answer = route::dispatch(&world.pod, who, request).await;
        let response = answer.unwrap_or_else(|error| error.into_response());
        let status = response.status().as_u16();
        let mut headers: Vec<_> = response
            .headers()
            .iter()
            .map(|(name, value)| {
                let text = String::from_utf8_lossy(value.as_bytes());
                (name.to_string(), without_boundary(&text))
            })
            .collect();
        headers.sort();
        let bytes = response.into_body().collect().await.expect("a whole body");
        let body = without_boundary(&String::from_utf8_lossy(&bytes.to_bytes()));
        Seen { status, headers, body }
    }
}

/// Boundaries are random: 32 hexadecimal digits after dashes or a quote.
fn without_boundary(text: &str) -> String {
    let mut out = String::new();
    let mut run = String::new();
    for character in text.chars().chain(['\n']) {
        if character.is_ascii_hexdigit() {
            run.push(character);
            continue;
        }
        if run.len() == 32 && !out.ends_with("1-") {
            run = "boundary".to_owned();
        }
        out.push_str(&run);
        run.clear();
        out.push(character);
    }
    out
}

/// An app with one document, which only ann may read; it has an attachment and an older revision.
async fn app() -> (World, String, String) {
    let world = World::new().await;
    world.app("notes").await;
    let old = world
        .put(
            &admin(),
            &format!("/notes/{HIDDEN}"),
            json!({"secret": 1, "access": {"read": ["user:ann"]}, "_attachments": {"f": {"content_type": "text/plain", "data": "c2VjcmV0"}}}),
        )
        .await
        .expect(201)["rev"]
        .as_str()
        .expect("a revision")
        .to_owned();
    let new = world
        .put(
            &admin(),
            &format!("/notes/{HIDDEN}"),
            json!({"_rev": old, "secret": 2, "access": {"read": ["user:ann"]}, "_attachments": {"f": {"stub": true}}}),
        )
        .await
        .expect(201)["rev"]
        .as_str()
        .expect("a revision")
        .to_owned();
    (world, old, new)
}

/// Everything that can be asked about one document.
fn asks<'a>(db: &str, id: &str, old: &str, new: &str) -> Vec<Ask<'a>> {
    let doc = format!("/{db}/{id}");
    let mut asks = Vec::new();
    for query in [
        String::new(),
        format!("?rev={new}"),
        format!("?rev={old}"),
        format!("?rev={old}&latest=true"),
        "?conflicts=true&revs=true&revs_info=true&meta=true&local_seq=true".to_owned(),
        "?attachments=true".to_owned(),
        "?open_revs=all".to_owned(),
        format!("?open_revs=[%22{new}%22,%22{old}%22]"),
        format!("?open_revs=[%22{old}%22]&latest=true&revs=true"),
    ] {
        for method in ["GET", "HEAD"] {
            asks.push(ask(method, format!("{doc}{query}")).with("accept", "application/json"));
            asks.push(ask(method, format!("{doc}{query}")));
            asks.push(ask(method, format!("{doc}{query}")).with("if-none-match", format!("\"{new}\"")));
        }
        asks.push(ask("COPY", format!("{doc}{query}")).with("destination", "copied"));
    }
    for query in [String::new(), format!("?rev={new}"), format!("?rev={old}")] {
        asks.push(ask("GET", format!("{doc}/f{query}")));
        asks.push(ask("GET", format!("{doc}/f{query}")).with("range", "bytes=0-1"));
        asks.push(ask("GET", format!("{doc}/f{query}")).with("if-none-match", "*"));
        asks.push(ask("GET", format!("{doc}/none{query}")));
        asks.push(ask("DELETE", format!("{doc}/f{query}")));
        asks.push(ask("DELETE", format!("{doc}{query}")));
    }
    for rev in [new, old] {
        asks.push(ask("DELETE", doc.clone()).with("if-match", rev));
        asks.push(ask("PUT", format!("{doc}/f?rev={rev}")).with("content-type", "text/plain"));
        let edit = json!({"_rev": rev, "access": {"read": ["user:bob"]}});
        asks.push(ask("PUT", doc.clone()).json(edit));
        let stub = json!({"_rev": rev, "access": {"read": ["user:bob"]}, "_attachments": {"f": {"stub": true}}});
        asks.push(ask("PUT", doc.clone()).json(stub.clone()));
        let mut row = stub;
        row["_id"] = json!(id);
        asks.push(ask("POST", format!("/{db}/_bulk_docs")).json(json!({"docs": [row]})));
        let wanted = json!({"docs": [{"id": id, "rev": rev}, {"id": id}]});
        for query in ["", "?revs=true&latest=true&attachments=true"] {
            let path = format!("/{db}/_bulk_get{query}");
            asks.push(ask("POST", path.clone()).json(wanted.clone()));
            asks.push(ask("POST", path).json(wanted.clone()).with("accept", "multipart/mixed"));
        }
    }
    asks.push(ask("POST", format!("/{db}/_revs_diff")).json(json!({id: [new, old, "3-abc"]})));
    asks.push(ask("POST", format!("/{db}/_missing_revs")).json(json!({id: [new, old, "3-abc"]})));
    let keys = json!({"keys": [id], "include_docs": true});
    asks.push(ask("POST", format!("/{db}/_all_docs")).json(keys.clone()));
    asks.push(ask("POST", format!("/{db}/_all_docs/queries")).json(json!({"queries": [keys]})));
    asks.push(ask("GET", format!("/{db}/_all_docs?key=%22{id}%22&include_docs=true")));
    asks
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_document_and_a_missing_one_look_the_same() {
    let (world, old, new) = app().await;
    for who in [user("bob", &["staff"]), Identity::anonymous()] {
        for db in ["notes--me", "notes"] {
            let hidden = asks(db, HIDDEN, &old, &new);
            let absent = asks(db, ABSENT, &old, &new);
            for (hidden, absent) in hidden.iter().zip(&absent) {
                let there = hidden.send(&world, &who).await;
                let not = absent.send(&world, &who).await;
                let what = format!("{} {} {:?}", hidden.method, hidden.path, hidden.body);
                assert_eq!(there.status, not.status, "{what}: {}", there.body);
                assert_eq!(there.body.replace(HIDDEN, ABSENT), not.body, "{what}");
                assert_eq!(there.headers, not.headers, "{what}");
                assert!(!there.body.contains("c2Vj"), "{what}");
            }
        }
    }
    // Nothing has been changed by all that.
    let doc = world.get(&admin(), &format!("/notes/{HIDDEN}")).await;
    assert_eq!(doc.expect(200)["_rev"], new);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_revision_is_for_those_who_could_read_it_then_and_now() {
    let world = World::new().await;
    world.app("notes").await;
    let put = async |rev: Option<&str>, readers: &[&str], data: &str| {
        let mut doc = json!({"access": {"read": readers}, "v": data, "_attachments": {"f": {"content_type": "text/plain", "data": data}}});
        if let Some(rev) = rev {
            doc["_rev"] = json!(rev);
        }
        let written = world.put(&admin(), "/notes/x", doc).await.expect(201);
        written["rev"].as_str().expect("a revision").to_owned()
    };
    let first = put(None, &["user:ann"], "YW5u").await;
    let second = put(Some(&first), &["user:bob", "user:ann"], "Ym90aA==").await;
    let third = put(Some(&second), &["user:bob"], "Ym9i").await;
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    let reads = async |who: &Identity, rev: &str| {
        let by_rev = ask("GET", format!("/notes--me/x?rev={rev}")).send(&world, who).await;
        let by_open = ask("GET", format!("/notes--me/x?open_revs=[%22{rev}%22]"))
            .with("accept", "application/json")
            .send(&world, who)
            .await;
        let by_bulk = ask("POST", "/notes--me/_bulk_get")
            .json(json!({"docs": [{"id": "x", "rev": rev}]}))
            .send(&world, who)
            .await;
        let file = ask("GET", format!("/notes--me/x/f?rev={rev}")).send(&world, who).await;
        let all = [
            by_rev.status == 200,
            by_open.body.contains("\"ok\""),
            by_bulk.body.contains("\"ok\""),
            file.status == 200,
        ];
        assert!(all.iter().all(|one| *one == all[0]), "{rev}: {all:?}");
        all[0]
    };
    let shown = async |who: &Identity| {
        let doc = world.get(who, "/notes--me/x").await;
        (doc.status == 200).then(|| doc.json()["_rev"].as_str().expect("text").to_owned())
    };
    // Bob reads what he could read at each time; ann, who can't read the document any more, reads nothing.
    let now = shown(&bob).await.expect("bob reads it");
    assert!(reads(&bob, &now).await);
    assert!(!reads(&bob, &first).await, "it was ann's alone");
    assert!(!reads(&ann, &first).await);
    assert!(!reads(&ann, &second).await);
    assert!(!reads(&ann, &third).await);
    assert_eq!(shown(&ann).await, None);
    let info = world.get(&bob, "/notes--me/x?revs_info=true").await.expect(200);
    let statuses: Vec<&str> = info["_revs_info"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|one| one["rev"] == json!(first))
        .filter_map(|one| one["status"].as_str())
        .collect();
    assert!(statuses.iter().all(|status| *status == "missing"), "{info}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_writes_to_the_aggregate_and_reads_nothing_of_it() {
    let world = World::new().await;
    world.app("notes").await;
    let ann = user("ann", &[]);
    let doc = json!({"access": {"read": ["user:ann", "user:bob"]}, "v": 1});
    let first = world.put(&ann, "/notes/x", doc).await.expect(201)["rev"].clone();
    let rev = first.as_str().expect("a revision");
    for path in ["x", "y", "x?open_revs=all", "x/f", "_all_docs", "_changes", "_local/x", "_local_docs", "_design_docs"]
    {
        let seen = ask("GET", format!("/notes/{path}")).send(&world, &ann).await;
        assert_eq!(seen.status, 403, "{path}: {}", seen.body);
    }
    for path in ["_bulk_get", "_revs_diff", "_missing_revs", "_all_docs"] {
        let seen = ask("POST", format!("/notes/{path}")).json(json!({})).send(&world, &ann).await;
        assert_eq!(seen.status, 403, "{path}: {}", seen.body);
    }
    let copied = ask("COPY", "/notes/x").with("destination", "z").send(&world, &ann).await;
    assert_eq!(copied.status, 403);
    let put = ask("PUT", format!("/notes/x/f?rev={rev}")).with("content-type", "text/plain");
    let put = put.send(&world, &ann).await;
    assert_eq!(put.status, 201, "{}", put.body);
    let shown = world.get(&user("bob", &[]), "/notes--me/x").await.expect(200);
    assert_eq!((&shown["v"], &shown["_attachments"]["f"]["length"]), (&json!(1), &json!(0)));
    let rev = shown["_rev"].as_str().expect("a revision");
    let copied = ask("COPY", "/notes--me/x").with("destination", "copy").send(&world, &user("bob", &[])).await;
    assert_eq!(copied.status, 201, "{}", copied.body);
    assert_eq!(ask("GET", "/notes--me/copy/f").send(&world, &ann).await.status, 200);
    assert_eq!(ask("DELETE", format!("/notes/x/f?rev={rev}")).send(&world, &ann).await.status, 200);
    assert_eq!(ask("DELETE", format!("/notes/x?rev={rev}")).send(&world, &ann).await.status, 409);
    let rev = world.get(&ann, "/notes--me/x").await.expect(200)["_rev"].clone();
    let path = format!("/notes/x?rev={}", rev.as_str().expect("a revision"));
    assert_eq!(ask("DELETE", path).send(&world, &ann).await.status, 200);
    assert_eq!(world.get(&ann, "/notes--me/x").await.expect(404)["reason"], "deleted");
    assert_eq!(world.get(&user("eve", &[]), "/notes--me/x").await.expect(404)["reason"], "missing");
}
