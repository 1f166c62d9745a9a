//! The clock of a thread that runs functions: when has this one had its time?

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cpu_time::ThreadTime;

use crate::ScriptLimits;

/// What a thread shows of itself to those who wait for it.
#[derive(Default)]
pub(crate) struct Pulse {
    /// Goes up with each document.
    beats: AtomicU64,
    /// Nobody waits for it any more: it must stop.
    unwanted: AtomicBool,
    /// Another thread has its place.
    replaced: AtomicBool,
}

impl Pulse {
    pub(crate) fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    pub(crate) fn give_up(&self) {
        self.unwanted.store(true, Ordering::Relaxed);
    }

    pub(crate) fn replace(&self) {
        self.replaced.store(true, Ordering::Relaxed);
    }

    pub(crate) fn replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    pub(crate) fn unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Relaxed)
    }
}

/// The clock of one thread.
pub(crate) struct Clock {
    pulse: Arc<Pulse>,
    document: Span,
    whole: Span,
    /// A document began, and its time is taken when the engine asks the next time: that saves a system call a document.
    fresh: Cell<bool>,
    tripped: Cell<bool>,
}

struct Span {
    cpu_from: Cell<ThreadTime>,
    wall_from: Cell<Instant>,
    cpu: Cell<Duration>,
}

impl Span {
    fn new() -> Self {
        Self {
            cpu_from: Cell::new(ThreadTime::now()),
            wall_from: Cell::new(Instant::now()),
            cpu: Cell::new(Duration::ZERO),
        }
    }

    fn begin(&self) {
        self.cpu_from.set(ThreadTime::now());
        self.wall_from.set(Instant::now());
    }

    fn over(&self) -> bool {
        self.wall_from.get().elapsed() > self.cpu.get() * ScriptLimits::WALL_FACTOR as u32
            || self.cpu_from.get().elapsed() > self.cpu.get()
    }
}

impl Clock {
    pub(crate) fn new(pulse: Arc<Pulse>) -> Self {
        Self { pulse, document: Span::new(), whole: Span::new(), fresh: Cell::new(false), tripped: Cell::new(false) }
    }

    /// A call with so many documents begins.
    pub(crate) fn begin(&self, documents: usize, time_ms: u64) {
        let most = (documents as u64).clamp(1, ScriptLimits::BATCH_FACTOR);
        self.document.cpu.set(Duration::from_millis(time_ms));
        self.whole.cpu.set(Duration::from_millis(time_ms.saturating_mul(most)));
        self.whole.begin();
        self.step();
    }

    /// The next document begins.
    pub(crate) fn step(&self) {
        self.pulse.beats.fetch_add(1, Ordering::Relaxed);
        self.fresh.set(true);
        self.tripped.set(false);
    }

    /// Whether the whole call is over its time.
    pub(crate) fn all_over(&self) -> bool {
        self.pulse.unwanted() || self.whole.over()
    }

    /// Whether nobody waits for the call any more.
    pub(crate) fn unwanted(&self) -> bool {
        self.pulse.unwanted()
    }

    /// Whether the function that runs must stop; the engine asks every some thousand steps.
    pub(crate) fn check(&self) -> bool {
        if self.tripped.get() {
            return true;
        }
        if self.fresh.replace(false) {
            self.document.begin();
        }
        let over = self.document.over() || self.all_over();
        self.tripped.set(over);
        over
    }

    /// The whole call is over its time.
    pub(crate) fn trip(&self) {
        self.tripped.set(true);
    }

    /// Whether a function was stopped since the document began.
    pub(crate) fn tripped(&self) -> bool {
        self.tripped.get()
    }
}
