//! Access rules of apps: the `app:NAME` documents of `_ring`, put in force.
//!
//! The worker is a reconciler: at start, at each commit to `_ring` and now and then it compares each app's rules with
//! its document, sets what differs, and lets the store place the documents anew, one app after the other. It can be
//! cut off anywhere; the next pass goes on.

use std::sync::Arc;
use std::time::Duration;

use rean_store::access::AppRules;
use rean_store::{Db, DbKind, Edit, Scope, StoreError};
use serde_json::Value;

use crate::error::ApiError;
use crate::hub::News;
use crate::pod::Pod;
use crate::workers::Stop;

/// What the id of an app's settings starts with.
const PREFIX: &str = "app:";
/// A pass without an occasion: rules that could not be applied are tried again after this long.
const PAUSE: Duration = Duration::from_secs(60);

/// Checks an edit of `_ring` before it is stored.
///
/// # Errors
/// 400 naming the member that is wrong.
pub fn check(edit: &Edit) -> Result<(), ApiError> {
    if edit.deleted || !edit.id.starts_with(PREFIX) {
        return Ok(());
    }
    parse(&edit.body).map(|_| ()).map_err(|reason| ApiError::bad_request(format!("{}: {reason}", edit.id)))
}

fn parse(body: &[u8]) -> Result<AppRules, String> {
    let value: Value = serde_json::from_slice(body).map_err(|_| "the document can't be read".to_owned())?;
    AppRules::parse(&value).map_err(|error| error.to_string())
}

/// Puts the rules of one app in force, if they aren't. Blocking.
///
/// # Errors
/// When the store fails. Rules that don't parse are logged and leave those in force as they are.
pub fn apply(pod: &Pod, app: &Db) -> Result<(), StoreError> {
    let Some(ring) = pod.store.db("_ring") else {
        return Ok(());
    };
    let id = format!("{PREFIX}{}", app.name());
    let body = match ring.doc(&Scope::All, &id)? {
        Some(doc) if !doc.winner().deleted => match doc.winner().body {
            Some(at) => ring.body(at)?,
            None => None,
        },
        _ => None,
    };
    let rules = match body {
        None => AppRules::default(),
        Some(body) => match parse(&body.json) {
            Ok(rules) => rules,
            Err(reason) => {
                tracing::error!(app = app.name(), reason, "an app's rules can't be read");
                return Ok(());
            }
        },
    };
    // Does nothing if they are the same.
    app.set_rules(rules)
}

/// Keeps the rules in force until it is told to stop.
///
/// # Errors
/// When the store fails; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    let Some(ring) = pod.store.db("_ring") else {
        return Err("there is no _ring".to_owned());
    };
    let mut news = pod.hub.subscribe(&ring);
    let mut changes = Vec::new();
    loop {
        changes.clear();
        if news.take(&mut changes) == News::Ended {
            return Ok(());
        }
        let pass_pod = Arc::clone(&pod);
        let pass_stop = stop.clone();
        tokio::task::spawn_blocking(move || pass(&pass_pod, &pass_stop))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        tokio::select! {
            () = news.changed() => {}
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.stopped() => return Ok(()),
        }
    }
}

/// One look at all apps.
fn pass(pod: &Pod, stop: &Stop) -> Result<(), StoreError> {
    for name in pod.store.db_names() {
        let app = pod.store.db(&name).filter(|db| db.kind() == DbKind::App);
        let Some(app) = app else { continue };
        if stop.is_stopped() {
            return Ok(());
        }
        match place(pod, &app) {
            // Deleted meanwhile.
            Ok(()) | Err(StoreError::Gone) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn place(pod: &Pod, app: &Db) -> Result<(), StoreError> {
    apply(pod, app)?;
    if !app.needs_repartition() {
        return Ok(());
    }
    let task = pod.tasks.begin("access_repartition", app.name());
    app.repartition(&mut |done, total| task.progress(done, total))
}

#[cfg(test)]
mod tests {
    use super::check;
    use rean_store::Edit;

    fn edit(id: &str, body: &'static str) -> Edit {
        Edit {
            id: id.to_owned(),
            parent: None,
            history: Vec::new(),
            deleted: false,
            body: body.as_bytes().into(),
            access: None,
            attachments: Vec::new(),
        }
    }

    #[test]
    fn settings_that_do_not_parse_are_refused_by_name() {
        let error = check(&edit("app:notes", r#"{"rules":5}"#)).expect_err("refused");
        assert_eq!(error.status, 400);
        assert!(error.reason.contains("app:notes") && error.reason.contains("rules"));
        assert!(check(&edit("app:notes", r#"{"create":["role:staff"]}"#)).is_ok());
        assert!(check(&edit("config", r#"{"rules":5}"#)).is_ok());
    }
}
