//! The pod's data folder: what is where, and who may work in it.
//!
//! `ring.json` the ring's secret and administrator; `rean/` the store; `proxy/` the proxy's certificates; `bin/` what
//! upgrades have brought; `run/` what the running programs leave: `state.json`, logs and locks.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// How long to wait for an earlier agent to be gone. It has [`crate::plan::STOP_DEADLINE_MS`] for
/// each program, and a little for itself.
const LOCK_DEADLINE: Duration = Duration::from_secs(40);
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// A pod's data folder.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
}

/// While this lives, no other process holds the same lock. It goes with the process, however that ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// A data folder that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A folder or file can't be made or opened.
    #[error("can't use {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process works here.
    #[error("another `{name}` works in {root}; stop it first, or use another folder")]
    InUse {
        /// The name of the lock.
        name: &'static str,
        /// The data folder.
        root: PathBuf,
    },
}

impl Folder {
    /// Makes the folder, readable for its owner only, if there is none.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn new(root: &Path) -> Result<Self, FolderError> {
        let folder = Self {
            root: std::path::absolute(root).map_err(|source| FolderError::Io { path: root.to_path_buf(), source })?,
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder.run())
            .map_err(|source| FolderError::Io { path: folder.run(), source })?;
        Ok(folder)
    }

    /// The folder itself, as an absolute path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The ring's secret and administrator.
    pub fn ring_file(&self) -> PathBuf {
        self.root.join("ring.json")
    }

    /// The database server's store.
    pub fn store(&self) -> PathBuf {
        self.root.join("rean")
    }

    /// The program that an upgrade has left, and that runs from then on.
    pub fn program(&self) -> PathBuf {
        self.root.join("bin").join("podctl")
    }

    /// What the proxy keeps: certificates.
    pub fn proxy_data(&self) -> PathBuf {
        self.root.join("proxy")
    }

    /// A copy of the ring's file for the user that containers run as.
    pub fn container_ring_file(&self) -> PathBuf {
        self.run().join("container-ring.json")
    }

    /// Copies of certificates for containers.
    pub fn container_tls(&self) -> PathBuf {
        self.run().join("tls")
    }

    /// The logs of containers, which rean may read.
    pub fn container_logs(&self) -> PathBuf {
        self.run().join("logs")
    }

    /// What running programs leave.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The agent's account of what runs ([`crate::state`]).
    pub fn state_file(&self) -> PathBuf {
        self.run().join("state.json")
    }

    /// What the pod must not forget of its ring ([`crate::ring::kept`]).
    pub fn ring_state_file(&self) -> PathBuf {
        self.run().join("ring-state.json")
    }

    /// The log of a program.
    pub fn log_file(&self, program: &str) -> PathBuf {
        self.run().join(format!("{program}.log"))
    }

    /// Takes the lock `name` at once.
    ///
    /// # Errors
    /// When another process holds it, or the file can't be made.
    pub fn try_lock(&self, name: &'static str) -> Result<Lock, FolderError> {
        let path = self.run().join(format!("{name}.lock"));
        let io_error = |source| FolderError::Io { path: path.clone(), source };
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io_error)?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(FolderError::InUse { name, root: self.root.clone() }),
            Err(TryLockError::Error(source)) => Err(io_error(source)),
        }
    }

    /// Takes the lock `name`, waiting for an earlier process to end.
    ///
    /// # Errors
    /// When it is still held after 40 s.
    pub async fn lock(&self, name: &'static str) -> Result<Lock, FolderError> {
        let deadline = Instant::now() + LOCK_DEADLINE;
        let mut told = false;
        loop {
            match self.try_lock(name) {
                Err(FolderError::InUse { .. }) if Instant::now() < deadline => {
                    if !told {
                        tracing::warn!("another {name} still works in {}: waiting for it to end", self.root.display());
                        told = true;
                    }
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Folder, FolderError};

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        let held = folder.try_lock("adea").unwrap();
        assert!(matches!(folder.try_lock("adea"), Err(FolderError::InUse { .. })));
        folder.try_lock("dev").unwrap();
        drop(held);
        folder.try_lock("adea").unwrap();
    }
}
