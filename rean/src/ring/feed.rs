//! The feed that a neighbour pulls: all databases' changes in the order of the store's sequences, endless, with marks.
//!
//! What always holds: a mark's vector was read before the sequence that the mark stands for was reached, so who has all
//! rows up to the mark has all that the vector says; access rules come before documents that may depend on them; what
//! a reader doesn't take is not made.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use adea_ring::report::{Applied, Origin};
use adea_ring::{Identity, PodId};
use axum::body::Body;
use bytes::Bytes;
use http::StatusCode;
use parking_lot::Mutex;
use rean_store::{Db, StoreError, StorePage};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::error::ApiError;
use crate::hub::Newest;
use crate::pod::Pod;
use crate::render;
use crate::ring::databases::instance_here;
use crate::ring::feed::lines::Lines;
use crate::ring::feed::text::{Ack, Mark, news, push_first, push_instance, push_line, push_row};
use crate::ring::is_local_db;
use crate::ring::link::bring::{RULES_DB, RULES_PREFIX};
use crate::ring::restored;
use crate::ring::standing::require_peer;
use crate::route::{Request, Response};

pub mod lines;
pub mod text;

/// Rows of a page: as many as a reader compares and fetches at once.
const PAGE_ROWS: usize = 1_000;
/// Rows are handed on when their text has grown to this, in bytes.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that wait for a reader. With the window of its stream, what is ahead of it stays below 5 MiB.
const CHUNKS_AHEAD: usize = 4;
/// A feed without news says so this often: a reader that hears nothing for longer knows that something is wrong.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// The feeds that are being read, one for each neighbour: a neighbour that comes again has given up the one before.
#[derive(Default)]
pub struct Feeds {
    readers: Mutex<BTreeMap<PodId, watch::Sender<()>>>,
}

impl Feeds {
    /// Begins a feed for a neighbour; the receiver tells by its closing that another has taken its place.
    fn begin(&self, peer: &PodId) -> watch::Receiver<()> {
        let sender = watch::Sender::new(());
        let receiver = sender.subscribe();
        let mut readers = self.readers.lock();
        // Those that have ended hold no receiver any more.
        readers.retain(|_, sender| sender.receiver_count() > 0);
        readers.insert(peer.clone(), sender);
        receiver
    }

    /// Ends the feeds of all but these.
    pub fn keep(&self, is_let_in: impl Fn(&PodId) -> bool) {
        self.readers.lock().retain(|peer, _| is_let_in(peer));
    }

    /// Who reads.
    pub fn readers(&self) -> Vec<PodId> {
        let readers = self.readers.lock();
        readers.iter().filter(|(_, sender)| sender.receiver_count() > 0).map(|(peer, _)| peer.clone()).collect()
    }
}

/// `POST /_pod/feed?since=SEQ&history=HEX`, for the other pods.
///
/// # Errors
/// 404 for anybody else, 400 for a place that can't be one.
pub async fn feed(pod: &Arc<Pod>, who: &Identity, request: Request) -> Result<Response, ApiError> {
    let peer = require_peer(who, &request)?;
    let since = request.query.u64("since")?.unwrap_or(0);
    let history = request.query.get("history").unwrap_or_default().to_owned();
    // Of a history whose end was lost the neighbour gets all once more, and this pod gives no sequence of it again.
    let is_lost = history == pod.store.history() && since > pod.store.seq();
    if is_lost {
        restored::go_on_behind(pod, since).await;
    }
    let since = if is_lost { 0 } else { since };
    Ok(serve(pod, &peer, since, &history, request.body))
}

/// Answers a neighbour with the feed after `since` of the history that it names, and hears what it acknowledges.
fn serve(pod: &Arc<Pod>, peer: &PodId, since: u64, history: &str, body: Body) -> Response {
    // Of another history nothing is known here.
    let known = history == pod.store.history() && since <= pod.store.seq();
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let mut place = pod.ring.links.feeds.begin(peer);
    let mut feed = Feed {
        pod: Arc::clone(pod),
        sender,
        since: if known { since } else { 0 },
        ruled: 0,
        instances: HashMap::new(),
        told: Applied::new(),
        vector: None,
        newest: pod.hub.follow(),
    };
    let (pod, peer) = (Arc::clone(pod), peer.clone());
    tokio::spawn(async move {
        let gone = feed.sender.clone();
        let ended = tokio::select! {
            ended = feed.run() => ended,
            ended = hear(&pod, &peer, body) => ended,
            () = gone.closed() => Ok(()),
            () = async { while place.changed().await.is_ok() {} } => Ok(()),
        };
        if let Err(why) = ended {
            tracing::warn!(%peer, why, "the feed to another pod ended");
        }
    });
    let chunks = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let chunk: Bytes = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), receiver))
    });
    let mut response = render::json(StatusCode::OK, Vec::new());
    *response.body_mut() = Body::from_stream(chunks);
    response.headers_mut().remove(http::header::CONTENT_LENGTH);
    response
}

/// A feed that is being read.
struct Feed {
    pod: Arc<Pod>,
    sender: mpsc::Sender<Bytes>,
    /// All up to here has been sent.
    since: u64,
    /// The rules up to here have been sent.
    ruled: u64,
    /// The instances of databases that have been told.
    instances: HashMap<String, String>,
    /// What marks have told of this pod's vector.
    told: Applied,
    /// A vector, and the sequence from which on it may be told.
    vector: Option<(Applied, u64)>,
    newest: watch::Receiver<Newest>,
}

impl Feed {
    /// Runs until the reader is gone (that is `Ok`) or the store fails.
    async fn run(&mut self) -> Result<(), String> {
        let mut arrivals = self.pod.ring.knowledge.arrivals();
        let mut out = Vec::new();
        push_first(&mut out, &self.pod.ring.origin, self.pod.store.seq(), self.since);
        let mut told_at: Option<Instant> = None;
        loop {
            if self.newest.borrow_and_update().ended {
                return Ok(());
            }
            arrivals.mark_unchanged();
            if self.vector.is_none() {
                // In this order: all that the vector speaks of is at or below the sequence that is read after it.
                let vector = self.pod.ring.knowledge.applied(0);
                self.vector = Some((vector, self.pod.store.seq()));
            }
            let before = self.since;
            let is_last = self.pod.store.seq() == self.since || self.page(&mut out).await?;
            let is_due = told_at.is_none_or(|at| at.elapsed() >= HEARTBEAT);
            if self.since > before || self.is_urgent() || is_due {
                let applied = self.tellable();
                let newest = (!is_last).then(|| self.pod.store.seq());
                push_line(&mut out, &Mark { seq: self.since, newest, applied });
                if self.send(&mut out).await.is_none() {
                    return Ok(());
                }
                told_at = Some(Instant::now());
            } else {
                // It goes with what comes next, as new as it is then.
                self.vector = None;
            }
            if !is_last {
                continue;
            }
            let due = told_at.map_or_else(Instant::now, |at| at + HEARTBEAT);
            tokio::select! {
                _ = self.newest.changed() => {}
                _ = arrivals.changed() => {}
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// Whether there is news of the write master's writes to tell: somebody may wait for them. That of pods that take
    /// no writes can wait; every change makes some on every pod, and each would go over each link.
    fn is_urgent(&self) -> bool {
        let (Some((vector, from)), Some(of)) = (&self.vector, self.pod.ring.master_origin()) else { return false };
        *from <= self.since && vector.get(&of).is_some_and(|seq| self.told.get(&of).is_none_or(|told| told < seq))
    }

    /// What is new of a vector that may be told by now.
    fn tellable(&mut self) -> Applied {
        match &mut self.vector {
            Some((vector, from)) if *from <= self.since => {
                // The mark's own sequence says this.
                vector.remove(&self.pod.ring.origin);
                let news = news(vector, &mut self.told);
                self.vector = None;
                news
            }
            _ => Applied::new(),
        }
    }

    /// Sends the next rows; says whether they are the last at this moment.
    async fn page(&mut self, out: &mut Vec<u8>) -> Result<bool, String> {
        let page = self.read(self.since, |name| !is_local_db(name)).await?;
        if !page.is_last {
            self.rules(page.until, out).await?;
        }
        let here = self.instances(&page, out).await?;
        // Of a database that was deleted meanwhile nothing is to be had any more.
        for row in page.rows.iter().filter(|row| here.contains(row.db.instance())) {
            push_row(out, row);
            if out.len() >= CHUNK_BYTES && self.send(out).await.is_none() {
                // The reader is gone: the next one to send notices.
                return Ok(true);
            }
        }
        self.since = page.until;
        Ok(page.is_last)
    }

    /// Tells of the instances of a page's databases; gives those that are still here, by the store's names for them.
    async fn instances(&mut self, page: &StorePage, out: &mut Vec<u8>) -> Result<HashSet<String>, String> {
        let dbs: BTreeMap<String, Db> =
            page.rows.iter().map(|row| (row.db.instance().to_owned(), row.db.clone())).collect();
        let pod = Arc::clone(&self.pod);
        let look = move || -> Result<Vec<(Db, Option<String>)>, StoreError> {
            let mut found = Vec::with_capacity(dbs.len());
            for db in dbs.into_values() {
                let instance = instance_here(&pod, db.name())?;
                // In this order: the one that was read is that of this database, and not of a later one of its name.
                if !db.is_gone() {
                    found.push((db, instance));
                }
            }
            Ok(found)
        };
        let found = tokio::task::spawn_blocking(look).await.map_err(|error| error.to_string())?;
        let mut here = HashSet::new();
        for (db, instance) in found.map_err(|error| error.to_string())? {
            if let Some(instance) = instance
                && self.instances.get(db.name()) != Some(&instance)
            {
                push_instance(out, db.name(), &instance);
                self.instances.insert(db.name().to_owned(), instance);
            }
            here.insert(db.instance().to_owned());
        }
        Ok(here)
    }

    /// Sends the rules that come later, so that a document that was written under them is not taken for one that more
    /// people may read. (Each of them is sent once more in its place.)
    async fn rules(&mut self, until: u64, out: &mut Vec<u8>) -> Result<(), String> {
        self.ruled = self.ruled.max(until);
        loop {
            let page = self.read(self.ruled, |name| name == RULES_DB).await?;
            for row in page.rows.iter().filter(|row| row.id.starts_with(RULES_PREFIX)) {
                push_row(out, row);
            }
            self.ruled = page.until;
            if page.is_last {
                return Ok(());
            }
        }
    }

    async fn read(&self, since: u64, wanted: fn(&str) -> bool) -> Result<StorePage, String> {
        let store = self.pod.store.clone();
        let read = move || store.rows(since, PAGE_ROWS, &|name| !wanted(name));
        let page = tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?;
        page.map_err(|error| error.to_string())
    }

    /// Hands on what has been gathered; `None` if the reader is gone.
    async fn send(&self, out: &mut Vec<u8>) -> Option<()> {
        let chunk = std::mem::take(out);
        self.sender.send(chunk.into()).await.ok()
    }
}

/// Takes in what a reader acknowledges, until it ends.
async fn hear(pod: &Pod, peer: &PodId, body: Body) -> Result<(), String> {
    let mut lines = Lines::new(body);
    while let Some(line) = lines.next().await.map_err(|error| error.to_string())? {
        let ack: Ack = serde_json::from_slice(&line).map_err(|_| "an acknowledgement has another form".to_owned())?;
        take_in(pod, peer, &ack);
    }
    Ok(())
}

fn take_in(pod: &Pod, peer: &PodId, ack: &Ack) {
    let knowledge = &pod.ring.knowledge;
    if pod.ring.is_removed(peer) {
        return;
    }
    knowledge.heard(peer, &ack.applied);
    let (Some(of), Some(state)) = (&ack.of, pod.ring.state()) else { return };
    // Only of pods that are known, so that nothing grows by what somebody else says.
    for (other, seq) in ack.others.iter().filter(|(other, _)| state.get(other).is_some() && !pod.ring.is_removed(other))
    {
        knowledge.heard(other, &one(of, *seq));
    }
}

fn one(origin: &Origin, seq: u64) -> Applied {
    Applied::from([(origin.clone(), seq)])
}
