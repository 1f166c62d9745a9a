//! What happens to the packets of one direction of a link.

use std::time::Duration;

use rand::RngExt;
use serde::Deserialize;

/// The faults of one direction. The default is a perfect link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// How long each packet is under way, in milliseconds.
    pub delay_ms: u64,
    /// How much longer it may be, in milliseconds; evenly spread. Packets keep their order all the same: what is tested is
    /// not TCP.
    pub jitter_ms: u64,
    /// Which share of the packets is lost: 0 to 1.
    pub loss: f64,
    /// Whether all are lost, without a word, as with a cable that is cut.
    pub cut: bool,
}

/// What is to be done with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is lost.
    Lost,
    /// It arrives after this time.
    Arrives(Duration),
}

/// A delay beyond this is a mistake in the test.
const MAX_DELAY_MS: u64 = 60_000;

impl Rule {
    /// Says what is wrong with it.
    ///
    /// # Errors
    /// When a member is out of its range.
    pub fn check(&self) -> Result<(), &'static str> {
        if !(0.0..=1.0).contains(&self.loss) {
            return Err("`loss` must be from 0 to 1");
        }
        if self.delay_ms > MAX_DELAY_MS || self.jitter_ms > MAX_DELAY_MS {
            return Err("`delay_ms` and `jitter_ms` must be at most 60000");
        }
        Ok(())
    }

    /// Decides about one packet.
    pub fn fate(&self, random: &mut impl RngExt) -> Fate {
        if self.cut || (self.loss > 0.0 && random.random::<f64>() < self.loss) {
            return Fate::Lost;
        }
        let jitter_ms = if self.jitter_ms == 0 { 0 } else { random.random_range(0..=self.jitter_ms) };
        Fate::Arrives(Duration::from_millis(self.delay_ms + jitter_ms))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::{Fate, Rule};

    #[test]
    fn a_perfect_link_loses_nothing_and_a_cut_one_all() {
        let mut random = StdRng::seed_from_u64(1);
        assert_eq!(Rule::default().fate(&mut random), Fate::Arrives(Duration::ZERO));
        assert_eq!(Rule { cut: true, ..Rule::default() }.fate(&mut random), Fate::Lost);
        assert_eq!(Rule { loss: 1.0, ..Rule::default() }.fate(&mut random), Fate::Lost);
    }

    #[test]
    fn loss_and_jitter_are_as_asked() {
        let mut random = StdRng::seed_from_u64(2);
        let rule = Rule { delay_ms: 30, jitter_ms: 5, loss: 0.25, cut: false };
        let mut lost = 0;
        for _ in 0..10_000 {
            match rule.fate(&mut random) {
                Fate::Lost => lost += 1,
                Fate::Arrives(after) => assert!((30..=35).contains(&after.as_millis()), "{after:?}"),
            }
        }
        assert!((2_200..2_800).contains(&lost), "{lost} of 10000 lost");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(Rule { loss: 1.5, ..Rule::default() }.check().is_err());
        assert!(Rule { loss: f64::NAN, ..Rule::default() }.check().is_err());
        assert!(Rule { delay_ms: 60_001, ..Rule::default() }.check().is_err());
        assert!(Rule { delay_ms: 60_000, loss: 1.0, ..Rule::default() }.check().is_ok());
    }
}
