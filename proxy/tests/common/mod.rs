//! A small rean of our own, and a client, for the proxy's tests.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use adea_ring::identity::{ROLES_HEADER, TOKEN_HEADER, USER_NAME_HEADER};
use adea_ring::{RingSecret, Signer};
use argon2::password_hash::PasswordHasher;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use proxy::{Admin, Config, Server};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, oneshot};

pub const ADMIN: (&str, &str) = ("admin", "secret");

/// A rean that knows documents by path, feeds of changes, and a few paths that do as they are called.
pub struct FakeRean {
    pub address: SocketAddr,
    pub secret: RingSecret,
    signer: Signer,
    pub docs: Mutex<HashMap<String, (u64, Value)>>,
    seq: AtomicU64,
    rows: broadcast::Sender<(String, String)>,
    /// Requests for user documents so far.
    pub user_reads: AtomicUsize,
    /// Body bytes that `/sink` has seen so far.
    pub sunk: AtomicUsize,
    /// Feeds that are open now.
    pub feeds: AtomicUsize,
    /// What clients have sent over connections with many feeds.
    pub told: Mutex<Vec<u8>>,
    /// Whether its pod takes no clients.
    pub is_inactive: AtomicBool,
}

impl FakeRean {
    pub async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let secret = RingSecret::random();
        let rean = Arc::new(Self {
            address: listener.local_addr().expect("bound"),
            signer: Signer::new(&secret),
            secret,
            docs: Mutex::default(),
            seq: AtomicU64::new(0),
            rows: broadcast::channel(64).0,
            user_reads: AtomicUsize::new(0),
            sunk: AtomicUsize::new(0),
            feeds: AtomicUsize::new(0),
            told: Mutex::default(),
            is_inactive: AtomicBool::new(false),
        });
        let app = axum::Router::new().fallback(answer).with_state(Arc::clone(&rean));
        tokio::spawn(async move { axum::serve(listener, app).await });
        rean
    }

    /// Writes a user's document, as rean would after hashing the password.
    pub fn put_user(&self, name: &str, password: &str, roles: &[&str]) {
        let doc = json!({"name": name, "roles": roles, "type": "user",
            "password_scheme": "argon2id", "derived_key": hash(password)});
        self.put("_users", &format!("org.couchdb.user:{name}"), doc);
    }

    pub fn put(&self, db: &str, id: &str, doc: Value) -> String {
        let mut docs = self.docs.lock().expect("lock");
        let entry = docs.entry(format!("{db}/{id}")).or_insert((0, Value::Null));
        *entry = (entry.0 + 1, doc);
        let rev = format!("{}-a", entry.0);
        drop(docs);
        self.tell(db, json!({"id": id, "changes": [{"rev": rev}]}));
        rev
    }

    pub fn delete(&self, db: &str, id: &str) {
        self.docs.lock().expect("lock").remove(&format!("{db}/{id}"));
        self.tell(db, json!({"id": id, "changes": [{"rev": "9-d"}], "deleted": true}));
    }

    /// A branch of a document comes from another pod that loses against the one here: deleted, or not.
    pub fn branch(&self, db: &str, id: &str, deleted: bool) {
        let mut docs = self.docs.lock().expect("lock");
        let (generation, doc) = docs.get_mut(&format!("{db}/{id}")).expect("a document");
        if deleted {
            doc["_deleted_conflicts"] = json!(["1-d"]);
        }
        let leaves = json!([{"rev": format!("{generation}-a")}, {"rev": "1-d"}]);
        drop(docs);
        self.tell(db, json!({"id": id, "changes": leaves}));
    }

    /// The ids in a database.
    pub fn ids(&self, db: &str) -> Vec<String> {
        let docs = self.docs.lock().expect("lock");
        let prefix = format!("{db}/");
        docs.keys().filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    fn tell(&self, db: &str, mut row: Value) {
        row["seq"] = (self.seq.fetch_add(1, Ordering::SeqCst) + 1).to_string().into();
        // Nobody may listen yet.
        let _ = self.rows.send((db.to_owned(), row.to_string()));
    }
}

/// A cheap argon2id hash: the tests check how it is used, not how slow it is.
pub fn hash(password: &str) -> String {
    let params = argon2::Params::new(8, 1, 1, None).expect("valid");
    let argon = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    argon.hash_password(password.as_bytes()).expect("hashes").to_string()
}

async fn answer(State(rean): State<Arc<FakeRean>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let get = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let identity = rean.signer.verify(get(USER_NAME_HEADER), get(ROLES_HEADER), get(TOKEN_HEADER));
    let Ok(identity) = identity else { return StatusCode::UNAUTHORIZED.into_response() };
    let path = percent_encoding::percent_decode_str(parts.uri.path()).decode_utf8_lossy();
    let path = path.trim_start_matches('/').to_owned();
    let query = parts.uri.query().unwrap_or("").to_owned();
    match path.split_once('/') {
        Some((db, "_changes")) if query.contains("feed=") => feed(&rean, db, &query),
        Some((_, "_changes")) => {
            let seq = rean.seq.load(Ordering::SeqCst).to_string();
            axum_json(StatusCode::OK, &json!({"results": [], "last_seq": seq}))
        }
        Some((db @ ("_users" | "_ring"), id)) if identity.is_admin() => {
            documents(&rean, &parts.method, (db, id), &query, body).await
        }
        _ => match path.as_str() {
            "_up" if rean.is_inactive.load(Ordering::SeqCst) => {
                axum_json(StatusCode::NOT_FOUND, &json!({"status": "inactive"}))
            }
            "_up" => axum_json(StatusCode::OK, &json!({"status": "ok"})),
            "sink" => sink(&rean, body).await,
            // Reads nothing for longer than a test's time limits.
            "late-sink" => {
                tokio::time::sleep(Duration::from_millis(1_000)).await;
                sink(&rean, body).await
            }
            // A token that counts, or one that doesn't.
            "_join" => match body.collect().await.expect("a body").to_bytes().as_ref() {
                b"good" => echo(&parts, &identity),
                _ => axum_json(StatusCode::FORBIDDEN, &json!({"error": "forbidden"})),
            },
            "big" => json_text("x".repeat(100_000)),
            "small" => json_text("x".repeat(100)),
            "image" => ([(header::CONTENT_TYPE, "image/png")], vec![7; 100_000]).into_response(),
            "film" => ([(header::CONTENT_TYPE, "video/mp4")], vec![7; 4_000_000]).into_response(),
            "drip" => drip(),
            "_feeds" if parts.headers.contains_key(header::UPGRADE) => many_feeds(&rean, &parts, &identity),
            "_feeds" if get("accept") == Some("text/event-stream") => {
                let mut response = feed(&rean, "_feeds", "");
                // What it was told goes back, for the test to see.
                response.headers_mut().extend(
                    parts
                        .headers
                        .get("x-adea-closed")
                        .map(|told| (http::HeaderName::from_static("x-told-closed"), told.clone())),
                );
                response
            }
            "refuse" => axum_json(StatusCode::FORBIDDEN, &json!({"error": "forbidden"})),
            _ => echo(&parts, &identity),
        },
    }
}

fn axum_json(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn json_text(text: String) -> Response {
    axum_json(StatusCode::OK, &json!({"text": text}))
}

fn echo(parts: &http::request::Parts, identity: &adea_ring::Identity) -> Response {
    let headers: HashMap<_, _> =
        parts.headers.iter().map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()))).collect();
    let value = json!({"method": parts.method.as_str(), "uri": parts.uri.to_string(),
        "headers": headers, "name": identity.name, "roles": identity.roles});
    let mut response = axum_json(StatusCode::OK, &value);
    let headers = response.headers_mut();
    headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Basic"));
    response
}

async fn documents(rean: &FakeRean, method: &Method, (db, id): (&str, &str), query: &str, body: Body) -> Response {
    match *method {
        Method::PUT => {
            let bytes = body.collect().await.expect("a body").to_bytes();
            let rev = rean.put(db, id, serde_json::from_slice(&bytes).expect("JSON"));
            let etag = [(header::ETAG, format!("\"{rev}\""))];
            (StatusCode::CREATED, etag, format!("{{\"ok\":true,\"rev\":\"{rev}\"}}\n")).into_response()
        }
        Method::DELETE => {
            let known = rean.docs.lock().expect("lock").get(&format!("{db}/{id}")).map(|(now, _)| format!("{now}-a"));
            let named = query.strip_prefix("rev=");
            if let (Some(known), Some(named)) = (&known, named)
                && known != named
            {
                return axum_json(StatusCode::CONFLICT, &json!({"error": "conflict"}));
            }
            rean.delete(db, id);
            axum_json(StatusCode::OK, &json!({"ok": true}))
        }
        _ => {
            if db == "_users" {
                rean.user_reads.fetch_add(1, Ordering::SeqCst);
            }
            match rean.docs.lock().expect("lock").get(&format!("{db}/{id}")) {
                Some((generation, doc)) => {
                    let mut doc = doc.clone();
                    doc["_rev"] = format!("{generation}-a").into();
                    if !query.contains("deleted_conflicts=true") {
                        doc.as_object_mut().expect("an object").remove("_deleted_conflicts");
                    }
                    axum_json(StatusCode::OK, &doc)
                }
                None => axum_json(StatusCode::NOT_FOUND, &json!({"error": "not_found"})),
            }
        }
    }
}

/// A feed that begins at once, beats every 20 ms, and tells of documents that are put. That of `_feeds` is of events.
fn feed(rean: &Arc<FakeRean>, db: &str, query: &str) -> Response {
    struct Open(Arc<FakeRean>);
    impl Drop for Open {
        fn drop(&mut self) {
            self.0.feeds.fetch_sub(1, Ordering::SeqCst);
        }
    }
    rean.feeds.fetch_add(1, Ordering::SeqCst);
    let open = Open(Arc::clone(rean));
    let (rows, db) = (rean.rows.subscribe(), db.to_owned());
    // Ends after the first row.
    let once = query.contains("once");
    let silent = query.contains("silent");
    let all_leaves = query.contains("style=all_docs");
    let beat_text = if db == "_feeds" { ":\n\n" } else { "\n" };
    let start = if query.contains("longpoll") { "{\"results\":[\n" } else { beat_text };
    let stream = futures_util::stream::unfold(Some((rows, Some(start), open)), move |state| {
        let db = db.clone();
        async move {
            let (mut rows, start, open) = state?;
            if let Some(start) = start {
                return Some((Ok::<_, std::io::Error>(Bytes::from(start)), Some((rows, None, open))));
            }
            loop {
                let beat = if silent { Duration::MAX } else { Duration::from_millis(20) };
                match tokio::time::timeout(beat, rows.recv()).await {
                    Err(_) => return Some((Ok(Bytes::from(beat_text)), Some((rows, None, open)))),
                    Ok(Ok((of, row))) if of == db => {
                        let mut row: Value = serde_json::from_str(&row).expect("JSON");
                        if let Some(leaves) = row["changes"].as_array_mut().filter(|_| !all_leaves) {
                            leaves.truncate(1);
                        }
                        let row = row.to_string();
                        let next = (!once).then_some((rows, None, open));
                        return Some((Ok(Bytes::from(row + "\n")), next));
                    }
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) => return None,
                }
            }
        }
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(stream)).into_response()
}

async fn sink(rean: &FakeRean, mut body: Body) -> Response {
    let mut total = 0;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                total += bytes;
                rean.sunk.fetch_add(bytes, Ordering::SeqCst);
            }
            Err(_) => return StatusCode::BAD_REQUEST.into_response(),
        }
    }
    axum_json(StatusCode::OK, &json!({"bytes": total}))
}

/// A frame with a text, as a WebSocket's server sends it.
pub fn frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 126];
    frame.extend_from_slice(&u16::try_from(text.len()).expect("short").to_be_bytes());
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// A connection with many feeds: first a message that tells what was asked, then one after the other, each in two halves.
/// What the client sends is kept in `told`.
fn many_feeds(rean: &Arc<FakeRean>, parts: &http::request::Parts, identity: &adea_ring::Identity) -> Response {
    let upgrade = parts.extensions.get::<hyper::upgrade::OnUpgrade>().cloned().expect("may be upgraded");
    let headers: HashMap<_, _> =
        parts.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
    let first = frame(&json!({"headers": headers, "name": identity.name}).to_string());
    let rean = Arc::clone(rean);
    tokio::spawn(async move {
        let mut socket = TokioIo::new(upgrade.await.expect("upgraded"));
        rean.feeds.fetch_add(1, Ordering::SeqCst);
        let message = frame(&"x".repeat(300));
        let mut heard = [0; 64];
        let mut sent = socket.write_all(&first).await;
        while sent.is_ok() {
            for half in [&message[..150], &message[150..]] {
                sent = socket.write_all(half).await;
                tokio::select! {
                    read = socket.read(&mut heard) => match read {
                        Ok(0) | Err(_) => sent = Err(std::io::ErrorKind::UnexpectedEof.into()),
                        Ok(count) => rean.told.lock().expect("lock").extend_from_slice(&heard[..count]),
                    },
                    () = tokio::time::sleep(Duration::from_millis(5)) => {}
                }
            }
        }
        rean.feeds.fetch_sub(1, Ordering::SeqCst);
    });
    let headers = [
        (header::CONNECTION, "upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_ACCEPT, "accepted"),
        (header::SEC_WEBSOCKET_PROTOCOL, "adea.feeds.v1"),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Ten parts, 20 ms apart.
fn drip() -> Response {
    let stream = futures_util::stream::unfold(0, |n| async move {
        if n == 10 {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        Some((Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 1000])), n + 1))
    });
    Body::from_stream(stream).into_response()
}

/// A running proxy before a fake rean.
pub struct Pod {
    pub rean: Arc<FakeRean>,
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    pub served: Option<tokio::task::JoinHandle<()>>,
}

impl Pod {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let rean = FakeRean::start().await;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config::new(any, rean.address, rean.secret.clone());
        config.admin = Some(Admin { name: ADMIN.0.into(), hash: hash(ADMIN.1) });
        change(&mut config);
        let server = Server::bind(&config).expect("binds");
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        let pod = Self { rean, address, stop: Some(stop), served: Some(served) };
        // Both followers are at work: changes count from here on, and no feed is ended for a late start.
        until("the followers", || pod.rean.feeds.load(Ordering::SeqCst) == 2).await;
        pod
    }

    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Sends a request and reads the whole answer.
    pub async fn ask(&self, request: http::request::Builder, body: &str) -> Answer {
        let (response, _) = self.open(request, body.to_owned().into()).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// Sends a request on a connection of its own.
    pub async fn open(
        &self,
        request: http::request::Builder,
        body: Bytes,
    ) -> (http::Response<hyper::body::Incoming>, tokio::task::AbortHandle) {
        let stream = TcpStream::connect(self.address).await.expect("connects");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        let request = request.header("host", "pod").body(Full::new(body)).expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        // A connection ends with its sender; its answer needs it.
        tokio::spawn(async move {
            let _ = sender.ready().await;
        });
        (response, task.abort_handle())
    }

    pub async fn get(&self, path: &str, login: Option<(&str, &str)>) -> Answer {
        self.ask(request("GET", path, login), "").await
    }
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }
}

pub fn request(method: &str, path: &str, login: Option<(&str, &str)>) -> http::request::Builder {
    let mut request = http::Request::builder().method(method).uri(path);
    if let Some((name, password)) = login {
        let text = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
        request = request.header("authorization", format!("Basic {text}"));
    }
    request
}

/// Waits for a state, ten seconds at the most.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come about in time");
}

/// Gives a future ten seconds.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(10), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen in time"),
    }
}
