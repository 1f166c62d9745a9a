//! When software that could not be fetched is tried again.

use std::time::Duration;

use tokio::time::Instant;

use crate::upgrade::depot::FetchError;

/// After the first failure, and as long as the software is on its way to this pod: to ask for it costs little.
const PAUSE: Duration = Duration::from_secs(2);
/// The longest: each try may read and write as much as an image is large.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The next try.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    after: Instant,
    pause: Duration,
}

impl Retry {
    /// The first try, at once.
    pub fn at_once() -> Self {
        Self { after: Instant::now(), pause: PAUSE }
    }

    /// Whether it is time.
    pub fn is_due(&self) -> bool {
        Instant::now() >= self.after
    }

    /// A try has failed.
    pub fn failed(&mut self, err: &FetchError) {
        if matches!(err, FetchError::Absent) {
            self.pause = PAUSE;
        }
        self.after = Instant::now() + self.pause;
        if !matches!(err, FetchError::Absent) {
            self.pause = (self.pause * 2).min(MAX_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Retry;
    use crate::upgrade::depot::FetchError;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_with_failures_but_not_while_it_is_on_its_way() {
        let mut retry = Retry::at_once();
        assert!(retry.is_due());
        let mut pause_s = |err: FetchError| {
            retry.failed(&err);
            assert!(!retry.is_due());
            (retry.after - Instant::now()).as_secs()
        };
        let failures = [(); 8].map(|()| pause_s(FetchError::Failed("bad".into())));
        assert_eq!(failures, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!([(); 3].map(|()| pause_s(FetchError::Absent)), [2, 2, 2]);
        assert_eq!(pause_s(FetchError::Failed("bad".into())), 2);
        tokio::time::advance(std::time::Duration::from_secs(2)).await;
        assert!(retry.is_due());
    }
}
