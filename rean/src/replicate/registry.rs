//! All replications of a pod: at most one for each id.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::Identity;
use futures_util::FutureExt;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::documents;
use super::fault::Fault;
use super::job::{Job, Origin, Outcome, drive};
use super::peer::{Far, far};
use super::spec::Spec;
use crate::pod::Pod;

/// Replications at once; CouchDB's `max_jobs`. One that waits for changes costs a connection or a feed.
const MAX_RUNNING: usize = 500;
/// Replications that are known, with those that wait for a place. Some KiB each.
const MAX_JOBS: usize = 5_000;
/// How long the end of a job is waited for: its last checkpoint, and a little more.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// All of them.
pub struct Replications {
    jobs: Mutex<BTreeMap<String, Arc<Job>>>,
    client: Far,
    places: Arc<Semaphore>,
}

/// What became of the wish to start one.
pub enum Started {
    /// It was started.
    New(Arc<Job>),
    /// There is one for this id already.
    Known(Arc<Job>),
    /// There are too many.
    TooMany,
}

impl Default for Replications {
    fn default() -> Self {
        Self { jobs: Mutex::default(), client: far(), places: Arc::new(Semaphore::new(MAX_RUNNING)) }
    }
}

impl Replications {
    /// Speaks to other servers.
    pub fn client(&self) -> &Far {
        &self.client
    }

    /// A job by its id.
    pub fn get(&self, id: &str) -> Option<Arc<Job>> {
        self.jobs.lock().get(id).map(Arc::clone)
    }

    /// The job of a document of `_replicator`.
    pub fn of_doc(&self, doc_id: &str) -> Option<Arc<Job>> {
        let is_its = |job: &&Arc<Job>| job.origin.as_ref().is_some_and(|origin| origin.doc_id == doc_id);
        self.jobs.lock().values().find(is_its).map(Arc::clone)
    }

    /// All jobs, by id.
    pub fn list(&self) -> Vec<Arc<Job>> {
        self.jobs.lock().values().map(Arc::clone).collect()
    }

    /// What `_active_tasks` tells of them.
    pub fn tasks(&self) -> Vec<Value> {
        self.list().iter().filter_map(|job| job.task()).collect()
    }

    /// Starts a replication in the background, unless one with its id is there.
    pub fn start(pod: &Arc<Pod>, spec: Spec, who: &Identity, origin: Option<Origin>) -> Started {
        let checkpoint_id = spec.checkpoint_id(&pod.uuid, who);
        let id = spec.job_id(&checkpoint_id);
        let acts_as = spec.user_ctx.clone().unwrap_or_else(|| who.clone());
        let job = {
            let mut jobs = pod.replications.jobs.lock();
            if let Some(known) = jobs.get(&id) {
                return Started::Known(Arc::clone(known));
            }
            if jobs.len() >= MAX_JOBS {
                return Started::TooMany;
            }
            let job = Arc::new(Job::new(id.clone(), checkpoint_id, spec, acts_as, origin));
            jobs.insert(id, Arc::clone(&job));
            job
        };
        let mut listed = Listed { pod: Arc::clone(pod), job: Arc::clone(&job), outcome: None };
        tokio::spawn(async move {
            // A panic must not leave the document without a state.
            let outcome = AssertUnwindSafe(Self::run(&listed)).catch_unwind().await.unwrap_or_else(|_| own_fault());
            // The document first: who sees the job gone finds its end there.
            documents::tell_end(&listed.pod, &listed.job, &outcome).await;
            listed.note(outcome);
        });
        Started::New(job)
    }

    async fn run(listed: &Listed) -> Outcome {
        let place = tokio::select! {
            place = Arc::clone(&listed.pod.replications.places).acquire_owned() => place,
            () = listed.job.cancelled() => return Outcome::Cancelled,
        };
        match place {
            Ok(_place) => drive(&listed.pod, &listed.job).await,
            Err(_) => Outcome::Cancelled,
        }
    }

    /// Ends a job and waits until it is gone.
    pub async fn cancel(&self, job: &Arc<Job>) {
        job.cancel();
        if tokio::time::timeout(END_TIMEOUT, job.ended()).await.is_err() {
            tracing::warn!(replication = job.id, "a replication did not end in time");
        }
    }

    /// Ends all of them, each with a last checkpoint.
    pub async fn stop(&self) {
        let jobs = self.list();
        for job in &jobs {
            job.cancel();
        }
        for job in &jobs {
            job.ended().await;
        }
    }
}

fn own_fault() -> Outcome {
    Outcome::Failed(Fault::Passing("the replication ended by a fault of the server".to_owned()))
}

/// Takes the job off the list however its task ends, also by a panic.
struct Listed {
    pod: Arc<Pod>,
    job: Arc<Job>,
    outcome: Option<Outcome>,
}

impl Listed {
    fn note(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        // Off the list first: who waited for the end may start the same again at once.
        self.pod.replications.jobs.lock().remove(&self.job.id);
        self.job.end(self.outcome.take().unwrap_or_else(own_fault));
    }
}
