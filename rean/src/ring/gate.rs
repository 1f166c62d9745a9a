//! The gate of writes: open on the write master only, and counting what has passed it, so that a role is given up
//! only after the last write that it let in has been answered.

use std::time::Duration;

use adea_ring::report::Role;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

/// Who may write now.
pub struct Gate {
    state: Mutex<State>,
    /// Tells of each change of role.
    role: watch::Sender<Role>,
    /// Writes that are under way.
    inside: watch::Sender<usize>,
    /// How often writes were cut off.
    cuts: watch::Sender<u64>,
    /// Until when the pod may be master without a further word of adea.
    lease_end: Mutex<Option<Instant>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Closed,
}

/// A write that was let in; it is under way until this is dropped.
pub struct Pass<'a> {
    gate: &'a Gate,
    cuts: watch::Receiver<u64>,
}

impl Pass<'_> {
    /// Resolves when this write has to end, done or not.
    pub async fn cut_off(&mut self) {
        // The gate is borrowed, so there is somebody who could cut.
        let _ = self.cuts.changed().await;
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.gate.inside.send_modify(|inside| *inside -= 1);
    }
}

impl Gate {
    /// The gate of a pod without a ring: open for good.
    pub fn open() -> Self {
        Self::new(State::Open)
    }

    /// The gate of a pod that knows no master yet.
    pub fn closed() -> Self {
        Self::new(State::Closed)
    }

    fn new(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            role: watch::Sender::default(),
            inside: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
            lease_end: Mutex::new(None),
        }
    }

    /// Lets writes in until then, as long as it is open; without a word, for good.
    pub fn lease_until(&self, end: Instant) {
        *self.lease_end.lock() = Some(end);
    }

    /// Whether writes are let in.
    pub fn is_open(&self) -> bool {
        *self.state.lock() == State::Open
    }

    /// Whether adea has been silent for too long; a pod that waits for no word of it never finds that.
    pub fn is_lease_over(&self) -> bool {
        self.lease_end.lock().is_some_and(|end| Instant::now() > end)
    }

    /// Lets a write in, on the master.
    pub fn enter(&self) -> Option<Pass<'_>> {
        let state = self.state.lock();
        // The lease is looked at here too: a process that stood still must not go on as if it had not.
        if *state == State::Closed || self.is_lease_over() {
            return None;
        }
        // Counted under the lock, so that who shuts the gate sees it.
        self.inside.send_modify(|inside| *inside += 1);
        Some(Pass { gate: self, cuts: self.cuts.subscribe() })
    }

    /// The role in force; a pod without a ring has none and is waiting for nobody.
    pub fn role(&self) -> Role {
        self.role.borrow().clone()
    }

    /// To follow the role.
    pub fn roles(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }

    /// Opens, as master of this role's epoch.
    pub fn open_as(&self, role: Role) {
        *self.state.lock() = State::Open;
        self.set_role(role);
    }

    /// Shuts, in this role, and waits until the writes that were let in are done, or until `patience` is over; gives
    /// how many are still under way then.
    pub async fn shut_as(&self, role: Role, patience: Duration) -> usize {
        *self.state.lock() = State::Closed;
        self.set_role(role);
        self.wait_empty(patience).await
    }

    /// Ends the writes that are still under way, as far as they can be ended; gives how many are left after `patience`.
    pub async fn cut(&self, patience: Duration) -> usize {
        self.cuts.send_modify(|cuts| *cuts += 1);
        self.wait_empty(patience).await
    }

    /// How many writes are under way.
    pub fn inside(&self) -> usize {
        *self.inside.borrow()
    }

    async fn wait_empty(&self, patience: Duration) -> usize {
        let mut inside = self.inside.subscribe();
        let done = tokio::time::timeout(patience, inside.wait_for(|inside| *inside == 0)).await.is_ok();
        if done { 0 } else { self.inside() }
    }

    fn set_role(&self, role: Role) {
        self.role.send_if_modified(|known| {
            let news = *known != role;
            *known = role;
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::Gate;
    use adea_ring::report::Role;
    use std::time::Duration;

    fn master() -> Role {
        Role::Master("000000000001-0000-a".parse().expect("a stamp"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_role_ends_after_its_last_write() {
        let gate = std::sync::Arc::new(Gate::closed());
        assert!(gate.enter().is_none());
        gate.open_as(master());
        let pass = gate.enter().expect("it is open");
        let shutting = {
            let gate = std::sync::Arc::clone(&gate);
            tokio::spawn(async move { gate.shut_as(Role::Waiting, Duration::from_secs(60)).await })
        };
        gate.roles().wait_for(|role| *role == Role::Waiting).await.expect("the gate is there");
        assert!(gate.enter().is_none() && !shutting.is_finished());
        drop(pass);
        assert_eq!(shutting.await.expect("no panic"), 0);
        gate.open_as(master());
        let mut pass = gate.enter().expect("it is open");
        assert_eq!(gate.shut_as(Role::Waiting, Duration::from_millis(5)).await, 1);
        let (left, ()) = tokio::join!(gate.cut(Duration::from_secs(60)), async move { pass.cut_off().await });
        assert_eq!(left, 0);
        gate.open_as(master());
        let mut pass = gate.enter().expect("it is open");
        assert!(tokio::time::timeout(Duration::from_secs(60), pass.cut_off()).await.is_err(), "an old cut");
    }
}
