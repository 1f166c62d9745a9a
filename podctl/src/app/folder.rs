//! The files of a folder that is to be deployed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use md5::{Digest, Md5};
use rean_store::document::MAX_ATTACHMENTS;

use crate::exit;

/// Files of these kinds are kept compressed as well. Pictures and fonts are compressed in themselves.
const COMPRESSED: [&str; 15] =
    ["css", "csv", "html", "htm", "ico", "js", "json", "map", "md", "mjs", "svg", "txt", "wasm", "webmanifest", "xml"];
/// Below this, in bytes, a file fits into a packet.
const MIN_COMPRESSED_BYTES: u64 = 1_024;
/// Above this, in bytes, a file isn't compressed here: it is done in memory.
const MAX_COMPRESSED_BYTES: u64 = 32 << 20;
/// How deep folders may lie in one another.
const MAX_DEPTH: usize = 32;

/// A file as it will be served.
pub struct Item {
    /// CouchDB's digest: `md5-` and Base64.
    pub digest: String,
    /// Its length.
    pub bytes: u64,
    /// Where it is.
    pub content: Content,
}

/// Where a file's bytes are.
pub enum Content {
    /// On the disk.
    File(PathBuf),
    /// Made here.
    Made(Bytes),
}

/// The files by their paths, with `/` between names, and their compressed forms with `.gz` behind.
pub type Items = BTreeMap<String, Item>;

/// Reads a folder.
///
/// # Errors
/// When a file can't be read or served, or there are none or too many.
pub fn read(dir: &Path, all: bool) -> anyhow::Result<Items> {
    let root = dir.canonicalize().with_context(|| format!("there is no folder {}", dir.display()))?;
    let mut files = BTreeMap::new();
    walk(&root, &root, "", all, &mut files)?;
    if files.is_empty() {
        return Err(exit::wrong_use(format!("there are no files in {}", dir.display())));
    }
    if files.len() > MAX_ATTACHMENTS {
        let count = files.len();
        return Err(exit::wrong_use(format!(
            "{} has {count} files; a version has at most {MAX_ATTACHMENTS}: leave out source maps, or bundle more",
            dir.display()
        )));
    }
    let mut room = MAX_ATTACHMENTS - files.len();
    let mut items = Items::new();
    for (name, path) in &files {
        let item = digest(path).with_context(|| format!("can't read {}", path.display()))?;
        let zipped = format!("{name}.gz");
        if room > 0
            && !files.contains_key(&zipped)
            && is_compressed(name, item.bytes)
            && let Some(made) = compress(path, item.bytes).with_context(|| format!("can't read {}", path.display()))?
        {
            room -= 1;
            items.insert(zipped, made);
        }
        items.insert(name.clone(), item);
    }
    Ok(items)
}

fn walk(root: &Path, dir: &Path, above: &str, all: bool, files: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    if above.split('/').count() > MAX_DEPTH {
        bail!("{} lies too deep: at most {MAX_DEPTH} folders", dir.display());
    }
    for entry in fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))? {
        let path = entry.with_context(|| format!("can't read {}", dir.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|name| !name.contains(|c: char| c == '\\' || c.is_control())) else {
            bail!("{} can't be served: its name is no plain text", path.display());
        };
        if name.starts_with('.') && !all {
            continue;
        }
        let kind = fs::symlink_metadata(&path).with_context(|| format!("can't read {}", path.display()))?.file_type();
        let below = format!("{above}{name}");
        if kind.is_dir() {
            walk(root, &path, &format!("{below}/"), all, files)?;
        } else if kind.is_file() {
            files.insert(below, path);
        } else if kind.is_symlink() {
            let to = path.canonicalize().with_context(|| format!("{} leads nowhere", path.display()))?;
            // What lies outside was perhaps never meant for everybody.
            if !to.starts_with(root) || !to.is_file() {
                bail!("{} leads to {}: only files of the folder itself are deployed", path.display(), to.display());
            }
            files.insert(below, to);
        } else {
            bail!("{} is no file", path.display());
        }
    }
    Ok(())
}

fn is_compressed(name: &str, bytes: u64) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    (MIN_COMPRESSED_BYTES..=MAX_COMPRESSED_BYTES).contains(&bytes)
        && extension.is_some_and(|extension| COMPRESSED.contains(&extension.as_str()))
}

fn digest(path: &Path) -> anyhow::Result<Item> {
    let (mut file, mut md5, mut bytes) = (File::open(path)?, Md5::new(), 0);
    let mut part = vec![0; 64 << 10];
    loop {
        match file.read(&mut part)? {
            0 => break,
            read => {
                md5.update(&part[..read]);
                bytes += read as u64;
            }
        }
    }
    Ok(Item { digest: text(md5), bytes, content: Content::File(path.to_owned()) })
}

/// The compressed form, where it is worth it. The same file always gives the same.
fn compress(path: &Path, bytes: u64) -> anyhow::Result<Option<Item>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&fs::read(path)?)?;
    let made = Bytes::from(encoder.finish()?);
    if made.len() as u64 > bytes / 10 * 9 {
        return Ok(None);
    }
    let digest = text(Md5::new_with_prefix(&made));
    Ok(Some(Item { digest, bytes: made.len() as u64, content: Content::Made(made) }))
}

fn text(md5: Md5) -> String {
    format!("md5-{}", STANDARD.encode(md5.finalize()))
}

#[cfg(test)]
mod tests {
    use super::read;
    use std::os::unix::fs::symlink;

    #[test]
    fn files_with_their_compressed_forms_and_nothing_hidden() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::create_dir(dir.path().join("_astro")).unwrap();
        put("index.html", "<p>");
        put("_astro/app.js", &"let a;\n".repeat(1_000));
        put(".env", "SECRET=1");
        symlink("index.html", dir.path().join("copy.html")).unwrap();
        let names = |all| read(dir.path(), all).unwrap().into_keys().collect::<Vec<_>>();
        assert_eq!(names(false), ["_astro/app.js", "_astro/app.js.gz", "copy.html", "index.html"]);
        assert!(names(true).contains(&".env".to_owned()));
        let first = read(dir.path(), false).unwrap();
        assert_eq!(first["copy.html"].digest, first["index.html"].digest);
        assert!(first["_astro/app.js.gz"].bytes < 1_000);
    }

    #[test]
    fn nothing_from_outside_and_nothing_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path(), false).is_err());
        symlink("/etc/passwd", dir.path().join("a.txt")).unwrap();
        let error = read(dir.path(), false).err().expect("refused").to_string();
        assert!(error.contains("/etc/passwd"), "{error}");
        std::fs::remove_file(dir.path().join("a.txt")).unwrap();
        symlink(".", dir.path().join("loop")).unwrap();
        assert!(read(dir.path(), false).is_err());
    }
}
