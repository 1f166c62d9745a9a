//! What a pod must not forget of an upgrade: `DATA/run/upgrade.json`, always written whole.
//!
//! It also says which software the pod runs from then on: the programs by [`Journal::software`], the agent by
//! [`Journal::agent`].

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use adea_ring::upgrade::{Order, OrderPublicKey, Step};
use serde::{Deserialize, Serialize};

use crate::docker::Brought;
use crate::folder::Folder;
use crate::ring_file::replace;
use crate::software::Software;

/// The form that this version writes, and the newest that it reads.
const FORMAT: u32 = 1;
/// The most images that are noted: each upgrade brings one, and only those that Docker would not let go are left for the next
/// to remove. The oldest beyond that stay in Docker.
const MAX_IMAGES: usize = 16;

/// What a pod remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Journal {
    /// Of the file's form.
    pub format: u32,
    /// What the programs are to be started from.
    pub software: Software,
    /// The program that is to be the agent; none: the one that was installed.
    pub agent: Option<PathBuf>,
    /// How often that was tried since it was last well.
    pub agent_tries: u32,
    /// The program that was installed when the ring's software first took its place.
    pub installed: Option<Installed>,
    /// The order that the pod goes by: the newest that it has ever heard of.
    pub order: Option<Order>,
    /// By which key it was signed; none: an earlier version has taken it up.
    pub key: Option<OrderPublicKey>,
    /// When the newest order was made that it has seen, also of those that were not for it; in milliseconds since 1970.
    /// No older one is taken up, so that nobody can bring the pod to earlier software by putting an old order back.
    pub seen_ms: u64,
    /// By which key they were signed; none: an earlier version has seen them. What another key has signed says nothing of
    /// when: somebody may have stolen it.
    pub seen_key: Option<OrderPublicKey>,
    /// Where it stands in it.
    pub step: Option<Step>,
    /// Why it goes back.
    pub why: Option<String>,
    /// Since when it has tried the new software, in milliseconds since 1970.
    pub trial_since_ms: Option<u64>,
    /// What it had before.
    pub old: Option<Outfit>,
    /// What the order brings, once it is here.
    pub new: Option<Outfit>,
    /// The images that orders have brought to the engine, the newest last: no others are removed.
    pub images: Vec<Brought>,
}

/// Software of a pod: what its programs are started from, and the program that is its agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outfit {
    /// Of the programs.
    pub software: Software,
    /// Of the agent.
    pub agent: PathBuf,
    /// The image, if it was not in the engine before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brought: Option<Brought>,
}

/// A program file, and by what one notices that another was put in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was changed, in nanoseconds since 1970.
    pub changed_ns: i128,
}

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
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
        "{path} is damaged: {source}; remove it if no upgrade is under way: the pod then runs the installed software"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A later version has written it in a form of its own.
    #[error("{path} has the format {format}, this version knows {FORMAT}: start the version that wrote it")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            format: FORMAT,
            software: Software::default(),
            agent: None,
            agent_tries: 0,
            installed: None,
            order: None,
            key: None,
            seen_ms: 0,
            seen_key: None,
            step: None,
            why: None,
            trial_since_ms: None,
            old: None,
            new: None,
            images: Vec::new(),
        }
    }
}

impl Journal {
    /// The file.
    pub fn path(folder: &Folder) -> PathBuf {
        folder.run().join("upgrade.json")
    }

    /// Reads the file; a pod that has never been upgraded has none.
    ///
    /// # Errors
    /// When it can't be read or understood: which software the pod should run is not known then.
    pub fn load(folder: &Folder) -> Result<Self, JournalError> {
        let path = Self::path(folder);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(JournalError::Read { path, source }),
        };
        let journal: Self =
            serde_json::from_slice(&text).map_err(|source| JournalError::Damaged { path: path.clone(), source })?;
        if journal.format > FORMAT {
            return Err(JournalError::Newer { path, format: journal.format });
        }
        Ok(journal)
    }

    /// Writes the file; it is on disk when this returns.
    ///
    /// # Errors
    /// When it can't be written; the old one is there then.
    pub fn save(&self, folder: &Folder) -> io::Result<()> {
        replace(&Self::path(folder), &serde_json::to_vec_pretty(self)?)
    }

    /// By which key the orders were signed that `seen_ms` tells of, as far as that can be told.
    pub fn seen_key(&self) -> Option<OrderPublicKey> {
        self.seen_key.or(self.key)
    }

    /// Notes an image, to be removed when nothing needs it any more.
    pub fn note_image(&mut self, brought: &Brought) {
        self.images.retain(|image| image != brought);
        self.images.push(brought.clone());
        let excess = self.images.len().saturating_sub(MAX_IMAGES);
        self.images.drain(..excess);
    }

    /// Whether the pod is between two softwares.
    pub fn is_busy(&self) -> bool {
        self.step.is_some_and(Step::is_busy)
    }

    /// Whether somebody has installed another program by hand since the ring's took the place of `program`, which is
    /// running: then that counts from now on. Not in the middle of an upgrade.
    pub fn heed_installed(&mut self, program: &Path) -> bool {
        let Some(installed) = &self.installed else { return false };
        let is_new = installed.path == program && Installed::of(program).is_ok_and(|now| now != *installed);
        if is_new && !self.is_busy() {
            (self.software, self.agent, self.installed, self.agent_tries) = (Software::default(), None, None, 0);
            return true;
        }
        false
    }
}

impl Installed {
    /// A program file as it is now.
    ///
    /// # Errors
    /// When it can't be looked at.
    pub fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        let changed_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Ok(Self { path: path.to_path_buf(), bytes: meta.len(), changed_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::{Installed, Journal, JournalError, MAX_IMAGES};
    use crate::docker::Brought;
    use crate::folder::Folder;
    use crate::software::Software;
    use adea_ring::upgrade::Step;

    #[test]
    fn is_read_back_and_bears_later_members() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        assert_eq!(Journal::load(&folder).unwrap(), Journal::default());
        let journal = Journal { step: Some(Step::CatchingUp), agent: Some("/x".into()), ..Journal::default() };
        journal.save(&folder).unwrap();
        assert_eq!(Journal::load(&folder).unwrap(), journal);
        let path = Journal::path(&folder);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen('{', r#"{"later": [1],"#, 1)).unwrap();
        assert_eq!(Journal::load(&folder).unwrap(), journal);
        std::fs::write(&path, r#"{"format": 2}"#).unwrap();
        assert!(matches!(Journal::load(&folder), Err(JournalError::Newer { format: 2, .. })));
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(Journal::load(&folder), Err(JournalError::Damaged { .. })));
    }

    #[test]
    fn images_are_noted_once_and_not_without_end() {
        let mut journal = Journal::default();
        let brought = |number: usize| Brought { id: format!("sha256:{number}"), name: format!("adea:{number}") };
        (0..2 * MAX_IMAGES).chain([MAX_IMAGES + 1]).for_each(|number| journal.note_image(&brought(number)));
        assert_eq!(journal.images.len(), MAX_IMAGES);
        assert_eq!(journal.images[..2], [brought(MAX_IMAGES), brought(MAX_IMAGES + 2)]);
        assert_eq!(journal.images[MAX_IMAGES - 1], brought(MAX_IMAGES + 1));
    }

    #[test]
    fn a_program_that_is_installed_by_hand_counts() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("podctl");
        std::fs::write(&program, "old").unwrap();
        let journal = Journal {
            software: Software { image: None, program: Some("/ring's".into()) },
            agent: Some("/ring's".into()),
            installed: Some(Installed::of(&program).unwrap()),
            step: Some(Step::Done),
            ..Journal::default()
        };
        assert!(!journal.clone().heed_installed(&program), "it is the same");
        assert!(!journal.clone().heed_installed(dir.path()), "it is the ring's that runs");
        std::fs::write(&program, "newer").unwrap();
        assert!(!Journal { step: Some(Step::CatchingUp), ..journal.clone() }.heed_installed(&program));
        let mut heeded = journal;
        assert!(heeded.heed_installed(&program));
        assert_eq!((heeded.software, heeded.agent), (Software::default(), None));
    }
}
