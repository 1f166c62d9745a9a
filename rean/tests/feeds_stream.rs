//! Many feeds as an event stream: what comes on it, who may say something to it, and its bounds.

mod harness;

use std::sync::Arc;
use std::time::Duration;

use adea_ring::Identity;
use axum::body::Body;
use harness::{DEADLINE, World, admin, until, user};
use http_body_util::BodyExt;
use rean::feeds::{CLOSED_HEADER, MAX_SUBSCRIPTIONS};
use rean::route::{self, Request, Response};
use serde_json::{Value, json};

/// A client that listens.
struct Client {
    body: Body,
    read: Vec<u8>,
    connection: String,
}

/// Asks for a stream as the proxy does.
async fn ask(world: &World, who: &Identity, path: &str, closed: Option<&str>) -> Response {
    let mut request = http::Request::builder().uri(path).header("accept", "text/event-stream");
    if let Some(closed) = closed {
        request = request.header(CLOSED_HEADER, closed);
    }
    let request = Request::from_http(request.body(Body::empty()).expect("a request")).expect("a path");
    route::dispatch(&world.pod, who, request).await.unwrap_or_else(|error| error.into_response())
}

impl Client {
    async fn new(world: &World, who: &Identity) -> Self {
        Self::with(world, who, "/_feeds", "").await
    }

    async fn with(world: &World, who: &Identity, path: &str, closed: &str) -> Self {
        let response = ask(world, who, path, Some(closed)).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut client = Self { body: response.into_body(), read: Vec::new(), connection: String::new() };
        let hello = client.next().await.expect("a first message");
        assert_eq!((&hello["op"], &hello["user"]), (&json!("hello"), &json!(who.name)));
        client.connection = hello["connection"].as_str().expect("an id").to_owned();
        assert_eq!(client.connection.len(), 64);
        client
    }

    /// The next message; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.read.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.read.drain(..at + 2).collect();
                match event.strip_prefix(b"data: ") {
                    Some(text) => return Some(serde_json::from_slice(text).expect("JSON")),
                    None => assert_eq!(event, b":\n\n"),
                }
                continue;
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await.expect("something comes in time")?;
            self.read.extend_from_slice(&frame.expect("it is not cut off").into_data().expect("data"));
        }
    }

    /// The next message of this kind about this subscription; others are let go.
    async fn next_of(&mut self, op: &str, id: &str) -> Value {
        loop {
            let message = self.next().await.expect("it goes on");
            if message["op"] == op && message["id"] == id {
                return message;
            }
        }
    }

    async fn say(&self, world: &World, who: &Identity, messages: Value) -> u16 {
        let post = json!({"connection": self.connection, "messages": messages});
        world.post(who, "/_feeds", post).await.status.as_u16()
    }

    /// Reads on to the message that says why the stream ends.
    async fn close(&mut self) -> Value {
        loop {
            let message = self.next().await.expect("a last message");
            if message["op"] == "close" {
                return message;
            }
        }
    }

    async fn is_silent(&mut self) -> bool {
        self.read.is_empty() && tokio::time::timeout(Duration::from_millis(150), self.body.frame()).await.is_err()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_messages_are_those_of_the_websocket() {
    let world = World::new().await;
    let ann = user("ann", &[]);
    for db in ["a", "b"] {
        world.open_db(db).await;
        world.put(&ann, &format!("/{db}/{db}0"), json!({"n": 0})).await.expect(201);
    }
    // Subscriptions may come with the request, and later.
    let path = "/_feeds?messages=%5B%7B%22op%22%3A%22subscribe%22%2C%22id%22%3A%22a%22%2C%22db%22%3A%22a%22%7D%5D";
    let mut client = Client::with(&world, &ann, path, "").await;
    assert_eq!(client.next().await, Some(json!({"op": "subscribed", "id": "a"})));
    assert_eq!(client.next_of("changes", "a").await["results"][0]["id"], "a0");
    client.next_of("caught_up", "a").await;
    let more = json!([{"op": "subscribe", "id": "b", "db": "b", "since": "now"}, {"op": "ping"}, {"op": "zork"}]);
    assert_eq!(client.say(&world, &ann, more).await, 202);
    client.next_of("subscribed", "b").await;
    let mut ops: Vec<Value> = Vec::new();
    while ops.len() < 3 {
        ops.push(client.next().await.expect("it goes on")["op"].clone());
    }
    ops.sort_by_key(Value::to_string);
    assert_eq!(json!(ops), json!(["caught_up", "error", "pong"]));
    world.put(&ann, "/b/b1", json!({"text": "two\nlines\r\n"})).await.expect(201);
    assert_eq!(client.next_of("changes", "b").await["results"][0]["id"], "b1");
    let change =
        json!([{"op": "unsubscribe", "id": "b"}, {"op": "subscribe", "id": "c", "db": "b", "include_docs": true}]);
    assert_eq!(client.say(&world, &ann, change).await, 202);
    assert_eq!(client.next_of("changes", "c").await["results"][1]["doc"]["text"], "two\nlines\r\n");
    client.next_of("caught_up", "c").await;
    world.put(&ann, "/a/a1", json!({})).await.expect(201);
    assert_eq!(client.next_of("changes", "a").await["results"][0]["id"], "a1");
    assert!(client.is_silent().await);
    let connection = client.connection.clone();
    drop(client);
    until("its end", || (world.pod.hub.listeners(), world.pod.sockets.count()) == (0, 0)).await;
    let gone = world.post(&ann, "/_feeds", json!({"connection": connection, "messages": []})).await;
    assert_eq!(gone.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_its_users_and_nobody_elses() {
    let world = World::new().await;
    world.app("notes").await;
    world.account("ann", &[]).await;
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    for (id, name) in [("hers", "ann"), ("his", "bob")] {
        let doc = json!({"access": {"read": [format!("user:{name}")], "write": ["user:root"]}});
        world.put(&admin(), &format!("/notes/{id}"), doc).await.expect(201);
    }
    let mut client = Client::new(&world, &ann).await;
    let subscribe = json!([{"op": "subscribe", "id": "x", "db": "notes--me", "include_docs": true}]);
    let nobody = Identity::anonymous();
    for other in [&bob, &admin(), &user("ann", &["_admin"]), &nobody] {
        assert_eq!(client.say(&world, other, subscribe.clone()).await, 404);
    }
    assert_eq!(client.say(&world, &ann, subscribe.clone()).await, 202);
    let rows = client.next_of("changes", "x").await;
    assert_eq!((rows["results"].as_array().map(Vec::len), &rows["results"][0]["id"]), (Some(1), &json!("hers")));
    let refused = json!([{"op": "subscribe", "id": "y", "db": "notes"}]);
    assert_eq!(client.say(&world, &ann, refused).await, 202);
    assert_eq!(client.next_of("error", "y").await["status"], 403);
    // Nobody in particular follows what everybody may read, and the id is what makes the connection theirs.
    let mut open = Client::new(&world, &nobody).await;
    assert_eq!(open.say(&world, &nobody, json!([{"op": "subscribe", "id": "p", "db": "_pods"}])).await, 202);
    open.next_of("subscribed", "p").await;
    let mut closed = Client::with(&world, &ann, "/_feeds", "notes").await;
    assert_eq!(closed.say(&world, &ann, subscribe).await, 202);
    assert_eq!(closed.next_of("error", "x").await["status"], 503);
    // What the proxy does not follow as a feed, it could not end.
    assert_eq!(ask(&world, &ann, "/_feeds", None).await.status(), 426);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_malformed_or_too_much_is_refused() {
    let world = World::new().await;
    world.open_db("db").await;
    let ann = user("ann", &[]);
    let mut client = Client::new(&world, &ann).await;
    for post in [json!({}), json!([]), json!({"connection": "x"}), json!({"connection": 1, "messages": []})] {
        assert_eq!(world.post(&ann, "/_feeds", post.clone()).await.status, 400, "{post}");
    }
    let unknown = json!({"connection": "0".repeat(64), "messages": [{"op": "ping"}]});
    assert_eq!(world.post(&ann, "/_feeds", unknown).await.status, 404);
    for path in ["/_feeds?messages=zork", "/_feeds?messages=%7B%7D"] {
        assert_eq!(ask(&world, &ann, path, Some("")).await.status(), 400, "{path}");
    }
    let pings: Vec<Value> = (0..513).map(|_| json!({"op": "ping"})).collect();
    assert_eq!(client.say(&world, &ann, json!(pings)).await, 400);
    let long = json!([{"op": "ping", "x": "x".repeat(300_000)}]);
    assert_eq!(client.say(&world, &ann, long).await, 413);
    let nobody = Identity::anonymous();
    let open = Client::new(&world, &nobody).await;
    assert_eq!(open.say(&world, &nobody, json!([{"op": "ping", "x": "x".repeat(20_000)}])).await, 413);
    let subscribe: Vec<Value> = (0..=MAX_SUBSCRIPTIONS)
        .map(|n| json!({"op": "subscribe", "id": n.to_string(), "db": "db", "since": "now", "credit": 1}))
        .collect();
    assert_eq!(client.say(&world, &ann, json!(subscribe)).await, 202);
    assert_eq!(client.next_of("error", &MAX_SUBSCRIPTIONS.to_string()).await["status"], 429);
    assert_eq!(world.pod.hub.listeners(), MAX_SUBSCRIPTIONS);
    // One that speaks another language is told so, and the stream ends.
    let nonsense: Vec<Value> = (0..=100).map(|n| json!(n)).collect();
    assert_eq!(client.say(&world, &ann, json!(nonsense)).await, 202);
    let close = client.close().await;
    assert_eq!(close["code"], 1008);
    assert!(client.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_slowly_costs_no_memory_and_at_shutdown_it_is_told() {
    let world = World::new().await;
    let ann = user("ann", &[]);
    for db in ["long", "short"] {
        world.open_db(db).await;
    }
    let docs: Vec<Value> = (0..1000).map(|n| json!({"_id": format!("{n:04}"), "text": "x".repeat(1000)})).collect();
    world.post(&ann, "/long/_bulk_docs", json!({ "docs": docs })).await.expect(201);
    let mut client = Client::new(&world, &ann).await;
    let subscribe = json!([{"op": "subscribe", "id": "long", "db": "long", "include_docs": true}]);
    assert_eq!(client.say(&world, &ann, subscribe).await, 202);
    // It does not read, so the session waits in the middle; what it says now waits as well, and no more than that.
    let ping = || tokio::time::timeout(Duration::from_millis(300), client.say(&world, &ann, json!([{"op": "ping"}])));
    let mut taken = 0;
    while let Ok(status) = ping().await {
        assert_eq!(status, 202);
        taken += 1;
        assert!(taken < 3, "one is looked at, one is next, and no third one is taken");
    }
    let mut rows = 0;
    while rows < 1000 {
        rows += client.next_of("changes", "long").await["results"].as_array().map_or(0, Vec::len);
    }
    let pod = Arc::clone(&world.pod);
    let closing = tokio::spawn(async move { pod.sockets.close().await });
    let close = client.close().await;
    assert_eq!((&close["code"], client.next().await), (&json!(1012), None));
    tokio::time::timeout(DEADLINE, closing).await.expect("closes in time").expect("no panic");
    assert_eq!(ask(&world, &ann, "/_feeds", Some("")).await.status(), 503);
}
