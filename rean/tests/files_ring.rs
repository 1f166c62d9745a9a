//! Files in a ring whose pods keep them in their own folders: each has all of them soon, gives what it lacks meanwhile, and
//! removes none that another pod needs.

#[path = "harness/ring.rs"]
mod ring;

use std::path::PathBuf;

use axum::body::Body;
use http::StatusCode;
use rean::files::sweep::{Swept, sweep};
use ring::{Answer, TestRing, admin, until};
use serde_json::json;

const MIB: usize = 1 << 20;
/// Longer than files are kept for.
const WEEKS_S: u64 = 1_000 * 3_600;

async fn start(count: usize) -> TestRing {
    let ring = TestRing::with_master(count, 0).await;
    ring.configure(json!({"files": {"above_mib": 1}})).await;
    ring.make_db(0, "db", &[]).await;
    ring
}

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

async fn put_file(ring: &TestRing, at: usize, path: &str, bytes: &[u8]) -> String {
    let request = http::Request::put(path)
        .header("content-type", "video/mp4")
        .header("content-length", bytes.len())
        .body(Body::from(bytes.to_vec()))
        .expect("a request");
    let answer = ring.request(at, &admin(), request).await.expect(201);
    answer["rev"].as_str().expect("a revision").to_owned()
}

async fn read(ring: &TestRing, at: usize, path: &str, range: Option<&str>) -> Answer {
    let mut request = http::Request::get(path);
    if let Some(range) = range {
        request = request.header("range", range);
    }
    ring.request(at, &admin(), request.body(Body::empty()).expect("a request")).await
}

fn root(ring: &TestRing, at: usize) -> PathBuf {
    ring.folder(at).join("rean/files")
}

fn objects(ring: &TestRing, at: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(root(ring, at).join("objects")).expect("a folder") {
        let folder = folder.expect("an entry").path();
        let files = std::fs::read_dir(folder).expect("a folder").map(|file| file.expect("an entry").path());
        found.extend(files.filter(|file| !file.to_string_lossy().contains('#')));
    }
    found
}

async fn until_objects(ring: &TestRing, at: usize, count: usize) {
    until("the files are there", || async { objects(ring, at).len() == count }).await;
}

async fn until_here(ring: &TestRing, at: usize, path: &str) {
    until("the document is there", || async { ring.get(at, &admin(), path).await.status == StatusCode::OK }).await;
}

/// Has a pod look for files that it lacks, as it does by itself from time to time.
async fn look(ring: &TestRing, at: usize, count: usize) {
    ring.pod(at).files.look();
    until_objects(ring, at, count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_soon_on_all_pods_and_can_be_read_before_that() {
    let ring = start(3).await;
    let bytes = noise(5 * MIB + 3, 1);
    let rev = put_file(&ring, 1, "/db/a/film", &bytes).await;
    for at in 0..3 {
        until_here(&ring, at, "/db/a").await;
        assert!(read(&ring, at, "/db/a/film", None).await.body == bytes, "pod {at}");
        until_objects(&ring, at, 1).await;
    }
    let names: Vec<_> = (0..3).map(|at| objects(&ring, at)[0].file_name().map(ToOwned::to_owned)).collect();
    assert!(names[0] == names[1] && names[1] == names[2], "one file has one name");

    // One that is lost here is read from others, also in part, and comes back.
    std::fs::remove_file(&objects(&ring, 2)[0]).expect("removed");
    let part = read(&ring, 2, "/db/a/film", Some("bytes=1000-2000000")).await;
    assert!(part.status == 206 && part.body == bytes[1_000..=2_000_000]);
    look(&ring, 2, 1).await;
    // What was brought before is gone on with; what was brought wrong is brought again.
    for kept in [bytes[..2_000_000].to_vec(), noise(2_000_000, 9), noise(bytes.len() + 1, 9)] {
        let file = objects(&ring, 2).remove(0);
        std::fs::rename(&file, root(&ring, 2).join("parts").join(file.file_name().expect("a name"))).expect("moved");
        std::fs::write(root(&ring, 2).join("parts").join(file.file_name().expect("a name")), kept).expect("written");
        look(&ring, 2, 1).await;
        assert!(std::fs::read(&file).expect("the file") == bytes);
    }
    // An edit on another pod keeps it, and a second attachment beside it travels as any.
    let small = noise(300_000, 2);
    let rev = put_file(&ring, 2, &format!("/db/a/small?rev={rev}"), &small).await;
    for at in 0..3 {
        let is_new = || async { ring.get(at, &admin(), "/db/a").await.json()["_rev"] == rev[..] };
        until("the new revision is there", is_new).await;
        assert!(read(&ring, at, "/db/a/film", None).await.body == bytes);
        assert!(read(&ring, at, "/db/a/small", None).await.body == small);
        assert_eq!(objects(&ring, at).len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_away_or_is_new_gets_all_files() {
    let mut ring = start(3).await;
    ring.take_down(2).await;
    ring.tell_all().await;
    let bytes = noise(2 * MIB, 1);
    put_file(&ring, 1, "/db/a/film", &bytes).await;
    put_file(&ring, 1, "/db/b/film", &noise(3 * MIB, 2)).await;
    until_objects(&ring, 1, 2).await;
    ring.wipe(2);
    ring.bring_up(2).await;
    ring.tell_all().await;
    ring.elect(1).await;
    until_objects(&ring, 2, 2).await;
    assert!(read(&ring, 2, "/db/a/film", None).await.body == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pod_removes_a_file_that_another_one_needs_or_may_need() {
    let mut ring = start(2).await;
    let rev = put_file(&ring, 0, "/db/a/film", &noise(2 * MIB, 1)).await;
    until_objects(&ring, 1, 1).await;
    let rev = ring.put(0, &admin(), &format!("/db/a?rev={rev}"), json!({})).await.expect(201)["rev"].clone();
    until("the edit is there", || async { ring.get(1, &admin(), "/db/a").await.json()["_rev"] == rev }).await;
    let now = rean::workers::now_s();
    let compact = |at: usize| ring.pod(at).store.db("db").expect("the database").compact().expect("compacted");
    compact(0);
    assert_eq!(sweep(ring.pod(0), now).await.expect("a sweep"), Swept { idle: 1, removed: 0 });
    // The other pod has the old revision yet.
    assert_eq!(sweep(ring.pod(0), now + WEEKS_S).await.expect("a sweep"), Swept { idle: 1, removed: 0 });
    compact(1);
    // It is away: nobody knows what it has.
    ring.take_down(1).await;
    ring.tell_all().await;
    assert_eq!(sweep(ring.pod(0), now + WEEKS_S).await.expect("a sweep"), Swept { idle: 1, removed: 0 });
    ring.bring_up(1).await;
    ring.tell_all().await;
    assert_eq!(sweep(ring.pod(0), now + WEEKS_S).await.expect("a sweep"), Swept { idle: 1, removed: 1 });
    assert_eq!((objects(&ring, 0).len(), objects(&ring, 1).len()), (0, 1), "each pod removes its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_several_requests_may_begin_at_any_pod() {
    use base64::Engine;
    let ring = start(2).await;
    let bytes = noise(2 * MIB, 1);
    let text = |value: &str| base64::engine::general_purpose::STANDARD.encode(value);
    let request =
        |method: &str, path: &str| http::Request::builder().method(method).uri(path).header("tus-resumable", "1.0.0");
    let begin = request("POST", "/db/_uploads")
        .header("upload-length", bytes.len())
        .header("upload-metadata", format!("doc {},name {}", text("a"), text("film")));
    let made = ring.request(1, &admin(), begin.body(Body::empty()).expect("a request")).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let place = made.header("location").expect("a place").to_owned();
    for (at, from, to) in [(1, 0, MIB), (0, MIB, bytes.len())] {
        let head = ring.request(at, &admin(), request("HEAD", &place).body(Body::empty()).expect("a request")).await;
        assert_eq!(head.header("upload-offset"), Some(&from.to_string()[..]));
        let piece = request("PATCH", &place)
            .header("upload-offset", from)
            .header("content-type", "application/offset+octet-stream")
            .body(Body::from(bytes[from..to].to_vec()));
        let answer = ring.request(at, &admin(), piece.expect("a request")).await;
        assert_eq!(answer.status, 204, "{}", answer.text());
    }
    until_here(&ring, 1, "/db/a").await;
    assert!(read(&ring, 1, "/db/a/film", None).await.body == bytes);
}
