//! Everything that the requests of one pod share, and how it comes up.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use adea_ring::report::Origin;
use adea_ring::tls::{Credentials, TlsError};
use adea_ring::{RingSecret, Signer};
use rean_index::{IndexError, Indexes};
use rean_script::{ScriptLimits, Scripts};
use rean_store::{
    Base, Db, DbKind, EngineKind, OpenError, Store, StoreError, StoreKeys, StoreOptions, Write, WriteError, Written,
};
use tokio::sync::oneshot;

use crate::accounts::Accounts;
use crate::backup::Backups;
use crate::body_in::BodyBudget;
use crate::config::{Config, Limits};
use crate::designs::DesignCache;
use crate::error::ApiError;
use crate::feeds::Sockets;
use crate::files::Files;
use crate::functions::filters::Turns;
use crate::hosting::Hosted;
use crate::hub::Hub;
use crate::node_config::Settings;
use crate::node_config::stats::Traffic;
use crate::replicate::Replications;
use crate::ring::join::Door;
use crate::ring::upgrade::Upgrades;
use crate::ring::wire::Wire;
use crate::ring::{Doors, Ring};
use crate::room::Room;
use crate::tasks::Tasks;
use crate::views::Views;

/// The databases that a pod always has.
pub const SYSTEM_DATABASES: [&str; 4] = ["_users", "_ring", "_pods", "_replicator"];

/// One running pod's shared state.
pub struct Pod {
    /// The documents.
    pub store: Store,
    /// Who waits for changes.
    pub hub: Arc<Hub>,
    /// The connections with many feeds.
    pub sockets: Arc<Sockets>,
    /// Background work and its progress.
    pub tasks: Tasks,
    /// Replications with other servers and between databases.
    pub replications: Replications,
    /// Accounts and their re-grants.
    pub accounts: Accounts,
    /// The design documents of each database.
    pub designs: DesignCache,
    /// What the apps' pages are made of.
    pub hosted: Hosted,
    /// Runs the functions of design documents.
    pub scripts: Scripts,
    /// Feeds whose filters ask the same function the same.
    pub filter_turns: Turns,
    /// Views and Mango indexes.
    pub indexes: Indexes,
    /// What requests for views share.
    pub views: Views,
    /// Backups under way.
    pub backups: Backups,
    /// The memory that request bodies share.
    pub bodies: BodyBudget,
    /// Bounds on requests.
    pub limits: Limits,
    /// CouchDB's server settings.
    pub settings: Settings,
    /// Requests of clients.
    pub traffic: Traffic,
    /// Where the pod's programs log to, if this one may read it.
    pub logs_dir: Option<PathBuf>,
    /// Attachments that are kept outside of the store.
    pub files: Arc<Files>,
    /// The ring.
    pub ring: Ring,
    /// The disk of the store.
    pub room: Room,
    /// The door for new pods.
    pub door: Door,
    /// The software of the ring.
    pub upgrades: Upgrades,
    /// Who this server is, for `GET /` and the ids of replications: the same for the whole life of the ring.
    pub uuid: String,
    /// When this process started.
    pub started: Instant,
}

/// Why a pod did not come up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The store can't be opened.
    #[error("the store could not be opened: {0}")]
    Open(#[from] OpenError),
    /// The indexes can't be opened.
    #[error("the indexes could not be opened: {0}")]
    Indexes(#[from] IndexError),
    /// A system database can't be made.
    #[error("the system database {name} could not be made: {source}")]
    System {
        /// Its name.
        name: &'static str,
        /// What the store said.
        source: StoreError,
    },
    /// The certificate for the links with other pods can't be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The folder for files can't be made or read.
    #[error("the folder for files: {0}")]
    Files(std::io::Error),
    /// The store's history has no proper name.
    #[error("the store is damaged: its history has no proper name")]
    History,
}

impl Pod {
    /// Opens the store and makes the system databases. Blocking: call it before serving.
    ///
    /// # Errors
    /// When the store can't be opened or written.
    pub fn boot(config: &Config, secret: &RingSecret) -> Result<Arc<Self>, BootError> {
        let hub = Arc::new(Hub::new());
        let store = Store::open(StoreOptions {
            path: config.data_dir.clone(),
            engine: config.engine,
            keys: StoreKeys { chain: secret.key("chain"), bookmark: secret.key("bookmark") },
            observer: Arc::clone(&hub) as Arc<dyn rean_store::Observer>,
        })?;
        // They wait for no flush, and can always be made again.
        let indexes = Indexes::open_in(index_engine(config.engine), &config.data_dir.join("indexes"))?;
        // Before anything is written: what the indexes know of sequences that a crash took back must go.
        indexes.settle(&store)?;
        for name in SYSTEM_DATABASES {
            if store.db(name).is_none() {
                store.create_db(name, DbKind::Plain).map_err(|source| BootError::System { name, source })?;
            }
        }
        let uuid = hex::encode(&secret.key("uuid")[..16]);
        let files = Files::open(&config.data_dir, &uuid).map_err(BootError::Files)?;
        let accounts = Accounts::open(&store, &hub);
        let designs = DesignCache::new(&hub);
        let views = Views::new(&hub);
        let origin = Origin::new(config.pod_id.clone(), store.history()).map_err(|_| BootError::History)?;
        let ring = match config.ring_listen {
            Some(_) => Ring::member(origin, doors(config, secret)?),
            None => Ring::alone(origin),
        };
        Ok(Arc::new(Self {
            store,
            hub,
            sockets: Arc::default(),
            tasks: Tasks::new(),
            replications: Replications::default(),
            accounts,
            designs,
            hosted: Hosted::default(),
            scripts: Scripts::new(ScriptLimits { time_ms: config.limits.max_function_ms, ..ScriptLimits::default() }),
            filter_turns: Turns::default(),
            indexes,
            views,
            ring,
            room: Room::new(&config.data_dir),
            door: Door::new(secret),
            upgrades: Upgrades::default(),
            backups: Backups::default(),
            bodies: BodyBudget::new(config.limits.max_bodies_bytes),
            limits: config.limits.clone(),
            settings: Settings::new(&config.limits),
            traffic: Traffic::default(),
            logs_dir: config.logs_dir.clone(),
            files: Arc::new(files),
            uuid,
            started: Instant::now(),
        }))
    }

    /// Hands a batch to the store's writer and waits for its durable commit. One result an edit, in order.
    /// A caller that goes away in the meantime does not undo the write.
    ///
    /// # Errors
    /// When nothing of the batch could be tried: the database is gone or the store failed.
    pub async fn write(&self, db: &Db, write: Write) -> Result<Vec<Result<Written, WriteError>>, ApiError> {
        self.write_validated(db, write, Vec::new()).await
    }

    /// As [`Pod::write`], for edits that were validated, with what each of them stood on then.
    ///
    /// # Errors
    /// As [`Pod::write`].
    pub async fn write_validated(
        &self,
        db: &Db,
        write: Write,
        bases: Vec<Option<Base>>,
    ) -> Result<Vec<Result<Written, WriteError>>, ApiError> {
        let (done, answer) = oneshot::channel();
        db.submit_validated(
            write,
            bases,
            Box::new(move |result| {
                // Nobody listens any more when the client has gone; the write stands.
                let _ = done.send(result);
            }),
        );
        Ok(answer.await.map_err(|_| stopped())??)
    }

    /// As [`Pod::write`], for a batch of one edit.
    ///
    /// # Errors
    /// Also when the edit itself was refused.
    pub async fn write_one(&self, db: &Db, write: Write) -> Result<Written, ApiError> {
        let results = self.write(db, write).await?;
        match results.into_iter().next() {
            Some(result) => Ok(result?),
            None => Err(ApiError::internal("the store gave no result")),
        }
    }
}

/// Indexes are read through snapshots, which sled has none of.
fn index_engine(store: EngineKind) -> EngineKind {
    if store == EngineKind::Sled { EngineKind::Fjall } else { store }
}

fn doors(config: &Config, secret: &RingSecret) -> Result<Doors, TlsError> {
    let credentials = Credentials::issue(secret, &config.pod_id)?;
    let wire = Wire::new(&credentials, &Signer::new(secret));
    Ok(Doors { credentials, wire })
}

/// The writer has ended before it answered: the server is stopping.
pub fn stopped() -> ApiError {
    ApiError::new(http::StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", "the server is stopping")
}
