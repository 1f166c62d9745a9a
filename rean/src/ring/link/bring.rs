//! Brings the documents of a page here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::Identity;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use parking_lot::Mutex;

use crate::apps;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::replicate::carry::{Carrier, Leaves, Wanted};
use crate::replicate::fault::Fault;
use crate::replicate::peer::{Peer, Road};
use crate::ring::databases::{self, Ensured};
use crate::ring::link::Link;
use crate::ring::link::page::{DbRows, Page};

/// Databases whose rows come before those of others: what documents may depend on.
const FIRST: [&str; 2] = [RULES_DB, "_users"];
/// The database with the rules, and what the ids of an app's rules start with.
pub const RULES_DB: &str = "_ring";
/// See [`RULES_DB`].
pub const RULES_PREFIX: &str = "app:";
/// Databases of one page that are brought at once: enough to fill the round trips of many small ones.
const DBS_AT_ONCE: usize = 4;
/// Databases whose ways are kept open between pages. Opening one costs little; with this many the memory is small too.
const MAX_CARRIERS: usize = 1_000;
/// A revision that another link fetches is waited for so long: a link that hangs is given up earlier than that.
const LANDING_PATIENCE: Duration = Duration::from_secs(30);
/// Looks at whether other links have brought what they fetched, before it is fetched here too.
const LANDINGS: usize = 3;
/// How often, and how long, a database is waited for whose document neither this pod nor the neighbour has: 5 s together.
const UNKNOWN_TRIES: usize = 11;
const UNKNOWN_PAUSE: Duration = Duration::from_millis(500);

/// Brings what a neighbour's feed names.
pub struct Bringer {
    pod: Arc<Pod>,
    link: Arc<Link>,
    road: Arc<dyn Road>,
    carriers: Mutex<HashMap<String, Arc<Carrier>>>,
}

/// What became of the rows of a database.
enum Done {
    /// They are here.
    All,
    /// The database isn't known here yet.
    Unknown,
}

impl Bringer {
    /// By this road, for this link.
    pub fn new(pod: &Arc<Pod>, link: &Arc<Link>, road: Arc<dyn Road>) -> Self {
        Self { pod: Arc::clone(pod), link: Arc::clone(link), road, carriers: Mutex::default() }
    }

    /// Brings the rows of a page that come first: accounts, and rules, which are in force afterwards.
    ///
    /// # Errors
    /// When the neighbour or this pod can't be asked.
    pub async fn first(&self, page: &mut Page) -> Result<(), Fault> {
        for name in FIRST {
            let Some(rows) = page.rows.remove(name) else { continue };
            let rules = |id: &String| id.strip_prefix(RULES_PREFIX).filter(|_| name == RULES_DB).map(str::to_owned);
            let apps: Vec<String> = rows.leaves.keys().filter_map(rules).collect();
            self.database(name, rows).await?;
            self.apply(apps).await?;
        }
        Ok(())
    }

    /// Brings the others.
    ///
    /// # Errors
    /// As [`Bringer::first`].
    pub async fn rest(&self, page: Page) -> Result<(), Fault> {
        let dbs = stream::iter(page.rows).map(|(name, rows)| async move { self.database(&name, rows).await });
        dbs.buffer_unordered(DBS_AT_ONCE).try_collect().await
    }

    /// Puts rules in force that have come. The worker that follows them does the rest.
    async fn apply(&self, apps: Vec<String>) -> Result<(), Fault> {
        if apps.is_empty() {
            return Ok(());
        }
        let pod = Arc::clone(&self.pod);
        let apply = move || {
            for db in apps.iter().filter_map(|app| pod.store.db(app)) {
                match apps::apply(&pod, &db) {
                    // Deleted meanwhile.
                    Ok(()) | Err(rean_store::StoreError::Gone) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        let applied = tokio::task::spawn_blocking(apply).await;
        applied.map_err(|error| Fault::Passing(error.to_string()))?.map_err(|error| near(&error.into()))
    }

    async fn database(&self, name: &str, rows: DbRows) -> Result<(), Fault> {
        for attempt in 0..UNKNOWN_TRIES {
            if attempt > 0 {
                tokio::time::sleep(UNKNOWN_PAUSE).await;
            }
            match self.try_database(name, &rows).await? {
                Done::All => return Ok(()),
                // It has been waited for once.
                Done::Unknown if self.pod.ring.links.is_passed_over(name) => return Ok(()),
                Done::Unknown => {}
            }
        }
        let peer = &self.link.peer;
        tracing::warn!(database = name, %peer, "rows of a database that is in no document of the ring are passed over");
        let (pod, name) = (Arc::clone(&self.pod), name.to_owned());
        let noted = tokio::task::spawn_blocking(move || pod.ring.links.pass_over(&pod, &name)).await;
        noted.map_err(|error| Fault::Passing(error.to_string()))?.map_err(|error| near(&error.into()))
    }

    async fn try_database(&self, name: &str, rows: &DbRows) -> Result<Done, Fault> {
        let theirs = rows.instance.as_deref();
        let mut ensured = databases::ensure_from(&self.pod, name, theirs).await.map_err(|error| near(&error))?;
        if ensured == Ensured::NotYet {
            self.carrier(RULES_DB).bring_document(&databases::doc_id(name)).await?;
            ensured = databases::ensure_from(&self.pod, name, theirs).await.map_err(|error| near(&error))?;
        }
        match ensured {
            Ensured::Here => {}
            Ensured::Gone => return Ok(Done::All),
            Ensured::NotYet => return Ok(Done::Unknown),
        }
        let carrier = self.carrier(name);
        let Some(db) = self.pod.store.db(name) else { return Ok(Done::Unknown) };
        match self.carry(&carrier, name, &rows.leaves).await {
            Err(Fault::Fatal { status: StatusCode::NOT_FOUND, .. }) if db.is_gone() => Ok(Done::Unknown),
            Err(Fault::Fatal { status: StatusCode::NOT_FOUND, .. }) => {
                // It was deleted there: so it will be here.
                tracing::debug!(database = name, peer = %self.link.peer, "a database has gone from a neighbour");
                Ok(Done::All)
            }
            Err(fault) => Err(fault),
            Ok(()) => Ok(Done::All),
        }
    }

    /// Brings what is missing here of these leaves, each over one link.
    async fn carry(&self, carrier: &Carrier, name: &str, leaves: &Leaves) -> Result<(), Fault> {
        let name: Arc<str> = name.into();
        let flight = &self.pod.ring.links.in_flight;
        let mut missing = carrier.missing(leaves).await?;
        for _ in 0..LANDINGS {
            if missing.is_empty() {
                return Ok(());
            }
            let (claim, mine, others) = flight.claim(&name, missing);
            if !mine.is_empty() {
                carrier.bring(&mine).await?;
            }
            // Before waiting for others, who may wait for these.
            drop(claim);
            if others.is_empty() {
                return Ok(());
            }
            flight.wait(&name, &others, LANDING_PATIENCE).await;
            missing = carrier.missing(&as_leaves(&others)).await?;
        }
        carrier.bring(&missing).await
    }

    fn carrier(&self, name: &str) -> Arc<Carrier> {
        let mut carriers = self.carriers.lock();
        if let Some(carrier) = carriers.get(name) {
            return Arc::clone(carrier);
        }
        if carriers.len() >= MAX_CARRIERS {
            carriers.clear();
        }
        let source = Arc::new(Peer::pod(Arc::clone(&self.road), self.link.peer.as_str(), name));
        // As the pod itself, and not through the gate: what comes over links is no new write.
        let target = Arc::new(Peer::near(&self.pod, &Identity::system(), name));
        // What can't be written is refused alone; what can't be read would stop the link.
        let max_doc_bytes = self.pod.limits.max_body_bytes.saturating_mul(2);
        let carrier = Arc::new(Carrier::new(Arc::clone(&self.link), source, target, max_doc_bytes));
        carriers.insert(name.to_owned(), Arc::clone(&carrier));
        carrier
    }
}

fn as_leaves(wanted: &[Wanted]) -> Leaves {
    let mut leaves = Leaves::new();
    for wanted in wanted {
        leaves.entry(wanted.id.clone()).or_default().push(wanted.rev.clone());
    }
    leaves
}

fn near(error: &ApiError) -> Fault {
    Fault::Passing(format!("this pod: {}", error.cause()))
}
