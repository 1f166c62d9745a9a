//! Following `_ring`: which of its documents have changed.

use std::sync::Arc;
use std::time::Duration;

use rean_store::Change;

use crate::hub::{News, Subscription};
use crate::pod::Pod;
use crate::ring::ring_doc::ring_db;
use crate::workers::Stop;

/// Follows `_ring` for one worker.
pub struct Follow {
    news: Subscription,
    changes: Vec<Arc<Change>>,
}

/// Why a worker looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Occasion {
    /// These documents have changed.
    Ids(Vec<String>),
    /// Any may have changed; or it is time to look without being told.
    All,
    /// There will be no more.
    End,
}

impl Follow {
    /// From now on: a worker looks at everything once after this.
    ///
    /// # Errors
    /// When the store is being closed.
    pub fn new(pod: &Pod) -> Result<Self, String> {
        let ring = ring_db(pod).map_err(|error| error.to_string())?;
        Ok(Self { news: pod.hub.subscribe(&ring), changes: Vec::new() })
    }

    /// Waits until a document whose id `wanted` picks out has changed.
    pub async fn changed(&mut self, wanted: impl Fn(&str) -> bool) -> Occasion {
        loop {
            self.news.changed().await;
            self.changes.clear();
            match self.news.take(&mut self.changes) {
                News::Ended => return Occasion::End,
                News::Missed => return Occasion::All,
                News::Changes => {
                    let ids = self.changes.iter().map(|change| change.id()).filter(|id| wanted(id));
                    let ids: Vec<String> = ids.map(str::to_owned).collect();
                    if !ids.is_empty() {
                        return Occasion::Ids(ids);
                    }
                }
            }
        }
    }

    /// As [`Follow::changed`], for at most `pause`, and not beyond the worker's end.
    pub async fn next(&mut self, pause: Duration, stop: &mut Stop, wanted: impl Fn(&str) -> bool) -> Occasion {
        tokio::select! {
            occasion = self.changed(wanted) => occasion,
            () = tokio::time::sleep(pause) => Occasion::All,
            () = stop.stopped() => Occasion::End,
        }
    }
}
