//! What the server's processes have used, from Linux's accounts (proc(5)).

use std::fs;

use anyhow::{Context, bail};
use rustix::param::clock_ticks_per_second;

/// The server's processes; there may be none, as with a server whose process ids nobody has told.
pub struct Processes {
    pids: Vec<u32>,
}

impl Processes {
    /// Processes that exist.
    pub fn new(mut pids: Vec<u32>) -> anyhow::Result<Self> {
        pids.sort_unstable();
        pids.dedup();
        let processes = Self { pids };
        if !processes.pids.is_empty() && (processes.cpu_us().is_none() || processes.rss_bytes().is_none()) {
            bail!("one of the processes {:?} does not exist", processes.pids);
        }
        Ok(processes)
    }

    /// Nobody's.
    pub const fn none() -> Self {
        Self { pids: Vec::new() }
    }

    /// Their ids.
    pub fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// Processor time that they have used so far, user and system, in microseconds; in steps of a tick, mostly 10 ms.
    pub fn cpu_us(&self) -> Option<u64> {
        let per_tick_us = 1_000_000 / clock_ticks_per_second().max(1);
        self.sum(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            ticks(&stat).ok().map(|ticks| ticks * per_tick_us)
        })
    }

    /// Memory that they have in RAM, in bytes.
    pub fn rss_bytes(&self) -> Option<u64> {
        self.sum(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
            Some(kib * 1024)
        })
    }

    fn sum(&self, of: impl Fn(u32) -> Option<u64>) -> Option<u64> {
        if self.pids.is_empty() {
            return None;
        }
        self.pids.iter().map(|pid| of(*pid)).sum()
    }
}

/// The columns utime and stime, the 14th and 15th. The second, the name, is in brackets and may hold anything.
fn ticks(stat: &str) -> anyhow::Result<u64> {
    let (_, after_name) = stat.rsplit_once(')').context("no name")?;
    let mut columns = after_name.split_whitespace().skip(11);
    let mut next = || -> anyhow::Result<u64> { Ok(columns.next().context("too short")?.parse()?) };
    Ok(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::{Processes, ticks};

    #[test]
    fn reads_a_stat_line_with_a_nasty_name() {
        let line = "12 (a) b (c) S 1 12 12 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 1 0 5 5 5";
        assert_eq!(ticks(line).unwrap(), 12);
        assert!(ticks("12 (a) S 1").is_err());
    }

    #[test]
    fn accounts_for_this_process() {
        let processes = Processes::new(vec![std::process::id()]).unwrap();
        assert!(processes.rss_bytes().unwrap() > 1 << 20);
        assert!(Processes::new(vec![u32::MAX]).is_err());
        assert!(Processes::new(vec![]).unwrap().cpu_us().is_none());
    }
}
