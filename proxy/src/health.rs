//! `/_up`: whether this pod can serve, for load balancers and watchers.
//!
//! A pod that its operator has set inactive says so with 404, as CouchDB does in its maintenance mode
//! (<https://docs.couchdb.org/en/stable/api/server/common.html#up>): its programs are well, and clients are to go elsewhere.

use std::time::Duration;

use http::{Method, Response, StatusCode};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::body::Body;
use crate::error::{Refusal, json};
use crate::upstream::Upstream;

/// How long an answer of rean counts: however often this is asked, rean is asked once a second.
const LIFE: Duration = Duration::from_secs(1);
/// How long rean may take to say that it is well.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is known of rean's health.
#[derive(Debug, Default)]
pub struct Health {
    last: Mutex<Option<(Instant, Standing)>>,
}

/// What rean says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Well,
    Inactive,
    Down,
}

impl Standing {
    fn of(status: Option<StatusCode>) -> Self {
        match status {
            Some(StatusCode::OK) => Self::Well,
            Some(StatusCode::NOT_FOUND) => Self::Inactive,
            _ => Self::Down,
        }
    }
}

impl Health {
    /// Answers `/_up`, without a log-in.
    ///
    /// # Errors
    /// `UpstreamDown` when rean is not well.
    pub async fn answer(&self, upstream: &Upstream) -> Result<Response<Body>, Refusal> {
        // Whoever comes while rean is being asked waits for that answer.
        let mut last = self.last.lock().await;
        let standing = match *last {
            Some((at, standing)) if at.elapsed() < LIFE => standing,
            _ => {
                let asking = upstream.ask(Method::GET, "/_up", None);
                let answer = tokio::time::timeout(PATIENCE, asking).await;
                let standing = Standing::of(answer.ok().and_then(Result::ok).map(|(status, _)| status));
                *last = Some((Instant::now(), standing));
                standing
            }
        };
        match standing {
            Standing::Well => Ok(json(StatusCode::OK, &json!({"status": "ok"}))),
            Standing::Inactive => Ok(json(StatusCode::NOT_FOUND, &json!({"status": "inactive"}))),
            Standing::Down => Err(Refusal::UpstreamDown),
        }
    }
}
