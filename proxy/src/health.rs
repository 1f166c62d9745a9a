//! `/_up`: whether this pod can serve, for load balancers and watchers.

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
    last: Mutex<Option<(Instant, bool)>>,
}

impl Health {
    /// Answers `/_up`, without a log-in.
    ///
    /// # Errors
    /// `UpstreamDown` when rean is not well.
    pub async fn answer(&self, upstream: &Upstream) -> Result<Response<Body>, Refusal> {
        // Whoever comes while rean is being asked waits for that answer.
        let mut last = self.last.lock().await;
        let well = match *last {
            Some((at, well)) if at.elapsed() < LIFE => well,
            _ => {
                let asking = upstream.ask(Method::GET, "/_up", None);
                let answer = tokio::time::timeout(PATIENCE, asking).await;
                let well = matches!(answer, Ok(Ok((StatusCode::OK, _))));
                *last = Some((Instant::now(), well));
                well
            }
        };
        if well { Ok(json(StatusCode::OK, &json!({"status": "ok"}))) } else { Err(Refusal::UpstreamDown) }
    }
}
