//! Images of the engine: to bring one there, from a file, from a program or from a registry, to take a program out, and to
//! remove what this pod has brought.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bollard::models::{ContainerCreateBody, ContainerSummary};
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptions, DownloadFromContainerOptions, ImportImageOptions,
    ListContainersOptions, ListImagesOptions, RemoveImageOptions,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::docker::container::{DATA_LABEL, POD_LABEL};
use crate::docker::{Engine, EngineError};
use crate::file_fault::FileFault;
use crate::image::{Image, ImageError, PROGRAM, VERSION_LABEL};

/// Parts in which an image goes over the socket.
const PART_BYTES: usize = 256 << 10;
/// Parts that may wait for the engine: four fill the socket's buffer several times.
const PARTS_AHEAD: usize = 4;
/// A program in an image is no larger; an image is not to fill the disk.
const MAX_PROGRAM_BYTES: u64 = 1 << 30;

/// An image that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its id, `sha256:` and 64 hexadecimal digits.
    pub id: String,
    /// The version of its program, by its label.
    pub version: Option<String>,
    /// Its names with tags.
    pub names: Vec<String>,
}

/// An image that this pod has brought to the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brought {
    /// Its id, `sha256:` and 64 hexadecimal digits.
    pub id: String,
    /// The name that it was brought under, with a tag or a digest.
    pub name: String,
}

impl Brought {
    /// Whether an image has no name but this one: any other, people have given it. Podman puts a host before ours.
    fn is_all(&self, names: &[String]) -> bool {
        names
            .iter()
            .all(|name| name.strip_suffix(&self.name).is_some_and(|host| host.is_empty() || host.ends_with('/')))
    }
}

impl Engine {
    /// An image, by name or id; none if the engine doesn't have it.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn image(&self, name: &str) -> Result<Option<ImageInfo>, EngineError> {
        let docker = self.docker().await?;
        let Some(image) = self.found(docker.inspect_image(name).await)? else { return Ok(None) };
        let labels = image.config.and_then(|config| config.labels);
        Ok(Some(ImageInfo {
            id: image.id.unwrap_or_default(),
            version: labels.and_then(|mut labels| labels.remove(VERSION_LABEL)),
            names: image.repo_tags.unwrap_or_default(),
        }))
    }

    /// The ids of all images.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn image_ids(&self) -> Result<BTreeSet<String>, EngineError> {
        let everywhere = ListImagesOptions { all: true, ..ListImagesOptions::default() };
        let images = self.docker().await?.list_images(Some(everywhere)).await.map_err(|err| self.error(err))?;
        // Some versions of Podman leave away how the id was made.
        let whole = |id: String| if id.contains(':') { id } else { format!("sha256:{id}") };
        Ok(images.into_iter().map(|image| whole(image.id)).collect())
    }

    /// Fetches an image from its registry.
    ///
    /// # Errors
    /// When there is no such image, or the registry can't be reached.
    pub async fn pull(&self, name: &str) -> Result<(), EngineError> {
        // Without a tag the engine would fetch all there are.
        let last = name.rsplit_once('/').map_or(name, |(_, last)| last);
        let name = if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") };
        let options = CreateImageOptions { from_image: Some(name), ..CreateImageOptions::default() };
        let docker = self.patient().await?;
        let mut progress = Box::pin(docker.create_image(Some(options), None, None));
        while let Some(step) = progress.next().await {
            step.map_err(|err| self.error(err))?;
        }
        Ok(())
    }

    /// Loads an archive as `docker save` or `podctl image` writes them; gives the names of the images in it.
    ///
    /// # Errors
    /// When it can't be read, or is no such archive.
    pub async fn load(&self, mut archive: impl Read + Send + 'static) -> Result<Vec<String>, EngineError> {
        self.load_from(move |out| {
            io::copy(&mut archive, out)
                .map(drop)
                .map_err(|source| EngineError::Io { step: "read the image".to_owned(), source })
        })
        .await
    }

    /// Loads the image of a program.
    ///
    /// # Errors
    /// When the program can't be read, or the engine refuses.
    pub async fn load_image(&self, image: Arc<Image>) -> Result<Vec<String>, EngineError> {
        self.load_from(move |out| image.write(out).map_err(EngineError::from)).await
    }

    async fn load_from(
        &self,
        write: impl FnOnce(&mut Parts) -> Result<(), EngineError> + Send + 'static,
    ) -> Result<Vec<String>, EngineError> {
        let docker = self.patient().await?;
        let (sender, receiver) = mpsc::channel(PARTS_AHEAD);
        let writing = tokio::task::spawn_blocking(move || {
            let mut parts = Parts { sender, part: Vec::with_capacity(PART_BYTES) };
            let written = write(&mut parts);
            if written.is_ok() {
                // The engine has gone away: that shows in its answer.
                let _ = parts.flush();
            } else {
                // A body that breaks off is no archive to the engine.
                let _ = parts.sender.blocking_send(Err(io::Error::other("the image can't be read")));
            }
            written
        });
        let body = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
        let mut told = Box::pin(docker.import_image_stream(ImportImageOptions::default(), body, None));
        let mut answered = Ok(Vec::new());
        while let Some(step) = told.next().await {
            match (step, &mut answered) {
                (Ok(step), Ok(names)) => {
                    let line = step.stream.unwrap_or_default();
                    // "Loaded image: NAME" or "Loaded image ID: sha256:..."
                    if let Some((_, name)) = line.trim().split_once(": ").filter(|(head, _)| head.starts_with("Loaded"))
                    {
                        names.push(name.to_owned());
                    }
                }
                (Err(err), _) => {
                    answered = Err(self.error(err));
                    break;
                }
                (Ok(_), Err(_)) => {}
            }
        }
        drop(told);
        let failed = |err: tokio::task::JoinError| EngineError::Odd(err.to_string());
        match writing.await.map_err(failed)? {
            // The engine hung up, and has said why.
            Err(EngineError::Io { source, .. } | EngineError::Image(ImageError::File(FileFault { source, .. })))
                if source.kind() == io::ErrorKind::BrokenPipe && answered.is_err() =>
            {
                answered
            }
            Err(err) => Err(err),
            Ok(()) => answered,
        }
    }

    /// What was brought under this name just now, if it is this pod's alone: it had no other name before.
    pub async fn brought(&self, name: &str) -> Option<Brought> {
        // What can't be told is nobody's to remove.
        let image = self.image(name).await.ok().flatten()?;
        let brought = Brought { id: image.id, name: name.to_owned() };
        brought.is_all(&image.names).then_some(brought)
    }

    /// Removes what this pod has brought and no container needs, but for `kept`, by name; gives what is no longer there.
    /// What people have given another name stays. With several pods on one engine all does: which image another pod may
    /// go back to is not known here.
    ///
    /// # Errors
    /// When the engine doesn't answer or refuses. That somebody else needs an image is no error.
    pub async fn remove_brought(&self, all: &[Brought], kept: &BTreeSet<String>) -> Result<Vec<Brought>, EngineError> {
        let docker = self.docker().await?;
        let everywhere = ListContainersOptions { all: true, ..ListContainersOptions::default() };
        let containers = docker.list_containers(Some(everywhere)).await.map_err(|err| self.error(err))?;
        if count_pods(&containers) > 1 {
            return Ok(Vec::new());
        }
        let mut needed: BTreeSet<String> = containers.into_iter().filter_map(|container| container.image_id).collect();
        for name in kept {
            needed.extend(self.image(name).await?.map(|image| image.id));
        }
        let mut gone = Vec::new();
        for brought in all {
            if needed.contains(&brought.id) {
                continue;
            }
            // The engine takes the only tag of an image away with it, whoever has given that: so one looks first.
            let Some(image) = self.image(&brought.id).await? else {
                gone.push(brought.clone());
                continue;
            };
            if !brought.is_all(&image.names) {
                continue;
            }
            let answer = docker.remove_image(&brought.id, None::<RemoveImageOptions>, None).await;
            match self.found(answer) {
                Ok(_) => gone.push(brought.clone()),
                // Somebody has named it or made a container of it a moment ago.
                Err(EngineError::Refused { status: 409, .. }) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(gone)
    }

    /// Takes the program out of an image, into a file that can be run; what is there is replaced, whole or not at all.
    ///
    /// # Errors
    /// When the engine doesn't have the image, it has no such program, or the file can't be written.
    pub async fn extract_binary(&self, image: &str, to: &Path) -> Result<(), EngineError> {
        let docker = self.docker().await?;
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            cmd: Some(vec!["--version".to_owned()]),
            network_disabled: Some(true),
            ..ContainerCreateBody::default()
        };
        // It is never started; files can be read out of containers only.
        let created = docker.create_container(None::<CreateContainerOptions>, body).await;
        let id = match self.found(created)? {
            Some(created) => created.id,
            None => return Err(EngineError::NoImage(image.to_owned())),
        };
        let taken = self.take_out(&id, to).await;
        let removed = self.remove(&id).await;
        taken.and(removed)
    }

    async fn take_out(&self, id: &str, to: &Path) -> Result<(), EngineError> {
        let docker = self.patient().await?;
        let options = DownloadFromContainerOptions { path: format!("/{PROGRAM}") };
        let archive = to.with_extension("tar");
        let _gone = RemoveAtEnd(archive.clone());
        let fails = |step: &str, path: &Path| {
            let step = format!("{step} {}", path.display());
            move |source| EngineError::Io { step, source }
        };
        let mut file = tokio::fs::File::create(&archive).await.map_err(fails("write", &archive))?;
        let mut parts = Box::pin(docker.download_from_container(id, Some(options)));
        let mut bytes = 0u64;
        while let Some(part) = parts.next().await {
            let part = part.map_err(|err| self.error(err))?;
            bytes += part.len() as u64;
            if bytes > MAX_PROGRAM_BYTES {
                return Err(EngineError::Odd("the program of the image is larger than 1 GiB".to_owned()));
            }
            tokio::io::AsyncWriteExt::write_all(&mut file, &part).await.map_err(fails("write", &archive))?;
        }
        tokio::io::AsyncWriteExt::flush(&mut file).await.map_err(fails("write", &archive))?;
        let to = to.to_path_buf();
        let unpacked =
            tokio::task::spawn_blocking(move || unpack(&archive, &to).map_err(fails("take the program out into", &to)));
        unpacked.await.map_err(|err| EngineError::Odd(err.to_string()))?
    }
}

/// How many pods have containers.
fn count_pods(containers: &[ContainerSummary]) -> usize {
    let labels = containers.iter().filter_map(|container| container.labels.as_ref());
    let pods = labels.filter_map(|labels| Some((labels.get(POD_LABEL)?, labels.get(DATA_LABEL))));
    pods.collect::<BTreeSet<_>>().len()
}

/// Writes the only file of an archive to its place.
fn unpack(archive: &Path, to: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(File::open(archive)?);
    let entry = archive.entries()?.next().ok_or_else(|| io::Error::other("the engine gave an empty archive"))?;
    let mut entry = entry?;
    if entry.header().entry_type() != tar::EntryType::Regular {
        return Err(io::Error::other("the image's program is no file"));
    }
    let new = to.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o700).open(&new)?;
    io::copy(&mut entry, &mut file)?;
    file.set_permissions(Permissions::from_mode(0o755))?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&new, to)?;
    File::open(to.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// A file that is of no use any more.
struct RemoveAtEnd(PathBuf);

impl Drop for RemoveAtEnd {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Hands what is written to it over in large parts.
struct Parts {
    sender: mpsc::Sender<io::Result<Bytes>>,
    part: Vec<u8>,
}

impl Write for Parts {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let room = PART_BYTES - self.part.len();
        let taken = &text[..text.len().min(room)];
        self.part.extend_from_slice(taken);
        if self.part.len() == PART_BYTES {
            self.flush()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(PART_BYTES));
        self.sender.blocking_send(Ok(part.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
