//! A pod on a temporary folder, asked without a network: requests go straight to the router.
#![allow(dead_code, reason = "each test program uses its part of this")]

use std::sync::Arc;
use std::time::Duration;

use adea_ring::{Identity, RingSecret};
use axum::body::Body;
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use rean::pod::Pod;
use rean::route::{self, Request};
use rean::{Config, Limits};
use serde_json::Value;

/// What waits for a state gives up after this.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come about in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub struct World {
    pub pod: Arc<Pod>,
    _folder: tempfile::TempDir,
}

pub struct Answer {
    pub status: StatusCode,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }
}

pub fn admin() -> Identity {
    user("root", &["_admin"])
}

pub fn user(name: &str, roles: &[&str]) -> Identity {
    Identity { name: Some(name.to_owned()), roles: roles.iter().map(|role| (*role).to_owned()).collect() }
}

impl World {
    pub async fn new() -> Self {
        Self::limited(Limits::default()).await
    }

    pub async fn limited(limits: Limits) -> Self {
        Self::of_ring(limits, RingSecret::random()).await
    }

    /// A pod of the ring with this secret.
    pub async fn of_ring(limits: Limits, secret: RingSecret) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            data_dir: folder.path().join("rean"),
            engine: "fjall".parse().expect("an engine"),
            ring_secret: RingSecret::from_hex(&secret.to_hex()).expect("a secret"),
            limits,
            pod_id: "pod".parse().expect("a pod's id"),
            ring_listen: None,
            logs_dir: Some(folder.path().join("logs")),
        };
        let pod = tokio::task::spawn_blocking(move || Pod::boot(&config, &secret))
            .await
            .expect("no panic")
            .expect("the pod boots");
        rean::tasks::start(&pod);
        Self { pod, _folder: folder }
    }

    /// The folder that the pod's is in.
    pub fn folder(&self) -> &std::path::Path {
        self._folder.path()
    }

    pub async fn raw(&self, who: &Identity, method: &str, path: &str, body: Option<&Value>) -> http::Response<Body> {
        let mut request =
            http::Request::builder().method(Method::from_bytes(method.as_bytes()).expect("a method")).uri(path);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = request.body(body).expect("a request");
        let answer = match Request::from_http(request) {
            Ok(request) => route::dispatch(&self.pod, who, request).await,
            Err(error) => Err(error),
        };
        answer.unwrap_or_else(|error| error.into_response())
    }

    pub async fn send(&self, who: &Identity, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let response = self.raw(who, method, path, body).await;
        let status = response.status();
        let bytes = tokio::time::timeout(DEADLINE, response.into_body().collect())
            .await
            .expect("the body ends in time")
            .expect("the body is whole")
            .to_bytes();
        let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
        Answer { status, text }
    }

    pub async fn get(&self, who: &Identity, path: &str) -> Answer {
        self.send(who, "GET", path, None).await
    }

    pub async fn put(&self, who: &Identity, path: &str, body: Value) -> Answer {
        self.send(who, "PUT", path, Some(&body)).await
    }

    pub async fn post(&self, who: &Identity, path: &str, body: Value) -> Answer {
        self.send(who, "POST", path, Some(&body)).await
    }

    /// Makes a database and gives everyone the right to it.
    pub async fn open_db(&self, name: &str) {
        self.send(&admin(), "PUT", &format!("/{name}"), None).await.expect(201);
        self.put(&admin(), &format!("/{name}/_security"), serde_json::json!({"members": {"names": [], "roles": []}}))
            .await
            .expect(200);
    }

    /// Makes an app.
    pub async fn app(&self, name: &str) {
        self.send(&admin(), "PUT", &format!("/{name}?access=true"), None).await.expect(201);
    }

    /// Makes or changes an account; gives back its revision.
    pub async fn account(&self, name: &str, roles: &[&str]) {
        let path = format!("/_users/org.couchdb.user:{name}");
        let old = self.get(&admin(), &path).await;
        let mut doc = serde_json::json!({"name": name, "type": "user", "roles": roles});
        if old.status == 200 {
            doc["_rev"] = old.json()["_rev"].clone();
        }
        self.put(&admin(), &path, doc).await.expect(201);
    }

    pub async fn feed(&self, who: &Identity, path: &str) -> Listener {
        let response = self.raw(who, "GET", path, None).await;
        assert_eq!(response.status(), 200);
        Listener { body: response.into_body(), text: String::new(), ended: false }
    }
}

/// Someone who reads a feed.
pub struct Listener {
    body: Body,
    pub text: String,
    pub ended: bool,
}

impl Listener {
    /// Takes the next piece; `false` at the end.
    pub async fn step(&mut self) -> bool {
        let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await.expect("something comes in time");
        match frame {
            Some(Ok(frame)) => {
                let bytes: Bytes = frame.into_data().expect("data");
                self.text.push_str(std::str::from_utf8(&bytes).expect("UTF-8"));
                true
            }
            Some(Err(_)) | None => {
                self.ended = true;
                false
            }
        }
    }

    /// Reads until there are this many lines of JSON.
    pub async fn lines(&mut self, count: usize) -> Vec<Value> {
        while self.all_lines().len() < count {
            assert!(self.step().await, "the feed ended: {}", self.text);
        }
        self.all_lines()
    }

    pub fn all_lines(&self) -> Vec<Value> {
        let whole = self.text.rfind('\n').map_or("", |end| &self.text[..end]);
        whole
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect()
    }

    /// Reads until the end.
    pub async fn end(&mut self) {
        while self.step().await {}
    }

    /// Whether nothing comes for a moment.
    pub async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(150), self.body.frame()).await.is_err()
    }
}
