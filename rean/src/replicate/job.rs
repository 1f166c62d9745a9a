//! One replication as a job: its state, what is told of it, and the loop that runs it until it is done.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adea_ring::Identity;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::documents::{self, Told};
use super::fault::Fault;
use super::moment::Moment;
use super::progress::Progress;
use super::session::Session;
use super::spec::Spec;
use crate::databases::NODE;
use crate::pod::Pod;

/// Events that are kept of a job; CouchDB's `max_history`.
const MAX_EVENTS: usize = 20;
/// Pause after a first fault; it doubles with each that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause: a server that comes back is found within a minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Faults in a row after which a one-shot replication that somebody waits for is given up, some 8 s after the first.
const MAX_FAULTS: u32 = 5;
/// Faults in a row after which the document of a replication tells of them.
const TOLD_FAULTS: u32 = 3;
/// The last checkpoint of a job that ends may take this long.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How a job ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// All is carried over; the answer for who waits.
    Completed(Value),
    /// It can't be done.
    Failed(Fault),
    /// Somebody ended it, or the server stops.
    Cancelled,
}

/// The document of `_replicator` that a job is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its id.
    pub doc_id: String,
    /// Of what it said when the job began.
    pub fingerprint: String,
}

/// A replication.
pub struct Job {
    /// The job.
    pub id: String,
    /// Its checkpoints.
    pub checkpoint_id: String,
    /// What is to be done.
    pub spec: Spec,
    /// As whom databases of this server are used.
    pub who: Identity,
    /// The document that it is from.
    pub origin: Option<Origin>,
    /// How far it is.
    pub progress: Mutex<Progress>,
    started: Moment,
    condition: Mutex<Condition>,
    cancel: watch::Sender<bool>,
    outcome: watch::Sender<Option<Outcome>>,
    /// Whether the document says that it crashes.
    told_of_faults: AtomicBool,
}

struct Condition {
    state: &'static str,
    faults: u32,
    reason: Option<String>,
    updated: Moment,
    events: VecDeque<Value>,
}

impl Job {
    /// A job that has not begun.
    pub fn new(id: String, checkpoint_id: String, spec: Spec, who: Identity, origin: Option<Origin>) -> Self {
        let started = Moment::now();
        let condition =
            Condition { state: "pending", faults: 0, reason: None, updated: started, events: VecDeque::new() };
        let job = Self {
            id,
            checkpoint_id,
            spec,
            who,
            origin,
            progress: Mutex::default(),
            started,
            condition: Mutex::new(condition),
            cancel: watch::Sender::new(false),
            outcome: watch::Sender::new(None),
            told_of_faults: AtomicBool::new(false),
        };
        job.enter("pending", "added", None);
        job
    }

    /// Asks it to end.
    pub fn cancel(&self) {
        self.cancel.send_replace(true);
    }

    /// Waits until somebody asks that.
    pub async fn cancelled(&self) {
        // The sender lives as long as the job.
        let _ = self.cancel.subscribe().wait_for(|cancel| *cancel).await;
    }

    /// Waits for its end.
    pub async fn ended(&self) -> Outcome {
        let mut outcome = self.outcome.subscribe();
        let ended = outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        ended.unwrap_or(Outcome::Cancelled)
    }

    /// Sets how it ended, once.
    pub fn end(&self, ended: Outcome) {
        self.outcome.send_replace(Some(ended));
    }

    /// Notes that it got on.
    pub fn touch(&self) {
        self.condition.lock().updated = Moment::now();
    }

    /// Its state in CouchDB's words.
    pub fn state(&self) -> &'static str {
        self.condition.lock().state
    }

    fn enter(&self, state: &'static str, event: &str, reason: Option<&str>) {
        let mut condition = self.condition.lock();
        condition.state = state;
        condition.reason = reason.map(str::to_owned);
        condition.updated = Moment::now();
        let mut entry = json!({"timestamp": condition.updated.iso8601(), "type": event});
        if let Some(reason) = reason {
            entry["reason"] = reason.into();
        }
        condition.events.push_front(entry);
        condition.events.truncate(MAX_EVENTS);
    }

    /// As `_scheduler/jobs` tells of it.
    pub fn describe(&self) -> Value {
        let condition = self.condition.lock();
        json!({
            "database": self.origin.as_ref().map(|_| documents::DATABASE),
            "id": self.id,
            "pid": Value::Null,
            "source": self.spec.source.shown(),
            "target": self.spec.target.shown(),
            "user": self.who.name,
            "doc_id": self.origin.as_ref().map(|origin| &origin.doc_id),
            "info": self.progress.lock().info(),
            "history": condition.events,
            "node": NODE,
            "start_time": self.started.iso8601(),
        })
    }

    /// What `_scheduler/docs` tells beyond the document.
    pub fn describe_state(&self) -> Value {
        let condition = self.condition.lock();
        let info = match &condition.reason {
            Some(reason) => json!({ "error": reason }),
            None => self.progress.lock().info(),
        };
        json!({
            "id": self.id,
            "state": condition.state,
            "info": info,
            "error_count": condition.faults,
            "last_updated": condition.updated.iso8601(),
            "start_time": self.started.iso8601(),
        })
    }

    /// As `_active_tasks` tells of it; nothing while it waits.
    pub fn task(&self) -> Option<Value> {
        let updated = {
            let condition = self.condition.lock();
            (condition.state == "running").then_some(condition.updated)?
        };
        let mut task = json!({
            "type": "replication",
            "replication_id": self.id,
            "source": self.spec.source.shown(),
            "target": self.spec.target.shown(),
            "continuous": self.spec.continuous,
            "user": self.who.name,
            "database": self.origin.as_ref().map(|_| documents::DATABASE),
            "doc_id": self.origin.as_ref().map(|origin| &origin.doc_id),
            "checkpoint_interval": self.spec.checkpoint_interval_ms,
            "started_on": self.started.unix_s(),
            "updated_on": updated.unix_s(),
            "node": NODE,
            "pid": format!("<0.{}.0>", self.id.get(..8).unwrap_or_default()),
        });
        if let (Some(task), Value::Object(info)) = (task.as_object_mut(), self.progress.lock().info()) {
            task.extend(info);
        }
        Some(task)
    }

    /// Notes that the document says that it crashes, as it did before the pod was started again.
    pub fn note_told_of_faults(&self) {
        self.told_of_faults.store(true, Ordering::Relaxed);
    }

    /// Tells the document that a replication that crashed goes on.
    async fn tell_of_recovery(&self, pod: &Arc<Pod>) {
        if self.told_of_faults.swap(false, Ordering::Relaxed) {
            documents::tell(pod, self, Told::Running).await;
        }
    }
}

/// Runs a job until it is done.
pub async fn drive(pod: &Arc<Pod>, job: &Arc<Job>) -> Outcome {
    let mut faults = 0;
    loop {
        job.enter("running", "started", None);
        let mut session = Session::new(pod, job);
        let written = job.progress.lock().stats.written;
        let result = tokio::select! {
            result = run(pod, job, &mut session) => result,
            () = job.cancelled() => {
                leave(&mut session).await;
                return Outcome::Cancelled;
            }
        };
        let reason = match result {
            Ok(answer) => {
                job.enter("completed", "completed", None);
                return Outcome::Completed(answer);
            }
            Err(fault @ Fault::Fatal { .. }) => {
                job.enter("failed", "failed", Some(fault.reason()));
                return Outcome::Failed(fault);
            }
            Err(Fault::Passing(reason)) => reason,
        };
        leave(&mut session).await;
        if session.went_on || job.progress.lock().stats.written > written {
            faults = 0;
        }
        faults += 1;
        job.enter("crashing", "crashed", Some(&reason));
        job.condition.lock().faults = faults;
        if faults >= MAX_FAULTS && !job.spec.continuous && job.origin.is_none() {
            job.enter("failed", "failed", Some(&reason));
            return Outcome::Failed(Fault::Passing(reason));
        }
        if faults == TOLD_FAULTS && job.origin.is_some() {
            tracing::warn!(replication = job.id, reason, "a replication fails again and again");
            job.note_told_of_faults();
            documents::tell(pod, job, Told::Crashing(&reason)).await;
        }
        let pause = (FIRST_PAUSE * 2_u32.pow((faults - 1).min(10))).min(LONGEST_PAUSE);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = job.cancelled() => return Outcome::Cancelled,
        }
    }
}

/// One run. That it goes on after faults is told as soon as it does.
async fn run(pod: &Arc<Pod>, job: &Arc<Job>, session: &mut Session) -> Result<Value, Fault> {
    session.open().await?;
    job.condition.lock().faults = 0;
    loop {
        if let Some(answer) = session.round().await? {
            return Ok(answer);
        }
        job.tell_of_recovery(pod).await;
    }
}

async fn leave(session: &mut Session) {
    let _ = tokio::time::timeout(LEAVE_TIMEOUT, session.leave()).await;
}
