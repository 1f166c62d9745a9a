//! What a stranger may send as body: too large, broken, compressed beyond reason. Never a fault of the server.

mod harness;

use std::io::Write as _;

use axum::body::Body;
use flate2::Compression;
use flate2::write::GzEncoder;
use harness::{World, admin};
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, prop_assert, proptest};
use proptest::test_runner::TestRunner;
use rean::list_args::ListArgs;
use rean::route::{self, Query, Request};

/// Sends bytes as they are; the status and the text of the answer.
async fn send(world: &World, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> (u16, String) {
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = Request::from_http(request.body(Body::from(body)).expect("a request")).expect("a path");
    let answer = route::dispatch(&world.pod, &admin(), request).await;
    let response = answer.unwrap_or_else(|error| error.into_response());
    let status = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 24).await.expect("a whole body");
    (status, String::from_utf8_lossy(&bytes).into_owned())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

const JSON: (&str, &str) = ("content-type", "application/json");
const GZIP: (&str, &str) = ("content-encoding", "gzip");

#[tokio::test(flavor = "multi_thread")]
async fn a_small_body_that_unpacks_to_a_huge_one_is_refused() {
    let world = World::new().await;
    world.open_db("db").await;
    let bomb = gzip(&vec![b' '; 80 << 20]);
    assert!(bomb.len() < 100_000);
    let (status, text) = send(&world, "PUT", "/db/a", &[JSON, GZIP], bomb.clone()).await;
    assert_eq!(status, 413, "{text}");
    let (status, _) = send(&world, "POST", "/db/_bulk_docs", &[JSON, GZIP], bomb).await;
    assert_eq!(status, 413);
    let cut = gzip(br#"{"a":1}"#);
    let (status, _) = send(&world, "PUT", "/db/a", &[JSON, GZIP], cut[..cut.len() - 9].to_vec()).await;
    assert_eq!(status, 400);
    let (status, _) = send(&world, "PUT", "/db/a/f", &[GZIP], b"no gzip".to_vec()).await;
    assert_eq!(status, 400);
    world.get(&admin(), "/db/a").await.expect(404);
    let (status, _) = send(&world, "PUT", "/db/a/f", &[GZIP], gzip(b"plain")).await;
    assert_eq!(status, 201);
    let (_, text) = send(&world, "GET", "/db/a/f", &[], Vec::new()).await;
    assert_eq!(text, "plain");
}

fn related(document: &str, parts: &[(&str, &str)], end: &str) -> Vec<u8> {
    let mut out = format!("--b\r\nContent-Type: application/json\r\n\r\n{document}");
    for (name, content) in parts {
        out += &format!("\r\n--b\r\nContent-Disposition: attachment; filename=\"{name}\"\r\n\r\n{content}");
    }
    out += end;
    out.into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_multipart_document_is_whole_or_refused() {
    let world = World::new().await;
    world.open_db("db").await;
    let kind = [("content-type", "multipart/related; boundary=\"b\"")];
    let doc = r#"{"_attachments":{"x":{"follows":true},"y":{"follows":true}}}"#;
    let (one, two) = (("x", "ex"), ("y", "why"));
    let put = async |body: Vec<u8>| send(&world, "PUT", "/db/a", &kind, body).await.0;
    assert_eq!(put(related(doc, &[one], "\r\n--b--")).await, 400, "an attachment is missing");
    assert_eq!(put(related(doc, &[one, two, ("z", "?")], "\r\n--b--")).await, 400, "one too many");
    assert_eq!(put(related(doc, &[one, two], "")).await, 400, "cut off");
    assert_eq!(put(related("{", &[one, two], "\r\n--b--")).await, 400, "no document");
    assert_eq!(put(b"--b--".to_vec()).await, 400, "nothing");
    assert_eq!(put(related(&" ".repeat(9_000_000), &[], "\r\n--b--")).await, 413, "too large");
    world.get(&admin(), "/db/a").await.expect(404);
    // The other way round: names tell which is which.
    assert_eq!(put(related(doc, &[two, one], "\r\n--b--")).await, 201);
    for (name, content) in [one, two] {
        let (_, text) = send(&world, "GET", &format!("/db/a/{name}"), &[], Vec::new()).await;
        assert_eq!(text, content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_attachments_come_back_whole_in_every_form() {
    let world = World::new().await;
    world.open_db("db").await;
    // Not a whole number of pieces, nor of Base64's groups.
    let bytes: Vec<u8> = (0..300_001u32).map(|n| n.wrapping_mul(n).wrapping_mul(97).to_be_bytes()[0]).collect();
    let (status, _) = send(&world, "PUT", "/db/a/f", &[("content-type", "x/y")], bytes.clone()).await;
    assert_eq!(status, 201);
    let doc = send(&world, "GET", "/db/a?attachments=true", &[("accept", "application/json")], Vec::new()).await;
    let doc: serde_json::Value = serde_json::from_str(&doc.1).expect("JSON");
    let data = doc["_attachments"]["f"]["data"].as_str().expect("text");
    let decoded = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data);
    assert!(decoded.expect("Base64") == bytes);
    let request = http::Request::get("/db/a/f").header("range", "bytes=65530-65545").body(Body::empty());
    let request = Request::from_http(request.expect("a request")).expect("a path");
    let answer = route::dispatch(&world.pod, &admin(), request).await.expect("a part");
    assert_eq!(answer.headers()["content-length"], "16");
    let part = axum::body::to_bytes(answer.into_body(), 100).await.expect("bytes");
    assert!(part[..] == bytes[65530..65546]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_local_documents_are_bounded_and_their_own() {
    let world = World::new().await;
    world.app("notes").await;
    let (ann, bob) = (harness::user("ann", &[]), harness::user("bob", &[]));
    let path = "/notes--me/_local/x";
    world.put(&ann, path, serde_json::json!({"n": 1})).await.expect(201);
    world.get(&bob, path).await.expect(404);
    world.put(&ann, path, serde_json::json!({"s": "x".repeat(70_000)})).await.expect(413);
    for n in 1..1000 {
        world.put(&ann, &format!("/notes--me/_local/{n}"), serde_json::json!({})).await.expect(201);
    }
    world.put(&ann, "/notes--me/_local/one-more", serde_json::json!({})).await.expect(403);
    world.put(&ann, path, serde_json::json!({"n": 2})).await.expect(201);
    world.put(&bob, "/notes--me/_local/one-more", serde_json::json!({})).await.expect(201);
}

/// Whatever bytes come, no answer is a fault of the server (5xx).
#[test]
fn no_body_is_the_servers_fault() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let world = runtime.block_on(async {
        let world = World::new().await;
        world.open_db("db").await;
        world
    });
    let strategy = (vec(any::<u8>(), 0..200), "[\\[\\]{}\":,a-c_0-9-]{0,60}");
    // One world for all cases: it takes longer to open than to answer.
    let config = ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&strategy, |(bytes, text)| {
        let worst = runtime.block_on(worst_status(&world, &bytes, &text));
        prop_assert!(worst < 500, "{}", worst);
        Ok(())
    });
    outcome.expect("no status from 500 up");
}

async fn worst_status(world: &World, bytes: &[u8], text: &str) -> u16 {
    let mut worst = 0;
    for body in [bytes.to_vec(), text.as_bytes().to_vec(), format!("{{\"docs\":{text}}}").into_bytes()] {
        for path in ["_bulk_docs", "_bulk_get", "_revs_diff", "_missing_revs", "_all_docs", "_all_docs/queries", ""] {
            let (status, _) = send(world, "POST", &format!("/db/{path}"), &[JSON], body.clone()).await;
            worst = worst.max(status);
        }
        let kind = ("content-type", "multipart/related; boundary=b");
        let mut part = b"--b\r\n\r\n".to_vec();
        part.extend_from_slice(&body);
        worst = worst.max(send(world, "PUT", "/db/a", &[kind], part).await.0);
        worst = worst.max(send(world, "PUT", "/db/b", &[JSON, GZIP], body).await.0);
    }
    worst
}

proptest! {
    #[test]
    fn parameters_of_lists_never_panic(raw in "[a-z_=&%\"\\[\\]{}0-9]{0,80}", text in "[\\[\\]{}\":,a-z_0-9-]{0,80}") {
        if let Ok(query) = Query::parse(Some(&raw)) {
            let _ = ListArgs::from_query(&query);
            let _ = ListArgs::from_body(&query, text.as_bytes());
            let _ = ListArgs::queries(&query, text.as_bytes());
        }
    }

    /// A clamped range lies between the bounds, whatever was asked.
    #[test]
    fn a_clamped_range_stays_inside(start in "[_a-e]{0,4}", end in "[_a-e]{0,4}", descending in any::<bool>()) {
        let raw = format!("startkey=\"{start}\"&endkey=\"{end}\"&descending={descending}");
        let mut args = ListArgs::from_query(&Query::parse(Some(&raw)).expect("a query")).expect("good");
        args.clamp("b", "d");
        let (first, last) = (args.range.start.expect("set"), args.range.end.expect("set"));
        let (low, high) = if descending { (last, first) } else { (first, last) };
        prop_assert!(args.empty || (low.as_str() >= "b" && high.as_str() <= "d" && low <= high));
    }
}
