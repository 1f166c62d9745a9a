//! What passes through the proxy, and what does not.

mod common;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::Duration;

use adea_ring::RingSecret;
use bytes::Bytes;
use common::{ADMIN, Pod, request, soon, until};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proxy::{Access, AccessLogTarget, Config, Rules, Server};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_request_reaches_rean_as_it_was() {
    let pod = Pod::start().await;
    let answer = pod.ask(request("COPY", "/a%2Fb/%c3%BC?x=%2f&y", None).header("destination", "c"), "").await;
    assert_eq!(answer.status, StatusCode::OK);
    let seen = answer.json();
    assert_eq!(seen["method"], "COPY");
    assert_eq!(seen["uri"], "/a%2Fb/%c3%BC?x=%2f&y");
    assert_eq!(seen["headers"]["destination"], "c");
    assert_eq!(seen["headers"]["host"], "pod");
    assert_eq!(seen["name"], json!(null));
    assert!(answer.header("server").is_some_and(|server| server.starts_with("Adea/")));
    let id = answer.header("x-couch-request-id").expect("an id");
    assert!(id.len() == 10 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    // By this id both logs name the request; what a client chooses is one short word.
    assert_eq!(seen["headers"]["x-couch-request-id"], id);
    for (given, is_taken) in [("mine-1", true), ("two words", false)] {
        let chosen = pod.ask(request("GET", "/x", None).header("x-couch-request-id", given), "").await;
        let id = chosen.header("x-couch-request-id").expect("an id");
        assert_eq!(chosen.json()["headers"]["x-couch-request-id"], id);
        assert_eq!(id == given, is_taken, "{given}");
    }
    assert_eq!(answer.header("www-authenticate"), None);
}

#[tokio::test]
async fn identities_from_outside_are_stripped() {
    let pod = Pod::start().await;
    let forged = adea_ring::Signer::new(&RingSecret::random());
    let mut builder = request("GET", "/x", None);
    for (name, value) in forged.headers(&adea_ring::Identity::system()) {
        builder = builder.header(name, value);
    }
    let seen = pod.ask(builder.header("connection", "x-auth-couchdb-token"), "").await.json();
    assert_eq!(seen["name"], json!(null));
    let headers = seen["headers"].as_object().expect("headers");
    let auth: Vec<_> = headers.keys().filter(|name| name.starts_with("x-auth")).collect();
    assert_eq!(auth, ["x-auth-couchdb-token"]);
    let seen = pod.get("/x", Some(ADMIN)).await.json();
    assert_eq!((&seen["name"], &seen["roles"]), (&json!("admin"), &json!(["_admin"])));
    assert!(seen["headers"].get("authorization").is_none());
}

#[tokio::test]
async fn the_pods_own_namespace_is_closed() {
    let pod = Pod::start().await;
    for path in ["/_pod/x", "/%5fpod", "//_pod/x"] {
        let answer = pod.get(path, Some(ADMIN)).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.json(), json!({"error": "not_found", "reason": "missing"}));
    }
}

#[tokio::test]
async fn rules_of_the_configuration_hold() {
    let rules = BTreeMap::from([("notes".to_owned(), Access::Closed)]);
    let pod = Pod::start_with(|config| config.rules = Rules::new(rules)).await;
    let answer = pod.get("/notes--me/a", Some(ADMIN)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.header("retry-after").is_some());
    assert_eq!(pod.get("/other/a", Some(ADMIN)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let pod = Pod::start().await;
    let stream = TcpStream::connect(pod.address).await.expect("connects");
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("HTTP");
    tokio::spawn(connection);
    let (parts, body) = tokio::sync::mpsc::channel::<Bytes>(1);
    let body = futures_util::stream::unfold(body, |mut body| async move {
        let data = body.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(http_body::Frame::data(data)), body))
    });
    let body = StreamBody::new(Box::pin(body));
    let put = Request::put("/sink").header("host", "pod").body(body).expect("a request");
    let answer = tokio::spawn(sender.send_request(put));
    // rean has the first part while the second is not yet sent.
    parts.send(Bytes::from_static(&[1; 10])).await.expect("sends");
    until("the first part", || pod.rean.sunk.load(Ordering::SeqCst) == 10).await;
    parts.send(Bytes::from_static(&[1; 5])).await.expect("sends");
    drop(parts);
    let answer = soon("the answer", answer).await.expect("runs").expect("an answer");
    assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), "{\"bytes\":15}");
    // The other way: the first part is here before rean has made the last.
    let (mut answer, _task) = pod.open(request("GET", "/drip", None), Bytes::new()).await;
    let first = soon("the first part", answer.frame()).await.expect("a part").expect("a part");
    let first = first.data_ref().map_or(0, Bytes::len);
    assert!((1..10_000).contains(&first));
    let rest = answer.collect().await.expect("the rest").to_bytes();
    assert_eq!(first + rest.len(), 10_000);
}

#[tokio::test]
async fn http2_with_prior_knowledge_works() {
    let pod = Pod::start().await;
    let stream = TcpStream::connect(pod.address).await.expect("connects");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("HTTP/2");
    tokio::spawn(connection);
    for _ in 0..3 {
        let get = Request::get("http://some.host/x?y").body(Empty::<Bytes>::new()).expect("valid");
        let answer = sender.send_request(get).await.expect("an answer");
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        let seen: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(seen["uri"], "/x?y");
        assert_eq!(seen["headers"]["host"], "some.host");
    }
}

#[tokio::test]
async fn expect_continue_and_chunks_and_pipelines() {
    let pod = Pod::start().await;
    let mut socket = TcpStream::connect(pod.address).await.expect("connects");
    let head = "PUT /sink HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\nExpect: 100-continue\r\n\r\n";
    socket.write_all(head.as_bytes()).await.expect("writes");
    let mut buffer = [0; 25];
    soon("100", socket.read_exact(&mut buffer)).await.expect("reads");
    assert_eq!(&buffer, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(b"{\"e\":1}").await.expect("writes");
    let chunked = "PUT /sink HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    socket.write_all(chunked.as_bytes()).await.expect("writes");
    socket.write_all(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("writes");
    let mut text = String::new();
    soon("the end", socket.read_to_string(&mut text)).await.expect("reads");
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
    assert!(text.contains("{\"bytes\":7}") && text.contains("{\"bytes\":3}"), "{text}");
}

#[tokio::test]
async fn large_json_is_compressed_for_those_who_take_it() {
    let pod = Pod::start().await;
    let ask = |path: &'static str| pod.ask(request("GET", path, None).header("accept-encoding", "gzip"), "");
    let big = ask("/big").await;
    assert_eq!(big.header("content-encoding"), Some("gzip"));
    assert_eq!(big.header("content-length"), None);
    assert!(big.headers.get_all("vary").iter().any(|vary| vary == "Accept-Encoding"));
    let mut plain = String::new();
    flate2::read::GzDecoder::new(&big.body[..]).read_to_string(&mut plain).expect("gzip");
    assert_eq!(plain, pod.get("/big", None).await.body);
    for path in ["/small", "/image"] {
        assert_eq!(ask(path).await.header("content-encoding"), None, "{path}");
    }
    let range = request("GET", "/big", None).header("accept-encoding", "gzip").header("range", "bytes=0-1");
    assert_eq!(pod.ask(range, "").await.header("content-encoding"), None);
    let head = pod.ask(request("HEAD", "/big", None).header("accept-encoding", "gzip"), "").await;
    assert_eq!((head.header("content-encoding"), head.body.len()), (None, 0));
    assert!(head.header("content-length").is_some_and(|bytes| bytes.len() == 6));
}

#[tokio::test]
async fn cors_echoes_the_origin() {
    let pod = Pod::start().await;
    let preflight = request("OPTIONS", "/notes/_bulk_docs", None)
        .header("origin", "https://a.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,x-mine");
    let answer = pod.ask(preflight, "").await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://a.example"));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(answer.header("access-control-allow-headers"), Some("authorization,x-mine"));
    assert!(answer.header("access-control-allow-methods").is_some_and(|list| list.contains("COPY")));
    // A refusal must be readable too, or a program can't tell what is wrong.
    let wrong = request("GET", "/x", Some(("admin", "no"))).header("origin", "https://a.example");
    let answer = pod.ask(wrong, "").await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://a.example"));
    assert!(answer.header("access-control-expose-headers").is_some());
    assert_eq!(pod.get("/x", None).await.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn cors_may_be_limited_to_origins() {
    let pod = Pod::start_with(|config| config.cors.origins = vec!["https://a.example".into()]).await;
    let ask = |origin: &'static str| pod.ask(request("GET", "/x", None).header("origin", origin), "");
    assert!(ask("https://a.example").await.header("access-control-allow-origin").is_some());
    assert!(ask("https://b.example").await.header("access-control-allow-origin").is_none());
}

#[tokio::test]
async fn no_shared_cache_keeps_an_answer() {
    let pod = Pod::start().await;
    let refused = pod.get("/x", Some(("admin", "no"))).await;
    assert_eq!(refused.header("cache-control"), Some("private, must-revalidate"));
}

#[tokio::test]
async fn up_and_metrics() {
    let pod = Pod::start().await;
    let answer = pod.get("/_up", None).await;
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({"status": "ok"})));
    assert_eq!(pod.get("/_metrics", None).await.status, StatusCode::UNAUTHORIZED);
    let answer = pod.get("/_metrics", Some(ADMIN)).await;
    let text = String::from_utf8(answer.body.to_vec()).expect("text");
    assert!(text.contains("adea_proxy_requests_total{method=\"read\",status=\"4xx\"} 1\n"), "{text}");
    let head = pod.ask(request("HEAD", "/_up", None), "").await;
    assert_eq!((head.header("content-length"), head.body.len()), (Some("16"), 0));
    let answer = pod.ask(request("POST", "/_up", None), "").await;
    assert_eq!((answer.status, answer.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, Some("GET,HEAD")));
}

#[tokio::test]
async fn an_inactive_pod_is_not_up_and_not_down() {
    let pod = Pod::start().await;
    pod.rean.is_inactive.store(true, std::sync::atomic::Ordering::SeqCst);
    let answer = pod.get("/_up", None).await;
    assert_eq!((answer.status, answer.json()), (StatusCode::NOT_FOUND, json!({"status": "inactive"})));
}

#[tokio::test]
async fn without_rean_there_is_503() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let rean = unused.local_addr().expect("bound");
    drop(unused);
    let config = Config::new(([127, 0, 0, 1], 0).into(), rean, RingSecret::random());
    let server = Server::bind(&config).expect("binds");
    let address = server.local_addr();
    tokio::spawn(server.serve(std::future::pending()));
    for path in ["/_up", "/notes/a", "/notes/_changes?feed=continuous"] {
        let mut socket = TcpStream::connect(address).await.expect("connects");
        let get = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(get.as_bytes()).await.expect("writes");
        let mut text = String::new();
        soon("the answer", socket.read_to_string(&mut text)).await.expect("reads");
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        assert!(text.contains("retry-after:") && text.contains("\"service_unavailable\""), "{text}");
    }
}

#[tokio::test]
async fn the_access_log_has_a_line_for_each_request() {
    let folder = std::env::temp_dir().join(format!("adea-proxy-log-{}", std::process::id()));
    let file = folder.with_extension("log");
    let target = AccessLogTarget::File(file.clone());
    let pod = Pod::start_with(|config| config.access_log = target).await;
    pod.get("/small?key=private", Some(ADMIN)).await;
    let read = || std::fs::read_to_string(&file).unwrap_or_default();
    until("the line", || read().ends_with('\n')).await;
    let text = read();
    std::fs::remove_file(&file).expect("removes");
    let line = "method=GET path=\"/small\" status=200 bytes=111 ms=";
    assert!(text.contains(line) && text.contains("peer=127.0.0.1 user=\"admin\""), "{text}");
    assert!(!text.contains("private") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn draining_answers_what_has_begun_and_then_ends() {
    let mut pod = Pod::start().await;
    let (answer, _task) = pod.open(request("GET", "/drip", None), Bytes::new()).await;
    let (feed, _feed_task) = pod.open(request("GET", "/a/_changes?feed=continuous", None), Bytes::new()).await;
    pod.stop();
    let all = soon("the answer", answer.into_body().collect()).await.expect("whole").to_bytes();
    assert_eq!(all.len(), 10_000);
    soon("the feed's end", feed.into_body().collect()).await.expect("a clean end");
    let served = pod.served.take().expect("runs");
    soon("the end", served).await.expect("no panic");
    assert!(TcpStream::connect(pod.address).await.is_err());
}

#[tokio::test]
async fn draining_has_a_deadline() {
    let drain = Duration::from_millis(100);
    let mut pod = Pod::start_with(|config| config.limits.drain = drain).await;
    let mut socket = TcpStream::connect(pod.address).await.expect("connects");
    socket.write_all(b"PUT /sink HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc").await.expect("writes");
    until("the first bytes", || pod.rean.sunk.load(Ordering::SeqCst) == 3).await;
    pod.stop();
    let served = pod.served.take().expect("runs");
    soon("the end", served).await.expect("no panic");
}
