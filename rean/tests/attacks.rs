//! What a client may try who has read the source: old rights through slow requests, and work without end.

mod harness;

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use harness::{World, admin, user};
use http_body_util::BodyExt;
use rean::route::{self, Request};
use serde_json::{Value, json};

/// An app with documents that the role `staff` reads, more than one page of them.
async fn staffed() -> World {
    let world = World::new().await;
    world.app("notes").await;
    world.account("ann", &["staff"]).await;
    let text = "x".repeat(1_000);
    let docs: Vec<Value> = (0..400)
        .map(|n| json!({"_id": format!("d{n:03}"), "text": text, "access": {"read": ["role:staff"]}}))
        .collect();
    world.post(&admin(), "/notes/_bulk_docs", json!({"docs": docs})).await.expect(201);
    world
}

/// Reads the first frame, takes the role away, and tells how many more frames come and whether the body is whole.
async fn read_on_without_the_role(world: &World, mut body: Body) -> (usize, bool) {
    body.frame().await.expect("a frame").expect("data");
    world.account("ann", &[]).await;
    let mut more = 0;
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return (more, false);
        }
        more += 1;
    }
    (more, true)
}

#[tokio::test]
async fn a_slow_reader_of_a_list_does_not_keep_old_rights() {
    let ann = user("ann", &["staff"]);
    for (path, body) in [
        ("/notes--me/_all_docs?include_docs=true", None),
        (
            "/notes--me/_bulk_get",
            Some(json!({"docs": (0..400).map(|n| json!({"id": format!("d{n:03}")})).collect::<Vec<_>>()})),
        ),
    ] {
        let world = staffed().await;
        let method = if body.is_some() { "POST" } else { "GET" };
        let response = world.raw(&ann, method, path, body.as_ref()).await;
        assert_eq!(response.status(), 200, "{path}");
        let (more, whole) = read_on_without_the_role(&world, response.into_body()).await;
        assert!(!whole && more <= 1, "{path}: {more} more pages");
    }
}

#[tokio::test]
async fn a_slow_upload_is_written_with_the_rights_of_its_end() {
    let world = staffed().await;
    let ann = user("ann", &["staff"]);
    let rev = world.get(&ann, "/notes--me/d000").await.expect(200)["_rev"].clone();
    let doc = json!({"_rev": rev, "text": "mine", "access": {"read": ["user:ann"]}}).to_string();
    let (first, second) = doc.split_at(10);
    let (first, second) = (first.to_owned(), second.to_owned());
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let stream = futures_util::stream::unfold(Some((first, second, Some(wait))), |state| async move {
        let (first, second, wait) = state?;
        if !first.is_empty() {
            return Some((Ok::<_, std::io::Error>(Bytes::from(first)), Some((String::new(), second, wait))));
        }
        wait?.await.ok()?;
        Some((Ok(Bytes::from(second)), None))
    });
    let request = http::Request::put("/notes--me/d000").body(Body::from_stream(stream)).expect("a request");
    let pod = Arc::clone(&world.pod);
    let slow = tokio::spawn(async move {
        let request = Request::from_http(request).expect("a request");
        route::dispatch(&pod, &user("ann", &["staff"]), request).await
    });
    tokio::task::yield_now().await;
    world.account("ann", &[]).await;
    go.send(()).expect("the body waits");
    let refused = slow.await.expect("no panic").expect_err("ann may not write it any more");
    assert!(matches!(refused.status.as_u16(), 403 | 409), "{refused:?}");
    assert_eq!(world.get(&admin(), "/notes/d000").await.expect(200)["_rev"], rev);
}

#[tokio::test]
async fn many_local_documents_in_one_request_are_refused() {
    let world = staffed().await;
    let docs: Vec<Value> = (0..150).map(|n| json!({"_id": format!("_local/{n}")})).collect();
    let rows = world.post(&user("ann", &[]), "/notes--me/_bulk_docs", json!({"docs": docs})).await.expect(201);
    let rows = rows.as_array().expect("rows");
    assert_eq!(rows.iter().filter(|row| row["ok"] == true).count(), 100);
    assert_eq!(rows[149]["error"], "forbidden");
}

#[tokio::test]
async fn many_lists_and_many_revisions_in_one_request_are_answered_in_turns() {
    let world = staffed().await;
    let ann = user("ann", &["staff"]);
    let queries: Vec<Value> = (0..300).map(|n| json!({"key": format!("d{n:03}")})).collect();
    let answer = world.post(&ann, "/notes--me/_all_docs/queries", json!({"queries": queries})).await.expect(200);
    let results = answer["results"].as_array().expect("results");
    assert_eq!(results.len(), 300);
    assert!(results.iter().enumerate().all(|(n, one)| one["rows"][0]["id"] == format!("d{n:03}")));
    let skipped = world.get(&ann, "/notes--me/_all_docs?skip=398").await.expect(200);
    assert_eq!(skipped["rows"].as_array().expect("rows").len(), 2);
    assert_eq!(world.get(&ann, "/notes--me/_all_docs?skip=99999999").await.expect(200)["rows"], json!([]));

    let rev = world.get(&ann, "/notes--me/d000").await.expect(200)["_rev"].as_str().expect("a revision").to_owned();
    let wanted = json!([rev, "9-zork", rev]).to_string().replace('"', "%22");
    for latest in ["", "&latest=true"] {
        let response = world.raw(&ann, "GET", &format!("/notes--me/d000?open_revs={wanted}{latest}"), None).await;
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert_eq!(text.matches(&format!("\"_rev\":\"{rev}\"")).count(), 2, "{text}");
        assert_eq!(text.matches("{\"missing\":\"9-zork\"}").count(), 1, "{text}");
    }
}

#[tokio::test]
async fn who_may_not_create_is_refused_before_the_upload() {
    let world = staffed().await;
    let nobody = adea_ring::Identity::anonymous();
    // d000 is there, but not for nobody to see; zork is not there.
    for path in ["/notes--me/d000/file", "/notes--me/zork/file", "/notes/d000/file", "/notes--me/d000", "/notes/zork"] {
        // A body that never ends: whoever waits for it never answers.
        let body = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let request = Request::from_http(http::Request::put(path).body(body).expect("a request")).expect("a request");
        let answer = route::dispatch(&world.pod, &nobody, request);
        let answer = tokio::time::timeout(harness::DEADLINE, answer).await.expect("it does not wait for the body");
        assert_eq!(answer.expect_err("refused").status, 401, "{path}");
    }
}
