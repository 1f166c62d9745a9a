//! Logs: `tracing` to standard error.
//!
//! `ADEA_LOG` says what is logged, in the language of `tracing`'s filters (`info`,
//! `rean=debug,proxy=warn`); `ADEA_LOG_FORMAT=json` writes a JSON object a line. While a program runs, administrators can
//! set another level ([`adea_ring::log_level`]).

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
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
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let json = std::env::var(FORMAT_ENV).is_ok_and(|format| format == "json");
    let started =
        if json { registry.with(text.json().flatten_event(true)).try_init() } else { registry.with(text).try_init() };
    if started.is_err() {
        return;
    }
    let at_start = wrong.is_none().then_some(wanted).flatten().unwrap_or_else(|| default_filter.to_owned());
    adea_ring::log_level::install(Box::new(move |filter| {
        // It fails only when the subscriber is gone, and then nothing is logged anyway.
        let _ = handle.reload(EnvFilter::new(filter.unwrap_or(&at_start)));
    }));
    if let Some(err) = wrong {
        tracing::warn!("{FILTER_ENV} makes no sense, using `{default_filter}`: {err}");
    }
}
