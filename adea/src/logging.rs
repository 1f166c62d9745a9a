//! Logs: `tracing` to standard error.
//!
//! `ADEA_LOG` says what is logged, in the language of `tracing`'s filters (`info`,
//! `rean=debug,proxy=warn`); `ADEA_LOG_FORMAT=json` writes a JSON object a line.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What to log.
pub const FILTER_ENV: &str = "ADEA_LOG";
/// How to write it.
pub const FORMAT_ENV: &str = "ADEA_LOG_FORMAT";

/// Starts logging; to be called once, first thing in `main`. A filter that makes no sense is
/// reported and replaced by `default_filter`.
pub fn init(default_filter: &str) {
    let wanted = std::env::var(FILTER_ENV).ok();
    let parsed = wanted.as_deref().map(EnvFilter::try_new);
    let (filter, wrong) = match parsed {
        Some(Ok(filter)) => (filter, None),
        Some(Err(err)) => (EnvFilter::new(default_filter), Some(err)),
        None => (EnvFilter::new(default_filter), None),
    };
    // Failures to log are not themselves logged: the way to do so panics when standard error is gone,
    // as it is after the death of whoever read it.
    let text = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(filter);
    let json = std::env::var(FORMAT_ENV).is_ok_and(|format| format == "json");
    let started =
        if json { registry.with(text.json().flatten_event(true)).try_init() } else { registry.with(text).try_init() };
    if started.is_ok()
        && let Some(err) = wrong
    {
        tracing::warn!("{FILTER_ENV} makes no sense, using `{default_filter}`: {err}");
    }
}
