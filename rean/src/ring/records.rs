//! What the workers on the ring's documents share: the clock, what is in force, and what one has to tell another.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use adea_ring::PodId;
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::ring::divergence::Found;
use crate::ring::instructions::Chain;
use crate::ring::instructions::progress::Progress;
use crate::ring::stamps::Stamps;

/// What they share.
pub struct Records {
    /// The clock of this pod's stamps.
    pub stamps: Stamps,
    /// One at a time makes, deletes and sets up databases by their documents. Only locked where blocking is allowed.
    pub databases: Mutex<()>,
    /// Databases that are an app here and a plain one elsewhere, or the other way round, by their names.
    pub mixed: Mutex<BTreeSet<String>>,
    /// What is wrong with the ring's configuration as it arrived here; the one before it stays in force.
    pub config_error: RwLock<Option<String>>,
    /// The instructions that this pod gives.
    pub chain: Mutex<Chain>,
    /// The instructions that it has carried out.
    pub progress: Progress,
    /// Documents that replication has made diverge.
    pub found: Found,
    /// Tells the writer of this pod's status that something has changed.
    pub status: Notify,
    links: OnceLock<LinksHooks>,
}

/// What is asked of the links.
struct LinksHooks {
    describe: Box<dyn Fn() -> Value + Send + Sync>,
    repair: Box<dyn Fn() + Send + Sync>,
}

impl Records {
    /// Nothing known yet.
    pub fn new(me: PodId) -> Self {
        Self {
            stamps: Stamps::new(me),
            databases: Mutex::new(()),
            mixed: Mutex::default(),
            config_error: RwLock::new(None),
            chain: Mutex::default(),
            progress: Progress::default(),
            found: Found::default(),
            status: Notify::new(),
            links: OnceLock::new(),
        }
    }

    /// Names the links: how they are told of in this pod's status, and what has them compare everything once more. The
    /// first that is given counts.
    pub fn set_links(
        &self,
        describe: impl Fn() -> Value + Send + Sync + 'static,
        repair: impl Fn() + Send + Sync + 'static,
    ) {
        let _ = self.links.set(LinksHooks { describe: Box::new(describe), repair: Box::new(repair) });
    }

    /// The state of the links; an empty list without any.
    pub fn describe_links(&self) -> Value {
        self.links.get().map_or_else(|| json!([]), |links| (links.describe)())
    }

    /// Has the links compare everything once more; whether there are links. Blocks until it is sure that this happens.
    pub fn repair(&self) -> bool {
        let links = self.links.get();
        if let Some(links) = links {
            (links.repair)();
        }
        links.is_some()
    }
}
