//! Whose orders this pod follows: what the machine's ring file says, and nothing that comes from the ring.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use adea_ring::upgrade::OrderTrust;

use crate::ring_file::RingFile;

/// What the ring file says of orders. It is read anew when it has changed, as an operator may replace the key while the
/// pod runs.
#[derive(Debug)]
pub struct Trusted {
    path: PathBuf,
    seen: Option<Seen>,
    /// By which key; none: the ring was made before there were any.
    pub trust: Option<OrderTrust>,
    /// Orders that were made before this, in milliseconds since 1970, are not for this machine.
    pub since_ms: u64,
}

/// By what one notices that the file was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    inode: u64,
    bytes: u64,
    changed_ns: i128,
}

impl Trusted {
    /// Nothing read yet: no order counts.
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: None, trust: None, since_ms: 0 }
    }

    /// Reads the file if it has changed. One that can't be read any more leaves all as it was: the pod goes on with what
    /// it has of the ring's secret, too.
    pub fn refresh(&mut self) {
        let seen = self.look().ok();
        if seen == self.seen {
            return;
        }
        self.seen = seen;
        match RingFile::load(&self.path) {
            Ok(Some(file)) => {
                let trust = file.order_trust();
                match &trust {
                    None => tracing::warn!(
                        "{} has no key for orders: this pod follows no order of an upgrade (`podctl upgrade key`)",
                        self.path.display()
                    ),
                    Some(trust) if self.trust.as_ref() != Some(trust) => {
                        tracing::info!("orders of upgrades count when signed with the key {}", trust.key.fingerprint());
                    }
                    Some(_) => {}
                }
                (self.trust, self.since_ms) = (trust, file.orders_since_ms);
            }
            Ok(None) => tracing::error!(
                "{} is gone; the pod goes on with what it knew, and can't start again without it: bring it back from a copy",
                self.path.display()
            ),
            Err(err) => tracing::error!("{err}"),
        }
    }

    fn look(&self) -> io::Result<Seen> {
        let meta = fs::metadata(&self.path)?;
        let changed_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Ok(Seen { inode: meta.ino(), bytes: meta.len(), changed_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::Trusted;
    use crate::ring_file::{Admin, RingFile};
    use adea_ring::upgrade::{OrderKey, OrderTrust};

    #[test]
    fn a_key_that_is_replaced_counts_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring.json");
        let mut trusted = Trusted::new(path.clone());
        trusted.refresh();
        assert!(trusted.trust.is_none());
        let mut file = RingFile::new("pod-1".into(), Admin { name: "a".into(), password_hash: "h".into() });
        file.save(&path).unwrap();
        trusted.refresh();
        assert!(trusted.trust.is_none(), "a ring of an earlier version");
        for since_ms in [5, 6] {
            let trust = OrderTrust { key: OrderKey::random().public(), at: None };
            file.trust_orders(&trust, since_ms);
            file.save(&path).unwrap();
            trusted.refresh();
            assert_eq!((trusted.trust.as_ref(), trusted.since_ms), (Some(&trust), since_ms));
        }
        let last = trusted.trust.clone();
        std::fs::write(&path, "{").unwrap();
        trusted.refresh();
        assert_eq!(trusted.trust, last);
    }
}
