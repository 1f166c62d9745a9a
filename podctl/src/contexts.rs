//! Log-ins that `podctl login` keeps: for each ring its pods' URLs and a session, in `credentials.json` of the user's
//! configuration folder, readable for that user only.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// The form of the file: a newer one may mean something else.
const FORMAT: u32 = 1;

/// All log-ins of a user.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Contexts {
    format: u32,
    /// The ring of the last log-in, by its id.
    #[serde(default)]
    pub current: Option<String>,
    /// The log-ins, by the rings' ids.
    #[serde(default)]
    pub rings: BTreeMap<String, Ring>,
}

/// A log-in to one ring.
#[derive(Clone, Serialize, Deserialize)]
pub struct Ring {
    /// The ring's pods, the one that was logged in at first.
    pub urls: Vec<String>,
    /// The account.
    pub user: String,
    /// What stands for it until it ends.
    pub session: Session,
    /// The authority that signs the pods' certificates, PEM, if it is none that is trusted anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// A session: a name and a password for a time.
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
    /// When it ends, in milliseconds since 1970.
    pub expires_at_ms: u64,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("urls", &self.urls).field("user", &self.user).finish_non_exhaustive()
    }
}

impl Default for Contexts {
    fn default() -> Self {
        Self { format: FORMAT, current: None, rings: BTreeMap::new() }
    }
}

impl Contexts {
    /// Reads the user's file; empty if there is none.
    pub fn load() -> anyhow::Result<Self> {
        match path() {
            Some(path) => Self::load_from(&path),
            None => Ok(Self::default()),
        }
    }

    fn load_from(path: &Path) -> anyhow::Result<Self> {
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(err) => return Err(err).with_context(|| format!("can't read {}", path.display())),
        };
        let mode = file.metadata()?.permissions().mode();
        if mode & 0o077 != 0 {
            bail!("{0} can be read by others: chmod 600 {0}, and `podctl login` again", path.display());
        }
        let text = io::read_to_string(file).with_context(|| format!("can't read {}", path.display()))?;
        // The text has secrets: only where the mistake is may be told.
        let contexts: Self = serde_json::from_str(&text).map_err(|err| {
            let (line, column) = (err.line(), err.column());
            anyhow::anyhow!(
                "{} makes no sense at line {line}, column {column}: remove it, and log in again",
                path.display()
            )
        })?;
        if contexts.format != FORMAT {
            bail!("{} was written by a newer podctl: use that one, or remove the file", path.display());
        }
        Ok(contexts)
    }

    /// Writes the user's file, whole or not at all.
    pub fn save(&self) -> anyhow::Result<PathBuf> {
        let path = path().context("no place to keep the log-in: set HOME or XDG_CONFIG_HOME")?;
        self.save_to(&path).with_context(|| format!("can't write {}", path.display()))?;
        Ok(path)
    }

    fn save_to(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(folder) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let written = file
            .write_all(&serde_json::to_vec_pretty(self)?)
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&new, path));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        Ok(written?)
    }

    /// The log-in that counts when no pod is named.
    pub fn current(&self) -> Option<&Ring> {
        self.rings.get(self.current.as_ref()?)
    }

    /// The log-in at the ring of a pod.
    pub fn of_url(&self, url: &str) -> Option<&Ring> {
        let plain = |url: &str| url.trim_end_matches('/').to_ascii_lowercase();
        self.rings.values().find(|ring| ring.urls.iter().any(|known| plain(known) == plain(url)))
    }
}

impl Ring {
    /// Whether it has ended at this time.
    pub fn is_over(&self, now_ms: u64) -> bool {
        self.session.expires_at_ms <= now_ms
    }
}

fn path() -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // A relative one counts for nothing (XDG Base Directory Specification).
    let folder = named("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
    let folder = folder.or_else(|| Some(named("HOME")?.join(".config")))?;
    Some(folder.join("adea").join("credentials.json"))
}

#[cfg(test)]
mod tests {
    use super::{Contexts, Ring, Session};
    use std::os::unix::fs::PermissionsExt;

    fn context() -> Ring {
        let session = Session { name: "session-x".into(), password: "secretish".into(), expires_at_ms: 10 };
        Ring { urls: vec!["https://a.example".into()], user: "admin".into(), session, ca: None }
    }

    #[test]
    fn log_ins_are_kept_for_their_user_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adea/credentials.json");
        assert!(Contexts::load_from(&path).unwrap().current().is_none());
        let mut contexts = Contexts::default();
        contexts.rings.insert("ring".into(), context());
        contexts.current = Some("ring".into());
        contexts.save_to(&path).unwrap();
        contexts.save_to(&path).unwrap();
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let read = Contexts::load_from(&path).unwrap();
        assert_eq!(read.current().unwrap().session.password, "secretish");
        assert!(read.of_url("https://A.example/").is_some() && read.of_url("http://a.example").is_none());
        assert!(read.current().unwrap().is_over(10) && !read.current().unwrap().is_over(9));
        assert!(!format!("{read:?}").contains("secretish"));

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Contexts::load_from(&path).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn a_file_that_makes_no_sense_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        let mut contexts = Contexts::default();
        contexts.rings.insert("ring".into(), context());
        contexts.save_to(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"user\": \"admin\"", "\"user\": 5")).unwrap();
        let err = format!("{:#}", Contexts::load_from(&path).unwrap_err());
        assert!(err.contains("log in again") && !err.contains("secretish"), "{err}");
        std::fs::write(&path, text.replace("\"format\": 1", "\"format\": 2, \"later\": 1")).unwrap();
        assert!(Contexts::load_from(&path).unwrap_err().to_string().contains("newer podctl"));
    }
}
