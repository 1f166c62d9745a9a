//! Bringing indexes up to date for those who ask, with bounds: one thread for each index, few long runs at once, and
//! no database takes all the places.
//!
//! A request that comes while its index is being brought up to date waits for the *next* run, which sees all that was
//! written before the request; all who wait for a run share it. A client that goes away stops nothing: what was begun
//! is of use to the next one.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rean_index::{Group, IndexError, MapError};
use rean_script::Lane;
use rean_store::DbKind;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::pod::Pod;
use crate::tasks::Task;

/// Short runs at once: each holds a thread.
const SHORT: usize = 16;
/// Those that may turn out to be long, and those that wait for their turn as long ones: each holds a thread too.
const LONG: usize = 32;
/// Those of each kind of one database among them: its functions may be slow, and others must get on.
const OF_ONE: usize = 4;
/// Long runs that work at once. Each holds a batch of rows in memory and a core.
const LONG_WORKING: usize = 2;
/// A run with more changes than this is a long one.
const LONG_CHANGES: u64 = 2_000;
/// The longest pause after a step of a run that nobody waits for. It gives half of the time to others.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// What `_active_tasks` calls it.
const TASK: &str = "indexer";

thread_local! {
    /// Who waits for what this thread asks of functions.
    static LANE: Cell<Lane> = const { Cell::new(Lane::Request) };
    /// The last limit that a document of this thread's run hit.
    static LIMIT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Who waits for the functions that this thread runs.
pub fn lane() -> Lane {
    LANE.get()
}

/// Notes that a document hit a limit in the functions that this thread runs.
pub fn note_limit(words: &str) {
    LIMIT.set(Some(words.to_owned()));
}

/// Who wants an index to be brought up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A request.
    Now,
    /// The indexer.
    Ahead,
}

/// The runs of a pod.
pub struct Builds {
    flights: Mutex<HashMap<Key, Flight>>,
    /// By instance and kind.
    owners: Mutex<HashMap<OwnerKey, Weak<Semaphore>>>,
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
    working: Arc<Semaphore>,
}

/// What is known of a run before it begins. Sequences are the whole store's, so one that looks long may be short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Short,
    PerhapsLong,
}

/// The instance of a database, and a kind of run.
type OwnerKey = (Box<str>, Kind);

/// An index: the instance of its database, and its signature.
type Key = (Box<str>, Box<str>);

/// Those who wait for a run.
type Waiting = Vec<oneshot::Sender<Result<(), IndexError>>>;

/// An index that is being brought up to date, and who waits for the next time.
struct Flight {
    /// The newest handle: an index that was dropped and made again is another one.
    group: Group,
    waiting: Waiting,
    /// Whether one of them is a request.
    urgent: bool,
}

impl Default for Builds {
    fn default() -> Self {
        Self {
            flights: Mutex::default(),
            owners: Mutex::default(),
            short: Arc::new(Semaphore::new(SHORT)),
            long: Arc::new(Semaphore::new(LONG)),
            working: Arc::new(Semaphore::new(LONG_WORKING)),
        }
    }
}

/// Brings an index up to all that was written before this was called. `name` is the design document's id.
///
/// # Errors
/// What the functions or the engine did wrong.
pub async fn fresh(pod: &Arc<Pod>, group: &Group, name: &str, wanted: Wanted) -> Result<(), IndexError> {
    if group.is_current() {
        return Ok(());
    }
    // Nobody answers any more when the server stops.
    join(pod, group, name, wanted).await.unwrap_or(Err(IndexError::Closing))
}

/// As [`fresh`], without waiting for it.
pub fn fresh_later(pod: &Arc<Pod>, group: &Group, name: &str) {
    if !group.is_current() {
        drop(join(pod, group, name, Wanted::Ahead));
    }
}

fn join(pod: &Arc<Pod>, group: &Group, name: &str, wanted: Wanted) -> oneshot::Receiver<Result<(), IndexError>> {
    let (sender, done) = oneshot::channel();
    let key: Key = (group.db().instance().into(), group.spec().signature.as_str().into());
    let mut flights = pod.views.builds.flights.lock();
    let runs = flights.contains_key(&key);
    let flight = flights.entry(key.clone()).or_insert_with(|| Flight {
        group: group.clone(),
        waiting: Vec::new(),
        urgent: false,
    });
    flight.group = group.clone();
    flight.waiting.push(sender);
    flight.urgent |= wanted == Wanted::Now;
    drop(flights);
    if !runs {
        tokio::spawn(fly(Arc::clone(pod), name.to_owned(), key));
    }
    done
}

/// Runs until nobody waits any more.
async fn fly(pod: Arc<Pod>, name: String, key: Key) {
    let builds = &pod.views.builds;
    while let Some(group) = builds.wanted(&key) {
        // Asked for anew for each run, so that one index that is always asked for doesn't keep its place.
        let places = builds.places(&group).await;
        let Some((group, waiting, urgent)) = builds.depart(&key) else { break };
        let (pod, name) = (Arc::clone(&pod), name.clone());
        let run = tokio::task::spawn_blocking(move || Run::new(&pod, &group, &name, urgent).update());
        let result = match run.await {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(%error, "bringing an index up to date broke off");
                Err(IndexError::Busy("bringing the index up to date broke off".to_owned()))
            }
        };
        for sender in waiting {
            // Whoever asked may have gone.
            let _ = sender.send(result.clone());
        }
        drop(places);
    }
}

impl Builds {
    /// The index, if somebody waits for a run; else there is no flight any more.
    fn wanted(&self, key: &Key) -> Option<Group> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(key)
            && !flight.waiting.is_empty()
        {
            return Some(flight.group.clone());
        }
        flights.remove(key);
        None
    }

    /// Takes those who wait along. Whoever comes from now on waits for the next run.
    fn depart(&self, key: &Key) -> Option<(Group, Waiting, bool)> {
        let mut flights = self.flights.lock();
        let flight = flights.get_mut(key)?;
        Some((flight.group.clone(), std::mem::take(&mut flight.waiting), std::mem::take(&mut flight.urgent)))
    }

    /// Waits for the places that a run needs: one of its database's and one of the pod's.
    async fn places(&self, group: &Group) -> [Option<OwnedSemaphorePermit>; 2] {
        let kind = match group.db().newest().seq.saturating_sub(group.seq()) {
            0..=LONG_CHANGES => Kind::Short,
            _ => Kind::PerhapsLong,
        };
        let of_all = match kind {
            Kind::Short => &self.short,
            Kind::PerhapsLong => &self.long,
        };
        let of_one = self.owner(group.db().instance(), kind);
        // The semaphores are never closed, so there are always places in the end.
        let of_one = of_one.acquire_owned().await.ok();
        [of_one, Arc::clone(of_all).acquire_owned().await.ok()]
    }

    /// The places of one database.
    fn owner(&self, instance: &str, kind: Kind) -> Arc<Semaphore> {
        let key: OwnerKey = (instance.into(), kind);
        let mut owners = self.owners.lock();
        if let Some(owner) = owners.get(&key).and_then(Weak::upgrade) {
            return owner;
        }
        // As many stay as have runs at this moment.
        owners.retain(|_, owner| owner.strong_count() > 0);
        let owner = Arc::new(Semaphore::new(OF_ONE));
        owners.insert(key, Arc::downgrade(&owner));
        owner
    }

    /// Whether an index is being brought up to date, and how many wait for the next time.
    pub fn state(&self, group: &Group) -> (bool, usize) {
        let key: Key = (group.db().instance().into(), group.spec().signature.as_str().into());
        self.flights.lock().get(&key).map_or((false, 0), |flight| (true, flight.waiting.len()))
    }
}

/// One run, on a thread of its own.
struct Run<'a> {
    pod: &'a Pod,
    group: &'a Group,
    name: &'a str,
    urgent: bool,
    step_began: Instant,
    task: Option<Task>,
    working: Option<OwnedSemaphorePermit>,
}

impl<'a> Run<'a> {
    fn new(pod: &'a Pod, group: &'a Group, name: &'a str, urgent: bool) -> Self {
        LANE.set(if urgent { Lane::Request } else { Lane::Background });
        Self { pod, group, name, urgent, step_began: Instant::now(), task: None, working: None }
    }

    fn update(mut self) -> Result<(), IndexError> {
        let group = self.group;
        let result = group.update(&mut |done, total| self.step(done, total));
        // Threads are used again.
        LANE.set(Lane::Request);
        let limit = LIMIT.take();
        match result {
            // Once, to those who waited for it, as CouchDB's queries fail; from then on the document has no rows.
            // Readers of an app are not to learn what documents of others do.
            Ok(_) if group.db().kind() == DbKind::Plain => {
                limit.map_or(Ok(()), |words| Err(IndexError::Map(MapError::Documents(words))))
            }
            Ok(_) => Ok(()),
            Err(error) => {
                let stopping = self.pod.hub.follow().borrow().ended;
                match &error {
                    // That an index rests was told when it began.
                    IndexError::Closing | IndexError::Gone | IndexError::Map(MapError::Resting(_)) => {}
                    _ if stopping => {}
                    other => tracing::warn!(
                        database = group.db().name(),
                        design = self.name,
                        error = %other,
                        "an index could not be brought up to date"
                    ),
                }
                Err(error)
            }
        }
    }

    fn step(&mut self, done: u64, total: u64) {
        if total == 0 {
            return;
        }
        if total > LONG_CHANGES && done < total && self.working.is_none() {
            LANE.set(Lane::Background);
            let working = Arc::clone(&self.pod.views.builds.working);
            self.working = Handle::current().block_on(working.acquire_owned()).ok();
        }
        let task =
            self.task.get_or_insert_with(|| self.pod.tasks.begin_for(TASK, self.group.db().name(), Some(self.name)));
        task.progress(done, total);
        if !self.urgent && self.pod.views.state(self.group).1 == 0 && self.group.waiting() == 0 {
            std::thread::sleep(self.step_began.elapsed().min(LONGEST_PAUSE));
        }
        self.step_began = Instant::now();
    }
}
