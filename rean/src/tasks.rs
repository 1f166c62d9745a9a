//! Background work and its progress: what `_active_tasks` tells, and the pod's workers.
//!
//! Source: <https://docs.couchdb.org/en/stable/api/server/common.html#active-tasks>.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::files::{Files, fetch, resumable, sweep};
use crate::pod::Pod;
use crate::replicate::documents;
use crate::ring::instructions::{Recorder, carry_out, prune};
use crate::ring::links::{self, Links};
use crate::ring::{config_doc, databases, divergence, images, pods, removal, status};
use crate::views::indexer;
use crate::workers::{Stop, Workers, now_s};
use crate::{apps, cleaner, readers, room};

/// Tasks that are shown at once. Each is a piece of background work, of which there are never many.
const MAX_TASKS: usize = 1_000;

/// All background work of a pod.
#[derive(Default)]
pub struct Tasks {
    running: Arc<Mutex<Running>>,
    /// The workers.
    pub workers: Workers,
}

#[derive(Default)]
struct Running {
    last: u64,
    tasks: BTreeMap<u64, State>,
}

struct State {
    kind: &'static str,
    database: String,
    /// What of it, where it is the work of one design document.
    design_document: Option<String>,
    done: u64,
    total: u64,
    started_on: u64,
    updated_on: u64,
}

/// Starts the workers of a pod. Inside Tokio, once.
pub fn start(pod: &Arc<Pod>) {
    Files::install(pod);
    Links::install(pod);
    Recorder::install(pod);
    // The first that is told of the configuration is not to be what it isn't.
    if let Err(error) = config_doc::pass(pod) {
        tracing::error!(%error, "the ring's settings could not be read");
    }
    // Before the first write.
    pod.room.look(&pod.ring.config().disk);
    start_one(pod, "room", room::run);
    start_one(pod, "databases", databases::run);
    start_one(pod, "links", links::run);
    start_one(pod, "ring_settings", config_doc::run);
    start_one(pod, "upgrade", images::run);
    start_one(pod, "apps", apps::run);
    start_one(pod, "readers", readers::run);
    start_one(pod, "replications", documents::run);
    start_one(pod, "sessions", cleaner::run);
    start_one(pod, "instructions", carry_out::run);
    start_one(pod, "instructions_done", prune::run);
    start_one(pod, "divergences", divergence::run);
    start_one(pod, "status", status::run);
    start_one(pod, "pods", pods::run);
    start_one(pod, "removed_pods", removal::run);
    start_one(pod, "indexer", indexer::run);
    start_one(pod, "files", fetch::run);
    start_one(pod, "unused_files", sweep::run);
    start_one(pod, "uploads", resumable::run);
}

fn start_one<W>(pod: &Arc<Pod>, name: &'static str, work: impl Fn(Arc<Pod>, Stop) -> W + Send + 'static)
where
    W: Future<Output = Result<(), String>> + Send + 'static,
{
    let pod = Arc::clone(pod);
    pod.clone().tasks.workers.start(name, move |stop| work(Arc::clone(&pod), stop));
}

impl Tasks {
    /// Nothing running.
    pub fn new() -> Self {
        Self::default()
    }

    /// Shows a piece of work until the handle is dropped.
    pub fn begin(&self, kind: &'static str, database: &str) -> Task {
        self.begin_for(kind, database, None)
    }

    /// As [`Tasks::begin`], for a design document's indexes.
    pub fn begin_for(&self, kind: &'static str, database: &str, design_document: Option<&str>) -> Task {
        let mut running = self.running.lock();
        running.last += 1;
        let id = running.last;
        if running.tasks.len() < MAX_TASKS {
            running.tasks.insert(
                id,
                State {
                    kind,
                    database: database.to_owned(),
                    design_document: design_document.map(str::to_owned),
                    done: 0,
                    total: 0,
                    started_on: now_s(),
                    updated_on: now_s(),
                },
            );
        }
        Task { running: Arc::clone(&self.running), id }
    }

    /// What `_active_tasks` tells.
    pub fn list(&self) -> Vec<Value> {
        let running = self.running.lock();
        running
            .tasks
            .iter()
            .map(|(id, task)| {
                let mut shown = json!({
                    "type": task.kind,
                    "database": task.database,
                    "progress": percent(task.done, task.total),
                    "changes_done": task.done,
                    "total_changes": task.total,
                    "started_on": task.started_on,
                    "updated_on": task.updated_on,
                    "node": crate::databases::NODE,
                    "pid": format!("<0.{id}.0>"),
                });
                if let Some(design) = &task.design_document {
                    shown["design_document"] = json!(design);
                }
                shown
            })
            .collect()
    }

    /// Stops the workers, with a deadline.
    pub async fn stop(&self) {
        self.workers.stop().await;
    }
}

fn percent(done: u64, total: u64) -> u64 {
    match total {
        0 => 0,
        _ => (u128::from(done.min(total)) * 100 / u128::from(total)) as u64,
    }
}

/// A piece of work that is shown.
pub struct Task {
    running: Arc<Mutex<Running>>,
    id: u64,
}

impl Task {
    /// How far it is.
    pub fn progress(&self, done: u64, total: u64) {
        if let Some(task) = self.running.lock().tasks.get_mut(&self.id) {
            task.done = done;
            task.total = total;
            task.updated_on = now_s();
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.running.lock().tasks.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::Tasks;

    #[test]
    fn a_task_is_shown_while_it_runs() {
        let tasks = Tasks::new();
        let task = tasks.begin("access_repartition", "notes");
        task.progress(50, 200);
        let shown = tasks.list();
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0]["type"], "access_repartition");
        assert_eq!(shown[0]["progress"], 25);
        drop(task);
        assert!(tasks.list().is_empty());
    }
}
