//! Software on this machine: fetched, checked, and put where it can be run from.
//!
//! Programs are kept in `DATA/bin`, each under the digest of what it came in. A pod of containers takes the program of
//! its agent out of the image; given a program file, it makes the image from that.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use adea_ring::upgrade::{Order, Source};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::docker::{Brought, Engine};
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
/// What the name of a file begins with that is being fetched.
const PART: &str = "upgrade-";

/// Why software can't be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// It is on its way.
    #[error("it has not arrived at this pod yet")]
    Absent,
    /// It may go well another time.
    #[error("{0}")]
    Failed(String),
    /// It is what was ordered, and can't ever work on this pod.
    #[error("{0}")]
    Fault(String),
}

impl From<String> for FetchError {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

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

    /// Has the software of an order on this machine, so that nothing but to start it is left. Set `is_off` ends it while it
    /// comes over the network; from when it goes into the engine on it is brought to its end, which takes seconds, so that
    /// whoever asked for it can [give it back](Self::give_back).
    ///
    /// # Errors
    /// Why it can't be had, for people.
    pub async fn fetch(
        &self,
        order: &Order,
        rean: &Rean,
        is_off: &mut watch::Receiver<bool>,
    ) -> Result<Outfit, FetchError> {
        self.make_bin()?;
        self.sweep();
        let outfit = match (order.source, &order.archive_sha256, &order.image) {
            (Source::Ring, Some(digest), image) => {
                let id = order.archive_id().unwrap_or_default();
                // What could not be used is fetched anew: it is not kept for its own sake.
                let part = Part(self.run.join(format!("{PART}{}.part", &digest[..NAME_DIGITS])));
                tokio::select! {
                    biased;
                    () = called_off(is_off) => return Err(no_longer_wanted()),
                    downloaded = rean.download(&id, digest, &part.0) => downloaded?,
                }
                match image {
                    Some(image) => self.take_image(&part.0, digest, image).await?,
                    None => self.take_program(&part.0, digest).await?,
                }
            }
            (_, _, Some(image)) => self.pull(image, is_off).await?,
            _ => return Err(FetchError::Fault("the order names no software".to_owned())),
        };
        match check(&outfit.agent).await {
            Ok(_) => Ok(outfit),
            Err(err) => {
                self.give_back(outfit.brought).await;
                Err(err)
            }
        }
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

    /// Removes those images of upgrades that are not kept, by name; gives what is gone. What stays because of an error goes
    /// with the next upgrade.
    pub async fn tidy_images(&self, all: &[Brought], kept: &BTreeSet<String>) -> Vec<Brought> {
        let Some(engine) = &self.engine else { return Vec::new() };
        let gone = engine.remove_brought(all, kept).await.unwrap_or_else(|err| {
            tracing::warn!("old images stay in Docker until the next upgrade: {err}");
            Vec::new()
        });
        if !gone.is_empty() {
            let names: Vec<&str> = gone.iter().map(|image| image.name.as_str()).collect();
            tracing::info!("removed images that nothing runs any more: {}", names.join(", "));
        }
        gone
    }

    /// Removes an image that was brought and is of no use. What stays would not count as brought when it is fetched again.
    pub async fn give_back(&self, brought: Option<Brought>) {
        if let Some(brought) = brought {
            self.tidy_images(&[brought], &BTreeSet::new()).await;
        }
    }

    /// Removes what an agent that was killed had begun to fetch. There is one fetch at a time.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.run) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(PART) && name.ends_with(".part") {
                drop(Part(entry.path()));
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

    async fn take_program(&self, file: &Path, digest: &str) -> Result<Outfit, FetchError> {
        let place = self.place(digest)?;
        let set = || -> std::io::Result<()> {
            fs::set_permissions(file, Permissions::from_mode(0o755))?;
            fs::rename(file, &place)?;
            File::open(&self.bin)?.sync_all()
        };
        set().map_err(|err| format!("can't write {}: {err}", place.display()))?;
        let Some(engine) = &self.engine else {
            let software = Software { image: None, program: Some(place.clone()) };
            return Ok(Outfit { software, agent: place, brought: None });
        };
        let version = check(&place).await?;
        let program = place.clone();
        let image = tokio::task::spawn_blocking(move || Image::of(&program, &version, None)).await;
        let image = image.map_err(|err| err.to_string())?.map_err(|err| err.to_string())?;
        let name = image.id().name.clone();
        let was_there = is_there(engine, &name).await? || is_there(engine, &image.id().config).await?;
        engine.load_image(Arc::new(image)).await.map_err(|err| err.to_string())?;
        let brought = if was_there { None } else { engine.brought(&name).await };
        Ok(Outfit { software: Software { image: Some(name), program: None }, agent: place, brought })
    }

    async fn take_image(&self, file: &Path, digest: &str, image: &str) -> Result<Outfit, FetchError> {
        let Some(engine) = &self.engine else {
            return Err(no_containers());
        };
        let archive = File::open(file).map_err(|err| format!("can't read {}: {err}", file.display()))?;
        let was_there = is_there(engine, image).await?;
        // Only for what follows at once: what can't be told is nobody's to remove.
        let before = engine.image_ids().await.ok();
        let names = engine.load(archive).await.map_err(|err| err.to_string())?;
        if !names.iter().any(|name| name == image) {
            for name in &names {
                let is_new = |brought: &Brought| before.as_ref().is_some_and(|ids| !ids.contains(&brought.id));
                self.give_back(engine.brought(name).await.filter(is_new)).await;
            }
            let has = names.join(", ");
            return Err(FetchError::Fault(format!("the archive has no image {image}, but {has}")));
        }
        self.take_out(engine, image, digest, was_there).await
    }

    async fn pull(&self, image: &str, is_off: &mut watch::Receiver<bool>) -> Result<Outfit, FetchError> {
        let Some(engine) = &self.engine else {
            return Err(no_containers());
        };
        let digest = image.rsplit_once("@sha256:").map_or("", |(_, digest)| digest);
        if digest.len() < NAME_DIGITS {
            return Err(FetchError::Fault("the order names no digest".to_owned()));
        }
        let was_there = is_there(engine, image).await?;
        if !was_there {
            tokio::select! {
                biased;
                () = called_off(is_off) => {
                    // It may have come at the last moment.
                    self.give_back(engine.brought(image).await).await;
                    return Err(no_longer_wanted());
                }
                pulled = engine.pull(image) => pulled.map_err(|err| err.to_string())?,
            }
        }
        self.take_out(engine, image, digest, was_there).await
    }

    async fn take_out(
        &self,
        engine: &Engine,
        image: &str,
        digest: &str,
        was_there: bool,
    ) -> Result<Outfit, FetchError> {
        let brought = if was_there { None } else { engine.brought(image).await };
        let agent = self.place(digest)?;
        if let Err(err) = engine.extract_binary(image, &agent).await {
            self.give_back(brought).await;
            return Err(err.to_string().into());
        }
        Ok(Outfit { software: Software { image: Some(image.to_owned()), program: None }, agent, brought })
    }
}

/// What is being fetched; gone at the end, however that comes.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // It may never have been made, or have become the program.
        let _ = fs::remove_file(&self.0);
    }
}

/// Whether the engine has an image already, which is not this pod's to remove then.
async fn is_there(engine: &Engine, name: &str) -> Result<bool, String> {
    engine.image(name).await.map(|image| image.is_some()).map_err(|err| err.to_string())
}

/// Resolves when the software is no longer wanted.
async fn called_off(is_off: &mut watch::Receiver<bool>) {
    if is_off.wait_for(|is_off| *is_off).await.is_err() {
        // Nobody can call it off any more.
        std::future::pending::<()>().await;
    }
}

fn no_longer_wanted() -> FetchError {
    FetchError::Failed("it is no longer wanted".to_owned())
}

fn no_containers() -> FetchError {
    FetchError::Fault("this pod runs no containers: order the upgrade with a program file (--binary)".to_owned())
}

/// Whether a program is one that can be the agent with this pod's configuration; the version that it says it is.
async fn check(program: &Path) -> Result<String, FetchError> {
    let said = ask(program, &["--version".into()]).await?;
    let version = said.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let mut arguments = successor::arguments();
    arguments.push("--check".into());
    match ask(program, &arguments).await {
        Err(FetchError::Fault(why)) => {
            Err(FetchError::Fault(format!("the new program does not take this pod's configuration: {why}")))
        }
        answer => answer.map(|_| version),
    }
}

/// What a program says to these arguments. A busy machine is no fault of the program.
async fn ask(program: &Path, arguments: &[std::ffi::OsString]) -> Result<String, FetchError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = match timeout(VERSION_DEADLINE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(err)) => {
            let why = format!("the new program can't be started on this machine: {err}");
            return Err(if is_no_program(&err) { FetchError::Fault(why) } else { FetchError::Failed(why) });
        }
        Err(_) => {
            return Err(format!("the new program did not answer in {} s", VERSION_DEADLINE.as_secs()).into());
        }
    };
    let text = if output.status.success() { &output.stdout } else { &output.stderr };
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_SAID_BYTES)]).trim().to_owned();
    if output.status.success() {
        return Ok(text);
    }
    let why = format!("the new program ended with {}", output.status);
    let why = if text.is_empty() { why } else { format!("{why}: {text}") };
    Err(if is_its_own_end(output.status) { FetchError::Fault(why) } else { FetchError::Failed(why) })
}

/// Whether a file can't ever be started here: it is for another machine or none, or what it is linked with is missing.
fn is_no_program(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
        || err.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error())
}

/// Whether a program ended by itself; Linux kills whichever it likes when memory is short.
fn is_its_own_end(status: ExitStatus) -> bool {
    status.signal() != Some(rustix::process::Signal::KILL.as_raw())
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Depot, FetchError, ask};
    use crate::docker::fake_engine::FakeEngine;
    use crate::docker::{Brought, Engine};
    use crate::doing::Doing;
    use crate::folder::Folder;
    use crate::software::Software;
    use crate::upgrade::journal::Outfit;
    use crate::upgrade::rean::Rean;
    use adea_ring::upgrade::{Order, Source};
    use serde_json::json;
    use sha2::{Digest, Sha256};
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::watch;

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
        let is_fault = |err: FetchError, text: &str| matches!(&err, FetchError::Fault(why) if why.contains(text));
        assert!(is_fault(ask(&bad, &[]).await.unwrap_err(), "no such key"));
        let foreign = script("foreign", "\x7fELF of another machine");
        assert!(is_fault(ask(&foreign, &[]).await.unwrap_err(), "can't be started"));
        assert!(is_fault(ask(&dir.path().join("none"), &[]).await.unwrap_err(), "can't be started"));
        // As when memory is short.
        let killed = script("killed", "#!/bin/sh\nkill -9 $$\n");
        assert!(matches!(ask(&killed, &[]).await, Err(FetchError::Failed(_))));
    }

    /// A rean that answers all that it is asked so.
    pub async fn rean(status: &'static str, body: &'static str) -> Rean {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let program =
            json!({"pid": 1, "addr": listener.local_addr().unwrap(), "healthy": true, "restarts": 0, "last_end": null});
        let state = json!({"pod_id": "me", "adea_pid": 1, "programs": {"rean": program}});
        let state = serde_json::from_value(state).unwrap();
        let doing = Doing { software: Software::default(), up: true, ends: 0, state };
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4_096]).await;
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Rean::new(watch::channel(doing).1, Vec::new())
    }

    /// What an engine gives of an image that has this program.
    pub fn program(text: &str) -> Vec<u8> {
        archive("podctl", text)
    }

    fn archive(name: &str, text: &str) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        tar.into_inner().unwrap()
    }

    /// Fetches what nobody calls off.
    async fn fetch(depot: &Depot, order: &Order, rean: &Rean) -> Result<Outfit, FetchError> {
        depot.fetch(order, rean, &mut watch::channel(false).1).await
    }

    #[tokio::test]
    async fn nothing_is_left_of_what_can_t_be_used() {
        let good = "#!/bin/sh\necho podctl 9.9.9\n";
        let strange = "#!/bin/sh\ncase \"$*\" in *--check) echo no such key >&2; exit 2;; esac\necho podctl 9.9.9\n";
        let order = |text: &str| {
            let order = Order::new(Source::Ring, None, vec!["me".parse().unwrap()], 1);
            Order { archive_sha256: Some(hex::encode(Sha256::digest(text))), ..order }
        };
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        let depot = Depot::new(&folder, None);
        std::fs::write(folder.run().join("upgrade-0.part"), "of an agent that was killed").unwrap();
        let is_swept = || {
            let mut names = std::fs::read_dir(folder.run()).unwrap().map(|entry| entry.unwrap().file_name());
            names.all(|name| !name.to_string_lossy().ends_with(".part"))
        };
        let absent = fetch(&depot, &order(good), &rean("404 Not Found", "").await).await;
        assert_eq!(absent, Err(FetchError::Absent));
        assert!(is_swept(), "absent");
        for (status, body) in [("200 OK", "another"), ("500 Internal Server Error", "")] {
            let failed = fetch(&depot, &order(good), &rean(status, body).await).await;
            assert!(matches!(failed, Err(FetchError::Failed(_))) && is_swept(), "{status}: {failed:?}");
        }
        let faulty = [("no program", "can't be started"), ("#!/bin/sh\nexit 1\n", "1"), (strange, "no such key")];
        for (text, why) in faulty {
            let fault = fetch(&depot, &order(text), &rean("200 OK", text).await).await;
            assert!(matches!(&fault, Err(FetchError::Fault(said)) if said.contains(why)), "{fault:?}");
            assert!(is_swept(), "{why}");
        }
        let image = Order { image: Some("adea:2".into()), ..order(good) };
        let fault = fetch(&depot, &image, &rean("200 OK", good).await).await;
        assert!(matches!(fault, Err(FetchError::Fault(_))) && is_swept(), "{fault:?}");
        let outfit = fetch(&depot, &order(good), &rean("200 OK", good).await).await.unwrap();
        assert!(outfit.agent.is_file() && is_swept());
    }

    #[tokio::test]
    async fn only_what_was_not_there_is_noted_as_brought() {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeEngine::start(dir.path());
        let depot = Depot::new(&Folder::new(dir.path()).unwrap(), Some(Engine::new(&fake.socket)));
        let name = format!("example/adea@sha256:{}", "a".repeat(64));
        fake.world().program = program("#!/bin/sh\necho podctl 9.9.9\n");
        fake.world().registry.push(name.clone());
        let order = Order::new(Source::Registry, Some(name.clone()), vec!["me".parse().unwrap()], 1);
        let rean = rean("404 Not Found", "").await;
        let first = fetch(&depot, &order, &rean).await.unwrap();
        let id = fake.world().images[&name].clone();
        assert_eq!(first.brought, Some(Brought { id: id.clone(), name: name.clone() }));
        assert_eq!(fetch(&depot, &order, &rean).await.unwrap().brought, None, "it is there already");
        let kept = BTreeSet::new();
        assert_eq!(depot.tidy_images(&[], &kept).await, []);
        assert!(fake.world().images.contains_key(&name));
        let gone = depot.tidy_images(&first.brought.map_or_else(Vec::new, |image| vec![image]), &kept).await;
        assert_eq!(gone, [Brought { id, name }]);
        assert!(fake.world().images.is_empty());
    }

    #[tokio::test]
    async fn an_image_that_can_t_be_used_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeEngine::start(dir.path());
        let depot = Depot::new(&Folder::new(dir.path()).unwrap(), Some(Engine::new(&fake.socket)));
        let name = format!("example/adea@sha256:{}", "a".repeat(64));
        let order = Order::new(Source::Registry, Some(name.clone()), vec!["me".parse().unwrap()], 1);
        let rean = rean("404 Not Found", "").await;
        fake.world().registry.push(name.clone());
        // One that doesn't take the configuration; one of which there is nothing to be taken out.
        let strange = program("#!/bin/sh\ncase \"$*\" in *--check) exit 2;; esac\necho podctl 9.9.9\n");
        for (text, is_new) in [(strange, true), (Vec::new(), true), (Vec::new(), false)] {
            {
                let mut world = fake.world();
                world.program = text;
                world.images = if is_new { [].into() } else { [(name.clone(), "sha256:people's".to_owned())].into() };
                world.orders.clear();
            }
            assert!(fetch(&depot, &order, &rean).await.is_err());
            let left: Vec<_> = fake.world().images.keys().cloned().collect();
            let wanted = if is_new { Vec::new() } else { vec![name.clone()] };
            assert_eq!(left, wanted, "{is_new}");
            let is_removed = fake.orders().contains(&format!("remove image {name}"));
            assert_eq!(is_removed, is_new, "it was there before");
        }
    }

    #[tokio::test]
    async fn an_archive_with_another_image_leaves_nothing_and_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeEngine::start(dir.path());
        let depot = Depot::new(&Folder::new(dir.path()).unwrap(), Some(Engine::new(&fake.socket)));
        let text = String::from_utf8(archive("manifest.json", r#"[{"RepoTags": ["another:1"]}]"#)).unwrap();
        let text: &'static str = text.leak();
        let order = Order::new(Source::Ring, Some("adea:2".into()), vec!["me".parse().unwrap()], 1);
        let order = Order { archive_sha256: Some(hex::encode(Sha256::digest(text))), ..order };
        let rean = rean("200 OK", text).await;
        for was_there in [false, true] {
            let images = if was_there { vec![("another:1".to_owned(), "sha256:people's".to_owned())] } else { vec![] };
            fake.world().images = images.into_iter().collect();
            let fault = fetch(&depot, &order, &rean).await;
            assert!(matches!(&fault, Err(FetchError::Fault(why)) if why.contains("another:1")), "{fault:?}");
            assert_eq!(fake.world().images.contains_key("another:1"), was_there);
            assert!(fake.orders().contains(&"load another:1".to_owned()));
        }
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
