//! Where files are: a folder of this pod, or a bucket that all pods share.

use std::path::{Path as Folder, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use adea_ring::files::S3Config;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};
use rean_store::FileKey;

use crate::files::credentials::Credentials;
use crate::files::error::FileError;
use crate::files::http_client::Connections;

/// A bucket is opened anew after this, so that new credentials are taken up.
const BUCKET_AGE: Duration = Duration::from_secs(60);
/// A request is tried again for as long as a client waits gladly.
const RETRY_TIME: Duration = Duration::from_secs(20);
/// Tries after the first.
const RETRIES: usize = 4;
/// What the bytes of a part are in memory while a file is written, in MiB. A bucket wants 5 at the least, and takes
/// 10,000 of them; a folder wants nothing.
const S3_PART_MIB: usize = 8;
const LOCAL_PART_MIB: usize = 1;
/// The most parts of an object, with some room.
const MAX_PARTS: u64 = 9_000;
/// The largest part: where attachments of any size are let in, their parts still fit into the memory of all uploads. A
/// file of more than 1 TiB is refused by the storage.
const MAX_PART_MIB: usize = 128;

/// The pod's folder, and what buckets are opened with.
pub struct Storage {
    data_dir: PathBuf,
    objects: PathBuf,
    folder: Arc<dyn ObjectStore>,
    connections: Connections,
    ring_id: String,
}

/// A bucket, opened.
#[derive(Clone)]
pub struct Bucket {
    config: S3Config,
    opened: Instant,
    store: Arc<dyn ObjectStore>,
    prefix: String,
}

/// A file's place.
pub struct Object {
    /// The storage.
    pub store: Arc<dyn ObjectStore>,
    /// Its name there.
    pub path: Path,
    /// A part of it while it is written, in MiB.
    pub part_mib: usize,
}

impl Storage {
    /// Opens the folder below `root`, and clears away what a crash has left half written.
    ///
    /// # Errors
    /// When it can't be made or read.
    pub fn open(data_dir: &Folder, root: &Folder, ring_id: &str) -> std::io::Result<Self> {
        let objects = root.join("objects");
        make_private(root)?;
        make_private(&objects)?;
        clear_staged(&objects)?;
        let folder = LocalFileSystem::new_with_prefix(&objects).map_err(std::io::Error::other)?.with_fsync(true);
        Ok(Self {
            data_dir: data_dir.to_owned(),
            objects,
            folder: Arc::new(folder),
            connections: Connections::default(),
            ring_id: ring_id.to_owned(),
        })
    }

    /// A file's place in the folder.
    pub fn local(&self, key: FileKey) -> Object {
        let path = Path::from(below(key));
        Object { store: Arc::clone(&self.folder), path, part_mib: LOCAL_PART_MIB }
    }

    /// The same as a path.
    pub fn local_path(&self, key: FileKey) -> PathBuf {
        self.objects.join(below(key))
    }

    /// All files in the folder.
    pub fn list_local(&self) -> BoxStream<'static, Result<(FileKey, u64), FileError>> {
        list(&self.folder, None)
    }

    /// Opens a bucket. Nothing is asked of it yet.
    ///
    /// # Errors
    /// When there are no credentials for it.
    pub fn bucket(&self, config: S3Config) -> Result<Bucket, FileError> {
        let credentials = Credentials::load(&self.data_dir)?;
        let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_TIME, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&config.bucket)
            .with_region(&config.region)
            .with_allow_http(config.allow_http)
            // Storages other than Amazon's seldom have a name for each bucket.
            .with_virtual_hosted_style_request(config.endpoint.is_none())
            .with_access_key_id(&credentials.access_key_id)
            .with_secret_access_key(&credentials.secret_access_key)
            .with_retry(retry)
            .with_http_connector(self.connections.clone());
        if let Some(token) = &credentials.session_token {
            builder = builder.with_token(token);
        }
        if let Some(endpoint) = &config.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        }
        let store = builder.build().map_err(|error| FileError::storage("opening the bucket", error))?;
        let prefix = match config.prefix.trim_matches('/') {
            "" => self.ring_id.clone(),
            prefix => format!("{prefix}/{}", self.ring_id),
        };
        Ok(Bucket { config, opened: Instant::now(), store: Arc::new(store), prefix })
    }
}

impl Bucket {
    /// Whether it is the one that is meant, and was opened not long ago.
    pub fn is_for(&self, config: &S3Config) -> bool {
        self.config == *config && self.opened.elapsed() < BUCKET_AGE
    }

    /// A file's place in it.
    pub fn object(&self, key: FileKey) -> Object {
        let path = Path::from(format!("{}/{}", self.prefix, below(key)));
        Object { store: Arc::clone(&self.store), path, part_mib: S3_PART_MIB }
    }

    /// The storage.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The object that says whose the files are; its name is none that a file can have.
    pub fn mark(&self) -> Path {
        Path::from(format!("{}/mark.json", self.prefix))
    }

    /// The bucket and the prefix.
    pub fn place(&self) -> String {
        let endpoint = self.config.endpoint.as_deref().unwrap_or_default();
        format!("{endpoint} {} {}", self.config.bucket, self.prefix)
    }

    /// All files of this ring in it.
    pub fn list(&self) -> BoxStream<'static, Result<(FileKey, u64), FileError>> {
        list(&self.store, Some(&Path::from(self.prefix.as_str())))
    }
}

impl Object {
    /// Removes it; one that isn't there counts as removed.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn remove(&self) -> Result<(), FileError> {
        match self.store.delete(&self.path).await.map_err(|error| FileError::storage("removing a file", error)) {
            Err(FileError::Missing) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Part of a file of at most this many bytes, in MiB.
    pub fn part_mib_for(&self, most_bytes: u64) -> usize {
        let needed = most_bytes.div_ceil(MAX_PARTS).div_ceil(1 << 20);
        usize::try_from(needed).unwrap_or(MAX_PART_MIB).clamp(self.part_mib, MAX_PART_MIB)
    }
}

/// Folders of 256 names each keep listings short.
fn below(key: FileKey) -> String {
    let name = key.to_string();
    format!("{}/{name}", &name[..2])
}

/// Files with the second in which they were written. What has another name is none of ours.
fn list(store: &Arc<dyn ObjectStore>, prefix: Option<&Path>) -> BoxStream<'static, Result<(FileKey, u64), FileError>> {
    let found = store.list(prefix).map_err(|error| FileError::storage("listing files", error));
    found.try_filter_map(|about: ObjectMeta| async move { Ok(named(&about)) }).boxed()
}

fn named(about: &ObjectMeta) -> Option<(FileKey, u64)> {
    let key = about.location.filename()?.parse().ok()?;
    Some((key, u64::try_from(about.last_modified.timestamp()).unwrap_or(0)))
}

fn make_private(folder: &Folder) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Removes what `object_store` calls staged: `NAME#NUMBER`, of uploads that a crash has ended.
fn clear_staged(objects: &Folder) -> std::io::Result<()> {
    for folder in std::fs::read_dir(objects)? {
        let folder = folder?;
        if !folder.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(folder.path())? {
            let file = file?;
            if file.file_name().to_string_lossy().contains('#') {
                std::fs::remove_file(file.path())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::{MAX_PART_MIB, Object};

    #[test]
    fn parts_are_large_enough_and_no_larger_than_memory() {
        let object = Object { store: Arc::new(InMemory::new()), path: "a".into(), part_mib: 8 };
        assert_eq!(object.part_mib_for(1), 8);
        assert_eq!(object.part_mib_for(90_000 << 20), 10);
        assert_eq!(object.part_mib_for(u64::MAX), MAX_PART_MIB);
    }
}
