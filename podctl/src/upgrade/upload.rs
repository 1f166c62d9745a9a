//! Software into the ring: the document `image:SHA256` with the file as its attachment.

use std::io;

use adea_ring::upgrade::{ARCHIVE, IMAGE_PREFIX};
use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, StatusCode};
use serde_json::json;
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use crate::http::{Conn, excerpt};
use crate::moment::now_ms;
use crate::ring::documents;
use crate::upgrade::package::PackageFile;

/// What is sent at once, in bytes.
const PART_BYTES: usize = 64 << 10;

/// Puts a file into the ring, unless it is there.
pub async fn put(conn: &mut Conn, file: &PackageFile, json: bool) -> anyhow::Result<()> {
    let path = format!("/_ring/{IMAGE_PREFIX}{}", file.sha256);
    let known = documents::get(conn, &path).await?.unwrap_or_default();
    let is_whole = known["_attachments"][ARCHIVE]["length"] == file.bytes;
    let mut doc = json!({
        // What was put here lately isn't taken for a leftover.
        "put_at_ms": now_ms(),
        "image": file.image,
        "software": file.version,
    });
    for member in ["_rev", "_attachments"] {
        if let Some(value) = known.get(member) {
            doc[member] = value.clone();
        }
    }
    let written =
        conn.expect(Method::PUT, &path, doc.to_string()).await.context("can't put the software into the ring")?;
    if is_whole {
        return Ok(());
    }
    if !json {
        println!("sending {} ({:.1} MiB)", file.path.display(), file.bytes as f64 / 1_048_576.0);
    }
    let rev = written["rev"].as_str().context("the pod did not say which revision it has written")?;
    let path = format!("{path}/{ARCHIVE}?rev={rev}");
    let content = File::open(&file.path).await.with_context(|| format!("can't read {}", file.path.display()))?;
    let (status, body) =
        conn.upload(Method::PUT, &path, "application/octet-stream", file.bytes, parts(content)).await?;
    match status {
        StatusCode::CREATED | StatusCode::ACCEPTED => Ok(()),
        status => bail!("the software was not taken: {status}: {}", excerpt(&body)),
    }
}

fn parts(file: File) -> impl stream::Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(file, |mut file| async {
        let mut part = vec![0; PART_BYTES];
        match file.read(&mut part).await {
            Ok(0) => None,
            Ok(read) => {
                part.truncate(read);
                Some((Ok(Bytes::from(part)), file))
            }
            Err(err) => Some((Err(err), file)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::parts;
    use futures_util::StreamExt;

    #[tokio::test]
    async fn a_file_is_sent_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let content: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = tokio::fs::File::open(&path).await.unwrap();
        let sent: Vec<u8> = parts(file).map(Result::unwrap).collect::<Vec<_>>().await.concat();
        assert_eq!(sent, content);
    }
}
