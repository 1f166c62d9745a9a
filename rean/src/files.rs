//! Attachments that are too large to travel with documents: their bytes are in object storage, outside of the store and
//! outside of the replication between pods.
//!
//! What flows through it: an upload that grows beyond `files.above_mib` becomes a file ([`writer`]), which is complete and
//! flushed before the commit of its document. The store keeps a record of it, and that travels to the other pods. With
//! `s3` all pods read one bucket ([`storage`]); with `local` each has a folder, and fetches what it lacks from pods that
//! have it ([`peers`], [`fetch`]). A file goes when no document on any pod has had it for a time ([`sweep`]). Clients may
//! send a file in several requests ([`resumable`]).
//!
//! What always holds: a file is read through a document that its reader may read, and in no other way; its name is random
//! and is told to no client; a document is acknowledged when its files are complete; a file that some pod's document has is
//! not removed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};

use adea_ring::files::{FileStore, FilesConfig};
use parking_lot::Mutex;
use rean_store::{FileKey, FilePlace, Outside, Reading, StoredFile};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::edit_in::is_taken;
use crate::files::error::FileError;
use crate::files::resumable::spool::Spool;
use crate::files::storage::{Bucket, Storage};
use crate::pod::Pod;
use crate::ring::places::Places;
use crate::shares::Shares;
use crate::target::{System, Target};

pub mod claim;
pub mod credentials;
pub mod error;
pub mod fetch;
pub mod http_client;
pub mod peers;
pub mod reader;
pub mod resumable;
pub mod storage;
pub mod sweep;
pub mod writer;

/// Memory of all uploads into object storage together, in MiB; more wait their turn.
const UPLOAD_MIB: usize = 256;

/// The pod's files.
pub struct Files {
    root: PathBuf,
    storage: Storage,
    pod: OnceLock<(Weak<Pod>, Handle)>,
    /// Files have come whose bytes may be missing here.
    news: Notify,
    /// A unit is a MiB.
    uploads: Shares,
    /// Uploads by who sends them.
    each: Places<Option<String>>,
    /// Uploads in several requests.
    pub spool: Spool,
    /// The bucket that was used last.
    bucket: Mutex<Option<Bucket>>,
}

impl Files {
    /// Opens the pod's folder for files, or makes it. `ring_id` parts this ring's objects from others' in a bucket.
    ///
    /// # Errors
    /// When the folder can't be made or read.
    pub fn open(data_dir: &Path, ring_id: &str) -> std::io::Result<Self> {
        let root = data_dir.join("files");
        Ok(Self {
            storage: Storage::open(data_dir, &root, ring_id)?,
            spool: Spool::open(&root.join("uploads"))?,
            root,
            pod: OnceLock::new(),
            news: Notify::new(),
            uploads: Shares::new(UPLOAD_MIB),
            each: Places::default(),
            bucket: Mutex::default(),
        })
    }

    /// Says whose these are, and has the store read them. Inside Tokio, once.
    pub fn install(pod: &Arc<Pod>) {
        if pod.files.pod.set((Arc::downgrade(pod), Handle::current())).is_ok() {
            pod.store.set_outside(Arc::new(Door(Arc::clone(&pod.files))));
        }
    }

    /// Says that there may be files whose bytes are not here yet.
    pub fn look(&self) {
        self.news.notify_one();
    }

    fn config(&self) -> FilesConfig {
        self.pod().map(|pod| pod.ring.config().files.clone()).unwrap_or_default()
    }

    fn pod(&self) -> Option<Arc<Pod>> {
        self.pod.get().and_then(|(pod, _)| pod.upgrade())
    }

    /// Where new files go.
    fn place(&self) -> FilePlace {
        match self.config().store {
            FileStore::Local => FilePlace::Local,
            FileStore::S3(_) => FilePlace::S3,
        }
    }

    /// The storage of a place, with the name that a file has there.
    fn object(&self, place: FilePlace, key: FileKey) -> Result<storage::Object, FileError> {
        match place {
            FilePlace::Local => Ok(self.storage.local(key)),
            FilePlace::S3 => Ok(self.bucket()?.object(key)),
        }
    }

    /// The bucket that the configuration names.
    fn bucket(&self) -> Result<Bucket, FileError> {
        let FileStore::S3(config) = self.config().store else { return Err(FileError::NoBucket) };
        let mut known = self.bucket.lock();
        if let Some(bucket) = known.as_ref().filter(|bucket| bucket.is_for(&config)) {
            return Ok(bucket.clone());
        }
        let bucket = self.storage.bucket(config)?;
        *known = Some(bucket.clone());
        Ok(bucket)
    }

    /// Removes a file that no document has taken up. If that fails, or the process ends before it, [`sweep`] finds it.
    fn discard(self: &Arc<Self>, file: &StoredFile) {
        let (files, file) = (Arc::clone(self), *file);
        // The store's threads let go of uploads too, and they are not Tokio's.
        let Some((_, runtime)) = self.pod.get() else { return };
        runtime.spawn(async move {
            let removed = match files.object(file.place, file.key) {
                Ok(object) => object.remove().await,
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                tracing::debug!(%error, "an unused file is left for the next sweep");
            }
        });
    }
}

/// The largest attachment, in bytes, that stays in the store. What another pod brings stays as it has it, and the pod's own
/// databases stay whole: what is in them is needed to get at anything else.
pub fn above_bytes(pod: &Pod, target: &Target) -> u64 {
    match target.system {
        System::None if !is_taken(target) => pod.ring.config().files.above_bytes(),
        _ => u64::MAX,
    }
}

/// By this the store reads files.
struct Door(Arc<Files>);

impl Outside for Door {
    fn read(&self, file: &StoredFile, from: u64, to: u64) -> Box<dyn Reading> {
        Box::new(reader::Lazy::new(Arc::clone(&self.0), *file, from, to))
    }
}
