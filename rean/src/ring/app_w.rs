//! `w` of an app's settings, `_ring/app:NAME`: on how many pods a write into the app is to be, unless the request says
//! otherwise.

use std::collections::HashMap;

use adea_ring::config::MAX_W;
use rean_store::StoreError;
use serde_json::Value;

use crate::apps::PREFIX;
use crate::pod::Pod;
use crate::ring::ring_doc::{self, ring_db};

/// Reads the member of an app's settings.
///
/// # Errors
/// What is wrong with it.
pub fn parse(settings: &Value) -> Result<Option<usize>, String> {
    match settings.get("w") {
        None => Ok(None),
        Some(value) => {
            let w = value.as_u64().and_then(|w| usize::try_from(w).ok()).filter(|w| (1..=MAX_W).contains(w));
            w.map(Some).ok_or_else(|| format!("`w` must be from 1 to {MAX_W}"))
        }
    }
}

/// Puts in force what the settings of all apps say. Blocking.
///
/// # Errors
/// When the store fails.
pub fn load(pod: &Pod) -> Result<(), StoreError> {
    let mut all = HashMap::new();
    ring_doc::each(&ring_db(pod)?, PREFIX, |id, leaf| {
        let name = id.strip_prefix(PREFIX).unwrap_or(id);
        match parse(&Value::Object(leaf.body)) {
            Ok(Some(w)) => {
                all.insert(name.to_owned(), w);
            }
            Ok(None) => {}
            Err(reason) => tracing::error!(app = name, reason, "an app's settings can't be read"),
        }
        true
    })?;
    *pod.ring.app_w.write() = all;
    Ok(())
}
