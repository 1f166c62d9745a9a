//! What an HTTP/2 client takes of its answers: one that leaves an answer unread is given up.
//!
//! With HTTP/1.1 the socket itself shows it (`Timed`). With HTTP/2 the client says for each answer how much it takes, and
//! goes on with others on the same connection; an answer that it never takes would keep its connection to rean, its feed
//! and its memory. So each request of a connection is watched here: it stands still when its next piece is not asked for
//! although the last was given, or when a piece that was given is not sent, which is seen by the piece being dropped. A feed
//! that waits for news stands still for nobody: its client has taken all that there was.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

tokio::task_local! {
    static CURRENT: Arc<Outflow>;
}

/// Runs the requests of one HTTP/2 connection.
#[derive(Clone)]
pub struct Streams {
    idle: Duration,
    /// Told when the connection is to end.
    pub cut: Arc<Notify>,
}

/// The answer of one request.
pub struct Outflow {
    state: Mutex<State>,
    /// Told when all that was given has been sent.
    empty: Notify,
}

struct State {
    /// Whether it is the client's turn: the body has something to give, as far as is known, and isn't asked.
    has_more: bool,
    unsent: usize,
    moved: Instant,
}

/// The body's side of it; when it is dropped nothing more is to come.
pub struct Giver(Arc<Outflow>);

/// A piece on its way.
struct Piece {
    bytes: Bytes,
    of: Arc<Outflow>,
}

impl Streams {
    /// For a connection whose client may leave an answer unread for this long.
    pub fn new(idle: Duration) -> Self {
        Self { idle, cut: Arc::default() }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, request: F) {
        let Self { idle, cut } = self.clone();
        tokio::spawn(async move {
            let outflow = Arc::new(Outflow::new());
            if carry(CURRENT.scope(Arc::clone(&outflow), request), &outflow, idle).await {
                // hyper has let go of it, and what is left is in the connection: only its end gets that out.
                tokio::select! {
                    () = outflow.stands_still(idle) => cut.notify_one(),
                    () = outflow.sent_all() => {}
                }
            }
        });
    }
}

/// Carries a request to its end, or until its client has not taken of the answer for too long: then hyper resets it as
/// this drops it. Whether it came to its end.
async fn carry<F: Future>(request: F, outflow: &Outflow, idle: Duration) -> bool {
    let request = pin!(request);
    tokio::select! {
        _ = request => true,
        () = outflow.stands_still(idle) => {
            tracing::debug!("an answer that its client does not take is given up");
            false
        }
    }
}

impl Outflow {
    fn new() -> Self {
        let state = State { has_more: false, unsent: 0, moved: Instant::now() };
        Self { state: Mutex::new(state), empty: Notify::new() }
    }

    async fn stands_still(&self, idle: Duration) {
        loop {
            let due = {
                let state = self.state.lock();
                if state.has_more || state.unsent > 0 { state.moved + idle } else { Instant::now() + idle }
            };
            tokio::time::sleep_until(due).await;
            let state = self.state.lock();
            if (state.has_more || state.unsent > 0) && state.moved + idle <= Instant::now() {
                return;
            }
        }
    }

    async fn sent_all(&self) {
        while self.state.lock().unsent > 0 {
            self.empty.notified().await;
        }
    }

    fn turn(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        state.moved = Instant::now();
    }
}

impl Giver {
    /// For the body of an answer to the request that runs now; `None` with HTTP/1.1.
    pub fn of_this_request() -> Option<Self> {
        let outflow = CURRENT.try_with(Arc::clone).ok()?;
        outflow.turn(|state| state.has_more = true);
        Some(Self(outflow))
    }

    /// The body was asked, and this is what it says.
    pub fn asked<T>(&self, said: &Poll<T>) {
        let has_more = said.is_ready();
        self.0.turn(|state| state.has_more = has_more);
    }

    /// The same bytes, which tell when they have been sent.
    pub fn give(&self, bytes: Bytes) -> Bytes {
        if bytes.is_empty() {
            return bytes;
        }
        self.0.turn(|state| state.unsent += 1);
        Bytes::from_owner(Piece { bytes, of: Arc::clone(&self.0) })
    }
}

impl Drop for Giver {
    fn drop(&mut self) {
        self.0.turn(|state| state.has_more = false);
    }
}

impl std::fmt::Debug for Giver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Giver(..)")
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut is_empty = false;
        self.of.turn(|state| {
            state.unsent -= 1;
            is_empty = state.unsent == 0;
        });
        if is_empty {
            self.of.empty.notify_one();
        }
    }
}
