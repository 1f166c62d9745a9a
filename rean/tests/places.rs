//! Slow and announced bodies don't hold what others need; and what is in a bucket is removed by none but its only ring.

mod harness;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use adea_ring::identity::USER_NAME_HEADER;
use adea_ring::{Identity, RingSecret};
use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use harness::{DEADLINE, World, admin, until, user};
use parking_lot::Mutex;
use rean::Limits;
use rean::files::sweep::{Swept, sweep};
use rean::route::{self, Request};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const MIB: usize = 1 << 20;
/// Longer than files are kept for.
const WEEKS_S: u64 = 1_000 * 3_600;

/// How far bodies that never end were read.
#[derive(Default)]
struct Read {
    begun: AtomicUsize,
    waiting: AtomicUsize,
}

/// Some bytes, and then nothing.
fn endless(read: &Arc<Read>, bytes: usize) -> Body {
    let (begun, waiting) = (Arc::clone(read), Arc::clone(read));
    let first = stream::once(async move {
        begun.begun.fetch_add(1, Ordering::SeqCst);
        Ok::<_, std::io::Error>(Bytes::from(vec![b' '; bytes]))
    });
    let rest = stream::once(async move {
        waiting.waiting.fetch_add(1, Ordering::SeqCst);
        std::future::pending().await
    });
    Body::from_stream(first.chain(rest))
}

/// Sends a request as the proxy does, with who it is of; gives the status.
async fn send(world: &World, who: &Identity, method: &str, path: &str, kind: &str, length: usize, body: Body) -> u16 {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .header("content-length", length)
        .header(USER_NAME_HEADER, who.name.as_deref().unwrap_or_default());
    let request = Request::from_http(request.body(body).expect("a request")).expect("a good path");
    let answer = route::dispatch(&world.pod, who, request).await.unwrap_or_else(|error| error.into_response());
    answer.status().as_u16()
}

async fn put(world: &World, who: &Identity, path: &str, kind: &str, bytes: Vec<u8>) -> u16 {
    let length = bytes.len();
    let sent = send(world, who, "PUT", path, kind, length, Body::from(bytes));
    tokio::time::timeout(DEADLINE, sent).await.expect("there is room for this one")
}

/// Settings, once they are in force.
async fn configure(world: &World, files: serde_json::Value) {
    world.put(&admin(), "/_ring/config", json!({"files": files})).await.expect(201);
    until("the configuration is in force", || world.pod.ring.config().files.above_mib == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attachments_that_are_only_announced_hold_no_place() {
    let world = World::new().await;
    configure(&world, json!({"above_mib": 1})).await;
    world.open_db("db").await;
    let world = Arc::new(world);
    // Each says that it will be large; there are more than places for such ones.
    let read = Arc::new(Read::default());
    let mut senders = Vec::new();
    for n in 0..150 {
        let (world, read) = (Arc::clone(&world), Arc::clone(&read));
        senders.push(tokio::spawn(async move {
            let who = user(&format!("user-{}", n / 5), &[]);
            send(&world, &who, "PUT", &format!("/db/{n}/film"), "video/mp4", 500 * MIB, endless(&read, 10)).await
        }));
    }
    until("all have begun", || read.waiting.load(Ordering::SeqCst) == 150).await;
    assert_eq!(put(&world, &user("ann", &[]), "/db/a/film", "video/mp4", vec![7; 3 * MIB]).await, 201);
    senders.iter().for_each(|sender| sender.abort());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_account_holds_not_all_memory_for_bodies() {
    let limits =
        Limits { max_document_bytes: MIB, max_body_bytes: MIB, max_bodies_bytes: 4 * MIB, ..Limits::default() };
    let world = Arc::new(World::limited(limits).await);
    world.open_db("db").await;
    let read = Arc::new(Read::default());
    let mut senders = Vec::new();
    for n in 0..8 {
        let (world, read) = (Arc::clone(&world), Arc::clone(&read));
        senders.push(tokio::spawn(async move {
            let (path, body) = (format!("/db/{n}"), endless(&read, 600_000));
            send(&world, &user("greedy", &[]), "PUT", &path, "application/json", MIB, body).await
        }));
    }
    until("all have begun", || read.begun.load(Ordering::SeqCst) == 8 && read.waiting.load(Ordering::SeqCst) >= 3)
        .await;
    let doc = json!({"text": "x".repeat(600_000)}).to_string().into_bytes();
    assert_eq!(put(&world, &user("ann", &[]), "/db/a", "application/json", doc).await, 201);
    assert_eq!(read.waiting.load(Ordering::SeqCst), 3, "one account has so much");
    senders.iter().for_each(|sender| sender.abort());
}

/// As much of S3 as is asked for here; all objects are years old.
#[derive(Default)]
struct Bucket {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Bucket {
    async fn start() -> (Arc<Self>, String) {
        let bucket = Arc::new(Self::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let served = Arc::clone(&bucket);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let bucket = Arc::clone(&served);
                tokio::spawn(async move { bucket.answer(stream).await });
            }
        });
        (bucket, url)
    }

    async fn answer(&self, mut stream: TcpStream) -> Option<()> {
        let mut text = Vec::new();
        let head = loop {
            if let Some(at) = text.windows(4).position(|end| end == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut text).await.ok()? == 0 {
                return None;
            }
        };
        let lines = String::from_utf8_lossy(&text[..head]).to_lowercase();
        let header = |name: &str| lines.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let length: usize = header("content-length:").map_or(0, |length| length.parse().expect("a number"));
        while text.len() < head + length {
            stream.read_buf(&mut text).await.ok()?;
        }
        let mut words = lines.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let (status, body) = self.act(method, target, header("if-none-match:").is_some(), &text[head..]);
        let reply = format!(
            "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\nETag: \"1\"\r\n\
             Last-Modified: Wed, 01 Jan 2020 00:00:00 GMT\r\n\r\n",
            body.len()
        );
        stream.write_all(&[reply.as_bytes(), &body].concat()).await.ok()
    }

    fn act(&self, method: &str, target: &str, is_new: bool, body: &[u8]) -> (u16, Vec<u8>) {
        let mut objects = self.objects.lock();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let key = path.trim_start_matches("/bucket").trim_matches('/').to_owned();
        match method {
            "get" if query.contains("list-type=2") => {
                let each = |key: &String| {
                    let about = "<LastModified>2020-01-01T00:00:00.000Z</LastModified><ETag>1</ETag><Size>1</Size>";
                    format!("<Contents><Key>{key}</Key>{about}</Contents>")
                };
                let listed: String = objects.keys().map(each).collect();
                let head = "<Name>bucket</Name><IsTruncated>false</IsTruncated>";
                (200, format!("<ListBucketResult>{head}{listed}</ListBucketResult>").into_bytes())
            }
            "get" => objects.get(&key).map_or((404, Vec::new()), |bytes| (200, bytes.clone())),
            "put" if is_new && objects.contains_key(&key) => (412, Vec::new()),
            "put" => {
                objects.insert(key, body.to_vec());
                (200, Vec::new())
            }
            "delete" => {
                objects.remove(&key);
                (204, Vec::new())
            }
            // Some at once.
            _ => {
                let text = String::from_utf8_lossy(body);
                let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
                let deleted: String = keys
                    .map(|(key, _)| {
                        objects.remove(key);
                        format!("<Deleted><Key>{key}</Key></Deleted>")
                    })
                    .collect();
                (200, format!("<DeleteResult>{deleted}</DeleteResult>").into_bytes())
            }
        }
    }
}

/// A pod that keeps its files there.
async fn beside(url: &str, secret: &RingSecret) -> World {
    let secret = RingSecret::from_hex(&secret.to_hex()).expect("a secret");
    let world = World::of_ring(Limits::default(), secret).await;
    let file = world.folder().join("rean/files-credentials.json");
    std::fs::write(&file, json!({"access_key_id": "tests", "secret_access_key": "quite a secret"}).to_string())
        .expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("private");
    let s3 = json!({"bucket": "bucket", "endpoint": url, "allow_http": true, "prefix": "notes"});
    configure(&world, json!({"above_mib": 1, "store": {"s3": s3}})).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_rings_have_in_one_place_is_swept_by_neither() {
    let (bucket, url) = Bucket::start().await;
    let secret = RingSecret::random();
    let world = beside(&url, &secret).await;
    let now_s = std::time::UNIX_EPOCH.elapsed().expect("a time").as_secs();
    assert_eq!(sweep(&world.pod, now_s).await.expect("swept"), Swept::default());
    let mark = bucket.objects.lock().keys().next().expect("the mark").clone();
    let folder = mark.strip_suffix("/mark.json").expect("the mark").to_owned();
    let first = bucket.objects.lock()[&mark].clone();
    // An object that no document has goes when its time has come, and the mark changes with each sweep.
    let lost = |name: &str| format!("{folder}/{}/{}", &name[..2], name);
    let one = lost(&"1".repeat(32));
    bucket.objects.lock().insert(one.clone(), vec![1]);
    assert_eq!(sweep(&world.pod, now_s).await.expect("swept"), Swept { idle: 1, removed: 0 });
    assert_eq!(sweep(&world.pod, now_s + WEEKS_S).await.expect("swept"), Swept { idle: 1, removed: 1 });
    assert!(!bucket.objects.lock().contains_key(&one));
    assert_ne!(bucket.objects.lock()[&mark], first);

    // Another ring with this secret: what it finds idle may be the first one's.
    let two = lost(&"2".repeat(32));
    bucket.objects.lock().insert(two.clone(), vec![2]);
    assert_eq!(sweep(&world.pod, now_s).await.expect("swept").idle, 1);
    let other = beside(&url, &secret).await;
    for at_s in [now_s, now_s + WEEKS_S] {
        for pod in [&other.pod, &world.pod] {
            let refusal = sweep(pod, at_s).await.expect_err("nobody is alone there").to_string();
            assert!(refusal.contains(&mark) && refusal.contains("files.store.s3.prefix"), "{refusal}");
        }
    }
    assert!(bucket.objects.lock().contains_key(&two));

    // An administrator has given the other one another place, and removed the mark.
    bucket.objects.lock().remove(&mark);
    assert_eq!(sweep(&world.pod, now_s + WEEKS_S).await.expect("swept"), Swept { idle: 1, removed: 1 });
}
