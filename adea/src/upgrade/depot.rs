//! Software on this machine: fetched, checked, and put where it can be run from.
//!
//! Programs are kept in `DATA/bin`, each under the digest of what it came in. A pod of containers takes the program of
//! its agent out of the image; given a program file, it makes the image from that.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::upgrade::{Order, Source};
use tokio::process::Command;
use tokio::time::timeout;

use crate::docker::Engine;
use crate::folder::Folder;
use crate::image::Image;
use crate::software::Software;
use crate::upgrade::journal::Outfit;
use crate::upgrade::rean::Rean;
use crate::upgrade::successor;

/// A program that takes longer to say its version is not to take the place of one that works.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);
/// What a program says of itself, in bytes; the rest doesn't matter.
const MAX_SAID_BYTES: usize = 300;
/// Digits of a digest in a file's name: enough that two never share one.
const NAME_DIGITS: usize = 16;

/// Where a pod keeps software.
#[derive(Debug, Clone)]
pub struct Depot {
    bin: PathBuf,
    run: PathBuf,
    engine: Option<Engine>,
}

impl Depot {
    /// That of a data folder.
    pub fn new(folder: &Folder, engine: Option<Engine>) -> Self {
        Self { bin: folder.root().join("bin"), run: folder.run(), engine }
    }

    /// Has the software of an order on this machine, so that nothing but to start it is left.
    ///
    /// # Errors
    /// Why it can't be had, for people.
    pub async fn fetch(&self, order: &Order, rean: &Rean) -> Result<Outfit, String> {
        self.make_bin()?;
        let outfit = match (order.source, &order.archive_sha256, &order.image) {
            (Source::Ring, Some(digest), image) => {
                let id = order.archive_id().unwrap_or_default();
                let file = self.run.join(format!("upgrade-{}.part", &digest[..NAME_DIGITS]));
                rean.download(&id, digest, &file).await?;
                let outfit = match image {
                    Some(image) => self.take_image(&file, digest, image).await,
                    None => self.take_program(&file, digest).await,
                };
                // What could not be used is fetched anew: it is not kept for its own sake.
                let _ = fs::remove_file(&file);
                outfit?
            }
            (_, _, Some(image)) => self.pull(image).await?,
            _ => return Err("the order names no software".to_owned()),
        };
        check(&outfit.agent).await?;
        Ok(outfit)
    }

    /// Removes programs of upgrades that are not among these. Blocking.
    pub fn tidy(&self, kept: &[PathBuf]) {
        let kept: BTreeSet<_> = kept.iter().filter_map(|path| path.file_name()).collect();
        let Ok(entries) = fs::read_dir(&self.bin) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let is_program = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"podctl-"));
            if is_program && !path.file_name().is_some_and(|name| kept.contains(name)) {
                let _ = fs::remove_file(&path);
            }
        }
    }

    fn make_bin(&self) -> Result<(), String> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.bin);
        made.map_err(|err| format!("can't make {}: {err}", self.bin.display()))
    }

    /// A program's place; as the system itself names it, so that a running program knows itself by it.
    fn place(&self, digest: &str) -> Result<PathBuf, String> {
        let bin = self.bin.canonicalize().map_err(|err| format!("can't use {}: {err}", self.bin.display()))?;
        Ok(bin.join(format!("podctl-{}", &digest[..NAME_DIGITS])))
    }

    async fn take_program(&self, file: &Path, digest: &str) -> Result<Outfit, String> {
        let place = self.place(digest)?;
        let set = || -> std::io::Result<()> {
            fs::set_permissions(file, Permissions::from_mode(0o755))?;
            fs::rename(file, &place)?;
            File::open(&self.bin)?.sync_all()
        };
        set().map_err(|err| format!("can't write {}: {err}", place.display()))?;
        let Some(engine) = &self.engine else {
            return Ok(Outfit { software: Software { image: None, program: Some(place.clone()) }, agent: place });
        };
        let version = check(&place).await?;
        let program = place.clone();
        let image = tokio::task::spawn_blocking(move || Image::of(&program, &version, None)).await;
        let image = image.map_err(|err| err.to_string())?.map_err(|err| err.to_string())?;
        let name = image.id().name.clone();
        engine.load_image(Arc::new(image)).await.map_err(|err| err.to_string())?;
        Ok(Outfit { software: Software { image: Some(name), program: None }, agent: place })
    }

    async fn take_image(&self, file: &Path, digest: &str, image: &str) -> Result<Outfit, String> {
        let Some(engine) = &self.engine else {
            return Err("this pod runs no containers: order the upgrade with a program file (--binary)".to_owned());
        };
        let archive = File::open(file).map_err(|err| format!("can't read {}: {err}", file.display()))?;
        let names = engine.load(archive).await.map_err(|err| err.to_string())?;
        if !names.iter().any(|name| name == image) {
            return Err(format!("the archive has no image {image}, but {}", names.join(", ")));
        }
        self.take_out(engine, image, digest).await
    }

    async fn pull(&self, image: &str) -> Result<Outfit, String> {
        let Some(engine) = &self.engine else {
            return Err("this pod runs no containers: order the upgrade with a program file (--binary)".to_owned());
        };
        if engine.image(image).await.map_err(|err| err.to_string())?.is_none() {
            engine.pull(image).await.map_err(|err| err.to_string())?;
        }
        let digest = image.rsplit_once("@sha256:").map_or("", |(_, digest)| digest);
        if digest.len() < NAME_DIGITS {
            return Err("the order names no digest".to_owned());
        }
        self.take_out(engine, image, digest).await
    }

    async fn take_out(&self, engine: &Engine, image: &str, digest: &str) -> Result<Outfit, String> {
        let agent = self.place(digest)?;
        engine.extract_binary(image, &agent).await.map_err(|err| err.to_string())?;
        Ok(Outfit { software: Software { image: Some(image.to_owned()), program: None }, agent })
    }
}

/// Whether a program is one that can be the agent with this pod's configuration; the version that it says it is.
async fn check(program: &Path) -> Result<String, String> {
    let said = ask(program, &["--version".into()]).await?;
    let version = said.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let mut arguments = successor::arguments();
    arguments.push("--check".into());
    ask(program, &arguments).await.map_err(|err| format!("{err}: it does not take this pod's configuration"))?;
    Ok(version)
}

async fn ask(program: &Path, arguments: &[std::ffi::OsString]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = match timeout(VERSION_DEADLINE, command.output()).await {
        Ok(output) => output.map_err(|err| format!("it can't be started on this machine: {err}"))?,
        Err(_) => return Err(format!("it did not answer in {} s", VERSION_DEADLINE.as_secs())),
    };
    let text = if output.status.success() { &output.stdout } else { &output.stderr };
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_SAID_BYTES)]).trim().to_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("it can't be started on this machine ({}): {text}", output.status))
    }
}

#[cfg(test)]
mod tests {
    use super::{Depot, ask};
    use crate::folder::Folder;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn what_can_t_be_started_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let good = script("good", "#!/bin/sh\necho podctl 9.9.9\n");
        assert_eq!(ask(&good, &["--version".into()]).await.unwrap(), "podctl 9.9.9");
        let bad = script("bad", "#!/bin/sh\necho no such key >&2\nexit 3\n");
        assert!(ask(&bad, &[]).await.unwrap_err().contains("no such key"));
        let foreign = script("foreign", "\x7fELF of another machine");
        assert!(ask(&foreign, &[]).await.unwrap_err().contains("can't be started"));
        assert!(ask(&dir.path().join("none"), &[]).await.is_err());
    }

    #[test]
    fn what_no_upgrade_needs_goes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        let depot = Depot::new(&folder, None);
        depot.make_bin().unwrap();
        for name in ["podctl-a", "podctl-b", "else"] {
            std::fs::write(dir.path().join("bin").join(name), "x").unwrap();
        }
        depot.tidy(&["/elsewhere/podctl-b".into()]);
        assert!(!dir.path().join("bin/podctl-a").exists());
        assert!(dir.path().join("bin/podctl-b").exists() && dir.path().join("bin/else").exists());
    }
}
