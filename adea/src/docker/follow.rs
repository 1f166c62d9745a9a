//! A container's log, followed into a file of the data folder, so that logs are found in one place whatever the runtime.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use adea_ring::calendar::{date_of, days_to};
use bollard::query_parameters::LogsOptions;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::docker::Engine;
use crate::logs::{self, LOG_BYTES};

/// How long to wait before a log that has ended is asked for again: the engine may have been restarted.
const PAUSE: Duration = Duration::from_secs(1);
/// The same when nothing has come of it.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often to look at the length of the file, in bytes written.
const LOOK_BYTES: u64 = 1 << 20;
/// Length of the engine's time stamps, as `2026-01-31T12:00:00.000000001Z`.
const STAMP_BYTES: usize = 30;

/// Follows one container after another into the same file.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    group: u32,
    /// The stamp of the last line that is in the file.
    last: Arc<Mutex<Stamp>>,
    task: Option<JoinHandle<()>>,
    ended: watch::Receiver<bool>,
}

/// When a line was written, as the engine says it; such texts sort as their times do.
type Stamp = String;

impl Follower {
    /// Nothing is followed yet. `group` may read the file.
    pub fn new(path: PathBuf, group: u32) -> Self {
        // What came before the last write to the file is in it.
        let written = std::fs::metadata(&path).and_then(|meta| meta.modified());
        let last = written.map(stamp_of).unwrap_or_default();
        Self { path, group, last: Arc::new(Mutex::new(last)), task: None, ended: watch::channel(true).1 }
    }

    /// Follows this container instead of the one before.
    pub fn follow(&mut self, engine: Engine, id: String) {
        if let Some(before) = self.task.take() {
            before.abort();
        }
        let (path, group, last) = (self.path.clone(), self.group, Arc::clone(&self.last));
        let (ended, seen) = watch::channel(false);
        self.ended = seen;
        self.task = Some(tokio::spawn(async move {
            let mut pause = PAUSE;
            loop {
                let began = last.lock().clone();
                let followed = follow_once(&engine, &id, &path, group, &last).await;
                if let Err(err) = followed {
                    tracing::warn!("can't write {}: {err}", path.display());
                }
                ended.send_replace(true);
                pause = if *last.lock() == began { (pause * 2).min(LONGEST_PAUSE) } else { PAUSE };
                sleep(pause).await;
            }
        }));
    }

    /// Waits until the log of a container that has ended is in the file.
    pub async fn last_words(&mut self, limit: Duration) {
        // Whoever is late is cut off.
        let _ = timeout(limit, self.ended.wait_for(|ended| *ended)).await;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Follows a container until it ends or the engine goes.
async fn follow_once(engine: &Engine, id: &str, path: &Path, group: u32, last: &Mutex<Stamp>) -> io::Result<()> {
    // Without an engine there are no logs; whoever runs containers says so already.
    let Ok(docker) = engine.docker().await else { return Ok(()) };
    let since = last.lock().clone();
    let options = LogsOptions {
        follow: true,
        stdout: true,
        stderr: true,
        timestamps: true,
        since: seconds_of(&since),
        until: 0,
        tail: "all".to_owned(),
    };
    let mut lines = Box::pin(docker.logs(id, Some(options)));
    let mut file = open(path, group)?;
    let mut unlooked = 0;
    while let Some(Ok(line)) = lines.next().await {
        let line = line.into_bytes();
        let Some((stamp, text)) = split(&line) else { continue };
        if stamp <= since.as_str() {
            continue;
        }
        // A line into the system's cache: it takes microseconds, and no other task is worth the detour.
        file.write_all(text)?;
        if !text.ends_with(b"\n") {
            file.write_all(b"\n")?;
        }
        stamp.clone_into(&mut last.lock());
        unlooked += text.len() as u64;
        if unlooked >= LOOK_BYTES {
            unlooked = 0;
            bound(path, group)?;
        }
    }
    Ok(())
}

/// Opens the file so that containers of the pod may read it, and nobody else but its owner.
fn open(path: &Path, group: u32) -> io::Result<File> {
    let file = logs::open(path)?;
    share(path, group)?;
    Ok(file)
}

fn share(path: &Path, group: u32) -> io::Result<()> {
    // Who isn't root runs containers as itself, and need not share.
    if rustix::process::geteuid().is_root() {
        chown(path, None, Some(group))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o640))
}

fn bound(path: &Path, group: u32) -> io::Result<()> {
    if logs::bound(path, LOG_BYTES)? {
        let mut before = path.as_os_str().to_owned();
        before.push(".1");
        share(Path::new(&before), group)?;
    }
    Ok(())
}

/// A line's stamp and its text.
fn split(line: &[u8]) -> Option<(&str, &[u8])> {
    let (stamp, text) = line.split_at_checked(STAMP_BYTES)?;
    Some((std::str::from_utf8(stamp).ok()?, text.strip_prefix(b" ").unwrap_or(text)))
}

/// A time as the engine would write it.
fn stamp_of(time: SystemTime) -> Stamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date_of(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

/// The whole seconds since 1970 of a stamp, for the engine, which takes no more.
fn seconds_of(stamp: &str) -> i32 {
    let number = |from: usize, to: usize| stamp.get(from..to).and_then(|text| text.parse::<i64>().ok());
    let parts = (number(0, 4), number(5, 7), number(8, 10), number(11, 13), number(14, 16), number(17, 19));
    let (Some(year), Some(month), Some(day), Some(hour), Some(minute), Some(second)) = parts else { return 0 };
    let days = days_to(year, month, day);
    i32::try_from(((days * 24 + hour) * 60 + minute) * 60 + second).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{seconds_of, split, stamp_of};
    use std::time::{Duration, SystemTime};

    #[test]
    fn times_are_written_as_the_engine_does() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000005Z"),
            (951_782_400, "2000-02-29T00:00:00.000000005Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000005Z"),
            (1_790_000_000, "2026-09-21T14:13:20.000000005Z"),
        ] {
            let stamp = stamp_of(SystemTime::UNIX_EPOCH + Duration::new(seconds, 5));
            assert_eq!(stamp, text);
            assert_eq!(u64::try_from(seconds_of(&stamp)).unwrap(), seconds);
        }
        assert_eq!(seconds_of("no time"), 0);
    }

    #[test]
    fn a_line_is_split_from_its_stamp() {
        let line = b"2026-09-21T14:13:20.000000005Z a line\n";
        assert_eq!(split(line), Some(("2026-09-21T14:13:20.000000005Z", &b"a line\n"[..])));
        assert_eq!(split(b"short"), None);
    }
}
