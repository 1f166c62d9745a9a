//! One end of a replication, asked in CouchDB's HTTP API: a database of another server, of another pod of the ring, or one
//! of this server.
//!
//! A database of this server is asked without a network: the request goes straight to the router, under the identity of
//! who started the replication. So it takes the same path as any other request, with the same rights, asked for anew
//! each time; a replication can't read or write what its owner may not.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use adea_ring::Identity;
use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::connector::Connector;
use super::fault::Fault;
use super::spec::{Endpoint, Remote};
use crate::pod::Pod;
use crate::route::{self, Request, Response};

/// Speaks to other servers.
pub type Far = Client<Connector, Body>;

/// Until an answer begins, and between two pieces of it. A waiting feed sends a heartbeat six times as often.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// The slowest upload that is waited for, in bytes a second.
const SLOWEST_UPLOAD_BYTES: u64 = 16 << 10;
/// Connections that are kept for the next request, for each server.
const IDLE_CONNECTIONS: usize = 4;
/// Servers close idle connections after a minute or so; ours go first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// What an answer may have that is read whole, in bytes: the one to `_revs_diff` for a full round.
const MAX_ANSWER_BYTES: usize = 32 << 20;
/// What stands unescaped in a path.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

const AGENT: &str = concat!("Adea-Replicator/", env!("CARGO_PKG_VERSION"));

/// A client for other servers. They are whatever an administrator names, also in the pod's own network: this is why
/// only administrators may start replications.
pub fn far() -> Far {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .build(Connector::new())
}

/// One end.
pub struct Peer {
    way: Way,
    /// Its name for people.
    shown: String,
}

enum Way {
    Near { pod: Arc<Pod>, who: Identity, path: String },
    Far(Box<FarEnd>),
    Pod { road: Arc<dyn Road>, path: String },
}

/// An answer that is on its way, or why there will be none.
pub type Answering<'a> = Pin<Box<dyn Future<Output = Result<Response, String>> + Send + 'a>>;

/// The way to another pod of the ring. It says who asks, and bounds how long a pod may be silent.
pub trait Road: Send + Sync {
    /// Asks for a path.
    fn send(&self, request: http::Request<Body>) -> Answering<'_>;
}

struct FarEnd {
    client: Far,
    url: String,
    headers: HeaderMap,
}

/// What is sent.
pub struct Sent {
    /// Its type.
    pub content_type: HeaderValue,
    /// Its length in bytes.
    pub length: u64,
    /// Itself.
    pub body: Body,
}

impl Sent {
    /// A JSON text.
    pub fn json(text: impl Into<Bytes>) -> Self {
        let text = text.into();
        Self {
            content_type: HeaderValue::from_static("application/json"),
            length: text.len() as u64,
            body: Body::from(text),
        }
    }
}

/// An answer that was read whole.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its text.
    pub body: Bytes,
}

impl Peer {
    /// One end, for ends on this server as this identity sees them.
    pub fn new(pod: &Arc<Pod>, who: &Identity, end: &Endpoint, client: &Far) -> Self {
        let way = match end {
            Endpoint::Local(name) => {
                Way::Near { pod: Arc::clone(pod), who: who.clone(), path: format!("/{}", escaped(name)) }
            }
            Endpoint::Remote(remote) => return Self::remote(remote, client),
        };
        Self { way, shown: end.shown().to_owned() }
    }

    /// A database of this server, as this identity sees it.
    pub fn near(pod: &Arc<Pod>, who: &Identity, name: &str) -> Self {
        let path = format!("/{}", escaped(name));
        Self { way: Way::Near { pod: Arc::clone(pod), who: who.clone(), path }, shown: name.to_owned() }
    }

    /// A database of another server, or that server itself if the address has no path.
    pub fn remote(remote: &Remote, client: &Far) -> Self {
        let (url, headers) = (remote.url.clone(), remote.headers.clone());
        Self { way: Way::Far(Box::new(FarEnd { client: client.clone(), url, headers })), shown: remote.url.clone() }
    }

    /// A database of another pod of the ring.
    pub fn pod(road: Arc<dyn Road>, pod: &str, name: &str) -> Self {
        Self { way: Way::Pod { road, path: format!("/{}", escaped(name)) }, shown: format!("{pod}/{name}") }
    }

    /// Whether it is a database of another pod of the ring.
    pub fn is_pod(&self) -> bool {
        matches!(self.way, Way::Pod { .. })
    }

    /// Its name for people.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Asks for what is below the database's path; `below` begins with `/` or `?`, or is empty.
    ///
    /// # Errors
    /// When no answer begins in time. An answer that tells of an error is an answer.
    pub async fn send(&self, method: Method, below: &str, sent: Option<Sent>) -> Result<Response, Fault> {
        let mut request = http::Request::builder().method(method).header(ACCEPT, "application/json");
        let mut timeout = SILENCE_TIMEOUT;
        let body = match sent {
            None => Body::empty(),
            Some(sent) => {
                timeout += Duration::from_secs(sent.length / SLOWEST_UPLOAD_BYTES);
                request = request.header(CONTENT_TYPE, sent.content_type);
                request = request.header(http::header::CONTENT_LENGTH, sent.length);
                sent.body
            }
        };
        let answer = match &self.way {
            Way::Near { pod, who, path } => {
                let request = request.uri(format!("{path}{below}")).body(body).map_err(|_| self.bad_path())?;
                tokio::time::timeout(timeout, ask_router(Arc::clone(pod), who.clone(), request)).await
            }
            Way::Pod { road, path } => {
                let request = request.uri(format!("{path}{below}")).body(body).map_err(|_| self.bad_path())?;
                match tokio::time::timeout(timeout, road.send(request)).await {
                    Ok(Ok(answer)) => Ok(answer),
                    Ok(Err(why)) => return Err(Fault::Passing(format!("{}: {why}", self.shown))),
                    Err(late) => Err(late),
                }
            }
            Way::Far(end) => {
                let mut request = request.uri(format!("{}{below}", end.url)).body(body).map_err(|_| self.bad_path())?;
                request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
                request.headers_mut().extend(end.headers.clone());
                match tokio::time::timeout(timeout, end.client.request(request)).await {
                    Ok(Ok(answer)) => Ok(answer.map(Body::new)),
                    Ok(Err(error)) => return Err(self.unreachable(&error)),
                    Err(late) => Err(late),
                }
            }
        };
        let answer = answer.map_err(|_| Fault::Passing(format!("{}: no answer in time", self.shown)))?;
        if answer.status().is_redirection() {
            return Err(Fault::fatal(
                StatusCode::BAD_REQUEST,
                "replication_error",
                format!("{}: it leads elsewhere, and that is not followed", self.shown),
            ));
        }
        Ok(answer)
    }

    /// As [`Peer::send`], and reads the answer.
    ///
    /// # Errors
    /// Also when the answer breaks off or is too large.
    pub async fn ask(&self, method: Method, below: &str, sent: Option<Sent>) -> Result<Answer, Fault> {
        self.read(self.send(method, below, sent).await?).await
    }

    /// Reads an answer whole.
    ///
    /// # Errors
    /// When it breaks off or is too large.
    pub async fn read(&self, response: Response) -> Result<Answer, Fault> {
        let status = response.status();
        let mut pieces = self.pieces(response);
        let mut body = BytesMut::new();
        while let Some(piece) = pieces.next().await {
            body.extend_from_slice(&piece?);
            if body.len() > MAX_ANSWER_BYTES {
                return Err(Fault::Passing(format!("{}: an answer is too large", self.shown)));
            }
        }
        Ok(Answer { status, body: body.freeze() })
    }

    /// The body of an answer, with a bound on the time between two pieces.
    pub fn pieces(&self, response: Response) -> Pieces {
        let state = (response.into_body().into_data_stream(), self.shown.clone());
        Box::pin(futures_util::stream::try_unfold(state, |(mut body, shown)| async move {
            let piece = next_piece(&mut body).await.map_err(|why| Fault::Passing(format!("{shown}: {why}")))?;
            Ok(piece.map(|piece| (piece, (body, shown))))
        }))
    }

    /// What an answer means that is no success.
    pub fn fault(&self, what: &str, answer: &Answer) -> Fault {
        Fault::of_answer(&self.shown, what, answer.status, &answer.body)
    }

    fn bad_path(&self) -> Fault {
        Fault::fatal(StatusCode::BAD_REQUEST, "replication_error", format!("{}: this can't be asked", self.shown))
    }

    fn unreachable(&self, error: &hyper_util::client::legacy::Error) -> Fault {
        use std::error::Error as _;
        let mut why = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            why = format!("{why}: {inner}");
            source = inner.source();
        }
        Fault::Passing(format!("{}: {why}", self.shown))
    }
}

/// A body as it arrives.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Fault>> + Send>>;

async fn next_piece(body: &mut BodyDataStream) -> Result<Option<Bytes>, String> {
    match tokio::time::timeout(SILENCE_TIMEOUT, body.next()).await {
        Ok(None) => Ok(None),
        Ok(Some(Ok(piece))) => Ok(Some(piece)),
        Ok(Some(Err(error))) => Err(format!("the answer broke off: {error}")),
        Err(_) => Err("nothing more came in time".to_owned()),
    }
}

/// Boxed here: handlers start replications, and replications ask handlers.
fn ask_router(
    pod: Arc<Pod>,
    who: Identity,
    request: http::Request<Body>,
) -> Pin<Box<dyn Future<Output = Response> + Send>> {
    Box::pin(async move {
        let answer = match Request::from_http(request) {
            Ok(request) => route::dispatch(&pod, &who, request).await,
            Err(error) => Err(error),
        };
        answer.unwrap_or_else(|error| error.into_response())
    })
}

/// A name as one segment of a path, or as the value of a parameter.
pub fn escaped(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// A document's id in a path: `_design/` and `_local/` keep their slash.
pub fn doc_path(id: &str) -> String {
    for prefix in ["_design/", "_local/"] {
        if let Some(name) = id.strip_prefix(prefix) {
            return format!("/{prefix}{}", escaped(name));
        }
    }
    format!("/{}", escaped(id))
}
