//! `/_node/NAME/_logs`: what a pod's programs have logged, for administrators.
//!
//! ```json
//! {"pod": "pod-1", "program": "rean", "lines": ["..."], "position": "1234-0a1b2c3d", "more": false, "gap": false}
//! ```
//! The agent sees that the files stay short: one that has grown is copied to `NAME.log.1` and cut to nothing
//! (`adea::logs`), so the copy has the same lines at the same places. A position names a place and, by what the file
//! begins with, which file: who follows a log goes on in the copy when the file was cut.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::StatusCode;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::databases::{blocking, json_line};
use crate::error::ApiError;
use crate::pod::Pod;
use crate::route::{Request, Response};

/// The programs that keep a log.
const PROGRAMS: [&str; 3] = ["rean", "proxy", "adea"];
/// Lines of an answer when nobody says how many.
const LINES: u64 = 200;
/// The most lines of an answer.
const MAX_LINES: u64 = 10_000;
/// Bytes of a log that are read for one answer: some thousand lines.
const WINDOW_BYTES: u64 = 1 << 20;
/// A file is known by so many of its first bytes: a line begins with the time, to the microsecond.
const HEAD_BYTES: u64 = 64;

/// What of a log somebody wants.
pub struct Asked {
    program: &'static str,
    lines: usize,
    since: Option<Position>,
}

/// A place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    offset: u64,
    /// What the file begins with, up to the place.
    head: u32,
}

/// What of a log is told.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    lines: Vec<String>,
    position: Position,
    /// Whether there is more to be had at once.
    more: bool,
    /// Whether lines are missing before these.
    gap: bool,
}

impl Asked {
    /// Reads the parameters `program`, `lines` and `since`.
    ///
    /// # Errors
    /// 400 for a program, a number or a position that is none.
    pub fn of(request: &Request) -> Result<Self, ApiError> {
        let asked = request.query.get("program").unwrap_or("rean");
        let program = *PROGRAMS
            .iter()
            .find(|name| **name == asked)
            .ok_or_else(|| ApiError::bad_request(format!("`program` must be one of {}", PROGRAMS.join(", "))))?;
        let lines = request.query.u64("lines")?.unwrap_or(LINES);
        if !(1..=MAX_LINES).contains(&lines) {
            return Err(ApiError::bad_request(format!("`lines` must be from 1 to {MAX_LINES}")));
        }
        let since = request.query.get("since").map(str::parse).transpose();
        let since = since.map_err(|()| ApiError::bad_request("`since` must be the `position` of an answer"))?;
        Ok(Self { program, lines: usize::try_from(lines).unwrap_or(usize::MAX), since })
    }
}

/// `GET /_node/_local/_logs?program=rean&lines=200&since=POSITION`. The caller has checked that an administrator asks.
///
/// # Errors
/// 404 where the program's log is kept elsewhere.
pub async fn logs(pod: &Arc<Pod>, asked: Asked) -> Result<Response, ApiError> {
    let Asked { program, lines, since } = asked;
    let Some(folder) = pod.logs_dir.clone() else { return Err(elsewhere(program)) };
    let path = folder.join(format!("{program}.log"));
    let told = blocking(move || match since {
        None => tail(&path, lines),
        Some(since) => following(&path, since, lines),
    });
    let told = told.await?.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => elsewhere(program),
        _ => ApiError::internal("the log can't be read").with_cause(error),
    })?;
    let answer = json!({
        "pod": pod.ring.me(),
        "program": program,
        "lines": told.lines,
        "position": told.position.to_string(),
        "more": told.more,
        "gap": told.gap,
    });
    Ok(json_line(StatusCode::OK, &answer))
}

fn elsewhere(program: &str) -> ApiError {
    ApiError::not_found(format!(
        "The log of {program} is not kept where the pod could read it: look at the machine's own, such as \
         `journalctl -u adea`."
    ))
}

/// The last lines.
fn tail(path: &Path, lines: usize) -> io::Result<Told> {
    let mut file = open(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(WINDOW_BYTES);
    let (mut last, end) = whole_lines(&mut file, from, length, from > 0)?;
    let position = Position { offset: end, head: head(&mut file, end)? };
    let mut cut = from > 0;
    if last.len() < lines && from == 0 {
        // It was cut not long ago: the lines before are in the copy.
        if let Ok(mut before) = open(&set_aside(path)) {
            let length = before.metadata()?.len();
            let from = length.saturating_sub(WINDOW_BYTES);
            let (earlier, _) = whole_lines(&mut before, from, length, from > 0)?;
            cut = from > 0;
            earlier.into_iter().rev().for_each(|line| last.push_front(line));
        }
    }
    let gap = cut && last.len() < lines;
    last.drain(..last.len().saturating_sub(lines));
    Ok(Told { lines: last.into(), position, more: false, gap })
}

/// The lines after a place.
fn following(path: &Path, since: Position, lines: usize) -> io::Result<Told> {
    let mut file = open(path)?;
    let length = file.metadata()?.len();
    if length >= since.offset && head(&mut file, since.offset)? == since.head {
        return forward(&mut file, since.offset, length, lines, false);
    }
    // It was cut meanwhile. If the copy is of that file, it goes on there; a next question comes to the new file.
    if let Ok(mut before) = open(&set_aside(path)) {
        let length = before.metadata()?.len();
        if length >= since.offset && head(&mut before, since.offset)? == since.head {
            let mut told = forward(&mut before, since.offset, length, lines, false)?;
            if !told.lines.is_empty() {
                told.more = true;
                return Ok(told);
            }
            return forward(&mut file, 0, file_length(path)?, lines, false);
        }
    }
    forward(&mut file, 0, length, lines, true)
}

fn file_length(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.len())
}

fn forward(file: &mut File, from: u64, length: u64, most: usize, gap: bool) -> io::Result<Told> {
    let to = length.min(from.saturating_add(WINDOW_BYTES));
    let (lines, mut end) = whole_lines(file, from, to, false)?;
    let mut more = end < length && end > from;
    let mut lines: Vec<String> = lines.into();
    if lines.len() > most {
        // Where the last of them ends is found by reading once more: it rarely comes to this.
        lines.truncate(most);
        end = end_of_lines(file, from, to, most)?;
        more = true;
    } else if end == from && to - from == WINDOW_BYTES {
        // A line that is longer than all that is read: it is no line of ours.
        end = to;
        more = true;
    }
    Ok(Told { lines, position: Position { offset: end, head: head(file, end)? }, more, gap })
}

/// The lines of a part of a file that have ended, and where the last of them ends. `is_cut`: the part begins within a line.
fn whole_lines(file: &mut File, from: u64, to: u64, is_cut: bool) -> io::Result<(VecDeque<String>, u64)> {
    let bytes = part(file, from, to)?;
    let Some(last) = bytes.iter().rposition(|byte| *byte == b'\n') else { return Ok((VecDeque::new(), from)) };
    let lines = bytes[..last].split(|byte| *byte == b'\n').skip(usize::from(is_cut));
    Ok((lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect(), from + last as u64 + 1))
}

fn end_of_lines(file: &mut File, from: u64, to: u64, count: usize) -> io::Result<u64> {
    let bytes = part(file, from, to)?;
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    let last = ends.map(|(at, _)| at as u64 + 1).nth(count.saturating_sub(1));
    Ok(from + last.unwrap_or(bytes.len() as u64))
}

fn part(file: &mut File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.take(to.saturating_sub(from)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What the file begins with, of what lies before a place.
fn head(file: &mut File, offset: u64) -> io::Result<u32> {
    let digest = Sha256::digest(part(file, 0, offset.min(HEAD_BYTES))?);
    Ok(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
}

/// Only a plain file: what else is there, the agent hasn't made.
fn open(path: &Path) -> io::Result<File> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    File::open(path)
}

fn set_aside(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{:08x}", self.offset, self.head)
    }
}

impl std::str::FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (offset, head) = text.split_once('-').ok_or(())?;
        let head = u32::from_str_radix(head, 16).map_err(|_| ())?;
        Ok(Self { offset: offset.parse().map_err(|_| ())?, head })
    }
}

#[cfg(test)]
mod tests {
    use super::{Position, WINDOW_BYTES, following, set_aside, tail};
    use std::fs;
    use std::io::Write;
    use std::path::Path;

    fn append(path: &Path, text: &str) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).expect("a file");
        file.write_all(text.as_bytes()).expect("written");
    }

    /// As the agent does it.
    fn cut(path: &Path) {
        fs::copy(path, set_aside(path)).expect("copied");
        fs::OpenOptions::new().write(true).open(path).expect("a file").set_len(0).expect("cut");
    }

    #[test]
    fn a_log_is_followed_line_by_line_also_when_it_is_cut() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("rean.log");
        append(&path, "1\n2\n3\nunfini");
        let first = tail(&path, 2).expect("a tail");
        assert_eq!((first.lines.as_slice(), first.gap), (["2".to_owned(), "3".to_owned()].as_slice(), false));
        let same = following(&path, first.position, 9).expect("nothing");
        assert!(same.lines.is_empty() && same.position == first.position && !same.more);
        append(&path, "shed\n5\n");
        let next = following(&path, first.position, 1).expect("more");
        assert_eq!((next.lines.as_slice(), next.more), (["unfinished".to_owned()].as_slice(), true));
        append(&path, "6\n");
        cut(&path);
        append(&path, "7\n");
        let from_copy = following(&path, next.position, 9).expect("the copy");
        assert_eq!((from_copy.lines.as_slice(), from_copy.more), (["5".to_owned(), "6".to_owned()].as_slice(), true));
        let new = following(&path, from_copy.position, 9).expect("the new file");
        assert_eq!((new.lines.as_slice(), new.gap), (["7".to_owned()].as_slice(), false));
        assert_eq!(tail(&path, 3).expect("a tail").lines, ["5", "6", "7"]);
        // Cut twice in between: it says that something is missing.
        cut(&path);
        append(&path, "8\n");
        cut(&path);
        append(&path, "9\n");
        let late = following(&path, next.position, 9).expect("what is there");
        assert!(late.gap && late.lines == ["9"], "{late:?}");
    }

    #[test]
    fn no_answer_is_larger_than_its_bound() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("rean.log");
        let line = format!("{}\n", "x".repeat(1023));
        append(&path, &line.repeat(3_000));
        let told = tail(&path, 10_000).expect("a tail");
        assert!(told.gap && told.lines.len() as u64 <= WINDOW_BYTES / 1024);
        let mut position: Position = "0-e3b0c442".parse().expect("the beginning");
        let mut count = 0;
        loop {
            let told = following(&path, position, 10_000).expect("a part");
            count += told.lines.len();
            position = told.position;
            if !told.more {
                break;
            }
        }
        assert_eq!(count, 3_000);
        append(&path, &"y".repeat(2 << 20));
        let told = following(&path, position, 9).expect("a part");
        assert!(told.lines.is_empty() && told.more && told.position.offset > position.offset);
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("rean.log");
        std::os::unix::fs::symlink("/etc/passwd", &path).expect("a link");
        assert_eq!(tail(&path, 5).expect_err("refused").kind(), std::io::ErrorKind::NotFound);
    }

    #[test]
    fn positions_are_read_back() {
        let position = Position { offset: 17, head: 0xa1 };
        assert_eq!(position.to_string().parse(), Ok(position));
        for bad in ["", "-", "1", "x-00", "1-zz", "-1-0"] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
    }
}
