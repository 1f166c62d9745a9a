//! The cleaner of sessions: takes out of `_ring` the sessions that have expired.
//!
//! It purges them: a deletion would leave a tombstone behind for each session that there ever was. Each pod finds by
//! itself, from the document and its clock, that a session has expired, so nothing need be told to the others.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rean_store::rev::Rev;
use rean_store::{Db, IdRange, Scope, StoreError, WriteError};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::pod::Pod;
use crate::workers::Stop;

/// What the id of a session starts with.
const PREFIX: &str = "session:";
/// The first text after all ids of sessions.
const PREFIX_END: &str = "session;";
/// Sessions that are looked at before others get the processor.
const PAGE: usize = 200;
/// Between two passes. An expired session is refused at once; its document may stay a little longer.
const PAUSE: Duration = Duration::from_secs(60);

/// Cleans until it is told to stop.
///
/// # Errors
/// When the store fails; the supervisor starts it again.
pub async fn run(pod: Arc<Pod>, mut stop: Stop) -> Result<(), String> {
    let Some(ring) = pod.store.db("_ring") else {
        return Err("there is no _ring".to_owned());
    };
    loop {
        let removed = pass(&ring, now_ms(), &stop).await.map_err(|error| error.to_string())?;
        if removed > 0 {
            tracing::debug!(removed, "removed expired sessions");
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.stopped() => return Ok(()),
        }
    }
}

/// Removes what has expired at `now_ms`; gives back how many.
async fn pass(ring: &Db, now_ms: u64, stop: &Stop) -> Result<u64, StoreError> {
    let mut range = IdRange {
        start: Some(PREFIX.to_owned()),
        end: Some(PREFIX_END.to_owned()),
        exclusive_end: true,
        ..IdRange::default()
    };
    let mut removed = 0;
    loop {
        let rows = ring.all_docs(&Scope::All, &range, PAGE)?;
        let Some(last) = rows.last().map(|row| row.id.clone()) else {
            return Ok(removed);
        };
        for row in rows {
            let body = match row.body {
                Some(at) => ring.body(at)?,
                None => None,
            };
            if body.is_some_and(|body| is_expired(&body.json, now_ms)) {
                purge(ring, &row.id, row.rev).await?;
                removed += 1;
            }
        }
        if stop.is_stopped() {
            return Ok(removed);
        }
        range = range.after(&last);
        tokio::task::yield_now().await;
    }
}

/// Whether a session's time is over. One that does not say when is none.
fn is_expired(body: &[u8], now_ms: u64) -> bool {
    let Ok(body) = serde_json::from_slice::<Value>(body) else {
        return true;
    };
    body.get("expires_at_ms").and_then(Value::as_u64).is_none_or(|expires_ms| expires_ms <= now_ms)
}

async fn purge(ring: &Db, id: &str, rev: Rev) -> Result<(), StoreError> {
    let (done, answer) = oneshot::channel();
    ring.purge(
        id,
        &[rev],
        Box::new(move |result| {
            // Nobody listens when the worker was cut off; the purge stands.
            let _ = done.send(result);
        }),
    );
    match answer.await {
        Ok(Err(WriteError::Store(error))) => Err(error),
        Err(_) => Err(StoreError::Closing),
        // Somebody else changed or removed it in between: the next pass looks again.
        Ok(_) => Ok(()),
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::is_expired;

    #[test]
    fn what_has_no_time_or_whose_time_is_over_goes() {
        assert!(is_expired(br#"{"expires_at_ms":5}"#, 5));
        assert!(!is_expired(br#"{"expires_at_ms":6}"#, 5));
        assert!(is_expired(br#"{"expires_at_ms":"soon"}"#, 5));
        assert!(is_expired(b"{}", 0));
    }
}
