//! What one call of a function may use, and how many threads run them.

use std::thread::available_parallelism;

/// What a call may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScriptLimits {
    /// Bytes of memory that the functions of one design document may hold on one thread.
    pub memory_bytes: usize,
    /// Bytes of stack; the threads have more, so that the engine notices before the system does.
    pub stack_bytes: usize,
    /// CPU time of one function with one document, in milliseconds. A call with many documents may take
    /// [`ScriptLimits::BATCH_FACTOR`] times as long in all; the clock on the wall may show four times as much.
    pub time_ms: u64,
    /// Threads that serve requests. Background work has one or two threads more.
    pub threads: usize,
}

impl ScriptLimits {
    /// How many documents of a batch may use up their whole time: a batch that is slow everywhere ends after a
    /// minute with the usual limit, which no caller should wait for longer.
    pub const BATCH_FACTOR: u64 = 12;
    /// The clock on the wall may show this many times the CPU time: a busy machine is no fault of the function.
    pub const WALL_FACTOR: u64 = 4;
}

impl Default for ScriptLimits {
    /// 64 MiB as CouchDB's JavaScript processes have, 1 MiB of stack, five seconds (`os_process_timeout`).
    fn default() -> Self {
        let cores = available_parallelism().map_or(2, usize::from);
        Self { memory_bytes: 64 << 20, stack_bytes: 1 << 20, time_ms: 5_000, threads: cores.max(2) }
    }
}
