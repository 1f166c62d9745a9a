//! Brings files here that this pod's documents have and its folder lacks. What was brought before a fault or a restart is
//! kept, and the rest is asked for.

use std::collections::HashMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rean_store::{FileKey, FilePlace, StoreError, StoredFile};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::databases::blocking;
use crate::files::error::FileError;
use crate::files::{Files, peers};
use crate::pod::Pod;
use crate::room;
use crate::workers::Stop;

/// A look without being told.
const PAUSE: Duration = Duration::from_secs(60);
/// The same while something is missing that no pod gave.
const RETRY: Duration = Duration::from_secs(5);
/// Files that one look finds at the most: there is another look when they are here.
const MAX_MISSING: usize = 10_000;
/// Bytes that are hashed at once of what was brought before.
const HASH_BYTES: usize = 1 << 20;

/// Brings files until it is told to stop.
///
/// # Errors
/// When the store fails.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    if pod.ring.is_alone() {
        stop.stopped().await;
        return Ok(());
    }
    loop {
        let left = tokio::select! {
            left = pass(&pod) => left?,
            () = stop.stopped() => return Ok(()),
        };
        tokio::select! {
            () = pod.files.news.notified() => {}
            () = tokio::time::sleep(if left > 0 { RETRY } else { PAUSE }) => {}
            () = stop.stopped() => return Ok(()),
        }
    }
}

/// Brings all that is missing; gives how much still is.
async fn pass(pod: &Arc<Pod>) -> Result<usize, String> {
    let for_look = Arc::clone(pod);
    let missing = blocking(move || missing(&for_look)).await.map_err(|error| error.cause().to_owned())?;
    let missing = missing.map_err(|error| error.to_string())?;
    pod.files.drop_parts(&missing).map_err(|error| error.to_string())?;
    let mut left = missing.len();
    if left > 0 && room::check(pod).is_err() {
        tracing::warn!(files = left, "large files stay with other pods: this pod's disk is full");
        return Ok(left);
    }
    for file in missing.values() {
        match pod.files.bring(file).await {
            Ok(()) => left -= 1,
            // It may be there at the next look; a read asks the other pods itself.
            Err(error) => tracing::debug!(file = %file.key, %error, "a file could not be brought yet"),
        }
    }
    Ok(left)
}

/// The files of this pod's documents that its folder lacks.
fn missing(pod: &Pod) -> Result<HashMap<FileKey, StoredFile>, StoreError> {
    use std::ops::ControlFlow::{Break, Continue};
    let mut missing = HashMap::new();
    for db in pod.store.db_names().iter().filter_map(|name| pod.store.db(name)) {
        db.each_file(|file| {
            if file.place == FilePlace::Local && !pod.files.storage.local_path(file.key).exists() {
                missing.insert(file.key, file);
            }
            if missing.len() < MAX_MISSING { Continue(()) } else { Break(()) }
        })?;
    }
    Ok(missing)
}

impl Files {
    fn parts(&self) -> PathBuf {
        self.root.join("parts")
    }

    /// Removes what was brought of files that are no longer wanted.
    fn drop_parts(&self, wanted: &HashMap<FileKey, StoredFile>) -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(self.parts())?;
        for part in std::fs::read_dir(self.parts())? {
            let part = part?;
            let key: Option<FileKey> = part.file_name().to_str().and_then(|name| name.parse().ok());
            if !key.is_some_and(|key| wanted.contains_key(&key)) {
                std::fs::remove_file(part.path())?;
            }
        }
        Ok(())
    }

    /// Brings one file: it is in the folder when all of it is here and is what was written.
    ///
    /// # Errors
    /// When no pod gives it, or the disk fails.
    pub async fn bring(self: &Arc<Self>, file: &StoredFile) -> Result<(), FileError> {
        let path = self.parts().join(file.key.to_string());
        let io = |error: std::io::Error| FileError::io("keeping a file that was brought", &error);
        let (mut hash, mut at) = hash_of(path.clone(), file.length).await?;
        let mut part = tokio::fs::OpenOptions::new().create(true).append(true).open(&path).await.map_err(io)?;
        if at < file.length {
            let mut bytes = peers::open(self, *file, at, file.length).await?;
            while let Some(piece) = bytes.next().await {
                let piece = piece?;
                hash.update(&piece);
                at += piece.len() as u64;
                part.write_all(&piece).await.map_err(io)?;
            }
        }
        part.sync_all().await.map_err(io)?;
        if at != file.length || hash.finalize()[..] != file.sha256 {
            // Some of it was wrong, and nobody knows which.
            tokio::fs::remove_file(&path).await.map_err(io)?;
            return Err(FileError::Damaged);
        }
        let place = self.storage.local_path(file.key);
        let moved = tokio::task::spawn_blocking(move || {
            let folder = place.parent().unwrap_or(&place);
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            std::fs::rename(&path, &place)?;
            std::fs::File::open(folder)?.sync_all()
        });
        moved.await.map_err(|error| FileError::Pods(error.to_string()))?.map_err(io)
    }
}

/// The hash so far, and the length, of what was brought before; what is too long is thrown away.
async fn hash_of(path: PathBuf, most: u64) -> Result<(Sha256, u64), FileError> {
    let hashed = tokio::task::spawn_blocking(move || {
        use std::io::Read;
        let mut open = match std::fs::File::open(&path) {
            Ok(open) => open,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Sha256::new(), 0)),
            Err(error) => return Err(error),
        };
        if open.metadata()?.len() > most {
            std::fs::remove_file(&path)?;
            return Ok((Sha256::new(), 0));
        }
        let (mut hash, mut length, mut bytes) = (Sha256::new(), 0, vec![0; HASH_BYTES]);
        loop {
            match open.read(&mut bytes)? {
                0 => return Ok((hash, length)),
                count => {
                    hash.update(&bytes[..count]);
                    length += count as u64;
                }
            }
        }
    });
    let hashed = hashed.await.map_err(|error| FileError::Pods(error.to_string()))?;
    hashed.map_err(|error| FileError::io("reading what was brought of a file", &error))
}
