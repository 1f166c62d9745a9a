//! What went wrong with a file, in the words of all that keeps one.

use std::io;
use std::path::{Path, PathBuf};

/// A file can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("can't {step} {path}: {source}")]
pub struct FileFault {
    /// What was tried.
    pub step: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl FileFault {
    /// Says what was being tried, with which file.
    pub fn during(step: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self { step, path: path.clone(), source }
    }
}
