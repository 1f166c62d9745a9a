//! What containers need of the data folder: folders of their own, a copy of the ring's file, copies of certificates.
//!
//! The agent is root, the programs are not. So it never writes into a folder that a program can write to: there a link
//! could lead anywhere.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, fchown, lchown};
use std::path::{Path, PathBuf};

use adea_ring::software;
use sha2::{Digest, Sha256};

use crate::folder::Folder;
use crate::image::{Image, ImageError};
use crate::process::this_program;
use crate::ring_file::{RingFile, RingFileError, replace_ready};

/// Certificates are a few KiB; what is larger was named by mistake.
const MAX_COPY_BYTES: u64 = 1 << 20;

/// What containers need can't be had.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A file or folder.
    #[error("can't {step} {path}: {source}{}", hint(source))]
    Io {
        /// What was tried.
        step: &'static str,
        /// The path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file that is far too large.
    #[error("{0} is larger than 1 MiB: it is no certificate or key")]
    TooLarge(PathBuf),
    /// The ring's file can't be used.
    #[error(transparent)]
    RingFile(#[from] RingFileError),
    /// There is no ring file.
    #[error("configuration key `ring_file`: there is no {0}")]
    NoRingFile(PathBuf),
    /// No image can be made from the program.
    #[error("no image can be made from this program, and `runtime.docker.image` names none: {0}")]
    Image(#[from] ImageError),
}

fn hint(err: &io::Error) -> &'static str {
    match err.kind() {
        io::ErrorKind::PermissionDenied => {
            "; run the agent as root, or set `runtime.docker.user` to the user that it runs as"
        }
        _ => "",
    }
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrepareError {
    let path = path.to_path_buf();
    move |source| PrepareError::Io { step, path, source }
}

/// Copies the ring's file for the containers; gives the ring's id, and a hash of the file's content.
pub fn ring_file(from: &Path, folder: &Folder, user: u32) -> Result<(String, String), PrepareError> {
    let file = RingFile::load(from)?.ok_or_else(|| PrepareError::NoRingFile(from.to_path_buf()))?;
    let wrong = |source| RingFileError::Secret { path: from.to_path_buf(), source };
    let secret = file.secret().map_err(wrong)?;
    let text = fs::read(from).map_err(failed("read", from))?;
    let to = folder.container_ring_file();
    write_for(&to, &text, user).map_err(failed("write", &to))?;
    let ring_id = hex::encode(&secret.key("ring id")[..8]);
    // The file holds 256 random bits, so its hash tells nothing of it.
    Ok((ring_id, hex::encode(&Sha256::digest(text)[..16])))
}

/// Makes the folders that are mounted, each with its owner.
pub fn folders(folder: &Folder, user: u32) -> Result<(), PrepareError> {
    for path in [folder.store(), folder.proxy_data()] {
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed("make", &path))?;
        // What a pod of child processes has left belongs to root.
        give(&path, user).map_err(failed("give to the containers' user", &path))?;
    }
    for path in [folder.container_logs(), folder.container_tls()] {
        DirBuilder::new().recursive(true).mode(0o750).create(&path).map_err(failed("make", &path))?;
        if rustix::process::geteuid().is_root() {
            chown(&path, None, Some(user)).map_err(failed("share with the containers' group", &path))?;
        }
    }
    Ok(())
}

/// Gives a folder and all in it to a user, unless it is theirs. What is theirs already may be full of traps, and is
/// not looked into.
fn give(path: &Path, user: u32) -> io::Result<()> {
    if fs::symlink_metadata(path)?.uid() == user {
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            give(&entry.path(), user)?;
        } else {
            lchown(entry.path(), Some(user), Some(user))?;
        }
    }
    // Last, so that a start that was cut off is made good by the next.
    lchown(path, Some(user), Some(user))
}

/// Copies files for the containers, those that have changed.
pub fn copies(copies: &[(PathBuf, &'static str)], folder: &Folder, user: u32) -> Result<(), PrepareError> {
    for (from, name) in copies {
        let length = fs::metadata(from).map_err(failed("read", from))?.len();
        if length > MAX_COPY_BYTES {
            return Err(PrepareError::TooLarge(from.clone()));
        }
        let text = fs::read(from).map_err(failed("read", from))?;
        let to = folder.container_tls().join(name);
        if fs::read(&to).is_ok_and(|before| before == text) {
            continue;
        }
        write_for(&to, &text, user).map_err(failed("write", &to))?;
    }
    Ok(())
}

/// The image of a program, the running one if none is named.
pub fn own_image(program: Option<&Path>) -> Result<Image, PrepareError> {
    let program = match program {
        Some(program) => program.to_path_buf(),
        None => this_program().map_err(failed("find", Path::new("the running program")))?,
    };
    Ok(Image::of(&program, software::version(), None)?)
}

/// Replaces a file that only this user may read.
fn write_for(path: &Path, text: &[u8], user: u32) -> io::Result<()> {
    replace_ready(path, text, |file| {
        if file.metadata()?.uid() != user {
            fchown(file, Some(user), Some(user))?;
        }
        file.set_permissions(Permissions::from_mode(0o400))
    })
}

#[cfg(test)]
mod tests {
    use super::{copies, folders, give, ring_file};
    use crate::folder::Folder;
    use crate::ring_file::{Admin, RingFile};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn me() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn the_ring_file_is_copied_for_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        let from = dir.path().join("ring.json");
        assert!(ring_file(&from, &folder, me()).unwrap_err().to_string().contains("ring_file"));
        let admin = Admin { name: "admin".into(), password_hash: "$argon2id$".into() };
        RingFile::new("pod-1".into(), admin.clone()).save(&from).unwrap();
        let first = ring_file(&from, &folder, me()).unwrap();
        assert_eq!(ring_file(&from, &folder, me()).unwrap(), first);
        let copy = std::fs::metadata(folder.container_ring_file()).unwrap();
        assert_eq!((copy.permissions().mode() & 0o777, copy.uid()), (0o400, me()));
        RingFile::new("pod-1".into(), admin).save(&from).unwrap();
        let other = ring_file(&from, &folder, me()).unwrap();
        assert!(other.0 != first.0 && other.1 != first.1);
    }

    #[test]
    fn links_are_not_followed_out_of_a_folder() {
        if !rustix::process::geteuid().is_root() {
            // Only root can give files away.
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
        std::fs::create_dir_all(inside.join("deep")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), "").unwrap();
        symlink(&outside, inside.join("deep/folder")).unwrap();
        symlink(outside.join("file"), inside.join("deep/file")).unwrap();
        give(&inside, 65_532).unwrap();
        assert_eq!(std::fs::metadata(inside.join("deep")).unwrap().uid(), 65_532);
        assert_eq!(std::fs::symlink_metadata(inside.join("deep/file")).unwrap().uid(), 65_532);
        assert_eq!(std::fs::metadata(outside.join("file")).unwrap().uid(), 0);
        assert_eq!(std::fs::metadata(&outside).unwrap().uid(), 0);
    }

    #[test]
    fn certificates_are_copied_when_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        folders(&folder, me()).unwrap();
        let from = dir.path().join("c.pem");
        let list = [(from.clone(), "certificate.pem")];
        assert!(copies(&list, &folder, me()).is_err());
        let to = folder.container_tls().join("certificate.pem");
        for text in ["one", "two"] {
            std::fs::write(&from, text).unwrap();
            copies(&list, &folder, me()).unwrap();
            assert_eq!(std::fs::read_to_string(&to).unwrap(), text);
        }
        let before = std::fs::metadata(&to).unwrap().ino();
        copies(&list, &folder, me()).unwrap();
        assert_eq!(std::fs::metadata(&to).unwrap().ino(), before, "nothing has changed");
        std::fs::write(&from, vec![b'x'; (1 << 20) + 1]).unwrap();
        assert!(copies(&list, &folder, me()).unwrap_err().to_string().contains("1 MiB"));
    }
}
