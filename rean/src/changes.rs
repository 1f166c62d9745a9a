//! `_changes` in all its forms: what is asked for.
//!
//! Source: <https://docs.couchdb.org/en/stable/api/database/changes.html>. The answer is made by [`crate::feed_body`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::Identity;
use axum::body::Body;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode};
use rean_store::Since;
use rean_store::selector::Selector;
use serde_json::Value;

use crate::body_in;
use crate::error::ApiError;
use crate::feed_body::{self, Guard, Run};
use crate::functions::filters::{Function, FunctionFilter};
use crate::functions::req::{Asked, Sent};
use crate::pod::Pod;
use crate::query::Query;
use crate::render::{self, AttachmentForm};
use crate::route::{Request, Response};
use crate::target::{Target, resolve};

/// Bytes of a filter's text. A feed keeps the filter for as long as it is open.
const MAX_FILTER_BYTES: usize = 256 * 1024;
/// How much more a filter takes in memory than as text, at most about.
const FILTER_GROWTH: usize = 8;
/// How long a feed without heartbeat waits, in ms, unless the client wants less: CouchDB's `changes_timeout`.
const TIMEOUT_MS: u64 = 60_000;
/// The shortest heartbeat, in ms: a thousand idle feeds must not cost a core.
const SHORTEST_HEARTBEAT_MS: u64 = 100;
/// The longest heartbeat, in ms: a listener that has vanished is found out by what can't be sent to it.
const LONGEST_HEARTBEAT_MS: u64 = 60_000;

/// The form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// What there is, then the end.
    Normal,
    /// What there is, or the next that comes, then the end.
    Longpoll,
    /// A line a change, without end.
    Continuous,
    /// The same as server-sent events.
    EventSource,
    /// A line a change among other feeds of one connection ([`crate::feeds`]); a line `{"caught_up":"SEQ"}` each time that
    /// there is nothing more to read.
    Shared,
}

/// Which changes are given.
#[derive(Debug)]
pub enum Filter {
    /// All.
    All,
    /// Those of these documents.
    DocIds(HashSet<Box<str>>),
    /// Those of documents that match.
    Selector(Box<Selector>),
    /// Those of design documents.
    Design,
    /// Those that a function lets through.
    Function(FunctionFilter),
}

/// What is asked for, beyond the database and the place to start from.
#[derive(Debug)]
pub struct Options {
    /// The form.
    pub form: Form,
    /// At most so many rows.
    pub limit: u64,
    /// The newest first.
    pub descending: bool,
    /// With documents.
    pub include_docs: bool,
    /// All leaves, and not only the winner.
    pub all_leaves: bool,
    /// How documents are rendered.
    pub document: render::Options,
    /// Which rows.
    pub filter: Filter,
    /// What the filter takes in memory, in bytes, about.
    pub filter_bytes: usize,
    /// Only each of so many rows needs its sequence, the others may have `null` (`seq_interval`).
    pub seq_interval: u64,
    /// A sign of life every so often.
    pub heartbeat: Option<Duration>,
    /// Without heartbeat: waiting ends after this.
    pub timeout: Duration,
}

/// `GET` and `POST /db/_changes`.
///
/// # Errors
/// 401, 403 and 404 as the target says; 400 for malformed parameters and for a `since` that isn't ours; 404 for filters
/// that no design document has, and what a filter function throws with the first documents.
pub async fn changes(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let head = request.head;
    let (form, run) = open(pod, who, request).await?;
    Ok(answer(form, if head { Body::empty() } else { feed_body::body(run) }))
}

/// A feed as a request asks for it, not yet begun.
///
/// # Errors
/// As [`changes`].
pub async fn open(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<(Form, Box<Run>), ApiError> {
    let target = resolve(pod, who, request.db_name())?;
    target.require_read()?;
    let asked = Asked::of(&request);
    let body = if request.method == Method::POST {
        let text = body_in::read_json(pod, &request.headers, request.body).await?;
        if text.len() > MAX_FILTER_BYTES {
            return Err(ApiError::body_too_large());
        }
        text
    } else {
        Bytes::new()
    };
    let last_event = request.headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let since = since(&request.query, last_event);
    let mut options = options(&request.query, &body, &|function, design, sent| {
        FunctionFilter::new(pod, &target, design, function, || asked.object(pod, &target, None, sent))
    })?;
    if request.shared {
        options.form = Form::Shared;
    }
    let form = options.form;
    let mut run = start(pod, who, target, since, options)?;
    if !request.head {
        run.try_filter().await?;
    }
    Ok((form, run))
}

fn answer(form: Form, body: Body) -> Response {
    let mut response = render::json(StatusCode::OK, body);
    if form == Form::EventSource {
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    response
}

/// The guard is set up first and the rights are asked for after that, so that no change of them falls in between.
fn start(pod: &Arc<Pod>, who: &Identity, target: Target, since: Since, options: Options) -> Result<Box<Run>, ApiError> {
    let guard = Guard::new(pod, who, &target, options.filter_bytes)?;
    let target = resolve(pod, who, &target.name)?;
    target.require_read()?;
    Run::new(target, since, options, guard)
}

impl Options {
    /// Whether the feed waits for changes to come.
    pub fn waits(&self) -> bool {
        self.form != Form::Normal && !self.descending
    }
}

fn since(query: &Query, last_event: Option<&str>) -> Since {
    let text = last_event.or_else(|| query.get("last-event-id")).or_else(|| query.get("since")).unwrap_or("0");
    // Some clients send the sequence as the JSON text that they got.
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    match text {
        "" | "0" => Since::Start,
        "now" => Since::Now,
        token => Since::Token(token.to_owned()),
    }
}

/// Finds the function of a design document: which, in which one, and the body that it is to see.
type FindFunction<'a> = &'a dyn Fn(Function, &str, Sent) -> Result<FunctionFilter, ApiError>;

fn options(query: &Query, body: &[u8], find: FindFunction<'_>) -> Result<Options, ApiError> {
    let form = match query.get("feed") {
        None | Some("normal") => Form::Normal,
        Some("longpoll") => Form::Longpoll,
        Some("continuous" | "live") => Form::Continuous,
        Some("eventsource") => Form::EventSource,
        Some(_) => {
            return Err(ApiError::query("`feed` must be normal, longpoll, continuous or eventsource"));
        }
    };
    let all_leaves = match query.get("style") {
        None | Some("main_only") => false,
        Some("all_docs") => true,
        Some(_) => return Err(ApiError::query("`style` must be main_only or all_docs")),
    };
    let attachments = query.is_true("attachments");
    let filter = filter(query, body, find)?;
    let given_bytes = body.len() + query.get("doc_ids").map_or(0, str::len);
    let filter_bytes = match &filter {
        // A function's request is kept as text.
        Filter::Function(function) => function.bytes(),
        _ => given_bytes * FILTER_GROWTH,
    };
    let seq_interval = seq_interval(query, form, &filter)?;
    Ok(Options {
        form,
        limit: query.u64("limit")?.unwrap_or(u64::MAX),
        descending: query.is_true("descending"),
        include_docs: query.is_true("include_docs"),
        all_leaves,
        document: render::Options {
            conflicts: query.is_true("conflicts"),
            attachments: if attachments { AttachmentForm::Inline } else { AttachmentForm::Stub },
            ..render::Options::default()
        },
        filter,
        filter_bytes,
        seq_interval,
        heartbeat: heartbeat(query)?,
        timeout: Duration::from_millis(query.u64("timeout")?.unwrap_or(TIMEOUT_MS).min(TIMEOUT_MS)),
    })
}

/// A client that listens needs each row's sequence, for it may have to go on from there; with a filter it isn't known
/// which row is the last.
fn seq_interval(query: &Query, form: Form, filter: &Filter) -> Result<u64, ApiError> {
    let asked = query.u64("seq_interval")?.unwrap_or(1).max(1);
    Ok(if form == Form::Normal && matches!(filter, Filter::All) { asked } else { 1 })
}

fn heartbeat(query: &Query) -> Result<Option<Duration>, ApiError> {
    let ms = match query.get("heartbeat") {
        None | Some("false") => return Ok(None),
        Some("true") => LONGEST_HEARTBEAT_MS,
        Some(text) => text.parse::<u64>().ok().filter(|ms| *ms > 0).ok_or_else(|| {
            ApiError::bad_request("Invalid heartbeat value. Expecting a positive integer value (in milliseconds).")
        })?,
    };
    let ms = ms.clamp(SHORTEST_HEARTBEAT_MS, LONGEST_HEARTBEAT_MS);
    Ok(Some(Duration::from_millis(ms)))
}

fn filter(query: &Query, body: &[u8], find: FindFunction<'_>) -> Result<Filter, ApiError> {
    let object = || -> Result<Value, ApiError> {
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(body).map_err(|_| ApiError::invalid_json())
    };
    let function = |function: Function, design: &str| -> Result<Filter, ApiError> {
        let sent = if body.is_empty() { Sent::Nothing } else { Sent::Json(object()?) };
        find(function, design, sent).map(Filter::Function)
    };
    match query.get("filter") {
        None | Some("") => {
            object()?;
            Ok(Filter::All)
        }
        Some("_doc_ids") => {
            let ids = match query.json::<Value>("doc_ids")? {
                Some(ids) => ids,
                None => object()?.get("doc_ids").cloned().unwrap_or_default(),
            };
            doc_ids(&ids)
        }
        Some("_selector") => {
            let object = object()?;
            let selector = object
                .get("selector")
                .ok_or_else(|| ApiError::bad_request("Selector must be specified in POST payload"))?;
            let selector = Selector::parse(selector).map_err(|error| ApiError::bad_request(error.to_string()))?;
            Ok(Filter::Selector(Box::new(selector)))
        }
        Some("_design") => Ok(Filter::Design),
        Some("_view") => {
            let view = query.get("view").unwrap_or_default();
            let (design, name) = view
                .split_once('/')
                .ok_or_else(|| ApiError::bad_request("`view` filter parameter is not provided or not design/view"))?;
            function(Function::View(name.to_owned()), design)
        }
        Some(other) => {
            let (design, name) = other
                .split_once('/')
                .ok_or_else(|| ApiError::bad_request("`filter` must be of the form `designname/filtername`"))?;
            function(Function::Filter(name.to_owned()), design)
        }
    }
}

fn doc_ids(ids: &Value) -> Result<Filter, ApiError> {
    let malformed = || ApiError::bad_request("`doc_ids` must be a list of strings");
    let ids = ids.as_array().ok_or_else(malformed)?;
    let ids: Option<HashSet<Box<str>>> = ids.iter().map(|id| id.as_str().map(Into::into)).collect();
    ids.map(Filter::DocIds).ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_HEARTBEAT_MS, heartbeat, since};
    use crate::query::Query;
    use rean_store::Since;
    use std::time::Duration;

    fn query(raw: &str) -> Query {
        Query::parse(Some(raw)).expect("a query")
    }

    #[test]
    fn heartbeats_are_bounded_both_ways() {
        let of = |raw: &str| heartbeat(&query(raw));
        assert_eq!(of("").expect("none"), None);
        let longest = Some(Duration::from_millis(LONGEST_HEARTBEAT_MS));
        assert_eq!(of("heartbeat=true").expect("one"), longest);
        assert_eq!(of("heartbeat=999999999").expect("one"), longest);
        let shortest = Some(Duration::from_millis(100));
        assert_eq!(of("heartbeat=1").expect("one"), shortest);
        for bad in ["heartbeat=0", "heartbeat=-5", "heartbeat=x"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_event_goes_before_the_parameter() {
        assert!(matches!(since(&query(""), None), Since::Start));
        assert!(matches!(since(&query("since=0"), None), Since::Start));
        assert!(matches!(since(&query("since=now"), None), Since::Now));
        assert!(matches!(since(&query("since=now"), Some("5-ab")), Since::Token(t) if t == "5-ab"));
        assert!(matches!(since(&query("since=%225-ab%22"), None), Since::Token(t) if t == "5-ab"));
        assert!(matches!(since(&query("last-event-id=7&since=3"), None), Since::Token(t) if t == "7"));
    }
}
