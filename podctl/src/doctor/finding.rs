//! What a check comes to, for people and for programs.

use serde_json::{Value, json};

use crate::paint::{Paint, Tone, harmless};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It is as it should be.
    Well,
    /// It works, and somebody should look at it.
    Warn,
    /// It doesn't work, or won't for long.
    Bad,
}

/// What one check has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which check: one word.
    pub check: &'static str,
    /// A pod, or `here`.
    pub place: String,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// Why it matters; empty where all is well.
    pub why: String,
    /// What to do; empty where all is well.
    pub todo: String,
}

impl Finding {
    /// All is as it should be.
    pub fn well(check: &'static str, place: &str, what: impl Into<String>) -> Self {
        let (place, what) = (place.to_owned(), what.into());
        Self { check, place, level: Level::Well, what, why: String::new(), todo: String::new() }
    }

    /// Something that somebody should look at.
    pub fn warn(check: &'static str, place: &str, what: impl Into<String>, why: &str, todo: impl Into<String>) -> Self {
        let (what, todo) = (what.into(), todo.into());
        Self { check, place: place.to_owned(), level: Level::Warn, what, why: why.to_owned(), todo }
    }

    /// Something that is wrong.
    pub fn bad(check: &'static str, place: &str, what: impl Into<String>, why: &str, todo: impl Into<String>) -> Self {
        Self { level: Level::Bad, ..Self::warn(check, place, what, why, todo) }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let level = match self.level {
            Level::Well => "well",
            Level::Warn => "warning",
            Level::Bad => "bad",
        };
        let Self { check, place, what, why, todo, .. } = self;
        json!({"check": check, "place": place, "level": level, "what": what, "why": why, "todo": todo})
    }
}

/// For people: what is wrong first; what is well only if that is wanted.
pub fn text(findings: &[Finding], is_verbose: bool, paint: Paint) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    let mut text = String::new();
    for finding in sorted {
        let (mark, tone) = match finding.level {
            Level::Well if !is_verbose => continue,
            Level::Well => ("ok", Tone::Good),
            Level::Warn => ("--", Tone::Warn),
            Level::Bad => ("!!", Tone::Bad),
        };
        let head = format!("{}, {}", finding.check, finding.place);
        text.push_str(&format!(
            "{} {}: {}\n",
            paint.paint(tone, mark),
            paint.paint(Tone::Bold, &head),
            harmless(&finding.what)
        ));
        for (name, said) in [("why", &finding.why), ("do", &finding.todo)] {
            if !said.is_empty() {
                text.push_str(&format!("     {name}: {}\n", harmless(said)));
            }
        }
    }
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let (well, warn, bad) = (count(Level::Well), count(Level::Warn), count(Level::Bad));
    text.push_str(&format!("{well} checks are well, {warn} to look at, {bad} wrong\n"));
    text
}
