//! What clients can't do to the proxy.

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{ADMIN, Pod, request, soon, until};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends bytes as they are and reads until the proxy closes.
async fn raw(pod: &Pod, text: &str) -> String {
    let mut socket = TcpStream::connect(pod.address).await.expect("connects");
    // The proxy may close before it has read all.
    let _ = socket.write_all(text.as_bytes()).await;
    let mut bytes = Vec::new();
    let _ = soon("the end", socket.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn alive(pod: &Pod) {
    assert_eq!(pod.get("/_up", None).await.status, StatusCode::OK);
}

#[tokio::test]
async fn oversized_headers_are_431() {
    let pod = Pod::start().await;
    let big = "x".repeat(200_000);
    let text = raw(&pod, &format!("GET / HTTP/1.1\r\nHost: x\r\nX-Big: {big}\r\n\r\n")).await;
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 431 "), "{text}");
    let big = "x".repeat(60_000);
    let text = raw(&pod, &format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Big: {big}\r\n\r\n")).await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{}", &text[..text.len().min(80)]);
    let big = "x".repeat(70_000);
    let text = raw(&pod, &format!("GET / HTTP/1.1\r\nHost: x\r\nX-Big: {big}")).await;
    assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
    alive(&pod).await;
}

#[tokio::test]
async fn long_uris_are_414() {
    let pod = Pod::start().await;
    let answer = pod.get(&format!("/{}", "x".repeat(40_000)), None).await;
    assert_eq!(answer.status, StatusCode::URI_TOO_LONG);
    assert_eq!(answer.json()["error"], "uri_too_long");
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let pod = Pod::start().await;
    for text in [
        "GARBAGE\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "\0\u{1}\u{2}\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\nnothing of the kind........................",
        "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ] {
        let answer = raw(&pod, text).await;
        assert!(!answer.starts_with("HTTP/1.1 2"), "{text}: {answer}");
    }
    alive(&pod).await;
}

#[tokio::test]
async fn slow_clients_are_given_up() {
    let pod = Pod::start_with(|config| {
        config.limits.header_timeout = Duration::from_millis(150);
        config.limits.idle_timeout = Duration::from_millis(150);
    })
    .await;
    // Nothing, half a preface, half a header.
    for text in ["", "PR", "GET / HTTP/1.1\r\nHost:"] {
        let answer = raw(&pod, text).await;
        assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    }
    // Half a body.
    let text = raw(&pod, "PUT /sink HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc").await;
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    alive(&pod).await;
}

/// Sends a head, and then a piece every 10 ms until there is an answer or `pieces` were sent.
async fn trickle(pod: &Pod, head: &str, piece: &str, pieces: usize) -> String {
    let socket = TcpStream::connect(pod.address).await.expect("connects");
    let (mut from, mut to) = socket.into_split();
    to.write_all(head.as_bytes()).await.expect("writes");
    let sending = async {
        for _ in 0..pieces {
            if to.write_all(piece.as_bytes()).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut bytes = Vec::new();
    tokio::select! {
        () = sending => {}
        // An error is the end as well: the proxy has closed while there was more to read.
        _ = soon("the answer", from.read_to_end(&mut bytes)) => {}
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_given_up() {
    let pod = Pod::start_with(|config| {
        config.limits.body_bytes_per_s = 100_000;
        config.limits.body_grace = Duration::from_millis(150);
        config.limits.body_window = Duration::from_millis(150);
    })
    .await;
    // Never a pause of which `idle_timeout` would know.
    for (head, piece) in [
        ("PUT /sink HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", "x"),
        ("PUT /sink HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"),
        ("POST /_session HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n", " "),
    ] {
        let text = trickle(&pod, head, piece, 900).await;
        assert!(text.starts_with("HTTP/1.1 408 ") && text.contains("{\"error\":\"timeout\",\"reason\":"), "{text}");
        assert!(text.to_lowercase().contains("\r\nconnection: close\r\n"), "{text}");
    }
    // What has been quick so far may not stop either.
    let head = "PUT /sink HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n";
    let text = raw(&pod, &format!("{head}{}", "x".repeat(4_000_000))).await;
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    alive(&pod).await;
}

#[tokio::test]
async fn a_body_that_comes_as_fast_as_it_must_goes_through() {
    let pod = Pod::start_with(|config| {
        config.limits.body_bytes_per_s = 1;
        config.limits.body_grace = Duration::from_secs(2);
        config.limits.body_window = Duration::from_secs(2);
    })
    .await;
    let head = "PUT /sink HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 300\r\n\r\n";
    let text = trickle(&pod, head, "x", 300).await;
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("{\"bytes\":300}"), "{text}");
}

#[tokio::test]
async fn an_administrator_sets_how_fast_bodies_must_be() {
    let pod = Pod::start_with(|config| {
        config.limits.body_grace = Duration::from_millis(150);
        config.limits.body_window = Duration::from_millis(150);
    })
    .await;
    let set = |value: &str| {
        let sections = serde_json::json!({"sections": {"chttpd": {"body_bytes_per_second": value}}});
        pod.rean.put("_ring", adea_ring::node_config::NODE_CONFIG_ID, sections)
    };
    let head = "PUT /sink HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 40\r\n\r\n";
    let answers = async |status: &str| {
        let start = format!("HTTP/1.1 {status} ");
        soon(status, async { while !trickle(&pod, head, "x", 40).await.starts_with(&start) {} }).await;
    };
    set("0");
    answers("200").await;
    set("100000");
    answers("408").await;
}

#[tokio::test]
async fn a_client_is_not_to_blame_for_a_slow_database() {
    let pod = Pod::start_with(|config| {
        config.limits.idle_timeout = Duration::from_millis(400);
        config.limits.body_bytes_per_s = 1;
        config.limits.body_grace = Duration::from_millis(400);
        config.limits.body_window = Duration::from_millis(400);
    })
    .await;
    // Far more than the buffers on the way, to somebody who reads nothing for a time.
    let body = "x".repeat(20_000_000);
    let answer = pod.ask(request("PUT", "/late-sink", None), &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
}

/// An HTTP/2 client that takes so many bytes of each answer unless it reads it.
async fn http2(pod: &Pod, window_bytes: u32) -> (http2::SendRequest<Empty<Bytes>>, tokio::task::JoinHandle<()>) {
    let stream = TcpStream::connect(pod.address).await.expect("connects");
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window_bytes);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("HTTP/2");
    let task = tokio::spawn(async move {
        let _ = connection.await;
    });
    (sender, task)
}

async fn ask(sender: &mut http2::SendRequest<Empty<Bytes>>, method: Method, path: &str) -> http::Response<Incoming> {
    let request = http::Request::builder().method(method).uri(format!("http://pod{path}")).body(Empty::new());
    soon("an answer", sender.send_request(request.expect("a request"))).await.expect("an answer")
}

#[tokio::test]
async fn an_http2_answer_that_is_not_taken_is_given_up_and_no_other() {
    let pod = Pod::start_with(|config| config.limits.idle_timeout = Duration::from_millis(200)).await;
    let (mut sender, connection) = http2(&pod, 1).await;
    let image = ask(&mut sender, Method::GET, "/image").await;
    let feed = ask(&mut sender, Method::GET, "/a/_changes?feed=continuous").await;
    let silent = ask(&mut sender, Method::GET, "/a/_changes?feed=continuous&silent").await;
    // The feed with news is given up with its place at rean; the one that waits for them has nothing to be taken.
    until("the end of the feed", || pod.rean.feeds.load(Ordering::SeqCst) == 3).await;
    let image = soon("the end of the image", image.into_body().collect()).await;
    assert!(image.is_err(), "an answer that was cut looks whole");
    assert!(soon("the end of the feed", feed.into_body().collect()).await.is_err());
    // The connection is as good as before: in twice `idle_timeout` nothing more is given up.
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(ask(&mut sender, Method::HEAD, "/_up").await.status(), StatusCode::OK);
    assert_eq!(pod.rean.feeds.load(Ordering::SeqCst), 3);
    drop(silent);
    until("the end of the silent feed", || pod.rean.feeds.load(Ordering::SeqCst) == 2).await;
    assert!(!connection.is_finished());
}

#[tokio::test]
async fn an_http2_client_that_leaves_the_end_of_an_answer_is_cut_and_one_that_takes_it_is_not() {
    let pod = Pod::start_with(|config| config.limits.idle_timeout = Duration::from_millis(200)).await;
    let (mut good, connection) = http2(&pod, 65_535).await;
    let (mut bad, cut) = http2(&pod, 1).await;
    let small = ask(&mut good, Method::GET, "/small").await.into_body();
    assert!(soon("the answer", small.collect()).await.expect("whole").to_bytes().len() > 100);
    let left = ask(&mut bad, Method::GET, "/small").await;
    soon("the end of the connection", cut).await.expect("no panic");
    drop(left);
    assert!(!connection.is_finished());
    assert_eq!(ask(&mut good, Method::GET, "/_up").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn an_http2_client_that_takes_an_answer_slowly_and_steadily_is_not_cut() {
    let pod = Pod::start_with(|config| config.limits.idle_timeout = Duration::from_millis(800)).await;
    let (mut sender, connection) = http2(&pod, 8 << 10).await;
    let mut film = ask(&mut sender, Method::GET, "/film").await.into_body();
    // What it takes in `idle_timeout` is far less than what rean sends at once.
    let mut taken = 0;
    while taken < 300_000 {
        let frame = soon("a frame", film.frame()).await.expect("more").expect("not cut");
        taken += frame.into_data().expect("data").len();
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert!(!connection.is_finished());
}

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up() {
    let idle = Duration::from_millis(200);
    let pod = Pod::start_with(|config| config.limits.idle_timeout = idle).await;
    let mut socket = TcpStream::connect(pod.address).await.expect("connects");
    // Answers of some 100 MB, more than the kernel's buffers take.
    let get = "GET /image HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    socket.write_all(get.as_bytes()).await.expect("writes");
    tokio::time::sleep(idle).await;
    let open = || async {
        let text = pod.get("/_metrics", Some(ADMIN)).await.body;
        let text = String::from_utf8_lossy(&text).into_owned();
        text.contains("\nadea_proxy_connections 1\n")
    };
    soon("the end of the connection", async { while !open().await {} }).await;
}

#[tokio::test]
async fn bodies_are_bounded() {
    let pod = Pod::start_with(|config| {
        config.limits.max_json_body_bytes = 1000;
        config.limits.max_body_bytes = 5000;
    })
    .await;
    let put = |kind: &'static str| request("PUT", "/sink", None).header("content-type", kind);
    for (kind, bytes, status) in [
        ("application/json", 1000, 200),
        ("application/json", 1001, 413),
        ("image/png", 5000, 200),
        ("image/png", 5001, 413),
    ] {
        let answer = pod.ask(put(kind), &"x".repeat(bytes)).await;
        assert_eq!(answer.status, status, "{kind} {bytes}");
    }
    let chunk = format!("{:x}\r\n{}\r\n", 600, "x".repeat(600));
    let head = "PUT /sink HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
        Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let text = raw(&pod, &format!("{head}{chunk}{chunk}0\r\n\r\n")).await;
    assert!(text.starts_with("HTTP/1.1 413 ") && text.contains("\"too_large\""), "{text}");
}

#[tokio::test]
async fn a_refused_body_is_read_to_its_end() {
    let pod = Pod::start().await;
    // Far more than the kernel's buffers: without reading on, the client would see a reset and no answer.
    let body = "x".repeat(20_000_000);
    let put = request("PUT", "/sink", Some(("nobody", "x")));
    assert_eq!(pod.ask(put, &body).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(pod.rean.sunk.load(Ordering::SeqCst), 0);
    let refused = pod.ask(request("PUT", "/refuse", None), &body).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_does_no_harm() {
    let pod = Pod::start().await;
    let mut socket = TcpStream::connect(pod.address).await.expect("connects");
    let put = "PUT /sink HTTP/1.1\r\nHost: x\r\nContent-Length: 700\r\n\r\n{\"e\":";
    socket.write_all(put.as_bytes()).await.expect("writes");
    until("the first bytes", || pod.rean.sunk.load(Ordering::SeqCst) == 5).await;
    drop(socket);
    alive(&pod).await;
}

#[tokio::test]
async fn an_address_has_so_many_connections() {
    let pod = Pod::start_with(|config| config.limits.max_connections_per_address = 2).await;
    let one = TcpStream::connect(pod.address).await.expect("connects");
    let two = TcpStream::connect(pod.address).await.expect("connects");
    let mut three = TcpStream::connect(pod.address).await.expect("connects");
    let mut byte = [0];
    let read = soon("the end of the third", three.read(&mut byte)).await;
    assert!(matches!(read, Ok(0) | Err(_)));
    drop((one, two));
    soon("room", async {
        loop {
            let mut socket = TcpStream::connect(pod.address).await.expect("connects");
            let _ = socket.write_all(b"GET /_up HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
            let mut text = String::new();
            if socket.read_to_string(&mut text).await.is_ok() && text.starts_with("HTTP/1.1 200") {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn requests_that_are_opened_and_taken_back_end_the_connection() {
    let pod = Pod::start().await;
    // HTTP/2 (RFC 9113) by hand: the preface, no settings, and requests with a reset right behind each.
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes()[..], payload].concat()
    };
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(frame(4, 0, 0, &[]));
    for n in 0..2000 {
        // GET, http, /, and the host `x`, as HPACK has them (RFC 7541, A); CANCEL.
        sent.extend(frame(1, 0x5, 2 * n + 1, &[0x82, 0x86, 0x84, 0x41, 1, b'x']));
        sent.extend(frame(3, 0, 2 * n + 1, &8u32.to_be_bytes()));
    }
    let mut stream = TcpStream::connect(pod.address).await.expect("connects");
    // It may be closed before all is sent.
    let _ = stream.write_all(&sent).await;
    let mut heard = Vec::new();
    let _ = soon("the end of the connection", stream.read_to_end(&mut heard)).await;
    // GOAWAY with ENHANCE_YOUR_CALM.
    let mut at = 0;
    let mut calm = false;
    while let Some(head) = heard.get(at..at + 9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        calm |= head[3] == 7 && heard.get(at + 13..at + 17) == Some(&[0, 0, 0, 0xb]);
        at += 9 + length;
    }
    assert!(calm, "{heard:?}");
    alive(&pod).await;
}
