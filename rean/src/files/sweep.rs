//! Removes files that no document has: those whose revisions were compacted or purged away, and those of uploads that a
//! crash has ended.
//!
//! A file goes when this pod has had no document with it for `files.keep_hours`, it was written longer ago than that, and
//! every other pod of the ring says that it has none either. A pod that is away says nothing, so nothing goes until it is
//! back or no longer of the ring: it may have a revision that nobody else has. In a bucket only the write master sweeps; in
//! its folder each pod does. And in a bucket only a ring that is alone there ([`claim`]).

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use adea_ring::PodId;
use futures_util::StreamExt;
use rean_store::{FileKey, FilePlace, StoreError};
use serde::{Deserialize, Serialize};

use crate::databases::blocking;
use crate::files::error::FileError;
use crate::files::{Files, claim, peers};
use crate::pod::Pod;
use crate::ring::{ring_doc, status};
use crate::workers::{Stop, now_s};

/// Between two sweeps. Nothing is urgent here, and a bucket charges for being listed.
const PAUSE: Duration = Duration::from_secs(3_600);
/// The first sweep after a start.
const FIRST: Duration = Duration::from_secs(300);
/// Files without a document that are remembered at once, 50 bytes each; with more, some wait for the next sweep.
const MAX_IDLE: usize = 100_000;

/// Since when there has been no document with a file; the file `idle.json`, which may be lost: then the time begins anew.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Idle {
    since_s: HashMap<String, u64>,
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Files without a document.
    pub idle: usize,
    /// Of these, those that were removed.
    pub removed: usize,
}

/// Sweeps until it is told to stop.
///
/// # Errors
/// When the store fails.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    let mut pause = FIRST;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.stopped() => return Ok(()),
        }
        let swept = tokio::select! {
            swept = sweep(&pod, now_s()) => swept,
            () = stop.stopped() => return Ok(()),
        };
        match swept {
            Ok(swept) if swept.removed > 0 => {
                tracing::info!(removed = swept.removed, "files of no document were removed")
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "files that nobody needs could not be looked for; it is tried again"),
        }
        pause = PAUSE;
    }
}

/// One sweep, as if it were this second.
///
/// # Errors
/// When the storage or the store fails.
pub async fn sweep(pod: &Arc<Pod>, now_s: u64) -> Result<Swept, FileError> {
    let mut swept = Swept::default();
    let mut places = vec![FilePlace::Local];
    if pod.files.place() == FilePlace::S3 && pod.ring.is_master() {
        places.push(FilePlace::S3);
    }
    for place in places {
        if place == FilePlace::S3 && !claim::renew(pod, &pod.files.bucket()?).await? {
            continue;
        }
        let done = sweep_place(pod, place, now_s).await?;
        swept = Swept { idle: swept.idle + done.idle, removed: swept.removed + done.removed };
    }
    Ok(swept)
}

async fn sweep_place(pod: &Arc<Pod>, place: FilePlace, now_s: u64) -> Result<Swept, FileError> {
    let keep_s = pod.files.config().keep_hours.saturating_mul(3_600);
    let note = pod.files.idle_note(place);
    let before = Idle::load(&note);
    let idle = idle(pod, place).await?;
    let mut now = Idle::default();
    let mut due = Vec::new();
    for (key, written_s) in idle {
        let name = key.to_string();
        let since_s = before.since_s.get(&name).copied().unwrap_or(now_s);
        if now_s.saturating_sub(since_s) >= keep_s && now_s.saturating_sub(written_s) >= keep_s {
            due.push(key);
        }
        now.since_s.insert(name, since_s);
    }
    let mut swept = Swept { idle: now.since_s.len(), removed: 0 };
    for some in due.chunks(peers::MAX_ASKED) {
        for key in agreed(pod, some).await? {
            // Pods that were asked have answered: it is looked once more whether one has come here meanwhile.
            if is_needed(pod, key).await? {
                continue;
            }
            pod.files.object(place, key)?.remove().await?;
            now.since_s.remove(&key.to_string());
            swept.removed += 1;
        }
    }
    now.keep(&note);
    Ok(swept)
}

/// The files of a place that this pod has no document of, with the second in which each was written.
async fn idle(pod: &Arc<Pod>, place: FilePlace) -> Result<Vec<(FileKey, u64)>, FileError> {
    // Before the look at the storage: what comes between the two is not taken for idle, since it is young.
    let for_look = Arc::clone(pod);
    let used = blocking(move || used(&for_look)).await.map_err(|error| FileError::Pods(error.cause().to_owned()))?;
    let used = used.map_err(|error| store_failed(&error))?;
    let mut found = match place {
        FilePlace::Local => pod.files.storage.list_local(),
        FilePlace::S3 => pod.files.bucket()?.list(),
    };
    let mut idle = Vec::new();
    while let Some(file) = found.next().await {
        let (key, written_s) = file?;
        if !used.contains(&key) {
            idle.push((key, written_s));
        }
        if idle.len() >= MAX_IDLE {
            break;
        }
    }
    Ok(idle)
}

/// All files of this pod's documents: 16 bytes for at least 1 MiB each.
fn used(pod: &Pod) -> Result<HashSet<FileKey>, StoreError> {
    let mut used = HashSet::new();
    for db in pod.store.db_names().iter().filter_map(|name| pod.store.db(name)) {
        db.each_file(|file| {
            used.insert(file.key);
            std::ops::ControlFlow::Continue(())
        })?;
    }
    Ok(used)
}

async fn is_needed(pod: &Arc<Pod>, key: FileKey) -> Result<bool, FileError> {
    let pod = Arc::clone(pod);
    let needed = blocking(move || pod.files.is_needed(&pod, key)).await;
    needed.map_err(|error| FileError::Pods(error.cause().to_owned()))?.map_err(|error| store_failed(&error))
}

fn store_failed(error: &StoreError) -> FileError {
    FileError::Storage { step: "looking for files in the store", why: error.to_string() }
}

/// Those of these that no other pod of the ring needs; none while one of them doesn't say.
async fn agreed(pod: &Arc<Pod>, keys: &[FileKey]) -> Result<Vec<FileKey>, FileError> {
    let mut agreed = keys.to_vec();
    if pod.ring.is_alone() {
        return Ok(agreed);
    }
    let Some(others) = others(pod).map_err(|error| store_failed(&error))? else { return Ok(Vec::new()) };
    for (id, address) in others {
        if agreed.is_empty() {
            break;
        }
        match peers::ask_needed(pod, &id, &address, &agreed).await {
            Ok(needed) => agreed.retain(|key| !needed.contains(key)),
            Err(why) => {
                tracing::debug!(peer = %id, why, "idle files are kept: a pod does not say whether it needs them");
                return Ok(Vec::new());
            }
        }
    }
    Ok(agreed)
}

/// All other pods that are of the ring; `None` if some of them are away for so long that adea doesn't know them any more,
/// or it has told nothing yet.
fn others(pod: &Pod) -> Result<Option<Vec<(PodId, String)>>, StoreError> {
    let Some(state) = pod.ring.state() else { return Ok(None) };
    let is_of_ring = |id: &PodId| id != pod.ring.me() && !pod.ring.is_removed(id);
    let mut is_complete = true;
    if let Some(ring) = pod.store.db("_ring") {
        ring_doc::each(&ring, status::PREFIX, |doc, _| {
            let id: Option<PodId> = doc.strip_prefix(status::PREFIX).and_then(|id| id.parse().ok());
            is_complete = id.is_none_or(|id| !is_of_ring(&id) || state.get(&id).is_some());
            is_complete
        })?;
    }
    let members = state.members.iter().filter(|known| is_of_ring(&known.member.id));
    Ok(is_complete.then(|| members.map(|known| (known.member.id.clone(), known.member.address.clone())).collect()))
}

impl Files {
    fn idle_note(&self, place: FilePlace) -> PathBuf {
        self.root.join(match place {
            FilePlace::Local => "idle.json",
            FilePlace::S3 => "idle-s3.json",
        })
    }
}

impl Idle {
    fn load(path: &Path) -> Self {
        std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Written beside and moved into place, so that a crash leaves the old one.
    fn keep(&self, path: &Path) {
        let beside = path.with_extension("new");
        let text = serde_json::to_vec(self).unwrap_or_default();
        if let Err(error) = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, path)) {
            tracing::warn!(%error, "since when files have no document could not be noted: the time begins anew");
        }
    }
}
