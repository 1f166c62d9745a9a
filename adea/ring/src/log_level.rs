//! How much a running program logs, as administrators set it with CouchDB's `log/level`.
//!
//! Only a program's own `main` knows how it logs, and only its server hears of settings: this is where they meet. As
//! logging itself, it is one for the whole process.

use std::sync::OnceLock;

/// CouchDB's names of levels (<https://docs.couchdb.org/en/stable/config/logging.html>), and the filter that each means.
const LEVELS: [(&str, &str); 10] = [
    ("debug", "debug"),
    ("info", "info"),
    ("notice", "info"),
    ("warning", "warn"),
    ("warn", "warn"),
    ("error", "error"),
    ("critical", "error"),
    ("alert", "error"),
    ("emergency", "error"),
    ("none", "off"),
];

/// Puts a filter in force; `None`: that of the start.
type Apply = Box<dyn Fn(Option<&str>) + Send + Sync>;

static APPLY: OnceLock<Apply> = OnceLock::new();

/// Says how this program changes what it logs. The first one given counts.
pub fn install(apply: Apply) {
    // A second one would be a second `main`.
    let _ = APPLY.set(apply);
}

/// Logs at one of CouchDB's levels, or as at the start. What is no level is as none given; a program that has not said
/// how goes on as it does.
pub fn set(level: Option<&str>) {
    if let Some(apply) = APPLY.get() {
        apply(level.and_then(filter));
    }
}

/// The names of the levels.
pub fn names() -> impl Iterator<Item = &'static str> {
    LEVELS.iter().map(|(name, _)| *name)
}

fn filter(level: &str) -> Option<&'static str> {
    LEVELS.iter().find(|(name, _)| *name == level).map(|(_, filter)| *filter)
}

#[cfg(test)]
mod tests {
    use super::{install, set};
    use std::sync::{Arc, Mutex};

    #[test]
    fn levels_have_couchdbs_names() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        install(Box::new(move |filter| sink.lock().expect("lock").push(filter.map(str::to_owned))));
        for level in [Some("debug"), Some("notice"), Some("none"), Some("zork"), None] {
            set(level);
        }
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(*seen.lock().expect("lock"), [some("debug"), some("info"), some("off"), None, None]);
    }
}
