//! A container image out of nothing but one static program: made without a registry, a Dockerfile or an engine.
//!
//! What flows through: a program file goes into a layer, which is hashed; the layer, its configuration and the manifests
//! go into an archive that `docker load`, `podman load` and containerd read (Docker's own form and the OCI image layout
//! in one).
//!
//! What always holds: the same program gives the same bytes. Nothing in the archive tells when or where it was made.

mod elf;
mod layer;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::file_fault::FileFault;
use crate::image::elf::{Linked, read_head};
use crate::image::layer::Layer;

/// The user and group that programs of the image run as, unless told otherwise.
pub const USER: u32 = 65_532;
/// The program in the image.
pub const PROGRAM: &str = "podctl";
/// The label of the image that tells the version of its program.
pub const VERSION_LABEL: &str = "org.opencontainers.image.version";
/// The label by which an engine's images are known to be ours.
pub const OWN_LABEL: &str = "org.adea.image";
/// No build of this program is near this; an archive is not to fill a disk with what was named by mistake.
const MAX_PROGRAM_BYTES: u64 = 1 << 30;
/// Digits of the layer's digest in an image's own tag: enough that two builds never share one.
const TAG_DIGITS: usize = 12;

/// Which image an archive holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageId {
    /// Its name with its tag, as `adea:0.1.0-1f0c5a7b2d3e`.
    pub name: String,
    /// What engines call its id: the digest of its configuration, `sha256:` and 64 hexadecimal digits.
    pub config: String,
    /// The digest of its only layer, in the same form.
    pub layer: String,
    /// The layer's size in bytes, which is nearly all of the archive.
    pub layer_bytes: u64,
}

/// No image can be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file can't be read or written.
    #[error(transparent)]
    File(#[from] FileFault),
    /// The program can't run alone.
    #[error(
        "{0} needs libraries that an image made from scratch doesn't have; build a static one by `cargo rustc --release \
         --locked -p podctl --bin podctl -- -C target-feature=+crt-static`"
    )]
    Dynamic(PathBuf),
    /// The file is no program.
    #[error("{path} is no program for this: {reason}")]
    NoProgram {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The program was changed while it was read.
    #[error("{0} was changed while it was read; try again")]
    Changed(PathBuf),
    /// Not the name of an image.
    #[error("`{0}` is no name for an image, as adea:0.1.0 is one")]
    Name(String),
}

/// An image that could be written.
#[derive(Debug)]
pub struct Image {
    program: PathBuf,
    id: ImageId,
    config: Vec<u8>,
}

impl Image {
    /// Reads a program and works out its image. `name` is with a tag; without it, it is `adea:VERSION-DIGEST`.
    ///
    /// # Errors
    /// When the file can't be read, or is not a static program for Linux.
    pub fn of(program: &Path, version: &str, name: Option<&str>) -> Result<Self, ImageError> {
        let mut file = open(program)?;
        let head = read_head(&mut file).map_err(FileFault::during("read", program))?;
        let no_program = |reason| ImageError::NoProgram { path: program.to_path_buf(), reason };
        let architecture = match head {
            Ok(head) if head.linked == Linked::Dynamically => return Err(ImageError::Dynamic(program.to_path_buf())),
            Ok(head) => head.architecture,
            Err(reason) => return Err(no_program(reason)),
        };
        let mut hash = HashingSink::default();
        let layer = Layer::open(file).map_err(FileFault::during("read", program))?;
        if layer.program_bytes > MAX_PROGRAM_BYTES {
            return Err(no_program("it is larger than 1 GiB"));
        }
        layer.write(&mut hash).map_err(FileFault::during("read", program))?;
        let (digest, layer_bytes) = hash.finish();
        let config = serde_json::to_vec(&config(architecture, version, &digest)).unwrap_or_default();
        let name = match name {
            Some(name) if crate::config::is_image_name(name) && has_tag(name) => name.to_owned(),
            Some(name) => return Err(ImageError::Name(name.to_owned())),
            // A version may have a `+`, a tag may not.
            None => format!("adea:{}-{}", version.replace('+', "-"), &digest[..TAG_DIGITS]),
        };
        let id = ImageId { name, config: sha256(&config), layer: format!("sha256:{digest}"), layer_bytes };
        Ok(Self { program: program.to_path_buf(), id, config })
    }

    /// Which it is.
    pub fn id(&self) -> &ImageId {
        &self.id
    }

    /// Writes the archive. Whoever reads it may have read much of it before an error comes.
    ///
    /// # Errors
    /// When the program can't be read, has been changed, or `out` takes no more.
    pub fn write(&self, out: impl Write) -> Result<(), ImageError> {
        let blob = |digest: &str| format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
        let manifest = serde_json::to_vec(&self.manifest()).unwrap_or_default();
        let manifest_digest = sha256(&manifest);
        let mut files: Vec<(String, Vec<u8>)> = vec![
            (blob(&self.id.config), self.config.clone()),
            (blob(&manifest_digest), manifest.clone()),
            ("index.json".to_owned(), to_text(&self.index(&manifest_digest, manifest.len()))),
            ("manifest.json".to_owned(), to_text(&self.docker_manifest(&blob(&self.id.config), &blob(&self.id.layer)))),
            ("oci-layout".to_owned(), to_text(&json!({"imageLayoutVersion": "1.0.0"}))),
        ];
        files.push((blob(&self.id.layer), Vec::new()));
        files.sort();
        let mut archive = tar::Builder::new(out);
        let writes = FileFault::during("write the archive of", &self.program);
        for name in ["blobs", "blobs/sha256"] {
            layer::folder(&mut archive, name, 0o755, 0).map_err(&writes)?;
        }
        for (name, text) in files {
            if name == blob(&self.id.layer) {
                self.write_layer(&mut archive, &name)?;
            } else {
                let mut header = layer::header(0o644, 0, text.len() as u64);
                archive.append_data(&mut header, &name, text.as_slice()).map_err(&writes)?;
            }
        }
        Ok(archive.into_inner().and_then(|mut out| out.flush()).map_err(&writes)?)
    }

    fn write_layer(&self, archive: &mut tar::Builder<impl Write>, name: &str) -> Result<(), ImageError> {
        let writes = FileFault::during("write the archive of", &self.program);
        let layer = Layer::open(open(&self.program)?).map_err(FileFault::during("read", &self.program))?;
        if layer.bytes() != self.id.layer_bytes {
            return Err(ImageError::Changed(self.program.clone()));
        }
        let mut header = layer::header(0o644, 0, self.id.layer_bytes);
        header.set_path(name).map_err(&writes)?;
        header.set_cksum();
        let out = archive.get_mut();
        out.write_all(header.as_bytes()).map_err(&writes)?;
        let mut both = Tee { out, hash: HashingSink::default() };
        layer.write(&mut both).map_err(&writes)?;
        let (digest, _) = both.hash.finish();
        if format!("sha256:{digest}") != self.id.layer {
            return Err(ImageError::Changed(self.program.clone()));
        }
        // A layer is a whole number of a tar archive's blocks, so nothing is to be filled up.
        Ok(())
    }

    fn manifest(&self) -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.id.config, "size": self.config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": self.id.layer, "size": self.id.layer_bytes,
            }],
        })
    }

    fn index(&self, manifest: &str, manifest_bytes: usize) -> Value {
        let (_, tag) = self.id.name.rsplit_once(':').unwrap_or_default();
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": manifest, "size": manifest_bytes,
                "annotations": {
                    "io.containerd.image.name": full_name(&self.id.name),
                    "org.opencontainers.image.ref.name": tag,
                },
            }],
        })
    }

    /// What `docker load` goes by.
    fn docker_manifest(&self, config: &str, layer: &str) -> Value {
        json!([{"Config": config, "RepoTags": [self.id.name], "Layers": [layer]}])
    }
}

/// Writes the image of a program as an archive for `docker load`.
///
/// # Errors
/// As [`Image::of`] and [`Image::write`].
pub fn archive(program: &Path, version: &str, name: Option<&str>, out: impl Write) -> Result<ImageId, ImageError> {
    let image = Image::of(program, version, name)?;
    image.write(out)?;
    Ok(image.id)
}

/// The image's configuration (OCI image specification, with Docker's `Healthcheck`).
fn config(architecture: &str, version: &str, layer: &str) -> Value {
    /// Nobody made it at any time.
    const CREATED: &str = "1970-01-01T00:00:00Z";
    const SECOND_NS: u64 = 1_000_000_000;
    json!({
        "created": CREATED,
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": format!("{USER}:{USER}"),
            "Entrypoint": [format!("/{PROGRAM}")],
            "Cmd": ["--help"],
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
            "Healthcheck": {
                "Test": ["CMD", format!("/{PROGRAM}"), "health"],
                "Interval": 30 * SECOND_NS, "Timeout": 5 * SECOND_NS, "StartPeriod": 30 * SECOND_NS, "Retries": 3,
            },
            "Labels": {"org.opencontainers.image.title": "adea", VERSION_LABEL: version, OWN_LABEL: PROGRAM},
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        "history": [{"created": CREATED, "created_by": "podctl image"}],
    })
}

/// The name with what Docker leaves out.
fn full_name(name: &str) -> String {
    match name.split_once('/') {
        None => format!("docker.io/library/{name}"),
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
    }
}

/// Whether a name ends with a tag; the colon of a registry's port is none.
fn has_tag(name: &str) -> bool {
    let last = name.rsplit_once('/').map_or(name, |(_, last)| last);
    last.split_once(':').is_some_and(|(name, tag)| !name.is_empty() && !tag.is_empty()) && !name.contains('@')
}

fn open(path: &Path) -> Result<File, FileFault> {
    File::open(path).map_err(FileFault::during("open", path))
}

fn to_text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn sha256(text: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(text)))
}

/// Counts and hashes what is written to it.
#[derive(Default)]
struct HashingSink {
    hash: Sha256,
    bytes: u64,
}

impl HashingSink {
    fn finish(self) -> (String, u64) {
        (hex::encode(self.hash.finalize()), self.bytes)
    }
}

impl Write for HashingSink {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.hash.update(part);
        self.bytes += part.len() as u64;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes to two places.
struct Tee<'a, W> {
    out: &'a mut W,
    hash: HashingSink,
}

impl<W: Write> Write for Tee<'_, W> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let written = self.out.write(part)?;
        self.hash.write_all(&part[..written])?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Goes back to a file's beginning and gives its length.
fn rewind(file: &mut (impl Read + Seek)) -> io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    Ok(length)
}

#[cfg(test)]
mod tests;
