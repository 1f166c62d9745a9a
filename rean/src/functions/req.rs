//! The `req` object: a request as filters and update handlers see it
//! (<https://docs.couchdb.org/en/stable/json-structure.html#request-object>).

use std::net::{IpAddr, Ipv4Addr};

use adea_ring::identity::PEER_HEADER;
use http::{HeaderMap, Method, Uri};
use rean_store::{Db, Scope, Since};
use serde_json::{Map, Value, json};

use crate::docs::new_id;
use crate::error::ApiError;
use crate::functions::{security_object, user_ctx};
use crate::pod::Pod;
use crate::query::Query;
use crate::route::Request;
use crate::target::Target;

/// Headers that no function sees: they carry credentials, or are between the programs of the pods.
const HIDDEN_HEADERS: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "sec-websocket-protocol"];
/// Beginnings of such headers.
const HIDDEN_PREFIXES: [&str; 2] = ["x-auth-", "x-adea-"];
/// CouchDB's word for the body of a request that has none.
const NO_BODY: &str = "undefined";

/// What functions are told of a request, apart from its body.
pub struct Asked {
    method: Method,
    head: bool,
    uri: Uri,
    segments: Vec<String>,
    query: Query,
    headers: HeaderMap,
}

/// The body of a request, as functions see it.
pub enum Sent {
    /// None.
    Nothing,
    /// JSON that was read already.
    Json(Value),
    /// Text, with the fields of a form if it is one.
    Text(String, Map<String, Value>),
}

impl Asked {
    /// What is told of this request.
    pub fn of(request: &Request) -> Self {
        Self {
            method: request.method.clone(),
            head: request.head,
            uri: request.uri.clone(),
            segments: request.segments.clone(),
            query: request.query.clone(),
            headers: request.headers.clone(),
        }
    }

    /// The object. `id`: the document that is asked for.
    ///
    /// # Errors
    /// 401 for an account that has been removed; what the store says.
    pub fn object(&self, pod: &Pod, target: &Target, id: Option<&str>, sent: Sent) -> Result<Value, ApiError> {
        let method = if self.head { "HEAD" } else { self.method.as_str() };
        let (body, form) = match sent {
            Sent::Nothing => (NO_BODY.into(), Map::new()),
            Sent::Json(value) => (value, Map::new()),
            Sent::Text(text, form) => (text.into(), form),
        };
        let path: Vec<&str> = self.segments.iter().flat_map(|segment| halves(segment)).collect();
        let raw_path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(json!({
            "info": info(&target.db, &target.scope, &target.name)?,
            "id": id,
            "uuid": new_id(),
            "method": method,
            "requested_path": path,
            "path": path,
            "raw_path": raw_path,
            "query": self.query_object(),
            "headers": headers(&self.headers),
            "body": body,
            "form": form,
            // Sessions are none of a function's business.
            "cookie": {},
            "peer": peer(&self.headers),
            "userCtx": user_ctx(pod, target)?,
            "secObj": security_object(target),
        }))
    }

    fn query_object(&self) -> Map<String, Value> {
        self.query.pairs().iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect()
    }
}

/// `_design/x` are two segments of the path to a function.
fn halves(segment: &str) -> impl Iterator<Item = &str> {
    let (prefix, rest) = match segment.split_once('/') {
        Some((prefix @ ("_design" | "_local"), rest)) => (Some(prefix), rest),
        _ => (None, segment),
    };
    prefix.into_iter().chain(std::iter::once(rest))
}

/// The client's address, which the proxy tells; a request of the pod itself comes from here.
fn peer(headers: &HeaderMap) -> String {
    let told = headers.get(PEER_HEADER).and_then(|value| value.to_str().ok()?.parse::<IpAddr>().ok());
    told.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)).to_string()
}

fn headers(headers: &HeaderMap) -> Map<String, Value> {
    let is_hidden =
        |name: &str| HIDDEN_HEADERS.contains(&name) || HIDDEN_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let shown = headers.iter().filter(|(name, value)| !is_hidden(name.as_str()) && !value.is_sensitive());
    shown
        .map(|(name, value)| (spelled(name.as_str()), String::from_utf8_lossy(value.as_bytes()).into_owned().into()))
        .collect()
}

/// Headers come in lower case from the proxy; functions for CouchDB ask for `Content-Type`.
fn spelled(name: &str) -> String {
    let words = name.split('-').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        format!("{}{rest}", first.to_ascii_uppercase())
    });
    words.collect::<Vec<_>>().join("-")
}

fn info(db: &Db, scope: &Scope, name: &str) -> Result<Value, ApiError> {
    let info = db.scoped_info(scope);
    Ok(json!({
        "db_name": name,
        "doc_count": info.doc_count,
        "doc_del_count": info.del_count,
        "update_seq": db.feed(scope, Since::Now)?.token(),
        "compact_running": info.compact_running,
        "instance_start_time": "0",
    }))
}

#[cfg(test)]
mod tests {
    use super::{PEER_HEADER, halves, headers, peer, spelled};
    use http::{HeaderMap, HeaderValue};

    #[test]
    fn credentials_and_identities_are_hidden() {
        let mut map = HeaderMap::new();
        for name in [
            "authorization",
            "cookie",
            "proxy-authorization",
            "x-auth-couchdb-username",
            "x-auth-couchdb-roles",
            "x-auth-couchdb-token",
            "x-adea-applied",
            "content-type",
            "x-mine",
        ] {
            map.insert(name, HeaderValue::from_static("v"));
        }
        let mut secret = HeaderValue::from_static("v");
        secret.set_sensitive(true);
        map.insert("x-secret", secret);
        let names: Vec<String> = headers(&map).keys().cloned().collect();
        assert_eq!(names, ["Content-Type", "X-Mine"]);
    }

    #[test]
    fn the_clients_address_is_the_proxys_word() {
        let mut map = HeaderMap::new();
        assert_eq!(peer(&map), "127.0.0.1");
        map.insert(PEER_HEADER, HeaderValue::from_static("2001:db8::1"));
        assert_eq!(peer(&map), "2001:db8::1");
        assert!(headers(&map).is_empty());
        map.insert(PEER_HEADER, HeaderValue::from_static("zork"));
        assert_eq!(peer(&map), "127.0.0.1");
    }

    #[test]
    fn names_are_spelled_as_functions_expect_them() {
        assert_eq!(spelled("content-type"), "Content-Type");
        assert_eq!(spelled("etag"), "Etag");
        assert_eq!(spelled("x--"), "X--");
        assert_eq!(halves("_design/x").collect::<Vec<_>>(), ["_design", "x"]);
        assert_eq!(halves("a/b").collect::<Vec<_>>(), ["a/b"]);
    }
}
