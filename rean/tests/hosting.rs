//! Apps' pages: files of design documents, for everyone, in the version that is a visitor's; and nothing else.

mod harness;

use adea_ring::Identity;
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use harness::{DEADLINE, World, admin, user};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use rean::route::{self, Request};
use serde_json::{Value, json};

struct Got {
    status: StatusCode,
    headers: HeaderMap,
    bytes: Bytes,
}

impl Got {
    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.bytes));
        self
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).expect("text")
    }
}

fn nobody() -> Identity {
    Identity { name: None, roles: Vec::new() }
}

async fn ask(world: &World, who: &Identity, method: &str, path: &str, headers: &[(&str, &str)]) -> Got {
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = match Request::from_http(request.body(Body::empty()).expect("a request")) {
        Ok(request) => route::dispatch(&world.pod, who, request).await,
        Err(error) => Err(error),
    };
    let (parts, body) = answer.unwrap_or_else(|error| error.into_response()).into_parts();
    let bytes = tokio::time::timeout(DEADLINE, body.collect()).await.expect("in time").expect("whole").to_bytes();
    Got { status: parts.status, headers: parts.headers, bytes }
}

async fn get(world: &World, path: &str) -> Got {
    ask(world, &nobody(), "GET", path, &[]).await
}

fn files(files: &[(&str, &str)]) -> Value {
    let stub = |text: &str| json!({"content_type": "application/octet-stream", "data": STANDARD.encode(text)});
    let named = files.iter().map(|(path, text)| (format!("www/{path}"), stub(text)));
    Value::Object(named.collect())
}

async fn version(world: &World, db: &str, name: &str, mut app: Value, content: &[(&str, &str)]) {
    app["version"] = name.into();
    let doc = json!({"app": app, "_attachments": files(content)});
    world.put(&admin(), &format!("/{db}/_design/app:{name}"), doc).await.expect(201);
}

async fn notes() -> World {
    let world = World::new().await;
    world.app("notes").await;
    world.put(&admin(), "/notes/secret", json!({"a": 1})).await.expect(201);
    let content = [
        ("index.html", "<p>one"),
        ("app.3f9a1c2b.js", "let one"),
        ("style.css", "p {}"),
        ("style.css.gz", "zipped"),
        ("_astro/a b+ü.svg", "<svg>"),
        ("docs/index.html", "docs"),
        ("fonts/x.woff2", "0123456789"),
    ];
    let app = json!({
        "fallback": "index.html", "immutable": ["fonts/"], "headers": {"Content-Security-Policy": "default-src 'self'"},
    });
    version(&world, "notes", "v1", app, &content).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_there_for_everyone_with_their_types_and_lifetimes() {
    let world = notes().await;
    let page = get(&world, "/notes/_app/").await.expect(200);
    assert_eq!((page.text(), page.header("content-type")), ("<p>one", "text/html; charset=utf-8"));
    assert_eq!((page.header("cache-control"), page.header("x-app-version")), ("no-cache", "v1"));
    assert_eq!(page.header("content-security-policy"), "default-src 'self'");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(page.header("x-adea-app-split"), "");
    let script = get(&world, "/notes/_app/app.3f9a1c2b.js").await.expect(200);
    assert_eq!(script.header("content-type"), "text/javascript; charset=utf-8");
    assert!(script.header("cache-control").contains("immutable"));
    assert!(get(&world, "/notes/_app/fonts/x.woff2").await.header("cache-control").contains("immutable"));
    assert_eq!(get(&world, "/notes/_app/style.css").await.header("cache-control"), "public, max-age=60");
    assert_eq!(get(&world, "/notes/_app/_astro/a%20b+%C3%BC.svg").await.expect(200).text(), "<svg>");
    // The same revision of the same file costs no bytes.
    let tag = page.header("etag").to_owned();
    let same = ask(&world, &nobody(), "GET", "/notes/_app/index.html", &[("if-none-match", &tag)]).await.expect(304);
    assert!(same.bytes.is_empty() && same.header("cache-control") == "no-cache");
    let head = ask(&world, &nobody(), "HEAD", "/notes/_app/", &[]).await.expect(200);
    assert!(head.bytes.is_empty() && head.header("content-length") == "6");
    for method in ["PUT", "POST", "DELETE", "OPTIONS"] {
        assert_eq!(ask(&world, &admin(), method, "/notes/_app/x", &[]).await.expect(405).header("allow"), "GET,HEAD");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_and_compressed_forms() {
    let world = notes().await;
    let path = "/notes/_app/fonts/x.woff2";
    let part = ask(&world, &nobody(), "GET", path, &[("range", "bytes=2-4")]).await.expect(206);
    assert_eq!((part.text(), part.header("content-range")), ("234", "bytes 2-4/10"));
    let behind = ask(&world, &nobody(), "GET", path, &[("range", "bytes=10-")]).await.expect(416);
    assert_eq!(behind.header("content-range"), "bytes */10");
    let style = "/notes/_app/style.css";
    let plain = get(&world, style).await.expect(200);
    assert_eq!((plain.text(), plain.header("content-encoding")), ("p {}", ""));
    let zipped = ask(&world, &nobody(), "GET", style, &[("accept-encoding", "br, gzip")]).await.expect(200);
    assert_eq!((zipped.text(), zipped.header("content-encoding")), ("zipped", "gzip"));
    assert_eq!(zipped.header("content-type"), "text/css; charset=utf-8");
    for answer in [&plain, &zipped] {
        assert!(answer.header("vary").eq_ignore_ascii_case("accept-encoding"));
    }
    assert_ne!(plain.header("etag"), zipped.header("etag"));
    let refused = ask(&world, &nobody(), "GET", style, &[("accept-encoding", "gzip;q=0")]).await.expect(200);
    assert_eq!(refused.text(), "p {}");
    let headers = [("accept-encoding", "gzip"), ("range", "bytes=0-0")];
    assert_eq!(ask(&world, &nobody(), "GET", style, &headers).await.expect(206).text(), "p");
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_and_paths_of_the_apps_own_making() {
    let world = notes().await;
    for (path, to) in [
        ("/notes/_app", "/notes/_app/"),
        ("//notes/_app?a=b", "/notes/_app/?a=b"),
        ("/notes/_app/docs", "/notes/_app/docs/"),
    ] {
        assert_eq!(get(&world, path).await.expect(308).header("location"), to);
    }
    assert_eq!(get(&world, "/notes/_app/docs/").await.expect(200).text(), "docs");
    let browser = [("accept", "text/html,application/xhtml+xml,*/*;q=0.8")];
    let route = ask(&world, &nobody(), "GET", "/notes/_app/note/5", &browser).await.expect(200);
    assert_eq!((route.text(), route.header("vary")), ("<p>one", "accept"));
    // Data and files that aren't there are not pages.
    ask(&world, &nobody(), "GET", "/notes/_app/note/5", &[("accept", "*/*")]).await.expect(404);
    ask(&world, &nobody(), "GET", "/notes/_app/gone.js", &browser).await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_of_the_database_shows() {
    let world = notes().await;
    world.app("bare").await;
    world.open_db("plain").await;
    world.account("ann", &[]).await;
    // A user's document, and one in a user's hands that looks like an app.
    let page = json!({"app": {"versions": {"v1": 1}}, "_attachments": files(&[("index.html", "mine")])});
    world.put(&user("ann", &[]), "/plain/app", page.clone()).await.expect(201);
    world.put(&user("ann", &[]), "/plain/app:v1", page).await.expect(201);
    let missing = get(&world, "/notes/_app/gone.js").await.expect(404);
    for path in [
        "/nowhere/_app/gone.js",
        "/bare/_app/",
        "/plain/_app/",
        "/plain/_app/index.html",
        "/notes--me/_app/",
        "/_users/_app/",
        "/notes/_app/secret",
        "/notes/_app/www/index.html",
        "/notes/_app/..%2fsecret",
        "/notes/_app/../secret",
        "/notes/_app/%2e%2e/secret",
        "/notes/_app/..%5Csecret",
        "/notes/_app/index.html%00",
        "/notes/_app//index.html",
        "/notes/_app/_design/app:v1",
        "/notes/_app/?_app_version=v7",
        "/nowhere/_app",
    ] {
        for who in [nobody(), user("ann", &[])] {
            let got = ask(&world, &who, "GET", path, &[]).await.expect(404);
            assert_eq!(got.bytes, missing.bytes, "{path}");
        }
    }
    world.get(&nobody(), "/notes/secret").await.expect(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_of_the_server_put_pages_there() {
    let world = World::new().await;
    world.open_db("plain").await;
    let security = json!({"admins": {"names": ["ann"], "roles": []}, "members": {"names": [], "roles": []}});
    world.put(&admin(), "/plain/_security", security).await.expect(200);
    world.account("ann", &[]).await;
    let ann = user("ann", &[]);
    let doc = json!({"app": {}, "_attachments": files(&[("index.html", "hers")])});
    world.put(&ann, "/plain/_design/other", doc.clone()).await.expect(201);
    for path in ["/plain/_design/app:v1", "/plain/_design/app"] {
        assert!(matches!(world.put(&ann, path, doc.clone()).await.status.as_u16(), 401 | 403), "{path}");
    }
    let rev = json!({"_id": "_design/app:v1", "_rev": "1-0123456789abcdef0123456789abcdef", "app": {}});
    let bulk = json!({"docs": [rev], "new_edits": false});
    assert!(world.post(&ann, "/plain/_bulk_docs", bulk).await.text.contains("error"));
    // A design document of that name that is no app is hers, as in CouchDB.
    world.put(&ann, "/plain/_design/app", json!({"views": {}})).await.expect(201);
    get(&world, "/plain/_app/").await.expect(404);
    version(&world, "plain", "v1", json!({}), &[("index.html", "ours")]).await;
    assert_eq!(get(&world, "/plain/_app/").await.expect(200).text(), "ours");
    let copy = world.get(&admin(), "/plain/_design/app:v1").await.expect(200);
    let path = format!("/plain/_design/app:v1?rev={}", copy["_rev"].as_str().expect("a revision"));
    assert!(matches!(world.send(&ann, "DELETE", &path, None).await.status.as_u16(), 401 | 403));
    for (id, app) in [("app:v2", json!({"headers": {"Set-Cookie": "a"}})), ("app", json!({"versions": {"v1": -1}}))] {
        let rev = world.get(&admin(), &format!("/plain/_design/{id}")).await.json()["_rev"].clone();
        let mut doc = json!({"app": app});
        if rev.is_string() {
            doc["_rev"] = rev;
        }
        let refused = world.put(&admin(), &format!("/plain/_design/{id}"), doc).await;
        assert!(refused.status == 400 && refused.text.contains("`app"), "{}", refused.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_side_by_side() {
    let world = notes().await;
    let content = [("index.html", "<p>two"), ("app.99887766aa.js", "let two"), ("style.css", "b {}")];
    version(&world, "notes", "v2", json!({}), &content).await;
    let routing = "/notes/_design/app";
    let first = world.put(&admin(), routing, json!({"app": {"versions": {"v1": 90, "v2": 10}}})).await.expect(201);
    let mut count = 0;
    for n in 0..2_000 {
        let who = user(&format!("user{n}"), &[]);
        // Who has no name has the proxy's number.
        let headers = [("x-adea-app-bucket", &*(n % 1_000).to_string())];
        let page = ask(&world, &nobody(), "GET", "/notes/_app/", &headers).await.expect(200);
        let style = ask(&world, &nobody(), "GET", "/notes/_app/style.css", &headers).await.expect(200);
        assert_eq!(page.header("x-app-version"), style.header("x-app-version"));
        assert_eq!((page.header("x-adea-app-split"), style.header("cache-control")), ("1", "no-cache"));
        assert!(page.header("vary").contains("Cookie"));
        let named = ask(&world, &who, "GET", "/notes/_app/", &[]).await.expect(200);
        count += usize::from(named.header("x-app-version") == "v2");
    }
    // Ten percent of two thousand; the standard deviation is 13.
    assert!((140..=260).contains(&count), "{count}");
    // Open pages of the other version go on, and a look at one is taken by name.
    for name in ["app.3f9a1c2b.js", "app.99887766aa.js"] {
        assert!(get(&world, &format!("/notes/_app/{name}")).await.expect(200).header("cache-control").contains("imm"));
    }
    assert_eq!(get(&world, "/notes/_app/?_app_version=v2").await.expect(200).text(), "<p>two");
    // All to one: a change counts with the next request.
    let rev = first["rev"].clone();
    world.put(&admin(), routing, json!({"_rev": rev, "app": {"versions": {"v2": 1}}})).await.expect(201);
    let page = get(&world, "/notes/_app/").await.expect(200);
    assert_eq!((page.text(), page.header("x-adea-app-split")), ("<p>two", ""));
    get(&world, "/notes/_app/app.3f9a1c2b.js").await.expect(200);
}
