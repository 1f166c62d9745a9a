//! The exchange with the ring's door.

use std::time::Duration;

use adea_ring::PodId;
use adea_ring::join::{Intent, JoinAnswer, Joiner, Token, Welcome};
use anyhow::{Context, anyhow};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::hidden::Invitation;
use crate::exit;
use crate::http::{Conn, Peer, excerpt};
use crate::ring::clocks;

/// How long a ring may take to find a write master, which a join needs.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);
/// How long a place may not answer at all: a pod that is started again is back by then.
const SILENCE: Duration = Duration::from_secs(10);
/// One exchange: it waits for the write master, and for further pods where the ring wants that.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// How long a port may take to say whether it speaks TLS.
const TLS_DEADLINE: Duration = Duration::from_secs(5);

/// The door of a ring, seen from outside.
pub struct Door {
    peer: Peer,
    place: String,
    token: Token,
    pod: PodId,
}

impl Door {
    /// Finds out how the place is spoken to.
    pub async fn new(invitation: &Invitation, pod: PodId) -> anyhow::Result<Self> {
        let place = invitation.place.clone();
        // Whoever answers must prove to know the token, so no certificate is needed.
        let peer = match place.contains("://") {
            true => Peer::parse(&place)?.unverified(),
            false => {
                let (secure, plain) = (format!("https://{place}"), format!("http://{place}"));
                let secure = Peer::parse(&secure).context("where to? podctl join TOKEN@HOST:PORT")?.unverified();
                match timeout(TLS_DEADLINE, secure.certificates()).await {
                    Ok(Ok(Some(_))) => secure,
                    _ => Peer::parse(&plain)?,
                }
            }
        };
        Ok(Self { peer, place, token: invitation.token.clone(), pod })
    }

    /// Shows the token. Tries again while the ring has no write master, and when an answer was lost: one request counts
    /// once, however often it is sent.
    pub async fn ask(&mut self, intent: Intent) -> anyhow::Result<Welcome> {
        let joiner = Joiner::new(&self.token, intent, self.pod.clone())?;
        let body = json!(joiner.request()).to_string();
        let began = Instant::now();
        let mut told = String::new();
        loop {
            let mut patience = PATIENCE;
            let why = match timeout(ANSWER_DEADLINE, self.send(&body)).await {
                Ok(Ok((StatusCode::OK, answer))) => {
                    let answer: JoinAnswer = serde_json::from_value(answer)
                        .with_context(|| format!("{} answers, and is no pod of this version", self.place))?;
                    return joiner.open(&answer).with_context(|| self.place.clone());
                }
                Ok(Ok((status, answer))) if is_for_now(status) && answer["error"] != "inactive" => {
                    anyhow!("{status}: {}", reason(&answer))
                }
                Ok(Ok((status, answer))) => return Err(self.refused(status, &answer)),
                Ok(Err(err)) => {
                    patience = SILENCE;
                    err
                }
                Err(_) => anyhow!("no answer in {} s", ANSWER_DEADLINE.as_secs()),
            };
            let why = format!("{why:#}");
            if began.elapsed() >= patience {
                return Err(exit::no_pod(format!("{} does not let anybody in: {why}", self.place)));
            }
            if told != why {
                eprintln!("{}: {why}; trying again", self.place);
                told = why;
            }
            sleep(PAUSE).await;
        }
    }

    /// How far the clock of the pod that answers is ahead of this machine's, in milliseconds; none if it doesn't tell.
    pub async fn clock_ahead_ms(&self) -> Option<i64> {
        timeout(SILENCE, clocks::ahead_ms(&self.peer)).await.ok()?.ok()?
    }

    async fn send(&self, body: &str) -> anyhow::Result<(StatusCode, Value)> {
        let mut conn: Conn = self.peer.connect().await?;
        let (status, answer) = conn.send(Method::POST, "/_join", body.to_owned()).await?;
        let value = serde_json::from_slice(&answer).unwrap_or_else(|_| json!({"reason": excerpt(&answer)}));
        Ok((status, value))
    }

    fn refused(&self, status: StatusCode, answer: &Value) -> anyhow::Error {
        let reason = reason(answer);
        match status {
            StatusCode::FORBIDDEN => exit::not_allowed(reason),
            StatusCode::CONFLICT if answer["error"] == "name_taken" => anyhow!("{reason} (--pod NAME)"),
            StatusCode::NOT_FOUND => anyhow!("{} is no pod of a version that can be joined: {reason}", self.place),
            _ => anyhow!("{}: {status}: {reason}", self.place),
        }
    }
}

/// Whether trying again may help.
fn is_for_now(status: StatusCode) -> bool {
    matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY | StatusCode::TOO_MANY_REQUESTS)
}

fn reason(answer: &Value) -> String {
    answer["reason"].as_str().unwrap_or("no reason is given").to_owned()
}
