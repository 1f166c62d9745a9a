//! The one fetch that is under way: begun, tried again, and called off without leaving anything in Docker.

use adea_ring::upgrade::Order;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::upgrade::depot::{Depot, FetchError};
use crate::upgrade::journal::Outfit;
use crate::upgrade::rean::Rean;
use crate::upgrade::retry::Retry;

/// Fetches the software of one order at a time.
pub struct Fetching {
    depot: Depot,
    rean: Rean,
    current: Option<Current>,
    retry: Retry,
}

/// Software on its way to this machine.
struct Current {
    /// The order that it is for.
    order: String,
    /// Set when nobody wants it any more. The task is never aborted: nobody would know what it has brought to the engine.
    off: watch::Sender<bool>,
    task: JoinHandle<Result<Outfit, FetchError>>,
}

impl Fetching {
    /// Nothing yet.
    pub fn new(depot: Depot, rean: Rean) -> Self {
        Self { depot, rean, current: None, retry: Retry::at_once() }
    }

    /// Fetches the software of this order, and of no other. It begins once another that was under way has cleaned up.
    pub fn want(&mut self, wanted: Option<Order>) {
        let id = wanted.as_ref().map(|order| &order.id);
        if let Some(other) = self.current.as_ref().filter(|current| id != Some(&current.order)) {
            other.off.send_replace(true);
        }
        let Some(order) = wanted else {
            self.retry = Retry::at_once();
            return;
        };
        if self.current.is_none() && self.retry.is_due() {
            let (depot, rean, id) = (self.depot.clone(), self.rean.clone(), order.id.clone());
            let (off, mut is_off) = watch::channel(false);
            let task = tokio::spawn(async move { depot.fetch(&order, &rean, &mut is_off).await });
            self.current = Some(Current { order: id, off, task });
        }
    }

    /// What came of it, once.
    pub async fn done(&mut self) -> Option<Result<Outfit, FetchError>> {
        let current = self.current.take_if(|current| current.task.is_finished())?;
        let done = current.task.await.unwrap_or_else(|err| Err(FetchError::Failed(err.to_string())));
        if *current.off.borrow() {
            // Docker is rid of what nobody wants.
            self.depot.give_back(done.ok().and_then(|outfit| outfit.brought)).await;
            return None;
        }
        if let Err(err) = &done {
            self.retry.failed(err);
        }
        Some(done)
    }
}

#[cfg(test)]
mod tests {
    use super::Fetching;
    use crate::docker::Engine;
    use crate::docker::fake_engine::FakeEngine;
    use crate::folder::Folder;
    use crate::upgrade::depot::Depot;
    use crate::upgrade::depot::tests::{program, rean};
    use adea_ring::upgrade::{Order, Source};
    use std::time::Duration;
    use tokio::time::{sleep, timeout};

    /// Waits for a state, and fails if it doesn't come.
    macro_rules! until {
        ($state:expr) => {
            timeout(Duration::from_secs(20), async {
                while !$state {
                    sleep(Duration::from_millis(5)).await;
                }
            })
            .await
            .expect(stringify!($state))
        };
    }

    #[tokio::test]
    async fn what_is_called_off_leaves_nothing_in_the_engine() {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeEngine::start(dir.path());
        let (reached, gate) = (dir.path().join("reached"), dir.path().join("gate"));
        // It is called off while its program is tried: the image is in the engine, and nobody has noted it yet.
        let script = format!(
            "#!/bin/sh\ntouch {}\nwhile [ ! -e {} ]; do sleep 0.02; done\necho podctl 9.9.9\n",
            reached.display(),
            gate.display()
        );
        let names = ["a", "b"].map(|digit| format!("example/adea@sha256:{}", digit.repeat(64)));
        fake.world().program = program(&script);
        fake.world().registry.extend(names.clone());
        let order = |name: &String| Order::new(Source::Registry, Some(name.clone()), vec!["me".parse().unwrap()], 1);
        let [first, second] = names.each_ref().map(order);
        let depot = Depot::new(&Folder::new(dir.path()).unwrap(), Some(Engine::new(&fake.socket)));
        let mut fetching = Fetching::new(depot, rean("404 Not Found", "").await);
        for next in [None, Some(second)] {
            fetching.want(Some(first.clone()));
            until!(reached.exists());
            assert!(fake.world().images.contains_key(&names[0]));
            fetching.want(next.clone());
            // Wanted again meanwhile: what is called off stays so, and its successor waits for its end.
            fetching.want(Some(first.clone()));
            fetching.want(next.clone());
            std::fs::write(&gate, "").unwrap();
            until!({
                assert_eq!(fetching.done().await, None, "nobody wants it");
                fetching.current.is_none()
            });
            assert!(fake.world().images.is_empty() && fake.world().containers.is_empty(), "{next:?}");
            // What is wanted then is fetched, and counts as brought.
            let wanted = next.unwrap_or_else(|| first.clone());
            fetching.want(Some(wanted.clone()));
            let mut done = None;
            until!({
                done = fetching.done().await;
                done.is_some()
            });
            let outfit = done.unwrap().unwrap();
            assert_eq!(outfit.brought.as_ref().map(|brought| &brought.name), wanted.image.as_ref());
            fetching.depot.give_back(outfit.brought).await;
            for file in [&reached, &gate] {
                std::fs::remove_file(file).unwrap();
            }
        }
    }
}
