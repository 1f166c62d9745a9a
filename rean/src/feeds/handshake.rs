//! The start of a WebSocket: which requests ask for one, and what they are told (RFC 6455, 4.2).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::error::ApiError;

/// The name of the protocol, which a client must ask for: what comes next may differ in a way that it must know of.
pub const PROTOCOL: &str = "adea.feeds.v1";
/// A key is this many random bytes in Base64.
const KEY_BYTES: usize = 16;

/// The headers of the answer that accepts.
///
/// # Errors
/// 426 when no WebSocket or another version is asked for, 400 when the handshake is malformed or asks for another protocol.
pub fn accept(headers: &HeaderMap) -> Result<HeaderMap, ApiError> {
    if !names(headers, UPGRADE, "websocket") || !names(headers, CONNECTION, "upgrade") {
        return Err(upgrade_required());
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(upgrade_required().with_header(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let key = key.filter(|key| STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == KEY_BYTES));
    let key = key.ok_or_else(|| ApiError::bad_request("Sec-WebSocket-Key must be 16 bytes in Base64"))?;
    if !names(headers, SEC_WEBSOCKET_PROTOCOL, PROTOCOL) {
        return Err(ApiError::bad_request(format!("Sec-WebSocket-Protocol must name {PROTOCOL}")));
    }
    let answer = HeaderValue::try_from(derive_accept_key(key))
        .map_err(|error| ApiError::internal("the handshake can't be answered").with_cause(error))?;
    Ok(HeaderMap::from_iter([
        (CONNECTION, HeaderValue::from_static("upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, answer),
        (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL)),
    ]))
}

/// 426 with what to ask for.
pub fn upgrade_required() -> ApiError {
    ApiError::new(
        StatusCode::UPGRADE_REQUIRED,
        "upgrade_required",
        "These are many feeds on one connection: ask for a WebSocket, over HTTP/1.1, or for text/event-stream.",
    )
    .with_header(UPGRADE, HeaderValue::from_static("websocket"))
}

/// Whether a header with a list of names has this one.
fn names(headers: &HeaderMap, header: HeaderName, name: &str) -> bool {
    let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::{PROTOCOL, accept};
    use http::HeaderMap;

    fn headers(changed: Option<(&'static str, &str)>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let protocols = format!("x, {PROTOCOL}");
        for (name, value) in [
            ("upgrade", "WebSocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", &protocols),
        ] {
            headers.insert(name, value.parse().expect("a value"));
        }
        if let Some((name, value)) = changed {
            headers.insert(name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn the_example_of_the_standard_is_answered_as_there() {
        let answer = accept(&headers(None)).expect("accepted");
        assert_eq!(answer["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(answer["sec-websocket-protocol"], PROTOCOL);
    }

    #[test]
    fn what_is_no_handshake_is_refused() {
        for (name, value, status) in [
            ("upgrade", "h2c", 426),
            ("connection", "keep-alive", 426),
            ("sec-websocket-version", "8", 426),
            ("sec-websocket-key", "short", 400),
            ("sec-websocket-protocol", "chat", 400),
        ] {
            let error = accept(&headers(Some((name, value)))).expect_err(name);
            assert_eq!(error.status, status, "{name}");
        }
        assert_eq!(accept(&HeaderMap::new()).expect_err("nothing").status, 426);
    }
}
