//! The messages of the protocol, as `proxy/web/FEEDS.md` documents them.

use std::borrow::Cow;

use axum::body::Body;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rean_store::json::push_string;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::query::Query;
use crate::route::Request;

/// The longest message that a client may send, in bytes: a filter of the longest that `_changes` takes, and the rest.
const MAX_MESSAGE_BYTES: usize = 264 * 1024;
/// The same for those who have not logged in, of whom there may be many: what they have sent of messages that never end takes
/// some 40 MiB at the most.
const MAX_MESSAGE_BYTES_ANONYMOUS: usize = 16 * 1024;
/// The longest name that a client may give a subscription, in bytes. It comes back with each batch.
const MAX_ID_BYTES: usize = 64;
/// Parameters of `_changes` that have no meaning here, or a member of their own.
const OWN_PARAMETERS: [&str; 15] = [
    "attachments",
    "conflicts",
    "descending",
    "doc_ids",
    "feed",
    "filter",
    "heartbeat",
    "include_docs",
    "last-event-id",
    "limit",
    "seq_interval",
    "since",
    "style",
    "timeout",
    "view",
];

/// What a client says.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum FromClient {
    /// Follow a database.
    Subscribe(Box<Subscribe>),
    /// No longer follow it.
    Unsubscribe {
        /// Which.
        id: String,
    },
    /// So many batches more may be sent.
    Credit {
        /// Of which.
        id: String,
        /// How many.
        n: u32,
    },
    /// Are you there?
    Ping,
}

/// A subscription.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscribe {
    /// The client's name for it.
    pub id: String,
    /// The database: an app's personal or partial one, or any other that one may read.
    pub db: String,
    /// How many batches may be sent before the client gives more; without it, as many as the socket takes.
    #[serde(default)]
    pub credit: Option<u32>,
    #[serde(default)]
    since: Option<Value>,
    #[serde(default)]
    include_docs: bool,
    #[serde(default)]
    conflicts: bool,
    #[serde(default)]
    style: Option<String>,
    #[serde(default)]
    filter: Option<String>,
    #[serde(default)]
    view: Option<String>,
    #[serde(default)]
    doc_ids: Option<Value>,
    #[serde(default)]
    selector: Option<Value>,
    #[serde(default)]
    query: Map<String, Value>,
}

impl FromClient {
    /// Reads a message.
    ///
    /// # Errors
    /// 400 that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        serde_json::from_str(text).map_err(|error| ApiError::bad_request(format!("not a message: {error}")))
    }
}

impl Subscribe {
    /// Checks what `_changes` doesn't.
    ///
    /// # Errors
    /// 400 that says what is wrong.
    pub fn check(&self) -> Result<(), ApiError> {
        if self.id.is_empty() || self.id.len() > MAX_ID_BYTES {
            return Err(ApiError::bad_request(format!("`id` must have 1 to {MAX_ID_BYTES} bytes")));
        }
        let own = self.query.keys().find(|name| OWN_PARAMETERS.contains(&name.as_str()));
        match own {
            Some(name) => Err(ApiError::bad_request(format!("`query` must not have `{name}`"))),
            None => Ok(()),
        }
    }

    /// The `_changes` request that asks for the same.
    ///
    /// # Errors
    /// 400 for parameters of impossible types.
    pub fn into_request(self) -> Result<Request, ApiError> {
        let mut query: Vec<(String, String)> = Vec::new();
        for (name, value) in &self.query {
            query.push((name.clone(), plain(value).into_owned()));
        }
        let mut add = |name: &str, value: &str| query.push((name.to_owned(), value.to_owned()));
        match &self.since {
            None | Some(Value::Null) => {}
            Some(since @ (Value::String(_) | Value::Number(_))) => add("since", &plain(since)),
            Some(_) => return Err(ApiError::bad_request("`since` must be a sequence")),
        }
        add("include_docs", if self.include_docs { "true" } else { "false" });
        add("conflicts", if self.conflicts { "true" } else { "false" });
        // What a feed has to say in a silence is thrown away (see `subscriptions`), but without it the feed would end.
        add("heartbeat", "true");
        let implied = match (&self.doc_ids, &self.selector) {
            (Some(_), _) => Some("_doc_ids"),
            (None, Some(_)) => Some("_selector"),
            (None, None) => None,
        };
        let filter = self.filter.as_deref().or(implied);
        for (name, value) in [("style", self.style.as_deref()), ("filter", filter), ("view", self.view.as_deref())] {
            if let Some(value) = value {
                add(name, value);
            }
        }
        let mut body = Map::new();
        body.extend(self.doc_ids.map(|ids| ("doc_ids".to_owned(), ids)));
        body.extend(self.selector.map(|selector| ("selector".to_owned(), selector)));
        request(&self.db, query, body)
    }
}

/// A request for `/db/_changes` that nobody sent.
fn request(db: &str, query: Vec<(String, String)>, body: Map<String, Value>) -> Result<Request, ApiError> {
    let parameters = form_urlencoded::Serializer::new(String::new()).extend_pairs(&query).finish();
    let uri = format!("/{}/_changes?{parameters}", utf8_percent_encode(db, NON_ALPHANUMERIC));
    let uri = uri.parse().map_err(|_| ApiError::bad_request("the parameters are too long"))?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let (method, body) = match body.is_empty() {
        true => (Method::GET, Body::empty()),
        false => (Method::POST, Body::from(Value::Object(body).to_string())),
    };
    Ok(Request {
        method,
        head: false,
        uri,
        from_peer: None,
        segments: vec![db.to_owned(), "_changes".to_owned()],
        query: Query::from_pairs(query),
        headers,
        body,
        upgrade: None,
        shared: true,
    })
}

/// A parameter's value as it stands in a query string.
fn plain(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => Cow::Borrowed(text),
        other => Cow::Owned(other.to_string()),
    }
}

/// The longest message that this client may send, in bytes.
pub fn longest(user: Option<&str>) -> usize {
    if user.is_some() { MAX_MESSAGE_BYTES } else { MAX_MESSAGE_BYTES_ANONYMOUS }
}

/// The first message: what this server is, who the client is to it, what it takes, and the connection's id if it has one.
pub fn hello(user: Option<&str>, subscriptions: usize, connection: Option<&str>) -> String {
    let limits = json!({"subscriptions": subscriptions, "message_bytes": longest(user)});
    let mut message = json!({"op": "hello", "protocol": 1, "user": user, "limits": limits});
    if let Some(connection) = connection {
        message["connection"] = connection.into();
    }
    message.to_string()
}

/// The last message, where the connection itself has no way to say why it ends.
pub fn close(code: u16, reason: &str) -> String {
    json!({"op": "close", "code": code, "reason": reason}).to_string()
}

/// The answer to a ping.
pub fn pong() -> String {
    r#"{"op":"pong"}"#.to_owned()
}

/// A subscription has begun.
pub fn subscribed(id: &str) -> String {
    json!({"op": "subscribed", "id": id}).to_string()
}

/// Something can't be done; without an id the message itself was wrong.
pub fn error(id: Option<&str>, error: &ApiError) -> String {
    let mut message = json!({"op": "error"});
    if let Some(id) = id {
        message["id"] = id.into();
    }
    told(message, error)
}

/// A subscription is over; `last_seq` is JSON text.
pub fn ended(id: &str, last_seq: Option<&[u8]>, why: &ApiError) -> String {
    let last_seq = last_seq.and_then(|text| serde_json::from_slice::<Value>(text).ok());
    let mut message = json!({"op": "ended", "id": id});
    if let Some(last_seq) = last_seq {
        message["last_seq"] = last_seq;
    }
    told(message, why)
}

fn told(mut message: Value, error: &ApiError) -> String {
    message["status"] = error.status.as_u16().into();
    message["error"] = error.error.as_ref().into();
    message["reason"] = error.reason.as_ref().into();
    message.to_string()
}

/// A piece of a feed, made into messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The rows.
    pub changes: Option<Bytes>,
    /// That there is nothing more to read now.
    pub caught_up: Option<Bytes>,
    /// The place at which the feed has ended, as JSON text.
    pub last_seq: Option<Bytes>,
}

impl Told {
    /// Reads the lines of a piece: rows, empty lines, `{"caught_up":SEQ}` and `{"last_seq":SEQ,…}`.
    pub fn of(id: &str, piece: &Bytes) -> Self {
        let mut told = Self::default();
        let mut rows = Vec::new();
        for line in piece.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix(b"{\"caught_up\":") {
                let mut message = begin("caught_up", id, 64 + rest.len());
                message.extend_from_slice(b",\"last_seq\":");
                message.extend_from_slice(rest);
                told.caught_up = Some(message.into());
            } else if line.starts_with(b"{\"last_seq\":") {
                let place: Option<Value> = serde_json::from_slice(line).ok();
                told.last_seq = place.map(|place| place["last_seq"].to_string().into());
            } else {
                if rows.is_empty() {
                    rows = begin("changes", id, piece.len() + 128);
                    rows.extend_from_slice(b",\"results\":[");
                } else {
                    rows.push(b',');
                }
                rows.extend_from_slice(line);
                // They were caught up before these.
                told.caught_up = None;
            }
        }
        if !rows.is_empty() {
            rows.extend_from_slice(b"]}");
            told.changes = Some(rows.into());
        }
        told
    }
}

fn begin(op: &str, id: &str, capacity: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(capacity);
    message.extend_from_slice(b"{\"op\":\"");
    message.extend_from_slice(op.as_bytes());
    message.extend_from_slice(b"\",\"id\":");
    push_string(&mut message, id);
    message
}

#[cfg(test)]
mod tests {
    use super::{FromClient, Told};
    use bytes::Bytes;
    use serde_json::{Value, json};

    fn subscribe(text: &str) -> super::Subscribe {
        match FromClient::parse(text).expect(text) {
            FromClient::Subscribe(subscribe) => *subscribe,
            other => panic!("{other:?}"),
        }
    }

    fn json_of(text: &Option<Bytes>) -> Value {
        serde_json::from_slice(text.as_deref().expect("a message")).expect("JSON")
    }

    #[test]
    fn a_subscription_becomes_the_request_that_asks_for_the_same() {
        let text = r#"{"op":"subscribe","id":"a","db":"x/y","since":7,"style":"all_docs","include_docs":true,
            "doc_ids":["a"],"query":{"who":"ann","n":1}}"#;
        let message = subscribe(text);
        message.check().expect("good");
        let request = message.into_request().expect("a request");
        assert_eq!(request.db_name(), "x/y");
        assert!(request.shared && request.uri.path().starts_with("/x%2Fy/_changes"));
        for (name, value) in [("since", "7"), ("style", "all_docs"), ("filter", "_doc_ids"), ("who", "ann"), ("n", "1")]
        {
            assert_eq!(request.query.get(name), Some(value), "{name}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"op":"zork"}"#,
            r#"{"op":"subscribe","id":"a"}"#,
            r#"{"op":"subscribe","id":1,"db":"x"}"#,
            r#"{"op":"subscribe","id":"a","db":"x","attachments":true}"#,
            r#"{"op":"subscribe","id":"a","db":"x","query":[]}"#,
            r#"{"op":"credit","id":"a","n":-1}"#,
        ] {
            assert!(FromClient::parse(text).is_err(), "{text}");
        }
        let long = "x".repeat(65);
        for text in [
            r#"{"op":"subscribe","id":"","db":"x"}"#.to_owned(),
            format!(r#"{{"op":"subscribe","id":"{long}","db":"x"}}"#),
            r#"{"op":"subscribe","id":"a","db":"x","query":{"descending":true}}"#.to_owned(),
        ] {
            assert!(subscribe(&text).check().is_err(), "{text}");
        }
        let odd = subscribe(r#"{"op":"subscribe","id":"a","db":"x","since":{}}"#);
        assert!(odd.into_request().is_err());
    }

    #[test]
    fn a_piece_becomes_messages() {
        let told = Told::of("a", &Bytes::from_static(b"\n\n"));
        assert_eq!(told, Told::default());
        let piece = b"{\"caught_up\":\"1-x\"}\n{\"seq\":\"2-x\",\"id\":\"d\"}\n{\"seq\":\"3-x\",\"id\":\"e\"}\n";
        let told = Told::of("a\"b", &Bytes::from_static(piece));
        let changes = json_of(&told.changes);
        assert_eq!((&changes["op"], &changes["id"]), (&json!("changes"), &json!("a\"b")));
        assert_eq!(changes["results"][1], json!({"seq": "3-x", "id": "e"}));
        assert!(told.caught_up.is_none() && told.last_seq.is_none());
        let told =
            Told::of("a", &Bytes::from_static(b"{\"caught_up\":\"1-x\"}\n{\"last_seq\":\"1-x\",\"pending\":0}\n"));
        assert_eq!(json_of(&told.caught_up), json!({"op": "caught_up", "id": "a", "last_seq": "1-x"}));
        assert_eq!(told.last_seq.as_deref(), Some(&b"\"1-x\""[..]));
    }
}
