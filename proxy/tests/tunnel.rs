//! A connection with many feeds on its way through the proxy.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use common::{Pod, request, soon, until};
use proxy::{Access, Rules};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A client, and what it has read and not yet looked at.
struct Client {
    socket: TcpStream,
    read: Vec<u8>,
}

fn basic(name: &str, password: &str) -> String {
    format!("authorization: Basic {}\r\n", STANDARD.encode(format!("{name}:{password}")))
}

impl Client {
    /// Asks for the connection; gives the status as well.
    async fn open(pod: &Pod, headers: &str) -> (u16, Self) {
        let mut socket = TcpStream::connect(pod.address).await.expect("connects");
        let text = format!(
            "GET /_feeds HTTP/1.1\r\nhost: pod\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
        );
        socket.write_all(text.as_bytes()).await.expect("sent");
        let mut client = Self { socket, read: Vec::new() };
        let end = loop {
            if let Some(at) = client.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(client.more().await, "no answer");
        };
        let head: Vec<u8> = client.read.drain(..end).collect();
        let head = String::from_utf8(head).expect("text");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        if status == 101 {
            assert!(head.to_lowercase().contains("connection: upgrade\r\n"), "{head}");
            assert!(head.to_lowercase().contains("sec-websocket-accept: accepted\r\n"), "{head}");
        }
        (status, client)
    }

    async fn more(&mut self) -> bool {
        soon("more", self.socket.read_buf(&mut self.read)).await.is_ok_and(|count| count > 0)
    }

    /// The next frame, its first byte and its payload; `None` at the end.
    async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            let (head, length) = match self.read.get(1) {
                Some(126) if self.read.len() >= 4 => (4, usize::from(u16::from_be_bytes([self.read[2], self.read[3]]))),
                Some(126) | None => (usize::MAX, 0),
                Some(length) => (2, usize::from(*length)),
            };
            if head != usize::MAX && self.read.len() >= head + length {
                let first = self.read[0];
                let payload = self.read.drain(..head + length).skip(head).collect();
                return Some((first, payload));
            }
            if !self.more().await {
                assert!(self.read.is_empty(), "half a frame");
                return None;
            }
        }
    }

    /// What rean says first: what it was asked.
    async fn asked(&mut self) -> Value {
        let (first, text) = self.frame().await.expect("a frame");
        assert_eq!(first, 0x81);
        serde_json::from_slice(&text).expect("JSON")
    }

    /// Reads an event stream to its end, which is one as of any answer; what the last event says.
    async fn last_event(&mut self) -> Value {
        while !self.read.ends_with(b"0\r\n\r\n") {
            assert!(self.more().await, "it broke off");
        }
        let text = String::from_utf8(std::mem::take(&mut self.read)).expect("text");
        let (_, event) = text.rsplit_once("data: ").expect("an event");
        serde_json::from_str(event.lines().next().expect("a line")).expect("JSON")
    }

    /// Reads to the end: whole messages, and then the code of the good-bye.
    async fn goodbye(&mut self) -> Option<u16> {
        loop {
            match self.frame().await? {
                (0x88, payload) => {
                    // Nothing comes after it.
                    assert!(self.frame().await.is_none());
                    return Some(u16::from_be_bytes([payload[0], payload[1]]));
                }
                (first, payload) => assert_eq!((first, payload.len()), (0x81, 300)),
            }
        }
    }
}

#[tokio::test]
async fn bytes_go_both_ways_and_rean_knows_who_asks() {
    let pod = Pod::start().await;
    pod.rean.put_user("ann", "right", &["r"]);
    let more = "x-auth-couchdb-username: admin\r\nx-adea-closed: mine\r\nsec-websocket-protocol: adea.feeds.v1\r\n";
    let (status, mut client) = Client::open(&pod, &format!("{}{more}", basic("ann", "right"))).await;
    assert_eq!(status, 101);
    let asked = client.asked().await;
    assert_eq!(asked["name"], "ann");
    assert_eq!(asked["headers"]["sec-websocket-protocol"], "adea.feeds.v1");
    for name in ["authorization", "x-adea-closed"] {
        assert!(asked["headers"].get(name).is_none(), "{name}");
    }
    // Bytes that would be mended in a request's first line stay as they are here.
    client.socket.write_all(b"GET /a\"b c HTTP/1.1\r\n").await.expect("sent");
    until("what was sent", || pod.rean.told.lock().expect("lock").ends_with(b"GET /a\"b c HTTP/1.1\r\n")).await;
    assert_eq!(client.frame().await.expect("a frame").1.len(), 300);
    let metrics = pod.get("/_metrics", Some(common::ADMIN)).await;
    let text = String::from_utf8(metrics.body.to_vec()).expect("text");
    assert!(text.contains("adea_proxy_feeds 1\n"), "{text}");
    drop(client);
    // Those of the proxy's own, which follow accounts and sessions, stay.
    until("the end at rean", || pod.rean.feeds.load(Ordering::SeqCst) == 2).await;
}

#[tokio::test]
async fn a_log_in_that_ends_closes_the_connection_between_two_messages() {
    let pod = Pod::start().await;
    pod.rean.put_user("ann", "right", &["r"]);
    let (status, mut ann) = Client::open(&pod, &basic("ann", "right")).await;
    assert_eq!(status, 101);
    ann.asked().await;
    let answer = pod
        .ask(
            request("POST", "/_session", None).header("content-type", "application/json"),
            &json!({"name": "ann", "password": "right"}).to_string(),
        )
        .await;
    let session = answer.json()["session"].clone();
    let of = |member: &str| session[member].as_str().expect("text").to_owned();
    let token = URL_SAFE_NO_PAD.encode(format!("{}:{}", of("name"), of("password")));
    let protocols = format!("sec-websocket-protocol: adea.feeds.v1, adea.session.{token}\r\n");
    let (status, mut by_session) = Client::open(&pod, &protocols).await;
    assert_eq!(status, 101);
    let asked = by_session.asked().await;
    assert_eq!((&asked["name"], &asked["headers"]["sec-websocket-protocol"]), (&json!("ann"), &json!("adea.feeds.v1")));
    assert!(!asked.to_string().contains(&token));
    let out = pod.ask(request("DELETE", "/_session", Some((&of("name"), &of("password")))), "").await;
    assert_eq!(out.status, 200);
    assert_eq!(by_session.goodbye().await, Some(4001));
    // The other connection has a log-in of its own, until the account changes.
    assert_eq!(ann.frame().await.expect("a frame").1.len(), 300);
    pod.rean.put_user("ann", "another", &["r"]);
    assert_eq!(ann.goodbye().await, Some(4001));
    assert_eq!(Client::open(&pod, &basic("ann", "right")).await.0, 401);
    assert_eq!(Client::open(&pod, &protocols).await.0, 401);
}

#[tokio::test]
async fn a_server_that_stops_says_come_again() {
    let mut pod = Pod::start().await;
    let (_, mut client) = Client::open(&pod, "").await;
    client.asked().await;
    pod.stop();
    assert_eq!(client.goodbye().await, Some(1012));
    soon("the end of the proxy", pod.served.take().expect("it runs")).await.expect("no panic");
}

#[tokio::test]
async fn pages_of_foreign_origins_do_not_connect() {
    let pod = Pod::start_with(|config| config.cors.origins = vec!["https://app.example".to_owned()]).await;
    for (origin, status) in [
        ("", 101),
        ("origin: https://app.example\r\n", 101),
        ("origin: http://pod\r\n", 101),
        ("origin: https://evil.example\r\n", 403),
        ("origin: https://app.example.evil\r\n", 403),
        ("origin: null\r\n", 403),
    ] {
        assert_eq!(Client::open(&pod, origin).await.0, status, "{origin}");
    }
}

#[tokio::test]
async fn rean_is_told_which_databases_are_closed() {
    let rules = BTreeMap::from([("a".to_owned(), Access::Closed), ("b".to_owned(), Access::WriteOnly)]);
    let pod = Pod::start_with(|config| config.rules = Rules::new(rules)).await;
    let (_, mut client) = Client::open(&pod, "x-adea-closed: c\r\n").await;
    assert_eq!(client.asked().await["headers"]["x-adea-closed"], "a,b");
}

/// Opens an event stream: the head of the answer, and the connection.
async fn event_stream(pod: &Pod, path: &str, headers: &str) -> (String, Client) {
    let socket = TcpStream::connect(pod.address).await.expect("connects");
    let mut client = Client { socket, read: Vec::new() };
    let text = format!("GET {path} HTTP/1.1\r\nhost: pod\r\naccept: text/event-stream\r\n{headers}\r\n");
    client.socket.write_all(text.as_bytes()).await.expect("sent");
    let end = loop {
        if let Some(at) = client.read.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        assert!(client.more().await, "no answer");
    };
    let head: Vec<u8> = client.read.drain(..end).collect();
    (String::from_utf8(head).expect("text").to_lowercase(), client)
}

#[tokio::test]
async fn an_event_stream_is_a_feed_and_ends_with_the_log_in() {
    let rules = BTreeMap::from([("a".to_owned(), Access::Closed), ("b".to_owned(), Access::WriteOnly)]);
    let pod = Pod::start_with(|config| config.rules = Rules::new(rules)).await;
    pod.rean.put_user("ann", "right", &["r"]);
    let ann = basic("ann", "right");
    // Whatever a client says is closed, and whichever way it writes the path: rean is told what is.
    for path in ["/_feeds", "/%5Ffeeds?messages=%5B%22longpoll%22%5D"] {
        let (head, mut client) = event_stream(&pod, path, &format!("{ann}x-adea-closed: mine\r\n")).await;
        assert!(head.starts_with("http/1.1 200 ") && head.contains("x-told-closed: a,b\r\n"), "{head}");
        let metrics = pod.get("/_metrics", Some(common::ADMIN)).await;
        let text = String::from_utf8(metrics.body.to_vec()).expect("text");
        assert!(text.contains("adea_proxy_feeds 1\n"), "{text}");
        pod.rean.put_user("ann", "another", &["r"]);
        assert_eq!(
            client.last_event().await,
            json!({"op": "close", "code": 4001, "reason": "the log-in has ended or changed"})
        );
        let (head, _) = event_stream(&pod, path, &ann).await;
        assert!(head.starts_with("http/1.1 401 "), "{head}");
        pod.rean.put_user("ann", "right", &["r"]);
    }
}

#[tokio::test]
async fn an_event_stream_is_told_that_the_server_stops() {
    let mut pod = Pod::start().await;
    let (head, mut client) = event_stream(&pod, "/_feeds", "").await;
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    // An event has come whole: only then another one can follow.
    while !client.read.windows(3).any(|three| three == b":\n\n") {
        assert!(client.more().await, "no event");
    }
    pod.stop();
    assert_eq!(client.last_event().await["code"], 1012);
}

#[tokio::test]
async fn what_is_no_handshake_is_an_ordinary_request() {
    let pod = Pod::start().await;
    let answer = pod.get("/_feeds", None).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["uri"]), (200, &json!("/_feeds")));
    assert!(answer.json()["headers"].get("upgrade").is_none());
    // Who speaks before they were answered speaks into nothing.
    let (status, _) = Client::open(&pod, "content-length: 5\r\n").await;
    assert_ne!(status, 101);
}
