//! Databases as documents: `_ring/db:NAME` says on all pods that there is a database, and how it is set up.
//!
//! ```json
//! {"app": true, "partitioned": false, "instance": "0a1b2c3d", "gone": ["9f8e7d6c"], "security": {}, "revs_limit": 1000}
//! ```
//! The write master writes the document when a database is made, deleted or set up anew; every pod, the master among
//! them, makes its store agree with the documents ([`settle`]). `instance` tells a database from an earlier one of its
//! name: those that were deleted are in `gone`, also in the body of a deletion, and a pod that still has one of them
//! drops it. Two sides of a split that both made a database have made conflicting revisions: both instances count as
//! the same database then, and nothing is dropped. The pod's own databases have a document only for their settings.
//!
//! What always holds: the note of the instance is on disk before its database is, so that a database with a note is
//! never taken for an earlier one of its name.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use rean_store::{Db, DbKind, StoreError};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::apps;
use crate::databases::{blocking, check_name};
use crate::error::ApiError;
use crate::pod::{Pod, SYSTEM_DATABASES};
use crate::ring::follow::{Follow, Occasion};
use crate::ring::is_local_db;
use crate::ring::ring_doc::{self, Leaf, ring_db};
use crate::security;
use crate::workers::Stop;

use self::db_doc::{
    DEFAULT_REVS_LIMIT, DbDoc, Kind, SECURITY_NEVER_SET, all_gone, gone_of, instance_of, live_instances, new_instance,
    shorten,
};

pub mod db_doc;

/// What the id of a database's document begins with.
pub const PREFIX: &str = "db:";
/// The longest name that is part of a note's name as it is; notes have shorter names than databases.
const MAX_PLAIN_NOTE_BYTES: usize = 190;
/// Tries to change a document that others change at the same time.
const TRIES: usize = 5;
/// A look without being told, in case one was missed.
const PAUSE: Duration = Duration::from_secs(60);

/// Whether rows of a database may be written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ensured {
    /// It is here.
    Here,
    /// Its document has not arrived yet.
    NotYet,
    /// It was deleted: its rows are to be passed over.
    Gone,
}

/// The id of a database's document.
pub fn doc_id(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// Makes a database: on the write master, for all pods.
///
/// # Errors
/// 412 when there is one.
pub async fn make(pod: &Arc<Pod>, name: &str, kind: Kind) -> Result<(), ApiError> {
    if pod.store.db(name).is_some() {
        return Err(StoreError::Exists.into());
    }
    let ring = ring_db(pod)?;
    let leaves = ring_doc::leaves(&ring, &doc_id(name))?;
    if leaves.iter().any(|leaf| !leaf.deleted) {
        // It is about to be made here.
        return Err(StoreError::Exists.into());
    }
    let doc = DbDoc {
        app: kind == Kind::App,
        partitioned: kind == Kind::Partitioned,
        instance: new_instance(),
        security: None,
        revs_limit: DEFAULT_REVS_LIMIT,
        purged_infos_limit: None,
        gone: all_gone(&leaves),
    };
    match ring_doc::write(pod, &ring, ring_doc::edit(&doc_id(name), None, &doc.body())).await {
        Ok(_) => settle_aside(pod, name).await,
        // Somebody else has made it in between.
        Err(error) if error.status == StatusCode::CONFLICT => Err(StoreError::Exists.into()),
        Err(error) => Err(error),
    }
}

/// Deletes a database: on the write master, for all pods. `false`: there is none.
///
/// # Errors
/// When the store fails, or others change its document all the time.
pub async fn remove(pod: &Arc<Pod>, name: &str) -> Result<bool, ApiError> {
    let ring = ring_db(pod)?;
    let id = doc_id(name);
    for _ in 0..TRIES {
        let Some(db) = pod.store.db(name) else {
            return Ok(false);
        };
        document(pod, &db).await?;
        settle_aside(pod, name).await?;
        let leaves = ring_doc::leaves(&ring, &id)?;
        let mut gone = all_gone(&leaves);
        gone.extend(leaves.iter().filter(|leaf| !leaf.deleted).filter_map(|leaf| instance_of(leaf).map(str::to_owned)));
        shorten(&mut gone);
        let live = leaves.iter().filter(|leaf| !leaf.deleted);
        let edits = live.map(|leaf| ring_doc::deletion(&id, leaf.rev.clone(), &tombstone(leaf, &gone))).collect();
        let results = ring_doc::write_all(pod, &ring, edits).await?;
        match results.into_iter().find_map(Result::err) {
            None => {
                settle_aside(pod, name).await?;
                return Ok(true);
            }
            Some(error) if error.status == StatusCode::CONFLICT => {}
            Some(error) => return Err(error),
        }
    }
    Err(ApiError::conflict())
}

fn tombstone(leaf: &Leaf, gone: &[String]) -> Map<String, Value> {
    let mut body = leaf.body.clone();
    body.retain(|member, _| matches!(member.as_str(), "app" | "partitioned" | "instance"));
    body.insert("gone".to_owned(), gone.into());
    body
}

/// Sets a database's `_security`: on the write master, for all pods. `text` has been checked.
///
/// # Errors
/// When the store fails, or others change its document all the time.
pub async fn set_security(pod: &Arc<Pod>, db: &Db, text: Vec<u8>) -> Result<(), ApiError> {
    let value: Value = serde_json::from_slice(&text).map_err(|_| ApiError::invalid_json())?;
    change(pod, db, |doc| doc.security = Some(value.clone())).await?;
    let (for_local, db) = (Arc::clone(pod), db.clone());
    blocking(move || -> Result<(), StoreError> {
        // As the client wrote it, which is the same to `settle`; that has done its part before, or will do nothing.
        let _turn = for_local.ring.records.databases.lock();
        db.set_security(text.into())?;
        // Whoever follows the database is asked again who they are.
        for_local.hub.end(&db);
        Ok(())
    })
    .await??;
    Ok(())
}

/// Sets how many revisions of a branch are kept: on the write master, for all pods.
///
/// # Errors
/// As [`set_security`].
pub async fn set_revs_limit(pod: &Arc<Pod>, db: &Db, limit: u64) -> Result<(), ApiError> {
    if !is_local_db(db.name()) {
        change(pod, db, |doc| doc.revs_limit = limit).await?;
    }
    let local = db.clone();
    Ok(blocking(move || local.set_revs_limit(limit)).await??)
}

/// How many purges a database remembers, as somebody has set it.
///
/// # Errors
/// When the store fails.
pub fn purged_infos_limit(pod: &Pod, db: &Db) -> Result<Option<u64>, ApiError> {
    let leaf = ring_doc::live(&ring_db(pod)?, &doc_id(db.name()))?;
    Ok(leaf.and_then(|leaf| DbDoc::read(&leaf)).and_then(|doc| doc.purged_infos_limit))
}

/// Notes how many purges are to be remembered. The store goes on as it does: it remembers as many as make sense for it,
/// and what has missed more of them is made anew.
///
/// # Errors
/// As [`set_security`].
pub async fn set_purged_infos_limit(pod: &Arc<Pod>, db: &Db, limit: u64) -> Result<(), ApiError> {
    if is_local_db(db.name()) {
        return Err(ApiError::forbidden("The settings of this database are fixed."));
    }
    change(pod, db, |doc| doc.purged_infos_limit = Some(limit)).await
}

async fn change(pod: &Arc<Pod>, db: &Db, change: impl Fn(&mut DbDoc)) -> Result<(), ApiError> {
    let ring = ring_db(pod)?;
    let id = doc_id(db.name());
    for _ in 0..TRIES {
        document(pod, db).await?;
        let Some(leaf) = ring_doc::live(&ring, &id)? else {
            return Err(ApiError::no_database());
        };
        let mut doc = DbDoc::read(&leaf).ok_or_else(|| unreadable(db.name()))?;
        change(&mut doc);
        match ring_doc::write(pod, &ring, ring_doc::edit(&id, Some(leaf.rev), &doc.body())).await {
            Ok(_) => return Ok(()),
            Err(error) if error.status == StatusCode::CONFLICT => {}
            Err(error) => return Err(error),
        }
    }
    Err(ApiError::conflict())
}

fn unreadable(name: &str) -> ApiError {
    ApiError::internal("the database's document in _ring can't be read").with_cause(doc_id(name))
}

/// Writes the document of a database that is here and has none: it is from before the documents.
async fn document(pod: &Arc<Pod>, db: &Db) -> Result<(), ApiError> {
    let (for_look, name) = (Arc::clone(pod), db.name().to_owned());
    let Some(doc) = blocking(move || undocumented(&for_look, &name)).await?? else {
        return Ok(());
    };
    let ring = ring_db(pod)?;
    match ring_doc::write(pod, &ring, ring_doc::edit(&doc_id(db.name()), None, &doc.body())).await {
        Ok(_) => settle_aside(pod, db.name()).await,
        Err(error) if error.status == StatusCode::CONFLICT => Ok(()),
        Err(error) => Err(error),
    }
}

/// What the document of a database would be that is here and has none. Blocking.
fn undocumented(pod: &Pod, name: &str) -> Result<Option<DbDoc>, StoreError> {
    let _turn = pod.ring.records.databases.lock();
    let Some(db) = pod.store.db(name) else {
        return Ok(None);
    };
    let leaves = ring_doc::leaves(&ring_db(pod)?, &doc_id(name))?;
    let noted = noted(pod, name)?;
    match leaves.first() {
        Some(winner) if !winner.deleted => return Ok(None),
        // It is about to be dropped.
        Some(_) if noted.is_some() => return Ok(None),
        _ => {}
    }
    Ok(Some(DbDoc::of(&db, noted.unwrap_or_else(new_instance), all_gone(&leaves))))
}

/// The instance of a database that this pod has, to be told to others; none for the pod's own databases, and for one
/// that has no document yet.
///
/// # Errors
/// When the store fails.
pub fn instance_here(pod: &Pod, name: &str) -> Result<Option<String>, StoreError> {
    if pod.store.db(name).is_some() { noted(pod, name) } else { Ok(None) }
}

/// Makes the database that another pod's row names, if its document is here; `false`: there is no such document yet.
///
/// # Errors
/// When the store fails.
pub async fn ensure(pod: &Arc<Pod>, name: &str) -> Result<bool, ApiError> {
    Ok(ensure_from(pod, name, None).await? == Ensured::Here)
}

/// As [`ensure`], for rows of `theirs`, the instance that the other pod has. So rows of a database that was deleted,
/// of a pod that hasn't heard of that yet, don't get into a later one of its name.
///
/// # Errors
/// When the store fails.
pub async fn ensure_from(pod: &Arc<Pod>, name: &str, theirs: Option<&str>) -> Result<Ensured, ApiError> {
    if SYSTEM_DATABASES.contains(&name) {
        return Ok(if is_local_db(name) { Ensured::Gone } else { Ensured::Here });
    }
    let (pod, name, theirs) = (Arc::clone(pod), name.to_owned(), theirs.map(str::to_owned));
    blocking(move || -> Result<Ensured, StoreError> {
        settle(&pod, &name)?;
        let leaves = ring_doc::leaves(&ring_db(&pod)?, &doc_id(&name))?;
        let Some(winner) = leaves.first() else {
            return Ok(Ensured::NotYet);
        };
        let gone = gone_of(winner);
        if winner.deleted || theirs.as_ref().is_some_and(|theirs| gone.contains(theirs)) {
            return Ok(Ensured::Gone);
        }
        let is_known = theirs.is_none_or(|theirs| live_instances(&leaves).any(|one| one == theirs));
        let kind = DbDoc::read(winner).map(|doc| doc.kind());
        let is_here = pod.store.db(&name).is_some_and(|db| Some(Kind::of(&db)) == kind);
        Ok(if is_known && is_here { Ensured::Here } else { Ensured::NotYet })
    })
    .await?
    .map_err(ApiError::from)
}

/// [`settle`], where blocking is allowed.
///
/// # Errors
/// When the store fails.
pub async fn settle_aside(pod: &Arc<Pod>, name: &str) -> Result<(), ApiError> {
    let (pod, name) = (Arc::clone(pod), name.to_owned());
    Ok(blocking(move || settle(&pod, &name)).await??)
}

/// Makes the store agree with the document of one database, if there is one. Blocking; idempotent.
///
/// # Errors
/// When the store fails.
pub fn settle(pod: &Pod, name: &str) -> Result<(), StoreError> {
    let _turn = pod.ring.records.databases.lock();
    let leaves = ring_doc::leaves(&ring_db(pod)?, &doc_id(name))?;
    let Some(winner) = leaves.first() else {
        return Ok(());
    };
    if is_local_db(name) || check_name(name).is_err() {
        return Ok(());
    }
    let is_system = SYSTEM_DATABASES.contains(&name);
    if winner.deleted {
        pod.ring.records.mixed.lock().remove(name);
    }
    if winner.deleted {
        return if is_system { Ok(()) } else { settle_deleted(pod, name) };
    }
    let Some(doc) = DbDoc::read(winner) else {
        tracing::error!(database = name, "the document of a database can't be read");
        return Ok(());
    };
    if !is_system {
        settle_live(pod, name, &doc, &leaves)?;
    }
    match pod.store.db(name) {
        Some(db) if is_system || Kind::of(&db) == doc.kind() => {
            pod.ring.records.mixed.lock().remove(name);
            settle_settings(pod, &db, &doc)
        }
        _ => Ok(()),
    }
}

fn settle_deleted(pod: &Pod, name: &str) -> Result<(), StoreError> {
    let is_noted = noted(pod, name)?.is_some();
    if pod.store.db(name).is_none() {
        return if is_noted { set_note(pod, name, None) } else { Ok(()) };
    }
    if !is_noted {
        // From before this pod was in the ring: it is not what was deleted there.
        tracing::warn!(database = name, "a database is here that is in no document of the ring; it stays");
        return Ok(());
    }
    drop_here(pod, name)
}

fn settle_live(pod: &Pod, name: &str, doc: &DbDoc, leaves: &[Leaf]) -> Result<(), StoreError> {
    let Some(db) = pod.store.db(name) else {
        return make_here(pod, name, doc);
    };
    let is_same_kind = Kind::of(&db) == doc.kind();
    let is_empty = db.info().doc_count == 0 && db.info().del_count == 0;
    match noted(pod, name)? {
        Some(noted) if doc.gone.contains(&noted) || !live_instances(leaves).any(|one| one == noted) => {
            drop_here(pod, name)?;
            make_here(pod, name, doc)
        }
        None if is_same_kind => set_note(pod, name, Some(&doc.instance)),
        _ if !is_same_kind && is_empty => {
            drop_here(pod, name)?;
            make_here(pod, name, doc)
        }
        _ if !is_same_kind => {
            // Documents of an app must not get into a database whose members read everything, those without a partition
            // not into one where each has one, nor is what is here to be lost.
            if pod.ring.records.mixed.lock().insert(name.to_owned()) {
                tracing::error!(
                    database = name,
                    is_app = doc.app,
                    is_partitioned = doc.partitioned,
                    "pods have made databases of one name and different kinds; this pod keeps its own and takes nothing of \
                     the others': copy what is needed and delete the database"
                );
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn make_here(pod: &Pod, name: &str, doc: &DbDoc) -> Result<(), StoreError> {
    // Committed with the database or before it.
    set_note(pod, name, Some(&doc.instance))?;
    let made = match doc.kind() {
        Kind::Plain => pod.store.create_db(name, DbKind::Plain),
        Kind::Partitioned => pod.store.create_partitioned_db(name),
        Kind::App => pod.store.create_db(name, DbKind::App),
    };
    let db = match made {
        Ok(db) => db,
        Err(StoreError::Exists) => return Ok(()),
        Err(error) => return Err(error),
    };
    if db.kind() == DbKind::App {
        // Rules that were written before their app hold from its first document.
        apps::apply(pod, &db)?;
    }
    Ok(())
}

fn drop_here(pod: &Pod, name: &str) -> Result<(), StoreError> {
    tracing::info!(database = name, "a database was deleted");
    pod.store.delete_db(name)?;
    set_note(pod, name, None)
}

fn settle_settings(pod: &Pod, db: &Db, doc: &DbDoc) -> Result<(), StoreError> {
    if db.revs_limit() != doc.revs_limit && doc.revs_limit > 0 {
        db.set_revs_limit(doc.revs_limit)?;
    }
    // The rights to an app are said by its documents, those to the pod's own databases but `_users` are fixed.
    let is_fixed = SYSTEM_DATABASES.contains(&db.name()) && db.name() != "_users";
    if is_fixed || db.kind() == DbKind::App {
        return Ok(());
    }
    let stored = db.security();
    let now = (&stored[..] != SECURITY_NEVER_SET).then(|| serde_json::from_slice::<Value>(&stored).unwrap_or_default());
    if now == doc.security {
        return Ok(());
    }
    let text = match &doc.security {
        None => SECURITY_NEVER_SET.to_vec(),
        Some(value) => match security::check(value.to_string().as_bytes()) {
            Ok(text) => text,
            Err(error) => {
                tracing::error!(database = db.name(), reason = error.cause(), "a `_security` can't be applied");
                return Ok(());
            }
        },
    };
    db.set_security(text.into())?;
    pod.hub.end(db);
    Ok(())
}

/// Makes the store agree with the documents until it is told to stop.
///
/// # Errors
/// When the store fails; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    let mut follow = Follow::new(&pod)?;
    let mut roles = pod.ring.gate.roles();
    let mut occasion = Occasion::All;
    loop {
        match occasion {
            Occasion::End => return Ok(()),
            Occasion::All => all(&pod, &stop).await.map_err(|error| error.cause().to_owned())?,
            Occasion::Ids(ids) => {
                for name in ids.iter().filter_map(|id| id.strip_prefix(PREFIX)) {
                    settle_aside(&pod, name).await.map_err(|error| error.cause().to_owned())?;
                }
            }
        }
        occasion = tokio::select! {
            occasion = follow.next(PAUSE, &mut stop, |id| id.starts_with(PREFIX)) => occasion,
            // A new master writes what is missing.
            Ok(()) = roles.changed() => Occasion::All,
        };
    }
}

/// One look at all databases and all documents.
async fn all(pod: &Arc<Pod>, stop: &Stop) -> Result<(), ApiError> {
    let for_names = Arc::clone(pod);
    let names = blocking(move || names(&for_names)).await??;
    for name in names {
        if stop.is_stopped() {
            return Ok(());
        }
        settle_aside(pod, &name).await?;
        if !pod.ring.is_master() || is_local_db(&name) {
            continue;
        }
        if let Some(db) = pod.store.db(&name)
            && (!SYSTEM_DATABASES.contains(&db.name()) || is_set_up(&db))
        {
            document(pod, &db).await?;
        }
    }
    Ok(())
}

fn names(pod: &Pod) -> Result<BTreeSet<String>, StoreError> {
    let mut names: BTreeSet<String> = pod.store.db_names().into_iter().collect();
    ring_doc::each(&ring_db(pod)?, PREFIX, |id, _| {
        names.extend(id.strip_prefix(PREFIX).map(str::to_owned));
        true
    })?;
    Ok(names)
}

/// Whether a database has settings of its own.
fn is_set_up(db: &Db) -> bool {
    db.security() != SECURITY_NEVER_SET || db.revs_limit() != DEFAULT_REVS_LIMIT
}

fn noted(pod: &Pod, name: &str) -> Result<Option<String>, StoreError> {
    Ok(pod.store.note(&note(name))?.and_then(|note| String::from_utf8(note).ok()))
}

fn set_note(pod: &Pod, name: &str, instance: Option<&str>) -> Result<(), StoreError> {
    pod.store.set_note_lazily(&note(name), instance.map(|instance| instance.as_bytes().to_vec()))
}

fn note(name: &str) -> String {
    if name.len() <= MAX_PLAIN_NOTE_BYTES {
        return format!("db/{name}");
    }
    // No database's name has a `#`.
    format!("db/#{}", hex::encode(Sha256::digest(name)))
}

#[cfg(test)]
mod tests {
    use super::note;

    #[test]
    fn notes_of_long_names_are_short() {
        assert_eq!(note("notes"), "db/notes");
        let (long, other) = ("a".repeat(238), format!("{}b", "a".repeat(237)));
        assert!(note(&long).len() <= rean_store::MAX_NOTE_NAME_BYTES);
        assert_ne!(note(&long), note(&other));
    }
}
