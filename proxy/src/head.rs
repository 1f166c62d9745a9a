//! What a client says of its request in headers of CouchDB's: another method, another address, a name for the logs.

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

/// By this header a request is named, in the logs and in the answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-couch-request-id");
const METHOD_OVERRIDE: HeaderName = HeaderName::from_static("x-http-method-override");
/// Bytes of a name that a client gives its request: a UUID has 36.
const MAX_ID_BYTES: usize = 64;
/// Bytes of a host in an address: a name has at most 253 (RFC 1035), and there is a port.
const MAX_HOST_BYTES: usize = 260;

/// The method that `X-HTTP-Method-Override` of a POST names, for clients that have no others, as in CouchDB. `HEAD` is
/// none of them: its answer has another form on the wire. Pages have the other methods, and what they may do with them
/// is asked by those: a request of one is left as it is.
pub fn override_method(parts: &mut Parts) {
    if parts.method != Method::POST || parts.headers.contains_key(header::ORIGIN) {
        return;
    }
    let wanted = parts.headers.remove(METHOD_OVERRIDE);
    match wanted.as_ref().map(HeaderValue::as_bytes) {
        Some(b"PUT") => parts.method = Method::PUT,
        Some(b"DELETE") => parts.method = Method::DELETE,
        Some(b"COPY") => parts.method = copy(),
        _ => {}
    }
}

fn copy() -> Method {
    Method::from_bytes(b"COPY").unwrap_or(Method::POST)
}

/// `scheme://host` as the client has it: through another proxy, as that one says. `None` for what can't be a host.
pub fn own_address(parts: &Parts) -> Option<String> {
    let text = |name: &str| parts.headers.get(name)?.to_str().ok()?.split(',').next().map(str::trim);
    let of_uri = parts.uri.authority().map(http::uri::Authority::as_str);
    let host = text("x-forwarded-host").or(of_uri).or_else(|| text("host"))?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    let is_https = text("x-forwarded-proto") == Some("https") || text("x-forwarded-ssl") == Some("on");
    let scheme = if is_https { "https" } else { "http" };
    (!host.is_empty() && host.len() <= MAX_HOST_BYTES && host.bytes().all(fits)).then(|| format!("{scheme}://{host}"))
}

/// Makes a `Location` on this server whole, as CouchDB gives it.
pub fn complete_location(address: &str, headers: &mut HeaderMap) {
    let path = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let whole = path.filter(|path| path.starts_with('/')).map(|path| HeaderValue::try_from(format!("{address}{path}")));
    if let Some(Ok(whole)) = whole {
        headers.insert(header::LOCATION, whole);
    }
}

/// By what name a request goes in the logs and in its answer: the client's, or a new one.
pub fn id(headers: &HeaderMap) -> HeaderValue {
    given_id(headers).unwrap_or_else(new_id)
}

/// The id that the client gives its request, if it can't be mistaken for more than one word of a log.
fn given_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    headers
        .get(REQUEST_ID)
        .filter(|id| (1..=MAX_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(fits))
        .cloned()
}

/// A request's id, in the form of CouchDB's.
fn new_id() -> HeaderValue {
    let id = format!("{:010x}", rand::random::<u64>() >> 24);
    // Hexadecimal digits are always a valid value.
    HeaderValue::from_maybe_shared(bytes::Bytes::from(id)).unwrap_or(HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(method: &str, headers: &[(&'static str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri("/db/a");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn a_post_may_stand_for_another_method() {
        for (method, wanted, counts) in [
            ("POST", "PUT", "PUT"),
            ("POST", "DELETE", "DELETE"),
            ("POST", "COPY", "COPY"),
            ("POST", "HEAD", "POST"),
            ("POST", "CONNECT", "POST"),
            ("POST", "put", "POST"),
            ("GET", "DELETE", "GET"),
            ("PUT", "DELETE", "PUT"),
        ] {
            let mut parts = parts(method, &[("x-http-method-override", wanted)]);
            override_method(&mut parts);
            assert_eq!(parts.method.as_str(), counts, "{method} {wanted}");
        }
        let mut of_a_page = parts("POST", &[("x-http-method-override", "DELETE"), ("origin", "https://a.example")]);
        override_method(&mut of_a_page);
        assert_eq!(of_a_page.method, Method::POST);
    }

    #[test]
    fn a_location_has_the_clients_address() {
        let whole = |headers: &[(&'static str, &str)], path: &'static str| {
            let mut answer = HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_static(path))]);
            if let Some(address) = own_address(&parts("PUT", headers)) {
                complete_location(&address, &mut answer);
            }
            answer[header::LOCATION].to_str().expect("ASCII").to_owned()
        };
        assert_eq!(whole(&[("host", "pod:5984")], "/db/a"), "http://pod:5984/db/a");
        assert_eq!(whole(&[("host", "[::1]:5984")], "/db/a"), "http://[::1]:5984/db/a");
        let behind = [("host", "10.0.0.1"), ("x-forwarded-host", "db.example, x"), ("x-forwarded-proto", "https")];
        assert_eq!(whole(&behind, "/db/a"), "https://db.example/db/a");
        for host in ["", "evil/x", "a@b", "a b"] {
            assert_eq!(whole(&[("host", host)], "/db/a"), "/db/a", "{host}");
        }
        assert_eq!(whole(&[("host", "pod")], "http://other/"), "http://other/");
    }

    #[test]
    fn a_clients_id_is_taken_if_it_is_one_word() {
        let given = |id: &str| given_id(&parts("GET", &[("x-couch-request-id", id)]).headers);
        assert_eq!(given("abc-1.2_3").expect("is taken"), "abc-1.2_3");
        for bad in ["", "a b", "a\tb", "a\"b", &"a".repeat(65)] {
            assert_eq!(given(bad), None, "{bad}");
        }
    }
}
