//! Revisions that are on their way here: two links don't fetch the same one at the same time.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::replicate::carry::Wanted;

/// Revisions that are on their way here. The bound on them is that of the links: pages of 1,000 rows, three a link.
pub struct InFlight {
    revs: Arc<Mutex<HashSet<Key>>>,
    /// Tells when some have come.
    landed: Arc<watch::Sender<()>>,
}

/// Database, document, revision.
type Key = (Arc<str>, String, String);

/// Revisions that somebody fetches; given back when dropped.
pub struct Claim {
    keys: Vec<Key>,
    revs: Arc<Mutex<HashSet<Key>>>,
    landed: Arc<watch::Sender<()>>,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { revs: Arc::default(), landed: Arc::new(watch::Sender::new(())) }
    }
}

impl InFlight {
    /// Parts what is wanted into what nobody fetches yet, which is the caller's to fetch while the claim lives, and what
    /// others fetch.
    pub fn claim(&self, db: &Arc<str>, wanted: Vec<Wanted>) -> (Claim, Vec<Wanted>, Vec<Wanted>) {
        let mut revs = self.revs.lock();
        let mut keys = Vec::with_capacity(wanted.len());
        let (mine, others): (Vec<Wanted>, Vec<Wanted>) = wanted.into_iter().partition(|wanted| {
            let key = (Arc::clone(db), wanted.id.clone(), wanted.rev.clone());
            let is_mine = revs.insert(key.clone());
            if is_mine {
                keys.push(key);
            }
            is_mine
        });
        (Claim { keys, revs: Arc::clone(&self.revs), landed: Arc::clone(&self.landed) }, mine, others)
    }

    /// Waits until none of these is on its way any more, or until `patience` is over.
    pub async fn wait(&self, db: &Arc<str>, wanted: &[Wanted], patience: Duration) {
        let mut landed = self.landed.subscribe();
        let is_under_way = || {
            let revs = self.revs.lock();
            wanted.iter().any(|one| revs.contains(&(Arc::clone(db), one.id.clone(), one.rev.clone())))
        };
        let waiting = async {
            while is_under_way() {
                if landed.changed().await.is_err() {
                    return;
                }
            }
        };
        // What is late is fetched here then.
        let _ = tokio::time::timeout(patience, waiting).await;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        {
            let mut revs = self.revs.lock();
            for key in &self.keys {
                revs.remove(key);
            }
        }
        self.landed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::InFlight;
    use crate::replicate::carry::Wanted;
    use std::sync::Arc;
    use std::time::Duration;

    fn wanted(id: &str) -> Wanted {
        Wanted { id: id.to_owned(), rev: "1-a".to_owned(), attached_bytes: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_revision_is_fetched_by_one() {
        let flight = InFlight::default();
        let db: Arc<str> = "notes".into();
        let (first, mine, others) = flight.claim(&db, vec![wanted("a"), wanted("b")]);
        assert_eq!((mine.len(), others.len()), (2, 0));
        let (_second, mine, others) = flight.claim(&db, vec![wanted("b"), wanted("c")]);
        assert_eq!((&mine[0].id[..], &others[0].id[..]), ("c", "b"));
        assert_eq!(flight.claim(&"other".into(), vec![wanted("a")]).1.len(), 1);
        let patience = Duration::from_secs(30);
        let began = tokio::time::Instant::now();
        flight.wait(&db, &others, patience).await;
        assert!(began.elapsed() >= patience, "it is still on its way");
        drop(first);
        flight.wait(&db, &others, patience).await;
        assert!(began.elapsed() < patience * 2, "it has landed");
    }
}
