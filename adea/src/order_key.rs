//! `order.key`: the private key that orders of upgrades are signed with, beside the ring file of the one machine where it
//! was made. Readable for its owner only, and in no container: not even the agent reads it, only podctl does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use adea_ring::upgrade::{OrderKey, OrderKeyError};

use crate::file_fault::FileFault;
use crate::ring_file::replace;

/// A key's file that can't be used. No message shows what is in it.
#[derive(Debug, thiserror::Error)]
pub enum OrderKeyFileError {
    /// It can't be read or written.
    #[error(transparent)]
    File(#[from] FileFault),
    /// It isn't what it should be.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: OrderKeyError,
    },
}

/// Where the key of a ring lies, if it is on this machine.
pub fn beside(ring_file: &Path) -> PathBuf {
    ring_file.with_file_name("order.key")
}

/// Reads a key; none if there is no such file.
///
/// # Errors
/// When it can't be read, or is no key.
pub fn load(path: &Path) -> Result<Option<OrderKey>, OrderKeyFileError> {
    match fs::read_to_string(path) {
        Ok(text) => OrderKey::from_text(&text)
            .map(Some)
            .map_err(|source| OrderKeyFileError::Parse { path: path.to_path_buf(), source }),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileFault::during("read", path)(source).into()),
    }
}

/// Writes a key, whole or not at all, for its owner only.
///
/// # Errors
/// When it can't be written.
pub fn save(path: &Path, key: &OrderKey) -> Result<(), OrderKeyFileError> {
    Ok(replace(path, key.to_text().as_bytes()).map_err(FileFault::during("write", path))?)
}

#[cfg(test)]
mod tests {
    use super::{beside, load, save};
    use adea_ring::upgrade::OrderKey;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn is_kept_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = beside(&dir.path().join("ring.json"));
        assert_eq!(path, dir.path().join("order.key"));
        assert!(load(&path).unwrap().is_none());
        let key = OrderKey::random();
        save(&path, &key).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load(&path).unwrap().unwrap().public(), key.public());
        std::fs::write(&path, "secretish").unwrap();
        let err = load(&path).unwrap_err().to_string();
        assert!(err.contains("order.key") && !err.contains("secretish"), "{err}");
    }
}
