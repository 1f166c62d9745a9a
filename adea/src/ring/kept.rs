//! What a pod must not forget of its ring: `DATA/run/ring-state.json`, always written whole. Members that a later version
//! has written are borne, so that a pod can go back to this one.

use std::io;
use std::path::{Path, PathBuf};

use adea_ring::report::Origin;
use adea_ring::{PodId, Stamp};
use serde::{Deserialize, Serialize};

use crate::ring_file::replace;

/// The most pods that are remembered; as many as peering was tried with. Pods that have left are forgotten first.
pub const MAX_REMEMBERED: usize = 2_000;

/// What a pod remembers over its restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// Of the last start; the next one's is greater.
    pub generation: u64,
    /// The bound of the clock: no stamp that was given away is at or after it.
    pub clock: Option<Stamp>,
    /// The newest epoch heard of.
    pub seen: Option<Stamp>,
    /// The newest epoch in which this pod had all that the others could give it.
    pub caught_up_to: Option<Stamp>,
    /// The store for which that holds: one that was made anew has nothing.
    pub origin: Option<Origin>,
    /// Whether it has ever met another pod, or begun the ring itself.
    pub joined: bool,
    /// The other pods, sorted by id.
    pub members: Vec<Remembered>,
}

/// A pod that was met once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Which.
    pub id: PodId,
    /// Where it was reached.
    pub address: String,
    /// Whether it had said that it goes. It may have come back since.
    #[serde(default)]
    pub left: bool,
}

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// It can't be read.
    #[error("can't read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It isn't what was written.
    #[error(
        "{path} is damaged: {source}; without it this pod would forget which writes came last: put it back, or remove it and the pod's store, and let the pod join anew"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
}

impl Kept {
    /// Reads the file; a pod that has never been in a ring has none.
    ///
    /// # Errors
    /// When it can't be read or understood: going on without it could make the ring's clock run backwards.
    pub fn load(path: &Path) -> Result<Self, KeptError> {
        match std::fs::read(path) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|source| KeptError::Damaged { path: path.to_path_buf(), source })
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(KeptError::Read { path: path.to_path_buf(), source }),
        }
    }

    /// Writes the file; it is on disk when this returns.
    ///
    /// # Errors
    /// When it can't be written; the old one is there then.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        replace(path, &serde_json::to_vec_pretty(self)?)
    }

    /// Notes a pod; true when that was news.
    pub fn remember(&mut self, member: Remembered) -> bool {
        match self.members.binary_search_by(|known| known.id.cmp(&member.id)) {
            Ok(place) if self.members[place] == member => return false,
            Ok(place) => self.members[place] = member,
            Err(place) => self.members.insert(place, member),
        }
        if self.members.len() > MAX_REMEMBERED {
            let gone = self.members.iter().position(|known| known.left).unwrap_or(0);
            self.members.remove(gone);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{Kept, KeptError, MAX_REMEMBERED, Remembered};

    fn pod(id: &str, left: bool) -> Remembered {
        Remembered { id: id.parse().unwrap(), address: "127.0.0.1:1".into(), left }
    }

    #[test]
    fn is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring-state.json");
        assert_eq!(Kept::load(&path).unwrap(), Kept::default());
        let mut kept = Kept { generation: 7, joined: true, ..Kept::default() };
        kept.seen = Some("0190a1b2c3d4-00ff-pod-1".parse().unwrap());
        kept.origin = Some("pod-1@0a1b2c3d".parse().unwrap());
        assert!(kept.remember(pod("b", false)) && kept.remember(pod("a", true)));
        assert!(!kept.remember(pod("b", false)) && kept.remember(pod("b", true)));
        kept.save(&path).unwrap();
        assert_eq!(Kept::load(&path).unwrap(), kept);
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(Kept::load(&path), Err(KeptError::Damaged { .. })));
    }

    #[test]
    fn forgets_those_that_left_first() {
        let mut kept = Kept::default();
        for i in 0..MAX_REMEMBERED {
            kept.remember(pod(&format!("pod-{i:04}"), i == 77));
        }
        kept.remember(pod("zz", false));
        assert_eq!(kept.members.len(), MAX_REMEMBERED);
        assert!(kept.members.iter().all(|known| !known.left));
    }
}
