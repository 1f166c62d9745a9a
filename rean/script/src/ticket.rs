//! One waits for a call, the other makes it: what is between them.

use std::{sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex};

use crate::{ScriptError, clock::Pulse};

/// What is between the one who waits and the thread.
pub(crate) struct Ticket<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

enum State<T> {
    /// In the queue.
    Waiting,
    /// On a thread.
    Running(Arc<Pulse>),
    Done(Result<T, ScriptError>),
    /// Nobody waits any more.
    Left,
}

/// What the one who waits sees.
pub(crate) enum Look<T> {
    Waiting,
    Running(Arc<Pulse>),
    Done(Result<T, ScriptError>),
}

/// The thread's end of a ticket. Dropped without an answer, it says that the pool is closed.
pub(crate) struct Reply<T>(Arc<Ticket<T>>);

impl<T> Ticket<T> {
    pub(crate) fn new() -> (Arc<Self>, Reply<T>) {
        let ticket = Arc::new(Self { state: Mutex::new(State::Waiting), changed: Condvar::new() });
        (Arc::clone(&ticket), Reply(ticket))
    }

    /// Waits for an answer for so long at most.
    pub(crate) fn look(&self, wait: Duration) -> Look<T> {
        let mut state = self.state.lock();
        if !matches!(*state, State::Done(_)) {
            self.changed.wait_for(&mut state, wait);
        }
        match &mut *state {
            State::Waiting | State::Left => Look::Waiting,
            State::Running(pulse) => Look::Running(Arc::clone(pulse)),
            State::Done(result) => Look::Done(std::mem::replace(result, Err(ScriptError::Closed))),
        }
    }

    /// Stops waiting, unless the answer came meanwhile. `give_up` is called before anyone could answer.
    pub(crate) fn leave(&self, give_up: impl FnOnce()) -> Option<Result<T, ScriptError>> {
        let mut state = self.state.lock();
        if let State::Done(result) = &mut *state {
            return Some(std::mem::replace(result, Err(ScriptError::Closed)));
        }
        give_up();
        *state = State::Left;
        None
    }
}

impl<T> Reply<T> {
    /// The call begins on a thread; false if nobody waits any more.
    pub(crate) fn start(&self, pulse: &Arc<Pulse>) -> bool {
        let mut state = self.0.state.lock();
        if matches!(*state, State::Left) {
            return false;
        }
        *state = State::Running(Arc::clone(pulse));
        self.0.changed.notify_all();
        true
    }

    /// The answer.
    pub(crate) fn send(self, result: Result<T, ScriptError>) {
        self.set(result);
    }

    fn set(&self, result: Result<T, ScriptError>) {
        let mut state = self.0.state.lock();
        if matches!(*state, State::Waiting | State::Running(_)) {
            *state = State::Done(result);
            self.0.changed.notify_all();
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        self.set(Err(ScriptError::Closed));
    }
}
