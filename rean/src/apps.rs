//! Access rules of apps: the `app:NAME` documents of `_ring`, put in force.
//!
//! The worker is a reconciler: at start, at each commit to `_ring` and now and then it compares each app's rules with
//! its document, sets what differs, and lets the store place the documents anew, one app after the other. It can be
//! cut off anywhere; the next pass goes on.

use std::sync::Arc;
use std::time::Duration;

use adea_ring::identity::SYSTEM_NAME;
use rean_store::access::AppRules;
use rean_store::{Author, Db, DbKind, Edit, Scope, StoreError};
use serde_json::Value;

use crate::error::ApiError;
use crate::hub::News;
use crate::node_config;
use crate::pod::Pod;
use crate::ring::{app_w, config_doc, databases, divergence, instructions, status};
use crate::workers::Stop;

/// What the id of an app's settings starts with.
pub const PREFIX: &str = "app:";
/// A pass without an occasion: rules that could not be applied are tried again after this long.
const PAUSE: Duration = Duration::from_secs(60);

/// What the ids of documents of `_ring` begin with that the pods write themselves, and what is said to who tries; and
/// whether an administrator may delete them.
const OWN: [(&str, &str, bool); 4] = [
    (databases::PREFIX, "Databases are made, deleted and set up by requests to themselves.", false),
    (instructions::PREFIX, "Instructions are records of the pods.", false),
    (status::PREFIX, "A pod's status is written by that pod alone.", true),
    (divergence::PREFIX, "Reports of diverged documents are written by the pods.", true),
];

/// Checks an edit of `_ring` before it is stored.
///
/// # Errors
/// 400 naming the member that is wrong; 403 for what only the pods write.
pub fn check(edit: &Edit, author: &Author, replicated: bool) -> Result<(), ApiError> {
    // What the pods pass on has been checked where it was written; refused here, it would be missing here.
    if replicated && author.is_admin() && author.name() == Some(SYSTEM_NAME) {
        return Ok(());
    }
    let own = OWN.iter().find(|(prefix, _, may_delete)| edit.id.starts_with(prefix) && !(*may_delete && edit.deleted));
    if let Some((_, reason, _)) = own {
        return Err(ApiError::forbidden(*reason));
    }
    if edit.deleted {
        return Ok(());
    }
    config_doc::check(edit)?;
    node_config::check(edit)?;
    if !edit.id.starts_with(PREFIX) {
        return Ok(());
    }
    parse(&edit.body).map(|_| ()).map_err(|reason| ApiError::bad_request(format!("{}: {reason}", edit.id)))
}

fn parse(body: &[u8]) -> Result<AppRules, String> {
    let value: Value = serde_json::from_slice(body).map_err(|_| "the document can't be read".to_owned())?;
    app_w::parse(&value)?;
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
    use rean_store::{Author, Edit, Who};

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

    fn named(name: &str) -> Author {
        Author::admin(Who { name: Some(name.to_owned()), roles: Vec::new() })
    }

    #[test]
    fn settings_that_do_not_parse_are_refused_by_name() {
        let root = named("root");
        for (body, member) in [(r#"{"rules":5}"#, "rules"), (r#"{"w":0}"#, "`w`"), (r#"{"w":"2"}"#, "`w`")] {
            let error = check(&edit("app:notes", body), &root, false).expect_err("refused");
            assert_eq!(error.status, 400);
            assert!(error.reason.contains("app:notes") && error.reason.contains(member), "{}", error.reason);
        }
        assert!(check(&edit("app:notes", r#"{"create":["role:staff"],"w":2}"#), &root, false).is_ok());
        assert!(check(&edit("zork", r#"{"rules":5}"#), &root, false).is_ok());
        assert_eq!(check(&edit("config", r#"{"rules":5}"#), &root, false).expect_err("refused").status, 400);
    }

    #[test]
    fn what_the_pods_write_is_theirs() {
        for id in ["db:notes", "instruction:x", "pod:a", "divergence:notes:0"] {
            for replicated in [false, true] {
                assert_eq!(check(&edit(id, "{}"), &named("root"), replicated).expect_err(id).status, 403);
            }
            assert!(check(&edit(id, "{}"), &named("_pod"), true).is_ok());
        }
        let mut gone = edit("pod:a", "{}");
        gone.deleted = true;
        assert!(check(&gone, &named("root"), false).is_ok());
        gone.id = "db:notes".to_owned();
        assert!(check(&gone, &named("root"), false).is_err());
    }
}
