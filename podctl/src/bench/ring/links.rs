//! What has crossed the links of all pods so far.

use adea_ring::Identity;
use anyhow::{Context, bail};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::bench::ring::machine::Machine;

/// Sums over all links of all pods, since those were started.
#[derive(Debug, Default, Clone, Copy)]
pub struct Sum {
    /// How many there are; between two pods there are two, one each way.
    pub links: u64,
    /// Bytes received and sent, without what TLS adds.
    pub bytes: u64,
    /// Rows of feeds received.
    pub rows: u64,
    /// Revisions fetched.
    pub fetched: u64,
}

/// Asks all pods.
pub async fn sum(pods: &[Machine]) -> anyhow::Result<Sum> {
    let mut sum = Sum::default();
    for pod in pods {
        for link in links_of(pod).await? {
            let count = |name: &str| link[name].as_u64().unwrap_or(0);
            sum.links += 1;
            sum.bytes += count("received_bytes") + count("sent_bytes");
            sum.rows += count("rows");
            sum.fetched += count("fetched");
        }
    }
    Ok(sum)
}

/// A pod's links, which only the pod's own programs may ask for.
async fn links_of(pod: &Machine) -> anyhow::Result<Vec<Value>> {
    let rean = pod.rean()?;
    let address = rean.trim_start_matches("http://");
    let stream = TcpStream::connect(address).await.with_context(|| format!("can't connect to {rean}"))?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::builder().uri("/_pod/links").header(http::header::HOST, address);
    for (name, value) in pod.signer.headers(&Identity::system()) {
        request = request.header(name, value);
    }
    let answer = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let status = answer.status();
    let text = answer.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        bail!("{rean}/_pod/links: {status}");
    }
    let answer: Value = serde_json::from_slice(&text)?;
    let links = answer.as_array().or_else(|| answer["links"].as_array());
    Ok(links.context("the links have another form")?.clone())
}
