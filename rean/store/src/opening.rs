//! What is read, and where need be made, when a store is opened.

use crate::access::AppRules;
use crate::app::{AppState, Part};
use crate::db::{Db, DbInner};
use crate::engine::{Batch, Direction, Engine, Space, Value};
use crate::error::{OpenError, StoreError};
use crate::record::{AclRecord, BlobId, Clock, DbId, DbRecord, DbState, FORMAT, PartCount, decode, encode, key};
use crate::store::StoreInner;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::Arc;

/// The file beside the engine that tells the format, so that a store of a later version isn't even opened: an engine
/// takes up its journal when it is.
const FORMAT_FILE: &str = "format";

/// Refuses a store of a later version, before its engine is opened.
///
/// # Errors
/// [`OpenError::Newer`]; or the file can't be read.
pub(crate) fn check_format_file(path: &Path) -> Result<(), OpenError> {
    let text = match std::fs::read_to_string(path.join(FORMAT_FILE)) {
        Ok(text) => text,
        // A new store, or one of before there was the file.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(OpenError::Io { path: path.to_owned(), source }),
    };
    match text.trim().parse() {
        Ok(found) if found > FORMAT => Err(OpenError::Newer { path: path.to_owned(), found, known: FORMAT }),
        // The engine tells, too.
        _ => Ok(()),
    }
}

/// Notes the format beside the engine, once that has been opened.
///
/// # Errors
/// The file can't be written.
pub(crate) fn note_format_file(path: &Path) -> Result<(), OpenError> {
    let (file, text) = (path.join(FORMAT_FILE), format!("{FORMAT}\n"));
    if std::fs::read_to_string(&file).is_ok_and(|known| known == text) {
        return Ok(());
    }
    // It may be lost in a power cut: the engine has the number as well.
    std::fs::write(&file, text).map_err(|source| OpenError::Io { path: path.to_owned(), source })
}

pub(crate) fn read_format(engine: &dyn Engine, path: &Path) -> Result<Clock, OpenError> {
    let damaged = |what: &str| OpenError::Damaged { path: path.to_owned(), what: what.to_owned() };
    let Some(format) = engine.get(Space::Meta, key::FORMAT)? else {
        let mut batch = Batch::default();
        batch.put(Space::Meta, key::FORMAT.to_vec(), encode(&FORMAT));
        engine.commit(batch, true)?;
        return Ok(Clock { next_db: 1, ..Clock::default() });
    };
    let found: u32 = decode(&format, "the format").map_err(|e| damaged(&e.to_string()))?;
    if found > FORMAT {
        return Err(OpenError::Newer { path: path.to_owned(), found, known: FORMAT });
    }
    match engine.get(Space::Meta, key::CLOCK)? {
        Some(clock) => decode(&clock, "the clock").map_err(|e| damaged(&e.to_string())),
        None => Ok(Clock { next_db: 1, ..Clock::default() }),
    }
}

/// The store's history (see [`crate::Store::history`]), made if there is none or if sequences will be given again.
pub(crate) fn read_history(engine: &dyn Engine, anew: bool) -> Result<String, StoreError> {
    if !anew && let Some(history) = engine.get(Space::Meta, key::HISTORY)? {
        return decode(&history, "the store's history");
    }
    let history = hex::encode(rand::random::<[u8; 4]>());
    let mut batch = Batch::default();
    batch.put(Space::Meta, key::HISTORY.to_vec(), encode(&history));
    engine.commit(batch, true)?;
    Ok(history)
}

fn read_all<T: DeserializeOwned>(
    engine: &dyn Engine,
    prefix: &[u8],
    what: &'static str,
) -> Result<Vec<(Value, T)>, StoreError> {
    let snapshot = engine.snapshot();
    let mut out = Vec::new();
    for item in snapshot.range(Space::Meta, prefix, &key::after(prefix), Direction::Forward) {
        let (key, value) = item?;
        out.push((key, decode(&value, what)?));
    }
    Ok(out)
}

pub(crate) fn load_databases(inner: &Arc<StoreInner>, new_instances: bool) -> Result<(), StoreError> {
    let engine = inner.engine.as_ref();
    let mut batch = Batch::default();
    for (name_key, mut record) in read_all::<DbRecord>(engine, key::DB, "a database")? {
        let name = String::from_utf8(name_key[key::DB.len()..].to_vec())
            .map_err(|_| StoreError::Damaged("a database's name"))?;
        if new_instances {
            record.instance = rand::random();
            batch.put(Space::Meta, name_key.to_vec(), encode(&record));
        }
        let id = record.id;
        let state = match engine.get(Space::Meta, &key::state(id))? {
            Some(state) => decode(&state, "a database's counts")?,
            None => DbState::default(),
        };
        // A database of an earlier version has none: its sequences are shown as they are.
        let first = match engine.get(Space::Meta, &key::first(id))? {
            Some(first) => decode(&first, "where a database began")?,
            None => 0,
        };
        let app = load_app(engine, id, &record.rules)?;
        let db = Db::new(DbInner::new(inner, name.clone(), record, first, state, app));
        inner.dbs.write().insert(name, db);
    }
    // Uploads that no document took: their bytes are nobody's.
    for (upload, chunks) in read_all::<(DbId, BlobId)>(engine, key::UPLOAD, "an upload")? {
        let (lo, hi) = (key::chunk(chunks.0, chunks.1, 0), key::chunk(chunks.0, chunks.1, u32::MAX));
        for item in engine.snapshot().range(Space::Blobs, &lo, &hi, Direction::Forward) {
            batch.delete(Space::Blobs, item?.0.to_vec());
        }
        batch.delete(Space::Meta, upload.to_vec());
    }
    if !batch.is_empty() {
        engine.commit(batch, true)?;
    }
    Ok(())
}

fn load_app(engine: &dyn Engine, id: DbId, rules: &str) -> Result<AppState, StoreError> {
    let rules = if rules.is_empty() {
        AppRules::default()
    } else {
        let value = serde_json::from_str(rules).map_err(|_| StoreError::Damaged("an app's rules"))?;
        AppRules::parse(&value).map_err(|_| StoreError::Damaged("an app's rules"))?
    };
    let of = |prefix: &[u8]| key::meta(prefix, &[&id.to_be_bytes()]);
    let readers = read_all::<Vec<String>>(engine, &of(key::PART), "a partial database")?;
    let counts = read_all::<PartCount>(engine, &of(key::PART_COUNT), "counts of a partial database")?;
    if readers.len() != counts.len() {
        return Err(StoreError::Damaged("a partial database without counts"));
    }
    let part = |((_, readers), (_, count))| Part { readers, count };
    let parts = readers.into_iter().zip(counts).map(part).collect();
    let acls = read_all::<AclRecord>(engine, &of(key::ACL), "an access pair")?;
    Ok(AppState::load(rules, parts, acls.into_iter().map(|(_, r)| r).collect()))
}
