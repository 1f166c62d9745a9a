//! A file of an app as an answer: its type, how long it may be kept, its compressed form, its parts.

use adea_ring::hosting::{SPLIT_HEADER, VERSION_HEADER};
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, LOCATION, RANGE, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rean_store::{Attachment, Db};

use crate::attachments::{DEFAULT_TYPE, content, unsatisfiable, wanted_range};
use crate::docs::{matches_etag, not_modified};
use crate::error::ApiError;
use crate::hosting::path::{is_hashed, is_page, type_of};
use crate::hosting::version::GZIPPED;
use crate::hosting::{Found, nothing};
use crate::multipart_out::content_type;
use crate::pod::Pod;
use crate::range::ByteRange;
use crate::route::{Request, Response};

/// What must be escaped in a segment of a path.
const ESCAPES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Looked at anew each time, which costs a 304: a page must name the files of its own version.
const LOOKED_AT: HeaderValue = HeaderValue::from_static("no-cache");
/// Under this name there never is another content.
const KEPT: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// A minute: a picture or a font may be that much behind its page.
const BRIEFLY: HeaderValue = HeaderValue::from_static("public, max-age=60");
/// Unless the version says otherwise: no page of another origin shows this one in a frame, to have its visitors click on
/// what they don't see; no plug-ins; and no `<base>` that leads the page's own links elsewhere.
const POLICY: HeaderValue = HeaderValue::from_static("frame-ancestors 'self'; object-src 'none'; base-uri 'self'");

/// Sends a file. `is_of_all`: it was chosen among several versions, by who asks.
pub async fn send(
    pod: &Pod,
    db: &Db,
    found: &Found<'_>,
    is_of_all: bool,
    headers: &HeaderMap,
    head: bool,
) -> Result<Response, ApiError> {
    let zipped = found.version.file(&format!("{}{GZIPPED}", found.path));
    // A part is of the plain form.
    let takes_zipped = !headers.contains_key(RANGE) && accepts_gzip(headers);
    let (file, is_zipped) = match zipped {
        Some(zipped) if takes_zipped => (zipped, true),
        _ => (found.file, false),
    };
    let etag = etag(file, is_zipped);
    if matches_etag(headers, &etag) {
        let mut response = not_modified(etag);
        about(response.headers_mut(), found, is_of_all, zipped.is_some());
        return Ok(response);
    }
    let range = wanted_range(headers, &etag, file.length);
    let (status, from, to) = match range {
        ByteRange::Whole => (StatusCode::OK, 0, file.length),
        ByteRange::Part { start, end } => (StatusCode::PARTIAL_CONTENT, start, end),
        ByteRange::Unsatisfiable => return Err(unsatisfiable(range, file.length)),
    };
    let body = if head { Body::empty() } else { content(pod, db, file, from, to).await? };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let answer = response.headers_mut();
    answer.insert(CONTENT_TYPE, kind(found));
    answer.insert(CONTENT_LENGTH, HeaderValue::from(to - from));
    answer.insert(ETAG, etag);
    answer.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if is_zipped {
        answer.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Some(Ok(part)) = range.content_range(file.length).map(|text| HeaderValue::from_str(&text)) {
        answer.insert(CONTENT_RANGE, part);
    }
    about(answer, found, is_of_all, zipped.is_some());
    Ok(response)
}

/// To a folder of the app, with the slash that its page's links need.
///
/// # Errors
/// When the path can't be a header's value.
pub fn elsewhere(db_name: &str, folder: &str, query: Option<&str>) -> Result<Response, ApiError> {
    // Made anew, and not of what was asked for: two slashes at its beginning would lead to another host.
    let mut path = format!("/{}/_app/", utf8_percent_encode(db_name, ESCAPES));
    for name in folder.split('/').filter(|name| !name.is_empty()) {
        path.extend(utf8_percent_encode(name, ESCAPES));
        path.push('/');
    }
    if let Some(query) = query {
        path.push('?');
        path.push_str(query);
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    let headers = response.headers_mut();
    headers.insert(LOCATION, HeaderValue::from_str(&path).map_err(|_| nothing())?);
    headers.insert(CACHE_CONTROL, LOOKED_AT);
    Ok(response)
}

/// Whether whoever asks is a browser that goes to a page, and not a script that wants data.
pub fn accepts_pages(request: &Request) -> bool {
    let accepts = request.header(ACCEPT).unwrap_or_default();
    accepts.split(',').any(|range| range.split(';').next().is_some_and(|kind| kind.trim() == "text/html"))
}

/// What is said of a file with each answer, also with the one that it has not changed.
fn about(headers: &mut HeaderMap, found: &Found<'_>, is_of_all: bool, has_zipped: bool) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    for (name, value) in found.version.headers() {
        headers.insert(name, value.clone());
    }
    if let Ok(version) = HeaderValue::from_str(found.version.name()) {
        headers.insert(HeaderName::from_static(VERSION_HEADER), version);
    }
    let is_kept = !is_page(&found.path) && (is_hashed(&found.path) || found.version.is_immutable(&found.path));
    let cache = if is_kept {
        KEPT
    } else if is_of_all || is_page(&found.path) {
        // Of another version than the page is that names it, a file might not fit.
        LOOKED_AT
    } else {
        BRIEFLY
    };
    headers.insert(CACHE_CONTROL, cache);
    if has_zipped {
        headers.append(VARY, HeaderValue::from_name(ACCEPT_ENCODING));
    }
    if found.is_fallback {
        headers.append(VARY, HeaderValue::from_name(ACCEPT));
    }
    // What is kept for good is the same for all, and may be kept for others as well: a cookie must not be kept with it.
    if is_of_all && !is_kept {
        headers.insert(HeaderName::from_static(SPLIT_HEADER), HeaderValue::from_static("1"));
        headers.append(VARY, HeaderValue::from_static("Cookie, Authorization"));
    }
}

fn etag(file: &Attachment, is_zipped: bool) -> HeaderValue {
    let coding = if is_zipped { "-gzip" } else { "" };
    let text = format!("\"{}{coding}\"", STANDARD.encode(file.digest_md5));
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("\"\""))
}

/// What was said when it was put there, unless that says nothing.
fn kind(found: &Found<'_>) -> HeaderValue {
    let said = &found.file.content_type;
    match type_of(&found.path).filter(|_| said.is_empty() || said == DEFAULT_TYPE) {
        Some(known) => HeaderValue::from_static(known),
        None => content_type(said),
    }
}

/// Whether a client takes gzip (RFC 9110, 12.5.3).
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let lists = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|item| {
        let mut parts = item.split(';').map(str::trim);
        let is_gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refused = parts.any(|part| {
            part.strip_prefix("q=").is_some_and(|quality| quality.parse::<f32>().is_ok_and(|quality| quality <= 0.0))
        });
        is_gzip && !refused
    })
}
