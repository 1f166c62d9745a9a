//! Uploads in several requests, as far as they have come: for each a file with its bytes and one that says what it is to
//! become. They outlive a restart, and not a day without a word.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// Uploads without a word for so long are dropped, in seconds: a day, so that one can be gone on with tomorrow.
pub const EXPIRES_S: u64 = 24 * 3_600;
/// How long it is remembered that one is done, in seconds: for a client that has not heard it.
const DONE_S: u64 = 3_600;
/// Uploads of one user.
const MAX_EACH: usize = 20;
/// Uploads altogether.
const MAX_ALL: usize = 1_000;
/// All bytes that have come of one user's, and of all, as a multiple of the largest attachment. What is only announced
/// takes no room.
const SHARE_EACH: u64 = 2;
const SHARE_ALL: u64 = 16;
/// How long an upload must have been silent, of which nothing has come yet, before it makes room for another one, in
/// seconds: whoever means it sends at once.
const EMPTY_PATIENCE_S: u64 = 60;

/// What an upload is to become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Who sends it; nobody for who isn't logged in.
    pub owner: Option<String>,
    /// The database, as its sender named it.
    pub db: String,
    /// The document.
    pub doc: String,
    /// The attachment's name.
    pub name: String,
    /// Its type.
    pub content_type: String,
    /// The revision that is to be followed.
    pub rev: Option<String>,
    /// Bytes.
    pub length: u64,
    /// When there was the last word of it, in seconds since 1970.
    pub heard_s: u64,
    /// The revision that it has become.
    #[serde(default)]
    pub done: Option<String>,
}

/// An upload.
pub struct Entry {
    /// Its name.
    pub id: String,
    /// What it is to become.
    pub about: Mutex<About>,
    /// Bytes that have come, or for which there is room.
    held: AtomicU64,
    /// Held by the request that adds to it.
    pub turn: Arc<tokio::sync::Mutex<()>>,
    folder: PathBuf,
}

/// Has an upload settle when it is dropped: also when what adds to it is dropped in its middle, as a write is when another
/// pod becomes the master.
pub struct Settling<'a>(&'a Entry);

/// All of them.
pub struct Spool {
    folder: PathBuf,
    entries: Mutex<HashMap<String, Arc<Entry>>>,
}

impl Spool {
    /// Takes up what the folder has; makes it if need be.
    ///
    /// # Errors
    /// When it can't be made or read.
    pub fn open(folder: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut entries = HashMap::new();
        for file in std::fs::read_dir(folder)? {
            let path = file?.path();
            let id = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            match path.extension().and_then(|kind| kind.to_str()) {
                Some("json") => {
                    let text = std::fs::read(&path)?;
                    // One that a crash has cut off had not been answered.
                    if let Ok(about) = serde_json::from_slice(&text) {
                        let entry = Entry::new(folder, id.clone(), about);
                        entry.settle();
                        entries.insert(id, Arc::new(entry));
                    } else {
                        std::fs::remove_file(&path)?;
                    }
                }
                Some("data") if !path.with_extension("json").exists() => std::fs::remove_file(&path)?,
                _ => {}
            }
        }
        Ok(Self { folder: folder.to_owned(), entries: Mutex::new(entries) })
    }

    /// One of this user's; `None` for those of others as for those that aren't there.
    pub fn get(&self, id: &str, owner: Option<&str>) -> Option<Arc<Entry>> {
        let entry = self.entries.lock().get(id).cloned()?;
        let is_theirs = entry.about.lock().owner.as_deref() == owner;
        is_theirs.then_some(entry)
    }

    /// Whether it is still there.
    pub fn has(&self, id: &str) -> bool {
        self.entries.lock().contains_key(id)
    }

    /// Begins one.
    ///
    /// # Errors
    /// 503 when this user has, or all have, too many; the disk's failure.
    pub fn begin(&self, about: About, max_attachment_bytes: u64) -> Result<Arc<Entry>, ApiError> {
        let mut entries = self.entries.lock();
        forget_done(&mut entries, MAX_EACH, |other| other.owner == about.owner);
        forget_done(&mut entries, MAX_ALL, |_| true);
        if entries.len() >= MAX_ALL {
            forget_empty(&mut entries, about.heard_s);
        }
        let sum = sum(&entries, about.owner.as_deref());
        if sum.theirs >= MAX_EACH || entries.len() >= MAX_ALL || !sum.has_room(about.length, max_attachment_bytes) {
            return Err(too_many());
        }
        let id = hex::encode(rand::random::<[u8; 16]>());
        let entry = Arc::new(Entry::new(&self.folder, id.clone(), about));
        std::fs::File::create(entry.data()).and_then(|_| entry.keep()).map_err(|error| disk(&error))?;
        entries.insert(id, Arc::clone(&entry));
        Ok(entry)
    }

    /// Makes room for bytes that come: for one more piece of an upload, or some of them.
    ///
    /// # Errors
    /// 503 when this user has, or all have, too many.
    pub fn hold(&self, entry: &Entry, bytes: u64, max_attachment_bytes: u64) -> Result<(), ApiError> {
        let entries = self.entries.lock();
        let owner = entry.about.lock().owner.clone();
        if !sum(&entries, owner.as_deref()).has_room(bytes, max_attachment_bytes) {
            return Err(too_many());
        }
        // Under the lock, so that two don't take the same room.
        entry.held.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }

    /// Forgets one, with its bytes.
    pub fn drop_entry(&self, id: &str) {
        if let Some(entry) = self.entries.lock().remove(id) {
            entry.remove();
        }
    }

    /// Drops those of which nothing was heard; those that are being added to stay.
    pub fn expire(&self, now_s: u64) {
        self.entries.lock().retain(|_, entry| {
            let about = entry.about.lock();
            let patience = if about.done.is_some() { DONE_S } else { EXPIRES_S };
            let stays = now_s.saturating_sub(about.heard_s) < patience || entry.turn.try_lock().is_err();
            drop(about);
            if !stays {
                entry.remove();
            }
            stays
        });
    }
}

impl Entry {
    fn new(folder: &Path, id: String, about: About) -> Self {
        Self { id, about: Mutex::new(about), held: AtomicU64::new(0), turn: Arc::default(), folder: folder.to_owned() }
    }

    /// From here on it takes the room that its bytes do.
    fn settle(&self) {
        let bytes = std::fs::metadata(self.data()).map_or(0, |about| about.len());
        self.held.store(bytes, Ordering::Release);
    }

    /// For as long as something adds to it.
    pub fn settling(&self) -> Settling<'_> {
        Settling(self)
    }

    /// Where its bytes are.
    pub fn data(&self) -> PathBuf {
        self.folder.join(format!("{}.data", self.id))
    }

    /// How many bytes have come.
    ///
    /// # Errors
    /// The disk's.
    pub fn offset(&self) -> Result<u64, ApiError> {
        let about = self.about.lock();
        if about.done.is_some() {
            return Ok(about.length);
        }
        drop(about);
        std::fs::metadata(self.data()).map(|about| about.len()).map_err(|error| disk(&error))
    }

    /// Notes that there was word of it.
    ///
    /// # Errors
    /// The disk's.
    pub fn heard(&self, now_s: u64) -> Result<(), ApiError> {
        self.about.lock().heard_s = now_s;
        self.keep().map_err(|error| disk(&error))
    }

    /// Notes what it has become; its bytes are not needed any more.
    pub fn finish(&self, rev: String) {
        self.about.lock().done = Some(rev);
        if let Err(error) = self.keep().and_then(|()| std::fs::remove_file(self.data())) {
            tracing::warn!(%error, "a finished upload could not be cleared away; that is done when it expires");
        }
        self.settle();
    }

    fn keep(&self) -> std::io::Result<()> {
        let (path, beside) =
            (self.folder.join(format!("{}.json", self.id)), self.folder.join(format!("{}.new", self.id)));
        let text = serde_json::to_vec(&*self.about.lock()).map_err(std::io::Error::other)?;
        std::fs::write(&beside, text)?;
        std::fs::rename(beside, path)
    }

    fn remove(&self) {
        for kind in ["json", "data", "new"] {
            let path = self.folder.join(format!("{}.{kind}", self.id));
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(%error, "an upload could not be cleared away");
                }
                _ => {}
            }
        }
    }
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        self.0.settle();
    }
}

/// What uploads take.
struct Sum {
    /// How many of one user's are not done.
    theirs: usize,
    their_bytes: u64,
    bytes: u64,
}

fn sum(entries: &HashMap<String, Arc<Entry>>, owner: Option<&str>) -> Sum {
    let mut sum = Sum { theirs: 0, their_bytes: 0, bytes: 0 };
    for entry in entries.values() {
        let about = entry.about.lock();
        let held = entry.held.load(Ordering::Acquire);
        sum.bytes = sum.bytes.saturating_add(held);
        if about.owner.as_deref() == owner {
            sum.theirs += usize::from(about.done.is_none());
            sum.their_bytes = sum.their_bytes.saturating_add(held);
        }
    }
    sum
}

impl Sum {
    /// Whether so much more may come of this user's. Who has some must leave as much as they have then, so that those who
    /// have most never take up the rest, however many they are.
    fn has_room(&self, bytes: u64, max_attachment_bytes: u64) -> bool {
        let theirs = self.their_bytes.saturating_add(bytes);
        let left = max_attachment_bytes.saturating_mul(SHARE_ALL).checked_sub(self.bytes.saturating_add(bytes));
        let is_fair = left.is_some_and(|left| self.their_bytes == 0 || theirs <= left);
        is_fair && theirs <= max_attachment_bytes.saturating_mul(SHARE_EACH)
    }
}

/// Forgets the upload that has been silent for longest of those of which nothing has come.
fn forget_empty(entries: &mut HashMap<String, Arc<Entry>>, now_s: u64) {
    let empty = entries.values().filter(|entry| entry.held.load(Ordering::Acquire) == 0);
    let silent = empty.filter_map(|entry| {
        let about = entry.about.lock();
        let is_silent = about.done.is_none() && now_s.saturating_sub(about.heard_s) >= EMPTY_PATIENCE_S;
        is_silent.then(|| (about.heard_s, entry.id.clone()))
    });
    let Some((_, id)) = silent.min() else { return };
    if entries.get(&id).is_some_and(|entry| entry.turn.try_lock().is_ok())
        && let Some(entry) = entries.remove(&id)
    {
        entry.remove();
    }
}

/// Forgets uploads that are done, the oldest first, until there are less than `most` of these or none of them is done.
fn forget_done(entries: &mut HashMap<String, Arc<Entry>>, most: usize, is_meant: impl Fn(&About) -> bool) {
    let mut count = 0;
    let mut done = Vec::new();
    for (id, entry) in &*entries {
        let about = entry.about.lock();
        if is_meant(&about) {
            count += 1;
            done.extend(about.done.is_some().then(|| (about.heard_s, id.clone())));
        }
    }
    done.sort();
    for (_, id) in done.into_iter().take((count + 1_usize).saturating_sub(most)) {
        // One that a request is at stays for this time.
        if entries.get(&id).is_some_and(|entry| entry.turn.try_lock().is_ok())
            && let Some(entry) = entries.remove(&id)
        {
            entry.remove();
        }
    }
}

/// The pod's disk has failed, or is full.
pub fn disk(error: &std::io::Error) -> ApiError {
    if error.kind() == std::io::ErrorKind::StorageFull {
        let reason = "There is no room for this upload on the pod's disk";
        return ApiError::new(http::StatusCode::INSUFFICIENT_STORAGE, "insufficient_storage", reason);
    }
    ApiError::internal("the upload could not be kept").with_cause(error)
}

fn too_many() -> ApiError {
    let reason = "There are too many unfinished uploads: finish or delete one of yours, or try again later";
    ApiError::new(http::StatusCode::SERVICE_UNAVAILABLE, "too_many_uploads", reason)
        .with_header(http::header::RETRY_AFTER, http::HeaderValue::from(60))
}

#[cfg(test)]
mod tests {
    use super::{About, EMPTY_PATIENCE_S, EXPIRES_S, MAX_ALL, MAX_EACH, Spool};

    fn about(owner: &str, length: u64) -> About {
        About {
            owner: Some(owner.to_owned()),
            db: "notes".to_owned(),
            doc: "a".to_owned(),
            name: "film".to_owned(),
            content_type: "video/mp4".to_owned(),
            rev: None,
            length,
            heard_s: 100,
            done: None,
        }
    }

    #[test]
    fn an_upload_outlives_a_restart_is_its_senders_alone_and_expires() {
        let folder = tempfile::tempdir().expect("a folder");
        let spool = Spool::open(folder.path()).expect("a spool");
        let entry = spool.begin(about("ann", 10), 100).expect("a place");
        std::fs::write(entry.data(), b"1234").expect("written");
        std::fs::write(folder.path().join("torn.json"), b"{").expect("written");
        let again = Spool::open(folder.path()).expect("a spool");
        assert_eq!(again.get(&entry.id, Some("ann")).expect("still there").offset().expect("an offset"), 4);
        assert!(again.get(&entry.id, Some("bob")).is_none());
        assert!(again.get(&entry.id, None).is_none());
        again.expire(100 + EXPIRES_S - 1);
        assert!(again.get(&entry.id, Some("ann")).is_some());
        again.expire(100 + EXPIRES_S);
        assert!(again.get(&entry.id, Some("ann")).is_none());
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }

    #[test]
    fn what_is_announced_takes_no_room_and_what_has_come_only_its_share() {
        let folder = tempfile::tempdir().expect("a folder");
        let spool = Spool::open(folder.path()).expect("a spool");
        // As much as all may have, if it came.
        let mut entries = Vec::new();
        for n in 0..8 {
            entries.push(spool.begin(about(&format!("user-{n}"), 100), 100).expect("only announced"));
            entries.push(spool.begin(about(&format!("user-{n}"), 100), 100).expect("only announced"));
        }
        let mut came = 0;
        for entry in &entries {
            while spool.hold(entry, 10, 100).is_ok() {
                came += 10;
            }
            assert!(spool.hold(entry, 10, 100).is_err_and(|error| error.status == 503));
        }
        assert!(came > 8 * 100, "{came} bytes are little");
        let ann = spool.begin(about("ann", 20), 100).expect("who has nothing gets in");
        assert!(spool.hold(&ann, 10, 100).is_ok(), "{came} bytes leave no room for others");
        // What isn't there any more, and what has not come after all, holds nothing.
        for entry in &entries {
            entry.settle();
        }
        assert!(spool.hold(&ann, 150, 100).is_ok());
        assert!(spool.hold(&ann, 50, 100).is_err(), "nobody has more than twice the largest");
    }

    #[test]
    fn what_has_come_counts_after_a_restart_as_well() {
        let folder = tempfile::tempdir().expect("a folder");
        let spool = Spool::open(folder.path()).expect("a spool");
        let entry = spool.begin(about("ann", 200), 100).expect("a place");
        std::fs::write(entry.data(), [0; 190]).expect("written");
        let again = Spool::open(folder.path()).expect("a spool");
        let entry = again.get(&entry.id, Some("ann")).expect("still there");
        assert!(again.hold(&entry, 11, 100).is_err() && again.hold(&entry, 10, 100).is_ok());
    }

    #[test]
    fn what_nobody_sends_makes_room_for_what_somebody_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let spool = Spool::open(folder.path()).expect("a spool");
        let first = spool.begin(about("user-0", 100), 100).expect("a place");
        for n in 1..MAX_ALL {
            spool.begin(about(&format!("user-{}", n / MAX_EACH), 100), 100).expect("a place");
        }
        spool.hold(&first, 1, 100).expect("room");
        let mut ann = about("ann", 100);
        assert!(spool.begin(ann.clone(), 100).is_err(), "all have just begun");
        ann.heard_s += EMPTY_PATIENCE_S;
        assert!(spool.begin(ann, 100).is_ok());
        assert!(spool.has(&first.id), "one that has begun was dropped");
        assert_eq!(spool.entries.lock().len(), MAX_ALL);
    }

    #[test]
    fn what_is_done_takes_up_no_share() {
        let folder = tempfile::tempdir().expect("a folder");
        let spool = Spool::open(folder.path()).expect("a spool");
        let mut ids = Vec::new();
        for n in 0..3 * MAX_EACH {
            let entry = spool.begin(about("ann", 100), 100).expect("a place");
            entry.heard(200 + n as u64).expect("noted");
            entry.finish("1-a".to_owned());
            ids.push(entry.id.clone());
        }
        assert!(spool.has(&ids[3 * MAX_EACH - 1]) && !spool.has(&ids[0]), "the last are remembered");
        assert_eq!(spool.entries.lock().len(), MAX_EACH);
        let bob = spool.begin(about("bob", 200), 100).expect("a place");
        assert!(spool.hold(&bob, 200, 100).is_ok() && spool.hold(&bob, 1, 100).is_err());
    }
}
