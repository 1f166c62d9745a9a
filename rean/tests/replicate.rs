//! Replications between databases of this server and with another one, which may lack parts of the API, break off, refuse
//! or be away.

mod harness;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use harness::{Answer, DEADLINE, World, admin, user};
use http::StatusCode;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rean::pod::Pod;
use rean::route::{self, Request};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What is wrong with the other server.
#[derive(Clone, Copy, Default)]
struct Faults {
    /// It is as old as CouchDB 1.
    has_no_bulk_get: bool,
    /// Of so many requests one fails.
    one_in: u64,
    /// It wants a log-in: this one.
    login: Option<&'static str>,
}

/// Another server, reached over a socket.
struct Far {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Far {
    async fn start(pod: &Arc<Pod>, faults: Faults, address: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind(address.unwrap_or(([127, 0, 0, 1], 0).into())).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (pod, count) = (Arc::clone(pod), Arc::new(AtomicU64::new(0)));
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let (pod, count) = (Arc::clone(&pod), Arc::clone(&count));
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let (pod, number) = (Arc::clone(&pod), count.fetch_add(1, Ordering::Relaxed) + 1);
                    Box::pin(async move { answer(&pod, faults, number, request.map(Body::new)).await })
                });
                connections.spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    // A client that goes away is no failure of the test.
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, serving }
    }

    fn url(&self, db: &str) -> String {
        format!("http://{}/{db}", self.address)
    }

    /// Goes away, with all of its connections.
    async fn stop(self) -> SocketAddr {
        self.serving.abort();
        let _ = self.serving.await;
        self.address
    }
}

async fn answer(
    pod: &Arc<Pod>,
    faults: Faults,
    number: u64,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, std::io::Error> {
    if faults.one_in > 0 && number.is_multiple_of(faults.one_in) {
        // Half of them with an answer, half without.
        if number.is_multiple_of(2) {
            return Err(std::io::Error::other("broken"));
        }
        let mut busy = http::Response::new(Body::from("{\"error\":\"busy\",\"reason\":\"later\"}"));
        *busy.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return Ok(busy);
    }
    let plain = |status: StatusCode, text: &'static str| {
        let mut response = http::Response::new(Body::from(text));
        *response.status_mut() = status;
        Ok(response)
    };
    let given = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if faults.login.is_some() && given != faults.login {
        return plain(StatusCode::UNAUTHORIZED, "{\"error\":\"unauthorized\",\"reason\":\"who are you\"}");
    }
    if faults.has_no_bulk_get && request.uri().path().ends_with("/_bulk_get") {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "{\"error\":\"method_not_allowed\",\"reason\":\"no\"}");
    }
    let answer = match Request::from_http(request) {
        Ok(request) => route::dispatch(pod, &admin(), request).await,
        Err(error) => Err(error),
    };
    Ok(answer.unwrap_or_else(|error| error.into_response()))
}

impl World {
    async fn replicate(&self, body: Value) -> Answer {
        self.post(&admin(), "/_replicate", body).await
    }

    async fn db(&self, name: &str) {
        self.send(&admin(), "PUT", &format!("/{name}"), None).await.expect(201);
    }

    async fn doc_count(&self, db: &str) -> u64 {
        self.get(&admin(), &format!("/{db}")).await.expect(200)["doc_count"].as_u64().expect("a number")
    }

    async fn until(&self, path: &str, what: &str, is_so: impl Fn(&Answer) -> bool) -> Answer {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            let answer = self.get(&admin(), path).await;
            if is_so(&answer) {
                return answer;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}: {path}: {}", answer.text);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Documents of all kinds: plain ones, a deleted one, one with conflicts, with small and with large attachments.
    async fn fill(&self, db: &str) {
        let docs: Vec<Value> = (0..40).map(|n| json!({"_id": format!("d{n:02}"), "n": n})).collect();
        let rows = self.post(&admin(), &format!("/{db}/_bulk_docs"), json!({ "docs": docs })).await.expect(201);
        let rev = rows[0]["rev"].as_str().expect("a revision");
        self.send(&admin(), "DELETE", &format!("/{db}/d00?rev={rev}"), None).await.expect(200);
        let branch = |hash: &str| {
            let ids = [hash.repeat(32), "b".repeat(32)];
            json!({"_id": "k", "_rev": format!("2-{}", ids[0]), "_revisions": {"start": 2, "ids": ids}, "of": hash})
        };
        let body = json!({"new_edits": false, "docs": [branch("a"), branch("c")]});
        self.post(&admin(), &format!("/{db}/_bulk_docs"), body).await.expect(201);
        for (id, letters) in [("small/é", 100), ("large", 400_000)] {
            // Base64 of so many zero bytes.
            let data = "AAAA".repeat(letters / 4);
            let doc = json!({"_attachments": {"one.bin": {"content_type": "a/b", "data": data}, "two é": {"content_type": "text/plain", "data": "aGk="}}});
            self.put(&admin(), &format!("/{db}/{}", id.replace('/', "%2F").replace('é', "%C3%A9")), doc)
                .await
                .expect(201);
        }
    }

    /// Everything that can be seen of a database.
    async fn content(&self, db: &str) -> Value {
        let path = format!("/{db}/_all_docs?include_docs=true&conflicts=true&attachments=true");
        let rows = self.get(&admin(), &path).await.expect(200)["rows"].clone();
        assert_eq!(rows.as_array().expect("rows").len(), 42, "39 plain, one with conflicts, two with attachments");
        let deleted = self.post(&admin(), &format!("/{db}/_all_docs"), json!({"keys": ["d00"]})).await.expect(200);
        json!([rows, deleted["rows"]])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_arrives_in_another_database_and_a_second_run_has_nothing_to_do() {
    let world = World::new().await;
    world.db("a").await;
    world.fill("a").await;
    let answer = world.replicate(json!({"source": "a", "target": "b", "create_target": true})).await.expect(200);
    let run = &answer["history"][0];
    assert_eq!((&run["docs_written"], &run["doc_write_failures"]), (&json!(44), &json!(0)), "{answer}");
    assert_eq!(world.content("a").await, world.content("b").await);
    let again = world.replicate(json!({"source": "a", "target": "b"})).await.expect(200);
    assert_eq!(again["no_changes"], true, "{again}");
    world.put(&admin(), "/a/new", json!({})).await.expect(201);
    let more = world.replicate(json!({"source": "a", "target": "b"})).await.expect(200);
    assert_eq!((&more["history"][0]["docs_read"], more["history"].as_array().map(Vec::len)), (&json!(1), Some(2)));
    let some = json!({"source": "a", "target": "c", "create_target": true, "selector": {"n": {"$lt": 3}}});
    world.replicate(some).await.expect(200);
    // The third is deleted, and has no `n` any more.
    assert_eq!(world.doc_count("c").await, 2);
    let wrong = json!({"source": "a", "target": "b", "filter": "x/y"});
    assert_eq!(world.replicate(wrong).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_old_and_breaks_off_again_and_again_is_read_and_written_whole() {
    let (world, other) = (World::new().await, World::new().await);
    other.db("there").await;
    other.fill("there").await;
    let faults = Faults { has_no_bulk_get: true, one_in: 17, login: None };
    let far = Far::start(&other.pod, faults, None).await;
    let pull = json!({"source": far.url("there"), "target": "here", "create_target": true});
    let answer = world.replicate(pull).await.expect(200);
    assert_eq!(answer["history"][0]["doc_write_failures"], 0, "{answer}");
    assert_eq!(other.content("there").await, world.content("here").await);
    let push = json!({"source": "here", "target": far.url("back"), "create_target": true});
    world.replicate(push).await.expect(200);
    assert_eq!(world.content("here").await, other.content("back").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_continuous_replication_goes_on_after_the_other_server_was_away_until_it_is_ended() {
    let (world, other) = (World::new().await, World::new().await);
    world.db("here").await;
    other.db("there").await;
    let far = Far::start(&other.pod, Faults::default(), None).await;
    let job = json!({"source": "here", "target": far.url("there"), "continuous": true, "checkpoint_interval": 10});
    let started = world.replicate(job.clone()).await.expect(202);
    let id = started["_local_id"].as_str().expect("an id").to_owned();
    assert_eq!(world.replicate(job.clone()).await.expect(202)["_local_id"], id, "one job for each id");
    world.put(&admin(), "/here/first", json!({})).await.expect(201);
    other.until("/there/first", "the first document", |answer| answer.status == 200).await;
    let path = format!("/_scheduler/jobs/{id}");
    world
        .until(&path, "a checkpoint", |answer| {
            let info = &answer.json()["info"];
            info["docs_written"] == 1 && info["checkpointed_source_seq"] == info["through_seq"]
        })
        .await;

    let address = far.stop().await;
    world.put(&admin(), "/here/second", json!({})).await.expect(201);
    world.until(&path, "a crash", |answer| answer.text.contains("\"crashed\"")).await;
    let far = Far::start(&other.pod, Faults::default(), Some(address)).await;
    other.until("/there/second", "the second document", |answer| answer.status == 200).await;
    // The source hears of the write a moment after the target has it.
    let counted = |answer: &Answer| {
        let rows = answer.json();
        rows.as_array().is_some_and(|rows| rows.iter().any(|task| task["docs_written"].as_u64() >= Some(2)))
    };
    let tasks = world.until("/_active_tasks", "the count", counted).await.json();
    let task = tasks.as_array().and_then(|tasks| tasks.iter().find(|task| task["type"] == "replication"));
    let task = task.unwrap_or_else(|| panic!("no task: {tasks}"));
    assert_eq!((&task["continuous"], &task["docs_written"]), (&json!(true), &json!(2)), "nothing was sent twice");

    let mut cancel = job;
    cancel["cancel"] = true.into();
    world.replicate(cancel.clone()).await.expect(200);
    assert_eq!(world.replicate(cancel).await.expect(404)["error"], "not_found");
    assert_eq!(world.get(&admin(), "/_scheduler/jobs").await.expect(200)["total_rows"], 0);
    world.put(&admin(), "/here/third", json!({})).await.expect(201);
    far.stop().await;
    assert_eq!(other.doc_count("there").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_or_not_allowed_is_told_without_the_password() {
    let (world, other) = (World::new().await, World::new().await);
    world.db("here").await;
    other.db("there").await;
    let faults = Faults { login: Some("Basic YW5uOnNlc2FtZQ=="), ..Faults::default() };
    let far = Far::start(&other.pod, faults, None).await;
    let address = far.address;
    let good = json!({"url": far.url("there"), "auth": {"basic": {"username": "ann", "password": "sesame"}}});
    world.replicate(json!({"source": "here", "target": good})).await.expect(200);
    for (source, target, status, error) in [
        (json!("here"), json!(format!("http://ann:sesame-x@{address}/there")), 401, "unauthorized"),
        (json!("here"), json!(format!("http://ann:sesame@{address}/nowhere")), 404, "db_not_found"),
        (json!("none"), json!(format!("http://ann:sesame@{address}/there")), 404, "db_not_found"),
        (json!("here"), json!(format!("ftp://ann:sesame@{address}/there")), 400, "bad_request"),
        (json!(7), json!("here"), 400, "bad_request"),
        (json!("here"), Value::Null, 400, "bad_request"),
    ] {
        let answer = world.replicate(json!({"source": source, "target": target})).await;
        assert!(!answer.text.contains("sesame"), "{}", answer.text);
        assert_eq!(answer.expect(status)["error"], error);
    }
    let ann = user("ann", &[]);
    for (method, path) in [("POST", "/_replicate"), ("GET", "/_scheduler/jobs"), ("GET", "/_scheduler/docs")] {
        world.send(&ann, method, path, Some(&json!({"source": "a", "target": "b"}))).await.expect(401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_on_this_server_is_used_with_the_rights_of_the_one_who_is_named() {
    let world = World::new().await;
    world.account("ann", &[]).await;
    world.app("notes").await;
    for (id, reader) in [("hers", "user:ann"), ("his", "user:bob")] {
        world.put(&admin(), &format!("/notes/{id}"), json!({"access": {"read": [reader]}})).await.expect(201);
    }
    world.open_db("copy").await;
    let ctx = json!({"name": "ann", "roles": []});
    let aggregate = json!({"source": "notes", "target": "copy", "user_ctx": ctx});
    assert_eq!(world.replicate(aggregate).await.expect(403)["error"], "forbidden");
    let own = json!({"source": "notes--me", "target": "copy", "user_ctx": ctx});
    world.replicate(own).await.expect(200);
    let rows = world.get(&admin(), "/copy/_all_docs").await.expect(200)["rows"].clone();
    assert_eq!((rows[0]["id"].as_str(), rows.as_array().map(Vec::len)), (Some("hers"), Some(1)));
    // A design document is no reader's to write: it is counted, and the rest arrives.
    world.db("plain").await;
    world.put(&admin(), "/plain/_design/x", json!({})).await.expect(201);
    world.put(&admin(), "/plain/y", json!({})).await.expect(201);
    let everyone = json!({"members": {"names": ["ann"], "roles": []}});
    world.put(&admin(), "/plain/_security", everyone).await.expect(200);
    let refused = world.replicate(json!({"source": "plain", "target": "copy", "user_ctx": ctx})).await.expect(200);
    let run = &refused["history"][0];
    assert_eq!((&run["docs_written"], &run["doc_write_failures"]), (&json!(1), &json!(1)), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_of_replicator_run_tell_their_state_and_end_with_their_deletion() {
    let world = World::new().await;
    for db in ["a", "b", "c"] {
        world.db(db).await;
    }
    world.put(&admin(), "/a/x", json!({})).await.expect(201);
    for bad in [json!({"source": 5, "target": "b"}), json!({}), json!({"source": "a", "target": "ftp://h/b"})] {
        assert_eq!(world.put(&admin(), "/_replicator/bad", bad).await.expect(403)["error"], "forbidden");
    }
    world.put(&user("ann", &[]), "/_replicator/hers", json!({"source": "a", "target": "b"})).await.expect(403);

    let state = |wanted: &'static str| move |answer: &Answer| answer.json()["_replication_state"] == wanted;
    world.put(&admin(), "/_replicator/once", json!({"source": "a", "target": "b"})).await.expect(201);
    let done = world.until("/_replicator/once", "the end", state("completed")).await.json();
    assert_eq!((&done["owner"], &done["_replication_stats"]["docs_written"]), (&json!("root"), &json!(1)));
    assert!(done["_replication_state_time"].is_string() && done["_replication_id"].is_string());

    let lost = json!({"source": "http://ann:sesame@127.0.0.1:1/none", "target": "b"});
    world.put(&admin(), "/_replicator/away", lost).await.expect(201);
    let crashing = world.until("/_replicator/away", "the crashes", state("crashing")).await.json();
    assert!(crashing["_replication_state_reason"].as_str().is_some_and(|reason| !reason.contains("sesame")));
    world.put(&admin(), "/_replicator/none", json!({"source": "none", "target": "b"})).await.expect(201);
    let failed = world.until("/_replicator/none", "the failure", state("failed")).await.json();
    assert_eq!(failed["_replication_state_reason"], "could not open none");

    let live = json!({"source": "a", "target": "c", "continuous": true});
    let written = world.put(&admin(), "/_replicator/live", live.clone()).await.expect(201);
    world.until("/c/x", "the document", |answer| answer.status == 200).await;
    world.put(&admin(), "/_replicator/twice", live).await.expect(201);
    let twice = world.until("/_replicator/twice", "the refusal", state("failed")).await.json();
    assert!(twice["_replication_state_reason"].as_str().is_some_and(|reason| reason.contains("live")), "{twice}");

    let cancel = json!({"source": "a", "target": "c", "continuous": true, "cancel": true});
    world.replicate(cancel).await.expect(403);

    let docs = world.get(&admin(), "/_scheduler/docs").await;
    assert!(!docs.text.contains("sesame"), "{}", docs.text);
    let docs = docs.expect(200);
    let states: Vec<(&str, &str)> = docs["docs"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|doc| (doc["doc_id"].as_str().expect("an id"), doc["state"].as_str().expect("a state")))
        .collect();
    assert_eq!(
        states,
        [("away", "crashing"), ("live", "running"), ("none", "failed"), ("once", "completed"), ("twice", "failed")]
    );
    let rev = written["rev"].as_str().expect("a revision");
    world.send(&admin(), "DELETE", &format!("/_replicator/live?rev={rev}"), None).await.expect(200);
    world.until("/_scheduler/jobs", "the job's end", |answer| answer.json()["total_rows"] == 1).await;
    world.get(&admin(), "/_scheduler/docs/_replicator/live").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_replicates_as_the_pod_itself() {
    let world = World::new().await;
    world.db("a").await;
    let as_pod = json!({"source": "a", "target": "_ring", "user_ctx": {"name": "_pod", "roles": ["_admin"]}});
    world.replicate(as_pod.clone()).await.expect(400);
    world.put(&admin(), "/_replicator/one", as_pod).await.expect(403);
    // What is replicated has the owner that it says: a server that is not of the ring says anything.
    let brought = json!({"_id": "two", "_rev": "1-a", "source": "a", "target": "_ring", "owner": "_pod"});
    let brought = json!({"new_edits": false, "docs": [brought]});
    world.post(&admin(), "/_replicator/_bulk_docs", brought).await.expect(201);
    let is_failed = |answer: &Answer| answer.json()["_replication_state"] == "failed";
    let failed = world.until("/_replicator/two", "the failure", is_failed).await.json();
    assert!(failed["_replication_state_reason"].as_str().is_some_and(|why| why.contains("owner")), "{failed}");
}
