//! What is done at once with documents that links have brought, before the link goes on.
//!
//! A database must be there before its rows, rules must hold before the documents that were placed by them, and who has
//! read their own writes at a follower must find the database that they made.

use std::collections::BTreeSet;
use std::sync::Arc;

use adea_ring::identity::SYSTEM_NAME;
use rean_store::{WriteError, Written};

use crate::apps;
use crate::databases::blocking;
use crate::pod::Pod;
use crate::ring::databases;
use crate::target::{System, Target};

/// Takes up what was written; does nothing for what didn't come from a pod of the ring. What fails is logged: the
/// workers try again.
pub async fn take_up(pod: &Arc<Pod>, target: &Target, written: &[Result<Written, WriteError>]) {
    if target.who.name.as_deref() != Some(SYSTEM_NAME) {
        return;
    }
    let changed = written.iter().flatten().filter(|written| written.changed);
    for diverged in changed.clone().filter(|written| written.diverged) {
        pod.ring.records.found.add(target.db.name(), &diverged.id);
    }
    if target.system != System::Ring {
        return;
    }
    let named = |prefix: &str| -> BTreeSet<String> {
        changed.clone().filter_map(|written| written.id.strip_prefix(prefix)).map(str::to_owned).collect()
    };
    for name in named(databases::PREFIX) {
        if let Err(error) = databases::settle_aside(pod, &name).await {
            tracing::error!(database = name, reason = error.cause(), "a database could not be set up");
        }
    }
    for name in named(apps::PREFIX) {
        let Some(app) = pod.store.db(&name) else { continue };
        let for_apps = Arc::clone(pod);
        let applied = blocking(move || apps::apply(&for_apps, &app)).await;
        if let Err(error) | Ok(Err(error)) = applied.map(|applied| applied.map_err(Into::into)) {
            tracing::error!(app = name, reason = error.cause(), "the rules of an app could not be put in force");
        }
    }
}
