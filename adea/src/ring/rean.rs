//! The way to this pod's rean: it is told of the ring, and answers with what it has.

use std::net::SocketAddr;
use std::time::Duration;

use adea_ring::report::{Facts, RingState};
use adea_ring::{Identity, RingSecret, Signer, software};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::doing::Doing;
use crate::plan::Program;
use crate::ring::turn::Answer;

/// rean finishes the writes under way before it gives up being master, which it does within three seconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// On loopback; a rean that is there accepts at once.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// The facts of a pod that knows ten thousand stores are a tenth of this.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// A task that tells rean one thing after another.
pub struct Teller {
    states: mpsc::Sender<RingState>,
    answers: mpsc::Receiver<Answer>,
    task: JoinHandle<()>,
}

/// A connection to rean, opened when it is needed.
struct Line {
    doing: watch::Receiver<Doing>,
    identity: Vec<(&'static str, String)>,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// Why rean has not answered.
#[derive(Debug, thiserror::Error)]
enum Unheard {
    #[error("it does not run")]
    Gone,
    #[error("can't connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("can't make the request: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("it says {0}")]
    Status(StatusCode),
    #[error("the answer can't be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer makes no sense: {0}")]
    Json(#[from] serde_json::Error),
    #[error("no answer in {} s", ANSWER_DEADLINE.as_secs())]
    Late,
}

impl Teller {
    /// Starts the task.
    pub fn start(doing: watch::Receiver<Doing>, secret: &RingSecret) -> Self {
        // One is told at a time, and one answer comes of each.
        let (states, mut to_tell) = mpsc::channel(1);
        let (answered, answers) = mpsc::channel(1);
        let mut line = Line { doing, identity: Signer::new(secret).headers(&Identity::system()), sender: None };
        let task = tokio::spawn(async move {
            let mut last_trouble = None;
            while let Some(state) = to_tell.recv().await {
                let answer = line.tell(&state).await.unwrap_or_else(|unheard| {
                    let trouble = unheard.to_string();
                    if last_trouble.as_ref() != Some(&trouble) {
                        tracing::debug!("rean does not answer about the ring: {trouble}");
                    }
                    last_trouble = Some(trouble);
                    if matches!(unheard, Unheard::Connect(_) | Unheard::Gone) { Answer::Down } else { Answer::Failed }
                });
                if answered.send(answer).await.is_err() {
                    return;
                }
            }
        });
        Self { states, answers, task }
    }

    /// Tells rean; the answer is to be awaited before the next.
    pub async fn tell(&self, state: RingState) {
        // The task lives as long as this.
        let _ = self.states.send(state).await;
    }

    /// The answer to what was told. It may be asked for again when it was given up before it came.
    pub async fn answer(&mut self) -> Answer {
        self.answers.recv().await.unwrap_or(Answer::Failed)
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Line {
    async fn tell(&mut self, state: &RingState) -> Result<Answer, Unheard> {
        let state = software::say(state, &["members", "said", "host"])?;
        let body = Bytes::from(serde_json::to_vec(&state)?);
        let facts = match timeout(ANSWER_DEADLINE, self.ask(body)).await {
            Ok(facts) => facts,
            Err(_) => Err(Unheard::Late),
        };
        if facts.is_err() {
            self.sender = None;
        }
        Ok(Answer::Facts(Box::new(facts?)))
    }

    async fn ask(&mut self, body: Bytes) -> Result<Facts, Unheard> {
        let addr = self.doing.borrow().addr(Program::Rean).ok_or(Unheard::Gone)?;
        let mut request = Request::post("/_pod/ring").header(HOST, addr.to_string());
        request = request.header(CONTENT_TYPE, "application/json");
        for (name, value) in &self.identity {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(body))?;
        let response = self.sender(addr).await?.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(Unheard::Status(response.status()));
        }
        let text = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(Unheard::Body)?;
        Ok(serde_json::from_slice(&text.to_bytes())?)
    }

    async fn sender(&mut self, addr: SocketAddr) -> Result<&mut SendRequest<Full<Bytes>>, Unheard> {
        let usable = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            let stream = match timeout(CONNECT_DEADLINE, TcpStream::connect(addr)).await {
                Ok(stream) => stream.map_err(Unheard::Connect)?,
                Err(_) => return Err(Unheard::Late),
            };
            stream.set_nodelay(true).map_err(Unheard::Connect)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            // It ends with its sender; what goes wrong on it shows in the request.
            tokio::spawn(connection);
            self.sender = Some(sender);
        }
        // Set just now, or found usable.
        self.sender.as_mut().ok_or(Unheard::Late)
    }
}
