//! `_db_updates`: which databases were made, changed and deleted
//! (<https://docs.couchdb.org/en/stable/api/server/common.html#db-updates>), for administrators.
//!
//! Nothing is written down for it. The store numbers the changes of all databases in one sequence, so the newest change of
//! each database says whether it changed since a place in that sequence, and the `db:NAME` documents of `_ring` say when
//! databases were made and deleted. So a place holds across restarts, a feed costs a look at all databases for each batch
//! of commits and no memory that grows, and as in CouchDB of several events of a kind only the newest is told. A pod's
//! numbers are its own: a place of another pod means the beginning.
//!
//! The pod's own `_ring` and `_pods` are left out: they change all the time, also when nobody does anything.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::Identity;
use axum::body::{Body, Bytes};
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use rean_store::{Scope, Seq, Since, StoreError};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::accounts::AccountWatch;
use crate::aside::aside;
use crate::error::ApiError;
use crate::hub::{Newest, Place};
use crate::pod::Pod;
use crate::query::Query;
use crate::render;
use crate::ring::databases::PREFIX;
use crate::ring::ring_doc::{self, ring_db};
use crate::route::{Request, Response};
use crate::target::require_server_admin;

/// How long a feed without heartbeat waits, in ms, unless the client wants less: CouchDB's.
const TIMEOUT_MS: u64 = 60_000;
/// The shortest and the longest heartbeat, in ms, as for `_changes`.
const HEARTBEATS_MS: (u64, u64) = (100, 60_000);
/// Between two looks at all databases: under load a feed tells of each database this often. CouchDB gathers events as well.
const PAUSE: Duration = Duration::from_millis(50);
/// Rows of `_ring` that are read at once.
const PAGE_ROWS: usize = 500;
/// Databases that are not told of.
const LEFT_OUT: [&str; 2] = ["_ring", "_pods"];

/// The form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Normal,
    Longpoll,
    Continuous,
    EventSource,
}

struct Options {
    form: Form,
    limit: u64,
    descending: bool,
    heartbeat: Option<Duration>,
    timeout: Duration,
}

/// What happened to a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Created,
    Updated,
    Deleted,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    seq: Seq,
    kind: Kind,
    name: String,
}

/// `GET /_db_updates`.
///
/// # Errors
/// 401 for all but administrators; 400 for malformed parameters.
pub async fn db_updates(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    let options = options(&request.query)?;
    let last_event = request.header(http::HeaderName::from_static("last-event-id"));
    let since = since(pod, last_event.or_else(|| request.query.get("since")).unwrap_or("0"))?;
    let form = options.form;
    let run = Run {
        account: who.name.as_deref().map(|name| pod.accounts.watch(name)),
        place: pod.hub.admit(who.name.as_deref(), true, 0)?,
        // Before the first look, so that nothing is missed.
        news: pod.hub.follow(),
        pod: Arc::clone(pod),
        options,
        since,
        known: Known::default(),
        sent: 0,
        phase: Phase::Head,
        last_output: Instant::now(),
    };
    let body = if request.head { Body::empty() } else { body(Box::new(run)) };
    let mut response = render::json(StatusCode::OK, body);
    if form == Form::EventSource {
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    Ok(response)
}

fn options(query: &Query) -> Result<Options, ApiError> {
    let form = match query.get("feed") {
        None | Some("normal") => Form::Normal,
        Some("longpoll") => Form::Longpoll,
        Some("continuous" | "live") => Form::Continuous,
        Some("eventsource") => Form::EventSource,
        Some(_) => {
            return Err(ApiError::bad_request(
                "Supported `feed` types: normal, continuous, live, longpoll, eventsource",
            ));
        }
    };
    let (shortest, longest) = HEARTBEATS_MS;
    let heartbeat = match query.get("heartbeat") {
        None | Some("false") => None,
        Some("true") => Some(longest),
        Some(text) => Some(text.parse::<u64>().ok().filter(|ms| *ms > 0).ok_or_else(|| {
            ApiError::bad_request("The heartbeat value should be a positive integer (in milliseconds).")
        })?),
    };
    Ok(Options {
        form,
        limit: query.u64("limit")?.unwrap_or(u64::MAX),
        // Newest first has an end only where the feed has one.
        descending: query.is_true("descending") && form == Form::Normal,
        heartbeat: heartbeat.map(|ms| Duration::from_millis(ms.clamp(shortest, longest))),
        timeout: Duration::from_millis(query.u64("timeout")?.unwrap_or(TIMEOUT_MS).min(TIMEOUT_MS)),
    })
}

/// The place that a text names; one that is not this store's is the beginning.
fn since(pod: &Pod, text: &str) -> Result<Seq, ApiError> {
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if text == "now" {
        return Ok(pod.store.seq());
    }
    let (number, history) = text.split_once('-').map_or((text, None), |(number, history)| (number, Some(history)));
    let number: Seq =
        number.parse().map_err(|_| ApiError::bad_request("Malformed sequence supplied in 'since' parameter."))?;
    let is_ours = history.is_none_or(|history| history == pod.store.history()) && number <= pod.store.seq();
    Ok(if is_ours { number } else { 0 })
}

/// The databases that there are, as a feed knows: name -> instance.
#[derive(Default)]
struct Known {
    instances: HashMap<String, String>,
    /// Whether it has all of them: what isn't in it is new.
    complete: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Head,
    Look,
    Wait,
    Done,
}

/// One feed.
struct Run {
    pod: Arc<Pod>,
    news: watch::Receiver<Newest>,
    /// A feed ends when its reader's account changes. Where a session ends, or an administrator of the settings goes, the
    /// proxy cuts it off.
    account: Option<AccountWatch>,
    #[expect(dead_code, reason = "held for as long as the feed is open")]
    place: Place,
    options: Options,
    since: Seq,
    known: Known,
    sent: u64,
    phase: Phase,
    last_output: Instant,
}

fn body(run: Box<Run>) -> Body {
    Body::from_stream(stream::unfold(Some(run), |run| async {
        let mut run = run?;
        match run.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(run))),
            Ok(None) => None,
            Err(error) => {
                tracing::debug!(%error, "a feed of databases ended early");
                Some((Err(error), None))
            }
        }
    }))
}

impl Run {
    /// The next piece; `None` after the last one.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            let piece = match self.phase {
                Phase::Head => {
                    self.phase = Phase::Look;
                    self.is_object().then(|| b"{\"results\":[\n".to_vec())
                }
                Phase::Look => self.look()?,
                Phase::Wait => self.wait().await,
                Phase::Done => return Ok(None),
            };
            if let Some(piece) = piece {
                self.last_output = Instant::now();
                return Ok(Some(piece.into()));
            }
        }
    }

    fn is_object(&self) -> bool {
        matches!(self.options.form, Form::Normal | Form::Longpoll)
    }

    fn token(&self, seq: Seq) -> String {
        format!("{seq}-{}", self.pod.store.history())
    }

    /// What happened since the last look.
    fn look(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        if self.is_lost() {
            let mut text = Vec::new();
            self.tail(&mut text);
            return Ok(Some(text));
        }
        // What comes while it is looked wakes the feed again.
        let now = *self.news.borrow_and_update();
        let (pod, since, mut known) = (Arc::clone(&self.pod), self.since, std::mem::take(&mut self.known));
        let until = pod.store.seq();
        let mut events = aside(|| collect(&pod, since, until, &mut known))?;
        self.known = known;
        if self.options.descending {
            events.reverse();
        }
        let left = self.options.limit - self.sent;
        let cut = events.len() as u64 > left;
        events.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let last = events.iter().map(|event| event.seq).max();
        self.since = match last {
            Some(last) if cut => last,
            _ => until.max(self.since),
        };
        let mut text = Vec::new();
        for event in &events {
            self.push(&mut text, event);
            self.sent += 1;
        }
        let enough = match self.options.form {
            Form::Normal => true,
            Form::Longpoll => self.sent > 0,
            Form::Continuous | Form::EventSource => false,
        };
        if enough || self.sent >= self.options.limit || now.ended {
            self.tail(&mut text);
        } else {
            self.phase = Phase::Wait;
        }
        Ok((!text.is_empty()).then_some(text))
    }

    /// Whether the reader's rights may have changed.
    fn is_lost(&self) -> bool {
        self.account.as_ref().is_some_and(AccountWatch::has_changed)
    }

    fn push(&self, text: &mut Vec<u8>, event: &Event) {
        let kind = match event.kind {
            Kind::Created => "created",
            Kind::Updated => "updated",
            Kind::Deleted => "deleted",
        };
        let seq = self.token(event.seq);
        let row = json!({"db_name": event.name, "type": kind, "seq": seq});
        let row = match self.options.form {
            Form::Normal | Form::Longpoll if self.sent > 0 => format!(",\n{row}"),
            Form::Normal | Form::Longpoll => row.to_string(),
            Form::Continuous => format!("{row}\n"),
            Form::EventSource => format!("data: {row}\nid: {seq}\n\n"),
        };
        text.extend_from_slice(row.as_bytes());
    }

    fn tail(&mut self, text: &mut Vec<u8>) {
        self.phase = Phase::Done;
        let last = json!(self.token(self.since));
        let end = match self.options.form {
            Form::Normal | Form::Longpoll => format!("\n],\n\"last_seq\":{last}}}\n"),
            Form::Continuous => format!("{{\"last_seq\":{last}}}\n"),
            // An event stream just ends, and its client comes back with the last event's id.
            Form::EventSource => return,
        };
        text.extend_from_slice(end.as_bytes());
    }

    async fn wait(&mut self) -> Option<Vec<u8>> {
        let patience = self.options.heartbeat.unwrap_or(self.options.timeout);
        let account = self.account.as_mut();
        let account_changed = async {
            match account {
                Some(account) => account.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = account_changed => {
                let mut text = Vec::new();
                self.tail(&mut text);
                Some(text)
            }
            changed = self.news.changed() => {
                let ended = changed.is_err() || self.news.borrow().ended;
                if !ended {
                    tokio::time::sleep(PAUSE).await;
                }
                self.phase = Phase::Look;
                None
            }
            () = tokio::time::sleep_until(self.last_output + patience) => {
                let mut text = Vec::new();
                match (self.options.heartbeat, self.options.form) {
                    (Some(_), Form::EventSource) => text.extend_from_slice(b"event: heartbeat\ndata: \n\n"),
                    (Some(_), _) => text.push(b'\n'),
                    (None, _) => self.tail(&mut text),
                }
                Some(text)
            }
        }
    }
}

/// What happened after a place, the oldest first. What comes after `until`, while it is looked, is for the next look: other
/// changes that came with it may have been missed. Blocking.
fn collect(pod: &Pod, since: Seq, until: Seq, known: &mut Known) -> Result<Vec<Event>, StoreError> {
    let mut events = of_documents(pod, since, until, known)?;
    for name in pod.store.db_names().into_iter().filter(|name| !LEFT_OUT.contains(&name.as_str())) {
        // One that was deleted a moment ago is told of by its document.
        let Some(seq) = pod.store.db(&name).map(|db| db.update_seq()) else { continue };
        if seq > since && seq <= until {
            events.push(Event { seq, kind: Kind::Updated, name });
        }
    }
    events.sort();
    Ok(events)
}

/// What the documents of the databases tell.
fn of_documents(pod: &Pod, since: Seq, until: Seq, known: &mut Known) -> Result<Vec<Event>, StoreError> {
    let ring = ring_db(pod)?;
    let mut there = HashMap::new();
    if !known.complete {
        // Before the changes are read: what comes in between is found among them.
        ring_doc::each(&ring, PREFIX, |id, leaf| {
            let name = id.strip_prefix(PREFIX).unwrap_or(id).to_owned();
            there.insert(name, leaf.text("instance").unwrap_or_default().to_owned());
            true
        })?;
    }
    let place = match since.min(ring.update_seq()) {
        0 => Since::Start,
        seq => Since::Token(ring.seq_token(&Scope::All, seq)),
    };
    let mut events = Vec::new();
    let Ok(mut feed) = ring.feed(&Scope::All, place) else { return Ok(events) };
    loop {
        let rows = feed.next_page(PAGE_ROWS)?;
        for row in &rows {
            let Some(name) = row.id.strip_prefix(PREFIX).filter(|name| !name.starts_with('_')) else { continue };
            there.remove(name);
            let number = row.seq_token.split('-').next().and_then(|number| number.parse().ok());
            let Some(seq) = number.filter(|seq| *seq > since && *seq <= until) else { continue };
            if row.deleted {
                known.instances.remove(name);
                events.push(Event { seq, kind: Kind::Deleted, name: name.to_owned() });
                continue;
            }
            let Some(leaf) = ring_doc::live(&ring, &row.id)? else { continue };
            let gone = leaf.body.get("gone").and_then(serde_json::Value::as_array).map_or(0, Vec::len);
            let instance = leaf.text("instance").unwrap_or_default().to_owned();
            let before = known.instances.insert(name.to_owned(), instance.clone());
            // Each deletion and each new making is a revision; what comes after it are its settings. Before all are
            // known, nobody can tell whether a database whose settings changed was made before the place.
            let is_fresh = leaf.rev.generation == 2 * gone as u64 + 1;
            let is_new =
                before.as_ref() != Some(&instance) && (before.is_some() || known.complete || is_fresh || since == 0);
            let kind = if is_new { Kind::Created } else { Kind::Updated };
            events.push(Event { seq, kind, name: name.to_owned() });
        }
        if feed.caught_up() || rows.is_empty() {
            break;
        }
    }
    known.instances.extend(there);
    known.complete = true;
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::{Form, options};
    use crate::query::Query;

    #[test]
    fn parameters_are_read_as_those_of_changes() {
        let of = |raw: &str| options(&Query::parse(Some(raw)).expect("a query"));
        let plain = of("").expect("good");
        assert_eq!((plain.form, plain.limit, plain.heartbeat), (Form::Normal, u64::MAX, None));
        let live = of("feed=continuous&heartbeat=1&timeout=5&limit=3").expect("good");
        assert_eq!((live.form, live.limit), (Form::Continuous, 3));
        assert_eq!(live.heartbeat.map(|beat| beat.as_millis()), Some(100));
        assert!(of("descending=true").expect("good").descending && !of("descending=1").expect("good").descending);
        for bad in ["feed=zork", "heartbeat=x", "limit=-1", "timeout=x"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
