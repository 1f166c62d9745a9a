//! The pod's links: one to each neighbour that adea names, begun and ended as those change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use adea_ring::report::{Applied, Origin, RingState, Standing};
use adea_ring::{Identity, PodId};
use axum::body::Body;
use futures_util::future::join_all;
use http::{Method, StatusCode};
use parking_lot::Mutex;
use rean_store::StoreError;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::databases::{blocking, json_line};
use crate::error::ApiError;
use crate::pod::Pod;
use crate::ring::feed::Feeds;
use crate::ring::link::in_flight::InFlight;
use crate::ring::link::road::{ToNeighbour, Traffic};
use crate::ring::link::{self, Link, place};
use crate::route::{Request, Response};
use crate::target::require_server_admin;
use crate::workers::Stop;

/// Pods that are tried at once while no neighbour lives.
const STRANGERS: usize = 3;
/// After this others are tried, if none of those was reached: an attempt at a pod that is away takes 3 s.
const STRANGERS_TURN: Duration = Duration::from_secs(15);
/// How often it is looked whether a database is here by now whose rows were passed over.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Databases that are remembered for that; with their longest names they fit into one record of the store.
const MAX_PASSED_OVER: usize = 200;
/// How often what has arrived is kept.
const KEEP_EVERY: Duration = Duration::from_millis(500);
/// What a pod says of how far it is, in bytes: 10,000 origins.
const MAX_STANDING_BYTES: usize = 2 << 20;

/// All links of a pod.
#[derive(Default)]
pub struct Links {
    /// The feeds that neighbours read.
    pub feeds: Feeds,
    /// Revisions on their way here.
    pub in_flight: InFlight,
    links: Mutex<BTreeMap<PodId, Running>>,
    /// How often all links were begun anew.
    round: AtomicU64,
    /// Databases whose rows were passed over: no document of the ring names them.
    passed_over: Mutex<BTreeSet<String>>,
}

struct Running {
    link: Arc<Link>,
    work: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Links {
    /// Takes up what links had brought before this start, and says where the links are to be asked. Reads two small
    /// records; before anything is told of what this pod has. Inside Tokio.
    pub fn install(pod: &Arc<Pod>) {
        if pod.ring.is_alone() {
            return;
        }
        if let Err(error) = pod.ring.links.recall(pod) {
            // What is not known to be here is only compared once more.
            tracing::warn!(%error, "what had arrived from other pods can't be read");
        }
        let (for_describe, for_repair) = (Arc::downgrade(pod), Arc::downgrade(pod));
        let describe = move || for_describe.upgrade().map_or(Value::Null, |pod| pod.ring.links.describe().into());
        let repair = move || {
            let Some(pod) = for_repair.upgrade() else { return };
            if let Err(error) = Self::repair(&pod) {
                tracing::warn!(%error, "the links can't be begun anew");
            }
        };
        pod.ring.records.set_links(describe, repair);
    }

    fn recall(&self, pod: &Pod) -> Result<(), StoreError> {
        self.round.store(place::round(&pod.store)?, Ordering::Release);
        *self.passed_over.lock() = place::passed_over(&pod.store)?;
        place::recall_applied(&pod.store, &pod.ring)
    }

    /// The round that places of links count for.
    pub(super) fn round(&self) -> u64 {
        self.round.load(Ordering::Acquire)
    }

    /// Has all documents compared with those of all neighbours, from the start. Of what is the same, no body travels.
    /// Blocks until it is sure that this happens.
    ///
    /// # Errors
    /// When the store fails.
    pub fn repair(pod: &Pod) -> Result<(), StoreError> {
        let links = &pod.ring.links;
        links.round.store(place::next_round(&pod.store)?, Ordering::Release);
        for running in links.links.lock().values() {
            running.link.begin_anew();
        }
        Ok(())
    }

    /// Remembers that rows of a database were passed over: once it is here after all, they are to come again. Blocks
    /// until that is durable.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn pass_over(&self, pod: &Pod, name: &str) -> Result<(), StoreError> {
        let mut names = self.passed_over.lock();
        if names.contains(name) {
            return Ok(());
        }
        if names.len() >= MAX_PASSED_OVER {
            tracing::error!(database = name, "too many databases are in no document of the ring");
            return Ok(());
        }
        names.insert(name.to_owned());
        place::keep_passed_over(&pod.store, &names)
    }

    /// Whether rows of a database are passed over until it is here.
    pub(super) fn is_passed_over(&self, name: &str) -> bool {
        self.passed_over.lock().contains(name)
    }

    /// Has rows come again that were passed over and whose databases are here by now. Blocks while there are such.
    fn take_back(&self, pod: &Pod) -> Result<(), StoreError> {
        let mut names = self.passed_over.lock();
        let before = names.len();
        if names.is_empty() {
            return Ok(());
        }
        let mut left = names.clone();
        left.retain(|name| pod.store.db(name).is_none());
        if left.len() < before {
            // In this order: what is forgotten is sure to come again.
            Self::repair(pod)?;
            place::keep_passed_over(&pod.store, &left)?;
            *names = left;
        }
        Ok(())
    }

    /// What is told of each link.
    pub fn describe(&self) -> Vec<Value> {
        self.links.lock().values().map(|running| running.link.describe()).collect()
    }

    fn link(&self, peer: &PodId) -> Option<Arc<Link>> {
        self.links.lock().get(peer).map(|running| Arc::clone(&running.link))
    }

    /// Whether any feed is being read.
    pub(super) fn is_any_open(&self) -> bool {
        self.links.lock().values().any(|running| running.link.is_open())
    }

    /// Has links to these pods and to no others.
    fn set(&self, pod: &Arc<Pod>, peers: &BTreeSet<PodId>) {
        let mut links = self.links.lock();
        links.retain(|peer, _| peers.contains(peer));
        for peer in peers {
            if !links.contains_key(peer) {
                let link = Arc::new(Link::new(peer.clone()));
                let running = link::run(Arc::clone(pod), Arc::clone(&link));
                let work = tokio::spawn(async move { match running.await {} });
                links.insert(peer.clone(), Running { link, work });
            }
        }
    }
}

/// Keeps the links as adea wants them until it is told to stop. A pod that is alone has none.
///
/// # Errors
/// When the store fails; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    if pod.ring.is_alone() {
        return Ok(());
    }
    let (turned_at, kept) = (Instant::now(), pod.ring.knowledge.applied(0));
    let mut worker = Worker { pod: Arc::clone(&pod), turn: 0, turned_at, kept };
    let worked = tokio::select! {
        worked = worker.run() => worked,
        () = stop.stopped() => Ok(()),
    };
    pod.ring.links.set(&pod, &BTreeSet::new());
    let kept = worker.keep();
    worked.and(kept)
}

struct Worker {
    pod: Arc<Pod>,
    /// Which of the pods that are no neighbours are tried.
    turn: usize,
    turned_at: Instant,
    /// What has arrived, as it was kept last.
    kept: Applied,
}

impl Worker {
    async fn run(&mut self) -> Result<(), String> {
        let mut states = self.pod.ring.states();
        let mut arrivals = self.pod.ring.knowledge.arrivals();
        let mut keep_at: Option<Instant> = None;
        let mut known: Option<(Vec<PodId>, Vec<PodId>)> = None;
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            let state = states.borrow_and_update().clone();
            if let Some(state) = state {
                // adea says the same four times a second.
                let now = (state.neighbours.clone(), members(&state));
                let is_lonely = !has_live_neighbour(&state);
                if known.as_ref() != Some(&now) || is_lonely {
                    self.follow(&state, is_lonely);
                    known = Some(now);
                }
            }
            tokio::select! {
                changed = states.changed() => changed.map_err(|error| error.to_string())?,
                _ = arrivals.changed() => keep_at = keep_at.or_else(|| Some(Instant::now() + KEEP_EVERY)),
                () = tokio::time::sleep_until(keep_at.unwrap_or_else(Instant::now)), if keep_at.is_some() => {
                    keep_at = None;
                    self.keep()?;
                }
                _ = look.tick() => {
                    let pod = Arc::clone(&self.pod);
                    let looked = tokio::task::spawn_blocking(move || pod.ring.links.take_back(&pod)).await;
                    looked.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
                }
            }
        }
    }

    fn follow(&mut self, state: &RingState, is_lonely: bool) {
        let ring = &self.pod.ring;
        let mut peers: BTreeSet<PodId> = state.neighbours.iter().cloned().collect();
        if is_lonely {
            // Gossip may be cut off where links are not.
            if self.turned_at.elapsed() >= STRANGERS_TURN && !ring.links.is_any_open() {
                self.turn += STRANGERS;
                self.turned_at = Instant::now();
            }
            let others = members(state);
            let some = others.iter().cycle().skip(self.turn % others.len().max(1));
            peers.extend(some.take(STRANGERS.min(others.len())).cloned());
        }
        peers.remove(ring.me());
        ring.links.set(&self.pod, &peers);
    }

    /// Keeps what has arrived, if it is more than what was kept.
    fn keep(&mut self) -> Result<(), String> {
        let mut applied = self.pod.ring.knowledge.applied(0);
        applied.remove(&self.pod.ring.origin);
        if applied != self.kept {
            place::keep_applied(&self.pod.store, &applied).map_err(|error| error.to_string())?;
            self.kept = applied;
        }
        Ok(())
    }
}

/// The other pods that have not left.
fn members(state: &RingState) -> Vec<PodId> {
    let others = state.members.iter().filter(|known| !known.member.left && known.member.id != state.me);
    others.map(|known| known.member.id.clone()).collect()
}

fn has_live_neighbour(state: &RingState) -> bool {
    state.neighbours.iter().any(|peer| state.get(peer).is_some_and(|known| known.member.is_live()))
}

/// Pulls all that the live neighbours have at this moment. To be bounded by the caller: a neighbour may hang.
pub async fn barrier(pod: &Arc<Pod>) {
    let Some(state) = pod.ring.state() else { return };
    let live = state.neighbours.iter().filter_map(|peer| state.get(peer)).filter(|known| known.member.is_live());
    join_all(live.map(|known| catch_up(pod, &known.member.id, &known.member.address))).await;
}

async fn catch_up(pod: &Arc<Pod>, peer: &PodId, address: &str) {
    let Some(link) = pod.ring.links.link(peer) else { return };
    link.hurry();
    let standing = match ask_standing(pod, peer, address).await {
        Ok(standing) => standing,
        Err(why) => {
            // It is of no use now: what it has comes when it is back.
            tracing::debug!(%peer, why, "a neighbour could not be asked for what it has");
            return;
        }
    };
    let seq = standing.applied.get(&standing.origin).copied().unwrap_or(0);
    let is_here = |of: Option<&Origin>, has: u64| of == Some(&standing.origin) && has >= seq;
    // The link lives as long as this pod wants it; without it there is nothing to wait for.
    let _ = link.pulled().wait_for(|pulled| is_here(pulled.origin.as_ref(), pulled.seq)).await;
}

async fn ask_standing(pod: &Arc<Pod>, peer: &PodId, address: &str) -> Result<Standing, String> {
    let traffic = Arc::<Traffic>::default();
    let road = ToNeighbour { pod: Arc::clone(pod), peer: peer.clone(), address: address.to_owned(), traffic };
    let request = http::Request::builder().method(Method::GET).uri("/_pod/standing").body(Body::empty());
    let answer = crate::replicate::peer::Road::send(&road, request.map_err(|error| error.to_string())?).await?;
    if answer.status() != StatusCode::OK {
        return Err(answer.status().to_string());
    }
    let text = axum::body::to_bytes(answer.into_body(), MAX_STANDING_BYTES).await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

/// `GET /_pod/links`, for administrators.
///
/// # Errors
/// 401 for others.
pub async fn list(pod: &Arc<Pod>, who: &Identity, _: Request) -> Result<Response, ApiError> {
    require_server_admin(who)?;
    let for_list = Arc::clone(pod);
    // Locks are held for moments only, but there may be many links.
    let links = blocking(move || for_list.ring.links.describe()).await?;
    let answer = json!({ "links": links, "readers": pod.ring.links.feeds.readers() });
    Ok(json_line(StatusCode::OK, &answer))
}
