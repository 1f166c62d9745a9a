//! The programs' logs: plain files that the programs write themselves and that the agent keeps short.
//!
//! A pipe through the agent would break with it, and a program that is just finishing its work must
//! not fail over its log. So each program holds its file open for appending; when it has grown, the
//! agent copies it to `NAME.log.1` and cuts it to nothing. A line written between the two is lost.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A log and the one before it take at most twice this on the disk, and what is written between two looks.
pub const LOG_BYTES: u64 = 16 << 20;

/// Opens a log for appending.
///
/// # Errors
/// When the file can't be made.
pub fn open(path: &Path) -> io::Result<File> {
    // Errors may quote requests, so logs are for the owner only.
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Sets the log aside if it is longer than `most_bytes`; tells whether it was.
///
/// # Errors
/// When it can't be copied or cut.
pub fn bound(path: &Path, most_bytes: u64) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() > most_bytes => {}
        Ok(_) => return Ok(false),
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(err) => return Err(err),
    }
    let mut before = path.as_os_str().to_owned();
    before.push(".1");
    fs::copy(path, before)?;
    OpenOptions::new().write(true).open(path)?.set_len(0)?;
    Ok(true)
}

/// The last lines of a log, for a message; nothing if there is none.
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    /// More than a few lines never need.
    const BYTES: u64 = 64 << 10;
    let read = || -> io::Result<Vec<String>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut last = VecDeque::with_capacity(lines + 1);
        for line in BufReader::new(file).split(b'\n') {
            last.push_back(String::from_utf8_lossy(&line?).into_owned());
            if last.len() > lines {
                last.pop_front();
            }
        }
        Ok(last.into())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{bound, open, tail};
    use std::io::Write;

    #[test]
    fn a_long_log_is_set_aside_while_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut log = open(&path).unwrap();
        writeln!(log, "one\ntwo\nthree").unwrap();
        assert!(!bound(&path, 100).unwrap());
        assert!(bound(&path, 10).unwrap());
        writeln!(log, "four").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "four\n");
        let before = std::fs::read_to_string(dir.path().join("x.log.1")).unwrap();
        assert_eq!(before, "one\ntwo\nthree\n");
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        assert!(tail(&path, 2).is_empty());
        writeln!(open(&path).unwrap(), "one\ntwo\nthree").unwrap();
        assert_eq!(tail(&path, 2), ["two", "three"]);
    }
}
