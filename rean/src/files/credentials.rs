//! What opens the bucket: a file in the pod's own folder, or the environment.
//!
//! It is not in `_ring/config`: that is a document on every pod and in every backup. The file comes first, since of a
//! container's environment anyone learns who may ask Docker about it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Deserialize;

use crate::files::error::FileError;

/// The file's name in the pod's folder.
pub const CREDENTIALS_FILE: &str = "files-credentials.json";
/// A longer one is none.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// A name and a secret, and what some storages want besides.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// Who.
    pub access_key_id: String,
    /// The secret.
    pub secret_access_key: String,
    /// For credentials that expire.
    #[serde(default)]
    pub session_token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.access_key_id)
    }
}

impl Credentials {
    /// Those of [`CREDENTIALS_FILE`] in this folder, else of `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and
    /// `AWS_SESSION_TOKEN`.
    ///
    /// # Errors
    /// When there are none, or others than the file's owner may read it. No message has any of it.
    pub fn load(data_dir: &Path) -> Result<Self, FileError> {
        let path = data_dir.join(CREDENTIALS_FILE);
        match std::fs::metadata(&path) {
            Ok(about) => Self::read(&path, &about),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::of_environment(),
            Err(error) => Err(FileError::Credentials(format!("{CREDENTIALS_FILE}: {error}"))),
        }
    }

    fn read(path: &Path, about: &std::fs::Metadata) -> Result<Self, FileError> {
        let fault = |why: &str| FileError::Credentials(format!("{CREDENTIALS_FILE} {why}"));
        if about.mode() & 0o077 != 0 {
            return Err(fault("may be read by others: take that away with chmod 600"));
        }
        if about.len() > MAX_FILE_BYTES {
            return Err(fault("is too long"));
        }
        let text = std::fs::read(path).map_err(|error| fault(&format!("can't be read: {error}")))?;
        // What the parser says may have a part of the text in it.
        let parsed = serde_json::from_slice(&text);
        parsed.map_err(|_| fault("is not {\"access_key_id\": .., \"secret_access_key\": ..}"))
    }

    fn of_environment() -> Result<Self, FileError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
            (Some(access_key_id), Some(secret_access_key)) => {
                Ok(Self { access_key_id, secret_access_key, session_token: variable("AWS_SESSION_TOKEN") })
            }
            _ => Err(FileError::Credentials(format!(
                "there is neither {CREDENTIALS_FILE} in the pod's folder nor AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY in the environment"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CREDENTIALS_FILE, Credentials};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_others_may_read_is_refused_and_nothing_of_it_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(CREDENTIALS_FILE);
        let set = |text: &str, mode: u32| {
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
        };
        set(r#"{"access_key_id":"name","secret_access_key":"hidden"}"#, 0o600);
        let read = Credentials::load(folder.path()).expect("good ones");
        assert_eq!(read.secret_access_key, "hidden");
        assert!(!format!("{read:?}").contains("hidden"));
        set(r#"{"access_key_id":"name","secret_access_key":"hidden"}"#, 0o640);
        let error = Credentials::load(folder.path()).expect_err("others may read it").to_string();
        assert!(error.contains("chmod 600"), "{error}");
        set(r#"{"access_key_id":"name","secret":"hidden"}"#, 0o600);
        let error = Credentials::load(folder.path()).expect_err("another form").to_string();
        assert!(!error.contains("hidden"), "{error}");
    }
}
