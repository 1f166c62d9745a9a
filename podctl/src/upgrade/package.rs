//! The software that is to be brought to the pods: a file, or a name in a registry.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::command::upgrade::OrderArgs;

/// What names the images in an archive; those of archives with many layers have some KiB.
const MANIFEST: &str = "manifest.json";
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// What is read of a file at once, in bytes.
const PART_BYTES: usize = 64 << 10;

/// What is to be brought.
#[derive(Debug)]
pub enum Package {
    /// A file that goes into the ring.
    File(PackageFile),
    /// An image that each pod fetches.
    Named(String),
}

/// A file that goes into the ring.
#[derive(Debug)]
pub struct PackageFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its digest, in hexadecimal.
    pub sha256: String,
    /// The image in it; none: it is a program.
    pub image: Option<String>,
    /// Its version, where it tells.
    pub version: Option<String>,
}

impl Package {
    /// As the arguments name it.
    pub fn of(args: &OrderArgs) -> anyhow::Result<Self> {
        match (&args.image, &args.binary) {
            (Some(image), None) if Path::new(image).is_file() => {
                let path = PathBuf::from(image);
                let name =
                    image_in(File::open(&path)?).with_context(|| format!("{image} is no archive of an image"))?;
                let version = name.rsplit_once(':').map(|(_, tag)| tag.to_owned());
                Ok(Self::File(PackageFile { image: Some(name), version, ..digest(path)? }))
            }
            (Some(image), None) if image.contains("@sha256:") => Ok(Self::Named(image.clone())),
            (Some(image), None) => bail!(
                "--image {image}: there is no such file; an image in a registry is named with its digest, NAME@sha256:DIGEST, so that all pods get the same"
            ),
            (None, Some(path)) => {
                let version = version_of(path)?;
                Ok(Self::File(PackageFile { version: Some(version), ..digest(path.clone())? }))
            }
            _ => bail!("which software? Give --image FILE, --image NAME@sha256:DIGEST, or --binary FILE"),
        }
    }
}

fn digest(path: PathBuf) -> anyhow::Result<PackageFile> {
    let read = || -> io::Result<(u64, String)> {
        let (mut file, mut hash, mut bytes) = (File::open(&path)?, Sha256::new(), 0);
        let mut part = vec![0; PART_BYTES];
        loop {
            match file.read(&mut part)? {
                0 => return Ok((bytes, hex::encode(hash.finalize()))),
                read => {
                    hash.update(&part[..read]);
                    bytes += read as u64;
                }
            }
        }
    };
    let (bytes, sha256) = read().with_context(|| format!("can't read {}", path.display()))?;
    Ok(PackageFile { path, bytes, sha256, image: None, version: None })
}

/// What a program says that it is. A program that this machine can't run, the pods' machines can't either.
fn version_of(path: &Path) -> anyhow::Result<String> {
    let program = std::path::absolute(path)?;
    let output = Command::new(&program).arg("--version").output();
    let output = output.with_context(|| format!("{} can't be started", path.display()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match said.trim().split_once(' ') {
        Some(("podctl", version)) if output.status.success() && !version.contains(' ') => Ok(version.to_owned()),
        _ => bail!("{} is no podctl: it says {:?}", path.display(), said.trim()),
    }
}

/// The name of the image in an archive, as `podctl image` and `docker save` write them.
fn image_in(archive: impl Read) -> anyhow::Result<String> {
    for entry in tar::Archive::new(archive).entries()? {
        let entry = entry?;
        if entry.path()?.as_ref() != Path::new(MANIFEST) {
            continue;
        }
        let manifest: Value = serde_json::from_reader(entry.take(MAX_MANIFEST_BYTES))?;
        let names: Vec<&Value> = manifest.as_array().into_iter().flatten().map(|image| &image["RepoTags"]).collect();
        let names: Vec<&str> =
            names.into_iter().filter_map(Value::as_array).flatten().filter_map(Value::as_str).collect();
        match names.as_slice() {
            [name] => return Ok((*name).to_owned()),
            [] => bail!("the image in it has no name: `docker save NAME:TAG`, not by its id"),
            _ => bail!("there are several images in it ({})", names.join(", ")),
        }
    }
    bail!("there is no {MANIFEST} in it")
}

#[cfg(test)]
mod tests {
    use super::{digest, image_in};

    fn archive(manifest: &str) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, text) in [("layer", "x"), ("manifest.json", manifest)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        archive.into_inner().unwrap()
    }

    #[test]
    fn an_archive_tells_its_image() {
        let name = image_in(&archive(r#"[{"RepoTags": ["adea:1-a"], "Config": "x"}]"#)[..]).unwrap();
        assert_eq!(name, "adea:1-a");
        for (manifest, why) in [
            (r#"[{"RepoTags": null}]"#, "no name"),
            (r#"[{"RepoTags": ["a:1", "b:1"]}]"#, "several"),
            ("[]", "no name"),
            ("{", "EOF"),
        ] {
            let error = image_in(&archive(manifest)[..]).unwrap_err();
            assert!(error.to_string().contains(why), "{manifest}: {error}");
        }
        assert!(image_in(&b"no archive"[..]).is_err());
        assert!(image_in(&[][..]).is_err());
    }

    #[test]
    fn a_file_has_a_digest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "abc").unwrap();
        let file = digest(path).unwrap();
        assert_eq!(file.bytes, 3);
        assert_eq!(file.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
