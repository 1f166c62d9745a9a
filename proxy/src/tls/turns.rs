//! Handshakes that are going on, of which one address can't have all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Handshakes at once. Each may hold some 64 KiB of a client's first message: 256 MB at the most.
const MOST: usize = 4096;
/// Handshakes at once of one address. Further ones wait, for a whole office may come back at the same moment.
const MOST_OF_ADDRESS: usize = 256;

/// Who may do a handshake now.
pub struct Turns {
    all: Arc<Semaphore>,
    addresses: Mutex<HashMap<IpAddr, Queue>>,
}

/// Those of one address, and how many of them there are, the waiting ones included.
struct Queue {
    turns: Arc<Semaphore>,
    count: usize,
}

/// One handshake. The next one has its place when this is dropped.
pub struct Turn {
    _place: Place,
    _of_address: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

/// A place in the queue of an address.
struct Place {
    all: Arc<Turns>,
    peer: IpAddr,
}

impl Default for Turns {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(MOST)), addresses: Mutex::default() }
    }
}

impl Turns {
    /// Waits for a turn. Whoever waits no longer gives the place up.
    pub async fn wait(self: &Arc<Self>, peer: IpAddr) -> Turn {
        let turns = {
            let mut addresses = self.addresses.lock();
            let fresh = || Queue { turns: Arc::new(Semaphore::new(MOST_OF_ADDRESS)), count: 0 };
            let queue = addresses.entry(peer).or_insert_with(fresh);
            queue.count += 1;
            Arc::clone(&queue.turns)
        };
        let place = Place { all: Arc::clone(self), peer };
        // The semaphores are never closed. First the narrow one: who waits for it takes nothing of the others'.
        let of_address = turns.acquire_owned().await.ok();
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        Turn { _place: place, _of_address: of_address, _of_all: of_all }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut addresses = self.all.addresses.lock();
        if let Some(queue) = addresses.get_mut(&self.peer) {
            queue.count -= 1;
            if queue.count == 0 {
                addresses.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    // Outside of a runtime, which would want to be asked again after so many turns.
    #[test]
    fn one_address_waits_for_itself_and_nobody_else_does() {
        let turns = Arc::new(Turns::default());
        let (greedy, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut held = Vec::new();
        for _ in 0..MOST_OF_ADDRESS {
            held.push(turns.wait(greedy).now_or_never().expect("a turn"));
        }
        let mut waiting = Box::pin(turns.wait(greedy));
        assert!((&mut waiting).now_or_never().is_none());
        drop(turns.wait(other).now_or_never().expect("a turn of another"));
        held.pop();
        drop(waiting.now_or_never().expect("the next turn"));
        drop(turns.wait(greedy));
        held.clear();
        assert!(turns.addresses.lock().is_empty());
        assert_eq!(turns.all.available_permits(), MOST);
    }
}
