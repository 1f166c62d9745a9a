//! Pods of one ring in one process: real servers on loopback, links and forwarding over TLS. Who is master and who lives
//! is told to them by the test, as adea would tell it.
#![allow(dead_code, reason = "each test program uses its part of this")]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use adea_ring::election::Epoch;
use adea_ring::report::{Dropped, EpochStart, Facts, Known, RingState, Role, Said};
use adea_ring::{Identity, Member, PodId, RingSecret, Signer};
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rean::pod::Pod;
use rean::route::{self, Request};
use rean::server::Server;
use rean::{Config, Limits};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What waits for a state gives up after this.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub fn admin() -> Identity {
    user("root", &["_admin"])
}

pub fn user(name: &str, roles: &[&str]) -> Identity {
    Identity { name: Some(name.to_owned()), roles: roles.iter().map(|role| (*role).to_owned()).collect() }
}

pub fn id(text: &str) -> PodId {
    text.parse().expect("a pod's id")
}

/// Waits until something is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }
}

/// One pod that serves.
pub struct Running {
    pub pod: Arc<Pod>,
    pub address: SocketAddr,
    pub ring_address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

/// A member of the ring, whether it serves or not.
pub struct Place {
    pub id: PodId,
    folder: tempfile::TempDir,
    /// Where it listened last: it comes back there.
    last: Option<SocketAddr>,
    running: Option<Running>,
}

/// Some pods of one ring.
pub struct TestRing {
    pub secret: RingSecret,
    pub places: Vec<Place>,
    signer: Signer,
    client: Client<HttpConnector, Body>,
    epochs: AtomicU64,
    limits: Limits,
}

impl TestRing {
    /// Pods `pod-1`, `pod-2` and so on, which have not been told anything.
    pub async fn start(count: usize) -> Self {
        // Tests don't speak four times a second.
        Self::start_with(count, Limits { max_silence_ms: 600_000, ..Limits::default() }).await
    }

    pub async fn start_with(count: usize, limits: Limits) -> Self {
        let secret = RingSecret::random();
        let place = |at: usize| Place {
            id: id(&format!("pod-{}", at + 1)),
            folder: tempfile::tempdir().expect("a temporary folder"),
            last: None,
            running: None,
        };
        let mut ring = Self {
            signer: Signer::new(&secret),
            places: (0..count).map(place).collect(),
            client: Client::builder(TokioExecutor::new()).build_http(),
            epochs: AtomicU64::new(0),
            limits,
            secret,
        };
        for at in 0..count {
            ring.bring_up(at).await;
        }
        ring
    }

    /// Pods of which this one is master and all others know it.
    pub async fn with_master(count: usize, master: usize) -> Self {
        let ring = Self::start(count).await;
        ring.elect(master).await;
        ring
    }

    /// Starts a pod on its folder, at the ring address that it had.
    pub async fn bring_up(&mut self, at: usize) {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let place = &mut self.places[at];
        let config = Config {
            listen: free,
            data_dir: place.folder.path().join("rean"),
            engine: "fjall".parse().expect("an engine"),
            ring_secret: self.secret.clone(),
            limits: self.limits.clone(),
            pod_id: place.id.clone(),
            ring_listen: Some(place.last.unwrap_or(free)),
            logs_dir: Some(place.folder.path().join("logs")),
        };
        let server = Server::start(config).await.expect("the pod comes up");
        let (stop, stopped) = oneshot::channel();
        let (pod, address) = (Arc::clone(&server.pod), server.address);
        let ring_address = server.ring_address.expect("a ring address");
        let serving = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            server.serve(stopped).await.expect("it ends well");
        });
        place.last = Some(ring_address);
        place.running = Some(Running { pod, address, ring_address, stop, serving });
    }

    /// Stops a pod, and waits for its end.
    pub async fn take_down(&mut self, at: usize) {
        let running = self.places[at].running.take().expect("it serves");
        drop(running.pod);
        let _ = running.stop.send(());
        tokio::time::timeout(DEADLINE, running.serving).await.expect("it ends in time").expect("no panic");
    }

    /// Throws away what a pod that doesn't serve has stored.
    pub fn wipe(&mut self, at: usize) {
        assert!(self.places[at].running.is_none(), "it serves");
        self.places[at].folder = tempfile::tempdir().expect("a temporary folder");
    }

    /// The folder that a pod's is in.
    pub fn folder(&self, at: usize) -> &std::path::Path {
        self.places[at].folder.path()
    }

    /// Whether a pod serves.
    pub fn is_up(&self, at: usize) -> bool {
        self.places[at].running.is_some()
    }

    pub fn at(&self, at: usize) -> &Running {
        self.places[at].running.as_ref().expect("it serves")
    }

    pub fn pod(&self, at: usize) -> &Arc<Pod> {
        &self.at(at).pod
    }

    /// A stamp later than all before, for the next epoch.
    pub fn next_epoch(&self, master: usize) -> Epoch {
        let count = self.epochs.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{count:012x}-0000-{}", self.places[master].id).parse().expect("a stamp")
    }

    /// What one pod is told: all places are members, those that serve live, all that live are neighbours.
    pub fn state(&self, at: usize, role: Role) -> RingState {
        let live = |place: &Place| place.running.is_some();
        RingState {
            me: self.places[at].id.clone(),
            generation: 1,
            members: self.places.iter().map(|place| self.known(place)).collect(),
            neighbours: self
                .places
                .iter()
                .enumerate()
                .filter(|(other, place)| *other != at && live(place))
                .map(|(_, place)| place.id.clone())
                .collect(),
            clocks_off: Vec::new(),
            dropped: Dropped::default(),
            host: None,
            order_trust: None,
            role,
        }
    }

    fn known(&self, place: &Place) -> Known {
        let address = place.last.map(|address| address.to_string()).unwrap_or_default();
        let mut member = Member::new(place.id.clone(), &address, 1);
        member.alive = place.running.is_some();
        let mut said = Said { url: Some(format!("http://{}.example", place.id)), ..Said::default() };
        if let Some(running) = &place.running
            && let Some(start) = running.pod.ring.start()
        {
            member.claim = Some(start.epoch.clone());
            said.start = Some(start);
        }
        Known { member, said }
    }

    /// Tells a pod what the ring is, over its port.
    pub async fn tell(&self, at: usize, state: &RingState) -> Facts {
        let body = serde_json::to_value(state).expect("JSON");
        let answer = self.send(at, &Identity::system(), "POST", "/_pod/ring", Some(&body)).await;
        serde_json::from_value(answer.expect(200)).expect("facts")
    }

    /// Makes one pod master, in the order of a planned change, and tells all; gives where it began.
    pub async fn elect(&self, master: usize) -> EpochStart {
        let epoch = self.next_epoch(master);
        let others: Vec<usize> =
            (0..self.places.len()).filter(|at| *at != master && self.places[*at].running.is_some()).collect();
        for at in &others {
            if self.pod(*at).ring.is_master() {
                self.tell(*at, &self.state(*at, Role::Waiting)).await;
            }
        }
        let facts = self.tell(master, &self.state(master, Role::Master(epoch.clone()))).await;
        assert_eq!(facts.role, Role::Master(epoch.clone()));
        for at in others {
            let facts = self.tell(at, &self.state(at, Role::Follower(epoch.clone()))).await;
            assert_eq!(facts.role, Role::Follower(epoch.clone()));
        }
        facts.start.expect("a start")
    }

    /// Tells all pods the ring as it is now, in the roles that they have.
    pub async fn tell_all(&self) {
        for at in (0..self.places.len()).filter(|at| self.places[*at].running.is_some()) {
            self.tell(at, &self.state(at, self.pod(at).ring.role())).await;
        }
    }

    /// Writes the same `_ring/config` into each pod and waits until it is in force.
    pub async fn configure(&self, config: Value) {
        let wanted = adea_ring::RingConfig::parse(&config).expect("a good configuration");
        for at in (0..self.places.len()).filter(|at| self.places[*at].running.is_some()) {
            let pod = self.pod(at);
            let request = http::Request::put("/_ring/config")
                .header("content-type", "application/json")
                .body(Body::from(config.to_string()))
                .expect("a request");
            let request = Request::from_http(request).expect("a good path");
            let answer = route::dispatch(pod, &Identity::system(), request).await;
            // It may have come over a link already.
            assert!(answer.is_ok_and(|answer| answer.status() == 201) || at > 0);
            until("the configuration is in force", || async { *pod.ring.config() == wanted }).await;
        }
    }

    /// A request to a pod's own port, in this identity's name.
    pub async fn request(&self, at: usize, who: &Identity, mut request: http::Request<Body>) -> Answer {
        let path = request.uri().path_and_query().expect("a path").clone();
        *request.uri_mut() = format!("http://{}{path}", self.at(at).address).parse().expect("a URI");
        for (name, value) in self.signer.headers(who) {
            request.headers_mut().insert(name, value.parse().expect("a header"));
        }
        let exchange = async {
            let (parts, body) = self.client.request(request).await.expect("an answer").into_parts();
            let body = body.collect().await.expect("a whole body").to_bytes();
            Answer { status: parts.status, headers: parts.headers, body }
        };
        tokio::time::timeout(DEADLINE, exchange).await.expect("an answer in time")
    }

    pub async fn send(&self, at: usize, who: &Identity, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let mut request =
            http::Request::builder().method(Method::from_bytes(method.as_bytes()).expect("a method")).uri(path);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        self.request(at, who, request.body(body).expect("a request")).await
    }

    pub async fn get(&self, at: usize, who: &Identity, path: &str) -> Answer {
        self.send(at, who, "GET", path, None).await
    }

    pub async fn put(&self, at: usize, who: &Identity, path: &str, body: Value) -> Answer {
        self.send(at, who, "PUT", path, Some(&body)).await
    }

    pub async fn post(&self, at: usize, who: &Identity, path: &str, body: Value) -> Answer {
        self.send(at, who, "POST", path, Some(&body)).await
    }

    /// Makes a database through a pod, and opens it to these users, or to everyone.
    pub async fn make_db(&self, at: usize, name: &str, members: &[&str]) {
        self.send(at, &admin(), "PUT", &format!("/{name}"), None).await.expect(201);
        let security = serde_json::json!({"members": {"names": members, "roles": []}});
        self.put(at, &admin(), &format!("/{name}/_security"), security).await.expect(200);
    }
}
