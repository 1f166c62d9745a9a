//! Counters of the proxy and their Prometheus text form.
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>)

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::{Method, StatusCode};
use parking_lot::Mutex;

use crate::clock;

/// Upper bounds of the latency buckets, in microseconds: from a cached read to a slow view.
const BUCKETS_US: [u64; 12] =
    [100, 250, 500, 1000, 2500, 5000, 10_000, 50_000, 100_000, 500_000, 2_500_000, 10_000_000];

/// Versions of apps that are counted apart; what comes after has no names. Each is a line of the text.
const MAX_APP_VERSIONS: usize = 200;

const METHODS: [&str; 4] = ["read", "write", "post", "other"];
const STATUSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// What the proxy counts. Nearly all of it is lock-free: the request path only adds.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: [[AtomicU64; STATUSES.len()]; METHODS.len()],
    latency: [AtomicU64; BUCKETS_US.len() + 1],
    latency_sum_us: AtomicU64,
    /// Open client connections.
    pub connections: AtomicI64,
    /// Client connections that were closed at once: too many of one address.
    pub connections_refused: AtomicU64,
    /// Open feeds.
    pub feeds: AtomicI64,
    /// Requests whose credentials were in the cache.
    pub auth_hits: AtomicU64,
    /// Requests whose credentials had to be checked.
    pub auth_misses: AtomicU64,
    /// Failed log-ins.
    pub auth_failures: AtomicU64,
    /// Requests refused for too many log-ins.
    pub throttled: AtomicU64,
    /// Requests that rean did not answer.
    pub upstream_errors: AtomicU64,
    /// Body bytes from clients.
    pub bytes_in: AtomicU64,
    /// Body bytes to clients, as sent (after compression).
    pub bytes_out: AtomicU64,
    /// TLS handshakes that came to their end.
    pub tls_handshakes: AtomicU64,
    /// TLS handshakes that failed or took too long.
    pub tls_failures: AtomicU64,
    /// Certificates that should have replaced the one in use and could not.
    pub renewal_failures: AtomicU64,
    /// Until when the certificate in use holds, in seconds since 1970; 0: there is none.
    pub certificate_until_s: AtomicI64,
    /// Files of apps, by database and version.
    apps: Mutex<BTreeMap<(String, String), u64>>,
    /// Access log lines that were thrown away as the disk was too slow.
    pub log_lines_lost: AtomicU64,
}

/// Which of the method classes a request is in.
#[derive(Debug, Clone, Copy)]
pub struct MethodClass(usize);

impl MethodClass {
    /// GET, HEAD and OPTIONS read; PUT, DELETE and COPY write; POST may do either.
    pub fn of(method: &Method) -> Self {
        match *method {
            Method::GET | Method::HEAD | Method::OPTIONS => Self(0),
            Method::PUT | Method::DELETE => Self(1),
            Method::POST => Self(2),
            _ => Self(if method.as_str() == "COPY" { 1 } else { 3 }),
        }
    }
}

impl Metrics {
    /// Counts an answered request; feeds have no latency worth counting.
    pub fn request(&self, class: MethodClass, status: StatusCode, took: Option<Duration>) {
        let status = usize::from(status.as_u16() / 100).clamp(1, STATUSES.len()) - 1;
        self.requests[class.0][status].fetch_add(1, Relaxed);
        if let Some(took) = took {
            let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            let bucket = BUCKETS_US.partition_point(|bound| *bound < us);
            self.latency[bucket].fetch_add(1, Relaxed);
            self.latency_sum_us.fetch_add(us, Relaxed);
        }
    }

    /// Counts a file of a version of an app. What rean has answered with is there, so a client can't make names up.
    pub fn app_file(&self, app: &str, version: &str) {
        let mut apps = self.apps.lock();
        let key = (app.to_owned(), version.to_owned());
        let key = if apps.len() < MAX_APP_VERSIONS || apps.contains_key(&key) { key } else { Default::default() };
        *apps.entry(key).or_default() += 1;
    }

    /// The text that Prometheus scrapes.
    pub fn text(&self) -> String {
        let mut out = String::with_capacity(4096);
        out.push_str("# TYPE adea_proxy_requests_total counter\n");
        for (method, row) in METHODS.iter().zip(&self.requests) {
            for (status, count) in STATUSES.iter().zip(row) {
                let count = count.load(Relaxed);
                let _ = writeln!(out, "adea_proxy_requests_total{{method=\"{method}\",status=\"{status}\"}} {count}");
            }
        }
        self.latency_text(&mut out);
        self.apps_text(&mut out);
        for (name, gauge) in [("connections", &self.connections), ("feeds", &self.feeds)] {
            let value = gauge.load(Relaxed);
            let _ = writeln!(out, "# TYPE adea_proxy_{name} gauge\nadea_proxy_{name} {value}");
        }
        let until_s = self.certificate_until_s.load(Relaxed);
        if until_s != 0 {
            let now_s = i64::try_from(clock::now_ms() / 1000).unwrap_or(i64::MAX);
            let days = (until_s - now_s) as f64 / 86_400.0;
            let _ = writeln!(out, "# TYPE adea_proxy_certificate_valid_days gauge");
            let _ = writeln!(out, "adea_proxy_certificate_valid_days {days:.2}");
        }
        for (name, counter) in [
            ("connections_refused", &self.connections_refused),
            ("auth_cache_hits", &self.auth_hits),
            ("auth_cache_misses", &self.auth_misses),
            ("auth_failures", &self.auth_failures),
            ("throttled", &self.throttled),
            ("upstream_errors", &self.upstream_errors),
            ("received_bytes", &self.bytes_in),
            ("sent_bytes", &self.bytes_out),
            ("tls_handshakes", &self.tls_handshakes),
            ("tls_handshake_failures", &self.tls_failures),
            ("certificate_renewal_failures", &self.renewal_failures),
            ("access_log_lines_lost", &self.log_lines_lost),
        ] {
            let value = counter.load(Relaxed);
            let _ = writeln!(out, "# TYPE adea_proxy_{name}_total counter\nadea_proxy_{name}_total {value}");
        }
        out
    }

    fn apps_text(&self, out: &mut String) {
        out.push_str("# TYPE adea_proxy_app_files_total counter\n");
        // Names of databases and versions have nothing that must be escaped.
        for ((app, version), count) in self.apps.lock().iter() {
            let _ = writeln!(out, "adea_proxy_app_files_total{{app=\"{app}\",version=\"{version}\"}} {count}");
        }
    }

    fn latency_text(&self, out: &mut String) {
        out.push_str("# TYPE adea_proxy_request_seconds histogram\n");
        let mut sum = 0;
        for (at, count) in self.latency.iter().enumerate() {
            sum += count.load(Relaxed);
            let bound = BUCKETS_US.get(at).map_or_else(|| "+Inf".to_owned(), |us| (*us as f64 / 1e6).to_string());
            let _ = writeln!(out, "adea_proxy_request_seconds_bucket{{le=\"{bound}\"}} {sum}");
        }
        let seconds = self.latency_sum_us.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "adea_proxy_request_seconds_sum {seconds}");
        let _ = writeln!(out, "adea_proxy_request_seconds_count {sum}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_apps_are_counted_apart_up_to_a_bound() {
        let metrics = Metrics::default();
        for n in 0..MAX_APP_VERSIONS + 5 {
            metrics.app_file("notes", &format!("v{n}"));
        }
        metrics.app_file("notes", "v1");
        let text = metrics.text();
        assert!(text.contains("adea_proxy_app_files_total{app=\"notes\",version=\"v1\"} 2\n"), "{text}");
        assert!(text.contains("adea_proxy_app_files_total{app=\"\",version=\"\"} 5\n"), "{text}");
    }

    #[test]
    fn requests_are_counted_by_class_and_latency() {
        let metrics = Metrics::default();
        let took = |us| Some(Duration::from_micros(us));
        metrics.request(MethodClass::of(&Method::GET), StatusCode::OK, took(100));
        metrics.request(MethodClass::of(&Method::HEAD), StatusCode::OK, took(101));
        metrics.request(MethodClass::of(&Method::PUT), StatusCode::CONFLICT, took(20_000_000));
        metrics.request(MethodClass::of(&Method::POST), StatusCode::OK, None);
        let text = metrics.text();
        for line in [
            "adea_proxy_requests_total{method=\"read\",status=\"2xx\"} 2",
            "adea_proxy_requests_total{method=\"write\",status=\"4xx\"} 1",
            "adea_proxy_request_seconds_bucket{le=\"0.0001\"} 1",
            "adea_proxy_request_seconds_bucket{le=\"0.00025\"} 2",
            "adea_proxy_request_seconds_bucket{le=\"+Inf\"} 3",
            "adea_proxy_request_seconds_count 3",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
    }
}
