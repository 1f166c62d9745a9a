//! Where the account at an ACME authority and its certificate are kept, for nobody else to read.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use adea_ring::public_tls::Acme;
use sha2::{Digest, Sha256};

/// A folder with the files of one order.
pub struct AcmeStore {
    folder: PathBuf,
    /// Tells the files of one account and one set of names from those of others.
    account: String,
    certificate: String,
}

impl AcmeStore {
    /// Makes the folder where there is none.
    ///
    /// # Errors
    /// When it can't be made, or not be written to.
    pub fn open(folder: &Path, acme: &Acme) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let account = mark([&acme.directory].into_iter().chain(&acme.contact));
        let certificate = mark([&acme.directory].into_iter().chain(&acme.domains));
        let account = format!("account-{account}.json");
        Ok(Self { folder: folder.to_owned(), account, certificate: format!("certificate-{certificate}.pem") })
    }

    /// The account; `None` if there is none yet.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn account(&self) -> io::Result<Option<Vec<u8>>> {
        read(&self.folder.join(&self.account))
    }

    /// Keeps the account.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn keep_account(&self, json: &[u8]) -> io::Result<()> {
        self.write(&self.account, json)
    }

    /// Gives the account up.
    ///
    /// # Errors
    /// When the file can't be removed.
    pub fn forget_account(&self) -> io::Result<()> {
        match fs::remove_file(self.folder.join(&self.account)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The key and the chain, PEM; `None` if there is none yet.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn certificate(&self) -> io::Result<Option<Vec<u8>>> {
        read(&self.folder.join(&self.certificate))
    }

    /// Keeps the key and the chain.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn keep_certificate(&self, pem: &[u8]) -> io::Result<()> {
        self.write(&self.certificate, pem)
    }

    /// Either the old file is there or the new one, whatever happens meanwhile.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let new = self.folder.join(format!("{name}.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, self.folder.join(name))
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn mark<'a>(texts: impl Iterator<Item = &'a String>) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(text.as_bytes());
        hash.update([0]);
    }
    hex::encode(&hash.finalize()[..8])
}
