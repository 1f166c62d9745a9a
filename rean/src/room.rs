//! Room on the disk of the store: how much there is, and what is still taken when there is hardly any.
//!
//! rean looks itself, and is not told by adea: it knows its own folder, which in a container is another mount than adea's;
//! a pod that was started without adea must stop in time as well; and it looks once a second, as a disk fills within a
//! few. What it finds goes to adea with the facts, and from there to the other pods.
//!
//! On a full disk new data is refused with 507. What makes room or keeps the pod well goes on: deletions, purges,
//! compaction, the `_local` documents by which readers remember how far they are, accounts, and `_ring` with its sessions,
//! settings and statuses - but not the archives of software in it. When even a quarter of that room is gone, only
//! deletions and what the pod itself writes are taken. Links bring nothing but `_ring` and `_users` meanwhile: whoever lost
//! their account or their session must not be let in by the one pod whose disk is full.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adea_ring::config::DiskConfig;
use adea_ring::host::DiskLevel;
use http::StatusCode;
use rean_store::Edit;
use tokio::sync::watch;

use crate::edit_in::is_taken;
use crate::error::ApiError;
use crate::pod::Pod;
use crate::target::{System, Target};
use crate::workers::Stop;

/// Between two looks: a disk that takes 500 MB/s fills the room between "low" and "full" in more than that.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A deletion may say why, in bytes; a larger one is a document.
const MAX_TOMBSTONE_BYTES: usize = 4 << 10;
/// What the ids of documents of `_ring` begin with that are software and not settings.
const IMAGE_PREFIX: &str = "image:";

/// The disk of the store.
#[derive(Debug)]
pub struct Room {
    folder: PathBuf,
    level: watch::Sender<DiskLevel>,
    /// Whether even a quarter of what "full" leaves is gone.
    is_dire: AtomicBool,
}

impl Room {
    /// The disk of this folder; nothing is known of it yet.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), level: watch::Sender::default(), is_dire: AtomicBool::new(false) }
    }

    /// How much there is.
    pub fn level(&self) -> DiskLevel {
        *self.level.borrow()
    }

    /// To follow it.
    pub fn levels(&self) -> watch::Receiver<DiskLevel> {
        self.level.subscribe()
    }

    /// Whether no new data is taken.
    pub fn is_full(&self) -> bool {
        self.level() == DiskLevel::Full
    }

    /// Looks. Blocks for as long as the file system takes to answer.
    pub fn look(&self, config: &DiskConfig) {
        let found = match rustix::fs::statvfs(&self.folder) {
            Ok(found) => found,
            Err(error) => {
                // Writes will say the same; a level that isn't known is no reason to refuse them.
                tracing::debug!(%error, "the room on the disk could not be asked for");
                return;
            }
        };
        // `f_bavail`: without what is kept for root.
        let (total, available) =
            (found.f_blocks.saturating_mul(found.f_frsize), found.f_bavail.saturating_mul(found.f_frsize));
        self.note(config, total, available);
    }

    fn note(&self, config: &DiskConfig, total: u64, available: u64) {
        let before = self.level();
        let level = config.level(before, total, available);
        // What remains is to count four times, instead of a quarter of the limits: those are whole MiB, and 0 is none.
        let is_dire = config.level(DiskLevel::Roomy, total, available.saturating_mul(4)) == DiskLevel::Full;
        self.is_dire.store(is_dire, Ordering::Release);
        if level == before {
            return;
        }
        let available_mib = available >> 20;
        match level {
            DiskLevel::Full => {
                tracing::error!(available_mib, "the disk is full: no new data is taken until there is room again");
            }
            DiskLevel::Low => tracing::warn!(available_mib, "there is little room on the disk: make some"),
            DiskLevel::Roomy => tracing::info!(available_mib, "there is room on the disk again"),
        }
        self.level.send_replace(level);
    }
}

/// Looks until it is told to stop.
///
/// # Errors
/// When a look is cut off; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    loop {
        let for_look = Arc::clone(&pod);
        let look = move || for_look.room.look(&for_look.ring.config().disk);
        tokio::task::spawn_blocking(look).await.map_err(|error| error.to_string())?;
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.stopped() => return Ok(()),
        }
    }
}

/// Refuses what needs room on a full disk, whatever it is: uploads, new databases.
///
/// # Errors
/// 507.
pub fn check(pod: &Pod) -> Result<(), ApiError> {
    if pod.room.is_full() { Err(no_room()) } else { Ok(()) }
}

/// Refuses small records for which there is a little room even on a full disk, when that is gone too.
///
/// # Errors
/// 507.
pub fn check_small(pod: &Pod) -> Result<(), ApiError> {
    if pod.room.is_dire.load(Ordering::Acquire) { Err(no_room()) } else { Ok(()) }
}

/// Refuses edits that need room on a full disk. All of a request or none of it: a replicator that is told of single
/// documents goes on without them.
///
/// # Errors
/// 507.
pub fn check_edits(pod: &Pod, target: &Target, edits: &[Edit]) -> Result<(), ApiError> {
    if !pod.room.is_full() || is_taken(target) {
        return Ok(());
    }
    let needed = edits.iter().filter(|edit| !is_deletion(edit));
    for edit in needed {
        match target.system {
            System::Users => check_small(pod)?,
            System::Ring if !edit.id.starts_with(IMAGE_PREFIX) => check_small(pod)?,
            _ => return Err(no_room()),
        }
    }
    Ok(())
}

fn is_deletion(edit: &Edit) -> bool {
    edit.deleted && edit.body.len() <= MAX_TOMBSTONE_BYTES && edit.attachments.is_empty()
}

/// Whether a link brings a document while the disk is full.
pub fn is_brought(db_name: &str, id: &str) -> bool {
    match db_name {
        "_users" => true,
        "_ring" => !id.starts_with(IMAGE_PREFIX),
        _ => false,
    }
}

fn no_room() -> ApiError {
    ApiError::new(
        StatusCode::INSUFFICIENT_STORAGE,
        "insufficient_storage",
        "This pod's disk is full: it takes no new data until its operator makes room. Deletions are taken.",
    )
}

#[cfg(test)]
mod tests {
    use super::{Room, is_brought};
    use adea_ring::config::DiskConfig;
    use adea_ring::host::DiskLevel;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_level_is_told_when_it_changes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let room = Room::new(folder.path());
        let mut levels = room.levels();
        let config = DiskConfig { low_percent: 20.0, low_mib: 0, full_percent: 8.0, full_mib: 0 };
        let mut note = |available: u64| {
            room.note(&config, 100 << 20, available << 20);
            let news = levels.has_changed().expect("the room is there");
            levels.mark_unchanged();
            (news, room.level(), room.is_dire.load(Ordering::Acquire))
        };
        assert_eq!(note(50), (false, DiskLevel::Roomy, false));
        assert_eq!(note(19), (true, DiskLevel::Low, false));
        assert_eq!(note(7), (true, DiskLevel::Full, false));
        assert_eq!(note(1), (false, DiskLevel::Full, true));
        assert_eq!(note(23), (true, DiskLevel::Roomy, false));
        // The real disk has some size, of which not all is free.
        room.look(&DiskConfig { low_percent: 0.0, low_mib: 0, full_percent: 0.0, full_mib: 0 });
        assert_eq!(room.level(), DiskLevel::Roomy);
        let mib = u64::MAX >> 24;
        room.look(&DiskConfig { low_percent: 0.0, low_mib: mib, full_percent: 0.0, full_mib: mib });
        assert_eq!(room.level(), DiskLevel::Full);
    }

    #[test]
    fn settings_and_accounts_come_also_to_a_full_disk() {
        for (db, id, comes) in [
            ("_users", "org.couchdb.user:ann", true),
            ("_ring", "config", true),
            ("_ring", "session:1", true),
            ("_ring", "image:00ff", false),
            ("notes", "a", false),
            ("_replicator", "a", false),
        ] {
            assert_eq!(is_brought(db, id), comes, "{db}/{id}");
        }
    }
}
