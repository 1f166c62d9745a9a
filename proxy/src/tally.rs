//! What is written down about one request when its answer has ended: counters, and a line of the access log.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::{Method, StatusCode};
use tokio::time::Instant;

use crate::access_log::{AccessLog, Line};
use crate::metrics::{MethodClass, Metrics};

/// One request that is being answered. Writes itself down when dropped.
#[derive(Debug)]
pub struct Tally {
    metrics: Arc<Metrics>,
    started: Instant,
    class: MethodClass,
    status: StatusCode,
    feed: bool,
    broken: bool,
    sent_bytes: u64,
    /// Only when the access log is on: nothing is formatted or copied for a log that is off.
    log: Option<Logged>,
}

/// What a log line tells besides.
#[derive(Debug)]
pub struct Logged {
    /// Where the line goes.
    pub log: Arc<AccessLog>,
    /// The method.
    pub method: Method,
    /// The path without the query: a query may hold keys and words of documents.
    pub path: String,
    /// The account, if there is one.
    pub user: Option<Arc<str>>,
    /// The client's address.
    pub peer: IpAddr,
}

impl Tally {
    /// A request that began at `started` and is answered with `status`.
    pub fn new(
        metrics: Arc<Metrics>,
        started: Instant,
        class: MethodClass,
        status: StatusCode,
        feed: bool,
        log: Option<Logged>,
    ) -> Self {
        Self { metrics, started, class, status, feed, broken: false, sent_bytes: 0, log }
    }

    /// Body bytes that went out.
    pub fn sent(&mut self, bytes: u64) {
        self.sent_bytes += bytes;
    }

    /// The body broke off.
    pub fn broken(&mut self) {
        self.broken = true;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        self.metrics.bytes_out.fetch_add(self.sent_bytes, Relaxed);
        self.metrics.request(self.class, self.status, (!self.feed).then_some(took));
        if let Some(logged) = self.log.take() {
            let line = Line {
                method: logged.method.as_str(),
                path: &logged.path,
                status: self.status.as_u16(),
                bytes: self.sent_bytes,
                ms: took.as_millis(),
                user: logged.user.as_deref(),
                peer: logged.peer,
                broken: self.broken,
            };
            logged.log.write(&line, &self.metrics);
        }
    }
}
