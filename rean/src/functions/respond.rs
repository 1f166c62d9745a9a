//! From what an update handler returns to an HTTP answer
//! (<https://docs.couchdb.org/en/stable/json-structure.html#response-object>).

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, VARY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::route::Response;

/// What a text is, unless the handler says otherwise.
const TEXT: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
/// What Base64 data is.
const BINARY: HeaderValue = HeaderValue::from_static("application/binary");
/// What `json` is.
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Headers that a handler can't set: they belong to the connection, to the log-in or to what the proxy allows other
/// sites.
const REFUSED_HEADERS: [&str; 18] = [
    "connection",
    "content-encoding",
    "content-length",
    "date",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "server",
    "set-cookie",
    "set-cookie2",
    "strict-transport-security",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "www-authenticate",
    "clear-site-data",
    "service-worker-allowed",
];
/// Beginnings of such headers.
const REFUSED_PREFIXES: [&str; 4] = ["access-control-", "x-couch-", "x-adea-", "x-auth-"];
/// More headers than any handler needs.
const MAX_HEADERS: usize = 64;

/// The answer that a handler's response means. `status`: unless it says a `code`.
///
/// # Errors
/// 500 for a response that is none.
pub fn answer(response: &str, status: StatusCode) -> Result<Response, ApiError> {
    let value: Value = serde_json::from_str(response).map_err(|_| malformed("it is no JSON"))?;
    let mut object = match value {
        Value::String(text) => Map::from_iter([("body".to_owned(), Value::String(text))]),
        Value::Object(object) => object,
        _ => return Err(malformed("it must be a string or an object")),
    };
    let status = match object.remove("code") {
        None => status,
        Some(code) => code_of(&code)?,
    };
    let given = headers(object.remove("headers"))?;
    let (body, kind) = content(object)?;
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("must-revalidate"));
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    headers.extend(given);
    // Documents, which many write, go into it: a page that it makes must not run as one of ours.
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(answer)
}

fn code_of(code: &Value) -> Result<StatusCode, ApiError> {
    let number = code.as_f64().filter(|code| code.fract() == 0.0 && (200.0..600.0).contains(code));
    let status = number.and_then(|number| StatusCode::from_u16(number as u16).ok());
    status.ok_or_else(|| malformed("its `code` is no status"))
}

fn content(object: Map<String, Value>) -> Result<(Bytes, HeaderValue), ApiError> {
    let mut content = (Bytes::new(), TEXT);
    for (name, value) in object {
        content = match (name.as_str(), value) {
            ("body", Value::String(text)) => (text.into(), TEXT),
            ("json", value) => (value.to_string().into(), JSON),
            ("base64", Value::String(text)) => {
                let bytes = STANDARD.decode(text).map_err(|_| malformed("its `base64` is none"))?;
                (bytes.into(), BINARY)
            }
            ("body" | "base64", _) => return Err(malformed("its body must be a string")),
            ("stop", _) => continue,
            _ => return Err(malformed("it has members that no response has")),
        };
    }
    Ok(content)
}

fn headers(value: Option<Value>) -> Result<HeaderMap, ApiError> {
    let mut headers = HeaderMap::new();
    let object = match value {
        None | Some(Value::Null) => return Ok(headers),
        Some(Value::Object(object)) if object.len() <= MAX_HEADERS => object,
        Some(_) => return Err(malformed("its headers must be an object")),
    };
    for (name, value) in object {
        let text = match value {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            _ => return Err(malformed("its headers must be strings")),
        };
        let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(text)) else {
            return Err(malformed("it has a header that can't be sent"));
        };
        if !is_refused(name.as_str()) {
            headers.append(name, value);
        }
    }
    Ok(headers)
}

fn is_refused(name: &str) -> bool {
    REFUSED_HEADERS.contains(&name) || REFUSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn malformed(why: &str) -> ApiError {
    let reason = format!("The response of the function can't be sent: {why}.");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "external_response_error", reason)
}

#[cfg(test)]
mod tests {
    use super::answer;
    use http::StatusCode;

    async fn sent(response: &str) -> Option<(u16, String, Vec<u8>)> {
        let answer = answer(response, StatusCode::CREATED).ok()?;
        let kind = answer.headers()["content-type"].to_str().expect("text").to_owned();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 1_000).await.expect("a body");
        Some((status, kind, body.to_vec()))
    }

    #[tokio::test]
    async fn all_forms_are_sent() {
        let html = "text/html; charset=utf-8".to_owned();
        assert_eq!(sent(r#""hi""#).await, Some((201, html.clone(), b"hi".to_vec())));
        assert_eq!(sent(r#"{"body":"hi","code":202}"#).await, Some((202, html.clone(), b"hi".to_vec())));
        assert_eq!(sent(r#"{"code":204.0}"#).await, Some((204, html, Vec::new())));
        let json = "application/json".to_owned();
        assert_eq!(sent(r#"{"json":{"a":[1]}}"#).await, Some((201, json, br#"{"a":[1]}"#.to_vec())));
        let binary = "application/binary".to_owned();
        assert_eq!(sent(r#"{"base64":"AAH/"}"#).await, Some((201, binary, vec![0, 1, 255])));
        let own = r#"{"body":"x","headers":{"content-type":"text/x"}}"#;
        assert_eq!(sent(own).await.map(|(_, kind, _)| kind), Some("text/x".to_owned()));
    }

    #[tokio::test]
    async fn what_can_not_be_sent_is_an_error() {
        for bad in [
            "5",
            "[]",
            "null",
            "x",
            r#"{"code":100}"#,
            r#"{"code":1000}"#,
            r#"{"code":"200"}"#,
            r#"{"body":5}"#,
            r#"{"base64":"?"}"#,
            r#"{"zork":1}"#,
            r#"{"headers":[]}"#,
            r#"{"headers":{"a":{}}}"#,
            r#"{"headers":{"a b":"x"}}"#,
            r#"{"headers":{"a":"x\ny"}}"#,
        ] {
            assert_eq!(sent(bad).await, None, "{bad}");
        }
    }

    #[test]
    fn headers_that_are_not_a_functions_are_left_out() {
        let text = r#"{"body":"","headers":{"Set-Cookie":"AuthSession=x","Transfer-Encoding":"chunked","X-Mine":"yes",
            "Access-Control-Allow-Origin":"*","X-Couch-Id":"y","Content-Security-Policy":"default-src *"}}"#;
        let answer = answer(text, StatusCode::OK).expect("an answer");
        let headers = answer.headers();
        assert_eq!(headers["x-mine"], "yes");
        assert_eq!(headers["content-security-policy"], "sandbox");
        for name in ["set-cookie", "transfer-encoding", "access-control-allow-origin", "x-couch-id"] {
            assert!(!headers.contains_key(name), "{name}");
        }
    }
}
