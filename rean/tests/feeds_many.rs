//! Many feeds on one connection: the protocol, rights, bounds, and what a slow or hostile client costs.

mod harness;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::Identity;
use futures_util::{SinkExt, StreamExt};
use harness::{DEADLINE, World, admin, until, user};
use rean::feeds::{self, MAX_SUBSCRIPTIONS};
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Between client and server, in bytes: what a socket would take.
const PIPE_BYTES: usize = 64 * 1024;

struct Client {
    socket: WebSocketStream<DuplexStream>,
    serving: tokio::task::JoinHandle<()>,
}

impl Client {
    async fn new(world: &World, who: &Identity) -> Self {
        let mut client = Self::closed_to(world, who, &[]).await;
        let hello = client.next().await;
        assert_eq!((&hello["op"], &hello["user"]), (&json!("hello"), &json!(who.name)));
        client
    }

    /// With databases that are closed for maintenance; its first message is the server's.
    async fn closed_to(world: &World, who: &Identity, closed: &[&str]) -> Self {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let (pod, who) = (Arc::clone(&world.pod), who.clone());
        let closed = closed.iter().map(|name| (*name).to_owned()).collect();
        let seat = pod.sockets.admit(who.name.as_deref(), who.is_admin()).expect("a place");
        let serving = tokio::spawn(async move { feeds::serve(&pod, &who, closed, far, seat).await });
        Self { socket: WebSocketStream::from_raw_socket(near, Role::Client, None).await, serving }
    }

    async fn send(&mut self, message: Value) {
        self.text(&message.to_string()).await;
    }

    async fn text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.expect("sent");
    }

    async fn frame(&mut self) -> Option<Message> {
        let frame = tokio::time::timeout(DEADLINE, self.socket.next()).await.expect("something comes in time");
        frame.and_then(Result::ok)
    }

    /// The next message.
    async fn next(&mut self) -> Value {
        loop {
            match self.frame().await {
                Some(Message::Text(text)) => return serde_json::from_str(&text).expect("JSON"),
                Some(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("no message: {other:?}"),
            }
        }
    }

    /// The next message of this kind about this subscription; others are let go.
    async fn next_of(&mut self, op: &str, id: &str) -> Value {
        loop {
            let message = self.next().await;
            if message["op"] == op && message["id"] == id {
                return message;
            }
            assert_ne!(message["op"], "error", "{message}");
        }
    }

    async fn subscribe(&mut self, id: &str, db: &str, more: Value) {
        let mut message = json!({"op": "subscribe", "id": id, "db": db});
        message.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        self.send(message).await;
    }

    /// Subscribes where something is wrong.
    async fn refused(&mut self, id: &str, db: &str, more: Value) -> (u64, String) {
        self.subscribe(id, db, more).await;
        // Others may still be catching up.
        let answer = loop {
            let answer = self.next().await;
            if answer["op"] != "caught_up" {
                break answer;
            }
        };
        assert_eq!(answer["op"], "error", "{answer}");
        (answer["status"].as_u64().expect("a status"), answer["error"].as_str().expect("an error").to_owned())
    }

    /// Rows of a subscription, until there are so many.
    async fn rows(&mut self, id: &str, count: usize) -> Vec<Value> {
        let mut rows = Vec::new();
        while rows.len() < count {
            let batch = self.next_of("changes", id).await;
            rows.extend(batch["results"].as_array().expect("rows").clone());
        }
        rows
    }

    /// Reads to the end; gives the close code.
    async fn end(&mut self) -> Option<u16> {
        loop {
            match self.frame().await {
                Some(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                Some(_) => {}
                None => return None,
            }
        }
    }

    async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(150), self.socket.next()).await.is_err()
    }
}

fn ids(rows: &[Value]) -> Vec<&str> {
    rows.iter().filter_map(|row| row["id"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_those_of_changes_each_feed_from_its_own_place() {
    let world = World::new().await;
    let ann = user("ann", &[]);
    for db in ["a", "b"] {
        world.open_db(db).await;
        for n in 0..3 {
            world.put(&ann, &format!("/{db}/{db}{n}"), json!({"n": n, "even": n % 2 == 0})).await.expect(201);
        }
    }
    let all = world.get(&ann, "/a/_changes?include_docs=true&style=all_docs").await.expect(200);
    let since = all["results"][1]["seq"].clone();
    let mut client = Client::new(&world, &ann).await;
    client.subscribe("all", "a", json!({"include_docs": true, "style": "all_docs"})).await;
    assert_eq!(client.next().await, json!({"op": "subscribed", "id": "all"}));
    assert_eq!(client.rows("all", 3).await, *all["results"].as_array().expect("rows"));
    assert_eq!(client.next_of("caught_up", "all").await["last_seq"], all["last_seq"]);
    client.subscribe("rest", "a", json!({"since": since})).await;
    assert_eq!(ids(&client.rows("rest", 1).await), ["a2"]);
    client.subscribe("even", "b", json!({"selector": {"even": true}})).await;
    assert_eq!(ids(&client.rows("even", 2).await), ["b0", "b2"]);
    client.subscribe("one", "b", json!({"doc_ids": ["b1"]})).await;
    assert_eq!(ids(&client.rows("one", 1).await), ["b1"]);
    client.subscribe("new", "b", json!({"since": "now"})).await;
    client.next_of("caught_up", "new").await;

    world.put(&ann, "/b/b9", json!({"even": true})).await.expect(201);
    let mut seen = BTreeMap::new();
    while seen.len() < 2 {
        let message = client.next().await;
        if message["op"] == "changes" {
            let id = message["id"].as_str().expect("an id").to_owned();
            seen.insert(id, message["results"][0]["id"].clone());
        }
    }
    assert_eq!(seen, BTreeMap::from([("even".to_owned(), json!("b9")), ("new".to_owned(), json!("b9"))]));
    client.send(json!({"op": "unsubscribe", "id": "new"})).await;
    client.send(json!({"op": "ping"})).await;
    while client.next().await["op"] != "pong" {}
    world.put(&ann, "/b/b10", json!({})).await.expect(201);
    assert!(client.is_silent().await);
    // The id is free again.
    client.subscribe("new", "b", json!({"since": "now"})).await;
    client.next_of("subscribed", "new").await;
    drop(client.socket);
    client.serving.await.expect("no panic");
    assert_eq!((world.pod.hub.listeners(), world.pod.sockets.count()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_more_than_by_changes() {
    let world = World::new().await;
    world.app("notes").await;
    world.account("ann", &[]).await;
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    let put = async |id: &str, read: &str| {
        let doc = json!({"access": {"read": [read], "write": ["user:root"]}, "of": id});
        world.put(&admin(), &format!("/notes/{id}"), doc).await.expect(201);
    };
    put("hers", "user:ann").await;
    put("his", "user:bob").await;
    let parts = world.get(&bob, "/notes/_access").await.expect(200);
    let of_bob = parts["partials"][0]["db"].as_str().expect("a partial database").to_owned();
    let mut client = Client::new(&world, &ann).await;
    for db in ["notes", of_bob.as_str(), "nosuch", "_users", "_ring", "", "notes--0123", "a/b"] {
        let path = format!("/{}/_changes", db.replace('/', "%2F"));
        let asked = world.get(&ann, &path).await;
        let (status, error) = client.refused("x", db, json!({})).await;
        if !db.is_empty() {
            assert_eq!(
                (status, json!(error)),
                (u64::from(asked.status.as_u16()), asked.json()["error"].clone()),
                "{db}"
            );
        } else {
            assert!(status >= 400);
        }
    }
    client.subscribe("me", "notes--me", json!({"include_docs": true})).await;
    assert_eq!(client.rows("me", 1).await[0]["doc"]["of"], "hers");
    client.next_of("caught_up", "me").await;
    put("his2", "user:bob").await;
    put("hers2", "user:ann").await;
    assert_eq!(ids(&client.rows("me", 1).await), ["hers2"]);

    let mut closed = Client::closed_to(&world, &ann, &["notes"]).await;
    assert_eq!(closed.next().await["op"], "hello");
    assert_eq!(closed.refused("x", "notes--me", json!({})).await.0, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_of_design_documents_filter_here_too() {
    let world = World::new().await;
    world.open_db("db").await;
    let ann = user("ann", &[]);
    let filters = json!({"of": "function (doc, req) { return doc.kind === req.query.kind; }"});
    let views = json!({"odd": {"map": "function (doc) { if (doc.n % 2) emit(doc.n); }"}});
    let design = json!({"filters": filters, "views": views});
    world.put(&admin(), "/db/_design/d", design).await.expect(201);
    for n in 0..4 {
        let kind = if n < 2 { "a" } else { "b" };
        world.put(&ann, &format!("/db/{n}"), json!({"n": n, "kind": kind})).await.expect(201);
    }
    let mut client = Client::new(&world, &ann).await;
    client.subscribe("kind", "db", json!({"filter": "d/of", "query": {"kind": "b"}})).await;
    assert_eq!(ids(&client.rows("kind", 2).await), ["2", "3"]);
    client.subscribe("view", "db", json!({"filter": "_view", "view": "d/odd"})).await;
    assert_eq!(ids(&client.rows("view", 2).await), ["1", "3"]);
    for (filter, status) in [("d/nosuch", 404), ("nosuch/of", 404)] {
        assert_eq!(client.refused("x", "db", json!({ "filter": filter })).await.0, status, "{filter}");
    }
    world.put(&ann, "/db/4", json!({"n": 5, "kind": "b"})).await.expect(201);
    assert_eq!(ids(&client.rows("kind", 1).await), ["4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn feeds_end_when_rights_or_databases_do_and_others_go_on() {
    let world = World::new().await;
    world.app("notes").await;
    for name in ["a", "b"] {
        world.open_db(name).await;
    }
    world.account("ann", &["staff"]).await;
    let ann = user("ann", &["staff"]);
    let doc = json!({"access": {"read": ["role:staff"], "write": ["user:root"]}});
    world.put(&admin(), "/notes/x", doc).await.expect(201);
    let mut client = Client::new(&world, &ann).await;
    for db in ["a", "b", "notes--me"] {
        client.subscribe(db, db, json!({})).await;
        client.next_of("caught_up", db).await;
    }
    let closed = json!({"members": {"names": ["bob"], "roles": []}});
    world.put(&admin(), "/a/_security", closed).await.expect(200);
    assert_eq!(client.next_of("ended", "a").await["status"], 403);
    world.send(&admin(), "DELETE", "/b", None).await.expect(200);
    assert_eq!(client.next_of("ended", "b").await["status"], 404);
    // Without the role the feed goes on from its place, and tells of what was lost.
    world.account("ann", &[]).await;
    let ended = client.next_of("ended", "notes--me").await;
    assert_eq!((&ended["status"], &ended["error"]), (&json!(409), &json!("changed")));
    client.subscribe("notes--me", "notes--me", json!({"since": ended["last_seq"]})).await;
    let row = client.rows("notes--me", 1).await[0].clone();
    assert_eq!((&row["id"], &row["deleted"]), (&json!("x"), &json!(true)));

    let rev = world.get(&admin(), "/_users/org.couchdb.user:ann").await.expect(200)["_rev"].clone();
    let rev = rev.as_str().expect("a revision").to_owned();
    world.send(&admin(), "DELETE", &format!("/_users/org.couchdb.user:ann?rev={rev}"), None).await.expect(200);
    assert_eq!(client.next_of("ended", "notes--me").await["status"], 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn credit_bounds_what_comes_and_a_long_feed_holds_up_no_other() {
    let world = World::new().await;
    let ann = user("ann", &[]);
    for db in ["long", "short"] {
        world.open_db(db).await;
    }
    for batch in 0..5 {
        let docs: Vec<Value> =
            (0..1000).map(|n| json!({"_id": format!("{batch}-{n:04}"), "text": "x".repeat(300)})).collect();
        world.post(&ann, "/long/_bulk_docs", json!({ "docs": docs })).await.expect(201);
    }
    let mut client = Client::new(&world, &ann).await;
    client.subscribe("long", "long", json!({"include_docs": true, "credit": 2})).await;
    client.next_of("subscribed", "long").await;
    let mut rows = Vec::new();
    for _ in 0..2 {
        rows.extend(client.next_of("changes", "long").await["results"].as_array().expect("rows").clone());
    }
    assert!(client.is_silent().await);
    client.send(json!({"op": "credit", "id": "long", "n": 1})).await;
    rows.extend(client.next_of("changes", "long").await["results"].as_array().expect("rows").clone());
    assert!(client.is_silent().await);
    // With credit without end, and a client that reads slowly, the other's row comes among the first.
    client.send(json!({"op": "credit", "id": "long", "n": 1_000_000})).await;
    client.subscribe("short", "short", json!({"since": "now"})).await;
    world.put(&ann, "/short/x", json!({})).await.expect(201);
    let mut before = 0;
    loop {
        let message = client.next().await;
        match (message["id"].as_str(), message["op"].as_str()) {
            (Some("long"), Some("changes")) => {
                rows.extend(message["results"].as_array().expect("rows").clone());
                before += 1;
            }
            (Some("short"), Some("changes" | "caught_up")) => break,
            _ => {}
        }
    }
    assert!(before < 10, "{before} batches came first");
    while rows.len() < 5_000 {
        rows.extend(client.next_of("changes", "long").await["results"].as_array().expect("rows").clone());
    }
    let ids = ids(&rows);
    assert!(ids.len() == 5_000 && ids.is_sorted());
    // Nobody reads: the server stops reading the store as well, and does not gather what it can't send.
    let mut slow = Client::new(&world, &ann).await;
    slow.subscribe("long", "long", json!({"include_docs": true})).await;
    until("the feed", || world.pod.hub.listeners() == 3).await;
    slow.serving.abort();
    assert!(slow.serving.await.is_err_and(|error| error.is_cancelled()));
    until("its end", || world.pod.hub.listeners() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_so_many_feeds_and_no_more() {
    let world = World::new().await;
    world.open_db("db").await;
    let ann = user("ann", &[]);
    let mut client = Client::new(&world, &ann).await;
    for n in 0..MAX_SUBSCRIPTIONS {
        client.subscribe(&n.to_string(), "db", json!({"since": "now", "credit": 1})).await;
        client.next_of("caught_up", &n.to_string()).await;
    }
    assert_eq!(client.refused("one more", "db", json!({})).await, (429, "too_many_requests".to_owned()));
    assert_eq!(client.refused("7", "db", json!({})).await, (409, "conflict".to_owned()));
    world.put(&ann, "/db/x", json!({})).await.expect(201);
    let mut seen = vec![0; MAX_SUBSCRIPTIONS];
    while seen.iter().sum::<usize>() < MAX_SUBSCRIPTIONS {
        let message = client.next().await;
        assert_eq!(message["op"], "changes");
        seen[message["id"].as_str().and_then(|id| id.parse::<usize>().ok()).expect("a number")] += 1;
    }
    assert!(seen.iter().all(|count| *count == 1));
    // An account's feeds are counted over all its connections.
    let (mut more, mut refused) = (Vec::new(), 0);
    for _ in 0..3 {
        let mut client = Client::new(&world, &ann).await;
        for n in 0..MAX_SUBSCRIPTIONS {
            client.subscribe(&n.to_string(), "db", json!({"since": "now", "credit": 0})).await;
            refused += usize::from(loop {
                match client.next().await["op"].as_str() {
                    Some("subscribed") => break false,
                    Some("error") => break true,
                    _ => {}
                }
            });
        }
        more.push(client);
    }
    assert_eq!((world.pod.hub.listeners(), refused), (1000, 24));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_malformed_costs_an_error_and_what_is_hostile_the_connection() {
    let world = World::new().await;
    world.open_db("db").await;
    let ann = user("ann", &[]);
    let mut client = Client::new(&world, &ann).await;
    for text in
        ["", "x", "[]", "{}", r#"{"op":"zork"}"#, r#"{"op":"subscribe"}"#, r#"{"op":"subscribe","id":"","db":"db"}"#]
    {
        client.text(text).await;
        let answer = client.next().await;
        assert_eq!((&answer["op"], &answer["status"]), (&json!("error"), &json!(400)), "{text}");
    }
    for more in [
        json!({"since": "zork"}),
        json!({"style": "zork"}),
        json!({"filter": "zork"}),
        json!({"filter": "_selector"}),
        json!({"selector": {"a": {"$zork": 1}}}),
        json!({"doc_ids": "a"}),
        json!({"query": {"limit": "1"}}),
    ] {
        let (status, _) = client.refused("x", "db", more.clone()).await;
        assert_eq!(status, 400, "{more}");
    }
    // What isn't there is no error: it may just have ended.
    client.send(json!({"op": "unsubscribe", "id": "zork"})).await;
    client.send(json!({"op": "credit", "id": "zork", "n": 1})).await;
    client.send(json!({"op": "ping"})).await;
    assert_eq!(client.next().await["op"], "pong");
    let deep =
        format!(r#"{{"op":"subscribe","id":"a","db":"db","selector":{}1{}}}"#, "[".repeat(5000), "]".repeat(5000));
    client.text(&deep).await;
    assert_eq!(client.next().await["status"], 400);

    client.socket.send(Message::binary(vec![1])).await.expect("sent");
    assert_eq!(client.end().await, Some(1003));
    let mut client = Client::new(&world, &ann).await;
    // The server may be gone before all of it was sent.
    let _ = client.socket.send(Message::text("x".repeat(300_000))).await;
    assert_eq!(client.end().await, Some(1009));
    let mut nobody = Client::new(&world, &Identity::anonymous()).await;
    let _ = nobody.socket.send(Message::text("x".repeat(20_000))).await;
    assert_eq!(nobody.end().await, Some(1009));
    let mut client = Client::new(&world, &ann).await;
    for _ in 0..=100 {
        client.text("x").await;
    }
    assert_eq!(client.end().await, Some(1008));
    until("their end", || world.pod.sockets.count() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_shutdown_clients_are_told_to_come_back() {
    let world = World::new().await;
    world.open_db("db").await;
    let ann = user("ann", &[]);
    let mut idle = Client::new(&world, &ann).await;
    let mut busy = Client::new(&world, &ann).await;
    busy.subscribe("a", "db", json!({"since": "now"})).await;
    busy.next_of("caught_up", "a").await;
    let pod = Arc::clone(&world.pod);
    let closing = tokio::spawn(async move { pod.sockets.close().await });
    assert_eq!((idle.end().await, busy.end().await), (Some(1012), Some(1012)));
    drop((idle.socket, busy.socket));
    tokio::time::timeout(DEADLINE, closing).await.expect("closes in time").expect("no panic");
    assert_eq!(world.get(&ann, "/_feeds").await.status, 426);
    assert_eq!(world.send(&ann, "PUT", "/_feeds", None).await.status, 405);
}
