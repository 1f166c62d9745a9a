//! Whether a pod that was paused knows again what the others do.

use adea_ring::election;

/// What comes for so long after a pause may have waited in the socket, and be as old as the pause.
const BACKLOG_MS: u64 = 100;

/// How a pod hears the others.
#[derive(Debug, Default)]
pub struct Hearing {
    deaf: Option<Deaf>,
    /// Whether gossip takes any other pod for alive: for some time after a pause it does so without having heard of it.
    others_live: bool,
}

/// Since a pause.
#[derive(Debug)]
struct Deaf {
    since_ms: u64,
    has_heard: bool,
}

impl Hearing {
    /// Whether what this pod knows of the others is of before a pause.
    pub fn is_deaf(&self) -> bool {
        self.deaf.is_some()
    }

    /// This pod has not run for a while, until now.
    pub fn lose(&mut self, now_ms: u64) {
        self.deaf = Some(Deaf { since_ms: now_ms, has_heard: false });
    }

    /// Before the rows of a turn.
    pub fn begin(&mut self) {
        self.others_live = false;
    }

    /// Another pod's row in this turn: whether gossip takes it for alive, and whether it says something new.
    pub fn note(&mut self, is_alive: bool, is_news: bool, now_ms: u64) {
        self.others_live |= is_alive;
        if let Some(deaf) = &mut self.deaf {
            deaf.has_heard |= is_alive && is_news && now_ms.saturating_sub(deaf.since_ms) >= BACKLOG_MS;
        }
    }

    /// After the rows of a turn: the pod hears again when another one has said something since the pause, or gossip has
    /// found that none is there. One that can tell neither for as long as a start may take goes by what it knows.
    pub fn judge(&mut self, config: &election::Config, now_ms: u64) {
        let others_live = self.others_live;
        self.deaf = self.deaf.take().filter(|deaf| {
            let waited_ms = now_ms.saturating_sub(deaf.since_ms);
            let is_sure = (deaf.has_heard || !others_live) && waited_ms >= config.settle_ms.max(BACKLOG_MS);
            !is_sure && waited_ms < config.start_ms
        });
    }

    /// There is nobody to hear.
    pub fn forget(&mut self) {
        self.deaf = None;
    }
}

#[cfg(test)]
mod tests {
    use adea_ring::election::Config;

    use super::Hearing;

    /// When a pod that was paused until 10 s hears again, if from then on each turn has a row like this.
    fn hears_at(is_alive: impl Fn(u64) -> bool, is_news: impl Fn(u64) -> bool) -> u64 {
        let mut hearing = Hearing::default();
        hearing.lose(10_000);
        for now_ms in (10_000..).step_by(50) {
            hearing.begin();
            hearing.note(is_alive(now_ms), is_news(now_ms), now_ms);
            hearing.judge(&Config::default(), now_ms);
            if !hearing.is_deaf() {
                return now_ms;
            }
        }
        u64::MAX
    }

    #[test]
    fn it_hears_again_when_another_speaks_or_none_is_left() {
        assert_eq!(hears_at(|_| true, |now_ms| now_ms == 10_150), 10_300, "the view settles first");
        assert_eq!(hears_at(|_| true, |now_ms| now_ms == 10_900), 10_900);
        assert_eq!(hears_at(|now_ms| now_ms < 10_600, |_| false), 10_600, "gossip has found it dead");
        assert_eq!(hears_at(|_| false, |_| true), 10_300);
        assert_eq!(hears_at(|_| true, |now_ms| now_ms <= 10_050), 13_000, "what is of before the pause is no news");
    }
}
