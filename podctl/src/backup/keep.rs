//! Keeps a backup: streams it to a file beside its place, checks the whole file, and then gives it its name.

use std::fs::{File, OpenOptions};
use std::io::BufReader;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use futures_util::StreamExt;
use http::Method;
use rean::backup::format::{self, Database, Head, Sum};
use rean::replicate::peer::escaped;
use tokio::io::AsyncWriteExt;

use crate::import::server::Server;

/// For reading a file: a block or so.
const BUFFER_BYTES: usize = 1 << 20;
/// Nobody but the owner: there are hashes of passwords in it.
const MODE: u32 = 0o600;

/// What is in a backup.
pub struct Contents {
    /// What it is of.
    pub head: Head,
    /// Its databases.
    pub databases: Vec<(Database, Sum)>,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Has a pod make a backup and keeps it. Nothing has the name `out` before it is whole.
///
/// # Errors
/// When the pod doesn't make it, or it can't be kept.
pub async fn keep(pod: &Server, databases: &[String], out: &Path, force: bool) -> anyhow::Result<Contents> {
    if out.exists() && !force {
        bail!("{} is there already: --force replaces it", out.display());
    }
    let mut name = out.file_name().context("--out names no file")?.to_owned();
    name.push(".part");
    let part = Part { path: out.with_file_name(name) };
    let root = pod.root();
    let query: Vec<String> = databases.iter().map(|name| format!("db={}", escaped(name))).collect();
    let below = if query.is_empty() { "/_backup".to_owned() } else { format!("/_backup?{}", query.join("&")) };
    let response = root.send(Method::GET, &below, None).await?;
    if !response.status().is_success() {
        let answer = root.read(response).await?;
        return Err(root.fault("making the backup", &answer).into());
    }
    // An old one is from a backup that was broken off.
    let _ = std::fs::remove_file(&part.path);
    let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&part.path);
    let mut file = tokio::fs::File::from_std(file.with_context(|| format!("can't make {}", part.path.display()))?);
    let mut pieces = root.pieces(response);
    while let Some(piece) = pieces.next().await {
        file.write_all(&piece?).await.with_context(|| format!("can't write {}", part.path.display()))?;
    }
    file.sync_all().await.with_context(|| format!("can't write {}", part.path.display()))?;
    drop(file);
    let path = part.path.clone();
    let contents = tokio::task::spawn_blocking(move || check(&path)).await?.context("the pod's backup is no good")?;
    std::fs::rename(&part.path, out).with_context(|| format!("can't name it {}", out.display()))?;
    Ok(contents)
}

/// Opens a backup for reading.
///
/// # Errors
/// When it can't be opened.
pub fn open(path: &Path) -> anyhow::Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("can't open {}", path.display()))?;
    Ok(BufReader::with_capacity(BUFFER_BYTES, file))
}

/// Reads all of a backup and tells what is in it. Blocking.
///
/// # Errors
/// When it is damaged or not whole.
pub fn check(path: &Path) -> anyhow::Result<Contents> {
    let file = open(path)?;
    let bytes = file.get_ref().metadata()?.len();
    let (head, databases) = format::check(file).with_context(|| path.display().to_string())?;
    Ok(Contents { head, databases, bytes })
}

/// A file that isn't whole yet: gone when it is dropped, unless it has its name by then.
struct Part {
    path: PathBuf,
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
