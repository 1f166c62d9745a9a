//! A second opinion on how many commits there were.
//!
//! An engine whose journal is damaged in the middle may open with what came before the damage and say
//! nothing. The witness is eight bytes beside the engine's files with the number of the last acknowledged
//! commit, written but not flushed: after a crash of the program it is exact, after a power cut it may be
//! behind. If it is ahead of the engine, acknowledged commits are missing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The file.
pub(crate) struct Witness {
    file: File,
    commits: u64,
}

impl Witness {
    pub fn open(path: &Path) -> io::Result<Witness> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = [0; 8];
        let commits = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => u64::from_be_bytes(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(error) => return Err(error),
        };
        Ok(Witness { file, commits })
    }

    /// The last acknowledged commit when the file was opened.
    pub fn commits(&self) -> u64 {
        self.commits
    }

    pub fn acknowledge(&self, commit: u64) -> io::Result<()> {
        self.file.write_all_at(&commit.to_be_bytes(), 0)
    }
}
