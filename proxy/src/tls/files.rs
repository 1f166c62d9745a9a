//! A certificate from files, which somebody else renews: read again when they change.
//!
//! A new pair counts only when it fits together and holds now. Until then the old one stays, and the log says why: two
//! files are never written at the same moment, and a renewal that went wrong must not take the pod away.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::TlsError;
use super::certificates::{Certificates, Pair, PairError};
use crate::clock;

/// How often is looked whether the files have changed: two system calls.
const LOOK: Duration = Duration::from_secs(2);
/// Bytes of one file: the largest keys and chains have some 20 KiB.
const MAX_BYTES: u64 = 1 << 20;

/// The files.
pub struct Files {
    certificate: PathBuf,
    key: PathBuf,
    certificates: Arc<Certificates>,
    /// What the files were when they were read last, whatever came of it.
    seen: Mutex<Option<Marks>>,
}

/// What changes when a file does: its number, its length and its time.
type Mark = (u64, u64, i64, i64);
type Marks = (Mark, Mark);

impl Files {
    /// Reads them for the first time. A certificate that has expired is taken: the pod starts, and says so.
    ///
    /// # Errors
    /// When they can't be read or don't fit together.
    pub fn load(certificate: &Path, key: &Path, certificates: Arc<Certificates>) -> Result<Self, TlsError> {
        let seen = Mutex::default();
        let files = Self { certificate: certificate.to_owned(), key: key.to_owned(), certificates, seen };
        *files.seen.lock() = files.marks();
        let pair = files.read()?;
        if let Err(problem) = holds_now(&pair) {
            tracing::error!("the certificate {} {problem}: clients will refuse it", certificate.display());
        }
        if let Ok(metadata) = std::fs::metadata(key)
            && metadata.permissions().mode() & 0o004 != 0
        {
            tracing::warn!("everybody on this machine can read the private key {0}: chmod 600 {0}", key.display());
        }
        files.certificates.set(pair);
        Ok(files)
    }

    /// Reads them again whenever they have changed.
    pub async fn keep(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK);
        loop {
            ticks.tick().await;
            let files = Arc::clone(&self);
            // The folder may be on a network.
            if let Err(error) = tokio::task::spawn_blocking(move || files.look()).await {
                tracing::error!(%error, "the certificate's files could not be looked at");
            }
        }
    }

    fn look(&self) {
        let now = self.marks();
        // Gone for a moment: it is being replaced.
        if now.is_none() || *self.seen.lock() == now {
            return;
        }
        *self.seen.lock() = now;
        let read = self.read().map_err(|error| error.to_string());
        let read = read.and_then(|pair| match holds_now(&pair) {
            Ok(()) => Ok(pair),
            Err(problem) => Err(format!("{}: it {problem}", self.certificate.display())),
        });
        match read {
            Ok(pair) => {
                tracing::info!("the certificate {} was renewed", self.certificate.display());
                self.certificates.set(pair);
            }
            Err(error) => {
                self.certificates.not_renewed();
                tracing::error!("the new certificate is not taken, the one before it stays: {error}");
            }
        }
    }

    fn marks(&self) -> Option<Marks> {
        let mark = |path: &Path| std::fs::metadata(path).ok().map(|found| mark(&found));
        Some((mark(&self.certificate)?, mark(&self.key)?))
    }

    fn read(&self) -> Result<Pair, TlsError> {
        let certificate = read("files.certificate", &self.certificate)?;
        let key = read("files.key", &self.key)?;
        Pair::from_pem(&certificate, &key).map_err(|error| match error {
            PairError::Certificate(problem) => file_error("files.certificate", &self.certificate, problem),
            PairError::Key(problem) => file_error("files.key", &self.key, problem),
        })
    }
}

fn mark(metadata: &Metadata) -> Mark {
    (metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

fn holds_now(pair: &Pair) -> Result<(), &'static str> {
    let now_s = i64::try_from(clock::now_ms() / 1000).unwrap_or(i64::MAX);
    match () {
        () if pair.until_s < now_s => Err("has expired"),
        () if pair.from_s > now_s => Err("does not hold yet (is the clock right?)"),
        () => Ok(()),
    }
}

/// Reads a file that the configuration names.
///
/// # Errors
/// When it can't be read or is far too large.
pub fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = || {
        if std::fs::metadata(path)?.len() > MAX_BYTES {
            return Err(std::io::Error::other("the file is too large to be one of certificates"));
        }
        std::fs::read(path)
    };
    read().map_err(|error| file_error(key, path, error.to_string()))
}

/// What is wrong with a file of the configuration.
pub fn file_error(key: &'static str, path: &Path, problem: String) -> TlsError {
    TlsError::File { key, path: path.to_owned(), problem }
}
