//! Sessions that last longer because they are in use, up to a longest life, and their feeds with them.
//!
//! A cookie is prolonged by any request, a temporary name and password by `PUT /_session`: both when half of their time
//! is over, so that it is one small write in that time, however often somebody asks. Nothing is prolonged beyond
//! `max_session_age` after the log-in: who has stolen a session doesn't have it for ever. A feed was opened with the
//! session as it was then; so when that time is over the document is asked once more, which may have been prolonged on any pod.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::cache::Change;
use super::{Authenticator, Login, Session, accounts};
use crate::clock;

/// Sessions that are asked for at once when their feeds are to end: rean answers each within a millisecond or so.
const LOOK_UPS_AT_ONCE: usize = 16;
/// How long all of them may take. Feeds of sessions that nothing is known of then end: their clients come back and are asked
/// who they are.
const LOOK_UP_TIME: Duration = Duration::from_secs(5);

/// Marks a session as being prolonged, until it is dropped: a client that hangs up ends its request anywhere.
struct Renewing<'a> {
    all: &'a Mutex<HashSet<Box<str>>>,
    id: Box<str>,
}

impl<'a> Renewing<'a> {
    /// `None` if another request is at it.
    fn enter(all: &'a Mutex<HashSet<Box<str>>>, id: &str) -> Option<Self> {
        all.lock().insert(id.into()).then(|| Self { all, id: id.into() })
    }
}

impl Drop for Renewing<'_> {
    fn drop(&mut self) {
        self.all.lock().remove(&self.id);
    }
}

impl Session {
    /// Until when it can be prolonged, in milliseconds since 1970: never less than it has already.
    pub fn longest_ms(&self, max_age_ms: u64) -> u64 {
        self.created_at_ms.saturating_add(max_age_ms).max(self.expires_at_ms)
    }

    /// When it would end, were it prolonged now by `life_ms`; `None` as long as half of its time is left, or when there is
    /// no more to be had.
    fn prolonged(&self, now_ms: u64, life_ms: u64, max_age_ms: u64) -> Option<u64> {
        if self.expires_at_ms.saturating_sub(now_ms) > life_ms / 2 {
            return None;
        }
        let until_ms = now_ms.saturating_add(life_ms).min(self.longest_ms(max_age_ms));
        Some(until_ms).filter(|until_ms| *until_ms > self.expires_at_ms)
    }
}

impl Authenticator {
    /// Prolongs the session of a log-in by `life_ms` from now when half of that is over; its new end. It is best effort: if
    /// the document can't be written, the session lasts as long as it did, and the next request tries again.
    pub async fn prolong(&self, login: &Login, life_ms: u64) -> Option<u64> {
        let session = login.session.as_ref()?;
        let max_age_ms = self.settings.get().session_max_age_ms;
        let expires_at_ms = session.prolonged(clock::now_ms(), life_ms, max_age_ms)?;
        // Of the requests of one page that come together one is enough.
        let _renewing = Renewing::enter(&self.renewing, &session.id)?;
        let renewed = accounts::renew_session(&self.upstream, &session.id, &session.rev, expires_at_ms).await;
        let rev = renewed.unwrap_or_else(|error| {
            tracing::warn!(%error, "a session can't be prolonged");
            None
        })?;
        self.changed(Change::Session { id: session.id.to_string(), rev: Some(rev) });
        Some(expires_at_ms)
    }

    /// Ends the feeds of sessions and passes that are over, and leaves those whose sessions were prolonged since.
    pub async fn end_expired_feeds(&self) {
        let now_ms = clock::now_ms();
        let due = self.feeds.due(now_ms);
        // Outside of the look-ups: what was found counts also when the time for the others runs out.
        let prolonged = Mutex::new(HashMap::new());
        let asked = stream::iter(due).for_each_concurrent(LOOK_UPS_AT_ONCE, async |id| {
            match accounts::session(&self.upstream, &id).await {
                Ok(Some(doc)) if doc.expires_at_ms > now_ms => {
                    prolonged.lock().insert(id, doc.expires_at_ms);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "a session can't be looked up"),
            }
        });
        if timeout(LOOK_UP_TIME, asked).await.is_err() {
            tracing::warn!("feeds of sessions that can't be looked up in time are ended");
        }
        self.feeds.prolong(now_ms, &prolonged.into_inner());
        self.feeds.end_expired(now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_time_over_is_prolonged_up_to_the_longest_life() {
        let session = |expires_at_ms| Session { id: "s".into(), rev: "1-a".into(), created_at_ms: 1000, expires_at_ms };
        let prolonged = |expires_at_ms, now_ms| session(expires_at_ms).prolonged(now_ms, 100, 250);
        assert_eq!(prolonged(1100, 1049), None);
        assert_eq!(prolonged(1100, 1050), Some(1150));
        assert_eq!(prolonged(1200, 1190), Some(1250));
        // No write for nothing.
        assert_eq!(prolonged(1250, 1249), None);
        // A shorter life than it was given takes nothing back, and gives nothing more.
        assert_eq!(prolonged(1400, 1390), None);
        assert_eq!(session(1400).longest_ms(250), 1400);
        assert_eq!(session(1100).longest_ms(250), 1250);
    }

    #[test]
    fn a_request_that_is_broken_off_keeps_nobody_from_prolonging() {
        let all = Mutex::default();
        let first = Renewing::enter(&all, "s");
        assert!(first.is_some() && Renewing::enter(&all, "s").is_none());
        drop(first);
        assert!(Renewing::enter(&all, "s").is_some());
        assert!(all.lock().is_empty());
    }
}
