//! Accounts: what rean makes of the documents of `_users`.
//!
//! A document is checked as CouchDB does
//! (<https://docs.couchdb.org/en/stable/intro/security.html#authentication-database>), its password becomes an argon2id
//! hash. What is known of an account's roles is kept here for as long as its document doesn't change, and live feeds learn
//! of a change at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use adea_ring::Identity;
use parking_lot::Mutex;
use rean_store::{Change, Db, Edit, Mode, Scope, Store, StoreError, Who};
use serde_json::{Map, Value};
use tokio::sync::{Notify, Semaphore, watch};

use crate::account_doc::{self, Plan};
use crate::apps;
use crate::error::ApiError;
use crate::hub::{CommitHook, Hub};
use crate::password;
use crate::pod::Pod;
use crate::replicate::documents;
use crate::target::{ACCOUNT_PREFIX, System, Target};

/// Accounts that are remembered. About 200 bytes each; those who are active on a pod at one time should fit.
const MAX_REMEMBERED: usize = 20_000;
/// Passwords that are hashed at once. Each takes a core for some 20 ms and 19 MiB.
const HASHING_AT_ONCE: usize = 2;

/// What is known of accounts.
pub struct Accounts {
    users: Option<Db>,
    shared: Arc<Shared>,
    hashing: Semaphore,
}

#[derive(Default)]
struct Shared {
    cache: Mutex<Cache>,
    watchers: Mutex<HashMap<Arc<str>, watch::Sender<()>>>,
    /// Accounts that have changed, for [`Accounts::changed`], with whether they were removed: who is there again by then is
    /// somebody else.
    changed: Mutex<BTreeMap<String, bool>>,
    has_changed: Notify,
}

#[derive(Default)]
struct Cache {
    /// Rises with each commit to `_users`: what was read before it may not be remembered after it.
    generation: u64,
    known: HashMap<Box<str>, Roles>,
}

/// What the database says of a name's roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roles {
    /// Nothing: the account is kept elsewhere, as the administrator of the configuration is.
    Elsewhere,
    /// There was an account and it was removed.
    Removed,
    /// These.
    Now(Arc<[String]>),
}

impl Accounts {
    /// Follows the commits to `_users` through the hub.
    pub fn open(store: &Store, hub: &Arc<Hub>) -> Self {
        let shared = Arc::new(Shared::default());
        hub.add_hook(Arc::clone(&shared) as Arc<dyn CommitHook>);
        Self { users: store.db("_users"), shared, hashing: Semaphore::new(HASHING_AT_ONCE) }
    }

    /// Who this is for the store: with the roles that the account has at this moment (never more than the identity
    /// claims).
    ///
    /// # Errors
    /// 401 when the account was removed; whatever the store says.
    pub fn who(&self, identity: &Identity) -> Result<Who, ApiError> {
        let plain = || Who { name: identity.name.clone(), roles: identity.roles.clone() };
        let Some(name) = identity.name.as_deref().filter(|_| !identity.is_admin()) else {
            return Ok(plain());
        };
        match self.roles(name)? {
            Roles::Elsewhere => Ok(plain()),
            Roles::Removed => Err(ApiError::unauthorized("Name or password is incorrect.")),
            Roles::Now(now) => Ok(Who {
                name: Some(name.to_owned()),
                roles: identity.roles.iter().filter(|role| now.contains(role)).cloned().collect(),
            }),
        }
    }

    /// Tells when this account's document changes. Live feeds of the account must end then.
    pub fn watch(&self, name: &str) -> AccountWatch {
        let mut watchers = self.shared.watchers.lock();
        let (name, signal) = match watchers.get_key_value(name) {
            Some((name, sender)) => (Arc::clone(name), sender.subscribe()),
            None => {
                let name: Arc<str> = name.into();
                let sender = watch::Sender::new(());
                let signal = sender.subscribe();
                watchers.insert(Arc::clone(&name), sender);
                (name, signal)
            }
        };
        AccountWatch { shared: Arc::clone(&self.shared), name, signal }
    }

    /// Which roles an account has at this moment.
    ///
    /// # Errors
    /// Whatever the store says.
    pub fn roles(&self, name: &str) -> Result<Roles, ApiError> {
        let generation = {
            let cache = self.shared.cache.lock();
            if let Some(account) = cache.known.get(name) {
                return Ok(account.clone());
            }
            cache.generation
        };
        let account = self.load(name)?;
        let mut cache = self.shared.cache.lock();
        if cache.generation == generation {
            if cache.known.len() >= MAX_REMEMBERED {
                // Those who are active come back at once; a cleverer order isn't worth its cost here.
                cache.known.clear();
            }
            cache.known.insert(name.into(), account.clone());
        }
        Ok(account)
    }

    /// Waits until there are accounts whose documents have changed, and gives at most `max` of them, with whether they were
    /// removed meanwhile. For one follower: each change is told once.
    pub async fn changed(&self, max: usize) -> Vec<(String, bool)> {
        loop {
            let names: Vec<(String, bool)> = {
                let mut changed = self.shared.changed.lock();
                std::iter::from_fn(|| changed.pop_first()).take(max).collect()
            };
            if !names.is_empty() {
                return names;
            }
            self.shared.has_changed.notified().await;
        }
    }

    /// Takes back what [`Accounts::changed`] gave: it could not be told.
    pub fn not_told(&self, names: &[(String, bool)]) {
        names.iter().for_each(|(name, removed)| self.shared.note(name, *removed));
    }

    fn load(&self, name: &str) -> Result<Roles, StoreError> {
        let Some(users) = &self.users else {
            return Ok(Roles::Elsewhere);
        };
        let stored = Stored::read(users, &format!("{ACCOUNT_PREFIX}{name}"))?;
        Ok(match stored {
            None => Roles::Elsewhere,
            Some(stored) if stored.deleted => Roles::Removed,
            Some(stored) => Roles::Now(account_doc::strings(stored.body.get("roles")).into()),
        })
    }
}

impl Shared {
    fn note(&self, name: &str, removed: bool) {
        *self.changed.lock().entry(name.to_owned()).or_default() |= removed;
        self.has_changed.notify_one();
    }
}

impl CommitHook for Shared {
    fn committed(&self, db: &Db, changes: &[Arc<Change>]) {
        if db.name() != "_users" {
            return;
        }
        let mut cache = self.cache.lock();
        cache.generation += 1;
        for change in changes {
            if let Some(name) = change.id().strip_prefix(ACCOUNT_PREFIX) {
                cache.known.remove(name);
            }
        }
        drop(cache);
        for change in changes {
            if let Some(name) = change.id().strip_prefix(ACCOUNT_PREFIX) {
                // What is known of a name from before there was an account is somebody else's.
                self.note(name, change.is_deletion() || change.generation() == 1);
            }
        }
        let watchers = self.watchers.lock();
        for change in changes {
            let name = change.id().strip_prefix(ACCOUNT_PREFIX);
            if let Some(sender) = name.and_then(|name| watchers.get(name)) {
                sender.send_replace(());
            }
        }
    }
}

/// Tells one live feed that its account has changed.
pub struct AccountWatch {
    shared: Arc<Shared>,
    name: Arc<str>,
    signal: watch::Receiver<()>,
}

impl AccountWatch {
    /// Waits for a change.
    pub async fn changed(&mut self) {
        if self.signal.changed().await.is_err() {
            // The sender stays as long as this watch does; if not, nothing more can be said of the account.
            tracing::warn!("an account's watch lost its sender");
        }
    }

    /// Whether there was a change.
    pub fn has_changed(&self) -> bool {
        self.signal.has_changed().unwrap_or(true)
    }
}

impl Drop for AccountWatch {
    fn drop(&mut self) {
        let mut watchers = self.shared.watchers.lock();
        if watchers.get(&self.name).is_some_and(|sender| sender.receiver_count() <= 1) {
            watchers.remove(&self.name);
        }
    }
}

/// An account's document as it is stored now.
pub struct Stored {
    /// Its winning revision.
    pub rev: rean_store::rev::Rev,
    /// Whether that is a deletion.
    pub deleted: bool,
    /// How many revisions are in conflict with it.
    pub live_leaves: usize,
    /// Its members.
    pub body: Map<String, Value>,
}

impl Stored {
    /// Reads it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn read(users: &Db, id: &str) -> Result<Option<Self>, StoreError> {
        let Some(doc) = users.doc(&Scope::All, id)? else {
            return Ok(None);
        };
        let winner = doc.winner();
        let body = match winner.body {
            Some(at) => users.body(at)?,
            None => None,
        };
        let body = body.and_then(|body| serde_json::from_slice(&body.json).ok()).unwrap_or_default();
        Ok(Some(Self {
            rev: winner.rev.clone(),
            deleted: winner.deleted,
            live_leaves: doc.leaves.iter().filter(|leaf| !leaf.deleted).count(),
            body,
        }))
    }
}

/// Whether writes to this database must go through [`before_write`].
pub fn has_hook(target: &Target) -> bool {
    matches!(target.system, System::Users | System::Ring | System::Replicator)
}

/// Checks and completes edits of `_users`, `_ring` and `_replicator` before they are written. Same order, same length.
pub async fn before_write(
    pod: &Arc<Pod>,
    target: &Target,
    edits: Vec<Edit>,
    mode: Mode,
) -> Vec<Result<Edit, ApiError>> {
    let mut out = Vec::with_capacity(edits.len());
    let replicated = matches!(mode, Mode::Replicated);
    for edit in edits {
        out.push(match target.system {
            System::Users => prepare(pod, target, edit, replicated).await,
            System::Ring => apps::check(&edit, &target.author, replicated).map(|()| edit),
            System::Replicator => documents::check(edit, &target.author, replicated),
            System::None | System::Pods => Ok(edit),
        });
    }
    out
}

async fn prepare(pod: &Arc<Pod>, target: &Target, mut edit: Edit, replicated: bool) -> Result<Edit, ApiError> {
    let stored = Stored::read(&target.db, &edit.id)?;
    let plan = account_doc::plan(&edit, stored.as_ref(), &target.author, replicated)?;
    let body = match plan {
        Plan::Verbatim => return Ok(edit),
        Plan::Removed => {
            edit.attachments.clear();
            Map::new()
        }
        Plan::Written { mut body, password } => {
            if let Some(password) = password {
                let hash = hash_password(pod, password).await?;
                account_doc::set_hash(&mut body, hash);
            }
            body
        }
    };
    edit.body = Value::Object(body).to_string().into();
    Ok(edit)
}

/// Hashes a password: slow on purpose, and a few at once.
///
/// # Errors
/// When the server stops, or the system has no randomness.
pub async fn hash_password(pod: &Arc<Pod>, password: String) -> Result<String, ApiError> {
    let permit = pod.accounts.hashing.acquire().await.map_err(|_| crate::pod::stopped())?;
    let hash = tokio::task::spawn_blocking(move || password::hash(&password))
        .await
        .map_err(|error| ApiError::internal("the password could not be hashed").with_cause(error))?
        .map_err(|error| ApiError::internal("the password could not be hashed").with_cause(error));
    drop(permit);
    hash
}
