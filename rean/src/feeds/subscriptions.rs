//! The subscriptions of one connection, which take turns.
//!
//! A subscription with credit waits among the others for its next piece; one without rests and is not looked at. After
//! each piece it goes to the end of the queue, so that one with a million old changes does not hold up one with a new one.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{AbortHandle, Abortable, BoxFuture};
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::error::ApiError;
use crate::feed_body::{CutOff, Run};
use crate::feeds::message::Told;

/// Subscriptions of one connection: what people have open in a browser, and then some.
pub const MAX_SUBSCRIPTIONS: usize = 256;
/// Batches that a client can have asked for ahead. More is as good as no bound.
const MAX_CREDIT: u32 = 1 << 20;

/// All of a connection.
#[derive(Default)]
pub struct Subscriptions {
    known: HashMap<Arc<str>, Entry>,
    running: FuturesUnordered<Abortable<BoxFuture<'static, Step>>>,
    /// Names the next subscription: a client may use an id again while the old one's last step is still on its way.
    next_serial: u64,
}

struct Entry {
    serial: u64,
    db: Box<str>,
    /// Batches that may still be sent; `None`: no bound but the socket's.
    credit: Option<u32>,
    state: State,
}

enum State {
    Running(AbortHandle),
    Resting(Box<Run>),
}

/// A subscription has come one piece further.
struct Step {
    id: Arc<str>,
    serial: u64,
    run: Box<Run>,
    piece: Result<Option<Bytes>, CutOff>,
}

/// What a subscription has to say.
pub struct Spoken {
    /// Which.
    pub id: Arc<str>,
    /// Its database.
    pub db: Box<str>,
    /// What.
    pub told: Told,
    /// Whether that was the last.
    pub over: bool,
}

impl Subscriptions {
    /// Whether there can be one more, of this name.
    ///
    /// # Errors
    /// 429 when there are too many, 409 when the name is in use.
    pub fn may_add(&self, id: &str) -> Result<(), ApiError> {
        if self.known.contains_key(id) {
            return Err(ApiError::new(
                http::StatusCode::CONFLICT,
                "conflict",
                "A subscription of this connection has this `id`.",
            ));
        }
        if self.known.len() >= MAX_SUBSCRIPTIONS {
            let reason = format!("A connection has at most {MAX_SUBSCRIPTIONS} subscriptions.");
            return Err(ApiError::new(http::StatusCode::TOO_MANY_REQUESTS, "too_many_requests", reason));
        }
        Ok(())
    }

    /// Adds one. Ask [`Subscriptions::may_add`] first.
    pub fn add(&mut self, id: &str, db: &str, credit: Option<u32>, run: Box<Run>) {
        let id: Arc<str> = id.into();
        self.next_serial += 1;
        let credit = credit.map(|credit| credit.min(MAX_CREDIT));
        let entry = Entry { serial: self.next_serial, db: db.into(), credit, state: State::Resting(run) };
        self.known.insert(Arc::clone(&id), entry);
        self.go_on(&id);
    }

    /// Takes one out, if it is there.
    pub fn remove(&mut self, id: &str) {
        if let Some(Entry { state: State::Running(abort), .. }) = self.known.remove(id) {
            abort.abort();
        }
    }

    /// Lets one send so many batches more. One that has just ended is not there any more, and that is no error.
    pub fn give(&mut self, id: &str, batches: u32) {
        if let Some(entry) = self.known.get_mut(id) {
            entry.credit = entry.credit.map(|credit| credit.saturating_add(batches).min(MAX_CREDIT));
            self.go_on(id);
        }
    }

    /// The next that one of them has to say. Waits for ever when none runs. May be dropped while it waits.
    pub async fn next(&mut self) -> Spoken {
        loop {
            match self.running.next().await {
                Some(Ok(step)) => {
                    if let Some(spoken) = self.stepped(step) {
                        return spoken;
                    }
                }
                // It was taken out.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    fn stepped(&mut self, step: Step) -> Option<Spoken> {
        let Step { id, serial, run, piece } = step;
        let entry = self.known.get_mut(&id).filter(|entry| entry.serial == serial)?;
        let (told, over) = match &piece {
            Ok(Some(piece)) => {
                let told = Told::of(&id, piece);
                let over = told.last_seq.is_some();
                (told, over)
            }
            Ok(None) => (Told::default(), true),
            Err(error) => {
                tracing::debug!(%error, "a subscription ended early");
                (Told::default(), true)
            }
        };
        let db = entry.db.clone();
        if over {
            self.known.remove(&id);
            return Some(Spoken { id, db, told, over });
        }
        if told.changes.is_some() {
            entry.credit = entry.credit.map(|credit| credit.saturating_sub(1));
        }
        entry.state = State::Resting(run);
        self.go_on(&id);
        // A sign of life of a feed is not for a client with many.
        let silent = told.changes.is_none() && told.caught_up.is_none();
        (!silent).then_some(Spoken { id, db, told, over })
    }

    /// Puts a subscription that rests and has credit at the end of the queue.
    fn go_on(&mut self, id: &str) {
        let Some((id, mut entry)) = self.known.remove_entry(id) else { return };
        entry.state = match entry.state {
            State::Resting(mut run) if entry.credit != Some(0) => {
                let (abort, registration) = AbortHandle::new_pair();
                let (id, serial) = (Arc::clone(&id), entry.serial);
                let step: BoxFuture<'static, Step> = Box::pin(async move {
                    let piece = run.next().await;
                    Step { id, serial, run, piece }
                });
                self.running.push(Abortable::new(step, registration));
                State::Running(abort)
            }
            state => state,
        };
        self.known.insert(id, entry);
    }
}
