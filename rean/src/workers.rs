//! Background tasks: each named, listed, supervised and stoppable.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Pause before a failed worker's first restart; it doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause: a store that recovers is noticed within a minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A worker that ran this long had recovered: its next failure is a first one again.
const RECOVERED_AFTER: Duration = Duration::from_secs(300);
/// How long all workers together may take to stop. One that is cut off in the middle goes on at the next start.
const STOP_DEADLINE: Duration = Duration::from_secs(3);

/// Tells a worker that it must stop.
#[derive(Clone)]
pub struct Stop {
    signal: watch::Receiver<bool>,
}

impl Stop {
    /// Waits until then.
    pub async fn stopped(&mut self) {
        // A sender that is gone means the same.
        let _ = self.signal.wait_for(|stop| *stop).await;
    }

    /// Whether it must.
    pub fn is_stopped(&self) -> bool {
        *self.signal.borrow() || self.signal.has_changed().is_err()
    }
}

/// What is told of a worker.
#[derive(Debug, Clone, Serialize)]
pub struct WorkerInfo {
    /// Its name.
    pub name: &'static str,
    /// `running`, `waiting` (for its restart), `done` or `stopped`.
    pub state: &'static str,
    /// How often it was started again.
    pub restarts: u64,
    /// Why it failed the last time.
    pub last_error: Option<String>,
    /// When it was started the last time, in seconds since 1970.
    pub started_on: u64,
}

/// All workers of a pod.
pub struct Workers {
    stop: watch::Sender<bool>,
    infos: Arc<Mutex<Vec<WorkerInfo>>>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Default for Workers {
    fn default() -> Self {
        Self { stop: watch::Sender::new(false), infos: Arc::default(), handles: Mutex::default() }
    }
}

type Work = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

impl Workers {
    /// Starts a worker. When it fails or panics it is started again, after a pause.
    pub fn start<W>(&self, name: &'static str, work: impl Fn(Stop) -> W + Send + 'static)
    where
        W: Future<Output = Result<(), String>> + Send + 'static,
    {
        let stop = Stop { signal: self.stop.subscribe() };
        let place = {
            let mut infos = self.infos.lock();
            infos.push(WorkerInfo { name, state: "running", restarts: 0, last_error: None, started_on: now_s() });
            infos.len() - 1
        };
        let entry = Entry { infos: Arc::clone(&self.infos), place };
        let boxed = move |stop| -> Work { Box::pin(work(stop)) };
        self.handles.lock().push(tokio::spawn(supervise(boxed, stop, entry)));
    }

    /// What is told of all of them.
    pub fn list(&self) -> Vec<WorkerInfo> {
        self.infos.lock().clone()
    }

    /// Stops all of them; those that don't stop in time are cut off.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let handles = std::mem::take(&mut *self.handles.lock());
        let deadline = tokio::time::Instant::now() + STOP_DEADLINE;
        for mut handle in handles {
            if tokio::time::timeout_at(deadline, &mut handle).await.is_err() {
                tracing::warn!("a worker did not stop in time");
                handle.abort();
            }
        }
    }
}

struct Entry {
    infos: Arc<Mutex<Vec<WorkerInfo>>>,
    place: usize,
}

impl Entry {
    fn update(&self, change: impl FnOnce(&mut WorkerInfo)) {
        if let Some(info) = self.infos.lock().get_mut(self.place) {
            change(info);
        }
    }
}

async fn supervise(work: impl Fn(Stop) -> Work, mut stop: Stop, entry: Entry) {
    let mut pause = FIRST_PAUSE;
    loop {
        let began = tokio::time::Instant::now();
        // In a task of its own, so that a panic ends here.
        let mut running = tokio::spawn(work(stop.clone()));
        let error = match (&mut running).await {
            Ok(Ok(())) => {
                let state = if stop.is_stopped() { "stopped" } else { "done" };
                entry.update(|info| info.state = state);
                return;
            }
            Ok(Err(error)) => error,
            Err(error) => error.to_string(),
        };
        if began.elapsed() >= RECOVERED_AFTER {
            pause = FIRST_PAUSE;
        }
        entry.update(|info| {
            tracing::error!(worker = info.name, error, "a worker failed");
            info.state = "waiting";
            info.last_error = Some(error);
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.stopped() => {
                entry.update(|info| info.state = "stopped");
                return;
            }
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        entry.update(|info| {
            info.state = "running";
            info.restarts += 1;
            info.started_on = now_s();
        });
    }
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::Workers;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_fails_or_panics_is_started_again_and_then_stops() {
        let workers = Workers::default();
        let runs = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&runs);
        workers.start("example", move |mut stop| {
            let run = runs.fetch_add(1, Ordering::Relaxed);
            async move {
                match run {
                    0 => Err("first".to_owned()),
                    1 => panic!("second"),
                    _ => {
                        stop.stopped().await;
                        Ok(())
                    }
                }
            }
        });
        while seen.load(Ordering::Relaxed) < 3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let info = &workers.list()[0];
        assert_eq!((info.name, info.state, info.restarts), ("example", "running", 2));
        workers.stop().await;
        assert_eq!(workers.list()[0].state, "stopped");
    }
}
