//! A real process is killed in the middle of its writes; what it acknowledged must be there.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Batch, Direction, EngineKind, Snapshot, Space};

/// Set in the child process: the folder that it writes to.
const CHILD_FOLDER: &str = "REAN_ENGINE_CRASH_FOLDER";

/// Rounds of load and kill on one store. Each round also opens what the last kill left.
const ROUNDS: usize = 4;

/// Acknowledged commits after which a round is killed: different places in the journal, and
/// enough to pass a memtable's 8 MiB in the later rounds.
const ACKNOWLEDGED_A_ROUND: [u64; ROUNDS] = [3, 40, 150, 700];

/// Puts in a batch, spread over three key spaces.
const PUTS: u64 = 30;

/// The child writes for ever; a machine under load gets this long to acknowledge a round.
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn a_killed_process_loses_nothing_acknowledged_and_tears_no_batch() {
    if let Some(folder) = std::env::var_os(CHILD_FOLDER) {
        write_until_killed(&PathBuf::from(folder));
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("store");
    let mut at_least = 0;
    for wanted in ACKNOWLEDGED_A_ROUND {
        at_least = load_and_kill(&folder, at_least + wanted);
        let engine = super::open(EngineKind::Fjall, &folder).unwrap();
        let view = engine.snapshot();
        let found = last_commit(&*view);
        assert!(found >= at_least, "{at_least} were acknowledged, {found} are there");
        for commit in 1..=found {
            check_whole(&*view, commit);
        }
        let beyond = key(found + 1, 0);
        for space in (0..PUTS).map(space_of) {
            let torn = view.range(space, &beyond, &[0xff; 17], Direction::Forward).count();
            assert_eq!(torn, 0, "parts of a batch after {found}");
        }
        at_least = found;
    }
}

/// The child's part: commits with ever higher numbers, each told on stdout when it is durable.
fn write_until_killed(folder: &Path) -> ! {
    let engine = super::open(EngineKind::Fjall, folder).unwrap();
    let first = last_commit(&*engine.snapshot()) + 1;
    let mut out = std::io::stdout().lock();
    for commit in first.. {
        let mut batch = Batch::new();
        batch.put(Space::Meta, "last", commit.to_be_bytes().to_vec());
        for put in 0..PUTS {
            batch.put(space_of(put), key(commit, put), value(commit, put));
        }
        // Every third only reaches the system, as the store's own unimportant writes do.
        let durable = commit % 3 != 0;
        engine.commit(batch, durable).unwrap();
        writeln!(out, "acknowledged {commit}").and_then(|()| out.flush()).unwrap();
    }
    unreachable!("there are no more numbers")
}

/// Runs the child until it has acknowledged `wanted`, kills it, and returns the last number seen.
fn load_and_kill(folder: &Path, wanted: u64) -> u64 {
    // The test binary, asked to run only this test. The name is that of the module below the crate.
    let module = module_path!().split_once("::").unwrap().1;
    let test = format!("{module}::a_killed_process_loses_nothing_acknowledged_and_tears_no_batch");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &test, "--nocapture"])
        .env(CHILD_FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acknowledged = 0;
    let start = Instant::now();
    let mut killed = false;
    // To the end of the pipe: what was written before the kill counts.
    for line in BufReader::new(child.stdout.take().unwrap()).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        if let Some(number) = line.split("acknowledged ").nth(1) {
            // The last line may be cut short by the kill; then it is only lower.
            acknowledged = number.parse().unwrap_or(acknowledged).max(acknowledged);
        }
        if !killed && (acknowledged >= wanted || start.elapsed() > DEADLINE) {
            child.kill().unwrap();
            killed = true;
        }
    }
    let status = child.wait().unwrap();
    assert!(acknowledged >= wanted, "the child ended at {acknowledged} of {wanted}: {status}");
    acknowledged
}

fn last_commit(view: &dyn Snapshot) -> u64 {
    let last = view.get(Space::Meta, b"last").unwrap();
    last.map_or(0, |bytes| u64::from_be_bytes(bytes[..].try_into().unwrap()))
}

fn check_whole(view: &dyn Snapshot, commit: u64) {
    for put in 0..PUTS {
        let found = view.get(space_of(put), &key(commit, put)).unwrap();
        assert!(found.as_deref() == Some(&value(commit, put)), "commit {commit}, put {put}");
    }
}

fn space_of(put: u64) -> Space {
    [Space::Docs, Space::Seqs, Space::Bodies][put as usize % 3]
}

fn key(commit: u64, put: u64) -> Vec<u8> {
    [commit.to_be_bytes(), put.to_be_bytes()].concat()
}

/// Mostly small; now and then above the size from which bodies live outside the tree.
fn value(commit: u64, put: u64) -> Vec<u8> {
    let len = if (commit + put).is_multiple_of(17) { 20_000 } else { 300 };
    (0..len).map(|at| (commit.wrapping_mul(31) + put + at) as u8).collect()
}
