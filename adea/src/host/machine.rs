//! What `/proc` tells (proc(5)). What it doesn't tell is none, or 0.

use std::fs;

/// Ticks of all cores together since the machine started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// All.
    pub total: u64,
    /// Those in which something ran.
    pub busy: u64,
    /// How many cores there are.
    pub cores: u32,
}

/// What a process has used and occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Ticks on any core.
    pub ticks: u64,
    /// What it has in memory, in bytes.
    pub memory_bytes: u64,
}

/// The machine's ticks.
pub fn cpu_times() -> Option<Times> {
    parse_times(&fs::read_to_string("/proc/stat").ok()?)
}

/// The machine's memory, and what of it programs could still get, in bytes.
pub fn memory() -> (u64, u64) {
    fs::read_to_string("/proc/meminfo").map(|text| parse_memory(&text)).unwrap_or_default()
}

/// A process.
pub fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let memory = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = memory.split(' ').nth(1)?.parse().ok()?;
    let page_bytes = rustix::param::page_size() as u64;
    Some(Process { ticks: parse_ticks(&stat)?, memory_bytes: pages.saturating_mul(page_bytes) })
}

fn parse_times(text: &str) -> Option<Times> {
    let mut lines = text.lines();
    // "cpu  user nice system idle iowait irq softirq steal guest guest_nice"; guests are counted as users already.
    let numbers: Vec<u64> =
        lines.next()?.strip_prefix("cpu ")?.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
    let idle = numbers.get(3)? + numbers.get(4).copied().unwrap_or(0);
    let total: u64 = numbers.iter().sum();
    let cores = lines.take_while(|line| line.starts_with("cpu")).count();
    Some(Times { total, busy: total.saturating_sub(idle), cores: u32::try_from(cores).ok()? })
}

fn parse_memory(text: &str) -> (u64, u64) {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or(0).saturating_mul(1_024)
    };
    (bytes("MemTotal"), bytes("MemAvailable"))
}

/// The ticks out of `/proc/PID/stat`. The program's name stands in brackets and may have any character.
fn parse_ticks(text: &str) -> Option<u64> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut words = rest.split_whitespace().skip(11);
    let user: u64 = words.next()?.parse().ok()?;
    let system: u64 = words.next()?.parse().ok()?;
    Some(user.saturating_add(system))
}

#[cfg(test)]
mod tests {
    use super::{Times, parse_memory, parse_ticks, parse_times};

    #[test]
    fn what_linux_writes_is_read() {
        let stat = "cpu  10 1 5 80 4 0 2 1 3 0\ncpu0 5 1 2 40 2 0 1 0 0 0\ncpu1 5 0 3 40 2 0 1 1 0 0\nintr 5\n";
        assert_eq!(parse_times(stat), Some(Times { total: 103, busy: 19, cores: 2 }));
        assert_eq!(parse_memory("MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:  1024 kB\n"), (2 << 20, 1 << 20));
        let line = "7 (a) b) (c) S 1 7 7 0 -1 4194560 100 0 0 0 30 12 0 0 20 0 1 0 100 1000 200";
        assert_eq!(parse_ticks(line), Some(42));
    }

    #[test]
    fn what_makes_no_sense_is_none() {
        for text in ["", "cpu", "cpu  1 2", "mem 1 2 3 4 5"] {
            assert_eq!(parse_times(text), None, "{text}");
        }
        for text in ["", "7 (a", "7 (a) S 1 2", "7 (a) S x x x x x x x x x x x x x"] {
            assert_eq!(parse_ticks(text), None, "{text}");
        }
        assert_eq!(parse_memory("MemTotal: lots"), (0, 0));
    }
}
