//! What a browser loads from a pod: the reference client for many feeds on one connection, and what documents it.

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use sha2::{Digest as _, Sha256};

use crate::body::Body;
use crate::error::Refusal;

/// Where the files are.
const FOLDER: &str = "/_web/";
/// Looked at anew each time, which costs a 304: a pod that is upgraded has clients that fit it.
const CACHE: HeaderValue = HeaderValue::from_static("no-cache");

/// A file: its name, its type and its text.
type File = (&'static str, &'static str, &'static str);

const FILES: [File; 2] = [
    ("feeds.mjs", "text/javascript; charset=utf-8", include_str!("../web/feeds.mjs")),
    ("FEEDS.md", "text/markdown; charset=utf-8", include_str!("../web/FEEDS.md")),
];

/// Whether a path is one of these files', or would be.
pub fn is_below(path: &str) -> bool {
    path.starts_with(FOLDER)
}

/// Answers with a file. No log-in is needed: everybody may have the source.
///
/// # Errors
/// `NotFound`, and `Method` for anything but reading.
pub fn answer(method: &Method, path: &str, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
    let name = path.strip_prefix(FOLDER).unwrap_or_default();
    let (_, kind, text) = FILES.iter().find(|(known, ..)| *known == name).ok_or(Refusal::NotFound)?;
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(Refusal::Method("GET,HEAD"));
    }
    let tag = format!("\"{}\"", hex::encode(&Sha256::digest(text)[..8]));
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| {
        known.to_str().is_ok_and(|known| known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag))
    });
    let mut response = Response::new(if known { Body::empty() } else { Body::full(text.as_bytes().into()) });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, CACHE);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(tag) = HeaderValue::try_from(tag) {
        headers.insert(header::ETAG, tag);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_a_type_and_a_tag_and_nothing_else_is_there() {
        let get = |path: &str, headers: &HeaderMap| answer(&Method::GET, path, headers);
        let none = HeaderMap::new();
        let found = get("/_web/feeds.mjs", &none).expect("there");
        assert_eq!(found.headers()["content-type"], "text/javascript; charset=utf-8");
        let asked = HeaderMap::from_iter([(header::IF_NONE_MATCH, found.headers()["etag"].clone())]);
        assert_eq!(get("/_web/feeds.mjs", &asked).expect("there").status(), 304);
        for path in ["/_web/", "/_web/../x", "/_web/feeds", "/_web/feeds.mjs/"] {
            assert_eq!(get(path, &none).expect_err(path), Refusal::NotFound);
        }
        assert!(matches!(answer(&Method::PUT, "/_web/feeds.mjs", &none), Err(Refusal::Method(_))));
    }
}
