//! Whether a program answers: `GET /_up`.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A busy database answers late, a dead one never; the agent waits for either meanwhile.
const DEADLINE: Duration = Duration::from_secs(2);
/// The answer is a short object.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Whether the program at `addr` is well. One whose pod is set inactive is: it answers 404, as CouchDB does in its
/// maintenance mode.
pub async fn is_well(addr: SocketAddr) -> bool {
    let status = timeout(DEADLINE, ask(addr, &addr.to_string(), "/_up")).await;
    matches!(status, Ok(Ok(status)) if is_well_by(status))
}

/// What an answer to `GET /_up` says.
pub fn is_well_by(status: StatusCode) -> bool {
    matches!(status, StatusCode::OK | StatusCode::NOT_FOUND)
}

/// The status that a GET over plain HTTP brings.
///
/// # Errors
/// When nobody listens there, or what answers is no HTTP.
pub async fn ask(addr: SocketAddr, host: &str, path: &str) -> Result<StatusCode, Box<dyn Error + Send + Sync>> {
    let stream = TcpStream::connect(addr).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header(HOST, host).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await;
    let status = match response {
        Ok(response) => {
            let status = response.status();
            // Read to the end, so that the server doesn't log a client that went away.
            let _ = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            Ok(status)
        }
        Err(err) => Err(err.into()),
    };
    connection.abort();
    status
}
