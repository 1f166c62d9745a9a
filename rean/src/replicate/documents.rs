//! The documents of `_replicator`: each is a replication that is started when it is written, again at each start of the
//! pod, and ended when it is deleted (<https://docs.couchdb.org/en/stable/replication/replicator.html>).

use std::sync::Arc;
use std::time::Duration;

use adea_ring::Identity;
use adea_ring::identity::{ADMIN_ROLE, SYSTEM_NAME};
use rean_store::{Author, Db, Edit, FeedError, FeedRow, Mode, Rev, Scope, Since, StoreError, Who, Write};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::job::{Job, Origin, Outcome};
use super::moment::Moment;
use super::registry::{Replications, Started};
use super::spec::Spec;
use crate::error::ApiError;
use crate::hub::News;
use crate::pod::Pod;
use crate::workers::Stop;

/// The database.
pub const DATABASE: &str = "_replicator";
/// What the members that the pod writes begin with.
const OWN_MEMBERS: &str = "_replication_";
/// Documents that are read at once.
const PAGE_ROWS: usize = 100;
/// A look without being told, in case one was missed.
const PAUSE: Duration = Duration::from_secs(60);
/// Tries to write a state while others write the document.
const TRIES: usize = 5;

/// What a document is told of its replication.
pub enum Told<'a> {
    /// It is done.
    Completed,
    /// It can't be done.
    Failed(&'a str),
    /// It fails again and again, and is tried on.
    Crashing(&'a str),
    /// It goes on after that.
    Running,
}

/// Checks an edit of `_replicator` before it is written, and notes whose it is. `replicated` edits bring their revision,
/// so their body stays as it is.
///
/// # Errors
/// 403 `forbidden` with what is wrong, in CouchDB's manner.
pub fn check(mut edit: Edit, author: &Author, replicated: bool) -> Result<Edit, ApiError> {
    if edit.deleted || edit.id.starts_with("_design/") {
        return Ok(edit);
    }
    let mut body: Map<String, Value> = serde_json::from_slice(&edit.body).map_err(|_| ApiError::invalid_json())?;
    Spec::parse(&body).map_err(ApiError::forbidden)?;
    if !replicated {
        body.insert("owner".to_owned(), author.name().into());
        edit.body = Value::Object(body).to_string().into();
    }
    Ok(edit)
}

/// Runs the replications of the documents while this pod takes the writes, until it is told to stop; then it ends them.
///
/// # Errors
/// When the store fails; the supervisor starts it again, and it begins anew: what runs is left as it is.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    let mut roles = pod.ring.gate.roles();
    while !stop.is_stopped() {
        if pod.ring.is_master() {
            let is_over = follow_all(&pod, &mut stop).await?;
            pod.replications.stop().await;
            if is_over {
                return Ok(());
            }
            continue;
        }
        tokio::select! {
            Ok(()) = roles.changed() => {}
            () = stop.stopped() => {}
        }
    }
    Ok(())
}

/// Follows the database until another pod takes the writes (`false`), or until the pod stops.
async fn follow_all(pod: &Arc<Pod>, stop: &mut Stop) -> Result<bool, String> {
    let Some(db) = pod.store.db(DATABASE) else {
        return Err("there is no _replicator".to_owned());
    };
    let mut roles = pod.ring.gate.roles();
    let mut news = pod.hub.subscribe(&db);
    let mut feed = db.feed(&Scope::All, Since::Start).map_err(|error: FeedError| error.to_string())?;
    let mut changes = Vec::new();
    loop {
        changes.clear();
        if news.take(&mut changes) == News::Ended || stop.is_stopped() {
            return Ok(true);
        }
        if !pod.ring.is_master() {
            return Ok(false);
        }
        loop {
            let rows = feed.next_page(PAGE_ROWS).map_err(|error| error.to_string())?;
            for row in &rows {
                follow(pod, &db, row).await.map_err(|error| error.to_string())?;
            }
            if feed.caught_up() {
                break;
            }
        }
        tokio::select! {
            () = news.changed() => {}
            Ok(()) = roles.changed() => {}
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.stopped() => {}
        }
    }
}

/// Does what a changed document asks for.
async fn follow(pod: &Arc<Pod>, db: &Db, row: &FeedRow) -> Result<(), StoreError> {
    if row.id.starts_with("_design/") {
        return Ok(());
    }
    let running = pod.replications.of_doc(&row.id);
    let stored = Stored::read(db, &row.id)?;
    // A state that stays: what is done is done, until somebody writes the document without it.
    let Some(stored) = stored.filter(|stored| !stored.is_at_end()) else {
        if let Some(job) = running {
            pod.replications.cancel(&job).await;
        }
        return Ok(());
    };
    let origin = Origin { doc_id: row.id.to_string(), fingerprint: stored.fingerprint() };
    if let Some(job) = running {
        if job.origin.as_ref() == Some(&origin) {
            return Ok(());
        }
        pod.replications.cancel(&job).await;
    }
    let was_crashing = stored.state() == Some("crashing");
    let started = match stored.spec(pod) {
        Ok((spec, owner)) => Replications::start(pod, spec, &owner, Some(origin.clone())),
        Err(reason) => {
            write_state(pod, &origin, &[("_replication_state", "failed".into()), reason_member(&reason)]).await;
            return Ok(());
        }
    };
    let reason = match started {
        Started::New(job) => {
            if was_crashing {
                job.note_told_of_faults();
            }
            return Ok(());
        }
        Started::Known(job) => {
            let by = job.origin.as_ref().map_or("by _replicate", |origin| origin.doc_id.as_str());
            format!("Replication {} was already started: {by}", job.id)
        }
        Started::TooMany => "This pod has too many replications.".to_owned(),
    };
    write_state(pod, &origin, &[("_replication_state", "failed".into()), reason_member(&reason)]).await;
    Ok(())
}

fn reason_member(reason: &str) -> (&'static str, Value) {
    ("_replication_state_reason", reason.into())
}

/// Tells the document of a job how that ended.
pub async fn tell_end(pod: &Arc<Pod>, job: &Job, outcome: &Outcome) {
    match outcome {
        Outcome::Completed(_) => tell(pod, job, Told::Completed).await,
        Outcome::Failed(fault) => tell(pod, job, Told::Failed(fault.reason())).await,
        // The document is gone, or has changed, or the next start of the pod goes on.
        Outcome::Cancelled => {}
    }
}

/// Tells the document of a job, if it is from one.
pub async fn tell(pod: &Arc<Pod>, job: &Job, told: Told<'_>) {
    let Some(origin) = &job.origin else {
        return;
    };
    let mut members: Vec<(&str, Value)> = vec![("_replication_id", job.id.clone().into())];
    match told {
        Told::Completed => {
            members.push(("_replication_state", "completed".into()));
            members.push(("_replication_stats", job.progress.lock().info()));
        }
        Told::Failed(reason) => {
            members.push(("_replication_state", "failed".into()));
            members.push(reason_member(reason));
        }
        Told::Crashing(reason) => {
            members.push(("_replication_state", "crashing".into()));
            members.push(reason_member(reason));
        }
        Told::Running => members.push(("_replication_state", "running".into())),
    }
    write_state(pod, origin, &members).await;
}

/// Writes what the pod knows into the document, unless that has been changed to ask for something else.
async fn write_state(pod: &Arc<Pod>, origin: &Origin, members: &[(&str, Value)]) {
    // Another pod has taken the job over.
    let Some(_pass) = pod.ring.gate.enter() else {
        return;
    };
    let Some(db) = pod.store.db(DATABASE) else {
        return;
    };
    for _ in 0..TRIES {
        let stored = match Stored::read(&db, &origin.doc_id) {
            Ok(Some(stored)) if stored.fingerprint() == origin.fingerprint => stored,
            Ok(_) => return,
            Err(error) => {
                tracing::error!(%error, "a replication's document could not be read");
                return;
            }
        };
        let mut body = stored.body;
        body.retain(|name, _| !name.starts_with(OWN_MEMBERS));
        for (name, value) in members {
            body.insert((*name).to_owned(), value.clone());
        }
        body.insert("_replication_state_time".to_owned(), Moment::now().iso8601().into());
        let edit = Edit {
            id: origin.doc_id.clone(),
            parent: Some(stored.rev),
            history: Vec::new(),
            deleted: false,
            body: Value::Object(body).to_string().into(),
            access: None,
            attachments: Vec::new(),
        };
        let author = Author::admin(Who { name: Identity::system().name, roles: Vec::new() });
        match pod.write_one(&db, Write { edits: vec![edit], author, mode: Mode::Interactive }).await {
            Ok(_) => return,
            Err(error) if error.status == http::StatusCode::CONFLICT => {}
            Err(error) => {
                tracing::error!(reason = error.cause(), "a replication's state could not be written");
                return;
            }
        }
    }
    tracing::warn!(doc = origin.doc_id, "a replication's state could not be written: its document changes too fast");
}

/// A live document of the database.
pub struct Stored {
    rev: Rev,
    body: Map<String, Value>,
}

impl Stored {
    /// Reads it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn read(db: &Db, id: &str) -> Result<Option<Self>, StoreError> {
        let Some(doc) = db.doc(&Scope::All, id)? else {
            return Ok(None);
        };
        let winner = doc.winner();
        if winner.deleted {
            return Ok(None);
        }
        let body = match winner.body {
            Some(at) => db.body(at)?,
            None => None,
        };
        let body = body.and_then(|body| serde_json::from_slice(&body.json).ok()).unwrap_or_default();
        Ok(Some(Self { rev: winner.rev.clone(), body }))
    }

    fn state(&self) -> Option<&str> {
        self.body.get("_replication_state").and_then(Value::as_str)
    }

    fn is_at_end(&self) -> bool {
        matches!(self.state(), Some("completed" | "failed"))
    }

    /// Of what the document asks for, without what the pod wrote.
    fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (name, value) in self.body.iter().filter(|(name, _)| !name.starts_with(OWN_MEMBERS)) {
            hash.update(format!("{name}\n{value}\n"));
        }
        hex::encode(hash.finalize())
    }

    /// What is to be replicated, and as whom: only administrators write here, so its owner is one.
    fn spec(&self, pod: &Pod) -> Result<(Spec, Identity), String> {
        let spec = Spec::parse_with(&pod.settings.get(), &self.body)?;
        let owner = self.body.get("owner").and_then(Value::as_str).ok_or("the document has no `owner`")?;
        // A document that was replicated brings its own; what the pod does is believed without a check.
        if owner == SYSTEM_NAME {
            return Err(format!("`owner` can't be {SYSTEM_NAME}, the pod itself"));
        }
        Ok((spec, Identity { name: Some(owner.to_owned()), roles: vec![ADMIN_ROLE.to_owned()] }))
    }

    /// As `_scheduler/docs` tells of it.
    pub fn describe(&self, pod: &Pod, id: &str) -> Value {
        let shown = |name: &str| match Spec::parse(&self.body) {
            Ok(spec) if name == "source" => Value::from(spec.source.shown()),
            Ok(spec) => Value::from(spec.target.shown()),
            Err(_) => Value::Null,
        };
        let own = |name: &str| self.body.get(&format!("{OWN_MEMBERS}{name}")).cloned().unwrap_or_default();
        let info = match own("state_reason") {
            Value::Null => own("stats"),
            reason => json!({ "error": reason }),
        };
        let mut told = json!({
            "database": DATABASE,
            "doc_id": id,
            "id": own("id"),
            "node": crate::databases::NODE,
            "source": shown("source"),
            "target": shown("target"),
            "source_proxy": Value::Null,
            "target_proxy": Value::Null,
            "state": self.state().unwrap_or("initializing"),
            "info": info,
            "error_count": 0,
            "last_updated": own("state_time"),
            "start_time": own("state_time"),
        });
        if let Some(job) = pod.replications.of_doc(id)
            && let (Some(told), Value::Object(state)) = (told.as_object_mut(), job.describe_state())
        {
            told.extend(state);
        }
        told
    }
}
