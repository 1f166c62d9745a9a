//! Two questions to a Docker engine: what it is, and whether it has an image.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// An engine that takes longer is not well.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer: the description of an image has some KiB.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Version and API version.
///
/// # Errors
/// When nobody answers there, or no engine.
pub async fn version(socket: &Path) -> anyhow::Result<(String, String)> {
    let (status, answer) = get(socket, "/version").await?;
    let text = |name: &str| answer[name].as_str().map(str::to_owned);
    match (status, text("Version"), text("ApiVersion")) {
        (StatusCode::OK, Some(version), Some(api)) => Ok((version, api)),
        _ => bail!("what answers there is no Docker engine ({status})"),
    }
}

/// Whether it has an image of that name.
///
/// # Errors
/// When it doesn't answer that.
pub async fn has_image(socket: &Path, name: &str) -> anyhow::Result<bool> {
    // Names of images are made of characters that a path may have; others would be another question.
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"./:@_-".contains(&byte)) {
        bail!("{name:?} is no name of an image");
    }
    match get(socket, &format!("/images/{name}/json")).await?.0 {
        StatusCode::OK => Ok(true),
        StatusCode::NOT_FOUND => Ok(false),
        status => bail!("it says {status}"),
    }
}

async fn get(socket: &Path, path: &str) -> anyhow::Result<(StatusCode, Value)> {
    let asking = async {
        let stream = UnixStream::connect(socket).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with its sender.
        tokio::spawn(connection);
        let request = Request::get(path).header(HOST, "docker").body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|err| anyhow::anyhow!("its answer breaks off: {err}"))?.to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    };
    timeout(PATIENCE, asking).await.context("it does not answer")?
}
