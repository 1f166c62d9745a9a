//! The threads of one lane: who is next, and what becomes of a thread that doesn't come back.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::{
    ScriptError, ScriptLimits,
    clock::Pulse,
    ticket::{Look, Ticket},
    worker::Worker,
};

/// Calls that may wait. Behind each is a blocked thread of the server's, which has some hundreds.
const MOST_WAITING: usize = 256;
/// Calls of one owner that may wait, so that others find room.
const MOST_WAITING_OF_ONE: usize = MOST_WAITING / 2;
/// Threads that may be given up at once, and are replaced: each still uses a core until its loop ends.
const MOST_LOST: usize = 4;
/// A thread that is over its time by this much is stuck inside the engine, where no clock stops it.
const GRACE: Duration = Duration::from_secs(2);
/// A thread without work lets its runtimes go after this time; they are made anew in a millisecond.
const IDLE: Duration = Duration::from_secs(60);
/// How often one who waits looks after the thread.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Stack of a thread beyond what JavaScript may use: the engine's own and ours, from where it last looked.
const STACK_BESIDE: usize = 1 << 20;

type Work = Box<dyn FnOnce(&mut Worker, &Arc<Pulse>) + Send>;

/// The threads of one lane.
pub(crate) struct Pool {
    name: &'static str,
    limits: ScriptLimits,
    most_threads: usize,
    most_wait: Duration,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    running: HashMap<Arc<str>, usize>,
    threads: usize,
    idle: usize,
    lost: usize,
    /// The threads that were given up and have not ended, and in whose functions they are stuck.
    stuck: Vec<(Arc<Pulse>, Arc<str>)>,
    pulses: Vec<Arc<Pulse>>,
    closed: bool,
}

struct Waiting {
    owner: Arc<str>,
    work: Work,
}

impl Pool {
    /// Threads start when they are needed. A call waits for one no longer than `most_wait`.
    pub(crate) fn new(name: &'static str, limits: ScriptLimits, most_threads: usize, most_wait: Duration) -> Arc<Self> {
        let most_threads = most_threads.max(1);
        Arc::new(Self { name, limits, most_threads, most_wait, state: Mutex::default(), wake: Condvar::new() })
    }

    /// Runs `work` on a thread, and waits for it. An error comes with whether the thread was given up for it.
    pub(crate) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        owner: Arc<str>,
        function: &str,
        work: impl FnOnce(&mut Worker) -> Result<T, ScriptError> + Send + 'static,
    ) -> Result<T, (ScriptError, bool)> {
        let (ticket, reply) = Ticket::new();
        let name = function.to_owned();
        self.submit(Waiting {
            owner: Arc::clone(&owner),
            work: Box::new(move |worker, pulse| {
                if !reply.start(pulse) {
                    return;
                }
                let result = catch_unwind(AssertUnwindSafe(|| work(worker))).unwrap_or_else(|_| {
                    worker.forget_all();
                    Err(ScriptError::BadResult { function: name, message: "the engine failed".to_owned() })
                });
                reply.send(result);
            }),
        })
        .map_err(|error| (error, false))?;
        self.wait(&ticket, &owner, function)
    }

    /// Whether a thread was given up in a function of this owner's, and has not ended. Nothing of the owner's is run
    /// meanwhile: the next function could take the next thread.
    pub(crate) fn has_lost_one(&self, owner: &str) -> bool {
        self.state.lock().has_lost_one(owner)
    }

    /// Stops what runs, and lets nothing begin.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.pulses.iter().for_each(|pulse| pulse.give_up());
        // Dropped without the lock: each tells the one who waits for it.
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.wake.notify_all();
        drop(waiting);
    }

    fn submit(self: &Arc<Self>, waiting: Waiting) -> Result<(), ScriptError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(ScriptError::Closed);
        }
        let of_owner = state.waiting.iter().filter(|other| other.owner == waiting.owner).count();
        if state.waiting.len() >= MOST_WAITING || of_owner >= MOST_WAITING_OF_ONE {
            return Err(ScriptError::Busy);
        }
        state.waiting.push_back(waiting);
        if state.idle < state.waiting.len() && state.threads < self.most_threads {
            self.spawn(&mut state);
        }
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    fn wait<T>(&self, ticket: &Ticket<T>, owner: &Arc<str>, function: &str) -> Result<T, (ScriptError, bool)> {
        let began = Instant::now();
        let longest = Duration::from_millis(self.limits.time_ms) * ScriptLimits::WALL_FACTOR as u32 + GRACE;
        let mut beat = (0, Instant::now());
        loop {
            match ticket.look(LOOK_EVERY) {
                Look::Done(Err(ScriptError::TooLong { .. })) if self.state.lock().closed => {
                    return Err((ScriptError::Closed, false));
                }
                Look::Done(result) => return result.map_err(|error| (error, false)),
                Look::Waiting if began.elapsed() > self.most_wait => {
                    return ticket.leave(|| ()).unwrap_or(Err(ScriptError::Busy)).map_err(|error| (error, false));
                }
                Look::Waiting => beat = (0, Instant::now()),
                Look::Running(pulse) if pulse.beats() != beat.0 => beat = (pulse.beats(), Instant::now()),
                Look::Running(pulse) if beat.1.elapsed() > longest => {
                    let late = ticket.leave(|| self.lose(&pulse, owner, function));
                    let stuck = late.is_none();
                    let too_long = || Err(ScriptError::TooLong { function: function.to_owned() });
                    return late.unwrap_or_else(too_long).map_err(|error| (error, stuck));
                }
                Look::Running(_) => {}
            }
        }
    }

    /// Gives a thread up. Another takes its place, unless too many were given up already.
    fn lose(&self, pulse: &Arc<Pulse>, owner: &Arc<str>, function: &str) {
        let mut state = self.state.lock();
        pulse.give_up();
        tracing::error!(function, lane = self.name, "a thread is stuck in a function and is given up");
        state.stuck.push((Arc::clone(pulse), Arc::clone(owner)));
        if state.lost < MOST_LOST {
            state.lost += 1;
            state.threads -= 1;
            state.leave(owner);
            pulse.replace();
        }
        drop(state);
        self.wake.notify_all();
    }

    fn spawn(self: &Arc<Self>, state: &mut State) {
        let pulse = Arc::new(Pulse::default());
        let (pool, own) = (Arc::clone(self), Arc::clone(&pulse));
        let thread = thread::Builder::new()
            .name(format!("script-{}", self.name))
            .stack_size(self.limits.stack_bytes + STACK_BESIDE)
            .spawn(move || pool.serve(&own));
        match thread {
            Ok(_) => {
                state.threads += 1;
                state.pulses.push(pulse);
            }
            Err(error) => tracing::error!(%error, lane = self.name, "no thread for functions"),
        }
    }

    /// The life of a thread.
    fn serve(self: &Arc<Self>, pulse: &Arc<Pulse>) {
        let mut worker = Worker::new(self.limits, Arc::clone(pulse));
        let mut state = self.state.lock();
        while !state.closed && !pulse.unwanted() {
            let Some(next) = state.next(self.most_of_one()) else {
                state.idle += 1;
                let idle = self.wake.wait_for(&mut state, IDLE).timed_out();
                state.idle -= 1;
                if idle && state.waiting.is_empty() {
                    MutexGuard::unlocked(&mut state, || worker.forget_all());
                }
                continue;
            };
            // One that waits may be free to go now, or this thread was meant for another.
            if !state.waiting.is_empty() {
                if state.idle == 0 && state.threads < self.most_threads {
                    self.spawn(&mut state);
                }
                self.wake.notify_one();
            }
            let owner = Arc::clone(&next.owner);
            *state.running.entry(Arc::clone(&owner)).or_default() += 1;
            drop(state);
            (next.work)(&mut worker, pulse);
            worker.end();
            state = self.state.lock();
            if !pulse.replaced() {
                state.leave(&owner);
            }
        }
        if pulse.replaced() {
            state.lost -= 1;
        } else {
            state.threads -= 1;
        }
        state.pulses.retain(|other| !Arc::ptr_eq(other, pulse));
        state.stuck.retain(|(other, _)| !Arc::ptr_eq(other, pulse));
        drop(state);
        // What waits may be of an owner who may go on now.
        self.wake.notify_all();
    }

    /// How many threads one owner may hold at once: one is left for the others.
    fn most_of_one(&self) -> usize {
        (self.most_threads - 1).max(1)
    }
}

impl State {
    /// The call that is next: of the owner with the fewest that run, the one that waits longest.
    fn next(&mut self, most_of_one: usize) -> Option<Waiting> {
        let running = |owner| self.running.get(owner).copied().unwrap_or(0);
        let (at, busy) = self
            .waiting
            .iter()
            .enumerate()
            .filter(|(_, waiting)| !self.has_lost_one(&waiting.owner))
            .map(|(at, waiting)| (at, running(&waiting.owner)))
            .min_by_key(|&(at, busy)| (busy, at))?;
        if busy >= most_of_one { None } else { self.waiting.remove(at) }
    }

    fn has_lost_one(&self, owner: &str) -> bool {
        self.stuck.iter().any(|(_, other)| **other == *owner)
    }

    /// A call of this owner's runs no longer.
    fn leave(&mut self, owner: &Arc<str>) {
        if let Some(count) = self.running.get_mut(owner) {
            *count -= 1;
            if *count == 0 {
                self.running.remove(owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        thread,
        time::{Duration, Instant},
    };

    use super::{MOST_WAITING_OF_ONE, Pool};
    use crate::{ScriptError, ScriptLimits};

    const LONG: Duration = Duration::from_secs(60);

    fn pool(threads: usize, time_ms: u64, most_wait: Duration) -> Arc<Pool> {
        Pool::new("test", ScriptLimits { time_ms, ..ScriptLimits::default() }, threads, most_wait)
    }

    fn until(what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn one_owner_fills_half_of_the_queue_and_leaves_a_thread() {
        let pool = pool(2, 60_000, LONG);
        let (open, gate) = mpsc::channel::<()>();
        let gate = Arc::new(parking_lot::Mutex::new(gate));
        thread::scope(|scope| {
            let ask = || {
                let gate = Arc::clone(&gate);
                pool.run(Arc::from("a"), "f", move |_| Ok(gate.lock().recv().is_err()))
            };
            let asking: Vec<_> = (0..=MOST_WAITING_OF_ONE).map(|_| scope.spawn(ask)).collect();
            // One runs, for the other thread is not this owner's; all others wait.
            until("the queue is full", || {
                let state = pool.state.lock();
                state.waiting.len() == MOST_WAITING_OF_ONE && state.running.values().sum::<usize>() == 1
            });
            assert_eq!(ask(), Err((ScriptError::Busy, false)));
            assert_eq!(pool.run(Arc::from("b"), "f", |_| Ok(7)), Ok(7));
            drop(open);
            for asked in asking {
                assert_eq!(asked.join().unwrap(), Ok(true));
            }
        });
        until("nothing is counted", || pool.state.lock().running.is_empty());
        pool.close();
        until("the threads end", || pool.state.lock().threads == 0);
    }

    #[test]
    fn who_waits_too_long_leaves() {
        let pool = pool(1, 60_000, Duration::from_millis(10));
        let (open, gate) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let first = scope.spawn(|| pool.run(Arc::from("a"), "f", move |_| Ok(gate.recv().is_err())));
            until("it runs", || !pool.state.lock().running.is_empty());
            let late: Result<(), _> = pool.run(Arc::from("b"), "f", |_| unreachable!("nobody waits for it"));
            assert_eq!(late, Err((ScriptError::Busy, false)));
            drop(open);
            assert_eq!(first.join().unwrap(), Ok(true));
        });
        assert_eq!(pool.run(Arc::from("b"), "f", |_| Ok(1)), Ok(1));
    }

    #[test]
    fn a_thread_that_does_not_come_back_is_replaced_and_ends_when_it_does() {
        let pool = pool(1, 1, LONG);
        let (open, gate) = mpsc::channel::<()>();
        let stuck = pool.run(Arc::from("a"), "f", move |_| Ok(gate.recv().is_err()));
        assert_eq!(stuck, Err((ScriptError::TooLong { function: "f".to_owned() }, true)));
        assert_eq!(pool.state.lock().lost, 1);
        assert!(pool.has_lost_one("a") && !pool.has_lost_one("b"));
        assert_eq!(pool.run(Arc::from("b"), "f", |_| Ok(1)), Ok(1));
        drop(open);
        until("it ends", || pool.state.lock().lost == 0);
        until("nothing is counted", || pool.state.lock().running.is_empty());
        assert!(!pool.has_lost_one("a"));
        assert_eq!(pool.run(Arc::from("a"), "f", |_| Ok(1)), Ok(1));
        assert_eq!(pool.state.lock().threads, 1);
    }

    #[test]
    fn a_panic_ends_its_own_call() {
        let pool = pool(1, 1_000, LONG);
        let panicked: Result<(), _> = pool.run(Arc::from("a"), "f", |_| panic!("on purpose"));
        assert!(matches!(panicked, Err((ScriptError::BadResult { .. }, false))));
        assert_eq!(pool.run(Arc::from("a"), "f", |_| Ok(1)), Ok(1));
    }
}
