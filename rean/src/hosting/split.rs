//! Which visitor has which version: shares that hold on the whole, and a choice that stays for each visitor.
//!
//! Weighted rendezvous hashing (Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", SPAA 2005): of each
//! version a visitor draws a number that depends on nothing but the two, weighed by the version's share; the least wins.
//! When a share changes, only as many visitors move as it takes. All pods come to the same.

use adea_ring::hosting::BUCKETS;
use http::HeaderValue;
use sha2::{Digest, Sha256};

/// Which visitor it is: a number that stays, evenly spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket(u64);

impl Bucket {
    /// Of somebody who is logged in: another one in each database, so that no two trials have the same people.
    pub fn of_user(db_name: &str, user: &str) -> Self {
        Self(hash(&["user", db_name, user]))
    }

    /// Of somebody who isn't, as the proxy says; one that it doesn't know is as good as any.
    pub fn given(value: Option<&HeaderValue>) -> Self {
        let number = value.and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u16>().ok());
        Self(u64::from(number.filter(|number| *number < BUCKETS).unwrap_or_default()))
    }
}

/// What a version's draws begin with.
#[derive(Debug, Clone, Copy)]
pub struct Seed(u64);

impl Seed {
    /// Of a version of a database's app.
    pub fn of(db_name: &str, version: &str) -> Self {
        Self(hash(&["version", db_name, version]))
    }

    /// The number that a visitor draws: the smaller, the sooner this version is theirs. `share` is above zero.
    pub fn draw(self, bucket: Bucket, share: u32) -> f64 {
        // 52 bits and a half: neither zero nor one, whose logarithms would decide alone.
        let even = ((mixed(self.0 ^ mixed(bucket.0)) >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
        -even.ln() / f64::from(share)
    }
}

fn hash(parts: &[&str]) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    let digest = hasher.finalize();
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::{Bucket, Seed};

    fn choose(shares: &[(&str, u32)], bucket: Bucket) -> String {
        let draw = |(name, share): &(&str, u32)| Seed::of("notes", name).draw(bucket, *share);
        let least = shares.iter().min_by(|a, b| draw(a).total_cmp(&draw(b)));
        least.expect("a version").0.to_owned()
    }

    #[test]
    fn shares_hold_and_few_move() {
        let users: Vec<Bucket> = (0..10_000).map(|n| Bucket::of_user("notes", &format!("user{n}"))).collect();
        let count =
            |shares: &[(&str, u32)], name: &str| users.iter().filter(|bucket| choose(shares, **bucket) == name).count();
        let before = [("v1", 90), ("v2", 10)];
        // Ten percent of ten thousand: the standard deviation is 30.
        assert!((880..=1_120).contains(&count(&before, "v2")), "{}", count(&before, "v2"));
        let after = [("v1", 50), ("v2", 30), ("v3", 20)];
        let moves = |from: &str, to: &str| {
            users.iter().filter(|b| choose(&before, **b) == from && choose(&after, **b) == to).count()
        };
        // v2 has grown and v3 is new: nobody goes back to v1, and whoever was drawn by v2 leaves it for v3 at most.
        assert_eq!(moves("v2", "v1"), 0);
        let moved: usize = [("v1", "v2"), ("v1", "v3"), ("v2", "v3")].iter().map(|(a, b)| moves(a, b)).sum();
        assert!((3_700..=4_500).contains(&moved), "{moved}");
    }

    #[test]
    fn the_cookies_numbers_share_alike() {
        let count = (0..1_000).filter(|n| {
            let value = n.to_string().parse().expect("a value");
            choose(&[("v1", 50), ("v2", 50)], Bucket::given(Some(&value))) == "v1"
        });
        assert!((440..=560).contains(&count.count()));
        let odd = "1000".parse().expect("a value");
        assert_eq!(Bucket::given(Some(&odd)), Bucket::given(None));
    }
}
