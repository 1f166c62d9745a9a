//! An engine for tests: a server on a Unix socket that answers as Docker does, about containers that exist only in a
//! list.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::task::{JoinHandle, JoinSet};

/// A server, and what it knows.
pub struct FakeEngine {
    pub socket: PathBuf,
    world: Arc<Mutex<World>>,
    task: Option<JoinHandle<()>>,
}

/// What an engine has.
#[derive(Default)]
pub struct World {
    pub containers: BTreeMap<String, Container>,
    pub networks: BTreeMap<String, HashMap<String, String>>,
    /// Names, ids too, and the image's id.
    pub images: BTreeMap<String, String>,
    /// What could be pulled.
    pub registry: Vec<String>,
    /// Every order that changes something.
    pub orders: Vec<String>,
    /// What each container ends with as soon as it is started.
    pub ends_at_once: Option<i64>,
    /// What `/podctl` is in each image: an archive.
    pub program: Vec<u8>,
    last: u32,
}

/// A container.
#[derive(Clone, Default)]
pub struct Container {
    pub id: String,
    pub body: Value,
    pub image: String,
    pub pid: u32,
    pub exit_code: i64,
    pub log: Vec<String>,
}

impl FakeEngine {
    pub fn start(dir: &Path) -> Self {
        let mut engine = Self { socket: dir.join("docker.sock"), world: Arc::default(), task: None };
        engine.set_up(true);
        engine
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub fn orders(&self) -> Vec<String> {
        std::mem::take(&mut self.world().orders)
    }

    /// Stops the server, or starts it again over the same containers.
    pub fn set_up(&mut self, up: bool) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        // There is none before the first start.
        let _ = std::fs::remove_file(&self.socket);
        if up {
            let listener = UnixListener::bind(&self.socket).unwrap();
            self.task = Some(tokio::spawn(serve(listener, Arc::clone(&self.world))));
        }
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

async fn serve(listener: UnixListener, world: Arc<Mutex<World>>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let world = Arc::clone(&world);
        connections.spawn(async move {
            let answer = service_fn(move |request| answer(request, Arc::clone(&world)));
            // A client may hang up at any time.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

async fn answer(request: Request<Incoming>, world: Arc<Mutex<World>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().trim_start_matches('/');
    let path = match path.split_once('/') {
        Some((version, rest)) if version.starts_with("v1.") => rest.to_owned(),
        _ => path.to_owned(),
    };
    let query: HashMap<String, String> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace("%3A", ":").replace("%2F", "/").replace("%40", "@")))
        .collect();
    if path.ends_with("/wait") {
        // Nobody is told of ends here.
        std::future::pending::<()>().await;
    }
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let (status, bytes) = world.lock().unwrap().handle(&parts.method, &path, &query, &body);
    let mut response = Response::new(Full::new(bytes));
    *response.status_mut() = status;
    Ok(response)
}

type Answer = (StatusCode, Bytes);

fn json_answer(value: &Value) -> Answer {
    (StatusCode::OK, value.to_string().into())
}

/// With all members that Docker always gives.
fn image_summary(id: &String) -> Value {
    json!({
        "Id": id, "ParentId": "", "RepoTags": [], "RepoDigests": [], "Created": 0, "Size": 0, "SharedSize": -1,
        "Labels": {}, "Containers": -1,
    })
}

fn refuse(status: StatusCode, message: &str) -> Answer {
    (status, json!({"message": message}).to_string().into())
}

fn done() -> Answer {
    (StatusCode::NO_CONTENT, Bytes::new())
}

impl World {
    pub fn end(&mut self, name: &str, exit_code: i64) {
        let container = self.containers.get_mut(name).unwrap();
        (container.pid, container.exit_code) = (0, exit_code);
    }

    fn next(&mut self) -> u32 {
        self.last += 1;
        1_000 + self.last
    }

    /// What an image is called, with a tag or a digest.
    fn names_of(&self, image: &str) -> Vec<String> {
        self.images.iter().filter(|(_, id)| *id == image).map(|(name, _)| name.clone()).collect()
    }

    fn name_of(&self, id: &str) -> Option<String> {
        let found = self.containers.iter().find(|(name, container)| *name == id || container.id == id);
        found.map(|(name, _)| name.clone())
    }

    fn handle(&mut self, method: &Method, path: &str, query: &HashMap<String, String>, body: &Bytes) -> Answer {
        let parts: Vec<&str> = path.split('/').collect();
        match (method.as_str(), parts.as_slice()) {
            ("GET", ["version"]) => json_answer(&json!({"ApiVersion": "1.41", "Version": "20.10.24"})),
            ("POST", ["containers", "create"]) => self.create(query, body),
            ("GET", ["networks", name]) => match self.networks.get(*name) {
                Some(labels) => json_answer(&json!({"Name": name, "Labels": labels})),
                None => refuse(StatusCode::NOT_FOUND, "no such network"),
            },
            ("POST", ["networks", "create"]) => {
                let body: Value = serde_json::from_slice(body).unwrap();
                let name = body["Name"].as_str().unwrap().to_owned();
                self.orders.push(format!("network {name}"));
                self.networks.insert(name, serde_json::from_value(body["Labels"].clone()).unwrap());
                json_answer(&json!({"Id": "n", "Warning": ""}))
            }
            ("DELETE", ["networks", name]) => {
                let name = (*name).to_owned();
                if self.containers.values().any(|one| one.body["HostConfig"]["NetworkMode"] == name.as_str()) {
                    return refuse(StatusCode::FORBIDDEN, "has active endpoints");
                }
                self.networks.remove(&name);
                self.orders.push(format!("remove network {name}"));
                done()
            }
            ("GET", ["containers", "json"]) => {
                let all = self.containers.values().filter(|one| query.contains_key("all") || one.pid != 0);
                json_answer(
                    &all.map(|one| json!({"Id": one.id, "ImageID": one.image, "Labels": one.body["Labels"]})).collect(),
                )
            }
            ("DELETE", ["images", id]) => {
                let names = self.names_of(id);
                if names.is_empty() {
                    return refuse(StatusCode::NOT_FOUND, "no such image");
                }
                if self.containers.values().any(|one| one.image == *id) {
                    return refuse(StatusCode::CONFLICT, "image is being used by a container");
                }
                // The only tag goes with the image, whoever has given it.
                let tags = names.iter().filter(|name| !name.contains('@')).count();
                let repositories = names.iter().map(|name| name.split(['@', ':']).next());
                if tags > 1 || repositories.collect::<BTreeSet<_>>().len() > 1 {
                    return refuse(StatusCode::CONFLICT, "image is referenced in multiple repositories");
                }
                self.images.retain(|_, one| one != id);
                self.orders.push(format!("remove image {}", names[0]));
                json_answer(&json!([{"Untagged": names[0]}, {"Deleted": id}]))
            }
            ("POST", ["images", "load"]) => self.load(body),
            ("POST", ["images", "create"]) => {
                let name = query["fromImage"].clone();
                self.orders.push(format!("pull {name}"));
                if !self.registry.contains(&name) {
                    return refuse(StatusCode::NOT_FOUND, &format!("pull access denied for {name}"));
                }
                let id = format!("sha256:{}", self.next());
                self.images.insert(name, id);
                json_answer(&json!({"status": "done"}))
            }
            ("GET", ["images", "json"]) => {
                let ids: BTreeSet<&String> = self.images.values().collect();
                json_answer(&ids.into_iter().map(image_summary).collect())
            }
            ("GET", ["images", name @ .., "json"]) => {
                let name = name.join("/");
                let id = self.images.get(&name).or_else(|| self.images.values().find(|id| **id == name));
                match id {
                    Some(id) => json_answer(&json!({
                        "Id": id, "RepoTags": self.names_of(id).iter().filter(|name| !name.contains('@')).collect::<Vec<_>>(),
                        "Config": {"Labels": {"org.opencontainers.image.version": "1.2.3"}},
                    })),
                    None => refuse(StatusCode::NOT_FOUND, "no such image"),
                }
            }
            (_, ["containers", id, ..]) => match self.name_of(id) {
                Some(name) => self.container(method, &name, &parts[2..], query),
                None => refuse(StatusCode::NOT_FOUND, "no such container"),
            },
            _ => refuse(StatusCode::NOT_IMPLEMENTED, path),
        }
    }

    fn create(&mut self, query: &HashMap<String, String>, body: &Bytes) -> Answer {
        let body: Value = serde_json::from_slice(body).unwrap();
        let number = self.next();
        let name = query.get("name").cloned().unwrap_or_else(|| format!("nameless-{number}"));
        if self.containers.contains_key(&name) {
            return refuse(StatusCode::CONFLICT, "the name is in use");
        }
        let Some(image) = self.images.get(body["Image"].as_str().unwrap()).cloned() else {
            return refuse(StatusCode::NOT_FOUND, "no such image");
        };
        self.orders.push(format!("create {name}"));
        let id = format!("id-{number}");
        self.containers.insert(name, Container { id: id.clone(), body, image, ..Container::default() });
        json_answer(&json!({"Id": id, "Warnings": []}))
    }

    fn container(&mut self, method: &Method, name: &str, what: &[&str], query: &HashMap<String, String>) -> Answer {
        let pid = self.next();
        let ends_at_once = self.ends_at_once;
        let container = self.containers.get_mut(name).unwrap();
        let runs = container.pid != 0;
        let order = match (method.as_str(), what) {
            ("GET", ["json"]) => return json_answer(&container.inspected(name)),
            ("GET", ["logs"]) => {
                let lines = container.log.iter().flat_map(|line| {
                    let length = u32::try_from(line.len()).unwrap().to_be_bytes();
                    [&[2, 0, 0, 0][..], &length, line.as_bytes()].concat()
                });
                return (StatusCode::OK, lines.collect::<Vec<u8>>().into());
            }
            ("GET", ["archive"]) => return (StatusCode::OK, self.program.clone().into()),
            ("POST", ["start"]) if !runs => {
                (container.pid, container.exit_code) = match ends_at_once {
                    Some(code) => (0, code),
                    None => (pid, 0),
                };
                format!("start {name}")
            }
            ("POST", ["kill"]) => {
                if !runs {
                    return refuse(StatusCode::CONFLICT, "is not running");
                }
                container.pid = 0;
                format!("{} {name}", query["signal"])
            }
            ("POST", ["stop"]) => {
                container.pid = 0;
                format!("stop {name}")
            }
            ("DELETE", []) => {
                if runs {
                    return refuse(StatusCode::CONFLICT, "stop it first");
                }
                self.containers.remove(name);
                format!("remove {name}")
            }
            _ => return refuse(StatusCode::NOT_IMPLEMENTED, &what.join("/")),
        };
        self.orders.push(order);
        done()
    }

    fn load(&mut self, body: &Bytes) -> Answer {
        let mut archive = tar::Archive::new(&body[..]);
        let mut manifest = String::new();
        let Ok(entries) = archive.entries() else {
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "no archive");
        };
        for entry in entries {
            let Ok(mut entry) = entry else {
                return json_answer(&json!({"errorDetail": {"message": "the archive is cut off"}, "error": "x"}));
            };
            if entry.path().unwrap().ends_with("manifest.json") {
                entry.read_to_string(&mut manifest).unwrap();
            }
        }
        let Ok(manifest) = serde_json::from_str::<Value>(&manifest) else {
            return json_answer(&json!({"errorDetail": {"message": "no manifest"}, "error": "no manifest"}));
        };
        let name = manifest[0]["RepoTags"][0].as_str().unwrap().to_owned();
        self.orders.push(format!("load {name}"));
        let id = format!("sha256:{}", self.next());
        // What is there already stays as it is.
        self.images.entry(name.clone()).or_insert(id);
        json_answer(&json!({"stream": format!("Loaded image: {name}\n")}))
    }
}

impl Container {
    pub fn labels(&self) -> HashMap<String, String> {
        serde_json::from_value(self.body["Labels"].clone()).unwrap_or_default()
    }

    fn inspected(&self, name: &str) -> Value {
        let network = self.body["HostConfig"]["NetworkMode"].as_str().unwrap_or("bridge");
        json!({
            "Id": self.id, "Name": format!("/{name}"), "Image": self.image,
            "State": {"Running": self.pid != 0, "Pid": self.pid, "ExitCode": self.exit_code, "OOMKilled": false, "Error": ""},
            "Config": {"Labels": self.body["Labels"]},
            "NetworkSettings": {"Networks": {network: {"IPAddress": if self.pid == 0 { "" } else { "172.30.0.2" }}}},
        })
    }
}
