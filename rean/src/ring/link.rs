//! A link: pulls one neighbour's feed and brings its documents here.
//!
//! Up to three pages are on their way at once, each compared and fetched while the one before it is written, so that
//! round trips don't limit a link. What always holds: a mark counts only once every row before it is durable here, and
//! so do this pod's vector and the link's place; access rules are in force before what comes after them is written.
//!
//! While this pod's disk is full a link is thin: it brings accounts and settings, and its place stays where it was, so
//! that all else comes once there is room again.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use adea_ring::PodId;
use adea_ring::host::DiskLevel;
use adea_ring::report::{Applied, Origin};
use http::{Method, StatusCode};
use parking_lot::Mutex;
use rand::RngExt;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::pod::Pod;
use crate::replicate::carry::Tally;
use crate::replicate::fault::{Fault, words};
use crate::replicate::peer::Road;
use crate::replicate::progress::Progress;
use crate::ring::feed::text::Mark;
use crate::ring::link::bring::Bringer;
use crate::ring::link::page::{Page, PageError, Pages};
use crate::ring::link::place::Place;
use crate::ring::link::road::{ToNeighbour, Traffic};
use crate::ring::removal;
use crate::room;
use crate::workers::now_s;

mod acks;
pub mod bring;
pub mod in_flight;
pub mod page;
pub mod place;
pub mod road;

/// Pages on their way at once: one that is written, one that is fetched, one that is compared.
const MAX_PAGES: usize = 3;
/// The feed must begin within this: a connection and an answer.
const OPENING: Duration = Duration::from_secs(10);
/// Pause after a first fault; it doubles with each that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A place is kept at most this often: each costs a small record in a commit.
const KEEP_EVERY: Duration = Duration::from_millis(500);
/// Why a link brings little.
const FULL: &str = "this pod's disk is full: only accounts and settings are brought";
/// An answer that tells why there is no feed, in bytes.
const MAX_REFUSAL_BYTES: usize = 4 << 10;

/// A link to one neighbour.
pub struct Link {
    /// The neighbour.
    pub peer: PodId,
    condition: Mutex<Condition>,
    progress: Mutex<Progress>,
    rows: AtomicU64,
    traffic: Arc<Traffic>,
    pulled: watch::Sender<Pulled>,
    /// Ends a pause.
    hurry: Notify,
    /// Makes it begin anew, from its place as that is kept.
    again: Notify,
}

/// How far a link has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pulled {
    /// The neighbour's store; none before it was reached.
    pub origin: Option<Origin>,
    /// All up to this sequence of it is here.
    pub seq: u64,
    /// The newest sequence that it has told of.
    pub newest: u64,
}

struct Condition {
    state: &'static str,
    since_s: u64,
    last_error: Option<String>,
}

impl Tally for Link {
    fn progress(&self) -> &Mutex<Progress> {
        &self.progress
    }
}

impl Link {
    /// A link that has not begun.
    pub fn new(peer: PodId) -> Self {
        Self {
            peer,
            condition: Mutex::new(Condition { state: "connecting", since_s: now_s(), last_error: None }),
            progress: Mutex::default(),
            rows: AtomicU64::new(0),
            traffic: Arc::default(),
            pulled: watch::Sender::default(),
            hurry: Notify::new(),
            again: Notify::new(),
        }
    }

    /// To follow how far it has come.
    pub fn pulled(&self) -> watch::Receiver<Pulled> {
        self.pulled.subscribe()
    }

    /// Doesn't wait any longer before it tries again.
    pub fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// Begins anew, from its place as that is kept.
    pub fn begin_anew(&self) {
        self.again.notify_one();
        self.hurry();
    }

    /// Whether the neighbour's feed is being read.
    pub fn is_open(&self) -> bool {
        matches!(self.condition.lock().state, "live" | "catching_up")
    }

    /// As status documents and `_pod/links` tell of it.
    pub fn describe(&self) -> Value {
        let (pulled, stats) = (self.pulled.borrow().clone(), self.progress.lock().stats);
        let condition = self.condition.lock();
        json!({
            "peer": self.peer,
            "state": condition.state,
            "since": condition.since_s,
            "behind": pulled.newest.saturating_sub(pulled.seq),
            "last_error": condition.last_error,
            "pulled": pulled.seq,
            "rows": self.rows.load(Ordering::Relaxed),
            "fetched": stats.read,
            "written": stats.written,
            "refused": stats.refused,
            "received_bytes": self.traffic.received.load(Ordering::Relaxed),
            "sent_bytes": self.traffic.sent.load(Ordering::Relaxed),
        })
    }

    fn enter(&self, state: &'static str, error: Option<String>) {
        let mut condition = self.condition.lock();
        if condition.state != state {
            condition.state = state;
            condition.since_s = now_s();
        }
        if error.is_some() {
            condition.last_error = error;
        }
    }
}

/// Keeps a link going for as long as it is awaited.
pub async fn run(pod: Arc<Pod>, link: Arc<Link>) -> Infallible {
    let mut pause = FIRST_PAUSE;
    loop {
        link.enter("connecting", None);
        let began_at = link.pulled.borrow().seq;
        let Err(fault) = pull(&pod, &link).await;
        let reason = fault.reason().to_owned();
        tracing::debug!(peer = %link.peer, reason, "a link ended");
        link.enter("waiting", Some(reason));
        if link.pulled.borrow().seq != began_at {
            pause = FIRST_PAUSE;
        }
        // Jitter, so that the pods of a ring don't all come back to one that restarts at the same moment.
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::select! {
            () = tokio::time::sleep(jittered) => pause = (pause * 2).min(LONGEST_PAUSE),
            () = link.hurry.notified() => {}
        }
    }
}

async fn pull(pod: &Arc<Pod>, link: &Arc<Link>) -> Result<Infallible, Fault> {
    let round = pod.ring.links.round();
    let place = Place::load(&pod.store, &link.peer, round).map_err(|error| Fault::Passing(error.to_string()))?;
    let address = pod.ring.state().and_then(|state| state.get(&link.peer).map(|known| known.member.address.clone()));
    let address = address.ok_or_else(|| Fault::Passing("its address isn't known".to_owned()))?;
    let (traffic, peer) = (Arc::clone(&link.traffic), link.peer.clone());
    let road = Arc::new(ToNeighbour { pod: Arc::clone(pod), peer, address, traffic });
    let mut pages = open(pod, link, &road, &place).await?;
    let first = pages.first().await.map_err(|error| passing(&error))?;
    if first.origin.pod != link.peer {
        return Err(Fault::Passing(format!("it is {} and not the pod that it should be", first.origin)));
    }
    let mut place = place;
    if first.origin.history() != place.history || first.since < place.seq {
        place = Place::start(&pod.store, first.origin.history(), round);
    }
    link.pulled.send_replace(Pulled { origin: Some(first.origin.clone()), seq: place.seq, newest: first.newest });
    let is_thin = pod.room.is_full();
    match is_thin {
        true => link.enter("paused", Some(FULL.to_owned())),
        false => link.enter("catching_up", None),
    }
    let bringer = Arc::new(Bringer::new(pod, link, Arc::clone(&road) as Arc<dyn Road>));
    let (kept_at, kept) = (Instant::now(), place.clone());
    let pull = Pull {
        pod,
        link,
        bringer,
        origin: first.origin,
        place,
        kept,
        kept_at,
        before: None,
        on_way: VecDeque::new(),
        is_thin,
    };
    pull.run(pages).await
}

/// Asks for the feed.
async fn open(pod: &Arc<Pod>, link: &Link, road: &ToNeighbour, place: &Place) -> Result<Pages, Fault> {
    let since = if place.history.is_empty() { 0 } else { place.seq };
    let request = http::Request::builder()
        .method(Method::POST)
        .uri(format!("/_pod/feed?since={since}&history={}", place.history))
        .body(acks::body(pod, &link.peer, &link.traffic))
        .map_err(|error| Fault::Passing(error.to_string()))?;
    let answer = tokio::time::timeout(OPENING, road.send_feed(request)).await;
    let answer = answer.map_err(|_| Fault::Passing("it did not answer in time".to_owned()))?.map_err(Fault::Passing)?;
    if answer.status() == StatusCode::OK {
        return Ok(Pages::new(answer.into_body()));
    }
    let status = answer.status();
    removal::note(pod, &link.peer, answer.headers());
    let text = axum::body::to_bytes(answer.into_body(), MAX_REFUSAL_BYTES);
    let text = tokio::time::timeout(OPENING, text).await.ok().and_then(Result::ok).unwrap_or_default();
    Err(Fault::Passing(format!("it gives no feed: {status} {}", words(&text).1)))
}

fn passing(error: &PageError) -> Fault {
    Fault::Passing(error.to_string())
}

/// A feed that is being read.
struct Pull<'a> {
    pod: &'a Arc<Pod>,
    link: &'a Arc<Link>,
    bringer: Arc<Bringer>,
    origin: Origin,
    place: Place,
    /// The place as it was kept last, and when.
    kept: Place,
    kept_at: Instant,
    /// Tells when the rules of the page before are in force.
    before: Option<watch::Receiver<bool>>,
    on_way: VecDeque<OnWay>,
    /// Whether it began with a full disk.
    is_thin: bool,
}

/// A page that is on its way.
struct OnWay {
    work: JoinHandle<Result<(), Fault>>,
    mark: Option<Mark>,
}

impl Drop for OnWay {
    fn drop(&mut self) {
        // What has been handed to the store is written all the same.
        self.work.abort();
    }
}

impl Drop for Pull<'_> {
    fn drop(&mut self) {
        // So that a pod that is stopped doesn't compare again what it has.
        if self.place != self.kept
            && let Err(error) = self.keep()
        {
            tracing::debug!(reason = error.reason(), "the place of a link could not be kept");
        }
    }
}

impl Pull<'_> {
    async fn run(mut self, mut pages: Pages) -> Result<Infallible, Fault> {
        let mut levels = self.pod.room.levels();
        loop {
            let (is_new, is_thin) = (self.place != self.kept, self.is_thin);
            tokio::select! {
                biased;
                _ = levels.wait_for(|level| (*level == DiskLevel::Full) != is_thin) => {
                    let why = if is_thin { "there is room on this pod's disk again" } else { FULL };
                    return Err(Fault::Passing(why.to_owned()));
                }
                done = finished(&mut self.on_way) => {
                    let mark = done?;
                    self.reach(mark);
                }
                page = pages.next(), if self.on_way.len() < MAX_PAGES => {
                    self.take(page.map_err(|error| passing(&error))?);
                }
                () = tokio::time::sleep_until(self.kept_at + KEEP_EVERY), if is_new => self.keep()?,
                () = self.link.again.notified() => {
                    return Err(Fault::Passing("everything is compared anew".to_owned()));
                }
            }
        }
    }

    /// Sends a page on its way.
    fn take(&mut self, mut page: Page) {
        self.link.rows.fetch_add(page.count as u64, Ordering::Relaxed);
        let mark = page.mark.take();
        if let Some(mark) = &mark {
            // The neighbour has what it says, whether or not it is here already.
            self.pod.ring.knowledge.heard(&self.link.peer, &mark.applied);
            let newest = mark.newest.unwrap_or(mark.seq);
            self.link.pulled.send_modify(|pulled| pulled.newest = pulled.newest.max(newest));
        }
        let mark = mark.filter(|_| !self.is_thin);
        if self.is_thin {
            for (name, rows) in &mut page.rows {
                rows.leaves.retain(|id, _| room::is_brought(name, id));
            }
            page.rows.retain(|_, rows| !rows.leaves.is_empty());
        }
        if page.rows.is_empty() && self.on_way.is_empty() {
            self.reach(mark);
            return;
        }
        let ruled = watch::Sender::new(false);
        let (before, bringer) = (self.before.replace(ruled.subscribe()), Arc::clone(&self.bringer));
        let work = async move {
            if let Some(mut before) = before {
                before.wait_for(|ruled| *ruled).await.map_err(|_| Fault::Passing("a page was given up".to_owned()))?;
            }
            bringer.first(&mut page).await?;
            ruled.send_replace(true);
            bringer.rest(page).await
        };
        self.on_way.push_back(OnWay { work: tokio::spawn(work), mark });
    }

    /// Notes that all before a mark is here.
    fn reach(&mut self, mark: Option<Mark>) {
        let Some(mut mark) = mark else { return };
        mark.applied.insert(self.origin.clone(), mark.seq);
        self.pod.ring.knowledge.arrived(&mark.applied);
        if mark.seq != self.place.seq {
            self.place.seq = mark.seq;
            self.link.pulled.send_modify(|pulled| pulled.seq = mark.seq);
        }
        self.pod.ring.knowledge.heard(&self.link.peer, &Applied::from([(self.origin.clone(), mark.seq)]));
        if mark.newest.is_none() && self.on_way.is_empty() {
            self.link.enter("live", None);
        }
    }

    fn keep(&mut self) -> Result<(), Fault> {
        self.place.keep(&self.pod.store, &self.link.peer).map_err(|error| Fault::Passing(error.to_string()))?;
        self.kept = self.place.clone();
        self.kept_at = Instant::now();
        Ok(())
    }
}

/// The mark of the first page, once all of it is here. A call that is given up loses nothing.
async fn finished(on_way: &mut VecDeque<OnWay>) -> Result<Option<Mark>, Fault> {
    let Some(first) = on_way.front_mut() else {
        return std::future::pending().await;
    };
    let done = (&mut first.work).await;
    let mark = on_way.pop_front().and_then(|mut first| first.mark.take());
    match done {
        Ok(Ok(())) => Ok(mark),
        Ok(Err(fault)) => Err(fault),
        Err(error) => Err(Fault::Passing(format!("this pod: {error}"))),
    }
}
