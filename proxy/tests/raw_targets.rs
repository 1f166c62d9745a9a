//! Requests whose targets are not percent-encoded, as curl sends what CouchDB's documentation shows.

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Pod, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends bytes in pieces and reads to the end.
async fn exchange(pod: &Pod, bytes: &[u8], piece: usize) -> String {
    let mut socket = TcpStream::connect(pod.address).await.expect("connects");
    socket.set_nodelay(true).expect("a socket");
    for piece in bytes.chunks(piece) {
        socket.write_all(piece).await.expect("writes");
        // Lets the proxy see each piece by itself.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut text = String::new();
    soon("the end", socket.read_to_string(&mut text)).await.expect("reads");
    text
}

#[tokio::test]
async fn raw_bytes_in_a_target_arrive_encoded() {
    let pod = Pod::start().await;
    let get =
        b"GET /a\"<`>/b?startkey=\"a\"&x={|^\\`}<>&y=\xc3\xa9\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for piece in [get.len(), 20, 3] {
        let text = exchange(&pod, get, piece).await;
        let uri = "\"/a%22%3C%60%3E/b?startkey=%22a%22&x=%7B%7C%5E%5C%60%7D%3C%3E&y=%C3%A9%FF\"";
        assert!(text.starts_with("HTTP/1.1 200 ") && text.contains(uri), "{text}");
    }
}

#[tokio::test]
async fn pipelined_requests_and_bodies_keep_their_bounds() {
    let pod = Pod::start().await;
    let body = "\r\n\r\nGET /\"never\" HTTP/1.1\r\nHost: x\r\n\r\n";
    let text = format!(
        "GET /1?\"a\" HTTP/1.1\r\nHost: x\r\n\r\n\
         PUT /sink?\"b\" HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}\
         PUT /sink?\"c\" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n\
         GET /2?\"d\" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        length = body.len()
    );
    for piece in [text.len(), 50, 7] {
        let answers = exchange(&pod, text.as_bytes(), piece).await;
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 4, "{answers}");
        assert_eq!(answers.matches(&format!("{{\"bytes\":{}}}", body.len())).count(), 2, "{answers}");
        assert!(answers.contains("\"/1?%22a%22\"") && answers.contains("\"/2?%22d%22\""), "{answers}");
    }
}

#[tokio::test]
async fn bodies_arrive_as_they_were_sent() {
    let pod = Pod::start().await;
    let doc = "{\"a\":\"GET /\\\"x\\\" HTTP/1.1\\r\\n\",\"é\":\"<{|}>\"}";
    let length = doc.len();
    let head = format!("PUT /_users/a HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n");
    let mut socket = TcpStream::connect(pod.address).await.expect("connects");
    let login = "Authorization: Basic YWRtaW46c2VjcmV0\r\n\r\n";
    socket.write_all(format!("{head}{login}").as_bytes()).await.expect("writes");
    let mut buffer = [0; 25];
    soon("100", socket.read_exact(&mut buffer)).await.expect("reads");
    assert_eq!(&buffer, b"HTTP/1.1 100 Continue\r\n\r\n");
    let next = "GET /x?\"y\" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    socket.write_all(format!("{doc}{next}").as_bytes()).await.expect("writes");
    let mut text = String::new();
    soon("the end", socket.read_to_string(&mut text)).await.expect("reads");
    assert!(text.starts_with("HTTP/1.1 201 ") && text.contains("\"/x?%22y%22\""), "{text}");
    let stored = pod.rean.docs.lock().expect("lock")["_users/a"].1.clone();
    assert_eq!(stored, serde_json::from_str::<serde_json::Value>(doc).expect("JSON"));
}

#[tokio::test]
async fn a_connection_goes_on_after_a_feed() {
    let pod = Pod::start().await;
    let mut socket = TcpStream::connect(pod.address).await.expect("connects");
    let feed = "GET /db/_changes?feed=continuous&once&k=\"a\" HTTP/1.1\r\nHost: x\r\n\r\n";
    socket.write_all(feed.as_bytes()).await.expect("writes");
    until("the feed", || pod.rean.feeds.load(Ordering::SeqCst) == 3).await;
    pod.rean.put("db", "a", serde_json::json!({}));
    let mut text = String::new();
    while !text.ends_with("0\r\n\r\n") {
        let mut bytes = [0; 4096];
        let read = soon("the feed's end", socket.read(&mut bytes)).await.expect("reads");
        assert_ne!(read, 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    let next = "GET /x?\"y\" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    socket.write_all(next.as_bytes()).await.expect("writes");
    let mut text = String::new();
    soon("the end", socket.read_to_string(&mut text)).await.expect("reads");
    assert!(text.contains("\"/x?%22y%22\""), "{text}");
}
