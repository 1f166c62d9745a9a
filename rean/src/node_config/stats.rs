//! Figures of a pod: `_stats`, `_system`, `_versions`, as far as they are true here
//! (<https://docs.couchdb.org/en/stable/api/server/common.html#node-node-name-stats>). The proxy has those of requests:
//! `_prometheus` is answered there.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::pod::Pod;

/// Requests of clients since the start.
#[derive(Debug, Default)]
pub struct Traffic {
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Traffic {
    /// Counts a request.
    pub fn count(&self, is_write: bool) {
        let counter = if is_write { &self.writes } else { &self.reads };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// `_stats`, or what is below a path in it.
///
/// # Errors
/// 404 for what isn't counted here.
pub fn stats(pod: &Pod, path: &[&str]) -> Result<Value, ApiError> {
    let gauge = |value: u64, desc: &str| json!({"value": value, "type": "gauge", "desc": desc});
    let counter = |value: u64, desc: &str| json!({"value": value, "type": "counter", "desc": desc});
    let store = pod.store.stats();
    let (reads, writes) = (pod.traffic.reads.load(Ordering::Relaxed), pod.traffic.writes.load(Ordering::Relaxed));
    let all = json!({
        "couchdb": {
            "open_databases": gauge(pod.store.db_names().len() as u64, "number of open databases"),
            "commits": counter(store.commits, "number of commits since the start"),
            "httpd": {
                "requests": counter(reads + writes, "number of HTTP requests"),
                "clients_requesting_changes":
                    gauge(pod.hub.listeners() as u64, "number of clients for continuous _changes"),
            },
        },
        "adea": {
            "reads": counter(reads, "number of clients' requests that only read"),
            "writes": counter(writes, "number of clients' requests that may write"),
            "seq": counter(store.seq, "number of changes in the store, of clients and of other pods"),
            "disk_bytes": gauge(store.disk_bytes, "bytes that the store takes"),
        },
        "couch_replicator": {
            "jobs": {"total": gauge(pod.replications.list().len() as u64, "total number of replicator jobs")},
        },
    });
    path.iter().try_fold(all, |at, name| at.get(*name).cloned()).ok_or_else(ApiError::missing)
}

/// `_system`.
pub fn system(pod: &Pod) -> Value {
    json!({
        "uptime": pod.started.elapsed().as_secs(),
        "memory": {"resident": of_process("VmRSS:").map(|kib| kib * 1024)},
        "threads": of_process("Threads:"),
        "host": pod.ring.state().and_then(|state| state.host.clone()),
        "os_proc_count": 0,
        "stale_proc_count": 0,
        "internal_replication_jobs": 0,
    })
}

/// `_versions`.
pub fn versions() -> Value {
    json!({
        "javascript_engine": {"name": "quickjs"},
        "collation_driver": {"name": "icu4x"},
        "adea": {"version": adea_ring::software::version()},
    })
}

/// A number that the system tells of this process; none where it has no such file.
fn of_process(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
