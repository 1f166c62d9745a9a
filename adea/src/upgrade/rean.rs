//! What an upgrade asks of this pod's rean: the software that is in the ring, and how the links are.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use adea_ring::PodId;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::handshake;
use hyper::header::HOST;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::doing::Doing;
use crate::plan::Program;
use crate::upgrade::depot::FetchError;

/// rean is on this machine: an answer begins at once, and a part of a body follows the one before it.
const DEADLINE: Duration = Duration::from_secs(10);
/// No software of a pod is near this; an order is not to fill a disk.
const MAX_DOWNLOAD_BYTES: u64 = 2 << 30;
/// The links of a pod with many neighbours take some KiB.
const MAX_LINKS_BYTES: usize = 1 << 20;

/// The way to rean; each request has a connection of its own, as there are few.
#[derive(Debug, Clone)]
pub struct Rean {
    doing: watch::Receiver<Doing>,
    identity: Vec<(&'static str, String)>,
}

#[derive(Deserialize)]
struct Links {
    links: Vec<Link>,
}

#[derive(Deserialize)]
struct Link {
    peer: PodId,
    state: String,
}

impl Rean {
    /// The way to wherever it runs, as the pod itself.
    pub fn new(doing: watch::Receiver<Doing>, identity: Vec<(&'static str, String)>) -> Self {
        Self { doing, identity }
    }

    /// Whether the links to the pods that are there have brought all that these have. A pod need not have a link to each.
    ///
    /// # Errors
    /// When rean does not tell.
    pub async fn are_links_live(&self, live: &[&PodId]) -> Result<bool, String> {
        let answer = self.get("/_pod/links").await.map_err(|err| err.to_string())?;
        let text = Limited::new(answer.into_body(), MAX_LINKS_BYTES).collect();
        let text = timeout(DEADLINE, text).await.map_err(|_| late())?.map_err(|err| err.to_string())?;
        let links: Links = serde_json::from_slice(&text.to_bytes()).map_err(|err| err.to_string())?;
        let mut states = links.links.iter().filter(|link| live.contains(&&link.peer)).map(|link| link.state == "live");
        Ok(states.next().is_some_and(|first| first && states.all(|state| state)))
    }

    /// Writes the software in the document `id` to a file; it is on disk and has this digest when this returns.
    ///
    /// # Errors
    /// When it isn't here (yet), or isn't what it should be.
    pub async fn download(&self, id: &str, sha256: &str, to: &Path) -> Result<(), FetchError> {
        let answer = self.get(&format!("/_ring/{id}/{}", adea_ring::upgrade::ARCHIVE)).await?;
        let writes = |err: std::io::Error| format!("can't write {}: {err}", to.display());
        let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to);
        let mut file = options.map_err(writes)?;
        let (mut body, mut hash, mut bytes) = (answer.into_body(), Sha256::new(), 0u64);
        while let Some(frame) = timeout(DEADLINE, body.frame()).await.map_err(|_| late())? {
            let Ok(part) = frame.map_err(|err| format!("the download broke off: {err}"))?.into_data() else { continue };
            bytes += part.len() as u64;
            if bytes > MAX_DOWNLOAD_BYTES {
                return Err("it is larger than 2 GiB".to_owned().into());
            }
            hash.update(&part);
            // Parts are small, and this runs while nothing else of the agent waits for it.
            file.write_all(&part).map_err(writes)?;
        }
        let file = tokio::task::spawn_blocking(move || file.sync_all().map(|()| file)).await;
        let file = file.map_err(|err| err.to_string())?.map_err(writes)?;
        // Whoever executes a file can't while it is open for writing.
        drop(file);
        if hex::encode(hash.finalize()) != sha256 {
            return Err("what is in the ring is not what was ordered: its digest is another".to_owned().into());
        }
        Ok(())
    }

    async fn get(&self, path: &str) -> Result<Response<Incoming>, FetchError> {
        let addr = self.doing.borrow().addr(Program::Rean).ok_or_else(|| "rean does not run".to_owned())?;
        let answer = timeout(DEADLINE, self.ask(addr, path)).await.map_err(|_| late())??;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            StatusCode::NOT_FOUND => Err(FetchError::Absent),
            status => Err(format!("rean says {status}").into()),
        }
    }

    async fn ask(&self, addr: SocketAddr, path: &str) -> Result<Response<Incoming>, String> {
        let stream = TcpStream::connect(addr).await.map_err(|err| format!("rean can't be reached: {err}"))?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|err| err.to_string())?;
        // It ends with its sender and its answer; what goes wrong on it shows in those.
        tokio::spawn(connection);
        let mut request = Request::get(path).header(HOST, addr.to_string());
        for (name, value) in &self.identity {
            request = request.header(*name, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|err| err.to_string())?;
        sender.send_request(request).await.map_err(|err| err.to_string())
    }
}

fn late() -> String {
    format!("rean did not answer in {} s", DEADLINE.as_secs())
}
