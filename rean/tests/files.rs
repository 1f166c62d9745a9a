//! Attachments that are kept outside of the store: they read as any others do, by whom they may be read and in no other
//! way, and go when nobody has them any more.

mod harness;

use std::path::PathBuf;

use adea_ring::config::DiskConfig;
use adea_ring::{Identity, RingConfig};
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use harness::{DEADLINE, World, admin, until, user};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use md5::{Digest, Md5};
use rean::backup::format::{Reader, Record};
use rean::config::Limits;
use rean::files::sweep::{Swept, sweep};
use rean::route::{self, Request};
use serde_json::{Value, json};

const MIB: usize = 1 << 20;
/// Longer than files are kept for.
const WEEKS_S: u64 = 1_000 * 3_600;

struct Got {
    status: StatusCode,
    headers: HeaderMap,
    /// As far as it came.
    bytes: Bytes,
    whole: bool,
}

impl Got {
    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.bytes));
        self
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).expect("JSON")
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().expect("text")
    }
}

async fn ask(
    world: &World,
    who: &Identity,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Got {
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = Request::from_http(request.body(body.into()).expect("a request")).expect("a good path");
    let answer = route::dispatch(&world.pod, who, request).await.unwrap_or_else(|error| error.into_response());
    let (parts, mut body) = answer.into_parts();
    let (mut bytes, mut whole) = (Vec::new(), true);
    while let Some(frame) = tokio::time::timeout(DEADLINE, body.frame()).await.expect("in time") {
        match frame {
            Ok(frame) => bytes.extend_from_slice(&frame.into_data().expect("data")),
            Err(_) => {
                whole = false;
                break;
            }
        }
    }
    Got { status: parts.status, headers: parts.headers, bytes: bytes.into(), whole }
}

async fn get(world: &World, who: &Identity, path: &str) -> Got {
    ask(world, who, "GET", path, &[], Body::empty()).await
}

/// A pod on which attachments above 1 MiB are files.
async fn world() -> World {
    let world = World::new().await;
    world.put(&admin(), "/_ring/config", json!({"files": {"above_mib": 1}})).await.expect(201);
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while world.pod.ring.config().files.above_mib != 1 {
        assert!(tokio::time::Instant::now() < deadline, "the configuration is never in force");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    world
}

/// Bytes that no two places have in common, different for each seed.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

fn digest(bytes: &[u8]) -> String {
    format!("md5-{}", STANDARD.encode(Md5::digest(bytes)))
}

/// The files in the pod's folder.
fn objects(world: &World) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(world.folder().join("rean/files/objects")).expect("a folder") {
        let folder = folder.expect("an entry").path();
        found.extend(std::fs::read_dir(folder).expect("a folder").map(|file| file.expect("an entry").path()));
    }
    found
}

async fn until_objects(world: &World, count: usize) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while objects(world).len() != count {
        assert!(tokio::time::Instant::now() < deadline, "there are {:?} and not {count}", objects(world));
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

async fn put_file(world: &World, who: &Identity, path: &str, bytes: &[u8]) -> String {
    let headers = [("content-type", "video/mp4"), ("content-length", &bytes.len().to_string())];
    let answer = ask(world, who, "PUT", path, &headers, bytes.to_vec()).await.expect(201).json();
    answer["rev"].as_str().expect("a revision").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_reads_as_any_attachment_does() {
    let (world, root) = (world().await, admin());
    world.open_db("db").await;
    let bytes = noise(3 * MIB + 17, 1);
    let rev = put_file(&world, &root, "/db/a/film", &bytes).await;
    assert_eq!(objects(&world).len(), 1);
    let doc = world.get(&root, "/db/a").await.expect(200);
    let stub = json!({"content_type": "video/mp4", "revpos": 1, "digest": digest(&bytes), "length": bytes.len(), "stub": true});
    assert_eq!(doc["_attachments"]["film"], stub);

    let whole = get(&world, &root, "/db/a/film").await.expect(200);
    assert!(whole.bytes == bytes && whole.whole);
    assert_eq!(whole.header("content-md5"), &digest(&bytes)[4..]);
    assert_eq!(whole.header("content-length"), bytes.len().to_string());
    let etag = whole.header("etag").to_owned();
    let head = ask(&world, &root, "HEAD", "/db/a/film", &[], Body::empty()).await.expect(200);
    assert_eq!(head.header("content-length"), bytes.len().to_string());
    ask(&world, &root, "GET", "/db/a/film", &[("if-none-match", &etag)], Body::empty()).await.expect(304);
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=1048570-2097159", 1_048_570, 2_097_160),
        ("bytes=-5", bytes.len() - 5, bytes.len()),
    ] {
        let part = ask(&world, &root, "GET", "/db/a/film", &[("range", range)], Body::empty()).await.expect(206);
        assert!(part.bytes[..] == bytes[from..to], "{range}");
        assert_eq!(part.header("content-range"), format!("bytes {from}-{}/{}", to - 1, bytes.len()));
    }
    ask(&world, &root, "GET", "/db/a/film", &[("range", "bytes=9999999-")], Body::empty()).await.expect(416);

    // With its document, in all the forms that there are.
    let base64 = STANDARD.encode(&bytes);
    let json = [("accept", "application/json")];
    let inline = ask(&world, &root, "GET", "/db/a?attachments=true", &json, Body::empty()).await.expect(200).json();
    assert!(inline["_attachments"]["film"]["data"] == base64[..]);
    let asked = json!({"docs": [{"id": "a"}]}).to_string();
    let kind = [("content-type", "application/json")];
    let kind = [json[0], kind[0]];
    let bulk = ask(&world, &root, "POST", "/db/_bulk_get?attachments=true", &kind, asked).await.expect(200).json();
    assert!(bulk["results"][0]["docs"][0]["ok"]["_attachments"]["film"]["data"] == base64[..]);
    let feed = get(&world, &root, "/db/_changes?include_docs=true&attachments=true").await.expect(200).json();
    assert!(feed["results"][0]["doc"]["_attachments"]["film"]["data"] == base64[..]);
    let related =
        ask(&world, &root, "GET", "/db/a?attachments=true", &[("accept", "multipart/related")], Body::empty()).await;
    assert!(related.whole && related.bytes.windows(1_000).any(|window| window == &bytes[bytes.len() - 1_000..]));
    assert_eq!(related.header("content-length"), related.bytes.len().to_string());

    // An edit that keeps it, a copy, and a backup.
    let kept = json!({"_rev": rev, "n": 1, "_attachments": {"film": {"stub": true}}});
    world.put(&root, "/db/a", kept).await.expect(201);
    ask(&world, &root, "COPY", "/db/a", &[("destination", "b")], Body::empty()).await.expect(201);
    assert!(get(&world, &root, "/db/b/film").await.expect(200).bytes == bytes);
    assert_eq!(objects(&world).len(), 1, "the bytes are there once");
    let backup = get(&world, &root, "/_backup?db=db").await.expect(200);
    let mut reader = Reader::new(&backup.bytes[..]).expect("a backup");
    let mut pieces = Vec::new();
    while let Some(record) = reader.record().expect("a whole backup") {
        if let Record::Piece(piece) = record {
            pieces.extend(piece);
        }
    }
    assert!(pieces == [&bytes[..], &bytes[..]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_way_it_comes_what_is_large_is_a_file_and_what_is_small_is_none() {
    let (world, root) = (world().await, admin());
    world.open_db("db").await;
    put_file(&world, &root, "/db/small/film", &noise(MIB, 1)).await;
    assert_eq!(objects(&world).len(), 0);
    // Of unknown length.
    let bytes = noise(2 * MIB, 2);
    let pieces: Vec<Result<Bytes, std::io::Error>> =
        bytes.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    ask(&world, &root, "PUT", "/db/streamed/film", &[], body).await.expect(201);
    // In base64, as PouchDB sends it.
    let data = STANDARD.encode(&bytes);
    let doc =
        json!({"_id": "inline", "_rev": "1-ab", "_attachments": {"film": {"content_type": "video/mp4", "data": data}}});
    world.post(&root, "/db/_bulk_docs", json!({"new_edits": false, "docs": [doc]})).await.expect(201);
    // As a part of several.
    let head = json!({"_attachments": {"film": {"follows": true, "length": bytes.len(), "content_type": "video/mp4"}}});
    let start = format!("--x\r\ncontent-type: application/json\r\n\r\n{head}\r\n--x\r\n\r\n");
    let body = [start.as_bytes(), &bytes, b"\r\n--x--"].concat();
    let kind = [("content-type", "multipart/related; boundary=x")];
    ask(&world, &root, "PUT", "/db/related", &kind, body).await.expect(201);
    assert_eq!(objects(&world).len(), 3);
    for doc in ["streamed", "inline", "related"] {
        assert!(get(&world, &root, &format!("/db/{doc}/film")).await.expect(200).bytes == bytes, "{doc}");
    }
    // The store has no more of them than of any document.
    let db = world.pod.store.db("db").expect("the database");
    let mut files = Vec::new();
    db.each_file(|file| {
        files.push(file);
        std::ops::ControlFlow::Continue(())
    })
    .expect("files");
    assert_eq!(files.len(), 3);
    // A body that breaks off, and one that its document refuses, leave nothing.
    let broken: Vec<Result<Bytes, std::io::Error>> =
        vec![Ok(noise(2 * MIB, 3).into()), Err(std::io::Error::other("gone"))];
    let body = Body::from_stream(futures_util::stream::iter(broken));
    ask(&world, &root, "PUT", "/db/broken/film", &[], body).await.expect(400);
    let doc = json!({"_id": "small", "_attachments": {"film": {"data": STANDARD.encode(noise(2 * MIB, 4))}}});
    let rows = world.post(&root, "/db/_bulk_docs", json!({"docs": [doc]})).await.expect(201);
    assert_eq!(rows[0]["error"], "conflict");
    until_objects(&world, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_reads_a_file_but_through_a_document_that_they_may_read() {
    let (world, root) = (world().await, admin());
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    world.account("ann", &[]).await;
    world.account("bob", &[]).await;
    world.app("notes").await;
    world.put(&root, "/_ring/app:notes", json!({"access": {"create": ["users"]}})).await;
    let bytes = noise(2 * MIB, 1);
    let doc = json!({"access": {"read": ["user:ann"]}, "_attachments": {"film": {"data": STANDARD.encode(&bytes)}}});
    world.put(&root, "/notes/a", doc).await.expect(201);
    assert_eq!(objects(&world).len(), 1);
    assert!(get(&world, &ann, "/notes--me/a/film").await.expect(200).bytes == bytes);
    for path in ["/notes--me/a/film", "/notes/a/film", "/notes--me/none/film"] {
        let status = get(&world, &bob, path).await.status.as_u16();
        assert!(matches!(status, 401 | 403 | 404), "{path}: {status}");
    }
    let missing = get(&world, &bob, "/notes--me/none/film").await;
    let hidden = get(&world, &bob, "/notes--me/a/film").await;
    assert_eq!((hidden.status, hidden.bytes), (missing.status, missing.bytes));

    // Who has found out the file's name gets nothing by it.
    let file = objects(&world).remove(0);
    let key = file.file_name().expect("a name").to_str().expect("text").to_owned();
    for who in [&root, &ann, &bob, &Identity::system()] {
        get(&world, who, &format!("/_pod/files/{key}")).await.expect(404);
        ask(&world, who, "POST", "/_pod/files/needed", &[], json!({"keys": [key]}).to_string()).await.expect(404);
    }
    let member = json!({"key": key, "place": "local", "sha256": "00".repeat(32)});
    world.open_db("plain").await;
    let stub = json!({"stub": true, "length": bytes.len(), "digest": digest(&bytes), "revpos": 1, "file": member});
    let doc = json!({"_attachments": {"film": stub}});
    for (who, path) in [(&bob, "/plain/mine"), (&root, "/plain/mine")] {
        world.put(who, path, doc.clone()).await.expect(412);
    }
    let doc = json!({"_id": "pushed", "_rev": "1-ab", "_attachments": doc["_attachments"]});
    let pushed = world.post(&bob, "/plain/_bulk_docs", json!({"new_edits": false, "docs": [doc]})).await;
    assert!(pushed.text.contains("error"), "{}", pushed.text);
    assert_ne!(get(&world, &bob, "/plain/pushed/film").await.status, 200);

    // Nobody is told it, administrators neither.
    for path in [
        "/notes/a?files=true",
        "/notes/a?files=true&revs=all&meta=true",
        "/notes/_all_docs?include_docs=true&files=true",
    ] {
        let told = get(&world, &root, path).await.expect(200);
        assert!(!String::from_utf8_lossy(&told.bytes).contains(&key), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_there_is_a_fault_of_the_server_and_no_other() {
    let (world, root) = (world().await, admin());
    world.open_db("db").await;
    put_file(&world, &root, "/db/a/film", &noise(2 * MIB, 1)).await;
    let file = objects(&world).remove(0);
    // A copy that was cut short is not taken for the file.
    std::fs::File::options().write(true).open(&file).and_then(|file| file.set_len(1_000)).expect("cut");
    get(&world, &root, "/db/a/film").await.expect(503);
    std::fs::remove_file(&file).expect("removed");
    let answer = get(&world, &root, "/db/a/film").await.expect(503);
    assert_eq!(answer.json()["error"], "file_unavailable");
    assert_eq!(answer.header("retry-after"), "5");
    world.get(&root, "/db/a").await.expect(200);
    assert!(!get(&world, &root, "/db/a?attachments=true").await.whole, "cut off, not short");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_goes_when_no_document_has_had_it_for_a_time() {
    let (world, root) = (world().await, admin());
    world.open_db("db").await;
    let rev = put_file(&world, &root, "/db/a/film", &noise(2 * MIB, 1)).await;
    put_file(&world, &root, "/db/b/film", &noise(2 * MIB, 2)).await;
    let now = rean::workers::now_s();
    let at = async |now_s: u64| sweep(&world.pod, now_s).await.expect("a sweep");
    assert_eq!(at(now + WEEKS_S).await, Swept::default());
    let rev = world.put(&root, &format!("/db/a?rev={rev}"), json!({})).await.expect(201)["rev"].clone();
    // The old revision still has it.
    assert_eq!(at(now + WEEKS_S).await, Swept::default());
    world.pod.store.db("db").expect("the database").compact().expect("compacted");
    // What has lost its document just now stays for a while, however old it is.
    assert_eq!(at(now + WEEKS_S).await, Swept { idle: 1, removed: 0 });
    assert_eq!(at(now + WEEKS_S + 60).await, Swept { idle: 1, removed: 0 });
    assert_eq!(at(now + 2 * WEEKS_S).await, Swept { idle: 1, removed: 1 });
    assert_eq!(objects(&world).len(), 1);
    assert!(get(&world, &root, "/db/b/film").await.expect(200).whole);
    // A purge and the end of a database do the same.
    world.post(&root, "/db/_purge", json!({"a": [rev]})).await.expect(201);
    world.send(&root, "DELETE", "/db", None).await.expect(200);
    assert_eq!(at(now + 2 * WEEKS_S).await, Swept { idle: 1, removed: 0 });
    assert_eq!(at(now + 3 * WEEKS_S).await, Swept { idle: 1, removed: 1 });
    assert_eq!(objects(&world).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_in_several_requests() {
    let world = world().await;
    world.open_db("db").await;
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    let bytes = noise(2 * MIB, 1);
    let metadata =
        format!("doc {},name {},type {}", STANDARD.encode("a"), STANDARD.encode("film"), STANDARD.encode("video/mp4"));
    let length = bytes.len().to_string();
    let begin = [("tus-resumable", "1.0.0"), ("upload-length", &length[..]), ("upload-metadata", &metadata[..])];
    ask(&world, &ann, "POST", "/db/_uploads", &begin[1..], Body::empty()).await.expect(412);
    let too_long = [begin[0], ("upload-length", "99999999999"), begin[2]];
    ask(&world, &ann, "POST", "/db/_uploads", &too_long, Body::empty()).await.expect(413);
    let made = ask(&world, &ann, "POST", "/db/_uploads", &begin, Body::empty()).await.expect(201);
    let place = made.header("location").to_owned();
    assert!(place.starts_with("/db/_uploads/"), "{place}");

    let piece = |at: &'static str| {
        [("tus-resumable", "1.0.0"), ("upload-offset", at), ("content-type", "application/offset+octet-stream")]
    };
    ask(&world, &bob, "PATCH", &place, &piece("0"), bytes[..10].to_vec()).await.expect(404);
    let broken: Vec<Result<Bytes, std::io::Error>> =
        vec![Ok(Bytes::copy_from_slice(&bytes[..1_000])), Err(std::io::Error::other("gone"))];
    let body = Body::from_stream(futures_util::stream::iter(broken));
    ask(&world, &ann, "PATCH", &place, &piece("0"), body).await.expect(400);
    let head = ask(&world, &ann, "HEAD", &place, &begin[..1], Body::empty()).await.expect(200);
    assert_eq!((head.header("upload-offset"), head.header("upload-length")), ("1000", &length[..]));
    ask(&world, &ann, "PATCH", &place, &piece("0"), bytes[..1_000].to_vec()).await.expect(409);
    world.get(&ann, "/db/a").await.expect(404);
    let too_much = [&bytes[1_000..], b"more"].concat();
    ask(&world, &ann, "PATCH", &place, &piece("1000"), too_much).await.expect(413);
    // All of one piece is too much here, so that nothing of it was kept.
    let done = ask(&world, &ann, "PATCH", &place, &piece("1000"), bytes[1_000..].to_vec()).await.expect(204);
    assert_eq!(done.header("upload-offset"), length);
    let doc = world.get(&ann, "/db/a").await.expect(200);
    assert_eq!(done.header("x-couch-update-newrev"), doc["_rev"]);
    assert!(get(&world, &ann, "/db/a/film").await.expect(200).bytes == bytes);
    assert_eq!(objects(&world).len(), 1);
    let head = ask(&world, &ann, "HEAD", &place, &begin[..1], Body::empty()).await.expect(200);
    assert_eq!(head.header("x-couch-update-newrev"), doc["_rev"], "a client that has not heard it can ask");
    ask(&world, &ann, "DELETE", &place, &begin[..1], Body::empty()).await.expect(204);
    ask(&world, &ann, "HEAD", &place, &begin[..1], Body::empty()).await.expect(404);
    // The document is there now: its revision must be said.
    ask(&world, &ann, "POST", "/db/_uploads", &begin, Body::empty()).await.expect(409);
    let with_rev = format!("{metadata},rev {}", STANDARD.encode(doc["_rev"].as_str().expect("a revision")));
    let empty = [begin[0], ("upload-length", "0"), ("upload-metadata", &with_rev[..])];
    let made = ask(&world, &ann, "POST", "/db/_uploads", &empty, Body::empty()).await.expect(201);
    assert!(made.header("x-couch-update-newrev").starts_with("2-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_is_dropped_in_its_middle_keeps_no_room() {
    let world = World::limited(Limits { max_attachment_bytes: MIB as u64, ..Limits::default() }).await;
    world.open_db("db").await;
    let ann = user("ann", &[]);
    let length = MIB.to_string();
    let mut places = Vec::new();
    for doc in ["a", "b", "c"] {
        let metadata = format!("doc {},name {}", STANDARD.encode(doc), STANDARD.encode("film"));
        let begin = [("tus-resumable", "1.0.0"), ("upload-length", &length[..]), ("upload-metadata", &metadata[..])];
        let made = ask(&world, &ann, "POST", "/db/_uploads", &begin, Body::empty()).await.expect(201);
        places.push(made.header("location").to_owned());
    }
    let piece =
        [("tus-resumable", "1.0.0"), ("upload-offset", "0"), ("content-type", "application/offset+octet-stream")];
    // Two that may each become as large as can be are all that a user may have.
    for place in &places[..2] {
        let start = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"1234567890"))]);
        let body = Body::from_stream(start.chain(futures_util::stream::pending()));
        let id = place.rsplit('/').next().expect("an id");
        let entry = world.pod.files.spool.get(id, Some("ann")).expect("an upload");
        tokio::select! {
            _ = ask(&world, &ann, "PATCH", place, &piece, body) => panic!("it has no end"),
            () = until("the first bytes are there", || entry.offset().expect("an offset") == 10) => {}
        }
    }
    ask(&world, &ann, "PATCH", &places[2], &piece, noise(MIB, 1)).await.expect(204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_takes_no_pieces() {
    let world = world().await;
    world.open_db("db").await;
    let ann = user("ann", &[]);
    let metadata = format!("doc {},name {}", STANDARD.encode("a"), STANDARD.encode("film"));
    let begin = [("tus-resumable", "1.0.0"), ("upload-length", "10"), ("upload-metadata", &metadata[..])];
    let made = ask(&world, &ann, "POST", "/db/_uploads", &begin, Body::empty()).await.expect(201);
    let place = made.header("location").to_owned();
    let set_full = |is_full: bool| {
        let mib = if is_full { u64::MAX >> 24 } else { 0 };
        let disk = DiskConfig { low_percent: 0.0, low_mib: mib, full_percent: 0.0, full_mib: mib };
        world.pod.ring.set_config(RingConfig { disk, ..(*world.pod.ring.config()).clone() });
        world.pod.room.look(&disk);
    };
    set_full(true);
    let piece =
        [("tus-resumable", "1.0.0"), ("upload-offset", "0"), ("content-type", "application/offset+octet-stream")];
    ask(&world, &ann, "PATCH", &place, &piece, "12345").await.expect(507);
    ask(&world, &ann, "POST", "/db/_uploads", &begin, Body::empty()).await.expect(507);
    let head = ask(&world, &ann, "HEAD", &place, &begin[..1], Body::empty()).await.expect(200);
    assert_eq!(head.header("upload-offset"), "0", "nothing of it was kept");
    set_full(false);
    ask(&world, &ann, "PATCH", &place, &piece, "1234567890").await.expect(204);
    ask(&world, &ann, "DELETE", &place, &begin[..1], Body::empty()).await.expect(204);
}
